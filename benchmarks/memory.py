"""How much memory logging takes: of the script's process, and of the daemon.

The script runs in a bare interpreter and rests at some points, where it and its daemon are looked
at: with numpy alone, which a training has anyway; with the logger imported, and constructed; and
after more and more ticks, all of which are in the file by then.  Then a process opens more and more
runs at a daemon of its own.

*RSS* is all that lies in memory for a process: *private* memory, *code* that is mapped from files
and is there once for all who use it, and *shared* memory, the rings.  A ring is counted in the
script's RSS, and in the daemon's while that reads it.  *PSS* divides what is shared by those who
share it.  *Peak* is the highest RSS since the process began.  This is Linux's account of it.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import bare, harness
from benchmarks.harness import Goal, Picture, Result, Table
from benchmarks.memory_trial import TICKS_OF_A_RUN
from benchmarks.workspace import Workspace, workspace

NAME: Final = "memory"
CLIENT_GOAL_MB: Final = 25.0  # over numpy
DAEMON_GOAL_MB: Final = 80.0
RUN_GOAL_MB: Final = 64 * 1024 / 1e6  # of the daemon, for each open run
_MB: Final = 1e6
_KIB: Final = 1024
_SETTLE_S: Final = 0.5  # until a daemon has put away what it used for the last ticks
_IDLE_CPU_S: Final = 0.02  # in that time, of one that does nothing
_TIMEOUT_S: Final = 600.0
_NUMPY, _IMPORTED, _CONSTRUCTED, _CLOSED = (
    *("numpy alone", "MLELogger imported", "constructed", "closed"),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        ticks: after how many of them the script is looked at.
        runs: with how many that are open the daemon is looked at.
        settle_s: how long all rest before they are looked at, in seconds.
    """

    ticks: tuple[int, ...]
    runs: tuple[int, ...]
    settle_s: float = _SETTLE_S


SIZES: Final = {
    "full": Size((10_000, 1_000_000, 10_000_000), (1, 10, 100, 1_000)),
    "quick": Size((10_000, 1_000_000, 10_000_000), (1, 10, 100, 1_000)),
    "tiny": Size((100, 1_000), (1, 3), settle_s=0.01),
}
_WARM_UP: Final = Size(
    (1,), (), settle_s=0.0
)  # bytecode is compiled, which takes memory of its own


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process has in memory, in bytes; see the module.

    Args:
        rss, peak, pss: of everything.
        private, code, shared: what RSS is made of.
    """

    rss: int
    peak: int
    pss: int
    private: int
    code: int
    shared: int


@dataclass(frozen=True, slots=True)
class Look:
    """Both processes at one point.  Args: at: ticks, runs, or a name."""

    at: int | str
    client: Memory
    daemon: Memory


def run(size: Size) -> Result:
    """Look at a script, then at many runs."""
    with bare.bytecode():
        look_at_script(_WARM_UP)
        harness.tell(f"{NAME}: ticks")
        script = look_at_script(size)
        harness.tell(f"{NAME}: runs")
        runs = look_at_runs(size)
    tables = (_script_table(script), _daemon_table(script), _runs_table(runs))
    figures = {"script": script, "runs": runs}
    return Result(NAME, tables, tuple(_goals(script, runs)), figures, _pictures(script, runs))


# --- looking --------------------------------------------------------------------------------------
def look_at_script(size: Size) -> list[Look]:
    """One run, more and more ticks."""
    with workspace() as space:
        with _trial("script", space) as process:
            looks = []
            for name in (_NUMPY, _IMPORTED, _CONSTRUCTED):
                looks.append(_look(name, process, space, size))
                if name != _CONSTRUCTED:
                    _go_on(process, 0)
            for ticks in size.ticks:
                _go_on(process, ticks)
                looks.append(_look(ticks, process, space, size))
            _go_on(process, 0)
            _wait_until_idle(space)  # it is being sealed
            looks.append(_look(_CLOSED, process, space, size))
        stored = space.stored_ticks("run")
        if stored != size.ticks[-1]:
            raise RuntimeError(f"{stored} ticks are stored and not {size.ticks[-1]}")
    return looks


def look_at_runs(size: Size) -> list[Look]:
    """More and more runs.  To close a thousand takes minutes, so that all are killed in the end."""
    with workspace() as space:
        with _trial("runs", space) as process:
            looks = []
            for runs in size.runs:
                _go_on(process, runs)
                looks.append(_look(runs, process, space, size))
            process.kill()
        space.kill()
        stored = {space.stored_ticks("run", seed) for seed in range(size.runs[-1])}
        if stored != {TICKS_OF_A_RUN}:
            raise RuntimeError(f"runs hold {stored} ticks and not {TICKS_OF_A_RUN}")
    return looks


@contextlib.contextmanager
def _trial(kind: str, space: Workspace) -> Iterator[subprocess.Popen[str]]:
    """A process of `memory_trial` that rests; in the end it closes, unless it was killed."""
    words = ("-P", "-m", "benchmarks.memory_trial", kind, str(space.root / "run"))
    with bare.start((sys.executable, *words)) as process:  # its end waits for the process
        try:
            _wait(process)
            yield process
            process.communicate(timeout=_TIMEOUT_S)
        finally:
            if process.poll() is None:
                process.kill()
        if process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the process that logs has ended with {process.returncode}")


def _wait(process: subprocess.Popen[str]) -> None:
    """Wait until the process rests."""
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError("the process that logs has ended")


def _go_on(process: subprocess.Popen[str], goal: int) -> None:
    """Have the process go on to a goal."""
    assert process.stdin is not None
    process.stdin.write(f"{goal}\n")
    process.stdin.flush()
    _wait(process)


def _look(at: int | str, process: subprocess.Popen[str], space: Workspace, size: Size) -> Look:
    time.sleep(size.settle_s)
    return Look(at, memory_of(process.pid), memory_of(space.daemon_pid))


def _wait_until_idle(space: Workspace) -> None:
    """Wait until the daemon does nothing any more."""
    deadline = time.monotonic() + _TIMEOUT_S
    before = -1.0
    while (used := space.daemon_cpu_s()) - before > _IDLE_CPU_S and time.monotonic() < deadline:
        before = used
        time.sleep(_SETTLE_S)


def memory_of(pid: int) -> Memory:
    """What a process has in memory now."""
    status = _kernel_says(pid, "status")
    return Memory(
        rss=status["VmRSS"],
        peak=status["VmHWM"],
        pss=_kernel_says(pid, "smaps_rollup")["Pss"],
        private=status["RssAnon"],
        code=status["RssFile"],
        shared=status["RssShmem"],
    )


def _kernel_says(pid: int, file: str) -> dict[str, int]:
    """The amounts of memory in one of the kernel's files about a process, in bytes."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    words = [line.replace(":", " ").split() for line in lines if line.endswith(" kB")]
    return {each[0]: int(each[-2]) * _KIB for each in words}


# --- tables ---------------------------------------------------------------------------------------
_COLUMNS: Final = ("RSS", "private", "code", "shared", "PSS", "peak")


def _mb(memory: Memory, less: Memory | None = None) -> tuple[float, ...]:
    """The cells of `_COLUMNS`, in MB.  Args: less: what is taken off each."""
    of = (memory.rss, memory.private, memory.code, memory.shared, memory.pss, memory.peak)
    off = (0,) * 6
    if less:
        off = (less.rss, less.private, less.code, less.shared, less.pss, less.peak)
    return tuple((mine - its) / _MB for mine, its in zip(of, off, strict=True))


def _name(look: Look) -> str:
    return look.at if isinstance(look.at, str) else f"{look.at:,} ticks"


def _script_table(looks: Sequence[Look]) -> Table:
    numpy = looks[0].client
    rows = [(_NUMPY, *_mb(numpy))]
    rows += [(f"+ {_name(each)}", *_mb(each.client, numpy)) for each in looks[1:]]
    title = "The script, at rest, in MB; all rows but the first are over numpy alone"
    return Table(title, ("script", *_COLUMNS), tuple(rows))


def _daemon_table(looks: Sequence[Look]) -> Table:
    rows = [
        ("no run" if each.at == _IMPORTED else _name(each), *_mb(each.daemon)) for each in looks[1:]
    ]
    return Table("The daemon of that script, in MB", ("script", *_COLUMNS), tuple(rows))


def _runs_table(looks: Sequence[Look]) -> Table:
    rows = [
        (
            int(look.at),
            *_mb(look.daemon),
            _more_kb(looks, index, "daemon"),
            look.client.rss / _MB,
            look.client.shared / _MB,
            _more_kb(looks, index, "client"),
        )
        for index, look in enumerate(looks)
    ]
    columns = (
        *("open runs", *_COLUMNS, "KB a further run"),
        *("process with the runs: RSS", "shared", "KB a further run"),
    )
    return Table("The daemon with many open runs of one process, in MB", columns, tuple(rows))


def _more_kb(looks: Sequence[Look], index: int, who: str) -> Any:
    """What each run more than at the look before takes of a process's RSS."""
    if not index:
        return ""
    before, look = looks[index - 1], looks[index]
    more = getattr(look, who).rss - getattr(before, who).rss
    return float(more / (int(look.at) - int(before.at)) / 1e3)


def _goals(script: Sequence[Look], runs: Sequence[Look]) -> Iterator[Goal]:
    numpy = script[0].client
    most = max(script[2:], key=lambda each: each.client.rss)
    yield Goal(
        "script at rest, RSS over numpy alone, MB",
        CLIENT_GOAL_MB,
        (most.client.rss - numpy.rss) / _MB,
    )
    peak = (script[-1].client.peak - numpy.rss) / _MB
    yield Goal("script, peak over numpy alone, MB", CLIENT_GOAL_MB, peak)
    for look in script:
        if look.at == _CLOSED or not isinstance(look.at, str):
            limit = DAEMON_GOAL_MB + RUN_GOAL_MB
            yield Goal(f"daemon after {_name(look)}: RSS, MB", limit, look.daemon.rss / _MB)
    for look in runs:
        limit = DAEMON_GOAL_MB + RUN_GOAL_MB * int(look.at)
        yield Goal(f"daemon with {look.at:,} open runs: RSS, MB", limit, look.daemon.rss / _MB)


def _pictures(script: Sequence[Look], runs: Sequence[Look]) -> tuple[Picture, ...]:
    numpy = script[0].client
    names = ("private", "code", "shared")
    counted = [each for each in script if not isinstance(each.at, str)]
    client = {
        "script, RSS over numpy": tuple((each.client.rss - numpy.rss) / _MB for each in counted),
        "script, peak over numpy": tuple((each.client.peak - numpy.rss) / _MB for each in counted),
        "daemon, RSS": tuple(each.daemon.rss / _MB for each in counted),
        "daemon, peak": tuple(each.daemon.peak / _MB for each in counted),
    }
    daemon = {
        "RSS": tuple(each.daemon.rss / _MB for each in runs),
        **{name: tuple(getattr(each.daemon, name) / _MB for each in runs) for name in names},
    }
    ticks, open_runs = (tuple(float(each.at) for each in looks) for looks in (counted, runs))
    return (
        Picture("ticks", "Memory of one run as it grows", "MB", client, ticks, "ticks"),
        Picture("runs", "Memory of a daemon", "MB", daemon, open_runs, "open runs"),
    )
