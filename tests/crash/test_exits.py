"""However a trainer ends, whatever its daemon does: it ends in time, and what it says is true.

Each test is a row of the matrix: all ways to end, at once, in one state of the daemon.  Half of the
ticks are logged before that state, half in it.  In the end every tick is in a log, once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from mle_client import load_log
from mle_client.lifetime import EXIT_TIMEOUT_S
from tests.integration import daemons

TICKS: Final = 500  # before, and again after
# A trainer may take a second more than it waits for its daemon; that ten interpreters end at once,
# on two cores, is this test's doing.
LATEST_S: Final = EXIT_TIMEOUT_S + 1.0 + 5.0
_FULL_BYTES: Final = 8_000_000

pytestmark = pytest.mark.crash


@dataclass(frozen=True)
class Ending:
    """A way to end.

    Args:
        body: of the script.
        code: exit status; negative for a signal.
        reports: whether the logger is closed.
    """

    body: str
    code: int
    reports: bool = True


ENDINGS: Final = {
    "normal": Ending("pass", 0),
    "exception": Ending("raise RuntimeError('training failed')", 1),
    "sys.exit": Ending("sys.exit(3)", 3),
    "SIGTERM": Ending("os.kill(os.getpid(), 15); time.sleep(60)", -signal.SIGTERM, reports=False),
    "SIGTERM with a handler": Ending(
        "signal.signal(15, lambda *_: sys.exit(5)); before[15] = signal.getsignal(15)\n"
        "os.kill(os.getpid(), 15); time.sleep(60)",
        5,
    ),
    "Ctrl-C": Ending("os.kill(os.getpid(), 2); time.sleep(60)", -signal.SIGINT),
    "os._exit": Ending("os._exit(4)", 4, reports=False),
    "SIGKILL": Ending("os.kill(os.getpid(), 9); time.sleep(60)", -signal.SIGKILL, reports=False),
    "still referenced": Ending(
        "class Holder:\n    pass\n"
        "holder = Holder(); holder.me, holder.log, holder.update = holder, log, log.update\n"
        "sys.modules['held'] = holder",
        0,
    ),
    "exception in a thread": Ending(
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()", 0
    ),
}
_SCRIPT: Final = """
import atexit, os, signal, sys, threading, time

def handlers():
    hooks = {{"exceptions": sys.excepthook, "in threads": threading.excepthook}}
    return {{number: signal.getsignal(number) for number in signal.valid_signals()}} | hooks

signal.signal(10, lambda *_: None)
before = handlers()
if {no_daemon}:
    sys.executable = "/bin/false"
from mle_client import MLELogger

def tell():  # after the logger was closed, since this is registered before
    report = log.close()
    assert handlers() == before and signal.set_wakeup_fd(-1) == -1
    print("report", report.delivered, report.spilled, report.lost, flush=True)

if {reports}:
    atexit.register(tell)
log = MLELogger({folder!r}, on_error=lambda error: None)
for i in range({ticks}):
    log.update({{"step": i}}, {{"x": float(i)}})
if {wait}:
    log.flush(30)
print("logged", flush=True)
sys.stdin.readline()
for i in range({ticks}, 2 * {ticks}):
    log.update({{"step": i}}, {{"x": float(i)}})
if handlers() != before:  # those that do not come to `tell`
    os._exit(99)
{body}
"""


class Trainers:
    """All endings, each a process.

    Args:
        folder: for their experiments.
        no_daemon: no daemon can be started.
    """

    def __init__(self, folder: Path, *, no_daemon: bool = False) -> None:
        self.folder = folder
        self._no_daemon = no_daemon
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Trainers:
        for name, ending in ENDINGS.items():
            text = _SCRIPT.format(
                folder=str(self.experiment(name)),
                ticks=TICKS,
                body=ending.body,
                reports=ending.reports,
                wait=not self._no_daemon,
                no_daemon=self._no_daemon,
            )
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-c", text], env=daemons.environment(), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        for process in self._processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "logged\n"
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()

    def experiment(self, name: str) -> Path:
        """The folder of one."""
        return self.folder / name.replace(" ", "_")

    def end(self) -> dict[str, tuple[int, int, int]]:
        """Have all of them log on, and end.

        Returns:
            What each has reported: ticks delivered, spilled and lost.
        """
        begun = time.monotonic()
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        reports = {}
        for name, process in self._processes.items():
            left = max(0.1, begun + LATEST_S - time.monotonic())
            output, errors = process.communicate(timeout=left)
            assert process.returncode == ENDINGS[name].code, (name, errors)
            if ENDINGS[name].reports:
                delivered, spilled, lost = map(int, output.split()[1:])
                reports[name] = (delivered, spilled, lost)
        return reports

    def assert_stored(self) -> None:
        """Every tick of each is in its log, once and in order."""
        for name in ENDINGS:
            run: Any = load_log(str(self.experiment(name)))
            np.testing.assert_array_equal(run.time.step, np.arange(2 * TICKS), err_msg=name)
            np.testing.assert_array_equal(run.stats.x, np.arange(2.0 * TICKS), err_msg=name)
            assert run.state in ("finished", "crashed"), name


def wait_until_ended(root: Path) -> None:
    """Until the daemon has all there is of every run."""
    daemons.wait_for(
        lambda: (
            len(runs := daemons.status(root)["runs"]) == len(ENDINGS)
            and all(run["state"] != "running" for run in runs)
            and all(run["ticks"]["published"] == 2 * TICKS for run in runs)
        )
    )


def test_beside_a_living_daemon(root: Path) -> None:
    with daemons.running(root), Trainers(root) as trainers:
        reports = trainers.end()
        assert set(reports.values()) == {(2 * TICKS, 0, 0)}, reports
        wait_until_ended(root)
        trainers.assert_stored()


def test_beside_a_stopped_daemon(root: Path) -> None:
    with daemons.running(root) as daemon, Trainers(root) as trainers:
        os.kill(daemon["pid"], signal.SIGSTOP)
        try:
            reports = trainers.end()
        finally:
            os.kill(daemon["pid"], signal.SIGCONT)
        assert {lost for _, _, lost in reports.values()} == {0}
        assert {spilled for _, spilled, _ in reports.values()} == {TICKS}, reports
        wait_until_ended(root)
        trainers.assert_stored()


def test_after_the_daemon_was_killed(root: Path) -> None:
    daemon = daemons.start(root)
    with Trainers(root) as trainers:
        os.kill(daemon["pid"], signal.SIGKILL)
        reports = trainers.end()
        assert set(reports.values()) == {(2 * TICKS, 0, 0)}, reports
        daemons.start(root)  # unless a trainer's is still there
        daemons.stop(root)
        trainers.assert_stored()


@pytest.mark.long
@pytest.mark.timeout(180)
def test_where_no_daemon_can_be_started(root: Path) -> None:
    with Trainers(root, no_daemon=True) as trainers:
        reports = trainers.end()
        assert set(reports.values()) == {(0, 2 * TICKS, 0)}, reports
        for name in ENDINGS:
            done = daemons.mle_daemon("recover", "--root", str(trainers.experiment(name)))
            assert done.returncode == 0, done.stderr
        trainers.assert_stored()


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of its own.  Yields: the file that fills it."""
    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_FULL_BYTES}", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this needs the right to mount a file system")
    try:
        yield path / "ballast"
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(ballast: Path) -> None:
    with open(ballast, "wb", buffering=0) as file:
        for size in (100_000, 4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


@pytest.mark.long
def test_on_a_full_disk(root: Path) -> None:
    with small_disk(root) as ballast, daemons.running(root), Trainers(root) as trainers:
        fill(ballast)
        reports = trainers.end()
        assert {lost for _, _, lost in reports.values()} == {0}, reports
        assert {sum(report) for report in reports.values()} == {2 * TICKS}, reports
        assert "No space left" in daemons.status(root)["degraded"]
        ballast.unlink()
        wait_until_ended(root)
        assert daemons.status(root)["degraded"] == ""
        trainers.assert_stored()
