"""The registry of KV cache types."""

from __future__ import annotations

import re
from dataclasses import replace

from engine.errors import InputError
from engine.kv.format import KVFormat, Side
from engine.kv.formats.channels import CHANNELS
from engine.kv.formats.floats import BF16, F16, F32
from engine.kv.formats.hqq import HQQ
from engine.kv.formats.iq4_nl import IQ4_NL
from engine.kv.formats.kivi import KIVI
from engine.kv.formats.q8_0 import Q8_0
from engine.kv.formats.range_blocks import Q4_1, Q5_1
from engine.kv.formats.rows import ROWS
from engine.kv.formats.signed_blocks import Q4_0, Q5_0, Q6_0
from engine.kv.formats.waterfill import WATER_FILLED
from engine.kv.modifiers import Modifiers

FLOATS = (F32, F16, BF16)
"""The types that quantize nothing."""

_PLAIN = (*FLOATS, Q8_0, Q6_0, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL)
_COMMON = (
    "int4nsep", "int3nsep", "int2nsep", "int4nsep-sym", "int3nsep-sym", "int3pchan",
    "int3pchan-asym", "int4row", "int4row-asym", "int4wf", "int3wf", "int2wf", "int4wfq",
    "int3wfq", "int2wfq", "kivi4", "kivi2", "kivi2-g64", "hqq4:32", "hqq2:64",
)  # fmt: skip

ALL_KV_FORMATS: dict[str, KVFormat] = {
    f.name: f for f in (*_PLAIN, *CHANNELS, *ROWS, *WATER_FILLED, *KIVI, *HQQ)
}
"""Every type that has a name: the plain ones, and the whole grid of int types for ablations."""

KV_FORMATS: dict[str, KVFormat] = {
    name: ALL_KV_FORMATS[name] for name in (*(f.name for f in _PLAIN), *_COMMON)
}
"""The types that are listed and tested one by one."""

BEST: dict[str, dict[Side, str]] = {
    "best3": {"k": "int3wfq", "v": "int3wf"},
    "best2": {"k": "int3wfq", "v": "int2wf"},
}
"""Names of the pair that was measured to lose least within 3.5 and within 2.8 bits per value, keys
and values together; `docs/results/best.md` has the table."""

SMALL = (ALL_KV_FORMATS["int3wf"], ALL_KV_FORMATS["int2wf"])
"""What pages of other types become when memory is short, unless a type is named."""

KV_TYPES = (
    f"{', '.join(f.name for f in _PLAIN)}, int{{2-8}}nsep[-sym][-raw][:PAGE], "
    "int{2-8}pchan[-asym][:PAGE], int{2-8}row[-asym], int{2-4}wf[q][:PAGE], "
    "kivi{2-4}[-g64][:PAGE], hqq{2,3,4,8}:{32,64,128}; any of them[+h][+b|+nob]; "
    f"{', '.join(BEST)}"
)
"""All names on one line, for help and error messages."""

_MODIFIERS = {"h": ("rotated", True), "b": ("bias", True), "nob": ("bias", False)}
MAX_PAGE = 8192  # tokens: the exact tail of a page format is as long as its page


def kv_format(text: str) -> KVFormat:
    """The format that `text` names, page formats with an optional `:P`, then modifiers.

    `int3nsep:512` is int3nsep with pages of 512 tokens, P a multiple of 32 up to 8192.  `q4_0+h+b`
    has the modifiers +h and +b (`engine.kv.modifiers`).  Raises InputError for anything else.
    """
    plain, *modifiers = text.split("+")
    found = _plain_format(plain, text)
    if not modifiers:
        return found
    fields = dict(_MODIFIERS[name] for name in modifiers if name in _MODIFIERS)
    if len(fields) < len(modifiers):  # an unknown one, or two of a kind
        raise InputError(f"{_shown(text)}: modifiers of {plain} are +h, and +b or +nob")
    return replace(found, modifiers=Modifiers(**fields))


def side_type(text: str, side: Side) -> str:
    """`text` with a name of `BEST` replaced by the type it means on this side."""
    name = re.split("[:+]", text, maxsplit=1)[0]
    return BEST[name][side] + text.removeprefix(name) if name in BEST else text


def _shown(text: str) -> str:
    """`text` so that an error message stays one short line."""
    return text if text.isprintable() and 0 < len(text) < 40 else f"{text!r:.40}"


def _plain_format(text: str, whole: str) -> KVFormat:
    """The format without its modifiers; `whole` is the text with them."""
    if text in ALL_KV_FORMATS:  # some names have a colon of their own
        return ALL_KV_FORMATS[text]
    name, _, pages = text.partition(":")
    found = ALL_KV_FORMATS.get(name)
    whole = _shown(whole)
    if found is None:
        raise InputError(f"{whole}: not a KV cache type. Choose from: {KV_TYPES}")
    if found.page_tokens is None:
        raise InputError(f"{whole}: {name} has no page length; only page formats take ':P'")
    tokens = int(pages) if re.fullmatch("[1-9][0-9]{0,4}", pages) else 0
    if not (0 < tokens <= MAX_PAGE and tokens % 32 == 0):
        raise InputError(f"{whole}: a page length is a multiple of 32 from 32 to {MAX_PAGE}")
    return replace(found, name=text, page_tokens=tokens)
