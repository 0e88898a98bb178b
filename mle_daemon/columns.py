"""Ticks as columns: what a publication appends to a log file, decided without touching one.

Pure.  `plan_append` takes what a file holds (`FileState`) and blocks of ticks in arrival order, and
says for each column which values follow, in which type, and which rows of the run they belong to.
`store` carries the plan out.  Where the type of a column hangs on values that are stored already,
it asks a function for them.

It plans for layout version 1 (`docs/hdf5-layout.md`):

* a column is (group, name); what it holds is decided by its first value;
* a number that the column's type cannot hold exactly widens the type;
* text never joins numbers, nor one shape another: such values are refused, as a `Problem`, and
  nothing else of their ticks is;
* a column that lacks a row is *sparse* from then on: its row numbers are stored beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mle_client import layout, wire
from mle_client.messages import Kind
from mle_daemon.values import (
    REFERENCE_BYTES,
    Array,
    Dtype,
    Text,
    is_varying,
    join_numbers,
    join_text,
    numpy_dtype,
    text_width,
    time_texts,
)

Rows: TypeAlias = npt.NDArray[np.int64]
Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Column:
    """A column as it lies in a file.

    Args:
        group: "stats" or "time".
        name: of the metric, unescaped.
        dtype: of one item; of a column of bytes that are not UTF-8, numpy's "S".
        shape: of one value, () for scalars.
        length: values stored.
        dense: no row numbers are stored beside it, for every row of the run has a value; in a log
            that is not ours, it may have fewer.
        sealed: it lies in the form of a finished log, in which it cannot grow.
    """

    group: str
    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    length: int
    dense: bool
    sealed: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one value in the column; of text of varying length, of the reference to it."""
        varying = is_varying(self.dtype)
        size = REFERENCE_BYTES if varying else numpy_dtype(self.dtype).itemsize
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True, slots=True)
class Problem:
    """Values that a column could not take.  Args: values: how many; reason: why, what to do."""

    group: str
    name: str
    values: int
    reason: str

    def __str__(self) -> str:
        return f"{self.values} values of {self.name!r} in {self.group} not stored: {self.reason}"


@dataclass(frozen=True, slots=True)
class FileState:
    """What a published log file holds.

    Args:
        run: id of the run that owns it, 32 hex digits; "" for a log that is not ours.
        rows: ticks stored.
        applied: producer's hex id -> stream position up to which it is stored.
        columns: by (group, name).
        status: "running", "finished" or "crashed"; "" for a log that is not ours.
        start_time: seconds since the epoch at which time_elapsed is 0.
        size: bytes of the file.
        lost: ticks that producers could not keep, in all.
        refused: values that columns could not take, in all.
        kept: what the run has stored beside its log, as JSON; "" for nothing.
        tboard: bytes of the run's TensorBoard event file that count.
    """

    run: str
    rows: int
    applied: Mapping[str, int]
    columns: Mapping[Key, Column]
    status: str
    start_time: float
    size: int
    lost: int = 0
    refused: int = 0
    kept: str = ""
    tboard: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Append:
    """What one column gains.

    Args:
        before: the column as it is, None for a new one.
        after: as it will be; where its dtype differs, what is stored must be converted.
        values: shape (n, *after.shape), C-contiguous, of `numpy_dtype(after.dtype)`.
        rows: 0-based row numbers to append beside it; None where it stays dense.
    """

    before: Column | None
    after: Column
    values: Array
    rows: Rows | None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a publication appends.  Args: rows: ticks of the file afterwards."""

    rows: int
    appends: tuple[Append, ...]
    problems: tuple[Problem, ...]


ReadColumn: TypeAlias = Callable[[Column], Iterable[Array]]


def plan_append(
    state: FileState | None, blocks: Sequence[wire.Block], start_time: float, read: ReadColumn
) -> Plan:
    """Plan what the ticks of some blocks append to a file.

    Args:
        state: of the file; None for a new one.
        blocks: in arrival order, none of them stored yet.
        start_time: seconds since the epoch at which time_elapsed is 0.
        read: gives a column's stored values in pieces; these are asked for only where it holds
            integers and floats come.

    Returns:
        The plan.  Values that do not fit their column are left out and named in its problems.
    """
    known: Mapping[Key, Column] = state.columns if state else {}
    first = state.rows if state else 0
    blocks = [block for block in blocks if len(block)]
    times = np.concatenate([np.empty(0), *(block.times for block in blocks)])
    stop = first + len(times)
    appends = list(_own_clocks(known, times, first, start_time))
    problems: list[Problem] = []
    pieces = _pieces(blocks, first)
    for key in dict.fromkeys(itertools.chain(known, pieces)):
        before = known.get(key)
        fitting, refused = _sort_out(key, before, pieces.get(key, []))
        problems += refused
        if fitting:
            append = _plan_values(key, before, fitting, stop, read)
        elif before is not None and before.dense and before.length < stop and not _is_own(key):
            append = _plan_absence(before)
        else:
            continue
        if append.rows is not None and before is not None and before.dense:
            stored = _stored_rows(before, first, known)
            append = replace(append, rows=np.concatenate([stored, append.rows]))
        appends.append(append)
    return Plan(stop, tuple(appends), tuple(problems))


# --- from blocks to pieces of columns -------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """One field of all ticks of one schema.  Args: rows: of the ticks, ascending."""

    rows: Rows
    kind: Kind
    block: wire.Block
    index: int

    @property
    def holds(self) -> str:
        return _holds(Text(0) if self.kind.code == "str" else np.dtype("f8"), self.kind.shape)


def _holds(dtype: Dtype, shape: tuple[int, ...]) -> str:
    """What a column holds, in words; what holds the same can be joined."""
    if isinstance(dtype, Text) or dtype.kind == "S":
        return "text"
    return f"an array of shape {shape}" if shape else "a number"


def _pieces(blocks: Sequence[wire.Block], first: int) -> dict[Key, list[_Piece]]:
    """The pieces of each column, in the order of the first rows they touch."""
    found: dict[Key, list[_Piece]] = {}
    for block, rows in _join_schemas(blocks, first):
        keys = [("time", field.name) for field in block.schema.clock]
        keys += [("stats", field.name) for field in block.schema.stats]
        for index, (key, field) in enumerate(zip(keys, block.schema.fields, strict=True)):
            found.setdefault(key, []).append(_Piece(rows, field.kind, block, index))
    return found


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
        joined = b"".join([part.ticks.tobytes() for part in fixed])
        return wire.FixedBlock(schema, times, np.frombuffer(joined, fixed[0].ticks.dtype))
    lists = [part.values for part in parts if isinstance(part, wire.TextBlock)]
    columns = (list(itertools.chain.from_iterable(column)) for column in zip(*lists, strict=True))
    return wire.TextBlock(schema, times, tuple(columns))


# --- what a column gains --------------------------------------------------------------------------
def _sort_out(
    key: Key, before: Column | None, pieces: Sequence[_Piece]
) -> tuple[list[_Piece], list[Problem]]:
    """The pieces that the column takes, and a problem for each other."""
    holds = _holds(before.dtype, before.shape) if before else None
    fitting, problems = [], []
    for piece in pieces:
        if reason := _refusal(key, holds, piece):
            problems.append(Problem(*key, len(piece.rows), reason))
        else:
            holds = piece.holds
            fitting.append(piece)
    return fitting, problems


def _refusal(key: Key, holds: str | None, piece: _Piece) -> str:
    """Why a column cannot take a piece; "" where it can."""
    if _is_own(key):
        return "every tick has this clock from the daemon; log yours under another name"
    if holds not in (None, piece.holds):
        return f"the key holds {holds}, this is {piece.holds}; log it under another name"
    return ""


def _is_own(key: Key) -> bool:
    return key[0] == "time" and key[1] in layout.OWN_CLOCKS


def _plan_values(
    key: Key, before: Column | None, pieces: Sequence[_Piece], stop: int, read: ReadColumn
) -> Append:
    """What a column gains where it has values.  Args: stop: rows of the file afterwards."""
    columns = [piece.block.column(piece.index) for piece in pieces]
    dtype: Dtype
    if pieces[0].kind.code == "str":
        dtype, values = join_text(_text(before) if before else None, columns)
    else:
        stored = [(numpy_dtype(before.dtype), read(before))] if before else []
        values = join_numbers(stored, [np.asarray(column) for column in columns])
        dtype = values.dtype
    rows = np.concatenate([piece.rows for piece in pieces])
    if len(pieces) > 1:
        order = np.argsort(rows, kind="stable")
        rows, values = rows[order], values[order]
    length = len(values) + (before.length if before else 0)
    dense = length == stop and (before is None or before.dense)
    after = Column(*key, dtype, pieces[0].kind.shape, length, dense)
    return Append(before, after, np.ascontiguousarray(values), None if dense else rows)


def _text(column: Column) -> Text:
    """The type of a text column; mle-logging's are 5000 bytes wide, and become ours."""
    if isinstance(column.dtype, Text):
        return column.dtype
    return Text(text_width(column.dtype.itemsize))


def _plan_absence(before: Column) -> Append:
    """What a column gains that had every row so far, and none of the new ones."""
    after = replace(before, dense=False, sealed=False)
    nothing = np.empty((0, *before.shape), numpy_dtype(before.dtype))
    return Append(before, after, nothing, np.empty(0, np.int64))


def _stored_rows(column: Column, first: int, known: Mapping[Key, Column]) -> Rows:
    """The rows of the values beside which no row numbers are stored.

    All of them, as a rule.  In a log of mle-logging's a column may be shorter.  As long as one of
    the clocks that every update has it lacks the last rows: a kill came between.  Of any other,
    a clock of the user's included, nobody knows the rows; their values get negative numbers, which
    are those of no row.

    Args:
        first: rows of the file.
        known: its columns.
    """
    length = column.length
    own = {known[key].length for name in layout.OWN_CLOCKS if (key := ("time", name)) in known}
    if length == first or length in own:
        return np.arange(length, dtype=np.int64)
    return np.arange(-length, 0, dtype=np.int64)


def _own_clocks(
    known: Mapping[Key, Column], times: npt.NDArray[np.float64], first: int, start_time: float
) -> Iterator[Append]:
    """What the clocks gain that every tick has.

    In a log of mle-logging's they may be short, for a kill came between: they are filled up.
    """
    stop = first + len(times)
    lengths = [known[key].length if (key := ("time", n)) in known else 0 for n in layout.OWN_CLOCKS]
    short = first - min(lengths)
    times = np.concatenate([np.full(short, np.nan), times])
    if not len(times):
        return
    with np.errstate(invalid="ignore", over="ignore"):  # a time stamp may be any float
        elapsed = times - start_time
    updates = np.arange(first - short + 1, stop + 1, dtype=np.int64)
    clocks = (time_texts(times), elapsed, updates)
    for name, values, length in zip(layout.OWN_CLOCKS, clocks, lengths, strict=True):
        missing = values[length - stop :] if length < stop else values[:0]
        if len(missing):
            after = Column("time", name, values.dtype, (), stop, dense=True)
            yield Append(known.get(("time", name)), after, missing, None)
