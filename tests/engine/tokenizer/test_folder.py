"""Hugging Face folders: the same ids as the GGUF of the same vocabulary, and refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiny_vocabularies import BYTE, MERGES, bpe_metadata, spm_metadata
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from engine.errors import InputError
from engine.tokenizer import StreamDecoder, tokenizer_from_folder, tokenizer_from_metadata
from engine.tokenizer.proto import bpe_model

TOKENS = bpe_metadata().list("tokenizer.ggml.tokens")
SPM = spm_metadata()
SPM_TOKENS = SPM.list("tokenizer.ggml.tokens")
SPM_TYPES = SPM.list("tokenizer.ggml.token_type")


def write_bpe(folder: Path, *, adds_bos: bool = False) -> Path:
    """tokenizer.json of the tiny byte-level vocabulary, with its special tokens added."""
    ids = {text: id for id, text in enumerate(TOKENS)}
    model = models.BPE(vocab=ids, merges=[tuple(merge.split(" ")) for merge in MERGES])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<bos>", "<|im_end|>", "stop"])
    made.add_tokens(["<tool>", "<tool>x"])
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
        )
    made.enable_truncation(4)
    made.save(str(folder / "tokenizer.json"))
    return folder


def write_spm(folder: Path) -> Path:
    """tokenizer.json of a BPE vocabulary in sentencepiece's style, as Llama 2 folders have it."""
    ids = {text: id for id, text in enumerate(SPM_TOKENS) if SPM_TYPES[id] in (1, 2, 3, BYTE)}
    made = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids, merges=[("▁", "h"), ("e", "l")], byte_fallback=True, unk_token="<unk>"
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens([AddedToken(text, normalized=False) for text in ("<s>", "</s>")])
    made.save(str(folder / "tokenizer.json"))
    return folder


def write_model(folder: Path) -> Path:
    scores = SPM.list("tokenizer.ggml.scores")
    pieces = list(zip(SPM_TOKENS, scores, SPM_TYPES, strict=True))
    (folder / "tokenizer.model").write_bytes(bpe_model(pieces, True))
    return folder


def write_json(folder: Path, name: str, **values: Any) -> None:
    (folder / name).write_text(json.dumps(values))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return write_bpe(tmp_path_factory.mktemp("bpe"))


def test_tokenizer_json_gives_the_ids_of_the_same_gguf(plain):
    folder, gguf = tokenizer_from_folder(plain), tokenizer_from_metadata(bpe_metadata())

    @given(
        st.text(st.sampled_from("helo wrd's12 3abc\n\té👍<b>tox|imnd_"), max_size=40), st.booleans()
    )
    def check(text, parse):
        text = f"{text}<|im_end|>{text}<tool>"
        ids = gguf.encode(text, parse_special=parse)
        assert folder.encode(text, parse_special=parse) == ids
        assert folder.decode(ids) == gguf.decode(ids)
        assert folder.decode(ids, skip_special=False) == text

    check()


def test_tokenizer_model_gives_the_ids_of_the_same_gguf(tmp_path):
    gguf = tokenizer_from_metadata(spm_metadata(add_space_prefix=False))
    folder = tokenizer_from_folder(write_model(tmp_path))
    for text in ["hello a", "ab\n\n\nab", "<s>é👍</s>", ""]:
        for parse in (False, True):
            ids = gguf.encode(text, add_special=True, parse_special=parse)
            assert folder.encode(text, add_special=True, parse_special=parse) == ids
            assert folder.decode(ids) == gguf.decode(ids)


def test_sentencepiece_style_json_decodes_what_it_encoded(tmp_path):
    tokenizer = tokenizer_from_folder(write_spm(tmp_path))
    ids = tokenizer.encode("hello é👍")
    assert tokenizer.token_bytes(ids[0]) == b" h"
    assert tokenizer.decode(ids) == "hello é👍"
    stream = StreamDecoder(tokenizer)
    assert "".join(stream.push(id) for id in ids) + stream.flush() == "hello é👍"


def test_bos_comes_from_the_settings_or_else_from_the_post_processor(tmp_path):
    write_bpe(tmp_path, adds_bos=True)
    write_json(tmp_path, "tokenizer_config.json", bos_token="<bos>")
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.encode("a", add_special=True) == [TOKENS.index("<bos>"), TOKENS.index("a")]
    write_json(
        tmp_path, "tokenizer_config.json", bos_token={"content": "<bos>"}, add_bos_token=False
    )
    assert tokenizer_from_folder(tmp_path).encode("a", add_special=True) == [TOKENS.index("a")]


def test_end_ids_join_every_file(tmp_path):
    write_bpe(tmp_path)
    write_json(tmp_path, "tokenizer_config.json", eos_token="a")
    write_json(tmp_path, "generation_config.json", eos_token_id=[3, 4])
    write_json(tmp_path, "config.json", eos_token_id=5)
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.eos == TOKENS.index("a")
    assert tokenizer.end_ids == {3, 4, 5, TOKENS.index("a"), TOKENS.index("<|im_end|>")}


def test_ids_without_text_take_the_models_numbers(tmp_path):
    write_json(write_bpe(tmp_path), "config.json", bos_token_id=3, eos_token_id=[4, 5])
    tokenizer = tokenizer_from_folder(tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (3, 4, False)


def test_the_chat_template_is_the_file_then_the_default_then_the_only_one(tmp_path):
    write_bpe(tmp_path)
    assert tokenizer_from_folder(tmp_path).chat_template is None
    write_json(tmp_path, "tokenizer_config.json", chat_template="one")
    assert tokenizer_from_folder(tmp_path).chat_template == "one"
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    write_json(tmp_path, "tokenizer_config.json", chat_template=several)
    assert tokenizer_from_folder(tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert tokenizer_from_folder(tmp_path).chat_template == "file"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json: cannot be used"),
        ("tokenizer.json", '{"model": 7}', "tokenizer.json: cannot be used"),
        ("tokenizer_config.json", "[", "tokenizer_config.json"),
        ("tokenizer_config.json", '{"bos_token": "<none>"}', "bos_token is '<none>'"),
        ("tokenizer_config.json", '{"eos_token": 3}', "eos_token is 3"),
        ("tokenizer_config.json", '{"add_bos_token": 1}', "add_bos_token is 1"),
        ("tokenizer_config.json", '{"chat_template": 1}', "chat_template is 1"),
        ("tokenizer_config.json", '{"chat_template": [{"name": []}]}', "chat_template"),
        ("generation_config.json", '{"eos_token_id": 100000}', "eos_token_id is 100000"),
        ("generation_config.json", '{"eos_token_id": ["x"]}', "eos_token_id is 'x'"),
        ("config.json", '{"eos_token_id": true}', "eos_token_id is True"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: cannot be read"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, file, content, message):
    write_bpe(tmp_path)
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / file).write_bytes(data)
    with pytest.raises(InputError, match=message) as refused:
        tokenizer_from_folder(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_file_on_which_the_library_panics_is_refused(tmp_path):
    write_bpe(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["model"]["continuing_subword_prefix"] = "ByteLevel"
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="cannot be used"):
        tokenizer_from_folder(tmp_path)


def test_ids_far_apart_are_refused_before_they_are_allocated(tmp_path):
    write_bpe(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["model"]["vocab"]["hello"] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="ids up to 2147483648"):
        tokenizer_from_folder(tmp_path)


def test_a_folder_without_a_tokenizer_says_what_it_expected(tmp_path):
    with pytest.raises(InputError, match=r"expected tokenizer\.json or tokenizer\.model"):
        tokenizer_from_folder(tmp_path)


def test_tokenizer_model_cut_anywhere_is_refused(tmp_path):
    file = write_model(tmp_path) / "tokenizer.model"
    whole = file.read_bytes()
    for size in [*range(0, 64), len(whole) // 2, *range(len(whole) - 20, len(whole))]:
        file.write_bytes(whole[:size])
        with pytest.raises(InputError):
            tokenizer_from_folder(tmp_path)


def test_a_unigram_model_is_refused(tmp_path):
    write_model(tmp_path)
    file = tmp_path / "tokenizer.model"
    file.write_bytes(file.read_bytes().replace(b"\x12\x05\x18\x02", b"\x12\x05\x18\x01"))
    with pytest.raises(InputError, match="not a BPE model"):
        tokenizer_from_folder(tmp_path)
