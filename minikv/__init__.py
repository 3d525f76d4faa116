"""minikv: run language models from a terminal, or behind an HTTP server."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("minikv")
except PackageNotFoundError:  # run from a source folder that is not installed
    __version__ = "unknown"
