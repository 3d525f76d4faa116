"""An examination of a model's keys and values, and what it recommends, told to the user."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from engine import InputError, Model
from engine.kv.formats import BF16
from engine.model.load import open_checkpoint
from minikv.doctor_text import print_report
from minikv.ppl import read_text
from minikv.progress import TerminalProgress
from minikv.run import ModelChoice, note
from minikv.sources import resolve
from tools.doctor import (
    BOUND,
    Candidate,
    Examination,
    LayerFigures,
    Recommendation,
    SideFigures,
    measure,
    valley,
)
from tools.doctor_figures import BITS, directions
from tools.doctor_sources import Examined, LayerWeights, features, read
from tools.kld_report import Statistics

CONTROL = "q4_0"  # what a recommendation is held against: the usual choice where memory is short
_WINDOWS = 2  # that --verify scores
_OWN_TEXT = 1 << 16  # characters: more than any measurement reads


@dataclass(frozen=True)
class Request:
    """What is asked.  `file` None is a text that Python brings along."""

    model: str
    probe: bool
    verify: bool
    scan: bool
    file: Path | None
    bound: float | None
    threads: int | None
    backend: str

    def __post_init__(self) -> None:
        if self.file is not None and not self.reads:
            raise InputError("-f needs --probe, --verify or --scan: weights need no text")

    @property
    def reads(self) -> bool:
        """Whether the model runs."""
        return self.probe or self.verify or self.scan


def doctor(request: Request, as_json: bool) -> None:
    """Examine, recommend and measure; the report goes to stdout."""
    text = _text(request.file) if request.reads else ""
    choice = ModelChoice(
        request.model, BF16.name, BF16.name, None, request.threads, request.backend
    )
    model = choice.load() if request.reads else None
    checkpoint = open_checkpoint(resolve(request.model, progress=TerminalProgress()))
    examined = Examined(checkpoint)
    # matrices of one head are small: more threads only wait for one another
    with threadpool_limits(1, user_api="blas"):
        weights = examined.weights()
        layers = read(model, text) if model is not None and request.probe else examined.drawn()
        found = Examination(layers, scan=request.probe)
    bound = BOUND if request.bound is None else request.bound
    advice = found.recommendation(bound)
    described = {
        "model": request.model,
        "features": features(examined.spec, weights),
        "source": "text" if request.probe else "weights",
        "bound": bound,
        "layers": [_layer(*parts) for parts in zip(weights, found.layers, strict=True)],
        "candidates": [_candidate(c) for c in found.candidates],
        "recommendation": _recommendation(advice),
    }
    if model is not None:
        described |= _measured(request, model, text, advice)
    if as_json:
        print(json.dumps(described))
    else:
        print_report(described)


def _text(file: Path | None) -> str:
    if file is not None:
        return read_text(file)
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError("this Python has no manual pages to read; give a text with -f") from None
    return "\n".join(topics[name] for name in sorted(topics))[:_OWN_TEXT]


def _measured(request: Request, model: Model, text: str, advice: Recommendation) -> dict[str, Any]:
    """What --verify and --scan ask for."""
    found: dict[str, Any] = {}
    if request.verify:
        pairs = [advice.pair, (CONTROL, CONTROL)]
        found["verified"] = [_verified(model, text, pair) for pair in dict.fromkeys(pairs)]
    if request.scan:
        found["valley"] = []
        for bits, kld in valley(model, text):
            note(f"keys of {bits} bits with one scale per token: mean KLD {kld:.6f}")
            found["valley"].append({"bits": bits, "mean_kld": kld})
    return found


def _verified(model: Model, text: str, pair: tuple[str, str]) -> dict[str, Any]:
    note(f"measuring {pair[0]}/{pair[1]}")
    values = Statistics(measure(model, text, pair, _WINDOWS)).values()
    kept = ("mean_kld", "mean_kld_stderr", "kld_999", "same_top")
    return {"ctk": pair[0], "ctv": pair[1]} | {name: values[name] for name in kept}


def _layer(weights: LayerWeights, figures: LayerFigures) -> dict[str, Any]:
    return vars(weights) | {"k": _side(figures.k), "v": _side(figures.v)}


def _side(figures: SideFigures) -> dict[str, Any]:
    scan = figures.scan and {
        family: [{"bits": bits} | vars(error) for bits, error in zip(BITS, errors, strict=True)]
        for family, errors in figures.scan.items()
    }
    spectrum = [round(float(value), 6) for value in figures.spectrum]
    return vars(figures) | {
        "spectrum": spectrum,
        "directions": directions(figures.spectrum),
        "scan": scan,
    }


def _candidate(c: Candidate) -> dict[str, Any]:
    derived = ("exact_tail", "expected_kld", "worst_layer", "loses")
    return vars(c) | {name: getattr(c, name) for name in derived}


def _recommendation(advice: Recommendation) -> dict[str, Any]:
    k, v = advice.k, advice.v
    return {
        "ctk": k.name,
        "ctv": v.name,
        "bits_k": k.bits,
        "bits_v": v.bits,
        "expected_kld": advice.expected_kld,
    }
