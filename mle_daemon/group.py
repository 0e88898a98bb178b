"""What is known of one configuration: its seeds, and what came of merging them.

Pure.  When they are merged is decided in `groups`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mle_daemon.merge_attempts import FAILED, MERGED, Attempts

# Fewer seeds than these are not worth a merge, unless they are known to be all.
SEVERAL: Final = 2

INCOMPLETE, SINGLE = "incomplete", "single"  # outcomes, besides those of `merge_attempts`
_APART: Final = (
    "seeds are merged under another name than log.hdf5, and not all: `merge_seed_logs` merges them"
)


@dataclass(slots=True)
class Group(Attempts):
    """One configuration.

    Args:
        expected: how many seeds it has, None where nobody said.
        running: live runs.
        going: seeds of live runs; fewer than those where two runs have one name.
        ended: {seed: state} of those that have ended, here or as their logs say.
        merged: seeds in merged files.
        pending: a run has ended that no merge has looked at.
        complete: no further seed is to be merged, as the last look has found.
        quiet_since: when the last run began or ended; None until the time is known.
    """

    expected: int | None = None
    running: int = 0
    going: set[str] = field(default_factory=set)
    ended: dict[str, str] = field(default_factory=dict)
    merged: int = 0
    pending: bool = False
    complete: bool = False
    quiet_since: float | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing is left that would change its merged file."""
        return not (self.running or self.pending or self.queued)

    @property
    def is_final(self) -> bool:
        """Whether its logs are what they will be, unless another seed begins."""
        return self.settled and self.complete

    @property
    def state(self) -> str:
        """In one word, for the status report."""
        return self.word(waits=self.pending or self.running > 0)

    def is_single(self) -> None:
        """There is nothing to merge: it has one run."""
        self.complete = True
        self.end(SINGLE)

    def merge_ended(self, seeds: int, states: Mapping[str, str], why: str) -> None:
        """Those that have ended are merged.  Args: as of `events.GroupMerged`."""
        self._see(seeds, states)
        self.complete = not why and len(self.ended) >= (self.expected or 0)
        if why:
            self.end(FAILED, why)
        else:
            self.end(MERGED if self.complete else INCOMPLETE)

    def found_too_few(self, seeds: int, states: Mapping[str, str]) -> None:
        """There was nothing to merge, or not yet.  Args: as of `events.GroupMerged`."""
        self._see(seeds, states)
        if len(states) < (self.expected or SEVERAL):
            self.complete = self.expected is None
            self.end(SINGLE if self.complete else INCOMPLETE)
            return
        self.complete = True  # under another name, at least in part: that is for the user
        if seeds >= len(states):
            self.end(MERGED)
        else:
            self.end(INCOMPLETE, _APART)

    def _see(self, seeds: int, states: Mapping[str, str]) -> None:
        """Take over what a merge has found."""
        self.ended |= {seed: state for seed, state in states.items() if seed not in self.going}
        self.merged = seeds
