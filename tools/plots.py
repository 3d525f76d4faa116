"""Pictures, drawn with matplotlib into PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import InputError
from tools.extras import extra
from tools.kld_report import Depth


def check_plot(path: Path) -> None:
    """Raise InputError if no picture could be written to `path`, before anything is measured."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: pictures are PNG files; let the name end in .png")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no directory {path.parent}")
    extra("matplotlib.figure")


def plot_depths(depths: list[Depth], title: str, path: Path) -> None:
    """The mean KL divergence and its standard error over positions of the window."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    axes.errorbar(
        [(d.start + d.end) / 2 for d in depths],
        [d.kld.value for d in depths],
        yerr=[d.kld.error for d in depths],
        marker="o",
        capsize=3,
    )
    axes.set(title=title, xlabel="position in the window, tokens", ylabel="mean KLD, nats")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    save(figure, path)


def new_figure(width: float, height: float) -> Any:
    """A matplotlib Figure in inches; no window system and no global state is touched."""
    figure = extra("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    extra("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write the figure.  Raises InputError if the file cannot be written."""
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
