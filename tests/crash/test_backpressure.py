"""A daemon that is stopped or slow while trainers log on: bounded memory and disk, every tick told.

Eight trainers log as fast as they can to a daemon that is under SIGSTOP, for good or most of
the time.  Where bounds are to be passed they are made small, so that this takes a second.
"""

from __future__ import annotations

import functools
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import psutil
import pytest

from mle_client import MLELogger, layout, load_log, logger, runtime
from mle_client.ring import MEMORY_BYTES as RING_MEMORY_BYTES
from mle_client.ring import SEGMENT_BYTES, Ring
from mle_daemon.config import DaemonConfig
from tests import checker
from tests.integration import daemons

PRODUCERS: Final = 8
TICKS: Final = 60_000  # each: some 4 MB, more than the small bounds
MEMORY_BYTES: Final = 2 * SEGMENT_BYTES
SPILL_BYTES: Final = 4 * SEGMENT_BYTES
# What a trainer may grow by beside its ring's mapped memory: the interpreter's own, in a loop.
GROWTH_BYTES: Final = 16 * 2**20
TAIL_BYTES: Final = DaemonConfig("").tail_limit_bytes
# ticks logged, delivered, spilled, lost; by the end of the loop: lost, acknowledged, grown bytes,
# and milliseconds that update() has waited
_REPORT: Final = struct.Struct("<8Q")
# Of what eight trainers log on two cores meanwhile, a daemon that runs so little takes a tenth at
# most: it takes two million ticks a second, and is not stopped at once where all cores are busy.
RUNS_S: Final = 0.005
STOPS_S: Final = 1.5

pytestmark = pytest.mark.crash


@dataclass(frozen=True)
class Plan:
    """How trainers log.

    Args:
        goes_on: goes_on(number, lost, seconds) says whether tick `number` is logged, too.
        on_full, block_timeout: of the logger.
        small: whether the bounds of the ring are.
    """

    goes_on: Callable[[int, int, float], bool]
    on_full: str = "drop_newest"
    block_timeout: float = 100.0
    small: bool = True


@dataclass(frozen=True)
class Report:
    """What a trainer says in the end; as of `_REPORT`."""

    sent: int
    delivered: int
    spilled: int
    lost: int
    lost_then: int
    acked_then: int
    grown: int
    blocked_ms: int


@dataclass(frozen=True)
class Producer:
    """A trainer.  Args: said: what it says; asked: what it waits for."""

    seed: int
    pid: int
    said: int
    asked: int


def produce(plan: Plan, folder: str, seed: int, said: int, asked: int) -> None:
    """Log all ticks, say so, wait for a byte, and end the run."""
    if plan.small:
        os.environ["MLE_SPILL_BYTES"] = str(SPILL_BYTES)
        logger.Ring = functools.partial(Ring, memory_bytes=MEMORY_BYTES)  # type: ignore[misc]
    log = MLELogger(
        folder,
        seed_id=seed,
        on_error=lambda error: None,
        on_full=plan.on_full,
        block_timeout=plan.block_timeout,
    )
    log.update(*checker.tick(seed, 0))
    log.flush(30)
    os.write(said, b"!")
    os.read(asked, 1)
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    producer, number = log._channel.producer, 1  # type: ignore[union-attr]
    while plan.goes_on(number, producer.lost, time.monotonic() - began):
        log.update(*checker.tick(seed, number))
        number += 1
    stats = log.stats()
    grown = max(0, psutil.Process().memory_info().rss - before)
    os.write(said, b"!")
    os.read(asked, 1)
    report = log.close(timeout=60)
    os.write(
        said,
        _REPORT.pack(
            number, report.delivered, report.spilled, report.lost,
            stats["lost"], stats["ticks"], grown, int(1000 * stats["blocked_s"]),
        ),
    )  # fmt: skip


class Producers:
    """Trainers that wait for a word before they log, and before they end."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._made: list[Producer] = []

    def __enter__(self) -> Producers:
        for seed in range(1, PRODUCERS + 1):
            (said, says), (hears, asked) = os.pipe(), os.pipe()
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    produce(self._plan, str(self._folder), seed, says, hears)
                    code = 0
                finally:
                    os._exit(code)
            os.close(says)
            os.close(hears)
            self._made.append(Producer(seed, pid, said, asked))
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        for producer in self._made:
            os.kill(producer.pid, signal.SIGKILL)
            os.waitpid(producer.pid, 0)
            os.close(producer.said)
            os.close(producer.asked)

    def go_on(self) -> None:
        """Have them log, or end."""
        for producer in self._made:
            os.write(producer.asked, b"!")

    def wait(self) -> None:
        """Wait until they have begun, or logged."""
        assert {os.read(producer.said, 1) for producer in self._made} == {b"!"}

    def kill(self) -> None:
        """SIGKILL them."""
        for producer in self._made:
            os.kill(producer.pid, signal.SIGKILL)

    def end(self) -> list[Report]:
        """End them.  Returns: what they say, by seed."""
        self.go_on()
        said = [os.read(producer.said, _REPORT.size) for producer in self._made]
        return [Report(*_REPORT.unpack(each)) for each in said]


def size(*folders: str) -> int:
    """Bytes of all files in some folders."""
    return sum(
        os.path.getsize(os.path.join(where, name))
        for folder in folders
        for where, _, names in os.walk(folder)
        for name in names
    )


def in_memory(root: Path) -> int:
    return size(*runtime.ring_dirs(str(root)))


def on_disk(root: Path) -> int:
    return size(layout.state_path(str(root), layout.SPILL_DIR))


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def slowed(pid: int, stops_s: float = STOPS_S) -> Iterator[None]:
    """A daemon that is ten times too slow."""
    over = threading.Event()

    def slow() -> None:
        while not over.wait(RUNS_S):
            with stopped(pid):
                over.wait(stops_s)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def assert_told(root: Path, reports: list[Report]) -> None:
    """Every tick is stored once and in order, or counted as lost, by whoever counts."""
    lines: list[Any] = daemons.status(root)["runs"]
    loaded = load_log(str(root / "exp"))
    for seed, report in enumerate(reports, 1):
        assert report.sent == report.delivered + report.lost
        assert (report.spilled, report.lost) == (0, report.lost_then)
        assert loaded[f"seed_{seed}"].lost == report.lost
        (line,) = [each for each in lines if each["seed_id"] == f"seed_{seed}"]
        assert line["ticks"]["lost"] == report.lost
        assert line["ticks"]["published"] == report.delivered
        verdict = checker.judge(
            stored(root / "exp", seed), seed,
            sent=report.sent, begun=report.sent, lost=report.lost,
        )  # fmt: skip
        assert verdict.faults == ({"missing": report.lost} if report.lost else {})


def stored(folder: Path, seed: int) -> dict[str, Any]:
    with h5py.File(layout.log_path(str(folder), f"seed_{seed}")) as file:
        group = file[f"seed_{seed}"]
        columns = {name: group["stats"][name][:] for name in group["stats"]}
        return columns | {checker.STEP: group["time"][checker.STEP][:]}


@pytest.mark.parametrize(
    "plan",
    [
        Plan(lambda number, lost, seconds: number < TICKS),
        # Each of these five has waited for room before.
        Plan(lambda number, lost, seconds: lost < 5, on_full="block", block_timeout=0.02),
    ],
    ids=["drop_newest", "block"],
)
def test_past_the_bounds_ticks_are_dropped_and_counted(root: Path, plan: Plan) -> None:
    with daemons.running(root) as daemon, Producers(plan, root / "exp") as producers:
        with stopped(daemon["pid"]):
            producers.go_on()
            producers.wait()
            memory, disk = in_memory(root), on_disk(root)
        reports = producers.end()
        assert memory <= PRODUCERS * (MEMORY_BYTES + SEGMENT_BYTES)  # and what names the owner
        assert 0 < disk <= PRODUCERS * SPILL_BYTES
        assert all(report.lost > 0 for report in reports)
        if plan.on_full == "block":
            assert all(report.blocked_ms >= 5 * 20 for report in reports)
        assert_told(root, reports)


def test_a_trainer_that_is_killed_while_ticks_are_dropped_leaves_their_count(root: Path) -> None:
    plan = Plan(lambda number, lost, seconds: lost < 1_000)
    with daemons.running(root) as daemon, Producers(plan, root / "exp") as producers:
        with stopped(daemon["pid"]):
            producers.go_on()
            producers.wait()
            producers.kill()
        daemons.wait_for(lambda: states(root) == {"crashed"})
        loaded = load_log(str(root / "exp"))
        for seed in range(1, PRODUCERS + 1):
            assert loaded[f"seed_{seed}"].lost == 1_000
            verdict = checker.judge(
                columns := stored(root / "exp", seed), seed,
                sent=len(columns[checker.STEP]) + 1_000, begun=2**40, lost=1_000,
            )  # fmt: skip
            assert verdict.faults == {"missing": 1_000}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_much_that_killed_trainers_have_spilled_does_not_fill_the_daemons_memory(
    root: Path,
) -> None:
    """It is taken in beside all other work; a stop waits for it."""
    sent = 1_500_000  # some 75 MB
    plan = Plan(lambda number, lost, seconds: number < sent, small=False)
    with daemons.running(root) as daemon, Producers(plan, root / "exp") as producers:
        process = psutil.Process(daemon["pid"])
        at_rest = process.memory_info().rss
        with stopped(daemon["pid"]):
            producers.go_on()
            producers.wait()
            spilled = on_disk(root)
            producers.kill()
        slowest = peak = 0.0
        while states(root) != {"crashed"}:
            began = time.monotonic()
            daemons.status(root)
            slowest = max(slowest, time.monotonic() - began)
            peak = max(peak, process.memory_info().rss - at_rest)
        print(f"{spilled} bytes spilled; memory + {peak}; the slowest status took {slowest:.2f} s")
        assert spilled > 3 * TAIL_BYTES
        assert peak < 4 * TAIL_BYTES  # a third of them log text, of which copies are made
        for seed in range(1, PRODUCERS + 1):
            verdict = checker.judge(stored(root / "exp", seed), seed, sent=sent, begun=2**40)
            assert verdict.faults == {}


def states(root: Path) -> set[str]:
    return {run["state"] for run in daemons.status(root)["runs"]}


def test_beside_a_daemon_that_is_ten_times_too_slow_who_waits_loses_nothing(root: Path) -> None:
    ticks = TICKS * 2 // 3
    plan = Plan(lambda number, lost, seconds: number < ticks, on_full="block")
    with daemons.running(root) as daemon, Producers(plan, root / "exp") as producers:
        with stopped(daemon["pid"]):
            producers.go_on()  # as slow as they may be on a busy machine, they have to wait now
            daemons.wait_for(lambda: on_disk(root) == PRODUCERS * SPILL_BYTES)
            time.sleep(0.2)  # until the last segment of each is full
        with slowed(daemon["pid"], stops_s=0.2):
            producers.wait()
            assert on_disk(root) <= PRODUCERS * SPILL_BYTES
        reports = producers.end()
        assert {(report.sent, report.lost) for report in reports} == {(ticks, 0)}
        assert any(report.blocked_ms for report in reports)
        assert_told(root, reports)


def assert_bounded(root: Path, reports: list[Report], memory: int, disk: int) -> None:
    """Within the bounds of a ring everything is kept, and no more memory is taken."""
    ring = RING_MEMORY_BYTES + SEGMENT_BYTES
    assert memory <= PRODUCERS * ring
    assert {report.lost for report in reports} == {0}
    grown = max(report.grown for report in reports)
    assert grown <= ring + GROWTH_BYTES
    ticks = sum(report.sent for report in reports)
    taken = sum(report.acked_then for report in reports)
    print(
        f"{ticks} ticks, {taken} taken meanwhile; {memory} bytes of memory, {disk} of disk; "
        f"grown by {grown} at most"
    )
    assert_told(root, reports)


def test_what_is_logged_beside_a_stopped_daemon_arrives_when_it_goes_on(root: Path) -> None:
    plan = Plan(lambda number, lost, seconds: number < 2 * TICKS, small=False)
    with daemons.running(root) as daemon, Producers(plan, root / "exp") as producers:
        with stopped(daemon["pid"]):
            producers.go_on()
            producers.wait()
            memory, disk = in_memory(root), on_disk(root)
        reports = producers.end()
        assert disk > 0
        assert_bounded(root, reports, memory, disk)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("state", [stopped, slowed], ids=["stopped", "ten times too slow"])
def test_for_thirty_seconds(root: Path, state: Callable[[int], Any]) -> None:
    plan = Plan(lambda number, lost, seconds: seconds < 30.0, small=False)
    with daemons.running(root) as daemon, Producers(plan, root / "exp") as producers:
        with state(daemon["pid"]):
            producers.go_on()
            producers.wait()
            memory, disk = in_memory(root), on_disk(root)
        reports = producers.end()
        assert_bounded(root, reports, memory, disk)


# --- the end of who waits for room ----------------------------------------------------------------
_WAITS: Final = """
import atexit, os, sys, threading, time
from mle_client import MLELogger

def tell():
    report = log.close(timeout=0.5)
    print("report", logged, report.delivered, report.spilled, report.lost, flush=True)

log = MLELogger({folder!r}, on_full="block", block_timeout=3600, on_error=lambda error: None)
atexit.register(tell)  # so that it comes before the logger's own end
log.update({{"step": 0}}, {{"x": 0.0}})
log.flush(30)
logged = 1
print("ready", flush=True)
sys.stdin.readline()

def other():
    while not log.stats()["blocked_s"]:
        time.sleep(0.01)
    print("blocked", flush=True)
    sys.stdin.readline()
{other}

threading.Thread(target=other, daemon=True).start()
while True:
    log.update({{"step": logged}}, {{"x": float(logged)}})
    logged += 1
"""


@pytest.mark.parametrize(
    ("other", "code"),
    [
        ("    os.kill(os.getpid(), 2)", -signal.SIGINT),
        ("    log.close(timeout=0.5)", 1),  # LoggerClosed
        ("    pid = os.fork()\n    if pid == 0:\n        os._exit(0)\n"
         "    os.waitpid(pid, 0); os.kill(os.getpid(), 2)", -signal.SIGINT),
    ],
    ids=["Ctrl-C", "close()", "fork"],
)  # fmt: skip
def test_a_trainer_that_waits_for_room_may_be_ended(root: Path, other: str, code: int) -> None:
    with daemons.running(root) as daemon:
        text = _WAITS.format(folder=str(root / "run"), other=other)
        process = subprocess.Popen(
            [sys.executable, "-c", text],
            env={**daemons.environment(), "MLE_SPILL_BYTES": "0"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with stopped(daemon["pid"]):
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "blocked\n"
                output, errors = process.communicate("\n", timeout=30)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == code, errors
        logged, delivered, spilled, lost = map(int, output.split()[1:])
        assert (delivered + spilled, lost) == (logged, 0)
        daemons.wait_for(lambda: daemons.status(root)["runs"][0]["ticks"]["published"] == logged)
        run = load_log(str(root / "run"))
        assert run.stats.x.tolist() == [float(i) for i in range(logged)]
        assert run.lost == 0
