"""What is done with log files: opened, published, sealed, and the run forgotten.

Pure.  Decides which run's file is next and takes in what came of it; when it is due by its age and
size is decided in `schedule`, and the work is done by the writer thread.
"""

from __future__ import annotations

from typing import Final

from mle_client import layout
from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon import limits, state
from mle_daemon.agenda import NEVER
from mle_daemon.artifact_flow import ArtifactFlow
from mle_daemon.columns import FileState
from mle_daemon.config import DaemonConfig
from mle_daemon.openings import Openings
from mle_daemon.outbox import Outbox
from mle_daemon.registry import CLOSED, Registry, saved_ends
from mle_daemon.runs import RUNNING, RunState, Waiter
from mle_daemon.schedule import publish_at
from mle_daemon.waiters import Waiters

RETRY_OPEN_S: Final = 2.0
# Publications that nobody waits for, handed over at a time: one that is written, and the next.
# What somebody waits for comes behind these, and not behind those of a thousand runs.
_ROUTINE_AT_ONCE: Final = 2


class Publisher:
    """The files of all runs.

    Args:
        config: when to publish.
        registry: of the runs.
        openings: of those that are not open.
        artifacts: of all of them, stored in between.
        outbox: takes jobs and answers.
    """

    def __init__(
        self,
        config: DaemonConfig,
        registry: Registry,
        openings: Openings,
        artifacts: ArtifactFlow,
        outbox: Outbox,
    ) -> None:
        self._config = config
        self._registry = registry
        self._openings = openings
        self._artifacts = artifacts
        self._out = outbox
        self._waiters = Waiters()
        self._agenda = registry.agenda
        self._through: set[m.RunId] = set()  # forgotten when the journal says so
        self._looked_at: list[m.RunId] = []  # in this round
        self._routine: dict[m.RunId, None] = {}  # due, while nobody waits for them
        self._under_way: set[m.RunId] = set()  # of those

    # --- asked --------------------------------------------------------------------------------
    def want(self, waiter: Waiter, path: str) -> None:
        """Let a reader wait for what the journal has by now of the runs at or below a path."""
        wanted = {}
        for run_id, run in self._registry.runs.items():
            if _is_under(run, path):
                wanted[run_id] = self._registry.positions(run)
                self._agenda.touch(run_id)
                run.wanted_now = run.wanted_now or run.dirty
        if not self._waiters.add(waiter, wanted):
            self._out.answer([waiter], limits.TOO_MANY_READERS)

    def want_everything(self) -> None:
        """Have every run published at once."""
        self._agenda.touch(*self._registry.runs)
        for run in self._registry.runs.values():
            run.wanted_now = True

    def leave(self) -> None:
        """Have everything published at once, whoever waits for what."""
        self._openings.leaving = True
        self.want_everything()

    # --- due ----------------------------------------------------------------------------------
    def next_due(self) -> float:
        """When the next file is due; infinity if none is."""
        return min(self._agenda.next_at(), self._openings.next_at())

    def begin_due(self, now: float) -> None:
        """Have done what is due."""
        self._open_due(now)
        runs = self._registry.runs
        self._looked_at = [run_id for run_id in self._agenda.take(now) if run_id in runs]
        for run_id in self._looked_at:
            self._registry.reckon(runs[run_id])
        if self._registry.held_bytes >= self._config.tail_limit_bytes:
            self._make_room()
        for run_id in self._looked_at:
            run = runs[run_id]
            self._begin_due_of(run_id, run, now)
            self._agenda.put_off(run_id, self._due_at(run_id, run))
        while self._routine and len(self._under_way) < _ROUTINE_AT_ONCE:
            self._begin_routine()

    def _begin_due_of(self, run_id: m.RunId, run: RunState, now: float) -> None:
        if run.opened:
            self._out.extend(self._artifacts.due(run, now))
        if not _is_at_rest(run):
            return
        due = run.due()
        is_due = run.dirty and publish_at(due, self._config) <= now
        if is_due and not due.wanted_now:
            self._routine.setdefault(run_id)  # its turn does not change when more comes
            return
        self._routine.pop(run_id, None)
        if is_due:
            self._out.add(run.begin_publication())
        elif run.complete:
            self._finish(run_id, run, now)

    def _begin_routine(self) -> None:
        """Publish the run that has been due for longest while nobody waits for it."""
        run_id = next(iter(self._routine))
        del self._routine[run_id]
        run = self._registry.runs.get(run_id)
        if run is None or not (_is_at_rest(run) and run.dirty):
            return
        self._under_way.add(run_id)
        self._out.add(run.begin_publication())

    def _due_at(self, run_id: m.RunId, run: RunState) -> float:
        """When a run is to be looked at again though nothing happens to it."""
        if not run.opened:
            return NEVER
        is_dirty = _is_at_rest(run) and run.dirty and run_id not in self._routine
        publication_at = publish_at(run.due(), self._config) if is_dirty else NEVER
        return min(publication_at, run.artifacts.next_retry())

    def answer_waiters(self) -> None:
        """Tell those whose wait is over, behind `begin_due`."""
        self._out.answer(self._waiters.served(self._registry.runs, self._looked_at))

    @property
    def is_done(self) -> bool:
        """Whether every file has all there is, and no run is about to be sealed.

        One that waits for an artifact is not about to be: the next daemon goes on waiting.  But
        what a process that is gone has left in memory is taken from there first.
        """
        return not any(
            run.dirty
            or run.publishing
            or run.sealing
            or run.artifacts.storing
            or run.artifacts.comes
            or (run.status != RUNNING and not run.artifacts.pending)
            for run in self._registry.runs.values()
        )

    def _open_due(self, now: float) -> None:
        """Open the runs whose file nobody else writes; journal the new names of the others."""
        for run, is_free in self._openings.due(now):
            if is_free:
                saves = run.artifacts.kept.portfolio.saves
                retained = run.artifacts.protected
                self._out.add(e.OpenRun(run.run, run.seed_id, run.path, saves, retained))
            else:
                self._append(self._registry.saved_runs([run.run.run_id]))

    def _make_room(self) -> None:
        """Publish what takes most memory and can be."""
        ready = [run for run in self._registry.runs.values() if run.tail and _is_at_rest(run)]
        if ready:
            largest = max(ready, key=lambda run: run.held_bytes)
            largest.wanted_now = True
            if largest.run.run_id not in self._looked_at:
                self._looked_at.append(largest.run.run_id)

    def _finish(self, run_id: m.RunId, run: RunState, now: float) -> None:
        """Seal a run, note in the journal that it is through, and forget it."""
        if run.file is not None and not run.sealed:
            run.sealing = True
            self._out.add(e.SealRun(run_id, run.path, run.file))
        elif run.noted:
            self._retire(run_id, now)
        elif run_id not in self._through:
            # Else the next daemon would bring back a file that somebody has moved or replaced.
            self._through.add(run_id)
            ends = (self._registry.streams[p] for p in run.members)
            # Else a kill before the merge would postpone it until another seed ends.
            group = (run.run.directory, run.run.num_seeds)
            self._append(saved_ends(ends, [group]))

    def _retire(self, run_id: m.RunId, now: float) -> None:
        """Forget a run, and answer who still waits for it."""
        run = self._registry.retire(run_id, now)
        self._out.log("info", f"{run.path} is complete: {run.status}")
        self._out.answer(run.served())
        self._out.answer((waiter for waiter, _ in run.waiters), CLOSED)

    def _append(self, saved: state.Saved) -> None:
        self._out.append(state.encode(saved))

    # --- journaled ----------------------------------------------------------------------------
    def journaled(self) -> None:
        """The journal has what was appended: new names, and which runs are through."""
        self._openings.journaled()
        for run_id in self._through & self._registry.runs.keys():
            run = self._registry.runs[run_id]
            run.noted = run.complete
            self._agenda.touch(run_id)
        self._through.clear()

    def journal_failed(self) -> None:
        """The journal lacks it: ask again for the names, and for the rest when it is due again."""
        self._agenda.touch(*self._through)
        self._through.clear()
        if renamed := self._openings.journal_failed():
            self._append(self._registry.saved_runs(renamed))

    # --- done ---------------------------------------------------------------------------------
    def opened(self, run_id: m.RunId, file: FileState | None, note: str, now: float) -> None:
        """A run's folder is ready.  Args: as of `events.RunOpened`."""
        run = self._run(run_id)
        run.opened_with(file, now)
        run.error = ""
        if note:
            self._out.notice(run, note)
        if run.seed_id != run.run.seed_id:
            self._out.notice(
                run,
                f"another live logger writes {run.run.seed_id!r} in {run.run.directory}: "
                f"this one is stored as {run.seed_id!r}",
            )
            self._out.tell(run, lambda producer: m.Renamed(producer, run.seed_id))

    def not_opened(self, run_id: m.RunId, error: str, final: bool, now: float) -> None:
        """A run's folder cannot be used.  Args: as of `events.RunNotOpened`."""
        run = self._run(run_id)
        self._failed(run, error)
        run.error = error
        if final:
            self._out.tell(run, lambda producer: m.Refused(producer, error))
            self._retire(run_id, now)
        else:
            self._openings.want(run_id, now + RETRY_OPEN_S)

    def published(self, event: e.Published, now: float) -> None:
        """A publication has ended well."""
        self._under_way.discard(event.run_id)
        run = self._run(event.run_id)
        run.published(event.file, event.cost, now)
        for problem in event.problems:
            self._out.notice(run, problem)
        for producer, member in run.members.items():
            if member.client is not None:
                stream = self._registry.streams[producer]
                self._out.acknowledge(member.client, stream, member.published)

    def publish_failed(self, event: e.PublishFailed, now: float) -> None:
        """A publication has failed."""
        self._under_way.discard(event.run_id)
        run = self._run(event.run_id)
        self._failed(run, event.error)
        run.publication_failed(event.error, now)
        if event.removed and run.may_go_without_log:
            self._out.log("info", f"{run.path} was removed, and there is nothing new for it")
            run.go_without_log()
        elif event.reopen:
            run.opened = False
            self._openings.want(event.run_id, now)

    def sealed(self, run_id: m.RunId, file: FileState, error: str) -> None:
        """A run's file is sealed, or keeps the form it has.  Args: as of `events.Sealed`."""
        run = self._run(run_id)
        run.sealing, run.sealed = False, True
        run.file = file
        if error:
            self._out.log("warning", f"{run.path} keeps its uncompressed form: {error}")

    def _run(self, run_id: m.RunId) -> RunState:
        """A run to which something has happened."""
        self._agenda.touch(run_id)
        return self._registry.runs[run_id]

    def _failed(self, run: RunState, error: str) -> None:
        """Say what is wrong with a run's file, once, and to all who wait for it."""
        if run.error != error:
            self._out.notice(run, error)
        self._out.answer(self._waiters.failed(run), error)


def _is_at_rest(run: RunState) -> bool:
    """Whether a run's file is open and no job on it is under way."""
    return run.opened and not run.publishing and not run.sealing


def _is_under(run: RunState, path: str) -> bool:
    """Whether a run's file, its merged file, or what it saved is at a path or below.

    It saves under names of which a few are not known here, into folders that are.
    """
    folder, directory = path.rstrip("/") + "/", run.run.directory
    return (
        path in (run.path, layout.merged_log_path(directory))
        or run.path.startswith(folder)
        or any(
            folder.startswith(f"{directory}/{name}/")
            for name in (layout.MODELS_DIR, layout.FIGURES_DIR, layout.EXTRA_DIR)
        )
    )
