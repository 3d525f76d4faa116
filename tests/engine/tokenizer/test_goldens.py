"""Real vocabularies give llama.cpp's ids on nasty text; goldens.json says how they were made.

One difference is meant and not among the cases: llama.cpp takes every token spelled `</s>` for a
control token.  In Qwen's vocabulary it is an ordinary word and in Gemma's an HTML tag, and so here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from engine.gguf_file import open_gguf
from engine.tokenizer import tokenizer_from_metadata

GOLDENS = json.loads(Path(__file__).with_name("goldens.json").read_text(encoding="utf-8"))

pytestmark = [
    pytest.mark.real,
    pytest.mark.parametrize("alias", ["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"]),
]


def test_real_vocabularies_give_the_ids_of_llama_cpp(alias, real_model):
    tokenizer = tokenizer_from_metadata(open_gguf(real_model(alias)).metadata)
    for case in GOLDENS["cases"]:
        ids = tokenizer.encode(case["text"], parse_special=case["parse_special"])
        assert ids == case["ids"][alias], case["text"]


def test_a_long_text_gives_the_ids_of_llama_cpp_and_comes_back(alias, real_model, wikitext):
    tokenizer = tokenizer_from_metadata(open_gguf(real_model(alias)).metadata)
    text = wikitext.read_bytes().decode()
    ids = tokenizer.encode(text)
    digest = hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest()
    assert digest == GOLDENS["wikitext2_test_sha256_of_int32_ids"][alias]
    assert tokenizer.decode(ids) == text
