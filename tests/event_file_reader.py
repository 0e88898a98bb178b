"""Reads TensorBoard's event files: a second, slow implementation to hold ours against."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple


class Seen(NamedTuple):
    """One value of an event.  Args: value: a float, or the fields of a message by number."""

    seconds: float
    step: int
    tag: str
    value: Any


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit, as its definition goes."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(data: bytes, *, check: bool = True) -> Iterator[bytes]:
    """The data of each record.  Args: check: compare the checksums of the data, too."""
    at = 0
    while at < len(data):
        length, of_length = struct.unpack_from("<QI", data, at)
        assert of_length == masked(crc32c(data[at : at + 8]))
        body = data[at + 12 : at + 12 + length]
        (of_body,) = struct.unpack_from("<I", data, at + 12 + length)
        assert not check or of_body == masked(crc32c(body))
        yield body
        at += 16 + length


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: number and value."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                value, at = _varint(data, at)
                yield key >> 3, value - (1 << 64) if value >> 63 else value
            case 1:
                yield key >> 3, struct.unpack_from("<d", data, at)[0]
                at += 8
            case 2:
                length, at = _varint(data, at)
                yield key >> 3, data[at : at + length]
                at += length
            case 5:
                yield key >> 3, struct.unpack_from("<f", data, at)[0]
                at += 4
            case _:
                raise AssertionError("no such type of field")


def read(data: bytes, *, check: bool = True) -> list[Seen]:
    """Every value of every event; the file's first record must say the version."""
    first, *rest = [dict(fields(body)) for body in records(data, check=check)]
    assert first[3] == b"brain.Event:2"
    return [seen for event in rest for seen in _values(event)]


def read_events(data: bytes, *, check: bool = True) -> list[Seen]:
    """Every value of events without a version before them."""
    events = [dict(fields(body)) for body in records(data, check=check)]
    return [seen for event in events for seen in _values(event)]


def _values(event: dict[int, Any]) -> Iterator[Seen]:
    for _, body in fields(event[5]):
        value = dict(fields(body))
        tag = value.pop(1).decode()
        ((number, content),) = value.items()
        yield Seen(event[1], event[2], tag, content if number == 2 else dict(fields(content)))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at
