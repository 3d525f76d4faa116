"""What a model takes in memory, as a table and as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from engine import Budget, InputError
from engine.kv.formats import BF16, KV_FORMATS
from engine.kv.policy import Policy
from engine.model.load import open_checkpoint
from minikv.info import table
from minikv.progress import TerminalProgress
from minikv.sources import resolve
from minikv.text import nbytes_of, one_line, size
from tools.doctor import BOUND
from tools.plan import Plan, cheapest
from tools.plan_budget import BudgetPlan
from tools.ppl import files_sha256
from tools.results import Cell, Pair, Results, cell_name

_BUDGET_LEGEND = (
    "in brackets: pages of keys/values that are small at that context's end; small from: the "
    "shortest context that ends with any"
)

Policies = dict[Pair, Policy]  # by the names of the keys' and the values' types


@dataclass(frozen=True)
class Request:
    """What is asked.  Empty `contexts` are the model's choice; `memory` is for everything, `budget`
    for the cache alone."""

    contexts: tuple[int, ...]
    policies: Policies
    memory: int | None
    database: Path | None
    bound: float
    budget: Budget | None = None

    @classmethod
    def of(
        cls,
        contexts: str | None,
        policies: Policies,
        memory: str | None,
        database: Path | None,
        bound: float | None,
        budget: Budget | None = None,
    ) -> Request:
        """From the options as given.  Raises InputError for what cannot be read."""
        for name, option in ((memory, "--memory"), (database, "--db")):
            if budget is not None and name is not None:
                raise InputError(
                    f"{option} is for caches that keep their types; give it or --kv-budget"
                )
        if bound is not None and database is None:
            raise InputError("--bound needs --db: only what a sweep has measured can be judged")
        return cls(
            () if contexts is None else tuple(map(_context, _items(contexts, "-c"))),
            policies,
            None if memory is None else nbytes_of("--memory", memory),
            database,
            BOUND if bound is None else bound,
            budget,
        )


def plan(name: str, request: Request, as_json: bool) -> None:
    """Print what the model `name` takes on stdout."""
    results = None if request.database is None else Results.read(request.database)
    checkpoint = open_checkpoint(resolve(name, progress=TerminalProgress()))
    found = Plan(checkpoint)
    contexts = _contexts(found, request)
    described = _describe(name, found, request, contexts)
    if results is not None:
        _check_model(results, files_sha256(checkpoint.paths), name)
        cell = cheapest(results, found, contexts[-1], request.bound)
        sink = results.identity.get("sink", 0)
        described["cheapest"] = _cheapest(found, request, cell, sink, contexts[-1])
    if as_json:
        print(json.dumps(described))
    else:
        _print(described)


def _describe(
    name: str, found: Plan, request: Request, contexts: tuple[int, ...]
) -> dict[str, Any]:
    return {
        "model": name,
        "n_ctx_train": found.spec.n_ctx_train,
        "weights_bytes": found.weights,
        "memory_bytes": request.memory,
        **({} if request.budget is None else {"budget_bytes": request.budget.nbytes}),
        "pairs": [_pair(found, request, *each, contexts) for each in request.policies.items()],
    }


def _pair(
    found: Plan, request: Request, pair: Pair, policy: Policy, contexts: tuple[int, ...]
) -> dict[str, Any]:
    sizes = [
        {
            "n_ctx": n,
            "cache_bytes": found.cache_most(policy, n),
            "scratch_bytes": found.scratch(policy, n),
            "total_bytes": found.total(policy, n),
        }
        for n in contexts
    ]
    described: dict[str, Any] = {
        "ctk": pair[0], "ctv": pair[1], "sink": policy.sink, "recent": policy.recent,
        "contexts": sizes,
    }  # fmt: skip
    if request.memory is not None:
        described["largest_context"] = found.largest_context(policy, request.memory)
    if request.budget is not None:
        _add_budget(described, found, policy, request.budget)
    return described


def _add_budget(described: dict[str, Any], found: Plan, policy: Policy, budget: Budget) -> None:
    """What becomes of a pair in a budget: exact bytes at the end of each context."""
    planned = BudgetPlan(found.spec, policy, budget)
    for side, kinds in zip("kv", zip(*planned.types, strict=True), strict=True):
        names = dict.fromkeys(kind.small.name for kind in kinds if kind.small is not None)
        described[f"budget_ct{side}"] = ",".join(names) or None
    described |= {"budget_tokens": planned.capacity, "shrinks_from": planned.shrinks_from}
    for context in described["contexts"]:
        held = planned.held(context["n_ctx"])
        small_k, small_v = (round(share, 4) for share in held.shares)
        most = min(context["cache_bytes"], budget.nbytes)
        context["total_bytes"] += most - context["cache_bytes"]
        context |= {"tokens": held.tokens, "cache_bytes": held.nbytes}
        context |= {"small_k": small_k, "small_v": small_v}


def _cheapest(
    found: Plan, request: Request, cell: Cell | None, sink: int, n_ctx: int
) -> dict[str, Any]:
    chosen: dict[str, Any] = {"bound": request.bound, "pair": None}
    if cell is not None:
        chosen["pair"] = _pair(found, request, cell.pair, cell.stored(sink), (n_ctx,))
        chosen["mean_kld"] = cell.values["mean_kld"]
    return chosen


def _print(d: dict[str, Any]) -> None:
    # wide enough for any table: a narrow terminal may break lines, but none is cut
    console = Console(width=240, soft_wrap=True, markup=False, highlight=False)
    first = d["pairs"][0]["contexts"]
    scratch = ", ".join(f"{size(c['scratch_bytes'])} at {c['n_ctx']}" for c in first)
    console.print(f"{d['model']}: weights {size(d['weights_bytes'])}")
    console.print(f"scratch by context: {scratch}\n")
    if "budget_bytes" in d:
        console.print(f"KV budget {size(d['budget_bytes'])}; {_BUDGET_LEGEND}\n")
    headings = [*(f"cache {c['n_ctx']}" for c in first), f"total {first[-1]['n_ctx']}"]
    if d["memory_bytes"] is not None:
        headings.append(f"context in {size(d['memory_bytes'])}")
    if "budget_bytes" in d:
        headings = ["small type", *headings, "small from", "most tokens"]
    rows = table("KV type", *headings)
    for pair in d["pairs"]:
        cells = _cells if "budget_tokens" not in pair else _budget_cells
        rows.add_row(_both(pair["ctk"], pair["ctv"]), *cells(pair, d["n_ctx_train"]))
    console.print(rows)
    if "cheapest" in d:
        console.print(f"\n{_cheapest_line(d['cheapest'])}")


def _cells(pair: dict[str, Any], n_ctx_train: int) -> list[str]:
    sizes = [size(c["cache_bytes"]) for c in pair["contexts"]]
    sizes.append(size(pair["contexts"][-1]["total_bytes"]))
    room = pair.get("largest_context")
    if room is not None:
        sizes.append("nothing" if not room else f"{room}{' (all)' * (room == n_ctx_train)}")
    return sizes


def _budget_cells(pair: dict[str, Any], n_ctx_train: int) -> list[str]:
    contexts, most = pair["contexts"], pair["budget_tokens"]
    if not most:
        return ["", *("too small" for _ in contexts), "", "", "0"]
    sizes = ["full" if c["tokens"] < c["n_ctx"] else _shrunk(c) for c in contexts]
    return [
        _both(*(pair[f"budget_ct{side}"] or "none" for side in "kv")),
        *sizes,
        size(contexts[-1]["total_bytes"]),
        str(pair["shrinks_from"] or "never"),
        f"{most}{' (all)' * (most == n_ctx_train)}",
    ]


def _shrunk(context: dict[str, Any]) -> str:
    k, v = context["small_k"], context["small_v"]
    return size(context["cache_bytes"]) + f" ({k:.0%}/{v:.0%})" * bool(k or v)


def _both(k: str, v: str) -> str:
    return one_line(k if k == v else f"{k}/{v}")


def _cheapest_line(cheapest: dict[str, Any]) -> str:
    pair, bound = cheapest["pair"], cheapest["bound"]
    if pair is None:
        return f"no measured pair has a mean KLD of at most {bound:g}"
    (context,) = pair["contexts"]
    return (
        f"cheapest measured pair with a mean KLD of at most {bound:g}: "
        f"{cell_name((pair['ctk'], pair['ctv']))}, {cheapest['mean_kld']:.6f}; "
        f"{size(context['cache_bytes'])} at {context['n_ctx']} tokens"
    )


def _check_model(results: Results, sha256: str, name: str) -> None:
    """Refuse figures of another model: they say nothing of this one."""
    measured = results.identity.get("model_sha256")
    if measured != sha256:
        other = results.notes.get("model", "another model")
        raise InputError(
            f"{results.path}: holds results of {other}, not of {name}; give another --db"
        )


def _contexts(found: Plan, request: Request) -> tuple[int, ...]:
    """Those asked for, or the model's own and parts of it, in order."""
    limit = found.spec.n_ctx_train
    for n in request.contexts:
        if not 0 < n <= limit:
            raise InputError(f"-c {n}: the model takes 1 to {limit}")
    return request.contexts or tuple(sorted({max(1, limit // part) for part in (16, 4, 1)}))


def _context(text: str) -> int:
    if not re.fullmatch("[0-9]{1,12}", text):
        raise InputError(f"-c {text!r:.40}: not a number of tokens")
    return int(text)


def pairs(ctk: str | None, ctv: str | None, sink: int) -> Policies:
    """Every pair of the lists, the first `sink` tokens exact; every listed type for both sides if
    there are none.  Raises InputError for a name that is no type's."""
    every = product(_items(ctk, "-ctk"), _items(ctv, "-ctv"))
    if ctk is None and ctv is None:
        every = ((name, name) for name in KV_FORMATS)
    return {(k, v): Policy.of(k, v, sink) for k, v in every}


def _items(text: str | None, option: str) -> list[str]:
    """The items of a list with commas between; the default type if it is not given."""
    items = [BF16.name] if text is None else [item for item in text.split(",") if item]
    if not items:
        raise InputError(f"{option}: the list is empty")
    return items
