"""The daemon's half of delivery: what of a producer's stream is new, and what is in the journal.

Pure.  A stream arrives in pieces that may repeat or overlap after a reconnection.  A piece is first
*read*, and *staged* if it is to be taken; when the journal has it, it is *committed* and may be
acknowledged; when the journal failed, it is *rolled back* and will be sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mle_client import messages as m
from mle_client import wire

# What a decoded record takes beside its bytes, measured: ticks of keys in turn are records of their
# own, and take ten times their bytes.
RECORD_BYTES: Final = 512
# What a value of a tick with text takes, measured: each is a Python object, and a pointer to it.
TEXT_VALUE_BYTES: Final = 56


class StreamGap(Exception):
    """A piece begins behind the position that is expected next."""


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """New records of a stream.

    Args:
        position: of the first byte.
        end: behind the last.
        schemas: of the stream up to `end`.

    Attributes:
        held_bytes: about what it takes in memory.
    """

    producer: m.ProducerId
    position: int
    end: int
    payload: bytes
    records: tuple[wire.Record, ...]
    schemas: dict[int, m.Schema]
    held_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "held_bytes", self._held_bytes())  # asked for again and again

    def _held_bytes(self) -> int:
        texts = (record for record in self.records if isinstance(record, wire.TextBlock))
        values = sum(len(block) * len(block.values) for block in texts)
        return len(self.payload) + RECORD_BYTES * len(self.records) + TEXT_VALUE_BYTES * values

    @property
    def blocks(self) -> tuple[wire.Block, ...]:
        """The ticks in it."""
        return tuple(record for record in self.records if isinstance(record, wire.Block))

    @property
    def ticks(self) -> int:
        """How many ticks it holds."""
        return sum(map(len, self.blocks))

    @property
    def lost(self) -> int:
        """How many ticks it says were lost."""
        return sum(record.ticks for record in self.records if isinstance(record, m.Gap))

    @property
    def artifacts(self) -> tuple[m.Artifact, ...]:
        """What was saved in it besides ticks."""
        return tuple(record for record in self.records if isinstance(record, m.Artifact))

    @property
    def histograms(self) -> tuple[m.Histograms, ...]:
        """The histograms in it."""
        return tuple(record for record in self.records if isinstance(record, m.Histograms))

    @property
    def ends(self) -> bool:
        """Whether it closes the stream."""
        return any(isinstance(record, m.End) for record in self.records)

    def behind(self, position: int) -> Piece:
        """The part of it from a position on, which is that of a record."""
        rest = self.payload[position - self.position :]
        records = tuple(wire.StreamDecoder(self.schemas).decode(rest))
        return Piece(self.producer, position, self.end, rest, records, self.schemas)


@dataclass(slots=True)
class Stream:
    """What has come of one producer's stream.

    Args:
        producer: its id.
        position: everything before it is in the journal.
        ticks: in the journal.
        schemas: of the stream up to `position`.
    """

    producer: m.ProducerId
    position: int = 0
    ticks: int = 0
    schemas: Mapping[int, m.Schema] = field(default_factory=dict)
    _staged: int | None = None
    _decoder: wire.StreamDecoder | None = None

    def read(self, position: int, payload: bytes) -> Piece | None:
        """Look at a piece; nothing of it is taken.  Next: `stage`.

        Returns:
            What is new in it, or None if nothing is.

        Raises:
            StreamGap: something before it is missing; ask for it.
            ProtocolError: it holds no whole records.
        """
        if self._decoder is None:
            self._decoder = wire.StreamDecoder(self.schemas)
        expected = self.position if self._staged is None else self._staged
        if position > expected:
            raise StreamGap(f"a piece at {position} where {expected} is expected")
        end = position + len(payload)
        if end <= expected:
            return None
        new = payload[expected - position :]
        before = self._decoder.schemas
        records = tuple(self._decoder.decode(new))
        schemas, self._decoder.schemas = self._decoder.schemas, before
        if len(schemas) == len(before):
            schemas = before  # many pieces wait at times; they share one
        return Piece(self.producer, expected, end, new, records, schemas)

    def stage(self, piece: Piece) -> None:
        """Take the piece read last, without counting on it yet."""
        if self._decoder is not None:
            self._decoder.schemas = piece.schemas
        self._staged = piece.end

    def commit(self, piece: Piece) -> None:
        """The journal has a piece."""
        self.position = piece.end
        self.ticks += piece.ticks
        self.schemas = piece.schemas
        if self._staged == piece.end:
            self._staged = None

    def roll_back(self) -> None:
        """The journal does not have what was staged."""
        self._staged = None
        self._decoder = None

    def skip(self, position: int) -> None:
        """What lies before a position is lost: go on behind it."""
        self.roll_back()
        self.position = position
