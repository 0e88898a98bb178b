"""How many bytes a tick takes on the disk, in the log of a finished run.

Runs of each kind of statistic are logged in several lengths, through a daemon that seals them.
What a further tick takes is the difference of the two longest files over their ticks, so that what
every file has, however short it is, is not in it; that is told apart.  What a column takes is what
HDF5 says, without its headers and index.

*Ideal* is the smaller of two: the values' own bytes, and what zlib makes of the whole column with
the bytes of its numbers sorted by their weight, as in a log and at its level, but in one piece.
Random digits cannot be compressed; of a float64 with noise they are more than 6 bytes.

Ticks are logged as fast as possible.  At the pace of a training `time_elapsed` has more digits that
cannot be foretold, and takes some 2 bytes more.

mle-logging's log of the same values stands beside it, where that is installed: float32, with the
date of each tick in 5,000 bytes before they are compressed, saved once.
"""

from __future__ import annotations

import importlib.util
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from benchmarks import harness
from benchmarks.harness import Goal, Picture, Result, Table
from benchmarks.workspace import Workspace, workspace

NAME: Final = "disk"
SMOOTH_GOAL_BYTES: Final = 12.0  # a float64 statistic and tick of a smooth curve, clocks included
IDEAL_GOAL: Final = 1.1  # a column's bytes, x ideal
CONSTANT_GOAL: Final = 0.01  # x the values' bytes: next to nothing, of which the tenth is no matter
_LEVEL: Final = 1  # at which logs are compressed
_CLOSE_TIMEOUT_S: Final = 300.0
_SEED: Final = 1
_GROUP: Final = f"seed_{_SEED}"

Array = npt.NDArray[Any]
Columns = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        lengths: of the runs, in ticks; at least two.
        wide_share: the share of ticks that runs with many values a tick have.
    """

    lengths: tuple[int, ...]
    wide_share: float = 0.5


SIZES: Final = {
    "full": Size((100, 1_000, 10_000, 100_000, 1_000_000), wide_share=0.2),
    "quick": Size((100, 1_000, 10_000, 100_000)),
    "tiny": Size((20, 200)),
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A log on disk.

    Args:
        ticks: in it.
        file_bytes: of all of it.
        clock_bytes: of the columns of clocks.
        column_bytes: of the columns of statistics.
        raw_bytes: of their values in memory.
        zlib_bytes: of the columns, compressed in one piece each.
        values: numbers in them.
    """

    ticks: int
    file_bytes: int
    clock_bytes: int
    column_bytes: int
    raw_bytes: int = 0
    zlib_bytes: int = 0
    values: int = 0

    @property
    def ideal_bytes(self) -> int:
        """What the columns of statistics should take."""
        return min(self.raw_bytes, self.zlib_bytes)


# --- what is logged -------------------------------------------------------------------------------
def _decay(ticks: int) -> Array:
    """A loss that falls smoothly, to the same level however long the run is."""
    return np.asarray(2.3 * np.exp(-5 * np.arange(ticks) / ticks) + 0.1)


def _noise(ticks: int, *shape: int) -> Array:
    return np.random.default_rng(0).normal(size=(ticks, *shape))


def _smooth(ticks: int) -> Columns:
    return {"train_loss": _decay(ticks), "test_loss": _decay(ticks) * 1.1 + 0.05}


def _noisy(ticks: int) -> Columns:
    noise = _noise(ticks, 2) * 0.1
    return {"train_loss": _decay(ticks) + noise[:, 0], "test_loss": _decay(ticks) + noise[:, 1]}


def _single(ticks: int) -> Columns:
    return {name: column.astype(np.float32) for name, column in _noisy(ticks).items()}


def _integers(ticks: int) -> Columns:
    correct = np.random.default_rng(0).integers(0, 1_000, ticks)
    return {"seen": np.arange(ticks) * 64, "correct": correct}


def _constant(ticks: int) -> Columns:
    return {"learning_rate": np.full(ticks, 3e-4), "momentum": np.full(ticks, 0.9)}


def _many(ticks: int) -> Columns:
    noise = _noise(ticks, 50) * 0.1 + _decay(ticks)[:, np.newaxis]
    return {f"stat_{i}": noise[:, i] for i in range(50)}


def _vector(ticks: int) -> Columns:
    return {"gradient_norms": np.abs(_noise(ticks, 100))}


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of run.  Args: make: its columns; wide: whether a tick has many values."""

    make: Callable[[int], Columns]
    wide: bool = False


SMOOTH, NOISY, CONSTANT = "2 smooth float64", "2 noisy float64", "2 constant float64"
CASES: Final = {
    SMOOTH: Case(_smooth),
    NOISY: Case(_noisy),
    "2 noisy float32": Case(_single),
    "2 integers": Case(_integers),
    CONSTANT: Case(_constant),
    "50 noisy float64": Case(_many, wide=True),
    "a vector of 100 float64": Case(_vector, wide=True),
}
_THEIR_CASES: Final = (SMOOTH, NOISY)
_THEIR_MOST_TICKS: Final = 100_000  # 5,000 bytes each in memory, while it saves

Logs = Mapping[str, Sequence[Stored]]


def run(size: Size) -> Result:
    """Log every case in every length, and look at the files once the daemon has sealed them."""
    with workspace() as space:
        for name, ticks in _runs(size):
            harness.tell(f"{NAME}: {name}, {ticks:,} ticks")
            log_columns(space, _run_name(name, ticks), CASES[name].make(ticks))
        space.stop()
        ours: dict[str, list[Stored]] = {name: [] for name in CASES}
        for name, ticks in _runs(size):
            path = space.log_file(_run_name(name, ticks), _SEED)
            ours[name].append(look_at(path, CASES[name].make(ticks)))
        theirs: dict[str, list[Stored]] = {}
        if importlib.util.find_spec("mle_logging") is not None:
            harness.tell(f"{NAME}: mle-logging")
            for name in _THEIR_CASES:
                folder = space.root.parent / "theirs" / name
                lengths = [each for each in size.lengths if each <= _THEIR_MOST_TICKS]
                theirs[name] = [
                    harness.fresh(measure_theirs, folder / str(ticks), name, ticks)
                    for ticks in lengths[-2:]
                ]
    tables = (_column_table(ours), _file_table(ours, theirs), _length_table(size, ours))
    figures = {"ours": ours, "mle-logging": theirs}
    return Result(NAME, tables, tuple(_goals(ours)), figures, _pictures(size, ours))


def _runs(size: Size) -> Iterator[tuple[str, int]]:
    """The cases, with each of their lengths."""
    for name, case in CASES.items():
        for length in size.lengths:
            yield name, round(length * size.wide_share) if case.wide else length


def _run_name(case: str, ticks: int) -> str:
    return f"{case}-{ticks}"


# --- measuring ------------------------------------------------------------------------------------
def log_columns(space: Workspace, name: str, columns: Columns) -> None:
    """Log some columns as a run of that name."""
    log = space.logger(name, _SEED)
    for clock, stats in _ticks(columns):
        log.update(clock, stats)
    report = log.close(_CLOSE_TIMEOUT_S)
    if report.lost or report.spilled:
        raise RuntimeError(f"this is what became of the ticks: {report}")


def look_at(path: Path, columns: Columns) -> Stored:
    """What a log of some columns takes.  It must hold exactly these numbers."""
    with h5py.File(path) as file:
        for column, values in columns.items():
            found = file[f"{_GROUP}/stats/{column}"][()]
            if not np.array_equal(found, values):
                raise RuntimeError(f"{path} does not hold {column}, but {found}")
    return Stored(
        *_sizes(path, _GROUP),
        raw_bytes=sum(each.nbytes for each in columns.values()),
        zlib_bytes=sum(map(compressed_bytes, columns.values())),
        values=sum(each.size for each in columns.values()),
    )


def measure_theirs(folder: Path, case: str, ticks: int) -> Stored:
    """Have mle-logging log a case, in this process, and save it once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        library = importlib.import_module("mle_logging")
    columns = CASES[case].make(ticks)
    log = library.MLELogger(
        experiment_dir=f"{folder}/",
        seed_id=_SEED,
        time_to_track=["num_steps"],
        what_to_track=[*columns],
    )
    for clock, stats in _ticks(columns):
        log.update(clock, stats)
    log.save()
    (path,) = folder.glob("logs/*.hdf5")
    return Stored(*_sizes(path, _GROUP))


def _ticks(columns: Columns) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Ticks with Python's numbers, as `.item()` makes them; float32 and vectors stay numpy's."""
    plain = [
        [*values] if values.ndim > 1 or values.dtype == np.float32 else values.tolist()
        for values in columns.values()
    ]
    for i, row in enumerate(zip(*plain, strict=True)):
        yield {"num_steps": i}, dict(zip(columns, row, strict=True))


def compressed_bytes(values: Array) -> int:
    """Bytes of a column in one piece, its numbers' bytes sorted by their weight, compressed."""
    numbers = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.itemsize)
    return len(zlib.compress(numbers.T.tobytes(), _LEVEL))


def _sizes(path: Path, group: str) -> tuple[int, int, int, int]:
    """Ticks, and bytes of the file, of its clocks and of its statistics."""
    with h5py.File(path) as file:
        clocks, stats = (
            sum(column.id.get_storage_size() for column in file[f"{group}/{name}"].values())
            for name in ("time", "stats")
        )
        return len(file[f"{group}/time/num_steps"]), path.stat().st_size, clocks, stats


# --- tables ---------------------------------------------------------------------------------------
def a_tick(logs: Sequence[Stored], figure: str) -> float:
    """What each further tick adds to a figure: the slope between the two longest runs."""
    short, long = logs[-2:]
    more = getattr(long, figure) - getattr(short, figure)
    return float(more / (long.ticks - short.ticks))


def _fixed_kb(log: Stored) -> float:
    """What a file has beside its columns' values: headers, indexes, the run's settings."""
    return (log.file_bytes - log.clock_bytes - log.column_bytes) / 1e3


def _column_table(ours: Logs) -> Table:
    rows = []
    for name, logs in ours.items():
        long = logs[-1]
        rows.append(
            (
                name,
                long.ticks,
                long.column_bytes / long.values,
                long.raw_bytes / long.values,
                long.zlib_bytes / long.values,
                long.column_bytes / long.ideal_bytes,
                long.column_bytes / long.raw_bytes,
            )
        )
    columns = ("statistics", "ticks", "stored", "raw", "zlib", "x ideal", "x raw")
    return Table("Bytes of a value in the columns of statistics", columns, tuple(rows))


def _file_table(ours: Logs, theirs: Logs) -> Table:
    rows = [_file_row(name, "ours", logs) for name, logs in ours.items()]
    rows += [_file_row(name, "mle-logging, float32", logs) for name, logs in theirs.items()]
    columns = (
        *("statistics", "log", "bytes a tick", "of them clocks", "of them statistics"),
        *("beside values, KB: short run", "long run"),
    )
    return Table("Whole files: what a further tick takes", columns, tuple(rows))


def _file_row(name: str, whose: str, logs: Sequence[Stored]) -> tuple[Any, ...]:
    figures = ("file_bytes", "clock_bytes", "column_bytes")
    return (
        name,
        whose,
        *(a_tick(logs, each) for each in figures),
        *map(_fixed_kb, logs[:: len(logs) - 1]),
    )


def _length_table(size: Size, ours: Logs) -> Table:
    rows = [
        (
            ticks,
            *(
                figure
                for name in (SMOOTH, NOISY)
                for figure in (
                    ours[name][index].file_bytes / 1e3,
                    ours[name][index].file_bytes / ticks,
                )
            ),
        )
        for index, ticks in enumerate(size.lengths)
    ]
    columns = ("ticks", "smooth: KB", "bytes a tick", "noisy: KB", "bytes a tick")
    return Table("Whole files of 2 float64 statistics, by length", columns, tuple(rows))


def _goals(ours: Logs) -> Iterator[Goal]:
    a_statistic = a_tick(ours[SMOOTH], "file_bytes") / 2
    yield Goal(f"{SMOOTH}: file, bytes a tick and statistic", SMOOTH_GOAL_BYTES, a_statistic)
    for name, logs in ours.items():
        long = logs[-1]
        if name == CONSTANT:
            ratio = long.column_bytes / long.raw_bytes
            yield Goal(f"{name}: columns, x raw", CONSTANT_GOAL, ratio)
        elif name != SMOOTH:
            ratio = long.column_bytes / long.ideal_bytes
            yield Goal(f"{name}: columns, x ideal", IDEAL_GOAL, ratio)


def _pictures(size: Size, ours: Logs) -> tuple[Picture, ...]:
    values: dict[str, Callable[[Stored], float]] = {
        "stored": lambda each: each.column_bytes / each.values,
        "raw": lambda each: each.raw_bytes / each.values,
        "zlib, in one piece": lambda each: each.zlib_bytes / each.values,
    }
    series = {
        name: tuple(figure(logs[-1]) for logs in ours.values()) for name, figure in values.items()
    }
    lengths = {
        name: tuple(each.file_bytes / each.ticks for each in ours[name]) for name in (SMOOTH, NOISY)
    }
    at = tuple(map(float, size.lengths))
    title = "A finished log: bytes of a tick, with all the file has"
    return (
        Picture("values", "Bytes of a value in a finished log", "bytes", series, tuple(ours)),
        Picture("lengths", title, "bytes a tick", lengths, at, "ticks", log=True),
    )
