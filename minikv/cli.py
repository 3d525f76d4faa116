"""The command line: options, help, and errors as one line.

Commands import what they need when they run, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import gc
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from engine.errors import InputError
from minikv import installed_version
from minikv.bench import app as bench
from minikv.doctor import app as doctor
from minikv.kld import app as kld
from minikv.options import (
    BackendOption,
    BosOption,
    BudgetCtkOption,
    BudgetCtvOption,
    BudgetOption,
    ChunksOption,
    CtkOption,
    CtvOption,
    JsonOption,
    ModelOption,
    PinOption,
    PolicyOption,
    SinkOption,
    TextOption,
    ThreadsOption,
    WindowOption,
    kv_policy,
)
from minikv.plan import app as plan
from minikv.recall import app as recall
from minikv.ruler import app as ruler
from minikv.sources import DEFAULT
from minikv.sweep import app as sweep
from minikv.text import one_line

_OBJECTS_PER_COLLECTION = 100_000  # Python's default is 700

# help in plain text: no boxes, so it reads the same in a terminal, a pipe and a log
app = typer.Typer(
    name="minikv", rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False
)
app.add_typer(recall, name="recall")
app.add_typer(ruler, name="ruler")
app.add_typer(kld)  # without a name: its command stands beside ours
app.add_typer(bench)
app.add_typer(sweep, name="sweep")
app.add_typer(plan)
app.add_typer(doctor)


def main() -> NoReturn:
    """The `minikv` command: run it and exit, 0 if all went well.

    1 for input that cannot be used, 2 for a command line that cannot be read, 130 after Ctrl-C.
    """
    _prepare_streams()
    # a vocabulary is some 300,000 objects for life: Python would look through them all the time
    gc.set_threshold(_OBJECTS_PER_COLLECTION)
    try:
        status = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except InputError as error:
        status = _fail(str(error), 1)
    except typer.TyperException as error:
        status = _fail(error.format_message() + _value_seen(error), error.exit_code)
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # whoever read the output has left
        status = 141
        _drop_output()
    except OSError as error:
        status = _fail(f"{error.filename or 'output'}: {error.strerror}", 1)
        _drop_output()
    sys.exit(status)


def _prepare_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  open to the end
    # a terminal that cannot show a character gets another one in its place, not a traceback
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _drop_output() -> None:
    """What could not be written must not fail again when Python closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _value_seen(error: typer.TyperException) -> str:
    """The value that typer refused, which its message leaves out; empty where it names none."""
    refused = getattr(error.__cause__, "errors", list)()  # what pydantic tells of it, if it did
    return f" (given: {refused[0]['input']!r:.40})" if refused else ""


def _fail(message: str, status: int) -> int:
    print(f"minikv: {one_line(message)}", file=sys.stderr)
    return status


@app.callback(invoke_without_command=True)
def _minikv(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Run language models with a KV cache that is packed as tightly as you like."""
    if version:
        print(f"minikv {installed_version()}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


_RUN_EXAMPLES = """\b
Examples:
  minikv run "Why is the sky blue?"
  minikv run                                  a chat, if this is a terminal
  minikv run < question.txt                   the prompt is stdin
  minikv run -m qwen2.5-coder-1.5b -ctk int3nsep -ctv int3nsep --temp 0 "..."
  minikv run -m gemma3-270m "Once upon a time"
  minikv run --kv-budget 200M -c 32768 -m qwen2.5-coder-1.5b < long.txt
  minikv run --session rivers.kv "Name three rivers."
  minikv run --session rivers.kv "Which of them is the longest?"
  minikv run --json -n 32 "Name three rivers." | jq .timings
"""


def _given(context: typer.Context, name: str) -> Any:
    """An option's value, None if it is only the default."""
    source = context.get_parameter_source(name)
    return None if source is None or source.name == "DEFAULT" else context.params[name]


@app.command("run", epilog=_RUN_EXAMPLES)
def _run(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt.  None, or -: stdin.", show_default=False)
    ] = None,
    model: ModelOption = DEFAULT,
    ctk: CtkOption = "bf16",
    ctv: CtvOption = "bf16",
    sink: SinkOption = 0,
    policy: PolicyOption = None,
    kv_budget: BudgetOption = None,
    budget_ctk: BudgetCtkOption = None,
    budget_ctv: BudgetCtvOption = None,
    n_ctx: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", help="Context in tokens.  [default: the model's]"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--n-predict",
            min=1,
            help="Most tokens of an answer.  [default: until its end or a full context]",
        ),
    ] = None,
    threads: ThreadsOption = None,
    pin: PinOption = False,
    temp: Annotated[float, typer.Option(help="Temperature; 0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Only the K likeliest tokens; 0 is off.")] = 40,
    top_p: Annotated[float, typer.Option(help="Only the likeliest of this sum; 1 is off.")] = 0.95,
    min_p: Annotated[
        float, typer.Option(help="Only those this likely beside the likeliest; 0 is off.")
    ] = 0.05,
    repeat_penalty: Annotated[
        float, typer.Option(help="Divide the logits of the last 64 tokens; 1 is off.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Make the answer repeatable.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template; complete text.")] = False,
    session: Annotated[
        Path | None,
        typer.Option(
            "--session",
            metavar="FILE",
            help="Go on with the conversation in FILE, and keep it there at the end; -c, -ctk, "
            "-ctv, --kv-sink and --kv-budget stay as in FILE where not given.",
        ),
    ] = None,
    as_json: JsonOption = False,
    backend: BackendOption = "cpu",
) -> None:
    """Answer a prompt, or chat.

    Text streams to stdout; a closing line on stderr tells the speed and the size of the KV cache.
    Without PROMPT a terminal gets a chat, and anything else on stdin is the prompt; with PROMPT,
    stdin is not read.
    """
    from engine import SamplerSpec
    from minikv.keeping import Keeping
    from minikv.run import Answering, ModelChoice, budget_of, run

    stored = kv_policy(context, policy)
    sampling = SamplerSpec(temp, top_k, top_p, min_p, repeat_penalty, seed)
    budget = budget_of(kv_budget, budget_ctk, budget_ctv)
    choice = ModelChoice(
        model, ctk, ctv, n_ctx, threads, backend, sink, stored, pin=pin, budget=budget
    )
    answering = Answering(sampling, limit, system, raw)
    keeping = Keeping(session, *(_given(context, name) for name in ("ctk", "ctv", "sink")))
    if prompt is not None or not sys.stdin.isatty():
        run(choice, answering, prompt, as_json, keeping)
    elif as_json:
        raise InputError("--json needs a PROMPT, or one on stdin: a chat is not one answer")
    else:
        from minikv.chat import chat

        chat(choice, answering, keeping)


_INFO_EXAMPLES = """\b
Examples:
  minikv info smollm2-135m
  minikv info ./model.gguf
  minikv info --json hf:org/repo:file.gguf | jq .kv
"""


@app.command("info", epilog=_INFO_EXAMPLES)
def _info(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Alias, path or hf:org/repo[:file].")],
    policy: Annotated[
        Path | None,
        typer.Option("--kv-policy", metavar="FILE", help="Add what this policy takes."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model is made of, and what its KV cache takes in every type."""
    from minikv.info import info

    info(model, kv_policy(context, policy), as_json)


_PULL_EXAMPLES = """\b
Examples:
  minikv pull                       the models that have a name
  minikv pull qwen2.5-coder-1.5b    download one; run it again after a break
  minikv pull hf:org/repo:file.gguf
"""


@app.command("pull", epilog=_PULL_EXAMPLES)
def _pull(
    model: Annotated[
        str | None, typer.Argument(help="Alias or hf:org/repo[:file].", show_default=False)
    ] = None,
) -> None:
    """Download a model and print its path; without MODEL, list the models that have a name."""
    from minikv.pull import print_models, pull

    if model is None:
        print_models()
    else:
        pull(model)


_PPL_EXAMPLES = """\b
Examples:
  minikv ppl -f wiki.test.raw --chunks 10
  minikv ppl -m qwen2.5-coder-1.5b -f wiki.test.raw -c 1024 -ctk q8_0 -ctv int3nsep
  minikv ppl -f wiki.test.raw --protocol decode --kv-policy mixed.toml
  minikv ppl -f wiki.test.raw --protocol decode -c 8192 --chunks 1 --json
"""


@app.command("ppl", epilog=_PPL_EXAMPLES)
def _ppl(
    context: typer.Context,
    file: TextOption,
    model: ModelOption = DEFAULT,
    protocol: Annotated[
        str,
        typer.Option(
            help="llama: windows as llama-perplexity cuts them, second halves scored.  "
            "pa: second halves after one packed page.  decode: what a user gets."
        ),
    ] = "llama",
    ctk: CtkOption = "bf16",
    ctv: CtvOption = "bf16",
    sink: SinkOption = 0,
    policy: PolicyOption = None,
    n_ctx: WindowOption = 512,
    chunks: ChunksOption = None,
    bos_per_window: BosOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    backend: BackendOption = "cpu",
) -> None:
    """Measure the perplexity of a text through the packed cache."""
    from minikv.ppl import ppl
    from minikv.run import ModelChoice
    from tools.windows import Settings

    stored = kv_policy(context, policy)
    choice = ModelChoice(model, ctk, ctv, n_ctx, threads, backend, sink, stored)
    settings = Settings(protocol, n_ctx, chunks, ctk, ctv, bos_per_window, sink, stored)
    ppl(choice, file, settings, as_json)
