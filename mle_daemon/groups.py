"""When the seeds of a configuration are merged, and what is known of each configuration.

Pure.  A *group* is the runs that log to one folder.  How many of its seeds have ended is not only
counted here: seeds may have run under earlier daemons, so the merge itself looks at the files, and
answers that there are too few.  A group is *pending* from the end of a run until a merge has looked
at it; the journal keeps that, so that a kill in between postpones the merge and does not lose it.
The merged files of a folder's configurations are for `meta_logs`.
"""

from __future__ import annotations

import posixpath
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from mle_client import layout
from mle_daemon import events as e
from mle_daemon.config import EVERY, OFF, DaemonConfig
from mle_daemon.group import SEVERAL, Group
from mle_daemon.merge_attempts import FAILED, LAST_ATTEMPTS
from mle_daemon.meta_logs import MetaLogs

# All are looked through when something has happened to a tenth of them: so it costs little.
_LOOKED_THROUGH_AFTER: Final = 10

_NEVER: Final = float("inf")


class Groups:
    """All groups that a daemon has met.

    Args:
        config: when to merge.
    """

    def __init__(self, config: DaemonConfig) -> None:
        self._config = config
        self._groups: OrderedDict[str, Group] = OrderedDict()
        self._pending: dict[str, Group] = {}
        # There may be thousands of groups, and what is due is asked in every round of the loop: so
        # only those are looked at that something has happened to, until it is time for another.
        self._touched: dict[str, None] = {}
        self._next = _NEVER  # no other one is due before that
        self._last_round: float | None = None  # of merging every so often
        self._happened = 0  # since old groups were looked for
        self._hurried = False
        self._leaving = False
        self._meta_logs = MetaLogs(config.recent_runs)

    # --- told ---------------------------------------------------------------------------------
    def began(self, directory: str, seed_id: str, expected: int | None) -> None:
        """A run of a group is here."""
        group = self._touch(directory, expected)
        group.running += 1
        group.going.add(seed_id)
        group.ended.pop(seed_id, None)  # it goes on, or is done again

    def ended(self, directory: str, seed_id: str, state: str) -> None:
        """A run of a group has ended, and its log has its final form."""
        group = self._one_less(directory)
        group.going.discard(seed_id)
        group.ended[seed_id] = state
        group.forgive()
        if seed_id == layout.NO_SEED and group.expected is None and len(group.ended) == 1:
            if self._config.merge != OFF:
                group.is_single()  # nobody spoke of seeds: there is none to wait for
                self._fall_behind(directory)
            return
        self._want(directory, group)

    def left(self, directory: str) -> None:
        """A run of a group turned out to be none."""
        group = self._one_less(directory)
        if group.settled and not (group.ended or group.outcome):
            del self._groups[directory]  # else its folder would never be complete

    def _one_less(self, directory: str) -> Group:
        group = self._touch(directory, None)
        group.running = max(0, group.running - 1)
        if not group.running:
            group.going.clear()
        self._meta_logs.change(posixpath.dirname(directory))
        return group

    def restore(self, directory: str, expected: int | None) -> None:
        """A group was pending when an earlier daemon was killed or stopped."""
        self._want(directory, self._touch(directory, expected))

    def restore_meta_log(self, folder: str) -> None:
        """That of a folder was to be written when an earlier daemon was killed or stopped."""
        if self._config.merge != OFF:
            self._meta_logs.fall_behind(folder)

    def _want(self, directory: str, group: Group) -> None:
        if self._config.merge != OFF:
            group.pending = True
            self._pending[directory] = group
            self._touched[directory] = None

    def _touch(self, directory: str, expected: int | None) -> Group:
        group = self._groups.setdefault(directory, Group())
        self._groups.move_to_end(directory)
        if expected is not None:
            group.expected = max(expected, group.expected or 0)
        group.quiet_since = None
        self._touched[directory] = None
        return group

    def _forget_old(self) -> None:
        """Keep what the status report lists of groups that nothing more is to be done for."""
        surplus = len(self._groups) - self._config.recent_runs
        if surplus <= 0 or self._happened * _LOOKED_THROUGH_AFTER < len(self._groups):
            return
        self._happened = 0
        settled = [name for name, group in self._groups.items() if group.settled]
        for name in settled[:surplus]:
            del self._groups[name]
            self._note_whether_final(name)

    # --- due ----------------------------------------------------------------------------------
    def due(self, now: float, *, leaving: bool) -> list[e.MergeGroup | e.RefreshMeta]:
        """What is to be merged now.

        Args:
            leaving: the daemon is about to leave: no further run is waited for.
        """
        if leaving and not self._leaving:
            self._try_again()
        self._leaving = leaving
        leaving = leaving or self._hurried
        self._hurried = False
        touched = list(self._touched)
        self._touched.clear()
        everything = leaving or self._next <= now
        jobs: list[e.MergeGroup | e.RefreshMeta] = []
        jobs += self._due_groups(now, leaving, list(self._pending) if everything else touched)
        if everything:
            pending = self._pending.values()
            self._next = min(
                (self._due_at(each, self._leaving) for each in pending), default=_NEVER
            )
        for directory in touched:
            self._note_whether_final(directory)
        self._happened += len(touched)
        self._forget_old()
        return jobs + self._meta_logs.due(now, leaving=leaving)

    def _try_again(self) -> None:
        """Wait no longer after failures: there are `LAST_ATTEMPTS` before the daemon leaves."""
        for group in self._pending.values():
            group.forgive()
        self._meta_logs.leaving()

    def _due_groups(
        self, now: float, leaving: bool, directories: Iterable[str]
    ) -> list[e.MergeGroup]:
        jobs = []
        for directory in directories:
            group = self._pending.get(directory)
            if group is None:
                continue
            if group.quiet_since is None:
                group.quiet_since = now
            due_at = self._due_at(group, leaving)
            if due_at > now:
                self._next = min(self._next, due_at)
                continue
            del self._pending[directory]
            group.pending = False
            group.queue()
            jobs.append(e.MergeGroup(directory, self._at_least(group), self._config.keep_seed_logs))
        if jobs:
            self._last_round = now
        return jobs

    def next_due(self) -> float:
        """When something is to be looked at; infinity if nothing is."""
        touched = [self._pending[each] for each in self._touched if each in self._pending]
        due = (self._due_at(group, self._leaving) for group in touched)
        return min(min(due, default=self._next), self._meta_logs.next_due())

    def _due_at(self, group: Group, leaving: bool) -> float:
        if group.queued:
            return _NEVER
        if self._config.merge == EVERY and not leaving:
            return max(self._round_at(), group.retry_at)
        if group.expected is not None and len(group.ended) >= group.expected:
            return group.retry_at
        if group.running:
            return _NEVER
        if group.expected is not None or leaving:
            return group.retry_at
        quiet = group.quiet_since
        return _NEVER if quiet is None else max(quiet + self._config.merge_settle_s, group.retry_at)

    def _round_at(self) -> float:
        if self._last_round is None:
            return 0.0
        return self._last_round + self._config.merge_every_s

    def _at_least(self, group: Group) -> int:
        """How many seeds must have ended for a merge."""
        if group.expected is None:
            return SEVERAL
        return 1 if self._config.merge == EVERY else group.expected

    def _note_whether_final(self, directory: str) -> None:
        """Keep which configurations of a folder have no final merged file."""
        group = self._groups.get(directory)
        self._meta_logs.note(
            posixpath.dirname(directory),
            directory,
            final=group is None or group.is_final,
            settled=group is None or group.settled,
        )

    # --- done ---------------------------------------------------------------------------------
    def begun(self, job: e.MergeGroup | e.RefreshMeta) -> None:
        """The merging process is at a job."""
        match job:
            case e.MergeGroup(directory):
                self._groups.setdefault(directory, Group()).begun = True
            case e.RefreshMeta(folder):
                self._meta_logs.begin(folder)

    def merged(self, event: e.GroupMerged) -> None:
        """A group is merged, as far as its seeds have ended."""
        group = self._looked_at(event.directory)
        group.merge_ended(event.seeds, event.states, event.why)
        self._fall_behind(event.directory)

    def not_merged(self, event: e.GroupNotMerged, now: float) -> None:
        """A group is not merged."""
        group = self._looked_at(event.directory)
        if event.gone:
            group.end("")
            if group.settled:
                del self._groups[event.directory]
        elif event.too_few:
            group.found_too_few(event.seeds, event.states)
            if group.complete:
                self._fall_behind(event.directory)
        elif event.retry:
            group.complete = False
            group.fail(event.error, now)
            self._want(event.directory, group)
        else:
            group.complete = False
            group.end(FAILED, event.error)

    def refreshed(self, event: e.MetaRefreshed, now: float) -> None:
        """A meta log is written, or cannot be."""
        self._meta_logs.refreshed(event, now)

    def _looked_at(self, directory: str) -> Group:
        self._touched[directory] = None
        self._meta_logs.change(posixpath.dirname(directory))
        return self._groups.setdefault(directory, Group())

    def _fall_behind(self, directory: str) -> None:
        folder = posixpath.dirname(directory)
        if directory != self._config.root and f"{folder}/".startswith(self._config.root + "/"):
            self._meta_logs.fall_behind(folder)

    # --- looking ------------------------------------------------------------------------------
    @property
    def at_work(self) -> bool:
        """Whether something is being merged, or is about to be."""
        return self._meta_logs.at_work or any(group.queued for group in self._groups.values())

    @property
    def at_rest(self) -> bool:
        """Whether nothing is left that could be merged now, if no further run were waited for."""
        return not (self.at_work or self._waits())

    def hurry(self) -> bool:
        """Wait for no further run in the next round.  Returns: whether that makes a difference."""
        self._hurried = self._waits()
        return self._hurried

    def _waits(self) -> bool:
        """Whether there is something to merge that waits only for more of its kind."""
        failures = LAST_ATTEMPTS if self._leaving else 1
        return self._meta_logs.rest or any(
            group.failures < failures and self._due_at(group, True) < _NEVER
            for group in self._pending.values()
        )

    def pending(self) -> dict[str, int | None]:
        """What the journal keeps of the groups that are to be merged: {directory: expected}."""
        return {
            directory: group.expected
            for directory, group in self._groups.items()
            if group.pending or group.queued
        }

    def pending_meta_logs(self) -> list[str]:
        """What the journal keeps of the meta logs that are to be written: their folders."""
        return self._meta_logs.pending()

    def undone(self) -> list[str]:
        """What could be merged, were there time for it: folders of groups, paths of meta logs."""
        groups = [
            directory
            for directory, group in self._groups.items()
            if group.queued or (group.pending and self._due_at(group, True) < _NEVER)
        ]
        return [*groups, *map(layout.meta_log_path, self._meta_logs.left())]

    def meta_log_reports(self) -> list[e.Report]:
        """The meta logs' part of a status report."""
        return self._meta_logs.reports()

    def reports(self) -> list[e.Report]:
        """The groups' part of a status report."""
        return [self._report(*each) for each in self._groups.items()]

    def _report(self, directory: str, group: Group) -> e.Report:
        states = list(group.ended.values())
        off = self._config.merge == OFF
        return {
            "directory": directory,
            "expected": group.expected,
            "running": group.running,
            "finished": states.count("finished"),
            "crashed": states.count("crashed"),
            "merged": group.merged,
            "state": OFF if off else group.state,
            "why": group.why,
        }
