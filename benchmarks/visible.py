"""How long after `update()` a tick is acknowledged, on the disk, and seen by others.

Processes log at different paces, each at its own, to one daemon:

* *acknowledged*: the daemon has it in its journal, so that it outlives the daemon's process.  It
  outlives the trainer's from `update()` on, for the ring is no memory of the process.
* *synced*: the journal is on the disk, so that a power cut does not take it.
* *file*: another process, which only looks at the log file, sees it there.
* *asked*: another process calls `load_log` as soon as it hears of the tick, again and again until
  it is there; `load_log` asks the daemon to publish.  These are runs of their own, for the others'
  files must not be published because somebody asked.

Before the measurement the runs have ticks of some minutes: a young run is published more often.
The daemon notes when it syncs (`watched_daemon`); a tick counts as synced when the first sync has
ended that began after the journal was written to last before its acknowledgement.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import h5py

from benchmarks import harness
from benchmarks.harness import Picture, Result, Table
from benchmarks.workspace import watched_workspace
from mle_client import MLELogger, layout, load_log

NAME: Final = "visible"
KINDS: Final = ("acknowledged", "synced", "asked", "file")
_SPAWN: Final = multiprocessing.get_context("spawn")
_STATISTIC: Final = "logged_at"  # on the monotonic clock, which all processes share
_PACE_S: Final = 0.01  # between two bursts, as in `growth`
_ACK_LOOK_S: Final = 0.001
_FILE_LOOK_S: Final = 0.005
_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        ticks_per_s: the paces; at least one tick in the time that is measured.
        before_s: how long the runs have gone on before, at that pace.
        seconds: that are measured: a multiple of the 30 s after which a daemon publishes.
        settles: whether the last ticks are waited for; else the end of their run publishes them.
    """

    ticks_per_s: tuple[int, ...]
    before_s: float
    seconds: float
    settles: bool = True


SIZES: Final = {
    "full": Size((1, 10, 100, 1_000), before_s=600.0, seconds=120.0),
    "quick": Size((1, 10, 100, 1_000), before_s=200.0, seconds=30.0),
    "tiny": Size((10, 100), before_s=0.2, seconds=0.5, settles=False),
}


@dataclass(frozen=True, slots=True)
class Times:
    """What became of the ticks of one pace.  All times are on the monotonic clock.

    Args:
        logged_at: when each was logged.
        acked_at: when it was known that the daemon has it.
        seen_at: when the file was first seen to have it.
        asked_s: of some, seconds until `load_log` had it.
    """

    logged_at: list[float]
    acked_at: list[float]
    seen_at: list[float]
    asked_s: list[float]


def run(size: Size) -> Result:
    """Log at all paces at once, and look from all sides."""
    harness.tell(f"{NAME}: {size.seconds:g} s and the time until the last tick is published")
    found = measure(size)
    rows = [
        (pace, kind, len(delays), *_figures(delays))
        for pace, kinds in found.items()
        for kind, delays in kinds.items()
        if delays
    ]
    columns = ("ticks/s", "until it is", "ticks seen", "p50, ms", "p99, ms", "max, ms")
    title = f"Time from update() on, in runs that have gone on for {size.before_s:g} s"
    tables = (Table(title, columns, tuple(rows)),)
    return Result(NAME, tables, (), {"delays": found}, _pictures(size, found))


def _figures(delays: Sequence[float]) -> tuple[float, float, float]:
    p50, p99, most = (harness.percentile(delays, share) * 1e3 for share in (0.5, 0.99, 1.0))
    return p50, p99, most


def measure(size: Size) -> dict[int, dict[str, list[float]]]:
    """Take all times.

    Returns:
        {ticks a second: {kind: seconds of each tick, or of each that was looked for}}
    """
    with watched_workspace() as (space, report), ThreadPoolExecutor(len(size.ticks_per_s)) as pool:
        log_all = partial(harness.fresh, measure_pace, size, str(space.root))
        times: list[Times] = list(pool.map(log_all, size.ticks_per_s))
        space.stop()
        noted = json.loads(report.read_text())
    found = {}
    for pace, each in zip(size.ticks_per_s, times, strict=True):
        synced_at = _synced_at(each.acked_at, noted["appended"], noted["synced"])
        found[pace] = {
            "acknowledged": _delays(each, each.acked_at),
            "synced": _delays(each, synced_at),
            "asked": each.asked_s,
            "file": _delays(each, each.seen_at),
        }
    return found


def _delays(times: Times, ends: Sequence[float]) -> list[float]:
    return [end - begin for begin, end in zip(times.logged_at, ends, strict=True)]


# --- the process that logs ------------------------------------------------------------------------
class _Course:
    """A run that is logged to, and that has gone on for a while and is published.

    Args:
        folder: of its experiment.
        before: ticks that it has and that do not count.
    """

    def __init__(self, folder: str, before: int) -> None:
        self.log = MLELogger(experiment_dir=folder, seed_id=1)
        self.path = layout.log_path(os.path.realpath(folder), "seed_1")
        self.before = before
        self.logged_at: list[float] = []
        self.acked_at: list[float] = []
        for i in range(before):
            self.log.update({"num_steps": i + 1}, {_STATISTIC: 0.0})
        if not self.log.flush(_TIMEOUT_S):
            raise RuntimeError(f"flush() failed: {self.log.errors()}")

    def tick(self) -> None:
        """Log a tick now."""
        now = time.monotonic()
        self.logged_at.append(now)
        self.log.update({"num_steps": self.before + len(self.logged_at)}, {_STATISTIC: now})

    def watch_acks(self, over: threading.Event) -> None:
        """Note what is acknowledged, until all is, after the end.  Runs in a thread."""
        channel = self.log._channel
        assert channel is not None
        deadline = float("inf")
        while time.monotonic() < deadline:
            is_over = over.is_set()
            news = channel.session.ticks - self.before - len(self.acked_at)
            self.acked_at += [time.monotonic()] * news
            if is_over:
                deadline = min(deadline, time.monotonic() + _TIMEOUT_S)
                if len(self.acked_at) == len(self.logged_at):
                    return
            time.sleep(_ACK_LOOK_S)

    def close(self) -> None:
        """Close the run and see whether all is in its file."""
        self.log.close(_TIMEOUT_S)
        with h5py.File(self.path) as file:
            stored = len(file[f"seed_1/stats/{_STATISTIC}"])
        if stored != self.before + len(self.logged_at):
            raise RuntimeError(f"{self.path} holds {stored} ticks")


def measure_pace(size: Size, root: str, ticks_per_s: int) -> Times:
    """Log at one pace, to one run that is only looked at and to one that is loaded.

    For a process of its own: runs that share one share the thread that sends, too, and the fast
    ones would have it look at the slow ones more often.
    """
    before = max(1, round(ticks_per_s * size.before_s))
    quiet, asked = (_Course(f"{root}/{name}-{ticks_per_s}", before) for name in ("file", "asked"))
    over = threading.Event()
    watch = threading.Thread(target=quiet.watch_acks, args=(over,))
    with (
        _process(watch_file, quiet.path, before) as watcher,
        _process(read, asked.path) as reader,
    ):
        watch.start()
        try:
            asked_s = _log_all(quiet, asked, reader, size.seconds, ticks_per_s)
        finally:
            over.set()
            watch.join()
        watcher.send(len(quiet.logged_at))
        if not size.settles:
            quiet.log.flush(_TIMEOUT_S)
        seen_at = _receive(watcher)
    quiet.close()
    asked.close()
    return Times(quiet.logged_at, quiet.acked_at, seen_at, asked_s)


def _log_all(
    quiet: _Course, asked: _Course, reader: Connection, seconds: float, ticks_per_s: int
) -> list[float]:
    """Log to both for a while; have the reader look for a tick whenever it is free.

    Returns:
        The times from `update()` until `load_log` has shown the tick.
    """
    found: list[float] = []
    waits = False
    due = time.monotonic()
    for burst in range(round(seconds / _PACE_S)):
        count = int((burst + 1) * ticks_per_s * _PACE_S) - int(burst * ticks_per_s * _PACE_S)
        for _ in range(count):
            quiet.tick()
            asked.tick()
        if waits and reader.poll():
            found.append(reader.recv())
            waits = False
        if count and not waits:
            reader.send((asked.before + len(asked.logged_at), asked.logged_at[-1]))
            waits = True
        due += _PACE_S
        time.sleep(max(0.0, due - time.monotonic()))
    return [*found, _receive(reader)] if waits else found


def _synced_at(
    acked: Sequence[float], appended: Sequence[float], synced: Sequence[Sequence[float]]
) -> list[float]:
    """When ticks were on the disk that were acknowledged at some times."""
    began = [begin for begin, _ in synced]
    found = []
    for at in acked:
        written_at = appended[bisect.bisect_right(appended, at) - 1]
        found.append(synced[bisect.bisect_left(began, written_at)][1])
    return found


# --- the other processes --------------------------------------------------------------------------
@contextlib.contextmanager
def _process(target: Any, *arguments: Any) -> Iterator[Connection]:
    """A process that is ready, and a pipe to it; it ends when the pipe is closed."""
    ours, its = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(*arguments, its))
    process.start()
    its.close()
    try:
        with ours:
            _receive(ours)
            yield ours
    finally:
        process.join(_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()


def read(path: str, to_parent: Connection) -> None:
    """Load a log until it shows a tick that was just logged; a process's work.

    It is sent (rows, time), and answers with the seconds from then on.
    """
    to_parent.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            rows, logged_at = to_parent.recv()
            while _rows_shown(path) < rows:
                pass
            to_parent.send(time.monotonic() - logged_at)


def _rows_shown(path: str) -> int:
    log: Any = load_log(path, only=[_STATISTIC])
    return len(log["seed_1"].stats[_STATISTIC])


def watch_file(path: str, before: int, to_parent: Connection) -> None:
    """Look at a file again and again, and note when it shows which ticks; a process's work.

    Once it is sent how many there are and has seen all of them, it sends when each was first seen.
    """
    seen_at: list[float] = []
    known: Any = None
    total: int | None = None
    to_parent.send("ready")
    while len(seen_at) != total:
        status = os.stat(path)
        state = status.st_ino, status.st_mtime_ns, status.st_size
        if state != known:
            known = state
            with h5py.File(path) as file:
                rows = len(file[f"seed_1/stats/{_STATISTIC}"])
            seen_at += [time.monotonic()] * (rows - before - len(seen_at))
        time.sleep(_FILE_LOOK_S)
        if to_parent.poll():
            total = to_parent.recv()
    to_parent.send(seen_at)


def _receive(pipe: Connection) -> Any:
    if not pipe.poll(_TIMEOUT_S):
        raise TimeoutError(f"a process of the benchmark said nothing for {_TIMEOUT_S:g} s")
    return pipe.recv()


# --- pictures -------------------------------------------------------------------------------------
def _pictures(size: Size, found: dict[int, dict[str, list[float]]]) -> tuple[Picture, ...]:
    nan = float("nan")
    return tuple(
        Picture(
            name,
            f"Time from update() until a tick is …: {what}",
            "ms",
            {
                kind: tuple(
                    _figures(found[pace][kind])[index] if found[pace][kind] else nan
                    for pace in size.ticks_per_s
                )
                for kind in KINDS
            },
            tuple(map(float, size.ticks_per_s)),
            "ticks/s",
            log=True,
        )
        for index, (name, what) in enumerate((("p50", "the median"), ("p99", "99 %")))
    )
