"""When a run's log file is opened, and under which name.

Pure.  Two live runs never write one file: the one that came later waits for the other to end, and
where that goes on it gets another name, which the journal has to have before the file is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from mle_client import layout
from mle_client import messages as m
from mle_daemon.runs import RUNNING, RunState

# A run whose file name another run has waits so long for that one to end: a trainer that was killed
# and started again comes before the daemon has noticed, at its next look at the rings.
NAME_WAIT_S: Final = 3.0


class Openings:
    """The runs that are to be opened.

    Args:
        runs: all that are not sealed, the oldest first; only the name of one is ever changed here.

    Attributes:
        leaving: nobody waits long any more, for everything is to be in log files soon.
    """

    def __init__(self, runs: Mapping[m.RunId, RunState]) -> None:
        self.leaving = False
        self._runs = runs
        self._at: dict[m.RunId, float] = {}
        self._renamed: set[m.RunId] = set()  # opened when the journal has the new name

    def want(self, run_id: m.RunId, at: float) -> None:
        """Have a run opened, not before a time."""
        self._at.pop(run_id, None)  # one that was gone and has come back is the last in line
        self._at[run_id] = at

    def next_at(self) -> float:
        """When the next run is to be looked at; infinity if none waits for time to pass."""
        if not self._at:
            return float("inf")
        writers = self._writers()
        return min(
            (self._opening_at(run, writers) for run in self._waiting()), default=float("inf")
        )

    def due(self, now: float) -> list[tuple[RunState, bool]]:
        """Look at the runs whose time has come.

        Returns:
            Those runs, and for each whether to open it now.  One that is not has just got a name
            that no other run has; the journal is to be told, and then `journaled` or
            `journal_failed`.
        """
        if not self._at:
            return []
        self._at = {run.run.run_id: self._at[run.run.run_id] for run in self._waiting()}
        due = []
        writers = self._writers()
        for run in list(self._waiting()):
            if self._opening_at(run, writers) > now:
                continue
            is_free = writers[run.path] is run
            if is_free:
                del self._at[run.run.run_id]
            else:
                self._rename(run)
                writers = self._writers()
            due.append((run, is_free))
        return due

    def journaled(self) -> None:
        """The journal has the new names."""
        self._renamed.clear()

    def journal_failed(self) -> frozenset[m.RunId]:
        """The journal does not have the new names.  Returns: the runs whose names it lacks."""
        self._renamed &= self._runs.keys()
        return frozenset(self._renamed)

    def _rename(self, run: RunState) -> None:
        taken = {other.path for other in self._runs.values()}
        run.seed_id, run.path = _free_name(run.run, taken)
        self._renamed.add(run.run.run_id)

    def _waiting(self) -> Iterable[RunState]:
        return (self._runs[run_id] for run_id in self._at if run_id in self._runs)

    def _opening_at(self, run: RunState, writers: Mapping[str, RunState]) -> float:
        """When to open a run; infinity where it waits for something to happen."""
        run_id = run.run.run_id
        if run_id in self._renamed:
            return float("inf")
        other = writers[run.path]
        if other is run:
            return self._at[run_id]
        waits_long = other.status != RUNNING and not self.leaving  # until its artifacts are stored
        return float("inf") if waits_long else self._at[run_id] + NAME_WAIT_S

    def _writers(self) -> dict[str, RunState]:
        """Of each path the run that writes its file: the one that came first."""
        writers: dict[str, RunState] = {}
        for run in self._runs.values():
            writers.setdefault(run.path, run)
        return writers


def _free_name(run: m.Run, taken: set[str]) -> tuple[str, str]:
    """A name for a seed, and its file, that is not taken."""
    number = 2
    while True:
        seed_id = f"{run.seed_id}_dup{number}"
        path = layout.log_path(run.directory, seed_id)
        if path not in taken:
            return seed_id, path
        number += 1
