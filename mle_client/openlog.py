"""A log file as it was when it was opened, for as long as somebody holds it.

A published file is never changed, only replaced or removed; so an open descriptor shows the same
values for ever.  Descriptors are few: a process holds at most `_descriptors_to_hold()` of them for
logs.  An `OpenLog` beyond that finds its file by name again whenever it reads, and says so where
another file has the name by then.

It knows nothing of what is in a file.
"""

from __future__ import annotations

import collections
import io
import os
import resource
import weakref
from contextlib import AbstractContextManager
from typing import Any, Final

import h5py
from h5py import h5fd

from mle_client import h5access
from mle_client.errors import LogNotFound

# Of this process's descriptors: the others are the program's own.
_DESCRIPTOR_SHARE: Final = 4
_MOST_DESCRIPTORS: Final = 1024
# Files that HDF5 has open for us at a time; each takes half a megabyte.
_MOST_HDF5_FILES: Final = 8

_SIZE: Final = 2  # its place in what `_identity` returns

_held: set[int] = set()
_opened: collections.deque[weakref.ref[OpenLog]] = collections.deque()


class OpenLog:
    """One log file.

    Threads may share it.  It lets go of its file when it is closed or no longer referred to.

    Args:
        path: of the file.
        hold: whether to keep a descriptor, where one is left.

    Attributes:
        path: the same.
        plain: whether what HDF5 calls an address is an offset in the file.

    Raises:
        LogNotFound: there is no such file.
        LogDamaged: it is no HDF5 file.
        OSError: the system refuses to open it, say for want of permission.
    """

    __slots__ = ("__weakref__", "_descriptor", "_hdf5", "_identity", "path", "plain")

    def __init__(self, path: str, *, hold: bool) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._hdf5: Any = None
        file, descriptor = h5access.opened(path)
        self._identity = _identity(os.fstat(descriptor))
        on_disk = file.get_access_plist().get_driver() == h5fd.SEC2
        self.plain = on_disk and not file.get_create_plist().get_userblock()
        if hold and len(_held) < _descriptors_to_hold():
            self._descriptor = descriptor
            _held.add(descriptor)
        else:
            os.close(descriptor)
        self._keep(file)

    @property
    def held(self) -> bool:
        """Whether the file can be read whatever becomes of its name."""
        return self._descriptor is not None

    def hdf5(self) -> Any:
        """The file as HDF5 has it.  Refer to it while anything in it is open."""
        file = self._hdf5
        if file is None:
            file = self._open_again()
            self._keep(file)
        return file

    @property
    def size(self) -> int:
        """Bytes that it has."""
        return self._identity[_SIZE]

    def read(self, offset: int, size: int) -> bytes:
        """Some of its bytes.

        Raises:
            EOFError: there are not so many.
        """
        if offset + size > self.size:  # no room is to be made for what a damaged file promises
            raise EOFError(f"it ends before byte {offset + size}")
        if self._descriptor is not None:
            return _pread(self._descriptor, size, offset)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._check(descriptor)
            return _pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def rest(self) -> None:
        """Let HDF5 close the file until it is needed again."""
        self._hdf5 = None

    def close(self) -> None:
        """Let go of the file.  Nothing can be read from then on, if it was held."""
        file, self._hdf5 = self._hdf5, None
        if file is not None:
            h5access.close(file)
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _held.discard(descriptor)
            os.close(descriptor)

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            _held.discard(descriptor)
            os.close(descriptor)

    def reading(self) -> AbstractContextManager[None]:
        """Give an error of what is done inside a name that says whose fault it is."""
        return h5access.blaming(self.path)

    def _keep(self, file: Any) -> None:
        """Keep HDF5's file open, at the cost of the one that was opened longest ago."""
        self._hdf5 = file
        _opened.append(weakref.ref(self))
        while len(_opened) > _MOST_HDF5_FILES:
            oldest = _opened.popleft()()
            if oldest is not None and oldest is not self:
                oldest.rest()

    def _open_again(self) -> Any:
        try:
            file, descriptor = h5access.opened(self.path)
            try:
                self._check(descriptor)
            finally:
                os.close(descriptor)
            return file
        except OSError:  # LogNotFound is one, too
            if self._descriptor is None:
                raise
        # It may have no name any more, and HDF5 opens a file by nothing else.
        return h5py.File(io.FileIO(self._descriptor, closefd=False), "r").id

    def _check(self, descriptor: int) -> None:
        if _identity(os.fstat(descriptor)) != self._identity:
            raise LogNotFound(self.path, "the file was replaced while it was read: load it again")


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # the system gives no more than 2 GiB at a time
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise EOFError(f"it ends before byte {offset + size}")
        data += more
    return data


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _descriptors_to_hold() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return _MOST_DESCRIPTORS
    return min(_MOST_DESCRIPTORS, limit // _DESCRIPTOR_SHARE)
