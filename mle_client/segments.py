"""The recycled, memory-mapped files that snapshots are written into, and their bounds.

Making 100 MB of shared memory costs ten times as much as copying 100 MB into pages that are mapped
already, so segments are kept when their snapshot is gone: at most twice what the largest snapshot
needed, and none that was not used for a while.  Where shared memory has no room, segments are files
on disk; those are unlinked after use.

A segment is bytes and no more.  Which bytes, and when they count, is `snapshot`'s business.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from mle_client import files
from mle_client.ring import has_room

# A mapping holds a file descriptor, of which a process usually has 1,024, so a large snapshot
# takes large segments: 100 MB are 15 of them, 4 GiB are 81.  A quarter more is reserved than used.
SMALLEST_BYTES: Final = 4 * 2**20
LARGEST_BYTES: Final = 64 * 2**20
MAX_MAPPED: Final = 256
# In shared memory; two snapshots of a model of half a billion parameters, in single precision.
MEMORY_BYTES: Final = 4 * 2**30
# Left free on disk, where the daemon's journal must be able to go on.
SPILL_FREE_BYTES: Final = 2**30
# Until unused memory is given back.  Who saves less often does not notice a slower copy.
IDLE_S: Final = 600.0
_PAGE_BYTES: Final = 4096  # of every Linux on x86-64; smaller than others' is only slower

_NO_VIEW: Final = memoryview(bytearray())


class SnapshotFull(OSError):
    """Neither shared memory nor disk has room for a snapshot."""


@dataclass(slots=True, eq=False)
class Segment:
    """One file.

    Args:
        path: of the file.
        size: of the file in bytes.
        spilled: it lies on disk.
        view: the mapped file, to write to; empty once it is unmapped.
        free_since: monotonic time at which it was recycled.
    """

    path: str
    size: int
    spilled: bool
    view: memoryview
    free_since: float = 0.0

    def content(self, start: int, end: int) -> memoryview:
        """The bytes between two offsets."""
        view = self.view  # another thread may unmap it
        return view[start:end] if view else read_range(self.path, start, end)

    def unmap(self) -> None:
        """Let go of the mapping and its file descriptor; nothing is written to it any more."""
        # The mapping goes when nobody has a part of it: one may be on its way to a socket.
        self.view = _NO_VIEW

    def unlink(self) -> None:
        """Remove the file."""
        self.unmap()
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def read_range(path: str, start: int, end: int) -> memoryview:
    """The bytes of a file between two offsets.

    Raises:
        OSError: it cannot be read, or ends before.
    """
    with open(files.open_left(path), "rb", buffering=0) as file:
        content = os.pread(file.fileno(), end - start, start)
    if len(content) != end - start:
        raise OSError(errno.EIO, f"ends before byte {end}", path)
    return memoryview(content)


def segment_bytes(position: int) -> int:
    """The size of the segment that begins at a position of a snapshot: a power of two."""
    return min(LARGEST_BYTES, max(SMALLEST_BYTES, 1 << (position // 4).bit_length() >> 1))


def segment_sizes(size: int) -> Iterator[int]:
    """The sizes of the segments of a snapshot of `size` bytes."""
    position = 0
    while position < size:
        yield segment_bytes(position)
        position += segment_bytes(position)


def _create(path: str, size: int, spilled: bool) -> Segment:
    # A file object, not a descriptor: should a signal handler raise just here, it is closed still.
    with open(path, "x+b", buffering=0) as file:
        try:
            # Reserved now: a mapped page that cannot be backed later would be a SIGBUS in training.
            os.posix_fallocate(file.fileno(), 0, size)
            buffer = mmap.mmap(file.fileno(), size)
        except BaseException:
            os.unlink(path)
            raise
    return Segment(path, size, spilled, memoryview(buffer))


class SegmentPool:
    """The segments of one producer.  Every method may be called from any thread.

    Args:
        directory: in shared memory; made when first needed, its parent must be there.
        spill_directory: on disk; made when first needed.
        memory_bytes: to take from shared memory at most.
    """

    def __init__(self, directory: str, spill_directory: str, memory_bytes: int) -> None:
        self.directory = directory
        self.spill_directory = spill_directory
        self._memory_bytes = memory_bytes
        self._names = itertools.count(1)
        # A signal handler that saves a model may interrupt its own thread in here.
        self._lock = threading.RLock()
        self._segments: set[Segment] = set()
        self._free: list[Segment] = []
        self._memory = 0  # bytes in shared memory, of segments and of what `claim` was told
        self._need = SMALLEST_BYTES  # of the largest snapshot since memory was given back
        self._closed = False

    def take(self, size: int) -> Segment:
        """A segment of a size, for the caller alone; its content is arbitrary.

        Raises:
            SnapshotFull: there is no room for it.
            ValueError: the pool was deleted or forgotten.
        """
        with self._lock:
            segment = self._maybe_free(size)
        return segment or self._maybe_in_memory(size, evict=True) or self._on_disk(size)

    def give_back(self, segments: Iterable[Segment]) -> None:
        """Recycle segments, or remove them where there are enough."""
        gone = []
        with self._lock:
            for segment in segments:
                if segment.spilled:
                    gone.append(segment)
                else:
                    self._add_free(segment)
            gone += self._take_idle()
            while sum(segment.size for segment in self._free) > 2 * self._need:
                gone.append(self._free.pop(0))
        self._remove(gone)

    def used(self, segments: Iterable[Segment]) -> None:
        """Take note of what a snapshot needed."""
        with self._lock:
            self._need = max(self._need, sum(segment.size for segment in segments))

    def place(self, *, spilled: bool) -> str:
        """The directory for files, made if need be.

        Raises:
            OSError: it cannot be made.
            ValueError: the pool was deleted or forgotten.
        """
        with self._lock:
            if self._closed:
                raise ValueError("nothing can be saved any more: this logger is closed")
            directory = self.spill_directory if spilled else self.directory
            os.makedirs(directory, mode=0o700, exist_ok=True)
            return directory

    def claim(self, size: int) -> bool:
        """Count bytes of another file in `directory`; whether there is room for them."""
        with self._lock:
            is_room = self._is_room(size)
            self._memory += size if is_room else 0
            return is_room

    def unclaim(self, size: int) -> None:
        """Those bytes are gone."""
        with self._lock:
            self._memory -= size

    def prepare(self, size: int) -> None:
        """Have the segments for a snapshot of `size` bytes ready and mapped.

        For a thread in the background; most of it runs without the interpreter's lock.
        """
        with self._lock:
            missing = list(segment_sizes(size))
            for segment in self._free:
                with contextlib.suppress(ValueError):
                    missing.remove(segment.size)
        for each in missing:
            fresh = self._maybe_in_memory(each, evict=False)
            if fresh is None:
                return
            # One byte a page; numpy lets other threads run meanwhile.
            np.frombuffer(fresh.view, dtype=np.uint8)[::_PAGE_BYTES] = 0
            with self._lock:
                self._add_free(fresh)

    def tidy(self) -> None:
        """Give back memory that was not used for `IDLE_S`."""
        with self._lock:
            gone = self._take_idle()
        self._remove(gone)

    def forget(self) -> None:
        """In a forked child: close what was inherited, touch no file."""
        self._closed = True
        self._lock = threading.RLock()  # another thread of the parent may have held the old one
        segments, self._segments, self._free = self._segments, set(), []
        for segment in segments:
            segment.unmap()

    def delete(self) -> None:
        """Remove all files."""
        with self._lock:
            self._closed = True
            self._free = []
            gone = list(self._segments)
        self._remove(gone)
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.spill_directory, ignore_errors=True)

    # --- making and removing ----------------------------------------------------------------------
    def _maybe_free(self, size: int) -> Segment | None:
        for index in range(len(self._free) - 1, -1, -1):  # the one used last is in the caches
            if self._free[index].size == size:
                return self._free.pop(index)
        return None

    def _maybe_in_memory(self, size: int, *, evict: bool) -> Segment | None:
        """A new segment in shared memory; `evict` lets free ones of other sizes go for it."""
        with self._lock:
            while not (self._is_room(size) and self._mapped() < MAX_MAPPED):
                if not (evict and self._free):
                    return None
                self._remove([self._free.pop(0)])
            self._memory += size
        try:
            return self._made(size, spilled=False)
        except BaseException as error:
            self.unclaim(size)
            if isinstance(error, OSError):
                return None
            raise

    def _is_room(self, size: int) -> bool:
        # The directory above is there from the start.
        above = os.path.dirname(self.directory)
        return self._memory + size <= self._memory_bytes and has_room(above, size)

    def _mapped(self) -> int:
        return sum(not segment.spilled for segment in self._segments)

    def _on_disk(self, size: int) -> Segment:
        try:
            room = os.statvfs(self.place(spilled=True))
            free = room.f_bavail * room.f_frsize
            if free - size < SPILL_FREE_BYTES:
                raise OSError(errno.ENOSPC, f"{free} bytes are free there")
            return self._made(size, spilled=True)
        except OSError as error:
            raise SnapshotFull(
                errno.ENOSPC,
                f"no room for a snapshot: {self._memory} bytes are taken in shared memory "
                f"(of {self._memory_bytes} at most), and on disk: {error.strerror}. Make room "
                "there, or save less often",
                self.spill_directory,
            ) from error

    def _made(self, size: int, *, spilled: bool) -> Segment:
        path = os.path.join(self.place(spilled=spilled), f"{next(self._names):08d}.seg")
        segment = _create(path, size, spilled)
        with self._lock:
            if self._closed:
                segment.unlink()
            else:
                self._segments.add(segment)
        return segment

    def _remove(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            with self._lock:
                if segment not in self._segments:
                    continue
                self._segments.remove(segment)
                self._memory -= 0 if segment.spilled else segment.size
            segment.unlink()  # milliseconds; not under the lock, for which training may wait

    def _add_free(self, segment: Segment) -> None:
        if segment in self._segments:  # else it was deleted or forgotten meanwhile
            segment.free_since = time.monotonic()
            self._free.append(segment)

    def _take_idle(self) -> list[Segment]:
        """Take the segments out of the free ones that were not used for long."""
        since = time.monotonic() - IDLE_S
        idle = [segment for segment in self._free if segment.free_since < since]
        if idle:
            self._free = self._free[len(idle) :]
            self._need = max(SMALLEST_BYTES, sum(segment.size for segment in self._free))
        return idle
