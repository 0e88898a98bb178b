"""What merging seeds costs: time, CPU time, memory.

The same sealed logs, through hard links, so that nobody's sources are warmer than another's, are
merged in turn by

* a *raw copy*: all bytes of all files into one file, by the kernel, with and without a sync;
* h5py's `Group.copy` of each seed into a new file;
* mle-logging's `merge_hdf5_files`;
* ours, which syncs, reads everything back, and removes the sources last;
* ours without the reading back, to show what that costs.

What came of it is compared with the sources after each round.  Memory is the peak of a process that
merges, over what a bare Python has: the libraries are in it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from benchmarks import harness
from benchmarks.harness import Goal, Result, Table
from benchmarks.workspace import workspace
from mle_client import discovery, files, log_compare, merge

NAME: Final = "merging"
RAW, RAW_SYNCED, GROUP_COPY, PEER = "raw copy", "raw copy, synced", "Group.copy", "mle-logging"
OURS, UNREAD = "ours", "ours, not read back"
_STATISTICS: Final = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        seeds: how many of them are merged, a case each.
        ticks: of each seed.
        rounds: how often each system merges.
    """

    seeds: tuple[int, ...]
    ticks: int
    rounds: int


SIZES: Final = {
    "full": Size((50, 200), 100_000, 9),
    "quick": Size((50,), 100_000, 5),
    "tiny": Size((2,), 200, 1),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One merge.  Args: wall_s, cpu_s: that it took; size: bytes of the merged file."""

    wall_s: float
    cpu_s: float
    size: int


def run(size: Size) -> Result:
    """Merge by each system in turn."""
    rows: list[tuple[Any, ...]] = []
    goals: list[Goal] = []
    figures: dict[str, Any] = {}
    with workspace() as space:
        harness.tell(f"{NAME}: logging {max(size.seeds)} x {size.ticks:,} ticks")
        for seed in range(max(size.seeds)):
            log_seed(space.logger("run", seed), seed, size.ticks)
        space.stop()
        missing = _missing()
        logs = [space.log_file("run", seed) for seed in range(max(size.seeds))]
        for count in size.seeds:
            harness.tell(f"{NAME}: {count} seeds")
            sources = logs[:count]
            folder = space.root / "merged"
            systems: dict[str, Callable[[], Run]] = {
                name: partial(_measured, work, sources, folder)
                for name, work in SYSTEMS.items()
                if name not in missing
            }
            rounds = harness.interleaved(systems, size.rounds)
            memory = {name: peak_mb(name, sources, folder) for name in _WORK if name in systems}
            figures[str(count)] = {"rounds": rounds, "memory": memory}
            rows += [(count, name, *_row(rounds, name), memory.get(name, "-")) for name in systems]
            goals += _goals(count, rounds, memory[OURS])
    title = f"Merging seeds of {size.ticks:,} ticks x {len(_STATISTICS)} statistics, medians"
    columns = ("seeds", "system", "s", "CPU s", "MB", "x raw", "x raw, synced", "+MB of memory")
    return Result(NAME, (Table(title, columns, tuple(rows)),), tuple(goals), figures)


def log_seed(log: Any, seed: int, ticks: int) -> None:
    """Log smooth, noisy curves, and wait until they are on disk."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, 0.01, (ticks, len(_STATISTICS)))
    curves = 1 / np.sqrt(1 + np.arange(ticks))[:, None] + noise
    with log:
        for step, values in enumerate(curves.tolist()):
            log.update({"num_steps": step}, dict(zip(_STATISTICS, values, strict=True)))


def _row(rounds: list[dict[str, Run]], name: str) -> tuple[Any, ...]:
    def middle(figure: Callable[[dict[str, Run]], float]) -> float:
        return harness.median(figure(each) for each in rounds)

    return (
        middle(lambda each: each[name].wall_s),
        middle(lambda each: each[name].cpu_s),
        rounds[0][name].size / 1e6,
        middle(lambda each: each[name].wall_s / each[RAW].wall_s),
        middle(lambda each: each[name].wall_s / each[RAW_SYNCED].wall_s),
    )


def _goals(count: int, rounds: list[dict[str, Run]], memory: float) -> list[Goal]:
    ratio = harness.median(each[OURS].wall_s / each[RAW_SYNCED].wall_s for each in rounds)
    return [
        Goal(f"merging {count} seeds, x raw copy, both synced", 1.5, ratio),
        Goal(f"memory for merging {count} seeds, MB over the interpreter", 64, memory),
    ]


# --- the systems ----------------------------------------------------------------------------------
def _raw(sources: list[Path], folder: Path, *, sync: bool) -> None:
    with files.new_file(str(folder / "log.raw")) if sync else _unsynced(folder) as fd:
        for path in sources:
            with open(path, "rb") as file:
                files.copy_all(file.fileno(), fd)


class _unsynced:  # a context manager, used like a function
    def __init__(self, folder: Path) -> None:
        self._path = folder / "log.raw"

    def __enter__(self) -> int:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT)
        return self._fd

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)


def _group_copy(sources: list[Path], folder: Path) -> None:
    with h5py.File(folder / "log.hdf5", "w") as merged:
        for path in sources:
            with h5py.File(path) as log:
                for seed in log:
                    log.copy(seed, merged)


def _peer(sources: list[Path], folder: Path) -> None:
    from mle_logging.merge.merge_hdf5 import merge_hdf5_files

    merge_hdf5_files(str(folder / "log.hdf5"), [str(path) for path in sources])


def _missing() -> set[str]:
    """The systems that are not installed.  Importing the others takes longer than merging."""
    if importlib.util.find_spec("mle_logging") is None:
        return {PEER}
    importlib.import_module("mle_logging.merge.merge_hdf5")
    return set()


def _ours(sources: list[Path], folder: Path) -> None:
    report = merge.merge_group(str(folder))
    if len(report.removed) != len(sources):
        raise RuntimeError(f"not all was merged: {report.left_out}")


def _not_read_back(sources: list[Path], folder: Path) -> None:
    compare = log_compare.differences
    log_compare.differences = lambda copies, path: []
    try:
        _ours(sources, folder)
    finally:
        log_compare.differences = compare


SYSTEMS: Final[dict[str, Callable[[list[Path], Path], None]]] = {
    RAW: partial(_raw, sync=False),
    RAW_SYNCED: partial(_raw, sync=True),
    GROUP_COPY: _group_copy,
    PEER: _peer,
    OURS: _ours,
    UNREAD: _not_read_back,
}


def _measured(work: Callable[[list[Path], Path], None], sources: list[Path], folder: Path) -> Run:
    """Merge hard links of some logs."""
    links = _linked(sources, folder)
    begun, cpu = time.perf_counter(), time.process_time()
    work(links, folder)
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    (merged,) = [*folder.glob("log.*"), *folder.glob("logs/log.hdf5")]
    if merged.suffix == ".hdf5":
        _check(sources, merged)
    size = merged.stat().st_size
    shutil.rmtree(folder)
    os.sync()  # nobody is to pay for what another one has left to the disk
    return Run(wall, cpu, size)


def _linked(sources: list[Path], folder: Path) -> list[Path]:
    (folder / "logs").mkdir(parents=True)
    links = [folder / "logs" / path.name for path in sources]
    for path, link in zip(sources, links, strict=True):
        with suppress(OSError):
            os.link(path, link)
    return links


def _check(sources: list[Path], merged: Path) -> None:
    with h5py.File(merged) as file:
        if len(file) != len(sources):
            raise RuntimeError(f"{merged} holds {len(file)} seeds and not {len(sources)}")
        with h5py.File(sources[-1]) as log:
            (seed,) = log
            for path in (f"{seed}/stats/{name}" for name in _STATISTICS):
                if not np.array_equal(log[path][:], file[path][:]):
                    raise RuntimeError(f"{path} is not the same in {merged}")


# --- memory ---------------------------------------------------------------------------------------
_PEAK: Final = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
logs = sorted(folder.glob("logs/*"))
{work}
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
_WORK: Final = {
    "nothing": "",
    GROUP_COPY: """
import h5py
with h5py.File(folder / "log.hdf5", "w") as merged:
    for path in logs:
        with h5py.File(path) as log:
            for seed in log:
                log.copy(seed, merged)
""",
    PEER: """
from mle_logging.merge.merge_hdf5 import merge_hdf5_files
merge_hdf5_files(str(folder / "log.hdf5"), list(map(str, logs)))
""",
    OURS: """
from mle_client.merge import merge_group
assert len(merge_group(str(folder)).removed) == len(logs)
""",
}


def peak_mb(name: str, sources: list[Path], folder: Path) -> float:
    """The peak memory of a process that merges, over that of a bare Python, in MB."""
    return (_peak_kb(name, sources, folder) - _peak_kb("nothing", sources, folder)) / 1024


def _peak_kb(name: str, sources: list[Path], folder: Path) -> int:
    _linked(sources, folder)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK.format(work=_WORK[name]), str(folder)],
        env=discovery.python_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    shutil.rmtree(folder)
    return int(done.stdout)
