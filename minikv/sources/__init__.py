"""Where models come from: local paths, the pinned catalogue, the Hugging Face hub."""

from minikv.sources.catalogue import CATALOGUE, DEFAULT, Entry
from minikv.sources.lookup import list_models, resolve, verify
from minikv.sources.progress import SILENT, Progress
from minikv.sources.wheels import Unreachable

__all__ = [
    "CATALOGUE",
    "DEFAULT",
    "SILENT",
    "Entry",
    "Progress",
    "Unreachable",
    "list_models",
    "resolve",
    "verify",
]
