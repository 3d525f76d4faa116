"""Numbers and names as a terminal should see them."""

from __future__ import annotations

import shlex
import sys

SECRET = "--api-key"  # an option whose value is nobody's business


def size(nbytes: int) -> str:
    """Bytes in the largest binary unit that leaves at least one digit before the point."""
    value, units = float(nbytes), ["GiB", "MiB", "KiB"]
    while value >= 1024 and units:
        value, unit = value / 1024, units.pop()
        if value < 1024 or not units:
            return f"{value:.1f} {unit}"
    return f"{nbytes} B"


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


def kv_name(ctk: str, ctv: str, sink: int = 0) -> str:
    """How a cache is called: types of keys and values, and how many first tokens stay exact."""
    return f"{ctk}/{ctv}+sink{sink}" if sink else f"{ctk}/{ctv}"
