"""The daemon's brain: every decision, and nothing that touches the world.

Pure: `core.handle(event, now)` returns instructions; `daemon` carries them out and delivers what
comes of them as the next events.  The order of a tick's life is kept by the parts that events are
handed to here: received, journaled, acknowledged (`intake`), published (`publisher`); a journal
segment goes only when all it holds is in synced log files (`journal_segments`).

Records in the journal are either a client's `Data` message as it came, or a *state* record: a
msgpack array ["state", {...}] with all that is known of the unfinished runs but their ticks.  Every
segment begins with one, so that older segments can go.
"""

from __future__ import annotations

import posixpath
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon import limits, state
from mle_daemon.artifact_flow import ArtifactFlow
from mle_daemon.config import DaemonConfig
from mle_daemon.groups import Groups
from mle_daemon.intake import Intake
from mle_daemon.journal_segments import Segments
from mle_daemon.openings import Openings
from mle_daemon.outbox import Outbox
from mle_daemon.publisher import Publisher
from mle_daemon.registry import Registry
from mle_daemon.replay import Replay
from mle_daemon.runs import RunState, Waiter

_NAMED: Final = 5  # merges that are left; the others are counted


class Core:
    """All that the daemon knows.

    Args:
        config: of the daemon.
        daemon_id: new for each process; tells clients that they talk to another one.
    """

    def __init__(self, config: DaemonConfig, daemon_id: str) -> None:
        self.config = config
        self.daemon_id = daemon_id
        self.artifacts_address = ""  # where clients send them
        self.stopping: e.StopAsked | None = None
        self._groups = Groups(config)
        self._registry = Registry(config.recent_runs, self._groups)
        self._segments = Segments()
        self._out = Outbox()
        openings = Openings(self._registry.runs)
        self._artifacts = ArtifactFlow(self._registry.run_of)
        self._intake = Intake(
            config.root, self._registry, self._segments, openings, self._artifacts, self._out
        )
        self._publisher = Publisher(config, self._registry, openings, self._artifacts, self._out)
        self._replay = Replay(
            self._registry, openings, self._intake, self._artifacts, self._groups, self._out
        )
        self._stop_waiters: list[Waiter] = []
        self._heard: dict[e.Client, float] = {}
        self._reported: OrderedDict[e.Client, int] = OrderedDict()  # how often
        self._replaying = True
        self._left = False

    def handle(self, event: e.Event, now: float) -> list[e.Instruction]:
        """Take in an event.  Args: now: seconds of a monotonic clock."""
        match event:
            case e.Received(client, message):
                self._received(client, message, now)
            case e.Journaled(segment):
                # First: what is noted because of a piece that is counted on now is not journaled.
                self._out.extend(self._artifacts.journaled())
                self._intake.journaled(segment, now)
                self._publisher.journaled()
                self._intake.resume_flushes()
            case e.JournalFailed(error):
                self._intake.journal_failed(error, now)
                self._publisher.journal_failed()
                self._out.extend(self._artifacts.journal_failed())
            case e.Replayed(segment, record):
                self._replay.take(segment, record, now)
            case e.Recovered():
                self._replaying = False
            case e.RunOpened(run_id, file, note):
                self._publisher.opened(run_id, file, note, now)
            case e.RunNotOpened(run_id, error, final):
                self._publisher.not_opened(run_id, error, final, now)
            case e.Published():
                self._publisher.published(event, now)
            case e.PublishFailed():
                self._publisher.publish_failed(event, now)
            case e.Sealed(run_id, file, error):
                self._publisher.sealed(run_id, file, error)
            case e.Problem(run_id, text):
                if run_id in self.runs:
                    self._out.notice(self.runs[run_id], text)
                else:
                    self._out.log("warning", f"run {run_id.hex()}: {text}")
            case e.ProducerGone(producer, left):
                if run := self._registry.run_of(producer):
                    run.gone(producer)
                    self._out.extend(self._artifacts.gone(run, producer, left))
            case e.Arrived():
                self._out.extend(self._artifacts.arrived(event))
            case e.NotArrived():
                self._out.extend(self._artifacts.not_arrived(event, now))
            case e.ArtifactStored():
                self._out.extend(self._artifacts.stored(event))
            case e.ArtifactNotStored():
                self._out.extend(self._artifacts.not_stored(event, now))
            case e.MergeBegun(job):
                self._groups.begun(job)
            case e.GroupMerged():
                self._groups.merged(event)
                self._out.log("info", f"{event.directory}: {event.seeds} seeds are merged")
                if event.why:
                    self._out.log("warning", f"{event.directory}: left out: {event.why}")
            case e.GroupNotMerged():
                self._groups.not_merged(event, now)
                if not (event.too_few or event.gone):
                    self._out.log("warning", f"not merged: {event.error}")
            case e.MetaRefreshed(folder, error):
                self._groups.refreshed(event, now)
                if error:
                    self._out.log("warning", f"the meta log is not refreshed: {error}")
                elif event.why:
                    self._out.log("warning", f"the meta log of {folder}: left out: {event.why}")
            case e.RingsSeen(producers):
                self._rings_seen(producers)
            case e.PublishEverything():
                self._publisher.want_everything()
            case e.StopAsked():
                self._stop_asked(event)
            case e.PatienceEnded():
                if self.stopping is not None and self.is_written:
                    self._leave(self.stopping)
            case e.Tick():
                pass
        # Once a round, not for each of its thousand messages; not before the first round, for until
        # then there is nobody to carry out what is decided.
        is_round = not isinstance(event, e.Received | e.Recovered)
        if is_round and not self._replaying and not self._intake.staged:
            self._schedule(now)
        return self._out.take()

    # --- looking ------------------------------------------------------------------------------
    @property
    def runs(self) -> dict[m.RunId, RunState]:
        """The runs that are not sealed."""
        return self._registry.runs

    @property
    def recent(self) -> OrderedDict[m.RunId, e.Report]:
        """The last report of runs that are."""
        return self._registry.recent

    @property
    def degraded(self) -> str:
        """Why the journal cannot be written; "" if it can."""
        return self._intake.degraded

    def troubles(self) -> list[str]:
        """What keeps ticks and artifacts from the disk now, the journal's trouble first."""
        found = [self.degraded] if self.degraded else []
        for run in self.runs.values():
            if run.error:
                found.append(f"{run.path}: {run.error}")
            if run.artifacts.error:
                found.append(f"{run.run.directory}: {run.artifacts.error}")
        return found

    @property
    def is_full(self) -> bool:
        """Whether no more ticks are to be taken in until some are in their files."""
        return self.held_bytes >= self.config.tail_limit_bytes

    @property
    def held_bytes(self) -> int:
        """About what ticks take in memory."""
        return self._registry.held_bytes

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, but perhaps seeds to be merged if no other one comes."""
        return not self.runs and not self._intake.staged and not self._groups.at_work

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to do, for a later daemon either: the journal may go."""
        groups = self._groups
        is_merged = not groups.pending() and not groups.pending_meta_logs()
        return self.idle and is_merged and not self._registry.has_left_rings

    @property
    def is_written(self) -> bool:
        """Whether every log has all there is."""
        return self._publisher.is_done and not self.degraded

    def next_due(self) -> float:
        """The time at which `Tick` is wanted at the latest; infinity if there is nothing to do."""
        return min(self._publisher.next_due(), self._groups.next_due(), self._intake.retry_at)

    def position(self, producer: m.ProducerId) -> int:
        """The position up to which the journal has a stream; 0 if it is unknown."""
        return self._registry.position(producer)

    def reports(self, now: float) -> list[e.Report]:
        """The runs' part of a status report."""
        return self._registry.reports(now)

    def may_report(self, client: e.Client) -> bool:
        """Whether a client gets another report; it is counted if so."""
        sent = self._reported.pop(client, 0)
        self._reported[client] = min(sent + 1, limits.MAX_REPORTS)
        while len(self._reported) > limits.REPORTED_KEPT:
            self._reported.popitem(last=False)
        return sent < limits.MAX_REPORTS

    def group_reports(self) -> list[e.Report]:
        """The groups' part of a status report."""
        return self._groups.reports()

    def meta_log_reports(self) -> list[e.Report]:
        """The meta logs' part of a status report."""
        return self._groups.meta_log_reports()

    def wanted_artifacts(self, producer: m.ProducerId) -> frozenset[int]:
        """Numbers of a producer's artifacts that are announced and whose bytes are not here."""
        run = self._registry.run_with(producer)
        return run.artifacts.wanted(producer) if run else frozenset()

    def is_settled(self, producer: m.ProducerId) -> bool:
        """Whether nothing that a producer saved is still to be stored."""
        return self._registry.is_settled(producer)

    def processes(self) -> dict[m.ProducerId, m.Process]:
        """The processes of the producers that are not through."""
        return {
            member.producer: member.process
            for member in self._registry.unfinished()
            if member.process is not None
        }

    def silent(self, since: float) -> list[m.ProducerId]:
        """Producers that are not through and were not heard of since a time."""
        return [
            member.producer
            for member in self._registry.unfinished()
            if member.client is None or self._heard.get(member.client, 0.0) < since
        ]

    # --- the journal's segments ---------------------------------------------------------------
    def first_record(self) -> bytes:
        """What a new segment begins with: the present state.  Next: `rotated`."""
        return state.encode(self._registry.saved())

    def rotated(self, number: int, older: Iterable[int]) -> None:
        """A new segment was begun.  Args: older: the numbers of those that lie there still."""
        self._segments.rotated(number, older)

    # --- messages -----------------------------------------------------------------------------
    def _received(self, client: e.Client, message: m.Request, now: float) -> None:
        if client != e.NOBODY:
            self._heard[client] = now
        if self.stopping is not None and _logs(message):
            self._out.send(client, m.Leaving())  # what it has stays in its ring
            return
        match message:
            case m.Hello(version):
                self._hello(client, version)
            case m.Data():
                self._intake.data(client, message, now)
            case m.Save(producer):
                if run := self._registry.run_of(producer):
                    run.save_wanted = True
            case m.Flush():
                self._intake.flush(client, message)
            case m.Publish(token, path):
                self._publisher.want(Waiter(client, token), path)
            case m.Stop(token):
                self._stop_asked(e.StopAsked(client, token))
            case m.AskStatus():
                pass  # answered by `daemon`, which knows what the report needs besides

    def _hello(self, client: e.Client, version: int) -> None:
        if version != m.PROTOCOL_VERSION:
            reason = f"the daemon speaks wire protocol {m.PROTOCOL_VERSION}, this client {version}"
            self._out.send(client, m.Refused(m.NO_PRODUCER, reason))
            return
        config = self.config
        welcome = m.Welcome(
            m.PROTOCOL_VERSION,
            self.daemon_id,
            config.root,
            config.window_bytes,
            self.artifacts_address,
        )
        self._out.send(client, welcome)

    def _rings_seen(self, rings: frozenset[m.ProducerId]) -> None:
        """Forget the streams and the clients that will not be heard of again."""
        self._registry.rings_seen(rings)
        # Once a second it costs little, and whatever was overlooked goes on.
        self._registry.agenda.touch(*self.runs)
        clients = {member.client for run in self.runs.values() for member in run.members.values()}
        self._heard = {client: at for client, at in self._heard.items() if client in clients}

    # --- rounds -------------------------------------------------------------------------------
    def _schedule(self, now: float) -> None:
        """Decide what is due at the end of a round."""
        if not self._intake.retry(now):
            self._out.append(self.first_record())
        self._publisher.begin_due(now)
        for job in self._groups.due(now, leaving=self.stopping is not None):
            self._out.add(job)
        self._intake.limit(self.is_full)
        self._publisher.answer_waiters()
        if dropped := self._segments.drop(self._registry.is_published):
            self._out.add(e.DropSegments(dropped))
        if self.stopping is not None:
            self._maybe_leave(self.stopping)

    def _stop_asked(self, event: e.StopAsked) -> None:
        if event.idle and self._groups.hurry():
            return  # it is asked again when these are merged; until then clients may come
        if self._left:
            self._answer_stops([Waiter(event.client, event.token)])
            return
        self.stopping = event if self.stopping is None else self.stopping
        if event.client != e.NOBODY:
            if len(self._stop_waiters) >= limits.MAX_STOPS:
                self._out.answer([Waiter(event.client, event.token)], limits.TOO_MANY_STOPS)
                return
            self._stop_waiters.append(Waiter(event.client, event.token))
        self._publisher.leave()
        for run in self.runs.values():
            self._out.tell(run, lambda producer: m.Leaving())
        if self.degraded:  # nobody sends any more: try whether the journal can be written again
            self._out.append(self.first_record())

    def _maybe_leave(self, stopping: e.StopAsked) -> None:
        """Leave once every file is up to date, and what has ended is merged.

        Runs that go on are resumed by the next daemon.
        """
        if self.is_written and self._groups.at_rest:
            self._leave(stopping)

    def _leave(self, stopping: e.StopAsked) -> None:
        if not self._left:
            self._left = True
            self._answer_stops(self._stop_waiters)
            self._out.add(e.Leave(asked=not stopping.idle))

    def _answer_stops(self, waiters: Iterable[Waiter]) -> None:
        self._out.answer(waiters, _left_undone(self._groups.undone(), self.config.root))


def _logs(message: m.Request) -> bool:
    """Whether a message is of a client that wants to log, as far as can be told."""
    if isinstance(message, m.Hello):
        return message.version == m.PROTOCOL_VERSION  # another one is refused
    return isinstance(message, m.Data)


def _left_undone(paths: Sequence[str], root: str) -> str:
    """What a daemon that leaves says of merges that are not done; "" where all are."""
    if not paths:
        return ""
    names = [posixpath.relpath(path, root) for path in paths[:_NAMED]]
    named = ", ".join(names) + (", …" if len(paths) > _NAMED else "")
    count = "1 merge is" if len(paths) == 1 else f"{len(paths)} merges are"
    return (
        f"{count} left ({named}): the next start does that, as does "
        f"`mle-daemon merge --root {root}`"
    )
