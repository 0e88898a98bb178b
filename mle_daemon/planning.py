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
from typing import Final, TypeAlias

import numpy as np

from mle_client import layout, wire
from mle_client.messages import Kind, Schema
from mle_daemon.columns import Append, Column, FileState, Part, Plan, Problem
from mle_daemon.pieces import SLICE_BYTES, Key, Piece, Slice, Slices, fields_of, for_columns
from mle_daemon.values import (
    TIME_DTYPE,
    Array,
    NumberType,
    Text,
    TextType,
    convert,
    numpy_dtype,
    text_array,
    text_width,
    time_texts,
)

ReadColumn: TypeAlias = Callable[[Column], Iterable[Array]]


def plan_append(
    state: FileState | None,
    blocks: Sequence[wire.Block],
    start_time: float,
    read: ReadColumn,
    slice_bytes: int = SLICE_BYTES,
) -> Plan:
    """Plan what the ticks of some blocks append to a file.

    Args:
        state: of the file; None for a new one.
        blocks: in arrival order, none of them stored yet.
        start_time: seconds since the epoch at which time_elapsed is 0.
        read: gives a column's stored values in pieces; these are asked for only where it holds
            integers and floats come.
        slice_bytes: of the ticks that are columns at a time, about, in logs of not too many
            columns; whatever it is, the file becomes the same.

    Returns:
        The plan.  Values that do not fit their column are left out and named in its problems.
    """
    known: Mapping[Key, Column] = state.columns if state else {}
    first = state.rows if state else 0
    fields, ticks = _fields(blocks)
    stop = first + ticks
    slices = Slices(blocks, first, for_columns(slice_bytes, len(fields)))
    gains: list[_Gain] = []
    problems: list[Problem] = []
    for key in dict.fromkeys(itertools.chain(known, fields)):
        gain, refused = _sort_out(key, known.get(key), fields.get(key, []))
        gains.append(gain)
        problems += refused
    _look(gains, slices, read)
    clocks = list(_own_clocks(known, stop))
    planned = [(gain, _change(gain, first, stop, known)) for gain in gains]
    changes = [(gain, change) for gain, change in planned if change is not None]
    appends = (*clocks, *(change for _, change in changes))

    def parts() -> Iterator[Part]:
        at = {gain.key: change.before.length for gain, change in changes if change.before}
        for number, each in enumerate(slices):
            yield from _clock_parts(clocks, each, number == 0, start_time)
            for gain, change in changes:
                part = _part(gain, change, each, number == 0, at.get(gain.key, 0))
                if part.is_first or len(part.values):
                    yield part
                    at[gain.key] = part.at + len(part.values)

    return Plan(stop, appends, tuple(problems), parts)


# --- which column takes what ----------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Field:
    """A field of all ticks of one schema.  Args: ticks: how many there are."""

    kind: Kind
    ticks: int


@dataclass(slots=True, eq=False)
class _Gain:
    """What one column takes.

    Args:
        fields: in the order of the first rows they touch.
        form: what the column holds; None where it takes nothing.
        type: that it gets; None where it takes nothing.
    """

    key: Key
    before: Column | None
    fields: list[_Field]
    form: _Form | None
    type: NumberType | TextType | None

    @property
    def hangs_on_values(self) -> bool:
        """Whether the new values have to be looked at, and not their types alone."""
        if isinstance(self.type, NumberType):
            return any(self.type.hangs_on(np.dtype(field.kind.code)) for field in self.fields)
        return self.type is not None

    def pieces_of(self, part: Slice) -> list[Piece]:
        """The pieces of a slice that the column takes."""
        if self.form is None:
            return []
        return [p for p in part.pieces.get(self.key, ()) if _form_of(p.kind) == self.form]


def _fields(blocks: Sequence[wire.Block]) -> tuple[dict[Key, list[_Field]], int]:
    """The fields that go into each column, in the order of the first rows; and how many ticks."""
    ticks: dict[int, int] = {}  # a stream's schemas are single objects
    schemas: dict[int, Schema] = {}
    for block in blocks:
        if length := len(block):
            number = id(block.schema)
            if number not in schemas:
                schemas[number], ticks[number] = block.schema, 0
            ticks[number] += length
    found: dict[Key, list[_Field]] = {}
    for number, schema in schemas.items():
        for key, kind in fields_of(schema):
            found.setdefault(key, []).append(_Field(kind, ticks[number]))
    return found, sum(ticks.values())


_Form: TypeAlias = tuple[bool, tuple[int, ...]]  # what a column holds: text or not, and its shape


def _form_of(kind: Kind) -> _Form:
    return (True, ()) if kind.code == "str" else (False, kind.shape)


def _form_in(column: Column) -> _Form:
    if isinstance(column.dtype, Text) or column.dtype.kind == "S":
        return True, ()
    return False, column.shape


def _said(form: _Form) -> str:
    """What a column holds, in words."""
    is_text, shape = form
    if is_text:
        return "text"
    return f"an array of shape {shape}" if shape else "a number"


def _sort_out(
    key: Key, before: Column | None, fields: Sequence[_Field]
) -> tuple[_Gain, list[Problem]]:
    """What the column takes, and a problem for each field that it does not."""
    form = _form_in(before) if before else None
    fitting: list[_Field] = []
    problems = []
    for field in fields:
        if reason := _refusal(key, form, field.kind):
            problems.append(Problem(*key, field.ticks, reason))
        else:
            form = _form_of(field.kind)
            fitting.append(field)
    if not fitting or form is None:
        return _Gain(key, before, [], None, None), problems
    kind: NumberType | TextType
    if form[0]:
        kind = TextType(_text(before) if before else None)
    else:
        stored = [numpy_dtype(before.dtype)] if before else []
        kind = NumberType([*stored, *(np.dtype(field.kind.code) for field in fitting)])
    return _Gain(key, before, fitting, form, kind), problems


def _refusal(key: Key, form: _Form | None, kind: Kind) -> str:
    """Why a column cannot take a field; "" where it can."""
    if _is_own(key):
        return "every tick has this clock from the daemon; log yours under another name"
    given = _form_of(kind)
    if form not in (None, given):
        return f"the key holds {_said(form)}, this is {_said(given)}; log it under another name"
    return ""


def _is_own(key: Key) -> bool:
    return key[0] == "time" and key[1] in layout.OWN_CLOCKS


def _text(column: Column) -> Text:
    """The type of a text column; mle-logging's are 5000 bytes wide, and become ours."""
    if isinstance(column.dtype, Text):
        return column.dtype
    return Text(text_width(column.dtype.itemsize))


def _look(gains: Sequence[_Gain], slices: Slices, read: ReadColumn) -> None:
    """Look at the values that types hang on: once at the new ones, and at stored ones last."""
    hanging = [gain for gain in gains if gain.hangs_on_values]
    for each in slices if hanging else ():
        for gain in hanging:
            for piece in gain.pieces_of(each):
                if isinstance(gain.type, TextType):
                    gain.type.look(piece.texts)
                elif isinstance(gain.type, NumberType):
                    gain.type.look(piece.numbers())
    for gain in gains:
        if gain.before and isinstance(gain.type, NumberType):
            stored = numpy_dtype(gain.before.dtype)
            for values in read(gain.before) if gain.type.hangs_on(stored) else ():
                gain.type.look(values)


# --- what becomes of a column ---------------------------------------------------------------------
def _change(gain: _Gain, first: int, stop: int, known: Mapping[Key, Column]) -> Append | None:
    """What becomes of a column; None if nothing does.

    Args:
        first, stop: rows of the file, before and afterwards.
        known: its columns.
    """
    before = gain.before
    text_bytes = 0
    if gain.type is not None and gain.form is not None:
        length = sum(field.ticks for field in gain.fields) + (before.length if before else 0)
        dense = length == stop and (before is None or before.dense)
        after = Column(*gain.key, gain.type.dtype, gain.form[1], length, dense)
        text_bytes = gain.type.looked_at_bytes if isinstance(gain.type, TextType) else 0
    elif before and before.dense and before.length < stop and not _is_own(gain.key):
        after = replace(before, dense=False, sealed=False)  # it had every row so far
    else:
        return None
    becomes_sparse = before is not None and before.dense and not after.dense
    stored = _stored_rows(before, first, known) if before and becomes_sparse else range(0)
    return Append(before, after, stored, text_bytes)


def _part(gain: _Gain, change: Append, each: Slice, is_first: bool, at: int) -> Part:
    """What a slice appends to a column.  Args: is_first, at: as of `Part`."""
    pieces, after = gain.pieces_of(each), change.after
    if not pieces:
        nothing = np.empty((0, *after.shape), numpy_dtype(after.dtype))
        return Part(change, is_first, at, nothing, None if after.dense else np.empty(0, np.int64))
    if isinstance(after.dtype, Text):
        texts = [text for piece in pieces for text in piece.texts]
        values = text_array(texts, after.dtype)
    else:
        columns = [convert(piece.numbers(), after.dtype) for piece in pieces]
        values = columns[0] if len(columns) == 1 else np.concatenate(columns)
    rows = np.concatenate([piece.rows for piece in pieces])
    if len(pieces) > 1:
        order = np.argsort(rows, kind="stable")
        rows, values = rows[order], values[order]
    values = np.ascontiguousarray(values)
    return Part(change, is_first, at, values, None if after.dense else rows)


def _stored_rows(column: Column, first: int, known: Mapping[Key, Column]) -> range:
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
        return range(length)
    return range(-length, 0)


# --- the clocks that every tick has ---------------------------------------------------------------
_CLOCK_TYPES: Final = (TIME_DTYPE, np.dtype(np.float64), np.dtype(np.int64))  # of OWN_CLOCKS


def _own_clocks(known: Mapping[Key, Column], stop: int) -> Iterator[Append]:
    """What becomes of the clocks that every tick has.

    In a log of mle-logging's they may be short, for a kill came between: they are filled up.
    """
    for name, dtype in zip(layout.OWN_CLOCKS, _CLOCK_TYPES, strict=True):
        before = known.get(("time", name))
        if (before.length if before else 0) < stop:
            yield Append(before, Column("time", name, dtype, (), stop, dense=True))


def _clock_parts(
    clocks: Sequence[Append], each: Slice, is_first: bool, start_time: float
) -> Iterator[Part]:
    """What a slice appends to these clocks, the first also what they lack before it."""
    if not (clocks and (is_first or len(each.times))):
        return
    lengths = [clock.before.length if clock.before else 0 for clock in clocks]
    start = min(each.first, *lengths) if is_first else each.first
    times = np.concatenate([np.full(each.first - start, np.nan), each.times])
    if not len(times):
        return
    with np.errstate(invalid="ignore", over="ignore"):  # a time stamp may be any float
        elapsed = times - start_time
    updates = np.arange(start + 1, start + len(times) + 1, dtype=np.int64)
    values = dict(zip(layout.OWN_CLOCKS, (time_texts(times), elapsed, updates), strict=True))
    for clock, length in zip(clocks, lengths, strict=True):
        at = max(start, length)
        yield Part(clock, is_first, at, values[clock.after.name][at - start :], None)
