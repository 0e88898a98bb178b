"""Many arrays from one copy, as each by itself."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from mle_client import packing
from mle_client.errors import ProtocolError

HEAD = b"\xdc\x00\x03\xce\x00\x00\x00\x07"


def packed(*rows: tuple[Any, Any]) -> bytes:
    return b"".join(HEAD + msgpack.packb(a) + msgpack.packb(b) for a, b in rows)


def test_arrays_of_all_lengths_come_one_after_another() -> None:
    rng = random.Random(5)
    lengths = [rng.choice([0, 3, 40, 900, 1_100, 70_000]) for _ in range(400)]
    rows = [(i, "x" * length) for i, length in enumerate(lengths)]
    data = b"before" + packed(*rows) + msgpack.packb(["end"])
    found, end = packing.unpack_alike(memoryview(data), 6, HEAD)
    assert [tuple(row[1:]) for row in found] == rows
    assert data[end:] == msgpack.packb(["end"])


def test_where_none_begins_so_there_is_none() -> None:
    assert packing.unpack_alike(memoryview(b"\x93abc"), 0, HEAD) == ([], 0)


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("tail", [b"", HEAD, HEAD + b"\x01", HEAD + b"\x01\xc1"])
def test_one_that_is_cut_short_or_no_msgpack_is_refused(count: int, tail: bytes) -> None:
    data = packed(*[(i, "some") for i in range(count)]) + tail
    if not tail:
        data = data[:-1]
    with pytest.raises(ProtocolError):
        packing.unpack_alike(memoryview(data), 0, HEAD)


def test_an_extension_type_among_many_is_refused() -> None:
    data = packed((1, 2), (3, 4)) + HEAD + b"\x01" + msgpack.packb(msgpack.ExtType(1, b"x"))
    with pytest.raises(ProtocolError):
        packing.unpack_alike(memoryview(data), 0, HEAD)
