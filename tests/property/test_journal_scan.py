"""Whatever is cut off or damaged: a scan finds records that were written, and no others."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mle_daemon import journal_format as fmt

NUMBER = 3


def framed(records: Sequence[bytes], offset: int) -> bytes:
    data = b""
    for record in records:
        data += fmt.frame_header([record], NUMBER, offset + len(data)) + record
    return data


def segment(records: Sequence[bytes]) -> bytes:
    return fmt.header(NUMBER) + framed(records, fmt.HEADER_BYTES)


def frame_ends(records: Sequence[bytes]) -> list[int]:
    ends = [fmt.HEADER_BYTES]
    for record in records:
        ends.append(ends[-1] + fmt.FRAME_BYTES + len(record))
    return ends


def found(data: bytes, result: fmt.ScanResult) -> list[bytes]:
    return [data[offset : offset + length] for offset, length in result.frames + result.after]


# Bytes that look like lengths, and records that hold journals, are what could mislead a search.
# Only who forges a frame for the very place where it will lie gets it past the checksum.
plain = st.binary(min_size=1, max_size=60)
small_numbers = st.lists(st.sampled_from([0, 0, 1, 2, 8]), min_size=1, max_size=60).map(bytes)
journals = st.lists(plain, min_size=1, max_size=3).map(segment)
frames_elsewhere = st.builds(
    framed, st.lists(plain, min_size=1, max_size=3), st.integers(10_000, 2**40)
)
record = plain | small_numbers | journals | frames_elsewhere
records = st.lists(record, min_size=1, max_size=12)


@given(records)
def test_what_was_written_is_found(written: list[bytes]) -> None:
    result = fmt.scan(segment(written), NUMBER)

    assert found(segment(written), result) == written
    assert (result.verdict, result.after) == ("clean", ())


@given(records, st.data())
def test_truncation_leaves_all_records_before_it(written: list[bytes], data: st.DataObject) -> None:
    ends = frame_ends(written)
    size = data.draw(st.integers(0, ends[-1]))

    cut = segment(written)[:size]
    result = fmt.scan(cut, NUMBER)

    whole = sum(end <= size for end in ends[1:])
    assert found(cut, result) == written[:whole]
    assert result.verdict == ("clean" if size in ends else "torn")
    assert result.valid_end == (ends[whole] if size >= fmt.HEADER_BYTES else 0)


@given(records, st.data())
def test_a_damaged_byte_costs_the_record_it_is_in_and_no_other(
    written: list[bytes], data: st.DataObject
) -> None:
    ends = frame_ends(written)
    at = data.draw(st.integers(0, ends[-1] - 1))
    bits = data.draw(st.integers(1, 255))

    damaged = bytearray(segment(written))
    damaged[at] ^= bits
    result = fmt.scan(damaged, NUMBER)

    hit = sum(end <= at for end in ends) - 1  # -1: the header
    kept = written if hit < 0 else written[:hit] + written[hit + 1 :]
    assert found(bytes(damaged), result) == kept
    assert len(result.frames) == max(hit, 0)
    assert result.verdict == ("torn" if hit == len(written) - 1 else "damaged")


@given(records, st.lists(st.tuples(st.integers(0), st.binary(min_size=1, max_size=20)), max_size=5))
def test_nothing_is_found_that_was_not_written(
    written: list[bytes], damage: list[tuple[int, bytes]]
) -> None:
    data = bytearray(segment(written))
    for place, content in damage:
        at = place % len(data)
        data[at : at + len(content)] = content

    rest = iter(written)
    result = fmt.scan(data, NUMBER)

    assert all(payload in rest for payload in found(bytes(data), result))  # in order, none twice


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_can_be_scanned(start: bytes, rest: bytes) -> None:
    for data in (start, fmt.header(NUMBER) + rest, bytes(16) + rest):
        result = fmt.scan(data, NUMBER)

        assert found(data, result) == []
