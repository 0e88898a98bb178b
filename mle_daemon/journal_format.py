"""How a journal segment lies on disk, and how to find its records again.  Journal format version 1.

Pure: bytes in, spans out.  It opens no file (`journal` does) and does not look into records.
The same, as a page with examples: `docs/journal-format.md`.  All numbers are little-endian.

    segment   header, then frames one after another up to the end of the file
    header    "MLEJRNL"  u8 version  u32 segment number  u32 crc32 of the 12 bytes before
    frame     u32 length  u32 crc  payload of `length` bytes; a length of 0 is no frame
    crc       crc32 over u32 segment number, u64 offset of the frame, u32 length, payload

The crc says where a frame belongs, so a frame that lies inside a payload (somebody logs a journal)
or comes from another file is never taken for a record, wherever the search for one begins.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

VERSION: Final = 1
MAGIC: Final = b"MLEJRNL"
MAX_RECORD_BYTES: Final = 256 * 2**20  # a message is at most 32 MiB; a daemon's own state is small

_HEADER: Final = struct.Struct("<7sBI")
_CRC: Final = struct.Struct("<I")
_FRAME: Final = struct.Struct("<II")
_PLACE: Final = struct.Struct("<IQI")
HEADER_BYTES: Final = _HEADER.size + _CRC.size
FRAME_BYTES: Final = _FRAME.size

# Places looked at together in a search.  Small first: the next frame is mostly near.
_FIRST_WINDOW_BYTES: Final = 4 * 1024
_LAST_WINDOW_BYTES: Final = 256 * 1024
_MARK_BYTES: Final = 1024  # between two known checksums: at most so much is read for one more

Buffer: TypeAlias = bytes | bytearray | memoryview
Span: TypeAlias = tuple[int, int]  # offset of a payload in the segment, its length in bytes
Checksums: TypeAlias = npt.NDArray[np.uint32]
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
    """The 8 bytes that go before a record.

    Args:
        parts: the record in pieces, contiguous each; they are read, not joined.
        number: of the segment.
        offset: in bytes, of these 8 bytes in the segment.

    Raises:
        ValueError: no journal can hold the record, because it is empty or too long.
    """
    length = 0
    for part in parts:
        length += len(part) if type(part) is bytes else memoryview(part).nbytes
    if not 0 < length <= MAX_RECORD_BYTES:
        raise ValueError(f"a record has 1 to {MAX_RECORD_BYTES} bytes, not {length}; split it")
    crc = _first_crc(number, offset, length)
    for part in parts:
        crc = zlib.crc32(part, crc)
    return _FRAME.pack(length, crc)


def frame_bytes(head: bytes) -> int:
    """The length of a whole frame, of which the first 8 bytes are given."""
    length: int = _FRAME.unpack(head)[0]
    return FRAME_BYTES + length


def _first_crc(number: int, offset: int, length: int) -> int:
    """The crc of a frame before its payload."""
    return zlib.crc32(_PLACE.pack(number, offset, length))


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
    frames, end = _walk(view, number, HEADER_BYTES) if whole else ([], 0)
    if whole and end == len(view):
        return ScanResult(tuple(frames), (), end, "clean")
    after = _salvage(view, number, max(end, HEADER_BYTES))
    if not after:
        torn = f"its last {len(view) - end} bytes are an unfinished write"
        return ScanResult(tuple(frames), (), end, "torn", torn if end else "it was never begun")
    hole = f"bytes {end} to {after[0][0] - FRAME_BYTES} are damaged, records follow"
    return ScanResult(tuple(frames), tuple(after), end, "damaged", hole)


def _may_be_ours(view: memoryview, first: bytes, number: int) -> bool:
    """Whether a segment whose header is not what it should be is ours all the same.

    The write of the header may have been cut, the page it is in may never have reached the disk
    (zeros), or its bytes are damaged but a record stands where the first one should.
    """
    if header(number).startswith(first) or not any(first):
        return True
    told_otherwise = first[:7] == MAGIC and first == _sealed(first[: _HEADER.size])
    return not told_otherwise and bool(_walk(view, number, HEADER_BYTES)[0])


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


def _walk(view: memoryview, number: int, at: int) -> tuple[list[Span], int]:
    """The frames that follow one another from `at` on, and where the last one ends."""
    size = len(view)
    found: list[Span] = []
    unpack, crc32, place = _FRAME.unpack_from, zlib.crc32, _PLACE.pack
    while at + FRAME_BYTES < size:
        length, crc = unpack(view, at)
        start = at + FRAME_BYTES
        end = start + length
        if not 0 < length <= MAX_RECORD_BYTES or end > size:
            break
        if crc32(view[start:end], crc32(place(number, at, length))) != crc:
            break
        found.append((start, length))
        at = end
    return found, at


# --- searching behind damage ----------------------------------------------------------------------
def _salvage(view: memoryview, number: int, at: int) -> list[Span]:
    """All frames from `at` on, where no frame begins."""
    search = _Search(view, number, at)
    found: list[Span] = []
    while (start := search.next_frame(at)) is not None:
        more, at = _walk(view, number, start)
        found += more
    return found


class _Search:
    """Looks for a frame at every offset, at a bounded cost for each.

    Every few bytes look like the length of a frame, so reading what it would cover, each time,
    would take quadratic time.  But crc32 is linear.  With C(i) the crc of all bytes before i,

        crc32(data[b:e], s) == shift(s ^ C(b), e - b) ^ C(e)

    where shift(s, n) is what n zero bytes make of s.  C is kept for every 1024th byte.
    """

    def __init__(self, view: memoryview, number: int, start: int) -> None:
        self._view = view
        self._number = number
        self._start = start
        self._marks = [0]
        for at in range(start, len(view), _MARK_BYTES):
            self._marks.append(zlib.crc32(view[at : at + _MARK_BYTES], self._marks[-1]))

    def next_frame(self, at: int) -> int | None:
        """The offset of the first frame at or behind `at`, which is not before the start."""
        last = len(self._view) - FRAME_BYTES
        window = _FIRST_WINDOW_BYTES
        while at < last:
            stop = min(at + window, last)
            found = self._first_valid(at, stop)
            if found is not None:
                return found
            at, window = stop, min(2 * window, _LAST_WINDOW_BYTES)
        return None

    def _first_valid(self, at: int, stop: int) -> int | None:
        """The offset of the first frame that begins in at .. stop - 1."""
        raw = np.frombuffer(self._view, np.uint8, stop - at + FRAME_BYTES - 1, at)
        words = np.lib.stride_tricks.sliding_window_view(raw, 4).copy().view("<u4")[:, 0]
        offsets = np.arange(at, stop)
        lengths = words[: stop - at].astype(np.int64)
        ends = offsets + FRAME_BYTES + lengths
        fits = (lengths > 0) & (lengths <= MAX_RECORD_BYTES) & (ends <= len(self._view))
        if not fits.any():
            return None
        offsets, lengths, ends = offsets[fits], lengths[fits], ends[fits]
        stored = words[FRAME_BYTES // 2 :][fits]
        valid = self._crcs(offsets, lengths, ends) == stored
        return int(offsets[valid.argmax()]) if valid.any() else None

    def _crcs(
        self,
        offsets: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
    ) -> Checksums:
        """The crc that a frame at each offset would have."""
        pairs = zip(offsets.tolist(), lengths.tolist(), strict=True)
        before = [
            _first_crc(self._number, at, n) ^ self._crc_before(at + FRAME_BYTES) for at, n in pairs
        ]
        behind = [self._crc_before(end) for end in ends.tolist()]
        return _shift(np.array(before, np.uint32), lengths) ^ np.array(behind, np.uint32)

    def _crc_before(self, offset: int) -> int:
        mark = (offset - self._start) // _MARK_BYTES
        known = self._start + mark * _MARK_BYTES
        return zlib.crc32(self._view[known:offset], self._marks[mark])


def _shift(crcs: Checksums, lengths: npt.NDArray[np.int64]) -> Checksums:
    """What so many zero bytes make of each crc.  Args: lengths: one for each, in bytes."""
    crcs = crcs.copy()
    # What one zero byte makes of each single bit; applied to itself, what two make of it, …
    ones = [zlib.crc32(b"\0", 1 << bit) ^ zlib.crc32(b"\0") for bit in range(32)]
    matrix = np.array(ones, np.uint32)
    for power in range(int(lengths.max()).bit_length()):
        odd = (lengths >> power) & 1 == 1
        crcs[odd] = _apply(matrix, crcs[odd])
        matrix = _apply(matrix, matrix)
    return crcs


def _apply(matrix: Checksums, crcs: Checksums) -> Checksums:
    result = np.zeros_like(crcs)
    for bit in range(32):
        result ^= np.where((crcs >> np.uint32(bit)) & np.uint32(1), matrix[bit], np.uint32(0))
    return result
