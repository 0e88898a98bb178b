"""Reading the journal back: which segments lie there, and what each of them holds.

It changes nothing in the folder.  Segments are mapped, one at a time, so that memory stays bounded
however long the journal has become.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mle_client.errors import LogDamaged
from mle_daemon import journal_format
from mle_daemon.journal_format import ScanResult

SUFFIX: Final = ".mlej"
_NAME: Final = re.compile(r"(\d{8,10})\.mlej")


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment that lies in the folder.  Args: size: in bytes."""

    number: int
    path: str
    size: int


@dataclass(frozen=True, eq=False, slots=True)
class Segment:
    """A segment read back.

    Args:
        number: of the segment.
        path: of its file.
        scan: where its records are.
        data: its bytes, mapped for as long as anybody holds a part of them.
    """

    number: int
    path: str
    scan: ScanResult
    data: memoryview

    def payloads(self) -> Iterator[memoryview]:
        """The records in order, those behind damage too, as parts of `data`."""
        for spans in (self.scan.frames, self.scan.after):
            for offset, length in spans:
                yield self.data[offset : offset + length]


def list_segments(directory: str) -> list[SegmentFile]:
    """The segments in a folder, oldest first; none if there is no folder.

    Files with other endings are left alone.

    Raises:
        LogDamaged: something has the ending of a segment and is none.
    """
    found: list[SegmentFile] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        found += [_segment_file(entry) for entry in entries if entry.name.endswith(SUFFIX)]
    return sorted(found, key=lambda segment: segment.number)


def read_segments(directory: str) -> Iterator[Segment]:
    """Read the segments of a folder, oldest first, one at a time.

    Look at each one's `scan.verdict`: a damaged segment is not an error here, for its other
    records are good.

    Raises:
        LogDamaged: a file is no segment, or was written by a release with another format.
    """
    for file in list_segments(directory):
        data = _map(file.path)
        scan = journal_format.scan(data, file.number)
        if scan.verdict == "foreign":
            raise LogDamaged(file.path, scan.problem)
        yield Segment(file.number, file.path, scan, data)


def _segment_file(entry: os.DirEntry[str]) -> SegmentFile:
    name = _NAME.fullmatch(entry.name)
    if name is None:
        raise LogDamaged(entry.path, "no journal segment has such a name; move it out of there")
    if not entry.is_file(follow_symlinks=False):
        raise LogDamaged(entry.path, "a journal segment is a plain file; move this out of there")
    return SegmentFile(int(name[1]), entry.path, entry.stat(follow_symlinks=False).st_size)


def _map(path: str) -> memoryview:
    """A file's bytes."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")  # which cannot be mapped
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
