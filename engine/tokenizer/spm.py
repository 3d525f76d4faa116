"""sentencepiece BPE: merges by score over the whole text, spaces as U+2581, bytes as fallback."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import sentencepiece

from engine.errors import InputError
from engine.tokenizer.base import BYTE, CONTROL, NORMAL, UNKNOWN, Vocab
from engine.tokenizer.partition import PartitionedTokenizer
from engine.tokenizer.proto import bpe_model

SPACE = "\u2581"
_NO_TOKEN = "\uffff"


def spaces_to_bytes(text: str) -> bytes:
    return text.replace(SPACE, " ").encode()


class SpmTokenizer(PartitionedTokenizer):
    """`scores` rank the merges, highest first.

    `unknown` is the id for a character that is neither a token nor, for want of byte tokens,
    spelled in bytes.  With `add_space_prefix` a space goes before the text and before each piece of
    it that follows a special token.
    """

    def __init__(
        self, vocab: Vocab, scores: Sequence[float], unknown: int | None, add_space_prefix: bool
    ) -> None:
        super().__init__(vocab, prefix=" " if add_space_prefix else "")
        self.strips_first_space = add_space_prefix
        bytes_known = sum(type == BYTE for type in vocab.types) == 256
        if unknown is None and not bytes_known:
            raise InputError("the vocabulary has neither an unknown token nor all 256 byte tokens")
        types = self._model_types(unknown, bytes_known)
        # the library insists on an unknown token; bytes forestall it
        more = [(_NO_TOKEN, 0.0, UNKNOWN)] if unknown is None else []
        pieces = chain(zip(vocab.texts, scores, types, strict=True), more)
        self._spm = sentencepiece.SentencePieceProcessor()
        try:
            self._spm.LoadFromSerializedProto(bpe_model(pieces, bytes_known))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the sentencepiece vocabulary cannot be used: {reason}") from None

    def _model_types(self, unknown: int | None, bytes_known: bool) -> list[int]:
        """Types for the library.

        Special tokens are cut out of text before it sees them, so all are CONTROL there: never made
        from plain text.
        """
        keep = (NORMAL, BYTE) if bytes_known else (NORMAL,)
        types = [type if type in keep else CONTROL for type in self._types]
        if unknown is not None:
            types[unknown] = UNKNOWN
        return types

    def _encode_plain(self, text: str) -> list[int]:
        return self._spm.EncodeAsIds(text)

    def _unescape(self, text: str) -> bytes:
        return spaces_to_bytes(text)
