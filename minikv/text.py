"""Numbers and names as a terminal should see them."""

from __future__ import annotations

import re
import shlex
import sys
from typing import TYPE_CHECKING, Any, Protocol

from engine.errors import InputError

if TYPE_CHECKING:
    from engine.kv.policy import Policy

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
SECRET = "--api-key"  # an option whose value is nobody's business


def size(nbytes: int) -> str:
    """Bytes in the largest binary unit that leaves at least one digit before the point."""
    value, units = float(nbytes), ["GiB", "MiB", "KiB"]
    while value >= 1024 and units:
        value, unit = value / 1024, units.pop()
        if value < 1024 or not units:
            return f"{value:.1f} {unit}"
    return f"{nbytes} B"


def nbytes_of(option: str, text: str) -> int:
    """Bytes from "8G", "512M", "1.5 GiB" or a plain number; units are binary, as in `size`.

    Raises InputError, naming the option, for anything else.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([KMGT]?)(?:i?B)?", text.strip(), re.I)
    nbytes = int(float(found[1]) * 2 ** _UNITS[found[2].upper()]) if found else 0
    if not nbytes:
        raise InputError(f"{option} {text!r:.40}: not a size; write bytes, or 512M, 8G, 1.5G")
    return nbytes


def command_line() -> str:
    """The command that reproduces this run, without the secret in it."""
    args = sys.argv[1:]
    for i, arg in enumerate(args):
        if arg == SECRET and args[i + 1 :]:
            args[i + 1] = "..."
        elif arg.startswith(f"{SECRET}="):
            args[i] = f"{SECRET}=..."
    return shlex.join(["minikv", *args])


def one_line(text: str) -> str:
    """`text` as one line without control characters: names in files must not drive a terminal."""
    text = " ".join(text.split())
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


class StoredCache(Protocol):
    """What says how a cache is stored."""

    @property
    def ctk(self) -> str: ...
    @property
    def ctv(self) -> str: ...
    @property
    def kv(self) -> Policy: ...
    @property
    def policy(self) -> Policy | None: ...


def kv_data(stored: StoredCache) -> dict[str, Any]:
    """How a cache is stored, as JSON values: the types asked for, or a policy by its file's name
    and digest, which then stands for both."""
    kv, name = stored.kv, None if stored.policy is None else stored.policy.name
    found = {"ctk": name or stored.ctk, "ctv": name or stored.ctv, "sink": kv.sink}
    return found if name is None else found | {"recent": kv.recent}
