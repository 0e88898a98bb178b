"""How many ticks a daemon takes, and what it spends on them, when nobody else is the bottleneck.

Streams are recorded beforehand as bytes (`streams`), and senders that only send push them through
the real socket as fast as the daemon's window allows.  Reported are the ticks a second until all is
published, and the daemon's CPU time a tick until its files are sealed and it has left.

Then where that goes: the CPU time of each of the daemon's threads, which run one at a time, for
they share an interpreter, and the functions of the two busiest under Python's profiler, which
slows them down.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import h5py
import numpy as np

from benchmarks import harness, streams, watched_daemon
from benchmarks.harness import Picture, Result, Table, Tick
from benchmarks.workspace import Workspace, watched_workspace, workspace

NAME: Final = "ceiling"
WRITER: Final = "mle-writer"  # what the daemon calls the thread that writes log files
OTHERS: Final = "ZeroMQ's own"
_TOP: Final = 10  # functions that a profile shows


@dataclass(frozen=True, slots=True)
class Size:
    """How much is sent.

    Args:
        senders: how many there are at once, in turn.
        ticks: of all senders together, in the case with the fewest values; others get a share.
        rounds: how often each is measured.
        profiled: senders of the runs in which the daemon's threads are looked at.
        cases: what is sent; None for all.
    """

    senders: tuple[int, ...]
    ticks: int
    rounds: int
    profiled: int
    cases: tuple[str, ...] | None = None


SIZES: Final = {
    "full": Size((1, 8, 64), 2_000_000, 5, 8),
    "quick": Size((1, 8, 64), 400_000, 1, 8),
    "tiny": Size((1, 2), 400, 1, 2, ("2 clocks + 2 statistics",)),
}


def _clock() -> dict[str, Any]:
    return {"num_steps": 0, "num_epochs": 0}


# Name -> (a tick, its share of the ticks: so that each takes about as long).
CASES: Final[dict[str, tuple[Tick, float]]] = {
    "2 clocks + 2 statistics": ((_clock(), {"train_loss": 0.5, "test_loss": 0.5}), 1.0),
    "2 clocks + 50 statistics": ((_clock(), {f"statistic_{k}": 0.5 for k in range(50)}), 0.1),
    "a vector of 100": ((_clock(), {"gradient_norms": np.zeros(100)}), 0.1),
    "a float and a string": ((_clock(), {"train_loss": 0.5, "phase": "warm-up"}), 0.15),
}
_MAIN_CASE: Final = next(iter(CASES))


@dataclass(frozen=True, slots=True)
class Found:
    """One life of a daemon.

    Args:
        ticks: of all senders.
        sent_bytes: of all senders.
        published_s: from the first piece until all is published.
        cpu_s: of the daemon, from then until it has left; without its start.
    """

    ticks: int
    sent_bytes: int
    published_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Inside:
    """What a daemon said of itself.  Args: as `watched_daemon` describes them."""

    threads: dict[str, float]
    process_s: float
    profile: list[tuple[str, int, float]]


def run(size: Size) -> Result:
    """Measure every case with every number of senders, then look inside."""
    rounds: dict[str, list[dict[str, Found]]] = {}
    inside = {}
    for case in size.cases or CASES:
        tick, share = CASES[case]
        harness.tell(f"{NAME}: {case}")
        count = max(10, int(size.ticks * share))
        rounds[case] = harness.interleaved(
            {str(n): partial(measure, tick, count, n) for n in size.senders}, size.rounds
        )
        inside[case] = look_inside(tick, count, size.profiled)
    profiles = {}
    for thread in (watched_daemon.LOOP, WRITER):
        harness.tell(f"{NAME}: profile of {thread}")
        tick, _ = CASES[_MAIN_CASE]
        profiles[thread] = look_inside(tick, size.ticks, size.profiled, thread)
    tables = (
        _table(rounds),
        _threads_table(size, inside),
        *(_profile_table(size, thread, each) for thread, each in profiles.items()),
    )
    figures = {"rounds": rounds, "inside": inside, "profiles": profiles}
    return Result(NAME, tables, (), figures, _pictures(size, rounds))


def measure(tick: Tick, count: int, senders: int) -> Found:
    """Send so many ticks in all to a daemon of its own."""
    recorded = streams.record(tick, max(1, count // senders))
    with workspace() as space:
        before = space.daemon_cpu_s()
        seconds = streams.send(str(space.root), recorded, senders)
        used = space.stop() - before
        _check(space, recorded, senders)
    size = sum(map(len, recorded.pieces)) * senders
    return Found(recorded.ticks * senders, size, seconds, used)


def look_inside(tick: Tick, count: int, senders: int, profiled: str = "") -> Inside:
    """The same with a daemon that tells of its threads.  Args: profiled: the name of one."""
    recorded = streams.record(tick, max(1, count // senders))
    with watched_workspace(profiled) as (space, report):
        streams.send(str(space.root), recorded, senders)
        space.stop()
        _check(space, recorded, senders)
        found = json.loads(report.read_text())
    return Inside(found["threads"], found["process_s"], found["profile"])


def _check(space: Workspace, recorded: streams.Recorded, senders: int) -> None:
    for seed in range(senders):
        with h5py.File(space.log_file("run", seed)) as file:
            stored = len(file[f"seed_{seed}/stats/{recorded.statistic}"])
        if stored != recorded.ticks:
            raise RuntimeError(f"seed {seed} has {stored} ticks and not {recorded.ticks}")


# --- tables ---------------------------------------------------------------------------------------
def _rows(rounds: dict[str, list[dict[str, Found]]]) -> Iterator[tuple[Any, ...]]:
    for case, each in rounds.items():
        for senders in each[0]:
            of = [one[senders] for one in each]
            yield (
                case,
                int(senders),
                of[0].ticks,
                harness.median(f.ticks / f.published_s for f in of),
                harness.median(f.sent_bytes / f.published_s / 1e6 for f in of),
                harness.median(f.cpu_s / f.ticks * 1e6 for f in of),
                harness.median(f.cpu_s / f.sent_bytes * 1e9 for f in of),
            )


def _table(rounds: dict[str, list[dict[str, Found]]]) -> Table:
    columns = (
        *("case", "senders", "ticks", "ticks/s", "MB/s"),
        *("daemon CPU, us a tick", "ns a byte"),
    )
    title = "Recorded streams, sent as fast as the daemon takes them, until all is published"
    return Table(title, columns, tuple(_rows(rounds)))


def _threads_table(size: Size, inside: dict[str, Inside]) -> Table:
    rows = []
    for case, each in inside.items():
        used = dict(each.threads)
        used[OTHERS] = max(0.0, each.process_s - sum(used.values()))
        total = sum(used.values())
        rows += [
            (case, name, spent * 1e3, 100 * spent / total)
            for name, spent in sorted(used.items(), key=lambda item: -item[1])
            if spent >= 0.005 * total
        ]
    title = f"The daemon's threads with {size.profiled} senders, from its start to its end"
    return Table(title, ("case", "thread", "CPU, ms", "share, %"), tuple(rows))


def _profile_table(size: Size, thread: str, each: Inside) -> Table:
    total = sum(spent for _, _, spent in each.profile)
    rows = [
        (function, calls, spent * 1e3, 100 * spent / total)
        for function, calls, spent in each.profile[:_TOP]
    ]
    title = f"Functions of {thread}: {_MAIN_CASE}, {size.profiled} senders, profiled"
    columns = ("function", "calls", "own CPU, ms", "share, %")
    return Table(title, columns, tuple(rows))


def _pictures(size: Size, rounds: dict[str, list[dict[str, Found]]]) -> tuple[Picture, ...]:
    series: dict[str, list[float]] = {}
    for row in _rows(rounds):
        series.setdefault(row[0], []).append(row[3])
    return (
        Picture(
            "ticks",
            "Ticks that a daemon takes and publishes",
            "ticks/s",
            {case: tuple(values) for case, values in series.items()},
            tuple(map(float, size.senders)),
            "senders at once",
            log=True,
        ),
    )
