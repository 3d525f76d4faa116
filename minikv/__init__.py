"""minikv: run language models from a terminal, or behind an HTTP server."""


def installed_version() -> str:
    """The version of this package, "unknown" where this runs from a source folder."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("minikv")
    except PackageNotFoundError:
        return "unknown"
