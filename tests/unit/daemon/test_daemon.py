"""What the daemon's loop does once for all who ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mle_client import messages as m
from mle_daemon import limits
from mle_daemon.config import DaemonConfig
from mle_daemon.daemon import Daemon
from mle_daemon.ownership import RootLock
from tests.daemon_rig import ANNA


class FakeServer:
    """Keeps what is sent."""

    endpoint = "ipc://nowhere"

    def __init__(self) -> None:
        self.sent: list[m.Reply] = []

    def send(self, client: object, message: m.Reply) -> None:
        self.sent.append(message)


@pytest.fixture
def daemon(root: Path) -> Daemon:
    """One that was never run."""
    made = Daemon(DaemonConfig(str(root)), RootLock(str(root)))
    made._server = FakeServer()  # type: ignore[assignment]
    return made


def test_rings_are_looked_at_once_for_all_who_ask_in_a_round(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: list[float] = []
    monkeypatch.setattr(daemon, "_scan_rings", scans.append)
    for token in range(1_000):
        daemon._receive(ANNA, m.Publish(token, "/"))
    assert len(scans) == 1


def test_a_report_is_made_once_for_all_who_ask_in_a_round_and_not_sent_without_end(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(daemon, "_status", lambda: made.append(1) or {"runs": []})
    for token in range(limits.MAX_REPORTS + 1):
        daemon._receive(ANNA, m.AskStatus(token))
    sent: list[Any] = daemon._server.sent  # type: ignore[attr-defined]
    assert len(made) == 1
    assert [type(each) for each in sent[:-1]] == [m.Status] * limits.MAX_REPORTS
    assert sent[-1] == m.Done(limits.MAX_REPORTS, limits.TOO_MANY_REPORTS)
