"""Columns that were logged at different updates, read as if they had the same steps.

Pure.  A step is an update at which any of them was logged; where a column was not, it has NaN.

    logged at 0, 10, 20    a b c          steps 0, 10, 15, 20    a  b  NaN  c
    logged at 0, 15, 20    d e f     ──>                         d  NaN  e  f

Neither values nor row numbers are held as a whole: both are read a block at a time, and of each
column only the row number with which each block begins is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mle_client.blocks import Array, Column, Each, one_by_one
from mle_client.updates import Rows, count_unknown, known

# Row numbers that are read at a time: a chunk of a sealed log, 128 KiB.
_BLOCK_ROWS: Final = 16_384
_SEVERAL: Final = 2**17  # row numbers from which on it pays to let threads help


@dataclass(frozen=True, slots=True)
class Logged:
    """A column, and when it was logged.

    Args:
        column: its values.
        rows: the updates at which they were logged, see `updates`; None for all from the first on.
    """

    column: Column
    rows: Column | None

    def blocks(self) -> Iterator[tuple[int, Rows]]:
        """Where each block begins, and its row numbers."""
        for start in range(0, len(self.column), _BLOCK_ROWS):
            yield start, self.block(start)

    def block(self, start: int) -> Rows:
        """Row numbers of the values from `start` on."""
        stop = min(start + _BLOCK_ROWS, len(self.column))
        if self.rows is None:
            return np.arange(start, stop, dtype=np.int64)
        found = np.empty(stop - start, np.int64)
        self.rows.read_into(found, start)
        return found

    def last(self) -> int:
        """The last row number, below 0 if there is none."""
        length = len(self.column)
        if self.rows is None or not length:
            return length - 1
        found = np.empty(1, np.int64)
        self.rows.read_into(found, length - 1)
        return int(found[0])


def have_steps(logged: Sequence[Logged], steps: Rows, each: Each = one_by_one) -> bool:
    """Whether value i of every column was logged at step i.

    Args:
        logged: none longer than `steps`.
        each: see `summary.summarise`.
    """
    differing: list[Logged] = []

    def compare(one: Logged) -> None:
        length = len(one.column)
        if one.rows is None:  # steps ascend
            if length and (steps[0] != 0 or steps[length - 1] != length - 1):
                differing.append(one)
            return
        for start, rows in one.blocks():
            if differing:
                return
            if not np.array_equal(rows, steps[start : start + len(rows)]):
                differing.append(one)

    sparse = [one for one in logged if one.rows is not None]
    _share(each, sparse)(compare, logged)
    return not differing


def place(logged: Sequence[Logged], each: Each = one_by_one) -> tuple[Rows, list[Column], int]:
    """Give columns the same steps.

    Returns:
        The updates at which any of them was logged; the columns over these; and how many values
        were left out, for nobody knows their updates.
    """
    there = np.zeros(max(one.last() for one in logged) + 1, bool)  # by update
    firsts: dict[int, Rows] = {}
    unknown: list[int] = []

    def survey(number: int) -> None:
        begins = []
        for _, rows in logged[number].blocks():
            begins.append(rows[0])
            unknown.append(count_unknown(rows))
            there[rows[known(rows)]] = True  # all that any thread writes
        firsts[number] = np.array(begins, np.int64)

    _share(each, logged)(survey, range(len(logged)))
    steps = np.flatnonzero(there).astype(np.int64, copy=False)
    over_steps: list[Column] = [_Placed(one, firsts[i], steps) for i, one in enumerate(logged)]
    return steps, over_steps, sum(unknown)


def _share(each: Each, logged: Sequence[Logged]) -> Each:
    return each if sum(len(one.column) for one in logged) >= _SEVERAL else one_by_one


class _Placed:
    """A column over steps at which not all of its values were logged; it is a `blocks.Column`.

    Args:
        logged: the column.
        firsts: the row number with which each of its blocks begins.
        steps: row numbers, ascending; all that the column has are among them, but for unknown ones.
    """

    def __init__(self, logged: Logged, firsts: Rows, steps: Rows) -> None:
        self._logged = logged
        self._firsts = firsts
        self._steps = steps

    @property
    def shape(self) -> tuple[int, ...]:
        """(steps, *shape of a value)."""
        return (len(self._steps), *self._logged.column.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """A type of floats, which has NaN."""
        dtype = self._logged.column.dtype
        return dtype if dtype.kind == "f" else np.dtype(np.float64)

    @property
    def chunk_rows(self) -> int:
        return self._logged.column.chunk_rows

    def __len__(self) -> int:
        return len(self._steps)

    def read_into(self, target: Array, start: int) -> None:
        """Read some steps.  Args: target: of floats."""
        target[...] = np.nan
        steps = self._steps[start : start + len(target)]
        if not len(steps):
            return
        number = max(int(np.searchsorted(self._firsts, steps[0], side="right")) - 1, 0)
        while number < len(self._firsts) and self._firsts[number] <= steps[-1]:
            at = number * _BLOCK_ROWS
            rows = self._logged.block(at)
            begin = int(np.searchsorted(rows, steps[0]))
            end = int(np.searchsorted(rows, steps[-1], side="right"))
            if begin < end:
                values = np.empty((end - begin, *target.shape[1:]), target.dtype)
                self._logged.column.read_into(values, at + begin)
                target[np.searchsorted(steps, rows[begin:end])] = values
            number += 1

    def load(self) -> Array:
        """All steps."""
        everything: Array = np.empty(self.shape, self.dtype)
        self.read_into(everything, 0)
        return everything
