"""The registry of KV cache types."""

from __future__ import annotations

import re
from dataclasses import replace

from engine.errors import InputError
from engine.kv.format import KVFormat
from engine.kv.formats.floats import BF16, F16, F32
from engine.kv.formats.nsep import INT3NSEP
from engine.kv.formats.q4_0 import Q4_0_FORMAT
from engine.kv.formats.q8_0 import Q8_0_FORMAT

KV_FORMATS: dict[str, KVFormat] = {
    f.name: f for f in (F32, F16, BF16, Q8_0_FORMAT, Q4_0_FORMAT, INT3NSEP)
}

MAX_PAGE = 8192  # tokens: the exact tail of a page format is as long as its page


def kv_format(text: str) -> KVFormat:
    """The format that `text` names: a registered name, page formats with an optional `:P`.

    `int3nsep:512` is int3nsep with pages of 512 tokens, P a multiple of 32 up to 8192.
    """
    name, colon, pages = text.partition(":")
    found = KV_FORMATS.get(name)
    if not (text.isprintable() and 0 < len(text) < 40):
        text = f"{text!r:.40}"  # the message stays one short line
    if found is None:
        raise InputError(f"{text}: not a KV cache type. Choose from: {', '.join(KV_FORMATS)}")
    if not colon:
        return found
    if found.page_tokens is None:
        raise InputError(f"{text}: {name} has no page length; only page formats take ':P'")
    tokens = int(pages) if re.fullmatch("[1-9][0-9]{0,4}", pages) else 0
    if not (0 < tokens <= MAX_PAGE and tokens % 32 == 0):
        raise InputError(f"{text}: a page length is a multiple of 32 from 32 to {MAX_PAGE}")
    return replace(found, name=text, page_tokens=tokens)
