"""How a journal segment lies on disk, and how to find its records again.  Journal format version 1.

Pure: bytes in, spans out.  It opens no file (`journal` does) and does not look into records.
The same, as a page with examples: `docs/journal-format.md`.  All numbers are little-endian.

    segment   header, then frames one after another up to the end of the file
    header    "MLEJRNL"  u8 version  u32 segment number  u32 crc32 of the 12 bytes before
    frame     u32 length  u32 place  u32 crc  payload of `length` bytes; 0 is no length
    place     crc32 over u32 segment number, u64 offset of the frame, u32 length
    crc       crc32 over the payload

`place` makes the head of a frame sure without its payload: a length that cannot be trusted is never
followed, the next frame is found without reading what false lengths would cover, and a frame that
lies inside a payload (somebody logs a journal) or comes from another file is no frame.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

VERSION: Final = 1
MAGIC: Final = b"MLEJRNL"
MAX_RECORD_BYTES: Final = 2**30  # a message has at most 32 MiB; a daemon's state may be larger

_HEADER: Final = struct.Struct("<7sBI")
_CRC: Final = struct.Struct("<I")
_FRAME: Final = struct.Struct("<III")
_PLACE: Final = struct.Struct("<IQI")
_PLACE_DTYPE: Final = np.dtype([("number", "<u4"), ("offset", "<u8"), ("length", "<u4")])
HEADER_BYTES: Final = _HEADER.size + _CRC.size
FRAME_BYTES: Final = _FRAME.size

# Offsets that a search looks at together.  Few at first: the next frame is mostly near.
_FIRST_WINDOW_BYTES: Final = 4 * 2**10
_LAST_WINDOW_BYTES: Final = 2**20

Buffer: TypeAlias = bytes | bytearray | memoryview
Span: TypeAlias = tuple[int, int]  # offset of a payload in the segment, its length in bytes
Verdict: TypeAlias = Literal["clean", "torn", "damaged", "foreign"]


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a segment holds.

    Args:
        frames: payloads up to the first bad byte, in order.
        after: payloads found behind the first bad byte, in order; empty unless damaged.
        valid_end: offset behind the last of `frames`; 0 where the header is not whole.
        verdict: "clean"; "torn": an unfinished write at the end, which is legal in any segment;
            "damaged": bad bytes with good records behind them; "foreign": no segment of ours.
        problem: "" or what is wrong, for a person to read.
    """

    frames: tuple[Span, ...]
    after: tuple[Span, ...]
    valid_end: int
    verdict: Verdict
    problem: str = ""


# --- writing --------------------------------------------------------------------------------------
def header(number: int) -> bytes:
    """The first bytes of a segment."""
    return _sealed(_HEADER.pack(MAGIC, VERSION, number))


def frame_header(parts: Sequence[Buffer], number: int, offset: int) -> bytes:
    """The 12 bytes that go before a record.

    Args:
        parts: the record in pieces, contiguous each; they are read, not joined.
        number: of the segment.
        offset: in bytes, of these 12 bytes in the segment.

    Raises:
        ValueError: no journal can hold the record, because it is empty or too long.
    """
    length = 0
    for part in parts:
        length += len(part) if type(part) is bytes else memoryview(part).nbytes
    if not 0 < length <= MAX_RECORD_BYTES:
        raise ValueError(f"a record has 1 to {MAX_RECORD_BYTES} bytes, not {length}; split it")
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return _FRAME.pack(length, zlib.crc32(_PLACE.pack(number, offset, length)), crc)


def frame_bytes(head: bytes) -> int:
    """The length of a whole frame, of which the first 12 bytes are given."""
    length: int = _FRAME.unpack_from(head)[0]
    return FRAME_BYTES + length


def _sealed(fields: bytes) -> bytes:
    return fields + _CRC.pack(zlib.crc32(fields))


# --- reading --------------------------------------------------------------------------------------
def scan(data: Buffer, number: int) -> ScanResult:
    """Find the records of a segment.  Never raises, whatever the bytes are.

    Args:
        data: the whole segment.
        number: of the segment, as its file's name says.
    """
    view = memoryview(data)
    first = bytes(view[:HEADER_BYTES])
    whole = first == header(number)
    if not whole and not _may_be_ours(view, first, number):
        return ScanResult((), (), 0, "foreign", _why_foreign(first))
    spans, good, end = _find_frames(view, number)
    if not whole:
        good, end = 0, 0
    frames, after = tuple(spans[:good]), tuple(spans[good:])
    if whole and end == len(view):
        return ScanResult(frames, (), end, "clean")
    if after:
        hole = f"bytes {end} to {after[0][0] - FRAME_BYTES} are damaged, records follow"
        return ScanResult(frames, after, end, "damaged", hole)
    torn = f"its last {len(view) - end} bytes are an unfinished write"
    return ScanResult(frames, (), end, "torn", torn if end else "it was never begun")


def _may_be_ours(view: memoryview, first: bytes, number: int) -> bool:
    """Whether a segment whose header is not what it should be is ours all the same.

    The write of the header may have been cut, the page it is in may never have reached the disk
    (zeros), or its bytes are damaged but a record stands where the first one should.
    """
    if header(number).startswith(first) or not any(first):
        return True
    told_otherwise = first[:7] == MAGIC and first == _sealed(first[: _HEADER.size])
    return not told_otherwise and _begins_frame(view, number, HEADER_BYTES)


def _why_foreign(first: bytes) -> str:
    if len(first) < HEADER_BYTES or first != _sealed(first[: _HEADER.size]) or first[:7] != MAGIC:
        return "this is no journal segment; move it out of the folder"
    _, version, number = _HEADER.unpack_from(first)
    if version != VERSION:
        return (
            f"journal format {version}, but this release reads {VERSION}: "
            "start the release of mle-daemon that wrote it, and stop it with 'mle-daemon stop'"
        )
    return f"this is segment {number} under another name; give it back the name it had"


def _find_frames(view: memoryview, number: int) -> tuple[list[Span], int, int]:
    """All payloads, how many lie before the first bad byte, and where that is."""
    spans: list[Span] = []
    good = end = -1
    at, size = HEADER_BYTES, len(view)
    unpack, crc32, place_of = _FRAME.unpack_from, zlib.crc32, _PLACE.pack
    while at < size:
        length, place, crc = unpack(view, at) if at + FRAME_BYTES < size else (0, 0, 0)
        start = at + FRAME_BYTES
        valid = 0 < length <= MAX_RECORD_BYTES and crc32(place_of(number, at, length)) == place
        if valid and crc32(view[start : start + length]) == crc and start + length <= size:
            spans.append((start, length))
        elif good < 0:
            good, end = len(spans), at
        at = start + length if valid else _next_frame(view, number, at + 1)
    return (spans, len(spans), size) if good < 0 else (spans, good, end)


def _begins_frame(view: memoryview, number: int, at: int) -> bool:
    """Whether the head of a frame stands at an offset."""
    return _next_frame(view[: at + FRAME_BYTES + 1], number, at) == at


def _next_frame(view: memoryview, number: int, at: int) -> int:
    """The offset of the first head of a frame at or behind `at`; the end if there is none."""
    last = len(view) - FRAME_BYTES
    window = _FIRST_WINDOW_BYTES
    while at < last:
        stop = min(at + window, last)
        raw = np.frombuffer(view, np.uint8, stop - at + FRAME_BYTES, at)
        words = np.lib.stride_tricks.sliding_window_view(raw, 4).copy().view("<u4")[:, 0]
        lengths, places = words[: stop - at], words[4 : stop - at + 4]
        possible = np.flatnonzero((lengths > 0) & (lengths <= MAX_RECORD_BYTES))
        expected = _places(number, at + possible, lengths[possible])
        found = possible[places[possible] == expected]
        if found.size:
            return at + int(found[0])
        at, window = stop, min(4 * window, _LAST_WINDOW_BYTES)
    return len(view)


def _places(
    number: int, offsets: npt.NDArray[np.intp], lengths: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]:
    """What `place` is for a frame at each offset."""
    fields = np.empty(len(offsets), _PLACE_DTYPE)
    fields["number"], fields["offset"], fields["length"] = number, offsets, lengths
    columns = fields.view(np.uint8).reshape(-1, _PLACE.size)
    crcs = np.full(len(offsets), zlib.crc32(bytes(_PLACE.size)), np.uint32)
    for index, differences in enumerate(_crc_differences()):
        crcs ^= differences[columns[:, index]]
    return crcs


@functools.cache
def _crc_differences() -> npt.NDArray[np.uint32]:
    """What each value of each byte of a place changes in the crc, whatever the others are.

    Returns:
        Shape (16, 256), to be combined by exclusive or: crc32 is linear.
    """
    size = _PLACE.size
    zeros = bytes(size)
    rows = [
        [zlib.crc32(zeros[:i] + bytes([byte]) + zeros[i + 1 :]) for byte in range(256)]
        for i in range(size)
    ]
    return np.array(rows, np.uint32) ^ np.uint32(zlib.crc32(zeros))
