"""A folder's config and tensors get the names that llama.cpp's converter would give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy

from engine.checkpoint import Checkpoint, Tensor
from engine.errors import InputError
from engine.gguf_file import open_gguf
from engine.model.archs import ARCHS
from engine.model.archs.hf import hf_checkpoint

FIXTURES = Path(__file__).parents[3] / "fixtures" / "oracle"
CASES = sorted(path.parent.name for path in FIXTURES.glob("*/model.gguf"))

LINEAR = {
    "self_attn.q_proj": (16, 24),
    "self_attn.k_proj": (8, 24),
    "self_attn.v_proj": (8, 24),
    "self_attn.o_proj": (24, 16),
    "mlp.gate_proj": (32, 24),
    "mlp.up_proj": (32, 24),
    "mlp.down_proj": (24, 32),
}
NORMS = {"input_layernorm": (24,), "post_attention_layernorm": (24,)}
QK_NORMS = {"self_attn.q_norm": (8,), "self_attn.k_norm": (8,)}
SANDWICH = {"pre_feedforward_layernorm": (24,), "post_feedforward_layernorm": (24,)}
BIASES = {
    f"self_attn.{name}_proj.bias": (width,) for name, width in zip("qkv", (16, 8, 8), strict=True)
}

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "llama": ("LlamaForCausalLM", {}, {}),
    "mistral": ("MistralForCausalLM", {}, {}),
    "qwen2": ("Qwen2ForCausalLM", {}, BIASES),
    "qwen3": ("Qwen3ForCausalLM", {}, QK_NORMS),
    "gemma3": ("Gemma3ForCausalLM", {"query_pre_attn_scalar": 16}, QK_NORMS | SANDWICH),
}


def make_folder(
    path: Path, arch: str, *, drop: tuple[str, ...] = (), extra: tuple[str, ...] = (), **config: Any
) -> Path:
    """A two-layer folder of a family; `config` adds settings, `drop` takes settings or tensors."""
    name, settings, modules = FAMILIES[arch]
    base: dict[str, Any] = {
        "architectures": [name],
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 10,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
    }
    shapes = {"model.embed_tokens.weight": (10, 24), "model.norm.weight": (24,)}
    if arch != "gemma3":
        shapes["lm_head.weight"] = (10, 24)
    for layer in range(2):
        for module, shape in (LINEAR | NORMS | modules).items():
            suffix = "" if module.endswith("bias") else ".weight"
            shapes[f"model.layers.{layer}.{module}{suffix}"] = shape
    shapes |= dict.fromkeys(extra, (4,))
    rng = np.random.default_rng(3)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
        if name not in drop
    }
    config = {k: v for k, v in (base | settings | config).items() if k not in drop}
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    return path


def metadata(path: Path, arch: str, **config: Any) -> dict[str, Any]:
    """The folder's metadata without the architecture in front."""
    found = hf_checkpoint(make_folder(path, arch, **config)).metadata
    return {key.removeprefix(f"{arch}."): value for key, value in found.items()}


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        hf_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def values(tensor: Tensor) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[tensor.type]
    return gguf.dequantize(tensor.data, kind).reshape(tensor.shape)


# --- against the converter ----------------------------------------------------------------------


def converted_order(name: str, tensor: np.ndarray, checkpoint: Checkpoint) -> np.ndarray:
    """Rows of q and k as the converter orders them for llama: rotated pairs side by side."""
    arch = checkpoint.metadata.str("general.architecture")
    if arch not in ("llama", "mistral") or not name.endswith(("attn_q.weight", "attn_k.weight")):
        return tensor
    pairs = tensor.reshape(
        -1, 2, checkpoint.metadata.int(f"{arch}.attention.key_length") // 2, *tensor.shape[1:]
    )
    return pairs.swapaxes(1, 2).reshape(tensor.shape)


@pytest.mark.parametrize("case", CASES)
def test_folder_and_converted_file_hold_the_same_tensors(case: str) -> None:
    folder, file = hf_checkpoint(FIXTURES / case), open_gguf(FIXTURES / case / "model.gguf")
    assert folder.tensors.keys() == file.tensors.keys()
    for name, tensor in folder.tensors.items():
        ours = converted_order(name, values(tensor), folder)
        np.testing.assert_allclose(ours, values(file.tensors[name]), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_folder_and_converted_file_agree_on_the_metadata(case: str) -> None:
    folder, file = hf_checkpoint(FIXTURES / case), open_gguf(FIXTURES / case / "model.gguf")
    ours, theirs = (
        checkpoint.metadata.str("general.architecture") for checkpoint in (folder, file)
    )
    shared = {key: value for key, value in file.metadata.items() if key.startswith(f"{theirs}.")}
    assert shared
    for key, value in shared.items():
        assert folder.metadata[ours + key.removeprefix(theirs)] == pytest.approx(value), key


@pytest.mark.parametrize("arch", FAMILIES)
def test_tensor_names_are_those_of_the_gguf_package(tmp_path: Path, arch: str) -> None:
    make_folder(tmp_path, arch)
    known = "llama" if arch == "mistral" else arch
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == known)
    table = gguf.get_tensor_name_map(kind, 2)
    names = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    expected = {table.get_name(name, (".weight", ".bias")) for name in names}
    assert hf_checkpoint(tmp_path).tensors.keys() == expected


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_here_is_one_the_engine_runs(tmp_path: Path, arch: str) -> None:
    assert arch in ARCHS
    found = metadata(tmp_path, arch)
    assert found["general.architecture"] == arch and found["rope.layout"] == "neox"
    sizes = ("block_count", "embedding_length", "feed_forward_length", "vocab_size")
    assert [found[key] for key in sizes] == [2, 24, 32, 10]
    heads = ("head_count", "head_count_kv", "key_length", "value_length")
    assert [found[f"attention.{key}"] for key in heads] == [2, 1, 8, 8]


def test_what_the_config_leaves_out_has_the_familys_default(tmp_path: Path) -> None:
    found = metadata(tmp_path / "a", "llama", drop=("head_dim", "num_key_value_heads"))
    assert found["attention.key_length"] == 12 and found["attention.head_count_kv"] == 2
    assert found["rope.freq_base"] == 10000.0
    assert metadata(tmp_path / "b", "qwen3", drop=("head_dim",))["attention.key_length"] == 128
    null = metadata(tmp_path / "c", "llama", head_dim=None, num_key_value_heads=None)
    assert null["attention.key_length"] == 12 and null["attention.head_count_kv"] == 2


def test_the_model_type_stands_in_for_missing_architectures(tmp_path: Path) -> None:
    found = metadata(tmp_path, "gemma3", drop=("architectures",), model_type="gemma3_text")
    assert found["general.architecture"] == "gemma3"


def test_old_and_new_configs_of_local_and_global_layers_agree(tmp_path: Path) -> None:
    old = metadata(
        tmp_path / "old",
        "gemma3",
        rope_theta=5e5,
        rope_local_base_freq=2e3,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window=16,
        sliding_window_pattern=2,
    )
    new = metadata(
        tmp_path / "new",
        "gemma3",
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e3},
        },
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )
    assert old == new
    assert old["attention.sliding_window_pattern"] == [True, False]
    assert old["rope.freq_base"] == 5e5 and old["rope.freq_base_swa"] == 2e3
    assert old["rope.scaling.type"] == "linear" and old["rope.scaling.factor"] == 8.0


def test_local_and_global_rope_bases_have_their_defaults(tmp_path: Path) -> None:
    found = metadata(tmp_path, "gemma3")
    assert found["rope.freq_base"] == 1e6 and found["rope.freq_base_swa"] == 1e4


def test_the_query_scale_is_passed_on(tmp_path: Path) -> None:
    assert metadata(tmp_path, "gemma3", query_pre_attn_scalar=64)["attention.scale"] == 0.125


def test_a_null_window_is_none_and_an_absent_one_the_default(tmp_path: Path) -> None:
    assert "attention.sliding_window" not in metadata(
        tmp_path / "a", "mistral", sliding_window=None
    )
    assert metadata(tmp_path / "b", "mistral")["attention.sliding_window"] == 4096
    assert metadata(tmp_path / "c", "mistral", sliding_window=8)["attention.sliding_window"] == 8
    assert "attention.sliding_window" not in metadata(tmp_path / "d", "qwen2", sliding_window=8)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama3_scaling_becomes_frequency_divisors(tmp_path: Path, key: str) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = {key: scaling | {"rope_theta": 100.0}, "rope_theta": 100.0}
    checkpoint = hf_checkpoint(make_folder(tmp_path, "llama", head_dim=16, **config))
    assert checkpoint.metadata["llama.rope.freq_base"] == 100.0
    factors = checkpoint.tensors["rope_freqs.weight"]
    assert factors.type == "F32" and factors.shape == (8,) and factors.data.shape == (1, 32)
    expected = []
    for wave in (2 * np.pi * 100.0 ** (i / 8) for i in range(8)):
        smooth = (64 / wave - 1) / 3
        blend = 1 / ((1 - smooth) / 8 + smooth)
        expected.append(1.0 if wave < 64 / 4 else 8.0 if wave > 64 else blend)
    assert 1.0 in expected and 8.0 in expected and len(set(expected)) > 3
    np.testing.assert_allclose(values(factors), expected, rtol=1e-6)


# --- tensors ------------------------------------------------------------------------------------


def test_norms_that_multiply_by_one_plus_w_hold_it(tmp_path: Path) -> None:
    for arch, shift in (("llama", 0.0), ("gemma3", 1.0)):
        path = make_folder(tmp_path / arch, arch)
        raw = safetensors.numpy.load_file(path / "model.safetensors")
        tensors = hf_checkpoint(path).tensors
        for name, old in (
            ("output_norm", "model.norm"),
            ("blk.1.attn_norm", "model.layers.1.input_layernorm"),
        ):
            found = values(tensors[f"{name}.weight"])
            np.testing.assert_array_equal(found, raw[f"{old}.weight"] + np.float32(shift))
        q = "model.layers.0.self_attn.q_proj.weight"
        np.testing.assert_array_equal(values(tensors["blk.0.attn_q.weight"]), raw[q])


def test_tied_embeddings_leave_no_output_matrix(tmp_path: Path) -> None:
    path = make_folder(tmp_path, "llama", tie_word_embeddings=True)
    assert "output.weight" not in hf_checkpoint(path).tensors
    path = make_folder(tmp_path, "llama", tie_word_embeddings=False)
    assert "output.weight" in hf_checkpoint(path).tensors
    path = make_folder(tmp_path, "llama", drop=("lm_head.weight",))
    assert "tensor lm_head.weight is missing" in refusal(path)


def test_stored_rotary_frequencies_are_left_out(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert hf_checkpoint(make_folder(tmp_path, "llama", extra=(name,))).tensors


# --- refusals -----------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("arch", "config", "expected"),
    [
        ("llama", {"architectures": ["GPT2LMHeadModel"]}, "allowed: LlamaForCausalLM, Mistral"),
        ("llama", {"architectures": [["x"]]}, "allowed: LlamaForCausalLM, Mistral"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "expected an array"),
        ("llama", {"architectures": [], "model_type": "mamba"}, "model_type is 'mamba', allowed"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config is"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu', allowed: silu"),
        ("gemma3", {"hidden_activation": "gelu"}, "allowed: gelu_pytorch_tanh"),
        ("llama", {"rope_scaling": YARN}, "scaling 'yarn' is not supported. Supported: default"),
        ("llama", {"rope_scaling": {"type": "dynamic"}}, "scaling 'dynamic' is not supported"),
        ("llama", {"rope_parameters": YARN}, "scaling 'yarn' is not supported"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "'factor' is missing"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
        ("llama", {"rope_scaling": LLAMA3}, "more than low_freq_factor, 4.0"),
        ("llama", {"rope_scaling": [8]}, "rope_scaling is [8], allowed: a JSON object"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("gemma3", {"rope_parameters": {"sliding_attention": YARN}}, "allowed: default"),
        ("gemma3", {"layer_types": ["full_attention"]}, "2 of full_attention"),
        ("gemma3", {"layer_types": ["chunked_attention", []]}, "2 of full_attention"),
        ("llama", {"rope_theta": float("inf")}, "rope_theta is inf"),
        ("llama", {"rope_theta": 10**400}, "allowed: a positive number"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads is 0"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ("llama", {"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ("llama", {"head_dim": 10**9}, "head_dim is 1000000000"),
        ("llama", {"hidden_size": "24"}, "'hidden_size' is '24', expected an integer"),
        ("llama", {"hidden_size": None}, "'hidden_size' is missing"),
        ("llama", {"extra": ("model.layers.0.mlp.gate.weight",)}, "not part of a llama model"),
        ("llama", {"extra": ("vision_tower.weight",)}, "not part of a llama model"),
        ("qwen2", {"drop": ("model.layers.1.self_attn.k_proj.bias",)}, "k_proj.bias is missing"),
        ("qwen3", {"drop": ("model.layers.0.self_attn.q_norm.weight",)}, "q_norm.weight is miss"),
    ],
)
def test_what_the_engine_would_compute_wrongly_is_refused(
    tmp_path: Path, arch: str, config: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(make_folder(tmp_path, arch, **config))
