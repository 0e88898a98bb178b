"""The memory-mapped segments that hold a producer's stream until the daemon has journaled it.

One directory a producer, one file a segment.  The files survive the process: a daemon that finds
the `owner` file unlocked reads the rest out of them.  While the process lives, segments are
recycled as acknowledgements come in, so a producer needs one or two; when the daemon is away they
add up, in shared memory first, then as files under the root (*spill*), up to a bound in bytes.

It knows nothing of sockets or threads.  Its caller sees to it that only one thread appends.

Segment format, version 1.  Words are native unsigned 64-bit integers:

    offset  0   8 bytes  magic "MLERING1"
            8   word     stream position of the byte at offset 64
           16   16 bytes producer id
           32   32 bytes zero
           64            records, one after another, none across the end

A record is *committed* once the byte behind it is not zero.  That byte is written after the record,
and beyond it there are only zeros, so a process that dies at any instruction leaves whole records
(`tick_layout.committed_end` finds the last; stores are in program order for whoever looks after a
death).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from mle_client import wire
from mle_client.messages import MAX_FRAME_BYTES, Gap, ProducerId

MAGIC: Final = b"MLERING1"
HEADER_BYTES: Final = 64
BASE_WORD: Final = 1  # index of the stream position among the words of the header
OWNER_FILE: Final = "owner"
FULL_FILE: Final = "full"  # is there while ticks are dropped, and says why
_LOST_BYTES: Final = 64  # of the owner file's second line: two numbers, and blanks
# How long a segment that another thread is making is waited for, which takes milliseconds.  Not for
# ever: it may be this very thread that makes one, below a signal handler.
_MAKING_S: Final = 0.1
_NO_ROOM_FOR_TICKS: Final = "no room to buffer ticks"
UNFINISHED: Final = ".new-"  # begins the name of a folder whose owner file is not locked yet
REMOVED: Final = ".gone-"  # and of one that is being removed

# 256 KiB hold some 4,000 ticks of four values: a few milliseconds of the tightest loop, so a
# segment change is rare, and a process that logs a little occupies little of a small /dev/shm.
SEGMENT_BYTES: Final = 256 * 1024
# A larger record than a frame takes has no way to a daemon, so none has a segment of its own.
MAX_SEGMENT_BYTES: Final = MAX_FRAME_BYTES + HEADER_BYTES
# In shared memory; what the fastest loop writes within two of the sender's rounds fits.
MEMORY_BYTES: Final = 4 * 2**20
# Shared memory is left alone when less than this part of it is free: it is everybody's.  Of a large
# one, and of a disk that stands in for one, so many bytes are enough.
MEMORY_FREE_SHARE: Final = 0.25
MEMORY_FREE_BYTES: Final = 4 * 2**30
# On disk, a producer: some 17 million ticks of four values.
SPILL_BYTES: Final = 2**30
# A segment on disk is as large as all that is there already, up to this: making, reading and
# removing a file takes as long for a small one, and each time Python's lock may be gone for 5 ms.
_MOST_SPILLED_BYTES: Final = 2**20
# Segments that are kept to be written to again: while they are needed, and when they are not.
_MOST_SPARES, _FEW_SPARES = 8, 2
_POPULATE: Final = getattr(mmap, "MAP_POPULATE", 0)  # Linux
_NO_FILES: Final = (errno.EMFILE, errno.ENFILE)
_TOO_MANY_FILES: Final = "too many open files: close() loggers that are done, or see ulimit -n"
_RECYCLED: Final = "a segment was recycled while it was read"
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS_HERE: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class RingFull(Exception):
    """Neither shared memory nor disk takes another segment."""


@dataclass(slots=True, eq=False)
class Segment:
    """One file.

    A mapping holds a file descriptor, so a segment that is only waited for is unmapped (`unmap`)
    and read from its file.

    Args:
        path: of the file.
        buffer: the mapped file; zero where no record is.
        size: of the file in bytes.
        spilled: it lies on disk.
        base: stream position of its first record.
        end: offset behind the last committed record, as far as `Ring` was told.
    """

    path: str
    buffer: mmap.mmap
    size: int
    spilled: bool
    base: int = 0
    end: int = HEADER_BYTES
    _mapped: bool = True

    @property
    def end_position(self) -> int:
        """Stream position behind the last committed record."""
        return self.base + self.end - HEADER_BYTES

    def content(self, start: int, end: int) -> memoryview:
        """The bytes between two offsets."""
        if self._mapped:
            return memoryview(self.buffer)[start:end]
        with open(self.path, "rb") as file:
            return memoryview(os.pread(file.fileno(), end - start, start))

    def clear(self) -> None:
        """Remove the records, the first one first: a crash in between leaves none."""
        self.buffer[HEADER_BYTES : self.size] = bytes(self.size - HEADER_BYTES)
        self.end = HEADER_BYTES

    def restart(self, base: int) -> None:
        """Begin an empty segment at a stream position."""
        self.base = base
        self.end = HEADER_BYTES
        word = BASE_WORD * 8
        self.buffer[word : word + 8] = base.to_bytes(8, sys.byteorder)

    def unmap(self) -> None:
        """Let go of the mapping; nothing is written to it any more."""
        self._mapped = False
        with contextlib.suppress(BufferError):  # it is being sent; it goes when that is done
            self.buffer.close()

    def unlink(self) -> None:
        """Remove the file."""
        self.unmap()
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def _create_segment(
    path: str, size: int, producer: ProducerId, spilled: bool, populate: bool = False
) -> Segment:
    """Make a segment's file.

    Args:
        populate: have all of it mapped at once, and not a page at a time as it is written to, which
            is one `update()` in sixty; it is in memory then whether or not it will be needed.
    """
    # A file object, not a descriptor: should a signal handler raise just here, it is closed still.
    with open(path, "x+b", buffering=0) as file:
        try:
            # Reserved now: a mapped page that cannot be backed later would be a SIGBUS in training.
            os.posix_fallocate(file.fileno(), 0, size)
            flags = mmap.MAP_SHARED | (_POPULATE if populate else 0)
            buffer = mmap.mmap(file.fileno(), size, flags)
        except BaseException:
            os.unlink(path)
            raise
    buffer[16:32] = producer
    buffer[0:8] = MAGIC  # last: what has no magic is no segment yet
    return Segment(path, buffer, size, spilled)


class Ring:
    """The segments of one producer, in a directory of its own.

    Args:
        directory: of this producer in shared memory; must not exist, its parent must.
        spill_directory: of this producer on disk; made when first needed.
        producer: its id.
        identity: who the owner is: for people who look at the directory, and, where there are no
            locks, for the daemon: "pid", "started", "host" and "boot_id" as of `messages.Process`.
        fall_back: makes room elsewhere: returns what takes the place of `directory` where its file
            system is full, so that not even the owner's name can be written.

    Raises:
        OSError: no place takes the owner's name or the first segment; says what to do.
    """

    def __init__(
        self,
        directory: str,
        spill_directory: str,
        producer: ProducerId,
        identity: dict[str, Any],
        *,
        fall_back: Callable[[], str] | None = None,
        memory_bytes: int = MEMORY_BYTES,
        spill_bytes: int = SPILL_BYTES,
    ) -> None:
        self.directory = directory
        self._spill_directory = spill_directory
        self._producer = producer
        self._memory_bytes = memory_bytes
        self._spill_bytes = spill_bytes
        self._files = 0
        self._told = False  # that there is no room
        self._making = threading.Lock()  # of segments: what they take must not pass the bounds
        owner = json.dumps(identity).encode() + b"\n"
        self._lost_offset = len(owner)
        self._owner_fd = self._claim(owner, fall_back)
        self._spares: list[Segment] = []
        self._rolls = self._rolls_seen = 0
        self.segments: list[Segment] = []  # oldest first; the last one is written to
        try:
            self.segments.append(self._new_segment(SEGMENT_BYTES))
        except RingFull as error:
            self.delete()
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _NO_FILES:
                raise OSError(cause.errno, _TOO_MANY_FILES, directory) from error
            raise self._no_room() from error

    @property
    def active(self) -> Segment:
        """The segment that is written to."""
        return self.segments[-1]

    @property
    def head(self) -> int:
        """Stream position behind the last committed record that `reached` told of."""
        return self.segments[-1].end_position

    def reached(self, end: int) -> None:
        """Records are committed up to an offset of the active segment."""
        self.segments[-1].end = end

    @property
    def held_bytes(self) -> int:
        """Bytes of all segment files."""
        return sum(segment.size for segment in (*self.segments, *self._spares))

    def roll(self, record_bytes: int, *, is_last: bool = False) -> Segment:
        """Begin another segment, with room for a record of `record_bytes` and what is behind it.

        Args:
            is_last: of the stream: it says how many ticks were lost, so our own bounds do not hold.

        Raises:
            RingFull: there is no room; the active segment stays.
        """
        needed = record_bytes + HEADER_BYTES
        base = self.head
        segment = self._spare(needed) or self._make(needed, bounded=not is_last)
        self._tell("")
        segment.restart(base)
        full = self.active
        self.segments.append(segment)
        self._rolls += 1
        if full.spilled:  # hundreds may add up while no daemon runs
            full.unmap()
        return segment

    def _spare(self, needed: int) -> Segment | None:
        """A segment that is ready, with room for so many bytes."""
        if self._spares and self._spares[-1].size >= needed:
            with contextlib.suppress(IndexError):  # another thread may have been faster
                return self._spares.pop()
        return None

    def _make(self, needed: int, *, bounded: bool) -> Segment:
        """A new segment, or the one that another thread was just making."""
        is_alone = self._making.acquire(timeout=_MAKING_S)
        try:
            size = max(SEGMENT_BYTES, needed)
            return self._spare(needed) or self._new_segment(size, bounded=bounded)
        except RingFull as error:
            self._tell(str(error))
            raise
        finally:
            if is_alone:
                self._making.release()

    def prepare(self) -> None:
        """Have a spare segment ready, so that the next `roll` need not make one.

        Of many that a burst has left one is given back at each call, once it is over.
        """
        if self._rolls == self._rolls_seen and len(self._spares) > _FEW_SPARES:
            self._spares.pop(0).unlink()
        self._rolls_seen = self._rolls
        if self._spares or 2 * self.active.end <= self.active.size:
            return
        if self._making.acquire(blocking=False):
            try:
                with contextlib.suppress(RingFull):
                    self._spares.append(self._new_segment(SEGMENT_BYTES))
            finally:
                self._making.release()

    def note_lost(self, count: int) -> None:
        """Write down how many ticks were lost of which the stream does not tell yet.

        For whoever reads the ring when its process is gone (`remains`).  A kill finds the old
        line or the new one: it is one system call.
        """
        active = self.active
        line = json.dumps([count, active.end_position]).encode().ljust(_LOST_BYTES - 1) + b"\n"
        if self._owner_fd >= 0:
            with contextlib.suppress(OSError):  # counted here all the same
                os.pwrite(self._owner_fd, line, self._lost_offset)

    def pending(self, position: int) -> Iterator[tuple[int, memoryview]]:
        """The committed records from a position on: (position, bytes) for each segment.

        Raises:
            LookupError: the position was recycled already.
        """
        segments = tuple(self.segments)
        if position < segments[0].base:
            raise LookupError(f"position {position} is gone; the ring begins at {segments[0].base}")
        for segment in segments:
            end = segment.end
            start = HEADER_BYTES + max(0, position - segment.base)
            if start < end:
                yield segment.base + start - HEADER_BYTES, segment.content(start, end)

    def copies(self, position: int) -> Iterator[bytes]:
        """As `pending`, for a thread beside the one that calls `release`.

        Raises:
            LookupError: what was to come next was recycled meanwhile.
        """
        for start, view in self._still_there(position):
            copy = bytes(view)
            # What is passed over, or lies before the ring's beginning by now, may be other records.
            if start != position or start < self.segments[0].base:
                raise LookupError(_RECYCLED)
            position += len(copy)
            yield copy
        if position < self.segments[0].base:
            raise LookupError(_RECYCLED)

    def _still_there(self, position: int) -> Iterator[tuple[int, memoryview]]:
        try:
            yield from self.pending(position)
        except (FileNotFoundError, ValueError) as error:  # unlinked or unmapped since
            raise LookupError(_RECYCLED) from error

    def release(self, position: int) -> None:
        """Recycle the segments that lie wholly before a position."""
        while len(self.segments) > 1 and self.segments[0].end_position <= position:
            segment = self.segments.pop(0)
            if (
                segment.spilled
                or segment.size != SEGMENT_BYTES
                or len(self._spares) >= _MOST_SPARES
            ):
                segment.unlink()
            else:
                segment.clear()
                self._spares.append(segment)
            self._tell("")

    def let_go(self) -> None:
        """Give up the ring but leave the files: a daemon may take them from now on."""
        if self._owner_fd >= 0:
            os.close(self._owner_fd)
            self._owner_fd = -1

    def delete(self) -> None:
        """Remove the files: everything in them is in the journal."""
        for segment in (*self.segments, *self._spares):
            segment.unlink()
        shutil.rmtree(self._spill_directory, ignore_errors=True)
        remove_folder(self.directory)
        self.let_go()

    def forget(self) -> None:
        """In a forked child: close what was inherited, touch no file."""
        self.let_go()
        for segment in (*self.segments, *self._spares):
            segment.unmap()

    def _tell(self, why: str) -> None:
        """Let the daemon know why ticks are dropped, or "" that they are not."""
        if bool(why) == self._told:
            return
        self._told = bool(why)
        path = os.path.join(self.directory, FULL_FILE)
        with contextlib.suppress(OSError):  # where shared memory is full, too, nobody is told
            if why:
                with open(path, "w", encoding="utf-8") as file:
                    file.write(why)
            else:
                os.unlink(path)

    def _claim(self, owner: bytes, fall_back: Callable[[], str] | None) -> int:
        """Claim the directory or, where there is no room, the one to fall back to."""
        try:
            try:
                return _claim_directory(self.directory, owner)
            except OSError as error:
                if fall_back is None or error.errno not in _NO_ROOM:
                    raise
                self.directory = fall_back()
                return _claim_directory(self.directory, owner)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise self._no_room() from error
            raise

    def _no_room(self) -> OSError:
        return OSError(
            errno.ENOSPC,
            f"{_NO_ROOM_FOR_TICKS}, neither in this folder nor in {self._spill_directory!r}: "
            "free some space, or set MLE_RUNTIME_DIR to a folder of yours on this machine that "
            "has some",
            self.directory,
        )

    def _new_segment(self, size: int, *, bounded: bool = True) -> Segment:
        """Make a segment in shared memory or, where that is used up, on disk."""
        in_memory = sum(s.size for s in (*self.segments, *self._spares) if not s.spilled)
        on_disk = sum(s.size for s in (*self.segments, *self._spares) if s.spilled)
        self._files += 1
        name = f"{self._files:08d}.seg"
        if in_memory + size <= self._memory_bytes and has_room(self.directory, size):
            with contextlib.suppress(OSError):
                path = os.path.join(self.directory, name)
                # Who needs a second one logs fast; of a thousand loggers most never do.
                populate = bool(self.segments)
                return _create_segment(path, size, self._producer, False, populate)
        larger = min(on_disk, _MOST_SPILLED_BYTES)
        if size < larger <= self._spill_bytes - on_disk:
            with contextlib.suppress(RingFull):
                return self._on_disk(name, larger)
        if on_disk + size <= self._spill_bytes or not bounded:
            return self._on_disk(name, size)
        spilled = f"{on_disk} bytes are spilled, {self._spill_bytes} (MLE_SPILL_BYTES) is the bound"
        raise RingFull(f"{self._spill_directory}: {spilled}")

    def _on_disk(self, name: str, size: int) -> Segment:
        try:
            os.makedirs(self._spill_directory, mode=0o700, exist_ok=True)
            path = os.path.join(self._spill_directory, name)
            return _create_segment(path, size, self._producer, True)
        except OSError as error:
            why = error.strerror or str(error)
            text = f"{self._spill_directory}: {why}, {size} bytes are needed"
            raise RingFull(text) from error


def has_room(directory: str, size: int) -> bool:
    """Whether shared memory takes so many bytes more and stays free enough for everybody."""
    try:
        room = os.statvfs(directory)
    except OSError:
        return False
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    return free - size >= min(total * MEMORY_FREE_SHARE, MEMORY_FREE_BYTES)


def _claim_directory(directory: str, owner: bytes) -> int:
    """Make the directory with a locked owner file in it; the lock is ours before anyone sees it.

    The lock is a POSIX one: a forked child does not hold it, and it ends with the process.
    """
    making = os.path.join(os.path.dirname(directory), UNFINISHED + os.urandom(8).hex())
    os.mkdir(making, 0o700)
    try:
        path = os.path.join(making, OWNER_FILE)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, owner)
            lock(fd)
            os.rename(making, directory)
        except OSError:
            os.close(fd)
            raise
    except OSError:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return fd


def remove_folder(directory: str) -> None:
    """Remove a ring's folder: for everybody at once, wherever this process is killed.

    One without its owner file, which is what half a removal may leave, would be taken for that of a
    process that lives, for ever.
    """
    hidden = os.path.join(os.path.dirname(directory), REMOVED + os.urandom(8).hex())
    with contextlib.suppress(OSError):
        os.rename(directory, hidden)
        directory = hidden
    shutil.rmtree(directory, ignore_errors=True)


def lock(fd: int) -> bool:
    """Lock a file.  Returns: False where the file system has no locks."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        return False
    return True


def gap_record(count: int) -> bytes:
    """The record that tells of so many lost ticks."""
    return wire.encode_record(Gap(count, _NO_ROOM_FOR_TICKS))
