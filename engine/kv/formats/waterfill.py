"""int{b}wf and int{b}wfq, b = 2..4: per-channel codes of as many bits as each channel is worth.

A page of one KV head, P tokens, D = head_dim rounded up to 16 channels:

    | codes: P D b / 8 bytes | widths: 3 x D bits | n' u8 [P] | m u8 [D] | s u8 [D]
    | pairs f16: n' first, step | m first, step | s first, step |            layout version 1

    x[t, d] = n'[t] (m[d] + s[d] (code[t, d] - (2^w[d] - 1) / 2)),   codes of channel d: w[d] bits

Channels are *sorted*: by width, the widest first, then by number.  m and s stand in that order and
so do codes; widths, which define it, by channel: bit d of plane i is bit i of w[d].  m is a linear
code and n' and s are logarithmic ones (`engine.kv.formats.byte_codes`).

A width is shared by a *group* of consecutive sorted channels, so that codes of one width fill whole
sets of 8 steps of 64 (`engine.bits`): 16 channels for V, for K as few as that takes, 4 where P is a
multiple of 128.  The set of a group of width w is w lines of 64 bytes; width 0 takes none.

    K, step k: sorted channels 4 c .. 4 c + 3 of quad c = k div (P / 16), tokens 16 g .. 16 g + 15
    of g = k mod (P / 16); its code 4 i + j is that of token 16 g + i, channel 4 c + j.
    V, step k: sorted channels 16 c .. 16 c + 15 of c = k div (P / 4), tokens 4 g .. 4 g + 3 of
    g = k mod (P / 4); its code 4 i + j is that of channel 16 c + i, token 4 g + j.

      sorted channels   0-3   4-7   8-11  12-15  ...              K, b = 3, P = 128: the lines
      widths            5     4     4     3                       of the first sets
                      |x x x x x|x x x x|x x x x|x x x| ...

Recipe, u = x / |x|, r = max u - min u per channel over the page:

    widths  minimize sum (a r)^2 4^-w, 0 <= w <= 7, their mean b: reverse water-filling (Cover and
            Thomas, Elements of Information Theory, 10.3.3), whole bits to whole groups
    a       1; int{b}wfq, K: the RMS of the page's queries in the channel (`weights`), as an error
            of K reaches a score multiplied by q
    m, s    the range's middle; r / 2^w, rounded up: codes stand for the middles of equal cells
            (levels on the range's ends, s = r / (2^w - 1), cost 2.7 times the divergence at 2 bits
            and 1.1 times at 3)
    n'      |x| / |decoded u|

All in float64 but for what is decoded, lengths summed as in `engine.kv.formats.channels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

import numpy as np

from engine.bits import SET_STEPS, STEP_CODES, pack_steps, unpack_steps
from engine.kv.format import PAGE, KVFormat, Side
from engine.kv.formats.byte_codes import decode_linear, decode_log, encode_linear, encode_log
from engine.kv.formats.channels import LEAST_RESTORED, length, padded_dim

WIDTH_BITS = 3
MAX_WIDTH = (1 << WIDTH_BITS) - 1
_PAIRS_NBYTES = 12
_SET_CODES = SET_STEPS * STEP_CODES


def group_channels(tokens: int, side: Side) -> int:
    """How many sorted channels share a width in a page of `tokens`."""
    if side == "v":
        return 16
    return max(4, _SET_CODES // gcd(_SET_CODES, tokens))


def water_fill(reach: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Widths int64 [..., D] of mean `bits` that minimize sum reach^2 4^-width, float64 reach.

    Channels of similar reach form the groups that share a width.
    """
    order = np.argsort(-reach, axis=-1, kind="stable")
    sorted_reach = np.take_along_axis(reach, order, axis=-1)
    *lead, dim = reach.shape
    squares = np.square(sorted_reach).reshape(*lead, dim // group, group)
    power = squares[..., 0]
    for i in range(1, group):  # one after another: the order decides the last bit
        power = power + squares[..., i]
    # what a group's bit i + 1 is worth falls with i, so the most valuable bits of all, ties to the
    # lower bit and then to the earlier group, hold no bit without those below it
    worth = power[..., None, :] * 4.0 ** -np.arange(MAX_WIDTH)[:, None]
    ranked = np.argsort(-worth.reshape(*lead, -1), axis=-1, kind="stable")
    chosen = np.zeros(ranked.shape, np.int64)
    np.put_along_axis(chosen, ranked[..., : bits * dim // group], 1, axis=-1)
    by_group = chosen.reshape(worth.shape).sum(axis=-2)
    widths = np.empty(reach.shape, np.int64)
    np.put_along_axis(widths, order, by_group.repeat(group, axis=-1), axis=-1)
    return widths


@dataclass(frozen=True)
class _Page:
    """A page's parts, channels by number: codes uint8 [..., P, D], widths int64, m and s codes
    uint8 [..., D], n' codes uint8 [..., P]; the pairs float16 [..., 3, 2] of n', m and s."""

    codes: np.ndarray
    widths: np.ndarray
    norms: np.ndarray
    middles: np.ndarray
    steps: np.ndarray
    pairs: np.ndarray

    def decoded(self) -> np.ndarray:
        """float32 [..., P, D]."""
        norms = decode_log(self.norms, self.pairs[..., 0, :])
        return norms[..., None] * self.directions()

    def directions(self) -> np.ndarray:
        """What codes stand for, before norms: float32 [..., P, D]."""
        m, s, top = self.ranges()
        return m + s * (self.codes.astype(np.float32) - top / 2)

    def ranges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """m, s and the largest code, float32 [..., 1, D]."""
        m = decode_linear(self.middles, self.pairs[..., 1, :])
        s = decode_log(self.steps, self.pairs[..., 2, :])
        top = (1 << self.widths).astype(np.float32) - 1
        return m[..., None, :], s[..., None, :], top[..., None, :]


@dataclass(frozen=True, kw_only=True)
class WaterFilledFormat(KVFormat):
    """`bits` per code on average."""

    bits: int
    page_tokens: int = PAGE

    def codes_nbytes(self, tokens: int, head_dim: int) -> int:
        return tokens * padded_dim(head_dim) * self.bits // 8

    def page_nbytes(self, tokens: int, head_dim: int) -> int:
        channels = padded_dim(head_dim)
        metadata = channels * WIDTH_BITS // 8 + tokens + 2 * channels + _PAIRS_NBYTES
        return self.codes_nbytes(tokens, head_dim) + metadata

    def encode(self, x: np.ndarray, side: Side, weights: np.ndarray | None = None) -> np.ndarray:
        *lead, tokens, _ = x.shape
        page = self._quantize(x, side, weights if self.weighted and side == "k" else None)
        order = _order(page.widths)
        planes = page.widths[..., None, :] >> np.arange(WIDTH_BITS)[:, None] & 1
        sets = _to_sets(_take(page.codes, order), side)
        packed = _pack(sets, _set_widths(_take(page.widths, order), tokens, side))
        parts = (
            packed.reshape(*lead, -1),
            np.packbits(planes.astype(bool), axis=-1, bitorder="little").reshape(*lead, -1),
            page.norms,
            _take(page.middles, order),
            _take(page.steps, order),
            page.pairs.view(np.uint8).reshape(*lead, -1),
        )
        return np.concatenate(parts, axis=-1)

    def _quantize(self, x: np.ndarray, side: Side, weights: np.ndarray | None) -> _Page:
        """The recipe on float32 x [..., P, head_dim]; in channels of padding everything is 0."""
        *lead, tokens, dim = x.shape
        x = x.astype(np.float64)
        norm = length(x)
        u = x / np.where(norm > 0, norm, 1)
        low, high = u.min(axis=-2), u.max(axis=-2)
        reach = _padded(high - low)
        importance = reach if weights is None else reach * _padded(weights.astype(np.float64))
        widths = water_fill(importance, self.bits, group_channels(tokens, side))
        # the ends may be zeros of either sign: with 0 added there is one
        middles, middle_pair = encode_linear((low + high) / 2 + 0.0)
        # without codes a step has no use, and must not stretch the range of the others
        steps, step_pair = encode_log(reach * (widths > 0) * 2.0**-widths, up=True)
        pairs = np.zeros((*lead, 3, 2), np.float16)
        pairs[..., 1, :], pairs[..., 2, :] = middle_pair, step_pair
        page = _Page(
            np.zeros((*lead, tokens, widths.shape[-1]), np.uint8),
            widths,
            np.zeros((*lead, tokens), np.uint8),
            _padded(middles),
            steps,
            pairs,
        )
        m, s, top = (part[..., :dim] for part in page.ranges())
        scaled = np.where(s > 0, (u - m) / np.where(s > 0, s, 1) + top / 2, 0)
        page.codes[..., :dim] = np.clip(np.rint(scaled), 0, top)
        decoded = page.directions()[..., :dim].astype(np.float64)
        gain = np.maximum(length(decoded), np.float64(LEAST_RESTORED))
        page.norms[:], pairs[..., 0, :] = encode_log((norm / gain)[..., 0])
        return page

    def decode(self, page: np.ndarray, head_dim: int, side: Side) -> np.ndarray:
        tokens, channels, lead = self.page_tokens, padded_dim(head_dim), page.shape[:-1]
        packed, widths, norms, middles, steps, pairs = self._parts(page, head_dim)
        order = _order(widths)
        place = np.argsort(order, axis=-1)
        sets = _unpack(packed.reshape(-1), _set_widths(_take(widths, order), tokens, side))
        codes = _from_sets(sets, tokens, channels, side).reshape(*lead, tokens, channels)
        found = _Page(
            _take(codes, place), widths, norms, _take(middles, place), _take(steps, place), pairs
        )
        return found.decoded()[..., :head_dim]

    def power(self, page: np.ndarray, head_dim: int, side: Side) -> np.ndarray | None:
        """Water-filling leaves a s alike in all channels that have codes, to within a bit."""
        if not (self.weighted and side == "k"):
            return None
        _, widths, _, _, codes, pairs = self._parts(page, head_dim)
        steps = decode_log(_take(codes, np.argsort(_order(widths), axis=-1)), pairs[..., 2, :])
        # a channel without codes is packed as a constant, whatever its weight
        known = (widths > 0) & (steps > 0)
        squares = np.where(known, 1 / np.square(np.where(known, steps, 1)), 0)
        return squares[..., :head_dim].astype(np.float32)

    def _parts(self, page: np.ndarray, head_dim: int) -> tuple[np.ndarray, ...]:
        """A page's fields: packed codes, widths by channel int64 [..., D], codes of n', of m and s
        sorted, and the pairs float16 [..., 3, 2]."""
        channels, lead = padded_dim(head_dim), page.shape[:-1]
        sizes = (
            self.codes_nbytes(self.page_tokens, head_dim),
            channels * WIDTH_BITS // 8,
            self.page_tokens,
            channels,
            channels,
        )
        packed, planes, norms, middles, steps, pairs = np.split(page, np.cumsum(sizes), axis=-1)
        planes = planes.reshape(*lead, WIDTH_BITS, -1)
        bits = np.unpackbits(planes, axis=-1, bitorder="little").astype(np.int64)
        widths = (bits << np.arange(WIDTH_BITS)[:, None]).sum(axis=-2)
        pairs = np.ascontiguousarray(pairs).view(np.float16).reshape(*lead, 3, 2)
        return packed, widths, norms, middles, steps, pairs


def _padded(channels: np.ndarray) -> np.ndarray:
    """[..., D] from [..., head_dim], zeros behind."""
    *lead, dim = channels.shape
    wide = np.zeros((*lead, padded_dim(dim)), channels.dtype)
    wide[..., :dim] = channels
    return wide


def _order(widths: np.ndarray) -> np.ndarray:
    """The sorted channels' numbers, int64 [..., D]."""
    return np.argsort(-widths, axis=-1, kind="stable")


def _take(x: np.ndarray, order: np.ndarray) -> np.ndarray:
    """x [..., D] or [..., P, D] with its channels in `order` [..., D]."""
    rows = order if x.ndim == order.ndim else order[..., None, :]
    return np.take_along_axis(x, rows, axis=-1)


def _set_widths(widths: np.ndarray, tokens: int, side: Side) -> np.ndarray:
    """The width of every set, int64 [sets of all heads], from those of the sorted channels."""
    group = group_channels(tokens, side)
    return widths[..., ::group].repeat(group * tokens // _SET_CODES, axis=-1).reshape(-1)


def _to_sets(codes: np.ndarray, side: Side) -> np.ndarray:
    """uint8 [..., P, D] to sets [sets of all heads, 8, 64]."""
    *_, tokens, dim = codes.shape
    if side == "k":
        steps = codes.reshape(-1, tokens // 16, 16, dim // 4, 4).transpose(0, 3, 1, 2, 4)
    else:
        steps = codes.reshape(-1, tokens // 4, 4, dim // 16, 16).transpose(0, 3, 1, 4, 2)
    return steps.reshape(-1, SET_STEPS, STEP_CODES)


def _from_sets(sets: np.ndarray, tokens: int, dim: int, side: Side) -> np.ndarray:
    """Inverse of `_to_sets`: uint8 [heads, P, D]."""
    if side == "k":
        codes = sets.reshape(-1, dim // 4, tokens // 16, 16, 4).transpose(0, 2, 3, 1, 4)
    else:
        codes = sets.reshape(-1, dim // 16, tokens // 4, 16, 4).transpose(0, 2, 4, 1, 3)
    return codes.reshape(-1, tokens, dim)


def _places(widths: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For every width that occurs: the sets that have it, and where their bytes lie [n, 64 w]."""
    sizes = STEP_CODES * widths
    starts = np.cumsum(sizes) - sizes
    for w in range(1, MAX_WIDTH + 1):
        here = np.flatnonzero(widths == w)
        if here.size:
            yield w, here, starts[here, None] + np.arange(STEP_CODES * w)


def _pack(sets: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Sets uint8 [n, 8, 64], one after another in as many bytes as their widths [n] take."""
    packed = np.empty(STEP_CODES * widths.sum(), np.uint8)
    for w, here, places in _places(widths):
        packed[places] = pack_steps(sets[here], w)
    return packed


def _unpack(packed: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Inverse of `_pack`; sets without codes are zeros."""
    sets = np.zeros((len(widths), SET_STEPS, STEP_CODES), np.uint8)
    for w, here, places in _places(widths):
        sets[here] = unpack_steps(packed[places], w, SET_STEPS, STEP_CODES)
    return sets


WATER_FILLED: tuple[WaterFilledFormat, ...] = tuple(
    WaterFilledFormat(name=f"int{bits}wf{'q' * weighted}", bits=bits, weighted=weighted)
    for bits in (4, 3, 2)
    for weighted in (False, True)
)
