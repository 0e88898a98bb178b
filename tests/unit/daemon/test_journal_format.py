"""How a journal segment is laid out, and what a scan finds in whole, torn and damaged ones."""

from __future__ import annotations

import random
import re
import struct
import zlib
from array import array
from pathlib import Path
from typing import Any

import msgpack
import pytest

from mle_daemon import journal_format as fmt

RECORDS = (b"first", b"second record", b"3", b"the fourth one")


def segment(records: tuple[bytes, ...] = RECORDS, number: int = 1) -> tuple[bytearray, list[int]]:
    """A segment, and the offsets of its frames with the end behind them."""
    data = bytearray(fmt.header(number))
    offsets = []
    for record in records:
        offsets.append(len(data))
        data += fmt.frame_header([record], number, len(data)) + record
    return data, [*offsets, len(data)]


def payloads(data: bytes | bytearray, spans: tuple[fmt.Span, ...]) -> list[bytes]:
    return [bytes(data[offset : offset + length]) for offset, length in spans]


# --- layout ---------------------------------------------------------------------------------------
def test_header_is_magic_version_number_and_their_crc() -> None:
    fields = b"MLEJRNL" + bytes([1]) + struct.pack("<I", 7)

    assert fmt.header(7) == fields + struct.pack("<I", zlib.crc32(fields))
    assert len(fmt.header(7)) == fmt.HEADER_BYTES == 16


def test_frame_header_is_length_crc_of_place_and_crc_of_payload() -> None:
    place = zlib.crc32(struct.pack("<IQI", 7, 4096, 5))

    expected = struct.pack("<III", 5, place, zlib.crc32(b"hello"))
    assert fmt.frame_header([b"hello"], 7, 4096) == expected
    assert fmt.frame_bytes(expected) == 12 + 5


def test_a_record_in_pieces_has_the_header_of_the_whole() -> None:
    wide = memoryview(array("I", [1, 2, 3]))
    pieces: list[fmt.Buffer] = [b"ab", b"", bytearray(b"cd"), memoryview(b"ef"), wide]

    whole = b"abcdef" + wide.tobytes()
    assert fmt.frame_header(pieces, 1, 16) == fmt.frame_header([whole], 1, 16)


@pytest.mark.parametrize("parts", [[], [b""], [b"", bytearray(fmt.MAX_RECORD_BYTES + 1)]])
def test_empty_and_too_long_records_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(ValueError, match="a record has 1 to"):
        fmt.frame_header(parts, 1, 16)


# --- whole and torn segments ----------------------------------------------------------------------
def test_whole_segment_is_clean() -> None:
    data, offsets = segment()

    result = fmt.scan(data, 1)

    assert result.verdict == "clean"
    assert result.problem == ""
    assert payloads(data, result.frames) == list(RECORDS)
    assert (result.after, result.valid_end) == ((), offsets[-1])


def test_segment_with_no_record_is_clean() -> None:
    assert fmt.scan(fmt.header(3), 3) == fmt.ScanResult((), (), 16, "clean")


@pytest.mark.parametrize("tail", [b"\0", bytes(8), bytes(100_000), b"\1\0\0\0", b"\xff" * 30])
def test_tail_that_is_no_frame_is_torn(tail: bytes) -> None:
    data, offsets = segment()

    result = fmt.scan(data + tail, 1)

    assert (result.verdict, result.valid_end) == ("torn", offsets[-1])
    assert len(result.frames) == 4
    assert str(len(tail)) in result.problem


def test_cut_record_whose_beginning_has_its_crc_is_torn() -> None:
    beginning = b"m" + struct.pack("<I", zlib.crc32(b"m"))
    whole = beginning + struct.pack("<I", zlib.crc32(beginning))
    assert zlib.crc32(beginning) == zlib.crc32(whole)
    data, _ = segment((whole,))

    assert fmt.scan(data[:-4], 1).verdict == "torn"


@pytest.mark.parametrize("size", range(16))
def test_torn_header_is_an_empty_segment(size: int) -> None:
    result = fmt.scan(fmt.header(1)[:size], 1)

    assert (result.verdict, result.frames, result.valid_end) == ("torn", (), 0)


@pytest.mark.parametrize("size", [5, 16, 5000])
def test_segment_of_zeros_is_empty(size: int) -> None:
    assert fmt.scan(bytes(size), 1).verdict == "torn"


# --- damage ---------------------------------------------------------------------------------------
def test_records_behind_a_damaged_payload_are_found() -> None:
    data, offsets = segment()
    data[offsets[1] + 10] ^= 1

    result = fmt.scan(data, 1)

    assert result.verdict == "damaged"
    assert payloads(data, result.frames) == [b"first"]
    assert payloads(data, result.after) == [b"3", b"the fourth one"]
    assert result.valid_end == offsets[1]
    assert result.problem == f"bytes {offsets[1]} to {offsets[2]} are damaged, records follow"


def test_no_record_is_lost_if_a_damaged_length_leads_to_a_later_frame() -> None:
    data, offsets = segment((b"a" * 8, b"b" * 8, b"c" * 8, b"d" * 8))
    struct.pack_into("<I", data, offsets[0], 8 + offsets[2] - offsets[1])  # behind b's frame

    result = fmt.scan(data, 1)

    assert payloads(data, result.after) == [b"b" * 8, b"c" * 8, b"d" * 8]


def test_every_hole_is_passed_over_and_a_torn_end_too() -> None:
    records = tuple(b"%04d" % i * 40 for i in range(300))
    data, offsets = segment(records)
    for i in (3, 4, 100, 250):
        data[offsets[i] : offsets[i] + 12] = b"\xff" * 12

    result = fmt.scan(data[:-1], 1)

    expected = [r for i, r in enumerate(records[:-1]) if i not in (3, 4, 100, 250)]
    assert payloads(data, result.frames + result.after) == expected


def test_a_record_far_behind_the_damage_is_found() -> None:
    data, offsets = segment((b"x" * 3_000_000, b"far"))
    data[offsets[0]] ^= 1

    assert payloads(data, fmt.scan(data, 1).after) == [b"far"]


def test_frame_inside_a_payload_is_no_record() -> None:
    inner, _ = segment((b"not a record",))
    data, offsets = segment((b"a", bytes(inner), bytes(inner[16:]), b"z"))
    data[offsets[1]] ^= 1
    data[offsets[2]] ^= 1

    assert payloads(data, fmt.scan(data, 1).after) == [b"z"]
    assert fmt.scan(data[: offsets[3] - 1], 1).verdict == "torn"


def test_frame_of_another_segment_or_place_is_no_record() -> None:
    data, offsets = segment()
    other, _ = segment(number=2)

    assert fmt.scan(data[:16] + other[16:], 1).verdict == "torn"
    assert fmt.scan(data + data[offsets[0] : offsets[1]], 1).verdict == "torn"


def test_search_finds_what_trying_every_offset_finds() -> None:
    rng = random.Random(5)
    for _ in range(100):
        records = tuple(
            bytes(rng.choices((0, 0, 1, 2, 255), k=rng.randint(1, 80)))
            for _ in range(rng.randint(1, 20))
        )
        data, offsets = segment(records)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(16, len(data))] = rng.randrange(256)

        whole = [
            records[i]
            for i, at in enumerate(offsets[:-1])
            if data[at : offsets[i + 1]] == fmt.frame_header([records[i]], 1, at) + records[i]
        ]
        result = fmt.scan(data, 1)
        assert payloads(data, result.frames + result.after) == whole


def test_false_lengths_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    class CountingZlib:
        read = 0

        @classmethod
        def crc32(cls, data: bytes | memoryview, start: int = 0) -> int:
            cls.read += len(data)
            return zlib.crc32(data, start)

    size = 256 * 1024
    # Every offset looks like the length of a frame, of some 33 KB on average.
    data, offsets = segment((bytes(random.Random(1).choices((0, 1), k=size)), b"last"))
    data[offsets[0]] ^= 1
    monkeypatch.setattr(fmt, "zlib", CountingZlib)

    assert payloads(data, fmt.scan(data, 1).after) == [b"last"]
    assert CountingZlib.read < size


# --- headers --------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", range(16))
def test_damaged_header_costs_no_record(at: int) -> None:
    data, _ = segment()
    data[at] ^= 0x10

    result = fmt.scan(data, 1)

    assert (result.verdict, result.frames, result.valid_end) == ("damaged", (), 0)
    assert payloads(data, result.after) == list(RECORDS)


def test_records_are_found_behind_a_first_page_that_was_never_written() -> None:
    data, _ = segment((b"a" * 3000, b"b" * 3000, b"c"))
    data[:4096] = bytes(4096)

    result = fmt.scan(data, 1)

    assert result.verdict == "damaged"
    assert payloads(data, result.after) == [b"c"]


@pytest.mark.parametrize("data", [b"hello", b"a text that is longer than a header\n" * 9])
def test_other_content_is_foreign(data: bytes) -> None:
    result = fmt.scan(data, 1)

    assert (result.verdict, result.frames, result.after) == ("foreign", (), ())
    assert "no journal segment" in result.problem


def test_newer_format_is_foreign_and_says_so() -> None:
    fields = b"MLEJRNL" + bytes([9]) + struct.pack("<I", 1)
    data, _ = segment()
    data[:16] = fields + struct.pack("<I", zlib.crc32(fields))

    result = fmt.scan(data, 1)

    assert (result.verdict, result.frames) == ("foreign", ())
    assert result.problem.startswith("journal format 9, but this release reads 1")


def test_renamed_segment_is_foreign_and_says_so() -> None:
    data, _ = segment(number=4)

    result = fmt.scan(data, 5)

    assert result.verdict == "foreign"
    assert result.problem.startswith("this is segment 4 under another name")


# --- the page -------------------------------------------------------------------------------------
PAGE = (Path(__file__).parents[3] / "docs" / "journal-format.md").read_text(encoding="utf-8")


def page_example() -> bytes:
    """The segment that `docs/journal-format.md` shows."""
    lines = re.findall(r"^[0-9a-f]{8} ((?: [0-9a-f]{2})+)$", PAGE, re.MULTILINE)
    return bytes.fromhex("".join(lines))


def test_the_example_of_the_page_is_what_is_written() -> None:
    data, _ = segment((b"hello", msgpack.packb(["end"])))

    assert page_example() == data


def test_the_reader_of_the_page_reads_what_is_written() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    data, offsets = segment()

    assert list(namespace["records"](data, 1)) == list(RECORDS)
    assert list(namespace["records"](data[:-1], 1)) == list(RECORDS[:-1])
    data[offsets[1] + 1] ^= 1
    assert list(namespace["records"](data, 1)) == list(RECORDS[:1])


def test_the_page_says_the_version_and_the_bounds() -> None:
    assert PAGE.splitlines()[2].startswith(f"Version {fmt.VERSION} ")
    assert f"header, {fmt.HEADER_BYTES} bytes" in PAGE
    assert f"| payload | {fmt.FRAME_BYTES} | length |" in PAGE
    assert "1 to 2³⁰" in PAGE
    assert fmt.MAX_RECORD_BYTES == 2**30
