"""What a cache with a budget holds, told from a model's header: bytes, small pages, tokens.

The shares of the layers are those that `engine.kv.budget` gives a session.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from engine.kv.budget import Budget, TooSmall, allot
from engine.kv.cache import LayerCache
from engine.kv.policy import Policy
from engine.model.spec import ModelSpec
from engine.session import CHUNK
from tools.plan import SIDES, side_nbytes, side_pages


@dataclass(frozen=True)
class Held:
    """What is held after `tokens` tokens: `nbytes`, and of keys and of values how many `pages`
    there are, those of a tail not among them, and how many of these are `small`."""

    tokens: int
    nbytes: int
    pages: tuple[int, int]
    small: tuple[int, int]

    @property
    def shares(self) -> tuple[float, float]:
        """Which share of the pages of keys and of values is small."""
        k, v = (small / max(pages, 1) for small, pages in zip(self.small, self.pages, strict=True))
        return k, v


class BudgetPlan:
    """A budget for sessions of the model `spec`, stored as `policy` says.

    Raises InputError for smaller types that cannot be, or are not smaller.
    """

    def __init__(self, spec: ModelSpec, policy: Policy, budget: Budget) -> None:
        self._spec, self._budget = spec, budget
        of_layers = policy.of_layers(len(spec.layers))
        changed = {pair: budget.types(*pair) for pair in dict.fromkeys(of_layers)}
        self.types = [changed[pair] for pair in of_layers]
        self.capacity = self._allotted(spec.n_ctx_train)[1]

    @property
    def shrinks_from(self) -> int | None:
        """The smallest context that ends with small pages, None if none does."""

        def shrinks(n_ctx: int) -> bool:
            layers, capacity = self._allotted(n_ctx)
            for layer in layers:
                layer.count.settle(capacity)
            return any(any(layer.must_shrink(0, 0)) for layer in layers)

        n = bisect_left(range(1, self.capacity + 1), True, key=shrinks)
        return None if n == self.capacity else n + 1

    def held(self, n_ctx: int, tokens: int | None = None) -> Held:
        """What a session of at most `n_ctx` tokens holds after `tokens`, by default after as many
        as fit the context and the budget."""
        layers, capacity = self._allotted(n_ctx)
        n = capacity if tokens is None else tokens
        nbytes, pages, small = 0, [0, 0], [0, 0]
        known: dict[object, tuple[int, int]] = {}  # of layers that are alike
        for layer, spec in zip(layers, self._spec.layers, strict=True):
            alike = spec.attention, layer.k.type, layer.v.type, layer.share and layer.share.nbytes
            if alike not in known:
                known[alike] = _shrunk(layer, n)
            shrunk = known[alike]
            for i, side in enumerate((layer.k, layer.v)):
                held = side_pages(side.type, spec.attention, n)
                nbytes += side_nbytes(SIDES[i], side.type, spec.attention, n, shrunk[i])
                pages[i] += len(held)
                small[i] += max(0, shrunk[i] - held.start)
        return Held(n, nbytes, (pages[0], pages[1]), (small[0], small[1]))

    def _allotted(self, n_ctx: int) -> tuple[list[LayerCache], int]:
        """Empty layers with their shares, and the most tokens that fit, 0 if none do."""
        layers = []
        for i, (spec, (k, v)) in enumerate(zip(self._spec.layers, self.types, strict=True)):
            a = spec.attention
            layers.append(LayerCache((k, v), a.kv_heads, a.head_dim, n_ctx, a.window, i))
        try:
            return layers, allot(layers, self._budget.nbytes, n_ctx, CHUNK)
        except TooSmall:
            return layers, 0


def _shrunk(layer: LayerCache, tokens: int) -> tuple[int, int]:
    """How many pages of keys and of values have become small on the way to `tokens` tokens: page
    end by page end, as small pages stay so."""
    ends: set[int] = set()
    for kind in (layer.k.type, layer.v.type):
        first = kind.sink + (kind.recent if kind.tail else 0) + kind.page_tokens
        ends.update(range(first, tokens + 1, kind.page_tokens))
    k = v = 0
    for n in sorted(ends):
        layer.count.settle(n)
        k, v = layer.must_shrink(k, v)
    return k, v
