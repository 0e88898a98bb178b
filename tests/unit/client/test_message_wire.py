"""Messages: what goes in comes out, and frames that are not ours give one documented error."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import message_wire
from mle_client import messages as m
from mle_client.errors import ProtocolError
from tests.strategies import plain_values

ID = m.ProducerId(b"p" * 16)
REQUESTS = [
    m.Hello(1, 5, "host"), m.Data(ID, 7, b"payload"), m.Save(ID), m.Flush(1, ID, 9),
    m.Publish(2, "/exp"), m.AskStatus(3), m.Stop(4),
]  # fmt: skip
REPLIES = [
    m.Welcome(1, "id", "/exp", 4096, "ipc://art"), m.Ack(ID, 1, 2, 3), m.Expect(ID, 4),
    m.Refused(m.NO_PRODUCER, "why"), m.Notice(ID, "what"), m.Done(1, ""), m.Status(1, {"pid": 1}),
    m.Leaving(), m.Renamed(ID, "seed_1_dup2"), m.Stored(ID, 1, ""),
]  # fmt: skip


def name(message: m.Message) -> str:
    return type(message).__name__


@pytest.mark.parametrize("message", [*REQUESTS, *REPLIES], ids=name)
def test_a_message_comes_back_equal(message: m.Message) -> None:
    assert message_wire.decode(message_wire.encode(message)) == message


@pytest.mark.parametrize("message", REQUESTS, ids=name)
def test_a_daemon_takes_a_request(message: m.Message) -> None:
    assert message_wire.decode_request(message_wire.encode(message)) == message


@pytest.mark.parametrize("message", REPLIES, ids=name)
def test_a_daemon_takes_no_reply(message: m.Message) -> None:
    with pytest.raises(ProtocolError, match="a client may not send"):
        message_wire.decode_request(message_wire.encode(message))


@pytest.mark.parametrize("message", [*REQUESTS, *REPLIES], ids=name)
def test_a_message_with_a_value_or_a_frame_too_many_or_too_few_is_refused(
    message: m.Message,
) -> None:
    frames = message_wire.encode(message)
    values = msgpack.unpackb(frames[0])
    for changed in (
        [msgpack.packb([*values, 0]), *frames[1:]],
        [msgpack.packb(values[:-1]), *frames[1:]],
        [*frames, b""],
        frames[1:],
    ):
        with pytest.raises(ProtocolError):
            message_wire.decode(changed)


@given(st.lists(st.binary(max_size=64), max_size=3))
def test_any_frames_give_a_message_or_a_protocol_error(frames: list[bytes]) -> None:
    with contextlib.suppress(ProtocolError):
        message_wire.decode(frames)


@given(plain_values(), st.binary(max_size=20))
def test_any_msgpack_value_gives_a_message_or_a_protocol_error(value: object, more: bytes) -> None:
    packed = msgpack.packb(value)
    for frames in ([packed], [packed, more]):
        with contextlib.suppress(ProtocolError):
            message_wire.decode(frames)
