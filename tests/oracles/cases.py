"""The tiny models of tests/fixtures/oracle, one per thing a family can get wrong.

A case's `config` is its config.json, in the spelling real checkpoints use: some in the older one
(`rope_theta`, `rope_scaling`, `torch_dtype`), some in that of transformers 5 (`rope_parameters`,
`dtype`).  `axes` are changed configurations: each must move the logits, or the case would pass
with that key ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Case:
    name: str
    config: Config
    dtype: str  # of model.safetensors
    gguf: str | None  # of the matrices in model.gguf; None: GGUF has no keys for this model
    axes: tuple[Config, ...] = ()
    shard: str | None = None  # split model.safetensors into files of this size, with an index
    gguf_keys: dict[str, int] = field(default_factory=dict)  # added to what the converter writes


BASE = {"vocab_size": 96, "max_position_embeddings": 256, "attention_bias": False}
SILU = {"hidden_act": "silu", "mlp_bias": False}

LLAMA = Case(
    name="llama",
    config=BASE
    | SILU
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    },
    dtype="bfloat16",
    gguf="F16",
    shard="60KB",
    axes=({"rope_theta": 20000.0},),
)

# Wavelengths of the 8 frequencies run from 6 to 6e5: with an original context of 32 the first is
# kept, the second is blended and the others are stretched, so all three branches count.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA3 = Case(
    name="llama3",
    config=BASE
    | SILU
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rms_norm_eps": 1e-2,
        "rope_theta": 10000.0,
        "rope_scaling": LLAMA3_ROPE,
        "tie_word_embeddings": True,
    },
    dtype="float32",
    gguf="F32",
    axes=(
        {"rope_scaling": None},
        {"rope_scaling": LLAMA3_ROPE | {"low_freq_factor": 2.0}},
        {"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 8.0}},
        {"rope_scaling": LLAMA3_ROPE | {"factor": 4.0}},
        {"rms_norm_eps": 1e-5},
    ),
)

QWEN2 = Case(
    name="qwen2",
    config={
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "vocab_size": 96,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        # switched off, as in every released qwen2: the window below must not be applied
        "use_sliding_window": False,
        "sliding_window": 8,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    dtype="bfloat16",
    gguf="BF16",
    axes=(
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        {"use_sliding_window": True},
    ),
)

QWEN3 = Case(
    name="qwen3",
    config=BASE
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "torch_dtype": "float16",
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 2e-2,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 2,
        "tie_word_embeddings": False,
    },
    dtype="float16",
    gguf="F16",
    axes=({"rope_theta": 10000.0}, {"rms_norm_eps": 1e-5}),
)

# Six layers: GGUF says nothing of gemma3's pattern, five local layers and then a global one.
# The linear rope factor, as in the 4B and larger models, holds for the global layers only.
GEMMA3_LAYERS = ["sliding_attention"] * 5 + ["full_attention"]
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2000.0},
}
GEMMA3_ROPE_UNSCALED = GEMMA3_ROPE | {
    "full_attention": {"rope_type": "default", "rope_theta": 100000.0}
}
GEMMA3 = Case(
    name="gemma3",
    config=BASE
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "dtype": "bfloat16",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "rms_norm_eps": 1e-6,
        "rope_parameters": GEMMA3_ROPE,
        "sliding_window": 8,
        "layer_types": GEMMA3_LAYERS,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
        "tie_word_embeddings": True,
    },
    dtype="bfloat16",
    gguf="BF16",
    axes=(
        {"sliding_window": 9},
        {"sliding_window": 7},
        {"layer_types": ["full_attention"] * 6},
        {"layer_types": ["full_attention", *GEMMA3_LAYERS[1:]]},
        {"rope_parameters": GEMMA3_ROPE_UNSCALED},
        {"rope_parameters": dict.fromkeys(GEMMA3_ROPE, GEMMA3_ROPE["full_attention"])},
        {"rope_parameters": dict.fromkeys(GEMMA3_ROPE, GEMMA3_ROPE["sliding_attention"])},
    ),
)

# The older spelling, and what GGUF cannot say: a score scale that is not 1/sqrt(head_dim).
GEMMA3_SCALE = Case(
    name="gemma3-scale",
    config=BASE
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "torch_dtype": "bfloat16",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 48,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 2e-2,
        "rope_theta": 100000.0,
        "rope_local_base_freq": 2000.0,
        "rope_scaling": None,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "tie_word_embeddings": True,
    },
    dtype="bfloat16",
    gguf=None,
    axes=(
        {"query_pre_attn_scalar": 32},
        {"sliding_window_pattern": 2},
        {"sliding_window_pattern": 6},
        {"sliding_window": 9},
        {"rope_local_base_freq": 10000.0},
        {"rope_theta": 1000000.0},
        {"rms_norm_eps": 1e-6},
    ),
)

MISTRAL = Case(
    name="mistral",
    config={
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "torch_dtype": "float16",
        "vocab_size": 96,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 8,
        "tie_word_embeddings": False,
    },
    dtype="float16",
    gguf="F32",
    # The converter writes a mistral as a llama and drops its window.
    gguf_keys={"llama.attention.sliding_window": 8},
    axes=({"sliding_window": None}, {"sliding_window": 7}, {"sliding_window": 9}),
)

CASES = (LLAMA, LLAMA3, QWEN2, QWEN3, GEMMA3, GEMMA3_SCALE, MISTRAL)
