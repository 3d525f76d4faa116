"""sentencepiece BPE against a slow merge loop, byte fallback and the space before words."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_vocabularies import spm_metadata

from engine.errors import InputError
from engine.tokenizer import tokenizer_from_metadata

TINY = tokenizer_from_metadata(spm_metadata(add_space_prefix=False))
PREFIXED = tokenizer_from_metadata(spm_metadata())
TOKENS = spm_metadata().list("tokenizer.ggml.tokens")
SCORES = spm_metadata().list("tokenizer.ggml.scores")
TYPES = spm_metadata().list("tokenizer.ggml.token_type")
TEXTS = st.text(st.sampled_from("abcehlo <b>os.é日本👍\n\t"), max_size=30)


def texts(ids: list[int]) -> list[str]:
    return [TOKENS[id] for id in ids]


def slow_encode(text: str) -> list[str]:
    """Join the neighbours whose union scores best, the leftmost first; spell the rest in bytes."""
    score = {t: s for t, s, k in zip(TOKENS, SCORES, TYPES, strict=True) if k == 1}
    parts = list(text.replace(" ", "▁"))
    while True:
        joined = [a + b for a, b in pairwise(parts)]
        best = [(-score[text], at) for at, text in enumerate(joined) if text in score]
        if not best:
            break
        _, at = min(best)
        parts[at : at + 2] = [joined[at]]
    out = []
    for part in parts:
        out += [part] if part in score else [f"<0x{byte:02X}>" for byte in part.encode()]
    return out


@given(st.text(st.sampled_from("abcehlo <b>os.é日本👍\t"), max_size=30))
def test_encode_equals_slow_merging_by_score(text):
    assert texts(TINY.encode(text)) == slow_encode(text)


@given(st.text() | TEXTS)
def test_decode_undoes_encode(text):
    text = text.replace("▁", "")
    # after a special token the prefix is another space, which nothing tells from one of the text
    parted = "\n\n" in text or "<tool>" in text
    for tokenizer in (TINY,) if parted else (TINY, PREFIXED):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, add_special=True)) == text


@given(TEXTS)
def test_text_never_becomes_a_control_token_unless_asked(text):
    ids = TINY.encode(f"{text}<bos>{text}<s></s>")
    assert not {TOKENS.index(special) for special in ("<bos>", "<s>", "</s>", "<unk>")} & set(ids)


def test_the_prefix_goes_before_the_text_and_after_each_special_token():
    ids = PREFIXED.encode("hello</s>hello<tool>a", parse_special=True)
    assert texts(ids) == ["▁hello", "</s>", "▁hello", "<tool>", "▁a"]
    assert texts(PREFIXED.encode(" a")) == ["▁", "▁a"]
    assert texts(TINY.encode("hello</s>a", parse_special=True)) == ["h", "ello", "</s>", "a"]


def test_runs_of_newlines_take_the_longest_user_defined_token_first():
    assert texts(TINY.encode("\n" * 8)) == ["\n\n\n", "\n\n\n", "\n\n"]
    assert texts(TINY.encode("a\na")) == ["a", "<0x0A>", "a"]


def test_bos_and_eos_default_to_the_format_s():
    assert (PREFIXED.bos, PREFIXED.eos, PREFIXED.add_bos) == (1, 2, True)
    assert PREFIXED.encode("", add_special=True) == [1]
    assert PREFIXED.encode("") == []
    assert 2 in PREFIXED.end_ids


def test_byte_tokens_add_one_byte_and_the_unknown_token_none():
    assert TINY.token_bytes(TOKENS.index("<0xF0>")) == b"\xf0"
    assert TINY.token_bytes(0) == b""
    assert TINY.decode([TOKENS.index("<0xF0>"), TOKENS.index("a")]) == "\ufffda"


def test_without_byte_tokens_unknown_characters_are_the_unknown_token():
    kept = [id for id, type in enumerate(TYPES) if type != 6]
    tokenizer = tokenizer_from_metadata(
        spm_metadata(
            tokens=[TOKENS[id] for id in kept],
            token_type=[TYPES[id] for id in kept],
            scores=[SCORES[id] for id in kept],
            add_space_prefix=False,
        )
    )
    assert tokenizer.encode("a👍") == [tokenizer.encode("a")[0], 0]


@pytest.mark.parametrize("missing_types", [False, True])
def test_a_vocabulary_without_an_unknown_token_loads_when_it_has_all_bytes(missing_types):
    types = None if missing_types else [1 if type == 2 else type for type in TYPES]
    tokenizer = tokenizer_from_metadata(spm_metadata(token_type=types, add_space_prefix=False))
    assert texts(tokenizer.encode("👍")) == ["<0xF0>", "<0x9F>", "<0x91>", "<0x8D>"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "tokenizer.ggml.scores' is missing"),
        ({"scores": [0.0]}, "scores has 1 entries"),
        ({"scores": [math.nan] * len(TOKENS)}, "finite"),
        ({"scores": ["x"] * len(TOKENS)}, "finite"),
        ({"tokens": [*TOKENS[:-1], "a"]}, "'a' twice"),
        ({"unknown_token_id": len(TOKENS)}, "unknown_token_id is .* outside"),
        ({"token_type": [1] * len(TOKENS)}, "neither an unknown token nor all 256 byte tokens"),
    ],
)
def test_bad_metadata_is_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as refused:
        tokenizer_from_metadata(spm_metadata(**changes))
    assert "\n" not in str(refused.value)
