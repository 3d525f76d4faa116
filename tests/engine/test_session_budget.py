"""A budget: the cache never takes more, and what it does to pages follows from the tokens alone."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_session import TOLERANCE, error, model, refusal, text

from engine.cpu import CpuOps
from engine.errors import InputError
from engine.kv import side_cache, tail
from engine.kv.budget import Budget, Share
from engine.kv.cache import CacheType
from engine.kv.formats import kv_format
from engine.kv.policy import Policy
from engine.session import Session

LONG = text(250)
# first types in pages of 32, sinks, and the smaller types where they are not the default
CASES = [
    ("llama", "bf16", "bf16", 0, None, None),
    ("llama", "q8_0", "int8nsep:32", 4, "q4_0", "int3nsep:32"),
    ("qwen2", "int4wfq:32", "q4_0+h", 0, None, "int2wf:32"),
    ("qwen2", "bf16+b", "q4_0", 3, "int3nsep:32", "q4_0"),
    ("gemma3", "bf16", "int8nsep:32", 0, None, None),
    ("mistral", "q8_0", "f16", 4, None, "q4_0"),
    ("llama", "bf16", "int8nsep:96", 0, "bf16", "int2nsep:96"),  # pages that end elsewhere
    # an exact window of 40 tokens
    ("qwen2", "int4wfq:32/40", "q8_0/40", 4, None, "int2wf:32"),
    ("gemma3", "q8_0", "int8nsep:32/40", 0, None, None),
]
CUTS = ([3, 31, 34, 130, 131, 199], [64, 128], list(range(1, 200, 7)))


def kind(name: str, sink: int = 0) -> CacheType:
    """The named type, with "/n" an exact window of n tokens."""
    name, _, recent = name.partition("/")
    found = CacheType.of(kv_format(name), sink, recent=int(recent or 0))
    return found if found.format.page_tokens else replace(found, page_tokens=32)


def session(case: tuple, share: float = 0.5, backend: str = "cpu", threads: int = 1) -> Session:
    """A session whose budget is the `share` of what lies between all pages small and none."""
    name, ctk, ctv, sink, small_k, small_v = case
    types = kind(ctk, sink), kind(ctv, sink)

    def limited(nbytes: int) -> Session:
        budget = Budget(nbytes, small_k, small_v)
        own = model(name, backend, threads)
        return Session(own, n_ctx=250, ctk=types[0], ctv=types[1], budget=budget)

    given = shares(limited(1 << 30))
    least = max(s.passing for s in given) + sum(s.least(250) for s in given)
    return limited(least + int(share * sum(s.gain(250) for s in given)))


def shares(own: Session) -> list[Share]:
    return [layer.share for layer in own.cache.layers if layer.share]


def shrunk(own: Session) -> list[tuple[int, int]]:
    return [(int(layer.k.shrunk[0]), int(layer.v.shrunk[0])) for layer in own.cache.layers]


def fed(own: Session, cuts: list[int], n: int = 200) -> np.ndarray:
    logits = np.zeros(0)
    for start, stop in itertools.pairwise([0, *cuts, n]):
        logits = own.extend(LONG[start:stop])
    return logits


@pytest.mark.parametrize("case", CASES)
def test_no_cut_of_the_prompt_changes_what_becomes_small(case: tuple) -> None:
    whole = session(case)
    logits = fed(whole, [])
    assert any(map(any, shrunk(whole)))
    for cuts in (*CUTS, list(range(1, 200))):
        parts = session(case)
        assert error(fed(parts, cuts), logits) < TOLERANCE
        assert shrunk(parts) == shrunk(whole)
    reference = session(case, backend="reference")
    assert error(fed(reference, []), logits) < TOLERANCE
    assert shrunk(reference) == shrunk(whole)
    plain = Session(model(case[0]), ctk=kind(case[1], case[3]), ctv=kind(case[2], case[3]))
    assert error(fed(plain, []), logits) > 1e-4  # pages really became smaller


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """[bytes of pages now, the most there were]"""
    held, make = [0, 0], tail.aligned

    def freed(nbytes: int) -> None:
        held[0] -= nbytes

    def counted(shape: tuple[int, int], zeroed: bool = True) -> np.ndarray:
        page = make(shape, zeroed)
        held[0] += page.nbytes
        held[1] = max(held)
        weakref.finalize(page.base, freed, page.nbytes)
        return page

    for module in (side_cache, tail):
        monkeypatch.setattr(module, "aligned", counted)
    yield held


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("step", [1, 45, 250])
def test_the_cache_never_takes_more_than_its_budget(
    case: tuple, share: float, step: int, allocated: list[int]
) -> None:
    own = session(case, share)
    budget = own.cache.budget
    assert budget is not None and own.cache.capacity == 250
    for start in range(0, 250, step):
        own.extend(LONG[start : start + step])
        assert own.cache.nbytes <= budget
    queries = [layer.k.queries for layer in own.cache.layers]
    rows = sum(q.rows.nbytes for q in queries if q is not None)
    assert own.cache.nbytes - rows == allocated[0]
    assert allocated[1] + rows <= budget
    full_size = all(pages == (0, 0) for pages in shrunk(own))
    assert full_size == (share == 1.0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n", [50, 130, 201])
def test_restored_under_a_budget_is_as_if_one_had_never_left(
    case: tuple, n: int, tmp_path: Path
) -> None:
    stayed = session(case)
    fed(stayed, [n // 2], n)
    stayed.save(tmp_path / "s")
    restored = Session.restore(model(case[0]), tmp_path / "s")
    assert shrunk(restored) == shrunk(stayed)
    assert (restored.cache.budget, restored.cache.capacity) == (stayed.cache.budget, 250)
    for part in (LONG[n : n + 1], LONG[n + 1 : n + 40], LONG[n + 40 : n + 41]):
        np.testing.assert_array_equal(restored.extend(part), stayed.extend(part))
    assert shrunk(restored) == shrunk(stayed)


@pytest.mark.parametrize("case", CASES[:2])
def test_threads_do_not_matter(case: tuple) -> None:
    one, two = session(case), session(case, threads=2)
    np.testing.assert_array_equal(fed(one, [77]), fed(two, [77]))
    assert shrunk(one) == shrunk(two)


@pytest.mark.parametrize("case", CASES)
def test_values_shrink_before_keys_and_nothing_grows_again(case: tuple) -> None:
    own, before = session(case, 0.2), [(0, 0)] * 99
    for start in range(0, 250, 25):
        own.extend(LONG[start : start + 25])
        for layer, (k, v), (old_k, old_v) in zip(
            own.cache.layers, shrunk(own), before, strict=False
        ):
            assert k >= old_k and v >= old_v
            if layer.v.type.small is not None and k > old_k:
                assert v == layer.v.type.sealed(layer.v.paged)
        before = shrunk(own)


@pytest.mark.parametrize("case", CASES[:4])
def test_going_back_leaves_small_pages_as_they_are(case: tuple) -> None:
    own = session(case, 0.3)
    fed(own, [])
    small = max(max(pages) for pages in shrunk(own))
    kept = [layer.v.pages[: small - 1] for layer in own.cache.layers]
    own.truncate(own.cache.layers[0].v.type.sink + 32 * small - 5)
    # inside a small page nothing exact is left, also of a token format
    assert own.cache.n == own.cache.layers[0].v.type.sink + 32 * (small - 1)
    assert [list(map(id, pages)) for pages in kept] == [
        list(map(id, layer.v.pages)) for layer in own.cache.layers
    ]
    assert all(max(pages) <= small - 1 for pages in shrunk(own))
    fed_again = own.extend(LONG[own.cache.n : 200])
    assert np.isfinite(fed_again).all()
    assert own.cache.budget is not None and own.cache.nbytes <= own.cache.budget
    own.truncate(0)
    assert shrunk(own) == [(0, 0)] * len(own.cache.layers)
    fresh = session(case, 0.3)
    np.testing.assert_array_equal(fed(own, [60]), fed(fresh, [60]))


def test_the_open_page_can_still_be_cut_back() -> None:
    own = session(CASES[0], 0.3)
    fed(own, [])
    own.truncate(197)
    assert own.cache.n == 197


def test_a_full_budget_is_refused_with_the_tokens_that_fit() -> None:
    roomy, first = session(CASES[0], 0.0).cache.budget, kind("bf16")
    assert roomy is not None

    def limited(nbytes: int) -> Session:
        return Session(model("llama"), n_ctx=250, ctk=first, ctv=first, budget=Budget(nbytes))

    nbytes = roomy * 2 // 3
    own = limited(nbytes)
    fits = own.cache.capacity
    assert 32 < fits < 250
    assert refusal(lambda: own.extend(LONG[: fits + 1])) == (
        f"KV budget full: 0 tokens cached and {fits + 1} more exceed the {fits} that fit "
        f"{nbytes} bytes; raise --kv-budget, choose smaller types or shorten the prompt"
    )
    own.extend(LONG[:fits])
    assert own.cache.nbytes <= nbytes
    assert f"the {fits} that fit" in refusal(lambda: own.extend([1]))
    assert own.cache.n == fits
    # with the bytes of one more page per layer, more would have fitted
    page = sum(share.least(fits + 1) - share.least(fits) for share in shares(own))
    assert limited(nbytes + page).cache.capacity > fits


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(1000), "KV budget of 1000 bytes: too small, the first tokens alone take "),
        (Budget(1 << 30, "q9"), "q9: not a KV cache type"),
        (Budget(1 << 30, "f32"), "f32: its pages take 4096 bytes with heads of 16 channels"),
        (Budget(1 << 30, None, "int3nsep:64"), "int3nsep:64: its pages have 64 tokens, those of"),
        (Budget(1 << 30, "q4_0+h"), "q4_0+h: smaller pages of bf16 have its modifiers"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(budget: Budget, said: str) -> None:
    def make() -> Session:
        return Session(model("llama"), ctk=kind("bf16"), ctv=kind("bf16"), budget=budget)

    assert refusal(make).startswith(said)


def test_another_budget_takes_a_saved_session_over(tmp_path: Path) -> None:
    case = CASES[0]
    stayed = session(case, 0.6)
    fed(stayed, [])
    stayed.save(tmp_path / "s")
    nbytes = session(case, 0.1).cache.budget
    assert nbytes is not None
    tight = Session.restore(model("llama"), tmp_path / "s", budget=Budget(nbytes))
    assert tight.cache.nbytes <= nbytes and shrunk(tight) > shrunk(stayed)
    straight = session(case, 0.1)
    fed(straight, [])
    assert shrunk(tight) == shrunk(straight)
    wide = Session.restore(model("llama"), tmp_path / "s", budget=Budget(1 << 30))
    assert shrunk(wide) == shrunk(stayed)
    with pytest.raises(InputError, match=r"it holds 200 tokens, more than the \d+ that fit"):
        Session.restore(model("llama"), tmp_path / "s", budget=Budget(nbytes * 2 // 3))


@pytest.mark.parametrize("n", [255, 256])  # 256 tokens are whole pages
def test_what_a_whole_context_takes_is_budget_enough(n: int) -> None:
    plain = Session(model("llama"), n_ctx=n, ctk=kind("f16"), ctv=kind("f16"))
    plain.extend(text(n))
    small = kv_format("int3nsep:32").page_nbytes(32, 16) * plain.cache.layers[0].k.kv_heads
    budget = Budget(plain.cache.nbytes + small, "int3nsep:32", "int3nsep:32")
    own = Session(model("llama"), n_ctx=n, ctk=kind("f16"), ctv=kind("f16"), budget=budget)
    own.extend(text(n))
    assert own.cache.capacity == n and not any(map(any, shrunk(own)))
    tight = replace(budget, nbytes=budget.nbytes - 1)
    own = Session(model("llama"), n_ctx=n, ctk=kind("f16"), ctv=kind("f16"), budget=tight)
    own.extend(text(n))
    assert any(map(any, shrunk(own)))


def test_layers_have_smaller_types_of_their_own(tmp_path: Path) -> None:
    pairs = [(kind("bf16"), kind("int8nsep:32")), (kind("int3nsep:32"), kind("q8_0/40"))]

    def limited(nbytes: int, name: str = "int3wf:32") -> Session:
        policy = Policy.by_layer(pairs)
        return Session(model("llama"), n_ctx=250, policy=policy, budget=Budget(nbytes, None, name))

    roomy = limited(1 << 30)
    least = max(s.passing for s in shares(roomy)) + sum(s.least(250) for s in shares(roomy))
    stayed = limited(least + 500)
    fed(stayed, [])
    stayed.save(tmp_path / "s")
    restored = Session.restore(model("llama"), tmp_path / "s")
    for own, other in zip(restored.cache.layers, stayed.cache.layers, strict=True):
        assert (own.k.type, own.v.type) == (other.k.type, other.v.type)
    first, second = ((layer.k.type.small, layer.v.type.small) for layer in restored.cache.layers)
    assert first == (kv_format("int3wf:32"),) * 2
    assert second[1] == kv_format("int3wf:32") and second[0] != second[1]
    assert shrunk(restored) == shrunk(stayed)
    np.testing.assert_array_equal(restored.extend(LONG[200:240]), stayed.extend(LONG[200:240]))
    with pytest.raises(InputError, match=r"int3nsep:64: its pages have 64 tokens, those of"):
        limited(1 << 30, "int3nsep:64")


def test_a_longer_window_takes_small_pages_back_into_the_tail(tmp_path: Path) -> None:
    stayed = session(CASES[0], 0.1)
    fed(stayed, [])
    stayed.save(tmp_path / "s")
    k = replace(kind("q8_0/120"), small=kv_format("q4_0"))
    moved = Session.restore(model("llama"), tmp_path / "s", ctk=k, budget=Budget(1 << 20))
    for (own, _), (old, _), layer in zip(
        shrunk(moved), shrunk(stayed), moved.cache.layers, strict=True
    ):
        assert own == min(old, len(layer.k.pages)) < old
    assert np.isfinite(moved.extend(LONG[200:])).all()


# with pages of 32 tokens and heads of 16 channels, metadata and all
SMALLER = [
    (stored, small)
    for stored in ("f32", "f16", "q8_0", "q5_1", "int8nsep:32", "int4wf:32")
    for small in ("int3nsep:32", "int3wf:32", "q4_0", "kivi2:32", "int2nsep:32")
    if kv_format(small).bits_per_value(32, 16) < kind(stored).bits_per_value(16)
]


@pytest.mark.parametrize(("stored", "small"), SMALLER)
def test_a_page_that_became_small_is_the_encoding_of_what_it_held(stored: str, small: str) -> None:
    first = kind(stored)
    limited = replace(first, small=kv_format(small))
    plain, own = (Session(model("llama"), ctk=t, ctv=t) for t in (first, limited))
    for s in (plain, own):
        s.extend(LONG[:40])
    ops = own.decoder.ops
    assert isinstance(ops, CpuOps)
    for mine, other in zip(own.cache.layers, plain.cache.layers, strict=True):
        for side, exact in ((mine.k, other.k), (mine.v, other.v)):
            side.shrink(1, ops._repack)
            page = exact.pages[0]
            assert page is not None
            values = first.format.decode(page, side.head_dim, side.side)
            want = kv_format(small).encode(values, side.side)
            np.testing.assert_array_equal(side.pages[0], want)
