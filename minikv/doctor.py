"""`minikv doctor`: options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minikv.options import BackendOption, JsonOption, ModelOption, ThreadsOption
from minikv.sources import DEFAULT

_EXAMPLES = """\b
Examples:
  minikv doctor -m qwen2.5-coder-1.5b
  minikv doctor -m qwen2.5-coder-1.5b --probe --verify
  minikv doctor --probe -f book.txt --bound 0.005 --json
"""

app = typer.Typer(rich_markup_mode=None)


@app.command("doctor", epilog=_EXAMPLES)
def _doctor(
    model: ModelOption = DEFAULT,
    probe: Annotated[
        bool, typer.Option("--probe", help="Examine what the model caches of a text.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Measure the recommended pair, and plain q4_0 beside.")
    ] = False,
    scan: Annotated[
        bool, typer.Option("--scan", help="Measure keys of 2 to 8 bits with one scale per token.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option("-f", "--file", help="The text.  [default: Python's own manual pages]"),
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option(min=0, help="How much mean KLD, in nats, is good.  [default: 0.02]"),
    ] = None,
    threads: ThreadsOption = None,
    backend: BackendOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Find out which KV cache types suit a model, and why.

    The weights alone are read unless --probe, --verify or --scan has the model read a text.

    \b
    |W|        Frobenius norm of a projection; spectral: its largest singular value
    outlier    largest channel / mean channel of a head (peaks over the tokens), worst head
    spread     deviation of the tokens' lengths / their mean; without 0: without the first
    90 %       directions that hold 90 % of the energy

    --json adds spectra, errors at 2 to 8 bits, and the noise of every type in every layer.
    """
    from minikv.doctor_run import Request, doctor

    request = Request(model, probe, verify, scan, file, bound, threads, backend)
    doctor(request, as_json)
