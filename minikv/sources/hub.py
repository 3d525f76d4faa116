"""Models named `hf:org/repo[:file]`, downloaded by huggingface_hub into its own cache."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from rich.filesize import decimal

from engine.errors import InputError
from minikv.sources.disk import disk_errors, require_space
from minikv.sources.progress import SILENT, Progress

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

PREFIX = "hf:"

_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(:(?P<file>.+))?")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
# What a folder needs beside its weights: shapes, vocabulary, chat template.
_BESIDE = (".json", ".jinja", ".model", "merges.txt", "vocab.txt")
_SHOWN = 12  # names listed in a message
_TIMEOUT = 30.0  # seconds for one answer of the hub


@dataclass(frozen=True)
class Repo:
    """What a repository holds: bytes by file name, and the cached copy if the hub is away."""

    name: str
    files: Mapping[str, int]
    cached: Path | None


def fetch(model: str, *, progress: Progress = SILENT) -> Path:
    """The GGUF file or the folder that `model`, `hf:org/repo[:file]`, stands for.

    Without a file: the repository's only GGUF model (all parts of a split one), or else its
    safetensors folder.  What is in huggingface_hub's cache is used, also without a network.
    Raises InputError when the name, the repository or the connection is no good.
    """
    match = _NAME.fullmatch(model)
    if match is None:
        raise InputError(f"{model!r}: not of the form {PREFIX}org/repo or {PREFIX}org/repo:file")
    repo = _open(match["repo"])
    names = _choose(repo, match["file"])
    paths = [repo.cached / name for name in names] if repo.cached else _get(repo, names, progress)
    return paths[0].parent if names[0] == "config.json" else paths[0]


def _open(name: str) -> Repo:
    try:
        with _hub_errors(name):
            return Repo(name, _sizes(_model_info(name)), None)
    except _Away as away:
        folder = _cached(name)
        if folder is None:
            raise InputError(
                f"{PREFIX}{name}: no answer from the hub ({away}), and no copy in its cache; "
                "check the network"
            ) from away
        files = [path for path in folder.rglob("*") if path.is_file()]
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        return Repo(name, sizes, folder)


def _model_info(name: str) -> ModelInfo:
    from huggingface_hub import HfApi

    return HfApi().model_info(name, files_metadata=True, timeout=_TIMEOUT)


def _sizes(info: ModelInfo) -> dict[str, int]:
    return {file.rfilename: file.size or 0 for file in info.siblings or ()}


def _cached(name: str) -> Path | None:
    """The newest copy of the repository in the hub's cache, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _choose(repo: Repo, wanted: str | None) -> list[str]:
    """The files to download, the one that stands for the model first."""
    models = _gguf_models(repo)
    if wanted is not None:
        for parts in models.values():
            if wanted in parts:
                return [wanted, *(part for part in parts if part != wanted)]
        close = difflib.get_close_matches(wanted, models, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(f"{PREFIX}{repo.name}: no GGUF model {wanted!r}{hint}; {_listed(models)}")
    if len(models) > 1:
        raise InputError(
            f"{PREFIX}{repo.name}: several models, name one as "
            f"{PREFIX}{repo.name}:FILE; {_listed(models)}"
        )
    if models:
        return next(iter(models.values()))
    return _folder_files(repo)


def _gguf_models(repo: Repo) -> dict[str, list[str]]:
    """The repository's GGUF models by their first file, each with all its parts in order."""
    groups: dict[str, list[str]] = {}
    for name in sorted(repo.files):
        # mmproj files are the vision half of a model, not a model
        if name.endswith(".gguf") and not PurePosixPath(name).name.startswith("mmproj"):
            groups.setdefault(_SPLIT.sub("", name), []).append(name)
    return {parts[0]: parts for parts in groups.values()}


def _listed(models: Mapping[str, list[str]]) -> str:
    names = list(models)
    if not names:
        return "the repository holds no GGUF file"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"choose from: {', '.join(names[:_SHOWN])}{more}"


def _folder_files(repo: Repo) -> list[str]:
    top = [name for name in sorted(repo.files) if "/" not in name]
    tensors = [name for name in top if name.endswith(".safetensors")]
    # Some repositories carry the same weights twice, in the names of another framework too.
    weights = [name for name in tensors if name.startswith("model")] or tensors
    if "config.json" not in top or not weights:
        raise InputError(
            f"{PREFIX}{repo.name}: holds no model that can be used: "
            "neither a GGUF file nor config.json with *.safetensors"
        )
    beside = [name for name in top if name.endswith(_BESIDE) and name != "config.json"]
    return ["config.json", *beside, *weights]


def _get(repo: Repo, names: list[str], progress: Progress) -> list[Path]:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = (try_to_load_from_cache(repo.name, name) for name in names)
    missing = [name for name, path in zip(names, cached, strict=True) if not isinstance(path, str)]
    size = sum(repo.files[name] for name in missing)
    if missing:
        require_space(f"{PREFIX}{repo.name}", Path(constants.HF_HUB_CACHE), size)
        progress.say(f"downloading {PREFIX}{repo.name}: {decimal(size)}")
    with disk_errors(f"{PREFIX}{repo.name}", Path(constants.HF_HUB_CACHE)):
        try:
            with _hub_errors(repo.name):
                return [Path(hf_hub_download(repo.name, name)) for name in names]
        except _Away as away:
            raise InputError(
                f"{PREFIX}{repo.name}: the connection broke ({away}); run the command again"
            ) from away


class _Away(Exception):
    """The hub did not answer; the message is the reason."""


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into InputError, or _Away when the network failed."""
    from huggingface_hub import errors

    repo = f"{PREFIX}{name}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repo}: its owner must grant access: accept the terms on the repository's page, "
            "then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{repo}: no such repository (for a private one, log in with `hf auth login`)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _Away(_first_line(error)) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise InputError(f"{repo}: {_first_line(error)}") from error
    except Exception as error:
        if isinstance(error, ConnectionError | TimeoutError) or _of_http_client(error):
            raise _Away(_first_line(error)) from error
        # The hub's own transfer library reports everything as a RuntimeError.
        if isinstance(error, RuntimeError):
            raise InputError(f"{repo}: the download failed: {_first_line(error)}") from error
        raise


def _of_http_client(error: Exception) -> bool:
    """Whether `error` is of the HTTP library, which changed between versions of the hub's."""
    return type(error).__module__.partition(".")[0] in ("requests", "httpx", "httpx2", "urllib3")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0]:.160}"
