"""HDF5 as log files use it: opening, columns in blocks, attributes, what a file holds.

Only images in memory and files under names of our own are opened to be written.  What is written
is for `h5edit`; which file becomes which, and when, for `store`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5o, h5s, h5t

from mle_client import layout
from mle_client.errors import LogDamaged
from mle_client.h5access import access, attribute, decoded, encoded, image_name, image_of
from mle_daemon.columns import Column, FileState
from mle_daemon.h5datasets import Id, Stored, read_blocks
from mle_daemon.values import Array, Dtype, Text

# h5py has no type information.
H5File: TypeAlias = Any  # h5py.File, which is convenient
Edit: TypeAlias = Callable[[Id], None]

ATTRIBUTES_BYTES: Final = 256 * 1024  # the few texts and attributes of a file, generously
INLINE_BYTES: Final = 60_000  # text in an object header, which has 64 KiB for an attribute
_UNREADABLE: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError)


# --- opening --------------------------------------------------------------------------------------
def edit_image(image: bytes, edit: Edit, path: str) -> bytes:
    """A file's bytes after some changes; no file is touched.

    Args:
        path: where the image was read from, for errors.

    Raises:
        LogDamaged: it is no HDF5 file.
    """
    file = _open(image_name(), h5f.ACC_RDWR, access(image), path)
    try:
        edit(file)
        return image_of(file)
    finally:
        file.close()


def edit_file(path: str, edit: Edit) -> None:
    """Change a file that nobody else has open.

    Raises:
        LogDamaged: it is no HDF5 file.
    """
    file = _open(encoded(path), h5f.ACC_RDWR, access(), path)
    try:
        edit(file)
    finally:
        file.close()


@contextmanager
def opened(path: str, image: bytes | None = None) -> Iterator[H5File]:
    """A file to read.

    Args:
        path: of the file.
        image: its bytes, if they were read already.

    Yields:
        An h5py.File.

    Raises:
        LogDamaged: it is no HDF5 file, or no longer.
    """
    name = encoded(path) if image is None else image_name()
    with h5py.File(_open(name, h5f.ACC_RDONLY, access(image), path)) as file:
        yield file


def _open(name: bytes, flags: int, access: Any, path: str) -> Id:
    try:
        return h5f.open(name, flags, access)
    except OSError as error:
        if error.errno:  # the system refuses; the file may be good
            raise
        raise LogDamaged(path, f"it is no HDF5 file that can be read: {error}") from error


# --- types, columns -------------------------------------------------------------------------------
@functools.lru_cache(maxsize=256)
def file_type(dtype: Dtype) -> Id:
    """The HDF5 type of a column in the file."""
    return h5t.py_create(_tagged(dtype), logical=True)


@functools.lru_cache(maxsize=256)
def memory_type(dtype: Dtype) -> Id:
    """The HDF5 type of its values in memory."""
    return h5t.py_create(_tagged(dtype))


def _tagged(dtype: Dtype) -> np.dtype[Any]:
    """A numpy type that tells h5py of the encoding, too."""
    if isinstance(dtype, Text):
        tagged: np.dtype[Any] = h5py.string_dtype("utf-8", dtype.width or None)
        return tagged
    return dtype


def column_blocks(file: H5File, seed_id: str, column: Column) -> Iterator[Array]:
    """The values of a column in blocks."""
    group, stored = file[seed_id][column.group], layout.escape(column.name)
    dataset = group[stored if stored in group else column.name]  # the latter in a foreign log
    for _, values in read_blocks(Stored.of(dataset.id)):
        yield values


# --- attributes -----------------------------------------------------------------------------------
def set_number(owner: Id, name: str, value: np.int64 | np.float64) -> None:
    """Set an attribute to a number."""
    _set(owner, name, np.array(value), h5t.py_create(value.dtype))


def set_text(owner: Id, name: str, text: str) -> None:
    """Set an attribute to a text of any length, which h5py reads as str."""
    _set(owner, name, np.array(text, h5py.string_dtype()), file_type(Text(0)))


def set_changing_text(owner: Id, name: str, text: str) -> None:
    """Set an attribute to a text that each publication changes, which h5py reads as bytes.

    HDF5 replaces a text of fixed length without leaving a hole, unlike one of varying length.  It
    is padded with spaces, so that its size seldom changes.
    """
    encoded = text.encode()
    width = -(-max(1, len(encoded)) // 64) * 64
    if width > INLINE_BYTES:
        set_text(owner, name, text)
        return
    dtype = Text(width)
    _set(owner, name, np.array(encoded.ljust(width), f"S{width}"), file_type(dtype))


def get_text(value: object) -> str:
    """An attribute's text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _set(owner: Id, name: str, value: Array, kind: Id) -> None:
    key = name.encode()
    if h5a.exists(owner, key):
        present = h5a.open(owner, key)
        if present.get_type() == kind and not value.dtype.hasobject:
            present.write(value, kind)
            return
        h5a.delete(owner, key)
    h5a.create(owner, key, kind, h5s.create(h5s.SCALAR)).write(
        value, None if value.dtype.hasobject else kind
    )


# --- what a file holds ----------------------------------------------------------------------------
def describe(file: H5File, path: str, size: int) -> FileState:
    """What a log file holds.

    Args:
        file: of ours or of mle-logging's.
        size: bytes of the file.

    Raises:
        LogDamaged: there is no log in it, or one whose parts do not fit together.
    """
    try:
        seeds = [group for group in file.values() if set(layout.GROUPS) & set(group)]
        if not seeds:
            raise LogDamaged(path, "there is no log in it")
        seed = seeds[0]
        if layout.FORMAT_ATTR not in seed.attrs:
            return _describe_foreign(seed, size)
        if seed.attrs[layout.FORMAT_ATTR] > layout.FILE_FORMAT:
            raise LogDamaged(path, "a newer release wrote it; update mle-daemon")
        state = _describe_ours(seed, size)
        _check_lengths(seed, state, path)
    except _UNREADABLE as error:
        raise LogDamaged(path, f"it cannot be read: {error}") from error
    return state


def is_still(file: Id, seed_id: str, state: FileState) -> bool:
    """Whether a file that is open for changes holds the run and rows that it should."""
    try:
        seed = h5o.open(file, seed_id.encode())
        run = attribute(seed, layout.RUN_ATTR.encode())
        rows = attribute(seed, layout.ROWS_ATTR.encode())
    except (KeyError, RuntimeError, ValueError):  # it is not there, or damaged
        return False
    # A log of mle-logging's says neither.
    return (run, rows) == (state.run, state.rows) if state.run else run is None


def _describe_ours(seed: H5File, size: int) -> FileState:
    meta = set(seed["meta"])
    columns = {}
    for group in ("time", "stats"):
        inside = seed[group].id
        for stored in inside:
            name = layout.unescape(decoded(stored))
            dense = layout.rows_name(group, name) not in meta
            columns[group, name] = _column(group, name, h5d.open(inside, stored), dense)
    holder = seed.id
    return FileState(
        run=get_text(_needed(holder, layout.RUN_ATTR)),
        rows=int(_needed(holder, layout.ROWS_ATTR)),
        applied=json.loads(get_text(_needed(holder, layout.APPLIED_ATTR))),
        columns=columns,
        status=get_text(_needed(holder, layout.STATE_ATTR)),
        start_time=float(_needed(holder, layout.START_ATTR)),
        size=size,
        lost=_count(holder, layout.LOST_ATTR),
        refused=_count(holder, layout.REFUSED_ATTR),
        tboard=_count(holder, layout.TBOARD_ATTR),
        kept=_text_of(seed["meta"], layout.KEPT_NAME) if layout.KEPT_NAME in meta else "",
    )


def _needed(holder: Id, name: str) -> Any:
    """The value of an attribute that is in every log of ours."""
    value = attribute(holder, name.encode())
    if value is None:
        raise KeyError(f"there is no {name}")
    return value


def _count(holder: Id, name: str) -> int:
    """The value of an attribute that is absent where it is 0."""
    value = attribute(holder, name.encode())
    return 0 if value is None else int(value)


def _text_of(meta: H5File, name: str) -> str:
    """A text that is padded with spaces."""
    return get_text(meta[name][0]).rstrip(" ")


def _check_lengths(seed: H5File, state: FileState, path: str) -> None:
    """Raise unless every column has a value, or says that it has none, for each row."""
    for column in state.columns.values():
        rows = state.rows
        if not column.dense:
            rows = len(seed["meta"][layout.rows_name(column.group, column.name)])
        if column.length != rows:
            raise LogDamaged(path, f"{column.name!r} has {column.length} values for {rows} rows")


def _describe_foreign(seed: H5File, size: int) -> FileState:
    """What a log of mle-logging's holds, which does not say to which rows a value belongs."""
    columns = {
        (group, name): _column(group, name, dataset.id, dense=True)
        for group in ("time", "stats")
        for name, dataset in foreign_columns(seed, group)
    }
    rows = max((column.length for column in columns.values()), default=0)
    return FileState("", rows, {}, columns, "", 0.0, size)


def foreign_columns(seed: H5File, group: str) -> list[tuple[str, H5File]]:
    """The columns of a log of mle-logging's by name: a name with slashes is nested groups there."""
    found: list[tuple[str, H5File]] = []

    def visit(name: str, item: H5File) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            found.append((name, item))

    if group in seed:
        seed[group].visititems(visit)
    return found


def _column(group: str, name: str, dataset: Id, dense: bool) -> Column:
    length, *shape = dataset.shape
    dtype: Dtype = dataset.get_type().dtype
    text = h5py.check_string_dtype(dtype)
    if text is not None and text.encoding == "utf-8":
        dtype = Text(text.length or 0, bool(h5a.exists(dataset, layout.STRING_ATTR.encode())))
    properties = dataset.get_create_plist()
    sealed = properties.get_layout() != h5d.CHUNKED or properties.get_nfilters() > 0
    return Column(group, name, dtype, tuple(shape), length, dense, sealed)
