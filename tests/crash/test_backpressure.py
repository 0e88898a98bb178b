"""A daemon that is stopped while trainers log on: bounded memory and disk, and every tick counted.

The bounds are made small, so that they are passed within a second.
"""

from __future__ import annotations

import functools
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import pytest

from mle_client import MLELogger, layout, load_log, logger, runtime
from mle_client.ring import SEGMENT_BYTES, Ring
from tests import checker
from tests.integration import daemons

PRODUCERS: Final = 8
TICKS: Final = 60_000  # each: some 4 MB, more than the bounds
MEMORY_BYTES: Final = 2 * SEGMENT_BYTES
SPILL_BYTES: Final = 4 * SEGMENT_BYTES
_REPORT: Final = struct.Struct("<4Q")  # delivered, spilled, lost, lost while the daemon was stopped

pytestmark = pytest.mark.crash


@dataclass(frozen=True)
class Producer:
    """A trainer.  Args: said: what it says; asked: what it waits for."""

    seed: int
    pid: int
    said: int
    asked: int


def produce(folder: str, seed: int, said: int, asked: int) -> None:
    """Log all ticks, say so, wait for a byte, and end the run."""
    logger.Ring = functools.partial(  # type: ignore[misc]
        Ring, memory_bytes=MEMORY_BYTES, spill_bytes=SPILL_BYTES
    )
    log = MLELogger(folder, seed_id=seed, on_error=lambda error: None)
    log.update(*checker.tick(seed, 0))
    log.flush(30)
    os.write(said, b"!")
    os.read(asked, 1)
    for number in range(1, TICKS):
        log.update(*checker.tick(seed, number))
    lost = log.stats()["lost"]
    os.write(said, b"!")
    os.read(asked, 1)
    report = log.close(timeout=40)
    os.write(said, _REPORT.pack(report.delivered, report.spilled, report.lost, lost))


@contextmanager
def producers(folder: Path) -> Iterator[list[Producer]]:
    made = []
    for seed in range(1, PRODUCERS + 1):
        (said, says), (hears, asked) = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                produce(str(folder), seed, says, hears)
                code = 0
            finally:
                os._exit(code)
        os.close(says)
        os.close(hears)
        made.append(Producer(seed, pid, said, asked))
    try:
        yield made
    finally:
        for producer in made:
            os.kill(producer.pid, signal.SIGKILL)
            os.waitpid(producer.pid, 0)
            os.close(producer.said)
            os.close(producer.asked)


def size(*folders: str) -> int:
    """Bytes of all files in some folders."""
    return sum(
        os.path.getsize(os.path.join(where, name))
        for folder in folders
        for where, _, names in os.walk(folder)
        for name in names
    )


def hear(made: list[Producer], count: int) -> list[bytes]:
    return [os.read(producer.said, count) for producer in made]


def test_past_the_bounds_ticks_are_dropped_and_counted(root: Path) -> None:
    with daemons.running(root) as daemon, producers(root / "exp") as made:
        assert set(hear(made, 1)) == {b"!"}
        os.kill(daemon["pid"], signal.SIGSTOP)
        try:
            for producer in made:
                os.write(producer.asked, b"!")
            assert set(hear(made, 1)) == {b"!"}
            in_memory = size(*runtime.ring_dirs(str(root)))
            spilled = size(layout.state_path(str(root), layout.SPILL_DIR))
        finally:
            os.kill(daemon["pid"], signal.SIGCONT)
        for producer in made:
            os.write(producer.asked, b"!")
        reports = [_REPORT.unpack(said) for said in hear(made, _REPORT.size)]
        lines: list[Any] = daemons.status(root)["runs"]

    assert in_memory <= PRODUCERS * (MEMORY_BYTES + SEGMENT_BYTES)  # and what names the owner
    assert 0 < spilled <= PRODUCERS * SPILL_BYTES
    for producer, (delivered, kept, lost, lost_then) in zip(made, reports, strict=True):
        assert (delivered + lost, kept) == (TICKS, 0)
        assert lost == lost_then > 0
        (line,) = [each for each in lines if each["seed_id"] == f"seed_{producer.seed}"]
        assert line["ticks"]["lost"] == lost
        verdict = checker.judge(
            stored(root / "exp", producer.seed), producer.seed, sent=TICKS, begun=TICKS, lost=lost
        )
        assert verdict.faults == {"missing": lost}
    runs = load_log(str(root / "exp"))
    assert [runs[f"seed_{i}"].lost for i in range(1, PRODUCERS + 1)] == [
        each[2] for each in reports
    ]


def stored(folder: Path, seed: int) -> dict[str, Any]:
    with h5py.File(layout.log_path(str(folder), f"seed_{seed}")) as file:
        group = file[f"seed_{seed}"]
        columns = {name: group["stats"][name][:] for name in group["stats"]}
        return columns | {checker.STEP: group["time"][checker.STEP][:]}
