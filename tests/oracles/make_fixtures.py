"""Make tests/fixtures/oracle: tiny random models with the logits transformers gives for them.

    python tests/oracles/make_fixtures.py --llama-cpp PATH_OF_A_LLAMA_CPP_SOURCE_TREE

Neither the checkpoints nor the logits are written by code of this repository: transformers saves
the safetensors and computes the logits, llama.cpp's converter writes the GGUF.  Every weight is
exact in BF16, F16 and F32 alike, so one set of logits serves every file of a case.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import CASES, Case
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

FIXTURES = Path(__file__).parents[1] / "fixtures" / "oracle"
TOKENS = 40
# Ignoring any one tensor or configuration key must move the logits by 50 times what a test allows.
MUST_MOVE = 0.1


def draw(case: Case, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A float32 weight [shape] that depends on nothing but its name.

    Matrices have a standard deviation of gain / sqrt(columns), so that activations keep their
    size from layer to layer.  Queries and keys are larger, for attention that is neither flat nor
    one-hot; the output matrix gives logits a standard deviation of about 3.  Norm weights lie in
    0.5 ... 1.5 (gemma stores them less 1), biases are as large as what they are added to.
    """
    rng = np.random.default_rng([zlib.crc32(case.name.encode()), zlib.crc32(name.encode())])
    normal = rng.standard_normal(shape)
    tied = case.config["tie_word_embeddings"]
    if name.endswith("norm.weight"):
        weight = rng.uniform(0.5, 1.5, shape) - case.config["model_type"].startswith("gemma")
    elif name.endswith(("q_proj.bias", "k_proj.bias")):
        weight = 2.0 * normal
    elif name.endswith("lm_head.weight") or (name.endswith("embed_tokens.weight") and tied):
        weight = 3.0 / np.sqrt(shape[1]) * normal
    elif name.endswith(("bias", "embed_tokens.weight")):
        weight = normal
    elif name.endswith(("q_proj.weight", "k_proj.weight")):
        weight = 1.5 / np.sqrt(shape[1]) * normal
    else:
        weight = 1.2 / np.sqrt(shape[1]) * normal
    return exact_in_every_type(torch.from_numpy(weight))


def exact_in_every_type(weight: torch.Tensor) -> torch.Tensor:
    """`weight` rounded to float32 values that BF16 and F16 both hold exactly."""
    rounded = weight.to(torch.bfloat16).float()
    rounded[rounded.abs() < 2.0**-16] = 0.0  # bfloat16 reaches below the smallest float16
    assert torch.equal(rounded, rounded.half().float())
    return rounded


def build(case: Case, folder: Path) -> None:
    """Write config.json and the safetensors files of `case` into an empty `folder`."""
    write_config(case.config, folder)
    dtype = getattr(torch, case.dtype)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(draw(case, name, tuple(weight.shape)))
    model.save_pretrained(folder, max_shard_size=case.shard or "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_config(case.config, folder)  # in the case's own spelling, not that of today's library
    assert (folder / "model.safetensors").exists() == (case.shard is None)


def write_config(config: dict[str, Any], folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path, config: dict[str, Any] | None = None) -> torch.nn.Module:
    """The model in `folder`, in float64, under its own or another configuration."""
    with tempfile.TemporaryDirectory() as other:
        source = folder
        if config is not None:
            write_config(config, Path(other))
            source = Path(other)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=AutoConfig.from_pretrained(source),
            dtype=torch.float32,
            attn_implementation="eager",
        )
    # transformers itself computes norms, softmax and rope angles in float32 all the same
    return model.double().eval()


def logits_of(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """Logits float32 [T, vocab] of one forward pass over `tokens` int32 [T]."""
    with torch.no_grad():
        out = model(torch.from_numpy(tokens.astype(np.int64))[None])
    return out.logits[0].float().numpy()


def write_expected(case: Case, folder: Path) -> np.ndarray:
    """Write tokens.npy int32 [40] and logits.npy float32 [40, vocab]; return the logits."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    tokens = rng.integers(0, case.config["vocab_size"], TOKENS, dtype=np.int32)
    logits = logits_of(load(folder), tokens)
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "logits.npy", logits)
    return logits


def neutral(name: str, weight: torch.Tensor, gemma: bool) -> torch.Tensor:
    """What a reader that overlooks the tensor `name` would compute with."""
    if name.endswith("norm.weight"):
        return torch.zeros_like(weight) if gemma else torch.ones_like(weight)
    if name.endswith("bias"):
        return torch.zeros_like(weight)
    return weight.roll(1, 0)  # a matrix is never overlooked, but its rows may be out of order


def smallest_effect(case: Case, folder: Path, expected: np.ndarray) -> float:
    """The least change of any logit by spoiling one tensor or one configuration key."""
    tokens = np.load(folder / "tokens.npy")
    model = load(folder)
    effects: dict[str, float] = {}
    for name, weight in model.named_parameters():
        kept = weight.data
        weight.data = neutral(name, kept, case.config["model_type"].startswith("gemma"))
        effects[name] = float(np.abs(logits_of(model, tokens) - expected).max())
        weight.data = kept
    for axis in case.axes:
        changed = logits_of(load(folder, case.config | axis), tokens)
        effects[json.dumps(axis)] = float(np.abs(changed - expected).max())
    name, least = min(effects.items(), key=lambda item: item[1])
    assert least > MUST_MOVE, f"{case.name}: {name} moves the logits by {least:.4f} only"
    return least


def convert(case: Case, folder: Path) -> None:
    """Write model.gguf with llama.cpp's converter, as a model without a tokenizer."""
    import gguf
    from conversion import get_model_class  # both from the llama.cpp tree

    ftypes = {
        "F32": gguf.LlamaFileType.ALL_F32,
        "F16": gguf.LlamaFileType.MOSTLY_F16,
        "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    }
    # The converter looks a gemma's vocabulary size up in the tokenizer; give it one to count.
    vocab = {f"token {i}": i for i in range(case.config["vocab_size"])}
    tokenizer = {"model": {"vocab": vocab}, "added_tokens": []}
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / case.name  # the folder's name becomes general.name
        shutil.copytree(folder, source)
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
        converter = get_model_class(case.config["architectures"][0])(
            source, ftypes[case.gguf], folder / "model.gguf"
        )
        writer = converter.gguf_writer

        def no_vocabulary() -> None:
            writer.add_tokenizer_model("none")
            if writer.arch != "llama":  # for llama the converter has written the size already
                writer.add_vocab_size(case.config["vocab_size"])
            for key, value in case.gguf_keys.items():
                writer.add_uint32(key, value)

        converter.set_vocab = no_vocabulary
        converter.write()


def make(case: Case, folder: Path) -> str:
    """Make one fixture folder from nothing; returns a line about it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    build(case, folder)
    logits = write_expected(case, folder)
    assert 1.0 < logits.std() < 10.0, f"{case.name}: logits have scale {logits.std():.2f}"
    least = smallest_effect(case, folder, logits)
    if case.gguf is not None:
        convert(case, folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors files are born unreadable to others
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1024
    single = logits_of(load(folder).float(), np.load(folder / "tokens.npy"))
    return (
        f"{case.name:13} {size:4.0f} KB  logits: std {logits.std():.2f}, max "
        f"{np.abs(logits).max():.1f}; float32 differs by {np.abs(single - logits).max():.1e}; "
        f"least effect of a spoiled tensor or key {least:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp source tree")
    parser.add_argument("cases", nargs="*", default=[c.name for c in CASES], help="default: all")
    args = parser.parse_args()
    sys.path[:0] = [str(args.llama_cpp), str(args.llama_cpp / "gguf-py")]
    disable_progress_bar()
    for case in CASES:
        if case.name in args.cases:
            print(make(case, FIXTURES / case.name))


if __name__ == "__main__":
    main()
