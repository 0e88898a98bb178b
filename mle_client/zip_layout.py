"""Where everything goes in an uncompressed zip file whose large contents come later; pure.

The layout is the one that torch writes: contents aligned, checksums behind each content (bit 3 of
the flags) and in the directory at the end, so that a content can be copied before its checksum is
known.  Sources: PKWARE's APPNOTE.TXT 6.3.9, and torch's `caffe2/serialize/inline_container.cc` with
its miniz, whose bytes these are (but for the compressed size of a content of 4 GiB or more, which
miniz leaves out where it is said a second time).  It compresses nothing and computes no checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mle_client.snapshot_format import Checksum

# Sizes and offsets from here on do not fit a 32-bit field and go into a zip64 one.
ZIP64_FROM: Final = 0xFFFFFFFF
_IN_ZIP64: Final = 0xFFFFFFFF  # in a 32-bit field: look there
_UTF8: Final = 0x0800  # a flag: names are in UTF-8
_CHECKSUM_BEHIND: Final = 0x0008  # a flag: the checksum follows the content

# signature, version, flags, method, time, date, crc, 2 sizes, lengths of name and extra
_LOCAL: Final = struct.Struct("<IHHHHHIIIHH")
# signature, crc, 2 sizes
_DESCRIPTOR: Final = struct.Struct("<IIII")
_DESCRIPTOR64: Final = struct.Struct("<IIQQ")
# signature, 2 versions, flags, method, time, date, crc, 2 sizes, lengths of name, extra and
# comment, disk, 2 attributes, offset
_CENTRAL: Final = struct.Struct("<IHHHHHHIIIHHHHHII")
# signature, size of what follows, 2 versions, 2 disks, 2 counts, size and offset of the directory
_END64: Final = struct.Struct("<IQHHIIQQQQ")
# signature, disk, offset of END64, disks
_LOCATOR: Final = struct.Struct("<IIQI")
# signature, 2 disks, 2 counts, size and offset of the directory, length of a comment
_END: Final = struct.Struct("<IHHHHIIH")
_DESCRIPTOR_CRC: Final = 4  # offset of the checksum in it
_CENTRAL_CRC: Final = 16


@dataclass(frozen=True, slots=True)
class Layout:
    """A zip file without its large contents.

    Args:
        pieces: what comes before each large content, from the one before it on.
        ending: what comes after the last.
        checksums: (start, end, places): which bytes each checksum is of, and where it goes.
        size: of the whole file in bytes.
    """

    pieces: tuple[bytes, ...]
    ending: bytes
    checksums: tuple[Checksum, ...]
    size: int


def lay_out(entries: Sequence[tuple[str, bytes | int]], alignment: int) -> Layout:
    """Lay out a zip file.

    Args:
        entries: name, and content or the size in bytes of a content that is written elsewhere.
        alignment: of every content in the file, in bytes.
    """
    pieces: list[bytes] = []
    piece = bytearray()
    position = 0
    directory: list[_Entry] = []
    for name, content in entries:
        size = content if isinstance(content, int) else len(content)
        entry = _Entry(name.encode(), size, position)
        head = entry.local_header(alignment)
        piece += head
        start = position + len(head)
        if isinstance(content, int):
            pieces.append(bytes(piece))
            piece.clear()
        else:
            piece += content
        descriptor = entry.descriptor()
        piece += descriptor
        entry.content_at = start
        position = start + size + len(descriptor)
        directory.append(entry)
    checksums = []
    central = bytearray()
    for entry in directory:
        end = entry.content_at + entry.size
        places = (end + _DESCRIPTOR_CRC, position + len(central) + _CENTRAL_CRC)
        if entry.size:  # the checksum of nothing is 0
            checksums.append((entry.content_at, end, places))
        central += entry.central_header()
    ending = _ending(len(directory), len(central), position)
    size = position + len(central) + len(ending)
    return Layout(tuple(pieces), bytes(piece + central + ending), tuple(checksums), size)


@dataclass(slots=True)
class _Entry:
    name: bytes
    size: int
    offset: int  # of its local header
    content_at: int = 0

    def _zip64(self) -> bytes:
        """The extra field with what does not fit into 32 bits; empty where all does."""
        values = [self.size] * 2 if self.size >= ZIP64_FROM else []
        values += [self.offset] if self.offset >= ZIP64_FROM else []
        if not values:
            return b""
        return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)

    def _flags(self) -> int:
        return _UTF8 | _CHECKSUM_BEHIND if self.size else _UTF8

    def local_header(self, alignment: int) -> bytes:
        extra = self._zip64()
        start = self.offset + _LOCAL.size + len(self.name) + len(extra) + 4
        padding = -start % alignment
        extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        lengths = len(self.name), len(extra)
        fixed = _LOCAL.pack(0x04034B50, 0, self._flags(), 0, 0, 0, 0, 0, 0, *lengths)
        return fixed + self.name + extra

    def descriptor(self) -> bytes:
        """What follows the content; the checksum's word is zero."""
        if not self.size:
            return b""
        form = _DESCRIPTOR64 if self._zip64() else _DESCRIPTOR
        return form.pack(0x08074B50, 0, self.size, self.size)

    def central_header(self) -> bytes:
        extra = self._zip64()
        size = _IN_ZIP64 if self.size >= ZIP64_FROM else self.size
        offset = _IN_ZIP64 if self.offset >= ZIP64_FROM else self.offset
        lengths = len(self.name), len(extra), 0
        fixed = _CENTRAL.pack(
            0x02014B50, 0, 0, self._flags(), 0, 0, 0, 0, size, size, *lengths, 0, 0, 0, offset
        )
        return fixed + self.name + extra


def _ending(count: int, size: int, offset: int) -> bytes:
    """What follows the directory; the 64-bit forms are always there, as torch writes them."""
    end64 = _END64.pack(0x06064B50, 44, 0x031E, 45, 0, 0, count, count, size, offset)
    locator = _LOCATOR.pack(0x07064B50, 0, offset + size, 1)
    short_count = min(count, 0xFFFF)
    short_size = _IN_ZIP64 if size >= ZIP64_FROM else size
    short_offset = _IN_ZIP64 if offset >= ZIP64_FROM else offset
    end = _END.pack(0x06054B50, 0, 0, short_count, short_count, short_size, short_offset, 0)
    return end64 + locator + end
