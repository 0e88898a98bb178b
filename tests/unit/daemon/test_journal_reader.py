"""Which files of a folder are the journal, and how their records come back."""

from __future__ import annotations

import mmap
import struct
import zlib
from pathlib import Path

import pytest

from mle_client.errors import LogDamaged
from mle_daemon import journal_format as fmt
from mle_daemon.journal_reader import list_segments, read_segments


def write_segment(folder: Path, number: int, *records: bytes) -> Path:
    data = fmt.header(number)
    for record in records:
        data += fmt.frame_header([record], number, len(data)) + record
    path = folder / f"{number:08d}.mlej"
    path.write_bytes(data)
    return path


def test_segments_are_listed_by_number_with_their_sizes(tmp_path: Path) -> None:
    for number in (100_000_000, 99_999_999, 11):
        write_segment(tmp_path, number, b"x" * number.bit_length())

    found = [(file.number, file.size) for file in list_segments(str(tmp_path))]

    assert found == [(11, 28 + 4), (99_999_999, 28 + 27), (100_000_000, 28 + 27)]


def test_a_folder_that_is_not_there_has_no_segments(tmp_path: Path) -> None:
    assert list_segments(str(tmp_path / "none")) == []
    assert list(read_segments(str(tmp_path / "none"))) == []


def test_files_with_other_endings_are_left_alone(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, b"a")
    for name in (".nfs0001", "notes.txt", "00000002.mlej.bak"):
        (tmp_path / name).write_bytes(b"?")

    assert [segment.number for segment in read_segments(str(tmp_path))] == [1]


def test_records_come_back_in_order_from_clean_torn_damaged_and_empty_segments(
    tmp_path: Path,
) -> None:
    write_segment(tmp_path, 1, b"a", b"b")
    torn = write_segment(tmp_path, 2, b"c", b"lost")
    torn.write_bytes(torn.read_bytes()[:-1])
    damaged = write_segment(tmp_path, 3, b"d", b"?", b"e")
    damaged.write_bytes(damaged.read_bytes().replace(b"?", b"!"))
    (tmp_path / "00000004.mlej").touch()
    (tmp_path / "00000005.mlej").write_bytes(fmt.header(5)[:9])
    write_segment(tmp_path, 6, b"f")

    segments = list(read_segments(str(tmp_path)))

    verdicts = [segment.scan.verdict for segment in segments]
    assert verdicts == ["clean", "torn", "damaged", "torn", "torn", "clean"]
    records = [bytes(payload) for segment in segments for payload in segment.payloads()]
    assert records == [b"a", b"b", b"c", b"d", b"e", b"f"]


def test_segments_are_mapped_not_read(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, b"a")

    (segment,) = read_segments(str(tmp_path))

    assert isinstance(segment.data.obj, mmap.mmap)


def test_a_record_outlives_its_segment_and_its_file(tmp_path: Path) -> None:
    path = write_segment(tmp_path, 1, b"kept")
    (payload,) = [p for segment in read_segments(str(tmp_path)) for p in segment.payloads()]

    path.unlink()

    assert bytes(payload) == b"kept"


@pytest.mark.parametrize("name", ["1.mlej", "journal.mlej", "0000000a.mlej", "-0000001.mlej"])
def test_a_name_that_no_segment_has_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(fmt.header(1))

    with pytest.raises(LogDamaged, match="no journal segment has such a name") as caught:
        list_segments(str(tmp_path))
    assert caught.value.path == str(tmp_path / name)


def test_a_folder_and_a_link_are_no_segments(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "00000001.mlej").mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "00000001.mlej").symlink_to(write_segment(tmp_path, 1, b"a"))

    for name in ("folder", "link"):
        with pytest.raises(LogDamaged, match="plain file"):
            list_segments(str(tmp_path / name))


def test_a_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, b"a")
    (tmp_path / "00000002.mlej").write_text("a text that somebody saved under this name")

    segments = read_segments(str(tmp_path))

    assert next(segments).number == 1
    with pytest.raises(LogDamaged, match="no journal segment") as caught:
        next(segments)
    assert caught.value.path == str(tmp_path / "00000002.mlej")
    assert caught.value.exit_code == 6


def test_a_segment_of_another_release_is_refused_by_name(tmp_path: Path) -> None:
    fields = b"MLEJRNL" + bytes([2]) + struct.pack("<I", 1)
    path = tmp_path / "00000001.mlej"
    path.write_bytes(fields + struct.pack("<I", zlib.crc32(fields)) + b"whatever follows")

    with pytest.raises(LogDamaged, match="journal format 2, but this release reads 1") as caught:
        list(read_segments(str(tmp_path)))
    assert caught.value.path == str(path)
