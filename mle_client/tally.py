"""How many ticks a stream holds, and the latest: what a checkpoint is saved with.

Pure.  `update` keeps nothing but bytes in a ring, so both are read out of these: once for each
segment that is full, behind the loop's back, and of the present one when somebody asks.  Only
loggers that need it pay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mle_client import messages as m
from mle_client import wire


@dataclass(frozen=True, slots=True)
class Latest:
    """Where a stream is.

    Args:
        ticks: how many it holds.
        seconds: since the epoch, of the latest.
        clock, stats: its values as they were encoded; {} before the first.
    """

    ticks: int = 0
    seconds: float = 0.0
    clock: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """Counts the ticks of one stream.

    `add` may be called by a thread while another one is in `count` or `latest`.
    """

    _before: Latest = field(default_factory=Latest)
    _full: deque[tuple[bytes, Mapping[int, m.Schema]]] = field(default_factory=deque)
    _counting: bool = False

    def add(self, records: bytes, schemas: Mapping[int, m.Schema]) -> None:
        """Take in a segment that is full; it is counted later."""
        self._full.append((records, schemas))

    def count(self) -> None:
        """Count the segments that were taken in."""
        if self._counting:  # a signal handler has interrupted this very thread in here
            return
        self._counting = True
        try:
            while self._full:
                self._before = self._behind(*self._full[0])
                self._full.popleft()
        finally:
            self._counting = False

    def latest(self, records: bytes, schemas: Mapping[int, m.Schema]) -> Latest:
        """Where the stream is.  Args: records: those behind what was taken in."""
        self.count()
        return self._behind(records, schemas)

    def _behind(self, records: bytes, schemas: Mapping[int, m.Schema]) -> Latest:
        found = wire.StreamDecoder(schemas).decode(records)
        blocks = [record for record in found if isinstance(record, wire.Block)]
        if not blocks:
            return self._before
        last = blocks[-1]
        clocks = len(last.schema.clock)
        values = [_item(last.column(i)[-1]) for i in range(len(last.schema.fields))]
        names = [field.name for field in last.schema.fields]
        return Latest(
            ticks=self._before.ticks + sum(map(len, blocks)),
            seconds=float(last.times[-1]),
            clock=dict(zip(names[:clocks], values[:clocks], strict=True)),
            stats=dict(zip(names[clocks:], values[clocks:], strict=True)),
        )


def _item(value: Any) -> Any:
    """A numpy scalar as Python's own."""
    return value.item() if getattr(value, "shape", None) == () else value
