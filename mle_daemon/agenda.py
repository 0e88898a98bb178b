"""Which runs to look at in a round: those that an event has touched, and those whose time has come.

Pure.  There may be a thousand runs, and a round for every message: looking at all of them each time
would make what one run costs grow with the number of the others.  It does not know what is looked
for, nor what a run is.
"""

from __future__ import annotations

import heapq
from typing import Final

from mle_client import messages as m

NEVER: Final = float("inf")


class Agenda:
    """The runs that are to be looked at, by id."""

    def __init__(self) -> None:
        self._touched: dict[m.RunId, None] = {}  # in the order of the events
        self._at: dict[m.RunId, float] = {}
        # Times that were put off or brought forward stay in it until they have passed.
        self._times: list[tuple[float, m.RunId]] = []

    def touch(self, *run_ids: m.RunId) -> None:
        """Something has happened to runs: look at them in this round."""
        self._touched.update(dict.fromkeys(run_ids))

    def put_off(self, run_id: m.RunId, at: float) -> None:
        """A run was looked at, and is to be looked at again at a time unless it is touched before.

        Args:
            at: seconds of the clock that `take` is asked by; infinity for not at all.
        """
        known = self._at.get(run_id, NEVER)
        if at == NEVER:
            self._at.pop(run_id, None)
        elif at != known:
            self._at[run_id] = at
            heapq.heappush(self._times, (at, run_id))

    def take(self, now: float) -> list[m.RunId]:
        """The runs to look at now; each is to be put off."""
        while self._times and self._times[0][0] <= now:
            at, run_id = heapq.heappop(self._times)
            if self._at.get(run_id) == at:
                del self._at[run_id]
                self._touched[run_id] = None
        taken = list(self._touched)
        self._touched.clear()
        return taken

    def next_at(self) -> float:
        """When the next run is to be looked at, whatever happens; infinity if none is."""
        if self._touched:
            return 0.0
        while self._times and self._at.get(self._times[0][1]) != self._times[0][0]:
            heapq.heappop(self._times)
        return self._times[0][0] if self._times else NEVER
