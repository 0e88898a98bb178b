"""How many ticks a stream holds, and the latest: what a checkpoint is saved with.

Pure.  `update` keeps nothing but bytes in a ring, so both are read out of these: once for each
segment that is full, behind the loop's back, and of the present one when somebody asks.  Only
loggers that need it pay.
"""

from __future__ import annotations

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


class Tally:
    """Counts the ticks of one stream.

    A signal handler may call any of it in the middle of any other, and a thread `add` beside
    another one: each step is one item of a dictionary, and to do one twice changes nothing.
    """

    def __init__(self) -> None:
        self._full: dict[int, tuple[int, bytes, Mapping[int, m.Schema]]] = {}  # by `base`
        self._reached: dict[int, Latest] = {0: Latest()}  # by the position that is counted up to

    def add(self, base: int, end: int, records: bytes, schemas: Mapping[int, m.Schema]) -> None:
        """Take in a segment that is full; it is counted later.

        Args:
            base, end: the stream positions of its records; they follow those taken in before.
        """
        self._full[base] = end, records, schemas

    def count(self) -> None:
        """Count the segments that were taken in."""
        for base in sorted(self._full.copy()):
            segment = self._full.get(base)
            if segment is None:  # a signal handler has counted it meanwhile
                continue
            end, records, schemas = segment
            counted, before = self._last()
            if base >= counted:
                self._reached[end] = _behind(before, records, schemas)
            self._full.pop(base, None)
        for passed in sorted(self._reached.copy())[:-1]:
            self._reached.pop(passed, None)

    def latest(self, records: bytes, schemas: Mapping[int, m.Schema]) -> Latest:
        """Where the stream is.  Args: records: those behind what was taken in."""
        self.count()
        return _behind(self._last()[1], records, schemas)

    def _last(self) -> tuple[int, Latest]:
        return max(self._reached.copy().items(), key=lambda item: item[0])


def _behind(before: Latest, records: bytes, schemas: Mapping[int, m.Schema]) -> Latest:
    found = wire.StreamDecoder(schemas).decode(records)
    blocks = [record for record in found if isinstance(record, wire.Block)]
    if not blocks:
        return before
    last = blocks[-1]
    clocks = len(last.schema.clock)
    values = [_item(last.column(i)[-1]) for i in range(len(last.schema.fields))]
    names = [field.name for field in last.schema.fields]
    return Latest(
        ticks=before.ticks + sum(map(len, blocks)),
        seconds=float(last.times[-1]),
        clock=dict(zip(names[:clocks], values[:clocks], strict=True)),
        stats=dict(zip(names[clocks:], values[clocks:], strict=True)),
    )


def _item(value: Any) -> Any:
    """A numpy scalar as Python's own."""
    return value.item() if getattr(value, "shape", None) == () else value
