"""Compares what log files hold: bit for bit, or whether one goes on where another ends.

It reads; what follows from a difference is decided elsewhere.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5o, h5t

from mle_client import layout
from mle_client.h5access import Id, attribute, datasets, encoded, reading, text_of
from mle_client.seed_groups import Copy

_BLOCK_BYTES: Final = 2**18  # compared at once; fits the processor's cache
_FILES_AT_ONCE: Final = 2  # whose bytes wait to be compared


def differences(copies: Iterable[Copy], path: str) -> list[str]:
    """Compare copies with what they are of: types, shapes, attributes, and every stored byte.

    Args:
        path: of the file with the copies.

    Returns:
        What differs, as paths in that file; empty where nothing does.

    Raises:
        OSError: a file cannot be read.
    """
    found: list[str] = []
    with reading(path) as (new, new_fd), ThreadPoolExecutor(1, "mle-merge-compare") as reader:
        bytes_compared: deque[Future[list[str]]] = deque()
        for source, group in itertools.groupby(copies, lambda copy: copy.source):
            with reading(source) as (old, old_fd):
                pair = _Pair(found)
                for copy in group:
                    here, there = h5g.open(old, encoded(copy.group)), encoded(copy.name)
                    pair.compare_groups(here, h5g.open(new, there), copy.name)
                # While HDF5 looks at the next source; the system's calls leave Python alone.
                bytes_compared.append(
                    reader.submit(_different_bytes, os.dup(old_fd), new_fd, pair.places)
                )
            if len(bytes_compared) > _FILES_AT_ONCE:
                found += bytes_compared.popleft().result()
        while bytes_compared:
            found += bytes_compared.popleft().result()
    return found


class _Place(NamedTuple):
    """Where a chunk lies in its file, in bytes."""

    offset: int
    size: int
    filter_mask: int


class _Pair:
    """Groups of two files being compared, but for the bytes of their datasets.

    Args:
        found: takes the paths of what differs.

    Attributes:
        places: path of a dataset, and where a piece of it lies in either file.
    """

    def __init__(self, found: list[str]) -> None:
        self.places: list[tuple[str, _Place, _Place]] = []
        self._found = found

    def compare_groups(self, old: Id, new: Id, path: str) -> None:
        """Compare two groups and all in them."""
        if not _same_attributes(old, new):
            self._found.append(path)
        names, copied = set(old), set(new)
        self._found.extend(_inside(path, name) for name in names ^ copied)
        for name in names & copied:
            one, other, where = h5o.open(old, name), h5o.open(new, name), _inside(path, name)
            if isinstance(one, h5g.GroupID) and isinstance(other, h5g.GroupID):
                self.compare_groups(one, other, where)
            elif type(one) is not type(other) or not self._alike(one, other, where):
                self._found.append(where)

    def _alike(self, one: Id, other: Id, path: str) -> bool:
        """Whether two datasets have the same form; and values, where these have no places."""
        kind = one.get_type()
        if one.shape != other.shape or kind != other.get_type():
            return False
        if not _same_attributes(one, other):
            return False
        storage = one.get_create_plist()
        if not storage.equal(other.get_create_plist()):
            return False
        is_varying = isinstance(kind, h5t.TypeStringID) and kind.is_variable_str()
        places = None if is_varying or kind.detect_class(h5t.VLEN) else _places(one, storage)
        if places is None:
            return _same_values(one, other)
        copied = _places(other, storage)
        if copied is None or places.keys() != copied.keys():
            return False
        self.places += [(path, place, copied[at]) for at, place in places.items()]
        return True


def _different_bytes(old: int, new: int, places: list[tuple[str, _Place, _Place]]) -> list[str]:
    """The paths of datasets whose bytes differ.

    Args:
        old: descriptor of one file; it is closed.
        new: descriptor of the other.
    """
    try:
        buffers = np.empty((2, _BLOCK_BYTES), np.uint8)
        different = {path for path, *pair in places if not _same_bytes((old, new), pair, buffers)}
    finally:
        os.close(old)
    return sorted(different)


def _same_bytes(files: tuple[int, int], places: Sequence[_Place], buffers: Any) -> bool:
    one, other = places
    if (one.size, one.filter_mask) != (other.size, other.filter_mask):
        return False
    for done in range(0, one.size, _BLOCK_BYTES):
        parts = buffers[:, : min(_BLOCK_BYTES, one.size - done)]
        for part, fd, place in zip(parts, files, places, strict=True):
            if os.preadv(fd, [part], place.offset + done) != len(part):
                return False
        if not np.array_equal(*parts):
            return False
    return True


def _inside(path: str, name: bytes) -> str:
    return f"{path}/{name.decode(errors='replace')}"


def contains(older: tuple[str, str], newer: tuple[str, str]) -> bool:
    """Whether the columns of a seed hold all values of another one, at their beginning.

    Args:
        older, newer: path of a file, and name of the group in it.

    Raises:
        OSError: a file cannot be read.
    """
    with reading(older[0]) as (old_file, _), reading(newer[0]) as (new_file, _):
        old, new = (
            h5g.open(file, encoded(name))
            for file, name in ((old_file, older[1]), (new_file, newer[1]))
        )
        columns = _value_columns(new)
        return all(
            name in columns and _begins_with(columns[name], column)
            for name, column in _value_columns(old).items()
        )


def _value_columns(seed: Id) -> dict[str, Id]:
    """The datasets of a seed that hold what was logged, by path.

    mle-logging's names with slashes are paths here; ours have them escaped.
    """
    found = {}
    for group in layout.GROUPS:
        if group.encode() in seed:
            for name, dataset in datasets(h5g.open(seed, group.encode())):
                if group != "meta" or layout.is_rows_name(name):
                    found[f"{group}/{layout.unescape(name)}"] = dataset
    return found


def _begins_with(column: Id, start: Id) -> bool:
    """Whether the first values of a column are those of another, whatever types they have."""
    if column.shape[0] < start.shape[0] or column.shape[1:] != start.shape[1:]:
        return False
    if (attribute(column, layout.STRING_ATTR) is None) != (
        attribute(start, layout.STRING_ATTR) is None
    ):
        return False
    return all(_are_equal(one, other) for one, other in _blocks(column, start, start.shape[0]))


def _same_values(one: Id, other: Id) -> bool:
    return all(_are_equal(a, b) for a, b in _blocks(one, other, one.shape[0] if one.shape else 1))


def _blocks(one: Id, other: Id, rows: int) -> Iterator[tuple[Any, Any]]:
    """The first rows of two datasets, in blocks."""
    row_bytes = max(1, int(np.prod(one.shape[1:], dtype=np.int64)) * one.dtype.itemsize)
    step = max(1, _BLOCK_BYTES // row_bytes)
    here, there = h5py.Dataset(one), h5py.Dataset(other)
    for at in range(0, rows, step):
        part = slice(at, min(rows, at + step)) if one.shape else ()
        yield here[part], there[part]


def _are_equal(one: Any, other: Any) -> bool:
    a, b = np.asarray(one), np.asarray(other)
    if a.dtype.kind in "SO" or b.dtype.kind in "SO":
        # Text of fixed width ends in NUL; of varying width it does not.
        texts = ([text_of(each) for each in array.ravel().tolist()] for array in (a, b))
        return a.shape == b.shape and next(texts) == next(texts)
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc"))


def _places(dataset: Id, storage: Id) -> dict[tuple[int, ...], _Place] | None:
    """Where a dataset's bytes lie, chunk by chunk.

    Args:
        storage: its creation properties.

    Returns:
        One place at () where it is in one piece; None where it has no place of its own.
    """
    kind = storage.get_layout()
    if kind == h5d.CONTIGUOUS:
        offset = dataset.get_offset()
        return {} if offset is None else {(): _Place(offset, dataset.get_storage_size(), 0)}
    if kind != h5d.CHUNKED:
        return None
    found: list[Any] = []
    if hasattr(dataset, "chunk_iter"):  # not with HDF5 before 1.12.3
        dataset.chunk_iter(found.append)
    else:
        found = [dataset.get_chunk_info(i) for i in range(dataset.get_num_chunks())]
    return {tuple(c.chunk_offset): _Place(c.byte_offset, c.size, c.filter_mask) for c in found}


def _same_attributes(one: Id, other: Id) -> bool:
    count = h5a.get_num_attrs(one)
    if count != h5a.get_num_attrs(other):
        return False
    return all(_same_attribute(h5a.open(one, index=i), other) for i in range(count))


def _same_attribute(one: Id, holder: Id) -> bool:
    """Whether another holder has the same attribute."""
    if not h5a.exists(holder, one.name):
        return False
    values = []
    other = h5a.open(holder, one.name)
    if one.get_type() != other.get_type() or one.shape != other.shape:
        return False
    for each in (one, other):
        value = np.empty(each.shape, each.dtype)
        each.read(value)
        values.append(value.tolist() if value.dtype.hasobject else value.tobytes())
    return bool(values[0] == values[1])
