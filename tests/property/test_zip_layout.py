"""Whatever is laid out: zip readers find every content, whole, aligned and where readers look."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import zip_layout
from mle_client.snapshot_format import with_checksums
from mle_client.zip_layout import Layout, lay_out

names = st.text(st.characters(codec="utf-8", exclude_characters="\0/\\"), min_size=1, max_size=20)
# Contents that are part of the layout, and ones that are written elsewhere.
contents = st.tuples(st.booleans(), st.binary(max_size=200) | st.binary(min_size=300, max_size=900))
archives = st.dictionaries(names, contents, max_size=12)
alignments = st.sampled_from([1, 8, 64, 512])


def written(layout: Layout, outside: list[bytes]) -> bytes:
    parts = [part for pair in zip(layout.pieces, outside, strict=True) for part in pair]
    whole = memoryview(b"".join([*parts, layout.ending]))
    pieces = (whole[at : at + 100] for at in range(0, len(whole), 100))
    return b"".join(with_checksums(pieces, layout.checksums))


@pytest.fixture(params=[zip_layout.ZIP64_FROM, 250, 1], autouse=True, scope="module")
def zip64_from(request: pytest.FixtureRequest) -> Iterator[None]:
    """As it is, and as if four gigabytes were a few bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zip_layout, "ZIP64_FROM", request.param)
        yield


@given(archives, alignments)
def test_zip_readers_find_what_was_written(
    archive: dict[str, tuple[bool, bytes]], alignment: int
) -> None:
    entries = [(name, len(data) if large else data) for name, (large, data) in archive.items()]
    layout = lay_out(entries, alignment)
    data = written(layout, [content for large, content in archive.values() if large])
    assert len(data) == layout.size
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert found.testzip() is None
        assert found.namelist() == list(archive)
        for name, (_, content) in archive.items():
            assert found.read(name) == content
        for info in found.infolist():
            check_local(data, info, alignment)


def check_local(data: bytes, info: zipfile.ZipInfo, alignment: int) -> None:
    """What stands around a content agrees with the directory, for readers that look there."""
    fixed = struct.unpack_from("<IHHHHHIIIHH", data, info.header_offset)
    signature, flags, method, crc, name_bytes, extra_bytes = (fixed[i] for i in (0, 2, 3, 6, 9, 10))
    name_at = info.header_offset + 30
    start = name_at + name_bytes + extra_bytes
    assert (signature, method, crc) == (0x04034B50, 0, 0)
    assert flags == info.flag_bits
    assert data[name_at : name_at + name_bytes] == info.filename.encode()
    assert start % alignment == 0
    if not info.file_size:
        return
    fields = {}
    at = name_at + name_bytes
    while at < start:
        kind, length = struct.unpack_from("<HH", data, at)
        fields[kind] = data[at + 4 : at + 4 + length]
        at += 4 + length
    assert at == start
    is_64 = 1 in fields
    if is_64 and info.file_size >= zip_layout.ZIP64_FROM:
        assert struct.unpack_from("<QQ", fields[1]) == (info.file_size, info.file_size)
    end = start + info.file_size
    descriptor = struct.unpack_from("<IIQQ" if is_64 else "<IIII", data, end)
    content = data[start:end]
    assert descriptor == (0x08074B50, zlib.crc32(content), len(content), len(content))
