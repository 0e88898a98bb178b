"""What a snapshot's header file says, and its checksums filled in; pure.

Nothing here opens a file: which bytes are read and written, and when, is for `snapshot`.

Format of a header file `<number>.snap`, version 1:

    offset  0   8 bytes  magic "MLESNAP1"
            8   4 bytes  n, length of the header, unsigned, little-endian
           12   n bytes  header, a msgpack map:
                           number     int, of the artifact within its producer, from 1
                           kind       str, what it is: "model", "init", "figure", "extra"
                           form       str, what its bytes are: "file", or "figure", to be rendered
                           size       int, bytes of the artifact
                           segments   [[name, spilled, used], ...] in order: the first `used` bytes
                                      of a file, in the spill directory where `spilled` is true
                           checksums  [[start, end, [place, ...]], ...] by start: the CRC-32 of the
                                      bytes from start to end belongs, as an unsigned 32-bit word,
                                      little-endian, at each place, all of them at or after end
       12 + n            the artifact itself, where it is small and `segments` is empty
"""

from __future__ import annotations

import heapq
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgpack

MAGIC: Final = b"MLESNAP1"
SUFFIX: Final = ".snap"
HEADER_NAME: Final = re.compile(r"[1-9][0-9]{0,18}\.snap")
SEGMENT_NAME: Final = re.compile(r"[0-9]{8,}\.seg")
_LENGTH: Final = struct.Struct("<I")
PREFIX_BYTES: Final = len(MAGIC) + _LENGTH.size
# Some 40 bytes a tensor.  What claims to be longer is no header.
MAX_HEADER_BYTES: Final = 64 * 2**20
_WORD_BYTES: Final = 4

# start, end, places
Checksum: TypeAlias = tuple[int, int, tuple[int, ...]]
# file name, whether it lies on disk, bytes of it that count
Piece: TypeAlias = tuple[str, bool, int]


@dataclass(frozen=True, slots=True)
class Header:
    """What a header file says; see the format above."""

    number: int
    kind: str
    form: str
    size: int
    segments: tuple[Piece, ...]
    checksums: tuple[Checksum, ...]

    def encode(self) -> bytes:
        """The bytes of the file, up to the artifact itself."""
        packed: bytes = msgpack.packb({name: getattr(self, name) for name in self.__slots__})
        return MAGIC + _LENGTH.pack(len(packed)) + packed


def header_bytes(prefix: bytes) -> int:
    """How many bytes follow the first `PREFIX_BYTES` until the header ends.

    Raises:
        ValueError: these are not the first bytes of a header file.
    """
    if len(prefix) != PREFIX_BYTES or prefix[: len(MAGIC)] != MAGIC:
        raise ValueError("not a header of a snapshot")
    (length,) = _LENGTH.unpack(prefix[len(MAGIC) :])
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    return int(length)


def decode_header(packed: bytes) -> Header:
    """The header in these bytes, which may come from anywhere.

    Raises:
        ValueError: they are none that `encode` would have written.
    """
    try:
        plain = msgpack.unpackb(packed, use_list=False)
    except Exception as error:  # msgpack raises ValueErrors, and others of its own
        raise ValueError(f"no msgpack: {error}") from error
    if not isinstance(plain, dict) or set(plain) != set(Header.__slots__):
        raise ValueError("not the fields of a header")
    header = Header(**plain)
    if not (_is_count(header.number) and isinstance(header.kind, str) and _is_count(header.size)):
        raise ValueError("fields of a wrong type")
    if not isinstance(header.form, str) or not _are_pieces(header) or not _are_checksums(header):
        raise ValueError("fields that do not fit together")
    return header


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_pieces(header: Header) -> bool:
    """Whether the segments are plain names and make up the size."""
    total = 0
    for each in header.segments if isinstance(header.segments, tuple) else (None,):
        match each:
            case (str(name), bool(), int(used)) if SEGMENT_NAME.fullmatch(name) and used > 0:
                total += used
            case _:
                return False
    return total == header.size or not header.segments


def _are_checksums(header: Header) -> bool:
    """Whether the ranges are in order, and every place behind its range and inside."""
    last = 0
    for each in header.checksums if isinstance(header.checksums, tuple) else (None,):
        match each:
            case (int(start), int(end), tuple(places)) if last <= start <= end:
                last = end
                if not all(
                    type(place) is int and end <= place <= header.size - _WORD_BYTES
                    for place in places
                ):
                    return False
            case _:
                return False
    return True


def with_checksums(
    pieces: Iterable[memoryview], checksums: Iterable[Checksum]
) -> Iterator[memoryview]:
    """Fill checksums into a stream of bytes.

    Args:
        pieces: the bytes in order.  They are not changed: what holds a place is copied.
        checksums: as in a header.
    """
    waiting = iter(checksums)
    note = next(waiting, None)
    crc = 0
    due: list[tuple[int, bytes]] = []  # a heap: what is to be put where
    at = 0
    for piece in pieces:
        stop = at + len(piece)
        while note is not None and note[0] < stop:
            start, end, places = note
            crc = zlib.crc32(piece[max(start - at, 0) : max(end - at, 0)], crc)
            if end > stop:
                break
            for place in places:
                heapq.heappush(due, (place, crc.to_bytes(_WORD_BYTES, "little")))
            note, crc = next(waiting, None), 0
        yield _patched(piece, at, due) if due and due[0][0] < stop else piece
        at = stop


def _patched(piece: memoryview, at: int, due: list[tuple[int, bytes]]) -> memoryview:
    """A copy of a piece, with what is due in it put in; what is due behind it stays due."""
    copy = bytearray(piece)
    stop = at + len(copy)
    while due and due[0][0] < stop:
        place, word = heapq.heappop(due)
        here, rest = word[: stop - place], word[stop - place :]
        copy[place - at : place - at + len(here)] = here
        if rest:  # the word goes on in the next piece
            heapq.heappush(due, (stop, rest))
    return memoryview(copy)
