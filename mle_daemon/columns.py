"""What a log file holds, by columns, and what a publication makes of it: values, no decisions.

Pure.  `planning` makes a `Plan`, `store` carries it out with `h5edit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mle_daemon.pieces import Key, Rows
from mle_daemon.values import REFERENCE_BYTES, Array, Dtype, is_varying, numpy_dtype


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
    """What becomes of one column.

    Args:
        before: the column as it is, None for a new one.
        after: as it will be; where its dtype differs, what is stored must be converted.
        stored_rows: 0-based row numbers of what is stored, where they must be stored from now on.
        text_bytes: of the new values, where they are text.
    """

    before: Column | None
    after: Column
    stored_rows: range = range(0)
    text_bytes: int = 0

    @property
    def gained(self) -> int:
        """How many values are new."""
        return self.after.length - (self.before.length if self.before else 0)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of what one column gains.

    Args:
        change: of the column.
        is_first: nothing was done to the column yet.
        at: values in the column before these.
        values: shape (n, *after.shape), C-contiguous, of `numpy_dtype(after.dtype)`.
        rows: their 0-based row numbers, to be appended beside them; None where it is dense.
    """

    change: Append
    is_first: bool
    at: int
    values: Array
    rows: Rows | None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a publication appends.

    Args:
        rows: ticks of the file afterwards.
        appends: a column is in it once.
        problems: values that are left out.
        parts: what to append, in order, made while it is gone through: of each column first a part,
            which may be without values, then as many as it takes.
    """

    rows: int
    appends: tuple[Append, ...]
    problems: tuple[Problem, ...]
    parts: Callable[[], Iterator[Part]]
