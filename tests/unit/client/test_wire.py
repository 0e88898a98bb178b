"""Records: what goes in comes out, and bytes that are not ours give one documented error."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import messages as m
from mle_client import tick_layout, tick_writers, ticks, wire
from mle_client.errors import ProtocolError
from tests.strategies import plain_values, tick_sequences

LOSS = m.Schema(0, (m.Field("step", m.INT),), (m.Field("loss", m.FLOAT), m.Field("ok", m.BOOL)))
NOTE = m.Schema(1, (), (m.Field("note", m.TEXT), m.Field("v", m.Kind("<f4", (2,)))))
RUN = m.Run(
    run_id=m.RunId(b"r" * 16), directory="/exp", experiment_dir="exp/", seed_id="seed_1",
    eval_id="cfg", model_type="torch", start_time=1.5, config_name="cfg.yaml", config_file=b"a: 1",
    config_text="{'a': 1}", config_json="", num_seeds=None, overwrite=False, forked=False,
    reload=False, policy={}, kept={}, tboard=False, wandb={},
    process=m.Process(1, "h", "7", "boot"),
)  # fmt: skip


def fixed(schema: m.Schema, *rows: tuple[object, ...]) -> bytes:
    return b"".join(tick_writers.pack_fixed(schema, float(i), row) for i, row in enumerate(rows))


@pytest.mark.parametrize("record", [RUN, LOSS, NOTE, m.Gap(3, "disk full"), m.End()])
def test_a_record_comes_back_equal(record: m.Run) -> None:
    assert wire.StreamDecoder().decode(wire.encode_record(record)) == [record]


def test_a_fixed_tick_is_valid_msgpack() -> None:
    packed = fixed(LOSS, (3, 0.5, True))
    number, values = msgpack.unpackb(packed)
    assert number == LOSS.number
    assert struct.unpack("<dqd?", values) == (0.0, 3, 0.5, True)


def test_alike_ticks_become_one_block_without_a_python_object_each() -> None:
    count = 1000  # more than the decoder's first guess, so that its steps are joined
    stream = wire.encode_record(LOSS) + fixed(LOSS, *((i, i / 2, i % 3 == 0) for i in range(count)))
    _, block = wire.StreamDecoder().decode(stream)
    assert isinstance(block, wire.FixedBlock)
    assert len(block) == count
    np.testing.assert_array_equal(block.column(0), np.arange(count))
    np.testing.assert_array_equal(block.column(1), np.arange(count) / 2)
    np.testing.assert_array_equal(block.column(2), np.arange(count) % 3 == 0)


def test_ticks_of_several_schemas_keep_their_order() -> None:
    text = wire.encode_text_tick(NOTE, 5.0, ["größe", np.array([1, 2], "<f4").tobytes()])
    stream = b"".join(
        [wire.encode_record(LOSS), wire.encode_record(NOTE), fixed(LOSS, (1, 1.0, True)), text,
         text, fixed(LOSS, (2, 2.0, False), (3, 3.0, False))]
    )  # fmt: skip
    blocks = wire.StreamDecoder().decode(stream)[2:]
    assert [len(block) for block in blocks if isinstance(block, wire.Block)] == [1, 2, 2]
    assert isinstance(blocks[1], wire.TextBlock)
    assert blocks[1].column(0) == ["größe", "größe"]
    np.testing.assert_array_equal(blocks[1].column(1), np.array([[1, 2], [1, 2]], "<f4"))


def test_a_schema_sent_in_an_earlier_piece_is_remembered() -> None:
    decoder = wire.StreamDecoder()
    decoder.decode(wire.encode_record(LOSS))
    assert len(decoder.decode(fixed(LOSS, (1, 1.0, True)))) == 1


def test_a_refused_piece_leaves_the_decoder_as_it_was() -> None:
    decoder = wire.StreamDecoder()
    with pytest.raises(ProtocolError):
        decoder.decode(wire.encode_record(LOSS) + b"\xc1")
    assert decoder.schemas == {}


@pytest.mark.parametrize(
    "damage",
    [
        fixed(LOSS, (1, 1.0, True)),  # its schema was not sent
        wire.encode_record(LOSS) + fixed(LOSS, (1, 1.0, True))[:-1],
        wire.encode_record(LOSS) + fixed(LOSS, (1, 1.0, True))[:-1] + b"\x02",  # no bool
        wire.encode_record(LOSS) + wire.encode_record(m.Schema(0, (), ())),
        wire.encode_record(NOTE) + wire.encode_text_tick(NOTE, 1.0, [3, b"12345678"]),
        wire.encode_record(NOTE) + wire.encode_text_tick(NOTE, 1.0, ["a", b"short"]),
        msgpack.packb(["run", {}]),
        msgpack.packb(["schema", 1, [["a", "i8", [1]]], []]),
        msgpack.packb(["schema", 1, [["a", "O", []]], []]),
        msgpack.packb(["schema", 1, [["a", "<f8", [2**40]]], []]),
        msgpack.packb(["schema", 1, [["a", "i8", []], ["a", "i8", []]], []]),
        msgpack.packb(["gap", -1, ""]),
        msgpack.packb({"run": 1}),
        msgpack.packb([1]),
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_bytes_that_are_no_records_are_refused(damage: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.StreamDecoder().decode(damage)


def test_a_schema_of_a_refused_piece_says_nothing_about_the_next_one_of_that_number() -> None:
    decoder = wire.StreamDecoder()
    refused = m.Schema(0, (m.Field("a", m.INT), m.Field("b", m.INT)), ())
    taken = m.Schema(0, (), (m.Field("x", m.FLOAT), m.Field("y", m.FLOAT)))
    with pytest.raises(ProtocolError):
        decoder.decode(wire.encode_record(refused) + fixed(refused, (1, 2)) + b"\xc1")
    block = decoder.decode(wire.encode_record(taken) + fixed(taken, (0.5, 1.5)))[-1]
    assert isinstance(block, wire.Block)
    assert [block.column(index) for index in (0, 1)] == [[0.5], [1.5]]


def test_a_record_may_be_larger_than_the_decoder_looks_at_first() -> None:
    gap = m.Gap(1, "x" * 100_000)
    assert wire.StreamDecoder().decode(wire.encode_record(gap) * 2) == [gap, gap]


@given(plain_values(), st.binary(max_size=20))
def test_any_msgpack_value_gives_a_record_or_a_protocol_error(value: object, more: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        wire.StreamDecoder().decode(msgpack.packb(value) + more)


@given(tick_sequences(), st.data())
def test_any_change_of_a_stream_gives_records_or_a_protocol_error(
    sequence: list[tuple[dict[str, object], dict[str, object]]], data: st.DataObject
) -> None:
    stream = bytearray(encode_sequence(sequence))
    if stream:
        at = data.draw(st.integers(0, len(stream) - 1))
        stream[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        wire.StreamDecoder().decode(bytes(stream))


def encode_sequence(sequence: list[tuple[dict[str, object], dict[str, object]]]) -> bytes:
    """A stream of ticks, encoded in the general way."""
    schemas: dict[object, m.Schema] = {}
    parts = []
    for clock, stats in sequence:
        described = ticks.describe(clock, stats)
        fields = (described.clock, described.stats)
        if fields not in schemas:
            schemas[fields] = m.Schema(len(schemas), *fields)
            parts.append(wire.encode_record(schemas[fields]))
        encode = (
            tick_writers.pack_fixed
            if tick_layout.has_fixed_layout(schemas[fields])
            else wire.encode_text_tick
        )
        parts.append(encode(schemas[fields], 1.0, described.values))
    return b"".join(parts)


@given(tick_sequences())
def test_every_tick_of_a_stream_comes_back_equal(
    sequence: list[tuple[dict[str, object], dict[str, object]]],
) -> None:
    records = wire.StreamDecoder().decode(encode_sequence(sequence))
    seen = []
    for block in records:
        if isinstance(block, wire.Block):
            columns = [block.column(i) for i in range(len(block.schema.fields))]
            seen += [[column[row] for column in columns] for row in range(len(block))]
    for (clock, stats), values in zip(sequence, seen, strict=True):
        sent = [value for key, value in clock.items() if key not in ("time",)] + [*stats.values()]
        for expected, value in zip(sent, values, strict=True):
            np.testing.assert_array_equal(np.asarray(value), np.asarray(expected))


# --- artifacts, histograms, processes -------------------------------------------------------------
FACTS = {"number": 3, "time": None, "metrics": {"größe": float("inf")}, "clocks": {"n": 2**63 - 1}}


@pytest.mark.parametrize(
    "record",
    [
        m.Artifact(1, "model", "", FACTS),
        m.Artifact(2**63 - 1, "init", "", {}),
        m.Artifact(3, "figure", "figures/größe.png", {"step": -1, "seconds": 0.5, "row": 0}),
        m.Artifact(4, "extra", "extra/" + "x" * (m.MAX_NAME_BYTES - 6), {}),
        m.Artifact(4, m.DROPPED, "", {}),
        m.Histograms(1.5, -(2**63), {"weights/w": {"min": 0.0, "counts": [1.0, 2.0]}}),
        m.Histograms(1.5, 0, {}),
    ],
)
def test_what_was_saved_comes_back(record: m.Artifact | m.Histograms) -> None:
    encoded = wire.encode_record(record)
    assert wire.StreamDecoder().decode(encoded) == [record]
    behind = wire.encode_record(LOSS) + fixed(LOSS, (1, 1.0, True)) + encoded
    assert wire.StreamDecoder().decode(behind)[-1] == record
    assert tick_layout.committed_end(memoryview(behind + b"\xc0\0\0\0")) == len(behind)


def test_a_run_comes_back_with_its_settings_and_its_process() -> None:
    run = dataclasses.replace(
        RUN,
        reload=True,
        policy={"every_k": 2, "rules": [{"rule": "LatestN", "n": 1}]},
        kept={"figures": ["figures/größe.png"]},
        tboard=True,
        wandb={"project": "p"},
        process=m.Process(2**31, "größe", "", "boot"),
    )
    (again,) = wire.StreamDecoder().decode(wire.encode_record(run))
    assert again == run
    assert isinstance(again, m.Run)
    assert isinstance(again.process, m.Process)


@pytest.mark.parametrize(
    "body",
    [
        ["artifact", 0, "model", "", {}],
        ["artifact", -1, "model", "", {}],
        ["artifact", 2**63, "model", "", {}],
        ["artifact", 1, "virus", "", {}],
        ["artifact", 1, "model", "models/final/x", {}],
        ["artifact", 1, m.DROPPED, "extra/a", {}],
        ["artifact", 1, "figure", "", {}],
        ["artifact", 1, "extra", "x" * (m.MAX_NAME_BYTES + 1), {}],
        ["artifact", 1, "extra", "ö" * (m.MAX_NAME_BYTES // 2 + 1), {}],
        ["artifact", 1, "model", "", {1: 2}],
        ["artifact", 1, "model", "", {b"number": 2}],
        ["artifact", 1, "model", "", {"x": "x" * m.MAX_PLAIN_BYTES}],
        ["artifact", 1, "model", "", []],
        ["artifact", 1, "model", ""],
        ["artifact", "1", "model", "", {}],
        ["histograms", 1, 2, {}],
        ["histograms", 1.0, 2.0, {}],
        ["histograms", 1.0, 2, []],
        ["histograms", 1.0, 2, {"w": "x" * m.MAX_PLAIN_BYTES}],
        ["histograms", 1.0, 2, {3: {}}],
    ],
)
def test_what_no_client_saves_is_refused(body: list[Any]) -> None:
    with pytest.raises(ProtocolError):
        wire.StreamDecoder().decode(msgpack.packb(body))


@pytest.mark.parametrize(
    "changes",
    [
        {"reload": 1},
        {"policy": []},
        {"policy": {1: 2}},
        {"policy": {"x": "x" * m.MAX_PLAIN_BYTES}},
        {"kept": None},
        {"tboard": "yes"},
        {"wandb": {"x": "x" * m.MAX_PLAIN_BYTES}},
        {"process": []},
        {"process": [1, "h", "7"]},
        {"process": [-1, "h", "7", "boot"]},
        {"process": ["1", "h", "7", "boot"]},
        {"process": [1, "h", 7, "boot"]},
        {"process": {"pid": 1}},
    ],
)
def test_a_run_with_other_settings_is_refused(changes: dict[str, Any]) -> None:
    fields = {**dataclasses.asdict(RUN), "process": list(RUN.process), **changes}
    with pytest.raises(ProtocolError):
        wire.StreamDecoder().decode(msgpack.packb(["run", fields]))


def test_a_run_of_an_older_client_is_refused() -> None:
    fields = {**dataclasses.asdict(RUN), "process": list(RUN.process)}
    assert wire.StreamDecoder().decode(msgpack.packb(["run", fields])) == [RUN]
    for name in ("reload", "policy", "kept", "tboard", "wandb", "process"):
        less = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(ProtocolError):
            wire.StreamDecoder().decode(msgpack.packb(["run", less]))
