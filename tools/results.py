"""Results of a grid in one SQLite file: a cell is on disk the moment it is put.

A file holds the cells of one model and one way of measuring, its *identity*; any other is refused
by name, so figures that cannot be compared never meet.  Write-ahead logging lets a report read
while a sweep writes.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.kv.policy import Policy
from engine.kv.policy_file import parse_policy

_APPLICATION = 0x6D6B7631  # "mkv1": tells our files from other programs' databases
_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS note (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cell (
    ctk TEXT, ctv TEXT,
    values_json TEXT,  -- the figures; NULL if it failed
    nll BLOB,          -- float64 negative log likelihoods of all tokens, in order
    error TEXT,        -- why the cell failed; NULL if it is finished
    at REAL NOT NULL,  -- seconds since 1970
    PRIMARY KEY (ctk, ctv)
) WITHOUT ROWID;
"""

# a cell's name: KV cache type of keys, of values; a policy, FILE@DIGEST, stands for both
Pair = tuple[str, str]


def is_policy(pair: Pair) -> bool:
    """Whether a cell is a policy's: no type has an @ in its name."""
    return "@" in pair[0]


def cell_name(pair: Pair) -> str:
    """What reports call a cell."""
    return pair[0] if is_policy(pair) else "/".join(pair)


@dataclass(frozen=True)
class Cell:
    """A measured cell.  `nll` float64 [tokens] is empty if nothing was scored.

    Of a policy, `values` have its numbers of exact tokens, "sink" and "recent", and the text of its
    file, "policy".
    """

    pair: Pair
    values: dict[str, Any]
    nll: np.ndarray

    def stored(self, sink: int) -> Policy:
        """How its cache was stored, a pair's with `sink` exact first tokens."""
        if is_policy(self.pair):
            return parse_policy(self.values["policy"], self.pair[0])
        return Policy.of(*self.pair, sink)


Outcome = Cell | str  # what came of a cell; a line if nothing could be measured


class Results:
    """An open results file.  Every method raises InputError naming the file if it fails."""

    def __init__(
        self, path: Path, identity: Mapping[str, Any], notes: Mapping[str, str] | None = None
    ) -> None:
        """Open or create `path` for cells of this `identity`, whose values are JSON values.

        `notes` are for whoever reads the results; the last ones stay.  Those called "model" and
        "file" are the names of what `identity` holds the sha256 of.
        """
        self.path = path
        with self._checked():
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._own()
            self._db.execute("PRAGMA journal_mode = WAL")
            # a commit returns only once its bytes have reached the disk
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT")
            self._match(identity, notes or {})
            self._db.executemany("INSERT OR REPLACE INTO note VALUES (?, ?)", (notes or {}).items())

    @classmethod
    def read(cls, path: Path) -> Results:
        """Open an existing file, whatever it holds results of."""
        if not path.is_file():
            raise InputError(f"{path}: no such results file; minikv sweep --db makes one")
        results = cls.__new__(cls)
        results.path = path
        with results._checked():
            results._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            results._own(may_be_new=False)
        return results

    def close(self) -> None:
        with self._checked():
            self._db.close()

    @property
    def identity(self) -> dict[str, Any]:
        with self._checked():
            rows = self._db.execute("SELECT name, value FROM identity").fetchall()
            return {name: json.loads(value) for name, value in rows}

    @property
    def notes(self) -> dict[str, str]:
        with self._checked():
            return dict(self._db.execute("SELECT name, value FROM note").fetchall())

    def done(self) -> set[Pair]:
        """The finished cells; those with errors are not."""
        with self._checked():
            return set(self._db.execute("SELECT ctk, ctv FROM cell WHERE error IS NULL"))

    def cells(self) -> list[Cell]:
        """The finished cells by name."""
        query = "SELECT ctk, ctv, values_json, nll FROM cell WHERE error IS NULL ORDER BY ctk, ctv"
        with self._checked():
            return [
                Cell((ctk, ctv), json.loads(values), np.frombuffer(nll, "<f8"))
                for ctk, ctv, values, nll in self._db.execute(query)
            ]

    def errors(self) -> dict[Pair, str]:
        """The cells that failed, and why."""
        with self._checked():
            rows = self._db.execute(
                "SELECT ctk, ctv, error FROM cell WHERE error IS NOT NULL ORDER BY ctk, ctv"
            )
            return {(ctk, ctv): error for ctk, ctv, error in rows}

    def keep(self, pair: Pair, outcome: Outcome) -> None:
        """Keep what came of a cell, in the place of what was known of it."""
        if isinstance(outcome, Cell):
            self.put(outcome)
        else:
            self.put_error(pair, outcome)

    def put(self, cell: Cell) -> None:
        """Keep a measured cell."""
        values = json.dumps(cell.values, allow_nan=False)
        self._put(cell.pair, values, cell.nll.astype("<f8").tobytes(), None)

    def put_error(self, pair: Pair, error: str) -> None:
        """Note why a cell failed."""
        self._put(pair, None, None, error)

    def _put(self, pair: Pair, values: str | None, nll: bytes | None, error: str | None) -> None:
        with self._checked():
            self._db.execute(
                "INSERT OR REPLACE INTO cell VALUES (?, ?, ?, ?, ?, ?)",
                (*pair, values, nll, error, time.time()),
            )

    def _own(self, may_be_new: bool = True) -> None:
        """Refuse databases of other programs, before anything is written to them."""
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if may_be_new and not tables and not application:
            self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
        elif application != _APPLICATION:
            raise InputError(f"{self.path}: not a results file of minikv sweep")

    def _match(self, identity: Mapping[str, Any], notes: Mapping[str, str]) -> None:
        """Give a new file this identity; refuse a file that has another."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            known = self.identity
            if not known:
                rows = [(name, json.dumps(value)) for name, value in identity.items()]
                self._db.executemany("INSERT INTO identity VALUES (?, ?)", rows)
            for name, value in identity.items():
                if known and known.get(name) != value:
                    what, there = _named(name, known.get(name), self.notes)
                    _, here = _named(name, value, notes)
                    raise InputError(
                        f"{self.path}: holds results of {what} {there}, not {here}; "
                        "give another --db"
                    )
        finally:
            self._db.execute("COMMIT")

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: {error}") from None


def _named(name: str, value: Any, notes: Mapping[str, str]) -> tuple[str, str]:
    """A part of an identity and its value in a message: files by their names, lists in short."""
    if isinstance(value, list):
        return name, ",".join(map(str, value))
    label = {"model_sha256": "model", "text_sha256": "file"}.get(name)
    if label is None:
        return name, str(value)
    return label, f"{notes.get(label, '?')} (sha256 {str(value)[:12]}...)"
