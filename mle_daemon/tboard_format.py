"""The bytes of TensorBoard's event files, without TensorFlow, protobuf or TensorBoard.

Pure: values in, bytes out.  It reads no events, and knows neither files (`tboard` does) nor ticks.

    file      records, one after another
    record    u64 length  u32 crc of these 8 bytes  data  u32 crc of the data    little-endian
    crc       CRC-32C (Castagnoli) c, masked: (c >> 15 | c << 17) + 0xa282ead8 modulo 2**32
    data      one Event; the file's first one holds nothing but a time and "brain.Event:2"

    Event     1 wall_time double   2 step int64   3 file_version string   5 summary Summary
    Summary   1 value Value, any number of them
    Value     1 tag string, and one of
              2 simple_value float   4 image Image   5 histo HistogramProto
    Image     1 height int32   2 width int32   4 encoded_image_string bytes, a PNG
    HistogramProto    1 min   2 max   3 num   4 sum   5 sum_squares   all double
                      6 bucket_limit   7 bucket   packed doubles; a limit is its bucket's right edge

The right-hand side are protobuf messages: fields of (number << 3 | type) and a value.  All numbers
here are below 16, so that this is one byte: 8n a varint, 8n + 1 a double, 8n + 2 a length and that
many bytes, 8n + 5 a float.  Zeros are written, too, which readers take as well.

A scalar is a `simple_value`, for every reader takes it for one; the newer form, a tensor with
metadata, is none for readers that do not convert it (`EventAccumulator`, on which scripts are
built).  It is a float32: that is TensorBoard's precision, not the log file's.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mle_client.histograms import Histogram

FILE_VERSION: Final = "brain.Event:2"
HEAD_BYTES: Final = 12  # of a record, before its data
TAIL_BYTES: Final = 4
_MASK_DELTA: Final = 0xA282EAD8
_LENGTH: Final = struct.Struct("<Q")
_CRC: Final = struct.Struct("<I")
_DOUBLE: Final = struct.Struct("<d")
_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"

_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli's, its bits reversed
_ONES: Final = 0xFFFFFFFF
# From here on numpy is faster than a loop over bytes; both were measured.
_LONG_BYTES: Final = 4 * 1024
_MANY_ROWS: Final = 32
_LANE_BYTES: Final = 64  # long data is cut into lanes of that many bytes, a power of 2

U8: TypeAlias = npt.NDArray[np.uint8]
U32: TypeAlias = npt.NDArray[np.uint32]


# --- checksums ------------------------------------------------------------------------------------
def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes."""
    if len(data) >= _LONG_BYTES:
        return _crc_of_long(data)
    table, register = _plain_table(), _ONES
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ _ONES


def crc32c_rows(rows: U8) -> U32:
    """The CRC-32C of every row.  Args: rows: shape (n, bytes)."""
    if len(rows) < _MANY_ROWS:
        return np.array([crc32c(row.tobytes()) for row in rows], np.uint32)
    return _registers(rows, _ONES) ^ np.uint32(_ONES)


@functools.cache
def _table() -> U32:
    """What a byte that is shifted out does to the register."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


@functools.cache
def _plain_table() -> tuple[int, ...]:
    return tuple(_table().tolist())


def _registers(rows: U8, start: int) -> U32:
    """The register after each row, all rows at once, byte by byte."""
    table = _table()
    register = np.full(len(rows), start, np.uint32)
    for column in np.ascontiguousarray(rows.T):
        register = table[(register ^ column) & 0xFF] ^ (register >> 8)
    return register


def _crc_of_long(data: bytes) -> int:
    """The CRC-32C of bytes that numpy takes in lanes beside each other.

    From a register of 0, the register is linear in the data: that of two lanes is the first one's,
    shifted by the second one's length, xor the second one's.  Zeros before the data change nothing;
    starting from all ones is to invert the first four bytes.
    """
    lanes = -(-len(data) // _LANE_BYTES)
    padded = np.zeros(lanes * _LANE_BYTES, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[len(padded) - len(data) :][:4] ^= 0xFF
    registers = _registers(padded.reshape(lanes, _LANE_BYTES), 0)
    shift = _lane_shift()
    while len(registers) > 1:
        if len(registers) % 2:
            registers = np.concatenate([np.zeros(1, np.uint32), registers])
        registers = _shifted(registers[::2], shift) ^ registers[1::2]
        shift = _shifted(shift, shift)
    return int(registers[0]) ^ _ONES


@functools.cache
def _lane_shift() -> U32:
    """What the zeros of a whole lane make of each bit of the register: shape (32,)."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    shift: U32 = _table()[bits & 0xFF] ^ (bits >> 8)
    for _ in range(_LANE_BYTES.bit_length() - 1):
        shift = _shifted(shift, shift)
    return shift


def _shifted(registers: U32, shift: U32) -> U32:
    """Registers after as many zeros as the shift stands for."""
    bits = registers[:, None] >> np.arange(32, dtype=np.uint32) & 1
    shifted: U32 = np.bitwise_xor.reduce(bits * shift, axis=1)
    return shifted


# --- records --------------------------------------------------------------------------------------
def record(data: bytes) -> bytes:
    """Some data as one record of a file."""
    return _head(len(data)) + data + _CRC.pack(_masked(crc32c(data)))


def whole_record_bytes(head: bytes) -> int | None:
    """The length of the record that begins with some bytes.

    Args:
        head: its first `HEAD_BYTES`, or fewer where the file ends.

    Returns:
        Bytes of the whole record; None if that is no record's head.
    """
    if len(head) < HEAD_BYTES or _head(_LENGTH.unpack_from(head)[0]) != head[:HEAD_BYTES]:
        return None
    return HEAD_BYTES + int(_LENGTH.unpack_from(head)[0]) + TAIL_BYTES


def _head(length: int) -> bytes:
    packed = _LENGTH.pack(length)
    return packed + _CRC.pack(_masked(crc32c(packed)))


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & _ONES


# --- events ---------------------------------------------------------------------------------------
def file_version_event(seconds: float) -> bytes:
    """The record that a file begins with.  Args: seconds: since the epoch."""
    return record(_double(1, seconds) + _bytes(3, FILE_VERSION.encode()))


def histogram_event(seconds: float, step: int, tag: str, histogram: Histogram) -> bytes:
    """One histogram as a record."""
    h = histogram
    numbers = enumerate((h.min, h.max, h.num, h.sum, h.sum_squares), 1)
    body = b"".join(_double(number, value) for number, value in numbers)
    body += _bytes(6, np.array(h.limits, "<f8").tobytes())
    body += _bytes(7, np.array(h.counts, "<f8").tobytes())
    return _summary_event(seconds, step, tag, _bytes(5, body))


def image_event(seconds: float, step: int, tag: str, png: bytes) -> bytes:
    """One image as a record.  Args: png: a PNG file."""
    width, height = png_size(png)
    body = _integer(1, height) + _integer(2, width) + _bytes(4, png)
    return _summary_event(seconds, step, tag, _bytes(4, body))


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG file; 0, 0 if it is none."""
    if not png.startswith(_PNG_MAGIC) or png[12:16] != b"IHDR" or len(png) < 24:
        return 0, 0
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def scalar_events(
    seconds: npt.NDArray[np.float64],
    steps: npt.NDArray[np.int64],
    tags: Sequence[str],
    values: npt.NDArray[np.float32],
) -> list[bytes]:
    """Scalars as records, one for each row with all its tags.

    Args:
        seconds: since the epoch, shape (n,).
        steps: shape (n,).
        tags: k of them.
        values: shape (n, k).
    """
    summary, places = _scalar_summary(tags)
    plain = steps.astype(np.int64, copy=False).view(np.uint64)
    widths = _varint_widths(plain)
    events = [b""] * len(steps)
    for width in np.unique(widths).tolist():
        chosen = np.flatnonzero(widths == width)
        head = _double(1, 0.0) + _key(2, 0) + bytes(width) + _key(5, 2) + _varint(len(summary))
        rows = _rows_like(head + summary, len(chosen))
        data = rows[:, HEAD_BYTES:-TAIL_BYTES]
        data[:, 1:9] = _as_bytes(seconds[chosen], "<f8")
        data[:, 10 : 10 + width] = _varints(plain[chosen], width)
        for place, column in zip(places, values[chosen].T, strict=True):
            data[:, len(head) + place :][:, :4] = _as_bytes(column, "<f4")
        _sign(rows)
        joined, size = rows.tobytes(), rows.shape[1]
        for i, row in enumerate(chosen.tolist()):
            events[row] = joined[i * size : (i + 1) * size]
    return events


def _scalar_summary(tags: Sequence[str]) -> tuple[bytes, list[int]]:
    """A summary of scalars that are all 0, and where each of them lies."""
    summary, places = b"", []
    for tag in tags:
        summary += _bytes(1, _bytes(1, tag.encode()) + _key(2, 5) + bytes(4))
        places.append(len(summary) - 4)
    return summary, places


def _rows_like(data: bytes, count: int) -> U8:
    """As many records of this data, without a checksum of it: shape (count, bytes)."""
    row = _head(len(data)) + data + bytes(TAIL_BYTES)
    rows = np.empty((count, len(row)), np.uint8)
    rows[:] = np.frombuffer(row, np.uint8)
    return rows


def _sign(rows: U8) -> None:
    """Write the checksums of records of one length."""
    crcs = crc32c_rows(rows[:, HEAD_BYTES:-TAIL_BYTES]).astype(np.uint32)
    masked = (crcs >> 15 | crcs << 17) + np.uint32(_MASK_DELTA)
    rows[:, -TAIL_BYTES:] = _as_bytes(masked, "<u4")


def _as_bytes(values: npt.NDArray[Any], dtype: str) -> U8:
    """The bytes of each value: shape (n, bytes of one)."""
    plain = np.ascontiguousarray(values, dtype)
    return plain.view(np.uint8).reshape(len(plain), plain.itemsize)


# --- protobuf -------------------------------------------------------------------------------------
def _summary_event(seconds: float, step: int, tag: str, value: bytes) -> bytes:
    """A record of one value.  Args: value: its field, without the tag."""
    summary = _bytes(1, _bytes(1, tag.encode()) + value)
    return record(_double(1, seconds) + _integer(2, step) + _bytes(5, summary))


def _key(number: int, kind: int) -> bytes:
    return bytes((number << 3 | kind,))


def _double(number: int, value: float) -> bytes:
    return _key(number, 1) + _DOUBLE.pack(value)


def _integer(number: int, value: int) -> bytes:
    return _key(number, 0) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """A number in groups of 7 bits, the lowest first; a negative one as its 64-bit pattern."""
    rest = value & 0xFFFF_FFFF_FFFF_FFFF
    groups = bytearray()
    while rest > 0x7F:
        groups.append(rest & 0x7F | 0x80)
        rest >>= 7
    groups.append(rest)
    return bytes(groups)


def _varint_widths(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """How many bytes each number takes as a varint."""
    widths = np.ones(len(values), np.int64)
    for group in range(1, 10):
        widths += values >> np.uint64(7 * group) > 0
    return widths


def _varints(values: npt.NDArray[np.uint64], width: int) -> U8:
    """Numbers that all take `width` bytes as varints: shape (n, width)."""
    rows = np.empty((len(values), width), np.uint8)
    for group in range(width):
        more = 0x80 if group < width - 1 else 0
        rows[:, group] = values >> np.uint64(7 * group) & np.uint64(0x7F) | np.uint64(more)
    return rows
