"""How every benchmark measures, repeats and reports.

The machine is shared and its speed changes from second to second, so a figure means little on its
own.  What is compared runs in turn, in small pieces, and the *ratios within one round* are what is
reported, as medians over the rounds.

It knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil

from benchmarks import pictures, timing

RESULTS: Final = Path(__file__).parent / "results"
PACKAGES: Final = (
    *("mle-daemon", "numpy", "h5py", "pyzmq", "msgpack"),
    *("torch", "scikit-learn", "jax", "matplotlib"),  # what is measured with
)
# The folders of an absolute path, as text, JSON or a compiler's -L has it; not `ticks/s`, `https://`.
_FOLDERS: Final = re.compile(
    r"""(?:(?<![\w.…/])|(?<=://)|(?<=\\[nt])|(?<=-[LI]))/(?:[^\s/"'\\:,;()]+/)+"""
)

T = TypeVar("T")


# --- results --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Table:
    """Figures for people.  Args: rows: one cell a column; numbers are shown with three digits."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be.  Args: limit: the most it may be, in the unit of `measured`."""

    what: str
    limit: float
    measured: float

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.measured <= self.limit


@dataclass(frozen=True, slots=True)
class Picture:
    """Figures to look at; `pictures` draws them.

    Args:
        name: of the file, without its ending.
        title: what is shown, in a line.
        label: of the axis of values, with their unit.
        series: {name: its values}, one for each of `at`; NaN where there is none.
        at: what the values belong to: numbers, which make lines, or names, which make bars.
        at_label: of the axis of numbers, with their unit.
        log: whether the values' axis is logarithmic; that of numbers is where they span decades.
    """

    name: str
    title: str
    label: str
    series: Mapping[str, tuple[float, ...]]
    at: tuple[float, ...] | tuple[str, ...]
    at_label: str = ""
    log: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found.

    Args:
        name: of the benchmark.
        tables, goals, pictures: for people.
        figures: every single measurement, for programs.
    """

    name: str
    tables: tuple[Table, ...]
    goals: tuple[Goal, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()


# --- timing ---------------------------------------------------------------------------------------
Tick = timing.Tick
Block = timing.Block
timed = timing.timed
fine_median = timing.fine_median
clock_step = timing.clock_step
percentile = timing.percentile
median = statistics.median


# --- taking turns ---------------------------------------------------------------------------------
def rotated(items: Iterable[T], turn: int) -> list[T]:
    """The items, beginning with another one at each turn: nobody is always first."""
    listed = list(items)
    shift = turn % len(listed)
    return listed[shift:] + listed[:shift]


def interleaved(variants: Mapping[str, Callable[[], T]], rounds: int) -> list[dict[str, T]]:
    """Run all variants, `rounds` times, in turn.

    Returns:
        One dict a round, {variant: what it returned}.
    """
    return [{name: variants[name]() for name in rotated(variants, turn)} for turn in range(rounds)]


def fresh(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a new process, where nothing that was measured before is in memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


# --- where it was measured ------------------------------------------------------------------------
def machine() -> dict[str, Any]:
    """The machine and the versions of what matters."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "commit": _commit(),
        **{name: _version(name) for name in PACKAGES},
    }


def _commit() -> str:
    """What is measured, as git names it; "" where it is no clone."""
    words = ("git", "describe", "--always", "--dirty", "--abbrev=9")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            words, cwd=RESULTS.parent, capture_output=True, text=True, check=True, timeout=10.0
        )
        return done.stdout.strip()
    return ""


def _processor() -> str:
    """The processor's name; "" where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@contextlib.contextmanager
def watching() -> Iterator[dict[str, float]]:
    """See how long something takes, and how busy the machine is with other things meanwhile.

    Yields:
        A dict that has, afterwards, `wall_s`, and `others_cores`: how many cores processes that
        are not ours (or are ours and still run) used on average.
    """
    found: dict[str, float] = {}
    begun, busy, own = time.monotonic(), _busy_s(), _own_s()
    try:
        yield found
    finally:
        wall = time.monotonic() - begun
        found["wall_s"] = wall
        found["others_cores"] = max(0.0, (_busy_s() - busy - (_own_s() - own)) / wall)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def _own_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


# --- reporting ------------------------------------------------------------------------------------
def save(result: Result, size: str, circumstances: Mapping[str, float]) -> Path:
    """Write a result, and where it was measured, to a file of its own.  Returns: its path.

    The pictures lie beside it, called as the result and each of them.  No folder of this machine
    is named in it.
    """
    now = datetime.datetime.now(datetime.UTC)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result.name}-{now:%Y%m%dT%H%M%S}.json"
    content = {
        "command": f"python -m benchmarks {result.name} --size {size}",
        "size": size,
        "measured_at": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "circumstances": dict(circumstances),
        "result": asdict(result),
    }
    path.write_text(without_folders(json.dumps(content, indent=1, default=str)) + "\n")
    for picture in result.pictures:
        pictures.draw(picture, path.with_name(f"{path.stem}-{picture.name}.png"))
    return path


def without_folders(text: str) -> str:
    """A text in which absolute paths have lost their folders, which say nothing elsewhere."""
    return _FOLDERS.sub("…/", text)


def describe(result: Result) -> str:
    """A result as text."""
    parts = [f"{table.title}\n{_text_table(table)}" for table in result.tables]
    parts += [
        f"{'met   ' if goal.met else 'MISSED'}  {goal.what}: "
        f"{shown(goal.measured)}, at most {shown(goal.limit)}"
        for goal in result.goals
    ]
    return "\n\n".join(parts)


def _text_table(table: Table) -> str:
    rows = [table.columns, *([shown(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join(itertools.chain(lines[:1], [rule], lines[1:]))


def shown(value: Any) -> str:
    """A figure as people read it: three digits, and no fraction from 100 on."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def tell(text: str) -> None:
    """Say how far it is."""
    print(text, file=sys.stderr, flush=True)
