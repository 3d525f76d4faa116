"""A whole model of a few hundred kilobytes whose every word is known beforehand.

Attention and feed-forward blocks add nothing, embeddings are one-hot, and row j of the output
matrix is the embedding of the token that j follows.  So each token has one successor: those of
`ANSWER` follow one another, and any other token is followed by the first of them.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from engine.tokenizer.bpe import BYTE_OF_LETTER

N_EMBD, HEADS, KV_HEADS, HEAD_DIM, WIDTH, LAYERS = 320, 4, 2, 80, 64, 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# characters of two and four bytes, one byte per token; no token may occur twice
ANSWER = ("Hi", "\u00e9", "Ġo", "k", "\U0001f600", "!")
ANSWER_TEXT = "Hi\u00e9 ok\U0001f600!"
ANSWER_TOKENS = 10

_LETTER = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
_MERGES = ["H i", "Ġ o"]
TEXTS = [_LETTER[byte] for byte in range(256)] + ["Hi", "Ġo", "<|im_start|>", "<|im_end|>"]
END = TEXTS.index("<|im_end|>")


def write_tiny_model(
    path: Path,
    *,
    endless: bool = False,
    template: str | None = TEMPLATE,
    n_ctx: int = 256,
    arch: str = "llama",
    vocabulary: bool = True,
    weights: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write the model as GGUF and return `path`.

    After its last token the answer ends, or begins again if `endless`.  Without a template it is a
    base model.  The other arguments serve to write a model that is of no use.
    """
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("Tiny \x1b[31m model")
    writer.add_license("CC0-1.0")
    _add_sizes(writer, n_ctx)
    if vocabulary:
        _add_vocabulary(writer, template)
    for name, tensor in (weights or tensors(endless)).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(endless: bool) -> dict[str, np.ndarray]:
    """Every weight by name, float32."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {
        "attn_q": (q, N_EMBD),
        "attn_k": (kv, N_EMBD),
        "attn_v": (kv, N_EMBD),
        "attn_output": (N_EMBD, q),
        "ffn_gate": (WIDTH, N_EMBD),
        "ffn_up": (WIDTH, N_EMBD),
        "ffn_down": (N_EMBD, WIDTH),
    }
    embedding = np.eye(len(TEXTS), N_EMBD, dtype=np.float32)
    found = {
        "token_embd.weight": embedding,
        "output_norm.weight": np.ones(N_EMBD, np.float32),
        "output.weight": _output(embedding, endless),
    }
    random = np.random.default_rng(1)
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            # keys and values are worth caching, but nothing comes of them
            scale = 0.0 if name in ("attn_output", "ffn_down") else 0.1
            weight = scale * random.standard_normal(shape, np.float32)
            found[f"blk.{layer}.{name}.weight"] = weight.astype(np.float32)
        for name in ("attn_norm", "ffn_norm"):
            found[f"blk.{layer}.{name}.weight"] = np.ones(N_EMBD, np.float32)
    return found


def _output(embedding: np.ndarray, endless: bool) -> np.ndarray:
    answer = [TEXTS.index(text) for part in ANSWER for text in _tokens(part)]
    assert len(answer) == ANSWER_TOKENS == len(set(answer))
    follows = dict.fromkeys(range(len(TEXTS)), answer[0])
    follows |= dict(zip(answer, [*answer[1:], answer[0] if endless else END], strict=True))
    output = np.zeros_like(embedding)
    for token, successor in follows.items():
        output[successor] += embedding[token]
    return output


def _tokens(part: str) -> list[str]:
    return [part] if part in TEXTS[256:] else [_LETTER[byte] for byte in part.encode()]


def _add_sizes(writer: gguf.GGUFWriter, n_ctx: int) -> None:
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_vocabulary(writer: gguf.GGUFWriter, template: str | None) -> None:
    control = [text.startswith("<|") for text in TEXTS]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TEXTS)
    writer.add_token_types([3 if special else 1 for special in control])
    writer.add_token_merges(_MERGES)
    writer.add_eos_token_id(END)
    if template is not None:
        writer.add_chat_template(template)
