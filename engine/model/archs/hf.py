"""A Hugging Face folder as a Checkpoint: its config and tensor names in GGUF's vocabulary.

Names and keys are those llama.cpp's converter writes, with two differences.  Rows of q and k keep
the folder's order, so `{arch}.rope.layout` says "neox"; and mistral keeps its own name and window.
Both formats of config.json are read: `rope_theta`, `rope_scaling` and `sliding_window_pattern` of
transformers 4, `rope_parameters` and `layer_types` of transformers 5.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint, Metadata, Tensor
from engine.errors import InputError
from engine.hf_folder import HFFolder, open_hf_folder
from engine.model.archs.common import MAX_LAYERS

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
# What others call the norm before the feed-forward block is the one after attention here.
_SANDWICH_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_TENSOR_NAME = re.compile(r"(?:model\.layers\.(0|[1-9][0-9]*)\.)?(.+)\.(weight|bias)")


@dataclass(frozen=True)
class _Family:
    """What a family's folders leave unsaid: its names, and defaults where config.json is silent.

    `layer` maps module names to GGUF's, all required in every layer; so are biases of `biases`.
    `head_dim` None means hidden_size / heads; `window` is the window of a config without one.
    """

    arch: str
    layer: Mapping[str, str]
    biases: tuple[str, ...] = ()
    activation: tuple[str, str] = ("hidden_act", "silu")
    head_dim: int | None = None
    tied: bool = False
    window: int | None = None
    rope_base: float = 10000.0
    local_rope_base: float | None = None
    norm_shift: float = 0.0


_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", _LAYER),
    "MistralForCausalLM": _Family("mistral", _LAYER, window=4096),
    "Qwen2ForCausalLM": _Family(
        "qwen2", _LAYER, biases=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    ),
    "Qwen3ForCausalLM": _Family("qwen3", _LAYER | _QK_NORMS, head_dim=128),
    "Gemma3ForCausalLM": _Family(
        "gemma3",
        _LAYER | _QK_NORMS | _SANDWICH_NORMS,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        head_dim=256,
        tied=True,
        window=4096,
        rope_base=1e6,
        local_rope_base=10000.0,
        norm_shift=1.0,  # the folder holds w, the norm multiplies by 1 + w
    ),
}
# For a config.json without `architectures`.
_MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
# Settings that change the result and that no family here computes.
_UNSUPPORTED = (
    "quantization_config",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "use_sliding_window",
)


def hf_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open the folder `path` of one of the known families.

    Matrices are views of the mapped files; vectors become F32, as in GGUF files.  Raises
    InputError for an unknown architecture, a setting that is not supported, or a missing tensor.
    """
    folder = open_hf_folder(path)
    source = str(folder.files[0])
    # null in config.json means that the setting is absent
    config = _Config({k: v for k, v in folder.config.items() if v is not None}, source)
    family = _family_of(config)
    _refuse_unsupported(config, family)
    head_dim = _head_dim(config, family)
    tensors = _tensors(folder, config, family)
    rope_keys, rope_factors = _rope(config, family, head_dim)
    if rope_factors is not None:
        tensors["rope_freqs.weight"] = _vector("rope_freqs.weight", rope_factors)
    keys = _sizes(config, head_dim) | rope_keys | _windows(config, family, folder)
    metadata = {f"{family.arch}.{key}": value for key, value in keys.items()}
    metadata["general.architecture"] = family.arch
    return Checkpoint(folder.files, Metadata(metadata, source), tensors)


class _Config(Metadata):
    """A JSON object of settings, with getters that also check the range."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        super().__init__(values, source)
        self.source = source

    def error(self, key: str, allowed: str) -> InputError:
        return InputError(f"{self.source}: {key} is {self.get(key)!r:.80}, allowed: {allowed}")

    def count(self, key: str, *default: int, most: int = 1 << 30) -> int:
        value = self.int(key, *default)
        if not 0 < value <= most:
            raise self.error(key, f"from 1 to {most}")
        return value

    def positive(self, key: str, *default: float) -> float:
        try:
            value = self.float(key, *default)
        except OverflowError:  # an integer of hundreds of digits
            value = math.inf
        if not (math.isfinite(value) and value > 0):
            raise self.error(key, "a positive number")
        return value

    def section(self, key: str) -> _Config:
        """The object under `key`, empty when there is none."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, "a JSON object")
        return _Config({k: v for k, v in value.items() if v is not None}, f"{self.source}: {key}")


def _family_of(config: _Config) -> _Family:
    listed = config.list("architectures", [])
    name = listed[0] if listed else _MODEL_TYPES.get(config.str("model_type", ""))
    family = _FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        key = "architectures" if listed else "model_type"
        raise config.error(key, ", ".join(_FAMILIES if listed else _MODEL_TYPES))
    return family


def _refuse_unsupported(config: _Config, family: _Family) -> None:
    for key in _UNSUPPORTED:
        if config.get(key, False) is not False:
            raise config.error(key, "null or false")
    key, activation = family.activation
    if config.str(key, activation) != activation:
        raise config.error(key, activation)


def _head_dim(config: _Config, family: _Family) -> int:
    heads = config.count("num_attention_heads", most=4096)
    derived = config.count("hidden_size") // heads
    return config.count("head_dim", family.head_dim or derived, most=4096)


def _sizes(config: _Config, head_dim: int) -> dict[str, Any]:
    heads = config.int("num_attention_heads")
    keys: dict[str, Any] = {
        "block_count": config.int("num_hidden_layers"),
        "vocab_size": config.count("vocab_size"),
        "context_length": config.count("max_position_embeddings"),
        "embedding_length": config.int("hidden_size"),
        "feed_forward_length": config.count("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": config.count("num_key_value_heads", heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.positive("rms_norm_eps", 1e-6),
    }
    if "query_pre_attn_scalar" in config:
        keys["attention.scale"] = config.positive("query_pre_attn_scalar") ** -0.5
    return keys


def _windows(config: _Config, family: _Family, folder: HFFolder) -> dict[str, Any]:
    """Sliding window keys.  Only an absent `sliding_window` has a default: null says none."""
    if family.window is None or folder.config.get("sliding_window", family.window) is None:
        return {}
    keys: dict[str, Any] = {
        "attention.sliding_window": config.count("sliding_window", family.window)
    }
    if family.local_rope_base is None:  # every layer slides
        return keys
    n_layers = config.int("num_hidden_layers")
    period = config.count("sliding_window_pattern", 6)
    types = config.list("layer_types", None)
    if types is None:
        local = [(layer + 1) % period != 0 for layer in range(n_layers)]
    elif len(types) == n_layers and set(map(str, types)) <= _LAYER_TYPES:
        local = [kind == "sliding_attention" for kind in types]
    else:
        raise config.error("layer_types", f"{n_layers} of {', '.join(sorted(_LAYER_TYPES))}")
    return keys | {"attention.sliding_window_pattern": local}


def _rope(
    config: _Config, family: _Family, head_dim: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Rotary position keys, and the divisors of the frequencies where the scaling has its own."""
    rope = config.section("rope_parameters" if "rope_parameters" in config else "rope_scaling")
    full = rope.section("full_attention") if "full_attention" in rope else rope
    base = full.positive("rope_theta", config.positive("rope_theta", family.rope_base))
    keys: dict[str, Any] = {
        "rope.dimension_count": head_dim,
        "rope.freq_base": base,
        "rope.layout": "neox",
    }
    if family.local_rope_base is not None:
        local = rope.section("sliding_attention")
        old = config.positive("rope_local_base_freq", family.local_rope_base)
        keys["rope.freq_base_swa"] = local.positive("rope_theta", old)
        if _rope_type(local) != "default":
            raise local.error("rope_type", "default")
    for part in (config, full):
        if part.positive("partial_rotary_factor", 1.0) != 1.0:
            raise part.error("partial_rotary_factor", "1")
    kind = _rope_type(full)
    if kind == "linear":
        return keys | {
            "rope.scaling.type": "linear",
            "rope.scaling.factor": full.positive("factor"),
        }, None
    if kind == "llama3":
        return keys, _llama3_factors(config, full, base, head_dim)
    if kind != "default":
        raise InputError(
            f"{full.source}: RoPE scaling {kind!r:.40} is not supported. "
            "Supported: default, linear, llama3"
        )
    return keys, None


def _rope_type(rope: _Config) -> str:
    return rope.str("rope_type", rope.str("type", "default"))


def _llama3_factors(config: _Config, rope: _Config, base: float, dims: int) -> np.ndarray:
    """float32 [dims / 2]: 1 for short waves, `factor` for long ones, a blend between."""
    factor = rope.positive("factor")
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if low >= high:
        raise rope.error("high_freq_factor", f"more than low_freq_factor, {low}")
    key = "original_max_position_embeddings"
    n_ctx = config.count(key, rope.count(key, config.count("max_position_embeddings")))
    wavelength = 2 * np.pi * base ** (np.arange(0, dims, 2) / dims)
    short = np.clip((n_ctx / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - short) / factor + short)).astype(np.float32)


def _tensors(folder: HFFolder, config: _Config, family: _Family) -> dict[str, Tensor]:
    """The folder's tensors under GGUF's names, after checking that none is missing."""
    tied = config.bool("tie_word_embeddings", family.tied)
    n_layers = config.count("num_hidden_layers", most=MAX_LAYERS)
    required = [f"{top}.weight" for top in _TOP if not (tied and top == "lm_head")]
    for layer in range(n_layers):
        required += [f"model.layers.{layer}.{module}.weight" for module in family.layer]
        required += [f"model.layers.{layer}.{module}.bias" for module in family.biases]
    for name in required:
        if name not in folder.tensors:
            raise InputError(f"{folder.path}: tensor {name} is missing")
    tensors: dict[str, Tensor] = {}
    for name, tensor in folder.tensors.items():
        # Old folders store the rotary frequencies, which follow from the config.
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        new = _gguf_name(name, family)
        if new is None:
            raise InputError(
                f"{folder.path}: tensor {name!r:.80} is not part of a {family.arch} model"
            )
        tensors[new] = _renamed(tensor, new, family)
    return tensors


def _gguf_name(name: str, family: _Family) -> str | None:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`; None for an unknown name."""
    match = _TENSOR_NAME.fullmatch(name)
    if match is None:
        return None
    layer, module, kind = match.groups()
    new = _TOP.get(module) if layer is None else family.layer.get(module)
    if new is None:
        return None
    return f"{new}.{kind}" if layer is None else f"blk.{layer}.{new}.{kind}"


def _renamed(tensor: Tensor, name: str, family: _Family) -> Tensor:
    if len(tensor.shape) > 1:
        return Tensor(name, tensor.type, tensor.shape, tensor.data)
    shift = np.float32(family.norm_shift if name.endswith("norm.weight") else 0.0)
    return _vector(name, _float32(tensor) + shift)


def _float32(tensor: Tensor) -> np.ndarray:
    if tensor.type == "BF16":  # the upper half of a float32
        return (tensor.data.view("<u2").astype("<u4") << 16).view("<f4")[0]
    return tensor.data.view("<f4" if tensor.type == "F32" else "<f2").astype(np.float32)[0]


def _vector(name: str, values: np.ndarray) -> Tensor:
    data = values.view(np.uint8).reshape(1, -1)
    data.flags.writeable = False
    return Tensor(name, "F32", values.shape, data)
