"""`minikv pull`: download a model, or list what there is."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from minikv.progress import TerminalProgress
from minikv.sources import list_models, resolve
from minikv.text import size


def pull(name: str) -> None:
    """Download the model `name` if it is not there, and print its path."""
    print(resolve(name, progress=TerminalProgress()))


def print_models() -> None:
    """The models that have a name, and which of them are downloaded."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("model", "size", "licence", "here", "about", "source"):
        table.add_column(heading, justify="right" if heading == "size" else "left", no_wrap=True)
    for entry, path in list_models():
        here = "yes" if path else "no"
        table.add_row(entry.alias, size(entry.size), entry.licence, here, entry.about, entry.source)
    # as wide as it needs to be: a cut name is of no use
    Console(width=200, markup=False, highlight=False).print(table)
