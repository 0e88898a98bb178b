"""The thread that brings the journal to disk, a little after each append.

One sync covers all that was appended since the last one, and nobody waits for it who did not ask.
It decides nothing: what came of a sync goes to a callback.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from mle_daemon.journal import Journal, JournalPosition

SYNC_INTERVAL_S: Final = 0.2  # what a power cut may take; a shorter one costs throughput

Report: TypeAlias = Callable[[JournalPosition, Exception | None], None]


class GroupSync:
    """Syncs a journal in a thread of its own.

    Args:
        journal: to sync; close it after `stop`.
        report: called in the thread after every sync with the position up to which all is on disk,
            and None or why it is not all.
        interval_s: seconds between two syncs, unless one is asked for.
    """

    def __init__(
        self, journal: Journal, report: Report, interval_s: float = SYNC_INTERVAL_S
    ) -> None:
        self._journal = journal
        self._report = report
        self._interval_s = interval_s
        self._changed = threading.Condition()  # of what follows
        self._asked = False
        self._stopping = False
        self._failures = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
        self._thread.start()

    def sync_now(self, timeout: float) -> bool:
        """Wait until all that was appended before this call is on disk.

        Args:
            timeout: in seconds.

        Returns:
            Whether it is.  False at once if the sync failed or the thread was stopped.
        """
        target = self._journal.end
        with self._changed:
            failures = self._failures
            self._asked = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._journal.synced >= target or self._failures != failures or self._ended,
                timeout,
            )
        return self._journal.synced >= target

    def stop(self, timeout: float | None = None) -> bool:
        """Sync a last time and end the thread.

        Args:
            timeout: in seconds; None to wait as long as the disk needs.

        Returns:
            Whether it has ended; a stalled disk can keep it.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        last = False
        while not last:
            with self._changed:
                self._changed.wait_for(lambda: self._asked or self._stopping, self._interval_s)
                asked, last = self._asked, self._stopping
                self._asked = False
            error = self._sync_once() if asked or self._journal.dirty else None
            with self._changed:
                self._failures += error is not None
                self._ended = last
                self._changed.notify_all()

    def _sync_once(self) -> Exception | None:
        """Sync and report.  Whatever goes wrong, the thread goes on."""
        error: Exception | None = None
        try:
            self._journal.sync()
        except Exception as caught:
            error = caught
        try:
            self._report(self._journal.synced, error)
        except Exception:
            logging.getLogger(__name__).exception("the report of a journal sync failed")
        return error
