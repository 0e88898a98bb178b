"""Messages of the artifact socket as bytes, and back.  Artifact protocol version 1.

Pure.  Artifacts (models, figures, objects) travel on a socket of their own, so that no tick waits
behind a large one.  What an artifact is, and what it is called, says the record `Artifact` in the
stream of ticks; here are only its bytes, named by producer and number.

A message is one frame, a msgpack array that begins with the message's number, and for `Chunk` a
second one, the bytes (`docs/artifact-protocol.md` has the tables):

    to the daemon   [1, version, producer, number, size, form]    Offer
                    [2, producer, number, offset]                 Chunk, bytes
    to the client   [65, producer, number, offset]                Taken
                    [66, producer, number, reason]                Declined
                    [67, producer, number]                        Restart

An artifact is offered; the daemon answers from which offset on it wants it; chunks follow, each
from the end of the last one, at most the client's window beyond what `Taken` has confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgpack

from mle_client.errors import ProtocolError, VersionMismatch
from mle_client.messages import NO_PRODUCER, ProducerId

ARTIFACT_VERSION: Final = 1

# Bounds.  A larger artifact than this is a mistake: it would take an hour at 300 MB/s.
MAX_ARTIFACT_BYTES: Final = 2**40
# Of one chunk.  A client can make a daemon hold a few of them at once.
MAX_CHUNK_BYTES: Final = 4 * 2**20
MAX_REASON_BYTES: Final = 4_096  # UTF-8 bytes
_MAX_HEAD_BYTES: Final = MAX_REASON_BYTES + 256

FILE: Final = "file"  # the bytes are the file that is to be stored
FIGURE: Final = "figure"  # they are a pickled figure, of which a picture has to be made first
FORMS: Final = (FILE, FIGURE)

Buffer: TypeAlias = bytes | bytearray | memoryview


# --- client to daemon -----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Offer:
    """An artifact is to be sent; answered by `Taken`.  Asked again, it is answered again.

    Args:
        number: of the artifact, counted from 1 for each producer.
        size: in bytes.
        form: one of `FORMS`.
    """

    producer: ProducerId
    number: int
    size: int
    form: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of an artifact that was offered.  Args: offset: of the first one in the artifact."""

    producer: ProducerId
    number: int
    offset: int
    payload: Buffer


# --- daemon to client -----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Taken:
    """The bytes before `offset` are written; the daemon wants those from there on.

    With `offset` the artifact's size, all of it is synced.  The client keeps it nevertheless until
    the other socket has said `Stored`.
    """

    producer: ProducerId
    number: int
    offset: int


@dataclass(frozen=True, slots=True)
class Declined:
    """An artifact will not be taken, now or ever.

    Args:
        producer, number: of it; `NO_PRODUCER` and 0 where something came that was no message.
        reason: what is wrong, cut to `MAX_REASON_BYTES`.
    """

    producer: ProducerId
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Restart:
    """What came of an artifact is gone: offer it again."""

    producer: ProducerId
    number: int


Request: TypeAlias = Offer | Chunk
Reply: TypeAlias = Taken | Declined | Restart
Message: TypeAlias = Request | Reply


# --- writing --------------------------------------------------------------------------------------
def encode(message: Message) -> list[Buffer]:
    """A message as the frames of one multipart message."""
    match message:
        case Offer(producer, number, size, form):
            return [_pack(1, ARTIFACT_VERSION, producer, number, size, form)]
        case Chunk(producer, number, offset, payload):
            return [_pack(2, producer, number, offset), payload]
        case Taken(producer, number, offset):
            return [_pack(65, producer, number, offset)]
        case Declined(producer, number, reason):
            return [_pack(66, producer, number, _cut(reason))]
        case Restart(producer, number):
            return [_pack(67, producer, number)]


def _cut(reason: str) -> str:
    encoded = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES]
    return encoded.decode("utf-8", "ignore")


def _pack(*values: Any) -> bytes:
    packed: bytes = msgpack.packb(values, use_bin_type=True)
    return packed


# --- reading --------------------------------------------------------------------------------------
def _is_id(value: object) -> bool:
    return type(value) is bytes and len(value) == len(_ID)


def _is_id_or_empty(value: object) -> bool:
    return value == NO_PRODUCER or _is_id(value)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    return _is_count(value) and value != 0


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ARTIFACT_BYTES


def _is_form(value: object) -> bool:
    return type(value) is str and value in FORMS


def _is_reason(value: object) -> bool:
    return type(value) is str and len(value.encode("utf-8", "replace")) <= MAX_REASON_BYTES


_ID: Final = bytes(16)
_TYPES: Final[dict[int, type[Any]]] = {
    1: Offer, 2: Chunk, 65: Taken, 66: Declined, 67: Restart,
}  # fmt: skip
_CHECKS: Final[dict[type[Any], tuple[Callable[[object], bool], ...]]] = {
    Offer: (_is_id, _is_number, _is_size, _is_form),  # behind the version
    Chunk: (_is_id, _is_number, _is_size),
    Taken: (_is_id, _is_number, _is_size),
    Declined: (_is_id_or_empty, _is_count, _is_reason),
    Restart: (_is_id, _is_number),
}


def decode(frames: Sequence[Buffer]) -> Message:
    """The message of some frames.

    Args:
        frames: as they came.  A chunk's payload is not copied.

    Raises:
        ProtocolError: they are no message of this protocol.
        VersionMismatch: an offer by a client of another version.
    """
    if not frames or len(frames[0]) > _MAX_HEAD_BYTES:
        raise ProtocolError("a message is empty, or its first frame is larger than any of ours")
    number, *values = _unpack(frames[0])
    kind = _TYPES.get(number) if type(number) is int else None
    if kind is None:
        raise ProtocolError("bytes that are no message of this protocol")
    if kind is Offer:
        values = _without_version(values)
    checks = _CHECKS[kind]
    if len(values) != len(checks) or not all(
        check(value) for check, value in zip(checks, values, strict=True)
    ):
        raise ProtocolError(f"a {kind.__name__} message is malformed or out of bounds")
    expected = 2 if kind is Chunk else 1
    if len(frames) != expected:
        raise ProtocolError(f"a {kind.__name__} message has {expected} frames, not {len(frames)}")
    if kind is Chunk:
        _check_payload(values[2], len(frames[1]))
        return Chunk(values[0], values[1], values[2], frames[1])
    return kind(*values)  # type: ignore[no-any-return]  # kind is a member of Message


def _without_version(values: list[Any]) -> list[Any]:
    """What stands behind the version in an offer.  Raises: VersionMismatch: it is not ours."""
    if not values or not _is_count(values[0]):
        raise ProtocolError("an offer does not say its version")
    if values[0] != ARTIFACT_VERSION:
        raise VersionMismatch(ARTIFACT_VERSION, values[0])
    return values[1:]


def _check_payload(offset: int, length: int) -> None:
    if not 1 <= length <= MAX_CHUNK_BYTES or offset + length > MAX_ARTIFACT_BYTES:
        raise ProtocolError("a chunk is empty, too large or beyond what an artifact may be")


def _unpack(head: Buffer) -> list[Any]:
    try:
        body = msgpack.unpackb(head, raw=False, strict_map_key=False)
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"bytes that are not msgpack: {error}") from error
    if not isinstance(body, list) or not body:
        raise ProtocolError("a msgpack value where an array should be")
    return body
