"""Who waits for what to be in a log file.

Pure.  A `flush()` waits for one run, which keeps its waiters itself (`runs`); a reader waits for
all that lies below a path, and is kept here.  Says whose wait is over; does not answer them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from mle_client import messages as m
from mle_daemon import limits
from mle_daemon.runs import RunState, Waiter

Positions: TypeAlias = Mapping[m.ProducerId, int]
Runs: TypeAlias = Mapping[m.RunId, RunState]


class Waiters:
    """Those who wait for files of several runs."""

    def __init__(self) -> None:
        self._readers: list[tuple[Waiter, Mapping[m.RunId, Positions]]] = []

    def add(self, waiter: Waiter, wanted: Mapping[m.RunId, Positions]) -> bool:
        """Let a reader wait, unless there are too many.

        Args:
            wanted: what the file of each run is to have.

        Returns:
            Whether it waits.
        """
        awaited = sum(len(each) for _, each in self._readers) + len(wanted)
        if len(self._readers) >= limits.MAX_READERS or awaited > limits.MAX_AWAITED_RUNS:
            return False
        self._readers.append((waiter, wanted))
        return True

    def served(self, runs: Runs, looked_at: Iterable[m.RunId]) -> list[Waiter]:
        """The waiters whose files have what they wait for; they are forgotten.

        Args:
            looked_at: the runs to which something has happened.
        """
        changed = [runs[run_id] for run_id in looked_at if run_id in runs]
        served = [waiter for run in changed for waiter in run.served()]
        waiting = []
        for waiter, wanted in self._readers:
            if all(_has(runs.get(run_id), positions) for run_id, positions in wanted.items()):
                served.append(waiter)
            else:
                waiting.append((waiter, wanted))
        self._readers = waiting
        return served

    def failed(self, run: RunState) -> list[Waiter]:
        """All who wait for a run's file, which will not come now; they are forgotten."""
        failed = [waiter for waiter, _ in run.waiters]
        run.waiters = []
        waiting = []
        for waiter, wanted in self._readers:
            if run.run.run_id in wanted:
                failed.append(waiter)
            else:
                waiting.append((waiter, wanted))
        self._readers = waiting
        return failed


def _has(run: RunState | None, positions: Positions) -> bool:
    """Whether a run has stored its streams up to these positions, and what was saved in them.

    A run that is gone has all.
    """
    return run is None or (
        all(member.published >= at for p, at in positions.items() if (member := run.members.get(p)))
        and not run.artifacts.waits(positions, figures=False)
    )
