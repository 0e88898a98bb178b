"""Requests to a daemon, with a scripted one at the other end of a real socket."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mle_client import control, discovery, runtime
from mle_client import messages as m
from mle_client.endpoint import Endpoint, read_endpoint, write_endpoint
from mle_client.errors import DaemonSilent, DaemonUnavailable, ProtocolError, VersionMismatch
from tests.fake_daemon import FakeDaemon, Script

WELCOME = m.Welcome(m.PROTOCOL_VERSION, "d", "/r", 1, "")


def polite(message: m.Message) -> list[Any]:
    """Answers everything as a healthy daemon does, after some other news."""
    match message:
        case m.Hello():
            return [WELCOME]
        case m.AskStatus(token):
            return [m.Leaving(), m.Done(token + 1, "another's"), m.Status(token, {"pid": 7})]
        case m.Publish(token) | m.Stop(token):
            return [m.Done(token, "")]
    return []


@pytest.fixture
def serve(runtime_dir: Path) -> Iterator[Callable[..., FakeDaemon]]:
    """Make a root's daemon follow a script, as this process or as the one given."""
    with contextlib.ExitStack() as stack:

        def start(root: Path, script: Script, **changes: Any) -> FakeDaemon:
            address = f"ipc://{runtime.socket_path(str(root))}"
            fake = FakeDaemon(address, script)
            stack.callback(fake.close)
            (root / ".mle").mkdir(parents=True)
            endpoint = Endpoint.of_this_process(
                str(root), address, version="1", daemon_id="d", options={}
            )
            write_endpoint(dataclasses.replace(endpoint, **changes))
            return fake

        yield start


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Some process that lives until it is told to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as some:
        yield some
        some.kill()


def as_process(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    return {"pid": process.pid, "started": runtime.process_started(process.pid)}


class TestAsk:
    def ask(self, script: Script, timeout: float = 5.0, **options: Any) -> Any:
        address = f"ipc://{runtime.socket_dir()}/fake.sock"
        fake = FakeDaemon(address, script)
        try:
            return control.ask(address, m.AskStatus(1), timeout, **options)
        finally:
            fake.close()

    def test_the_answer_is_the_one_to_this_request(self) -> None:
        assert self.ask(polite) == m.Status(1, {"pid": 7})

    def test_another_version_is_told_before_anything_is_asked(self) -> None:
        with pytest.raises(VersionMismatch) as failure:
            self.ask(lambda _: [dataclasses.replace(WELCOME, version=99)])
        assert failure.value.theirs == 99

    def test_a_refusal_is_told(self) -> None:
        with pytest.raises(ProtocolError, match="no thanks"):
            self.ask(lambda _: [m.Refused(b"", "no thanks")])

    def test_garbage_is_an_error(self) -> None:
        with pytest.raises(ProtocolError):
            self.ask(lambda _: [b"\xc1"])

    @pytest.mark.parametrize("answers", [[], [WELCOME]], ids=["silent", "welcoming"])
    def test_no_answer_ends_in_time(self, answers: list[Any]) -> None:
        began = time.monotonic()
        with pytest.raises(DaemonUnavailable, match=r"no answer within 0\.3 s"):
            self.ask(lambda _: answers, 0.3)
        assert time.monotonic() - began < 2

    def test_nobody_at_the_address_ends_in_time(self) -> None:
        with pytest.raises(DaemonUnavailable, match=r"no answer within 0\.3 s"):
            control.ask("ipc:///nobody/here", m.AskStatus(1), 0.3)

    def test_the_wait_ends_when_the_daemon_is_gone(self) -> None:
        began = time.monotonic()
        with pytest.raises(DaemonUnavailable):
            self.ask(lambda _: [], 30.0, is_there=lambda: False)
        assert time.monotonic() - began < 5

    def test_a_daemon_that_leaves_is_asked_all_the_same_and_once(self) -> None:
        asked: list[m.Message] = []

        def leaving(message: m.Message) -> list[Any]:
            asked.append(message)
            if isinstance(message, m.Hello):
                return [m.Leaving(), m.Leaving()]
            return [m.Status(1, {"pid": 7})]

        assert self.ask(leaving) == m.Status(1, {"pid": 7})
        assert asked[1:] == [m.AskStatus(1)]

    def test_an_impossible_address_is_no_daemon(self) -> None:
        with pytest.raises(DaemonUnavailable):
            control.ask("tcp://127.0.0.1", m.AskStatus(1), 1.0)


class TestStatus:
    def test_it_is_the_daemons_report(self, root: Path, serve: Any) -> None:
        serve(root, polite)
        assert control.status(str(root)) == {"pid": 7}

    def test_without_a_daemon(self, root: Path) -> None:
        with pytest.raises(DaemonUnavailable, match=r"none runs there$"):
            control.status(str(root))

    def test_after_a_kill_it_says_what_to_do(self, root: Path, serve: Any) -> None:
        serve(root, polite, started="1")
        with pytest.raises(DaemonUnavailable, match="was killed, and starting one"):
            control.status(str(root))

    def test_a_full_disk_is_told_where_no_daemon_can_be_started(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(root)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=512))
        with pytest.raises(DaemonUnavailable, match=f"{root} has 512 bytes free, too few to start"):
            control.status(str(root))

    def test_of_a_silent_daemon_the_pid_is_told(self, root: Path, serve: Any) -> None:
        serve(root, lambda _: [])
        with pytest.raises(DaemonSilent, match=str(os.getpid())):
            control.status(str(root), 0.3)

    def test_of_a_daemon_on_another_machine_its_name_is_told_at_once(
        self, root: Path, serve: Any
    ) -> None:
        serve(root, polite, host="elsewhere")
        with pytest.raises(DaemonSilent, match="runs on elsewhere"):
            control.status(str(root), 30.0)


class TestStop:
    def test_it_waits_until_the_process_is_gone(
        self, root: Path, serve: Any, process: subprocess.Popen[bytes]
    ) -> None:
        serve(root, polite, **as_process(process))
        timer = threading.Timer(0.3, process.kill)
        timer.start()
        began = time.monotonic()
        assert control.stop(str(root), 10) == ""
        assert time.monotonic() - began >= 0.25
        timer.join()

    def test_what_could_not_be_written_is_told(
        self, root: Path, serve: Any, process: subprocess.Popen[bytes]
    ) -> None:
        def script(message: m.Message) -> list[Any]:
            if isinstance(message, m.Stop):
                process.kill()
                return [m.Done(message.token, "disk full")]
            return polite(message)

        serve(root, script, **as_process(process))
        assert control.stop(str(root), 10) == "disk full"

    def test_a_daemon_that_ends_without_a_word_is_told(
        self, root: Path, serve: Any, process: subprocess.Popen[bytes]
    ) -> None:
        def script(message: m.Message) -> list[Any]:
            if isinstance(message, m.Stop):
                process.kill()
                return []
            return polite(message)

        serve(root, script, **as_process(process))
        assert "without saying" in control.stop(str(root), 10)

    def test_a_process_that_stays_is_an_error(self, root: Path, serve: Any) -> None:
        serve(root, polite)
        with pytest.raises(DaemonSilent, match=f"process {os.getpid()} is still there"):
            control.stop(str(root), 0.3)

    def test_a_daemon_of_another_version_can_be_stopped(
        self, root: Path, serve: Any, process: subprocess.Popen[bytes]
    ) -> None:
        serve(root, lambda _: [m.Refused(b"", "version")], **as_process(process))
        control.stop(str(root), 10)
        assert process.wait() == -signal.SIGTERM


class TestPublishBeforeReading:
    def test_without_a_daemon_nothing_is_asked_and_zmq_is_not_loaded(self, root: Path) -> None:
        code = (
            "import sys; from mle_client.control import publish_before_reading as p;"
            f"p({str(root / 'run')!r}); print('zmq' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=discovery.python_environment(),
        )
        assert done.stdout == "False\n"

    def test_the_daemon_above_publishes_what_is_read(self, root: Path, serve: Any) -> None:
        fake = serve(root, polite)
        link = root.with_name("link")
        link.symlink_to(root)
        control.publish_before_reading(str(link / "run" / "logs" / "log_1.hdf5"))
        assert fake.asked[1:] == [m.Publish(1, f"{root}/run/logs/log_1.hdf5")]

    def test_daemons_below_publish_what_is_theirs(self, root: Path, serve: Any) -> None:
        above, below, beside = (
            serve(path, polite) for path in (root, root / "a" / "b", root.with_name("beside"))
        )
        control.publish_before_reading(str(root / "a"))
        assert above.asked[1:] == [m.Publish(1, f"{root}/a")]
        assert below.asked[1:] == [m.Publish(1, f"{root}/a/b")]
        assert beside.asked == []

    @pytest.mark.parametrize(
        ("script", "said"),
        [
            (lambda _: [], "no answer within"),
            (lambda _: [b"\xc1"], "msgpack"),
            (lambda _: [m.Refused(b"", "busy")], "busy"),
            (lambda a: [WELCOME] if isinstance(a, m.Hello) else [m.Done(1, "disk full")], "full"),
        ],
        ids=["silent", "garbage", "refusing", "failing"],
    )
    def test_what_keeps_it_from_publishing_is_a_warning(
        self, root: Path, serve: Any, script: Script, said: str
    ) -> None:
        serve(root, script)
        pattern = rf"may lack the latest ticks.*pid {os.getpid()} .*{said}"
        with pytest.warns(RuntimeWarning, match=pattern):
            control.publish_before_reading(str(root), 0.3)

    def test_silent_daemons_share_one_timeout(self, root: Path, serve: Any) -> None:
        for name in "abcd":
            serve(root / name, lambda _: [])
        began = time.monotonic()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            control.publish_before_reading(str(root), 0.4)
        assert len(told) == 4
        assert time.monotonic() - began < 1.2

    def test_what_is_flushed_before_shares_the_timeout_too(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[float] = []

        def slow(path: str, timeout: float) -> None:
            given.append(timeout)
            time.sleep(0.2)

        monkeypatch.setattr(control, "BEFORE_READING", [slow] * 3)
        control.publish_before_reading(str(root), 0.3)
        assert 0.25 < given[0] <= 0.3
        assert given[1] <= 0.1
        assert given[2] == 0

    def test_a_killed_or_stopped_daemon_is_not_asked(self, root: Path, serve: Any) -> None:
        killed = serve(root / "killed", polite, started="1")
        stopped = serve(root / "stopped", polite)
        found = read_endpoint(str(root / "stopped"))
        assert found is not None
        write_endpoint(found.stopped())
        control.publish_before_reading(str(root / "killed"))
        control.publish_before_reading(str(root))
        assert killed.asked == stopped.asked == []
