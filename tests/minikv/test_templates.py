"""Chat templates: rendered as transformers does, refused in one line, BOS exactly once."""

from __future__ import annotations

import re

import pytest

from engine.checkpoint import Metadata
from engine.errors import InputError
from engine.tokenizer import tokenizer_from_metadata
from minikv.templates import encode_chat, render_chat

HI = [{"role": "user", "content": "hi"}]
CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def render(template, messages=HI, **names):
    return render_chat(template, messages, bos="<s>", eos="</s>", **names)


def test_chatml_is_rendered_to_the_letter():
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    user = "<|im_start|>user\nhi<|im_end|>\n"
    assert render(CHATML, messages) == system + user + "<|im_start|>assistant\n"
    assert render(CHATML, messages, add_generation_prompt=False) == system + user


def test_blocks_take_their_line_ends_and_indents_along():
    template = (
        "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}"
    )
    assert render(template) == "hi\n"


def test_variables_of_the_conversation_are_there():
    assert render("{{ bos_token }}{{ eos_token }}{{ tools }}{{ thinking }}", thinking=1) == (
        "<s></s>None1"
    )


def test_tojson_escapes_nothing_for_html_and_keeps_the_order_of_keys():
    tools = [{"b": "<é&'>", "a": [1, None]}]
    assert render("{{ tools | tojson }}", tools=tools) == """[{"b": "<é&'>", "a": [1, null]}]"""
    assert render("{{ tools[0].a | tojson(indent=1) }}", tools=tools) == "[\n 1,\n null\n]"


def test_strftime_now_knows_the_date():
    assert re.fullmatch(r"\d\d \w+ \d{4}", render("{{ strftime_now('%d %B %Y') }}"))


def test_loop_controls_and_generation_marks_are_understood():
    template = "{% for m in messages %}{% break %}x{% endfor %}{% generation %}a{% endgeneration %}"
    assert render(template) == "a"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate$"),
        ("a\n{% for %}", "line 2"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ messages[0].content + 1 }}", "chat template: "),
        ("{{ ().__class__.__base__.__subclasses__() }}", "unsafe|undefined"),
        ("{{ messages.append(1) }}", "chat template: "),
        ("{% for i in range(1000000000) %}{% endfor %}", "chat template: Range too big"),
        ("{% include 'x' %}", "chat template: "),
        ("{{ " * 50_000, "chat template"),
    ],
)
def test_a_failing_template_is_refused_in_one_line(template, message):
    with pytest.raises(InputError, match=message) as refused:
        render(template)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_template_that_writes_without_end_is_stopped():
    endless = "{% set x = 'a' * 100000 %}{% for i in range(100000) %}{{ x }}{% endfor %}"
    with pytest.raises(InputError, match="writes more than"):
        render(endless)


TOKENS = ["<s>", "</s>", "h", "i", "hi"]


def tokenizer(template, *, add_bos):
    values = {
        "model": "gpt2",
        "tokens": TOKENS,
        "token_type": [3, 3, 1, 1, 1],
        "merges": ["h i"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "add_bos_token": add_bos,
    }
    meta = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    if template is not None:
        meta["tokenizer.chat_template"] = template
    return tokenizer_from_metadata(Metadata(meta))


@pytest.mark.parametrize(
    ("template", "add_bos", "ids"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", True, [0, 4, 1]),
        ("{{ messages[0].content }}", True, [0, 4]),
        ("{{ bos_token }}{{ messages[0].content }}", False, [0, 4]),
        ("{{ messages[0].content }}", False, [4]),
        ("", True, [0]),
    ],
)
def test_bos_comes_exactly_once_when_it_is_wanted(template, add_bos, ids):
    assert encode_chat(tokenizer(template, add_bos=add_bos), HI) == ids


def test_a_model_without_a_template_says_so():
    with pytest.raises(InputError, match="no chat template"):
        encode_chat(tokenizer(None, add_bos=False), HI)
