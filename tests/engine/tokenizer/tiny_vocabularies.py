"""Vocabularies of a few hundred tokens, as GGUF metadata, and a slow encoder for each."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from engine.checkpoint import Metadata
from engine.tokenizer.bpe import BYTE_OF_LETTER

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_KEY = "tokenizer.ggml."
LETTER = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}

MERGES = ["l l", "h e", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ġwor ld", "l d", "Ġ Ġ"]
MERGES += ["ĠĠ ĠĠ", "Ċ Ċ", "' s", "' S", "a b", "b c", "ab c", "1 2", "12 3", "Ã ©", "ð Ł", "< b"]


def bpe_metadata(**changes: Any) -> Metadata:
    """256 byte tokens, the merges above, three control tokens and two user-defined ones."""
    texts = [LETTER[byte] for byte in range(256)]
    texts += [merge.replace(" ", "") for merge in MERGES]
    special = ["<bos>", "<|im_end|>", "stop", "<tool>", "<tool>x", "[PAD]"]
    types = [NORMAL] * len(texts) + [CONTROL] * 3 + [USER_DEFINED] * 2 + [UNUSED]
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": texts + special,
        "token_type": types,
        "merges": list(MERGES),
        "bos_token_id": len(texts),
        "eos_token_id": len(texts) + 1,
    }
    return _metadata(values, changes)


SPM_WORDS = ["▁a", "▁ab", "ab", "bc", "▁h", "el", "lo", "ell", "ello", "▁hello", "▁▁", "▁▁▁▁"]
SPM_WORDS += ["é", "日本", "<b", "os", "os>"]  # <b and os> join to a control token


def spm_metadata(**changes: Any) -> Metadata:
    """<unk> <s> </s>, 256 byte tokens, letters and words; longer words score higher."""
    letters = sorted(set("▁abcehloprst<>.é日本"))
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    normal = sorted({*letters, *SPM_WORDS})
    special = ["<tool>", "\n\n", "\n\n\n", "<bos>"]
    texts += normal + special
    types += [NORMAL] * len(normal) + [USER_DEFINED] * 3 + [CONTROL]
    scores = [float(len(text)) - 0.01 * id for id, text in enumerate(texts)]
    values = {"model": "llama", "tokens": texts, "token_type": types, "scores": scores}
    return _metadata(values, changes)


def _metadata(values: dict[str, Any], changes: dict[str, Any]) -> Metadata:
    """`changes` by key without its prefix; None takes a key away."""
    merged = {_KEY + key: value for key, value in {**values, **changes}.items()}
    return Metadata({key: value for key, value in merged.items() if value is not None})


def merge_best(parts: list[str], rank: dict[tuple[str, str], float]) -> list[str]:
    """Join the neighbours of the lowest rank, the leftmost first, until none has a rank."""
    while True:
        pairs = [(rank[p], i) for i, p in enumerate(pairwise(parts)) if p in rank]
        if not pairs:
            return parts
        _, at = min(pairs)
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
