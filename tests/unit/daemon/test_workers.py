"""The writer thread: memory of large publications is given back when there is nothing to do."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mle_daemon import allocator
from mle_daemon.columns import FileState
from mle_daemon.events import PublishRun, SealRun
from mle_daemon.workers import _LARGE_FILE_BYTES, _REST_S, Writer
from tests.unit.daemon.test_store import a_run

STATE = FileState("", 1, {}, {}, "running", 0.0, 0)


class Anything:
    """In place of a store and of mirrors.  Args: size: of the files."""

    def __init__(self, size: int) -> None:
        self._state = replace(STATE, size=size)

    def publish(self, job: PublishRun, tboard: int) -> tuple[FileState, tuple[str, ...]]:
        return self._state, ()

    def seal(self, path: str, state: FileState) -> FileState:
        return self._state

    def __getattr__(self, name: str) -> Any:
        return lambda *args: 0


@pytest.fixture
def given_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when memory is given back."""
    event = threading.Event()
    monkeypatch.setattr(allocator, "give_back", event.set)
    return event


def done(size: int, root: Path, *, seal: bool = False) -> Writer:
    """A writer that has done one job.  Args: size: of the file."""
    woken = threading.Event()
    store: Any = Anything(size)
    writer = Writer(store, store, woken.set)
    run = a_run(root)
    job = PublishRun(run, "seed_1", str(root / "log"), STATE, (), 0, {}, "running")
    writer.submit(SealRun(run.run_id, str(root / "log"), STATE) if seal else job)
    assert woken.wait(10.0)
    return writer


@pytest.mark.parametrize("seal", [False, True])
def test_memory_goes_back_after_a_large_file(
    seal: bool, root: Path, given_back: threading.Event
) -> None:
    writer = done(_LARGE_FILE_BYTES, root, seal=seal)
    assert given_back.wait(10.0)
    given_back.clear()
    writer.stop()
    assert not given_back.is_set()  # once


def test_small_files_are_not_worth_it(root: Path, given_back: threading.Event) -> None:
    writer = done(_LARGE_FILE_BYTES - 1, root)
    assert not given_back.wait(2 * _REST_S)
    writer.stop()


def test_an_end_does_not_wait_for_it(root: Path, given_back: threading.Event) -> None:
    writer = done(_LARGE_FILE_BYTES, root)
    writer.stop()
    assert len(writer.outcomes()) == 1
