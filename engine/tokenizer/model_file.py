"""tokenizer.model: a sentencepiece model, turned into the metadata a GGUF file would hold."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from engine.checkpoint import Metadata
from engine.errors import InputError
from engine.gguf_file import map_file
from engine.tokenizer import proto
from engine.tokenizer.base import NORMAL, Tokenizer
from engine.tokenizer.metadata import tokenizer_from_metadata
from engine.tokenizer.settings import FolderSettings


def read_tokenizer_model(path: Path, settings: FolderSettings) -> Tokenizer:
    """The tokenizer in the file `path`; InputError when it is damaged or not a BPE model."""
    try:
        values = _values(path, proto.Message(bytes(map_file(path))))
    except (ValueError, struct.error) as error:
        raise InputError(f"{path}: not a sentencepiece model: {error}") from None
    ids = {text: id for id, text in enumerate(values["tokens"])}
    values |= {
        "bos_token_id": settings.special("bos", ids),
        "eos_token_id": settings.special("eos", ids),
        "add_bos_token": settings.add_bos(),
    }
    known = {f"tokenizer.ggml.{key}": v for key, v in values.items() if v is not None}
    tokenizer = tokenizer_from_metadata(Metadata(known, str(path)))
    tokenizer.end_ids |= settings.end_ids(tokenizer.n_vocab)
    tokenizer.chat_template = settings.chat_template()
    return tokenizer


def _values(path: Path, model: proto.Message) -> dict[str, Any]:
    """The vocabulary by GGUF key; its types are sentencepiece's own numbers."""
    normalizer = proto.Message(model.bytes(proto.NORMALIZER))
    if proto.Message(model.bytes(proto.TRAINER)).int(proto.MODEL_TYPE, proto.UNIGRAM) != proto.BPE:
        raise InputError(f"{path}: not a BPE model; other sentencepiece kinds are not supported")
    if normalizer.bytes(proto.CHARSMAP) or normalizer.int(proto.REMOVE_EXTRA_WHITESPACES, 1):
        raise InputError(f"{path}: the model rewrites its input, which is not supported")
    pieces = [proto.Message(piece) for piece in model.all(proto.PIECES)]
    return {
        "model": "llama",
        "tokens": [piece.bytes(proto.PIECE).decode() for piece in pieces],
        "scores": [struct.unpack("<f", piece.bytes(proto.SCORE, bytes(4)))[0] for piece in pieces],
        "token_type": [piece.int(proto.TYPE, NORMAL) for piece in pieces],
        "add_space_prefix": bool(normalizer.int(proto.ADD_DUMMY_PREFIX, 1)),
    }
