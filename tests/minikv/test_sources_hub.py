"""`hf:` names: the right files of a repository, and every refusal of the hub in one line."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from engine.errors import InputError
from minikv.sources import hub, resolve

SAFE = {
    "config.json": 2,
    "tokenizer.json": 2,
    "tokenizer.model": 2,
    "chat_template.jinja": 2,
    "model-00001-of-00002.safetensors": 9,
    "model-00002-of-00002.safetensors": 9,
    "model.safetensors.index.json": 2,
    "consolidated.safetensors": 18,
    "onnx/model.safetensors": 18,
    "README.md": 1,
}
SPLIT = {"q4/s-00001-of-00002.gguf": 5, "q4/s-00002-of-00002.gguf": 5}


class Hub:
    """What stands in for the hub: its repository's files, and what was downloaded from it."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.files: dict[str, int] = {}
        self.downloads: list[str] = []
        self.listing_error: Exception | None = None
        self.download_error: Exception | None = None

    def model_info(self, _api, name, *, files_metadata, timeout):
        if self.listing_error:
            raise self.listing_error
        assert files_metadata and timeout
        files = [SimpleNamespace(rfilename=name, size=size) for name, size in self.files.items()]
        return SimpleNamespace(siblings=files)

    def hf_hub_download(self, repo, name):
        if self.download_error:
            raise self.download_error
        self.downloads.append(name)
        return str(self.cache / name)

    def try_to_load_from_cache(self, repo, name):
        return str(self.cache / name) if (self.cache / name).exists() else None

    def snapshot_download(self, repo, *, local_files_only):
        assert local_files_only
        if not any(self.cache.iterdir()):
            raise errors.LocalEntryNotFoundError("not cached")
        return str(self.cache)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path)
    api = type("HfApi", (), {"model_info": lambda *a, **k: fake.model_info(*a, **k)})
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    for name in ("hf_hub_download", "try_to_load_from_cache", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(fake, name))
    return fake


def hub_error(kind: type[Exception], message: str = "two\nlines") -> Exception:
    """An error of the hub without the HTTP response that its constructor asks for."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


def foreign_error(module: str) -> Exception:
    return type("ConnectError", (Exception,), {"__module__": module})("refused\nby it")


def refusal(model: str) -> str:
    with pytest.raises(InputError) as caught:
        resolve(model)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.startswith("hf:org/repo: ")
    return message


def test_the_only_gguf_of_a_repository_is_the_model(fake):
    fake.files = {"m.Q4_K_M.gguf": 5, "mmproj-m.gguf": 1, "README.md": 1}
    assert resolve("hf:org/repo") == fake.cache / "m.Q4_K_M.gguf"
    assert fake.downloads == ["m.Q4_K_M.gguf"]


def test_a_gguf_is_chosen_by_name(fake):
    fake.files = {"a.gguf": 5, "b.gguf": 6}
    assert resolve("hf:org/repo:b.gguf") == fake.cache / "b.gguf"
    assert fake.downloads == ["b.gguf"]


def test_several_ggufs_are_listed(fake):
    fake.files = {f"m-{n:02}.gguf": 1 for n in range(20)}
    message = refusal("hf:org/repo")
    assert "hf:org/repo:FILE" in message
    assert "m-00.gguf" in message and "m-11.gguf and 8 more" in message
    assert "m-12.gguf" not in message


@pytest.mark.parametrize("named", ["", ":q4/s-00001-of-00002.gguf", ":q4/s-00002-of-00002.gguf"])
def test_a_split_model_comes_with_all_its_parts(fake, named):
    fake.files = SPLIT
    path = resolve(f"hf:org/repo{named}")
    assert path == fake.cache / (named[1:] or "q4/s-00001-of-00002.gguf")
    assert sorted(fake.downloads) == sorted(SPLIT)


def test_a_name_not_in_the_repository_is_told_with_the_nearest(fake):
    fake.files = {"m-Q4_K_M.gguf": 1, "m-Q8_0.gguf": 1}
    assert "did you mean m-Q4_K_M.gguf?" in refusal("hf:org/repo:m-q4_K_M.gguf")
    fake.files = SAFE
    assert "holds no GGUF file" in refusal("hf:org/repo:config.json")


def test_a_safetensors_folder_comes_without_its_second_copies(fake):
    fake.files = SAFE
    assert resolve("hf:org/repo") == fake.cache
    unwanted = {"consolidated.safetensors", "onnx/model.safetensors", "README.md"}
    assert set(fake.downloads) == set(SAFE) - unwanted


def test_weights_by_another_name_are_taken_when_alone(fake):
    fake.files = {"config.json": 1, "weights.safetensors": 9}
    resolve("hf:org/repo")
    assert fake.downloads == ["config.json", "weights.safetensors"]


@pytest.mark.parametrize(
    "files", [{}, {"config.json": 1, "pytorch_model.bin": 9}, {"model.safetensors": 9}]
)
def test_a_repository_without_a_model_is_refused(fake, files):
    fake.files = files
    assert "neither a GGUF file nor config.json" in refusal("hf:org/repo")
    assert fake.downloads == []


def test_no_space_is_told_before_the_download(fake, monkeypatch):
    fake.files = {"m.gguf": 5_000_000}
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "5.0 MB needed, 1.0 kB free" in refusal("hf:org/repo")
    assert fake.downloads == []
    (fake.cache / "m.gguf").touch()
    assert resolve("hf:org/repo") == fake.cache / "m.gguf"


def test_a_full_disk_is_told(fake):
    fake.files = {"m.gguf": 5}
    fake.download_error = OSError(errno.ENOSPC, "No space left on device")
    assert "not enough disk space" in refusal("hf:org/repo")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (hub_error(errors.GatedRepoError), "accept the terms"),
        (hub_error(errors.RepositoryNotFoundError), "no such repository"),
        (hub_error(errors.HfHubHTTPError, "Server error '500'\nfor url"), "Server error '500'"),
        (errors.HFValidationError("Repo id is odd"), "Repo id is odd"),
        (errors.OfflineModeIsEnabled("offline mode\nis on"), "no answer from the hub (offline"),
        (TimeoutError(), "no answer from the hub (TimeoutError)"),
        (foreign_error("requests.exceptions"), "no answer from the hub (refused)"),
        (foreign_error("httpx"), "no answer from the hub (refused)"),
    ],
)
def test_what_the_hub_refuses_is_one_line(fake, error, told):
    fake.listing_error = error
    assert told in refusal("hf:org/repo")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (hub_error(errors.GatedRepoError), "accept the terms"),
        (errors.LocalEntryNotFoundError("cannot\nfind"), "the connection broke (cannot)"),
        (foreign_error("httpx2"), "the connection broke (refused)"),
        (RuntimeError("Data processing error\nmore"), "the download failed: Data processing"),
    ],
)
def test_a_broken_download_is_one_line(fake, error, told):
    fake.files = {"m.gguf": 5}
    fake.download_error = error
    assert told in refusal("hf:org/repo")


def test_a_bug_is_not_taken_for_a_bad_connection(fake):
    fake.listing_error = AttributeError("a bug")
    with pytest.raises(AttributeError):
        resolve("hf:org/repo")


@pytest.mark.parametrize("name", ["m.gguf", "config.json"])
def test_a_cached_model_needs_no_network(fake, name):
    fake.listing_error = errors.OfflineModeIsEnabled("offline")
    (fake.cache / name).touch()
    (fake.cache / "model.safetensors").touch()
    assert resolve("hf:org/repo") == (fake.cache if name == "config.json" else fake.cache / name)
    assert fake.downloads == []


def test_a_download_is_announced_with_its_size(fake):
    lines: list[str] = []
    fake.files = {"m.gguf": 5_000_000}
    say: Callable[[str], None] = lines.append
    hub.fetch("hf:org/repo", progress=SimpleNamespace(say=say, task=None))
    assert lines == ["downloading hf:org/repo: 5.0 MB"]
    (fake.cache / "m.gguf").touch()
    del lines[:]
    hub.fetch("hf:org/repo", progress=SimpleNamespace(say=say, task=None))
    assert lines == []
