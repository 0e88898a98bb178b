"""This user's folders and processes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mle_client import layout, runtime


@pytest.fixture
def no_choice(monkeypatch: pytest.MonkeyPatch, runtime_dir: Path) -> Path:
    """Nobody chose a runtime folder; the temporary folder and the shared memory are ours."""
    monkeypatch.delenv("MLE_RUNTIME_DIR")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    temporary, shared = runtime_dir / "tmp", runtime_dir / "shm"  # sockets want short paths
    temporary.mkdir()
    shared.mkdir()
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: str(temporary))
    monkeypatch.setattr(runtime, "SHARED_MEMORY", str(shared))
    return runtime_dir


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


class TestFolders:
    def test_a_chosen_folder_is_used_for_sockets_and_rings(self, runtime_dir: Path) -> None:
        assert runtime.socket_dir() == str(runtime_dir)
        assert runtime.ring_dir("/r") == f"{runtime_dir}/rings/{layout.root_digest('/r')}"

    def test_a_chosen_folder_is_made_whatever_the_umask(
        self, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLE_RUNTIME_DIR", str(runtime_dir / "a" / "b"))
        before = os.umask(0)
        try:
            assert mode(runtime.socket_dir()) == 0o700
        finally:
            os.umask(before)

    @pytest.mark.parametrize("ask", [runtime.socket_dir, lambda: runtime.ring_dir("/r")])
    def test_a_chosen_folder_open_to_others_is_refused(self, runtime_dir: Path, ask) -> None:
        runtime_dir.chmod(0o755)
        with pytest.raises(PermissionError, match=f"{runtime_dir} is open to others.*chmod 700"):
            ask()

    @pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away: run the tests as root")
    @pytest.mark.parametrize("ask", [runtime.socket_dir, lambda: runtime.ring_dir("/r")])
    def test_a_chosen_folder_inside_of_another_users_is_refused(
        self, runtime_dir: Path, ask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who could put another one in its place."""
        (runtime_dir / "theirs" / "ours").mkdir(mode=0o700, parents=True)
        os.chown(runtime_dir / "theirs", 61001, -1)
        (runtime_dir / "short").symlink_to(runtime_dir / "theirs")
        for name in ("theirs", "short"):
            monkeypatch.setenv("MLE_RUNTIME_DIR", str(runtime_dir / name / "ours"))
            with pytest.raises(PermissionError, match="theirs, which belongs to user 61001"):
                ask()
            assert runtime.socket_dirs() == []

    def test_a_relative_choice_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLE_RUNTIME_DIR", "somewhere")
        with pytest.raises(ValueError, match="absolute"):
            runtime.socket_dir()

    def test_a_folder_too_long_for_a_socket_is_refused(
        self, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLE_RUNTIME_DIR", str(runtime_dir / ("x" * 80)))
        with pytest.raises(PermissionError, match="too long"):
            runtime.socket_dir()

    def test_a_socket_fits_its_address_for_any_root(self) -> None:
        assert len(runtime.socket_path("/" + "deep/" * 800)) <= 103

    @pytest.mark.parametrize("trap", ["link", "file", "foreign"])
    def test_a_place_that_somebody_prepared_is_not_used(
        self, no_choice: Path, monkeypatch: pytest.MonkeyPatch, trap: str
    ) -> None:
        """In a folder that all may write to, another user can make ours first."""
        prepared = no_choice / "tmp" / f"mle-{os.geteuid()}"
        monkeypatch.setattr(runtime, "_plain_base", lambda: str(no_choice / "plain"))
        if trap == "link":
            (no_choice / "theirs").mkdir(mode=0o700)
            prepared.symlink_to(no_choice / "theirs")
        elif trap == "file":
            prepared.touch()
        else:
            prepared.mkdir(mode=0o700)
            us = os.geteuid() + 1
            monkeypatch.setattr(runtime.os, "geteuid", lambda: us)
            prepared.rename(no_choice / "tmp" / f"mle-{us}")
            with pytest.raises(PermissionError, match="belongs to user"):
                runtime.socket_dir()
            return
        assert runtime.socket_dir() == str(no_choice / "plain")
        assert str(prepared) not in runtime.socket_dirs()

    def test_sockets_are_found_wherever_their_process_put_them(
        self, no_choice: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        temporary = runtime.socket_dir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(no_choice))
        at_login = runtime.socket_dir()
        assert at_login != temporary
        assert {at_login, temporary} <= set(runtime.socket_dirs())

    def test_who_chooses_a_folder_meets_no_other(self, runtime_dir: Path) -> None:
        assert runtime.socket_dirs() == [str(runtime_dir)]

    def test_the_login_folder_is_preferred_for_sockets_if_it_is_ours(
        self, no_choice: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (no_choice / "run").mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(no_choice / "run"))
        assert runtime.socket_dir() == str(no_choice / "run" / "mle-daemon")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(no_choice / "not there"))
        assert runtime.socket_dir() == str(no_choice / "tmp" / f"mle-{os.geteuid()}")

    def test_rings_go_to_shared_memory_and_else_under_the_root(
        self, no_choice: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = str(no_choice)
        digest = layout.root_digest(root)
        in_memory = runtime.ring_dir(root)
        assert in_memory == f"{no_choice}/shm/mle-{os.geteuid()}/rings/{digest}"
        monkeypatch.setattr(runtime, "SHARED_MEMORY", str(no_choice / "none"))
        on_disk = runtime.ring_dir(root)
        assert on_disk == f"{no_choice}/.mle/rings/{digest}"
        assert mode(f"{no_choice}/.mle/rings") == 0o700

    def test_where_shared_memory_is_full_rings_go_under_the_root(
        self, no_choice: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = str(no_choice)
        under_root = f"{no_choice}/.mle/rings/{layout.root_digest(root)}"
        monkeypatch.setenv("MLE_RUNTIME_DIR", str(no_choice / "chosen"))
        assert runtime.ring_dir(root, under_root=True) == under_root
        assert under_root in runtime.ring_dirs(root)
        monkeypatch.delenv("MLE_RUNTIME_DIR")
        in_memory = runtime.ring_dir(root)
        os.rmdir(in_memory)
        real = os.mkdir

        def mkdir(path: str, mode: int = 0o777) -> None:
            if path == in_memory:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            real(path, mode)

        monkeypatch.setattr(os, "mkdir", mkdir)
        assert runtime.ring_dir(root) == under_root

    def test_rings_are_found_wherever_their_process_put_them(
        self, no_choice: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = str(no_choice)
        assert runtime.ring_dirs(root) == []
        in_memory = runtime.ring_dir(root)
        shared = runtime.SHARED_MEMORY
        monkeypatch.setattr(runtime, "SHARED_MEMORY", str(no_choice / "none"))
        on_disk = runtime.ring_dir(root)
        monkeypatch.setattr(runtime, "SHARED_MEMORY", shared)
        monkeypatch.setenv("MLE_RUNTIME_DIR", str(no_choice / "chosen"))
        chosen = runtime.ring_dir(root)
        assert runtime.ring_dirs(root) == [chosen, in_memory, on_disk]


class TestProcesses:
    def test_this_process_runs(self) -> None:
        started = runtime.process_started(os.getpid())
        assert started is not None
        assert runtime.is_running(os.getpid(), started, runtime.boot_id())

    def test_another_process_with_the_same_pid_is_not_it(self) -> None:
        assert not runtime.is_running(os.getpid(), "1", runtime.boot_id())

    def test_a_process_of_before_the_reboot_is_not_it(self) -> None:
        started = runtime.process_started(os.getpid()) or ""
        other = "00000000-0000-0000-0000-000000000000 " + runtime.boot_id().partition(" ")[2]
        assert not runtime.is_running(os.getpid(), started, other)
        assert runtime.sees_processes_of(runtime.host(), other)

    def test_a_process_that_only_waits_to_be_reaped_does_not_run(self) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            started = runtime.process_started(process.pid)
            process.stdin.write(b"\n")
            process.stdin.close()
            process.stdout.read()  # until it ends
            while runtime.process_started(process.pid) is not None:
                pass
            assert started
            assert os.path.exists(f"/proc/{process.pid}")

    def test_a_name_with_parentheses_is_read_over(self) -> None:
        """Field 22 counts from the last parenthesis: a process may call itself ') Z 1'."""
        code = "open('/proc/self/comm', 'w').write(') Z (1'); print(flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            started = runtime.process_started(process.pid)
            process.communicate(b"\n")
        assert started is not None
        assert int(started) >= int(runtime.process_started(os.getpid()) or 0)

    def test_another_container_of_the_same_name_is_another_machine(self) -> None:
        boot = runtime.boot_id().partition(" ")[0]
        assert not runtime.sees_processes_of(runtime.host(), f"{boot} pid:[1]")
        assert not runtime.sees_processes_of("elsewhere", runtime.boot_id())

    def test_without_proc_a_signal_tells(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_proc(path: str, *rest: object) -> object:
            raise FileNotFoundError(path)

        monkeypatch.setattr("builtins.open", no_proc)
        monkeypatch.setattr(runtime.os.path, "exists", lambda path: False)
        assert runtime.process_started(os.getpid()) == ""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runtime.os, "kill", raiser(ProcessLookupError))
            assert runtime.process_started(os.getpid()) is None
            patch.setattr(runtime.os, "kill", raiser(PermissionError))
            assert runtime.process_started(1) == ""


def raiser(kind: type[Exception]):
    def raise_it(*_: object) -> None:
        raise kind

    return raise_it
