"""A tokenizer from a model file's metadata: the keys tokenizer.ggml.*.

Only the library that the vocabulary at hand needs is imported.
"""

from __future__ import annotations

import math
import re

from engine.checkpoint import Metadata
from engine.errors import InputError
from engine.tokenizer.base import BYTE, NORMAL, UNKNOWN, Tokenizer, Vocab
from engine.tokenizer.pretokenize import pre_tokenizer

_KEY = "tokenizer.ggml."
_BYTE_TEXT = re.compile("<0x[0-9A-F]{2}>")
_END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


def tokenizer_from_metadata(meta: Metadata) -> Tokenizer:
    """The tokenizer a GGUF file describes: byte-level BPE ("gpt2") or sentencepiece ("llama").

    InputError when a key is missing, has the wrong type or length, or names an unknown scheme or an
    id outside the vocabulary.
    """
    model = meta.str(_KEY + "model")
    if model not in _MODELS:
        known = ", ".join(_MODELS)
        raise InputError(f"{_KEY}model is {model!r:.40}. Choose from: {known}")
    return _MODELS[model](meta)


def _bpe(meta: Metadata) -> Tokenizer:
    from engine.tokenizer.bpe import BpeTokenizer

    pre = pre_tokenizer(meta.str(_KEY + "pre", "default"))
    merges = meta.list(_KEY + "merges")
    if not all(isinstance(merge, str) for merge in merges):
        raise InputError(f"{_KEY}merges must hold strings")
    return BpeTokenizer(_vocab(meta, add_bos=pre.add_bos), merges, pre)


def _spm(meta: Metadata) -> Tokenizer:
    from engine.tokenizer.spm import SpmTokenizer

    vocab = _vocab(meta, add_bos=True, bos=1, eos=2)
    scores = meta.list(_KEY + "scores")
    if len(scores) != len(vocab.texts):
        raise InputError(f"{_KEY}scores has {len(scores)} entries for {len(vocab.texts)} tokens")
    if not all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores):
        raise InputError(f"{_KEY}scores must hold finite numbers")
    unknown = _id(meta, "unknown", len(vocab.texts))
    if unknown is None and UNKNOWN in vocab.types:
        unknown = vocab.types.index(UNKNOWN)
    return SpmTokenizer(vocab, scores, unknown, meta.bool(_KEY + "add_space_prefix", True))


_MODELS = {"gpt2": _bpe, "llama": _spm}


def _vocab(
    meta: Metadata, *, add_bos: bool, bos: int | None = None, eos: int | None = None
) -> Vocab:
    """`add_bos`, `bos` and `eos` are what this kind of vocabulary has where no key says."""
    texts = _texts(meta)
    n = len(texts)
    bos = _id(meta, "bos", n, bos)
    eos = _id(meta, "eos", n, eos)
    if bos is None and meta.bool(_KEY + "add_bos_token", False):
        raise InputError(f"{_KEY}add_bos_token is true, but {_KEY}bos_token_id is missing")
    ends = (eos if key == "eos" else _id(meta, key, n) for key in _END_KEYS)
    return Vocab(
        texts=texts,
        types=_types(meta, texts),
        bos=bos,
        eos=eos,
        add_bos=meta.bool(_KEY + "add_bos_token", add_bos and bos is not None),
        end_ids=frozenset(id for id in ends if id is not None),
        chat_template=meta.str("tokenizer.chat_template", None),
    )


def _texts(meta: Metadata) -> list[str]:
    tokens = meta.list(_KEY + "tokens")
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{_KEY}tokens must hold strings, and at least one")
    texts = tokens
    if not all(texts):  # the name llama.cpp gives an empty token; it has no text to be matched
        texts = [text or f"[EMPTY_{id}]" for id, text in enumerate(tokens)]
    if len(set(texts)) < len(texts):
        seen: set[str] = set()
        twice = next(text for text in texts if text in seen or seen.add(text))
        raise InputError(f"{_KEY}tokens holds {twice!r:.40} twice")
    return texts


def _types(meta: Metadata, texts: list[str]) -> list[int]:
    types = meta.list(_KEY + "token_type", None)
    if types is None:
        return [BYTE if _BYTE_TEXT.fullmatch(text) else NORMAL for text in texts]
    if len(types) != len(texts) or not all(isinstance(type, int) for type in types):
        raise InputError(f"{_KEY}token_type must hold an integer for each of {len(texts)} tokens")
    for text, type in zip(texts, types, strict=True):
        if type == BYTE and not _BYTE_TEXT.fullmatch(text):
            raise InputError(f"{_KEY}tokens: byte token {text!r:.40} is not spelled like <0x0A>")
    return types


def _id(meta: Metadata, name: str, n_vocab: int, default: int | None = None) -> int | None:
    """The special token `name`; a default is only used where it is inside the vocabulary."""
    key = f"{_KEY}{name}_token_id"
    id = meta.int(key, None)
    if id is None:
        return default if default is not None and default < n_vocab else None
    if not 0 <= id < n_vocab:
        raise InputError(f"{key} is {id}, outside the vocabulary of {n_vocab} tokens")
    return id
