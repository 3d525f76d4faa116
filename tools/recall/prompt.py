"""The one user message: the whole source, then the task.

The source comes first, so that all targets share what a model computes for it.
"""

from __future__ import annotations

from tools.recall.corpus import PYTHON, Corpus
from tools.recall.function import PRIMARY, Function

# Opens and closes the thoughts of a model that thinks aloud, so that it answers at once.
EMPTY_THINK = "<think>\n\n</think>\n\n"


def message(corpus: Corpus, function: Function) -> str:
    """All of the prompt for one target."""
    return f"{corpus.text}\n\n---\n\n{task(corpus, function)}"


def task(corpus: Corpus, function: Function) -> str:
    """What is asked about `function`, the part of the message that differs between targets."""
    where = f" in the file `{function.file}`" if len(corpus.files) > 1 else ""
    if corpus.language is PYTHON:
        after = "the signature"
        start = "Begin with the first statement; a docstring is one, a comment is not."
    else:
        after = "the line with the opening brace"
        start = "Begin with the very next line."
    return f"""\
Reproduce verbatim the first {PRIMARY} lines of the body of the function `{function.name}`{where} \
from the source above, the lines that follow {after}:

{function.anchor}

{start}

Rules:
- Write only those {PRIMARY} lines, in their original order.
- Keep every character and the exact indentation.
- Keep blank lines, they count as lines.
- Leave out the signature.
- Add no commentary and no code fences.
"""
