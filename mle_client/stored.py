"""Columns and values that are still in their file, read when they are wanted.

    StoredColumn    of stats/ and time/: an array, text as str
    StoredValue     of meta/: a number, a text, a list, the configuration

Where the bytes lie is `storage`'s, the file `openlog`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
from h5py import h5a, h5d

from mle_client import layout, parallel
from mle_client.blocks import Array, one_by_one
from mle_client.configs import config_from_text
from mle_client.h5access import attribute
from mle_client.lazydict import Once, Unread
from mle_client.openlog import OpenLog
from mle_client.storage import (
    NOT_AS_DESCRIBED,
    Storage,
    describe,
    is_plain,
    read_all,
    read_by_hdf5,
    read_into,
    read_piece,
    shape_and_dtype,
)
from mle_client.text import decoded, text_column, time_column

# A column of fewer bytes is read as soon as anything is asked of it: that takes HDF5 no longer.
_SMALL_BYTES: Final = 64 * 1024
# From so many stored bytes on it pays to let threads help: starting them takes 0.1 ms.
_SEVERAL_BYTES: Final = 512 * 1024
# Text is read in blocks of so many bytes: mle-logging stores 5000 for every string.
_TEXT_BLOCK_BYTES: Final = 4 * 2**20
_ESCAPED: Final = layout.STRING_ATTR.encode()
_JSON: Final = layout.JSON_ATTR.encode()


class _Dataset:
    """Where a dataset is.  Args: file: that it is in; path: of it."""

    __slots__ = ("_file", "_path")

    def __init__(self, file: OpenLog, path: bytes) -> None:
        self._file = file
        self._path = path

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with self._file.reading():
            hdf5 = self._file.hdf5()  # is kept open meanwhile
            yield h5d.open(hdf5, self._path)


class StoredValue(_Dataset, Unread):
    """A value of meta/.  Args: name: of it."""

    __slots__ = ("_name",)

    def __init__(self, file: OpenLog, path: bytes, name: str) -> None:
        super().__init__(file, path)
        self._name = name

    def load(self) -> Any:
        """Read it: a list of one item becomes the item, text a str, the configuration a dict."""
        with self._opened() as dataset:
            stored = read_all(dataset, *shape_and_dtype(dataset, self._file.size))
            if stored.dtype.kind in "SO":
                stored = decoded(stored, h5a.exists(dataset, _ESCAPED))
            values = stored.tolist()
            value = values[0] if len(values) == 1 else values
            if self._name == "config_dict" and isinstance(value, str):
                return config_from_text(value, attribute(dataset, _JSON) or "")
            return value


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is stored.  Args: escaped: whether C0 80 stands for NUL in text."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    escaped: bool

    @property
    def is_text(self) -> bool:
        """Text, of fixed or varying length."""
        return self.dtype.kind in "SO"

    @property
    def is_small(self) -> bool:
        """So little that HDF5 reads it as quickly as it says where it lies."""
        return math.prod(self.shape) * self.dtype.itemsize < _SMALL_BYTES


class StoredColumn(_Dataset, Unread):
    """A column.  It is a `blocks.Column`.

    Args:
        is_time: whether it is the clock "time", which is a numpy text array; other text is objects.
        rows: reads the updates at which it was logged; None if there is nothing to read.
    """

    __slots__ = ("_found", "_is_time", "_kind", "_rows")

    def __init__(
        self, file: OpenLog, path: bytes, *, is_time: bool = False, rows: Once | None = None
    ) -> None:
        super().__init__(file, path)
        self._is_time = is_time
        self._rows = rows
        self._kind: _Kind | None = None
        self._found: Storage | Array | None = None  # where it lies, or all of it if it is small

    # --- what it is -----------------------------------------------------------------------------
    def _ask(self) -> _Kind:
        """What is stored."""
        kind = self._kind
        if kind is None:
            with self._opened() as dataset:
                kind = self._kind = self._kind_of(dataset)
                if kind.is_small and is_plain(dataset, kind.shape, kind.dtype):
                    self._found = read_all(dataset, kind.shape, kind.dtype)
        return kind

    def _kind_of(self, dataset: Any) -> _Kind:
        shape, dtype = shape_and_dtype(dataset, self._file.size)
        return _Kind(shape, dtype, dtype.kind in "SO" and h5a.exists(dataset, _ESCAPED))

    def prepare(self) -> Storage | Array:
        """Find out where it lies, after which reading needs no HDF5 as a rule.

        Returns:
            That, or all that is stored if it is little.
        """
        found = self._found
        if found is None:
            with self._opened() as dataset:
                kind = self._kind = self._kind or self._kind_of(dataset)
                if kind.is_small:
                    found = read_all(dataset, kind.shape, kind.dtype)
                else:
                    found = describe(dataset, kind.shape, kind.dtype, plain=self._file.plain)
            self._found = found
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, *shape of a value)."""
        return self._ask().shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its values; object for text."""
        kind = self._ask()
        return np.dtype(object) if kind.is_text else kind.dtype.newbyteorder("=")

    @property
    def chunk_rows(self) -> int:
        """Rows that are compressed together."""
        found = self.prepare()
        return found.piece_rows if isinstance(found, Storage) and found.filters else 1

    def __len__(self) -> int:
        return self.shape[0]

    # --- its values -----------------------------------------------------------------------------
    def read_into(self, target: Array, start: int) -> None:
        """Read what is stored from row `start` on."""
        found = self.prepare()
        if isinstance(found, Storage):
            with self._file.reading():
                read_into(self._file, self._path, found, target, start)
            return
        target[...] = found[start : start + len(target)]
        if start + len(target) == len(found):
            self._found = None  # of many seeds they would add up; who wants them again reads again

    def _read_text(self, start: int, stop: int) -> Array:
        """Text of some rows, or up to the end."""
        kind = self._ask()
        rows, *item = kind.shape
        stored: Array = np.empty((min(stop, rows) - start, *item), kind.dtype)
        self.read_into(stored, start)
        return decoded(stored, kind.escaped)

    def load(self) -> Array:
        """All rows; also reads the updates at which they were logged."""
        return self.load_all([self])[0]

    @classmethod
    def load_all(cls, unread: Sequence[StoredColumn]) -> list[Array]:
        """All rows of several columns, read side by side."""
        loadings = [column._begin() for column in unread]
        several = sum(loading.stored_bytes for loading in loadings) >= _SEVERAL_BYTES
        share = parallel.each if several else one_by_one
        share(lambda step: step(), [step for loading in loadings for step in loading.steps])
        return [column._end(loading) for column, loading in zip(unread, loadings, strict=True)]

    def _begin(self) -> _Loading:
        found, kind = self.prepare(), self._ask()
        if kind.is_text:
            storage = found if isinstance(found, Storage) else Storage(kind.shape, kind.dtype)
            return _Texts(self._read_text, storage, self._is_time)
        if isinstance(found, Storage):
            return _Numbers(self._file, self._path, found)
        return _Small(found)

    def _end(self, loading: _Loading) -> Array:
        with self._file.reading():
            array = loading.end()
        if self._rows is not None:
            self._rows.load()
        return array


# --- a column that is being loaded ----------------------------------------------------------------
class _Loading(Protocol):
    """What there is to do.

    Attributes:
        steps: may be taken in any order, and several at once.
        stored_bytes: that they read; 0 where that is not much.
    """

    @property
    def steps(self) -> Sequence[Callable[[], None]]: ...
    @property
    def stored_bytes(self) -> int: ...

    def end(self) -> Array:
        """The column, once all steps were taken."""


class _Small:
    """Numbers that were read already."""

    steps: Sequence[Callable[[], None]] = ()
    stored_bytes = 0

    def __init__(self, values: Array) -> None:
        self._values = values

    def end(self) -> Array:
        """The numbers."""
        return self._values


class _Numbers:
    """Numbers, of which each piece is a step."""

    def __init__(self, file: OpenLog, path: bytes, storage: Storage) -> None:
        self._file = file
        self._path = path
        self._storage = storage
        self._values: Array = np.empty(storage.shape, storage.dtype)
        self._failed = storage.pieces is None
        self.stored_bytes = sum(piece.size for piece in storage.pieces or ())

    @property
    def steps(self) -> list[Callable[[], None]]:
        """One a piece."""
        return [partial(self._read, i) for i in range(len(self._storage.pieces or ()))]

    def _read(self, number: int) -> None:
        with self._file.reading():
            try:
                read_piece(self._file, self._storage, number, self._values, 0)
            except NOT_AS_DESCRIBED:
                self._failed = True

    def end(self) -> Array:
        """The numbers."""
        if self._failed:  # HDF5 can read it, or says what is wrong
            everything = self._storage.shape[0]
            return read_by_hdf5(self._file, self._path, self._storage, 0, everything)
        return self._values.astype(self._storage.dtype.newbyteorder("="), copy=False)


class _Texts:
    """Text, of which a block of some MB is a step: it shrinks when it is decoded.

    Args:
        read: reads some rows as text.
    """

    def __init__(self, read: Callable[[int, int], Array], storage: Storage, is_time: bool) -> None:
        rows, row_bytes = storage.shape[0], max(1, storage.row_bytes)
        step = max(1, _TEXT_BLOCK_BYTES // row_bytes)
        if storage.filters:
            step = max(1, step // storage.piece_rows) * storage.piece_rows
        self._starts = range(0, rows, step)
        self._read = read
        self._is_time = is_time
        self._shape = storage.shape
        self._blocks: dict[int, Array] = {}
        self.stored_bytes = sum(piece.size for piece in storage.pieces or ())

    @property
    def steps(self) -> list[Callable[[], None]]:
        """One a block."""
        return [partial(self._read_block, start) for start in self._starts]

    def _read_block(self, start: int) -> None:
        self._blocks[start] = self._read(start, start + self._starts.step)

    def end(self) -> Array:
        """The text."""
        blocks = [self._blocks[start] for start in sorted(self._blocks)]
        return time_column(blocks) if self._is_time else text_column(blocks, self._shape)
