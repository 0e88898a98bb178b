"""Whether ticks wait for merges: 8 processes log while the daemon merges many configurations.

The logs of many configurations, some seeds each, are made first, through a daemon that is killed
before it merges anything.  The next daemon has them to merge, and 8 processes log to it at the pace
of a training.  The process that merges is stopped and let go on again in turn, so that the same
producers are seen with and without it within seconds.

*Ack* is the time from a call of `update()` until the daemon has acknowledged its tick, that is,
has it in the journal.  The sender looks for ticks every 20 ms; that is most of it.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import harness
from benchmarks.harness import Goal, Result, Table
from benchmarks.workspace import Workspace, private_folders
from mle_client import MLELogger, layout

NAME: Final = "merge_beside"
_SPAWN: Final[SpawnContext] = multiprocessing.get_context("spawn")
_BURST: Final = 10  # ticks; so many every _PACE_S
_PACE_S: Final = 0.01
_LOOK_S: Final = 0.0002  # whether the tick is acknowledged
_TIMEOUT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        configs, seeds, ticks: of what is merged.
        makers: processes that log these.
        producers: processes that log beside their merge.
        rounds: how often a window without merging is followed by one with it.
        window_s: how long each is.
    """

    configs: int
    seeds: int
    ticks: int
    makers: int
    producers: int
    rounds: int
    window_s: float


SIZES: Final = {
    "full": Size(1_000, 10, 1_000, makers=4, producers=8, rounds=10, window_s=4.0),
    "quick": Size(100, 10, 1_000, makers=4, producers=8, rounds=4, window_s=1.0),
    "tiny": Size(2, 2, 50, makers=1, producers=2, rounds=1, window_s=0.6),
}

Window = tuple[float, float]  # from and to, in seconds of the monotonic clock
Sample = tuple[float, float]  # when, in seconds of the monotonic clock; seconds until the ack


def run(size: Size) -> Result:
    """Make the logs, then log beside their merge."""
    with private_folders() as folder:
        root = folder / "root"
        root.mkdir()
        harness.tell(f"{NAME}: making {size.configs} x {size.seeds} logs")
        _make_all(root, size)
        harness.tell(f"{NAME}: logging beside their merge")
        begun = time.monotonic()
        space = Workspace(root, "--merge", "on-finish", "--merge-settle", "0.001")
        try:
            windows, samples = _log_beside(space, size)
            _wait_until_merged(root, size)
            merged_s = time.monotonic() - begun
        finally:
            space.stop()
    rounds = [(_within(samples, *off), _within(samples, *on)) for off, on in windows]
    return _result(size, rounds, merged_s)


def _result(size: Size, rounds: list[tuple[list[float], list[float]]], merged_s: float) -> Result:
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    found = {
        name: [
            (harness.percentile(off, share), harness.percentile(on, share)) for off, on in rounds
        ]
        for name, share in shares.items()
    }
    rows = tuple(
        (
            name,
            harness.median(off for off, _ in pairs) * 1e3,
            harness.median(on for _, on in pairs) * 1e3,
            harness.median(on / off for off, on in pairs),
        )
        for name, pairs in found.items()
    )
    title = (
        f"Time until a tick is acknowledged, {size.producers} processes, medians over "
        f"{len(rounds)} rounds; {size.configs} x {size.seeds} seeds merged within {merged_s:.0f} s"
    )
    columns = ("", "ms without merging", "ms with merging", "ratio")
    goals = tuple(
        Goal(f"{name} of ack with merging, x without", 1.05, ratio)
        for name, _, _, ratio in rows
        if name in ("p50", "p99")
    )
    return Result(NAME, (Table(title, columns, rows),), goals, {"rounds": found})


def _within(samples: Sequence[Sample], begin: float, end: float) -> list[float]:
    found = [latency for when, latency in samples if begin <= when < end]
    if not found:
        raise RuntimeError("nothing was logged in a window: the machine is too busy")
    return found


# --- what is merged -------------------------------------------------------------------------------
def _make_all(root: Path, size: Size) -> None:
    """Log all seeds, to a daemon that is killed before it merges any."""
    space = Workspace(root, "--merge", "on-finish", "--merge-settle", "1e6")
    makers = [
        _SPAWN.Process(target=_make, args=(str(root), maker, size)) for maker in range(size.makers)
    ]
    for process in makers:
        process.start()
    for process in makers:
        process.join(_TIMEOUT_S)
        if process.exitcode != 0:
            raise RuntimeError(f"a process that makes logs ended with {process.exitcode}")
    space.kill()


def _make(root: str, maker: int, size: Size) -> None:
    for config in range(maker, size.configs, size.makers):
        for seed in range(size.seeds):
            with MLELogger(f"{root}/config_{config}", seed_id=seed) as log:
                for step in range(size.ticks):
                    loss = 1 / (step + 1)
                    stats = {"train_loss": loss, "test_loss": 2 * loss, "lr": 0.1, "seed": seed}
                    log.update({"num_steps": step}, stats)


def _wait_until_merged(root: Path, size: Size) -> None:
    """Wait for the last file that a merge writes, and count the others."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not (root / layout.meta_log_path("")).exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not merged within {_TIMEOUT_S:g} s: see {root}")
        time.sleep(0.1)
    merged = _merged(root)
    left = len(list(root.glob("config_*/logs/log_*.hdf5")))
    if (merged, left) != (size.configs, 0):
        raise RuntimeError(f"{merged} configurations are merged, and {left} logs left over")


def _merged(root: Path) -> int:
    """How many configurations are merged."""
    return len(list(root.glob("config_*/logs/log.hdf5")))


# --- logging beside it ----------------------------------------------------------------------------
def _log_beside(space: Workspace, size: Size) -> tuple[list[tuple[Window, Window]], list[Sample]]:
    """Returns: of each round the windows without and with merging, and all samples."""
    windows: list[tuple[Window, Window]] = []
    with _producers(space, size.producers) as collect:
        for _ in range(size.rounds):
            pair: list[Window] = []
            for merging in (False, True):
                _let(space.daemon_pid, merging)
                begin = time.monotonic()
                time.sleep(size.window_s)
                pair.append((begin, time.monotonic()))
            if windows and _merged(space.root) == size.configs:
                break  # there was nothing to merge in the end of this window
            windows.append((pair[0], pair[1]))
        _let(space.daemon_pid, merging=True)
        return windows, collect()


def _let(daemon: int, merging: bool) -> None:
    """Have the merging process go on, or stop."""
    for process in psutil.Process(daemon).children():
        with suppress(psutil.Error):
            if any("merge_process" in word for word in process.cmdline()):
                process.send_signal(signal.SIGCONT if merging else signal.SIGSTOP)


@contextmanager
def _producers(space: Workspace, count: int) -> Iterator[Any]:
    """Processes that log until their samples are collected."""
    ends = [_SPAWN.Pipe() for _ in range(count)]
    processes = [
        _SPAWN.Process(target=_produce, args=(str(space.root / "live" / "run"), seed, its))
        for seed, (_, its) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    try:
        for ours, _ in ends:
            ours.recv()

        def collect() -> list[Sample]:
            for ours, _ in ends:
                ours.send("stop")
            return [sample for ours, _ in ends for sample in ours.recv()]

        yield collect
    finally:
        for ours, its in ends:
            ours.close()
            its.close()
        for process in processes:
            process.join(60)
            process.kill()
            process.join()


def _produce(folder: str, seed: int, end: Any) -> None:
    samples: list[Sample] = []
    with MLELogger(folder, seed_id=seed) as log:
        log.update({"num_steps": 0}, {"loss": 0.0})
        if not log.flush(60):
            raise RuntimeError("the daemon does not answer")
        channel: Any = log._channel
        end.send("ready")
        step = 0
        while not end.poll():
            wake = time.monotonic() + _PACE_S
            for _ in range(_BURST):
                step += 1
                log.update({"num_steps": step}, {"loss": 1 / step})
            samples.append(_until_acknowledged(channel))
            time.sleep(max(0.0, wake - time.monotonic()))
    end.send(samples)


def _until_acknowledged(channel: Any) -> Sample:
    begun = time.monotonic()
    position = channel.producer.catch_up()
    while channel.session.acked < position:
        time.sleep(_LOOK_S)
    return begun, time.monotonic() - begun
