"""Results are written as llama-bench writes them: what reads its output reads ours."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest

from engine import InputError
from tools.bench import Plan, Result, Workload
from tools.bench_report import REPORTS, Description, Machine, Report, Row, report_type

# the first line of `llama-bench -o csv`
FIELDS = (
    "build_commit,build_number,cpu_info,gpu_info,backends,model_filename,model_type,model_size,"
    "model_n_params,n_batch,n_ubatch,n_threads,cpu_mask,cpu_strict,poll,type_k,type_v,n_gpu_layers,"
    "n_cpu_moe,split_mode,main_gpu,no_kv_offload,flash_attn,devices,tensor_split,"
    "tensor_buft_overrides,load_mode,lazy_mode,embeddings,no_op_offload,no_host,repack,fit_target,"
    "fit_min_ctx,n_prompt,n_gen,n_depth,test_time,avg_ns,stddev_ns,avg_ts,stddev_ts"
)
# and what `llama-bench -o md` printed of one run
TABLE = Path(__file__).with_name("llama_bench.md").read_text(encoding="utf-8")
MODEL = Description("/models/it's.gguf", "llama 256M Q4_1", 96576768, 134515008)
BIG = Description("/models/big.gguf", "qwen2 1.5B Q4_K - Medium", 1111370240, 1777088000)


def row(test: Workload, *samples_ns: int, types: tuple[str, str] = ("f16", "f16")) -> Row:
    machine = Machine("minikv-1.0", 'A "fast" CPU', "CPU")
    return Row(machine, MODEL, 2, Result(*types, test, samples_ns, 1795328472.5))


# 16 tokens and 12 tokens: 816.67 t/s, and 300 and 600 t/s
ROWS = [row(Workload(16, 0), 19591838), row(Workload(8, 4, 32), 40_000_000, 20_000_000)]


def written(name: str, rows: list[Row], plan: Plan | None = None) -> str:
    report: Report = report_type(name)(plan or Plan(ctk=("f16",), ctv=("f16",)), "minikv-1.0")
    return report.header() + "".join(map(report.row, rows)) + report.footer()


def test_the_table_is_llama_benchs() -> None:
    assert written("md", ROWS) == TABLE.replace("450", " 450") + "\nbuild: minikv-1.0 (0)\n"


def test_a_table_names_cache_types_unless_all_are_f16() -> None:
    plan = Plan(ctk=("f16", "int3nsep"), ctv=("bf16",))
    rows = [
        row(Workload(1, 0), 10, types=types) for types in (("f16", "bf16"), ("int3nsep", "bf16"))
    ]
    header, _, *lines, _, _ = written("md", rows, plan).splitlines()
    assert "|   type_k | type_v |            test |" in header
    assert "|      f16 |   bf16 |             pp1 |" in lines[0]
    assert "| int3nsep |   bf16 |             pp1 |" in lines[1]
    assert len({len(line) for line in (header, *lines)}) == 1
    only_k = written("md", [], Plan(ctk=("bf16",), ctv=("f16",)))
    assert "type_k" in only_k and "type_v" not in only_k


def test_large_models_are_counted_in_larger_units() -> None:
    large = Row(ROWS[0].machine, BIG, 1, ROWS[0].result)
    assert "|   1.04 GiB |     1.78 B |" in written("md", [large])


def test_csv_has_llama_benchs_fields_and_quotes_every_value() -> None:
    text = written("csv", ROWS)
    assert text.splitlines()[0] == FIELDS
    assert all(line.count('","') == FIELDS.count(",") for line in text.splitlines()[1:])
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["cpu_info"], first["embeddings"], first["n_prompt"]) == (
        'A "fast" CPU',
        "0",
        "16",
    )
    assert first["test_time"] == "2026-11-22T06:21:12Z"
    assert (second["avg_ns"], second["stddev_ns"]) == ("30000000", "14142135")
    assert (second["avg_ts"], second["stddev_ts"]) == ("450.000000", "212.132034")


def test_json_has_llama_benchs_fields_with_their_types_and_the_samples() -> None:
    first, second = json.loads(written("json", ROWS))
    assert list(first) == [*FIELDS.split(","), "samples_ns", "samples_ts"]
    assert first["embeddings"] is False and first["n_threads"] == 2
    assert second["samples_ns"] == [40_000_000, 20_000_000]
    assert second["samples_ts"] == [300, 600]
    assert [first, second] == [json.loads(line) for line in written("jsonl", ROWS).splitlines()]


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_json_is_whole_whenever_it_ends(finished: int) -> None:
    assert len(json.loads(written("json", ROWS[:finished]))) == finished


def test_sql_fills_llama_benchs_table() -> None:
    database = sqlite3.connect(":memory:")
    database.executescript(written("sql", ROWS) + written("sql", ROWS[:1]))
    found = database.execute("SELECT model_filename, n_depth, avg_ts FROM llama_bench").fetchall()
    one, two = ("/models/it's.gguf", 0, 816.666614), ("/models/it's.gguf", 32, 450.0)
    assert found == [one, two, one]
    columns = {
        name: kind for _, name, kind, *_ in database.execute("PRAGMA table_info(llama_bench)")
    }
    assert list(columns) == FIELDS.split(",")
    assert [columns[name] for name in ("cpu_mask", "no_host", "poll", "avg_ts")] == [
        "TEXT", "INTEGER", "INTEGER", "REAL",
    ]  # fmt: skip


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=f"xml: not an output format.*{', '.join(REPORTS)}"):
        report_type("xml")
