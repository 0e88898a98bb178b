"""The files into which artifacts are written as they come.

It knows neither who sends them nor when they are whole, keeps few descriptors open however many
files there are, and leaves what it has finished to whoever was told its path.

A file gets its blocks when it is begun, so that a full disk is known at once.  While it grows, the
kernel is asked to write what is there already: what is left for the sync at the end is small, and
the pages that were written make room for others.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, TypeAlias

from mle_client import files
from mle_client.messages import ProducerId

Key: TypeAlias = tuple[ProducerId, int]  # producer and number of an artifact

# Of 1,024 descriptors that a process may have as a rule.
_OPEN_FILES: Final = 32
# The kernel is asked to write after so many bytes: as a chunk comes.  Otherwise the disk would idle
# until the sync at the end, which would take longer (docs/artifact-protocol.md has the figures).
_WRITEBACK_BYTES: Final = 4 * 2**20


@dataclass(slots=True)
class _Staged:
    """A file that grows.  Args: flushed: bytes that the kernel was asked to write."""

    path: str
    flushed: int = 0


class Staging:
    """Files in one folder, by artifact.  For one thread.

    Args:
        folder: made if it is missing.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._files: dict[Key, _Staged] = {}
        self._open: OrderedDict[Key, int] = OrderedDict()  # descriptors, the last used one last
        os.makedirs(folder, exist_ok=True)

    def path(self, key: Key) -> str:
        """Where an artifact is written."""
        producer, number = key
        return os.path.join(self.folder, f"{producer.hex()}-{number}.part")

    def begin(self, key: Key, size: int) -> None:
        """Make a file anew, with room for so many bytes.

        Raises:
            OSError: there is no room, or the disk fails; nothing is left.
        """
        self.remove(key)
        os.makedirs(self.folder, exist_ok=True)
        fd = os.open(self.path(key), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._files[key] = _Staged(self.path(key))
        self._keep(key, fd)
        try:
            files.reserve(fd, size)
        except OSError:
            self.remove(key)
            raise

    def write(self, key: Key, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes, which follow those before.

        Raises:
            OSError: they do not fit, or the disk fails.
        """
        fd, staged = self._descriptor(key), self._files[key]
        rest = memoryview(data)
        end = offset + len(rest)
        while rest:
            rest = rest[os.pwrite(fd, rest, end - len(rest)) :]
        if end - staged.flushed >= _WRITEBACK_BYTES:
            os.posix_fadvise(fd, staged.flushed, end - staged.flushed, os.POSIX_FADV_DONTNEED)
            staged.flushed = end

    def finish(self, key: Key) -> str:
        """Sync a file and leave it to the caller.

        Returns:
            Its path.

        Raises:
            OSError: the disk fails.
        """
        os.fdatasync(self._descriptor(key))
        self._close(key)
        return self._files.pop(key).path

    def remove(self, key: Key) -> None:
        """Remove an artifact's file, finished or not, if there is one."""
        self._close(key)
        self._files.pop(key, None)
        files.remove(self.path(key))

    def remove_all(self) -> None:
        """Remove every file that is not finished."""
        for key in tuple(self._files):
            self.remove(key)

    def _descriptor(self, key: Key) -> int:
        fd = self._open.get(key)
        if fd is None:
            fd = os.open(self._files[key].path, os.O_RDWR | os.O_CLOEXEC)
            self._keep(key, fd)
        self._open.move_to_end(key)
        return fd

    def _keep(self, key: Key, fd: int) -> None:
        self._open[key] = fd
        while len(self._open) > _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])

    def _close(self, key: Key) -> None:
        fd = self._open.pop(key, None)
        if fd is not None:
            os.close(fd)
