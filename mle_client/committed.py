"""Committed snapshots: read in pieces, then released.

A snapshot is read by the process that took it, and, once that is gone, by the daemon, which finds
it by its header file (`read_left`).  Nothing here writes one; that is `snapshot`'s.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

from mle_client import files
from mle_client.segments import Segment, SegmentPool, read_range
from mle_client.snapshot_format import (
    HEADER_NAME,
    PREFIX_BYTES,
    SUFFIX,
    Header,
    decode_header,
    header_bytes,
    with_checksums,
)

# Gives the bytes between two offsets of a file.
Content: TypeAlias = Callable[[int, int], memoryview]


class _Artifact:
    """What can be read of a committed artifact; the fields are its header's."""

    def __init__(self, header: Header, path: str, behind: int, contents: Sequence[Content]) -> None:
        self.number = header.number
        self.kind = header.kind
        self.form = header.form
        self.size = header.size
        self._checksums = header.checksums
        self._path = path
        self._released = False
        used = (length for _, _, length in header.segments)
        self._parts = list(zip(contents, used, strict=True))
        if not header.segments:  # it lies in the header file, from offset `behind` on
            self._parts = [(lambda a, b: read_range(path, behind + a, behind + b), self.size)]

    def chunks(self, chunk_bytes: int) -> Iterator[memoryview]:
        """The bytes, in pieces of at most `chunk_bytes`, checksums filled in.

        Raises:
            ValueError: it was released.
            OSError: a part on disk cannot be read.
        """
        return with_checksums(self._pieces(chunk_bytes), self._checksums)

    def _pieces(self, chunk_bytes: int) -> Iterator[memoryview]:
        for content, used in self._parts:
            for start in range(0, used, chunk_bytes):
                if self._released:
                    raise ValueError(f"snapshot {self.number} was released")
                yield content(start, min(start + chunk_bytes, used))


class Snapshot(_Artifact):
    """A committed artifact of this process; the bytes of its chunks are valid until `release`."""

    def __init__(
        self,
        pool: SegmentPool,
        header: Header,
        path: str,
        behind: int,
        segments: list[Segment],
        claimed: int,
    ) -> None:
        super().__init__(header, path, behind, [segment.content for segment in segments])
        self._pool = pool
        self._segments = segments
        self._claimed = claimed  # bytes of the header file that count as shared memory

    def release(self) -> None:
        """Recycle its memory: the bytes are safe elsewhere, or not wanted."""
        self._release(remove_header=True)

    def give_way_to(self, successor: Snapshot) -> None:
        """Recycle its memory: another snapshot was committed under its number."""
        self._release(remove_header=successor._path != self._path)

    def _release(self, remove_header: bool) -> None:
        segments, self._segments = self._segments, []
        if not self._released:
            self._released = True
            if remove_header:
                unlink(self._path)  # first: a header speaks of bytes that are there
            self._pool.unclaim(self._claimed)
            self._pool.give_back(segments)


def unlink(path: str) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(OSError):
        os.unlink(path)


# --- the daemon's side: snapshots of a producer whose process is gone -----------------------------
class LeftSnapshot(_Artifact):
    """A committed artifact of a process that is gone."""

    def __init__(self, header: Header, path: str, behind: int, segment_paths: list[str]) -> None:
        contents = [partial(read_range, each) for each in segment_paths]
        super().__init__(header, path, behind, contents)
        self._segment_paths = segment_paths

    def release(self) -> None:
        """Remove its files: the bytes are safe elsewhere, or not wanted."""
        self._released = True
        for path in (self._path, *self._segment_paths):
            unlink(path)


def read_left(directory: str, spill: str) -> list[LeftSnapshot]:
    """The committed snapshots of a producer whose process is gone, by number.

    What is torn, foreign or lacks a file is passed over.

    Args:
        directory: of its snapshots in shared memory; need not exist.
        spill: of its snapshots on disk; need not exist.
    """
    found: dict[int, LeftSnapshot] = {}
    for place in (directory, spill):
        for name in _names(place):
            if HEADER_NAME.fullmatch(name):
                with contextlib.suppress(OSError, ValueError):
                    left = _read_one(os.path.join(place, name), directory, spill)
                    if name == f"{left.number}{SUFFIX}":
                        found.setdefault(left.number, left)
    return [found[number] for number in sorted(found)]


def _read_one(path: str, directory: str, spill: str) -> LeftSnapshot:
    with open(files.open_left(path), "rb") as file:
        length = header_bytes(file.read(PREFIX_BYTES))
        header = decode_header(file.read(length))
        behind = os.fstat(file.fileno()).st_size - PREFIX_BYTES - length
    paths = []
    for name, spilled, used in header.segments:
        paths.append(os.path.join(spill if spilled else directory, name))
        if os.path.getsize(paths[-1]) < used:
            raise ValueError(f"{paths[-1]} is torn")
    if not paths and behind != header.size:
        raise ValueError(f"{path} is torn")
    return LeftSnapshot(header, path, PREFIX_BYTES + length, paths)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
