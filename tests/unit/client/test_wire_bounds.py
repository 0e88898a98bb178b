"""What is too large, too many or of no type is refused with an error that names the bound."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc
from typing import Any

import msgpack
import pytest

from mle_client import message_wire, packing, tick_writers, wire
from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_client.ring import SEGMENT_BYTES
from tests.daemon_rig import make_run

RUN = make_run()
MILLIONS = 8 * 2**20


def refuse(payload: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        wire.StreamDecoder().decode(payload)


def field(name: str = "x", code: str = "<f8", shape: tuple[int, ...] = ()) -> list[Any]:
    return [name, code, list(shape)]


def schema(number: int = 0, *fields: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(["schema", number, [], list(fields)])
    return packed


def run_with(**changes: Any) -> bytes:
    fields = {**dataclasses.asdict(RUN), "process": list(RUN.process), **changes}
    packed: bytes = msgpack.packb(["run", fields])
    return packed


# --- memory ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("byte", [b"\x90", b"\x80", b"\xc0"], ids=["lists", "maps", "nils"])
@pytest.mark.parametrize("nested", [False, True])
def test_few_bytes_do_not_become_much_memory(byte: bytes, nested: bool) -> None:
    inner = b"\xdd" + struct.pack(">I", MILLIONS) + byte * MILLIONS
    if nested:  # no array of it has too many items
        lists, each = 256, MILLIONS // 256
        inner = b"\xdc" + struct.pack(">H", lists)
        inner += (b"\xdd" + struct.pack(">I", each) + byte * each) * lists
    payload = b"\x92\xa3run" + inner
    tracemalloc.start()
    try:
        refuse(payload, "max_array_len|more than 1048576 values")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(payload)  # a list takes 64 bytes


def test_a_journal_record_may_hold_what_a_message_may_not() -> None:
    body = ["state", [0] * (m.MAX_ITEMS + 1)]
    assert packing.split_record(msgpack.packb(body) + b"behind") == (body, b"behind")


# --- types ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("extension", [msgpack.ExtType(5, b""), msgpack.ExtType(5, b"12345678")])
def test_no_extension_type_is_valid(extension: msgpack.ExtType) -> None:
    refuse(run_with(kept={"x": extension}), "exten|max_ext_len")


@pytest.mark.parametrize(
    "body",
    [
        ["gap", m.MAX_COUNT + 1, ""],
        ["gap", -1, ""],
        ["gap", True, ""],
        ["artifact", True, "model", "", {}],
        ["artifact", 1, "model", "", {"x": "x" * m.MAX_FACTS_BYTES}],
        ["histograms", 1.0, 2**63, {}],
        ["histograms", 1.0, True, {}],
        ["schema", True, [], []],
        ["schema", 2**32, [], []],
    ],
)
def test_counts_are_what_everybody_can_hold(body: list[Any]) -> None:
    refuse(msgpack.packb(body), "no record|out of bounds|is the bound")


# --- schemas --------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(0, 2**24, 2**24, 2**24), (2**24, 0, 2**23), (2**21 + 1,)])
def test_an_array_is_bounded_even_where_a_length_is_0(shape: tuple[int, ...]) -> None:
    refuse(schema(0, field(shape=shape)), "arrays exceed 16777216")


def test_an_array_that_has_no_items_can_be_read() -> None:
    one = m.Schema(0, (m.Field("x", m.Kind("<f8", (0, 3))), m.Field("note", m.TEXT)), ())
    payload = wire.encode_record(one) + wire.encode_text_tick(one, 1.0, (b"", "hello"))
    block = wire.StreamDecoder().decode(payload)[-1]
    assert isinstance(block, wire.Block)
    assert getattr(block.column(0), "shape", None) == (1, 0, 3)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (schema(0, *(field(str(n), "f8") for n in range(m.MAX_KEYS + 1))), "10000 keys"),
        (schema(0, field("x" * (m.MAX_KEY_BYTES + 1), "f8")), "too long"),
        (schema(0, field(shape=(1,) * (m.MAX_DIMENSIONS + 1))), "no type"),
        (schema(0, field("a", "f8")) + schema(0, field("b", "f8")), "another one than before"),
    ],
)
def test_what_is_wrong_with_a_schema_is_said(record: bytes, why: str) -> None:
    refuse(record, why)


def test_a_stream_has_so_many_schemas() -> None:
    schemas = [m.Schema(n, (), ()) for n in range(m.MAX_SCHEMAS)]
    decoder = wire.StreamDecoder()
    decoder.decode(b"".join(map(wire.encode_record, schemas)))
    decoder.decode(wire.encode_record(schemas[0]))  # it may come again
    with pytest.raises(ProtocolError, match="4096 schemas"):
        decoder.decode(wire.encode_record(m.Schema(m.MAX_SCHEMAS, (), ())))


def test_the_schemas_of_a_stream_take_so_many_bytes() -> None:
    fields = tuple(m.Field(f"{n:04}" + "x" * 1_000, m.FLOAT) for n in range(1_000))
    decoder = wire.StreamDecoder()
    for number in range(4):
        decoder.decode(wire.encode_record(m.Schema(number, fields, ())))
    with pytest.raises(ProtocolError, match="exceed 16777216 bytes"):
        decoder.decode(wire.encode_record(m.Schema(4, fields, ())))


def test_a_schema_knows_at_least_how_long_its_record_is() -> None:
    fields = tuple(m.Field("損失" * 100, m.Kind("<f8", (2**24, 0, 70_000))) for _ in range(3))
    each = m.Schema(2**31, fields, fields)
    assert len(wire.encode_record(each)) <= each.size


def test_a_piece_has_so_many_records() -> None:
    gap = wire.encode_record(m.Gap(1, ""))
    assert len(wire.StreamDecoder().decode(gap * m.MAX_RECORDS)) == m.MAX_RECORDS
    refuse(gap * (m.MAX_RECORDS + 1), "more than 32768 records")


def test_a_segment_of_a_ring_has_no_more_records_than_a_piece_may() -> None:
    smallest = [m.Schema(number, (), ()) for number in (0, 1)]
    ticks_of_two = b"".join(tick_writers.pack_fixed(each, 1.0, ()) for each in smallest)
    assert SEGMENT_BYTES / len(ticks_of_two) * 2 < m.MAX_RECORDS


# --- runs -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"directory": "/" + "x" * m.MAX_NAME_BYTES}, "directory is longer than 4096"),
        ({"model_type": "x" * (m.MAX_NAME_BYTES + 1)}, "model_type is longer"),
        ({"config_text": "x" * m.MAX_RUN_BYTES}, "25165824 is the bound"),
        ({"config_file": b"x" * (m.MAX_CONFIG_BYTES + 1)}, "wrong size"),
        ({"num_seeds": 2**63}, "num_seeds is out of bounds"),
        ({"process": [1, "h" * (m.MAX_NAME_BYTES + 1), "7", "boot"]}, "process"),
    ],
)
def test_what_is_too_large_of_a_run_is_said(changes: dict[str, Any], why: str) -> None:
    refuse(run_with(**changes), why)


def test_what_a_run_says_besides_does_not_count() -> None:
    record = run_with(later="x" * m.MAX_RUN_BYTES)
    assert wire.StreamDecoder().decode(record) == [RUN]


# --- messages -------------------------------------------------------------------------------------
def test_a_request_has_so_many_bytes() -> None:
    asked = m.Publish(1, "/" * (m.MAX_REQUEST_BYTES - 100))
    assert message_wire.decode_request(message_wire.encode(asked)) == asked
    with pytest.raises(ProtocolError, match="65536 is the most"):
        message_wire.decode_request(message_wire.encode(m.Publish(1, "/" * m.MAX_REQUEST_BYTES)))


def test_a_client_does_not_answer() -> None:
    with pytest.raises(ProtocolError, match="may not send a Done"):
        message_wire.decode_request(message_wire.encode(m.Done(1, "")))


@pytest.mark.parametrize(
    "message",
    [
        m.Refused(m.NO_PRODUCER, "ö" * 10_000),
        m.Notice(m.NO_PRODUCER, "ö" * 10_000),
        m.Done(1, "ö" * 10_000),
        m.Stored(m.ProducerId(bytes(16)), 1, "ö" * 10_000),
    ],
)
def test_what_a_daemon_says_is_cut(message: m.Message) -> None:
    (frame,) = message_wire.encode(message)
    assert len(frame) < m.MAX_REASON_BYTES + 50
    assert "ö" * 2_000 in str(message_wire.decode([frame]))


def test_a_tick_of_the_largest_size_passes() -> None:
    one = m.Schema(0, (), (m.Field("x", m.Kind("|u1", (m.MAX_TICK_BYTES,))),))
    tick = tick_writers.pack_fixed(one, 1.0, (bytes(m.MAX_TICK_BYTES),))
    assert len(tick) < m.MAX_FRAME_BYTES
    assert len(wire.StreamDecoder().decode(wire.encode_record(one) + tick)) == 2
