"""Chat messages to text, by the Jinja template a model brings, and on to token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import InputError
from engine.tokenizer import Tokenizer

Message = Mapping[str, Any]

# More than any context holds; a template that writes without end stops here.
_MAX_CHARS = 64 << 20


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **extra: Any,
) -> list[int]:
    """The ids of a conversation in the words of the model's own template.

    BOS comes first exactly once when the tokenizer wants it, whether the template writes it or not.
    InputError when the model has no template or the template fails.
    """
    if tokenizer.chat_template is None:
        raise InputError("the model has no chat template; give it plain text instead")
    text = render_chat(
        tokenizer.chat_template,
        messages,
        bos="" if tokenizer.bos is None else tokenizer.token_text(tokenizer.bos),
        eos="" if tokenizer.eos is None else tokenizer.token_text(tokenizer.eos),
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        **extra,
    )
    ids = tokenizer.encode(text, parse_special=True)
    if tokenizer.add_bos and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        return [tokenizer.bos, *ids]
    return ids


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    bos: str,
    eos: str,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **extra: Any,
) -> str:
    """The text of `messages`, each with a `role` and a `content`.

    `bos` and `eos` are the texts of those tokens; `extra` are more variables for the template, such
    as enable_thinking.  InputError with the template's own complaint when it fails.
    """
    names = {
        "messages": messages,
        "tools": tools,
        "documents": None,
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return _joined(_compiled(template).generate(**names, **extra))
    except InputError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"chat template, line {error.lineno}: {_line(error)}") from None
    except Exception as error:  # the template is a program from outside: anything may go wrong
        raise InputError(f"chat template: {_line(error)}") from None


def _joined(parts: Any) -> str:
    text: list[str] = []
    room = _MAX_CHARS
    for part in parts:
        room -= len(part)
        if room < 0:
            raise InputError(f"chat template: it writes more than {_MAX_CHARS} characters")
        text.append(part)
    return "".join(text)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter would escape `<`, `>` and `&` as HTML needs it."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class _Generation(Extension):
    """`{% generation %}` marks the model's own words for training; here they are words like any."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body, lineno=line)
