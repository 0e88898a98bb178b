"""Files that grow as artifacts arrive: their room, their descriptors, and what is left of them."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from mle_client.messages import ProducerId
from mle_daemon import staging as module
from mle_daemon.staging import Staging

ANNA = ProducerId(b"anna" * 4)
MIB = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "staging"


@pytest.fixture
def staging(folder: Path) -> Iterator[Staging]:
    staging = Staging(str(folder))
    yield staging
    staging.remove_all()


def descriptors_in(folder: Path) -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists
            count += os.readlink(f"/proc/self/fd/{name}").startswith(str(folder))
    return count


@pytest.mark.parametrize("size", [0, 1, module._WRITEBACK_BYTES + 3])
def test_what_was_written_is_in_the_finished_file(staging: Staging, size: int) -> None:
    content = os.urandom(size)
    staging.begin((ANNA, 1), size)
    for at in range(0, size, MIB):
        staging.write((ANNA, 1), at, memoryview(content)[at : at + MIB])

    path = staging.finish((ANNA, 1))

    assert Path(path).read_bytes() == content
    assert Path(path).name == f"{ANNA.hex()}-1.part"
    staging.remove_all()
    assert Path(path).exists()  # whoever was told of it has it


def test_a_finished_file_was_synced(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
    staging.begin((ANNA, 1), 3)
    staging.write((ANNA, 1), 0, b"abc")
    assert synced == []

    staging.finish((ANNA, 1))

    assert synced == [3]


def test_the_blocks_are_there_before_the_first_byte(staging: Staging) -> None:
    staging.begin((ANNA, 1), MIB)

    assert os.stat(staging.path((ANNA, 1))).st_blocks * 512 >= MIB


def test_the_kernel_is_asked_to_write_while_the_file_grows(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, n, advice: asked.append((at, n)))
    step = module._WRITEBACK_BYTES
    staging.begin((ANNA, 1), 3 * step)

    for at in range(0, 3 * step, step // 4):
        staging.write((ANNA, 1), at, bytes(step // 4))

    assert asked == [(0, step), (step, step), (2 * step, step)]


def test_a_disk_without_room_says_so_at_the_beginning_and_nothing_is_left(
    staging: Staging, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, at: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)

    with pytest.raises(OSError, match="No space left"):
        staging.begin((ANNA, 1), 10)

    assert list(folder.iterdir()) == []
    assert descriptors_in(folder) == 0


def test_a_write_that_fails_is_an_error(staging: Staging, folder: Path) -> None:
    staging.begin((ANNA, 1), 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            staging.write((ANNA, 1), 0, bytes(MIB + 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    staging.remove((ANNA, 1))
    assert list(folder.iterdir()) == []


def test_beginning_again_leaves_nothing_of_the_first_attempt(staging: Staging) -> None:
    staging.begin((ANNA, 1), 10)
    staging.write((ANNA, 1), 0, b"0123456789")

    staging.begin((ANNA, 1), 3)
    staging.write((ANNA, 1), 0, b"abc")

    assert Path(staging.finish((ANNA, 1))).read_bytes() == b"abc"


def test_few_descriptors_are_open_however_many_files_grow(staging: Staging, folder: Path) -> None:
    numbers = range(1, 3 * module._OPEN_FILES)
    for number in numbers:
        staging.begin((ANNA, number), 2)
        staging.write((ANNA, number), 0, b"a")
    assert descriptors_in(folder) == module._OPEN_FILES

    for number in numbers:
        staging.write((ANNA, number), 1, b"b")

    assert {Path(staging.finish((ANNA, n))).read_bytes() for n in numbers} == {b"ab"}
    assert descriptors_in(folder) == 0


def test_what_is_removed_is_gone_finished_or_not_or_never_begun(
    staging: Staging, folder: Path
) -> None:
    for number in (1, 2):
        staging.begin((ANNA, number), 1)
    staging.finish((ANNA, 1))

    for number in (1, 2, 3):
        staging.remove((ANNA, number))

    assert list(folder.iterdir()) == []
    assert descriptors_in(folder) == 0


def test_a_folder_that_somebody_removed_is_made_again(staging: Staging, folder: Path) -> None:
    folder.rmdir()

    staging.begin((ANNA, 1), 1)

    assert Path(staging.path((ANNA, 1))).exists()
