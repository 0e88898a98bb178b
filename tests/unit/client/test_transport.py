"""What a logger makes of what its daemon says, and of what it never does."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from mle_client import MLELogger, message_wire, runtime
from mle_client import messages as m
from mle_client.discovery import Target
from mle_client.endpoint import Endpoint, write_endpoint
from mle_client.transport import Transport
from tests.fake_daemon import FakeDaemon, Script
from tests.integration import daemons


@contextmanager
def daemon(root: Path, script: Script) -> Iterator[FakeDaemon]:
    """A root's daemon, which follows a script."""
    address = f"ipc://{runtime.socket_path(str(root))}"
    fake = FakeDaemon(address, script)
    try:
        (root / ".mle").mkdir()
        write_endpoint(
            Endpoint.of_this_process(str(root), address, version="0", daemon_id="d", options={})
        )
        yield fake
    finally:
        fake.close()


def forgetful(root: Path) -> Script:
    """Has everything stored and never says so, as one that was killed and started again."""

    def script(message: m.Message) -> list[Any]:
        match message:
            case m.Hello():
                return [m.Welcome(m.PROTOCOL_VERSION, "d", str(root), 1 << 20, "")]
            case m.Data(producer, position, payload):
                end = position + len(payload)
                return [m.Ack(producer, end, 1, end)]
            case m.Flush(token, producer):
                return [*(m.Stored(producer, each, "no") for each in (7, 2)), m.Done(token, "")]
        return []

    return script


def test_what_is_flushed_is_stored_though_nobody_said_so(root: Path, runtime_dir: Path) -> None:
    """And what is lost is told before."""
    errors: list[Exception] = []
    with daemon(root, forgetful(root)):
        log = MLELogger(str(root), on_error=errors.append)
        for number in range(3):
            log.update({"step": number}, {})
            log.save_extra(number)
        report = log.close(timeout=20)
    assert (report.unstored, report.refused, report.spilled) == (0, 1, 0)
    assert [str(error) for error in errors] == ["no"]


def test_a_flush_for_which_the_queue_has_no_room_is_sent_later(
    root: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a thousand loggers have something to send in one round."""
    turned_away = []

    class Socket(zmq.Socket[bytes]):
        def send_multipart(self, frames: Any, *arguments: Any, **options: Any) -> Any:
            is_flush = self.type == zmq.DEALER and isinstance(message_wire.decode(frames), m.Flush)
            if is_flush and len(turned_away) < 3:
                turned_away.append(frames)
                raise zmq.Again
            return super().send_multipart(frames, *arguments, **options)

    class Context(zmq.Context[Any]):
        _socket_class = Socket

    monkeypatch.setattr(zmq, "Context", Context)
    with daemon(root, forgetful(root)):
        log = MLELogger(str(root))
        log.update({"step": 1}, {})
        assert log.flush(timeout=20)
        log.close()
    assert len(turned_away) == 3


def test_a_daemon_that_was_missing_for_long_is_found_within_5_s(
    root: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a full disk, on which none can be started; `update()` does not notice."""
    pauses: list[float] = []
    now = 0.0

    def missing(self: Transport) -> tuple[None, None]:
        pauses.append(now)
        return None, None

    transport = Transport(Target(str(root), None, own=True))
    monkeypatch.setattr(Transport, "_find_daemon", missing)
    monkeypatch.setattr("mle_client.transport.time.monotonic", lambda: now)
    for _ in range(100):
        transport._connect(now)
        now = transport._retry_at
    assert max(later - sooner for sooner, later in itertools.pairwise(pauses)) <= 4.0


def test_a_round_that_hears_of_much_is_as_busy_as_one_that_sends_much(
    root: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a logger that has waited for room would have it, fill it, and wait for a calm round."""
    moved: list[int] = []
    round_ = Transport._round
    monkeypatch.setattr(
        Transport, "_round", lambda self, s: moved.append(round_(self, s)) or moved[-1]
    )
    with daemon(root, forgetful(root)):
        log = MLELogger(str(root))
        assert log.flush(timeout=20)
        moved.clear()
        for number in range(10_000):
            log.update({"step": number}, {})
        daemons.wait_for(lambda: log.stats()["bytes_waiting"] == 0)
        size = log.stats()["sent"]
        daemons.wait_for(lambda: len(moved) > 1 and moved[-1] == 0)
        log.close()
    assert size > 100_000
    assert sum(moved) >= 1.8 * size  # each byte in the round that sends it and in one that hears


def test_zeromq_is_whole_before_there_is_a_thread() -> None:
    """Else one that is forked while the sender's thread imports it has half of it for ever."""
    program = (
        "import sys, threading; from mle_client import transport; "
        "print(threading.active_count(), 'zmq' in sys.modules, hasattr(transport.zmq, 'DEALER'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["1", "True", "True"]
