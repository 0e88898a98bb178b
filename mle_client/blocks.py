"""Columns that are read some rows at a time, so that none need be in memory as a whole.

Pure: it says what such a column is, and makes one of an array.  `stored` has those of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"
T = TypeVar("T")


class Column(Protocol):
    """A column whose rows are read when they are wanted.

    Attributes:
        shape: (rows, *shape of a value).
        dtype: of the values; object for text.
        chunk_rows: rows that are stored together: a block that begins at a multiple of this
            number costs least.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def chunk_rows(self) -> int: ...
    def __len__(self) -> int: ...

    def read_into(self, target: Array, start: int) -> None:
        """Read rows from `start` on; several threads may do so at once.

        Args:
            target: C-contiguous, of the shape of the rows that are wanted and of any type that
                they can be converted to; all of them must be there.
        """

    def load(self) -> Array:
        """All rows."""


class Each(Protocol):
    """Calls a function for each item, in any order and maybe for several at once."""

    def __call__(self, function: Callable[[T], None], items: Sequence[T], /) -> None: ...


def one_by_one(function: Callable[[T], None], items: Sequence[T]) -> None:
    """The plainest `Each`."""
    for item in items:
        function(item)


class ArrayColumn:
    """A column that is in memory.  Args: array: shape (rows, *shape of a value)."""

    __slots__ = ("_array",)

    def __init__(self, array: Array) -> None:
        self._array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def chunk_rows(self) -> int:
        return 1

    def __len__(self) -> int:
        return len(self._array)

    def read_into(self, target: Array, start: int) -> None:
        """Copy some rows."""
        target[...] = self._array[start : start + len(target)]

    def load(self) -> Array:
        """The array."""
        return self._array
