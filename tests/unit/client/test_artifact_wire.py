"""The codec of the artifact socket: what goes in comes out, all else is one documented error."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest

from mle_client import artifact_wire as aw
from mle_client.errors import ProtocolError, VersionMismatch
from mle_client.messages import NO_PRODUCER, ProducerId

ID = ProducerId(b"p" * 16)
OFFER = aw.Offer(ID, 1, 2**40, "file")
CHUNK = aw.Chunk(ID, 2**63 - 1, 7, b"payload")
MESSAGES = [
    OFFER, aw.Offer(ID, 1, 0, "figure"), CHUNK, aw.Taken(ID, 3, 0), aw.Declined(ID, 3, "größer"),
    aw.Declined(NO_PRODUCER, 0, ""), aw.Restart(ID, 3),
]  # fmt: skip


def packed(*values: object) -> list[aw.Buffer]:
    return [msgpack.packb(values)]


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_a_message_comes_back_equal(message: aw.Message) -> None:
    assert aw.decode(aw.encode(message)) == message


def test_a_chunk_is_neither_copied_when_written_nor_when_read() -> None:
    memory = memoryview(bytearray(b"payload"))

    frames = aw.encode(aw.Chunk(ID, 1, 0, memory))
    message = aw.decode(frames)

    assert frames[1] is memory
    assert isinstance(message, aw.Chunk)
    assert message.payload is memory


def test_a_reason_is_cut_where_no_character_is_torn() -> None:
    (frame,) = aw.encode(aw.Declined(ID, 1, "x" + "ß" * aw.MAX_REASON_BYTES))
    message = aw.decode([frame])

    assert isinstance(message, aw.Declined)
    assert message.reason == "x" + "ß" * (aw.MAX_REASON_BYTES // 2 - 1)


def test_a_reason_that_is_no_utf8_can_be_sent() -> None:
    (frame,) = aw.encode(aw.Declined(ID, 1, "/exp/\udcff"))

    assert aw.decode([frame]) == aw.Declined(ID, 1, "/exp/?")


def test_another_version_is_named() -> None:
    with pytest.raises(VersionMismatch) as caught:
        aw.decode(packed(1, 2, "fields", "of", "that", "version"))

    assert (caught.value.ours, caught.value.theirs) == (aw.ARTIFACT_VERSION, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"producer": b"p" * 15}, {"producer": b""}, {"producer": "p" * 16}, {"number": 0},
        {"number": -1}, {"number": 2**63}, {"number": 1.0}, {"number": True}, {"size": -1},
        {"size": aw.MAX_ARTIFACT_BYTES + 1}, {"size": None}, {"form": "pickle"}, {"form": b"file"},
    ],
    ids=str,
)  # fmt: skip
def test_an_offer_out_of_bounds_is_refused(changes: dict[str, object]) -> None:
    values = {**dataclasses.asdict(OFFER), **changes}

    with pytest.raises(ProtocolError, match="out of bounds"):
        aw.decode(packed(1, aw.ARTIFACT_VERSION, *values.values()))


@pytest.mark.parametrize(
    ("offset", "payload"),
    [
        (-1, b"x"), (0, b""), (0, bytes(aw.MAX_CHUNK_BYTES + 1)), (aw.MAX_ARTIFACT_BYTES, b"x"),
        (2**63, b"x"), ("0", b"x"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else repr(value),
)  # fmt: skip
def test_a_chunk_out_of_bounds_is_refused(offset: object, payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        aw.decode([*packed(2, ID, 1, offset), payload])


@pytest.mark.parametrize(
    "frames",
    [
        [], [b""], [b"\xc1"], [b"\x93\x01"], packed(), packed(9, ID, 1), packed("1", ID, 1),
        [msgpack.packb({1: 2})], [msgpack.packb(1)], [msgpack.packb([[]])],
        [aw.encode(OFFER)[0], b"more"], [aw.encode(CHUNK)[0]], [*aw.encode(CHUNK), b"more"],
        [bytes(aw.encode(OFFER)[0]) + b"\x00"], packed(1), packed(1, None, ID, 1, 0, "file"),
        packed(67, ID), packed(67, ID, 1, 1), [bytes(8_000)], [b"\x91" * 4_000],
        [msgpack.packb([67, msgpack.ExtType(5, b"x"), 1])], [msgpack.packb([67, {(): 1}, 1])],
        packed(66, ID, 1, "x" * (aw.MAX_REASON_BYTES + 1)),
    ],
)  # fmt: skip
def test_what_is_no_message_gives_a_protocol_error(frames: list[aw.Buffer]) -> None:
    with pytest.raises(ProtocolError):
        aw.decode(frames)
