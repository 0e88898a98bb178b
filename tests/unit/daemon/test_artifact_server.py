"""The artifact server's thread and socket: nothing that comes ends it, and it ends when told."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from mle_client import artifact_wire as aw
from mle_client.messages import NO_PRODUCER, ProducerId
from mle_daemon import artifact_server as module
from mle_daemon import events as e
from mle_daemon.artifact_server import ArtifactServer

ANNA = ProducerId(b"anna" * 4)
SOON_S = 10.0


class Client:
    """A bare socket."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(endpoint)

    def send(self, *messages: aw.Message) -> None:
        for message in messages:
            self._socket.send_multipart(aw.encode(message))

    def send_frames(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def receive(self) -> aw.Message:
        assert self._socket.poll(int(SOON_S * 1000)), "no answer"
        return aw.decode(self._socket.recv_multipart())

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


class Left:
    """What a dead process has left: so many chunks.  Args: gate: to be set before it is read."""

    form = "file"

    def __init__(self, number: int, chunks: int) -> None:
        self.number = number
        self.size = chunks * 1000
        self.gate = threading.Event()

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        for _ in range(self.size // 1000):
            yield bytes(1000)


@pytest.fixture
def events() -> list[e.Event]:
    return []


@pytest.fixture
def server(tmp_path: Path, runtime_dir: Path, events: list[e.Event]) -> Iterator[ArtifactServer]:
    server = ArtifactServer(f"ipc://{runtime_dir}/s", str(tmp_path / "staging"), events.append)
    yield server
    assert server.stop(SOON_S)


@pytest.fixture
def client(server: ArtifactServer) -> Iterator[Client]:
    client = Client(server.endpoint)
    yield client
    client.close()


def wait_until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def arrives(client: Client, number: int = 1, content: bytes = b"content") -> None:
    """Send an artifact and see it taken."""
    client.send(aw.Offer(ANNA, number, len(content), "file"))
    assert client.receive() == aw.Taken(ANNA, number, 0)
    client.send(aw.Chunk(ANNA, number, 0, content))
    assert client.receive() == aw.Taken(ANNA, number, len(content))


def test_an_artifact_arrives(server: ArtifactServer, client: Client, events: list[e.Event]) -> None:
    arrives(client)

    wait_until(lambda: events)
    (event,) = events
    assert isinstance(event, e.Arrived)
    assert Path(event.path).read_bytes() == b"content"
    assert (event.producer, event.number, event.size) == (ANNA, 1, 7)


def test_an_address_over_tcp_gets_a_port(tmp_path: Path, events: list[e.Event]) -> None:
    server = ArtifactServer("tcp://127.0.0.1:*", str(tmp_path), events.append)
    client = Client(server.endpoint)

    arrives(client)

    client.close()
    assert server.stop(SOON_S)
    assert server.endpoint.startswith("tcp://127.0.0.1:")


def test_an_address_that_cannot_be_had_is_an_error(
    server: ArtifactServer, tmp_path: Path, events: list[e.Event]
) -> None:
    with pytest.raises(OSError, match="cannot listen at ipc:///nonexistent/s"):
        ArtifactServer("ipc:///nonexistent/s", str(tmp_path), events.append)


@pytest.mark.parametrize(
    "frames",
    [
        [b""], [b"garbage"], [b"x" * 100_000], [b"\x91\x01", b"", b"", b""],
        [bytes(aw.encode(aw.Taken(ANNA, 1, 0))[0])],
        [bytes(aw.encode(aw.Offer(ANNA, 1, 5, "file"))[0]), b"payload"],
        [bytes(aw.encode(aw.Chunk(ANNA, 1, 0, b"x"))[0]), b""],
        [b"\x96\x01\x02rest"],
    ],
)  # fmt: skip
def test_garbage_is_counted_and_declined_and_closes_nothing(
    server: ArtifactServer, client: Client, events: list[e.Event], frames: list[bytes]
) -> None:
    client.send_frames(*frames)

    answer = client.receive()
    assert isinstance(answer, aw.Declined)
    assert (answer.producer, answer.number) == (NO_PRODUCER, 0)
    assert server.garbage == 1
    arrives(client)
    wait_until(lambda: events)
    assert [type(event) for event in events] == [e.Arrived]


def test_of_a_message_of_many_parts_only_the_first_are_kept(
    server: ArtifactServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    decode = aw.decode
    monkeypatch.setattr(aw, "decode", lambda frames: seen.append(len(frames)) or decode(frames))

    client.send_frames(bytes(aw.encode(aw.Chunk(ANNA, 1, 0, b"x"))[0]), *[b"x"] * 10_000)

    assert isinstance(client.receive(), aw.Declined)
    assert seen[0] == 3  # then the answer is decoded


def test_a_flood_of_garbage_fills_no_log(
    server: ArtifactServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            client.send_frames(b"garbage")
            client.receive()

    assert server.garbage == 100
    assert len(caplog.records) == 7


def test_a_frame_above_the_bound_costs_its_sender_the_connection_only(
    server: ArtifactServer, client: Client
) -> None:
    rude = Client(server.endpoint)
    rude.send_frames(b"x", bytes(aw.MAX_CHUNK_BYTES + 1))

    arrives(client)

    rude.close()
    assert server.garbage == 0


def test_an_error_of_our_own_is_logged_and_the_next_artifact_arrives(
    tmp_path: Path, runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[e.Event] = []

    def deliver(event: e.Event) -> None:
        events.append(event)
        if len(events) == 1:
            raise RuntimeError("the receiver is broken")

    server = ArtifactServer(f"ipc://{runtime_dir}/s", str(tmp_path), deliver)
    client = Client(server.endpoint)
    arrives(client, 1)
    arrives(client, 2)

    wait_until(lambda: len(events) == 2)
    client.close()
    assert server.stop(SOON_S)
    assert "the receiver is broken" in caplog.text


def test_what_dead_processes_left_keeps_no_client_waiting(
    server: ArtifactServer, client: Client, events: list[e.Event]
) -> None:
    left = Left(9, 100_000)
    server.take_left(ANNA, left)

    for number in range(1, 6):
        arrives(client, number)

    wait_until(lambda: len(events) >= 5)
    assert [event.number for event in events if isinstance(event, e.Arrived)] == [1, 2, 3, 4, 5]
    server.discard(ANNA, 9)


def test_what_a_dead_process_left_arrives_without_any_client(
    server: ArtifactServer, events: list[e.Event]
) -> None:
    server.take_left(ANNA, Left(1, 50))

    wait_until(lambda: events)
    (event,) = events
    assert isinstance(event, e.Arrived)
    assert os.path.getsize(event.path) == 50_000


def test_what_is_discarded_is_removed(
    server: ArtifactServer, client: Client, events: list[e.Event]
) -> None:
    arrives(client)
    wait_until(lambda: events)
    (event,) = events
    assert isinstance(event, e.Arrived)

    server.discard(ANNA, 1)

    wait_until(lambda: not os.path.exists(event.path))


def test_stopping_removes_what_is_not_whole_and_the_socket(
    server: ArtifactServer, client: Client, tmp_path: Path, events: list[e.Event]
) -> None:
    arrives(client, 1)
    client.send(aw.Offer(ANNA, 2, 5, "file"))
    client.receive()
    server.take_left(ANNA, Left(3, 100_000))
    wait_until(lambda: len(os.listdir(tmp_path / "staging")) == 3)

    assert server.stop(SOON_S)
    assert server.stop(SOON_S)  # again is no error

    assert os.listdir(tmp_path / "staging") == [f"{ANNA.hex()}-1.part"]
    assert not os.path.exists(server.endpoint.removeprefix("ipc://"))
    server.discard(ANNA, 1)  # too late, and harmless


def test_stopping_waits_no_longer_than_it_is_told(
    server: ArtifactServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled, go_on = threading.Event(), threading.Event()

    def stall(*arguments: Any) -> None:
        stalled.set()
        assert go_on.wait(SOON_S)

    monkeypatch.setattr(os, "fdatasync", stall)
    client.send(aw.Offer(ANNA, 1, 0, "file"))
    assert stalled.wait(SOON_S)

    assert not server.stop(0.05)
    go_on.set()
    assert server.stop(SOON_S)


def test_memory_of_a_client_is_bounded_by_the_socket(server: ArtifactServer) -> None:
    assert server._socket.getsockopt(zmq.RCVHWM) == module._RECEIVED_MESSAGES
    assert server._socket.getsockopt(zmq.MAXMSGSIZE) == aw.MAX_CHUNK_BYTES
