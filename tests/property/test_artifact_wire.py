"""Whatever comes on the artifact socket is a message within bounds, or a `ProtocolError`."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from mle_client import artifact_wire as aw
from mle_client.errors import ProtocolError
from mle_client.messages import NO_PRODUCER, ProducerId

producers = st.binary(min_size=16, max_size=16).map(ProducerId)
numbers = st.integers(1, 2**63 - 1)
sizes = st.integers(0, aw.MAX_ARTIFACT_BYTES)
payloads = st.binary(min_size=1, max_size=50)
messages: st.SearchStrategy[aw.Message] = st.one_of(
    st.builds(aw.Offer, producers, numbers, sizes, st.sampled_from(aw.FORMS)),
    st.builds(aw.Chunk, producers, numbers, st.integers(0, aw.MAX_ARTIFACT_BYTES - 50), payloads),
    st.builds(aw.Taken, producers, numbers, sizes),
    st.builds(
        aw.Declined,
        producers | st.just(NO_PRODUCER),
        st.integers(0, 2**63 - 1),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    ),
    st.builds(aw.Restart, producers, numbers),
)
plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary()
    | st.text(st.characters(exclude_categories=["Cs"])) | st.just(b"p" * 16),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


def check(frames: list[aw.Buffer]) -> None:
    """What decodes is within bounds and stays what it is; nothing but a ProtocolError comes out."""
    try:
        message = aw.decode(frames)
    except ProtocolError:
        return
    assert aw.decode(aw.encode(message)) == message
    assert len(message.producer) in (0, 16)
    if isinstance(message, aw.Offer):
        assert 0 <= message.size <= aw.MAX_ARTIFACT_BYTES
    if isinstance(message, aw.Chunk):
        assert message.offset >= 0
        assert 1 <= len(message.payload) <= aw.MAX_CHUNK_BYTES


@given(messages)
def test_every_message_comes_back_equal(message: aw.Message) -> None:
    assert aw.decode(aw.encode(message)) == message


@given(messages, st.data())
def test_a_mutated_message_is_another_one_or_refused(message: aw.Message, data: Any) -> None:
    frames: list[aw.Buffer] = [bytearray(frame) for frame in aw.encode(message)]
    head = bytearray(frames[0])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(head)))
        end = data.draw(st.integers(at, min(len(head), at + 3)))
        head[at:end] = data.draw(st.binary(max_size=4))
    frames[0] = head
    if data.draw(st.booleans()):
        frames = data.draw(st.permutations([*frames, data.draw(st.binary(max_size=20))]))

    check(frames)


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_any_bytes_are_a_message_or_refused(frames: list[bytes]) -> None:
    check(list(frames))


@given(st.sampled_from([1, 2, 65, 66, 67]), st.lists(plain, max_size=6), st.booleans())
def test_any_values_are_a_message_or_refused(number: int, values: list[Any], two: bool) -> None:
    check([msgpack.packb([number, *values]), *([b"payload"] if two else [])])
