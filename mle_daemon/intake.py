"""Takes in what producers send: received, staged, journaled, counted on, acknowledged.

Pure.  Keeps the order of that: nothing is acknowledged that the journal does not have, and a piece
whose append failed counts for nothing.  What becomes of a run's file is decided in `publisher`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mle_client import layout, message_wire
from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_daemon import events as e
from mle_daemon import limits
from mle_daemon.artifact_flow import ArtifactFlow
from mle_daemon.artifacts import Artifacts, why_unfit
from mle_daemon.ingest import Piece, Stream, StreamGap
from mle_daemon.journal_segments import Segments
from mle_daemon.openings import Openings
from mle_daemon.outbox import Outbox
from mle_daemon.registry import CLOSED, Registry, settings_bytes
from mle_daemon.runs import RunState, Waiter

# Between two attempts to have the journal written again, each with the pieces of one client: seldom
# enough for a disk that is full for minutes, often enough for everything to go on within seconds.
RETRY_AFTER_S: Final = 1.0


class Intake:
    """Pieces of streams on their way into the journal.

    Args:
        root: that the daemon serves.
        registry: where runs and streams are entered.
        segments: told what the journal's segments hold.
        openings: told of new runs.
        artifacts: told of what was saved.
        outbox: takes appends and answers.

    Attributes:
        degraded: why the journal cannot be written; "" if it can.
        staged: pieces whose append was asked for, and who sent them.
        retry_at: when the journal is to be tried again; infinity where it can be written.
    """

    def __init__(
        self,
        root: str,
        registry: Registry,
        segments: Segments,
        openings: Openings,
        artifacts: ArtifactFlow,
        outbox: Outbox,
    ) -> None:
        self.degraded = ""
        self.staged: list[tuple[e.Client, Piece]] = []
        self._root = root
        self._registry = registry
        self._segments = segments
        self._openings = openings
        self._artifacts = artifacts
        self._out = outbox
        self._is_full = False
        self._put_off: dict[m.ProducerId, e.Client] = {}
        self._late_flushes: list[tuple[e.Client, m.Flush]] = []
        self.retry_at = float("inf")
        self._turned_away: dict[m.ProducerId, e.Client] = {}  # when the journal failed
        self._refusals = limits.Sparingly()

    # --- received -----------------------------------------------------------------------------
    def data(self, client: e.Client, data: m.Data, now: float) -> None:
        """Stage what is new in a piece."""
        is_put_off = self._is_full and client != e.NOBODY
        if is_put_off and data.producer not in self._registry.ended:
            if len(self._put_off) < limits.MAX_PUT_OFF:
                self._put_off[data.producer] = client  # it keeps what is not acknowledged
            return
        read = self._read(client, data, now, self._check_room)
        if read is None:
            return
        stream, piece = read
        stream.stage(piece)
        self._registry.streams[data.producer] = stream
        self.staged.append((client, piece))
        self._out.append(message_wire.data_header(data.producer, piece.position), piece.payload)

    def replay(self, segment: int, data: m.Data, now: float) -> None:
        """Count on what is new in a piece that the journal has from an earlier process."""
        read = self._read(e.NOBODY, data, now)
        if read is None:
            return
        stream, piece = read
        stream.stage(piece)
        self._registry.streams[data.producer] = stream
        self._commit(segment, e.NOBODY, piece, now)

    def flush(self, client: e.Client, flush: m.Flush) -> None:
        """Let a client wait until its stream is in the log file."""
        producer, token = flush.producer, flush.token
        run = self._registry.run_of(producer)
        self._out.extend(self._artifacts.lost_of(client, producer))
        if run is not None and producer in run.members:
            self._join(run, producer, client)  # whoever has a new connection and no news
            if len(run.waiters) >= limits.MAX_FLUSHES:
                self._out.send(client, m.Done(token, limits.TOO_MANY_FLUSHES))
                return
            run.wait(Waiter(client, token), {producer: flush.position})
        elif producer in self._registry.streams:  # its first piece is being journaled
            self._late_flushes.append((client, flush))
        elif ended := self._registry.ended.get(producer):
            error = "" if flush.position <= ended.position else CLOSED
            self._out.send(client, m.Done(token, error))
        elif not self.degraded and producer not in self._put_off:
            self._out.send(client, m.Expect(producer, 0))  # it will ask again behind what it sends

    def limit(self, is_full: bool) -> None:
        """Take in pieces, or put them off until a publication has made room in memory."""
        self._is_full = is_full
        if is_full:
            return
        put_off, self._put_off = self._put_off, {}
        for producer, client in put_off.items():
            self._out.send(client, m.Expect(producer, self._registry.position(producer)))

    def _read(
        self,
        client: e.Client,
        data: m.Data,
        now: float,
        check_room: Callable[[Piece], None] = lambda piece: None,
    ) -> tuple[Stream, Piece] | None:
        """Look at a piece and answer it, unless something in it is to be taken.

        Args:
            check_room: raises ProtocolError where a sound piece is one too many.
        """
        producer = data.producer
        if ended := self._registry.ended.get(producer):
            if client != e.NOBODY and data.position + len(data.payload) > ended.position:
                self._out.send(client, m.Refused(producer, CLOSED))
            else:
                self._out.acknowledge(client, ended, ended.position)
            return None
        stream = self._registry.streams.get(producer) or Stream(producer)
        try:
            piece = stream.read(data.position, data.payload)
            if piece is not None:
                self._check(stream, piece)
                check_room(piece)
        except StreamGap:
            # While the journal fails, clients come back by themselves, when they get impatient.
            if not self.degraded:
                self._out.send(client, m.Expect(producer, stream.position))
            return None
        except ProtocolError as error:
            line = f"refused a piece of stream {producer.hex()}: {error}"
            if line := self._refusals.line(line, now):
                self._out.log("warning", line)
            self._out.send(client, m.Refused(producer, str(error)))
            return None
        if run := self._registry.run_of(producer):
            self._join(run, producer, client)
        if piece is None:
            self._out.acknowledge(client, stream, self._registry.published(producer))
            return None
        return stream, piece

    def _check(self, stream: Stream, piece: Piece) -> None:
        """Refuse what no correct client sends, before it gets into the journal."""
        begins = stream.producer not in self._registry.streams
        if begins != isinstance(piece.records[0], m.Run) or any(
            isinstance(record, m.Run) for record in piece.records[1:]
        ):
            raise ProtocolError("a stream begins with its run, and holds no other")
        run = self._registry.run_with(stream.producer)
        member = run.members[stream.producer] if run else None
        if member is not None and member.over and not member.crashed:
            raise ProtocolError("a stream goes on behind its end")
        if begins and (why := _unfit(piece.records[0], self._root)):
            raise ProtocolError(why)
        for why in map(why_unfit, piece.artifacts):
            if why:
                raise ProtocolError(why)

    def _check_room(self, piece: Piece) -> None:
        """Refuse what is more than a daemon can have.  What its journal has, it has."""
        first = piece.records[0]
        registry, run = self._registry, self._registry.run_with(piece.producer)
        if isinstance(first, m.Run):
            run = registry.runs.get(first.run_id)
            if run is None and len(registry.runs) + len(self.staged) >= limits.MAX_RUNS:
                raise ProtocolError(limits.TOO_MANY_RUNS)
            held = registry.settings_bytes + sum(len(p.payload) for _, p in self.staged)
            if run is None and held + settings_bytes(first) > limits.MAX_SETTINGS_BYTES:
                raise ProtocolError(limits.TOO_MUCH_CONFIGURED)
            if run is not None and len(run.members) >= limits.MAX_PRODUCERS:
                raise ProtocolError(limits.TOO_MANY_PRODUCERS)
        if announced := len(piece.artifacts):
            waiting = run.artifacts.waiting if run is not None else 0
            if waiting + announced > limits.MAX_WAITING_ARTIFACTS:
                raise ProtocolError(limits.TOO_MANY_ARTIFACTS)

    def _join(self, run: RunState, producer: m.ProducerId, client: e.Client) -> None:
        """A producer of a run is heard from, perhaps for the first time on this connection."""
        known = run.members.get(producer)
        is_new = known is None or known.client != client
        run.join(producer, client)
        if is_new and run.opened and run.seed_id != run.run.seed_id:
            self._out.send(client, m.Renamed(producer, run.seed_id))

    # --- journaled ----------------------------------------------------------------------------
    def journaled(self, segment: int, now: float) -> None:
        """The journal has all that was staged.  Next: `resume_flushes`."""
        if self.degraded:
            self._out.log("info", "the journal is being written again")
            self.degraded, self.retry_at = "", float("inf")
        staged, self.staged = self.staged, []
        latest: dict[m.ProducerId, e.Client] = {}
        for client, piece in staged:
            self._commit(segment, client, piece, now)
            latest[piece.producer] = client
            self._turned_away.pop(piece.producer, None)
        for producer, client in latest.items():
            published = self._registry.published(producer)
            self._out.acknowledge(client, self._registry.streams[producer], published)
        while self._turned_away:
            self._ask_again()

    def resume_flushes(self) -> None:
        """Let those wait who asked while their first piece was being journaled."""
        late, self._late_flushes = self._late_flushes, []
        for client, flush in late:
            self.flush(client, flush)

    def journal_failed(self, error: str, now: float) -> None:
        """Nothing staged counts.  The clients were not acknowledged, and are to send it again."""
        self.retry_at = now + RETRY_AFTER_S
        if self.degraded != error:
            self._out.log("error", f"the journal cannot be written: {error}")
        self.degraded = error
        staged, self.staged = self.staged, []
        self._turned_away |= {p.producer: client for client, p in staged if client != e.NOBODY}
        streams = self._registry.streams
        for producer in {piece.producer for _, piece in staged}:
            streams[producer].roll_back()
            if streams[producer].position == 0:
                del streams[producer]
        self._late_flushes = []

    def retry(self, now: float) -> bool:
        """Try the journal again when it is time to, by asking a client for what it had sent.

        One at a time: what many have sent would be moved once a second for nothing.

        Returns:
            False where nobody can be asked, and something else is to be appended.
        """
        if now < self.retry_at:
            return True
        self.retry_at = now + RETRY_AFTER_S
        if not self._turned_away:
            return False
        self._ask_again()
        return True

    def _ask_again(self) -> None:
        producer = next(iter(self._turned_away))
        client = self._turned_away.pop(producer)
        self._out.send(client, m.Expect(producer, self._registry.position(producer)))

    def _commit(self, segment: int, client: e.Client, piece: Piece, now: float) -> None:
        """Count on a piece from now on."""
        producer = piece.producer
        self._registry.streams[producer].commit(piece)
        self._segments.holds(segment, producer, piece.end)
        first = piece.records[0]
        if isinstance(first, m.Run) and self._registry.enter(first, producer):
            self._openings.want(first.run_id, now)
        run = self._registry.run_of(producer)
        assert run is not None, "a stream's first piece enters its run"
        run.join(producer, None, main=not (isinstance(first, m.Run) and first.forked))
        if isinstance(first, m.Run):
            run.members[producer].process = first.process
        self._join(run, producer, client)
        run.add(piece, now)
        if piece.artifacts:
            self._out.extend(self._artifacts.announced(run, now))


def _unfit(run: object, root: str) -> str:
    """Why a run cannot be stored under a root; "" if it can.

    Raises:
        ProtocolError: its settings are not what a client sends.
    """
    if not isinstance(run, m.Run):
        return "a stream begins with its run"
    if not layout.is_path(run.directory):
        return f"{run.directory[:80]!r}… cannot be an experiment's folder: it is too long"
    inside = f"{run.directory}/".startswith(root.rstrip("/") + "/")
    inside = inside and run.directory.startswith("/")  # "" is not, in the root "/"
    if not inside or ".." in run.directory.split("/") or "\0" in run.directory:
        return f"{run.directory} lies outside of {root}, the folder that this daemon serves"
    if not layout.is_seed_id(run.seed_id):
        return f"{run.seed_id!r} cannot be a seed_id: it is part of a file name"
    if run.config_name and not layout.is_config_name(run.config_name):
        return f"{run.config_name!r} cannot be the name of a configuration file"
    Artifacts.of(run)
    return ""
