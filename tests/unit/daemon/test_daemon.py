"""What the daemon's loop does once for all who ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon import limits
from mle_daemon.config import DaemonConfig
from mle_daemon.daemon import Daemon
from mle_daemon.leftovers import Look
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
    looks: list[float] = []
    handled: list[Any] = []
    monkeypatch.setattr(daemon, "_look_at_rings", lambda now: looks.append(now) or True)
    monkeypatch.setattr(daemon, "_handle", lambda client, message: handled.append(message))
    asked = [m.Publish(token, "/") for token in range(limits.MAX_READERS)]
    for message in asked:
        daemon._receive(ANNA, message)
    assert (looks, handled) == ([], [])
    daemon._answer_asked(1.0)
    assert (looks, handled) == ([1.0], asked)
    daemon._answer_asked(2.0)
    assert (looks, handled) == ([1.0], asked)


def test_no_more_than_so_many_wait_for_what_is_in_rings(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[Any] = []
    monkeypatch.setattr(daemon, "_handle", lambda client, message: handled.append(message))
    asked = [m.Publish(token, "/") for token in range(limits.MAX_READERS + 1)]
    for message in asked:
        daemon._receive(ANNA, message)
    assert handled == asked[-1:]  # the core says that it is one too many


class Looks:
    """In place of what is in rings: looks that find something, and some that do not."""

    def __init__(self, *looks: Look) -> None:
        self.looks = list(looks)

    def look(self, now: float) -> Look:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


MORE = Look(lives=False, has_taken=True, is_complete=False)
NO_ROOM = Look(lives=False, has_taken=False, is_complete=False)
ALL = Look(lives=False, has_taken=False, is_complete=True)


@pytest.mark.parametrize("asks", ["client", "signal"])
def test_who_asks_waits_until_all_is_taken_that_dead_processes_have_left(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    handled: list[Any] = []
    monkeypatch.setattr(daemon, "_handle", lambda client, message: handled.append(message))
    monkeypatch.setattr(daemon, "_deliver", handled.append)
    daemon._leftovers = Looks(MORE, MORE, NO_ROOM, ALL)  # type: ignore[assignment]
    message = m.Stop(1) if asks == "client" else e.StopAsked()
    if asks == "client":
        daemon._receive(ANNA, m.Stop(1))
    else:
        daemon._signalled.append(e.StopAsked())
    for round_number in range(3):
        daemon._answer_asked(10.0 + round_number)
        assert handled == []
        assert 0 < daemon._wait_s(10.0 + round_number) < 0.1
    daemon._answer_asked(14.0)
    assert handled == [message]


def test_who_asks_does_not_wait_for_ever_for_what_finds_no_room(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[Any] = []
    monkeypatch.setattr(daemon, "_handle", lambda client, message: handled.append(message))
    daemon._leftovers = Looks(MORE, NO_ROOM)  # type: ignore[assignment]
    daemon._receive(ANNA, m.Stop(1))
    for seconds in range(5):
        daemon._answer_asked(10.0 + seconds)
        assert handled == []
    daemon._answer_asked(15.5)
    assert handled == [m.Stop(1)]


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
