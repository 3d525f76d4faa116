"""What a generation cost: the closing line, and the same as data."""

from __future__ import annotations

from typing import Any

from engine import Session
from engine.kv.format import PAGE, Side
from engine.kv.formats import F16
from minikv.generate import Generation
from minikv.text import size

_SIDES: dict[Side, str] = {"k": "keys", "v": "values"}


def closing_line(generation: Generation, session: Session) -> str:
    """Tokens and speed of prompt and answer, and the cache's size against f16."""
    g = generation
    cached = f" (+{g.cached_tokens} cached)" if g.cached_tokens else ""
    name = "/".join(cache_types(session)) + exact_tokens(session)
    kept = f"{size(session.cache.nbytes)}{_told_budget(session)}"
    return " | ".join(
        (
            f"prompt {g.prompt_tokens} tokens{cached}{_speed(g.prompt_tokens, g.prompt_seconds)}",
            f"decode {len(g.tokens)} tokens{_speed(g.decode_steps, g.decode_seconds)}",
            f"KV {name}, {kept}, {_ratio(session):.2f}x of f16",
        )
    )


def as_data(generation: Generation, session: Session) -> dict[str, Any]:
    """The generation as JSON values; seconds are of the model and sampler alone."""
    g = generation
    k, v = cache_types(session)
    return {
        "text": g.text,
        "finish": g.finish,
        "tokens": g.tokens,
        "timings": {
            "prompt_tokens": g.prompt_tokens,
            "cached_tokens": g.cached_tokens,
            "prompt_seconds": round(g.prompt_seconds, 6),
            "decode_tokens": len(g.tokens),
            "decode_seconds": round(g.decode_seconds, 6),
            "prompt_tokens_per_second": _rate(g.prompt_tokens, g.prompt_seconds),
            "decode_tokens_per_second": _rate(g.decode_steps, g.decode_seconds),
        },
        "kv": {
            "ctk": k,
            "ctv": v,
            "sink": sinks(session),
            "recent": recent(session),
            "n_ctx": session.n_ctx,
            "tokens": len(session.tokens),
            "bytes": session.cache.nbytes,
            "f16_bytes": f16_nbytes(session),
        }
        | _budget(session),
    }


def _budget(session: Session) -> dict[str, Any]:
    """What a budget did, as JSON values; empty without one."""
    cache = session.cache
    if cache.budget is None:
        return {}
    found = {"budget_bytes": cache.budget, "budget_tokens": cache.capacity}
    for side in _SIDES:
        name, share = _smaller(session, side)
        found |= {f"budget_ct{side}": name, f"small_{side}": round(share, 4)}
    return found


def _told_budget(session: Session) -> str:
    """The same for the closing line, behind the bytes."""
    budget = session.cache.budget
    if budget is None:
        return ""
    found = ((_smaller(session, side), name) for side, name in _SIDES.items())
    parts = [f"{share:.0%} of {name} {small}" for (small, share), name in found if share]
    return f" of {size(budget)}" + f" ({', '.join(parts)})" * bool(parts)


def _smaller(session: Session, side: Side) -> tuple[str | None, float]:
    """The smaller types of keys or values, and which share of their full pages is in them."""
    sides = [layer.k if side == "k" else layer.v for layer in session.cache.layers]
    pages = [i < s.shrunk[0] for s in sides for i, page in enumerate(s.pages) if page is not None]
    names = dict.fromkeys(s.type.small.name for s in sides if s.type.small is not None)
    return ",".join(names) or None, sum(map(int, pages)) / max(len(pages), 1)


def cache_types(session: Session) -> tuple[str, str]:
    """The names of the key and value types, several with commas between, in order of the layers."""
    pairs = [(layer.k.type.name, layer.v.type.name) for layer in session.cache.layers]
    k, v = (",".join(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    return k, v


def sinks(session: Session) -> int:
    """How many first tokens stay exact."""
    return session.cache.layers[0].k.type.sink


def recent(session: Session) -> int:
    """How many of the newest tokens are exact at least, where any are."""
    sides = (side for layer in session.cache.layers for side in (layer.k, layer.v))
    return max(side.type.recent for side in sides)


def exact_tokens(session: Session) -> str:
    """What stands behind the names of types: "+sink4+recent128"."""
    counts = {"sink": sinks(session), "recent": recent(session)}
    return "".join(f"+{name}{n}" for name, n in counts.items() if n)


def f16_nbytes(session: Session) -> int:
    """Bytes that a cache of f16 pages would have allocated for the session's tokens."""
    total = 0
    for layer in session.cache.layers:
        pages = -(-layer.n // PAGE)
        if layer.window is not None:
            # pages are freed one page behind the window, as `LayerCache.evict` does
            pages -= max(0, layer.n // PAGE * PAGE - layer.window - PAGE) // PAGE
        for side in (layer.k, layer.v):
            total += pages * side.kv_heads * F16.page_nbytes(PAGE, side.head_dim)
    return total


def _ratio(session: Session) -> float:
    return session.cache.nbytes / max(f16_nbytes(session), 1)


def _rate(tokens: int, seconds: float) -> float | None:
    """Tokens per second; None when there was nothing to time."""
    return round(tokens / seconds, 2) if tokens and seconds > 0 else None


def _speed(tokens: int, seconds: float) -> str:
    rate = _rate(tokens, seconds)
    if rate is None:
        return ""
    return f", {rate:.0f} t/s" if rate >= 100 else f", {rate:.1f} t/s"
