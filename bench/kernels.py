"""How near each op comes to the read bandwidth of the memory, measured in the same run.

    python -m bench.kernels                          every case; some minutes
    python -m bench.kernels "linear Q4_K" "T=1"      those whose names hold every word given
    python -m bench.kernels --list

Matrices are multiplied at the shapes of real models, attention reads 8192 tokens in every cache
type, and behind those stand the op cases that the parity tests check.  Large ones run as in a
model: several matrices or caches in turn, none of them in a cache of the processor at first.  The
small op cases stay in the caches and show what a call costs.  A figure is the median of several
rounds; a bandwidth counts every byte that the op has to read or write once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import gguf
import numpy as np

from bench.ceiling import Ceiling
from bench.op_cases import (
    OP_CASES,
    Attention,
    OpCase,
    float_nbytes,
    matrix_nbytes,
    normal,
    random_tensor,
)
from engine.backends import new_ops
from engine.config import available_cores
from engine.kv.formats import KV_FORMATS
from engine.ops import Array, Ops

WEIGHT_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"),
)
# rows and columns of smollm2-135m's down, of qwen2.5-coder-1.5b's up and down, of the 0.5b's output
SHAPES = ((576, 1536), (8960, 1536), (1536, 8960), (151936, 896))
DEPTH = 8192  # tokens of the attention cases
STREAMED = 32 << 20  # bytes a round reads at least, so that it outlasts its beginning and end
ROUNDS, LONG, FEWEST = 7, 2.0, 3  # rounds; seconds after which the fewest are enough

Call = Callable[[], Array]


@dataclass(frozen=True)
class Case:
    """`prepare(ops)` gives calls of one kind, run in turn; numbers are of one call.

    `cold` calls begin with empty caches.
    """

    name: str
    prepare: Callable[[Ops], Sequence[Call]]
    nbytes: int
    operations: int = 0  # multiplications and additions
    cold: bool = False


def matrix_case(kind: str, rows: int, columns: int, tokens: int) -> Case:
    """y [tokens, rows] = x W^T."""
    nbytes = matrix_nbytes(kind, rows, columns)
    copies = -(-STREAMED // nbytes) if tokens == 1 else 1

    def prepare(ops: Ops) -> Sequence[Call]:
        x = ops.asarray(normal(tokens, columns))
        tensor = random_tensor(kind, rows, columns)
        weights = [ops.upload(replace(tensor, data=tensor.data.copy())) for _ in range(copies)]
        return [lambda w=weight: ops.linear(w, x) for weight in weights]

    return Case(
        f"linear {kind} {rows}x{columns} T={tokens}",
        prepare,
        nbytes + float_nbytes(tokens * (rows + columns)),
        2 * tokens * rows * columns,
        cold=True,
    )


def attention_case(kind: str, tokens: int) -> Case:
    """Attention of the shape of qwen2.5-coder-1.5b."""
    shape = Attention(kind, kind, 12, 2, 128, cached=DEPTH, tokens=tokens)
    layers = 4 if tokens == 1 else 1

    def prepare(ops: Ops) -> Sequence[Call]:
        q = ops.asarray(shape.inputs()[0])
        caches = [shape.layer(ops) for _ in range(layers)]
        return [lambda kv=kv: ops.attend(q, kv, shape.dim**-0.5, 0.0) for kv in caches]

    operations = 4 * tokens * shape.heads * shape.dim * DEPTH
    return Case(shape.name, prepare, shape.nbytes, operations, cold=True)


def op_case(case: OpCase) -> Case:
    return Case(case.name, lambda ops: 20 * [case.prepare(ops)], case.nbytes)


def matrix_cases() -> Iterator[Case]:
    for tokens in (1, 512):
        for kind in WEIGHT_TYPES:
            block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
            for rows, columns in SHAPES:
                # where blocks do not fit: the width of the 1.5b's output
                yield matrix_case(kind, rows, 1536 if columns % block else columns, tokens)


def cases() -> Iterator[Case]:
    yield from matrix_cases()
    for tokens in (1, 128):
        yield from (attention_case(kind, tokens) for kind in KV_FORMATS)
    yield from map(op_case, OP_CASES)


def finish(ops: Ops, results: Sequence[Array]) -> None:
    """Return when the results are really there, whenever the backend computes them."""
    for result in results:
        if not isinstance(result, np.ndarray):  # op cases fetch theirs themselves
            ops.to_host(result)


def seconds(ops: Ops, case: Case, ceiling: Ceiling) -> float:
    """Of one call, the median over rounds."""
    calls = case.prepare(ops)
    finish(ops, [calls[0]()])  # compiled, and its scratch memory allocated
    rounds: list[float] = []
    while len(rounds) < ROUNDS and (len(rounds) < FEWEST or sum(rounds) < LONG):
        if case.cold:
            ceiling.sweep()
        start = time.perf_counter()
        finish(ops, [call() for call in calls])
        rounds.append(time.perf_counter() - start)
    return statistics.median(rounds) / len(calls)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time each op and compare it with the read bandwidth of the memory."
    )
    parser.add_argument("words", nargs="*", help="only cases whose names hold all of these")
    parser.add_argument("-t", "--threads", type=int, default=available_cores())
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    args = parser.parse_args()
    chosen = [case for case in cases() if all(word in case.name for word in args.words)]
    if args.list:
        print("\n".join(case.name for case in chosen))
        return
    ops, ceiling = new_ops("cpu", args.threads), Ceiling(args.threads)
    bandwidth = ceiling.bandwidth()
    print(f"read bandwidth with {args.threads} threads: {bandwidth / 1e9:.1f} GB/s\n")
    print(f"{'op':46} {'us':>10} {'GB/s':>7} {'of read':>8} {'GFLOP/s':>8}")
    for case in chosen:
        time_of_one = seconds(ops, case, ceiling)
        rate = case.nbytes / time_of_one
        done = f"{case.operations / time_of_one / 1e9:8.1f}" if case.operations else ""
        line = f"{case.name:46} {1e6 * time_of_one:10.1f} {rate / 1e9:7.2f} {rate / bandwidth:8.2f}"
        print(f"{line} {done}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
