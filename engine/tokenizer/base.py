"""What every tokenizer shares: its vocabulary, special tokens cut out of text, and decoding."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type

# Control tokens with one of these names end a turn or a document, whatever else the file says.
_NAMES = """
    </s> <eos> <EOT> _<EOT> [EOT] [EOS] <turn|> <end_of_turn> <end_of_utterance> <|eot_id|>
    <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <|endoftext|> <|end_of_text|>
    <\uff5cend\u2581of\u2581sentence\uff5c>
    <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]
    <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""
_END_NAMES = frozenset(_NAMES.split())
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Vocab:
    """Token texts and types by id, with the ids and switches that a model file adds to them.

    `texts` are as the file spells them (byte-level letters, U+2581 for spaces); `types` are
    GGUF's token types.  `end_ids` are those the file names; control tokens with a usual
    end-of-generation name join them in `Tokenizer.end_ids`.
    """

    texts: Sequence[str]
    types: Sequence[int]
    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False
    end_ids: frozenset[int] = frozenset()
    chat_template: str | None = None


class Tokenizer(ABC):
    """Text to token ids and back.

    Text never becomes a control token unless `parse_special` asks for it; user-defined tokens are
    always matched.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._texts = vocab.texts
        self._types = vocab.types
        self._bytes: dict[int, bytes] = {}
        self.n_vocab = len(vocab.texts)
        self.bos = vocab.bos
        self.eos = vocab.eos
        self.add_bos = vocab.add_bos
        self.end_ids = vocab.end_ids | self._named_end_ids()
        self.chat_template = vocab.chat_template
        # sentencepiece puts a space before the first word: decoding takes it away again
        self.strips_first_space = False

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """The ids of `text`, after BOS when `add_special` and the model wants one.

        With `parse_special` the texts of control tokens become those tokens.  Lone surrogates, as
        Python makes of command-line bytes that are not UTF-8, count as U+FFFD.
        """
        head = [self.bos] if add_special and self.add_bos and self.bos is not None else []
        return head + self._encode(_SURROGATE.sub("\ufffd", text), parse_special)

    @abstractmethod
    def _encode(self, text: str, parse_special: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        data = b"".join(self.pieces(ids, skip_special=skip_special))
        return data.decode("utf-8", errors="replace")

    def pieces(
        self, ids: Sequence[int], *, skip_special: bool = True, at_start: bool = True
    ) -> Iterator[bytes]:
        """The bytes that each id adds to a text; `at_start` says that the text begins here."""
        strip = at_start and self.strips_first_space
        for token in ids:
            piece = self.token_bytes(token, special=not skip_special)
            if strip and piece:
                strip = False
                piece = piece.removeprefix(b" ")
            yield piece

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        """The bytes a token adds; control and unknown tokens add theirs only if `special`."""
        self._check(id)
        if self._types[id] in (CONTROL, UNKNOWN) and not special:
            return b""
        piece = self._bytes.get(id)
        if piece is None:
            piece = self._bytes[id] = self._piece(self._texts[id], self._types[id])
        return piece

    def token_text(self, id: int) -> str:
        """A token as the vocabulary spells it."""
        self._check(id)
        return self._texts[id]

    def _piece(self, text: str, type: int) -> bytes:
        if type == NORMAL:
            return self._unescape(text)
        if type == BYTE:
            return bytes([int(text[3:5], 16)])
        # unused ids pad the vocabulary: nothing was meant to read them
        return b"" if type == UNUSED else text.encode()

    @abstractmethod
    def _unescape(self, text: str) -> bytes:
        """The bytes that a normal token's text stands for."""

    def _named_end_ids(self) -> frozenset[int]:
        ids = (i for i, type in enumerate(self._types) if type == CONTROL)
        return frozenset(i for i in ids if self._texts[i] in _END_NAMES)

    def _check(self, id: int) -> None:
        if not 0 <= id < self.n_vocab:
            raise InputError(f"token id {id} is outside the vocabulary of {self.n_vocab} tokens")
