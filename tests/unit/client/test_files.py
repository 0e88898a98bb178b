"""Whole files: a name leads to the old content or the new, and a failure leaves nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mle_client import files

CONTENT = os.urandom(300_000)


def refuse(code: int) -> Any:
    """A system call that fails."""

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def across_file_systems(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    """Let renames from a path fail as between file systems."""
    rename = os.replace

    def replace(a: str, b: str) -> None:
        if str(a) == str(source):
            raise OSError(errno.EXDEV, "another file system")
        rename(a, b)

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("code", [0, errno.EXDEV, errno.ENOSYS])
def test_copies_are_whole_whether_or_not_the_kernel_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(CONTENT)
    if code:
        monkeypatch.setattr(os, "copy_file_range", refuse(code))
    files.copy_durably(str(source), str(target))
    assert target.read_bytes() == CONTENT


def test_a_copy_that_fails_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(CONTENT)
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        files.copy_durably(str(source), str(target))
    assert os.listdir(tmp_path) == ["source"]


def test_a_write_goes_on_where_the_system_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1000]))
    with files.new_file(str(tmp_path / "x")) as fd:
        files.write_all(fd, CONTENT)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_room_is_reserved_where_the_file_system_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files.new_file(str(tmp_path / "x")) as fd:
        files.reserve(fd, 100_000)
    assert (tmp_path / "x").stat().st_blocks * 512 >= 100_000
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.EOPNOTSUPP))
    with files.new_file(str(tmp_path / "y")) as fd:
        files.reserve(fd, 100_000)
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"), files.new_file(str(tmp_path / "z")) as fd:
        files.reserve(fd, 100_000)
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_synced_at_all_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "staged").write_bytes(b"new")
    monkeypatch.setattr(os, "fsync", refuse(code))
    arguments = (str(tmp_path / "staged"), str(tmp_path / "log"), str(tmp_path / "aside"))
    if code == errno.EINVAL:
        files.land(*arguments)
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            files.land(*arguments)
    assert (tmp_path / "log").read_bytes() == b"new"


@pytest.mark.parametrize("across", [False, True])
def test_files_put_aside_never_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, across: bool
) -> None:
    log, folder = tmp_path / "log", tmp_path / "kept"
    if across:
        across_file_systems(monkeypatch, log)
    kept = []
    for i in range(3):
        log.write_bytes(b"%d" % i)
        kept.append(files.put_aside(str(log), str(folder), "now"))
        assert not log.exists()
    assert [Path(path).read_bytes() for path in kept] == [b"0", b"1", b"2"]
    assert all(os.path.dirname(path) == str(folder) for path in kept)


def test_a_file_that_cannot_be_put_aside_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, folder = tmp_path / "log", tmp_path / "kept"
    log.write_bytes(b"x")
    monkeypatch.setattr(os, "replace", refuse(errno.EACCES))
    with pytest.raises(PermissionError):
        files.put_aside(str(log), str(folder), "now")
    assert log.read_bytes() == b"x"
    assert os.listdir(folder) == []


def test_only_what_is_inside_once_links_are_followed_is_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    assert files.is_inside(str(root), str(root))
    assert files.is_inside(str(root / "a" / "b"), str(root))
    assert files.is_inside(str(tmp_path), "/")
    assert not files.is_inside(str(root / "link" / "x"), str(root))
    assert not files.is_inside(str(root / ".." / "x"), str(root))
    assert not files.is_inside(str(root) + "x", str(root))


def test_every_folder_that_gets_a_new_one_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(
        files, "_sync_folder", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    files.make_folders(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    files.make_folders(str(tmp_path / "a" / "b"))
    assert len(synced) == 2


def test_no_folder_is_made_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    for folder in ("a", "a/b"):
        with pytest.raises(NotADirectoryError):
            files.make_folders(str(tmp_path / folder))


def test_a_new_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "new").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic links"), files.new_file(str(tmp_path / "new")):
        pass
    assert (tmp_path / "mine").read_bytes() == b"mine"
