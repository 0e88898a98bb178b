"""How costs grow with the number of statistics in a tick, and with the number of runs at once.

* *keys*: the same number of values, in many ticks of few or in few ticks of many.  The caller's
  time and the daemon's CPU time are those of a value, so that what is flat is in proportion.  What
  a log of so many statistics costs however short it is, is measured with few ticks and taken off.
* *runs*: the same number of ticks, spread over more and more runs that one process has open through
  one daemon.  A tick goes to each in turn.  Then some runs are closed one after another, while the
  others stay open, and the rest at once.

Each number has a process and a daemon of its own.  In the end all that was logged is in the files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import psutil

from benchmarks import harness
from benchmarks.harness import Picture, Result, Table, Tick
from benchmarks.workspace import Workspace, workspace
from mle_client import MLELogger, control, layout

NAME: Final = "shapes"
_NOW: Final = time.perf_counter_ns
_STEP_NS: Final = harness.clock_step(_NOW)
_TIMEOUT_S: Final = 300.0
_CLOSERS: Final = 16  # runs that are closed at once, where closing them is not timed
_COMPLETE: Final = " is complete: "  # in the daemon's log, of a run that is sealed
_LOOK_S: Final = 0.1  # between two looks into it
_BLOCK_VALUES: Final = 40_000  # in the dicts that exist at once
_SHORT_TICKS: Final = 20  # of a log that costs what any log of its statistics costs


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        keys: statistics in a tick, in turn.
        values: logged with each.
        runs: open at once, in turn.
        ticks: of all runs together.
        closes: of single runs that are timed.
        rounds: how often each is measured.
    """

    keys: tuple[int, ...]
    values: int
    runs: tuple[int, ...]
    ticks: int
    closes: int
    rounds: int


SIZES: Final = {
    "full": Size((4, 50, 200, 2_000), 4_000_000, (1, 10, 100, 1_000), 500_000, 20, 3),
    "quick": Size((4, 50, 200, 2_000), 400_000, (1, 10, 100, 1_000), 100_000, 5, 1),
    "tiny": Size((4, 20), 800, (1, 3), 60, 1, 1),
}


@dataclass(frozen=True, slots=True)
class Keys:
    """Ticks of some keys.

    Args:
        values: of statistics that were logged.
        call_ns: p50 of a call, net of the timer.
        trainer_s: CPU time of the process that logs, without making the dicts.
        daemon_s: CPU time of the daemon until it has left.
        file_bytes: of the sealed log.
    """

    values: int
    call_ns: float
    trainer_s: float
    daemon_s: float
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Runs:
    """Some runs that are open at once.

    Args:
        open_s, open_cpu_s: a run's way to its first tick: until all are open; the daemon's CPU.
        trainer_us, daemon_us: CPU time a tick, until all are published.
        rss_bytes: of the daemon then.
        close_s, close_cpu_s: of closing one of them, and the daemon's CPU for it.
        rest_cpu_s: the daemon's CPU for each of the rest, which are closed at once.
    """

    open_s: float
    open_cpu_s: float
    trainer_us: float
    daemon_us: float
    rss_bytes: int
    close_s: float
    close_cpu_s: float
    rest_cpu_s: float


def run(size: Size) -> Result:
    """Measure all numbers of keys, and then of runs."""
    harness.tell(f"{NAME}: keys")
    ticks = {f"{n}": max(2 * _SHORT_TICKS, size.values // n) for n in size.keys}
    ticks |= {_short(n): _SHORT_TICKS for n in size.keys}
    keys = harness.interleaved(
        {
            name: partial(harness.fresh, measure_keys, int(name.split()[0]), count)
            for name, count in ticks.items()
        },
        size.rounds,
    )
    harness.tell(f"{NAME}: runs")
    runs = harness.interleaved(
        {str(n): partial(harness.fresh, measure_runs, n, size) for n in size.runs}, size.rounds
    )
    tables = _keys_table(size, keys), _runs_table(size, runs)
    return Result(NAME, tables, (), {"keys": keys, "runs": runs}, _pictures(size, keys, runs))


# --- keys -----------------------------------------------------------------------------------------
def _short(count: int) -> str:
    return f"{count} short"


def measure_keys(count: int, ticks: int) -> Keys:
    """Log ticks of so many statistics.  For a process of its own."""
    spent: list[int] = []
    timer: list[int] = []
    cpu_s = 0.0
    with workspace() as space:
        log = space.logger("run")
        before = space.daemon_cpu_s()
        update = harness.timed("log.update(clock, stats)", _NOW, log=log)
        nothing = harness.timed("pass", _NOW)
        for block in _blocks(count, ticks):
            timer += nothing(block)
            begun = time.process_time()
            spent += update(block)
            cpu_s += time.process_time() - begun
        begun = time.process_time()
        log.close(_TIMEOUT_S)
        cpu_s += time.process_time() - begun
        daemon_s = space.stop() - before
        path = space.log_file("run")
        _check(space, 1, ticks)
        file_bytes = path.stat().st_size
    call_ns = harness.fine_median(spent, _STEP_NS) - harness.fine_median(timer, _STEP_NS)
    return Keys(ticks * count, call_ns, cpu_s, daemon_s, file_bytes)


def _blocks(count: int, ticks: int) -> Iterator[list[Tick]]:
    """Ticks of so many statistics, which are noise; not all of them are there at once."""
    noise = np.random.default_rng(0)
    names = [f"statistic_{k}" for k in range(count)]
    at_once = max(1, _BLOCK_VALUES // count)
    for first in range(0, ticks, at_once):
        numbers = noise.normal(size=(min(at_once, ticks - first), count)).tolist()
        yield [
            ({"num_steps": first + i, "num_epochs": first >> 7}, dict(zip(names, row, strict=True)))
            for i, row in enumerate(numbers)
        ]


def _check(space: Workspace, runs: int, ticks: int) -> None:
    """Whether the files of the seeds have all ticks between them."""
    stored = 0
    for seed in range(1, runs + 1):
        with h5py.File(space.log_file("run", seed)) as file:
            stored += len(file[f"seed_{seed}/stats/statistic_0"])
    if stored != ticks:
        raise RuntimeError(f"the files hold {stored} ticks and not {ticks}")


# --- runs -----------------------------------------------------------------------------------------
def measure_runs(count: int, size: Size) -> Runs:
    """Log to so many runs at once.  For a process of its own."""
    turns = max(1, size.ticks // count)
    ticks = turns * count
    with workspace() as space:
        begun, daemon = time.monotonic(), space.daemon_cpu_s()
        logs = [space.logger("run", seed) for seed in range(1, count + 1)]
        _log_all(logs, _round_robin(0, 1))
        _publish(space)
        open_s, open_cpu_s = time.monotonic() - begun, space.daemon_cpu_s() - daemon
        own, daemon = time.process_time(), space.daemon_cpu_s()
        _log_all(logs, _round_robin(1, turns))
        _publish(space)
        trainer_s, daemon_s = time.process_time() - own, space.daemon_cpu_s() - daemon
        rss = psutil.Process(space.daemon_pid).memory_info().rss
        closes = [_close(space, log) for log in logs[: size.closes]]
        rest_s = _close_all(space, logs[size.closes :], len(closes))
        space.stop()
        _check(space, count, ticks)
    logged = max(1, ticks - count)
    return Runs(
        open_s / count,
        open_cpu_s / count,
        trainer_s / logged * 1e6,
        daemon_s / logged * 1e6,
        rss,
        harness.median(seconds for seconds, _ in closes),
        harness.median(cpu_s for _, cpu_s in closes),
        rest_s,
    )


def _round_robin(first: int, end: int) -> Iterator[Tick]:
    noise = np.random.default_rng(first).normal(size=(end - first, 2)).tolist()
    for i, (train, test) in enumerate(noise, first):
        yield {"num_steps": i, "num_epochs": i >> 7}, {"statistic_0": train, "statistic_1": test}


def _log_all(logs: Sequence[MLELogger], ticks: Iterator[Tick]) -> None:
    for clock, stats in ticks:
        for log in logs:
            log.update(clock, stats)


def _publish(space: Workspace) -> None:
    """Have the files show all that was logged, as a reader does."""
    control.publish_before_reading(str(space.root), _TIMEOUT_S)


def _close(space: Workspace, log: MLELogger) -> tuple[float, float]:
    """Close a run.  Returns: seconds, and the daemon's CPU time, perhaps without the sealing."""
    begun, daemon = time.monotonic(), space.daemon_cpu_s()
    _end(log)
    return time.monotonic() - begun, space.daemon_cpu_s() - daemon


def _end(log: MLELogger) -> None:
    report = log.close(_TIMEOUT_S)
    if report.spilled or report.lost or log.errors():
        raise RuntimeError(f"this is what became of the ticks: {report}, {log.errors()}")


def _close_all(space: Workspace, logs: Sequence[MLELogger], closed: int) -> float:
    """Close the rest.

    Args:
        closed: how many were closed before.

    Returns:
        The daemon's CPU time for each until it is sealed; 0 where there is none.
    """
    _wait_until_sealed(space, closed)
    daemon = space.daemon_cpu_s()
    with ThreadPoolExecutor(_CLOSERS) as pool:
        list(pool.map(_end, logs))
    _wait_until_sealed(space, closed + len(logs))
    return (space.daemon_cpu_s() - daemon) / len(logs) if logs else 0.0


def _wait_until_sealed(space: Workspace, runs: int) -> None:
    """Wait until the daemon is through with so many runs: it seals one after `close()` is over."""
    log = Path(layout.state_path(str(space.root), layout.LOG_FILE))
    deadline = time.monotonic() + _TIMEOUT_S
    while log.read_text().count(_COMPLETE) < runs:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{log} does not say that {runs} logs are complete")
        time.sleep(_LOOK_S)


# --- tables ---------------------------------------------------------------------------------------
def _net_us(each: dict[str, Keys], count: int, figure: str) -> float:
    """CPU time of a value, without what the log costs however short it is."""
    long, short = each[str(count)], each[_short(count)]
    spent: float = getattr(long, figure) - getattr(short, figure)
    return spent / (long.values - short.values) * 1e6


def _keys_table(size: Size, rounds: list[dict[str, Keys]]) -> Table:
    rows = []
    for count in size.keys:
        of = [each[str(count)] for each in rounds]
        rows.append(
            (
                count,
                of[0].values // count,
                harness.median(k.call_ns / count for k in of),
                harness.median(_net_us(each, count, "trainer_s") for each in rounds),
                harness.median(_net_us(each, count, "daemon_s") for each in rounds),
                harness.median(each[_short(count)].daemon_s / count for each in rounds) * 1e3,
                harness.median(k.file_bytes / k.values for k in of),
            )
        )
    columns = (
        *("statistics", "ticks", "call p50, ns a value", "trainer CPU, us a value"),
        *("daemon CPU, us a value", "short log, daemon CPU, ms a statistic", "file, bytes a value"),
    )
    title = f"Keys: values in ticks of few and of many statistics, net of {_SHORT_TICKS} ticks"
    return Table(title, columns, tuple(rows))


def _runs_table(size: Size, rounds: list[dict[str, Runs]]) -> Table:
    rows = []
    for count in size.runs:
        of = [each[str(count)] for each in rounds]
        rows.append(
            (
                count,
                harness.median(r.open_s for r in of) * 1e3,
                harness.median(r.open_cpu_s for r in of) * 1e3,
                harness.median(r.trainer_us for r in of),
                harness.median(r.daemon_us for r in of),
                harness.median(r.rss_bytes for r in of) / 2**20,
                harness.median(r.close_s for r in of) * 1e3,
                harness.median(r.close_cpu_s for r in of) * 1e3,
                harness.median(r.rest_cpu_s for r in of) * 1e3,
            )
        )
    columns = (
        *("runs open", "open one, ms", "daemon CPU, ms", "trainer CPU, us a tick"),
        *("daemon CPU, us a tick", "daemon, MiB", "close one, ms", "daemon CPU, ms"),
        "each of the rest at once, ms",
    )
    title = f"Runs: {size.ticks:,} ticks in turn to runs of one process, until all are published"
    return Table(title, columns, tuple(rows))


def _pictures(
    size: Size, keys: list[dict[str, Keys]], runs: list[dict[str, Runs]]
) -> tuple[Picture, ...]:
    def of_keys(figure: str) -> tuple[float, ...]:
        found = [[_net_us(each, n, figure) for each in keys] for n in size.keys]
        return tuple(map(harness.median, found))

    def of_runs(figure: str, factor: float) -> tuple[float, ...]:
        found: Any = [[getattr(each[str(n)], figure) * factor for each in runs] for n in size.runs]
        return tuple(map(harness.median, found))

    return (
        Picture(
            "keys",
            "CPU time of a value, by the number of statistics in a tick",
            "us a value",
            {"trainer": of_keys("trainer_s"), "daemon": of_keys("daemon_s")},
            tuple(map(float, size.keys)),
            "statistics in a tick",
            log=True,
        ),
        Picture(
            "runs",
            "CPU time of a tick, by the number of runs open at once",
            "us a tick",
            {"trainer": of_runs("trainer_us", 1), "daemon": of_runs("daemon_us", 1)},
            tuple(map(float, size.runs)),
            "runs open at once",
            log=True,
        ),
        Picture(
            "closes",
            "Closing one run while others are open",
            "ms",
            {"time": of_runs("close_s", 1e3), "daemon's CPU time": of_runs("close_cpu_s", 1e3)},
            tuple(map(float, size.runs)),
            "runs open at once",
            log=True,
        ),
    )
