"""Policies: which layer gets what, and files that are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import InputError
from engine.kv.cache_type import CacheType
from engine.kv.formats import KV_FORMATS, kv_format
from engine.kv.formats.floats import BF16, F32
from engine.kv.policy import Policy
from engine.kv.policy_file import read_policy


def policy(folder: Path, text: str) -> Policy:
    path = folder / "p.toml"
    path.write_text(text)
    return read_policy(path)


def test_later_entries_win_and_sides_that_are_not_named_stay(tmp_path: Path) -> None:
    found = policy(
        tmp_path,
        """
        k = "int3nsep"
        v = "q4_0+h"
        [[layers]]
        first = 2
        k = "q8_0"
        [[layers]]
        last = 1
        v = "f16"
        [[layers]]
        layers = "1, 3-4"
        k = "f32"
        v = "q5_0"
        """,
    )
    names = [(k.name, v.name) for k, v in found.of_layers(6)]
    assert names == [
        ("q8_0", "q4_0+h"),
        ("f32", "q5_0"),
        ("int3nsep", "q4_0+h"),
        ("f32", "q5_0"),
        ("f32", "q5_0"),
        ("int3nsep", "f16"),
    ]


def test_sinks_window_and_tail_are_those_of_every_type_that_has_them(tmp_path: Path) -> None:
    text = 'k = "int3nsep"\nv = "q4_0"\nsink = 4\nrecent = 100\ntail = "f32"\n'
    found = policy(tmp_path, text + '[[layers]]\nlayers = "0"\nk = "f16"')
    (first, _), (k, v) = found.of_layers(2)
    assert first == CacheType(kv_format("f16"), 128, None, 4)  # exact itself
    for kind in (k, v):
        assert (kind.sink, kind.recent, kind.tail) == (4, 100, F32)
    assert (found.sink, found.recent) == (4, 100)


def test_an_empty_file_is_the_default_cache(tmp_path: Path) -> None:
    assert policy(tmp_path, "").of_layers(2) == Policy.of("bf16", "bf16").of_layers(2)


@pytest.mark.parametrize("name", KV_FORMATS)
def test_a_type_in_a_file_is_the_type_of_the_option(tmp_path: Path, name: str) -> None:
    found = policy(tmp_path, f'k = "{name}"\nv = "{name}"\nsink = 4')
    assert found.of_layers(3) == Policy.of(name, name, 4).of_layers(3)


def test_a_name_tells_files_of_other_bytes_apart(tmp_path: Path) -> None:
    one, other = policy(tmp_path, 'k = "q8_0"'), policy(tmp_path, 'k = "q8_0" ')
    assert one.name != other.name and one.name.startswith("p.toml@")
    assert policy(tmp_path, 'k = "q8_0"').name == one.name


# the key, the value seen, the values allowed
REFUSED = [
    ("k = 3", "k: 3: the name of a type"),
    ('v = "q3"', "v: q3: not a KV cache type. Choose from: f32, f16"),
    ('v = "q4_0+nob"', "v: q4_0+nob: +b and +nob are for keys"),
    ('keys = "q8_0"', "'keys': not a key of the file. Choose from: k, v, sink"),
    ("sink = -1", "sink: -1: a number of tokens, 0 or more"),
    ('sink = 200\nk = "int3nsep"', "sink: 200 exact first tokens: int3nsep takes 0 to 128"),
    ("recent = true", "recent: True: a number of tokens"),
    ("recent = 1e3", "recent: 1000.0: a number of tokens"),
    ('tail = "q8_0"', "tail: 'q8_0': choose from f32, f16, bf16"),
    ("layers = 2", "layers: 2: write [[layers]]"),
    ("[[layers]]\nfirst = 1", "[[layers]] 1: it changes nothing: give k, v or both"),
    ('[[layers]]\nk = "f16"', "[[layers]] 1: none of first, last and layers"),
    ('[[layers]]\nk = "f16"\nfirst = 1\nlast = 1', "first and last of first, last and layers"),
    ('[[layers]]\nk = "f16"\nfirst = 0', "first = 0: a number of layers, 1 or more"),
    ('[[layers]]\nk = "f16"\nlayers = [1]', 'layers = [1]: layers counted from 0, such as "0,3-5"'),
    ('[[layers]]\nk = "f16"\nlayers = "3-1"', "layers = '3-1': a range ends before it begins"),
    ('[[layers]]\nlast = 1\nsink = 2\nk = "f16"', "'sink': not a key of [[layers]] 1 (one for all"),
    ('[[layers]]\nlast = 1\nv = "q3"', "[[layers]] 1: v: q3: not a KV cache type"),
    ("k = ", "not TOML: Invalid value"),
    ("\xff", "not TOML"),
]


@pytest.mark.parametrize(("text", "told"), REFUSED)
def test_a_file_that_is_no_policy_is_refused_in_one_line(
    tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as refused:
        read_policy(path)
    line = str(refused.value)
    assert line.startswith(f"{path}: ") and told in line and "\n" not in line


@pytest.mark.parametrize(
    ("where", "told"),
    [("first = 7", "1 to 6"), ("last = 9", "1 to 6"), ('layers = "0,5-6"', "0 to 5")],
)
def test_layers_that_the_model_has_not_are_refused(tmp_path: Path, where: str, told: str) -> None:
    found = policy(tmp_path, f'[[layers]]\nk = "q8_0"\n{where}')
    with pytest.raises(InputError) as refused:
        found.of_layers(6)
    line = str(refused.value)
    assert f"p.toml: [[layers]] 1: {where[:5]}" in line and "the model has 6 layers" in line
    assert line.endswith(told)


def test_files_that_cannot_be_read_and_endless_ones_are_refused(tmp_path: Path) -> None:
    for path, told in ((tmp_path / "none", "No such file"), (Path("/dev/zero"), "longer than")):
        with pytest.raises(InputError, match=told):
            read_policy(path)


def test_the_layers_own_pairs_make_a_policy_again() -> None:
    mixed = [Policy.of(name, "q8_0").types for name in ("q4_0", "f16", "q4_0")]
    again = Policy.by_layer(mixed)
    assert again.of_layers(3) == mixed and again.name == "q4_0,f16/q8_0"
    assert all(kind.tail in (None, BF16) for pair in again.every() for kind in pair)
