"""Pairs of cache types in turn, in one process: what each takes beside the first.

    python -m bench.pairs MODEL bf16 q8_0 int3wfq/int3wf [-d 4096] [-p 512] [-n 16] [-r 5]

MODEL is an alias or a path.  A session per pair is filled to the depth.  In every round each reads
a prompt, decodes tokens behind it, and is cut back; the round's first pair changes from round to
round.  "of first" is how fast a pair is beside the first one given: the median of the ratios of
rounds, which leave out how fast the machine was in each, and the ratio of the best times, which
leave out what else ran there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.peers import path_of
from engine import Session
from engine.config import available_cores
from engine.errors import InputError
from engine.model.load import Model, load_model


@dataclass
class Runner:
    """A pair's session and its seconds, by round: of the prompt, and of a token."""

    name: str
    session: Session
    prompts: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)

    def run(self, depth: int, prompt: Sequence[int], steps: Sequence[int]) -> None:
        """One round."""
        if prompt:
            start = time.perf_counter()
            self.session.extend(prompt)
            self.prompts.append(time.perf_counter() - start)
        if steps:
            seconds = []
            for token in steps:
                start = time.perf_counter()
                self.session.extend([token])
                seconds.append(time.perf_counter() - start)
            self.tokens.append(statistics.median(seconds))
        self.session.truncate(depth)


def measure(runners: Sequence[Runner], depth: int, prompt: int, steps: int, rounds: int) -> None:
    """Fill the sessions to `depth` and run every pair in each round, after one that does not
    count."""
    n_vocab, rng = runners[0].session.decoder.spec.n_vocab, np.random.default_rng(0)
    text = [int(token) for token in rng.integers(0, n_vocab, depth + prompt + steps)]
    for runner in runners:
        if depth:
            runner.session.extend(text[:depth])
    for i in range(-1, rounds):
        first = max(i, 0) % len(runners)
        for runner in (*runners[first:], *runners[:first]):
            # pages that `depth` does not fill were cut off
            at = len(runner.session.tokens)
            if at < depth:
                runner.session.extend(text[at:depth])
            runner.run(depth, text[depth : depth + prompt], text[depth + prompt :])
            if i < 0:
                runner.prompts.clear()
                runner.tokens.clear()


def figures(base: Sequence[float], own: Sequence[float]) -> str:
    """Median and best of `own` in milliseconds, each with how fast it is beside `base`."""
    if not own:
        return f"{'-':>9} {'-':>8} {'-':>9} {'-':>8}"
    middle, best = statistics.median(own), min(own)
    ratio = statistics.median(b / x for b, x in zip(base, own, strict=True))
    return f"{1e3 * middle:9.2f} {ratio:8.3f} {1e3 * best:9.2f} {min(base) / best:8.3f}"


def table(runners: Sequence[Runner]) -> list[str]:
    """A line per pair: prompts, then tokens."""
    head = f"{'median ms':>9} {'of first':>8} {'best ms':>9} {'of first':>8}"
    lines = [f"{'K/V':20} {head}   {head}", f"{'':20} {'prompts':<37}   tokens"]
    base = runners[0]
    for one in runners:
        prompts, tokens = figures(base.prompts, one.prompts), figures(base.tokens, one.tokens)
        lines.append(f"{one.name:20} {prompts}   {tokens}")
    return lines


def new_runner(model: Model, pair: str, n_ctx: int) -> Runner:
    k, _, v = pair.partition("/")
    return Runner(pair, Session(model, n_ctx=n_ctx, ctk=k, ctv=v or k))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time pairs of KV cache types in turn.")
    parser.add_argument("model")
    parser.add_argument("pairs", nargs="+", metavar="K[/V]")
    parser.add_argument("-d", "--depth", type=int, default=4096)
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--tokens", type=int, default=16)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=available_cores())
    args = parser.parse_args()
    if min(args.depth, args.prompt, args.tokens) < 0 or args.prompt + args.tokens == 0:
        parser.error("-d, -p and -n: at least 0, and a prompt or a token to time")
    if args.rounds < 1:
        parser.error("-r: at least 1")
    n_ctx = args.depth + args.prompt + args.tokens
    try:
        model = load_model(path_of(args.model), threads=args.threads)
        runners = [new_runner(model, pair, n_ctx) for pair in args.pairs]
    except InputError as error:
        parser.error(str(error))
    measure(runners, args.depth, args.prompt, args.tokens, args.rounds)
    print(
        f"{args.model}, {args.threads} threads, {args.rounds} rounds: "
        f"prompt of {args.prompt} and {args.tokens} tokens at {args.depth}"
    )
    print("\n".join(table(runners)))


if __name__ == "__main__":
    main()
