"""Copied groups: the same bytes, no slack, and a disk that fails harms nobody."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mle_client import files, group_copies, log_compare
from mle_client.errors import LogNotFound
from mle_client.group_copies import Copy
from tests.seed_logs import log_bytes, losses, open_files, ticks_of, write_foreign


def sources(folder: Path, count: int = 3, ticks: int = 3, **facts: Any) -> list[Copy]:
    """Logs of seeds to copy."""
    copies = []
    for i in range(count):
        path = folder / f"log_{i}.hdf5"
        path.write_bytes(log_bytes(f"s{i}", ticks_of([float(i)] * ticks), **facts))
        copies.append(Copy(str(path), f"s{i}", f"s{i}"))
    return copies


def write(path: Path, copies: list[Copy], base: str = "") -> list[tuple[Copy, str]]:
    """Write copies into a new file."""
    with files.new_file(str(path)) as fd:
        return group_copies.write_copies(str(path), fd, copies, base=base)


@contextmanager
def failing(name: str, code: int, after: int = 0) -> Iterator[list[int]]:
    """A system call that fails, but for its first calls.  Yields: a list that grows by each."""
    real, calls = getattr(os, name), [0]

    def fail(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, fail)
        yield calls


# --- what is written ------------------------------------------------------------------------------
def test_groups_of_several_files_are_in_one_under_the_names_that_they_get(tmp_path: Path) -> None:
    copies = sources(tmp_path)
    foreign = write_foreign(tmp_path / "f.hdf5", {"a": [1.0], "b": [2.0], "c": [3.0]})
    copies += [Copy(foreign, name, f"größe/deep/{name}") for name in "ac"]
    assert write(tmp_path / "new", copies) == []
    assert losses(tmp_path / "new") == {
        "s0": [0.0] * 3, "s1": [1.0] * 3, "s2": [2.0] * 3, "größe/deep/a": [1.0],
        "größe/deep/c": [3.0],
    }  # fmt: skip
    assert log_compare.differences(copies, str(tmp_path / "new")) == []


def test_copies_may_be_added_to_what_a_file_has(tmp_path: Path) -> None:
    copies = sources(tmp_path)
    write(tmp_path / "base", copies[:2])
    with h5py.File(tmp_path / "base", "a") as file:
        file["notes"] = [1, 2]
    assert write(tmp_path / "new", copies[2:], base=str(tmp_path / "base")) == []
    assert log_compare.differences(copies, str(tmp_path / "new")) == []
    with h5py.File(tmp_path / "new") as file:
        assert file["notes"][:].tolist() == [1, 2]


def test_the_new_file_is_as_old_readers_want_it_and_has_no_slack(tmp_path: Path) -> None:
    copies = sources(tmp_path, 20, ticks=2_000)
    total = sum(os.path.getsize(copy.source) for copy in copies)
    write(tmp_path / "new", copies)
    assert os.path.getsize(tmp_path / "new") < total
    assert os.stat(tmp_path / "new").st_blocks * 512 < total + 64 * 1024
    with h5py.File(tmp_path / "new") as file:
        assert file.id.get_create_plist().get_version()[0] == 0  # of the superblock
    # Adding seeds one after another costs no more room than all at once.
    base = ""
    for i, copy in enumerate(copies):
        write(tmp_path / f"grown{i}", [copy], base=base)
        base = str(tmp_path / f"grown{i}")
    assert os.path.getsize(base) < os.path.getsize(tmp_path / "new") * 1.1


def test_whatever_a_run_may_hold_is_copied(tmp_path: Path) -> None:
    ticks: list[Any] = [
        (
            {"step": i},
            {
                "long double": 2**60 + 1 if i else 0.5,
                "text": "x" * (300 * i),
                "truth": i == 1,
                **{f"key {k} / 100%": k for k in range(2_000)},
            },
        )
        for i in range(3)
    ]
    for sealed in (False, True):
        path = tmp_path / f"{sealed}.hdf5"
        path.write_bytes(log_bytes("säd%2F 1", ticks, sealed=sealed))
        copy = Copy(str(path), "säd%2F 1", "säd%2F 1")
        assert write(tmp_path / "new", [copy]) == []
        assert log_compare.differences([copy], str(tmp_path / "new")) == []
    path = tmp_path / "empty.hdf5"
    path.write_bytes(log_bytes("a", []))
    assert write(tmp_path / "new", [Copy(str(path), "a", "a")]) == []
    with h5py.File(tmp_path / "new") as file:
        assert sorted(file["a"]) == ["meta", "stats", "time"]


def test_attributes_of_any_size_are_copied(tmp_path: Path) -> None:
    path = tmp_path / "big.hdf5"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file["a/stats/loss"] = [1.0]
        file["a"].attrs["big"] = np.arange(20_000)  # 160 kB; in a header there is room for 64
    copy = Copy(str(path), "a", "a")
    assert write(tmp_path / "new", [copy]) == []
    assert log_compare.differences([copy], str(tmp_path / "new")) == []


# --- sources that cannot be copied ----------------------------------------------------------------
def test_a_source_that_cannot_be_copied_is_told_and_the_others_are(tmp_path: Path) -> None:
    copies = sources(tmp_path)
    content = Path(copies[1].source).read_bytes()
    with h5py.File(copies[1].source) as file:
        header = h5py.h5o.get_info(file["s1/stats/loss"].id).addr
    Path(copies[1].source).write_bytes(content[:header] + b"\xff" * 64 + content[header + 64 :])
    (failure,) = write(tmp_path / "new", copies)
    assert failure[0] is copies[1]
    assert "it cannot be" in failure[1]
    for i, content in ((0, b"no log"), (2, b"")):
        Path(copies[i].source).write_bytes(content)
    assert [copy for copy, _ in write(tmp_path / "new", copies)] == copies


def test_a_source_that_was_replaced_meanwhile_is_looked_at_again_unless_it_only_grew(
    tmp_path: Path,
) -> None:
    (copy,) = sources(tmp_path, 1)
    seen = files.Stamp.of(os.stat(copy.source))
    os.utime(copy.source, ns=(1, 1))
    with pytest.raises(LogNotFound, match="replaced meanwhile"):
        write(tmp_path / "new", [Copy(copy.source, "s0", "s0", seen)])
    assert write(tmp_path / "new", [Copy(copy.source, "s0", "s0", seen, grows=True)]) == []
    os.unlink(copy.source)
    with pytest.raises(LogNotFound):
        write(tmp_path / "new", [copy])


def test_a_source_on_a_disk_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = sources(tmp_path, 2)
    real = group_copies.h5o.copy

    def copy(source: Any, name: bytes, *rest: Any, **more: Any) -> None:
        if name == b"s0":
            raise RuntimeError("file read failed: errno = 5, error message = 'oh', buf = 0x7ffe")
        real(source, name, *rest, **more)

    monkeypatch.setattr(group_copies.h5o, "copy", copy)
    assert write(tmp_path / "new", copies) == [
        (copies[0], f"it cannot be copied: {os.strerror(5)}")
    ]


# --- a disk that fails ----------------------------------------------------------------------------
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_is_told_as_the_system_says_it_and_leaves_nothing_open(
    tmp_path: Path, code: int
) -> None:
    copies = sources(tmp_path)
    with failing("pwrite", code, after=10**9) as calls:
        write(tmp_path / "new", copies)
    before = open_files()
    for after in range(calls[0]):
        with (
            failing("pwrite", code, after),
            pytest.raises(OSError, match=os.strerror(code)) as caught,
        ):
            write(tmp_path / "new", copies)
        assert (caught.value.errno, caught.value.filename) == (code, str(tmp_path / "new"))
        assert not (tmp_path / "new").exists()
    assert open_files() == before
    assert write(tmp_path / "new", copies) == []


@pytest.mark.parametrize("name", ["write", "posix_fallocate", "ftruncate", "copy_file_range"])
def test_whatever_fails_the_error_is_the_system_s(tmp_path: Path, name: str) -> None:
    copies = sources(tmp_path)
    write(tmp_path / "base", copies[:1])
    base = str(tmp_path / "base") if name == "copy_file_range" else ""
    with failing(name, errno.ENOSPC), pytest.raises(OSError, match="No space"):
        write(tmp_path / "new", copies[1:], base)
    assert not (tmp_path / "new").exists()


DIES = """
import errno, itertools, os, sys
from mle_client import files, group_copies
real, kept = os.pwrite, []
for failing in itertools.count(int(sys.argv[2])):
    calls = itertools.count()
    def pwrite(*arguments):
        number = next(calls)
        if number == failing or (number > failing and sys.argv[1] == "OSError"):
            raise {"OSError": OSError(errno.ENOSPC, "full")}.get(sys.argv[1], KeyboardInterrupt)
        return real(*arguments)
    os.pwrite = pwrite
    try:
        with files.new_file("new") as fd:
            group_copies.write_copies("new", fd, [group_copies.Copy("log_0.hdf5", "s0", "s0")])
        break
    except BaseException as error:
        kept.append(error)  # with all that its traceback holds
print(*{type(each).__name__ for each in kept})
"""


# The first failure of a process is the one that HDF5 gets over least.
@pytest.mark.parametrize("first", [0, 20])
@pytest.mark.parametrize("error", ["OSError", "KeyboardInterrupt"])
def test_a_program_whose_disk_was_full_or_that_was_interrupted_ends_well(
    tmp_path: Path, error: str, first: int
) -> None:
    sources(tmp_path, 1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", DIES, error, str(first)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{error}\n", "")


# --- room -----------------------------------------------------------------------------------------
def test_room_is_asked_for_before_anything_is_copied(tmp_path: Path) -> None:
    copies = sources(tmp_path, 2, ticks=5_000, sealed=False)
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "reserve", lambda fd, size: asked.append(size))
        write(tmp_path / "new", copies)
    total = sum(os.path.getsize(copy.source) for copy in copies)
    assert os.path.getsize(tmp_path / "new") <= asked[0] < 2 * total


def test_for_one_seed_of_many_the_room_of_one_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_copies, "_SMALL_BYTES", 0)
    write(tmp_path / "all", sources(tmp_path, 30, ticks=2_000, sealed=False))
    asked: list[int] = []
    monkeypatch.setattr(files, "reserve", lambda fd, size: asked.append(size))
    write(tmp_path / "one", [Copy(str(tmp_path / "all"), "s7", "s7")])
    assert os.path.getsize(tmp_path / "one") <= asked[0] < os.path.getsize(tmp_path / "all") / 4


# --- syncing --------------------------------------------------------------------------------------
def test_the_disk_works_while_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.set())
    with files.new_file(str(tmp_path / "x")) as fd, group_copies.synced_meanwhile(fd):
        assert synced.wait(10)


def test_a_disk_that_cannot_be_synced_is_told_although_the_system_says_so_only_once(
    tmp_path: Path,
) -> None:
    def write(calls: list[int]) -> None:
        with files.new_file(str(tmp_path / "x")) as fd, group_copies.synced_meanwhile(fd):
            while not calls[0]:
                pass

    with failing("fdatasync", errno.EIO) as calls:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            write(calls)
        assert calls[0] == 1
    assert not (tmp_path / "x").exists()
