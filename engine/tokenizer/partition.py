"""Cut text at special tokens, the longest tokens first."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping

from engine.tokenizer.base import CONTROL, UNKNOWN, USER_DEFINED, Tokenizer, Vocab


class Partition:
    """Splits text into the ids of the special tokens found in it and the text between them.

    Longer tokens take their places before shorter ones and, of one length, earlier places go first:
    the order that llama.cpp uses, so a run of 40 newlines is cut the same way.
    """

    def __init__(self, tokens: Mapping[str, int]) -> None:
        by_length: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for text, id in tokens.items():
            by_length[len(text)][text] = id
        self._by_length = sorted(by_length.items(), reverse=True)
        self._starts = _start_pattern(tokens)

    def split(self, text: str) -> Iterator[int | str]:
        """The ids and the non-empty texts between them, in order."""
        end = 0
        for start, length, id in self._find(text):
            if start > end:
                yield text[end:start]
            yield id
            end = start + length
        if end < len(text):
            yield text[end:]

    def _find(self, text: str) -> list[tuple[int, int, int]]:
        """(start, length, id) of every special token in `text`, by start."""
        starts = [m.start() for m in self._starts.finditer(text)] if self._starts else []
        taken = bytearray(len(text) if starts else 0)
        found = []
        for length, tokens in self._by_length:
            for start in starts:
                id = tokens.get(text[start : start + length])
                if id is not None and taken.find(1, start, start + length) < 0:
                    taken[start : start + length] = b"\1" * length
                    found.append((start, length, id))
            starts = [start for start in starts if not taken[start]]
        return sorted(found)


def _start_pattern(tokens: Mapping[str, int]) -> re.Pattern[str] | None:
    """Matches where a token may start.

    Two characters of each are enough: 6,000 tokens cost the scan no more than six do, where an
    alternation of whole tokens would try them all at every `<`.
    """
    seconds: defaultdict[str, set[str]] = defaultdict(set)
    for text in tokens:
        seconds[text[0]].add(text[1:2])
    if not seconds:
        return None
    branches = (
        re.escape(first) + ("" if "" in after else f"[{''.join(map(re.escape, sorted(after)))}]")
        for first, after in sorted(seconds.items())
    )
    return re.compile(f"(?={'|'.join(branches)})")


class PartitionedTokenizer(Tokenizer):
    """Special tokens are found here; the text between them goes to `_encode_plain`, piece by piece.

    `prefix` goes before each piece that starts the text or follows a special token.
    """

    def __init__(self, vocab: Vocab, prefix: str = "") -> None:
        super().__init__(vocab)
        self._prefix = prefix
        self._always = self._partition(USER_DEFINED)
        self._parsed = self._partition(USER_DEFINED, CONTROL, UNKNOWN)

    def _partition(self, *types: int) -> Partition:
        kinds = enumerate(self._types)
        return Partition({self._texts[id]: id for id, type in kinds if type in types})

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        prefix = self._prefix
        for part in (self._parsed if parse_special else self._always).split(text):
            if isinstance(part, int):
                ids.append(part)
                prefix = self._prefix
            else:
                ids += self._encode_plain(prefix + part)
                prefix = ""
        return ids

    @abstractmethod
    def _encode_plain(self, text: str) -> list[int]:
        """The ids of text in which no special token is to be found."""
