"""The journal: where every record is before anybody is told that it is safe.

A folder of segments, `00000001.mlej` and so on.  This module appends, syncs, rotates and drops; it
never reads one (`journal_reader`).  What a record means and when a segment may go is decided in
`core`; what the bytes of a segment are is said in `journal_format`.

* After `append` returns, the records survive the death of this process; after `sync`, of the host.
* A failed append leaves the journal as it was.  Where that cannot be done at once, the next append
  does it; where it cannot be done then, the segment is left with its end and another one begun.
* A segment is never appended to by a second process: each start begins a new one.
* One process at a time; that is what the lock of the root is for.
* So a record whose append failed is found by a replay only where the process died before the next
  append, as after a crash before the answer, or where a disk takes new files and cuts no old one.
  Positions in the records tell what is there twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mle_client import files
from mle_client.errors import MLEError
from mle_daemon import journal_format
from mle_daemon.journal_format import Buffer
from mle_daemon.journal_reader import SUFFIX, SegmentFile, list_segments
from mle_daemon.journal_reader import read_segments as read_segments  # the other half, for callers

_MODE: Final = 0o700  # of the folder: what was logged is its user's
IOV_MAX: Final = 1024  # buffers that Linux takes in one call

Record = Sequence[Buffer]  # in pieces, which are written one after another


class JournalWriteError(MLEError):
    """The journal's disk did not take something: full, over quota, broken or gone.

    Args:
        path: of the segment.
        errno: of the operating system.
        needed: bytes that were to be written or synced; 0 where a file was to be deleted.
    """

    def __init__(self, path: str, errno: int, needed: int) -> None:
        super().__init__(path, errno, needed)
        self.path = path
        self.errno = errno
        self.needed = needed

    def __str__(self) -> str:
        waiting = f", {self.needed} bytes are waiting" if self.needed else ""
        return (
            f"{self.path}: {os.strerror(self.errno)}{waiting}; "
            "make room on that disk or repair it, the journal goes on by itself"
        )


@dataclass(frozen=True, order=True, slots=True)
class JournalPosition:
    """A place between two records.  Args: segment: its number; offset: in bytes, in its file."""

    segment: int
    offset: int


@dataclass(slots=True)
class _OpenSegment:
    """A segment that has a descriptor, or that was not synced and never will be.

    Args:
        end: offset behind the last whole record.
        synced: everything before it is on disk.
        failure: the error of a sync.  The kernel forgets what it could not write and reports
            success the next time, so one failure is final.
        dropped: the file is gone.
    """

    number: int
    path: str
    fd: int
    end: int
    synced: int = 0
    failure: OSError | None = None
    dropped: bool = False

    @property
    def durable(self) -> bool:
        return self.dropped or self.synced >= self.end

    @property
    def can_sync(self) -> bool:
        return self.fd >= 0 and self.failure is None and not self.durable

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Journal:
    """The journal of one daemon, open for writing.

    `sync` may be called from a second thread at any time; the rest belongs to one thread.

    Args:
        directory: made if missing.  What lies in it is kept and synced; read it before or after.

    Raises:
        LogDamaged: as `list_segments`.
        JournalWriteError: no segment can be begun.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()  # of what follows; never held during a sync
        self._sync_lock = threading.Lock()  # one sync at a time; who closes descriptors holds it
        self._segments: list[_OpenSegment] = []  # oldest first; the last is written to
        self._must_begin = False  # the last cannot be synced
        self._uncut = False  # a failed append has left something behind the last's end
        self._begun_until = 0  # offset behind the records with which the last was begun
        self._closed = False
        self._syncing = (0.0, "")  # since when, and what
        files.make_folders(directory, _MODE)
        earlier = list_segments(directory)
        for file in earlier:
            _settle(file)
        self._last_number = max([file.number for file in earlier], default=0)
        self._begin(())

    @property
    def end(self) -> JournalPosition:
        """Behind the last record."""
        with self._lock:
            return JournalPosition(self._segments[-1].number, self._segments[-1].end)

    @property
    def synced(self) -> JournalPosition:
        """Everything before this position is on disk, or dropped."""
        with self._lock:
            return self._synced()

    @property
    def dirty(self) -> bool:
        """Whether a sync would bring anything to disk."""
        with self._lock:
            return any(segment.can_sync for segment in self._segments)

    @property
    def is_removed(self) -> bool:
        """Whether somebody has removed the newest segment: its records are in no file any more."""
        with self._lock:
            newest = self._segments[-1]
            try:
                return not os.path.samestat(os.stat(newest.path), os.fstat(newest.fd))
            except OSError as error:
                return error.errno in (errno.ENOENT, errno.ENOTDIR)

    @property
    def syncing(self) -> tuple[float, str]:
        """Since when a file is being synced, by a monotonic clock, and its path; "" if none is."""
        return self._syncing

    def segments(self) -> list[SegmentFile]:
        """All segments in the folder, those of earlier starts too, oldest first."""
        return list_segments(self._directory)

    def append(self, records: Sequence[Record]) -> JournalPosition:
        """Append records, all or none.

        Args:
            records: each in pieces of contiguous bytes, which are not copied.

        Returns:
            The position behind them.

        Raises:
            JournalWriteError: nothing was appended; try again when the disk may have room.
            ValueError: a record is empty or too long, or the journal is closed.
        """
        with self._lock:
            self._check_open()
            self._cut()
            if not (self._must_begin or self._uncut):
                self._extend(self._segments[-1], records)
            elif records:
                self._begin(records)
            return JournalPosition(self._segments[-1].number, self._segments[-1].end)

    def rotate(self, first_records: Sequence[Record]) -> int:
        """Begin a new segment.

        Args:
            first_records: what it begins with, such as the state that makes older ones needless.

        Returns:
            Its number.

        Raises:
            JournalWriteError: the journal goes on in the segment it had.
            ValueError: as `append`.
        """
        with self._lock:
            self._check_open()
            self._cut()
            self._begin(first_records)
            return self._last_number

    def drop(self, number: int) -> None:
        """Delete a segment, after syncing what newer ones hold in its place.

        Raises:
            JournalWriteError: it was kept.  If a newer one cannot be synced, drop that first.
            ValueError: it is the newest one.
        """
        if number == self.end.segment:
            raise ValueError(f"segment {number} is in use; rotate first")
        if not self._is_replaced(number):
            try:
                self.sync()
            except JournalWriteError:  # perhaps of the very segment that is to go
                if not self._is_replaced(number):
                    raise
        path = self._path(number)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass  # it was dropped before
        except OSError as error:
            raise _write_error(path, error, 0) from error
        with self._lock:
            for segment in self._segments:
                segment.dropped |= segment.number == number

    def sync(self) -> JournalPosition:
        """Bring all to disk that was appended before this call.

        Returns:
            `synced`.

        Raises:
            JournalWriteError: a segment could not be synced.  Appends go to another one from now
                on, and `synced` stays where it is until the bad one is dropped.
        """
        with self._sync_lock:
            with self._lock:
                waiting = [(s, s.end) for s in self._segments if s.can_sync]
            for segment, end in waiting:
                self._sync_segment(segment, end)
            with self._lock:
                self._close_needless()
                position = self._synced()
                bad = next((s for s in self._segments if s.failure and not s.durable), None)
        if bad is not None and bad.failure is not None:
            raise _write_error(bad.path, bad.failure, bad.end - bad.synced)
        return position

    def close(self) -> None:
        """Sync and close.  A second time it does nothing.

        Raises:
            JournalWriteError: as `sync`; it is closed all the same.
        """
        if self._closed:
            return
        try:
            self.sync()
        finally:
            with self._sync_lock, self._lock:
                self._closed = True
                for segment in self._segments:
                    segment.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the journal is closed")

    def _path(self, number: int) -> str:
        return os.path.join(self._directory, f"{number:08d}{SUFFIX}")

    def _begin(self, records: Sequence[Record]) -> None:
        """Make a new segment the last one, or leave everything as it is."""
        self._last_number += 1  # used up even if this fails, so that no name comes twice
        number, path = self._last_number, self._path(self._last_number)
        begin = journal_format.header(number)
        frames, size = _frames(records, number, len(begin))
        fd = -1
        try:
            files.make_folders(self._directory, _MODE)  # somebody may have removed it
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            _write_all(fd, [begin, *frames], 0)
            _sync_directory(self._directory)
        except BaseException as error:
            if fd >= 0:
                os.close(fd)
                with contextlib.suppress(OSError):  # then it stays, as a torn segment
                    os.unlink(path)
            if isinstance(error, OSError):
                raise _write_error(path, error, len(begin) + size) from error
            raise
        self._segments.append(_OpenSegment(number, path, fd, len(begin) + size))
        self._begun_until = len(begin) + size
        self._must_begin = self._uncut = False

    def _cut(self) -> None:
        """Take away what a failed append has left, if that can be done."""
        if self._uncut:
            segment = self._segments[-1]
            with contextlib.suppress(OSError):
                os.ftruncate(segment.fd, segment.end)
                self._uncut = False

    def _extend(self, segment: _OpenSegment, records: Sequence[Record]) -> None:
        """Append to a segment, or leave it as it is."""
        frames, size = _frames(records, segment.number, segment.end)
        try:
            _write_all(segment.fd, frames, segment.end)
        except BaseException as error:  # also an exception that a signal raises here
            self._uncut = True
            self._cut()
            if isinstance(error, OSError):
                raise _write_error(segment.path, error, size) from error
            raise
        segment.end += size

    def _sync_segment(self, segment: _OpenSegment, end: int) -> None:
        """Bring a segment to disk up to `end`, or note that it cannot be."""
        self._syncing = time.monotonic(), segment.path
        try:
            os.fdatasync(segment.fd)
        except OSError as error:
            with self._lock:
                segment.failure = error
                self._must_begin |= segment is self._segments[-1]
        else:
            with self._lock:
                segment.synced = end
        finally:
            self._syncing = 0.0, ""

    def _is_replaced(self, number: int) -> bool:
        """Whether segments newer than this one are on disk, the newest as far as it was begun."""
        with self._lock:
            *older, newest = self._segments
            return newest.synced >= self._begun_until and all(
                segment.durable for segment in older if segment.number > number
            )

    def _synced(self) -> JournalPosition:
        for segment in self._segments:
            if not segment.durable:
                return JournalPosition(segment.number, segment.synced)
        return JournalPosition(self._segments[-1].number, self._segments[-1].end)

    def _close_needless(self) -> None:
        """Close what is not written to any more and need not or cannot be synced."""
        *older, newest = self._segments
        for segment in older:
            if not segment.can_sync:
                segment.close()
        self._segments = [s for s in older if not s.durable] + [newest]


def _frames(records: Sequence[Record], number: int, offset: int) -> tuple[list[Buffer], int]:
    """Records as the buffers to write at an offset, and how many bytes they are."""
    buffers: list[Buffer] = []
    at = offset
    for record in records:
        head = journal_format.frame_header(record, number, at)
        buffers.append(head)
        buffers += record
        at += journal_format.frame_bytes(head)
    return buffers, at - offset


def _write_all(fd: int, buffers: list[Buffer], offset: int) -> None:
    """Write buffers one after another: one call, unless there are very many or it is cut short."""
    first = 0
    while first < len(buffers):
        written = os.pwritev(fd, buffers[first : first + IOV_MAX], offset)
        offset += written
        before = first
        while first < len(buffers) and written >= (size := memoryview(buffers[first]).nbytes):
            written -= size
            first += 1
        if written:
            buffers[first] = memoryview(buffers[first]).cast("B")[written:]
        elif first == before:
            raise OSError(errno.EIO, "nothing was written")


def _settle(file: SegmentFile) -> None:
    """Sync a segment of an earlier process, which may have died before it could."""
    try:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _write_error(file.path, error, file.size) from error


def _sync_directory(directory: str) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems sync names at once and refuse to be asked.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def _write_error(path: str, error: OSError, needed: int) -> JournalWriteError:
    return JournalWriteError(path, error.errno or errno.EIO, needed)
