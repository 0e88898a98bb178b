"""Segments: recycled, bounded, and never more than shared memory and the disk have room for."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mle_client import segments
from mle_client.segments import (
    LARGEST_BYTES,
    SMALLEST_BYTES,
    SegmentPool,
    SnapshotFull,
    segment_bytes,
    segment_sizes,
)

MIB = 2**20


def make(folder: Path, memory_bytes: int = 64 * MIB) -> SegmentPool:
    return SegmentPool(str(folder / "memory"), str(folder / "spill"), memory_bytes)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[SegmentPool]:
    pool = make(tmp_path)
    yield pool
    pool.delete()


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def test_segments_grow_with_the_snapshot_and_waste_little() -> None:
    assert segment_bytes(0) == SMALLEST_BYTES
    assert segment_bytes(2**40) == LARGEST_BYTES
    for size in (1, 10 * MIB, 100 * MIB, 2**30, 5 * 2**30):
        sizes = list(segment_sizes(size))
        assert size <= sum(sizes) <= max(SMALLEST_BYTES, size * 1.25)
        assert all(length & (length - 1) == 0 for length in sizes)
    assert len(list(segment_sizes(4 * 2**30))) < 100  # each holds a file descriptor


def test_a_segment_given_back_is_taken_again(pool: SegmentPool, tmp_path: Path) -> None:
    first = pool.take(SMALLEST_BYTES)
    pool.give_back([first])
    assert pool.take(SMALLEST_BYTES) is first
    assert len(files(tmp_path / "memory")) == 1


def test_a_segment_is_backed_from_the_start(pool: SegmentPool) -> None:
    segment = pool.take(SMALLEST_BYTES)
    found = os.stat(segment.path)
    assert found.st_blocks * 512 >= found.st_size == SMALLEST_BYTES


def test_what_is_kept_is_bounded_by_twice_the_largest_snapshot(pool: SegmentPool) -> None:
    taken = [pool.take(SMALLEST_BYTES) for _ in range(6)]
    pool.used(taken[:2])
    pool.give_back(taken)
    assert len(pool._free) == 4
    assert [os.path.exists(segment.path) for segment in taken].count(True) == 4


def test_unused_memory_is_given_back_after_a_while(
    pool: SegmentPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(segments, "time", SimpleNamespace(monotonic=lambda: now))
    taken = [pool.take(SMALLEST_BYTES) for _ in range(3)]
    pool.used(taken)
    pool.give_back(taken)
    now += segments.IDLE_S / 2
    pool.give_back([pool.take(SMALLEST_BYTES)])  # one of them is in use now and then
    pool.tidy()
    assert len(files(tmp_path / "memory")) == 3
    now += segments.IDLE_S * 0.75
    pool.tidy()
    assert len(files(tmp_path / "memory")) == 1
    now += segments.IDLE_S * 2
    pool.tidy()
    assert files(tmp_path / "memory") == []
    assert pool._memory == 0


def test_giving_back_what_is_idle_spares_what_was_just_used(
    pool: SegmentPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(segments, "time", SimpleNamespace(monotonic=lambda: now))
    taken = [pool.take(SMALLEST_BYTES) for _ in range(12)]
    pool.used(taken[:6])
    pool.give_back(taken[:6])
    now += segments.IDLE_S + 1
    pool.give_back(taken[6:])
    assert pool._free == taken[6:]


def test_without_room_in_shared_memory_segments_lie_on_disk(tmp_path: Path) -> None:
    pool = make(tmp_path, memory_bytes=2 * SMALLEST_BYTES)
    taken = [pool.take(SMALLEST_BYTES) for _ in range(3)]
    assert [segment.spilled for segment in taken] == [False, False, True]
    assert len(files(tmp_path / "spill")) == 1
    pool.give_back(taken)
    assert files(tmp_path / "spill") == []  # they are not recycled
    pool.delete()


def test_free_segments_make_way_for_ones_of_another_size(tmp_path: Path) -> None:
    pool = make(tmp_path, memory_bytes=2 * SMALLEST_BYTES)
    pool.give_back([pool.take(SMALLEST_BYTES)])
    assert not pool.take(2 * SMALLEST_BYTES).spilled
    pool.delete()


def test_a_quarter_of_shared_memory_is_left_alone(
    pool: SegmentPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def nearly_full(path: str) -> object:
        if path == str(tmp_path):
            return SimpleNamespace(f_bavail=26, f_blocks=100, f_frsize=SMALLEST_BYTES)
        return real(path)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    assert [pool.take(SMALLEST_BYTES).spilled] == [False]
    assert not pool.claim(2 * SMALLEST_BYTES)
    assert pool.take(2 * SMALLEST_BYTES).spilled


def test_no_more_segments_are_mapped_than_there_may_be_descriptors(
    pool: SegmentPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "MAX_MAPPED", 2)
    assert [pool.take(SMALLEST_BYTES).spilled for _ in range(3)] == [False, False, True]


def test_a_disk_without_room_is_an_error_that_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    pool = make(tmp_path)
    with pytest.raises(SnapshotFull, match="No space left") as caught:
        pool.take(SMALLEST_BYTES)
    assert caught.value.errno == errno.ENOSPC
    assert files(tmp_path / "memory") == files(tmp_path / "spill") == []
    assert pool._memory == 0
    pool.delete()


def test_room_on_disk_is_left_for_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = (segments.SPILL_FREE_BYTES + SMALLEST_BYTES - 1) // 4096
    found = SimpleNamespace(f_bavail=free, f_blocks=2 * free, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    pool = make(tmp_path, memory_bytes=0)
    with pytest.raises(SnapshotFull, match="are free"):
        pool.take(SMALLEST_BYTES)
    pool.delete()


def test_prepared_segments_are_there_when_they_are_wanted(
    pool: SegmentPool, tmp_path: Path
) -> None:
    pool.prepare(10 * MIB)
    made = files(tmp_path / "memory")
    assert len(made) == 3
    pool.prepare(10 * MIB)  # they are there
    for size in segment_sizes(10 * MIB):
        assert not pool.take(size).spilled
    assert files(tmp_path / "memory") == made


def test_after_a_fork_the_child_touches_no_file(pool: SegmentPool, tmp_path: Path) -> None:
    segment = pool.take(SMALLEST_BYTES)
    pool.give_back([pool.take(SMALLEST_BYTES)])
    before = files(tmp_path / "memory")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            pool.forget()
            pool.give_back([segment])
            pool.tidy()
            try:
                pool.take(SMALLEST_BYTES)
            except ValueError:
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert files(tmp_path / "memory") == before
    segment.view[:4] = b"mine"
    assert bytes(segment.content(0, 4)) == b"mine"


def test_a_forgotten_pool_is_not_locked_by_a_thread_that_is_not_there(tmp_path: Path) -> None:
    pool = make(tmp_path)
    locked, end = threading.Event(), threading.Event()

    def hold() -> None:
        with pool._lock:
            locked.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait(10)
    pool.forget()
    pool.give_back([])
    end.set()
    thread.join()


def test_deleting_removes_what_is_in_use_too(pool: SegmentPool, tmp_path: Path) -> None:
    segment = pool.take(SMALLEST_BYTES)
    being_sent = segment.content(0, 10)
    pool.delete()
    assert not (tmp_path / "memory").exists()
    with pytest.raises(ValueError, match="closed"):
        pool.take(SMALLEST_BYTES)
    assert bytes(being_sent) == bytes(10)
    pool.give_back([segment])
    assert pool._free == []


def test_many_threads_never_hold_the_same_segment(pool: SegmentPool) -> None:
    problems: list[str] = []

    def work(mark: int) -> None:
        for _ in range(100):
            segment = pool.take(SMALLEST_BYTES)
            segment.view[0] = mark
            if segment.view[0] != mark:
                problems.append("shared")
            pool.used([segment])
            pool.give_back([segment])

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert pool._memory == sum(segment.size for segment in pool._free)
