"""Results of a benchmark in llama-bench's output formats, one piece of text per result.

Fields have llama-bench's names, types and order, and the SQL table its name, so one program reads
both.  Those of `_FIXED` say nothing about this engine and hold what a plain CPU run has.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gguf

from engine.checkpoint import Checkpoint
from engine.errors import InputError
from engine.kv.formats import F16
from engine.session import CHUNK
from tools.bench import Plan, Result, mean_and_deviation

_FIXED_BEFORE = {"cpu_mask": "0x0", "cpu_strict": False, "poll": 0}
_FIXED_BEHIND = {
    "n_gpu_layers": 0,
    "n_cpu_moe": 0,
    "split_mode": "none",
    "main_gpu": 0,
    "no_kv_offload": False,
    "flash_attn": 1,
    "devices": "none",
    "tensor_split": "0.00",
    "tensor_buft_overrides": "none",
    "load_mode": "mmap",
    "lazy_mode": "off",
    "embeddings": False,
    "no_op_offload": 0,
    "no_host": False,
    "repack": False,
    "fit_target": 0,
    "fit_min_ctx": 0,
}


@dataclass(frozen=True)
class Description:
    """A model as llama-bench describes it: `type` is family, size and file type."""

    filename: str
    type: str
    nbytes: int
    n_params: int


def describe(checkpoint: Checkpoint) -> Description:
    """What the checkpoint's tensors and metadata say."""
    tensors = checkpoint.tensors.values()
    n_params = sum(math.prod(tensor.shape) for tensor in tensors)
    meta = checkpoint.metadata
    label = meta.str("general.size_label", None) or _size_label(n_params)
    kind = f"{meta.str('general.architecture')} {label} {_file_type(checkpoint)}"
    nbytes = sum(tensor.data.nbytes for tensor in tensors)
    return Description(str(checkpoint.path), kind, nbytes, n_params)


@dataclass(frozen=True)
class Machine:
    """What ran: the engine's `build`, such as "minikv-0.1.0", and where."""

    build: str
    cpu: str
    backend: str


@dataclass(frozen=True)
class Row:
    """A result, and of what."""

    machine: Machine
    model: Description
    threads: int
    result: Result

    def record(self) -> dict[str, Any]:
        """llama-bench's fields in its order, without the samples; durations are nanoseconds."""
        model, result = self.model, self.result
        speed, deviation = mean_and_deviation(result.samples_ts)
        duration, spread = mean_and_deviation(result.samples_ns)
        return {
            "build_commit": self.machine.build,
            "build_number": 0,
            "cpu_info": self.machine.cpu,
            "gpu_info": "",
            "backends": self.machine.backend,
            "model_filename": model.filename,
            "model_type": model.type,
            "model_size": model.nbytes,
            "model_n_params": model.n_params,
            "n_batch": CHUNK,
            "n_ubatch": CHUNK,
            "n_threads": self.threads,
            **_FIXED_BEFORE,
            "type_k": result.ctk,
            "type_v": result.ctv,
            **_FIXED_BEHIND,
            "n_prompt": result.test.n_prompt,
            "n_gen": result.test.n_gen,
            "n_depth": result.test.n_depth,
            "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(result.started)),
            "avg_ns": int(duration),
            "stddev_ns": int(spread),
            "avg_ts": round(speed, 6),
            "stddev_ts": round(deviation, 6),
        }

    def record_with_samples(self) -> dict[str, Any]:
        samples = {
            "samples_ns": list(self.result.samples_ns),
            "samples_ts": [float(f"{speed:.6g}") for speed in self.result.samples_ts],
        }
        return self.record() | samples


class Report:
    """Text in front of the rows, of each row, and behind them; each ends with its line."""

    def __init__(self, plan: Plan, build: str) -> None:
        self.plan, self.build = plan, build

    def header(self) -> str:
        return ""

    def row(self, row: Row) -> str:
        raise NotImplementedError

    def footer(self) -> str:
        return ""


class Markdown(Report):
    """llama-bench's table.  As in its own, no column of cache types means f16."""

    def columns(self) -> dict[str, tuple[int, Callable[[Row], str]]]:
        """Widths, negative for text that starts at the left, and how a row fills the column."""
        columns: dict[str, tuple[int, Callable[[Row], str]]] = {
            "model": (-30, lambda row: row.model.type),
            "size": (10, lambda row: _size(row.model.nbytes)),
            "params": (10, lambda row: _count(row.model.n_params)),
            "backend": (-10, lambda row: row.machine.backend),
            "threads": (7, lambda row: str(row.threads)),
        }
        if set(self.plan.ctk) != {F16.name}:
            columns["type_k"] = (_width(self.plan.ctk), lambda row: row.result.ctk)
        if set(self.plan.ctv) != {F16.name}:
            columns["type_v"] = (_width(self.plan.ctv), lambda row: row.result.ctv)
        if self.plan.sink:
            columns["sink"] = (5, lambda row: str(self.plan.sink))
        columns["test"] = (15, lambda row: row.result.test.name)
        columns["t/s"] = (20, lambda row: "{:.2f} ± {:.2f}".format(*_speed(row)))
        return columns

    def header(self) -> str:
        columns = self.columns()
        names = " | ".join(_padded(name, width) for name, (width, _) in columns.items())
        rules = " | ".join(
            "-" * (abs(width) - 1) + (":" if width > 0 else "-") for width, _ in columns.values()
        )
        return f"| {names} |\n| {rules} |\n"

    def row(self, row: Row) -> str:
        cells = (_padded(fill(row), width) for width, fill in self.columns().values())
        return f"| {' | '.join(cells)} |\n"

    def footer(self) -> str:
        return f"\nbuild: {self.build} (0)\n"


class Csv(Report):
    _started = False

    def row(self, row: Row) -> str:
        record, out = row.record(), io.StringIO()
        if not self._started:
            out.write(",".join(record) + "\n")
            self._started = True
        values = [_plain(value) for value in record.values()]
        csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(values)
        return out.getvalue()


class Json(Report):
    """An array that is complete from the first row on but for its last bracket."""

    _separator = "["

    def row(self, row: Row) -> str:
        fields = (
            f"    {json.dumps(key)}: {json.dumps(value)}"
            for key, value in row.record_with_samples().items()
        )
        text = self._separator + "\n  {\n" + ",\n".join(fields) + "\n  }"
        self._separator = ","
        return text

    def footer(self) -> str:
        return "[]\n" if self._separator == "[" else "\n]\n"


class JsonLines(Report):
    def row(self, row: Row) -> str:
        return json.dumps(row.record_with_samples()) + "\n"


class Sql(Report):
    _started = False

    def row(self, row: Row) -> str:
        record, table = row.record(), ""
        if not self._started:
            columns = ",\n".join(f"  {key} {_sql_type(value)}" for key, value in record.items())
            table = f"CREATE TABLE IF NOT EXISTS llama_bench (\n{columns}\n);\n\n"
            self._started = True
        values = ", ".join("'" + _plain(v).replace("'", "''") + "'" for v in record.values())
        return f"{table}INSERT INTO llama_bench ({', '.join(record)}) VALUES ({values});\n"


REPORTS: dict[str, type[Report]] = {
    "md": Markdown,
    "csv": Csv,
    "json": Json,
    "jsonl": JsonLines,
    "sql": Sql,
}


def report_type(name: str) -> type[Report]:
    """The output format `name`.  Raises InputError for an unknown one."""
    if name not in REPORTS:
        raise InputError(f"{name}: not an output format. Choose from: {', '.join(REPORTS)}")
    return REPORTS[name]


def _speed(row: Row) -> tuple[float, float]:
    return mean_and_deviation(row.result.samples_ts)


def _width(names: Sequence[str]) -> int:
    return max(6, *map(len, names))


def _padded(text: str, width: int) -> str:
    return text.rjust(width) if width > 0 else text.ljust(-width)


def _size(nbytes: int) -> str:
    mib = nbytes / (1 << 20)
    return f"{mib:.2f} MiB" if mib < 1024 else f"{mib / 1024:.2f} GiB"


def _count(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n < 1e9 else f"{n / 1e9:.2f} B"


def _plain(value: Any) -> str:
    """A field in CSV and SQL: booleans are 0 and 1, as llama-bench writes them."""
    if isinstance(value, float):
        return f"{value:.6f}"
    return str(int(value)) if isinstance(value, bool) else str(value)


def _sql_type(value: Any) -> str:
    if isinstance(value, float):
        return "REAL"
    return "INTEGER" if isinstance(value, int) else "TEXT"


def _size_label(n_params: int) -> str:
    return f"{n_params / 1e9:.1f}B" if n_params >= 1e9 else f"{n_params / 1e6:.0f}M"


_MIXES = {"S": "Small", "M": "Medium", "L": "Large"}


def _file_type(checkpoint: Checkpoint) -> str:
    """Such as "Q4_1" or "Q4_K - Medium"; the type of most bytes where the file does not say."""
    number = checkpoint.metadata.int("general.file_type", -1)
    if number not in set(gguf.LlamaFileType):
        nbytes: dict[str, int] = {}
        for tensor in checkpoint.tensors.values():
            nbytes[tensor.type] = nbytes.get(tensor.type, 0) + tensor.data.nbytes
        return max(nbytes, key=lambda kind: nbytes[kind])
    name = gguf.LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    base, _, mix = name.rpartition("_")
    return f"{base} - {_MIXES[mix]}" if mix in _MIXES else name
