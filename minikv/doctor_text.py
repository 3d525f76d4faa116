"""The doctor's report as a terminal shows it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from minikv.info import table
from tools.doctor import WITH_BIAS, WITHIN

_SIDES = {"k": "keys", "v": "values"}


def print_report(d: dict[str, Any]) -> None:
    """Print the figures, the candidates, the recommendation with its reasons, measurements."""
    # wide enough for any table: a narrow terminal may break lines, but none is cut
    console = Console(width=240, soft_wrap=True, markup=False, highlight=False)
    read = d["source"] == "text"
    source = "from a text" if read else "from the weights, with random inputs; --probe reads a text"
    console.print(f"{d['model']}: {d['features']}\n{source}\n")
    console.print(_layer_table(d))
    console.print()
    console.print(_candidate_table(d))
    console.print("\nnoise: power of the error beside that of what differs between tokens\n")
    for line in _advice(d):
        console.print(line)
    if "verified" in d:
        console.print()
        for line in _verdict(d):
            console.print(line)
    if "valley" in d:
        console.print()
        console.print(_valley_table(d))


def _layer_table(d: dict[str, Any]) -> Table:
    headings = ["|K bias|", "|W_K|", "spectral", "|W_V|", "spectral", "K outlier", "V outlier"]
    read = d["source"] == "text"
    if read:
        headings += [f"{x} {what}" for x in "KV" for what in ("spread", "without 0", "90 %")]
    rows = table("layer", *headings)
    for index, layer in enumerate(d["layers"]):
        k, v = layer["k"], layer["v"]
        norms = [layer[f"{x}_{kind}"] for x in "kv" for kind in ("frobenius", "spectral")]
        cells = [f"{max(layer['k_bias']):.1f}" if layer["k_bias"] else "none"]
        cells += [f"{norm:.2f}" for norm in norms]
        cells += [f"{side['outlier_ratio']:.1f}" for side in (k, v)]
        if read:
            for side in (k, v):
                cells += [f"{side['dispersion']:.2f}", f"{side['dispersion_without_first']:.2f}"]
                cells.append(str(side["directions"]))
        rows.add_row(str(index), *cells)
    return rows


def _candidate_table(d: dict[str, Any]) -> Table:
    headings = [f"{what}" for x in "KV" for what in (f"{x} noise", "worst (layer)", "expected KLD")]
    rows = table("type", "bits", *headings)
    values = {c["name"]: c for c in d["candidates"] if c["side"] == "v"}
    for k in (c for c in d["candidates"] if c["side"] == "k"):
        cells = [*_noise(k), *(_noise(values[k["name"]]) if k["name"] in values else ())]
        rows.add_row(k["name"], f"{k['bits']:.2f}", *cells)
    return rows


def _noise(c: dict[str, Any]) -> tuple[str, str, str]:
    expected = "any" if c["loses"] else f"{c['expected_kld']:.4f}"
    return f"{c['mean_noise']:.4f}", f"{max(c['noise']):.3f} ({c['worst_layer']})", expected


def _advice(d: dict[str, Any]) -> list[str]:
    r = d["recommendation"]
    bits = (r["bits_k"] + r["bits_v"]) / 2
    good = r["expected_kld"] <= d["bound"]
    why = "the smallest pair expected to be" if good else "the best there is, but not"
    return [
        f"recommended: -ctk {r['ctk']} -ctv {r['ctv']}, {bits:.2f} bits per value: {why} within "
        f"{d['bound']:g} nats;",
        f"expected KLD {r['expected_kld']:.4f}, mostly right within a factor of {WITHIN}",
        *(line for side in "kv" if (line := _reason(d, side))),
    ]


def _reason(d: dict[str, Any], side: str) -> str | None:
    """What speaks against plain types, those with a scale per token or block; None if one is
    recommended."""
    chosen = d["recommendation"][f"ct{side}"]
    found = {c["name"]: c for c in d["candidates"] if c["side"] == side}
    if not found[chosen]["exact_tail"]:
        return None
    plain = [c for c in found.values() if not (c["exact_tail"] or WITH_BIAS in c["name"])]
    losing = [c for c in plain if c["loses"]]
    if not losing:
        c = min(plain, key=lambda c: c["bits"])
        return (
            f"{_SIDES[side]}: {chosen} is expected to cost {found[chosen]['expected_kld']:.4f}, "
            f"{c['name']} with {c['bits']:.2f} bits {c['expected_kld']:.4f}"
        )
    c = max(losing, key=lambda c: c["bits"])
    return (
        f"{_SIDES[side]}: {c['name']} and less may lose a head in layer {c['worst_layer']}: its "
        f"noise is {max(c['noise']):.2f} times what differs between tokens, because "
        f"{_cause(d['layers'][c['worst_layer']], side)}"
    )


def _cause(layer: dict[str, Any], side: str) -> str:
    if side == "k" and layer["k_bias"]:
        return "channels stand out, even without the bias, and share their scales"
    return f"a channel stands out {layer[side]['outlier_ratio']:.1f} times and shares their scales"


def _verdict(d: dict[str, Any]) -> list[str]:
    lines = [
        f"measured {m['ctk']}/{m['ctv']}: mean KLD {m['mean_kld']:.6f} ± "
        f"{m['mean_kld_stderr']:.6f}, 99.9 % {m['kld_999']:.4f}, "
        f"same top token {100 * m['same_top']:.1f} %"
        for m in d["verified"]
    ]
    ratio = d["verified"][0]["mean_kld"] / d["bound"] if d["bound"] else float("inf")
    holds = "holds" if ratio <= 1 else "does not hold on this text"
    return [*lines, f"the recommendation {holds}: its bound is {d['bound']:g}"]


def _valley_table(d: dict[str, Any]) -> Table:
    rows = table("keys", "mean KLD")
    for point in d["valley"]:
        rows.add_row(f"int{point['bits']}row", f"{point['mean_kld']:.6f}")
    return rows
