"""`minikv info`: what a model file holds, without loading it."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engine import InputError
from engine.checkpoint import Checkpoint
from engine.kv.formats import F16, KV_FORMATS
from engine.kv.policy import Policy
from engine.model.archs import spec_of
from engine.model.load import open_checkpoint
from engine.model.spec import AttentionSpec, ModelSpec
from engine.tokenizer import tokenizer_from_folder
from minikv.progress import TerminalProgress
from minikv.sources import CATALOGUE, resolve
from minikv.text import one_line, size
from tools.windows import bits_per_value


def info(name: str, policy: Policy | None, as_json: bool) -> None:
    """Print what the model `name` is made of on stdout, and what `policy` takes."""
    described = describe(name, resolve(name, progress=TerminalProgress()), policy)
    if as_json:
        print(json.dumps(described))
    else:
        _print(described)


def describe(name: str, path: Path, policy: Policy | None = None) -> dict[str, Any]:
    """The model at `path`, which the user called `name`, as JSON values."""
    checkpoint = open_checkpoint(path)
    spec, meta = spec_of(checkpoint), checkpoint.metadata
    entry = CATALOGUE.get(name)
    attention = [layer.attention for layer in spec.layers]
    return {
        "model": name,
        "path": str(path),
        "name": meta.str("general.name", None),
        "licence": entry.licence if entry else meta.str("general.license", None),
        "architecture": spec.arch,
        "parameters": sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()),
        "file_bytes": sum(part.stat().st_size for part in checkpoint.paths),
        "layers": len(spec.layers),
        "embedding": spec.n_embd,
        "feed_forward": _distinct(layer.feed_forward.width for layer in spec.layers),
        "heads": _distinct(a.heads for a in attention),
        "kv_heads": _distinct(a.kv_heads for a in attention),
        "head_dim": _distinct(a.head_dim for a in attention),
        "context": spec.n_ctx_train,
        "vocabulary": spec.n_vocab,
        "windows": [{"tokens": w, "layers": n} for w, n in _windows(attention)],
        "tokenizer": _tokenizer(checkpoint),
        "tensor_types": _tensor_types(checkpoint),
        "kv": [vars(cost) for cost in kv_costs(spec, policy)],
    }


@dataclass(frozen=True)
class KVCost:
    """One cache type, used for keys and values, or one policy: a full page's bits and bytes,
    metadata included."""

    type: str
    bits_per_value: float
    bytes_per_token: float


def kv_costs(spec: ModelSpec, policy: Policy | None) -> list[KVCost]:
    """What every cache type takes for `spec`, and `policy`."""
    # keys, or values, of a token over all layers
    values = sum(layer.attention.kv_heads * layer.attention.head_dim for layer in spec.layers)
    every = {name: Policy.of(name, name) for name in KV_FORMATS}
    costs = []
    for name, stored in (every if policy is None else every | {policy.name: policy}).items():
        bits = sum(bits_per_value(spec, stored))
        costs.append(KVCost(name, bits / 2, bits * values / 8))
    return costs


def _distinct(values: Any) -> int | list[int]:
    """The one value of all layers, or the values that occur."""
    found = sorted(set(values))
    return found[0] if len(found) == 1 else found


def _windows(attention: list[AttentionSpec]) -> list[tuple[int, int]]:
    """(window in tokens, layers that have it)."""
    return sorted(Counter(a.window for a in attention if a.window is not None).items())


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    """Its kind, None if there is none, and whether it brings a chat template."""
    if checkpoint.path.suffix == ".json":  # a folder's first file is its config.json
        try:
            tokenizer = tokenizer_from_folder(checkpoint.path.parent)
        except InputError:
            return {"kind": None, "chat_template": False}
        kind = type(tokenizer).__name__.removesuffix("Tokenizer")
        return {"kind": kind, "chat_template": tokenizer.chat_template is not None}
    meta = checkpoint.metadata
    kind, pre = (meta.str(f"tokenizer.ggml.{key}", None) for key in ("model", "pre"))
    if kind and pre:
        kind = f"{kind} ({pre})"
    return {"kind": kind, "chat_template": "tokenizer.chat_template" in meta}


def _tensor_types(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Tensors and bytes by type, the largest share first."""
    counts, nbytes = Counter(), Counter()
    for tensor in checkpoint.tensors.values():
        counts[tensor.type] += 1
        nbytes[tensor.type] += tensor.data.nbytes
    return [
        {"type": kind, "tensors": counts[kind], "bytes": total}
        for kind, total in nbytes.most_common()
    ]


def _print(described: dict[str, Any]) -> None:
    d = described
    tokenizer = d["tokenizer"]
    lines = {
        "model": d["model"] if d["name"] is None else f"{d['model']} ({d['name']})",
        "file": f"{d['path']}, {size(d['file_bytes'])}",
        "licence": d["licence"] or "not stated",
        "architecture": d["architecture"],
        "parameters": f"{d['parameters'] / 1e6:,.1f} million",
        "layers": f"{d['layers']}, embedding {d['embedding']}, feed-forward {d['feed_forward']}",
        "heads": f"{d['heads']} of {d['head_dim']}, KV heads {d['kv_heads']}",
        "context": f"{d['context']} tokens",
        "vocabulary": f"{d['vocabulary']} tokens",
        "tokenizer": tokenizer["kind"] or "none",
        "chat template": "yes" if tokenizer["chat_template"] else "no: it completes text",
    }
    # no width is enough for a path
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for label, value in lines.items():
        console.print(f"{label:14} {one_line(str(value))}")
    console.print()
    console.print(_tensor_table(d))
    console.print()
    console.print(_kv_table(d))
    for window in d["windows"]:
        some = f"{window['layers']} of {d['layers']} layers"
        console.print(f"{some} see only the last {window['tokens']} tokens and free older pages.")


def _tensor_table(d: dict[str, Any]) -> Table:
    rows = table("weights", "tensors", "size")
    for kind in d["tensor_types"]:
        rows.add_row(kind["type"], str(kind["tensors"]), size(kind["bytes"]))
    return rows


def _kv_table(d: dict[str, Any]) -> Table:
    rows = table("KV type", "bits/value", "bytes/token", "of f16")
    f16 = next(cost["bytes_per_token"] for cost in d["kv"] if cost["type"] == F16.name)
    for cost in d["kv"]:
        nbytes = cost["bytes_per_token"]
        ratio = f"{nbytes / f16:.2f}x"
        rows.add_row(
            one_line(cost["type"]), f"{cost['bits_per_value']:.2f}", f"{nbytes:,.0f}", ratio
        )
    return rows


def table(first: str, *others: str) -> Table:
    """An empty table without lines: names in the `first` column, figures in the others."""
    rows = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    rows.add_column(first)
    for other in others:
        rows.add_column(other, justify="right")
    return rows
