"""The house's own rules, read from its source: who imports whom, and what is named where."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from engine.kv.formats import KV_FORMATS
from engine.model.archs import ARCHS

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "minikv", "tools", "bench", "tests")
FILES = sorted(
    path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
)
MOST_LINES = 400


def files(folder: str) -> list[Path]:
    return [path for path in FILES if path.parts[0] == folder or path.is_relative_to(folder)]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere; `from a import b` counts as `a` and as `a.b`."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importing(folder: str, *packages: str) -> list[str]:
    """Files of a folder that import one of the packages or something inside it."""
    return [
        f"{path} imports {name}"
        for path in files(folder)
        for name in sorted(imports(path))
        for package in packages
        if name == package or name.startswith(f"{package}.")
    ]


BACKENDS = ("engine.cpu", "engine.cuda", "engine.reference", "numba", "llvmlite", "cupy")
FORBIDDEN = {
    "engine": ("minikv", "tools", "bench", "tests", "torch", "transformers"),
    "minikv": ("bench", "tests", "torch", "transformers"),
    "tools": ("minikv", "bench", "tests", "torch", "transformers"),
    "bench": ("minikv", "tests", "torch", "transformers"),
    # numbers only: what becomes of them is drawn and printed elsewhere
    "engine/model": (*BACKENDS, "engine.session", "engine.sampler"),
    "engine/kv": (*BACKENDS, "engine.model", "engine.ops", "engine.session"),
    "engine/ops.py": (*BACKENDS, "engine.model", "engine.session"),
    "engine/session.py": (*BACKENDS, "engine.backends"),
    "engine/sampler.py": (*BACKENDS, "engine.backends", "engine.model", "engine.kv"),
    "engine/reference": ("engine.cpu", "engine.model", "engine.session", "numba"),
    "engine/cpu": ("engine.model", "engine.session", "engine.tokenizer"),
    # leaves
    "engine/tokenizer": (*BACKENDS, "engine.model", "engine.kv", "engine.ops", "engine.session"),
    "engine/gguf_file.py": (*BACKENDS, "engine.model", "engine.kv", "engine.ops", "engine.session"),
    "engine/hf_folder.py": (*BACKENDS, "engine.model", "engine.kv", "engine.ops", "engine.session"),
    "engine/bits.py": ("engine",),
    "engine/errors.py": ("engine",),
}


@pytest.mark.parametrize("place", FORBIDDEN)
def test_imports_point_one_way(place: str) -> None:
    assert files(place), f"{place} has moved: move its rule along"
    assert importing(place, *FORBIDDEN[place]) == []


def docstrings(module: ast.Module) -> set[ast.AST]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.body[0].value
        for node in ast.walk(module)
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr)
    }


def literals(path: Path) -> Iterator[tuple[ast.Constant, str]]:
    """String literals that are not docstrings."""
    prose = docstrings(tree(path))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield node, node.value


def test_architectures_are_named_in_archs_only() -> None:
    named = [
        f"{path}:{node.lineno} {text!r}"
        for path in files("engine")
        # a vocabulary's model is called "llama" or "gpt2" in GGUF, whatever the architecture
        if not path.is_relative_to("engine/model/archs")
        and not path.is_relative_to("engine/tokenizer")
        for node, text in literals(path)
        if text.split(".")[0] in ARCHS
    ]
    assert named == []


# where kernels are listed by the name of the type they serve, and vector elements by theirs
KERNEL_TABLES = {
    Path("engine/cpu") / name for name in ("kv_encode.py", "kv_verbs.py", "blocks.py", "simd.py")
}


def defaults(path: Path) -> set[ast.AST]:
    """Everything inside the default values of parameters and of dataclass fields."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.arguments):
            values = [*node.defaults, *(value for value in node.kw_defaults if value)]
        elif isinstance(node, ast.AnnAssign) and node.value:
            values = [node.value]
        else:
            continue
        found |= {part for value in values for part in ast.walk(value)}
    return found


def test_cache_types_are_named_in_their_folder_and_in_defaults_only() -> None:
    named = [
        f"{path}:{node.lineno} {text!r}"
        for path in files("engine")
        if not path.is_relative_to("engine/kv/formats") and path not in KERNEL_TABLES
        for node, text in literals(path)
        if text.split(":")[0] in KV_FORMATS and node not in defaults(path)
    ]
    assert named == []


def calls(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def test_the_engine_never_prints() -> None:
    output = ("print", "sys.stdout.", "sys.stderr.", "logging.", "warnings.warn", "input")
    said = [
        f"{path}:{line} {name}"
        for path in files("engine")
        for line, name in calls(path)
        if name in output or name.startswith(tuple(o for o in output if o.endswith(".")))
    ]
    assert said == []


@pytest.mark.parametrize("folder", ["engine", "minikv", "tools"])
def test_the_environment_is_read_in_one_file(folder: str) -> None:
    reading = {"os.environ", "os.getenv", "os.environb", "os.putenv"}
    read = [
        f"{path}:{node.lineno}"
        for path in files(folder)
        if path != Path("engine/config.py")
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in reading)
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and "environ" in ast.unparse(node)
        )
    ]
    assert read == []


def test_every_file_fits_its_budget() -> None:
    lines = {str(path): (ROOT / path).read_text(encoding="utf-8").count("\n") for path in FILES}
    assert [path for path, n in lines.items() if n >= MOST_LINES] == []


def test_every_file_says_what_it_is_for() -> None:
    silent = [str(path) for path in FILES if tree(path).body and not ast.get_docstring(tree(path))]
    assert silent == []


@pytest.mark.parametrize("path", files("bench"), ids=str)
def test_benchmarks_still_find_what_they_measure(path: Path) -> None:
    importlib.import_module(".".join(path.with_suffix("").parts))
