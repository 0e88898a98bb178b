"""The shipper against a daemon made of a bare socket: what it sends, keeps, frees and reports."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from mle_client import artifact_wire as aw
from mle_client import parcels, shipping
from mle_client.errors import MLEError
from mle_client.messages import NO_PRODUCER, ProducerId
from mle_client.shipping import Shipper

ANNA, BERT = ProducerId(b"anna" * 4), ProducerId(b"bert" * 4)
SOON_S = 10.0  # far more than anything here takes
CHUNK = 1_000
WINDOW = 8 * CHUNK


class Snapshot:
    """A snapshot in memory.  Args: gate: to be set before it can be read."""

    form = "file"

    def __init__(self, number: int, content: bytes = b"content") -> None:
        self.number = number
        self.content = content
        self.size = len(content)
        self.released = threading.Event()
        self.reading = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        for at in range(0, len(self.content), chunk_bytes):
            assert not self.released.is_set(), "read after its memory was recycled"
            self.reading.set()
            assert self.gate.wait(SOON_S)
            yield self.content[at : at + chunk_bytes]

    def release(self) -> None:
        assert not self.released.is_set(), "released twice"
        self.released.set()


class Daemon:
    """The other end of the socket: a test says what it answers."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(address)
        self._client = b""

    def receive(self, timeout_s: float = SOON_S) -> aw.Message | None:
        """The next message; None if none comes."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return None
        self._client, *frames = self._socket.recv_multipart()
        return aw.decode(frames)

    def send(self, message: aw.Message) -> None:
        """Answer whom the last message came from."""
        self._socket.send_multipart([self._client, *aw.encode(message)])

    def send_garbage(self) -> None:
        """Answer with what is no message."""
        self._socket.send_multipart([self._client, b"garbage"])

    def take(self, producer: ProducerId = ANNA) -> aw.Offer:
        """Wait for an offer, and want all of it."""
        offer = self.receive()
        assert isinstance(offer, aw.Offer)
        assert offer.producer == producer
        self.send(aw.Taken(offer.producer, offer.number, 0))
        return offer

    def take_all(self, producer: ProducerId = ANNA) -> bytes:
        """Take an artifact from its offer to its last byte."""
        offer = self.take(producer)
        content = b""
        while len(content) < offer.size:
            chunk = self.receive()
            assert isinstance(chunk, aw.Chunk)
            assert (chunk.producer, chunk.number) == (producer, offer.number)
            assert chunk.offset == len(content)
            content += bytes(chunk.payload)
            self.send(aw.Taken(producer, offer.number, len(content)))
        return content

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


@pytest.fixture
def start(runtime_dir: Path) -> Iterator[Callable[[], Daemon]]:
    started: list[Daemon] = []

    def start() -> Daemon:
        started.append(Daemon(f"ipc://{runtime_dir}/daemon{len(started)}"))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def daemon(start: Callable[[], Daemon]) -> Daemon:
    return start()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(parcels, "WINDOW_BYTES", WINDOW)


@pytest.fixture
def errors() -> list[MLEError]:
    return []


@pytest.fixture
def shipper(daemon: Daemon, errors: list[MLEError]) -> Iterator[Shipper]:
    shipper = Shipper()
    shipper.add(ANNA, errors.append)
    shipper.connect(daemon.address)
    yield shipper
    shipper.close()


def wait_until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def shippers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "mle-shipper"]


# --- sending --------------------------------------------------------------------------------------
def test_a_snapshot_is_sent_whole_and_kept_until_it_is_stored(
    shipper: Shipper, daemon: Daemon
) -> None:
    snapshot = Snapshot(1, os.urandom(2 * CHUNK + 5))

    shipper.submit(ANNA, snapshot)

    assert daemon.take_all() == snapshot.content
    assert (shipper.unstored(ANNA), shipper.pending_bytes(ANNA)) == (1, snapshot.size)
    assert not shipper.wait(ANNA, 0.05)
    assert not snapshot.released.is_set()
    shipper.stored(ANNA, 1)
    assert snapshot.released.wait(SOON_S)
    assert shipper.wait(ANNA, 0)
    assert (shipper.unstored(ANNA), shipper.pending_bytes(ANNA)) == (0, 0)


def test_no_more_than_the_window_is_sent_unasked(shipper: Shipper, daemon: Daemon) -> None:
    shipper.submit(ANNA, Snapshot(1, bytes(2 * WINDOW)))
    daemon.take()

    unasked = 0
    while isinstance(chunk := daemon.receive(0.3), aw.Chunk):
        unasked += len(chunk.payload)

    assert unasked == WINDOW


def test_snapshots_of_a_producer_go_in_the_order_of_their_submission(
    shipper: Shipper, daemon: Daemon
) -> None:
    for number in range(1, 6):
        shipper.submit(ANNA, Snapshot(number, b"%d" % number * number))

    assert [daemon.take_all() for _ in range(5)] == [b"1", b"22", b"333", b"4444", b"55555"]


def test_two_producers_take_turns(shipper: Shipper, daemon: Daemon) -> None:
    shipper.add(BERT, print)
    snapshot = Snapshot(1, bytes(WINDOW))
    snapshot.gate.clear()
    shipper.submit(BERT, Snapshot(1, bytes(WINDOW)))
    daemon.receive()
    shipper.submit(ANNA, snapshot)
    daemon.receive()
    daemon.send(aw.Taken(ANNA, 1, 0))
    assert snapshot.reading.wait(SOON_S)  # its first chunk is about to be sent
    daemon.send(aw.Taken(BERT, 1, 0))
    time.sleep(0.1)  # for that to arrive

    snapshot.gate.set()
    order = [daemon.receive() for _ in range(7)]

    assert [chunk.producer for chunk in order if chunk] == [ANNA, *[ANNA, BERT] * 3]


def test_the_daemon_may_want_the_rest_only(shipper: Shipper, daemon: Daemon) -> None:
    content = os.urandom(CHUNK + 9)
    shipper.submit(ANNA, Snapshot(1, content))
    daemon.receive()

    daemon.send(aw.Taken(ANNA, 1, CHUNK + 4))

    assert daemon.receive() == aw.Chunk(ANNA, 1, CHUNK + 4, content[-5:])


def test_a_snapshot_says_its_form(shipper: Shipper, daemon: Daemon) -> None:
    figure = Snapshot(1)
    figure.form = "figure"

    shipper.submit(ANNA, figure)

    assert daemon.receive() == aw.Offer(ANNA, 1, figure.size, "figure")


# --- again ----------------------------------------------------------------------------------------
def test_restart_sends_all_of_it_again_at_once(
    shipper: Shipper, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "STALL_AFTER_S", 1_000.0)
    content = os.urandom(3 * CHUNK)
    shipper.submit(ANNA, Snapshot(1, content))
    daemon.take()
    assert isinstance(daemon.receive(), aw.Chunk)
    while daemon.receive(0.2):
        pass  # what was under way

    daemon.send(aw.Restart(ANNA, 1))

    assert daemon.take_all() == content


def test_after_another_connection_all_that_is_not_stored_is_sent_again(
    shipper: Shipper, daemon: Daemon, start: Callable[[], Daemon]
) -> None:
    for number in (1, 2, 3):
        shipper.submit(ANNA, Snapshot(number, b"%d" % number))
    for _ in range(3):
        daemon.take_all()
    shipper.stored(ANNA, 2)

    shipper.disconnect()
    other = start()
    shipper.connect(other.address)

    assert [other.take_all(), other.take_all()] == [b"1", b"3"]
    assert other.receive(0.2) is None


def test_a_connection_given_up_and_made_again_to_the_same_address_is_a_new_one(
    shipper: Shipper, daemon: Daemon
) -> None:
    shipper.submit(ANNA, Snapshot(1))
    daemon.take_all()

    shipper.disconnect()
    shipper.connect(daemon.address)

    assert daemon.take_all() == b"content"


def test_being_told_the_same_address_again_changes_nothing(
    shipper: Shipper, daemon: Daemon
) -> None:
    shipper.submit(ANNA, Snapshot(1))
    daemon.take_all()

    shipper.connect(daemon.address)

    assert daemon.receive(0.3) is None


def test_while_there_is_no_daemon_nothing_is_sent_and_nothing_lost(
    shipper: Shipper, daemon: Daemon
) -> None:
    shipper.disconnect()
    snapshot = Snapshot(1)
    shipper.submit(ANNA, snapshot)
    assert daemon.receive(0.2) is None

    shipper.connect(daemon.address)

    assert daemon.take_all() == snapshot.content


def test_an_offer_without_an_answer_is_repeated(
    shipper: Shipper, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "STALL_AFTER_S", 0.1)
    monkeypatch.setattr(shipping, "_BUSY_WAIT_S", 0.02)
    shipper.submit(ANNA, Snapshot(1))

    assert daemon.receive() == daemon.receive() == aw.Offer(ANNA, 1, 7, "file")


# --- what goes wrong ------------------------------------------------------------------------------
def test_what_is_rejected_is_freed_and_reported(
    shipper: Shipper, daemon: Daemon, errors: list[MLEError]
) -> None:
    snapshot = Snapshot(1)
    shipper.submit(ANNA, snapshot)
    daemon.take_all()

    shipper.rejected(ANNA, 1, "the folder is gone")

    assert snapshot.released.wait(SOON_S)
    assert [str(error) for error in errors] == ["the folder is gone"]
    assert shipper.wait(ANNA, 0)


def test_what_is_declined_is_freed_and_reported_and_the_next_one_goes_on(
    shipper: Shipper, daemon: Daemon, errors: list[MLEError]
) -> None:
    bad = Snapshot(1)
    shipper.submit(ANNA, bad)
    shipper.submit(ANNA, Snapshot(2, b"good"))
    daemon.receive()

    daemon.send(aw.Declined(ANNA, 1, "too strange"))

    assert daemon.take_all() == b"good"
    assert bad.released.is_set()
    assert [str(error) for error in errors] == ["too strange"]


def test_a_daemon_that_understands_nothing_is_reported_once_and_nothing_is_freed(
    shipper: Shipper, daemon: Daemon, errors: list[MLEError]
) -> None:
    snapshot = Snapshot(1)
    shipper.submit(ANNA, snapshot)
    daemon.receive()

    for _ in range(3):
        daemon.send(aw.Declined(NO_PRODUCER, 0, "another version"))
    daemon.send(aw.Taken(ANNA, 1, 0))

    assert isinstance(daemon.receive(), aw.Chunk)
    assert [str(error) for error in errors] == ["the daemon takes no artifacts: another version"]
    assert not snapshot.released.is_set()


@pytest.mark.parametrize("what", ["garbage", "a client's message", "an impossible offset"])
def test_an_answer_that_is_none_is_reported_and_leads_to_a_new_connection(
    shipper: Shipper, daemon: Daemon, errors: list[MLEError], what: str
) -> None:
    shipper.submit(ANNA, Snapshot(1))
    daemon.receive()

    if what == "garbage":
        daemon.send_garbage()
    elif what == "a client's message":
        daemon.send(aw.Offer(ANNA, 1, 7, "file"))
    else:
        daemon.send(aw.Taken(ANNA, 1, 8))

    assert daemon.take_all() == b"content"
    assert len(errors) == 1


def test_a_snapshot_that_cannot_be_read_is_given_up_and_reported(
    shipper: Shipper, daemon: Daemon, errors: list[MLEError]
) -> None:
    short = Snapshot(1, b"four")
    short.size = 5
    shipper.submit(ANNA, short)
    shipper.submit(ANNA, Snapshot(2, b"good"))
    daemon.take()
    assert daemon.receive() == aw.Chunk(ANNA, 1, 0, b"four")

    assert daemon.take_all() == b"good"
    assert short.released.is_set()
    assert "5 bytes ended after 4" in str(errors[0])


def test_an_answer_about_an_unknown_artifact_is_passed_over(
    shipper: Shipper, daemon: Daemon, errors: list[MLEError]
) -> None:
    shipper.submit(ANNA, Snapshot(1))
    daemon.receive()

    daemon.send(aw.Taken(ANNA, 9, 5))
    daemon.send(aw.Restart(BERT, 1))
    shipper.stored(BERT, 1)
    shipper.rejected(ANNA, 9, "unknown")
    daemon.send(aw.Taken(ANNA, 1, 0))

    assert isinstance(daemon.receive(), aw.Chunk)
    assert errors == []


def test_memory_is_not_freed_while_it_is_read(shipper: Shipper, daemon: Daemon) -> None:
    snapshot = Snapshot(1)
    snapshot.gate.clear()
    shipper.submit(ANNA, snapshot)
    daemon.take()
    assert snapshot.reading.wait(SOON_S)

    shipper.stored(ANNA, 1)
    assert not snapshot.released.is_set()

    snapshot.gate.set()
    assert snapshot.released.wait(SOON_S)


def test_what_cannot_be_shipped_is_refused_at_once(shipper: Shipper) -> None:
    large = Snapshot(1)
    large.size = aw.MAX_ARTIFACT_BYTES + 1

    with pytest.raises(ValueError, match="in parts"):
        shipper.submit(ANNA, large)
    with pytest.raises(KeyError):
        shipper.submit(BERT, Snapshot(1))


# --- room -----------------------------------------------------------------------------------------
def test_room_is_made_of_the_oldest_that_may_be_dropped_and_were_not_begun(
    shipper: Shipper, daemon: Daemon
) -> None:
    snapshots = [Snapshot(number, bytes(10)) for number in range(1, 6)]
    told: list[int] = []
    for snapshot in snapshots:
        shipper.submit(
            ANNA,
            snapshot,
            droppable=lambda number=snapshot.number: number != 2,
            on_dropped=lambda number=snapshot.number: told.append(number),
        )
    daemon.receive()  # the first one is offered

    waited_s = shipper.make_room(ANNA, 15, SOON_S)

    assert waited_s < 1.0
    assert told == [3, 4]
    assert [s.number for s in snapshots if s.released.is_set()] == [3, 4]
    assert shipper.dropped(ANNA) == 2
    assert shipper.pending_bytes(ANNA) == 30


def test_what_is_begun_while_its_owner_is_asked_is_not_dropped(
    shipper: Shipper, daemon: Daemon
) -> None:
    shipper.disconnect()
    snapshot = Snapshot(1)

    def slowly() -> bool:
        shipper.connect(daemon.address)
        daemon.receive()
        return True

    shipper.submit(ANNA, snapshot, droppable=slowly)

    shipper.make_room(ANNA, 5, 0.01)

    assert (shipper.dropped(ANNA), shipper.unstored(ANNA)) == (0, 1)
    assert not snapshot.released.is_set()


def test_what_is_left_of_the_time_is_waited_for_the_daemon(
    shipper: Shipper, daemon: Daemon
) -> None:
    shipper.submit(ANNA, Snapshot(1, bytes(10)))
    shipper.submit(ANNA, Snapshot(2, bytes(10)))

    assert shipper.make_room(ANNA, 5, 0.05) >= 0.05
    timer = threading.Timer(0.1, shipper.stored, [ANNA, 1])
    timer.start()
    waited_s = shipper.make_room(ANNA, 5, SOON_S)
    timer.join()

    assert 0.05 <= waited_s < SOON_S / 2
    assert shipper.unstored(ANNA) == 1


def test_room_is_not_waited_for_where_nothing_can_be_freed_any_more(shipper: Shipper) -> None:
    assert shipper.make_room(ANNA, 10**9, SOON_S) < 1.0
    assert shipper.make_room(BERT, 10**9, SOON_S) == 0.0


# --- the thread -----------------------------------------------------------------------------------
def test_the_thread_is_there_from_the_first_snapshot_to_the_last_producer(
    shipper: Shipper, daemon: Daemon
) -> None:
    shipper.add(BERT, print)
    assert shippers() == []
    shipper.submit(ANNA, Snapshot(1))
    assert shippers() == ["mle-shipper"]

    shipper.remove(BERT)
    assert shippers() == ["mle-shipper"]
    shipper.remove(ANNA)
    assert shippers() == []


def test_an_idle_thread_ends_and_begins_again(
    shipper: Shipper, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "_LINGER_S", 0.05)
    for number in (1, 2):
        shipper.submit(ANNA, Snapshot(number))
        assert daemon.take_all() == b"content"
        time.sleep(0.2)
        assert shippers() == ["mle-shipper"]  # until it is stored
        shipper.stored(ANNA, number)
        wait_until(lambda: not shippers())


def test_what_is_not_stored_when_its_producer_is_removed_is_left_alone(
    shipper: Shipper, daemon: Daemon
) -> None:
    snapshot = Snapshot(1)
    shipper.submit(ANNA, snapshot)
    daemon.take_all()

    shipper.remove(ANNA)

    assert not snapshot.released.is_set()
    assert shipper.wait(ANNA, 0)


def test_a_snapshot_that_comes_while_the_thread_is_ending_is_sent(
    shipper: Shipper, daemon: Daemon
) -> None:
    for number in itertools.count(1):
        shipper.submit(ANNA, Snapshot(number))
        assert daemon.take_all() == b"content"
        shipper.stored(ANNA, number)
        if number == 30:
            return
        closing = threading.Thread(target=shipper.close)
        closing.start()
        if number % 2:
            closing.join()
        shipper.submit(ANNA, Snapshot(1000 + number))
        assert daemon.take_all() == b"content"
        shipper.stored(ANNA, 1000 + number)
        closing.join()


def test_a_forked_child_leaves_the_thread_and_the_socket_to_its_parent(
    shipper: Shipper, daemon: Daemon
) -> None:
    snapshot = Snapshot(1, bytes(2 * WINDOW))
    shipper.submit(ANNA, snapshot)
    daemon.take()
    pid = os.fork()
    if pid == 0:
        shipper.forget()
        shipper.close()
        ours = shipper.unstored(ANNA) == 0 and shipper.wait(ANNA, 0)
        os._exit(0 if ours and not snapshot.released.is_set() else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert isinstance(daemon.receive(), aw.Chunk)  # the parent goes on
