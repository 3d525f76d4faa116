"""Byte-level BPE: GPT-2's alphabet of 256 visible letters, ranked merges inside each word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from engine.errors import InputError
from engine.tokenizer.base import CONTROL, USER_DEFINED, Vocab
from engine.tokenizer.partition import PartitionedTokenizer
from engine.tokenizer.pretokenize import PreTokenizer


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte: itself where it is visible, else one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + n): byte for n, byte in enumerate(hidden)
    }


BYTE_OF_LETTER = _byte_letters()


def letters_to_bytes(text: str) -> bytes:
    """The bytes a token's letters stand for; any other character stands for its own UTF-8."""
    try:
        return bytes([BYTE_OF_LETTER[letter] for letter in text])
    except KeyError:
        return b"".join(
            bytes([BYTE_OF_LETTER[letter]]) if letter in BYTE_OF_LETTER else letter.encode()
            for letter in text
        )


class BpeTokenizer(PartitionedTokenizer):
    """`merges` are "left right" in order of rank; InputError when one makes no token."""

    def __init__(self, vocab: Vocab, merges: Sequence[str], pre: PreTokenizer) -> None:
        super().__init__(vocab)
        self._bpe = tokenizers.Tokenizer(self._model(merges, pre.ignore_merges))
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in pre.patterns),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def _model(self, merges: Sequence[str], ignore_merges: bool) -> models.BPE:
        apart = {t for t, k in zip(self._texts, self._types, strict=True) if _is_special(k)}
        ids = {text: id for id, text in enumerate(self._texts) if text not in apart}
        pairs: list[Any] = [tuple(merge.split(" ", 1)) for merge in merges]
        try:  # the library looks at every merge anyway, and so much faster
            return models.BPE(vocab=ids, merges=pairs, ignore_merges=ignore_merges)
        except Exception:  # something is no pair of tokens: it has no type of its own for that
            pairs = _usable(merges, ids, apart)
            return models.BPE(vocab=ids, merges=pairs, ignore_merges=ignore_merges)

    def _encode_plain(self, text: str) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids

    def _unescape(self, text: str) -> bytes:
        return letters_to_bytes(text)


def _is_special(type: int) -> bool:
    return type in (CONTROL, USER_DEFINED)


def _usable(
    merges: Sequence[str], ids: Mapping[str, int], apart: Set[str]
) -> list[tuple[str, str]]:
    """The merges that make a token of `ids` from two; those that touch tokens `apart` are left out.

    InputError for any other.
    """
    pairs = []
    for rank, merge in enumerate(merges):
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut > 0 and left in ids and right in ids and left + right in ids:
            pairs.append((left, right))
        elif cut < 0 or not all(t in ids or t in apart for t in (left, right, left + right)):
            raise InputError(f"tokenizer.ggml.merges: merge {rank} is {merge!r:.60}, no tokens")
    return pairs
