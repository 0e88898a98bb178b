"""The daemon's brain: every decision, and nothing that touches the world.

Pure: `core.handle(event, now)` returns instructions; `daemon` carries them out and delivers what
comes of them as the next events.  The order of a tick's life is kept here: received, journaled,
acknowledged, published; a journal segment goes only when all it holds is in synced log files.

Records in the journal are either a client's `Data` message as it came, or a *state* record: a
msgpack array ["state", {...}] with all that is known of the unfinished runs but their ticks.  Every
segment begins with one, so that older segments can go.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from mle_client import layout, wire
from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_daemon import events as e
from mle_daemon import state
from mle_daemon.artifact_flow import ArtifactFlow
from mle_daemon.artifacts import Artifacts, why_unfit
from mle_daemon.columns import FileState
from mle_daemon.config import DaemonConfig
from mle_daemon.ingest import Piece, Stream, StreamGap
from mle_daemon.runs import RUNNING, RunState, Waiter
from mle_daemon.schedule import publish_at

# A finished stream needs no further answer once its ring is gone; this many are kept of those whose
# ring was never seen from here.
_ENDED_KEPT: Final = 10_000
_RETRY_OPEN_S: Final = 2.0
# A run whose file name another run has waits so long for that one to end: a trainer that was killed
# and started again comes before the daemon has noticed, at its next look at the rings.
_NAME_WAIT_S: Final = 3.0
_CLOSED: Final = (
    "the daemon took this process for gone and has closed its stream; the ticks that it has not "
    "acknowledged stay in the ring"
)


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
        self.runs: dict[m.RunId, RunState] = {}
        self.recent: OrderedDict[m.RunId, e.Report] = OrderedDict()
        self.degraded = ""
        self.stopping: e.StopAsked | None = None
        self._streams: dict[m.ProducerId, Stream] = {}
        self._run_of: dict[m.ProducerId, m.RunId] = {}
        self._ended: OrderedDict[m.ProducerId, Stream] = OrderedDict()
        self._staged: list[tuple[e.Client, Piece]] = []
        self._segments: dict[int, dict[m.ProducerId, int]] = {}
        self._bases: set[int] = set()  # segments that begin with all that was known then
        self._renamed: set[m.RunId] = set()  # opened when the journal has the new name
        self._through: set[m.RunId] = set()  # forgotten when the journal says so
        self._with_ring: set[m.ProducerId] = set()  # streams whose ring was seen
        self._open_at: dict[m.RunId, float] = {}  # runs that are not open, and when they are to be
        self._publish_waiters: list[
            tuple[e.Client, int, dict[m.RunId, dict[m.ProducerId, int]]]
        ] = []
        self._is_full = False
        self._put_off: dict[m.ProducerId, e.Client] = {}
        self._stop_waiters: list[tuple[e.Client, int]] = []
        self._late_flushes: list[tuple[e.Client, int, m.ProducerId, int]] = []
        self._heard: dict[e.Client, float] = {}
        self._artifacts = ArtifactFlow(self._run)
        self._out: list[e.Instruction] = []
        self._replaying = True
        self._left = False

    def handle(self, event: e.Event, now: float) -> list[e.Instruction]:
        """Take in an event.  Args: now: seconds of a monotonic clock."""
        match event:
            case e.Received(client, message):
                self._received(client, message, now)
            case e.Journaled(segment):
                self._journaled(segment, now)
            case e.JournalFailed(error):
                self._journal_failed(error)
            case e.Replayed(segment, record):
                self._replayed(segment, record, now)
            case e.Recovered():
                self._replaying = False
            case e.RunOpened(run_id, file, note):
                self._run_opened(run_id, file, note, now)
            case e.RunNotOpened(run_id, error, final):
                self._run_not_opened(run_id, error, final, now)
            case e.Published():
                self._published(event, now)
            case e.PublishFailed(run_id, error, reopen):
                self._publish_failed(run_id, error, reopen, now)
            case e.Sealed(run_id, file, error):
                self._sealed(run_id, file, error)
            case e.ProducerGone(producer, left):
                self._producer_gone(producer, left)
            case e.Arrived():
                self._out += self._artifacts.arrived(event)
            case e.NotArrived():
                self._out += self._artifacts.not_arrived(event, now)
            case e.ArtifactStored():
                self._out += self._artifacts.stored(event)
            case e.ArtifactNotStored():
                self._out += self._artifacts.not_stored(event, now)
            case e.RingsSeen(producers):
                self._rings_seen(producers)
            case e.Problem(run_id, text):
                if run_id in self.runs:
                    self._notice(self.runs[run_id], text)
                else:
                    self._log("warning", f"run {run_id.hex()}: {text}")
            case e.PublishEverything():
                for run in self.runs.values():
                    run.wanted_now = True
            case e.StopAsked():
                self._stop_asked(event)
            case e.Tick():
                pass
        # Once a round, not for each of its thousand messages; not before the first round, for until
        # then there is nobody to carry out what is decided.
        if not (self._replaying or self._staged or isinstance(event, e.Received | e.Recovered)):
            self._schedule(now)
        out, self._out = self._out, []
        return out

    def next_due(self) -> float:
        """The time at which `Tick` is wanted at the latest; infinity if there is nothing to do."""
        times = [
            publish_at(run.due(), self.config)
            for run in self.runs.values()
            if run.opened and run.dirty and not run.publishing and not run.sealing
        ]
        times += [run.artifacts.next_retry() for run in self.runs.values() if run.opened]
        return min([*times, *map(self._opening_at, self._open_at)], default=float("inf"))

    @property
    def tail_bytes(self) -> int:
        """Bytes of ticks held in memory."""
        return sum(run.held_bytes for run in self.runs.values())

    @property
    def idle(self) -> bool:
        """Whether no run is open: the daemon may leave without losing anything."""
        return not self.runs and not self._staged

    def position(self, producer: m.ProducerId) -> int:
        """The position up to which the journal has a stream; 0 if it is unknown."""
        stream = self._streams.get(producer) or self._ended.get(producer)
        return stream.position if stream else 0

    def reports(self, now: float) -> list[e.Report]:
        """The runs' part of a status report."""
        live = [
            run.report({p: self._streams[p].position for p in run.members}, now)
            for run in self.runs.values()
        ]
        return [*live, *self.recent.values()]

    # --- messages -----------------------------------------------------------------------------
    def _received(self, client: e.Client, message: m.Request, now: float) -> None:
        if client != e.NOBODY:
            self._heard[client] = now
        if self.stopping is not None and isinstance(message, m.Hello | m.Data):
            self._send(client, m.Leaving())  # what it has stays in its ring
            return
        match message:
            case m.Hello(version):
                self._hello(client, version)
            case m.Data(producer, position, payload):
                self._data(client, producer, position, payload)
            case m.Save(producer):
                if run := self._run(producer):
                    run.save_wanted = True
            case m.Flush(token, producer, position):
                self._flush(client, token, producer, position)
            case m.Publish(token, path):
                self._publish_asked(client, token, path)
            case m.Stop(token):
                self._stop_asked(e.StopAsked(client, token))
            case m.AskStatus():
                pass  # answered by `daemon`, which knows what the report needs besides

    def _hello(self, client: e.Client, version: int) -> None:
        if version != m.PROTOCOL_VERSION:
            reason = f"the daemon speaks wire protocol {m.PROTOCOL_VERSION}, this client {version}"
            self._send(client, m.Refused(m.NO_PRODUCER, reason))
            return
        window = self.config.window_bytes
        self._send(
            client,
            m.Welcome(
                m.PROTOCOL_VERSION, self.daemon_id, self.config.root, window, self.artifacts_address
            ),
        )

    def _data(
        self, client: e.Client, producer: m.ProducerId, position: int, payload: bytes
    ) -> None:
        if ended := self._ended.get(producer):
            if client != e.NOBODY and position + len(payload) > ended.position:
                self._send(client, m.Refused(producer, _CLOSED))
            else:
                self._acknowledge(client, ended, ended.position)
            return
        stream = self._streams.get(producer) or Stream(producer)
        if self._is_full and client != e.NOBODY:
            self._put_off[producer] = client  # it keeps what is not acknowledged
            return
        try:
            piece = stream.read(position, payload)
            if piece is not None:
                self._check(stream, piece)
        except StreamGap:
            # While the journal fails, clients come back by themselves, when they get impatient.
            if not self.degraded:
                self._send(client, m.Expect(producer, stream.position))
            return
        except ProtocolError as error:
            self._log("warning", f"refused a piece of stream {producer.hex()}: {error}")
            self._send(client, m.Refused(producer, str(error)))
            return
        if run := self._run(producer):
            self._join(run, producer, client)
        if piece is None:
            self._acknowledge_current(client, stream)
            return
        stream.stage(piece)
        self._streams[producer] = stream
        self._staged.append((client, piece))
        self._out.append(
            e.AppendJournal((wire.data_header(producer, piece.position), piece.payload))
        )

    def _check(self, stream: Stream, piece: Piece) -> None:
        """Refuse what no correct client sends, before it gets into the journal."""
        begins = stream.producer not in self._streams
        if begins != isinstance(piece.records[0], m.Run) or any(
            isinstance(record, m.Run) for record in piece.records[1:]
        ):
            raise ProtocolError("a stream begins with its run, and holds no other")
        run = self._run(stream.producer)
        member = run.members[stream.producer] if run else None
        if member is not None and member.over and not member.crashed:
            raise ProtocolError("a stream goes on behind its end")
        if begins and (why := _unfit(piece.records[0], self.config.root)):
            raise ProtocolError(why)
        for why in map(why_unfit, piece.artifacts):
            if why:
                raise ProtocolError(why)

    def _flush(self, client: e.Client, token: int, producer: m.ProducerId, position: int) -> None:
        run = self._run(producer)
        if run is not None and producer in run.members:
            run.wait(Waiter(client, token), {producer: position})
        elif producer in self._streams:  # its first piece is being journaled
            self._late_flushes.append((client, token, producer, position))
        elif ended := self._ended.get(producer):
            self._send(client, m.Done(token, "" if position <= ended.position else _CLOSED))
        elif not self.degraded and producer not in self._put_off:
            self._send(client, m.Expect(producer, 0))  # it will ask again behind what it sends

    def _publish_asked(self, client: e.Client, token: int, path: str) -> None:
        """A reader wants what was journaled by now."""
        wanted: dict[m.RunId, dict[m.ProducerId, int]] = {}
        for run_id, run in self.runs.items():
            if _is_under(run, path):
                wanted[run_id] = {p: self._streams[p].position for p in run.members}
                run.wanted_now = run.wanted_now or run.dirty
        self._publish_waiters.append((client, token, wanted))

    def _join(self, run: RunState, producer: m.ProducerId, client: e.Client) -> None:
        """A producer of a run is heard from, perhaps for the first time on this connection."""
        known = run.members.get(producer)
        is_new = known is None or known.client != client
        run.join(producer, client)
        if is_new and run.opened and run.seed_id != run.run.seed_id:
            self._send(client, m.Renamed(producer, run.seed_id))

    def _stop_asked(self, event: e.StopAsked) -> None:
        self.stopping = event if self.stopping is None else self.stopping
        if event.client != e.NOBODY:
            self._stop_waiters.append((event.client, event.token))
        for run in self.runs.values():
            run.wanted_now = True
            for member in run.members.values():
                if member.client is not None:
                    self._send(member.client, m.Leaving())

    # --- the journal --------------------------------------------------------------------------
    def _journaled(self, segment: int, now: float) -> None:
        if self.degraded:
            self._log("info", "the journal is being written again")
            self.degraded = ""
        self._renamed.clear()
        staged, self._staged = self._staged, []
        latest: dict[m.ProducerId, e.Client] = {}
        for client, piece in staged:
            self._commit(segment, client, piece, now)
            latest[piece.producer] = client
        for producer, client in latest.items():
            self._acknowledge_current(client, self._streams[producer])
        for run_id in self._through & self.runs.keys():
            self.runs[run_id].noted = self.runs[run_id].complete
        self._through.clear()
        self._out += self._artifacts.journaled()
        late, self._late_flushes = self._late_flushes, []
        for flush in late:
            self._flush(*flush)

    def _commit(self, segment: int, client: e.Client, piece: Piece, now: float) -> None:
        """Count on a piece from now on."""
        stream = self._streams[piece.producer]
        stream.commit(piece)
        self._segments.setdefault(segment, {})[piece.producer] = piece.end
        first = piece.records[0]
        if isinstance(first, m.Run):
            self._enter(first, piece.producer, now)
        run = self.runs[self._run_of[piece.producer]]
        run.join(piece.producer, None, main=not (isinstance(first, m.Run) and first.forked))
        if isinstance(first, m.Run):
            run.members[piece.producer].process = first.process
        self._join(run, piece.producer, client)
        run.add(piece, now)
        if piece.artifacts:
            self._artifacts.announced(run)

    def _enter(self, run: m.Run, producer: m.ProducerId, now: float) -> None:
        """A stream belongs to a run, perhaps to a new one."""
        self._run_of[producer] = run.run_id
        if run.run_id not in self.runs:
            before = self.recent.pop(run.run_id, None)  # a forked child outlives its parent's run
            seed_id = before["seed_id"] if before else run.seed_id
            path = layout.log_path(run.directory, seed_id)
            self.runs[run.run_id] = RunState(run, seed_id, path)
            self._open_at[run.run_id] = now

    def _open_runs(self, now: float) -> None:
        """Open the runs whose file nobody else writes; give another name to who waited too long."""
        for run_id in list(self._open_at):
            if self._opening_at(run_id) > now:
                continue
            run = self.runs[run_id]
            if self._holder(run_id, run.path) is None:
                del self._open_at[run_id]
                saves = run.artifacts.kept.portfolio.saves
                retained = run.artifacts.protected
                self._out.append(e.OpenRun(run.run, run.seed_id, run.path, saves, retained))
            else:
                run.seed_id, run.path = self._free_name(run.run)
                self._renamed.add(run_id)
                self._out.append(e.AppendJournal((self._state_record([run_id]),)))

    def _opening_at(self, run_id: m.RunId) -> float:
        """When to open a run; infinity where it waits for something to happen."""
        if run_id in self._renamed:
            return float("inf")
        other = self._holder(run_id, self.runs[run_id].path)
        if other is None:
            return self._open_at[run_id]
        return self._open_at[run_id] + _NAME_WAIT_S if other.status == RUNNING else float("inf")

    def _holder(self, run_id: m.RunId, path: str) -> RunState | None:
        """The run that came before this one and still writes its file."""
        for other_id, other in self.runs.items():
            if other_id == run_id:
                return None
            if other.path == path:
                return other
        return None

    def _free_name(self, run: m.Run) -> tuple[str, str]:
        """A name for a seed, and its file, that no run has."""
        taken = {other.path for other in self.runs.values()}
        number = 2
        while True:
            seed_id = f"{run.seed_id}_dup{number}"
            path = layout.log_path(run.directory, seed_id)
            if path not in taken:
                return seed_id, path
            number += 1

    def _journal_failed(self, error: str) -> None:
        """Nothing staged counts.  The clients were not acknowledged and will send it again."""
        if self.degraded != error:
            self._log("error", f"the journal cannot be written: {error}")
        self.degraded = error
        staged, self._staged = self._staged, []
        for producer in {piece.producer for _, piece in staged}:
            self._streams[producer].roll_back()
            if self._streams[producer].position == 0:
                del self._streams[producer]
        self._late_flushes = []
        self._through.clear()
        self._renamed &= self.runs.keys()
        if self._renamed:
            self._out.append(e.AppendJournal((self._state_record(self._renamed),)))
        self._out += self._artifacts.journal_failed()

    def _replayed(self, segment: int, record: bytes, now: float) -> None:
        """Take in what an earlier process had journaled."""
        try:
            body, payload = wire.split_record(record)
            if body[:1] == [state.NAME]:
                self._restore(state.decode(body), now)
                return
            if body[:1] == [state.STORED_NAME]:
                self._artifacts.replayed(state.decode_stored(body))
                return
            message = wire.decode([record[: len(record) - len(payload)], payload])
        except ProtocolError as error:
            self._log("error", f"a journal record is passed over: {error}")
            return
        if not isinstance(message, m.Data):
            return
        self._make_way(message)
        before = len(self._staged)
        self._data(e.NOBODY, message.producer, message.position, message.payload)
        if len(self._staged) > before:
            self._out = [x for x in self._out if not isinstance(x, e.AppendJournal)]
            _, piece = self._staged.pop()
            self._commit(segment, e.NOBODY, piece, now)

    def _make_way(self, data: m.Data) -> None:
        """Let a replayed piece be taken as it was when it was journaled, whatever is damaged."""
        stream = self._streams.get(data.producer)
        if stream is not None and data.position > stream.position:
            self._skip(stream, data.position)
        elif stream is None and data.position == 0:
            self._ended.pop(data.producer, None)  # it was begun again
        elif stream is None and data.producer not in self._ended:
            self._log(
                "error", f"stream {data.producer.hex()} is passed over: its beginning is lost"
            )

    def _skip(self, stream: Stream, position: int) -> None:
        """Go on behind a damaged part of the journal."""
        self._log(
            "error",
            f"the journal has lost {position - stream.position} bytes of stream "
            f"{stream.producer.hex()}: the ticks in them are missing in its log",
        )
        stream.skip(position)
        if run := self._run(stream.producer):
            run.members[stream.producer].position = position

    def _restore(self, saved: state.Saved, now: float) -> None:
        """Take over the runs and streams of a state record, but for those known already."""
        for run in saved.runs:
            if known := self.runs.get(run.run.run_id):
                known.seed_id, known.path = run.seed_id, run.path
                continue
            restored = RunState(run.run, run.seed_id, run.path, lost=run.lost)
            restored.artifacts.restore(run.artifacts)
            self.runs[run.run.run_id] = restored
            self._open_at[run.run.run_id] = now
        for stream in saved.streams:
            present = self._streams.get(stream.producer)
            if stream.run_id is None or stream.run_id not in self.runs:
                self._put_away(stream.producer, stream.position, stream.ticks)
            elif present is None:
                self._restore_stream(stream, stream.run_id)
            elif stream.position > present.position:
                self._skip(present, stream.position)
                present.ticks, present.schemas = stream.ticks, dict(stream.schemas)

    def _restore_stream(self, stream: state.SavedStream, run_id: m.RunId) -> None:
        self._ended.pop(stream.producer, None)
        self._streams[stream.producer] = Stream(
            stream.producer, stream.position, stream.ticks, dict(stream.schemas)
        )
        self._run_of[stream.producer] = run_id
        member = self.runs[run_id].join(stream.producer, None)
        member.position, member.received = stream.position, stream.ticks
        member.main, member.over, member.crashed = stream.main, stream.over, stream.crashed
        member.process = stream.process

    def _state_record(self, run_ids: Iterable[m.RunId] | None = None) -> bytes:
        wanted = set(self.runs if run_ids is None else run_ids)
        runs = [
            state.SavedRun(r.run, r.seed_id, r.path, r.lost, r.artifacts.to_plain())
            for run_id, r in self.runs.items()
            if run_id in wanted
        ]
        streams = [
            state.SavedStream(
                p, s.position, s.ticks, dict(s.schemas), self._run_of[p],
                member.main, member.over, member.crashed, member.process,
            )
            for p, s in self._streams.items()
            if self._run_of.get(p) in wanted
            for member in [self.runs[self._run_of[p]].members.get(p)]
            if member is not None
        ]  # fmt: skip
        if run_ids is None:
            streams += _saved_ended(self._ended.values())
        return state.encode(state.Saved(tuple(runs), tuple(streams)))

    def first_record(self) -> bytes:
        """What a new segment begins with: the present state.  Next: `rotated`."""
        return self._state_record()

    def rotated(self, number: int, older: Iterable[int]) -> None:
        """A new segment was begun.  Args: older: the numbers of those that lie there still."""
        for old in older:
            self._segments.setdefault(old, {})
        self._segments[number] = {}
        self._bases.add(number)

    # --- files --------------------------------------------------------------------------------
    def _run_opened(self, run_id: m.RunId, file: FileState | None, note: str, now: float) -> None:
        run = self.runs[run_id]
        run.opened_with(file, now)
        run.error = ""
        if note:
            self._notice(run, note)
        if run.seed_id != run.run.seed_id:
            self._notice(
                run,
                f"another live logger writes {run.run.seed_id!r} in {run.run.directory}: "
                f"this one is stored as {run.seed_id!r}",
            )
            for producer, member in run.members.items():
                if member.client is not None:
                    self._send(member.client, m.Renamed(producer, run.seed_id))

    def _run_not_opened(self, run_id: m.RunId, error: str, final: bool, now: float) -> None:
        run = self.runs[run_id]
        if run.error != error:
            self._notice(run, error)
        run.error = error
        self._answer_failed(run, error)
        if not final:
            self._open_at[run_id] = now + _RETRY_OPEN_S
            return
        for producer, member in run.members.items():
            if member.client is not None:
                self._send(member.client, m.Refused(producer, error))
        self._retire(run_id, now)

    def _published(self, event: e.Published, now: float) -> None:
        run = self.runs[event.run_id]
        run.published(event.file, event.cost, now)
        for problem in event.problems:
            self._notice(run, problem)
        for producer, member in run.members.items():
            if member.client is not None:
                self._acknowledge(member.client, self._streams[producer], member.published)

    def _publish_failed(self, run_id: m.RunId, error: str, reopen: bool, now: float) -> None:
        run = self.runs[run_id]
        if run.error != error:
            self._notice(run, error)
        run.publication_failed(error, now)
        if reopen:
            run.opened = False
            self._open_at[run_id] = now
        self._answer_failed(run, error)

    def _answer_failed(self, run: RunState, error: str) -> None:
        """Who waits for this run's file is told that it will not come now."""
        for waiter, _ in run.waiters:
            self._send(waiter.client, m.Done(waiter.token, error))
        run.waiters = []
        waiting = []
        for client, token, wanted in self._publish_waiters:
            if run.run.run_id in wanted:
                self._send(client, m.Done(token, error))
            else:
                waiting.append((client, token, wanted))
        self._publish_waiters = waiting

    def _sealed(self, run_id: m.RunId, file: FileState, error: str) -> None:
        run = self.runs[run_id]
        run.sealing, run.sealed = False, True
        run.file = file
        if error:
            self._log("warning", f"{run.path} keeps its uncompressed form: {error}")

    def _retire(self, run_id: m.RunId, now: float) -> None:
        """Keep no more of a run than a line of the status report."""
        run = self.runs.pop(run_id)
        self._log("info", f"{run.path} is complete: {run.status}")
        self._open_at.pop(run_id, None)
        positions = {p: self._streams[p].position for p in run.members}
        self.recent[run_id] = run.report(positions, now)
        while len(self.recent) > self.config.recent_runs:
            self.recent.popitem(last=False)
        for waiter in run.served():
            self._send(waiter.client, m.Done(waiter.token, ""))
        for waiter, _ in run.waiters:
            self._send(waiter.client, m.Done(waiter.token, _CLOSED))
        for stream in [self._streams[producer] for producer in run.members]:
            self._put_away(stream.producer, stream.position, stream.ticks)

    def _put_away(self, producer: m.ProducerId, position: int, ticks: int) -> None:
        """Keep of a stream only what it takes to answer a late repeat."""
        self._streams.pop(producer, None)
        run_id = self._run_of.pop(producer, None)
        if run_id is not None and (run := self.runs.get(run_id)):
            run.forget(producer)
            if not run.members:
                del self.runs[run_id]
                self._open_at.pop(run_id, None)
        self._ended[producer] = Stream(producer, position, ticks)
        while len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)

    # --- producers ----------------------------------------------------------------------------
    def _producer_gone(self, producer: m.ProducerId, left: frozenset[int]) -> None:
        if run := self._run(producer):
            run.gone(producer)
            self._out += self._artifacts.gone(run, producer, left)

    def wanted_artifacts(self, producer: m.ProducerId) -> frozenset[int]:
        """Numbers of a producer's artifacts that are announced and whose bytes are not here."""
        run = self._run(producer)
        return run.artifacts.wanted(producer) if run else frozenset()

    def is_settled(self, producer: m.ProducerId) -> bool:
        """Whether nothing that a producer saved is still to be stored."""
        run = self._run(producer)
        return run is None or not any(key[0] == producer for key in run.artifacts.pending)

    def _rings_seen(self, rings: frozenset[m.ProducerId]) -> None:
        """Forget the streams and the clients that will not be heard of again."""
        self._with_ring |= rings
        gone = {p for p in self._with_ring - rings if p not in self._streams}
        for producer in gone:
            self._ended.pop(producer, None)
        self._with_ring -= gone
        clients = {member.client for run in self.runs.values() for member in run.members.values()}
        self._heard = {client: at for client, at in self._heard.items() if client in clients}

    def processes(self) -> dict[m.ProducerId, m.Process]:
        """The processes of the producers that are not through."""
        return {
            producer: member.process
            for run in self.runs.values()
            for producer, member in run.members.items()
            if member.process is not None and not (member.over and self.is_settled(producer))
        }

    def silent(self, since: float) -> list[m.ProducerId]:
        """Producers that are not through and were not heard of since a time."""
        return [
            producer
            for run in self.runs.values()
            for producer, member in run.members.items()
            if not (member.over and self.is_settled(producer))
            and (member.client is None or self._heard.get(member.client, 0.0) < since)
        ]

    # --- what is due --------------------------------------------------------------------------
    def _schedule(self, now: float) -> None:
        self._open_runs(now)
        if self.tail_bytes >= self.config.tail_limit_bytes:
            self._make_room()
        for run_id, run in list(self.runs.items()):
            if run.opened:
                self._out += self._artifacts.due(run, now)
            if not run.opened or run.publishing or run.sealing:
                continue
            if run.dirty:
                if publish_at(run.due(), self.config) <= now:
                    self._out.append(run.begin_publication())
            elif run.complete:
                self._finish(run_id, run, now)
        self._is_full = self.tail_bytes >= self.config.tail_limit_bytes
        if self._put_off and not self._is_full:
            for producer, client in self._put_off.items():
                self._send(client, m.Expect(producer, self.position(producer)))
            self._put_off = {}
        self._answer_waiters()
        self._drop_segments()
        if self.stopping is not None:
            self._maybe_leave(self.stopping)

    def _finish(self, run_id: m.RunId, run: RunState, now: float) -> None:
        """Seal a run, note in the journal that it is through, and forget it."""
        if run.file is not None and not run.sealed:
            run.sealing = True
            self._out.append(e.SealRun(run_id, run.path, run.file))
        elif run.noted:
            self._retire(run_id, now)
        elif run_id not in self._through:
            # Else the next daemon would bring back a file that somebody has moved or replaced.
            streams = _saved_ended(self._streams[producer] for producer in run.members)
            self._through.add(run_id)
            self._out.append(e.AppendJournal((state.encode(state.Saved((), tuple(streams))),)))

    def _make_room(self) -> None:
        """Publish the largest tail that can be."""
        ready = [
            run
            for run in self.runs.values()
            if run.tail and run.opened and not run.publishing and not run.sealing
        ]
        if ready:
            max(ready, key=lambda run: run.tail_bytes).wanted_now = True

    def _answer_waiters(self) -> None:
        for run in self.runs.values():
            for waiter in run.served():
                self._send(waiter.client, m.Done(waiter.token, ""))
        waiting = []
        for client, token, wanted in self._publish_waiters:
            if all(self._holds(run_id, positions) for run_id, positions in wanted.items()):
                self._send(client, m.Done(token, ""))
            else:
                waiting.append((client, token, wanted))
        self._publish_waiters = waiting

    def _holds(self, run_id: m.RunId, positions: dict[m.ProducerId, int]) -> bool:
        """Whether a run's file holds its streams up to these positions."""
        run = self.runs.get(run_id)
        return run is None or (
            all(
                member.published >= at
                for p, at in positions.items()
                if (member := run.members.get(p))
            )
            and not run.artifacts.waits(positions)
        )

    def _drop_segments(self) -> None:
        """Let go of the oldest segments whose every tick is published."""
        numbers = sorted(self._segments)
        count = 0
        for index, number in enumerate(numbers[:-1]):
            ends = self._segments[number]
            if not all(self._is_published(p, end) for p, end in ends.items()):
                break  # in order: replay must not find a later piece without the earlier one
            if numbers[index + 1] in self._bases:
                count = index + 1  # what is left begins with all that needs to be known
        for number in numbers[:count]:
            del self._segments[number]
        self._bases.difference_update(numbers[:count])
        if count:
            self._out.append(e.DropSegments(tuple(numbers[:count])))

    def _is_published(self, producer: m.ProducerId, end: int) -> bool:
        run = self._run(producer)
        return run is None or run.members[producer].published >= end

    def _maybe_leave(self, stopping: e.StopAsked) -> None:
        """Leave once every file is up to date; runs that go on are resumed by the next daemon."""
        busy = any(
            run.dirty or run.publishing or run.sealing or run.artifacts.storing
            for run in self.runs.values()
        )
        if self._left or busy or self.degraded:
            return
        # One that is over is about to be sealed, unless it waits for an artifact: the next daemon
        # goes on waiting.
        if any(r.status != RUNNING and not r.artifacts.pending for r in self.runs.values()):
            return
        self._left = True
        for client, token in self._stop_waiters:
            self._send(client, m.Done(token, ""))
        self._out.append(e.Leave(asked=not stopping.idle))

    # --- answers ------------------------------------------------------------------------------
    def _run(self, producer: m.ProducerId) -> RunState | None:
        run_id = self._run_of.get(producer)
        return None if run_id is None else self.runs.get(run_id)

    def _acknowledge_current(self, client: e.Client, stream: Stream) -> None:
        run = self._run(stream.producer)
        member = run.members.get(stream.producer) if run else None
        self._acknowledge(client, stream, member.published if member else 0)

    def _acknowledge(self, client: e.Client, stream: Stream, published: int) -> None:
        ack = m.Ack(stream.producer, stream.position, stream.ticks, published)
        self._send(client, ack)

    def _notice(self, run: RunState, text: str) -> None:
        """Tell the run's clients and the log that something is not as they asked."""
        self._log("warning", f"{run.path}: {text}")
        for member in run.members.values():
            if member.client is not None:
                self._send(member.client, m.Notice(member.producer, text))

    def _send(self, client: e.Client, message: m.Reply) -> None:
        if client != e.NOBODY:
            self._out.append(e.Send(client, message))

    def _log(self, level: str, text: str) -> None:
        self._out.append(e.Log(level, text))


def _saved_ended(streams: Iterable[Stream]) -> list[state.SavedStream]:
    return [
        state.SavedStream(s.producer, s.position, s.ticks, {}, None, False, True, False)
        for s in streams
    ]


def _is_under(run: RunState, path: str) -> bool:
    """Whether a run's file, or the file it will be merged into, is at a path or below it."""
    folder = path.rstrip("/") + "/"
    return path in (run.path, layout.merged_log_path(run.run.directory)) or run.path.startswith(
        folder
    )


def _unfit(run: object, root: str) -> str:
    """Why a run cannot be stored under a root; "" if it can."""
    if not isinstance(run, m.Run):
        return "a stream begins with its run"
    inside = f"{run.directory}/".startswith(root.rstrip("/") + "/")
    if not inside or ".." in run.directory.split("/") or "\0" in run.directory:
        return f"{run.directory} lies outside of {root}, the folder that this daemon serves"
    if not layout.is_seed_id(run.seed_id):
        return f"{run.seed_id!r} cannot be a seed_id: it is part of a file name"
    if run.config_name and not layout.is_file_name(run.config_name):
        return f"{run.config_name!r} cannot be the name of a configuration file"
    Artifacts.of(run)
    return ""
