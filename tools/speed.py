"""How fast a cache is at the depth of a window, and how many bytes the window takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from engine.kv.modifiers import PLAIN
from engine.kv.policy import Policy
from engine.model.load import Model
from engine.session import Session

STEPS = 16  # tokens decoded one by one at the window's end
REPEATS = 2  # the best one counts: other work on the machine only ever slows a run down


def tokens_per_second(model: Model, window: Sequence[int], policy: Policy) -> tuple[float, float]:
    """(prompt, decoding) speed: `window` is a prompt but for its last tokens, read one by one."""
    steps = min(STEPS, len(window) // 2)
    cut = len(window) - steps
    runs = []
    for _ in range(REPEATS):
        session = Session(model, n_ctx=len(window), policy=policy)
        start = time.perf_counter()
        session.extend(window[:cut])
        middle = time.perf_counter()
        for token in window[cut:]:
            session.extend([token])
        runs.append((middle - start, time.perf_counter() - middle))
    prompt, decoding = (min(seconds) for seconds in zip(*runs, strict=True))
    return cut / prompt, steps / decoding


def side_bytes(model: Model, window: Sequence[int], policy: Policy) -> tuple[int, int]:
    """Bytes allocated for the keys and for the values of `window`."""
    # modifiers change no bytes, and some are for keys alone
    plain = policy.mapped(lambda kind: replace(kind, modifiers=PLAIN))
    session = Session(model, n_ctx=len(window), policy=plain)
    session.extend(window)
    layers = session.cache.layers
    return sum(layer.k.nbytes for layer in layers), sum(layer.v.nbytes for layer in layers)
