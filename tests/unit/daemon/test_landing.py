"""Artifacts are stored in order, whatever fails, and a slow removal keeps no store waiting."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mle_client import layout
from mle_client.messages import ProducerId
from mle_daemon import events as e
from mle_daemon import landing
from mle_daemon.checkpoints import Checkpoints
from mle_daemon.landing import Landing

PRODUCER = ProducerId(bytes(16))
SOON_S = 10.0


def retained(number: int) -> str:
    return layout.retained_path("seed_1", number, ".pt")


class Desk:
    """A landing with its outcomes.  Args: root: of the daemon."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.exp = root / "exp"
        self.exp.mkdir()
        self.outcomes: list[e.Event] = []
        self.changed = threading.Condition()
        self.landing = Landing(Checkpoints(str(root)), self.deliver)

    def deliver(self, event: e.Event) -> None:
        with self.changed:
            self.outcomes.append(event)
            self.changed.notify_all()

    def submit(self, number: int, *names: str, evict: tuple[str, ...] = ()) -> None:
        """Have the bytes b"<number>" stored."""
        staging = self.root / ".mle" / "staging"
        staging.mkdir(parents=True, exist_ok=True)
        staged = staging / f"{number}.part"
        staged.write_bytes(b"%d" % number)
        self.landing.submit(
            e.StoreArtifact(PRODUCER, number, str(staged), str(self.exp), names, evict)
        )

    def wait(self, count: int) -> list[e.Event]:
        """The first outcomes, once there are so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.outcomes) >= count, SOON_S)
            return self.outcomes[:count]

    def held(self, name: str) -> bytes | None:
        path = self.exp / name
        return path.read_bytes() if path.exists() else None


@pytest.fixture
def desk(root: Path) -> Iterator[Desk]:
    desk = Desk(root)
    yield desk
    desk.landing.stop()


def until(holds: Callable[[], bool]) -> None:
    """Wait for something."""
    end = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


class SlowUnlink:
    """Removals of retained checkpoints that wait until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_go = threading.Event(), threading.Event()
        unlink = os.unlink

        def slow(path: Any, **options: Any) -> None:
            if "retained" in str(path):
                self.begun.set()
                assert self.may_go.wait(SOON_S)
            unlink(path, **options)

        monkeypatch.setattr(os, "unlink", slow)


def test_artifacts_are_stored_in_the_order_in_which_they_came(desk: Desk) -> None:
    final = layout.final_path("seed_1", ".pt")
    for number in range(1, 21):
        desk.submit(number, final, layout.every_k_path("seed_1", number, ".pt"))
    assert desk.wait(20) == [e.ArtifactStored(PRODUCER, number) for number in range(1, 21)]
    assert desk.held(final) == b"20"


def test_a_file_that_was_replaced_is_freed_soon(desk: Desk) -> None:
    final = layout.final_path("seed_1", ".pt")
    desk.submit(1, final)
    desk.submit(2, final)
    desk.wait(2)

    def held() -> list[str]:
        fds = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
        paths = [os.readlink(fd) for fd in fds if os.path.lexists(fd)]
        return [path for path in paths if f"{final} (deleted)" in path]

    until(lambda: held() == [])


def test_a_slow_removal_delays_no_store(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowUnlink(monkeypatch)
    desk.submit(1, retained(1))
    desk.submit(2, retained(2), evict=(retained(1),))
    assert slow.begun.wait(SOON_S)
    for number in (3, 4, 5):
        desk.submit(number, retained(number), evict=(retained(number - 1),))
    assert len(desk.wait(5)) == 5
    assert desk.held(retained(1)) == b"1"
    slow.may_go.set()
    until(lambda: os.listdir(desk.exp / "models" / "retained") == ["retained_seed_1_5.pt"])


def test_nothing_is_removed_before_its_replacement_is_on_disk(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.submit(1, retained(1))
    desk.wait(1)
    calls: list[str] = []
    fsync, unlink = os.fsync, os.unlink

    def noted_fsync(fd: int) -> None:
        fsync(fd)
        calls.append("fsync")

    def noted_unlink(path: Any, **options: Any) -> None:
        if str(path).endswith(retained(1)):
            calls.append("remove")
        unlink(path, **options)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "unlink", noted_unlink)
    desk.submit(2, retained(2), evict=(retained(1),))
    until(lambda: "remove" in calls)
    assert calls[0] == "fsync"


@pytest.mark.parametrize(
    ("code", "final"), [(errno.ENOSPC, False), (errno.EIO, False), (errno.EISDIR, True)]
)
def test_a_store_that_fails_is_told_and_removes_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, code: int, final: bool
) -> None:
    desk.submit(1, retained(1))
    desk.wait(1)

    def fail(a: str, b: str) -> None:
        raise OSError(code, os.strerror(code), b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        desk.submit(2, retained(2), evict=(retained(1),))
        (_, outcome) = desk.wait(2)
    assert isinstance(outcome, e.ArtifactNotStored)
    assert (outcome.number, outcome.final) == (2, final)
    desk.submit(3, retained(3))
    assert desk.wait(3)[2] == e.ArtifactStored(PRODUCER, 3)
    assert desk.held(retained(1)) == b"1"


def test_names_that_lead_elsewhere_are_never_tried_again(desk: Desk) -> None:
    desk.submit(1, "figures/../../x.png")
    (outcome,) = desk.wait(1)
    assert isinstance(outcome, e.ArtifactNotStored)
    assert outcome.final
    assert "upwards" in outcome.error


def test_another_file_system_takes_artifacts_too(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def replace(a: str, b: str) -> None:
        if "/.mle/" in a:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(a, b)

    monkeypatch.setattr(os, "replace", replace)
    desk.submit(1, retained(1), "figures/x.png")
    assert desk.wait(1) == [e.ArtifactStored(PRODUCER, 1)]
    assert (desk.held(retained(1)), desk.held("figures/x.png")) == (b"1", b"1")


def test_a_removal_that_fails_is_tried_again_and_logged(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(landing, "RETRY_REMOVAL_S", 0.01)
    desk.submit(1, retained(1))
    desk.wait(1)
    failures = [errno.EACCES, errno.EIO]
    unlink = os.unlink

    def fail(path: Any, **options: Any) -> None:
        if failures:
            code = failures.pop()
            raise OSError(code, os.strerror(code))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", fail)
    desk.landing.submit(e.Evict(str(desk.exp), (retained(1),)))
    until(lambda: desk.held(retained(1)) is None)
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    assert retained(1) in caplog.text


def test_a_removal_that_is_refused_is_logged_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(landing, "RETRY_REMOVAL_S", 0.0)
    (desk.exp / retained(1)).mkdir(parents=True)
    desk.landing.submit(e.Evict(str(desk.exp), (retained(1),)))
    desk.landing.submit(e.Evict(str(desk.exp), (retained(2),)))
    until(lambda: bool(caplog.records))
    time.sleep(0.05)
    assert caplog.text.count("is a folder") == 1


@pytest.mark.parametrize("under_way", [True, False])
def test_a_name_that_a_new_file_takes_is_not_removed_any_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, under_way: bool
) -> None:
    """A run of the same seed begins while the removals of the last one are not done."""
    desk.submit(1, retained(1))
    desk.submit(2, retained(2))
    desk.wait(2)
    slow = SlowUnlink(monkeypatch)
    first, second = (retained(1), retained(2)) if under_way else (retained(2), retained(1))
    desk.landing.submit(e.Evict(str(desk.exp), (first,)))
    assert slow.begun.wait(SOON_S)
    desk.landing.submit(e.Evict(str(desk.exp), (second,)))
    desk.submit(3, retained(1))
    if not under_way:
        desk.wait(3)
    slow.may_go.set()
    desk.wait(3)
    desk.landing.stop()
    assert desk.held(retained(2)) is None
    assert desk.held(retained(1)) == b"3"


def test_stopping_finishes_what_was_submitted(root: Path) -> None:
    desk = Desk(root)
    for number in range(1, 31):
        desk.submit(number, retained(number), evict=(retained(number - 1),))
    desk.landing.stop()
    assert len(desk.outcomes) == 30
    assert os.listdir(desk.exp / "models" / "retained") == ["retained_seed_1_30.pt"]


def test_stopping_does_not_wait_for_what_cannot_be_removed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(root)
    tried = threading.Semaphore(0)

    def evict(*_: Any) -> None:
        tried.release()
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Checkpoints, "evict", evict)
    desk.landing.submit(e.Evict(str(desk.exp), (retained(1),)))
    assert tried.acquire(timeout=SOON_S)
    remover = desk.landing._remover
    with remover._changed:  # until it is to be tried again
        assert remover._changed.wait_for(lambda: remover._due, SOON_S)
    desk.landing.stop()
    assert tried.acquire(blocking=False)  # a last time


def test_a_callback_that_fails_does_not_end_the_thread(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def fail_first(event: e.Event) -> None:
        calls.append(event)
        if len(calls) == 1:
            raise RuntimeError("no")
        desk.deliver(event)

    desk.landing.stop()
    desk.landing = Landing(Checkpoints(str(desk.root)), fail_first)
    desk.submit(1, retained(1))
    desk.submit(2, retained(2))
    assert desk.wait(1) == [e.ArtifactStored(PRODUCER, 2)]
    assert "the outcome of storing artifact 1 was lost" in caplog.text
