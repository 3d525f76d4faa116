"""A target and a run as a reader sees them."""

from __future__ import annotations

from rich.text import Text

from tools.rates import wilson
from tools.recall.function import PRIMARY
from tools.recall.outcome import Outcome, Summary
from tools.recall.scoring import Kind, Score

# a mark for those who see no colours, and the colour
_STYLES: dict[Kind, tuple[str, str]] = {
    "matched": (" ", "bright_black"),
    "missing": ("-", "dark_orange"),
    "hallucinated": ("+", "yellow"),
    "bonus": ("*", "cyan"),
    "blank": (" ", "bright_black"),
}


def diff(outcome: Outcome, relax_indent: bool) -> Text:
    """A headline and, unless it is an error, every line expected and produced.

    Marked with a space: there as expected; -: expected and missing; +: hallucinated; *: a correct
    line beyond those asked for.
    """
    scored = outcome.score(relax_indent)
    text = Text()
    text.append(_headline(outcome, scored), style="bold" if scored else "bold red")
    for kind, line in scored.lines if scored else ():
        mark, style = _STYLES[kind]
        text.append(f"\n{mark} {_printable(line)}", style=style)
    return text


def conclusion(summary: Summary) -> str:
    """All targets in one line."""
    s = summary
    rate = ""
    if s.scored:
        low, high = (100 * end for end in wilson(s.passed, s.scored))
        rate = f" ({100 * s.passed / s.scored:.0f} %, 95 % interval {low:.0f} to {high:.0f} %)"
    return (
        f"{s.passed} of {s.scored} passed{rate}; "
        f"{s.primary_matched} of {PRIMARY * s.scored} lines matched, {s.matched_blank} of them "
        f"blank; {s.hallucinated} hallucinated, {s.bonus_matched} bonus; {s.errors} errors"
    )


def _headline(outcome: Outcome, scored: Score | None) -> str:
    f = outcome.function
    where = f"{f.file}, " if f.file else ""
    name = _printable(f"{f.name} ({where}line {f.start_line})")
    if scored is None:
        return f"=== {name}: ERROR: {_printable(outcome.error or '')}"
    return (
        f"=== {name}: {'PASS' if scored.passed else 'FAIL'}, "
        f"{scored.primary_matched}/{PRIMARY} matched, {scored.hallucinated} hallucinated, "
        f"{scored.bonus_matched} bonus"
    )


def _printable(line: str) -> str:
    """`line` without what could drive a terminal: models write what they like."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line)
