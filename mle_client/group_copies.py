"""Groups of seeds, copied from file to file.

The only writer of HDF5 in the client, and only of files under names of our own, which nobody else
has open.  It does not decide what goes where (`merge_plan`), nor give a file its name
(`merged_file`).

A group is copied by HDF5 itself, object by object: compressed chunks are moved as they are.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from h5py import h5f, h5fd, h5g, h5o, h5p, h5t

from mle_client import files
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.h5access import (
    UNREADABLE,
    Id,
    access,
    datasets,
    empty_image,
    encoded,
    image_name,
    reading,
    said,
)

# Room for a copy's place in the groups above it, and for blocks that are not full.
_GROUP_BYTES: Final = 8 * 2**10
_DATASET_BYTES: Final = 4 * 2**10  # header and index of a dataset
_SPARE_BYTES: Final = 64 * 2**10
_SMALL_BYTES: Final = 8 * 2**20  # as much room as this may be asked for in vain
_SYNC_EVERY_S: Final = 0.05  # while a file is written: the disk works meanwhile


@dataclass(frozen=True, slots=True)
class Copy:
    """A group to copy.

    Args:
        source: path of the file that it is in.
        group: its name there, "/"-separated.
        name: its name in the new file, likewise.
        stamp: which file was looked at; None for whichever is there.
        grows: its run goes on, so that a later file of it will do as well.
    """

    source: str
    group: str
    name: str
    stamp: files.Stamp | None = None
    grows: bool = False


@contextmanager
def reading_source(copy: Copy) -> Iterator[tuple[Id, int, bool]]:
    """The file that a copy is of, a descriptor of it, and whether it is the one looked at.

    Raises:
        LogNotFound: it is gone, or another one has its name and is no later file of the run.
        LogDamaged, OSError: as of `reading`.
    """
    with reading(copy.source) as (file, fd):
        is_still = copy.stamp in (None, files.Stamp.of(os.fstat(fd)))
        if not is_still and not copy.grows:
            raise LogNotFound(copy.source, "it was replaced meanwhile")
        yield file, fd, is_still


# --- writing --------------------------------------------------------------------------------------
def write_copies(
    path: str,
    fd: int,
    copies: Sequence[Copy],
    *,
    base: str = "",
    on_copied: Callable[[Copy], None] = lambda copy: None,
) -> list[tuple[Copy, str]]:
    """Write a file of copied groups.  It is not synced; see `synced_meanwhile`.

    Args:
        path: of a new, empty file.
        fd: a descriptor of it.
        copies: what to copy into it.
        base: a file whose content comes first, as it is; "" for none.
        on_copied: told of each copy.

    Returns:
        The copies that could not be made, and why.  What was written of them may be in the file.

    Raises:
        LogNotFound: a source is gone, or was replaced.
        OSError: there is no room, or the disk fails.
    """
    if base:
        with open(base, "rb") as file:
            files.copy_all(file.fileno(), fd)
    else:
        files.write_all(fd, empty_image())
    files.reserve(fd, os.fstat(fd).st_size + _room(copies))
    failed: list[tuple[Copy, str]] = []
    with _editing(fd, path) as (target, sink):
        for _, group in itertools.groupby(copies, lambda copy: copy.source):
            failed += _copy_all(list(group), target, on_copied)
            sink.check()
    return failed


@contextmanager
def _editing(fd: int, path: str) -> Iterator[tuple[Id, _Sink]]:
    """A file to write to, by its descriptor.  Args, Raises: as of `write_copies`."""
    sink = _Sink(fd, path)
    try:
        target = _opened(sink)
        try:
            yield target, sink
        finally:
            target.close()
    except UNREADABLE as error:
        sink.check()
        if isinstance(error, OSError):
            raise
        raise OSError(errno.EIO, said(error), path) from error
    sink.check()


def _opened(sink: _Sink) -> Id:
    properties = access()
    properties.set_fileobj_driver(h5fd.fileobj_driver, sink)
    try:
        return h5f.open(image_name(), h5f.ACC_RDWR, properties)
    finally:
        # An error's traceback could keep it until HDF5 ends, which calls Python for it: a crash.
        del properties


class _Sink:
    """A file as HDF5 is to see it: one that takes everything.

    HDF5 does not get over a write that fails: it keeps the file open, and tries again until the
    interpreter ends, which may crash then.  So an error is kept here, and ^C, too.

    Args:
        fd: a descriptor of the file.
        path: of it, for errors.
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._at = 0
        self._error: BaseException | None = None  # the first one

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        match self._error:
            case None:
                return
            case OSError(errno=code):
                raise OSError(code or errno.EIO, os.strerror(code or errno.EIO), self._path)
            case error:
                raise error

    def _keep(self, error: BaseException) -> None:
        self._error = self._error or error.with_traceback(None)

    # --- called by HDF5 ---------------------------------------------------------------------------
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Say where the next bytes are read or written."""
        self._at = offset + (os.fstat(self._fd).st_size if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        """Where that is."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes; zeros where the file has none."""
        room = memoryview(buffer)
        done = 0
        try:
            done = os.preadv(self._fd, [room], self._at)
        except BaseException as error:
            self._keep(error)
        room[done:] = bytes(len(room) - done)
        return len(room)

    def write(self, data: memoryview) -> int:
        """Write bytes."""
        rest, at = memoryview(data), self._at
        try:
            while rest:
                done = os.pwrite(self._fd, rest, at)
                rest, at = rest[done:], at + done
        except BaseException as error:
            self._keep(error)
        return len(data)

    def truncate(self, size: int) -> int:
        """Let the file end somewhere."""
        try:
            os.ftruncate(self._fd, size)
        except BaseException as error:
            self._keep(error)
        return size

    def flush(self) -> None:
        """Nothing is kept back."""


def _copy_all(
    copies: Sequence[Copy], target: Id, on_copied: Callable[[Copy], None]
) -> list[tuple[Copy, str]]:
    """Copy groups of one file.  Returns: those that could not be copied, and why."""
    failed: list[tuple[Copy, str]] = []
    try:
        with reading_source(copies[0]) as (file, _, _):
            for copy in copies:
                try:
                    _copy(copy, file, target)
                except UNREADABLE as error:
                    failed.append((copy, f"it cannot be copied: {said(error)}"))
                on_copied(copy)
    except LogNotFound:
        raise
    except LogDamaged as error:
        return [(copy, error.why) for copy in copies]
    except OSError as error:
        return [(copy, f"it cannot be read: {error.strerror}") for copy in copies]
    return failed


def _copy(copy: Copy, file: Id, target: Id) -> None:
    links = h5p.create(h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    if not copy.name.isascii():
        links.set_char_encoding(h5t.CSET_UTF8)
    h5o.copy(file, encoded(copy.group), target, encoded(copy.name), lcpl=links)


@contextmanager
def synced_meanwhile(fd: int) -> Iterator[None]:
    """Have the disk take what is being written, so that the last sync has little to wait for.

    Raises:
        OSError: the disk fails.  The system says so only once, so it must not be passed over.
    """
    done = threading.Event()
    errors: list[OSError] = []

    def sync() -> None:
        while not done.wait(_SYNC_EVERY_S) and not errors:
            try:
                os.fdatasync(fd)
            except OSError as error:
                errors.append(error)

    thread = threading.Thread(target=sync, name="mle-merge-sync")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if errors:
        raise errors[0]


# --- room -----------------------------------------------------------------------------------------
def _room(copies: Sequence[Copy]) -> int:
    """Bytes that copies take at the most: HDF5 lays them at least as densely as they lay."""
    total = sum(
        _size(source, [copy.group for copy in group])
        for source, group in itertools.groupby(copies, lambda copy: copy.source)
    )
    return total + total // 4 + len(copies) * _GROUP_BYTES + _SPARE_BYTES


def _size(path: str, groups: Sequence[str]) -> int:
    """Bytes of some groups of a file; those of the file where there is little else in it."""
    try:
        size = os.stat(path).st_size
    except FileNotFoundError as error:
        raise LogNotFound(path, "there is no such file") from error
    if size <= _SMALL_BYTES:
        return size
    with suppress(LogDamaged), reading(path) as (file, _):
        if h5g.open(file, b"/").get_num_objs() > 2 * len(groups):
            stored = [_stored(h5g.open(file, encoded(name))) for name in groups]
            return min(size, sum(size if each is None else each for each in stored))
    return size


def _stored(group: Id) -> int | None:
    """Bytes of a group's datasets; None where they do not say."""
    total = 0
    for _, dataset in datasets(group):
        if dataset.get_type().detect_class(h5t.VLEN) or _is_varying(dataset):
            return None
        total += dataset.get_storage_size() + _DATASET_BYTES
    return total


def _is_varying(dataset: Id) -> bool:
    kind = dataset.get_type()
    return isinstance(kind, h5t.TypeStringID) and bool(kind.is_variable_str())
