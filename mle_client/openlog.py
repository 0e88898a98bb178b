"""A log file as it was when it was opened, for as long as somebody holds it.

A published file is never changed, only replaced or removed; so an open descriptor shows the same
values for ever.  Descriptors are few: a process holds at most `_descriptors_to_hold()` of them for
logs.  An `OpenLog` beyond that finds its file by name again whenever it reads, and says so where
another file has the name by then.

It knows nothing of what is in a file.
"""

from __future__ import annotations

import collections
import fcntl
import io
import os
import resource
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import h5py

from mle_client.errors import LogDamaged, LogNotFound

ADVICE: Final = "restore it from a copy, or move it out of the folder"
_NOT_ALLOWED: Final = "this user may not read it: ask its owner to allow it, or load it as them"
# Of this process's descriptors: the others are the program's own.
_DESCRIPTOR_SHARE: Final = 4
_MOST_DESCRIPTORS: Final = 1024
# Files that HDF5 has open for us at a time; each takes half a megabyte.
_MOST_HDF5_FILES: Final = 8

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
        with self.reading():
            file = _open_hdf5(path)
            descriptor = file.id.get_vfd_handle()
            self._identity = _identity(os.fstat(descriptor))
            self.plain = file.driver == "sec2" and file.userblock_size == 0
            if hold and len(_held) < _descriptors_to_hold():
                self._descriptor = os.dup(descriptor)
                _held.add(self._descriptor)
                with suppress(OSError):  # HDF5's lock would last as long as the descriptor
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
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
        return file.id

    def read(self, offset: int, size: int) -> bytes:
        """Some of its bytes.

        Raises:
            EOFError: there are not so many.
        """
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
            file.close()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _held.discard(descriptor)
            os.close(descriptor)

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            _held.discard(descriptor)
            os.close(descriptor)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Give an error of what is done inside a name that says whose fault it is."""
        try:
            yield
        except (LogDamaged, LogNotFound):
            raise
        except FileNotFoundError as error:
            raise LogNotFound(self.path, "there is no such file") from error
        except PermissionError as error:
            raise PermissionError(error.errno, _NOT_ALLOWED, self.path) from error
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError) as error:
            if "Stale file handle" in str(error):  # how a network file system says "replaced"
                raise LogNotFound(self.path, "the file was replaced while it was read") from error
            if isinstance(error, OSError) and error.errno:
                raise  # the file itself may be good
            why = f"not a readable HDF5 file ({error}); {ADVICE}"
            raise LogDamaged(self.path, why) from error

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
            file = _open_hdf5(self.path)
            self._check(file.id.get_vfd_handle())
            return file
        except OSError:  # LogNotFound is one, too
            if self._descriptor is None:
                raise
        # Its name leads elsewhere by now, and HDF5 opens a file by nothing else.
        return h5py.File(io.FileIO(self._descriptor, closefd=False), "r")

    def _check(self, descriptor: int) -> None:
        if _identity(os.fstat(descriptor)) != self._identity:
            raise LogNotFound(self.path, "the file was replaced while it was read: load it again")


def _open_hdf5(path: str) -> Any:
    """A published file never changes, so a lock that cannot be had is no reason to give up."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
        return h5py.File(path, "r", locking=False)


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
