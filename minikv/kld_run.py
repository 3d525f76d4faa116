"""How far a KV cache type takes a model from itself, told as it is measured."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from engine import Model
from engine.kv.formats import kv_format
from minikv.ppl import read_text
from minikv.run import ModelChoice
from minikv.text import kv_data, one_line
from tools.kld import Divergence, Tokens
from tools.kld_report import HEADER, Depth, Statistics, by_position, by_window, report, running_line
from tools.plots import check_plot, plot_depths
from tools.ppl import files_sha256
from tools.windows import Settings

_PLOT_PARTS = 32  # points along the window


def kld(
    choice: ModelChoice,
    file: Path,
    settings: Settings,
    base: tuple[str, str],
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure, with running estimates on stderr, and print the report on stdout."""
    for name in base:
        kv_format(name)
    if plot is not None:
        check_plot(plot)
    text = read_text(file)
    model = choice.load()
    measurement = Divergence(model, text, settings, base)
    start = time.perf_counter()
    tokens = _watched(measurement)
    seconds = time.perf_counter() - start
    statistics = Statistics(tokens)
    depths = by_position(tokens, settings.n_ctx)
    names = one_line(settings.kv.name), "/".join(base)
    if plot is not None:
        points = by_position(tokens, settings.n_ctx, _PLOT_PARTS)
        plot_depths(points, f"{choice.model}: {names[0]} against {names[1]}", plot)
    if as_json:
        result = _result(choice, model, measurement, statistics, depths)
        print(json.dumps(result | {"seconds": round(seconds, 3)}))
        return
    k, v = measurement.bits()
    print(report(statistics))
    print(f"\n====== KL divergence by position ======\n{_depth_lines(depths)}\n")
    print(
        f"KV {names[0]} against {names[1]}: {k:.2f}/{v:.2f} bits per value; "
        f"{len(tokens)} tokens scored in {seconds:.1f} s"
    )


def _watched(measurement: Divergence) -> Tokens:
    """The tokens of all windows; the estimates after each go to stderr, as llama-perplexity's."""
    tokens = None
    for number, tokens in enumerate(measurement, 1):
        if number == 1:
            print(HEADER, file=sys.stderr)
        print(running_line(number, Statistics(tokens)), file=sys.stderr, flush=True)
    print(file=sys.stderr)
    assert tokens is not None, "a measurement has at least one window"
    return tokens


def _depth_lines(depths: list[Depth]) -> str:
    return "\n".join(
        f"{d.start:6d}-{d.end - 1:<6d} KLD: {d.kld.value:10.6f} ± {d.kld.error:10.6f}"
        f"   {d.tokens} tokens"
        for d in depths
    )


def _result(
    choice: ModelChoice,
    model: Model,
    measurement: Divergence,
    s: Statistics,
    depths: list[Depth],
) -> dict[str, Any]:
    settings = measurement.settings
    bits_k, bits_v = measurement.bits()
    windows = len(measurement.windows.tokens)
    return {
        **s.values(),
        "kld_by_position": [
            {"start": d.start, "end": d.end, "tokens": d.tokens, "mean_kld": d.kld.value}
            for d in depths
        ],
        "by_window": by_window(s.tokens, windows),
        "tokens": len(s.tokens),
        "windows": windows,
        "protocol": settings.protocol,
        "n_ctx": settings.n_ctx,
        "bos_per_window": measurement.windows.bos_per_window,
        "model": choice.model,
        "model_sha256": files_sha256(model.checkpoint.paths),
        **kv_data(settings),
        "base_ctk": measurement.base[0],
        "base_ctv": measurement.base[1],
        "bits_k": bits_k,
        "bits_v": bits_v,
        "backend": choice.backend,
    }
