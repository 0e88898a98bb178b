"""An artifact's bytes as they were at the call, kept until the daemon has stored them.

A pickler writes straight into recycled, memory-mapped files (`segments`), so the one copy that the
caller pays for is the serialised artifact.  A small header file, written last and in one step,
*commits* it: from then on it survives the death of the process, and the daemon that finds the
producer gone reads it (`committed`).  What has no header was never taken.

It knows nothing of what the bytes mean, and sends nothing.  The format is `snapshot_format`'s.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final

from mle_client.committed import LeftSnapshot as LeftSnapshot
from mle_client.committed import Snapshot as Snapshot
from mle_client.committed import read_left as read_left
from mle_client.committed import unlink
from mle_client.segments import MEMORY_BYTES, Segment, SegmentPool, segment_bytes
from mle_client.segments import SnapshotFull as SnapshotFull
from mle_client.snapshot_format import SUFFIX, Checksum, Header

# An artifact up to this size is put behind its header, so that hundreds of small ones that wait for
# a daemon hold their own size and no file descriptor; to copy it once more takes 0.1 ms.
INLINE_BYTES: Final = 2**20

_NO_VIEW: Final = memoryview(bytearray())


class Arena:
    """The snapshots of one producer.  Thread-safe; a writer belongs to one thread.

    Args:
        directory: in shared memory; made when first needed, its parent must be there.
        spill_directory: on disk; made when first needed.
        memory_bytes: to take from shared memory at most.
    """

    def __init__(
        self, directory: str, spill_directory: str, *, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._pool = SegmentPool(directory, spill_directory, memory_bytes)

    def begin(self) -> SnapshotWriter:
        """Begin a snapshot."""
        return SnapshotWriter(self._pool)

    def prepare(self, size: int) -> None:
        """Have memory for a snapshot of `size` bytes ready; for a thread in the background.

        Writing into memory that has to be made first takes ten times as long.  Where enough was
        recycled already, this does nothing.
        """
        self._pool.prepare(size)

    def tidy(self) -> None:
        """Give back memory that was not used for minutes; to be called now and then."""
        self._pool.tidy()

    def forget(self) -> None:
        """In a forked child: close what was inherited, touch no file."""
        self._pool.forget()

    def delete(self) -> None:
        """Remove all files, those of committed snapshots too."""
        self._pool.delete()


class SnapshotWriter:
    """Takes the bytes of one artifact; a file for picklers.

    As a context, it is aborted at the end unless it was committed.
    """

    def __init__(self, pool: SegmentPool) -> None:
        self._pool = pool
        self._open = True
        self._segments: list[Segment] = []
        self._checksums: list[Checksum] = []
        self._before = 0  # bytes in segments that are full
        self._view = _NO_VIEW  # of the segment that is written to
        self._at = 0  # offset in it
        self._limit = 0  # its size

    @property
    def position(self) -> int:
        """Bytes so far."""
        return self._before + self._at

    @property
    def directories(self) -> tuple[str, str]:
        """Where temporary files may be made, in shared memory and on disk; made if need be."""
        return self._pool.place(spilled=False), self._pool.place(spilled=True)

    def write(self, data: Any) -> int:
        """Copy bytes.

        Args:
            data: anything with a contiguous buffer.

        Returns:
            Their number.

        Raises:
            SnapshotFull: there is no room; the writer is aborted.
            ValueError: the writer was committed or aborted.
        """
        if type(data) is not bytes:
            data = memoryview(data)
            if data.format != "B" or data.ndim != 1:
                data = data.cast("B") if data.nbytes else _NO_VIEW
        size = len(data)
        end = self._at + size
        if end <= self._limit:
            self._view[self._at : end] = data
            self._at = end
        else:
            source = memoryview(data)
            while source:
                if self._at == self._limit:
                    self._next_segment()
                part = source[: self._limit - self._at]
                end = self._at + len(part)
                self._view[self._at : end] = part
                self._at = end
                source = source[len(part) :]
        return size

    def write_all(self, buffers: Iterable[bytes | memoryview]) -> None:
        """Copy many byte strings, as `write` would one after another.

        Args:
            buffers: of single bytes (format "B", one dimension).

        Raises:
            SnapshotFull: there is no room; the writer is aborted.
            ValueError: the writer was committed or aborted.
        """
        view, at, limit = self._view, self._at, self._limit
        for data in buffers:
            end = at + len(data)
            if end <= limit:
                view[at:end] = data
                at = end
            else:
                self._at = at
                self.write(data)
                view, at, limit = self._view, self._at, self._limit
        self._at = at

    def reserve(self, size: int) -> list[memoryview]:
        """Leave out bytes, for the caller to fill in before the commit.

        Args:
            size: bytes.

        Returns:
            Writable views of them, in order.  They are valid until something else is written.

        Raises:
            SnapshotFull: there is no room; the writer is aborted.
            ValueError: the writer was committed or aborted.
        """
        views = []
        while size:
            if self._at == self._limit:
                self._next_segment()
            step = min(size, self._limit - self._at)
            views.append(self._view[self._at : self._at + step])
            self._at += step
            size -= step
        return views

    def note_checksums(self, checksums: Iterable[Checksum]) -> None:
        """Have checksums filled in when the bytes are read out.

        Args:
            checksums: (start, end, places), ordered and disjoint: the CRC-32 of the bytes from
                start to end goes, as a little-endian u4, to each of the places, all of them at or
                after `end` and outside of any such range.
        """
        self._checksums.extend(checksums)

    def restart(self) -> None:
        """Drop what was written so far: the next byte is the first."""
        self._check_open()
        self._drop()

    def commit(self, number: int, kind: str, form: str = "file") -> Snapshot:
        """Make these bytes an artifact that outlives the process.

        One of the same number is replaced in the same step; it is the caller's to release
        (`Snapshot.give_way_to`).

        Args:
            number: of the artifact within its producer, from 1.
            kind: what it is.
            form: "file", or "figure" where the bytes have to be rendered first.

        Raises:
            SnapshotFull: there is no room for the header; the writer is aborted.
            ValueError: the writer was committed or aborted.
        """
        self._check_open()
        size = self.position
        held = self._segments if size > INLINE_BYTES else []
        used = [*(segment.size for segment in held[:-1]), self._at][: len(held)]
        pieces = tuple(
            (os.path.basename(segment.path), segment.spilled, length)
            for segment, length in zip(held, used, strict=True)
        )
        header = Header(number, kind, form, size, pieces, tuple(self._checksums))
        content = header.encode()
        behind = len(content)
        if not held:
            content += self._view[:size]  # it fits into a first segment
        name = f"{number}{SUFFIX}"
        try:
            path, claimed = _write_file(self._pool, name, content, held)
            snapshot = Snapshot(self._pool, header, path, behind, held, claimed)
            if held:
                self._pool.used(held)
                _unmap_spilled(held)
                self._segments = []  # they are the snapshot's
        except BaseException:
            # Not even an interruption leaves a header that speaks of recycled bytes.
            for directory in (self._pool.directory, self._pool.spill_directory):
                _unlink_if(os.path.join(directory, name), content)
            self.abort()
            raise
        self.abort()  # gives back what the snapshot did not take
        return snapshot

    def abort(self) -> None:
        """Drop what was written; does nothing after a commit or another abort."""
        if self._open:
            self._open = False
            self._drop()

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def _drop(self) -> None:
        segments, self._segments, self._checksums = self._segments, [], []
        self._view = _NO_VIEW
        self._before = self._at = self._limit = 0
        self._pool.give_back(segments)

    def _next_segment(self) -> None:
        self._check_open()
        try:
            segment = self._pool.take(segment_bytes(self.position))
        except BaseException:
            self.abort()
            raise
        _unmap_spilled(self._segments)  # any number of them may follow
        self._segments.append(segment)
        self._before += self._at
        self._view, self._at, self._limit = segment.view, 0, segment.size

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("this snapshot was committed or aborted: begin another one")


def _unmap_spilled(segments: Sequence[Segment]) -> None:
    """Let go of the last segment's mapping if it is a file on disk: it is read as a file."""
    if segments and segments[-1].spilled:
        segments[-1].unmap()


def _write_file(
    pool: SegmentPool, name: str, content: bytes, held: Sequence[Segment]
) -> tuple[str, int]:
    """Write a small file in one step.  Returns: its path, and its bytes in shared memory."""
    # Beside segments there is room for a header, and another look costs what writing it costs.
    beside = bool(held) and not held[-1].spilled
    if beside or pool.claim(len(content)):
        claimed = 0 if beside else len(content)
        try:
            directory = pool.directory if beside else pool.place(spilled=False)
            return _write_aside(directory, name, content), claimed
        except OSError:
            pool.unclaim(claimed)
    try:
        return _write_aside(pool.place(spilled=True), name, content), 0
    except OSError as error:
        why = f"no room for a snapshot's header, neither in shared memory nor here: {error}"
        raise SnapshotFull(error.errno, why, pool.spill_directory) from error


def _write_aside(directory: str, name: str, content: bytes) -> str:
    path = os.path.join(directory, name)
    making = f"{path}.new"
    try:
        # Plain system calls: after the copy of a model nothing is in the caches, and a file object
        # takes 0.1 ms more.
        fd = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)
        os.rename(making, path)
    except BaseException:
        unlink(making)
        raise
    return path


def _unlink_if(path: str, content: bytes) -> None:
    """Remove a file if it holds this and not, say, an earlier snapshot of the same number."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read() == content:
            unlink(path)
