"""How a dataset lies in its file, and its rows as they are stored.

HDF5 lets one thread in at a time, and keeps the chunks of every dataset that it read.  So where a
dataset is stored as log files have it (in one piece or in chunks of whole rows, plain or shuffled
and deflated), HDF5 is asked once where the bytes are, and they are read and decompressed without
it, by any number of threads.  Whatever else there may be, HDF5 reads.

What a damaged header says is not believed: no dataset is taken to be larger than the file can hold.

It makes no text of bytes; that is `stored`'s.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, Final

import h5py
import numpy as np
from h5py import h5d, h5s, h5t, h5z

from mle_client.blocks import Array
from mle_client.openlog import OpenLog

# Types that nearly all columns have; h5py takes 12 us to find out what any type is in numpy.
_COMMON: Final = (
    (h5t.IEEE_F64LE, np.dtype("<f8")),
    (h5t.STD_I64LE, np.dtype("<i8")),
    (h5t.IEEE_F32LE, np.dtype("<f4")),
)
_KNOWN_FILTERS: Final = frozenset({h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32})
_MEMORY: Final = {dtype: h5t.py_create(dtype) for _, dtype in _COMMON}
# By how much deflate can shrink anything: two bits stand for 258 bytes.
_DEFLATE_RATIO: Final = 1032
# What reading a piece raises if its bytes are not as described.
NOT_AS_DESCRIBED: Final = (ValueError, zlib.error)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows that are stored together.

    Args:
        offset, size: in the file, in bytes.
        skipped: bit i is set where filter i was not applied.
    """

    offset: int
    size: int
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Storage:
    """How a dataset lies in its file.

    Args:
        shape: (rows, *shape of a value); at least one-dimensional.
        dtype: as stored; object for text of varying length.
        piece_rows: rows a piece; the last one may have fewer.
        pieces: in order of rows; None where HDF5 must read.
        filters: codes of HDF5's filters, in the order in which they were applied.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    piece_rows: int = 1
    pieces: tuple[Piece, ...] | None = None
    filters: tuple[int, ...] = ()

    @property
    def values_a_row(self) -> int:
        """Numbers or texts that make up one value."""
        return math.prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of a value, not compressed."""
        return self.values_a_row * self.dtype.itemsize


# --- describing -----------------------------------------------------------------------------------
def shape_and_dtype(dataset: Any, file_bytes: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape, at least one-dimensional, and stored type of a dataset.

    Args:
        dataset: its h5d id.
        file_bytes: size of the file.

    Raises:
        ValueError: there cannot be so many values in the file.
    """
    shape = dataset.shape
    if shape is None:  # HDF5's "no data at all"
        return (0,), np.dtype(np.float64)
    dtype = _dtype(dataset.get_type())
    if math.prod(shape) * dtype.itemsize > file_bytes:  # seldom, so the rest may take its time
        _check_chunks(dataset, math.prod(shape) * dtype.itemsize, dtype)
    return shape or (1,), dtype


def _check_chunks(dataset: Any, wanted: int, dtype: np.dtype[Any]) -> None:
    """See that chunks make up a dataset that is larger than its file.

    Chunks that were never written stand for fill values in HDF5, but no log has any.

    Args:
        wanted: bytes that the dataset takes.
    """
    properties = dataset.get_create_plist()
    present = 0
    if properties.get_layout() == h5d.CHUNKED:
        present = dataset.get_num_chunks() * math.prod(properties.get_chunk()) * dtype.itemsize
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        if set(filters) <= _KNOWN_FILTERS:  # others may shrink by more
            ratio = _DEFLATE_RATIO ** filters.count(h5z.FILTER_DEFLATE)
            present = min(present, ratio * dataset.get_storage_size())
    if wanted > present:
        raise ValueError(f"a dataset of {wanted} bytes, of which the file has {present} at most")


def describe(dataset: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *, plain: bool) -> Storage:
    """Find out how a dataset lies in its file.

    Args:
        dataset: its h5d id.
        shape, dtype: see `shape_and_dtype`.
        plain: see `OpenLog`.
    """
    if not plain or 0 in shape or not _is_direct(dataset.get_type(), dtype):
        return Storage(shape, dtype)
    properties = dataset.get_create_plist()
    kind = properties.get_layout()
    if kind == h5d.CONTIGUOUS:
        offset = dataset.get_offset()
        if offset is None or properties.get_external_count():
            return Storage(shape, dtype)
        piece = Piece(offset, math.prod(shape) * dtype.itemsize)
        return Storage(shape, dtype, shape[0], (piece,))
    filters = _filters(properties, dtype)
    if kind != h5d.CHUNKED or filters is None:
        return Storage(shape, dtype)
    rows, *item = properties.get_chunk()
    if tuple(item) != shape[1:]:
        return Storage(shape, dtype)
    pieces = _chunks(dataset, -(-shape[0] // rows))
    chunk_bytes = rows * math.prod(item) * dtype.itemsize
    if pieces and filters and chunk_bytes > _DEFLATE_RATIO * min(piece.size for piece in pieces):
        return Storage(shape, dtype)
    return Storage(shape, dtype, rows, pieces, filters)


def is_plain(dataset: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether nothing has to be decompressed to read all of a dataset."""
    return bool(dataset.get_storage_size() == math.prod(shape) * dtype.itemsize)


def _dtype(kind: Any) -> np.dtype[Any]:
    """The numpy type of an HDF5 type."""
    found = next((dtype for known, dtype in _COMMON if kind.equal(known)), None)
    return kind.dtype if found is None else found


def _is_direct(kind: Any, dtype: np.dtype[Any]) -> bool:
    """Whether the stored bytes are those that numpy has."""
    if any(kind.equal(known) for known, _ in _COMMON):
        return True
    if dtype.kind == "S":
        return bool(kind.get_strpad() == h5t.STR_NULLPAD)
    if dtype.kind not in "biuf":
        return False
    try:
        return bool(h5t.py_create(dtype, logical=True).equal(kind))
    except TypeError:
        return False


def _filters(properties: Any, dtype: np.dtype[Any]) -> tuple[int, ...] | None:
    """Codes of the filters; None where one of them is not known here."""
    codes = []
    for i in range(properties.get_nfilters()):
        code, _, values, _ = properties.get_filter(i)
        is_shuffle = code == h5z.FILTER_SHUFFLE and values[:1] == (dtype.itemsize,)
        if not is_shuffle and code != h5z.FILTER_DEFLATE:
            return None
        codes.append(code)
    return tuple(codes)


def _chunks(dataset: Any, expected: int) -> tuple[Piece, ...] | None:
    """Where the chunks are; None where some were never written."""
    found: list[Any] = []
    if hasattr(dataset, "chunk_iter"):  # from HDF5 1.14 on; the other way is slow for many
        dataset.chunk_iter(found.append)
    else:
        found += [dataset.get_chunk_info(i) for i in range(dataset.get_num_chunks())]
    if len(found) != expected:
        return None
    found.sort(key=lambda chunk: chunk.chunk_offset)
    return tuple(Piece(chunk.byte_offset, chunk.size, chunk.filter_mask) for chunk in found)


# --- reading --------------------------------------------------------------------------------------
def read_piece(file: OpenLog, storage: Storage, number: int, target: Array, start: int) -> None:
    """Read rows of one piece.

    Args:
        storage: has pieces.
        number: of the piece.
        target: gets the rows: C-contiguous, of the stored type.
        start: number of the row that is `target`'s first; where rows of the piece lie outside of
            `target`, they are left out.

    Raises:
        NOT_AS_DESCRIBED: the stored bytes are others.
        EOFError: the file is shorter than it was.  HDF5 would read zeros.
    """
    assert storage.pieces is not None
    piece, first = storage.pieces[number], number * storage.piece_rows
    begin, end = max(first, start), min(first + storage.piece_rows, start + len(target))
    row_bytes, size = storage.row_bytes, storage.dtype.itemsize
    into = target[begin - start : end - start].reshape(-1).view(np.uint8)
    if not storage.filters:
        data = file.read(piece.offset + (begin - first) * row_bytes, (end - begin) * row_bytes)
        into[:] = np.frombuffer(data, np.uint8)
        return
    data = file.read(piece.offset, piece.size)
    used = [code for i, code in enumerate(storage.filters) if not piece.skipped >> i & 1]
    while used and used[-1] == h5z.FILTER_DEFLATE:
        used.pop()
        data = zlib.decompress(data, bufsize=storage.piece_rows * row_bytes)
    plain = np.frombuffer(data, np.uint8)
    if len(plain) != storage.piece_rows * row_bytes or len(used) > 1:
        raise ValueError(f"a chunk of {len(plain)} bytes, not {storage.piece_rows * row_bytes}")
    here = slice((begin - first) * storage.values_a_row, (end - first) * storage.values_a_row)
    if used:  # shuffled: the first bytes of all values, then the second ones, …
        planes, values = plain.reshape(size, -1), into.reshape(-1, size)
        for i in range(size):
            values[:, i] = planes[i, here]
    else:
        into[:] = plain[here.start * size : here.stop * size]


def read_into(file: OpenLog, path: bytes, storage: Storage, target: Array, start: int) -> None:
    """Read rows from `start` on, converted to the type of `target`.

    Args:
        path: of the dataset in the file.
        target: C-contiguous, of the shape of the rows.
    """
    stop = start + len(target)
    if storage.pieces is None:
        target[...] = read_by_hdf5(file, path, storage, start, stop)
        return
    rows = target
    if target.dtype != storage.dtype:
        rows = np.empty(target.shape, storage.dtype)
    try:
        for number in range(start // storage.piece_rows, -(-stop // storage.piece_rows)):
            read_piece(file, storage, number, rows, start)
    except NOT_AS_DESCRIBED:  # HDF5 can read it, or says what is wrong
        rows = read_by_hdf5(file, path, storage, start, stop)
    if rows is not target:
        target[...] = rows


def read_by_hdf5(file: OpenLog, path: bytes, storage: Storage, start: int, stop: int) -> Array:
    """Rows of a dataset, whatever way it is stored."""
    if not storage.values_a_row or stop <= start:
        shape = (max(0, stop - start), *storage.shape[1:])
        return np.empty(shape, storage.dtype.newbyteorder("="))
    hdf5 = file.hdf5()  # is kept open until this returns
    dataset = h5py.Dataset(h5d.open(hdf5, path))
    stored = np.asarray(dataset[start:stop] if dataset.shape else [dataset[()]])
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def read_all(dataset: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """All values of a dataset, as they are stored, in this machine's byte order.

    Args:
        dataset: its h5d id.
        shape, dtype: see `shape_and_dtype`.
    """
    if dtype.hasobject:
        return np.asarray(h5py.Dataset(dataset)[()]).reshape(shape)
    values: Array = np.empty(shape, dtype.newbyteorder("="))
    if values.size:
        dataset.read(h5s.ALL, h5s.ALL, values.reshape(dataset.shape), _MEMORY.get(dtype))
    return values
