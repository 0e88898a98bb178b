"""The command line with real daemons in real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mle_client import MLELogger, control, discovery, layout
from mle_client.endpoint import READY, STOPPED, Endpoint, is_running, live_daemon, read_endpoint
from mle_client.errors import DaemonStartFailed

STARTS = 50


def cli(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        discovery.python_command(*map(str, words)),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=discovery.python_environment(),
        timeout=30,
        **options,
    )


def wait_until(true: Callable[[], object], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


@pytest.fixture
def root(root: Path) -> Iterator[Path]:
    """A root whose daemon is gone at the end, whatever the test did with it."""
    yield root
    daemon = live_daemon(str(root))
    if daemon is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon.pid, signal.SIGCONT)
            os.kill(daemon.pid, signal.SIGKILL)
        wait_until(lambda: not is_running(daemon))


@pytest.fixture
def daemon(root: Path) -> Endpoint:
    """A daemon in the background."""
    done = cli("start", "--root", root, "--json")
    assert done.returncode == 0, done.stderr
    return Endpoint.from_json(done.stdout)


@pytest.fixture
def foreground(root: Path) -> Iterator[subprocess.Popen[str]]:
    """A daemon in the foreground, having printed its pid."""
    with subprocess.Popen(
        discovery.python_command("start", "--root", str(root), "--foreground"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=discovery.python_environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"pid       {process.pid}\n"
        yield process
        process.kill()


def log_ticks(root: Path, number: int) -> MLELogger:
    """A logger under the root that has sent some ticks and is open."""
    log = MLELogger(
        time_to_track=["step"],
        what_to_track=["loss"],
        experiment_dir=str(root / "run"),
        seed_id="1",
    )
    for step in range(number):
        log.update({"step": step}, {"loss": 0.5})
    return log


def runs(root: Path) -> list[dict[str, Any]]:
    """What the daemon says of its runs."""
    reports: list[dict[str, Any]] = control.status(str(root))["runs"]
    return reports


def published(root: Path) -> int:
    """Ticks that the daemon says are in log files."""
    return sum(run["ticks"]["published"] for run in runs(root))


class TestStart:
    def test_clients_may_come_when_it_returns(self, root: Path) -> None:
        done = cli("start", "--root", root)
        assert done.returncode == 0
        status = cli("status", "--root", root, "--json")
        assert status.returncode == 0
        report = json.loads(status.stdout)
        assert done.stdout.split() == [
            *("pid", str(report["pid"])),
            *("endpoint", report["endpoint"]),
            *("root", str(root)),
        ]
        assert done.stderr == ""

    def test_a_second_start_says_the_same(self, root: Path, daemon: Endpoint) -> None:
        done = cli("start", "--root", root, "--json")
        assert done.returncode == 0
        assert Endpoint.from_json(done.stdout) == daemon
        assert "already" in done.stderr

    def test_it_makes_the_root(self, root: Path) -> None:
        done = cli("start", "--root", root / "a" / "b", "--json", "--idle-timeout", "0.5")
        assert done.returncode == 0
        daemon = Endpoint.from_json(done.stdout)
        assert daemon.root == str(root / "a" / "b")
        wait_until(lambda: not is_running(daemon))

    def test_fifty_starts_at_once_make_one_daemon(self, root: Path) -> None:
        processes = [
            subprocess.Popen(
                discovery.python_command("start", "--root", str(root), "--json"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=discovery.python_environment(),
            )
            for _ in range(STARTS)
        ]
        outputs = [process.communicate(timeout=60) for process in processes]
        assert [process.returncode for process in processes] == [0] * STARTS
        assert {Endpoint.from_json(out).pid for out, _ in outputs} == {live(root).pid}
        assert sum(b"already" in err for _, err in outputs) == STARTS - 1
        assert daemons_of(root) == [live(root).pid]

    def test_a_killed_daemon_is_replaced(self, root: Path, daemon: Endpoint) -> None:
        os.kill(daemon.pid, signal.SIGKILL)
        done = cli("start", "--root", root, "--json")
        assert done.returncode == 0
        assert Endpoint.from_json(done.stdout).pid != daemon.pid
        assert cli("status", "--root", root).returncode == 0

    def test_a_free_tcp_port(self, root: Path) -> None:
        done = cli("start", "--root", root, "--json", "--endpoint", "tcp://127.0.0.1:0")
        address = Endpoint.from_json(done.stdout).endpoint
        assert address.startswith("tcp://127.0.0.1:")
        assert int(address.rpartition(":")[2]) > 0
        assert control.status(str(root))["endpoint"] == address

    def test_a_port_that_is_taken_is_told(self, root: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            done = cli("start", "--root", root, "--endpoint", address)
        assert done.returncode == 1
        assert done.stdout == ""
        assert address in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_journal_of_somebody_else_is_told(self, root: Path) -> None:
        journal = root / ".mle" / "journal"
        journal.mkdir(parents=True)
        (journal / "00000001.mlej").write_bytes(b"not a journal of ours" * 100)
        done = cli("start", "--root", root)
        assert done.returncode == 6
        assert "00000001.mlej" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_root_that_is_a_file_is_told(self, root: Path) -> None:
        (root / "file").touch()
        done = cli("start", "--root", root / "file")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr


class TestInTheForeground:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
    def test_a_signal_drains_and_ends_it_well(
        self, root: Path, foreground: subprocess.Popen[str], number: signal.Signals
    ) -> None:
        log = log_ticks(root, 10)
        wait_until(lambda: control.status(str(root))["runs"])
        foreground.send_signal(number)
        assert foreground.wait(20) == 0
        assert (root / "run" / "logs" / "log_1.hdf5").exists()
        found = read_endpoint(str(root))
        assert found is not None
        assert found.state == STOPPED
        log.close()

    def test_it_logs_to_stderr_too(self, root: Path, foreground: subprocess.Popen[str]) -> None:
        foreground.terminate()
        _, err = foreground.communicate(timeout=20)
        assert "ready" in err
        assert err == (root / ".mle" / "daemon.log").read_text()

    def test_another_one_finds_the_root_locked(
        self, root: Path, foreground: subprocess.Popen[str]
    ) -> None:
        done = cli("start", "--root", root, "--foreground")
        assert done.returncode == 5
        assert str(foreground.pid) in done.stderr
        assert "Traceback" not in done.stderr

    def test_the_service_manager_is_told_when_clients_may_come(
        self, root: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(runtime_dir / "notify"))
            manager.settimeout(20)
            monkeypatch.setenv("NOTIFY_SOCKET", str(runtime_dir / "notify"))
            with subprocess.Popen(
                discovery.python_command("start", "--root", str(root), "--foreground"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=discovery.python_environment(),
            ) as process:
                assert manager.recv(100) == b"READY=1"
                assert control.status(str(root))["pid"] == process.pid
                process.terminate()
                assert manager.recv(100) == b"STOPPING=1"


class TestInTheBackground:
    def test_control_c_is_not_meant_for_it(self, root: Path, daemon: Endpoint) -> None:
        os.kill(daemon.pid, signal.SIGINT)
        time.sleep(0.2)
        assert control.status(str(root))["pid"] == daemon.pid

    def test_sigusr1_publishes_now(self, root: Path, daemon: Endpoint) -> None:
        log = log_ticks(root, 10)
        assert log.flush(10)
        log.update({"step": 10}, {"loss": 0.5})

        def received() -> int:
            (run,) = control.status(str(root))["runs"]
            return int(run["ticks"]["received"])

        wait_until(lambda: received() == 11)
        os.kill(daemon.pid, signal.SIGUSR1)
        wait_until(lambda: published(root) == 11, 5)
        log.close()

    def test_sigterm_ends_it(self, root: Path, daemon: Endpoint) -> None:
        os.kill(daemon.pid, signal.SIGTERM)
        wait_until(lambda: not is_running(daemon))
        assert cli("status", "--root", root).returncode == 4


class TestStatus:
    def test_runs_are_shown(self, root: Path, daemon: Endpoint) -> None:
        log = log_ticks(root, 100)
        assert log.flush(10)
        (run,) = json.loads(cli("status", "--root", root, "--json").stdout)["runs"]
        assert run["state"] == "running"
        counts = {"received": 100, "journaled": 100, "published": 100, "lost": 0}
        assert run["ticks"] == counts
        text = cli("status", "--root", root).stdout
        assert "run" in text.splitlines()[-1].split()
        log.close()

    def test_without_a_daemon(self, root: Path) -> None:
        done = cli("status", "--root", root)
        assert (done.returncode, done.stdout) == (4, "")

    def test_of_a_daemon_that_hangs(self, root: Path, daemon: Endpoint) -> None:
        os.kill(daemon.pid, signal.SIGSTOP)
        done = cli("status", "--root", root, "--timeout", "0.5")
        assert done.returncode == 1
        assert f"process {daemon.pid} runs, but" in done.stderr


class TestStop:
    def test_all_is_on_disk_and_the_process_is_gone(self, root: Path, daemon: Endpoint) -> None:
        log = log_ticks(root, 100)
        wait_until(lambda: control.status(str(root))["runs"])
        done = cli("stop", "--root", root)
        assert (done.returncode, done.stdout) == (0, "")
        assert not is_running(daemon)
        assert (root / "run" / "logs" / "log_1.hdf5").exists()
        log.close()

    def test_the_next_start_needs_no_wait(self, root: Path, daemon: Endpoint) -> None:
        assert cli("stop", "--root", root).returncode == 0
        assert cli("start", "--root", root).returncode == 0
        assert live(root).pid != daemon.pid

    def test_without_a_daemon(self, root: Path) -> None:
        assert cli("stop", "--root", root).returncode == 4

    def test_of_a_daemon_that_hangs(self, root: Path, daemon: Endpoint) -> None:
        os.kill(daemon.pid, signal.SIGSTOP)
        done = cli("stop", "--root", root, "--timeout", "0.5")
        assert done.returncode == 1
        assert str(daemon.pid) in done.stderr


class TestPlot:
    def test_a_run_that_was_never_published_is_drawn_up_to_its_last_tick(
        self, root: Path, daemon: Endpoint, tmp_path: Path
    ) -> None:
        log = log_ticks(root, 100)
        wait_until(lambda: sum(run["ticks"]["received"] for run in runs(root)) == 100)
        done = cli("plot", "--root", root, "loss", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "loss.png\n", "")
        assert published(root) == 100
        assert (tmp_path / "loss.png").stat().st_size > 10_000
        log.close()

    def test_neither_a_daemon_nor_a_display_is_needed(
        self, root: Path, daemon: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log_ticks(root, 10).close()
        cli("stop", "--root", root)
        monkeypatch.setenv("MPLBACKEND", "tkagg")
        monkeypatch.delenv("DISPLAY", raising=False)
        done = cli("plot", "--root", root / "run", "loss", "-o", tmp_path / "x.svg")
        assert (done.returncode, done.stdout) == (0, f"{tmp_path}/x.svg\n")
        assert (tmp_path / "x.svg").read_bytes().startswith(b"<?xml")


class TestStartDaemon:
    """As a logger does it."""

    def test_it_is_no_child_and_leaves_by_itself(self, root: Path) -> None:
        daemon = discovery.start_daemon(str(root), idle_timeout=0.5)
        process = psutil.Process(daemon.pid)
        assert process not in psutil.Process().children(recursive=True)
        assert os.getsid(daemon.pid) != os.getsid(0)
        assert daemon.options["idle_timeout"] == 0.5
        process.wait(10)
        assert live_daemon(str(root)) is None

    def test_a_live_one_is_returned(self, root: Path, daemon: Endpoint) -> None:
        assert discovery.start_daemon(str(root), idle_timeout=0.5) == daemon

    def test_from_any_folder_without_being_installed(
        self, root: Path, tmp_path: Path, daemon: Endpoint
    ) -> None:
        """A module in the current folder that is called as ours, or Python's, is no trap."""
        for name in ("logging.py", "mle_daemon.py"):
            (tmp_path / name).write_text("raise SystemExit('trapped')")
        source = str(Path(discovery.__file__).parents[1])
        code = (
            f"import sys; sys.path.insert(0, {source!r});"
            "from mle_client.discovery import start_daemon;"
            f"print(start_daemon({str(root)!r}, idle_timeout=None).pid)"
        )
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.stdout == f"{daemon.pid}\n", done.stderr

    def test_a_failure_carries_the_daemons_words(self, root: Path) -> None:
        journal = root / ".mle" / "journal"
        journal.mkdir(parents=True)
        (journal / "00000001.mlej").write_bytes(b"not a journal of ours" * 100)
        with pytest.raises(DaemonStartFailed, match=r"00000001\.mlej"):
            discovery.start_daemon(str(root), idle_timeout=None)


def live(root: Path) -> Endpoint:
    found = live_daemon(str(root))
    assert found is not None
    assert found.state == READY
    return found


def daemons_of(root: Path) -> list[int]:
    """Pids of the processes that are daemons of a root."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "--ready-fd" in words and str(root) in words:
                found.append(process.pid)
    return found


def test_the_log_file_is_where_the_documentation_says(root: Path, daemon: Endpoint) -> None:
    assert Path(layout.state_path(str(root), "daemon.log")).read_text().count("ready") == 1
