"""The syncing thread: when it syncs, what it reports, and that nothing ends it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mle_daemon.group_sync import GroupSync
from mle_daemon.journal import Journal, JournalPosition, JournalWriteError

SOON_S = 10.0  # far more than anything here takes
NEVER_S = 1000.0  # an interval that no test reaches


class Reports(list[tuple[JournalPosition, Exception | None]]):
    """What the thread reported; `failing` makes the callback raise."""

    failing = False

    def __call__(self, position: JournalPosition, error: Exception | None) -> None:
        self.append((position, error))
        if self.failing:
            raise RuntimeError("the callback is broken")


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(str(tmp_path))
    journal.sync()
    yield journal
    with contextlib.suppress(JournalWriteError):
        journal.close()


@pytest.fixture
def start(journal: Journal, reports: Reports) -> Iterator[Callable[[float], GroupSync]]:
    started = []

    def start(interval_s: float) -> GroupSync:
        started.append(GroupSync(journal, reports, interval_s))
        return started[-1]

    yield start
    for sync in started:
        assert sync.stop(SOON_S)


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)


def failing(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_what_is_appended_is_synced_and_reported_unasked(
    journal: Journal, start: Callable[[float], GroupSync], reports: Reports
) -> None:
    start(0.01)

    position = journal.append([(b"x",)])

    wait_until(lambda: bool(reports))
    assert reports == [(position, None)]
    assert journal.synced == position


def test_a_clean_journal_is_left_alone(
    journal: Journal, start: Callable[[float], GroupSync], reports: Reports
) -> None:
    start(0.001)

    time.sleep(0.05)

    assert reports == []


def test_many_appends_share_a_sync(
    journal: Journal, start: Callable[[float], GroupSync], reports: Reports
) -> None:
    sync = start(0.1)
    end = time.monotonic() + 0.35
    while time.monotonic() < end:
        journal.append([(b"x",)])
    sync.stop()

    assert 1 <= len(reports) <= 5


def test_sync_now_does_not_wait_for_the_interval(
    journal: Journal, start: Callable[[float], GroupSync], reports: Reports
) -> None:
    sync = start(NEVER_S)
    position = journal.append([(b"x",)])

    assert sync.sync_now(SOON_S)
    assert journal.synced == position
    assert reports[-1] == (position, None)


def test_a_stalled_disk_keeps_neither_appends_nor_sync_now(
    journal: Journal, start: Callable[[float], GroupSync], monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    fdatasync = os.fdatasync

    def stalled(fd: int) -> None:
        assert goes_on.wait(SOON_S)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", stalled)
    sync = start(NEVER_S)
    journal.append([(b"x",)])

    assert not sync.sync_now(0.05)
    position = journal.append([(b"y",)])
    journal.rotate([])
    assert not sync.stop(0.01)
    goes_on.set()
    assert sync.stop(SOON_S)
    assert journal.synced > position


def test_an_error_is_reported_and_the_thread_goes_on(
    journal: Journal,
    start: Callable[[float], GroupSync],
    reports: Reports,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync = start(NEVER_S)
    before = journal.end
    journal.append([(b"x",)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        assert not sync.sync_now(NEVER_S)
    position, error = reports[-1]
    assert position == before
    assert isinstance(error, JournalWriteError)
    assert error.errno == errno.EIO

    journal.rotate([])
    journal.drop(before.segment)
    journal.append([(b"y",)])
    assert sync.sync_now(SOON_S)
    assert reports[-1] == (journal.end, None)


def test_an_error_is_reported_once_not_at_every_interval(
    journal: Journal,
    start: Callable[[float], GroupSync],
    reports: Reports,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fdatasync", failing)
    start(0.002)
    journal.append([(b"x",)])
    wait_until(lambda: bool(reports))

    time.sleep(0.05)

    assert len(reports) == 1


def test_an_error_that_nobody_foresaw_is_reported_too(
    journal: Journal,
    start: Callable[[float], GroupSync],
    reports: Reports,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(fd: int) -> None:
        raise RuntimeError("a mistake of ours")

    sync = start(NEVER_S)
    journal.append([(b"x",)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        assert not sync.sync_now(SOON_S)

    assert isinstance(reports[-1][1], RuntimeError)
    assert sync.sync_now(SOON_S)


def test_a_broken_callback_is_logged_and_the_thread_goes_on(
    journal: Journal,
    start: Callable[[float], GroupSync],
    reports: Reports,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sync = start(NEVER_S)
    reports.failing = True
    journal.append([(b"x",)])
    assert sync.sync_now(SOON_S)
    reports.failing = False
    journal.append([(b"y",)])
    assert sync.sync_now(SOON_S)

    wait_until(lambda: len(reports) == 2)
    assert "the callback is broken" in caplog.text


def test_stop_syncs_a_last_time(
    journal: Journal, start: Callable[[float], GroupSync], reports: Reports
) -> None:
    sync = start(NEVER_S)
    position = journal.append([(b"x",)])

    assert sync.stop()
    assert reports == [(position, None)]


def test_sync_now_after_stop_returns_at_once(
    journal: Journal, start: Callable[[float], GroupSync]
) -> None:
    sync = start(NEVER_S)
    sync.stop()
    assert sync.sync_now(NEVER_S)

    journal.append([(b"x",)])
    assert not sync.sync_now(NEVER_S)
