"""Streamed text joins up to the decoded whole and never shows half a character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tiny_vocabularies import bpe_metadata, spm_metadata

from engine.tokenizer import StreamDecoder, tokenizer_from_metadata

TOKENIZERS = [tokenizer_from_metadata(make()) for make in (bpe_metadata, spm_metadata)]
CASES = st.sampled_from(TOKENIZERS).flatmap(
    lambda t: st.tuples(st.just(t), st.lists(st.integers(0, t.n_vocab - 1), max_size=30))
)


@given(CASES)
def test_pushed_text_joins_up_to_the_decoded_whole(case):
    tokenizer, ids = case
    stream = StreamDecoder(tokenizer)
    parts = [stream.push(id) for id in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids)


@given(st.text(st.characters(exclude_characters="\ufffd▁\n", exclude_categories=["Cs"])))
def test_valid_text_never_shows_a_replacement_character(text):
    for tokenizer in TOKENIZERS:
        stream = StreamDecoder(tokenizer)
        parts = [stream.push(id) for id in tokenizer.encode(text)]
        assert "\ufffd" not in "".join(parts)
        assert stream.flush() == ""
        assert "".join(parts) == text


def test_a_character_of_four_tokens_appears_with_its_last():
    tokenizer = tokenizer_from_metadata(spm_metadata(add_space_prefix=False))
    stream = StreamDecoder(tokenizer)
    assert [stream.push(id) for id in tokenizer.encode("👍")] == ["", "", "", "👍"]


def test_an_incomplete_character_at_the_end_is_replaced_by_flush():
    tokenizer = tokenizer_from_metadata(spm_metadata(add_space_prefix=False))
    stream = StreamDecoder(tokenizer)
    assert stream.push(tokenizer.encode("é👍")[-4]) == ""
    assert stream.flush() == "\ufffd"


def test_text_that_continues_keeps_the_space_of_its_first_word():
    tokenizer = tokenizer_from_metadata(spm_metadata())
    (hello,) = tokenizer.encode("hello")
    assert StreamDecoder(tokenizer).push(hello) == "hello"
    assert StreamDecoder(tokenizer, at_start=False).push(hello) == " hello"
