"""Groups and datasets of HDF5: made, and written and read by rows.

In HDF5's own interface, which is many times as fast as h5py's for little data.  It knows nothing of
logs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from h5py import h5d, h5g, h5p, h5s, h5t

from mle_daemon.values import Array

Id: TypeAlias = Any  # of a file, group or dataset; h5py has no type information

BLOCK_BYTES: Final = 4 * 2**20  # read or written at once where a column need not be held whole


# --- made -----------------------------------------------------------------------------------------
def link(name: str) -> tuple[bytes, Any]:
    """A name for a new group or dataset, and the properties of the link."""
    return name.encode(), _link_properties(name.isascii())


@functools.cache
def _link_properties(is_ascii: bool) -> Id:
    properties = h5p.create(h5p.LINK_CREATE)
    if not is_ascii:
        properties.set_char_encoding(h5t.CSET_UTF8)
    return properties


def create(group: Id, name: str, kind: Id, space: Id, properties: Id) -> Id:
    """Make a dataset.  Args: kind: its type in the file; properties: as `creation` makes them."""
    encoded, link_properties = link(name)
    return h5d.create(group, encoded, kind, space, properties, link_properties)


@functools.lru_cache(maxsize=256)
def creation(chunk: tuple[int, ...] | None, compressed: bool = False) -> Id:
    """Properties of a new dataset.

    Args:
        chunk: its shape, None to store the dataset in one piece.
        compressed: whether chunks are.
    """
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)  # so that equal logs are equal files
    if chunk is not None:
        properties.set_chunk(tuple(max(1, length) for length in chunk))
    if compressed:
        properties.set_shuffle()
        properties.set_deflate(1)
    return properties


def create_group(parent: Id, name: str) -> Id:
    """Make a group."""
    encoded, link_properties = link(name)
    return h5g.create(parent, encoded, link_properties)


# --- by rows --------------------------------------------------------------------------------------
class Stored(NamedTuple):
    """A dataset, and what is asked of it often: HDF5 is slow to say it.

    Args:
        kind: its type in the file.
        dtype: of its values in memory.
        memory: the HDF5 type of these.
    """

    dataset: Id
    shape: tuple[int, ...]
    kind: Id
    dtype: np.dtype[Any]
    memory: Id

    @classmethod
    def of(cls, dataset: Id) -> Stored:
        """Ask a dataset."""
        kind = dataset.get_type()
        dtype = kind.dtype
        return cls(dataset, dataset.shape, kind, dtype, h5t.py_create(dtype))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def append_rows(dataset: Id, at: int, values: Array, memory: Id) -> None:
    """Let a dataset that has `at` rows grow by some values."""
    if len(values):
        dataset.set_extent((at + len(values), *values.shape[1:]))
        write_rows(dataset, at, values, memory, at + len(values))


def write_rows(dataset: Id, at: int, values: Array, memory: Id, length: int) -> None:
    """Write C-contiguous values over the rows of a dataset from row `at` on.

    Args:
        length: rows of the dataset.
    """
    if not values.size:
        return
    if len(values) == length:
        dataset.write(h5s.ALL, h5s.ALL, values, memory)
    else:
        dataset.write(*_selection(dataset, at, values.shape), values, memory)


def read_blocks(stored: Stored) -> Iterator[tuple[int, Array]]:
    """The rows of a dataset in blocks of bounded size, each with the number of its first row."""
    length, *shape = stored.shape
    step = max(1, BLOCK_BYTES // max(1, stored.row_bytes))
    for at in range(0, length, step):
        values = np.empty((min(step, length - at), *shape), stored.dtype)
        if len(values) == length and values.size:
            stored.dataset.read(h5s.ALL, h5s.ALL, values, stored.memory)
        elif values.size:
            space = _selection(stored.dataset, at, values.shape)
            stored.dataset.read(*space, values, stored.memory)
        yield at, values


def _selection(dataset: Id, at: int, shape: tuple[int, ...]) -> tuple[Id, Id]:
    """Rows in memory and in the file."""
    rows = dataset.get_space()
    rows.select_hyperslab((at,) + (0,) * (len(shape) - 1), shape)
    return h5s.create_simple(shape), rows
