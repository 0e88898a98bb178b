"""Event files: our bytes are protobuf's, their checksums right, however they are computed."""

from __future__ import annotations

import math
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client.histograms import Histogram
from mle_daemon import tboard_format as fmt
from tests import event_file_reader as reader

NOW = 1_700_000_000.25
STEPS = st.integers(-(2**63), 2**63 - 1)
TAGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
# What protobuf 7 makes of these events.
VERSION_EVENT = "0900001040fc54d9411a0d627261696e2e4576656e743a32"
SCALAR_EVENT = (
    "0900001040fc54d94110ac022a2c0a140a0d706572666f726d616e63652f61150000003f"
    "0a140a0d706572666f726d616e63652f62150000c07f"
)
HISTOGRAM_EVENT = (
    "0900001040fc54d94110feffffffffffffffff012a600a5e0a09776569676874732f772a51"
    "09000000000000f0bf110000000000000840190000000000001040210000000000001040"
    "2900000000000028403210000000000000f03f00000000000008403a10000000000000f03f"
    "0000000000000840"
)
IMAGE_EVENT = "0900001040fc54d94110072a130a110a04706c6f74220908021003220378797a"


def data_of(record: bytes) -> str:
    """The data of a record whose checksums are right, in hex."""
    (data,) = reader.records(record)
    return data.hex()


def scalars(steps: list[int], tags: list[str], values: list[list[float]]) -> list[bytes]:
    rows = np.array(values, np.float32).reshape(len(steps), len(tags))
    seconds = NOW + np.arange(len(steps))
    return fmt.scalar_events(seconds, np.array(steps, np.int64), tags, rows)


# --- checksums ------------------------------------------------------------------------------------
def test_the_checksum_is_the_castagnoli_crc() -> None:
    assert fmt.crc32c(b"123456789") == 0xE3069283
    assert fmt.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert fmt.crc32c(b"") == 0


@pytest.mark.parametrize("size", [*range(60, 70), 4095, 4096, 4097, 4160, 5000, 65_537])
def test_long_data_have_the_checksum_that_a_loop_over_bytes_finds(size: int) -> None:
    data = os.urandom(size)
    assert fmt.crc32c(data) == reader.crc32c(data)
    assert fmt._crc_of_long(data) == reader.crc32c(data)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 500])
def test_rows_have_the_checksums_of_each_alone(count: int) -> None:
    rows = np.frombuffer(os.urandom(count * 47), np.uint8).reshape(count, 47)
    assert fmt.crc32c_rows(rows).tolist() == [reader.crc32c(row.tobytes()) for row in rows]


def test_a_checksum_of_megabytes_is_not_made_byte_by_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which takes 130 ms in place of 7, for each image that a mirror copies."""
    data = os.urandom(2**21)
    calls = []
    of_long = fmt._crc_of_long
    monkeypatch.setattr(fmt, "_crc_of_long", lambda data: calls.append(1) or of_long(data))
    fmt.crc32c(data)
    assert calls == [1]


# --- events ---------------------------------------------------------------------------------------
def test_a_file_begins_with_its_version() -> None:
    assert data_of(fmt.file_version_event(NOW)) == VERSION_EVENT


def test_scalars_of_a_tick_are_the_bytes_that_protobuf_writes() -> None:
    tags = ["performance/a", "performance/b"]
    (event,) = scalars([300], tags, [[0.5, math.nan]])
    assert data_of(event) == SCALAR_EVENT


def test_a_histogram_is_the_bytes_that_protobuf_writes() -> None:
    spread = Histogram(-1.0, 3.0, 4, 4.0, 12.0, (1.0, 3.0))
    assert data_of(fmt.histogram_event(NOW, -2, "weights/w", spread)) == HISTOGRAM_EVENT


def test_an_image_is_the_bytes_that_protobuf_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fmt, "png_size", lambda _: (3, 2))
    assert data_of(fmt.image_event(NOW, 7, "plot", b"xyz")) == IMAGE_EVENT


def test_a_record_is_length_masked_checksum_data_masked_checksum() -> None:
    record = fmt.record(b"123456789")
    length = struct.pack("<Q", 9)
    of_length = struct.pack("<I", reader.masked(reader.crc32c(length)))
    assert record == length + of_length + b"123456789" + struct.pack("<I", 0xC78AB0E5)


@given(STEPS)
def test_every_step_is_read_as_it_was(step: int) -> None:
    spread = Histogram(0.0, 0.0, 0, 0.0, 0.0, (0.0,))
    events = [*scalars([step], ["t"], [[1.0]]), fmt.histogram_event(NOW, step, "t", spread)]
    assert [seen.step for seen in reader.read_events(b"".join(events))] == [step] * 2


def test_a_step_beyond_64_bits_breaks_no_record() -> None:
    spread = Histogram(0.0, 0.0, 0, 0.0, 0.0, (0.0,))
    (seen,) = reader.read_events(fmt.histogram_event(NOW, 2**64 + 5, "t", spread))
    assert seen.step == 5


@given(st.lists(STEPS, min_size=1, max_size=60), st.lists(TAGS, min_size=1, max_size=4))
def test_scalars_keep_their_order_step_tag_and_value(steps: list[int], tags: list[str]) -> None:
    values = np.arange(len(steps) * len(tags)).reshape(len(steps), len(tags)) / 7
    events = scalars(steps, tags, values.tolist())

    seen = reader.read_events(b"".join(events), check=False)
    expected = [
        (NOW + i, step, tag, float(np.float32(values[i, k])))
        for i, step in enumerate(steps)
        for k, tag in enumerate(tags)
    ]
    assert [tuple(value) for value in seen] == expected


@pytest.mark.parametrize("count", [3, 100])
def test_each_of_many_scalars_has_its_own_checksum(count: int) -> None:
    events = scalars(list(range(count)), ["a"], [[float(i)] for i in range(count)])
    assert len(list(reader.records(b"".join(events)))) == count


# --- reading back as far as a cut file needs it ---------------------------------------------------
def test_the_head_of_a_record_tells_its_length() -> None:
    record = fmt.record(b"abc")
    assert fmt.whole_record_bytes(record[: fmt.HEAD_BYTES]) == len(record)
    assert fmt.whole_record_bytes(record) == len(record)


def test_bytes_that_are_no_head_have_no_length() -> None:
    head = fmt.record(b"abc")[: fmt.HEAD_BYTES]
    for at in range(fmt.HEAD_BYTES):
        broken = bytearray(head)
        broken[at] ^= 1
        assert fmt.whole_record_bytes(bytes(broken)) is None
    assert fmt.whole_record_bytes(head[:-1]) is None
    assert fmt.whole_record_bytes(b"") is None


# --- images ---------------------------------------------------------------------------------------
def test_the_size_of_an_image_is_that_of_its_header() -> None:
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480)
    assert fmt.png_size(header + bytes(5)) == (640, 480)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" * 4])
def test_what_is_no_png_has_no_size(data: bytes) -> None:
    assert fmt.png_size(data) == (0, 0)
