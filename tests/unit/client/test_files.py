"""Whole files: a name leads to the old content or the new, and a failure leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mle_client import files

CONTENT = os.urandom(300_000)


def refuse(code: int) -> Any:
    """A system call that fails."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


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


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file get a further name, as between file systems."""
    monkeypatch.setattr(os, "link", refuse(errno.EXDEV))


@pytest.mark.parametrize("links", [True, False])
def test_files_put_aside_never_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    log, folder = tmp_path / "log", tmp_path / "kept"
    if not links:
        no_links(monkeypatch)
    kept = []
    for i in range(3):
        log.write_bytes(b"%d" % i)
        kept.append(files.put_aside(str(log), str(folder), "now"))
        assert not log.exists()
    assert [Path(path).read_bytes() for path in kept] == [b"0", b"1", b"2"]
    assert all(os.path.dirname(path) == str(folder) for path in kept)
    assert sorted(os.listdir(folder)) == ["2-now-log", "3-now-log", "now-log"]


def test_a_file_may_be_put_aside_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "staged").write_bytes(b"x")
    kept = files.put_aside(str(tmp_path / "staged"), str(tmp_path / "kept"), "now", "log")
    assert kept == str(tmp_path / "kept" / "now-log")
    assert Path(kept).read_bytes() == b"x"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_kept_aside_stays_and_is_whole_in_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    log, folder = tmp_path / "log", tmp_path / "kept"
    log.write_bytes(CONTENT)
    if not links:
        no_links(monkeypatch)
    kept = files.keep_aside(str(log), str(folder), "now")
    assert kept == str(folder / "now-log")
    assert log.read_bytes() == Path(kept).read_bytes() == CONTENT
    assert os.listdir(folder) == ["now-log"]


def test_what_is_aside_already_is_not_put_aside_again(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "kept"
    log.write_bytes(CONTENT)
    (tmp_path / "further").hardlink_to(log)
    kept = files.keep_aside(str(log), str(folder), "now")
    assert files.keep_aside(str(log), str(folder), "later") == kept
    assert files.put_aside(str(log), str(folder), "later") == kept  # after a kill in between
    assert (os.listdir(folder), log.exists()) == (["now-log"], False)
    assert Path(kept).read_bytes() == CONTENT


def test_a_file_that_cannot_be_put_aside_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, folder = tmp_path / "log", tmp_path / "kept"
    log.write_bytes(b"x")
    no_links(monkeypatch)
    for name, code in (("copy_file_range", errno.ENOSPC), ("replace", errno.EACCES)):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse(code))
            with pytest.raises(OSError, match=os.strerror(code)):
                files.put_aside(str(log), str(folder), "now")
        assert log.read_bytes() == b"x"
        assert [path.read_bytes() for path in folder.iterdir() if path.stat().st_size] == []


@pytest.mark.parametrize("links", [True, False])
def test_until_a_file_is_aside_it_has_its_old_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    log, folder = tmp_path / "log", tmp_path / "kept"
    log.write_bytes(CONTENT)
    if not links:
        no_links(monkeypatch)
    monkeypatch.setattr(os, "unlink", refuse(errno.EPERM))  # as if killed there
    with pytest.raises(PermissionError):
        files.put_aside(str(log), str(folder), "now")
    assert log.read_bytes() == (folder / "now-log").read_bytes() == CONTENT


def test_a_link_is_put_aside_itself(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "log").symlink_to(tmp_path / "real")
    kept = files.put_aside(str(tmp_path / "log"), str(tmp_path / "kept"), "now")
    assert os.readlink(kept) == str(tmp_path / "real")
    assert (tmp_path / "real").read_bytes() == b"x"


# --- which file it is -----------------------------------------------------------------------------
def test_a_stamp_tells_a_file_from_what_takes_its_name_or_is_done_to_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x")
    before = files.Stamp.of(path.stat())
    assert files.Stamp.of(path.stat()) == before
    (tmp_path / "new").write_bytes(b"x")
    os.utime(tmp_path / "new", ns=(before.mtime_ns, before.mtime_ns))
    os.replace(tmp_path / "new", path)
    replaced = files.Stamp.of(path.stat())
    assert replaced != before
    path.write_bytes(b"y")
    os.utime(path, ns=(before.mtime_ns + 1, before.mtime_ns + 1))
    assert files.Stamp.of(path.stat()) != replaced


# --- locks ----------------------------------------------------------------------------------------
HOLDS = """
import sys, time
from mle_client import files
with files.locked(sys.argv[1], timeout=5):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held_elsewhere(folder: Path) -> Iterator[int]:
    """A folder that another process has locked, and its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate()


def test_a_folder_is_locked_for_other_processes_and_the_error_says_who_has_it(
    tmp_path: Path,
) -> None:
    with held_elsewhere(tmp_path) as pid:
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(BlockingIOError) as caught, files.locked(str(tmp_path), timeout=0.1):
                pass
        finally:
            os.kill(pid, signal.SIGCONT)
        assert caught.value.filename == str(tmp_path)
        if os.path.exists("/proc/locks"):
            assert f"process {pid} has had it locked for 0.1 s" in str(caught.value)
    with files.locked(str(tmp_path), timeout=0):
        pass


def test_a_lock_keeps_out_threads_of_this_process_too(tmp_path: Path) -> None:
    with files.locked(str(tmp_path), timeout=0) as alone:
        assert alone
        with pytest.raises(BlockingIOError), files.locked(str(tmp_path), timeout=0):
            pass


def test_a_lock_is_released_whatever_happens_inside(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.locked(str(tmp_path), timeout=0):
        _ = 1 / 0
    with files.locked(str(tmp_path), timeout=0):
        pass


def test_a_child_that_was_forked_meanwhile_keeps_no_lock(tmp_path: Path) -> None:
    read, write = os.pipe()
    with files.locked(str(tmp_path), timeout=0):
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)  # until the parent has seen that the lock is gone
            os._exit(0)
    try:
        with files.locked(str(tmp_path), timeout=0):
            pass
    finally:
        os.close(read)
        os.close(write)
        os.waitpid(pid, 0)


def test_several_folders_are_locked_in_one_order_so_that_none_waits_for_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [str(tmp_path / name) for name in "abc"]
    for folder in folders:
        os.mkdir(folder)
    locked: list[str] = []
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        if how & fcntl.LOCK_EX:
            locked.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    orders = set()
    for given in itertools.permutations(folders):
        locked.clear()
        with files.locked(*given, timeout=0):
            orders.add(tuple(locked))
    assert len(orders) == 1
    assert sorted(*orders) == folders


def test_a_folder_by_two_names_is_locked_once(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with files.locked(str(tmp_path), str(tmp_path / "link"), f"{tmp_path}/.", timeout=0) as alone:
        assert alone


def test_where_there_are_no_locks_nobody_is_kept_out_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with (
        files.locked(str(tmp_path), timeout=0) as alone,
        files.locked(str(tmp_path), timeout=0) as too,
    ):
        assert not alone
        assert not too


# --- folders --------------------------------------------------------------------------------------
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


def test_the_way_to_a_folder_is_synced_from_the_top_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    files.sync_way(str(tmp_path / "a" / "b" / "c"), str(tmp_path))
    assert synced == [str(tmp_path / "a" / "b"), str(tmp_path / "a"), str(tmp_path)]

    synced.clear()
    files.sync_way(str(tmp_path))
    assert synced == [str(folder) for folder in tmp_path.parents]


def test_a_folder_that_may_not_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def sync(path: str) -> None:
        if path == str(tmp_path):
            raise PermissionError(path)
        synced.append(path)

    monkeypatch.setattr(files, "sync_folder", sync)
    files.sync_way(str(tmp_path / "a"))
    assert synced == [str(folder) for folder in tmp_path.parents]


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


def test_only_a_file_is_opened_that_another_process_has_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    os.close(files.open_left(str(tmp_path / "file"), os.O_RDWR))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/dev/fd"))
    for name in ("folder", "link", "pipe"):
        for flags in (os.O_RDONLY, os.O_RDWR):
            with pytest.raises(files.OddFile):
                files.open_left(str(tmp_path / name), flags)
    assert len(os.listdir("/dev/fd")) == before
    with pytest.raises(FileNotFoundError):
        files.open_left(str(tmp_path / "nowhere"))


# --- names that lead elsewhere --------------------------------------------------------------------
@pytest.fixture
def staged(tmp_path: Path) -> Path:
    path = tmp_path / "staged"
    path.write_text("new")
    return path


@pytest.mark.parametrize("link", ["root/exp", "root"])
def test_a_file_lands_within_a_folder_or_not_at_all(
    tmp_path: Path, staged: Path, link: str
) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "exp").mkdir(parents=True)
    (outside / "exp" / "log").write_text("theirs")
    if link != "root":
        root.mkdir()
    (tmp_path / link).symlink_to(tmp_path / link.replace("root", "outside"))
    path = root / "exp" / "log"
    with pytest.raises(PermissionError, match=rf"leads to {outside}/exp, out of {root}"):
        files.land(str(staged), str(path), str(tmp_path / "aside"), within=str(root))
    assert (outside / "exp" / "log").read_text() == "theirs"
    assert staged.exists()


def test_a_folder_that_is_replaced_by_a_link_gets_the_file_itself(
    tmp_path: Path, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if that happens in the moment before the renaming."""
    outside, exp, away = tmp_path / "outside", tmp_path / "root/exp", tmp_path / "root/away"
    outside.mkdir()
    exp.mkdir(parents=True)
    real = os.replace

    def replace(source: str, target: str) -> None:
        exp.rename(away)
        exp.symlink_to(outside)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    files.land(str(staged), str(exp / "log"), str(tmp_path / "aside"), within=str(tmp_path))
    assert os.listdir(outside) == []
    assert (away / "log").read_text() == "new"


def test_a_link_that_stays_within_is_followed(tmp_path: Path, staged: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    path = tmp_path / "link" / "log"
    files.land(str(staged), str(path), str(tmp_path / "aside"), within=str(tmp_path))
    assert (tmp_path / "real" / "log").read_text() == "new"
