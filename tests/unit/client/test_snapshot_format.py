"""Header files: read back as they were written, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import msgpack
import pytest

from mle_client.snapshot_format import (
    MAGIC,
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    Header,
    decode_header,
    header_bytes,
    with_checksums,
)

HEADER = Header(
    number=7,
    kind="model",
    form="file",
    size=100,
    segments=(("00000001.seg", False, 60), ("00000002.seg", True, 40)),
    checksums=((0, 10, (10, 96)), (20, 20, (20,))),
)


def test_a_header_comes_back() -> None:
    content = HEADER.encode()
    length = header_bytes(content[:PREFIX_BYTES])
    assert len(content) == PREFIX_BYTES + length
    assert decode_header(content[PREFIX_BYTES:]) == HEADER


@pytest.mark.parametrize(
    "prefix",
    [
        b"",
        HEADER.encode()[: PREFIX_BYTES - 1],
        b"MLESNAP2" + bytes(4),
        MAGIC + (MAX_HEADER_BYTES + 1).to_bytes(4, "little"),
    ],
)
def test_what_does_not_begin_like_a_header_is_none(prefix: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        header_bytes(prefix)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", -1),
        ("number", True),
        ("number", "7"),
        ("kind", None),
        ("form", 1),
        ("size", 101),  # not what the segments hold
        ("size", 2.0),
        ("segments", 5),
        ("segments", (("../../etc/passwd", False, 100),)),
        ("segments", (("00000001.seg", False, 60), ("00000002.seg", 1, 40))),
        ("segments", (("00000001.seg", False, 110), ("00000002.seg", True, -10))),
        ("segments", (("00000001.seg", False),)),
        ("checksums", 5),
        ("checksums", ((0, 10, (9,)),)),  # inside its own range
        ("checksums", ((0, 10, (97,)),)),  # beyond the end
        ("checksums", ((0, 10, (10,)), (5, 20, (20,)))),  # not in order
        ("checksums", ((0, 10, 10),)),
        ("checksums", ((-5, 10, (10,)),)),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(field: str, value: Any) -> None:
    plain = {name: getattr(HEADER, name) for name in HEADER.__slots__} | {field: value}
    with pytest.raises(ValueError, match="fields"):
        decode_header(msgpack.packb(plain))


def test_foreign_and_cut_bytes_are_refused() -> None:
    packed = HEADER.encode()[PREFIX_BYTES:]
    plain = dataclasses.asdict(HEADER)
    del plain["form"]
    cut = [packed[:length] for length in range(len(packed))]
    for content in [*cut, packed + b"\0", msgpack.packb(5), msgpack.packb(plain)]:
        with pytest.raises(ValueError, match=r"msgpack|fields"):
            decode_header(content)


def filled(content: bytes, checksums: Any, piece_bytes: int) -> bytes:
    pieces = (
        memoryview(content)[at : at + piece_bytes] for at in range(0, len(content), piece_bytes)
    )
    return b"".join(with_checksums(pieces, checksums))


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 5, 7, 64, 1000])
def test_checksums_are_put_where_they_belong_however_the_bytes_are_cut(piece_bytes: int) -> None:
    content = bytes(range(100))
    first, second = (zlib.crc32(content[a:b]).to_bytes(4, "little") for a, b in ((0, 30), (40, 41)))
    expected = bytearray(content)
    expected[30:34] = expected[90:94] = first
    expected[41:45] = expected[96:100] = second
    expected[50:54] = bytes(4)  # the checksum of nothing
    checksums = [(0, 30, (30, 90)), (40, 41, (96, 41)), (45, 45, (50,))]
    assert filled(content, checksums, piece_bytes) == bytes(expected)
    assert content == bytes(range(100))
