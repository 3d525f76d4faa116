"""The CPU backend: Numba kernels on packed weights and packed pages.

Ops are collected into a program, which one call runs when its result is asked for; the decoding of
a token is recorded once and then repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from engine.checkpoint import Tensor
from engine.config import available_cores, cores_of_their_own
from engine.cpu import elementwise, likelihood
from engine.cpu.attention import attend
from engine.cpu.hadamard import hadamard
from engine.cpu.kv_append import NEXT, NONE_BAD, append
from engine.cpu.kv_encode import ENCODERS
from engine.cpu.kv_queries import note_queries
from engine.cpu.kv_repack import Repacking, repackable
from engine.cpu.kv_seal import pack_pages, packable, place
from engine.cpu.kv_stage import Chunk, Stage, new_places
from engine.cpu.kv_tail import places
from engine.cpu.kv_verbs import supported
from engine.cpu.layouts import LANES, LAYOUTS
from engine.cpu.matrix import Matrix, Products, matrix
from engine.cpu.memory import Arena, Pool, pooled
from engine.cpu.packing import Packing
from engine.cpu.program import Program
from engine.cpu.rows import Table, rows
from engine.cpu.team import Team
from engine.errors import InputError
from engine.kv.cache import CacheType, LayerCache, SideCache, pack_tail
from engine.kv.side_cache import encode_small
from engine.memory import address, aligned_zeros
from engine.ops import KeyBias, Ops, not_finite
from engine.reference import dequantize


class _Recording:
    """A program in the making: where its temporaries live, and what to look at after a run."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.program = pool, Program()
        self.bad = np.array([NONE_BAD], np.int64)  # what of `stored` could not be, and where
        self.stored: list[tuple[int, SideCache]] = []

    def run(self, team: Team) -> None:
        table = self.program.table()
        self.run_at(team, address(table), len(table))

    def run_at(self, team: Team, table: int, entries: int) -> None:
        team.run_at(table, entries)
        self.check()

    def check(self) -> None:
        """Raise InputError if a token could not be stored."""
        bad = self.bad.item()
        if bad != NONE_BAD:
            number, position = divmod(bad, NEXT)
            self.bad[0] = NONE_BAD
            raise not_finite(*self.stored[number], position)


class CpuOps(Ops):
    """Float32 activations, weights and pages read in their packed form.

    `threads` is the number of threads of every op, by default one per available core; `pin` keeps
    each of them on a core of its own.
    """

    name = "cpu"

    def __init__(self, threads: int | None = None, pin: bool = False) -> None:
        cores = available_cores()
        threads = cores if threads is None else threads
        if not 1 <= threads <= cores:
            raise InputError(f"{threads} threads: this machine can run 1 to {cores}")
        self.threads = threads
        own = cores_of_their_own(threads) if pin else ()
        self._team, self._pool = Team(threads, own), Pool()
        self._packing = Packing(self._team, Arena())
        self._recording = _Recording(self._pool)
        self._started: _Recording | None = None  # what was submitted last
        self._repackings: dict[Hashable, Repacking] = {}

    def split(self, parts: int) -> list[Ops]:
        parts = min(parts, self.threads)
        return [CpuOps(self.threads // parts) for _ in range(parts)]

    def upload(self, tensor: Tensor) -> Matrix | np.ndarray:
        if len(tensor.shape) == 2:
            return matrix(tensor, self._packing)
        return self.asarray(dequantize(tensor))

    def table(self, tensor: Tensor) -> Matrix | Table:
        return Table(tensor) if tensor.type in LAYOUTS else matrix(tensor, self._packing)

    def asarray(self, x: np.ndarray) -> np.ndarray:
        out = aligned_zeros(x.shape, x.dtype)
        out[...] = x
        return out

    def to_host(self, x: np.ndarray) -> np.ndarray:
        self.finish()
        return x

    def recorded(self, body: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        self.finish()
        # repeated runs need their memory to themselves
        self._recording = recording = _Recording(Pool())
        try:
            out = body()
        finally:
            self._recording = _Recording(self._pool)
        table, target = recording.program.table(), recording.program.target(out)
        start, entries, shape, size = address(table), len(table), out.shape, out.size
        recording.program.hold(table)

        def run() -> np.ndarray:
            self.finish()
            if target is None:
                recording.run_at(self._team, start, entries)
                return out.copy()
            memory = np.empty(size + LANES, np.float32)  # readable up to whole vectors
            target.value = address(memory)
            recording.run_at(self._team, start, entries)
            return memory[:size].reshape(shape)

        return run

    def discard(self) -> None:
        self._team.join()
        self._recording, self._started = _Recording(self._pool), None

    def submit(self) -> None:
        self._packing.finish()
        recording = self._recording
        if len(recording.program) and recording.pool is self._pool:
            self._recording = _Recording(self._pool)
            self._team.start(recording.program.table(), recording)
            self._check_started(recording)

    def _check_started(self, following: _Recording | None) -> None:
        """Raise InputError if what was submitted last, and has run, could not store a token."""
        started, self._started = self._started, following
        if started is not None:
            started.check()

    def finish(self) -> None:
        self._packing.finish()
        self._team.join()
        self._check_started(None)
        recording = self._recording
        if len(recording.program):
            self._recording = _Recording(self._pool)
            recording.run(self._team)

    @property
    def _program(self) -> Program:
        return self._recording.program

    def _hold(self, *inputs: np.ndarray | None) -> None:
        """Keep inputs of an op alive until it runs: a caller may drop them at once."""
        self._program.hold(*(x for x in inputs if x is not None and not pooled(x)))

    def _empty(self, *shape: int) -> np.ndarray:
        return self._recording.pool.take(shape)

    def _products(self) -> Products:
        return Products(self._team, self._recording.pool)

    def supports(self, kind: CacheType) -> bool:
        stored = (kind.format, kind.small or kind.format)
        return all(map(supported, stored)) and kind.open_format.name in ENCODERS

    def embed(self, weight: Matrix | Table, ids: np.ndarray) -> np.ndarray:
        recording = self._recording
        self._hold(weight.tensor.data if isinstance(weight, Table) else weight.data, ids)
        return rows(recording.program, recording.pool, self.threads, weight, ids)

    def linear(self, weight: Matrix, x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        return self.linears([weight], x, [bias])[0]

    def linears(
        self, weights: Sequence[Matrix], x: np.ndarray, biases: Sequence[np.ndarray | None]
    ) -> list[np.ndarray]:
        self._hold(x, *(weight.data for weight in weights), *biases)
        return self._products().add(self._program, weights, x, biases)

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        self._hold(x, weight)
        out = self._empty(*x.shape)
        elementwise.rms_norm(self._program, x, weight, eps, out)
        return out

    def rope_(self, x: np.ndarray, table: np.ndarray, position: np.ndarray, layout: str) -> None:
        self._hold(x, table, position)
        scratch = self._empty(self.threads, 4 * table.shape[1])
        elementwise.rope_(self._program, x, table, position, layout == "norm", scratch)

    def hadamard(self, x: np.ndarray) -> np.ndarray:
        self._hold(x)
        out = self._empty(*x.shape)
        hadamard(self._program, x, out)
        return out

    def glu(self, gate: np.ndarray, up: np.ndarray, act: str) -> np.ndarray:
        verb = {"silu": elementwise.SILU_PRODUCT, "gelu_tanh": elementwise.GELU_PRODUCT}[act]
        self._hold(gate, up)
        out = self._empty(*gate.shape)
        elementwise.each(self._program, verb, gate, up, out)
        return out

    def add_(self, x: np.ndarray, y: np.ndarray) -> None:
        self._hold(x, y)
        elementwise.each(self._program, elementwise.SUM, x, y, x)

    def scale_(self, x: np.ndarray, factor: float) -> None:
        self._hold(x)
        elementwise.each(self._program, elementwise.SCALED, x, x, x, factor)

    def softcap_(self, x: np.ndarray, cap: float) -> None:
        self._hold(x)
        elementwise.each(self._program, elementwise.CAPPED, x, x, x, cap)

    def concatenate(self, parts: list[np.ndarray]) -> np.ndarray:
        if len(parts) == 1:
            return parts[0]
        self._hold(*parts)
        out = self._empty(sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        start = 0
        for part in parts:
            elementwise.copy(self._program, part, out[start : start + part.shape[0]])
            start += part.shape[0]
        return out

    def log_masses(self, logits: np.ndarray) -> np.ndarray:
        recording = self._recording
        self._hold(logits)
        return self.to_host(likelihood.log_masses(recording.program, recording.pool, logits))

    def divergences(self, base: np.ndarray, logits: np.ndarray) -> np.ndarray:
        recording = self._recording
        self._hold(base, logits)
        out = likelihood.divergences(recording.program, recording.pool, base, logits)
        return self.to_host(out)

    def append(self, layer: LayerCache, k: np.ndarray, v: np.ndarray) -> None:
        layer.open_pages(k.shape[0])
        for side, x in ((layer.k, k), (layer.v, v)):
            self._append(layer, side, x)
        layer.count.pending += k.shape[0]

    def _append(
        self, layer: LayerCache, side: SideCache, x: np.ndarray, table: int | None = None
    ) -> None:
        recording = self._recording
        self._hold(x)
        where = recording.program, recording.pool, self.threads
        append(*where, side, x, recording.bad, len(recording.stored), table)
        recording.stored.append((layer.index, side))

    def attend(
        self,
        q: np.ndarray,
        layer: LayerCache,
        scale: float,
        softcap: float,
        bias: KeyBias | None = None,
    ) -> np.ndarray:
        if layer.k.queries is not None:
            rows = layer.k.query_rows(range(layer.k.type.tail_pages))
            note_queries(self._program, q, layer, rows)
        return self._attend(q, layer, scale, softcap, bias)

    def _attend(
        self,
        q: np.ndarray,
        layer: LayerCache,
        scale: float,
        softcap: float,
        bias: KeyBias | None,
        chunk: Chunk | None = None,
    ) -> np.ndarray:
        recording = self._recording
        self._hold(q)
        if bias is not None:
            self._hold(bias.queries, bias.bias, bias.table)
        where = recording.program, recording.pool, self.threads
        return attend(*where, q, layer, scale, softcap, bias, chunk)

    def extend(
        self,
        layer: LayerCache,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        scale: float,
        softcap: float,
        bias: KeyBias | None = None,
    ) -> np.ndarray:
        tokens, sinks = k.shape[0], layer.k.type.sink - layer.n
        if 0 < sinks < tokens:
            parts = [
                self.extend(layer, q[i], k[i], v[i], scale, softcap, bias and bias.of(i))
                for i in (slice(0, sinks), slice(sinks, tokens))
            ]
            return self.concatenate(parts)
        sides = layer.k, layer.v
        whole = sinks <= 0 and layer.share is None and all(packable(side.type) for side in sides)
        cuts = layer.cuts(tokens) if whole else []
        if len(cuts) < 2:
            return super().extend(layer, q, k, v, scale, softcap, bias)
        # every cut at once: its pages are open for their own queries and packed for those behind
        recording, first = self._recording, len(layer.k.pages)
        where = recording.program, recording.pool
        stages = [Stage(*where, side, tokens) for side in sides]
        for side, x, stage in zip(sides, (k, v), stages, strict=True):
            self._append(layer, side, x, stage.table)
        layer.count.pending += tokens
        if stages[0].queries:
            self._hold(q)
            note_queries(recording.program, q, layer, stages[0].rows_by_page(first))
        with recording.program.at_once():
            scratch = []
            for side, stage in zip(sides, stages, strict=True):
                if stage.full:
                    pages = new_places(recording.program, side, stage.full)
                    queries = stage.queries[: stage.full]
                    packed = side, stage.tails, pages, queries
                    scratch.append(pack_pages(*where, self.threads, *packed))
        chunk = Chunk(cuts, (stages[0].table, stages[1].table))
        return self._attend(q, layer, scale, softcap, bias, chunk)

    def seal(self, layer: LayerCache) -> None:
        layer.seal(self._pack)
        layer.shrink(self._repack)

    def _pack(self, side: SideCache, page: np.ndarray) -> None:
        recording = self._recording
        if not packable(side.type):
            self.finish()
            pack_tail(side, page)
            return
        recording.program.hold(side.table)
        oldest = range(len(side.pages), len(side.pages) + 1)
        tail, packed = (places(recording.program, [held]) for held in (side.tail, page))
        where = recording.program, recording.pool, self.threads
        pack_pages(*where, side, tail, packed, side.query_rows(oldest))
        place(recording.program, page, side.table, len(side.pages))

    def _repack(self, side: SideCache, page: np.ndarray, small: np.ndarray) -> None:
        self.finish()  # what came before reads the page as it is
        if not repackable(side):
            encode_small(side, page, small)
            return
        kind = side.type
        key = side.side, kind.format, kind.small, kind.page_tokens, side.kv_heads, side.head_dim
        if key not in self._repackings:
            self._repackings[key] = Repacking(self.threads, side)
        self._repackings[key].run(self._team, page, small)
