"""What is read of a ring whose process is gone: whole records, and nothing that others made."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import msgpack
import pytest

from mle_client import messages as m
from mle_client import remains, runtime, wire
from mle_client import ring as rings
from mle_client.ring import SEGMENT_BYTES, Ring
from tests.unit.client.test_ring import PRODUCER, append, content, fill, make, put, ring

__all__ = ["ring"]  # a fixture


def test_nobody_takes_over_a_ring_whose_owner_lives(ring: Ring) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(remains.take_over, (ring.directory,)) is None
        pool.close()
        pool.join()


def test_where_there_are_no_locks_the_owner_s_process_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "not here")

    monkeypatch.setattr(rings.fcntl, "lockf", lockf)
    here = {"host": runtime.host(), "boot_id": runtime.boot_id()}
    for pid, started, gone in (
        (os.getpid(), runtime.process_started(os.getpid()), False),
        (os.getpid(), "another time", True),
    ):
        folder = tmp_path / str(gone)
        folder.mkdir()
        owner = {"pid": pid, "started": started, **here}
        ring = Ring(str(folder / "ring"), str(folder / "spill"), PRODUCER, owner)
        lock = remains.take_over(ring.directory)
        assert (lock is not None) == gone
        if lock is not None:
            os.close(lock)
        ring.delete()


def die_while_writing(folder: str, ready: object) -> None:
    ring = make(Path(folder))
    put(ring, b"kept")
    put(ring, b"r" * SEGMENT_BYTES)
    put(ring, b"also kept")
    end = ring.active.end
    record = msgpack.packb([b"not yet"])
    ring.active.buffer[end : end + len(record)] = record
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_its_committed_records(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(
        target=die_while_writing, args=(str(tmp_path), None)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    lock = remains.take_over(str(tmp_path / "ring"))
    assert lock is not None
    os.close(lock)
    found = list(remains.read_remains(str(tmp_path / "ring"), str(tmp_path / "spill")))
    records = [msgpack.packb([text]) for text in (b"kept", b"r" * SEGMENT_BYTES, b"also kept")]
    assert [part.payload for part in found] == records
    assert [part.base for part in found] == [0, len(records[0]), sum(map(len, records[:2]))]
    assert {part.producer for part in found} == {PRODUCER}


def left(folder: Path) -> list[m.Gap]:
    """The gaps in what is read of a ring."""
    found = remains.read_remains(str(folder / "ring"), str(folder / "spill"))
    stream = b"".join(part.payload for part in found)
    return [each for each in wire.StreamDecoder().decode(stream) if isinstance(each, m.Gap)]


def test_lost_ticks_of_which_the_stream_does_not_tell_end_what_is_read(tmp_path: Path) -> None:
    ring = make(tmp_path)
    append(ring, wire.encode_record(m.End()))
    assert left(tmp_path) == []
    for count in (1, 2, 30):
        ring.note_lost(count)
    (gap,) = left(tmp_path)
    assert gap.ticks == 30
    ring.delete()


@pytest.mark.parametrize("noted", [False, True])
def test_a_gap_that_was_told_is_not_told_again(tmp_path: Path, noted: bool) -> None:
    """Be it that the process was killed before it noted that."""
    ring = make(tmp_path)
    append(ring, wire.encode_record(m.End()))
    ring.note_lost(2)
    append(ring, rings.gap_record(2))
    if noted:
        ring.note_lost(0)
    assert [gap.ticks for gap in left(tmp_path)] == [2]
    ring.note_lost(2)  # as many again
    assert [gap.ticks for gap in left(tmp_path)] == [2, 2]
    ring.delete()


@pytest.mark.parametrize("lost", [0, 3])
def test_segments_before_what_is_wanted_are_not_read(tmp_path: Path, lost: int) -> None:
    ring = make(tmp_path)
    bases = fill(ring, 3)
    stream = content(ring)
    if lost:
        ring.note_lost(lost)
        stream += rings.gap_record(lost)
    for first, base in enumerate(bases):
        behinds = (base, base + 1) if first else (0, 1)
        for behind in behinds:
            read = list(remains.read_remains(ring.directory, behind=behind))
            assert [part.base for part in read] == bases[first:]
            assert b"".join(part.payload for part in read) == stream[base:]
    ring.delete()


def test_a_gap_told_in_a_segment_that_is_not_wanted_is_not_told_again(tmp_path: Path) -> None:
    ring = make(tmp_path)
    append(ring, wire.encode_record(m.End()))
    ring.note_lost(2)
    append(ring, rings.gap_record(2))
    fill(ring, 2)
    head = ring.head
    stream = b"".join(part.payload for part in remains.read_remains(ring.directory, behind=head))
    assert stream.count(rings.gap_record(2)) == 1
    ring.delete()


@pytest.mark.parametrize("kind", ["spare", "given a base, and then interrupted"])
def test_a_segment_without_records_hides_none(tmp_path: Path, kind: str) -> None:
    """Whatever base it has: the segment before it may have got more records since."""
    ring = make(tmp_path)
    first = put(ring, bytes(200_000))
    ring.prepare()
    if kind != "spare":
        ring._spares[0].restart(ring.head)
    second = put(ring, b"shorter")
    read = list(remains.read_remains(ring.directory, behind=len(first)))
    assert [part.payload for part in read] == [first + second]
    ring.delete()


@pytest.mark.parametrize("line", [b"", b"x", b"[1]", b"[-1, 0]", b"[1, -1]", b"[true, 0.5]", b"{}"])
def test_an_odd_count_of_lost_ticks_is_none(tmp_path: Path, line: bytes) -> None:
    ring = make(tmp_path)
    append(ring, wire.encode_record(m.End()))
    with open(tmp_path / "ring" / "owner", "ab") as owner:
        owner.write(line)
    assert left(tmp_path) == []
    ring.delete()


def test_what_is_no_segment_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "1.seg").write_bytes(b"")
    (tmp_path / "2.seg").write_bytes(b"x" * 100)
    (tmp_path / "owner").write_bytes(b"{}")
    assert list(remains.read_remains(str(tmp_path), str(tmp_path / "nowhere"))) == []


def test_what_nobody_of_ours_has_made_is_passed_over_and_told(tmp_path: Path) -> None:
    segment = rings.MAGIC + bytes(56) + b"\x91\xa3end\xc0\0"
    os.mkfifo(tmp_path / "1.seg")
    (tmp_path / "2.seg").symlink_to("/dev/zero")
    (tmp_path / "3.seg").mkdir()
    (tmp_path / "5.seg").write_bytes(segment)
    told: list[str] = []
    (found,) = remains.read_remains(str(tmp_path), on_odd=told.append)
    assert found.payload == b"\x91\xa3end"
    assert sorted(line.partition(".seg")[0][-1] for line in told) == ["1", "2", "3"]


def test_a_segment_larger_than_any_is_not_read_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "1.seg").write_bytes(rings.MAGIC + bytes(56) + b"\x91\xa3end\xc0\0")
    os.truncate(tmp_path / "1.seg", 2**40)  # sparse
    with pytest.raises(OSError, match="larger than any segment"):
        list(remains.read_remains(str(tmp_path)))


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "no ring", "linked ring"])
def test_an_odd_owner_is_no_owner(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "ring"
    if kind == "no ring":
        place.write_bytes(b"")
    elif kind == "linked ring":
        (tmp_path / "away").mkdir()
        (tmp_path / "away" / "owner").write_bytes(b"")
        place.symlink_to(tmp_path / "away")
    else:
        place.mkdir()
        make = {"folder": os.mkdir, "pipe": os.mkfifo, "link": lambda path: os.symlink("/", path)}
        make[kind](place / "owner")
    with pytest.raises(OSError, match=str(place)):
        remains.take_over(str(place))
