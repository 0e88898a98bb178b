"""Snapshots: the bytes of the call, whole or not at all, whatever happens afterwards."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mle_client import segments
from mle_client.segments import SMALLEST_BYTES
from mle_client.snapshot import (
    INLINE_BYTES,
    Arena,
    LeftSnapshot,
    Snapshot,
    SnapshotFull,
    read_left,
)

MIB = 2**20
CHUNK = 256 * 1024


def make(folder: Path, **bounds: int) -> Arena:
    folder.mkdir(exist_ok=True)
    return Arena(str(folder / "memory"), str(folder / "spill"), **bounds)


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    arena = make(tmp_path)
    yield arena
    arena.delete()


def take(arena: Arena, content: bytes, number: int = 1) -> Snapshot:
    with arena.begin() as out:
        out.write(content)
        return out.commit(number, "model")


def read(taken: Snapshot | LeftSnapshot, chunk_bytes: int = CHUNK) -> bytes:
    return b"".join(taken.chunks(chunk_bytes))


def left(folder: Path) -> list[LeftSnapshot]:
    return read_left(str(folder / "memory"), str(folder / "spill"))


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize(
    "size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, SMALLEST_BYTES, 3 * SMALLEST_BYTES + 5]
)
def test_what_was_written_is_read(arena: Arena, tmp_path: Path, size: int) -> None:
    content = noise(size)
    taken = take(arena, content)
    assert (taken.number, taken.kind, taken.form, taken.size) == (1, "model", "file", size)
    chunks = list(taken.chunks(CHUNK))
    assert b"".join(chunks) == content
    assert all(0 < len(chunk) <= CHUNK for chunk in chunks)
    assert read(taken) == content  # as often as it is wanted
    (found,) = left(tmp_path)
    assert (found.number, found.kind, found.form, found.size) == (1, "model", "file", size)
    assert read(found) == content


def test_every_way_to_write_writes_the_same(arena: Arena) -> None:
    parts = [noise(size) for size in (0, 1, 100, MIB, 5 * MIB, 3, SMALLEST_BYTES, 7)]
    with arena.begin() as out:
        for part in parts:
            before = out.position
            assert out.write(part) == len(part)
            assert out.position == before + len(part)
        out.write_all([parts[3], memoryview(parts[4]), b"", parts[1]])
        at = 0
        for view in out.reserve(len(parts[4])):
            view[:] = parts[4][at : at + len(view)]
            at += len(view)
        taken = out.commit(1, "model")
    assert read(taken) == b"".join([*parts, parts[3], parts[4], parts[1], parts[4]])


@pytest.mark.parametrize(
    "data",
    [
        np.arange(12.0).reshape(3, 4),
        np.array(5.0),
        np.zeros((0, 3)),
        np.arange(3, dtype=">i2"),
        bytearray(b"abc"),
        memoryview(b"abc"),
        pickle.PickleBuffer(b"abc"),
    ],
)
def test_anything_with_a_contiguous_buffer_can_be_written(arena: Arena, data: object) -> None:
    with arena.begin() as out:
        out.write(data)
        taken = out.commit(1, "model")
    assert read(taken) == bytes(memoryview(data))  # type: ignore[arg-type]


def test_memory_is_recycled(arena: Arena, tmp_path: Path) -> None:
    first = take(arena, noise(10 * MIB))
    segments_made = [name for name in files(tmp_path) if name.endswith(".seg")]
    first.release()
    first.release()  # twice does nothing
    assert files(tmp_path) == segments_made
    for number in range(2, 6):
        content = noise(10 * MIB + number)
        taken = take(arena, content, number)
        assert read(taken) == content
        assert [name for name in files(tmp_path) if name.endswith(".seg")] == segments_made
        taken.release()
    assert left(tmp_path) == []


def test_small_artifacts_that_wait_hold_no_segment_and_no_descriptor(
    arena: Arena, tmp_path: Path
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    contents = {number: noise(100 + number) for number in range(1, 101)}
    taken = [take(arena, content, number) for number, content in contents.items()]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert sum(name.endswith(".seg") for name in files(tmp_path)) == 1
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.snap")) < 100_000
    assert [read(each) for each in taken] == list(contents.values())
    assert [read(each) for each in left(tmp_path)] == list(contents.values())
    for each in taken:
        each.release()
    assert left(tmp_path) == []


def test_what_was_not_committed_was_never_taken(arena: Arena, tmp_path: Path) -> None:
    kept = take(arena, b"kept")
    out = arena.begin()
    out.write(noise(2 * MIB))
    assert [each.number for each in left(tmp_path)] == [1]
    out.abort()
    out.abort()
    for use in (lambda: out.write(b"x"), out.restart, lambda: out.commit(2, "model")):
        with pytest.raises(ValueError, match="committed or aborted"):
            use()
    with arena.begin() as out:
        out.write(noise(2 * MIB))
    assert [read(each) for each in left(tmp_path)] == [b"kept"]
    assert read(kept) == b"kept"


def test_a_writer_can_start_again(arena: Arena) -> None:
    with arena.begin() as out:
        out.write(noise(6 * MIB))
        out.note_checksums([(0, 4, (4,))])
        out.restart()
        assert out.position == 0
        out.write(b"once more")
        taken = out.commit(1, "extra")
    assert read(taken) == b"once more"


@pytest.mark.parametrize("chunk_bytes", [1000, MIB])
@pytest.mark.parametrize("size", [5000, 6 * MIB])
def test_checksums_are_filled_in_when_read(
    arena: Arena, tmp_path: Path, size: int, chunk_bytes: int
) -> None:
    content = noise(size)
    with arena.begin() as out:
        out.write(content)
        out.write(bytes(10))
        out.note_checksums([(10, size, (size + 3,))])
        taken = out.commit(1, "model")
    crc = zlib.crc32(content[10:]).to_bytes(4, "little")
    expected = content + bytes(3) + crc + bytes(3)
    assert read(taken, chunk_bytes) == read(left(tmp_path)[0], chunk_bytes) == expected


def test_a_released_snapshot_is_not_read_any_more(arena: Arena) -> None:
    for size in (10, 3 * MIB):
        taken = take(arena, noise(size))
        chunks = taken.chunks(5)
        next(chunks)
        taken.release()
        for reading in (chunks, taken.chunks(5)):
            with pytest.raises(ValueError, match="released"):
                next(reading)


def test_the_daemon_removes_what_it_has_taken(arena: Arena, tmp_path: Path) -> None:
    take(arena, noise(10 * MIB))
    (found,) = left(tmp_path)
    found.release()
    assert files(tmp_path) == []


# --- no room --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("in_memory", "on_disk"), [(0, 4), (1, 2)])
def test_without_room_in_memory_the_bytes_lie_on_disk(
    tmp_path: Path, in_memory: int, on_disk: int
) -> None:
    arena = make(tmp_path, memory_bytes=in_memory * (SMALLEST_BYTES + CHUNK))
    content = noise(3 * SMALLEST_BYTES)
    before = len(os.listdir("/proc/self/fd"))
    taken = take(arena, content)
    assert len(os.listdir("/proc/self/fd")) == before + in_memory  # what is on disk is not mapped
    assert sum(name.startswith("spill/") for name in files(tmp_path)) == on_disk
    assert read(taken) == read(left(tmp_path)[0]) == content
    taken.release()
    assert [name for name in files(tmp_path) if name.startswith("spill/")] == []
    arena.delete()


def no_room_after(count: int) -> Callable[[int, int, int], None]:
    real, calls = os.posix_fallocate, iter(range(1000))

    def fallocate(fd: int, offset: int, size: int) -> None:
        if next(calls) >= count:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, offset, size)

    return fallocate


@pytest.mark.parametrize("write_once", [True, False])
def test_without_room_anywhere_nothing_is_left(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_once: bool
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", no_room_after(2))
    with arena.begin() as out:
        parts = [noise(9 * MIB)] if write_once else [noise(MIB)] * 9
        with pytest.raises(SnapshotFull) as caught:
            out.write_all(parts)
        assert isinstance(caught.value, OSError)
        with pytest.raises(ValueError, match="aborted"):
            out.write(b"x")
    assert left(tmp_path) == []
    arena.tidy()
    assert take(arena, noise(MIB + 1)).size == MIB + 1  # the two that there were are free again


def test_a_header_that_finds_no_room_leaves_nothing(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for size in (10, 2 * MIB):
            with pytest.raises(SnapshotFull, match="header"):
                take(arena, noise(size))
    assert not [name for name in files(tmp_path) if not name.endswith(".seg")]
    assert read(take(arena, b"again")) == b"again"


def test_an_interrupted_commit_leaves_no_header(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    content = noise(2 * MIB)
    with monkeypatch.context() as patch:
        patch.setattr(segments.SegmentPool, "used", interrupted)
        with pytest.raises(KeyboardInterrupt):
            take(arena, content)
    assert left(tmp_path) == []
    assert read(take(arena, content)) == content


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_another_snapshot_of_the_same_number_takes_its_place(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first = take(arena, b"first" * size)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(SnapshotFull):
            take(arena, b"second" * size)
    assert [read(each) for each in left(tmp_path)] == [read(first)] == [b"first" * size]
    second = take(arena, b"second" * size)
    first.give_way_to(second)
    assert [read(each) for each in left(tmp_path)] == [read(second)] == [b"second" * size]
    second.release()
    assert left(tmp_path) == []


# --- the process dies -----------------------------------------------------------------------------
def die(folder: str, at: str) -> None:
    arena = make(Path(folder))
    take(arena, noise(5 * MIB), 1)
    take(arena, noise(50), 2)
    gone = take(arena, noise(3 * MIB), 3)
    gone.release()
    out = arena.begin()
    out.write(noise(7 * MIB))
    if at == "rename":
        os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        out.commit(4, "model")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("at", ["write", "rename"])
def test_committed_snapshots_survive_the_process_and_others_do_not(tmp_path: Path, at: str) -> None:
    child = multiprocessing.get_context("spawn").Process(target=die, args=(str(tmp_path), at))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    found = left(tmp_path)
    assert [each.number for each in found] == [1, 2]
    assert [read(each) for each in found] == [noise(5 * MIB), noise(50)]


def test_torn_and_foreign_files_are_passed_over(arena: Arena, tmp_path: Path) -> None:
    memory, spill = tmp_path / "memory", tmp_path / "spill"
    taken = [take(arena, noise(size), n) for n, size in enumerate((2 * MIB, 10, 2 * MIB, 10), 1)]
    spill.mkdir()
    whole = (memory / "1.snap").read_bytes()
    (memory / "5.snap").write_bytes(b"")
    (memory / "6.snap").write_bytes(whole[:-3])
    (memory / "7.snap").write_bytes(random.Random(1).randbytes(500))
    take(arena, b"x", 12)
    (memory / "12.snap").rename(memory / "8.snap")  # another number inside
    (memory / "9.snap").mkdir()
    (memory / "10.snap.new").write_bytes(whole)
    (memory / "notes.txt").write_text("hello")
    (spill / "11.snap").symlink_to(tmp_path / "nowhere")
    inline = (memory / "2.snap").read_bytes()
    (memory / "2.snap").write_bytes(inline[:-1])
    os.truncate(memory / "00000002.seg", MIB)  # of the third
    assert [each.number for each in left(tmp_path)] == [1, 4]
    assert taken[0].size == 2 * MIB
    assert read_left(str(tmp_path / "no"), str(tmp_path / "none")) == []


def test_after_a_fork_the_parents_snapshots_stay(arena: Arena, tmp_path: Path) -> None:
    content = noise(3 * MIB)
    taken = take(arena, content)
    before = files(tmp_path)
    pid = os.fork()
    if pid == 0:
        arena.forget()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert files(tmp_path) == before
    assert read(taken) == content


def test_one_thread_writes_while_another_reads_and_releases(arena: Arena) -> None:
    committed: list[tuple[Snapshot, str]] = []
    ready, problems = threading.Semaphore(0), []

    def ship() -> None:
        for number in range(60):
            ready.acquire()
            taken, digest = committed[number]
            found = hashlib.sha256()
            for chunk in taken.chunks(CHUNK):
                found.update(chunk)
            if found.hexdigest() != digest:
                problems.append(taken.number)
            taken.release()

    shipping = threading.Thread(target=ship)
    shipping.start()
    content = bytearray(noise(5 * MIB))
    for number in range(60):
        size = (3 * MIB + number) if number % 3 else 1000
        content[:8] = number.to_bytes(8, "little")
        digest = hashlib.sha256(content[:size]).hexdigest()
        committed.append((take(arena, bytes(content[:size]), number + 1), digest))
        ready.release()
    shipping.join()
    assert problems == []
