"""One list of op cases: what the parity tests check and the kernel benchmarks time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gguf
import numpy as np
from gguf import quants

from engine.checkpoint import Tensor
from engine.kv.cache import CacheType, LayerCache
from engine.kv.formats import KV_FORMATS, kv_format
from engine.kv.modifiers import hadamard_matrix
from engine.ops import Array, KeyBias, Ops

HEAD_DIMS = (16, 32, 64, 72, 80, 96, 112, 128, 256)
GROUPS = (1, 2, 3, 4, 5, 6, 7, 8)  # query heads per KV head
DISTINCT = 1 << 20  # values drawn for one matrix

# of products with rounded activations: 16-bit integers for a few tokens, bfloat16 for many
INTEGERS, BFLOAT16 = 5e-5, 5e-3

Run = Callable[[], np.ndarray]


@dataclass(frozen=True)
class OpCase:
    """`prepare(ops)` uploads the inputs and returns the op to run, which gives a host array.

    `nbytes` are those the op has to read and write, each once.  Two backends may differ by
    `tolerance` times the result's largest magnitude.
    """

    name: str
    prepare: Callable[[Ops], Run]
    nbytes: int
    tolerance: float = 1e-5  # float32 sums of some thousand terms, in another order


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """float32 standard normal values; the same shape and seed give the same values."""
    rng = np.random.default_rng([seed, *shape])
    return rng.standard_normal(shape, np.float32)


def float_nbytes(*counts: int) -> int:
    """Bytes of so many float32 values."""
    return 4 * sum(counts)


def matrix_nbytes(kind: str, rows: int, columns: int) -> int:
    """Bytes of a matrix of the ggml type `kind`."""
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return rows * columns // block * nbytes


def random_tensor(kind: str, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix of any ggml type from random bytes.

    Blocks are drawn until enough of them are finite and of a usual size, so every code and every
    scale of a type occurs.  A matrix of more than `DISTINCT` values repeats its blocks.
    """
    rng = np.random.default_rng([seed, rows, columns])
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    wanted, good = min(rows * columns, DISTINCT) // block, np.empty((0, nbytes), np.uint8)
    while len(good) < wanted:
        drawn = rng.integers(0, 256, (4 * wanted + 64, nbytes), np.uint8)
        with np.errstate(all="ignore"):
            values = quants.dequantize(drawn, gguf.GGMLQuantizationType[kind]).astype(np.float32)
        size = np.abs(values.reshape(len(drawn), block)).max(axis=1)
        good = np.concatenate([good, drawn[(size > 0.01) & (size < 100)]])
    data = np.resize(good[:wanted], (rows, columns // block * nbytes))
    data.flags.writeable = False
    return Tensor("weight", kind, (rows, columns), data)


def vector(values: np.ndarray) -> Tensor:
    return Tensor("vector", "F32", values.shape, values.view(np.uint8).reshape(1, -1))


def embed(kind: str, columns: int) -> OpCase:
    def prepare(ops: Ops) -> Run:
        weight = ops.upload(random_tensor(kind, 37, columns))
        ids = np.array([0, 36, 5, 5, 17], np.int32)
        return lambda: ops.to_host(ops.embed(weight, ids))

    nbytes = matrix_nbytes(kind, 5, columns) + float_nbytes(5 * columns)
    return OpCase(f"embed {kind} {columns}", prepare, nbytes, 1e-6)


def linear(kind: str, rows: int, columns: int, tokens: int, bias: bool = False) -> OpCase:
    def prepare(ops: Ops) -> Run:
        weight = ops.upload(random_tensor(kind, rows, columns))
        added = ops.upload(vector(normal(rows))) if bias else None
        x = ops.asarray(normal(tokens, columns))
        return lambda: ops.to_host(ops.linear(weight, x, added))

    name = f"linear {kind} {rows}x{columns} T={tokens}{' bias' * bias}"
    values = float_nbytes(tokens * columns, tokens * rows, rows * bias)
    nbytes = matrix_nbytes(kind, rows, columns) + values
    if kind in ("F32", "F16", "BF16", "MXFP4"):
        return OpCase(name, prepare, nbytes)
    return OpCase(name, prepare, nbytes, INTEGERS if tokens == 1 else BFLOAT16)


def linears(tokens: int) -> OpCase:
    """q, k and v of grouped-query attention, one of them without a bias."""
    heights = (96, 32, 33)

    def prepare(ops: Ops) -> Run:
        weights = [ops.upload(random_tensor("Q4_0", rows, 64, rows)) for rows in heights]
        biases = [ops.upload(vector(normal(96))), None, ops.upload(vector(normal(33)))]
        x = ops.asarray(normal(tokens, 64))

        def run() -> np.ndarray:
            parts = ops.linears(weights, x, biases)
            return np.concatenate([ops.to_host(part) for part in parts], axis=1)

        return run

    values = float_nbytes(tokens * 64, tokens * sum(heights), 96 + 33)
    nbytes = matrix_nbytes("Q4_0", sum(heights), 64) + values
    return OpCase(f"linears T={tokens}", prepare, nbytes, INTEGERS if tokens == 1 else BFLOAT16)


def rms_norm(*shape: int) -> OpCase:
    def prepare(ops: Ops) -> Run:
        x, weight = ops.asarray(3 * normal(*shape)), ops.upload(vector(normal(shape[-1], seed=1)))
        return lambda: ops.to_host(ops.rms_norm(x, weight, 1e-5))

    nbytes = float_nbytes(2 * math.prod(shape), shape[-1])
    return OpCase(f"rms_norm {'x'.join(map(str, shape))}", prepare, nbytes)


def in_place(
    name: str, shape: tuple[int, ...], op: Callable[[Ops, Array], None], others: int = 0
) -> OpCase:
    """An op that changes its first argument; each run works on a fresh copy.

    `others` are the float32 values that it reads besides.
    """

    def prepare(ops: Ops) -> Run:
        start = 20 * normal(*shape)

        def run() -> np.ndarray:
            x = ops.asarray(start.copy())
            op(ops, x)
            return ops.to_host(x)

        return run

    nbytes = float_nbytes(2 * math.prod(shape), others)
    return OpCase(f"{name} {'x'.join(map(str, shape))}", prepare, nbytes)


def rope_angles(positions: int, dims: int) -> np.ndarray:
    """A rotation table float32 [positions, dims / 2, 2]."""
    angle = np.arange(positions)[:, None] * 10000.0 ** (-2 * np.arange(dims // 2) / dims)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)


def hadamard(dim: int, tokens: int = 3) -> OpCase:
    def prepare(ops: Ops) -> Run:
        x = ops.asarray(normal(tokens, 5, dim))
        return lambda: ops.to_host(ops.hadamard(x))

    return OpCase(f"hadamard {tokens}x5x{dim}", prepare, float_nbytes(2 * tokens * 5 * dim))


def rope(layout: str, dim: int, dims: int, position: int, tokens: int = 3) -> OpCase:
    table = rope_angles(64, dims)
    name = f"rope {layout} {dims} of {dim} at {position}"
    return in_place(
        name,
        (tokens, 5, dim),
        lambda ops, x: ops.rope_(x, ops.asarray(table), np.array([position]), layout),
        others=tokens * dims,
    )


def glu(act: str, tokens: int, width: int) -> OpCase:
    def prepare(ops: Ops) -> Run:
        gate, up = (
            ops.asarray(6 * normal(tokens, width)),
            ops.asarray(normal(tokens, width, seed=1)),
        )
        return lambda: ops.to_host(ops.glu(gate, up, act))

    nbytes = float_nbytes(3 * tokens * width)
    return OpCase(f"glu {act} {tokens}x{width}", prepare, nbytes, 1e-6)


@dataclass(frozen=True)
class Attention:
    """Attention over a layer that holds `cached` tokens, for the queries of the last `tokens`.

    `turned` channels of a key bias turn with the position, none for keys without a bias;
    `rotated`: queries and the bias are given as if keys were Hadamard rotated.
    """

    k: str = "bf16"
    v: str = "bf16"
    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    cached: int = 300
    tokens: int = 1
    window: int | None = None
    softcap: float = 0.0
    sink: int = 0
    turned: int | None = None
    layout: str = "neox"
    rotated: bool = False

    @property
    def name(self) -> str:
        shape = f"{self.heads}/{self.kv_heads}x{self.dim}"
        rest = f" window={self.window}" if self.window else ""
        rest += f" softcap={self.softcap}" if self.softcap else ""
        rest += f" sink={self.sink}" if self.sink else ""
        rest += "" if self.turned is None else f" bias {self.layout} {self.turned}"
        rest += " rotated" * self.rotated
        return f"attend {self.k}/{self.v} {shape} n={self.cached} T={self.tokens}{rest}"

    def layer(self, ops: Ops) -> LayerCache:
        """A new layer with all tokens appended and every page sealed that was full before the
        queries came."""
        k, v = (CacheType.of(kv_format(name), self.sink) for name in (self.k, self.v))
        layer = LayerCache((k, v), self.kv_heads, self.dim, self.cached, self.window, 0)
        keys, values = self.inputs()[1:]
        for part in self.cuts(layer):
            ops.append(layer, ops.asarray(keys[part]), ops.asarray(values[part]))
            if layer.n < self.cached:
                ops.seal(layer)
        ops.finish()
        return layer

    def cuts(self, layer: LayerCache) -> Iterator[slice]:
        for start, size in (
            (0, self.cached - self.tokens),
            (self.cached - self.tokens, self.tokens),
        ):
            for part in layer.segments(size):
                yield slice(start + part.start, start + part.stop)

    @property
    def scale(self) -> np.ndarray:
        """The size of the keys' channels."""
        return np.exp(normal(self.dim, seed=3)) / self.dim**0.25

    def inputs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """q [tokens, heads, dim], k and v [cached, kv_heads, dim]; channels differ in size."""
        scale = self.scale
        k = (normal(self.cached, self.kv_heads, self.dim, seed=1) + 0.5) * scale
        v = normal(self.cached, self.kv_heads, self.dim, seed=2) - 0.3
        return normal(self.tokens, self.heads, self.dim) / scale, k, v

    def bias(self, ops: Ops) -> KeyBias | None:
        """The part of a bias as large as the keys."""
        if self.turned is None:
            return None
        queries = self.inputs()[0]
        if self.rotated:
            queries = queries @ hadamard_matrix(self.dim)
        queries = ops.asarray(queries)
        bias = ops.asarray(normal(self.kv_heads, self.dim, seed=5) * self.scale)
        table = ops.asarray(rope_angles(self.cached, self.turned))
        return KeyBias(queries, bias, table, self.layout, self.rotated)

    def case(self) -> OpCase:
        def prepare(ops: Ops) -> Run:
            layer, q, bias = self.layer(ops), ops.asarray(self.inputs()[0]), self.bias(ops)
            return lambda: ops.to_host(ops.attend(q, layer, self.dim**-0.5, self.softcap, bias))

        return OpCase(self.name, prepare, self.nbytes, 2e-4)

    @property
    def nbytes(self) -> int:
        """Queries, outputs, and the keys and values that the queries may see."""
        seen = min(self.cached, (self.window or self.cached) + self.tokens - 1)
        kinds = [CacheType.of(kv_format(name)) for name in (self.k, self.v)]
        bits = sum(kind.bits_per_value(self.dim) for kind in kinds)
        queries = float_nbytes(2 * self.tokens * self.heads * self.dim)
        return queries + int(seen * self.kv_heads * self.dim * bits / 8)


def _linear_cases() -> Iterator[OpCase]:
    yield from (embed(kind, 256) for kind in ("F32", "F16", "Q8_0", "Q4_1", "Q6_K"))
    yield embed("F32", 100)
    for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q6_K", "MXFP4"):
        yield from (linear(kind, 53, 512, tokens) for tokens in (1, 9))
    yield from (linear("F32", 7, 100, tokens, bias=True) for tokens in (1, 2, 8, 9, 40))
    yield from (linear("Q8_0", rows, 96, tokens) for rows in (1, 16, 301) for tokens in (1, 3, 33))
    yield linear("F16", 300, 2048, 20)  # several tiles of rows
    yield from (linears(tokens) for tokens in (1, 5, 20))


def _elementwise_cases() -> Iterator[OpCase]:
    yield from (rms_norm(3, width) for width in (1, 15, 16, 33, 576))
    yield rms_norm(2, 5, 72)
    for layout in ("neox", "norm"):
        yield from (rope(layout, dim, dim, position=11) for dim in HEAD_DIMS)
        yield rope(layout, 64, 24, position=0)
        yield rope(layout, 80, 80, position=63, tokens=1)
    yield from (hadamard(dim) for dim in (*HEAD_DIMS, 6, 20, 512))
    yield hadamard(64, tokens=70)  # enough for several threads
    for act in ("silu", "gelu_tanh"):
        # below and above a whole vector, and enough for several threads
        yield from (glu(act, t, width) for t, width in ((1, 7), (1, 16), (3, 37), (33, 1031)))
    yield in_place(
        "add_",
        (3, 100),
        lambda ops, x: ops.add_(x, ops.asarray(normal(3, 100, seed=1))),
        others=300,
    )
    yield in_place("scale_", (3, 100), lambda ops, x: ops.scale_(x, 0.37))
    yield in_place("softcap_", (3, 100), lambda ops, x: ops.softcap_(x, 30.0))


def _attention_cases() -> Iterator[OpCase]:
    every = [Attention(k=name, v=name, cached=200) for name in KV_FORMATS]
    every += [Attention(heads=2 * group, dim=32, cached=70) for group in GROUPS]
    every += [Attention(dim=dim, cached=70) for dim in HEAD_DIMS]
    every += [Attention(cached=300, tokens=40), Attention(cached=300, window=33, tokens=9)]
    every += [Attention(k="int3nsep", v="q8_0", cached=300, softcap=5.0, tokens=20)]
    for layout in ("neox", "norm"):
        every += [
            Attention(k="q4_0", v="q8_0", dim=dim, cached=300, turned=dim, layout=layout)
            for dim in HEAD_DIMS
        ]
        every += [Attention(dim=80, cached=300, tokens=20, turned=24, layout=layout)]
        every += [
            Attention(
                k="q4_0", dim=dim, cached=70, tokens=20, turned=dim, layout=layout, rotated=True
            )
            for dim in HEAD_DIMS
        ]
    every += [
        Attention(k="int3nsep:32", cached=300, tokens=9, window=33, turned=64, softcap=5.0),
        Attention(k="int3nsep:256", cached=1500, turned=64),
        Attention(k="f32", v="f32", heads=6, cached=1100, tokens=70, turned=64),
    ]
    yield from (one.case() for one in every)


OP_CASES: tuple[OpCase, ...] = (*_linear_cases(), *_elementwise_cases(), *_attention_cases())
