"""Bringing a daemon up, with something else in its place."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mle_daemon
from mle_client.endpoint import Endpoint, write_endpoint
from mle_client.errors import DaemonStartFailed, RootLocked
from mle_daemon import launch
from mle_daemon.config import DaemonConfig
from mle_daemon.ownership import RootLock

READY = "import os, sys; os.write(int(sys.argv[4]), {line!r}.encode() + b'\\n'); "


def endpoint(root: Path, **changes: Any) -> Endpoint:
    found = Endpoint.of_this_process(str(root), "ipc:///s", version="1", daemon_id="d", options={})
    return dataclasses.replace(found, **changes)


class TestEnsureRunning:
    @pytest.fixture
    def program(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        def use(code: str) -> None:
            monkeypatch.setattr(
                launch, "python_command", lambda *words: [sys.executable, "-c", code, *words]
            )

        return use

    def start(self, root: Path, **options: Any) -> tuple[Endpoint, bool]:
        return launch.ensure_running(DaemonConfig(str(root), **options))

    def test_it_returns_what_the_daemon_says_when_it_is_ready(
        self, root: Path, program: Any
    ) -> None:
        program(READY.format(line=endpoint(root).to_json()))
        assert self.start(root) == (endpoint(root), False)

    def test_the_daemon_is_detached(self, root: Path, program: Any) -> None:
        """In its own session, with no terminal to write to and no folder that it keeps busy."""
        program(
            READY.format(line=endpoint(root).to_json())
            + f"open({str(root / 'says')!r}, 'w').write(repr([os.getsid(0) == os.getpid(),"
            "*(os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)), os.getcwd()]) + '\\n')"
        )
        self.start(root)
        while not (root / "says").exists() or not (root / "says").read_text().endswith("\n"):
            time.sleep(0.01)
        null = "/dev/null"
        error = f"{root}/.mle/daemon.err"
        assert (root / "says").read_text() == f"{[True, null, null, error, '/']}\n"

    def test_options_are_passed_on(self, root: Path, program: Any) -> None:
        program("import sys; sys.exit(' '.join(sys.argv[5:]))")
        with pytest.raises(DaemonStartFailed) as failure:
            self.start(
                root,
                endpoint="tcp://127.0.0.1:*",
                idle_timeout_s=2.5,
                merge="every",
                merge_every_s=90.0,
                keep_seed_logs=True,
                keys="/keys",
            )
        words = f"--root {root} --endpoint tcp://127.0.0.1:* --keys /keys --idle-timeout 2.5"
        merging = "--merge every=90 --merge-settle 30.0 --keep-seed-logs"
        assert failure.value.why == f"{words} {merging}"

    def test_its_last_words_and_exit_status_are_told(self, root: Path, program: Any) -> None:
        program("import sys; print('the journal is damaged', file=sys.stderr); sys.exit(6)")
        with pytest.raises(DaemonStartFailed) as failure:
            self.start(root)
        assert failure.value.why == "the journal is damaged"
        assert failure.value.exit_code == 6

    def test_words_that_find_no_room_in_the_file_come_through_the_pipe(
        self, root: Path, program: Any
    ) -> None:
        program("import os, sys; os.write(int(sys.argv[4]), b'mle-daemon: disk full'); sys.exit(1)")
        with pytest.raises(DaemonStartFailed) as failure:
            self.start(root)
        assert failure.value.why == "mle-daemon: disk full"

    def test_words_of_an_earlier_start_are_not_told_again(self, root: Path, program: Any) -> None:
        for words in ("first", "second"):
            program(f"import sys; sys.exit({words!r})")
            with pytest.raises(DaemonStartFailed, match=f": {words}$"):
                self.start(root)

    def test_the_signal_that_ended_it_is_named(self, root: Path, program: Any) -> None:
        program("import os; os.kill(os.getpid(), 9)")
        with pytest.raises(DaemonStartFailed, match="SIGKILL") as failure:
            self.start(root)
        assert failure.value.exit_code == 1

    def test_half_a_line_is_no_sign_of_success(self, root: Path, program: Any) -> None:
        program("import os, sys; os.write(int(sys.argv[4]), b'{')")
        with pytest.raises(DaemonStartFailed):
            self.start(root)

    def test_a_long_recovery_is_waited_for_and_told(
        self,
        root: Path,
        program: Any,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(launch, "_STILL_WAITING_S", 0.1)
        program("import time; time.sleep(0.5); " + READY.format(line=endpoint(root).to_json()))
        assert self.start(root) == (endpoint(root), False)
        assert f"{root}/.mle/daemon.log" in capsys.readouterr().err

    def test_a_live_daemon_is_returned_and_none_is_started(self, root: Path, program: Any) -> None:
        program("import sys; sys.exit('started')")
        (root / ".mle").mkdir()
        write_endpoint(endpoint(root))
        assert self.start(root) == (endpoint(root), True)

    def test_a_daemon_that_is_leaving_is_waited_for(self, root: Path, program: Any) -> None:
        program(READY.format(line=endpoint(root).to_json()))
        lock = RootLock(str(root))
        lock.acquire()
        write_endpoint(endpoint(root).stopped())
        timer = threading.Timer(0.3, lock.release)
        timer.start()
        began = time.monotonic()
        assert self.start(root) == (endpoint(root), False)
        assert time.monotonic() - began >= 0.25
        timer.join()

    def test_a_daemon_that_is_coming_up_is_waited_for(self, root: Path, program: Any) -> None:
        program("import sys; sys.exit('started')")
        with RootLock(str(root)):
            timer = threading.Timer(0.3, write_endpoint, [endpoint(root)])
            timer.start()
            assert self.start(root) == (endpoint(root), True)
            timer.join()

    def test_a_process_that_holds_the_root_and_takes_nobody_is_named(
        self, root: Path, program: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(launch, "_OTHER_S", 0.1)
        with RootLock(str(root)), pytest.raises(RootLocked, match=rf"{os.getpid()} .*no clients"):
            self.start(root)

    def test_the_loser_of_a_race_returns_the_winner(self, root: Path, program: Any) -> None:
        """Another start, that took no notice of the start lock, was quicker."""
        winner = root / ".mle" / "daemon.json"
        program(
            f"import sys; open({str(winner)!r}, 'w').write({endpoint(root).to_json()!r});"
            "sys.exit(5)"
        )
        assert self.start(root) == (endpoint(root), True)

    def test_a_race_that_has_no_winner_ends(self, root: Path, program: Any) -> None:
        program("import sys; print('locked', file=sys.stderr); sys.exit(5)")
        with pytest.raises(DaemonStartFailed, match="locked") as failure:
            self.start(root)
        assert failure.value.exit_code == 5

    def test_starts_wait_for_one_another(self, root: Path, program: Any) -> None:
        program(READY.format(line=endpoint(root).to_json()))
        (root / ".mle").mkdir()
        with open(root / ".mle" / "start.lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            starter = threading.Thread(target=self.start, args=(root,))
            starter.start()
            starter.join(0.2)
            assert starter.is_alive()
        starter.join(10)
        assert not starter.is_alive()

    def test_a_file_system_without_locks_is_no_obstacle(
        self, root: Path, program: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def flock(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(launch.fcntl, "flock", flock)
        program(READY.format(line=endpoint(root).to_json()))
        assert self.start(root) == (endpoint(root), False)


class TestRunHere:
    @pytest.fixture(autouse=True)
    def tidy(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Undo what a daemon does to its whole process."""
        monkeypatch.setattr(launch.faulthandler, "enable", lambda: None)
        monkeypatch.setattr(logging, "raiseExceptions", True)
        logger = logging.getLogger()
        handlers, level = logger.handlers[:], logger.level
        yield
        logging.captureWarnings(False)
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.handlers, logger.level = handlers, level

    @pytest.fixture
    def manager(
        self, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Callable[[], list[bytes]]]:
        """A service manager.  Returns: what reads what it was told."""
        path = str(runtime_dir / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(path)
            receiver.setblocking(False)
            monkeypatch.setenv("NOTIFY_SOCKET", path)

            def told() -> list[bytes]:
                found = []
                with contextlib.suppress(BlockingIOError):
                    while True:
                        found.append(receiver.recv(100))
                return found

            yield told

    def be(self, root: Path, monkeypatch: pytest.MonkeyPatch, run: Any, **options: Any) -> int:
        """Have a function be the daemon."""
        fake = SimpleNamespace(run=run)
        monkeypatch.setitem(sys.modules, "mle_daemon.daemon", fake)
        monkeypatch.setattr(mle_daemon, "daemon", fake, raising=False)
        options = {"announce": lambda _: None, "ready_fd": None, **options}
        before = gc.get_threshold()
        try:
            return launch.run_here(DaemonConfig(str(root)), **options)
        finally:
            gc.set_threshold(*before)

    def test_thousands_of_new_objects_have_nobody_look_for_cycles(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A piece of ticks with text is as many lists, none of which is in one."""
        found: list[int] = []

        def run(config: DaemonConfig, on_ready: Any, detached: bool) -> int:
            before = gc.get_stats()[0]["collections"]
            made = [[number] for number in range(20_000)]
            found.append(gc.get_stats()[0]["collections"] - before)
            return len(made) - 20_000

        assert self.be(root, monkeypatch, run) == 0
        assert found == [0]

    def test_in_the_foreground_it_announces_and_tells_the_service_manager(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, manager: Callable[[], list[bytes]]
    ) -> None:
        announced: list[Endpoint] = []

        def run(config: DaemonConfig, on_ready: Any, detached: bool) -> int:
            assert not detached
            assert manager() == []
            on_ready(endpoint(root))
            assert manager() == [b"READY=1"]
            return 3

        assert self.be(root, monkeypatch, run, announce=announced.append) == 3
        assert announced == [endpoint(root)]
        assert manager() == [b"STOPPING=1"]

    def test_in_the_background_it_tells_who_waits_and_nobody_else(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, manager: Callable[[], list[bytes]]
    ) -> None:
        """The service manager asked for the trainer, not for a daemon that the trainer started."""
        read_end, write_end = os.pipe()

        def run(config: DaemonConfig, on_ready: Any, detached: bool) -> int:
            assert detached
            on_ready(endpoint(root))
            return 0

        with open(read_end, encoding="utf-8") as pipe:
            self.be(root, monkeypatch, run, ready_fd=write_end)
            assert pipe.read() == endpoint(root).to_json() + "\n"  # and it is closed
        assert manager() == []

    @pytest.mark.parametrize("error", [OSError("no room,\nbuy a disk"), RootLocked("/r", "pid 7")])
    def test_why_it_ends_is_told_to_who_waits(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        """In one line without an end, for its end would say that clients may come."""
        read_end, write_end = os.pipe()

        def run(*_: object) -> int:
            raise error

        with open(read_end, encoding="utf-8") as pipe:
            with pytest.raises(type(error)):
                self.be(root, monkeypatch, run, ready_fd=write_end)
            assert pipe.read() == "mle-daemon: " + str(error).replace("\n", " ")

    def test_an_end_after_it_was_ready_is_told_to_nobody(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The pipe's descriptor may be something else by then."""
        read_end, write_end = os.pipe()
        reused: list[Any] = []

        def run(config: DaemonConfig, on_ready: Any, detached: bool) -> int:
            on_ready(endpoint(root))
            reused.append((root / "journal").open("wb"))
            assert reused[0].fileno() == write_end
            raise OSError("disk full")

        with open(read_end, encoding="utf-8") as pipe:
            with pytest.raises(OSError, match="disk full"):
                self.be(root, monkeypatch, run, ready_fd=write_end)
            assert pipe.read() == endpoint(root).to_json() + "\n"
        reused[0].close()
        assert (root / "journal").read_bytes() == b""

    def test_it_stays_when_nobody_waits_any_more(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)

        def run(config: DaemonConfig, on_ready: Any, detached: bool) -> int:
            on_ready(endpoint(root))
            return 0

        assert self.be(root, monkeypatch, run, ready_fd=write_end) == 0

    def test_signals_that_the_starting_thread_blocked_come_through(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(*_: object) -> int:
            return signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])

        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            assert not self.be(root, monkeypatch, run)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @pytest.mark.parametrize("detached", [True, False])
    def test_the_log_goes_to_its_file_and_in_the_foreground_also_to_stderr(
        self,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        detached: bool,
    ) -> None:
        def run(*_: object) -> int:
            logging.getLogger("mle_daemon.x").info("a line")
            return 0

        self.be(root, monkeypatch, run, ready_fd=99 if detached else None)
        assert "INFO mle_daemon.x: a line" in (root / ".mle" / "daemon.log").read_text()
        assert ("a line" in capsys.readouterr().err) is not detached

    def test_the_log_does_not_grow_without_end(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(launch, "_LOG_BYTES", 1000)

        def run(*_: object) -> int:
            for _ in range(200):
                logging.getLogger("mle_daemon").info("x" * 100)
            return 0

        self.be(root, monkeypatch, run, ready_fd=99)
        logs = sorted((root / ".mle").glob("daemon.log*"))
        assert [path.name for path in logs] == ["daemon.log", "daemon.log.1", "daemon.log.2"]
        assert all(path.stat().st_size <= 1000 for path in logs)

    def test_an_error_is_in_the_log_with_where_it_came_from(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(*_: object) -> int:
            raise RuntimeError("oh")

        with pytest.raises(RuntimeError, match="oh"):
            self.be(root, monkeypatch, run)
        text = (root / ".mle" / "daemon.log").read_text()
        assert "RuntimeError: oh" in text
        assert "in run" in text

    def test_the_log_of_another_daemon_is_left_alone(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(*_: object) -> int:
            raise RootLocked(str(root), "pid 7")

        with pytest.raises(RootLocked):
            self.be(root, monkeypatch, run)
        assert not (root / ".mle" / "daemon.log").exists()


class TestNotifySystemd:
    def test_an_abstract_socket_is_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        name = f"mle-test-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind("\0" + name)
            monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
            launch.notify_systemd("READY=1")
            assert receiver.recv(100) == b"READY=1"

    @pytest.mark.parametrize("address", ["", "/nobody/listens", "@mle-nobody"])
    def test_nobody_there_is_no_error(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        launch.notify_systemd("READY=1")
