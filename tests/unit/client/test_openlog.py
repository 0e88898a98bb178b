"""A log file is held as it was, its descriptors are few, and none is left behind."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5f

from mle_client import openlog
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.openlog import OpenLog


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write(tmp_path / "log.hdf5", 1)


def write(path: Path | str, value: int) -> str:
    with h5py.File(path, "w") as file:
        file["x"] = np.full(1000, value)
    return str(path)


def replace_by(path: str, value: int) -> None:
    os.replace(write(f"{path}.new", value), path)


def value_of(log: OpenLog) -> int:
    hdf5 = log.hdf5()
    return int(h5py.Dataset(h5d.open(hdf5, b"x"))[0])


def descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed the folder
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return found


# --- a held file ----------------------------------------------------------------------------------
@pytest.mark.parametrize("rests", [False, True], ids=["open in HDF5", "at rest"])
@pytest.mark.parametrize("what", ["replaced", "removed"])
def test_a_held_file_shows_what_it_showed(path: str, what: str, rests: bool) -> None:
    log = OpenLog(path, hold=True)
    assert log.held
    if rests:
        log.rest()
    if what == "replaced":
        replace_by(path, 2)
    else:
        os.unlink(path)
    assert value_of(log) == 1
    assert log.read(1, 3) == b"HDF"


def test_a_file_lets_go_when_it_is_closed_or_forgotten(path: str) -> None:
    for close in (True, False):
        log = OpenLog(path, hold=True)
        assert path in descriptors()
        if close:
            log.close()
            log.close()
        del log
        assert path not in descriptors()
    assert not openlog._held


def test_resting_leaves_nothing_open_in_hdf5(path: str) -> None:
    log = OpenLog(path, hold=True)
    log.rest()
    assert h5f.get_obj_count(h5f.OBJ_ALL, h5f.OBJ_FILE) == 0
    with h5py.File(path, "r+") as file:  # others may even write
        file["y"] = 1
    assert log.held


def test_hdf5_has_only_some_files_open_at_a_time(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.hdf5", i) for i in range(20)]
    logs = [OpenLog(path, hold=True) for path in paths]
    assert h5f.get_obj_count(h5f.OBJ_ALL, h5f.OBJ_FILE) <= openlog._MOST_HDF5_FILES
    assert [value_of(log) for log in logs] == list(range(20))
    assert h5f.get_obj_count(h5f.OBJ_ALL, h5f.OBJ_FILE) <= openlog._MOST_HDF5_FILES


# --- few descriptors ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("limit", "expected"),
    [(256, 64), (1024, 256), (2**20, 1024), (resource.RLIM_INFINITY, 1024), (0, 0)],
)
def test_a_share_of_the_descriptors_is_held(
    monkeypatch: pytest.MonkeyPatch, limit: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert openlog._descriptors_to_hold() == expected


@pytest.fixture
def two_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openlog, "_descriptors_to_hold", lambda: 2)


@pytest.mark.usefixtures("two_descriptors")
def test_no_more_are_held_and_a_place_that_is_left_can_be_taken(tmp_path: Path) -> None:
    logs = [OpenLog(write(tmp_path / f"{i}.hdf5", i), hold=True) for i in range(4)]
    assert [log.held for log in logs] == [True, True, False, False]
    assert [value_of(log) for log in logs] == [0, 1, 2, 3]
    del logs[0]
    assert OpenLog(str(tmp_path / "0.hdf5"), hold=True).held


@pytest.mark.parametrize("rests", [False, True])
def test_a_file_that_is_not_held_is_found_by_its_name(path: str, rests: bool) -> None:
    log = OpenLog(path, hold=False)
    assert not log.held
    if rests:
        log.rest()
        assert path not in descriptors()
    assert value_of(log) == 1
    assert log.read(1, 3) == b"HDF"


@pytest.mark.parametrize("what", ["replaced", "removed"])
def test_a_file_that_is_not_held_says_that_it_has_gone(path: str, what: str) -> None:
    log = OpenLog(path, hold=False)
    log.rest()
    if what == "replaced":
        replace_by(path, 2)
    else:
        os.unlink(path)
    for use in (log.hdf5, lambda: log.read(0, 1)):
        with pytest.raises(LogNotFound) as caught, log.reading():
            use()
        assert caught.value.path == path


# --- errors ---------------------------------------------------------------------------------------
def test_what_is_no_hdf5_file_is_damaged(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    with pytest.raises(LogDamaged, match="restore it from a copy"):
        OpenLog(str(other), hold=True)
    with pytest.raises(LogNotFound, match="no such file"):
        OpenLog(str(tmp_path / "nothing"), hold=True)
    assert not openlog._held


def test_bytes_that_are_not_there_are_an_error(path: str) -> None:
    log = OpenLog(path, hold=True)
    with pytest.raises(LogDamaged, match="it ends before byte"), log.reading():
        log.read(os.path.getsize(path), 1)


def test_bytes_that_the_system_gives_in_parts_are_put_together(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = OpenLog(path, hold=True)
    expected, pread = log.read(0, 1000), os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 300), at))
    assert log.read(0, 1000) == expected
    assert len(expected) == 1000


def test_too_little_memory_is_not_the_fault_of_a_file(path: str) -> None:
    log = OpenLog(path, hold=False)
    with pytest.raises(MemoryError), log.reading():
        raise MemoryError


# --- files with addresses of their own ------------------------------------------------------------
def test_a_file_with_something_before_it_has_other_addresses(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "log.hdf5", "w", userblock_size=512) as file:
        file["x"] = np.arange(1000)
    assert not OpenLog(str(tmp_path / "log.hdf5"), hold=True).plain


def test_a_usual_file_has_plain_ones(path: str) -> None:
    assert OpenLog(path, hold=True).plain


# --- threads --------------------------------------------------------------------------------------
def test_threads_share_files_that_hdf5_opens_and_closes(tmp_path: Path) -> None:
    logs = [OpenLog(write(tmp_path / f"{i}.hdf5", i), hold=True) for i in range(20)]
    failures: list[BaseException] = []

    def look(first: int) -> None:
        try:
            for i in range(200):
                number = (first + i) % len(logs)
                assert value_of(logs[number]) == number
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=look, args=(i * 5,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for log in logs:
        log.close()
    assert not openlog._held
