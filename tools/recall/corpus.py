"""The source a model is asked about: files of one language as one text, and the functions in it."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import InputError
from tools.recall import extract_js, extract_php, extract_python
from tools.recall.function import PRIMARY, Function, first_of_each_name

STDLIB = "stdlib:"  # a path below the running Python's standard library
# More than any context holds, so that a huge folder is refused and not read to its end.
_MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Language:
    """`comment` begins a comment that ends with its line."""

    name: str
    suffixes: tuple[str, ...]
    comment: str
    extract: Callable[[str, str], list[Function]]


PYTHON = Language("Python", (".py",), "#", extract_python.functions)
LANGUAGES = (
    PYTHON,
    Language("JavaScript", (".js", ".mjs", ".cjs"), "//", extract_js.functions),
    Language("PHP", (".php",), "//", extract_php.functions),
)
_BY_SUFFIX = {suffix: language for language in LANGUAGES for suffix in language.suffixes}


@dataclass(frozen=True)
class Corpus:
    """`functions` are those with PRIMARY body lines or more, each name once."""

    text: str
    language: Language
    files: tuple[str, ...]
    functions: tuple[Function, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def lines(self) -> int:
        return self.text.count("\n") + 1


def load(sources: Sequence[str]) -> Corpus:
    """The corpus of `sources`: files, folders, or either below the standard library as stdlib:PATH.

    Raises InputError for a path that cannot be read, an unknown suffix, more than one language, and
    when nothing is left to ask for.
    """
    paths = sorted({path for source in sources for path in _files(source)})
    if not paths:
        raise InputError(f"{', '.join(sources)}: no file ending in {', '.join(_BY_SUFFIX)}")
    languages = {_BY_SUFFIX[path.suffix.lower()].name: path for path in paths}
    if len(languages) > 1:
        seen = ", ".join(f"{name} ({path.name})" for name, path in sorted(languages.items()))
        raise InputError(
            f"a corpus is of one language, these files are of {len(languages)}: {seen}"
        )
    root = paths[0].parent if len(paths) == 1 else Path(os.path.commonpath(paths))
    names = [_label(path.relative_to(root)) for path in paths]
    language = _BY_SUFFIX[paths[0].suffix.lower()]
    return from_texts(language, dict(zip(names, _read(paths), strict=True)))


def from_texts(language: Language, texts: dict[str, str]) -> Corpus:
    """The corpus of `texts` by path; a single one stands as it is, several under headers."""
    parts: list[str] = []
    functions: list[Function] = []
    before = 0  # lines in front of the next text
    for file, text in texts.items():
        if len(texts) > 1:
            parts.append(f"{language.comment} ====== {file} ======\n")
            before += 1
            # an empty line ends every file
            text = text.removesuffix("\n") + "\n\n"
        found = language.extract(text, file)
        functions += [replace(f, start_line=f.start_line + before) for f in found]
        parts.append(text)
        before += text.count("\n")
    corpus = Corpus("".join(parts), language, tuple(texts), tuple(first_of_each_name(functions)))
    if not corpus.functions:
        what = "the corpus is empty" if not corpus.text.strip() else "nothing to ask for"
        raise InputError(
            f"{', '.join(texts):.200}: {what}: no named function with a body of "
            f"{PRIMARY} lines or more"
        )
    return corpus


def _files(source: str) -> Iterator[Path]:
    """The files of one source, absolute; in folders those of a known language, hidden ones not."""
    if source.startswith(STDLIB):
        path = Path(sysconfig.get_path("stdlib"), source.removeprefix(STDLIB))
    else:
        path = Path(source)
    # os.path, not Path: it also answers for names too long and folders that may not be read
    if not os.path.exists(path):
        raise InputError(f"{source}: no such file or folder")
    if os.path.isdir(path):
        yield from _below(path)
    elif path.suffix.lower() not in _BY_SUFFIX:
        raise InputError(
            f"{source}: cannot tell the language of {path.suffix or 'a name without suffix'}. "
            f"Choose from: {', '.join(_BY_SUFFIX)}"
        )
    elif not os.path.isfile(path):
        raise InputError(f"{source}: neither a file nor a folder")
    else:
        yield Path(os.path.abspath(path))


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(os.path.abspath(folder)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in _BY_SUFFIX and os.path.isfile(path):
                yield path


def _label(path: Path) -> str:
    """`path` as text of one line: file names may hold anything."""
    text = path.as_posix().encode(errors="replace").decode()
    return "".join(char if char.isprintable() else "?" for char in text)


def _read(paths: Sequence[Path]) -> list[str]:
    """The texts of `paths`, every line end as a newline."""
    texts, room = [], _MAX_BYTES
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(room + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        room -= len(data)
        if room < 0:
            raise InputError(f"the corpus is longer than {_MAX_BYTES >> 20} MiB, at {path}")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text: byte {error.start} is invalid") from None
        texts.append(text.replace("\r\n", "\n").replace("\r", "\n"))
    return texts
