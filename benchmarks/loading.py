"""What it takes to load and aggregate the logs of many seeds.

Four views, each loading in a process of its own, in which nothing was loaded before:

* *seeds*: a merged log, and a folder of logs, with mle-logging's four-column log of the same values
  and h5py reading every statistic once, which is what must be done at the least;
* *dated seeds*: the same file for both, as mle-logging writes it, with the time of every tick;
* *one run*, every column of it;
* *configurations*: a log of a thousand of them, of which more and more is looked at.

That the numbers are right is checked against numpy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks import harness, loaders, loading_files
from benchmarks.harness import Goal, Result, Table
from benchmarks.loaders import BYTES, OURS, THEIRS, Loaded
from benchmarks.workspace import workspace

NAME: Final = "loading"
SPEED_GOAL: Final = 1 / 6  # of mle-logging's time
MEMORY_GOAL_MB: Final = 300.0  # libraries and all
RUN_GOAL_MS: Final = 50.0
FOLDER: Final = "ours, a folder"
_MB: Final = 1e6
_DATE_BYTES: Final = 5_000  # of every tick, in mle-logging's memory
_SPARE: Final = 1.3  # x what mle-logging needs, so that it may run


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        seeds: how many, in turn.
        ticks, statistics: of each.
        dated: seeds and ticks of the log with dates.
        run: ticks and statistics of the one run.
        configs: configurations, seeds of each and ticks of each.
        rounds: how often each way has its turn.
    """

    seeds: tuple[int, ...]
    ticks: int
    statistics: int
    dated: tuple[int, int]
    run: tuple[int, int]
    configs: tuple[int, int, int]
    rounds: int


SIZES: Final = {
    "full": Size((50, 200), 100_000, 4, (200, 10_000), (100_000, 10), (1_000, 10, 1_000), 5),
    "quick": Size((50,), 100_000, 4, (20, 10_000), (100_000, 10), (100, 10, 1_000), 3),
    "tiny": Size((3,), 2_000, 2, (2, 100), (2_000, 2), (3, 2, 50), 1),
}
Rounds = Sequence[Mapping[str, Loaded]]


def run(size: Size) -> Result:
    """Make the logs, and load them."""
    with workspace() as space:
        harness.tell(f"{NAME}: logging")
        seeds = loading_files.log_seeds(
            space, "seeds", max(size.seeds), size.ticks, size.statistics
        )
        (alone,) = loading_files.log_seeds(space, "run", 1, *size.run)
        _, count, ticks = size.configs
        configs = loading_files.log_seeds(space, "configs", count, ticks, size.statistics)
        space.stop()
        folder = space.root.parent
        tables, goals, figures = [], [], {}
        for number in size.seeds:
            harness.tell(f"{NAME}: {number} seeds")
            rounds = measure_seeds(folder / f"{number}", seeds[:number], size)
            tables.append(seeds_table(f"{number} seeds x {size.ticks:,} ticks", size, rounds))
            if number == max(size.seeds):
                goals += seeds_goals(number, rounds)
            figures[f"{number} seeds"] = rounds
        harness.tell(f"{NAME}: seeds with dates")
        dated = measure_dated(folder / "dated", size)
        harness.tell(f"{NAME}: one run")
        single = measure_run(folder / "run", alone, size)
        harness.tell(f"{NAME}: configurations")
        many = measure_configs(folder / "meta_log.hdf5", configs, size)
    title = "{:,} seeds x {:,} ticks, with mle-logging's date of every tick: one file for both"
    tables += [
        seeds_table(title.format(*size.dated), size, dated),
        run_table(size, single),
        configs_table(size, many),
    ]
    milliseconds = harness.median(each[OURS].seconds for each in single) * 1e3
    goals.append(Goal("load_log of one run, every column, ms", RUN_GOAL_MS, milliseconds))
    figures |= {"dated": dated, "run": single, "configs": many}
    return Result(NAME, tuple(tables), tuple(goals), figures)


# --- measuring ------------------------------------------------------------------------------------
def measure_seeds(folder: Path, logs: Sequence[Path], size: Size) -> Rounds:
    """Aggregate logs of ours, and mle-logging's log of the same values."""
    merged, apart, theirs = folder / "merged/logs/log.hdf5", folder / "apart", folder / "theirs"
    loading_files.merge(logs, merged)
    (apart / "logs").mkdir(parents=True)
    for path in logs:
        (apart / "logs" / path.name).hardlink_to(path)
    shape = (len(logs), size.ticks, size.statistics)
    loading_files.write_as_mle_logging(theirs / "log.hdf5", *shape, dated=False)
    ways = {
        BYTES: partial(loaders.aggregate, BYTES, str(merged)),
        OURS: partial(loaders.aggregate, OURS, str(merged)),
        FOLDER: partial(loaders.aggregate, OURS, str(apart)),
        THEIRS: partial(loaders.aggregate, THEIRS, str(theirs / "log.hdf5")),
    }
    rounds = _in_turn(ways, size.rounds)
    _check(rounds, (OURS, FOLDER, THEIRS), *shape)
    return rounds


def measure_dated(folder: Path, size: Size) -> Rounds:
    """Aggregate one file of mle-logging's in both ways."""
    seeds, ticks = size.dated
    path = folder / "log.hdf5"
    loading_files.write_as_mle_logging(path, seeds, ticks, size.statistics, dated=True)
    ways = {
        BYTES: partial(loaders.aggregate, BYTES, str(path)),
        OURS: partial(loaders.aggregate, OURS, str(path)),
    }
    if psutil.virtual_memory().available > _SPARE * seeds * ticks * _DATE_BYTES:
        ways[THEIRS] = partial(loaders.aggregate, THEIRS, str(path))
    rounds = _in_turn(ways, size.rounds)
    _check(rounds, (OURS, THEIRS), seeds, ticks, size.statistics)
    return rounds


def measure_run(folder: Path, log: Path, size: Size) -> Rounds:
    """Load one run, and mle-logging's of the same values with a date a tick."""
    ticks, statistics = size.run
    path = folder / "log.hdf5"
    loading_files.write_as_mle_logging(path, 1, ticks, statistics, dated=True)
    ways = {
        OURS: partial(loaders.load_run, OURS, str(log)),
        THEIRS: partial(loaders.load_run, THEIRS, str(path)),
    }
    rounds = _in_turn(ways, size.rounds)
    last = float(loading_files.values(0, ticks, statistics)[-1, 0])
    for each in rounds:
        for way, loaded in each.items():
            _compare(loaded.found, {"steps": ticks, "value": last}, way)
    return rounds


def measure_configs(path: Path, logs: Sequence[Path], size: Size) -> Sequence[Mapping[str, Loaded]]:
    """Load a log of many configurations."""
    configs, _, ticks = size.configs
    loading_files.merge_configs(logs, configs, path)
    rounds = [harness.fresh(loaders.load_configs, str(path)) for _ in range(size.rounds)]
    for each in rounds:
        _compare(
            {**each["load_meta_log"].found, **each["that statistic of all"].found},
            {"configurations": configs, "steps": configs * ticks},
            NAME,
        )
    return rounds


def _in_turn(ways: Mapping[str, Callable[[], Loaded]], rounds: int) -> Rounds:
    """Let the ways that are installed have their turns.  The files were just written."""
    missing = {THEIRS} if importlib.util.find_spec("mle_logging") is None else set()
    installed = {n: partial(harness.fresh, way) for n, way in ways.items() if n not in missing}
    return harness.interleaved(installed, rounds)


def _check(rounds: Rounds, ways: Sequence[str], seeds: int, ticks: int, statistics: int) -> None:
    """Compare what the ways found of the last step with what numpy makes of it."""
    last = np.array([loading_files.values(seed, ticks, statistics)[-1, 0] for seed in range(seeds)])
    expected = {
        "steps": ticks, "mean": last.mean(), "std": last.std(),
        "p50": np.percentile(last, 50), "p90": np.percentile(last, 90),
    }  # fmt: skip
    for each in rounds:
        for way in set(ways) & set(each):
            _compare(each[way].found, expected, way)


def _compare(found: Mapping[str, float], expected: Mapping[str, float], way: str) -> None:
    for name, value in expected.items():
        if not np.isclose(found[name], value, rtol=1e-5):  # mle-logging's float32
            raise RuntimeError(f"{way} found {name} = {found[name]} and not {value}")


# --- tables ---------------------------------------------------------------------------------------
def seeds_table(title: str, size: Size, rounds: Rounds) -> Table:
    """Each way beside the others."""
    rows = [
        (
            way,
            harness.median(each[way].seconds for each in rounds),
            harness.median(each[way].cpu_s for each in rounds),
            _ratio(rounds, way, BYTES),
            _ratio(rounds, way, THEIRS),
            harness.median(each[way].peak_bytes for each in rounds) / _MB,
        )
        for way in rounds[0]
    ]
    columns = ("way", "s", "CPU, s", f"x {BYTES}", f"x {THEIRS}", "peak, MB")
    return Table(f"{title} x {size.statistics} statistics", columns, tuple(rows))


def seeds_goals(seeds: int, rounds: Rounds) -> list[Goal]:
    """What is to be reached with some number of seeds."""
    goals = []
    for way in (OURS, FOLDER):
        peak = harness.median(each[way].peak_bytes for each in rounds) / _MB
        goals.append(Goal(f"{seeds} seeds, {way}: peak, MB", MEMORY_GOAL_MB, peak))
        if THEIRS in rounds[0]:
            ratio = harness.median(each[way].seconds / each[THEIRS].seconds for each in rounds)
            goals.append(Goal(f"{seeds} seeds, {way}: time, x {THEIRS}", SPEED_GOAL, ratio))
    return goals


def run_table(size: Size, rounds: Rounds) -> Table:
    """One run."""
    rows = [
        (
            way,
            harness.median(each[way].seconds for each in rounds) * 1e3,
            harness.median(each[way].cpu_s for each in rounds) * 1e3,
            _ratio(rounds, way, THEIRS),
            harness.median(each[way].peak_bytes for each in rounds) / _MB,
        )
        for way in rounds[0]
    ]
    ticks, statistics = size.run
    columns = ("way", "ms", "CPU, ms", f"x {THEIRS}", "peak, MB")
    return Table(f"One run, {ticks:,} ticks x {statistics} statistics", columns, tuple(rows))


def configs_table(size: Size, rounds: Sequence[Mapping[str, Loaded]]) -> Table:
    """Many configurations."""
    rows = [
        (
            what,
            harness.median(each[what].seconds for each in rounds),
            harness.median(each[what].cpu_s for each in rounds),
            harness.median(each[what].peak_bytes for each in rounds) / _MB,
        )
        for what in rounds[0]
    ]
    title = "{:,} configurations x {} seeds x {:,} ticks: from the beginning until"
    return Table(title.format(*size.configs), ("done", "s", "CPU, s", "peak, MB"), tuple(rows))


def _ratio(rounds: Rounds, way: str, other: str) -> Any:
    if other not in rounds[0]:
        return ""
    return harness.median(each[way].seconds / each[other].seconds for each in rounds)
