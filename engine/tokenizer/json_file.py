"""tokenizer.json, read and run by the `tokenizers` package."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import tokenizers

from engine.errors import InputError
from engine.tokenizer.base import (
    BYTE,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Tokenizer,
    Vocab,
)
from engine.tokenizer.bpe import letters_to_bytes
from engine.tokenizer.settings import FolderSettings
from engine.tokenizer.spm import spaces_to_bytes

_BYTE_TEXT = re.compile("<0x[0-9A-F]{2}>")
# Ids are padded to a round number at times; more holes than tokens is a damaged file.
_MAX_HOLES = 2


class JsonTokenizer(Tokenizer):
    def __init__(self, vocab: Vocab, engine: tokenizers.Tokenizer, decoders: list[Any]) -> None:
        super().__init__(vocab)
        self._engine = engine
        self._lock = threading.Lock()
        kinds = {decoder.get("type"): decoder for decoder in decoders}
        self._letters = "ByteLevel" in kinds
        metaspace = kinds.get("Metaspace", {"prepend_scheme": "never"})
        self.strips_first_space = "Strip" in kinds or metaspace.get("prepend_scheme") != "never"

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        with self._lock:  # the switch belongs to the tokenizer, not to the call
            self._engine.encode_special_tokens = not parse_special
            return self._engine.encode(text, add_special_tokens=False).ids

    def _unescape(self, text: str) -> bytes:
        return letters_to_bytes(text) if self._letters else spaces_to_bytes(text)


def read_tokenizer_json(path: Path, settings: FolderSettings) -> Tokenizer:
    """The tokenizer in the file `path`; InputError when it cannot be read or used."""
    try:
        engine = tokenizers.Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exception, and for some files a Rust panic
        raise InputError(f"{path}: cannot be used: {' '.join(str(error).split())}") from None
    engine.no_padding()
    engine.no_truncation()
    decoders = _decoders(engine)
    ids = engine.get_vocab(with_added_tokens=True)
    texts = _texts(path, ids)
    bos = settings.special("bos", ids)
    eos = settings.special("eos", ids)
    ends = settings.end_ids(len(texts))
    vocab = Vocab(
        texts=texts,
        types=_types(engine, texts, ids, by_bytes="ByteFallback" in {d["type"] for d in decoders}),
        bos=bos,
        eos=eos,
        add_bos=_adds_bos(engine, settings, bos),
        end_ids=ends if eos is None else ends | {eos},
        chat_template=settings.chat_template(),
    )
    return JsonTokenizer(vocab, engine, decoders)


def _decoders(engine: tokenizers.Tokenizer) -> list[Any]:
    """The steps that turn tokens back to text, as tokenizer.json spells them."""
    if engine.decoder is None:
        return []
    decoder = json.loads(engine.decoder.__getstate__())
    return decoder.get("decoders", [decoder])


def _texts(path: Path, ids: dict[str, int]) -> list[str]:
    n_vocab = max(ids.values(), default=-1) + 1
    if not 0 < n_vocab <= _MAX_HOLES * len(ids):
        raise InputError(f"{path}: {len(ids)} tokens with ids up to {n_vocab - 1}")
    texts = [f"[EMPTY_{id}]" for id in range(n_vocab)]
    for text, id in ids.items():
        texts[id] = text
    return texts


def _types(
    engine: tokenizers.Tokenizer, texts: list[str], ids: dict[str, int], *, by_bytes: bool
) -> list[int]:
    types = [UNUSED] * len(texts)
    for text, id in ids.items():
        types[id] = BYTE if by_bytes and _BYTE_TEXT.fullmatch(text) else NORMAL
    for id, token in engine.get_added_tokens_decoder().items():
        types[id] = CONTROL if token.special else USER_DEFINED
    return types


def _adds_bos(engine: tokenizers.Tokenizer, settings: FolderSettings, bos: int | None) -> bool:
    """The post-processor knows where the settings do not say."""
    says = settings.add_bos()
    if bos is None or says is not None:
        return bos is not None and bool(says)
    return engine.encode("a", add_special_tokens=True).ids[:1] == [bos]
