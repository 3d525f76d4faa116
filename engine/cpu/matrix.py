"""Weight matrices, and products of several of them with one input.

A few tokens: rows are multiplied as they stream from memory, 16 at a time, with activations in
16-bit integers.  Many tokens: panels of 32 rows are unpacked into cache and multiplied as matrices,
on tile registers with weights and activations rounded to bfloat16, or in float32 where there are
none.  Matrices of floats are multiplied to float32's precision: f32 and f16 in float32, bf16 with
activations as sums of two bfloat16.  Which way a product goes depends on its shape alone, and every
output belongs to one item, so results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.checkpoint import Tensor
from engine.cpu.activations import (
    FILL,
    QUANTIZE,
    ROUND,
    ROUND_TWICE,
    SHARE,
    quantized_nbytes,
)
from engine.cpu.amx import (
    TILE,
    sums_add_tiles,
    sums_load,
    sums_store,
    sums_zero,
    tiles_begin,
    tiles_end,
)
from engine.cpu.float_groups import FLOAT_GROUPS, pack_floats
from engine.cpu.groups import GROUPS, GroupVerbs
from engine.cpu.host import AMX
from engine.cpu.jit import Verb, call, field, inlined, kernel
from engine.cpu.layouts import LANES, LAYOUTS, SET
from engine.cpu.memory import Pool
from engine.cpu.packing import Packing
from engine.cpu.program import Program
from engine.cpu.simd import (
    f32x16,
    fma,
    load,
    load_f32,
    prefetch,
    splat,
    store,
    store_f32,
    zeros,
)
from engine.cpu.team import Team
from engine.memory import address
from engine.reference import dequantize

FEW = 4  # tokens up to which streaming the rows is the faster way
ITEM_NBYTES = 1 << 20  # of weights in an item at most
SHARES = 4  # items per thread: one that is held up delays the others by little
PANEL_SETS = 16  # sets unpacked at a time: 32 KB for 32 rows
_ROWS = 2 * LANES  # rows of a panel, tokens of a block


@dataclass(frozen=True)
class Matrix:
    """A weight matrix [rows, columns]: packed groups, uint8 `data` [groups, group bytes]."""

    type: str
    rows: int
    columns: int
    data: np.ndarray
    verbs: GroupVerbs

    @property
    def exact(self) -> bool:
        """Whether products are in float32 throughout."""
        return self.type in ("F32", "F16")

    @property
    def integer(self) -> bool:
        """Whether a few tokens are multiplied in integers."""
        return self.type in LAYOUTS


def matrix(tensor: Tensor, packing: Packing) -> Matrix:
    """The matrix of a tensor, there once `packing` has finished; types without kernels of ours are
    expanded to float32."""
    rows, columns = tensor.shape
    if tensor.type in LAYOUTS:
        return Matrix(tensor.type, rows, columns, packing.add(tensor), GROUPS[tensor.type])
    if tensor.type not in FLOAT_GROUPS:
        values = dequantize(tensor).view(np.uint8)
        tensor = Tensor(tensor.name, "F32", tensor.shape, values)
    data = pack_floats(tensor, packing.arena)
    return Matrix(tensor.type, rows, columns, data, FLOAT_GROUPS[tensor.type])


# Words of an entry: what all its matrices share, then a record per matrix.
_COUNT, _X, _X_STRIDE, _TOKENS, _SETS, _SCRATCH, _SCRATCH_NBYTES, _THREADS = range(1, 9)
_RECORDS, _RECORD = 9, 8
_FIRST, _VERB, _DATA, _NBYTES, _N, _SHARE, _Y, _BIAS = range(8)


@inlined
def _record(arguments, item):
    """The address of the record of the matrix that the item belongs to."""
    record = arguments + 8 * _RECORDS
    for _ in range(1, field(arguments, _COUNT)):
        if item >= field(record + 8 * _RECORD, _FIRST):
            record += 8 * _RECORD
    return record


@inlined
def _finish(record, sums, stride, tokens, group):
    """Write 16 sums per token, `stride` bytes apart, as outputs of the group's rows, with bias."""
    rows, bias = field(record, _N), field(record, _BIAS)
    r = group * LANES
    target = field(record, _Y) + 4 * r
    if r + LANES > rows:
        for t in range(tokens):
            _finish_some(target + 4 * rows * t, sums + stride * t, bias, r, rows - r)
        return
    offset = zeros(f32x16)
    if bias != 0:
        offset = load(f32x16, bias + 4 * r)
    for _ in range(tokens):
        store(target, load(f32x16, sums) + offset)
        target += 4 * rows
        sums += stride


@kernel
def _finish_some(target, sums, bias, r, n):
    """The same for one token and the first n rows of the last group."""
    for i in range(n):
        value = load_f32(sums + 4 * i)
        if bias != 0:
            value += load_f32(bias + 4 * (r + i))
        store_f32(target + 4 * i, value)


def _stream(arguments, item, slot):
    """Item: some pairs of groups, for a few tokens.

    Items go round the threads' parts of the matrix, so that each thread reads on where its last
    item ended, and a part is read in two places at once, its halves.
    """
    record, threads = _record(arguments, item), field(arguments, _THREADS)
    share, groups = field(record, _SHARE), (field(record, _N) + LANES - 1) // LANES
    round, part = divmod(item - field(record, _FIRST), threads)
    begin, end = part * groups // threads, (part + 1) * groups // threads
    half = (end - begin + 1) // 2
    for group in range(begin + round * share, begin + min((round + 1) * share, half)):
        # a middle group is its own partner
        _stream_pair(arguments, record, group, half if group + half < end else 0, slot)


def _stream_ahead(arguments, slot, step):
    """Ask for a KB of what the thread reads first: the beginnings of its part's halves."""
    record, threads = arguments + 8 * _RECORDS, field(arguments, _THREADS)
    groups, nbytes = (field(record, _N) + LANES - 1) // LANES, field(record, _NBYTES)
    begin, end = slot * groups // threads, (slot + 1) * groups // threads
    half = (end - begin + 1) // 2
    source = field(record, _DATA) + begin * nbytes + 512 * step
    if 512 * step < (end - begin - half) * nbytes:
        for line in range(source, source + 512, 64):
            prefetch(line)
            prefetch(line + half * nbytes)


@kernel
def _stream_pair(arguments, record, group, apart, slot):
    """A group and the one `apart` groups further on."""
    verb, nbytes = field(record, _VERB), field(record, _NBYTES)
    sums = field(arguments, _SCRATCH) + slot * field(arguments, _SCRATCH_NBYTES)
    x, stride = field(arguments, _X), field(arguments, _X_STRIDE)
    source, columns = field(record, _DATA) + group * nbytes, field(arguments, _SETS) * SET
    tokens = field(arguments, _TOKENS)
    for t in range(tokens):
        call(verb, (source, apart * nbytes, x + t * stride, columns, sums + 128 * t))
    _finish(record, sums, 128, tokens, group)
    _finish(record, sums + 64, 128, tokens, group + apart)


@kernel
def _tile_block(x, lower, rest, blocks, panel, n, sums, begin):
    """sums float32 [blocks, 32, 32] = or += x bf16 times a panel of n sets, on tile registers.

    x are tiles, those of the next 16 tokens `lower` bytes further on.  With `rest` not 0, it is the
    sum of two that are so many bytes apart.
    """
    for block in range(blocks):
        target, left = sums + 4096 * block, x + 2 * lower * block
        if begin:
            sums_zero()
        else:
            sums_load(target, 128)
        sums_add_tiles(left, left + lower, panel, panel + TILE * n, n)
        if rest != 0:
            left += rest
            sums_add_tiles(left, left + lower, panel, panel + TILE * n, n)
        sums_store(target, 128)


@kernel
def _plain_block(x, stride, blocks, panel, n, sums, begin):
    """The same in float32: x rows of `stride` bytes, both halves of the panel [32 n, 16]."""
    second = panel + 2048 * n
    for t in range(0, 32 * blocks, 4):
        rows, target = x + t * stride, sums + 128 * t
        a0, b0, a1, b1 = zeros(f32x16), zeros(f32x16), zeros(f32x16), zeros(f32x16)
        a2, b2, a3, b3 = zeros(f32x16), zeros(f32x16), zeros(f32x16), zeros(f32x16)
        for k in range(32 * n):
            a, b = load(f32x16, panel + 64 * k), load(f32x16, second + 64 * k)
            x0 = splat(f32x16, load_f32(rows + 4 * k))
            x1 = splat(f32x16, load_f32(rows + stride + 4 * k))
            x2 = splat(f32x16, load_f32(rows + 2 * stride + 4 * k))
            x3 = splat(f32x16, load_f32(rows + 3 * stride + 4 * k))
            a0, b0 = fma(x0, a, a0), fma(x0, b, b0)
            a1, b1 = fma(x1, a, a1), fma(x1, b, b1)
            a2, b2 = fma(x2, a, a2), fma(x2, b, b2)
            a3, b3 = fma(x3, a, a3), fma(x3, b, b3)
        _keep(target, a0, b0, begin)
        _keep(target + 128, a1, b1, begin)
        _keep(target + 256, a2, b2, begin)
        _keep(target + 384, a3, b3, begin)


@inlined
def _keep(target, a, b, begin):
    if not begin:
        a, b = a + load(f32x16, target), b + load(f32x16, target + 64)
    store(target, a)
    store(target + 64, b)


@inlined
def _multiply(arguments, item, slot, tiles):
    record = _record(arguments, item)
    block = item - field(record, _FIRST)
    rows, tokens, sets = field(record, _N), field(arguments, _TOKENS), field(arguments, _SETS)
    groups = min(2, (rows - block * _ROWS + LANES - 1) // LANES)
    panel = field(arguments, _SCRATCH) + slot * field(arguments, _SCRATCH_NBYTES)
    set_nbytes = 1024 if tiles else 2048
    sums = panel + 2 * set_nbytes * PANEL_SETS
    blocks = (tokens + _ROWS - 1) // _ROWS
    if tiles:
        tiles_begin(sums)
    for s in range(0, sets, PANEL_SETS):
        n = min(PANEL_SETS, sets - s)
        for g in range(groups):
            source = field(record, _DATA) + (2 * block + g) * field(record, _NBYTES)
            target = panel + g * set_nbytes * n
            call(field(record, _VERB), (source, sets * SET, s, n, target))
        x, stride = field(arguments, _X), field(arguments, _X_STRIDE)
        if tiles:
            _tile_block(x + TILE * s, TILE * sets, stride, blocks, panel, n, sums, s == 0)
        else:
            _plain_block(x + 4 * SET * s, stride, blocks, panel, n, sums, s == 0)
    if tiles:
        tiles_end()
    for g in range(groups):
        _finish(record, sums + 64 * g, 128, tokens, 2 * block + g)


def _multiply_tiles(arguments, item, slot):
    """Item: a panel of 32 rows, for many tokens."""
    _multiply(arguments, item, slot, True)


def _multiply_plain(arguments, item, slot):
    _multiply(arguments, item, slot, False)


_STREAM, _TILES, _PLAIN = Verb(_stream), Verb(_multiply_tiles), Verb(_multiply_plain)
_AHEAD = Verb(_stream_ahead)


class Products:
    """Records products into programs."""

    def __init__(self, team: Team, pool: Pool, tiles: bool = AMX) -> None:
        self.team, self.pool, self.tiles = team, pool, tiles

    def add(
        self,
        program: Program,
        weights: Sequence[Matrix],
        x: np.ndarray,
        biases: Sequence[np.ndarray | None],
    ) -> list[np.ndarray]:
        """y float32 [T, rows] = x [T, columns] W^T + bias per matrix."""
        outs = [self.pool.take((len(x), w.rows)) for w in weights]
        parts = list(zip(weights, biases, outs, strict=True))
        kinds = [(w.exact, w.integer) for w in weights]
        for kind in dict.fromkeys(kinds):
            alike = [part for part, own in zip(parts, kinds, strict=True) if own == kind]
            self._entry(program, alike, x)
        return outs

    def _entry(
        self,
        program: Program,
        parts: Sequence[tuple[Matrix, np.ndarray | None, np.ndarray]],
        x: np.ndarray,
    ) -> None:
        tokens, columns = x.shape
        first = parts[0][0]
        few, sets = tokens <= FEW, -(-columns // SET)
        tiles = self.tiles and not first.exact and not few
        if few:
            form = QUANTIZE if first.integer else FILL
        else:
            form = FILL if not tiles else ROUND if first.integer else ROUND_TWICE
        prepared, stride = self._prepare(program, form, x, sets, few)
        if few:
            verb, scratch = _STREAM, 128 * FEW
        else:
            verb = _TILES if tiles else _PLAIN
            blocks = -(-tokens // _ROWS)
            scratch = 2 * (1024 if tiles else 2048) * PANEL_SETS + 4096 * blocks
        memory = self.pool.take((self.team.threads, scratch), np.uint8)
        share = -(-sum(len(w.data) for w, _, _ in parts) // (2 * SHARES * self.team.threads))
        items, records = 0, []
        for w, bias, y in parts:
            nbytes = w.data.shape[1]
            pairs = max(1, min(share, ITEM_NBYTES // (2 * nbytes)))
            group_verb = w.verbs.dot if few else w.verbs.pairs if tiles else w.verbs.floats
            records += (
                items, group_verb.address, address(w.data), nbytes, w.rows, pairs,
                address(y), 0 if bias is None else address(bias),
            )  # fmt: skip
            items += self._rounds(len(w.data), pairs) if few else -(-len(w.data) // 2)
        arguments = program.add(
            verb, items, len(parts), address(prepared), stride, tokens, sets,
            address(memory), scratch, self.team.threads, *records,
            ahead=_AHEAD if few else None,
        )  # fmt: skip
        if len(parts) == 1:
            program.writes(parts[0][2], arguments + 8 * (_RECORDS + _Y))

    def _rounds(self, groups: int, pairs: int) -> int:
        """Items of so many pairs in all threads' parts."""
        threads = self.team.threads
        half = -(-groups // (2 * threads))
        return -(-half // pairs) * threads

    def _prepare(
        self, program: Program, form: Verb, x: np.ndarray, sets: int, few: bool
    ) -> tuple[np.ndarray, int]:
        """x in the form the product wants, padded to whole sets and blocks, and its stride."""
        tokens, columns = x.shape
        rows = tokens if few else -(-tokens // _ROWS) * _ROWS
        if columns < sets * SET or (form is FILL and rows > tokens):
            x = self._convert(program, FILL, x, (rows, 4 * SET * sets), 4 * SET * sets)
            x = x.view(np.float32)
        if form is FILL:
            return x, x.strides[0]
        if form is QUANTIZE:
            nbytes = quantized_nbytes(SET) * sets
            return self._convert(program, form, x[:tokens], (rows, nbytes), nbytes), nbytes
        # tiles do not lie in rows: the stride is that from upper halves to the rest, if any
        tile_nbytes = TILE * sets * rows // LANES
        rest = tile_nbytes if form is ROUND_TWICE else 0
        shape = (2 if rest else 1, tile_nbytes)
        return self._convert(program, form, x[:tokens], shape, rest), rest

    def _convert(
        self, program: Program, form: Verb, x: np.ndarray, shape: tuple[int, int], stride: int
    ) -> np.ndarray:
        tokens, columns = x.shape
        out = self.pool.take(shape, np.uint8)
        program.add(
            form, -(-tokens // SHARE),
            address(x), x.strides[0], address(out), stride, tokens, columns,
        )  # fmt: skip
        return out
