"""Weights bound by name, with their shapes checked against the spec before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.checkpoint import Checkpoint, Tensor
from engine.errors import InputError
from engine.model.spec import LayerSpec, ModelSpec
from engine.ops import Ops, Weight

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """Uploaded weights: `layers[i]["attn_q.weight"]`; names that the file lacks are absent."""

    model: Mapping[str, Weight]
    layers: tuple[Mapping[str, Weight], ...]


def _layer_tensors(spec: ModelSpec, layer: LayerSpec) -> Iterator[tuple[str, Shape, bool]]:
    """(name, shape, required) of one layer's tensors, in GGUF's names."""
    a, n = layer.attention, spec.n_embd
    q, kv, ff = a.heads * a.head_dim, a.kv_heads * a.head_dim, layer.feed_forward.width
    yield from (
        ("attn_norm.weight", (n,), True),
        ("attn_q.weight", (q, n), True),
        ("attn_k.weight", (kv, n), True),
        ("attn_v.weight", (kv, n), True),
        ("attn_output.weight", (n, q), True),
        ("attn_q.bias", (q,), False),
        ("attn_k.bias", (kv,), False),
        ("attn_v.bias", (kv,), False),
        ("attn_output.bias", (n,), False),
        ("attn_q_norm.weight", (a.head_dim,), False),
        ("attn_k_norm.weight", (a.head_dim,), False),
        ("post_attention_norm.weight", (n,), False),
        ("ffn_norm.weight", (n,), True),
        ("ffn_gate.weight", (ff, n), True),
        ("ffn_up.weight", (ff, n), True),
        ("ffn_down.weight", (n, ff), True),
        ("post_ffw_norm.weight", (n,), False),
    )


def bind(spec: ModelSpec, checkpoint: Checkpoint, ops: Ops) -> Weights:
    """Check and upload every tensor of `spec`.

    Raises InputError for a missing tensor, a wrong shape, a type no kernel can decode, or a tensor
    of a layer that the spec does not know: dropping it would silently compute something else.
    """
    known: set[str] = set()

    def take(name: str, shape: Shape, required: bool) -> Tensor | None:
        known.add(name)
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            if required:
                raise InputError(f"{checkpoint.path}: tensor {name} is missing")
            return None
        if tensor.shape != shape:
            raise InputError(
                f"{checkpoint.path}: tensor {name} has shape {tensor.shape}, expected {shape}"
            )
        return tensor

    n, vocab = spec.n_embd, spec.n_vocab
    top = {
        "token_embd.weight": take("token_embd.weight", (vocab, n), True),
        "output_norm.weight": take("output_norm.weight", (n,), True),
        # a file without an output matrix ties it to the embeddings
        "output.weight": take("output.weight", (vocab, n), False),
    }
    layers = [
        {
            name: take(f"blk.{index}.{name}", shape, required)
            for name, shape, required in _layer_tensors(spec, layer)
        }
        for index, layer in enumerate(spec.layers)
    ]
    for name in checkpoint.tensors:
        if name.startswith("blk.") and name not in known:
            raise InputError(
                f"{checkpoint.path}: tensor {name} is not part of a {spec.arch} model of "
                f"{len(spec.layers)} layers"
            )

    def upload(found: Mapping[str, Tensor | None]) -> dict[str, Weight]:
        return {name: ops.upload(tensor) for name, tensor in found.items() if tensor is not None}

    model = upload({"output_norm.weight": top["output_norm.weight"]})
    embedding, output = top["token_embd.weight"], top["output.weight"]
    assert embedding is not None
    if output is None:
        model["token_embd.weight"] = ops.upload(embedding)
    else:
        model["token_embd.weight"] = ops.table(embedding)
        model["output.weight"] = ops.upload(output)
    return Weights(model, tuple(upload(layer) for layer in layers))
