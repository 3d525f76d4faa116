"""Someone who reads the text of a prompt and answers without a mistake, and puzzles to ask."""

from __future__ import annotations

import re
from collections import Counter

from tools.ruler.tasks import Fitter


def characters(seed: int = 42, room: int = 3000, completes: bool = False) -> Fitter:
    """Puzzles measured in characters."""
    return Fitter(seed, room, completes, len)


def solve(message: str) -> list[str]:
    """The strings that `message` asks for, found by a way of their own."""
    text, question = message.rsplit("\n\n", 1)
    if found := re.search("access codes? of the (.*)\\?", question):
        return re.findall(rf"access code of the {found[1]} is (\S+)\.", text)
    if found := re.search(r"have the value (\d+)", question):
        value, names = {}, []
        for name, given in re.findall(r"variable (\w+) is set to (\w+)\.", text):
            value[name] = value.get(given, given)
            if value[name] == found[1]:
                names.append(name)
        return names
    (n,) = re.findall(r"Which are the (\d+) words", question)
    ranks = Counter(text.split("\n\n")[1].split()).most_common(int(n) + 1)
    assert ranks[-2][1] > ranks[-1][1], "which words are the most frequent is a matter of opinion"
    return [word for word, _ in ranks[:-1]]
