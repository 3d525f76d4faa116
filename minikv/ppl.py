"""`minikv ppl`: the perplexity of a text, told as it is measured."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from engine import InputError, Model
from minikv.run import ModelChoice
from minikv.text import kv_data, one_line
from tools.ppl import Perplexity, Score, files_sha256
from tools.windows import Settings

_MAX_TEXT = 256 << 20  # bytes, so that an endless file is refused


def ppl(choice: ModelChoice, file: Path, settings: Settings, as_json: bool) -> None:
    """Measure, with a running estimate on stderr, and print the result on stdout."""
    text = read_text(file)
    model = choice.load()
    measurement = Perplexity(model, text, settings)
    start = time.perf_counter()
    score = _watched(measurement)
    seconds = time.perf_counter() - start
    result = _result(choice, model, measurement, score) | {"seconds": round(seconds, 3)}
    if as_json:
        print(json.dumps(result))
    else:
        print(
            f"KV {one_line(settings.kv.name)}: "
            f"{result['bits_k']:.2f}/{result['bits_v']:.2f} "
            f"bits per value; {score.tokens} tokens scored in {seconds:.1f} s"
        )
        print(f"Final estimate: PPL = {score.ppl:.4f} +/- {score.ppl_stderr:.5f}")


def _watched(measurement: Perplexity) -> Score:
    """The final score; the estimate after each window goes to stderr, as llama-perplexity does."""
    score = None
    for number, score in enumerate(measurement, 1):
        print(f"[{number}]{score.ppl:.4f},", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    assert score is not None, "a measurement has at least one window"
    return score


def _result(
    choice: ModelChoice, model: Model, measurement: Perplexity, score: Score
) -> dict[str, Any]:
    settings = measurement.settings
    bits_k, bits_v = measurement.bits()
    return {
        "ppl": score.ppl,
        "ppl_stderr": None if math.isnan(score.ppl_stderr) else score.ppl_stderr,
        "tokens": score.tokens,
        "windows": len(score.windows),
        "protocol": settings.protocol,
        "n_ctx": settings.n_ctx,
        "bos_per_window": measurement.bos_per_window,
        "model": choice.model,
        "model_sha256": files_sha256(model.checkpoint.paths),
        **kv_data(settings),
        "bits_k": bits_k,
        "bits_v": bits_v,
        "backend": choice.backend,
    }


def read_text(file: Path) -> str:
    """The whole of a UTF-8 file.  Raises InputError if it is not one, or too long for a tool."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_TEXT + 1)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    if len(data) > _MAX_TEXT:
        raise InputError(f"{file}: longer than {_MAX_TEXT >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text: byte {error.start} is invalid") from None
