"""When the seeds of a configuration are merged, and what is known of each configuration.

Pure.  A *group* is the runs that log to one folder.  How many of its seeds have ended is not only
counted here: seeds may have run under earlier daemons, so the merge itself looks at the files, and
answers that there are too few.  A group is *pending* from the end of a run until a merge has looked
at it; the journal keeps that, so that a kill in between postpones the merge and does not lose it.
"""

from __future__ import annotations

import posixpath
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from mle_client import layout
from mle_daemon import events as e
from mle_daemon.config import EVERY, OFF, DaemonConfig

# After a merge that failed for want of room, say: soon, then ever later, so as not to fill the log.
RETRY_FIRST_S: Final = 2.0
RETRY_MOST_S: Final = 60.0
# A meta log is written as a whole: one that took t seconds rests 20 t, so that configurations that
# end one after another cost a twentieth of the time, however many there are.
REFRESH_REST: Final = 20.0
# Fewer seeds than these are not worth a merge, unless they are known to be all.
_SEVERAL: Final = 2

# All are looked through when something has happened to a tenth of them: so it costs little.
_LOOKED_THROUGH_AFTER: Final = 10

_NEVER: Final = float("inf")

WAITING, MERGING, MERGED = "waiting", "merging", "merged"
INCOMPLETE, SINGLE, FAILED = "incomplete", "single", "failed"


@dataclass(slots=True)
class Group:
    """One configuration.

    Args:
        expected: how many seeds it has, None where nobody said.
        running: live runs.
        ended: {seed: state} of the runs that have ended here.
        merged: seeds in the merged file.
        pending: a run has ended that no merge has looked at.
        quiet_since: when the last run began or ended; None until the time is known.
        outcome: of the last look, one of the words above; "" before the first.
        why: what went wrong.
        failures: how often in a row something did that may go away by itself.
        retry_at: not before that time, after a failure.
    """

    expected: int | None = None
    running: int = 0
    ended: dict[str, str] = field(default_factory=dict)
    merged: int = 0
    pending: bool = False
    merging: bool = False
    quiet_since: float | None = None
    outcome: str = ""
    why: str = ""
    failures: int = 0
    retry_at: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether nothing is left that would change its merged file."""
        return not (self.running or self.pending or self.merging)

    @property
    def state(self) -> str:
        """In one word, for the status report."""
        if self.merging:
            return MERGING
        return WAITING if self.pending and self.outcome != FAILED else self.outcome or WAITING


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
        # By folder of configurations: those that have no final merged file; whether the meta log is
        # behind; of these folders the ones to look at again since something has changed in them;
        # and whether the meta log is being written.
        self._open: dict[str, set[str]] = {}
        self._behind: set[str] = set()
        self._changed: set[str] = set()
        self._refreshing: set[str] = set()
        self._refresh_from: dict[str, float] = {}  # not before that time
        self._resting: dict[str, float] = {}  # those that wait for it

    # --- told ---------------------------------------------------------------------------------
    def began(self, directory: str, seed_id: str, expected: int | None) -> None:
        """A run of a group is here."""
        group = self._touch(directory, expected)
        group.running += 1
        group.ended.pop(seed_id, None)  # it goes on, or is done again

    def ended(self, directory: str, seed_id: str, state: str) -> None:
        """A run of a group has ended, and its log has its final form."""
        group = self._one_less(directory)
        group.ended[seed_id] = state
        group.failures, group.retry_at = 0, 0.0
        if seed_id == layout.NO_SEED and group.expected is None and len(group.ended) == 1:
            if self._config.merge != OFF:
                group.outcome = SINGLE  # nobody spoke of seeds: there is none to wait for
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
        self._changed.add(posixpath.dirname(directory))
        return group

    def restore(self, directory: str, expected: int | None) -> None:
        """A group was pending when an earlier daemon was killed or stopped."""
        self._want(directory, self._touch(directory, expected))

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
        leaving = leaving or self._hurried
        self._hurried = False
        touched = list(self._touched)
        self._touched.clear()
        everything = leaving or self._next <= now
        jobs: list[e.MergeGroup | e.RefreshMeta] = []
        jobs += self._due_groups(now, leaving, list(self._pending) if everything else touched)
        if everything:
            self._next = min(
                (self._due_at(group, False) for group in self._pending.values()), default=_NEVER
            )
        for directory in touched:
            self._note_whether_final(directory)
        self._happened += len(touched)
        self._forget_old()
        return jobs + self._due_meta_logs(now, leaving)

    def _due_meta_logs(self, now: float, leaving: bool) -> list[e.RefreshMeta]:
        jobs = []
        looked_at = self._changed | self._resting.keys()
        self._changed.clear()
        for folder in sorted(looked_at & self._behind - self._refreshing):
            self._resting.pop(folder, None)
            if folder in self._open:
                continue
            if not leaving and self._refresh_from.get(folder, 0.0) > now:
                self._resting[folder] = self._refresh_from[folder]
                continue
            self._behind.discard(folder)
            self._refreshing.add(folder)
            jobs.append(e.RefreshMeta(folder))
        return jobs

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
            group.pending, group.merging, group.why = False, True, ""
            jobs.append(e.MergeGroup(directory, self._at_least(group), self._config.keep_seed_logs))
        if jobs:
            self._last_round = now
        return jobs

    def next_due(self) -> float:
        """When something is to be looked at; infinity if nothing is."""
        touched = [self._pending[each] for each in self._touched if each in self._pending]
        groups = min((self._due_at(group, False) for group in touched), default=self._next)
        return min([groups, *self._resting.values()])

    def _due_at(self, group: Group, leaving: bool) -> float:
        if group.merging:
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
            return _SEVERAL
        return 1 if self._config.merge == EVERY else group.expected

    def _note_whether_final(self, directory: str) -> None:
        """Keep which configurations of a folder have no final merged file."""
        folder, group = posixpath.dirname(directory), self._groups.get(directory)
        if group is None or (group.settled and group.outcome in (MERGED, SINGLE)):
            still_open = self._open.get(folder, set())
            still_open.discard(directory)
            if not still_open:
                self._open.pop(folder, None)
        else:
            self._open.setdefault(folder, set()).add(directory)

    # --- done ---------------------------------------------------------------------------------
    def merged(self, event: e.GroupMerged) -> None:
        """A group is merged, as far as its seeds have ended."""
        group = self._looked_at(event.directory)
        group.merged = event.seeds
        group.outcome, group.why = (FAILED if event.why else MERGED), event.why
        group.failures = 0
        self._fall_behind(event.directory)

    def not_merged(self, event: e.GroupNotMerged, now: float) -> None:
        """A group is not merged."""
        group = self._looked_at(event.directory)
        if event.gone:
            if group.settled:
                del self._groups[event.directory]
        elif event.too_few:
            group.outcome = INCOMPLETE if group.expected is not None else SINGLE
            if group.outcome == SINGLE:
                self._fall_behind(event.directory)
        else:
            group.outcome, group.why = FAILED, event.error
            if event.retry:
                group.retry_at = now + min(RETRY_MOST_S, RETRY_FIRST_S * 2.0**group.failures)
                group.failures += 1
                self._want(event.directory, group)

    def refreshed(self, event: e.MetaRefreshed, now: float) -> None:
        """A meta log is written, or cannot be: then again when something changes."""
        self._refreshing.discard(event.folder)
        self._refresh_from[event.folder] = now + REFRESH_REST * event.took
        if event.error:
            self._behind.add(event.folder)
        else:
            self._changed.add(event.folder)  # something may have been merged meanwhile

    def _looked_at(self, directory: str) -> Group:
        group = self._groups.setdefault(directory, Group())
        group.merging = False
        self._touched[directory] = None
        self._changed.add(posixpath.dirname(directory))
        return group

    def _fall_behind(self, directory: str) -> None:
        folder = posixpath.dirname(directory)
        if directory != self._config.root and f"{folder}/".startswith(self._config.root + "/"):
            self._behind.add(folder)

    # --- looking ------------------------------------------------------------------------------
    @property
    def at_work(self) -> bool:
        """Whether something is being merged, or is about to be."""
        return (
            bool(self._refreshing)
            or bool(self._changed & self._behind)
            or any(group.merging for group in self._groups.values())
        )

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
        return bool(self._resting) or any(map(self._could_be_merged, self._pending.values()))

    def _could_be_merged(self, group: Group) -> bool:
        return not group.failures and self._due_at(group, True) < _NEVER

    def pending(self) -> dict[str, int | None]:
        """What the journal keeps of the groups that are to be merged: {directory: expected}."""
        return {
            directory: group.expected
            for directory, group in self._groups.items()
            if group.pending or group.merging or posixpath.dirname(directory) in self._refreshing
        }

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
