"""gemma3: QK norms, norms around both blocks, local layers with a window and their own rope base,
scaled embeddings."""

from __future__ import annotations

from engine.checkpoint import Checkpoint
from engine.model.archs.common import (
    Keys,
    attention,
    decoder,
    feed_forward,
    keys_of,
    n_layers,
    window_of,
)
from engine.model.spec import LayerSpec, ModelSpec

LOCAL_ROPE_BASE = 10000.0  # where the file does not say
PATTERN = 6  # five local layers, then a global one


def gemma3(checkpoint: Checkpoint) -> ModelSpec:
    keys = keys_of(checkpoint)
    local_base = keys.positive_float("rope.freq_base_swa", LOCAL_ROPE_BASE)
    local = attention(keys, "neox", base=local_base, window=window_of(keys), scaled_rope=False)
    every = attention(keys, "neox", base=keys.positive_float("rope.freq_base", 1e6))
    ffn = feed_forward(keys, "gelu_tanh")
    layers = tuple(LayerSpec(local if is_local else every, ffn) for is_local in _local_layers(keys))
    # Gemma's reference rounds this factor to the weights' bfloat16; llama.cpp does not, nor do we
    n_embd = keys.positive("embedding_length")
    return decoder(checkpoint, keys, layers, embed_scale=n_embd**0.5)


def _local_layers(keys: Keys) -> list[bool]:
    """Which layers slide: by the file's list, or every layer but each `pattern`-th."""
    count = n_layers(keys)
    pattern = keys.get("attention.sliding_window_pattern")
    if pattern is not None and not isinstance(pattern, int):
        listed = [bool(value) for value in pattern]
        if len(listed) != count:
            raise keys.error(
                "attention.sliding_window_pattern", f"{len(listed)} values", f"{count} values"
            )
        return listed
    period = keys.positive("attention.sliding_window_pattern", PATTERN)
    return [(index + 1) % period != 0 for index in range(count)]
