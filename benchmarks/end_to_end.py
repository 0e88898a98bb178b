"""From the first tick until everything is closed: time, and CPU time of all processes.

Some processes log as fast as they can.  Three *systems* take turns: ours, until every log file is
complete; the naive sender (`naive`), until its file is closed; and a loop that makes the same ticks
and logs them nowhere, which shows what is left when that is taken off.

CPU time is that of the producers, from their first tick until `close()` has returned, and of the
process that writes, from then until its end: for ours that has the daemon's sealing of the files
and its leaving in it.  After each run the ticks in the files are counted.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from benchmarks import harness, naive
from benchmarks.harness import Goal, Picture, Result, Table
from benchmarks.workspace import private_folders, workspace
from mle_client import MLELogger

NAME: Final = "end_to_end"
MANY: Final = 64  # producers at once
OURS, NAIVE, LOOP = "ours", "naive", "loop alone"
_SPAWN: Final[SpawnContext] = multiprocessing.get_context("spawn")
_TIMEOUT_S: Final = 600.0
_STATISTIC: Final = "train_loss"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        ticks: {producers at once: ticks of each}.
        rounds: how often each system runs.
        rounds_of_many: the same with `MANY` producers, which take a minute to start.
    """

    ticks: dict[int, int]
    rounds: int
    rounds_of_many: int = 1


SIZES: Final = {
    "full": Size({1: 500_000, 8: 200_000, MANY: 25_000}, rounds=7, rounds_of_many=7),
    "quick": Size({1: 200_000, 8: 50_000, MANY: 6_250}, rounds=3),
    "tiny": Size({2: 200}, rounds=1),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one system.

    Args:
        ticks: of all producers.
        wall_s: from the first tick of any until everything is closed.
        calls_s: from the first tick of any until the last `update()` of all has returned.
        producers_cpu_s: of all producers together.
        writer_cpu_s: of the daemon, or of the naive sink.
        file_bytes: of what is on disk in the end.
    """

    ticks: int
    wall_s: float
    calls_s: float
    producers_cpu_s: float
    writer_cpu_s: float = 0.0
    file_bytes: int = 0

    @property
    def cpu_us(self) -> float:
        """CPU time a tick of all processes."""
        return (self.producers_cpu_s + self.writer_cpu_s) / self.ticks * 1e6


def run(size: Size) -> Result:
    """Let the systems take turns with each number of producers."""
    rows: list[tuple[Any, ...]] = []
    goals = []
    figures: dict[str, Any] = {}
    for producers, ticks in size.ticks.items():
        harness.tell(f"{NAME}: {producers} x {ticks:,} ticks")
        systems: dict[str, Callable[[], Run]] = {
            OURS: partial(run_ours, producers, ticks),
            NAIVE: partial(run_naive, producers, ticks),
            LOOP: partial(run_loop, producers, ticks),
        }
        count = size.rounds_of_many if producers == MANY else size.rounds
        rounds = harness.interleaved(systems, count)
        figures[f"{producers} x {ticks}"] = rounds
        rows += [(f"{producers} x {ticks:,}", name, *_row(rounds, name)) for name in systems]
        ratio = harness.median(each[OURS].cpu_us / each[NAIVE].cpu_us for each in rounds)
        goals.append(
            Goal(f"CPU of all processes a tick, {producers} producers, x naive", 1.0, ratio)
        )
    title = (
        f"First tick until all is closed, medians of {size.rounds} rounds, "
        f"of {size.rounds_of_many} with {MANY} producers; CPU in us a tick"
    )
    columns = (
        *("producers", "system", "ticks/s", "calls/s", "CPU producers", "CPU writer", "CPU all"),
        *("CPU less loop", "x naive", "bytes a tick"),
    )
    table = Table(title, columns, tuple(rows))
    return Result(NAME, (table,), tuple(goals), figures, _pictures(table))


def _pictures(table: Table) -> tuple[Picture, ...]:
    """CPU time, and speed, of each system."""
    found = {row[:2]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    at = tuple(dict.fromkeys(producers for producers, _ in found))
    return tuple(
        Picture(
            name,
            title,
            label,
            {each: tuple(found[of, each][column] for of in at) for each in (OURS, NAIVE, LOOP)},
            at,
        )
        for name, title, label, column in (
            ("cpu", "CPU time of all processes", "us a tick", "CPU all"),
            ("speed", "First tick until all is closed", "ticks/s", "ticks/s"),
        )
    )


def _row(rounds: list[dict[str, Run]], name: str) -> tuple[Any, ...]:
    def middle(figure: Callable[[dict[str, Run]], float]) -> float:
        return harness.median(figure(each) for each in rounds)

    return (
        middle(lambda each: each[name].ticks / each[name].wall_s),
        middle(lambda each: each[name].ticks / each[name].calls_s),
        middle(lambda each: each[name].producers_cpu_s / each[name].ticks * 1e6),
        middle(lambda each: each[name].writer_cpu_s / each[name].ticks * 1e6),
        middle(lambda each: each[name].cpu_us),
        middle(lambda each: each[name].cpu_us - each[LOOP].cpu_us),
        middle(lambda each: each[name].cpu_us / each[NAIVE].cpu_us),
        middle(lambda each: each[name].file_bytes / each[name].ticks),
    )


# --- the systems ----------------------------------------------------------------------------------
def run_ours(producers: int, ticks: int, save: bool = False) -> Run:
    """Log through the daemon.  Args: save: with every tick."""
    with workspace() as space:
        open_logger = partial(_open_ours, str(space.root / "run"))
        log_all = _log_and_save_all if save else _log_all
        with _Team(producers, ticks, open_logger, log_all) as team:
            before = space.daemon_cpu_s()
            found = team.work()
        writer = space.stop() - before
        files = [space.log_file("run", seed) for seed in range(producers)]
        for path in files:
            _check(count_ticks(path), ticks, path)
        return found.ended(found.closed_at, writer, sum(path.stat().st_size for path in files))


def run_naive(producers: int, ticks: int) -> Run:
    """Send the ticks to a process that appends them to a file."""
    with private_folders() as folder, naive_sink(folder, producers) as (address, path, stored):
        with _Team(producers, ticks, partial(_open_naive, address)) as team:
            found = team.work()
        sink = stored()
        _check(naive.count_ticks(path), producers * ticks, path)
        return found.ended(sink.closed_at, sink.cpu_s, path.stat().st_size)


@contextmanager
def naive_sink(
    folder: Path, senders: int
) -> Iterator[tuple[str, Path, Callable[[], naive.Stored]]]:
    """The naive sender's other side, in a process of its own.

    Yields:
        Its address, its file, and what waits until all senders are through and the file is closed.
    """
    address, path = f"ipc://{folder}/sink", folder / "ticks"
    ours, its = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=naive.sink, args=(address, path, senders, its))
    process.start()
    its.close()
    with ours, _ended(process):
        _receive(ours)
        yield address, path, partial(_receive, ours)


def run_loop(producers: int, ticks: int) -> Run:
    """Make the ticks and let them go."""
    with _Team(producers, ticks, _Nowhere) as team:
        found = team.work()
    return found.ended(found.closed_at, 0.0, 0)


def count_ticks(path: Path) -> int:
    """How many ticks a log file of ours holds."""
    with h5py.File(path) as file:
        return len(file[f"{path.stem.removeprefix('log_')}/stats/{_STATISTIC}"])


def _check(found: int, expected: int, path: Path) -> None:
    if found != expected:
        raise RuntimeError(f"{path} holds {found} ticks and not {expected}")


class _Nowhere:
    def __init__(self, seed: int) -> None:
        pass

    def update(self, clock: dict[str, Any], stats: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def _open_ours(folder: str, seed: int) -> MLELogger:
    return MLELogger(experiment_dir=folder, seed_id=seed)


def _open_naive(address: str, seed: int) -> naive.Sender:
    return naive.Sender(address)


def _log_all(log: Any, losses: list[float]) -> None:
    for i, loss in enumerate(losses):
        log.update(
            {"num_steps": i, "num_epochs": i >> 7},
            {_STATISTIC: loss, "test_loss": losses[-1 - i]},
        )


def _log_and_save_all(log: Any, losses: list[float]) -> None:
    for i, loss in enumerate(losses):
        log.update(
            {"num_steps": i, "num_epochs": i >> 7},
            {_STATISTIC: loss, "test_loss": losses[-1 - i]},
            save=True,
        )


# --- producers ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Timing:
    """What one producer did; times on the monotonic clock, which all processes share."""

    began_at: float
    called_at: float
    closed_at: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class _TeamTiming:
    ticks: int
    began_at: float
    called_at: float
    closed_at: float
    cpu_s: float

    def ended(self, closed_at: float, writer_cpu_s: float, file_bytes: int) -> Run:
        wall, calls = closed_at - self.began_at, self.called_at - self.began_at
        return Run(self.ticks, wall, calls, self.cpu_s, writer_cpu_s, file_bytes)


class _Team(AbstractContextManager["_Team"]):
    """Processes that are ready to log, and begin at one word."""

    def __init__(
        self,
        producers: int,
        ticks: int,
        open_logger: Callable[[int], Any],
        log_all: Callable[[Any, list[float]], None] = _log_all,
    ) -> None:
        self._ticks = producers * ticks
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        for seed in range(producers):
            ours, its = _SPAWN.Pipe()
            work = (open_logger, log_all, seed, ticks, its)
            process = _SPAWN.Process(target=_produce, args=work)
            process.start()
            its.close()
            self._processes.append(process)
            self._pipes.append(ours)
        for pipe in self._pipes:
            _receive(pipe)

    def work(self) -> _TeamTiming:
        """Let all log at once, and wait until all have closed."""
        for pipe in self._pipes:
            pipe.send("go")
        timings: list[_Timing] = [_receive(pipe) for pipe in self._pipes]
        return _TeamTiming(
            self._ticks,
            min(each.began_at for each in timings),
            max(each.called_at for each in timings),
            max(each.closed_at for each in timings),
            sum(each.cpu_s for each in timings),
        )

    def __exit__(self, *exception: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            _end(process)


def _produce(
    open_logger: Callable[[int], Any],
    log_all: Callable[[Any, list[float]], None],
    seed: int,
    ticks: int,
    to_parent: Connection,
) -> None:
    """Log ticks as fast as possible, when told to.  Runs in a process of its own."""
    losses = np.random.default_rng(seed).normal(size=ticks).tolist()
    log = open_logger(seed)
    to_parent.send("ready")
    to_parent.recv()
    began_at, cpu_s = time.monotonic(), time.process_time()
    log_all(log, losses)
    called_at = time.monotonic()
    log.close()
    to_parent.send(_Timing(began_at, called_at, time.monotonic(), time.process_time() - cpu_s))


def _receive(pipe: Connection) -> Any:
    if not pipe.poll(_TIMEOUT_S):
        raise TimeoutError(f"a process of the benchmark said nothing for {_TIMEOUT_S:g} s")
    return pipe.recv()


def _end(process: SpawnProcess) -> None:
    process.join(_TIMEOUT_S)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


@contextmanager
def _ended(process: SpawnProcess) -> Iterator[None]:
    try:
        yield
    finally:
        _end(process)
