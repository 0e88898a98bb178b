"""One run as the daemon sees it: who writes to it, what is not published yet, who waits for that.

Pure.  Only the *tail*, what the published file lacks, is held in memory; the journal has it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from mle_client import layout
from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_client.kept import Kept, kept_to_json, meta_lists
from mle_daemon.artifacts import Artifacts
from mle_daemon.columns import FileState
from mle_daemon.events import Client, Image, PublishRun, Report
from mle_daemon.ingest import Piece
from mle_daemon.schedule import Due

# After a failed publication: long enough not to fill the log, short enough that data appear within
# seconds of the disk's recovery.
RETRY_AFTER_S: Final = 2.0

RUNNING, FINISHED, CRASHED = "running", "finished", "crashed"


@dataclass(frozen=True, slots=True)
class Waiter:
    """A client that waits until positions of some streams are in the log file."""

    client: Client
    token: int


@dataclass(slots=True)
class Member:
    """A producer of the run.

    Args:
        main: it opened the run.
        position: what the journal has of its stream.
        published: up to there the file has everything that goes into one.
        received: ticks.
        over: nothing more comes.
        crashed: it went without a word.
        client: where it was heard from last.
        process: that logs; None where a journal has lost it.
    """

    producer: m.ProducerId
    main: bool
    position: int = 0
    published: int = 0
    received: int = 0
    over: bool = False
    crashed: bool = False
    client: Client | None = None
    process: m.Process | None = None


@dataclass(slots=True)
class RunState:
    """A run that is not sealed.

    Args:
        run: as its first producer described it.
        seed_id: of its group; differs from the run's where another live run has that name.
        path: of its log file.
        opened: the folder is ready.
        file: what is published.
        artifacts: its checkpoints, figures and objects.

    Raises:
        ProtocolError: the run's settings are not what a client sends.
    """

    run: m.Run
    seed_id: str
    path: str
    opened: bool = False
    file: FileState | None = None
    members: dict[m.ProducerId, Member] = field(default_factory=dict)
    tail: list[Piece] = field(default_factory=list)
    tail_bytes: int = 0
    lost: int = 0
    error: str = ""
    save_wanted: bool = False
    wanted_now: bool = False
    sealing: bool = False
    sealed: bool = False
    noted: bool = False  # the journal says that it is through
    retry_at: float = 0.0
    dirty_since: float = 0.0
    published_at: float = 0.0
    publish_cost: float = 0.0
    waiters: list[tuple[Waiter, dict[m.ProducerId, int]]] = field(default_factory=list)
    artifacts: Artifacts = field(init=False)
    _held: int = 0  # bytes of `tail` in memory
    _in_flight: list[Piece] | None = None
    _held_in_flight: int = 0
    _status_published: str = ""
    _images_in_flight: tuple[Image, ...] = ()
    _kept_text: tuple[Kept | None, str, str] = (None, "", "")

    def __post_init__(self) -> None:
        self.artifacts = Artifacts.of(self.run)

    @property
    def status(self) -> str:
        """Running until every producer is through; crashed if the first went without a word."""
        if not all(member.over for member in self.members.values()):
            return RUNNING
        crashed = any(member.crashed and member.main for member in self.members.values())
        return CRASHED if crashed else FINISHED

    @property
    def held_bytes(self) -> int:
        """About what its ticks take in memory, those being published included."""
        return self._held + self._held_in_flight

    @property
    def publishing(self) -> bool:
        """Whether a publication is under way."""
        return self._in_flight is not None

    @property
    def dirty(self) -> bool:
        """Whether the file lacks something."""
        return bool(self.tail or (self._images and self.file)) or (
            self.file is not None
            and (self.status != self._status_published or self._kept_json != self.file.kept)
        )

    @property
    def _images(self) -> list[Image]:
        """Figures that the mirrors have not been shown."""
        return self.artifacts.images if self.run.tboard or self.run.wandb else []

    @property
    def _kept(self) -> Kept:
        """What is kept, under the names that it has on disk."""
        return self.artifacts.kept.in_seed(self.run.seed_id, self.seed_id)

    @property
    def _kept_json(self) -> str:
        kept = self.artifacts.kept
        if self._kept_text[:2] != (kept, self.seed_id):  # asked often, changed seldom
            self._kept_text = kept, self.seed_id, kept_to_json(self._kept)
        return self._kept_text[2]

    @property
    def complete(self) -> bool:
        """Whether nothing more can come, all is stored and the file has everything."""
        return (
            self.opened
            and not self.artifacts.pending
            and not self.publishing
            and not self.tail
            and self.status != RUNNING
            and not self.dirty
        )

    def join(self, producer: m.ProducerId, client: Client | None, main: bool = True) -> Member:
        """A producer of this run appears.  Args: main: it is no forked child of another."""
        member = self.members.get(producer)
        if member is None:
            member = Member(producer, main=main)
            if self.file is not None:
                member.published = self.file.applied.get(producer.hex(), 0)
            self.members[producer] = member
        if client is not None:
            member.client = client
        return member

    def add(self, piece: Piece, now: float) -> None:
        """Take in a piece that the journal has."""
        member = self.members[piece.producer]
        for artifact in piece.artifacts:
            self.artifacts.announce(piece.producer, piece.position, artifact)
        self.noted = False
        member.position = piece.end
        member.received += piece.ticks
        member.over = piece.ends
        member.crashed = False  # one that was taken for gone has come back
        if piece.end <= member.published:
            return  # it came before; the file has it already
        piece = _new_in(piece, member)
        self._note_lost(self.lost, piece)
        nothing_before = not self.tail and not self.publishing
        nothing_in_it = not (piece.blocks or piece.lost or piece.artifacts)
        if self.run.tboard:
            nothing_in_it = nothing_in_it and not piece.histograms
        if nothing_in_it and nothing_before and (self.file is None or not piece.ends):
            member.published = piece.end  # nothing of it goes into a file
            return
        if not self.tail:
            self.dirty_since = now
        self.tail.append(piece)
        self.tail_bytes += len(piece.payload)
        self._held += piece.held_bytes

    def _note_lost(self, before: int, *pieces: Piece) -> None:
        # A count that no file and no state record can hold would end the daemon.
        self.lost = min(m.MAX_COUNT, before + sum(piece.lost for piece in pieces))

    def gone(self, producer: m.ProducerId) -> None:
        """A producer's process is gone; nothing more comes from it."""
        member = self.members[producer]
        if not member.over:
            member.over = True
            member.crashed = True

    def forget(self, producer: m.ProducerId) -> None:
        """A producer turns out to have been through when the run was sealed before."""
        self.members.pop(producer, None)
        self._keep([piece for piece in self.tail if piece.producer != producer])

    def opened_with(self, file: FileState | None, now: float) -> None:
        """The folder is ready; what the file holds already leaves the tail."""
        self.opened, self.sealed = True, False
        self.dirty_since = now
        self.file = file
        if file is not None:
            self._status_published = file.status
            self._note_published(file)
            waiting = [(piece, self.members[piece.producer]) for piece in self.tail]
            self._keep([_new_in(p, member) for p, member in waiting if p.end > member.published])
            self._note_lost(file.lost, *self.tail)
        self._settle()

    def due(self) -> Due:
        """What the schedule wants to know."""
        return Due(
            tail_bytes=self.tail_bytes,
            file_bytes=self.file.size if self.file else 0,
            dirty_since=self.dirty_since,
            published_at=self.published_at,
            publish_cost=self.publish_cost,
            wanted_now=self.wanted_now or bool(self.waiters) or self.status != RUNNING,
            save_wanted=self.save_wanted,
            retry_at=self.retry_at,
        )

    def begin_publication(self) -> PublishRun:
        """Hand over the tail.  Next: `published` or `publication_failed`."""
        self._in_flight = self.tail
        self.tail, self.tail_bytes = [], 0
        self._held_in_flight, self._held = self._held, 0
        self.wanted_now = self.save_wanted = False
        applied = dict(self.file.applied) if self.file else {}
        for piece in self._in_flight:
            applied[piece.producer.hex()] = piece.end
        return PublishRun(
            run=self.run,
            seed_id=self.seed_id,
            path=self.path,
            file=self.file,
            blocks=tuple(block for piece in self._in_flight for block in piece.blocks),
            lost=self.lost,
            applied=applied,
            status=self.status,
            kept=self._kept_json,
            lists=meta_lists(
                self._kept,
                self.artifacts.policy,
                self.run.experiment_dir,
                self.seed_id,
                self.artifacts.extension,
            ),
            histograms=tuple(h for piece in self._in_flight for h in piece.histograms),
            images=self._take_images(),
        )

    def _take_images(self) -> tuple[Image, ...]:
        asked, now = self.run.seed_id, self.seed_id
        self._images_in_flight = tuple(
            replace(image, name=layout.in_seed(image.name, asked, now)) for image in self._images
        )
        self.artifacts.images = []
        return self._images_in_flight

    def published(self, file: FileState, cost: float, now: float) -> None:
        """The publication that was begun has ended well."""
        self.file, self.sealed = file, False
        self._in_flight, self._held_in_flight = None, 0
        self._status_published = file.status
        self.published_at, self.publish_cost = now, cost
        self.dirty_since = now
        self.error = ""
        self._note_published(file)
        self._settle()

    def publication_failed(self, error: str, now: float) -> None:
        """The publication that was begun has failed: what it had is the tail's beginning again."""
        self._keep([*(self._in_flight or []), *self.tail])
        self.artifacts.images = [*self._images_in_flight, *self.artifacts.images]
        self._in_flight, self._held_in_flight = None, 0
        self.error = error
        self.wanted_now = True  # as it was: who wanted it still does
        self.retry_at = now + RETRY_AFTER_S

    @property
    def may_go_without_log(self) -> bool:
        """Whether a log that somebody has removed would be made again for the run's end alone."""
        return self.status != RUNNING and not any(piece.ticks or piece.lost for piece in self.tail)

    def go_without_log(self) -> None:
        """Leave the log removed: it would have nothing in it."""
        self._keep([])
        self.file, self.error = None, ""
        self._settle()

    def _keep(self, tail: list[Piece]) -> None:
        self.tail = tail
        self.tail_bytes = sum(len(piece.payload) for piece in tail)
        self._held = sum(piece.held_bytes for piece in tail)

    def _note_published(self, file: FileState) -> None:
        for member in self.members.values():
            applied = file.applied.get(member.producer.hex(), 0)
            member.published = max(member.published, applied)

    def _settle(self) -> None:
        """Where nothing waits for the file, the file has all of a stream that goes into one."""
        waiting = {piece.producer for piece in self.tail}
        for member in self.members.values():
            if member.producer not in waiting:
                member.published = max(member.published, member.position)

    def wait(self, waiter: Waiter, positions: dict[m.ProducerId, int]) -> None:
        """Let a client wait until these positions are published."""
        self.waiters.append((waiter, positions))

    def served(self) -> Iterator[Waiter]:
        """The waiters whose wait is over; they are forgotten."""
        waiting = []
        for waiter, positions in self.waiters:
            if all(
                self.members[p].published >= end for p, end in positions.items()
            ) and not self.artifacts.waits(positions):
                yield waiter
            else:
                waiting.append((waiter, positions))
        self.waiters = waiting

    def report(self, positions: dict[m.ProducerId, int], now: float) -> Report:
        """The run's part of a status report.  Args: positions: journaled, of each producer."""
        received = sum(member.received for member in self.members.values())
        waiting = sum(piece.ticks for piece in (*self.tail, *(self._in_flight or ())))
        missing = sum(positions[p] - member.published for p, member in self.members.items())
        return {
            "experiment_dir": self.run.directory,
            "seed_id": self.seed_id,
            "state": self.status,
            "ticks": {
                "received": received,
                "journaled": received,
                "published": received - waiting,
                "lost": self.lost,
            },
            "artifacts_waiting": len(self.artifacts.pending),
            "lag_s": round(now - self.dirty_since, 3) if self.tail or self.publishing else 0.0,
            "bytes_waiting": max(0, missing),
            "last_error": self.error,
        }


def _new_in(piece: Piece, member: Member) -> Piece:
    """The part of a piece that the file lacks, in whatever pieces the rest once came."""
    if piece.position >= member.published:
        return piece
    try:
        return piece.behind(member.published)
    except ProtocolError:  # another stream of the same name; better too much than too little
        return piece
