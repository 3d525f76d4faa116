"""minikv beside llama-bench in one run: the ratio is what a noisy machine can still tell.

    python -m bench.peers LLAMA_BENCH -m MODEL [-p 512] [-n 128] [-d 0,4096] [-t 2]

In every round each engine runs every test once, after its warm-up, in a process of its own; which
one begins changes from round to round.  llama-bench runs with flash attention off and on, and the
better median of each test counts.  MODEL is an alias or a path, the same file for both.

The memory's read bandwidth is measured in every round, too.  The last column is the share of it
that decoding needs for the weights and cached tokens that minikv must read per token.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.ceiling import Ceiling
from engine.checkpoint import Checkpoint
from engine.config import available_cores
from engine.kv.policy import Policy
from engine.model.load import open_checkpoint
from tools.plan import Plan
from tools.results import Pair

ROUNDS = 5
OURS = "minikv"

Case = tuple[int, int, int]  # tokens of prompt, generation, depth


@dataclass
class Contestant:
    """A command, and tokens per second of every round by test; `failure` once it has failed."""

    name: str
    command: Sequence[str]
    speeds: dict[Case, list[float]] = field(default_factory=dict)
    failure: str | None = None

    def run(self) -> None:
        """One round."""
        done = subprocess.run(self.command, capture_output=True, text=True)
        if done.returncode:
            *_, last = done.stderr.strip().splitlines() or ["no message"]
            self.failure = f"{self.name}: exit status {done.returncode}: {last}"
            return
        for record in json.loads(done.stdout):
            case = record["n_prompt"], record["n_gen"], record["n_depth"]
            self.speeds.setdefault(case, []).append(record["avg_ts"])


def contestants(args: argparse.Namespace, path: str) -> list[Contestant]:
    tests = ["-m", path, "-p", args.prompts, "-n", args.gens, "-d", args.depths]
    tests += ["-t", str(args.threads), "-r", "1", "-o", "json"]
    theirs = [args.llama_bench, *tests, "-ctk", args.peer_ctk, "-ctv", args.peer_ctv]
    ours = [sys.executable, "-m", "minikv", "bench", *tests, "-ctk", args.ctk, "-ctv", args.ctv]
    peers = [Contestant(f"fa {fa}", [*theirs, "-fa", fa]) for fa in ("0", "1")]
    return [Contestant(OURS, ours), *peers]


def race(
    runners: Sequence[Contestant], rounds: int, between: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Run the rounds, yielding a line before each run.  Who has failed does not run again.
    `between` is called at the end of each round."""
    for number in range(rounds):
        first = number % len(runners)
        for runner in (*runners[first:], *runners[:first]):
            if runner.failure is None:
                yield f"round {number + 1} of {rounds}: {runner.name}"
                runner.run()
                if runner.failure:
                    yield runner.failure
        between()


def table(
    ours: Contestant, peers: Sequence[Contestant], share: Callable[[Case, float], float]
) -> Iterator[str]:
    """Markdown: medians with the slowest and fastest round, ours over the best peer's, and `share`
    of test and speed where tokens are generated."""
    names = [ours.name, *(peer.name for peer in peers)]
    yield f"| test | {' | '.join(names)} | ratio | of bandwidth |"
    yield "|---|" + "---|" * (len(names) + 2)
    for case, speeds in ours.speeds.items():
        medians = [statistics.median(peer.speeds[case]) for peer in peers if case in peer.speeds]
        speed = statistics.median(speeds)
        ratio = f"{speed / max(medians):.2f}" if medians else "-"
        used = "-" if case[0] else f"{share(case, speed):.2f}"
        cells = " | ".join(_cell(one.speeds, case) for one in (ours, *peers))
        yield f"| {_name(case)} | {cells} | {ratio} | {used} |"


def token_nbytes(checkpoint: Checkpoint, pair: Pair, case: Case) -> int:
    """Bytes that decoding reads per token, on average over a test: matrices and cached tokens."""
    tensors = checkpoint.tensors
    weights = sum(tensor.data.nbytes for tensor in tensors.values())
    if "output.weight" in tensors:  # else the embedding is the output matrix as well
        weights -= tensors["token_embd.weight"].data.nbytes
    _, generated, depth = case
    return weights + Plan(checkpoint).cache(Policy.of(*pair), depth + generated // 2)


def _cell(speeds: Mapping[Case, Sequence[float]], case: Case) -> str:
    found = speeds.get(case)
    if not found:
        return "-"
    return f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def _name(case: Case) -> str:
    n_prompt, n_gen, n_depth = case
    name = f"pp{n_prompt}" if n_prompt else f"tg{n_gen}"
    return name + (f" @ d{n_depth}" if n_depth else "")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="minikv and llama-bench in alternating runs.")
    parser.add_argument("llama_bench", help="the llama-bench binary")
    parser.add_argument("-m", "--model", required=True, help="alias or GGUF file")
    parser.add_argument("-p", dest="prompts", default="512", metavar="LIST")
    parser.add_argument("-n", dest="gens", default="128", metavar="LIST")
    parser.add_argument("-d", dest="depths", default="0", metavar="LIST")
    parser.add_argument("-t", dest="threads", type=int, default=available_cores())
    parser.add_argument("-ctk", default="bf16", help="minikv's type of keys")
    parser.add_argument("-ctv", default="bf16", help="minikv's type of values")
    parser.add_argument("--peer-ctk", default="f16", help="llama-bench's type of keys")
    parser.add_argument("--peer-ctv", default="f16", help="llama-bench's type of values")
    parser.add_argument("-r", dest="rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    if shutil.which(args.llama_bench) is None:
        parser.error(f"{args.llama_bench}: not a program")
    if args.rounds < 1:
        parser.error(f"-r {args.rounds}: must be 1 or more")
    return args


def path_of(model: str) -> str:
    """The file that minikv means by `model`, downloaded first if need be."""
    command = [sys.executable, "-m", "minikv", "pull", model]
    pulled = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if pulled.returncode:
        sys.exit(pulled.returncode)  # it has said why
    return pulled.stdout.strip()


def main() -> None:
    args = arguments()
    path = path_of(args.model)
    runners, checkpoint, bandwidths = contestants(args, path), open_checkpoint(path), []

    def measure() -> None:
        bandwidths.append(Ceiling(args.threads).bandwidth())

    def share(case: Case, speed: float) -> float:
        nbytes = token_nbytes(checkpoint, (args.ctk, args.ctv), case)
        return speed * nbytes / statistics.median(bandwidths)

    try:
        for line in race(runners, args.rounds, measure):
            print(line, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("stopped: medians of the finished rounds", file=sys.stderr)
    if not bandwidths:
        measure()
    ours, *peers = runners
    print(f"{args.model}, {args.threads} threads, t/s: median (slowest to fastest round)")
    print(f"minikv {args.ctk}/{args.ctv}, llama-bench {args.peer_ctk}/{args.peer_ctv}")
    print(f"read bandwidth: {statistics.median(bandwidths) / 1e9:.1f} GB/s\n")
    print("\n".join(table(ours, peers, share)))
    if ours.failure:
        sys.exit(1)


if __name__ == "__main__":
    main()
