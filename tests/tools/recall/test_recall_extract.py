"""Extractors find the functions a reader of the specification would, with their exact lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine import InputError
from tools.recall import extract_js, extract_php, extract_python
from tools.recall.corpus import load
from tools.recall.function import Function
from tools.recall.sampling import sample

# dist/jquery.js of jQuery 3.7.1 (285,314 bytes): not part of this repository
JQUERY = os.environ.get("MINIKV_TEST_JQUERY")


def lines(n: int, indent: str = "    ") -> str:
    return "".join(f"{indent}x{i} = {i};\n" for i in range(n))


def names(functions: Sequence[Function]) -> list[str]:
    return [f.name for f in functions]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the set of functions is that of 3.11")
def test_http_server_has_the_eleven_functions_of_its_era() -> None:
    assert " ".join(names(load(["stdlib:http/server.py"]).functions)) == (
        "_url_collapse_path parse_request handle_one_request send_error log_message send_head "
        "list_directory translate_path guess_type is_cgi run_cgi"
    )


@pytest.mark.skipif(JQUERY is None, reason="MINIKV_TEST_JQUERY names no copy of jQuery 3.7.1")
def test_jquery_has_111_functions_and_the_known_sample() -> None:
    corpus = load([str(JQUERY)])
    assert len(corpus.text.encode()) == 285_314
    assert len(corpus.functions) == 111
    assert " ".join(names(sample(corpus, k=16, seed=42))) == (
        "DOMEval find PSEUDO matcherFromGroupMatchers init then dataAttr buildFragment domManip "
        "boxModelAdjustment defaultPrefilter propFilter val ajaxConvert done parseHTML"
    )


def test_python_goes_breadth_first_through_nested_functions_and_methods() -> None:
    source = (
        "def outer():\n    def inner():\n        pass\nclass A:\n    async def method(self): pass\n"
        "def last(): pass\n"
    )
    assert names(extract_python.functions(source, "")) == ["outer", "last", "inner", "method"]


def test_python_body_begins_with_the_docstring_and_ends_with_the_last_line() -> None:
    source = "def f(a,\n      b):\n    # why\n    '''Doc.\n\n    More.'''\n    return [\n    ]\n"
    (f,) = extract_python.functions(source, "")
    assert (f.start_line, f.body) == (4, tuple(source.split("\n")[3:8]))
    assert f.anchor == "def f(a,\n      b):\n    # why"


def test_python_body_that_begins_with_a_decorator_holds_it() -> None:
    source = "def f():\n    @wraps\n    def g():\n        pass\n    return g\n"
    assert extract_python.functions(source, "")[0].body[0] == "    @wraps"


def test_python_lines_are_those_between_newlines_only() -> None:
    source = "def f():\n    a = '\x0c'\n    b = 1  # \u2028\n    c = 2\n"
    (f,) = extract_python.functions(source, "")
    assert f.body == tuple(source.split("\n")[1:4])


@pytest.mark.parametrize(
    "source",
    ["def f(:\n", "a = '\0'\n", "(" * 300, "-" * 100_000 + "1\n"],
    ids=["syntax", "nul", "brackets", "signs"],
)
def test_what_is_not_python_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(InputError, match=r"^bad\.py.*: not Python: .+$"):
        extract_python.functions(source, "bad.py")


JS_NAMES = {
    "function own() {\n}": "own",
    "var v = function() {\n}": "v",
    "var v = function own() {\n}": "own",
    "let arrow = async ( a ) => {\n}": "arrow",
    "target = function() {\n}": "target",
    "a.b.last = () => {\n}": "last",
    "a[ key ] = function() {\n}": "key",
    "({ property: function() {\n} })": "property",
    "({ 'quoted key': function() {\n} })": "quoted key",
    "({ short() {\n} })": "short",
    "class A { method() {\n} }": "method",
    "export default function named() {\n}": "named",
}


@pytest.mark.parametrize("source", JS_NAMES, ids=JS_NAMES.values())
def test_javascript_names_come_from_the_function_or_its_place(source: str) -> None:
    assert names(extract_js.functions(source, "")) == [JS_NAMES[source]]


@pytest.mark.parametrize(
    "source",
    ["call(function() {\n})", "var f = () => 1", "(function() {\n})()", "x = [() => {\n}]"],
)
def test_javascript_without_name_or_block_is_no_target(source: str) -> None:
    assert extract_js.functions(source, "") == []


def test_javascript_body_is_strictly_between_the_lines_of_its_braces() -> None:
    source = (
        "#!/usr/bin/env node\n// \U0001f600 \u2028\nvar f = function(\n  a ) { a();\n  b();\n}\n"
    )
    (f,) = extract_js.functions(source, "")
    assert (f.start_line, f.body) == (5, ("  b();",))
    assert f.anchor == "var f = function(\n  a ) { a();"


def test_javascript_is_walked_in_pre_order() -> None:
    source = "function a() {\n  var b = function() {\n  };\n}\nfunction c() {\n}\n"
    assert names(extract_js.functions(source, "")) == ["a", "b", "c"]


def test_scripts_that_are_no_modules_are_read() -> None:
    assert names(extract_js.functions("with (a) { function f() {\n} }", "")) == ["f"]


@pytest.mark.parametrize("source", ["a = {", "let x = a?.b;", "(" * 3000], ids=len)
def test_what_is_not_javascript_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(InputError, match=r"^bad\.js: .*JavaScript.*$"):
        extract_js.functions(source, "bad.js")


PHP = """<html> function text() { } <?php
// function comment() {
function &reference($a = '}') {
    $text = <<<EOT
 } } function heredoc() {
EOT;
    return function() { };
}
abstract class A {
    abstract public function none();
    public static function method(): int
    {
        return fn($x) => "{$x}";
    }
}
"""


def test_php_finds_named_functions_past_strings_comments_and_html() -> None:
    reference, method = extract_php.functions(PHP, "")
    assert (reference.name, reference.start_line) == ("reference", 4)
    assert reference.body == tuple(PHP.split("\n")[3:7])
    assert (method.name, method.body) == ("method", ('        return fn($x) => "{$x}";',))
    assert method.anchor.endswith("public static function method(): int\n    {")


def test_php_counts_bytes_and_lines_apart() -> None:
    (f,) = extract_php.functions("<?php // \u00e9\U0001f600\nfunction f() {\n  \u00e9();\n}\n", "")
    assert (f.start_line, f.body) == (3, ("  \u00e9();",))


def corpus_of(tmp_path: Path, *texts: str) -> list[str]:
    """A file for each of `texts`; the first line of each names it."""
    for text in texts:
        path = tmp_path / text.split()[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [str(tmp_path)]


def test_bodies_of_19_lines_are_too_short_and_of_20_long_enough(tmp_path: Path) -> None:
    text = f"# a.py\ndef short():\n{lines(19)}\ndef long():\n{lines(20)}"
    (only,) = load(corpus_of(tmp_path, text)).functions
    assert (only.name, len(only.body)) == ("long", 20)


def test_the_first_long_enough_function_of_a_name_wins(tmp_path: Path) -> None:
    text = f"# a.py\ndef f():\n{lines(2)}\ndef f():\n{lines(20)}\ndef f():\n{lines(30)}"
    (only,) = load(corpus_of(tmp_path, text)).functions
    assert len(only.body) == 20


def test_files_stand_sorted_under_headers_and_lines_count_through(tmp_path: Path) -> None:
    one = f"# z.py\ndef f():\n{lines(20)}"
    two = f"# sub/b.py\ndef g():\n{lines(21)}\ndef f():\n{lines(25)}\n"
    corpus = load(corpus_of(tmp_path, one, two))
    assert corpus.files == ("sub/b.py", "z.py")
    assert names(corpus.functions) == ["g", "f"]
    assert [f.file for f in corpus.functions] == ["sub/b.py", "sub/b.py"]
    assert corpus.text.startswith("# ====== sub/b.py ======\n# sub/b.py\n")
    assert "# ====== z.py ======\n# z.py\n" in corpus.text
    text = corpus.text.split("\n")
    for f in corpus.functions:
        assert tuple(text[f.start_line - 1 :][: len(f.body)]) == f.body


def test_line_ends_and_byte_order_mark_of_windows_are_read(tmp_path: Path) -> None:
    text = "\ufeff" + f"def f():\n{lines(20)}".replace("\n", "\r\n")
    (tmp_path / "a.py").write_bytes(text.encode())
    corpus = load([str(tmp_path)])
    assert corpus.text == f"def f():\n{lines(20)}"


@pytest.mark.parametrize(
    ("files", "wrong"),
    [
        ({}, "no file ending in .py"),
        ({"notes.txt": ""}, "no file ending in .py"),
        ({"a.py": ""}, "a.py: the corpus is empty"),
        ({"a.py": "x = 1\n"}, "a.py: nothing to ask for"),
        ({"a.py": "", "b.js": ""}, r"one language.*JavaScript \(b.js\), Python \(a.py\)"),
        ({"a.py": "def f(:"}, "a.py, line 1: not Python"),
        ({"a.py": b"\xff"}, "a.py: not UTF-8 text: byte 0"),
    ],
)
def test_a_folder_with_nothing_to_ask_for_is_refused(
    tmp_path: Path, files: dict[str, str | bytes], wrong: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=wrong) as told:
        load([str(tmp_path)])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["a.txt", "Makefile"])
def test_a_file_of_unknown_language_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=r"cannot tell the language.*\.py, \.js"):
        load([str(tmp_path / name)])


@pytest.mark.parametrize("source", ["none.py", "stdlib:none.py", "x" * 5000 + ".py"], ids=len)
def test_a_missing_file_is_refused(source: str) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        load([source])


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.py")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        load([str(tmp_path / "a.py")])


def test_a_corpus_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.recall.corpus._MAX_BYTES", 1 << 20)
    (tmp_path / "a.py").write_bytes(b"\n" * ((1 << 20) + 1))
    with pytest.raises(InputError, match="longer than 1 MiB"):
        load([str(tmp_path)])
