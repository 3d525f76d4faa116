"""Tasks whose answer is nowhere in the text: the words that occur most often in all of it."""

from __future__ import annotations

from random import Random

from tools.ruler.puzzle import Puzzle, Question
from tools.ruler.words import new_words

COMMON, OFTEN, SELDOM = 4, 20, 2  # common words; times that these and the others occur
FREQUENT, EXPONENT = 3, 2.0  # words asked for; of the power law that frequencies follow


def common(stream: Random, filler: Random, n: int) -> Puzzle:
    """A few words occur often, n others seldom."""
    chosen = new_words(stream, COMMON)
    others = [word for word in new_words(filler, n) if word not in chosen]
    words = [*chosen * OFTEN, *others * SELDOM]
    return _asked(words, chosen, chosen + others, filler)


def frequent(stream: Random, filler: Random, n: int) -> Puzzle:
    """Frequencies fall with the rank by a power law, as in a language; some n words in all."""
    # so few words that the first ranks still differ clearly
    least = 30
    share = (least + n) / sum(rank**-EXPONENT for rank in range(1, 100))
    counts = [round(share * rank**-EXPONENT) for rank in range(1, 100)]
    vocabulary = new_words(stream, sum(count > 0 for count in counts))
    words = [word for word, count in zip(vocabulary, counts, strict=False) for _ in range(count)]
    return _asked(words, vocabulary[:FREQUENT], vocabulary, filler)


def _asked(words: list[str], chosen: list[str], known: list[str], stream: Random) -> Puzzle:
    stream.shuffle(words)
    introduction = (
        "The following list has words of an unknown language. Keep track of how often each occurs: "
        "you will be asked about them afterwards."
    )
    asked = f"{len(chosen)} words that occur most often in the list"
    question = Question(
        f"Which are the {asked}? Answer with these words only, one per line.",
        f"The {asked}, separated by commas, are",
        tuple(chosen),
    )
    return Puzzle(f"{introduction}\n\n{' '.join(words)}", (question,), tuple(known))
