"""Segments: committed bytes survive the process, and nothing else is ever read back."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from mle_client import ring as rings
from mle_client import tick_layout
from mle_client.messages import ProducerId
from mle_client.remains import read_remains, take_over
from mle_client.ring import HEADER_BYTES, SEGMENT_BYTES, Ring, RingFull, Segment

PRODUCER = ProducerId(b"p" * 16)


def make(folder: Path, **bounds: int) -> Ring:
    folder.mkdir(exist_ok=True)
    return Ring(str(folder / "ring"), str(folder / "spill"), PRODUCER, {"pid": 1}, **bounds)


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    ring = make(tmp_path)
    yield ring
    ring.delete()


def put(ring: Ring, text: bytes) -> bytes:
    """Commit a record.  Returns: its bytes."""
    record: bytes = msgpack.packb([text])
    at = ring.active.end
    if at + len(record) >= ring.active.size:
        ring.roll(len(record) + 1)
        at = HEADER_BYTES
    ring.active.buffer[at : at + len(record) + 1] = record + b"\xc0"
    ring.reached(at + len(record))
    return record


def content(ring: Ring, position: int = 0) -> bytes:
    return b"".join(bytes(view) for _, view in ring.pending(position))


def test_records_come_back_from_any_position(ring: Ring) -> None:
    first = put(ring, b"first")
    second = put(ring, b"second")
    assert content(ring) == first + second
    assert content(ring, len(first)) == second
    assert ring.head == len(first + second)
    assert content(ring, ring.head) == b""


def test_bytes_behind_the_committed_end_are_not_there(ring: Ring) -> None:
    whole = put(ring, b"whole")
    end = ring.active.end
    ring.active.buffer[end : end + 4] = b"half"
    assert content(ring) == whole


def test_positions_go_on_across_segments(ring: Ring) -> None:
    records = [put(ring, b"r" * 100_000) for _ in range(5)]
    length = len(records[0])
    assert len(ring.segments) == 3
    assert [position for position, _ in ring.pending(0)] == [0, 2 * length, 4 * length]
    assert content(ring, length) == b"".join(records[1:])


def test_acknowledged_segments_are_written_to_again(ring: Ring) -> None:
    for _ in range(20):
        put(ring, b"r" * 100_000)
        ring.release(ring.head)
    assert ring.held_bytes <= 3 * SEGMENT_BYTES
    last = put(ring, b"last")
    assert content(ring, ring.head - len(last)) == last
    assert (
        tick_layout.committed_end(ring.active.buffer[HEADER_BYTES:])
        == ring.active.end - HEADER_BYTES
    )


def test_a_position_that_was_recycled_is_an_error(ring: Ring) -> None:
    for _ in range(5):
        put(ring, b"r" * 100_000)
    ring.release(300_000)
    with pytest.raises(LookupError):
        list(ring.pending(0))


def test_copies_are_what_is_pending(ring: Ring) -> None:
    stream = b"".join(put(ring, text * 100_000) for text in (b"a", b"b", b"c", b"d", b"e"))
    assert b"".join(ring.copies(0)) == stream
    assert b"".join(ring.copies(100_001)) == stream[100_001:]


@pytest.mark.parametrize("records", [3, 5, 7])
@pytest.mark.parametrize("bounds", [{}, {"memory_bytes": 0}], ids=["in memory", "on disk"])
def test_what_is_recycled_while_it_is_copied_is_never_taken_for_records(
    tmp_path: Path, bounds: dict[str, int], records: int
) -> None:
    ring = make(tmp_path, **bounds)
    for _ in range(records):
        put(ring, b"r" * 100_000)
    ring.roll(1)
    copies = ring.copies(0)
    assert next(copies) == bytes(next(ring.pending(0))[1])
    ring.release(ring.head)
    with pytest.raises(LookupError, match="recycled"):
        next(copies)
    ring.delete()


def test_what_is_recycled_between_a_look_and_the_copy_is_noticed(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in (b"a", b"b", b"c", b"d"):
        put(ring, text * 100_000)
    pending = ring.pending

    def late(position: int) -> Iterator[tuple[int, memoryview]]:
        for start, view in pending(position):
            ring.release(ring.head)
            yield start, view

    monkeypatch.setattr(ring, "pending", late)
    with pytest.raises(LookupError, match="recycled"):
        next(ring.copies(0))


def test_a_record_larger_than_a_segment_gets_one_of_its_own(ring: Ring) -> None:
    texts = (b"small", b"x" * (2 * SEGMENT_BYTES), b"small")
    records = [put(ring, text) for text in texts]
    assert content(ring) == b"".join(records)


def test_past_the_memory_bound_segments_are_files_under_the_root(tmp_path: Path) -> None:
    ring = make(tmp_path, memory_bytes=SEGMENT_BYTES, spill_bytes=SEGMENT_BYTES)
    ring.roll(1)
    assert [segment.spilled for segment in ring.segments] == [False, True]
    assert len(os.listdir(tmp_path / "spill")) == 1
    with pytest.raises(RingFull):
        ring.roll(1)
    put(ring, b"there is still room here")
    ring.delete()
    assert not (tmp_path / "spill").exists()
    assert not (tmp_path / "ring").exists()


def test_a_prepared_segment_is_the_next_one(ring: Ring) -> None:
    put(ring, b"r" * (SEGMENT_BYTES * 3 // 4))
    ring.prepare()
    held = ring.held_bytes
    ring.roll(1)
    assert ring.held_bytes == held


def test_segments_are_used_again_after_a_burst_and_given_back_when_it_is_over(ring: Ring) -> None:
    fill(ring, 12)
    ring.release(ring.head)
    assert len(ring._spares) == 8
    before = ring.held_bytes
    fill(ring, 8)
    assert ring.held_bytes == before
    ring.release(ring.head)
    for _ in range(10):
        ring.prepare()
    assert len(ring._spares) == 2
    files = {segment.path for segment in (*ring.segments, *ring._spares)}
    assert {str(path) for path in Path(ring.directory).glob("*.seg")} == files


def test_who_needs_a_second_segment_has_it_mapped_as_a_whole(ring: Ring) -> None:
    """And who does not, pays for the pages that it writes to, of a thousand loggers."""

    def in_memory(segment: Segment) -> int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        at = next(at for at, line in enumerate(lines) if line.endswith(segment.path))
        return int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1])

    if not rings._POPULATE or not Path("/proc/self/smaps").exists():
        pytest.skip("this system maps a page at a time")
    put(ring, b"first")
    assert in_memory(ring.active) < 64
    ring.roll(1)
    assert in_memory(ring.active) == SEGMENT_BYTES // 1024


def test_much_that_is_spilled_is_in_few_files_within_the_bound(tmp_path: Path) -> None:
    ring = make(tmp_path, memory_bytes=SEGMENT_BYTES, spill_bytes=10 * SEGMENT_BYTES)
    put(ring, b"first")
    with pytest.raises(RingFull, match="is the bound"):
        fill(ring, 100)
    spilled = [segment.size // SEGMENT_BYTES for segment in ring.segments if segment.spilled]
    assert spilled == [1, 1, 2, 4, 1, 1]
    stream = content(ring)
    assert (
        b"".join(part.payload for part in read_remains(ring.directory, str(tmp_path / "spill")))
        == stream
    )
    ring.delete()


def test_where_the_disk_has_no_room_for_a_large_segment_a_small_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make(tmp_path, memory_bytes=SEGMENT_BYTES)
    create = rings._create_segment

    def full_disk(path: str, size: int, *rest: Any) -> Segment:
        if size > SEGMENT_BYTES:
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(path, size, *rest)

    monkeypatch.setattr(rings, "_create_segment", full_disk)
    fill(ring, 6)
    assert {segment.size for segment in ring.segments} == {SEGMENT_BYTES}
    ring.delete()


def test_a_full_ring_says_so_in_its_folder_until_there_is_room(tmp_path: Path) -> None:
    ring = make(tmp_path, memory_bytes=SEGMENT_BYTES, spill_bytes=0)
    said = tmp_path / "ring" / rings.FULL_FILE
    with pytest.raises(RingFull, match="is the bound"):
        ring.roll(10)
    assert str(tmp_path / "spill") in said.read_text()
    ring._spill_bytes = SEGMENT_BYTES
    ring.roll(10)
    assert not said.exists()
    ring.delete()


def fill(ring: Ring, segments: int) -> list[int]:
    """Put records in until so many segments are full.  Returns: where the segments begin."""
    while len(ring.segments) <= segments:
        put(ring, bytes(60_000))
    return [segment.base for segment in ring.segments]


def append(ring: Ring, record: bytes) -> None:
    at = ring.active.end
    ring.active.buffer[at : at + len(record) + 1] = record + b"\xc0"
    ring.reached(at + len(record))


def test_two_threads_that_need_a_segment_do_not_pass_the_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender prepares one while `update` needs one: there is room for one more."""
    ring = make(tmp_path, memory_bytes=0, spill_bytes=2 * SEGMENT_BYTES)
    ring.reached(SEGMENT_BYTES - 1)
    making, go_on, real = threading.Event(), threading.Event(), rings._create_segment

    def create(*arguments: Any) -> Any:
        making.set()
        assert go_on.wait(10)
        return real(*arguments)

    monkeypatch.setattr(rings, "_create_segment", create)
    monkeypatch.setattr(rings, "_MAKING_S", 10.0)
    with ThreadPoolExecutor(2) as threads:
        prepared = threads.submit(ring.prepare)
        assert making.wait(10)
        rolled = threads.submit(ring.roll, 100)
        time.sleep(0.05)  # it waits by now, or looks for room
        go_on.set()
        prepared.result()
        rolled.result()  # takes what was prepared
    assert ring.held_bytes == 2 * SEGMENT_BYTES
    ring.delete()


def test_a_segment_that_is_being_made_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler above `prepare` could wait for ever."""
    ring = make(tmp_path)
    monkeypatch.setattr(rings, "_MAKING_S", 0.01)
    with ring._making:
        ring.roll(100)
        ring.prepare()
    assert len(ring.segments) == 2
    ring.delete()


def test_a_ring_without_any_room_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"):
        make(tmp_path, memory_bytes=0, spill_bytes=0)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Folders whose file system takes not another byte; more may be added."""
    places = {tmp_path / "memory"}
    (tmp_path / "memory").mkdir()
    real = os.write

    def write(fd: int, data: bytes) -> int:
        where = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if places & {*where.parents}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(rings.os, "write", write)
    return places


def make_in_full_memory(folder: Path) -> Ring:
    def fall_back() -> str:
        (folder / "disk").mkdir()
        return str(folder / "disk" / "ring")

    memory, spill = str(folder / "memory" / "ring"), str(folder / "spill")
    return Ring(memory, spill, PRODUCER, {"pid": 1}, fall_back=fall_back)


def test_in_full_shared_memory_the_ring_is_on_disk(tmp_path: Path, full: set[Path]) -> None:
    ring = make_in_full_memory(tmp_path)
    assert ring.directory == str(tmp_path / "disk" / "ring")
    assert (tmp_path / "disk" / "ring" / "owner").read_text() == '{"pid": 1}\n'
    record = put(ring, b"kept")
    ring.let_go()
    lock = take_over(ring.directory)
    assert lock is not None
    os.close(lock)
    (remains,) = read_remains(ring.directory, str(tmp_path / "spill"))
    assert remains.payload == record
    assert os.listdir(tmp_path / "memory") == []
    ring.delete()
    assert os.listdir(tmp_path / "disk") == []


@pytest.mark.parametrize(
    ("total", "free", "has_room"),
    [
        (64 * 2**20, 17 * 2**20, True),
        (64 * 2**20, 16 * 2**20, False),  # a quarter stays free
        (100 * 2**30, 5 * 2**30, True),
        (100 * 2**30, 4 * 2**30, False),  # or 4 GiB
    ],
)
def test_shared_memory_is_left_to_others_too(
    monkeypatch: pytest.MonkeyPatch, total: int, free: int, has_room: bool
) -> None:
    found = SimpleNamespace(f_bavail=free // 4096, f_blocks=total // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    assert rings.has_room("/somewhere", 4096) is has_room


def test_where_nothing_has_room_it_says_where_and_what_to_do(
    tmp_path: Path, full: set[Path]
) -> None:
    full.add(tmp_path)
    with pytest.raises(
        OSError, match=r"neither.*spill.*free some space, or set MLE_RUN"
    ) as failure:
        make_in_full_memory(tmp_path)
    assert failure.value.errno == errno.ENOSPC
    assert failure.value.filename == str(tmp_path / "disk" / "ring")
    assert os.listdir(tmp_path / "memory") == os.listdir(tmp_path / "disk") == []


def test_too_many_open_files_are_no_lack_of_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(rings, "_create_segment", create)
    with pytest.raises(OSError, match=r"close\(\) loggers") as failure:
        make(tmp_path)
    assert failure.value.errno == errno.EMFILE
    assert os.listdir(tmp_path) == []


def test_other_errors_than_a_lack_of_room_are_told_as_they_are(tmp_path: Path) -> None:
    def fall_back() -> str:
        raise AssertionError("another folder would not help")

    with pytest.raises(FileNotFoundError):
        Ring(str(tmp_path / "no" / "ring"), str(tmp_path), PRODUCER, {}, fall_back=fall_back)


def test_in_a_child_forgetting_keeps_the_parents_files_and_lock(ring: Ring) -> None:
    mine = put(ring, b"mine")
    pid = os.fork()
    if pid == 0:
        ring.forget()
        os._exit(0)
    os.waitpid(pid, 0)
    assert content(ring) == mine
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(take_over, (ring.directory,)) is None
        pool.close()
        pool.join()
