"""What a model takes in memory, told from its header: weights, KV cache and scratch, in bytes.

Nothing is loaded: the cache follows, to the byte, from the page sizes of its types, as
`engine.kv.cache` allocates them; scratch is estimated from the shapes that one step computes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter

from engine.checkpoint import Checkpoint
from engine.errors import InputError
from engine.kv.cache import CacheType
from engine.kv.format import Side
from engine.kv.policy import Policy
from engine.model.archs import spec_of
from engine.model.decoder import ROPE_POSITIONS
from engine.model.spec import AttentionSpec, LayerSpec
from engine.session import CHUNK
from tools.results import Cell, Results

SIDES: tuple[Side, Side] = ("k", "v")
# how many layers have the same keys, or values, stored alike
_Alike = Counter[tuple[Side, CacheType, AttentionSpec]]

# The CPU backend's pool has blocks of powers of two and keeps those of every size: 2.2 to 3.0 times
# the activations alive at once, measured on three models with prompts of 1024 tokens.
POOL = 3
_FLOAT = 4  # bytes of an activation
_ADDRESS = 8  # bytes of a page's address


class Plan:
    """Memory for sessions of the model in `checkpoint`.

    `weights` are the bytes of its tensors; a backend may order them anew and pad their rows.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.spec = spec_of(checkpoint)
        self.weights = sum(tensor.data.nbytes for tensor in checkpoint.tensors.values())

    def cache(self, policy: Policy, tokens: int, n_ctx: int | None = None) -> int:
        """Bytes that a session's cache holds after `tokens` tokens, tails included; `n_ctx` is its
        context, by default the model's."""
        return _nbytes(self._sides(policy, n_ctx or self.spec.n_ctx_train), tokens)

    def cache_most(self, policy: Policy, n_ctx: int) -> int:
        """The most that it holds on the way to `n_ctx` tokens: a sliding window frees its pages
        behind itself, so more tokens can take less."""
        ends, sides = {n_ctx}, self._sides(policy, n_ctx)
        for _, kind, a in sides:
            if a.window is not None:
                # pages are freed at the ends of pages: before them most is held
                ends.update(range(kind.page_tokens - 1, n_ctx, kind.page_tokens))
        return max(_nbytes(sides, n) for n in ends)

    def scratch(self, policy: Policy, n_ctx: int) -> int:
        """Bytes beside weights and cache, at most: page tables and rotation tables, exactly, and
        the pool that holds the activations of one step, estimated from above."""
        sides = self._sides(policy, n_ctx)
        pages = (n * (1 + -(-n_ctx // kind.page_tokens)) for (_, kind, _), n in sides.items())
        tables = _ADDRESS * sum(pages)
        positions = ROPE_POSITIONS
        while positions < n_ctx:
            positions *= 2  # as the decoder lets them grow
        ropes = {a.rope for _, _, a in sides}
        tables += sum(_FLOAT * positions * rope.dims for rope in ropes)
        step = max(self._step_values(layer) for layer in set(self.spec.layers))
        activations = min(n_ctx, CHUNK) * step + self.spec.n_vocab
        return tables + POOL * _FLOAT * activations

    def total(self, policy: Policy, n_ctx: int) -> int:
        """Everything, for a session of up to `n_ctx` tokens."""
        return self.weights + self.cache_most(policy, n_ctx) + self.scratch(policy, n_ctx)

    def largest_context(self, policy: Policy, memory: int) -> int:
        """The most tokens, up to the model's context, whose total is within `memory` bytes; 0 if
        not even one is."""
        contexts = range(1, self.spec.n_ctx_train + 1)
        return bisect_right(contexts, memory, key=lambda n: self.total(policy, n))

    def _sides(self, policy: Policy, n_ctx: int) -> _Alike:
        found: _Alike = Counter()
        pairs = policy.of_layers(len(self.spec.layers))
        for layer, pair in zip(self.spec.layers, pairs, strict=True):
            a = layer.attention
            seen = n_ctx if a.window is None else min(n_ctx, a.window)
            for side, kind in zip(SIDES, pair, strict=True):
                found[side, kind.within(seen), a] += 1
        return found

    def _step_values(self, layer: LayerSpec) -> int:
        """Activations per token where most are alive: residual and normed states, beside either
        projections, rotated copies and mixed heads, or gate, up and their product."""
        a = layer.attention
        attention = a.head_dim * (4 * a.heads + 2 * a.kv_heads)
        return 2 * self.spec.n_embd + max(attention, 3 * layer.feed_forward.width)


def cheapest(results: Results, plan: Plan, n_ctx: int, bound: float) -> Cell | None:
    """The measured pair or policy of the smallest cache at `n_ctx` tokens whose mean KLD, in nats,
    is at most `bound`; None if there is none.  Raises InputError for results without a KLD."""
    measured = [cell for cell in results.cells() if "mean_kld" in cell.values]
    if not measured:
        raise InputError(f"{results.path}: no cell has a KLD; measure one with --metrics kld")
    good = [cell for cell in measured if cell.values["mean_kld"] <= bound]

    sink = results.identity.get("sink", 0)

    def cost(cell: Cell) -> tuple[int, float]:
        return plan.cache_most(cell.stored(sink), n_ctx), cell.values["mean_kld"]

    return min(good, key=cost, default=None)


def _nbytes(sides: _Alike, tokens: int) -> int:
    return sum(n * side_nbytes(*side, tokens) for side, n in sides.items())


def _freed(kind: CacheType, a: AttentionSpec, tokens: int) -> int:
    """Tokens behind the sinks that lie a page and more before the window; -1 while the sinks do
    not."""
    size = kind.page_tokens
    if a.window is None:
        return -1
    return max(-1, tokens // size * size - a.window - size - kind.sink)


def side_pages(kind: CacheType, a: AttentionSpec, tokens: int) -> range:
    """The pages that one layer's keys or values have after `tokens` tokens, a tail's not among
    them."""
    size, paged = kind.page_tokens, max(0, tokens - kind.sink)
    end = -(-paged // size) if kind.tail is None else kind.sealed(paged)
    return range(max(0, _freed(kind, a, tokens)) // size, end)


def side_nbytes(side: Side, kind: CacheType, a: AttentionSpec, tokens: int, shrunk: int = 0) -> int:
    """Bytes of one layer's keys or values, as `SideCache` holds them after `tokens` tokens, the
    oldest `shrunk` pages being in the smaller type."""
    size, pages = kind.page_tokens, side_pages(kind, a, tokens)
    small = max(0, shrunk - pages.start)
    nbytes = (len(pages) - small) * kind.format.page_nbytes(size, a.head_dim)
    if kind.small is not None:
        nbytes += small * kind.small.page_nbytes(size, a.head_dim)
    if tokens and _freed(kind, a, tokens) < 0:
        nbytes += kind.sink_format.page_nbytes(kind.sink, a.head_dim)
    if kind.tail is not None:
        nbytes += kind.tail_nbytes(a.head_dim, side, max(0, tokens - kind.sink))
    return a.kv_heads * nbytes
