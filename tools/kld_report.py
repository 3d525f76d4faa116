"""What llama-perplexity reports of a KL divergence run: the same numbers, names and order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tools.kld import Tokens


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, over tokens."""

    value: float
    error: float


class Statistics:
    """Estimates from all tokens scored so far."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        log_ppl, log_base = _mean(tokens.nll), _mean(tokens.nll_base)
        self.ppl, self.ppl_base = _exp(log_ppl), _exp(log_base)
        # the same tokens are scored twice, so errors are those of the paired differences
        self.log_ratio = _mean(tokens.nll - tokens.nll_base)
        self.ratio = _exp(self.log_ratio)
        difference = _mean(self.ppl.value * tokens.nll - self.ppl_base.value * tokens.nll_base)
        self.difference = Estimate(self.ppl.value - self.ppl_base.value, difference.error)
        self.correlation = _correlation(tokens.nll, tokens.nll_base)
        self.mean_kld = _mean(tokens.kld)
        self.mean_p_diff = _mean(tokens.p_diff)
        squares = _mean(tokens.p_diff**2)
        rms = math.sqrt(squares.value)
        self.rms_p_diff = Estimate(rms, 0.5 / rms * squares.error if rms else 0.0)
        same = float(tokens.same_top.mean())
        self.same_top = Estimate(same, _error(same * (1 - same), len(tokens)))

    def kld(self, percent: float) -> float:
        """The KL divergence that `percent` of the tokens do not exceed."""
        return float(np.percentile(self.tokens.kld, percent))

    def p_diff(self, percent: float) -> float:
        """Likewise for the difference of the token's probability."""
        return float(np.percentile(self.tokens.p_diff, percent))

    def values(self) -> dict[str, float | None]:
        """The figures as JSON values; None for the error that a single token cannot have."""
        estimates = {
            "ppl": self.ppl,
            "ppl_base": self.ppl_base,
            "ln_ppl_ratio": self.log_ratio,
            "delta_ppl": self.difference,
            "mean_kld": self.mean_kld,
            "rms_p_diff": self.rms_p_diff,
            "same_top": self.same_top,
        }
        found: dict[str, float | None] = {}
        for name, e in estimates.items():
            found |= {name: e.value, f"{name}_stderr": None if math.isnan(e.error) else e.error}
        percentiles = {"median_kld": 50, "kld_99": 99, "kld_999": 99.9, "max_kld": 100}
        return found | {name: self.kld(percent) for name, percent in percentiles.items()}


_KLD_LINES = (
    ("Maximum", 100), ("99.9%  ", 99.9), ("99.0%  ", 99), ("95.0%  ", 95), ("90.0%  ", 90),
    ("Median ", 50), ("10.0%  ", 10), (" 5.0%  ", 5), (" 1.0%  ", 1), (" 0.1%  ", 0.1),
    ("Minimum", 0),
)  # fmt: skip
_P_DIFF_LINES = (*_KLD_LINES[:5], ("75.0%  ", 75), ("Median ", 50), ("25.0%  ", 25),
                 *_KLD_LINES[6:])  # fmt: skip


def report(s: Statistics) -> str:
    """The report of `llama-perplexity --kl-divergence`, line for line."""

    def line(name: str, e: Estimate) -> str:
        return f"{name:30}: {e.value:10.6f} ± {e.error:10.6f}"

    def percent(name: str, e: Estimate) -> str:
        return f"{name}: {100 * e.value:6.3f} ± {100 * e.error:5.3f} %"

    return "\n".join(
        (
            "====== Perplexity statistics ======",
            line("Mean PPL(Q)", s.ppl),
            line("Mean PPL(base)", s.ppl_base),
            f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * s.correlation:6.2f}%",
            line("Mean ln(PPL(Q)/PPL(base))", s.log_ratio),
            line("Mean PPL(Q)/PPL(base)", s.ratio),
            line("Mean PPL(Q)-PPL(base)", s.difference),
            "",
            "====== KL divergence statistics ======",
            f"Mean    KLD: {s.mean_kld.value:10.6f} ± {s.mean_kld.error:10.6f}",
            *(f"{name} KLD: {s.kld(p):10.6f}" for name, p in _KLD_LINES),
            "",
            "====== Token probability statistics ======",
            percent("Mean    Δp", s.mean_p_diff),
            *(f"{name} Δp: {100 * s.p_diff(p):6.3f}%" for name, p in _P_DIFF_LINES),
            percent("RMS Δp    ", s.rms_p_diff),
            percent("Same top p", s.same_top),
        )
    )


HEADER = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence"
    "              Δp RMS            Same top p"
)


def running_line(chunk: int, s: Statistics) -> str:
    """The estimates after window `chunk`, under `HEADER`."""
    return (
        f"{chunk:4d}    {s.ppl.value:9.4f} ± {s.ppl.error:9.4f}"
        f"    {s.log_ratio.value:10.5f} ± {s.log_ratio.error:10.5f}"
        f"    {s.mean_kld.value:10.5f} ± {s.mean_kld.error:10.5f}"
        f"    {100 * s.rms_p_diff.value:6.3f} ± {100 * s.rms_p_diff.error:6.3f} %"
        f"    {100 * s.same_top.value:6.3f} ± {100 * s.same_top.error:6.3f} %"
    )


@dataclass(frozen=True)
class Depth:
    """The mean KL divergence of the tokens with start <= position < end in their window."""

    start: int
    end: int
    tokens: int
    kld: Estimate


def by_position(tokens: Tokens, n_ctx: int, parts: int = 10) -> list[Depth]:
    """Windows cut into `parts` equal ranges of positions; ranges without scored tokens are left
    out."""
    edges = [n_ctx * part // parts for part in range(parts + 1)]
    found = []
    for start, end in pairwise(edges):
        kld = tokens.kld[(tokens.position >= start) & (tokens.position < end)]
        if len(kld):
            found.append(Depth(start, end, len(kld), _mean(kld)))
    return found


def by_window(tokens: Tokens, windows: int) -> dict[str, list[float]]:
    """Means of each of the `windows`, which scored equally many tokens: tokens of a window are not
    independent, windows nearly are, so their spread tells how sure an estimate is."""
    found = {"mean_kld": tokens.kld, "ln_ppl_ratio": tokens.nll - tokens.nll_base}
    return {name: x.reshape(windows, -1).mean(axis=1).tolist() for name, x in found.items()}


def _mean(x: np.ndarray) -> Estimate:
    return Estimate(float(x.mean()), _error(float(x.var()), len(x)))


def _error(variance: float, n: int) -> float:
    """The standard error of a mean of n independent values with this (biased) variance."""
    return math.sqrt(variance / (n - 1)) if n > 1 else math.nan


def _exp(e: Estimate) -> Estimate:
    return Estimate(math.exp(e.value), math.exp(e.value) * e.error)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if np.array_equal(x, y):
        return 1.0  # also where nothing varies
    spread = float(x.std() * y.std())
    return float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread else math.nan
