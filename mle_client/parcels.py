"""The client's half of shipping artifacts: which one is offered, and how far it may be sent.

Pure: time is an argument, and the bytes are somebody else's.  A *parcel* is an artifact on its way,
a *lane* holds those of one producer in the order in which they were submitted.  One parcel of a
lane at a time is offered and sent; those before it, wholly sent, wait to be stored.

Whatever was lost on the way is asked for again: a parcel of which nothing is heard is offered
again, and the daemon answers where it stands.  So is one that was taken and not said to be stored,
for that word may have been lost, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Protocol, TypeAlias

from mle_client.errors import MLEError, ProtocolError

Buffer: TypeAlias = bytes | bytearray | memoryview

# From 256 KiB on it matters little for the time; 4 MiB take the least CPU, for malloc then keeps
# the memory of a message for the next one (docs/artifact-protocol.md has the figures).
CHUNK_BYTES: Final = 4 * 2**20
# Sent and not confirmed, for each producer: one chunk is written while the next is on its way.
WINDOW_BYTES: Final = 2 * CHUNK_BYTES
# Unanswered for so long, a parcel is offered again; longer than a disk stalls as a rule.
STALL_AFTER_S: Final = 5.0
# Taken by the daemon and not said to be stored for so long, it is asked after.
REMIND_AFTER_S: Final = 30.0


class Shipment(Protocol):
    """The bytes of an artifact: a `snapshot.Snapshot`, or what looks like one."""

    @property
    def number(self) -> int:
        """Of the artifact, from 1 for each producer."""

    @property
    def form(self) -> str:
        """One of `artifact_wire.FORMS`."""

    @property
    def size(self) -> int:
        """In bytes."""

    def chunks(self, chunk_bytes: int) -> Iterator[Buffer]:
        """The bytes from the first on, in pieces of at most so many."""

    def release(self) -> None:
        """Let the memory be used for something else."""


class State(Enum):
    """How far a parcel is."""

    QUEUED = auto()  # not offered on this connection
    OFFERED = auto()  # the daemon has not answered
    SENDING = auto()  # it has; true until the parcel is stored


@dataclass(eq=False, slots=True)
class Parcel:
    """An artifact on its way.

    Args:
        shipment: its bytes.
        droppable: whether nobody would miss it.
        on_dropped: called when it was dropped.
    """

    shipment: Shipment
    droppable: Callable[[], bool] = lambda: False
    on_dropped: Callable[[], None] = lambda: None
    state: State = State.QUEUED
    begun: bool = False  # it was offered, be it on an earlier connection
    acked: int = 0  # bytes that the daemon has written
    sent: int = 0
    heard_at: float = 0.0
    busy: bool = False  # its bytes are being read
    over: bool = False  # it has left its lane
    _pieces: Iterator[Buffer] | None = None
    _read: int = 0  # bytes that `_pieces` has given

    @property
    def size(self) -> int:
        """In bytes."""
        return self.shipment.size

    @property
    def under_way(self) -> bool:
        """Whether it is offered and not wholly sent; its lane has one such parcel at a time."""
        sending = self.state is State.SENDING and self.sent < self.size
        return sending or self.state is State.OFFERED

    def offered(self, now: float) -> None:
        """It was offered."""
        self.state = State.OFFERED
        self.begun = True
        self.heard_at = now

    def taken(self, offset: int, now: float) -> None:
        """The daemon has the bytes before an offset.

        Raises:
            ProtocolError: there are not so many.
        """
        if offset > self.size:
            raise ProtocolError(f"the daemon says to have {offset} bytes of {self.size}")
        if self.state is State.OFFERED:
            self.state = State.SENDING
            self.acked = self.sent = offset
            self.heard_at = now
        elif self.state is State.SENDING and offset >= self.acked:
            self.acked = offset
            self.sent = max(self.sent, offset)
            self.heard_at = now

    def begin_again(self) -> None:
        """The daemon has nothing of it, as far as we know: it is to be offered again."""
        self.state = State.QUEUED
        self.acked = self.sent = 0

    def silent(self, now: float) -> bool:
        """Whether it is to be offered again because nothing was heard."""
        quiet_s = now - self.heard_at
        if self.state is State.OFFERED or self.sent > self.acked:
            return quiet_s >= STALL_AFTER_S
        return self.state is State.SENDING and self.sent == self.size and quiet_s >= REMIND_AFTER_S

    def read(self, offset: int) -> Buffer:
        """Its bytes from an offset on, as many as one chunk has.

        Raises:
            ValueError: the shipment ends before its size.
        """
        if self._pieces is None or offset < self._read:
            self._pieces, self._read = self.shipment.chunks(CHUNK_BYTES), 0
        piece: Buffer = b""
        while self._read <= offset:
            piece = next(self._pieces, b"")
            if not piece:
                raise ValueError(f"a snapshot of {self.size} bytes ended after {self._read}")
            self._read += len(piece)
        found = piece[len(piece) - (self._read - offset) :]
        if self._read >= self.size:
            self.let_go()
        return found

    def let_go(self) -> None:
        """Hold none of its memory any more."""
        self._pieces, self._read = None, 0


@dataclass(eq=False, slots=True)
class Lane:
    """The parcels of one producer, oldest first.

    Args:
        on_error: called with what went wrong in the background.
    """

    on_error: Callable[[MLEError], None]
    parcels: list[Parcel] = field(default_factory=list)
    freed: int = 0  # bytes of all that was stored, dropped or given up
    dropped: int = 0  # parcels

    def find(self, number: int) -> Parcel | None:
        """The parcel of an artifact."""
        for parcel in self.parcels:
            if parcel.shipment.number == number:
                return parcel
        return None

    def begin_again(self) -> None:
        """The connection is a new one: offer everything again, in order."""
        for parcel in self.parcels:
            parcel.begin_again()

    def to_offer(self, now: float) -> Parcel | None:
        """The parcel that is to be offered now."""
        for parcel in self.parcels:
            if parcel.silent(now):
                return parcel
        if any(parcel.under_way for parcel in self.parcels):
            return None
        return next((p for p in self.parcels if p.state is State.QUEUED), None)

    def to_send(self) -> Parcel | None:
        """The parcel of which a chunk may be sent now."""
        room = WINDOW_BYTES - sum(parcel.sent - parcel.acked for parcel in self.parcels)
        for parcel in self.parcels:
            rest = parcel.size - parcel.sent
            if parcel.state is State.SENDING and rest:
                return parcel if min(CHUNK_BYTES, rest) <= room else None
        return None

    def not_begun(self) -> list[Parcel]:
        """Those of which nothing was sent or offered, on any connection."""
        return [parcel for parcel in self.parcels if not parcel.begun]
