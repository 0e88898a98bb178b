"""Ticks of blocks as pieces of columns, a bounded number of bytes at a time.

Pure.  A publication may have hundreds of megabytes of ticks; as columns they would take that again,
and more while they are made.  So they are gone through in slices, of which one is there at a time.
Which values a column takes, and in which type, is decided in `planning`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mle_client import tick_layout, wire
from mle_client.messages import Kind, Schema
from mle_daemon.values import Array, encode_texts

Rows: TypeAlias = npt.NDArray[np.int64]
Key: TypeAlias = tuple[str, str]  # of a column: group and name

# Of ticks, about; where they came in many blocks they are joined, which takes that once more.
# Larger ones are no faster, but for logs of so many columns that few values of each are in one:
# then what is fixed about a part of a column, some 100 µs, counts.
SLICE_BYTES: Final = 8 * 2**20
_MANY_COLUMNS: Final = 256
_MOST_LARGER: Final = 4
_OBJECT_BYTES: Final = 48  # of a text, beside its characters


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
        for blocks, rows in _rows_of_schemas(self.blocks, self.first):
            block = _join(blocks, self.times[rows - self.first])
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
        held = 0
        for block in blocks:  # there may be a hundred thousand
            size = block.ticks.nbytes if isinstance(block, wire.FixedBlock) else _bytes_of(block)
            if held + size > most:
                if held:
                    self._parts.append([])
                *full, block = _cut(block, size, most)
                self._parts[-1:] = [*([part] for part in full), []]
                held, size = 0, size // (len(full) + 1)
            if size:
                self._parts[-1].append(block)
                held += size
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


def for_columns(slice_bytes: int, columns: int) -> int:
    """Bytes of a slice, about, where there are so many columns."""
    return slice_bytes * min(max(1, columns // _MANY_COLUMNS), _MOST_LARGER)


def fields_of(schema: Schema) -> list[tuple[Key, Kind]]:
    """The columns that a schema's fields go into, and what they are, in the fields' order."""
    clocks = [(("time", field.name), field.kind) for field in schema.clock]
    return clocks + [(("stats", field.name), field.kind) for field in schema.stats]


def _cut(block: wire.Block, size: int, most: int) -> Iterator[wire.Block]:
    """A block of some size in parts of so many bytes at most, about, without copying it."""
    step = -(-len(block) // -(-size // most))
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
    """What the values of a block with text take as they are stored, about."""
    assert isinstance(block, wire.TextBlock)
    total = 8 * len(block)
    for field, values in zip(block.schema.fields, block.values, strict=True):
        if field.kind.code == "str":
            total += _OBJECT_BYTES * len(values) + sum(map(len, values))
        else:
            total += tick_layout.value_bytes(field.kind) * len(values)
    return total


def _rows_of_schemas(
    blocks: Sequence[wire.Block], first: int
) -> Iterator[tuple[list[wire.Block], Rows]]:
    """The blocks of each schema, and the rows of their ticks.

    So thousands of blocks of one tick each, of schemas that take turns, cost little more than a
    few long ones: what follows works on whole columns.
    """
    same: dict[int, tuple[list[wire.Block], list[int], list[int]]] = {}
    for block in blocks:
        length = len(block)
        key = id(block.schema)  # a stream's schemas are single objects
        if (found := same.get(key)) is None:
            found = same[key] = [], [], []
        found[0].append(block)
        found[1].append(first)
        found[2].append(length)
        first += length
    for parts, starts, lengths in same.values():
        counts = np.array(lengths)
        ends = np.cumsum(counts)
        yield parts, np.repeat(np.array(starts) - (ends - counts), counts) + np.arange(ends[-1])


def _join(parts: Sequence[wire.Block], times: npt.NDArray[np.float64]) -> wire.Block:
    """Blocks of one schema as one block.  Args: times: of all their ticks."""
    if len(parts) == 1:
        return parts[0]
    schema = parts[0].schema
    fixed = [part for part in parts if isinstance(part, wire.FixedBlock)]
    if fixed:  # numpy would join them field by field; as bytes it is one copy
        joined = b"".join([part.ticks.tobytes() for part in fixed])
        return wire.FixedBlock(schema, times, np.frombuffer(joined, fixed[0].ticks.dtype))
    lists = [part.values for part in parts if isinstance(part, wire.TextBlock)]
    columns = (list(itertools.chain.from_iterable(column)) for column in zip(*lists, strict=True))
    return wire.TextBlock(schema, times, tuple(columns))
