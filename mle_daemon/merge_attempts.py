"""Attempts to merge something: what came of the last one, and when there is to be another.

Pure.  What a group of seeds and a meta log have in common.  Whether there is anything to merge is
for `groups` and `meta_logs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# After a merge that failed for want of room, say: soon, then ever later, so as not to fill the log.
RETRY_FIRST_S: Final = 2.0
RETRY_MOST_S: Final = 60.0
# Failed attempts after which a daemon that was asked to leave does so.  What is in the way of the
# first is often gone by the second: a killed daemon's merging process still ends its work.
LAST_ATTEMPTS: Final = 2

WAITING, MERGING, MERGED, FAILED = "waiting", "merging", "merged", "failed"


@dataclass(slots=True)
class Attempts:
    """Those to merge one thing.

    Args:
        queued: the merging process is to do it, or is at it.
        begun: it is at it.
        outcome: of the last one, in a word of the status report; "" before the first.
        why: what went wrong.
        failures: how often in a row something did that may go away by itself.
        retry_at: not before that time, after such a failure.
    """

    queued: bool = False
    begun: bool = False
    outcome: str = ""
    why: str = ""
    failures: int = 0
    retry_at: float = 0.0

    def queue(self) -> None:
        """The merging process is to do it."""
        self.queued, self.begun, self.why = True, False, ""

    def end(self, outcome: str, why: str = "") -> None:
        """An attempt has ended, and there is no other one before something changes."""
        self.queued = self.begun = False
        self.outcome, self.why = outcome, why
        self.forgive()

    def fail(self, why: str, now: float) -> None:
        """An attempt has failed, for a reason that may go away by itself."""
        failures = self.failures
        self.end(FAILED, why)
        self.retry_at = now + min(RETRY_MOST_S, RETRY_FIRST_S * 2.0**failures)
        self.failures = failures + 1

    def forgive(self) -> None:
        """Let the next attempt be made at once."""
        self.failures, self.retry_at = 0, 0.0

    def word(self, *, waits: bool) -> str:
        """The present state, for the status report.  Args: waits: there is something to merge."""
        if self.begun:
            return MERGING
        if self.queued or (waits and self.outcome != FAILED):
            return WAITING
        return self.outcome or WAITING
