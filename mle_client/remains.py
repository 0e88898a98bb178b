"""What a process that is gone left in its ring: whose it was, and the records that are whole.

For the daemon; a process that lives reads its own ring through `ring`, which says how one lies on
the disk.  Whatever lies there may be half written, or made by somebody else; nothing of it is
changed here.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mle_client import files, runtime, tick_layout
from mle_client.messages import MAX_COUNT, ProducerId
from mle_client.ring import (
    BASE_WORD,
    HEADER_BYTES,
    MAGIC,
    MAX_SEGMENT_BYTES,
    OWNER_FILE,
    gap_record,
    lock,
)

_OWNER_BYTES: Final = 64 * 1024  # ours have a few hundred


def take_over(directory: str) -> int | None:
    """Lock a ring whose owner is gone.

    Returns:
        A file descriptor that holds the lock until it is closed, or None while the owner lives.

    Raises:
        OSError: the folder or its owner file is not what a process of this user makes.
    """
    if os.path.islink(directory):
        raise files.OddFile(errno.ELOOP, "it is a link", directory)
    try:
        fd = files.open_left(os.path.join(directory, OWNER_FILE), os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        gone = lock(fd) or _has_ended(os.pread(fd, _OWNER_BYTES, 0))
    except OSError:
        gone = False
    if not gone:
        os.close(fd)
        return None
    return fd


def _has_ended(identity: bytes) -> bool:
    """Whether an owner, as it named itself, was a process of this machine that is gone."""
    try:
        owner = json.loads(identity.partition(b"\n")[0])
        process = owner["pid"], owner["started"], owner["boot_id"]
        return runtime.sees_processes_of(owner["host"], owner["boot_id"]) and not (
            runtime.is_running(*process)
        )
    except (ValueError, TypeError, KeyError):
        return False


@dataclass(frozen=True, slots=True)
class Remains:
    """The records in one segment file.  Args: base: stream position of the first byte."""

    path: str
    producer: ProducerId
    base: int
    payload: bytes


def read_remains(
    *directories: str, behind: int = 0, on_odd: Callable[[str], None] = lambda text: None
) -> Iterator[Remains]:
    """The committed records of a ring, in stream order, and the gap that ends them, if one does.

    One segment at a time: there may be a gigabyte of them.  A file that is no whole segment was
    never written to and is passed over.

    Args:
        behind: a position up to which records are not wanted; segments that end there are not read.
        on_odd: told of what no process of ours has made, which is passed over, too.

    Raises:
        OSError: a segment cannot be read.
    """
    count, position = _lost(directories)
    gap = gap_record(count) if count else b""
    unwanted = min(behind, position) if count else behind
    places = _places(directories, on_odd)
    bases = [base for base, _ in places]
    last: Remains | None = None
    for base, path in places:
        following = bisect.bisect_right(bases, base)
        if following < len(bases) and bases[following] <= unwanted:  # it ends there
            continue
        remains = _read_segment(path)
        if remains is None:
            continue
        if gap and gap in remains.payload[max(0, position - remains.base) :]:
            gap = b""  # the stream tells of it: no tick was put behind the position before that
        if last is not None:
            yield last
        last = remains
    if last is not None:
        yield replace(last, payload=last.payload + gap)


def _places(directories: Sequence[str], on_odd: Callable[[str], None]) -> list[tuple[int, str]]:
    """The segment files of a ring that have records, in their order, each with its base."""
    found = []
    for directory in directories:
        for name in os.listdir(directory) if os.path.isdir(directory) else []:
            if name.endswith(".seg"):
                path = os.path.join(directory, name)
                try:
                    base = _read_base(path)
                except files.OddFile as error:
                    on_odd(f"{error.filename} is passed over: {error.strerror}")
                else:
                    found += [(base, path)] if base is not None else []
    return sorted(found)


def _lost(directories: Sequence[str]) -> tuple[int, int]:
    """What `Ring.note_lost` wrote last: lost ticks, and the position behind which they belong."""
    for directory in directories:
        with contextlib.suppress(OSError):
            fd = files.open_left(os.path.join(directory, OWNER_FILE))
            try:
                _, _, line = os.pread(fd, _OWNER_BYTES, 0).partition(b"\n")
            finally:
                os.close(fd)
            with contextlib.suppress(ValueError):
                match json.loads(line or b"[]"):
                    case [int(count), int(position)] if 0 < count <= MAX_COUNT and position >= 0:
                        return count, position
    return 0, 0


def _read_base(path: str) -> int | None:
    """The stream position of a segment's first byte; None where it has none, or is no segment.

    An empty one does not count: it may have got its base, and then its process was interrupted and
    wrote more into the segment before.

    Raises:
        OSError: it cannot be read, or is larger than any of ours.
    """
    fd = files.open_left(path)
    try:
        header = os.pread(fd, HEADER_BYTES + 1, 0)
        if os.fstat(fd).st_size > MAX_SEGMENT_BYTES and header[:8] == MAGIC:
            raise OSError(errno.EFBIG, "it is larger than any segment of ours", path)
    finally:
        os.close(fd)
    return None if header[HEADER_BYTES:] in (b"", b"\0") else _base(header)


def _base(header: bytes) -> int | None:
    if len(header) < HEADER_BYTES or header[:8] != MAGIC:
        return None
    return int.from_bytes(header[BASE_WORD * 8 :][:8], sys.byteorder)


def _read_segment(path: str) -> Remains | None:
    with open(files.open_left(path), "rb") as file:
        header = file.read(HEADER_BYTES)
        content = file.read(MAX_SEGMENT_BYTES)
    base = _base(header)
    payload = content[: tick_layout.committed_end(content)]
    if base is None or not payload:
        return None
    return Remains(path, ProducerId(header[16:32]), base, payload)
