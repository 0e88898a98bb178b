"""Compares what log files hold: bit for bit, or whether one goes on where another ends.

It reads; what follows from a difference is decided elsewhere.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5t

from mle_client import layout
from mle_client.group_copies import Copy, reading_source
from mle_client.h5access import (
    UNREADABLE,
    Id,
    datasets,
    decoded,
    encoded,
    reading,
    said,
)

_BLOCK_BYTES: Final = 2**18  # compared at once; fits the processor's cache
_CONFIG: Final = "config_dict"


def differences(copies: Iterable[Copy], path: str) -> list[tuple[Copy, str]]:
    """Compare copies with what they are of: types, shapes, attributes, and every stored byte.

    Args:
        path: of the file with the copies.

    Returns:
        The copies that differ, each with a path in that file at which it does.

    Raises:
        LogNotFound: a source is gone, or was replaced.
        LogDamaged: the file with the copies is none, or a source no longer.
        OSError: a file cannot be read.
    """
    found: list[tuple[Copy, str]] = []
    with reading(path) as (new, new_fd):
        for _, group in itertools.groupby(copies, lambda copy: copy.source):
            same = list(group)
            with reading_source(same[0]) as (old, old_fd, is_still):
                if not is_still:
                    continue  # its run goes on, and nothing follows from what was copied
                pair = _Pair(old_fd, new_fd)
                different = (pair.compare(old, each.group, new, each.name) for each in same)
                found += [pairing for pairing in zip(same, different, strict=True) if pairing[1]]
    return found


class _Pair:
    """Two files being compared.  Args: old, new: descriptors of them."""

    def __init__(self, old: int, new: int) -> None:
        self._files = old, new

    def compare(self, old: Id, name: str, new: Id, copy: str) -> str:
        """Compare two objects and all in them.

        Args:
            old, new: the groups that they are in.
            name, copy: their names there.

        Returns:
            The path of the first difference; "" if there is none.
        """
        try:
            one, other = h5o.open(old, encoded(name)), h5o.open(new, encoded(copy))
            return next(self._differences(one, other, copy), "")
        except UNREADABLE as error:
            return f"{copy}: {said(error)}"

    def _differences(self, one: Id, other: Id, path: str) -> Iterator[str]:
        if type(one) is not type(other) or not _same_attributes(one, other):
            yield path
        elif isinstance(one, h5t.TypeID):
            if one != other:
                yield path
        elif isinstance(one, h5d.DatasetID):
            if not self._same_dataset(one, other):
                yield path
        else:
            links, copied = _links(one), _links(other)
            for name in links.keys() | copied.keys():
                inside = _inside(path, name)
                if links.get(name) != copied.get(name):
                    yield inside
                elif links[name] == h5l.TYPE_HARD:
                    yield from self._differences(h5o.open(one, name), h5o.open(other, name), inside)
                elif one.links.get_val(name) != other.links.get_val(name):
                    yield inside

    def _same_dataset(self, one: Id, other: Id) -> bool:
        kind = one.get_type()
        if one.shape != other.shape or kind != other.get_type():
            return False
        if one.shape is None:  # HDF5's "no data at all"
            return True
        storage = one.get_create_plist()
        if not storage.equal(other.get_create_plist()):
            return False
        is_varying = isinstance(kind, h5t.TypeStringID) and kind.is_variable_str()
        places = None if is_varying or kind.detect_class(h5t.VLEN) else _places(one, storage)
        if places is None:
            return all(_are_identical(a, b) for a, b in _blocks(one, other))
        copied = _places(other, storage)
        return (
            copied is not None
            and places.keys() == copied.keys()
            and all(places[at][1:] == copied[at][1:] for at in places)
            and all(itertools.starmap(self._same_bytes, _stretches(places, copied)))
        )

    def _same_bytes(self, start: int, other_start: int, size: int) -> bool:
        old, new = self._files
        for done in range(0, size, _BLOCK_BYTES):
            count = min(_BLOCK_BYTES, size - done)
            part = os.pread(old, count, start + done)
            if len(part) != count or part != os.pread(new, count, other_start + done):
                return False
        return True


def _links(group: Id) -> dict[bytes, int]:
    """The kind of each link in a group."""
    found: dict[bytes, int] = {}
    group.links.iterate(lambda name, info: found.__setitem__(name, info.type), info=True)
    return found


def _inside(path: str, name: bytes) -> str:
    return f"{path}/{name.decode(errors='replace')}"


def contains(older: tuple[str, str], newer: tuple[str, str]) -> bool:
    """Whether a seed has all values of another one, at the beginning of its columns.

    What a run says of itself in meta/ is no value, but for its configuration.

    Args:
        older, newer: path of a file, and name of the group in it.

    Raises:
        LogNotFound: a file is gone.
        LogDamaged: one is no log, or no longer.
        OSError: one cannot be read.
    """
    with reading(older[0]) as (old_file, old_fd), reading(newer[0]) as (new_file, new_fd):
        old, new = (
            h5g.open(file, encoded(name))
            for file, name in ((old_file, older[1]), (new_file, newer[1]))
        )
        columns = _value_columns(new)
        return all(
            name in columns and _begins_with(columns[name], column)
            for name, column in _value_columns(old).items()
        ) and not any(
            _Pair(old_fd, new_fd).compare(old, name, new, name)
            for name in map(decoded, old)
            if name not in layout.GROUPS
        )


def _value_columns(seed: Id) -> dict[str, Id]:
    """The datasets of a seed that hold what was logged, by path; and its configuration.

    mle-logging's names with slashes are paths here; ours have them escaped.
    """
    found = {}
    for group in layout.GROUPS:
        if group.encode() in seed:
            for name, dataset in datasets(h5g.open(seed, group.encode())):
                if group != "meta":
                    found[f"{group}/{layout.unescape(name)}"] = dataset
                elif name == _CONFIG or layout.is_rows_name(name):
                    found[f"{group}/{name}"] = dataset
    return found


def _begins_with(column: Id, start: Id) -> bool:
    """Whether the first values of a column are those of another, whatever types they have."""
    if len(column.shape) != len(start.shape) or column.shape[1:] != start.shape[1:]:
        return False
    if column.shape and column.shape[0] < start.shape[0]:
        return False
    return all(_are_equal(*values) for values in _blocks(start, column))


# --- values ---------------------------------------------------------------------------------------
def _blocks(one: Id, other: Id) -> Iterator[tuple[Any, Any]]:
    """The values of a dataset, and the first ones of another, in blocks."""
    if not one.shape:
        yield h5py.Dataset(one)[()], h5py.Dataset(other)[()]
        return
    row_bytes = max(1, int(np.prod(one.shape[1:], dtype=np.int64)) * one.dtype.itemsize)
    step = max(1, _BLOCK_BYTES // row_bytes)
    here, there = h5py.Dataset(one), h5py.Dataset(other)
    for at in range(0, one.shape[0], step):
        part = slice(at, min(one.shape[0], at + step))
        yield here[part], there[part]


def _are_equal(one: Any, other: Any) -> bool:
    """Whether values are the same, in whatever types; NaN is NaN.

    Texts are compared as they are stored: two bytes that stand for a NUL stand for nothing else.
    """
    a, b = np.asarray(one), np.asarray(other)
    if a.shape != b.shape:
        return False
    if a.dtype.kind in "SO" or b.dtype.kind in "SO":
        return _comparable(a) == _comparable(b)
    if a.dtype != b.dtype and a.dtype.kind in "iuf" and b.dtype.kind in "iuf":
        a, b = a.astype(np.longdouble), b.astype(np.longdouble)  # a double rounds large integers
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc"))


def _are_identical(one: Any, other: Any) -> bool:
    """Whether values of one type are the same bit for bit."""
    a, b = np.asarray(one), np.asarray(other)
    if a.dtype.hasobject:
        return _comparable(a) == _comparable(b)
    return a.tobytes() == b.tobytes()


def _comparable(values: Any) -> list[Any]:
    """Values of an array of texts, or of objects, which may be arrays of their own."""
    return [
        (each.dtype.str, each.shape, each.tobytes())
        if isinstance(each, np.ndarray)
        else (each.encode() if isinstance(each, str) else each)
        for each in values.ravel().tolist()
    ]


class _Place(NamedTuple):
    """Where a chunk lies in its file, in bytes."""

    offset: int
    size: int
    filter_mask: int


def _places(dataset: Id, storage: Id) -> dict[tuple[int, ...], _Place] | None:
    """Where a dataset's bytes lie, chunk by chunk.

    Args:
        storage: its creation properties.

    Returns:
        One place at () where it is in one piece; None where it has no place of its own.
    """
    kind = storage.get_layout()
    if kind == h5d.CONTIGUOUS and not storage.get_external_count():
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


def _stretches(
    places: dict[tuple[int, ...], _Place], copied: dict[tuple[int, ...], _Place]
) -> Iterator[tuple[int, int, int]]:
    """What is to be compared of two files: offset in the one, in the other, size.

    Chunks that follow one another in both make one stretch.
    """
    start = other_start = size = 0
    for at, one in places.items():
        other = copied[at]
        if (one.offset, other.offset) == (start + size, other_start + size):
            size += one.size
            continue
        if size:
            yield start, other_start, size
        start, other_start, size = one.offset, other.offset, one.size
    if size:
        yield start, other_start, size


def _same_attributes(one: Id, other: Id) -> bool:
    count = h5a.get_num_attrs(one)
    if count != h5a.get_num_attrs(other):
        return False
    return all(_same_attribute(h5a.open(one, index=i), other) for i in range(count))


def _same_attribute(one: Id, holder: Id) -> bool:
    """Whether another holder has the same attribute."""
    if not h5a.exists(holder, one.name):
        return False
    other = h5a.open(holder, one.name)
    if one.get_type() != other.get_type() or one.shape != other.shape:
        return False
    return one.shape is None or _are_identical(_value(one), _value(other))


def _value(attribute: Id) -> Any:
    value = np.empty(attribute.shape, attribute.dtype)
    attribute.read(value)
    return value
