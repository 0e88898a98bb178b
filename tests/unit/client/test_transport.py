"""What a logger makes of what its daemon says, and of what it never does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mle_client import MLELogger, runtime
from mle_client import messages as m
from mle_client.endpoint import Endpoint, write_endpoint
from tests.fake_daemon import FakeDaemon, Script


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
