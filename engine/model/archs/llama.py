"""llama and mistral: rotary GQA, SwiGLU, pre-norms; mistral v0.1 slides a window over all
layers."""

from engine.checkpoint import Checkpoint
from engine.model.archs.common import attention, decoder, feed_forward, keys_of, n_layers, window_of
from engine.model.spec import LayerSpec, ModelSpec


def llama(checkpoint: Checkpoint) -> ModelSpec:
    keys = keys_of(checkpoint)
    # llama.cpp's converter permutes q and k rows so that rotated pairs are adjacent
    layer = LayerSpec(attention(keys, "norm", window=window_of(keys)), feed_forward(keys))
    return decoder(checkpoint, keys, (layer,) * n_layers(keys))
