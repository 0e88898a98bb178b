"""Ticks of blocks as pieces of columns, a bounded number of bytes at a time.

Pure.  A publication may have hundreds of megabytes of ticks; as columns they would take that again,
and more while they are made.  So they are gone through in slices, of which one is there at a time.
Which values a column takes, and in which type, is decided in `columns`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mle_client import wire
from mle_client.messages import Kind, Schema
from mle_daemon.values import Array, encode_texts

Rows: TypeAlias = npt.NDArray[np.int64]
Key: TypeAlias = tuple[str, str]  # of a column: group and name

# Of ticks, about.  As columns they take twice that.  Larger ones are no faster: what is fixed about
# a slice is 50 µs a column.
SLICE_BYTES: Final = 8 * 2**20
_OBJECT_BYTES: Final = 64  # of a value that is a Python object, about


@dataclass(frozen=True, eq=False)
class Piece:
    """One field of all ticks of one schema in a slice.  Args: rows: of the ticks, ascending."""

    rows: Rows
    kind: Kind
    block: wire.Block
    index: int

    @property
    def is_text(self) -> bool:
        """Whether its values are text."""
        return self.kind.code == "str"

    @cached_property
    def texts(self) -> list[bytes]:
        """The values of a piece of text, as they are stored."""
        return encode_texts(self.block.column(self.index))

    def numbers(self) -> Array:
        """The values of any other piece."""
        return np.asarray(self.block.column(self.index))


@dataclass(frozen=True, eq=False)
class Slice:
    """Some ticks of a publication, with those before and behind it.

    Args:
        first: row of the first tick.
        blocks: in arrival order, none of them empty.
    """

    first: int
    blocks: Sequence[wire.Block]

    @cached_property
    def times(self) -> npt.NDArray[np.float64]:
        """Of its ticks, seconds since the epoch."""
        return np.concatenate([np.empty(0), *(block.times for block in self.blocks)])

    @cached_property
    def pieces(self) -> dict[Key, list[Piece]]:
        """The pieces of each column, in the order of the first rows they touch."""
        found: dict[Key, list[Piece]] = {}
        for block, rows in _join_schemas(self.blocks, self.first):
            for index, (key, kind) in enumerate(fields_of(block.schema)):
                found.setdefault(key, []).append(Piece(rows, kind, block, index))
        return found


class Slices:
    """The ticks of some blocks in slices; at least one, which may be empty.

    Where there is one only, it is kept, with what was made of it.

    Args:
        blocks: in arrival order.
        first: row of the first tick.
        most: bytes of a slice, about.
    """

    def __init__(self, blocks: Iterable[wire.Block], first: int, most: int) -> None:
        self._parts: list[list[wire.Block]] = [[]]
        size = 0
        for block in blocks:
            for part in _cut(block, most):
                part_bytes = _bytes_of(part)
                if size and size + part_bytes > most:
                    self._parts.append([])
                    size = 0
                self._parts[-1].append(part)
                size += part_bytes
        self._first = first
        self._only = Slice(first, self._parts[0]) if len(self._parts) == 1 else None

    def __iter__(self) -> Iterator[Slice]:
        if self._only is not None:
            yield self._only
            return
        first = self._first
        for blocks in self._parts:
            yield Slice(first, blocks)
            first += sum(map(len, blocks))


def fields_of(schema: Schema) -> list[tuple[Key, Kind]]:
    """The columns that a schema's fields go into, and what they are, in the fields' order."""
    clocks = [(("time", field.name), field.kind) for field in schema.clock]
    return clocks + [(("stats", field.name), field.kind) for field in schema.stats]


def _cut(block: wire.Block, most: int) -> Iterator[wire.Block]:
    """A block in parts of so many bytes at most, about, without copying it."""
    if not len(block):
        return
    parts = -(-_bytes_of(block) // most)
    step = -(-len(block) // parts)
    if step >= len(block):
        yield block
        return
    for at in range(0, len(block), step):
        to = at + step
        if isinstance(block, wire.FixedBlock):
            yield wire.FixedBlock(block.schema, block.times[at:to], block.ticks[at:to])
        elif isinstance(block, wire.TextBlock):
            columns = tuple(values[at:to] for values in block.values)
            yield wire.TextBlock(block.schema, block.times[at:to], columns)


def _bytes_of(block: wire.Block) -> int:
    """What the values of a block take in memory, about."""
    if isinstance(block, wire.FixedBlock):
        return block.ticks.nbytes
    assert isinstance(block, wire.TextBlock)
    fields = zip(block.schema.fields, block.values, strict=True)
    sized = (sum(map(len, values)) for field, values in fields if field.kind.code == "str")
    return sum(sized) + _OBJECT_BYTES * len(block) * (1 + len(block.values))


def _join_schemas(blocks: Sequence[wire.Block], first: int) -> Iterator[tuple[wire.Block, Rows]]:
    """One block for each schema, and the rows of its ticks.

    So thousands of blocks of one tick each, of schemas that take turns, cost little more than a
    few long ones: what follows works on whole columns.
    """
    same: dict[int, list[tuple[int, wire.Block]]] = {}  # a stream's schemas are single objects
    for block in blocks:
        same.setdefault(id(block.schema), []).append((first, block))
        first += len(block)
    for parts in same.values():
        rows = [np.arange(at, at + len(part), dtype=np.int64) for at, part in parts]
        yield _join([part for _, part in parts]), np.concatenate(rows)


def _join(parts: Sequence[wire.Block]) -> wire.Block:
    """Blocks of one schema as one block."""
    if len(parts) == 1:
        return parts[0]
    schema = parts[0].schema
    times = np.concatenate([part.times for part in parts])
    fixed = [part for part in parts if isinstance(part, wire.FixedBlock)]
    if fixed:  # numpy would join them field by field; as bytes it is one copy
        joined = b"".join([part.ticks.data for part in fixed])
        return wire.FixedBlock(schema, times, np.frombuffer(joined, fixed[0].ticks.dtype))
    lists = [part.values for part in parts if isinstance(part, wire.TextBlock)]
    columns = (list(itertools.chain.from_iterable(column)) for column in zip(*lists, strict=True))
    return wire.TextBlock(schema, times, tuple(columns))
