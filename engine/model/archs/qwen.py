"""qwen2 (q, k and v biases) and qwen3 (per-head QK norms): the tensors say which."""

from engine.checkpoint import Checkpoint
from engine.model.archs.common import attention, decoder, feed_forward, keys_of, n_layers
from engine.model.spec import LayerSpec, ModelSpec


def qwen(checkpoint: Checkpoint) -> ModelSpec:
    keys = keys_of(checkpoint)
    layer = LayerSpec(attention(keys, "neox"), feed_forward(keys))
    return decoder(checkpoint, keys, (layer,) * n_layers(keys))
