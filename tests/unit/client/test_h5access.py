"""Opening HDF5 files: errors name the file, nothing hangs, and nothing stays open."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5f, h5g

from mle_client import h5access
from mle_client.errors import LogDamaged, LogNotFound
from tests.seed_logs import open_files


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file with a dataset at depth, and whatever else a group may hold."""
    path = str(tmp_path / "file.hdf5")
    with h5py.File(path, "w") as file:
        file["a/b/number"] = np.arange(3)
        file["a/scalar"] = 1.5
        file["a/nothing"] = h5py.Empty("f")
        file["a/type"] = np.dtype("f4")
        file["a"].attrs.update(number=7, text="größe", raw=np.bytes_(b"x"), none=h5py.Empty("f"))
    return path


# --- opening --------------------------------------------------------------------------------------
def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound, match=r"x\.hdf5"), h5access.reading(str(tmp_path / "x.hdf5")):
        pass


@pytest.mark.parametrize("content", [b"", b"no log at all" * 100, "half"])
def test_a_file_that_is_damaged_is_named_with_what_to_do(path: str, content: bytes | str) -> None:
    whole = Path(path).read_bytes()
    Path(path).write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with (
        pytest.raises(LogDamaged, match="restore it from a copy") as caught,
        h5access.reading(path) as (file, _),
    ):
        list(h5g.open(file, b"a"))
    assert caught.value.path == path


def test_what_is_no_file_is_refused_and_a_pipe_makes_nobody_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.hdf5")
    (tmp_path / "folder.hdf5").mkdir()
    for name in ("pipe.hdf5", "folder.hdf5"):
        path = str(tmp_path / name)
        with pytest.raises(LogDamaged, match="move it away"), h5access.reading(path):
            pass


def test_a_file_that_the_system_refuses_is_not_called_damaged(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match="may not read it: ask its owner") as caught:
        h5access.opened(path)
    assert (caught.value.filename, caught.value.errno) == (path, errno.EACCES)


def test_a_link_to_itself_is_named_with_what_to_do(tmp_path: Path) -> None:
    link = tmp_path / "log.hdf5"
    link.symlink_to(link)
    with pytest.raises(OSError, match=r"leads back to itself: remove it.*log\.hdf5") as caught:
        h5access.opened(str(link))
    assert caught.value.errno == errno.ELOOP


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="files are opened by name here")
@pytest.mark.parametrize("renamed", [False, True])
def test_a_file_that_is_replaced_while_it_is_opened_is_no_damaged_one(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: bool
) -> None:
    shutil.copy(path, tmp_path / "new")
    with h5py.File(tmp_path / "new", "a") as file:
        file["later"] = 1
    real, opened = h5access._open, []

    def open_(name: str) -> object:
        opened.append(name)
        if len(opened) == 1:
            if renamed:
                os.rename(path, tmp_path / "elsewhere")
            os.replace(tmp_path / "new", path)
        return real(name)

    before = open_files()
    monkeypatch.setattr(h5access, "_open", open_)
    with h5access.reading(path) as (file, fd):
        # One that has another name can still be read; of one that has none, the successor is.
        assert (b"later" in h5g.open(file, b"/")) is not renamed
        assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "elsewhere" if renamed else path))
    assert open_files() == before


def test_a_file_that_is_replaced_all_the_time_or_goes_away_is_given_up(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path(path).read_bytes()
    monkeypatch.setattr(h5access, "_ATTEMPTS", 3)
    for stays in (True, False):
        Path(path).write_bytes(content)

        def open_(name: str, stays: bool = stays) -> None:
            os.unlink(path)
            if stays:
                Path(path).write_bytes(content)
            raise OSError("can't retrieve real path for file")

        monkeypatch.setattr(h5access, "_open", open_)
        with pytest.raises(LogNotFound), h5access.reading(path):
            pass


@pytest.mark.parametrize("options", [{}, {"swmr": True}, {"locking": False}])
def test_a_file_that_this_program_has_open_can_be_read(path: str, options: dict[str, bool]) -> None:
    with h5py.File(path, "r", **options) as file:
        with h5access.reading(path) as (other, _):
            assert b"a" in h5g.open(other, b"/")
        assert "a" in file  # which is still good


def test_a_file_whose_lock_cannot_be_had_is_read_all_the_same(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = h5f.open

    def locked(name: bytes, flags: int, properties: object) -> object:
        if properties.get_file_locking()[0]:  # type: ignore[attr-defined]
            raise OSError("unable to lock file")
        return real(name, flags, properties)

    monkeypatch.setattr(h5access.h5f, "open", locked)
    with h5access.reading(path) as (file, _):
        assert b"a" in h5g.open(file, b"/")


# --- failing --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (KeyError("component not found"), LogDamaged, "component not found"),
        (MemoryError("8 EiB"), LogDamaged, "8 EiB"),
        (OSError("read failed: errno = 5, error message = 'x'"), OSError, os.strerror(5)),
        (RuntimeError("read failed: errno = 5, error message = 'x'"), OSError, os.strerror(5)),
        (OSError("read failed (error message = 'Stale file handle')"), LogNotFound, "was replaced"),
        (OSError(errno.ENOSPC, "full", "elsewhere"), OSError, "elsewhere"),
        (FileNotFoundError(errno.ENOENT, "gone", "elsewhere"), FileNotFoundError, "elsewhere"),
        (LogDamaged("another", "why"), LogDamaged, "another: why"),
        (LogNotFound("another", "gone"), LogNotFound, "another: gone"),
    ],
)
def test_what_goes_wrong_while_reading_is_told_of_the_file_that_it_is_about(
    path: str, raised: Exception, expected: type[Exception], said: str
) -> None:
    before = open_files()
    with pytest.raises(expected, match=said) as caught, h5access.reading(path):
        raise raised
    assert type(caught.value) in (expected, type(raised))
    if expected is LogDamaged and not isinstance(raised, LogDamaged):
        assert caught.value.path == path  # type: ignore[attr-defined]
    assert open_files() == before


def test_a_mistake_of_ours_is_not_blamed_on_a_file(path: str) -> None:
    with pytest.raises(ZeroDivisionError), h5access.reading(path):
        _ = 1 / 0


def test_nothing_stays_open_when_reading_is_given_up(path: str) -> None:
    before = open_files()

    def half_way() -> object:
        with h5access.reading(path) as (file, _):
            yield from h5access.datasets(h5g.open(file, b"/"))

    generator = half_way()
    next(generator)  # type: ignore[call-overload]
    assert open_files() != before
    generator.close()  # type: ignore[attr-defined]
    assert open_files() == before


# --- looking --------------------------------------------------------------------------------------
def test_all_datasets_with_a_shape_are_found_by_their_paths(path: str) -> None:
    with h5access.reading(path) as (file, _):
        found = {name: each.shape for name, each in h5access.datasets(h5g.open(file, b"/"))}
    assert found == {"a/b/number": (3,), "a/scalar": ()}


def test_attributes_are_values_and_texts_are_str(path: str) -> None:
    with h5access.reading(path) as (file, _):
        group = h5g.open(file, b"a")
        found = {
            name: h5access.attribute(group, name.encode())
            for name in ("number", "text", "raw", "none", "missing")
        }
    assert found["number"] == 7
    assert found["text"] == "größe"
    assert found["raw"] == "x"
    assert found["none"] is found["missing"] is None


def test_names_survive_whatever_bytes_they_have() -> None:
    for name in (b"gr\xc3\xb6\xc3\x9fe", b"\xff\xfe", b"plain"):
        assert h5access.encoded(h5access.decoded(name)) == name


def test_an_empty_image_is_a_file_that_hdf5_1_10_reads(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(h5access.empty_image())
    with h5py.File(tmp_path / "x") as file:
        assert list(file) == []
        assert file.id.get_create_plist().get_version()[0] == 0  # of the superblock
