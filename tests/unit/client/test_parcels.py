"""Which artifact is offered and how much of it sent, as the daemon answers, or does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mle_client import parcels
from mle_client.errors import ProtocolError
from mle_client.parcels import Lane, Parcel, State

CHUNK_BYTES, WINDOW_BYTES = 1_000, 8_000


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(parcels, "WINDOW_BYTES", WINDOW_BYTES)


class Bytes:
    """A snapshot.  Args: piece_bytes: of each piece but the last; None for as many as asked for."""

    form = "file"

    def __init__(self, number: int, content: bytes, piece_bytes: int | None = None) -> None:
        self.number = number
        self.content = content
        self.size = len(content)
        self.begun = 0
        self._piece_bytes = piece_bytes

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        self.begun += 1
        step = self._piece_bytes or chunk_bytes
        for at in range(0, len(self.content), step):
            yield self.content[at : at + step]

    def release(self) -> None:
        pass


def lane_of(*sizes: int) -> Lane:
    lane = Lane(lambda error: None)
    lane.parcels = [Parcel(Bytes(i, bytes(size))) for i, size in enumerate(sizes, 1)]
    return lane


def send(lane: Lane) -> int:
    """Send what may be sent.  Returns: how many chunks."""
    count = 0
    while parcel := lane.to_send():
        parcel.sent += len(parcel.read(parcel.sent))
        count += 1
    return count


def offer(lane: Lane, now: float = 0.0) -> int | None:
    """Offer what is to be offered.  Returns: its number."""
    parcel = lane.to_offer(now)
    if parcel is None:
        return None
    parcel.offered(now)
    return parcel.shipment.number


# --- order and window -----------------------------------------------------------------------------
def test_one_parcel_at_a_time_is_offered_and_the_next_when_all_of_it_is_sent() -> None:
    lane = lane_of(3 * CHUNK_BYTES, 5, 5)

    assert offer(lane) == 1
    assert offer(lane) is None
    lane.parcels[0].taken(0, 0.0)
    assert offer(lane) is None
    assert send(lane) == 3
    assert offer(lane) == 2
    assert offer(lane) is None


def test_nothing_is_sent_before_the_daemon_has_answered() -> None:
    lane = lane_of(5)
    offer(lane)

    assert send(lane) == 0
    lane.parcels[0].taken(0, 0.0)
    assert send(lane) == 1


def test_no_more_than_the_window_is_under_way_and_acknowledgements_open_it() -> None:
    lane = lane_of(3 * WINDOW_BYTES)
    offer(lane)
    lane.parcels[0].taken(0, 0.0)

    assert send(lane) == WINDOW_BYTES // CHUNK_BYTES
    lane.parcels[0].taken(2 * CHUNK_BYTES, 0.0)
    assert send(lane) == 2


def test_the_window_is_one_for_all_parcels_of_a_lane() -> None:
    lane = lane_of(WINDOW_BYTES, 5)
    offer(lane)
    lane.parcels[0].taken(0, 0.0)
    send(lane)
    offer(lane)
    lane.parcels[1].taken(0, 0.0)

    assert send(lane) == 0
    lane.parcels[0].taken(CHUNK_BYTES, 0.0)
    assert send(lane) == 1


def test_an_empty_parcel_is_offered_and_lets_the_next_one_pass() -> None:
    lane = lane_of(0, 5)

    offer(lane)
    lane.parcels[0].taken(0, 0.0)

    assert send(lane) == 0
    assert offer(lane) == 2


# --- answers --------------------------------------------------------------------------------------
def test_the_answer_to_an_offer_says_where_to_go_on() -> None:
    lane = lane_of(3 * CHUNK_BYTES)
    offer(lane)

    lane.parcels[0].taken(2 * CHUNK_BYTES, 0.0)

    assert send(lane) == 1


def test_an_older_answer_takes_nothing_back() -> None:
    lane = lane_of(3 * CHUNK_BYTES)
    (parcel,) = lane.parcels
    offer(lane)
    for offset in (0, 2 * CHUNK_BYTES, CHUNK_BYTES):
        parcel.taken(offset, 0.0)

    assert parcel.acked == 2 * CHUNK_BYTES
    assert parcel.sent == 2 * CHUNK_BYTES


def test_an_answer_beyond_the_end_is_an_error() -> None:
    lane = lane_of(5)
    offer(lane)

    with pytest.raises(ProtocolError, match="6 bytes of 5"):
        lane.parcels[0].taken(6, 0.0)


def test_after_a_new_connection_all_are_offered_again_in_order() -> None:
    lane = lane_of(5, 5)
    for number in (1, 2):
        assert offer(lane) == number
        lane.parcels[number - 1].taken(0, 0.0)
        send(lane)

    lane.begin_again()

    assert [(p.state, p.sent, p.acked) for p in lane.parcels] == [(State.QUEUED, 0, 0)] * 2
    assert offer(lane) == 1
    assert lane.not_begun() == []  # what was sent once may be known to the daemon


# --- silence --------------------------------------------------------------------------------------
def test_an_unanswered_offer_is_repeated() -> None:
    lane = lane_of(5)
    offer(lane, now=10.0)

    assert offer(lane, now=10.0 + parcels.STALL_AFTER_S - 0.1) is None
    assert offer(lane, now=10.0 + parcels.STALL_AFTER_S) == 1


def test_unconfirmed_bytes_are_asked_after_and_the_answer_may_go_back() -> None:
    lane = lane_of(3 * CHUNK_BYTES)
    (parcel,) = lane.parcels
    offer(lane)
    parcel.taken(0, 0.0)
    send(lane)
    parcel.taken(CHUNK_BYTES, 1.0)

    assert offer(lane, now=1.0 + parcels.STALL_AFTER_S - 0.1) is None
    assert offer(lane, now=1.0 + parcels.STALL_AFTER_S) == 1
    parcel.taken(0, 9.0)  # it is another daemon, and has nothing

    assert send(lane) == 3


def test_one_that_is_taken_and_not_stored_is_asked_after_later() -> None:
    lane = lane_of(5)
    offer(lane)
    lane.parcels[0].taken(5, 0.0)

    assert offer(lane, now=parcels.REMIND_AFTER_S - 0.1) is None
    assert offer(lane, now=parcels.REMIND_AFTER_S) == 1


def test_one_whose_turn_in_the_window_has_not_come_is_not_asked_after() -> None:
    lane = lane_of(2 * WINDOW_BYTES)
    (parcel,) = lane.parcels
    offer(lane)
    parcel.taken(0, 0.0)
    parcel.sent = parcel.acked = CHUNK_BYTES  # as if others had the window

    assert offer(lane, now=1e9) is None


# --- reading --------------------------------------------------------------------------------------
def test_bytes_are_read_one_piece_after_another_without_beginning_again() -> None:
    content = bytes(range(250)) * 10
    shipment = Bytes(1, content, piece_bytes=CHUNK_BYTES // 3)
    parcel = Parcel(shipment)

    got = bytearray()
    while len(got) < len(content):
        got += parcel.read(len(got))

    assert got == content
    assert shipment.begun == 1


@pytest.mark.parametrize("offset", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 5])
def test_reading_can_go_back_and_forth_to_any_offset(offset: int) -> None:
    content = bytes(i * 7 % 251 for i in range(2 * CHUNK_BYTES + 9))
    parcel = Parcel(Bytes(1, content))
    parcel.read(0)
    parcel.read(CHUNK_BYTES)

    found = bytes(parcel.read(offset))

    assert found
    assert found == content[offset : offset + len(found)]


def test_a_shipment_that_ends_early_is_an_error() -> None:
    shipment = Bytes(1, b"1234")
    shipment.size = 5
    parcel = Parcel(shipment)
    parcel.read(0)

    with pytest.raises(ValueError, match="5 bytes ended after 4"):
        parcel.read(4)
