"""Where a trainer and its daemon spend their time under load, seen from outside.

A process logs as fast as it can, and py-spy looks at it, or at its daemon, some hundred times a
second, without a word in either; with the functions of C libraries, in which HDF5, deflate and
Python itself are.  What is counted are looks, so that shares are shares of time; a thread that
waits for Python's lock, for another thread or for the disk is in a row of its own.

py-spy has an environment of its own (`peer_environments`), and must be allowed to look at the
processes that this one starts; where it is not, the tables say so.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import bare, harness, peer_environments
from benchmarks.harness import Result, Table
from benchmarks.update_cost import CASES
from benchmarks.workspace import Workspace, workspace

NAME: Final = "profiles"
SPY: Final = "py-spy"
TRAINER, DAEMON = "trainer", "daemon"
_WAITS: Final = "(waiting)"
_OTHERS: Final = "all others"
_RATE: Final = 200  # looks a second
_TOP: Final = 8  # functions of a thread that are shown
_LEAST: Final = 0.03  # of all looks: threads below that are left out
_TIMEOUT_S: Final = 120.0
_MAIN_CASE: Final = next(iter(CASES))

# A frame as py-spy writes it: of Python it has a file and a line, of C perhaps a library.
_PYTHON: Final = re.compile(r"^(?P<name>.+) \((?:.*/)?(?P<file>[^/()]+\.py|<[^()]*>):\d+\)$")
_NATIVE: Final = re.compile(r"^(?P<name>\S+) \(.*\)$")
_THREAD: Final = re.compile(r"^thread \(\d+\)(?:: (?P<name>.*))?$")
# Functions in which a thread waits, or the last ones with a name before it does.
_WAITING: Final = re.compile(
    r"^(?:(?:Condition|Event)\.wait |_?wait\w* \(threading|log\.<locals>\.listen "
    r"|pthread_cond_(?:timed)?wait|sem_\w*wait|futex\w*|take_gil|epoll_wait|p?poll|select"
    r"|clock_nanosleep|nanosleep|fsync|fdatasync|lock_PyThread_acquire_lock|__lll_lock_wait)"
)
# The daemon's own that wait in a function of the C library that has no name.
_MAY_WAIT: Final = re.compile(
    r"^(?:\w+\.)?(?:_work|wait|poll) \((?:.*/)?(?:landing|server|poll)\.py"
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is looked at.

    Args:
        seconds: that are looked at.
        cases: what is logged while the daemon is looked at.
    """

    seconds: float
    cases: tuple[str, ...]


_DAEMONS_CASES: Final = (
    *(_MAIN_CASE, "2 clocks + 50 statistics", "a vector of 100", "a float and a string"),
)
SIZES: Final = {
    "full": Size(20.0, _DAEMONS_CASES),
    "quick": Size(4.0, _DAEMONS_CASES),
    "tiny": Size(0.5, (_MAIN_CASE,)),
}


@dataclass(slots=True)
class Thread:
    """What was seen of a thread.

    Args:
        waits: looks at which it waited.
        runs: {innermost function of Python: {function that ran: looks}}.
    """

    waits: int = 0
    runs: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @property
    def looks(self) -> int:
        """At which it did something."""
        return sum(sum(each.values()) for each in self.runs.values())


def run(size: Size) -> Result:
    """Look at the trainer, then at the daemon in each case."""
    problem = peer_environments.make_all((SPY,))[SPY]
    tables: list[Table] = []
    figures: dict[str, Any] = {"problem": problem}
    for who, case in ((TRAINER, _MAIN_CASE), *((DAEMON, case) for case in size.cases)):
        harness.tell(f"{NAME}: {who}, {case}")
        raw, why = ("", problem) if problem else look_at(who, case, size.seconds)
        figures[f"{who}, {case}"] = raw
        tables.append(_table(who, case, size, read(raw.splitlines()), why))
    return Result(NAME, tuple(tables), (), figures)


def look_at(who: str, case: str, seconds: float) -> tuple[str, str]:
    """Log at full speed for a while, and look at one of the two processes.

    Returns:
        What py-spy has seen, and why it has seen nothing.
    """
    with bare.bytecode(), workspace() as space, _trial(space, case) as trainer:
        pid = trainer.pid if who == TRAINER else space.daemon_pid
        return _spy(pid, seconds)


def _trial(space: Workspace, case: str) -> subprocess.Popen[str]:
    """A process that logs until its input ends."""
    words = ("-P", "-m", "benchmarks.profiles_trial", str(space.root / "run"), case)
    process = bare.start((sys.executable, *words))
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError("the process that logs has ended")
    return process


def _spy(pid: int, seconds: float) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "raw"
        done = subprocess.run(
            [
                peer_environments.python_of(SPY).with_name(SPY),
                *("record", "--pid", str(pid), "--native", "--threads", "--format", "raw"),
                *("--rate", str(_RATE), "--duration", str(max(1, round(seconds)))),
                *("--output", target),
            ],
            capture_output=True, text=True, check=False, timeout=_TIMEOUT_S + seconds,
        )  # fmt: skip
        if done.returncode or not target.exists():
            return "", (done.stderr.strip() or "it has said nothing").partition("\n")[0]
        return target.read_text(), ""


# --- reading --------------------------------------------------------------------------------------
def read(lines: Iterable[str]) -> dict[str, Thread]:
    """What py-spy has seen, by the thread's name.  Args: lines: "thread;frame;…;frame looks"."""
    threads: dict[str, Thread] = {}
    for line in lines:
        stack, _, looks = line.rpartition(" ")
        first, *frames = stack.split(";")
        thread = _THREAD.match(first)
        name = (thread["name"] if thread else "") or "a thread of a library"
        found = threads.setdefault(name, Thread())
        at = max((at for at, each in enumerate(frames) if _PYTHON.match(each)), default=-1)
        inner = frames[max(0, at) :]
        is_asleep = inner[-1:] and inner[-1].startswith("0x") and _MAY_WAIT.match(inner[0])
        if is_asleep or any(_WAITING.match(frame) for frame in inner):
            found.waits += int(looks)
        elif frames:
            function = _short(frames[at]) if at >= 0 else "–"
            found.runs[function][_short(frames[-1])] += int(looks)
    return threads


def _short(frame: str) -> str:
    """A frame without its line, and without folders."""
    if python := _PYTHON.match(frame):
        return f"{python['name'].rpartition('.')[2]} ({python['file']})"
    native = _NATIVE.match(frame)
    return "C, no name" if frame.startswith("0x") or not native else native["name"]


# --- tables ---------------------------------------------------------------------------------------
def _table(who: str, case: str, size: Size, threads: dict[str, Thread], why: str) -> Table:
    title = f"The {who}'s threads, {case}: {size.seconds:g} s at full speed, {_RATE} looks a second"
    columns = ("thread", "function of Python", "looks", "share, %", "of that mostly in", "%")
    if why:
        return Table(title, columns, ((f"{SPY} sees nothing here: {why}", *[""] * 5),))
    least = _LEAST * max(1, sum(each.looks for each in threads.values()))
    by_looks = sorted(threads.items(), key=lambda item: -item[1].looks)
    rows = [row for name, each in by_looks if each.looks >= least for row in _rows(name, each)]
    return Table(title, columns, tuple(rows) or (("nothing was seen", *[""] * 5),))


def _rows(name: str, thread: Thread) -> Iterator[tuple[Any, ...]]:
    total = thread.looks
    ordered = sorted(thread.runs.items(), key=lambda item: -sum(item[1].values()))
    for function, inner in ordered[:_TOP]:
        looks = sum(inner.values())
        ((most, count),) = inner.most_common(1)
        yield name, function, looks, 100 * looks / total, most, 100 * count / looks
    if rest := sum(sum(inner.values()) for _, inner in ordered[_TOP:]):
        yield name, _OTHERS, rest, 100 * rest / total, "", ""
    if thread.waits:
        yield name, _WAITS, thread.waits, "", "", ""
