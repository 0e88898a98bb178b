"""The daemon's socket: what is waited for, what is refused, and what a client can pile up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from mle_client import message_wire
from mle_client import messages as m
from mle_daemon import server as servers
from mle_daemon.server import Server

ID = m.ProducerId(bytes(16))


@pytest.fixture
def server(runtime_dir: Path) -> Iterator[Server]:
    with Server(f"ipc://{runtime_dir}/test.sock") as made:
        yield made


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[[], Any]]:
    """Makes connections that are closed in the end."""
    made = []
    with zmq.Context() as context:

        def make() -> Any:
            made.append(context.socket(zmq.DEALER))
            made[-1].connect(server.endpoint)
            return made[-1]

        yield make
        for socket in made:
            socket.close(linger=0)


def take(server: Server, count: int) -> tuple[list[m.Request], list[str]]:
    """So many messages, good and bad."""
    good: list[m.Request] = []
    bad: list[str] = []
    deadline = time.monotonic() + 30
    while len(good) + len(bad) < count:
        assert time.monotonic() < deadline, (good, bad)
        some, others = server.wait(0.1)
        good += [message for _, message in some]
        bad += [reason for _, reason in others]
    return good, bad


def test_what_is_no_message_is_told_apart(server: Server, connect: Callable[[], Any]) -> None:
    socket = connect()
    for frames in (
        [b"\x91\x06"],
        [b""],
        message_wire.encode(m.Done(1, "")),
        message_wire.encode(m.Save(ID)),
    ):
        socket.send_multipart(frames)
    good, bad = take(server, 4)
    assert good == [m.Save(ID)]
    assert len(bad) == 3


def test_of_a_message_of_many_parts_only_the_first_are_kept(
    server: Server, connect: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        message_wire, "decode_request", lambda frames: seen.append(len(frames)) or m.Save(ID)
    )
    socket = connect()
    socket.send_multipart([b"x"] * 10_000)
    socket.send_multipart([b"x"])
    take(server, 2)
    assert seen == [servers._FRAMES_KEPT, 1]


def test_a_request_that_is_too_long_is_refused_before_it_is_looked_at(
    server: Server, connect: Callable[[], Any]
) -> None:
    connect().send(b"\x92\x06" + b"\x90" * m.MAX_REQUEST_BYTES)
    assert "65536 is the most" in take(server, 1)[1][0]


def test_a_frame_above_the_bound_ends_its_connection_and_no_other(
    server: Server, connect: Callable[[], Any]
) -> None:
    large, other = connect(), connect()
    large.send_multipart([message_wire.data_header(ID, 0), bytes(m.MAX_FRAME_BYTES + 1)])
    other.send_multipart(message_wire.encode(m.Save(ID)))
    assert take(server, 1) == ([m.Save(ID)], [])
    large.send_multipart(
        [message_wire.data_header(ID, 0), bytes(10)]
    )  # on a new connection, by itself
    assert isinstance(take(server, 1)[0][0], m.Data)


def test_a_client_that_sends_without_end_is_not_taken_in_without_end(
    server: Server, connect: Callable[[], Any]
) -> None:
    socket = connect()
    socket.sndhwm = 1
    socket.sndtimeo = 500
    payload = bytes(2**20)
    sent = 0
    with contextlib.suppress(zmq.Again):
        while sent < 1_000:
            socket.send_multipart([message_wire.data_header(ID, 0), payload])
            sent += 1
    assert sent < 2 * servers._RECEIVED_MESSAGES


def test_answers_that_nobody_fetches_are_dropped_in_the_end(
    server: Server, connect: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = connect()
    deaf.send_multipart(message_wire.encode(m.Save(ID)))
    (client, _), *_ = wait_for_one(server)
    for _ in range(3 * servers._SEND_HIGH_WATER):
        server.send(client, m.Done(1, "x" * 100))
    received = 0
    while deaf.poll(500):
        deaf.recv()
        received += 1
    assert received < 2 * servers._SEND_HIGH_WATER


def wait_for_one(server: Server) -> list[Any]:
    deadline = time.monotonic() + 30
    while not (good := server.wait(0.1)[0]):
        assert time.monotonic() < deadline
    return good
