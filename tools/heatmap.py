"""A grid in colours: a PNG picture, and a page that tells each cell's figures under the mouse, with
a table of the policies below it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from tools.extras import extra
from tools.grid import Matrix, policy_rows, records, split
from tools.plots import new_figure, save
from tools.results import Cell

_TABLE = 0.4  # share of the page's height that a table takes


def write_png(m: Matrix, title: str, path: Path) -> None:
    """Draw one figure of all cells, its values written in them."""
    rows, columns = m.values.shape
    figure = new_figure(2.5 + 0.95 * columns, 1.9 + 0.5 * rows)
    axes = figure.subplots()
    shades = _shades(m)
    image = axes.imshow(shades, cmap="viridis", aspect="auto")
    axes.set_xticks(range(columns), m.columns, rotation=30, ha="right")
    axes.set_yticks(range(rows), m.rows)
    axes.set(xlabel="values stored as", ylabel="keys stored as")
    axes.set_title(f"{m.figure.title}\n{title}", fontsize=9)
    for (i, j), value in np.ndenumerate(m.values):
        if not np.isnan(value):
            # dark text on the bright end of the colours
            bright = image.norm(shades[i, j]) > 0.6
            style = {"color": "black" if bright else "white", "fontsize": 8}
            axes.text(j, i, m.figure.show(value), ha="center", va="center", **style)
    save(figure, path)


def write_html(matrices: list[Matrix], cells: list[Cell], title: str, path: Path) -> None:
    """One self-contained page: a heat map of one figure at a time, chosen from a list, and the
    policies' figures in a table."""
    plotly: Any = extra("plotly.graph_objects")
    pairs, policies = split(cells)
    hover = {(r["ctk"], r["ctv"]): _hover(r) for r in records(pairs, [], {})}
    figure, titles = plotly.Figure(), [f"{m.figure.title}: {title}" for m in matrices]
    for number, m in enumerate(matrices):
        shown = [["" if np.isnan(x) else m.figure.show(x) for x in row] for row in m.values]
        details = [[hover.get((k, v), f"{k}/{v}: not measured") for v in m.columns] for k in m.rows]
        # lists, not arrays: plotly packs arrays, and the page's numbers should stay readable
        shades = [[None if np.isnan(x) else float(x) for x in row] for row in _shades(m)]
        figure.add_heatmap(
            x=m.columns, y=m.rows, z=shades, text=shown, customdata=details,
            texttemplate="%{text}", hovertemplate="%{customdata}<extra></extra>",
            colorscale="Viridis", showscale=False, visible=number == 0,
        )  # fmt: skip
    buttons = [
        {
            "label": m.figure.title,
            "method": "update",
            "args": [
                {"visible": [other is m for other in matrices] + [True] * bool(policies)},
                {"title.text": titles[i]},
            ],
        }
        for i, m in enumerate(matrices)
    ]
    if policies:
        head, rows = policy_rows(policies)
        named = [[html.escape(name), *others] for name, *others in rows]
        figure.add_table(
            header={"values": head},
            cells={"values": [list(column) for column in zip(*named, strict=True)]},
            columnwidth=[3] + [1] * (len(head) - 1),
            domain={"x": [0, 1], "y": [0, _TABLE - 0.12]},
        )
    figure.update_layout(
        title=titles[0],
        updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.15}],
        # categories: names such as "1e5" would otherwise become numbers
        xaxis={"title": "values stored as", "type": "category"},
        yaxis={
            "title": "keys stored as",
            "type": "category",
            "autorange": "reversed",
            "domain": [_TABLE if policies else 0, 1],
        },
    )
    try:
        figure.write_html(path, include_plotlyjs=True, full_html=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _shades(m: Matrix) -> np.ndarray:
    """What colours stand for: the values, or their logarithms if they span decades."""
    if not m.figure.decades:
        return m.values
    positive = m.values[m.values > 0]
    # the reference itself, at 0, is a step below the smallest other value
    floor = (float(positive.min()) if len(positive) else 1.0) / 2
    return np.log10(np.maximum(m.values, floor))  # NaN stays NaN


def _hover(record: dict[str, Any]) -> str:
    lines = [f"<b>{record['ctk']}/{record['ctv']}</b>"]
    figures = {name: x for name, x in record.items() if name not in ("ctk", "ctv")}
    lines += [f"{name}: {x:.6g}" for name, x in figures.items() if isinstance(x, int | float)]
    return "<br>".join(lines)
