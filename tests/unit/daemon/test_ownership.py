"""One daemon a root."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mle_client.discovery import python_environment
from mle_client.endpoint import STALE_AFTER_S, Endpoint
from mle_client.errors import RootLocked
from mle_daemon import ownership
from mle_daemon.ownership import Owner, RootLock

HOLDER = """
import sys
from mle_daemon.ownership import RootLock
RootLock(sys.argv[1]).acquire()
print("locked", flush=True)
input()
"""


@pytest.fixture
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the root until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=python_environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(ownership.fcntl, "flock", flock)
    monkeypatch.setattr(ownership, "_SETTLE_S", 0.01)


@pytest.fixture(params=["locks", "no locks"])
def either(request: pytest.FixtureRequest) -> None:
    """Both kinds of file system."""
    if request.param == "no locks":
        request.getfixturevalue("no_locks")


@pytest.mark.usefixtures("either")
class TestRootLock:
    def test_the_second_is_refused_and_told_who_is_first(self, root: Path) -> None:
        with RootLock(str(root)):
            with pytest.raises(RootLocked, match=f"the process {os.getpid()} on ") as refusal:
                RootLock(str(root)).acquire()
            assert refusal.value.root == str(root)
            with pytest.raises(RootLocked):  # the attempt before took nothing away
                RootLock(str(root)).acquire()

    def test_it_can_be_given_back(self, root: Path) -> None:
        for _ in range(2):
            with RootLock(str(root)):
                assert ownership.owner(str(root)) == Owner.this_process()
        assert ownership.owner(str(root)) is None

    def test_giving_back_twice_is_harmless(self, root: Path) -> None:
        lock = RootLock(str(root))
        lock.acquire()
        lock.release()
        with RootLock(str(root)):
            lock.release()
            assert ownership.owner(str(root)) is not None

    def test_a_daemon_that_lives_on_another_machine_keeps_its_root(self, root: Path) -> None:
        path = write_remote(root)
        with pytest.raises(RootLocked, match="on elsewhere, which was there less than 30 s ago"):
            RootLock(str(root)).acquire()
        long_ago = time.time() - STALE_AFTER_S - 1
        os.utime(path, (long_ago, long_ago))
        with RootLock(str(root)):  # and the refusal left nothing behind
            pass

    def test_a_root_that_cannot_be_written_to_is_refused(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ownership.os, "access", lambda *_: False)  # also where we are root
        with pytest.raises(PermissionError, match=r"cannot write to .*/\.mle .*belongs to you"):
            RootLock(str(root)).acquire()


def write_remote(root: Path) -> Path:
    """What a daemon on another machine says of itself."""
    endpoint = Endpoint.of_this_process(
        str(root), "ipc:///s", version="1", daemon_id="d", options={}
    )
    path = root / ".mle" / "daemon.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(dataclasses.replace(endpoint, host="elsewhere").to_json())
    return path


class TestWithLocks:
    def test_a_killed_owner_keeps_nothing(self, root: Path, holder: subprocess.Popen[str]) -> None:
        with pytest.raises(RootLocked, match=f"the process {holder.pid} "):
            RootLock(str(root)).acquire()
        found = ownership.owner(str(root))
        assert found is not None
        assert found.pid == holder.pid
        holder.kill()
        holder.wait()
        assert ownership.owner(str(root)) is None
        with RootLock(str(root)):
            pass

    def test_giving_back_takes_it_from_forked_children_too(self, root: Path) -> None:
        lock = RootLock(str(root))
        lock.acquire()
        inherited = os.dup(lock._descriptor)  # as a child has it between fork and exec
        lock.release()
        with RootLock(str(root)):
            pass
        os.close(inherited)

    def test_a_program_that_the_owner_runs_does_not_get_the_lock(self, root: Path) -> None:
        with RootLock(str(root)) as lock:
            assert not os.get_inheritable(lock._descriptor)

    def test_a_lock_file_that_says_nothing_still_locks(self, root: Path) -> None:
        with RootLock(str(root)):
            (root / ".mle" / "daemon.lock").write_text("")
            with pytest.raises(RootLocked, match="another process"):
                RootLock(str(root)).acquire()

    def test_a_full_disk_does_not_keep_a_daemon_out(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def pwrite(*_: object) -> int:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(ownership.os, "pwrite", pwrite)
        with RootLock(str(root)), pytest.raises(RootLocked):
            RootLock(str(root)).acquire()

    def test_another_users_lock_file_is_named(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(errno.EACCES, "no")

        ownership.state_dir(str(root))
        monkeypatch.setattr(ownership.os, "open", refuse)
        with pytest.raises(PermissionError, match=r"daemon\.lock: another user's daemon"):
            RootLock(str(root)).acquire()

    def test_an_error_of_the_disk_is_no_file_system_without_locks(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def flock(*_: object) -> None:
            raise OSError(errno.EIO, "broken")

        monkeypatch.setattr(ownership.fcntl, "flock", flock)
        with pytest.raises(OSError, match="broken"):
            RootLock(str(root)).acquire()


@pytest.mark.usefixtures("no_locks")
class TestWithoutLocks:
    def stand_in(self, root: Path, **changes: object) -> Path:
        """What an owner left."""
        path = root / ".mle" / "daemon.lock.pid"
        path.parent.mkdir(exist_ok=True)
        content = dataclasses.asdict(dataclasses.replace(Owner.this_process(), **changes))
        path.write_text(json.dumps(content))
        return path

    def test_a_killed_owner_keeps_nothing(self, root: Path) -> None:
        path = self.stand_in(root, started="1")
        with RootLock(str(root)):
            assert json.loads(path.read_text())["started"] == Owner.this_process().started
        assert not path.exists()

    def test_an_owner_that_has_not_signed_yet_is_waited_for(self, root: Path) -> None:
        path = self.stand_in(root)
        path.write_text("")
        with pytest.raises(RootLocked):
            RootLock(str(root)).acquire()
        self.long_ago(path)
        with RootLock(str(root)):
            pass

    def test_an_owner_on_another_machine_is_believed_only_while_it_shows_itself(
        self, root: Path
    ) -> None:
        path = self.stand_in(root, host="elsewhere")
        with pytest.raises(RootLocked, match="on elsewhere"):
            RootLock(str(root)).acquire()
        self.long_ago(path)
        remote = write_remote(root)
        with pytest.raises(RootLocked, match="less than 30 s ago"):
            RootLock(str(root)).acquire()
        self.long_ago(remote)
        with RootLock(str(root)):
            pass

    def test_of_two_that_replace_a_dead_owner_the_later_one_wins(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = self.stand_in(root, started="1")

        def meanwhile(_: float) -> None:
            path.unlink()
            self.stand_in(root, pid=1, started="2")

        monkeypatch.setattr(ownership.time, "sleep", meanwhile)
        with pytest.raises(RootLocked, match="the process 1 "):
            RootLock(str(root)).acquire()
        assert json.loads(path.read_text())["pid"] == 1

    def long_ago(self, path: Path) -> None:
        then = time.time() - STALE_AFTER_S - 1
        os.utime(path, (then, then))


def test_the_state_folder_lies_in_the_users_data_and_follows_the_umask(root: Path) -> None:
    before = os.umask(0o027)
    try:
        path = ownership.state_dir(str(root))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o750


def test_no_other_user_may_write_to_the_state_folder(root: Path) -> None:
    (root / ".mle").mkdir()
    (root / ".mle").chmod(0o777)
    assert stat.S_IMODE(os.stat(ownership.state_dir(str(root))).st_mode) == 0o755


def test_a_state_folder_elsewhere_may_be_linked_to_by_its_owner(root: Path, tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    (root / ".mle").symlink_to(tmp_path / "fast")
    ownership.state_dir(str(root))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: run the tests as root")
@pytest.mark.parametrize("theirs", [".mle", ".mle/staging", ".mle/journal", "link", "target"])
def test_what_another_user_made_for_us_is_not_used(root: Path, tmp_path: Path, theirs: str) -> None:
    """Else links in it would have us remove, or overwrite, files of our own elsewhere."""
    if theirs in ("link", "target"):
        (tmp_path / "ours").mkdir()
        (root / ".mle").symlink_to(tmp_path / "ours")
        path = root / ".mle" if theirs == "link" else tmp_path / "ours"
    else:
        (root / ".mle").mkdir()
        path = root / theirs
        if path != root / ".mle":
            path.symlink_to(tmp_path)
    os.chown(path, 61001, -1, follow_symlinks=False)
    with pytest.raises(PermissionError, match="belongs to user 61001"):
        ownership.state_dir(str(root))
    with pytest.raises(PermissionError, match="belongs to user 61001"):
        RootLock(str(root)).acquire()


def test_a_lock_whose_file_was_removed_is_lost_and_can_be_taken_again(root: Path) -> None:
    with RootLock(str(root)) as lock:
        assert not lock.is_lost
        shutil.rmtree(root)
        assert lock.is_lost
        lock.regain()
        assert not lock.is_lost
        with pytest.raises(RootLocked):
            RootLock(str(root)).acquire()


def test_a_lock_that_another_one_took_meanwhile_stays_lost(root: Path) -> None:
    with RootLock(str(root)) as lock:
        shutil.rmtree(root / ".mle")
        with RootLock(str(root)):
            assert lock.is_lost
            with pytest.raises(RootLocked):
                lock.regain()
            assert lock.is_lost
