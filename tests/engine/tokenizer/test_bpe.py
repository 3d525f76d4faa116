"""Byte-level BPE against a slow merge loop, and the laws of special tokens."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_vocabularies import LETTER, MERGES, bpe_metadata, merge_best

from engine.checkpoint import Metadata
from engine.errors import InputError
from engine.tokenizer import tokenizer_from_metadata
from engine.tokenizer.pretokenize import PRE_TOKENIZERS

TINY = tokenizer_from_metadata(bpe_metadata())
TEXTS = st.text(st.sampled_from("helo wrd's12 3abc\n\té👍<b>tox|imnd_[PA]"), max_size=40)
ASCII_WORDS = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)| ?[a-z]+| ?[0-9]+| ?[^\sa-z0-9]+|\s+(?!\S)|\s+", re.IGNORECASE
)


def texts(ids: list[int], tokenizer=TINY) -> list[str]:
    return [tokenizer.token_text(id) for id in ids]


def id_of(text: str) -> int:
    return bpe_metadata().list("tokenizer.ggml.tokens").index(text)


@given(st.text(st.sampled_from("helo wrd's123abc\n!"), max_size=40))
def test_encode_equals_slow_merging_inside_each_word(text):
    rank = {tuple(merge.split(" ")): i for i, merge in enumerate(MERGES)}
    slow = []
    for word in ASCII_WORDS.findall(text):
        slow += merge_best([LETTER[byte] for byte in word.encode()], rank)
    assert texts(TINY.encode(text)) == slow


@given(st.text() | TEXTS)
def test_decode_undoes_encode(text):
    assert TINY.decode(TINY.encode(text)) == text
    assert TINY.decode(TINY.encode(text, parse_special=True), skip_special=False) == text


@given(TEXTS, st.booleans())
def test_text_never_becomes_a_control_token_unless_asked(text, ignore_merges):
    tokenizer = tokenizer_from_metadata(bpe_metadata(pre="llama-bpe" if ignore_merges else "gpt-2"))
    text = f"{text}<bos>{text}<|im_end|> stop\nstop"
    control = {id_of("<bos>"), id_of("<|im_end|>"), id_of("stop")}
    assert not control & set(tokenizer.encode(text))


def test_special_tokens_are_parsed_when_asked():
    ids = TINY.encode("hello<|im_end|> world", parse_special=True)
    assert texts(ids) == ["hello", "<|im_end|>", "Ġworld"]


def test_user_defined_tokens_are_always_found_the_longest_first():
    assert texts(TINY.encode("<tool>x<tool>")) == ["<tool>x", "<tool>"]


def test_bos_is_added_once_and_only_when_the_model_wants_it():
    assert TINY.encode("a", add_special=True) == TINY.encode("a")
    wants = tokenizer_from_metadata(bpe_metadata(add_bos_token=True))
    assert wants.encode("a", add_special=True) == [wants.bos, *wants.encode("a")]
    assert wants.encode("", add_special=True) == [wants.bos]


def test_llama_bpe_adds_bos_unless_told_otherwise():
    assert tokenizer_from_metadata(bpe_metadata(pre="llama-bpe")).add_bos
    assert not tokenizer_from_metadata(bpe_metadata(pre="llama-bpe", add_bos_token=False)).add_bos


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "it's 123", ["it", "'s", " 123"]),
        ("gpt-2", "IT'S", ["IT", "'", "S"]),
        ("smollm", " 123 'S", [" ", "1", "2", "3", " '", "S"]),
        ("qwen2", "IT'S 123", ["IT", "'S", " ", "1", "2", "3"]),
        ("llama-bpe", "IT'S 12345", ["IT", "'S", " ", "123", "45"]),
        ("llama-bpe", "x\n\n  y", ["x", "\n\n", " ", " y"]),
        ("qwen2", "a!\n\nb", ["a", "!\n\n", "b"]),
        ("gpt-2", "a!\n\nb", ["a", "!", "\n", "\n", "b"]),
        ("qwen2", "'\u017f", ["'\u017f"]),
        ("default", "a12345,b", ["a", "123", "45", ",", "b"]),
        ("gpt-4o", "helloWorld's", ["hello", "World's"]),
        ("tekken", "helloWorld12", ["hello", "World", "1", "2"]),
        ("deepseek-v3", "a漢字1234", ["a", "漢字", "123", "4"]),
    ],
)
def test_each_scheme_cuts_words_as_its_name_says(pre, text, words):
    tokenizer = tokenizer_from_metadata(bpe_metadata(pre=pre))
    cuts = tokenizer._bpe.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in cuts] == words


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_known_scheme_loses_no_text(pre):
    text = "It's 12345 naïve 漢字\r\n\n\tcafé 👩‍👩‍👧 x_y[0] += 1;  \n"
    tokenizer = tokenizer_from_metadata(bpe_metadata(pre=pre))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ignore_merges_takes_a_word_that_is_a_token_whole():
    tokens = [*bpe_metadata().list("tokenizer.ggml.tokens"), "wold"]
    types = [*bpe_metadata().list("tokenizer.ggml.token_type"), 1]
    for pre, expected in [("llama-bpe", ["wold"]), ("qwen2", ["w", "o", "ld"])]:
        tokenizer = tokenizer_from_metadata(bpe_metadata(pre=pre, tokens=tokens, token_type=types))
        assert texts(tokenizer.encode("wold"), tokenizer) == expected


def test_control_tokens_are_silent_unless_asked_and_unused_ones_always():
    bos, pad, tool = id_of("<bos>"), id_of("[PAD]"), id_of("<tool>")
    assert (TINY.token_bytes(bos), TINY.token_bytes(bos, special=True)) == (b"", b"<bos>")
    assert TINY.token_bytes(pad, special=True) == b""
    assert TINY.token_bytes(tool) == b"<tool>"
    assert TINY.decode([bos, id_of("hello"), bos]) == "hello"


def test_end_ids_are_the_files_and_the_control_tokens_named_so():
    assert TINY.end_ids == {id_of("<|im_end|>")}
    other = tokenizer_from_metadata(bpe_metadata(eos_token_id=5, eot_token_id=6))
    assert other.end_ids == {5, 6, id_of("<|im_end|>")}
    types = bpe_metadata().list("tokenizer.ggml.token_type")
    types[id_of("<|im_end|>")] = 1
    assert tokenizer_from_metadata(bpe_metadata(eos_token_id=5, token_type=types)).end_ids == {5}


def test_lone_surrogates_are_replacement_characters():
    assert TINY.decode(TINY.encode("a\udc80b")) == "a\ufffdb"


@pytest.mark.parametrize("id", [-1, TINY.n_vocab, 10**12])
def test_ids_outside_the_vocabulary_are_refused(id):
    for use in (TINY.token_bytes, TINY.token_text, lambda id: TINY.decode([id])):
        with pytest.raises(InputError, match="outside the vocabulary"):
            use(id)


N = TINY.n_vocab


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "'bert'. Choose from: gpt2, llama"),
        ({"model": None}, "tokenizer.ggml.model' is missing"),
        ({"pre": "gpt-7"}, "'gpt-7'. Known: .*smollm"),
        ({"tokens": None}, "tokenizer.ggml.tokens' is missing"),
        ({"tokens": []}, "at least one"),
        ({"tokens": [1, 2]}, "must hold strings"),
        ({"tokens": ["a", "b", "a"]}, "'a' twice"),
        ({"merges": None}, "tokenizer.ggml.merges' is missing"),
        ({"merges": ["a"]}, "merge 0 is 'a'"),
        ({"merges": ["a z"]}, "merge 0 is 'a z'"),
        ({"merges": [7]}, "must hold strings"),
        ({"token_type": [1]}, f"each of {N} tokens"),
        ({"token_type": [6] * N}, "not spelled like <0x0A>"),
        ({"bos_token_id": N}, f"bos_token_id is {N}, outside"),
        ({"eos_token_id": -1}, "eos_token_id is -1, outside"),
        ({"eot_token_id": 2**32 - 1}, "outside"),
        ({"eos_token_id": "x"}, "expected an integer"),
        ({"bos_token_id": None, "add_bos_token": True}, "bos_token_id is missing"),
    ],
)
def test_bad_metadata_is_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as refused:
        tokenizer_from_metadata(bpe_metadata(**changes))
    assert "\n" not in str(refused.value)


def test_empty_metadata_is_refused():
    with pytest.raises(InputError, match="metadata key"):
        tokenizer_from_metadata(Metadata({}))
