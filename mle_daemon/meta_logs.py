"""When the meta log of a folder of configurations is written, and what is known of each.

Pure.  It is *behind* from the moment that one of the configurations is merged until it is written;
the journal keeps that, so that a kill postpones it.  It is written when no configuration of the
folder is *open*: every one has its final merged file.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from mle_daemon import events as e
from mle_daemon.merge_attempts import FAILED, LAST_ATTEMPTS, MERGED, Attempts

# A meta log is written as a whole: one that took t seconds rests 20 t, so that configurations that
# end one after another cost a twentieth of the time, however many there are.
REFRESH_REST: Final = 20.0


@dataclass(slots=True)
class MetaLog(Attempts):
    """That of one folder.

    Args:
        behind: a configuration is merged that it may lack.
        given_up: it could not be written, and what keeps it from that does not go away by itself.
        rests_until: not before that time, since writing it takes long.
    """

    behind: bool = False
    given_up: bool = False
    rests_until: float = 0.0


class MetaLogs:
    """Those of all folders that a daemon has met.

    Args:
        recent: how many are remembered of which nothing more is to be done.
    """

    def __init__(self, recent: int) -> None:
        self._recent = recent
        self._logs: OrderedDict[str, MetaLog] = OrderedDict()
        # By folder: the configurations that are, and whether they are at rest all the same.
        self._open: dict[str, dict[str, bool]] = {}
        self._changed: set[str] = set()  # folders to look at again
        self._resting: dict[str, float] = {}  # folders to look at again at a time
        self._failures = 1  # in a row, after which no daemon stays for one

    # --- told ---------------------------------------------------------------------------------
    def fall_behind(self, folder: str) -> None:
        """A configuration of a folder is merged, or needs no merge."""
        log = self._logs.setdefault(folder, MetaLog())
        self._logs.move_to_end(folder)
        log.behind = True
        self.change(folder)

    def change(self, folder: str) -> None:
        """Something has happened in a folder: whoever waits for that may be written."""
        self._changed.add(folder)
        if folder in self._logs:
            self._logs[folder].given_up = False

    def note(self, folder: str, configuration: str, *, final: bool, settled: bool = True) -> None:
        """Say whether a configuration of a folder has its final merged file.

        Args:
            settled: nothing is to be done for it, unless something happens: the next daemon will
                not know of it.
        """
        if not final:
            self._open.setdefault(folder, {})[configuration] = settled
        elif folder in self._open:
            self._open[folder].pop(configuration, None)
            if not self._open[folder]:
                del self._open[folder]

    def begin(self, folder: str) -> None:
        """The merging process writes one."""
        self._logs.setdefault(folder, MetaLog()).begun = True

    def refreshed(self, event: e.MetaRefreshed, now: float) -> None:
        """One is written, or cannot be: then later, or again when something changes."""
        log = self._logs.setdefault(event.folder, MetaLog())
        rests_until = now + REFRESH_REST * event.took
        if event.error and event.retry:
            log.behind = True
            log.fail(event.error, now)
            self._resting[event.folder] = log.retry_at
            return
        log.rests_until = rests_until
        if event.error:
            log.given_up = not log.behind  # else something has been merged meanwhile
            log.behind = True
        log.end(FAILED if event.error or event.why else MERGED, event.error or event.why)
        if not log.given_up:
            self._changed.add(event.folder)

    def leaving(self) -> None:
        """The daemon is about to leave: what failed is tried again before."""
        self._failures = LAST_ATTEMPTS
        for folder in self._resting:
            self._logs[folder].forgive()

    # --- due ----------------------------------------------------------------------------------
    def due(self, now: float, *, leaving: bool) -> list[e.RefreshMeta]:
        """Those to be written now.  Args: leaving: none rests."""
        jobs = []
        looked_at = self._changed | self._resting.keys()
        self._changed.clear()
        for folder in sorted(looked_at):
            self._resting.pop(folder, None)
            log = self._logs.get(folder)
            if log is None or not log.behind or log.queued or folder in self._open:
                continue
            until = log.retry_at if leaving else max(log.retry_at, log.rests_until)
            if until > now:
                self._resting[folder] = until
                continue
            log.behind = False
            log.queue()
            jobs.append(e.RefreshMeta(folder))
        if looked_at:
            self._forget_old()
        return jobs

    def next_due(self) -> float:
        """When one is to be looked at; infinity if none is."""
        return min(self._resting.values(), default=float("inf"))

    def _forget_old(self) -> None:
        surplus = len(self._logs) - self._recent
        if surplus > 0:
            done = [name for name, log in self._logs.items() if not (log.queued or log.behind)]
            for name in done[:surplus]:
                del self._logs[name]

    # --- looking ------------------------------------------------------------------------------
    @property
    def at_work(self) -> bool:
        """Whether one is being written, or is about to be."""
        return any(log.queued for log in self._logs.values()) or any(
            folder in self._logs and self._logs[folder].behind for folder in self._changed
        )

    @property
    def rest(self) -> bool:
        """Whether one would be written now if it did not rest."""
        return any(self._logs[folder].failures < self._failures for folder in self._resting)

    def pending(self) -> list[str]:
        """What the journal keeps: the folders of those that are to be written.

        One that waits for a configuration of which seeds are missing falls behind again when they
        have come; the next daemon, which does not know of it, is not to write it before.
        """
        return [
            folder
            for folder, log in self._logs.items()
            if log.queued
            or (log.behind and not log.given_up and not any(self._open.get(folder, {}).values()))
        ]

    def left(self) -> list[str]:
        """The folders of those that are to be written and wait for no configuration."""
        return [folder for folder in self.pending() if folder not in self._open]

    def reports(self) -> list[e.Report]:
        """Their part of a status report."""
        return [
            {"directory": folder, "state": log.word(waits=log.behind), "why": log.why}
            for folder, log in self._logs.items()
        ]
