"""A run as a reader sees it: a table per cache, in Markdown."""

from __future__ import annotations

from tools.ruler.compare import ALL, Comparison, compare
from tools.ruler.record import Record

LEGEND = """\
passed: trials with every string asked for and none of another needle; 95 %: Wilson's interval of
their rate; strings: found of those asked for; others: strings of other needles; fused: strings
mixed of several needles; lost, gained: trials passed with the base only, with this cache only; p:
McNemar's exact test of these two, for each row alone."""


def tables(record: Record) -> str:
    """All caches of `record`, the one to compare with first."""
    names = [record.base, *(name for name in record.caches if name != record.base)]
    compared = {name: compare(record, name) for name in names}
    return "\n\n".join(_table(record, name, rows) for name, rows in compared.items() if rows)


def _table(record: Record, cache: str, rows: list[Comparison]) -> str:
    about, alone = record.caches[cache], cache == record.base
    title = f"KV {cache}: {about['bits_k']}/{about['bits_v']} bits per value"
    if not alone:
        title += f", beside {record.base} on the same trials"
    if errors := sum(row.errors for row in rows if row.task != ALL):
        title += f"; {errors} trials without an answer are left out"
    return f"{title}\n\n{_markdown([_cells(row, alone) for row in rows])}"


def _cells(c: Comparison, alone: bool) -> dict[str, str]:
    """A row by the names of its columns."""
    low, high = (100 * end for end in c.cache.interval)
    beside = {
        "base": str(c.base.passed),
        "lost": str(c.lost),
        "gained": str(c.gained),
        "p": f"{c.p:.2g}",
    }
    return {
        "task": c.task,
        "passed": f"{c.cache.passed}/{c.cache.trials}",
        "95 %": f"{low:.0f} to {high:.0f} %",
        **({} if alone else beside),
        "strings": f"{c.cache.found}/{c.cache.expected}",
        "others": str(c.cache.others),
        "fused": str(c.cache.fused),
        "verdict": "measurable" if alone and c.measurable else c.verdict,
    }


def _markdown(rows: list[dict[str, str]]) -> str:
    """The first and the last column to the left, figures to the right."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    left = (next(iter(widths)), list(widths)[-1])

    def line(cells: dict[str, str]) -> str:
        aligned = (
            cell.ljust(widths[name]) if name in left else cell.rjust(widths[name])
            for name, cell in cells.items()
        )
        return f"| {' | '.join(aligned)} |"

    rule = (
        "-" * (width + 2) if name in left else "-" * (width + 1) + ":"
        for name, width in widths.items()
    )
    head = line({name: name for name in widths})
    return "\n".join([head, f"|{'|'.join(rule)}|", *map(line, rows)])
