"""Messages between client and daemon as frames, and back.  Wire protocol version 1.

Pure.  A message is one or two frames: a msgpack array that begins with the message's number, and
for `Data` the payload, a piece of a stream (`wire`).  `docs/wire-protocol.md` has the tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final

from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_client.packing import (
    is_count,
    is_id,
    is_id_or_empty,
    is_report,
    is_text,
    pack,
    unpack_prefix,
)

# The number is the message's place in this list, from 1 on: append, never reorder.
_REQUESTS: Final = (m.Hello, m.Data, m.Save, m.Flush, m.Publish, m.AskStatus, m.Stop)
_REPLIES: Final = (
    m.Welcome, m.Ack, m.Expect, m.Refused, m.Notice, m.Done, m.Status, m.Leaving, m.Renamed,
    m.Stored,
)  # fmt: skip
_FIRST_REPLY: Final = 65
_TYPES: Final[dict[int, type[Any]]] = {
    **dict(enumerate(_REQUESTS, 1)),
    **dict(enumerate(_REPLIES, _FIRST_REPLY)),
}
_NUMBERS: Final[dict[type[Any], int]] = {kind: number for number, kind in _TYPES.items()}


_CHECKS: Final[dict[type[Any], tuple[Callable[[object], bool], ...]]] = {
    m.Hello: (is_count, is_count, is_text),
    m.Data: (is_id, is_count),
    m.Save: (is_id,),
    m.Flush: (is_count, is_id, is_count),
    m.Publish: (is_count, is_text),
    m.AskStatus: (is_count,),
    m.Stop: (is_count,),
    m.Welcome: (is_count, is_text, is_text, is_count, is_text),
    m.Ack: (is_id, is_count, is_count, is_count),
    m.Expect: (is_id, is_count),
    m.Refused: (is_id_or_empty, is_text),
    m.Notice: (is_id_or_empty, is_text),
    m.Done: (is_count, is_text),
    m.Status: (is_count, is_report),
    m.Leaving: (),
    m.Renamed: (is_id, is_text),
    m.Stored: (is_id, is_count, is_text),
}


def encode(message: m.Message) -> list[bytes]:
    """A message as the frames of one multipart message."""
    if isinstance(message, m.Data):
        return [data_header(message.producer, message.position), message.payload]
    values = [getattr(message, field.name) for field in dataclasses.fields(message)]
    if isinstance(message, m.Refused | m.Notice | m.Done | m.Stored):
        values[-1] = _cut(values[-1])
    return [pack([_NUMBERS[type(message)], *values])]


def _cut(reason: str) -> str:
    """A reason that is not longer than it may be: what a client sent may be in it."""
    encoded = reason.encode("utf-8", "replace")[: m.MAX_REASON_BYTES]
    return encoded.decode("utf-8", "ignore")


def data_header(producer: m.ProducerId, position: int) -> bytes:
    """The first frame of a `Data` message, whose second is the payload."""
    return pack([_NUMBERS[m.Data], producer, position])


def decode_request(frames: Sequence[bytes]) -> m.Request:
    """What a client sends.

    Raises:
        ProtocolError: it is no message of this protocol, too large, or one that a daemon sends.
    """
    if frames and len(frames[0]) > m.MAX_REQUEST_BYTES:
        raise ProtocolError(
            f"a request of {len(frames[0])} bytes; {m.MAX_REQUEST_BYTES} is the most"
        )
    message = decode(frames)
    if not isinstance(message, _REQUESTS):
        raise ProtocolError(f"a client may not send a {type(message).__name__} message")
    return message


def decode(frames: Sequence[bytes]) -> m.Message:
    """The message of some frames.

    Raises:
        ProtocolError: they are no message of this protocol.
    """
    if not frames or any(len(frame) > m.MAX_FRAME_BYTES for frame in frames):
        raise ProtocolError("a message is empty or larger than this protocol allows")
    body, end = unpack_prefix(memoryview(frames[0]), 0)
    kind = _TYPES.get(body[0]) if body and type(body[0]) is int else None
    if kind is None or end != len(frames[0]):
        raise ProtocolError("bytes that are no message of this protocol")
    checks = _CHECKS[kind]
    values = body[1:]
    if len(values) != len(checks) or not all(
        check(value) for check, value in zip(checks, values, strict=True)
    ):
        raise ProtocolError(f"a {kind.__name__} message is malformed")
    extra = 2 if kind is m.Data else 1
    if len(frames) != extra:
        raise ProtocolError(f"a {kind.__name__} message has {extra} frames, not {len(frames)}")
    return kind(*values, frames[1]) if kind is m.Data else kind(*values)  # type: ignore[no-any-return]  # kind is a member of Message
