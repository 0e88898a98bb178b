"""How many ticks there are, and the latest, out of a stream's bytes."""

from __future__ import annotations

import numpy as np
import pytest

from mle_client import messages as m
from mle_client import tick_writers, wire
from mle_client.errors import ProtocolError
from mle_client.tally import Latest, Tally

PAIR = m.Schema(0, (m.Field("step", m.INT),), (m.Field("loss", m.FLOAT), m.Field("ok", m.BOOL)))
NOTE = m.Schema(1, (), (m.Field("note", m.TEXT), m.Field("v", m.Kind("<f4", (2,)))))
SCHEMAS = {schema.number: schema for schema in (PAIR, NOTE)}


def pair(step: int, loss: float = 0.5, ok: bool = True) -> bytes:
    """A tick of two numbers and a truth."""
    return tick_writers.pack_fixed(PAIR, float(step), (step, loss, ok))


def note(step: int, text: str) -> bytes:
    """A tick of a text and a vector."""
    vector = np.full(2, step, "<f4").tobytes()
    return wire.encode_text_tick(NOTE, float(step), (text, vector))


def test_before_the_first_tick_there_is_none() -> None:
    assert Tally().latest(b"", {}) == Latest(0, 0.0, {}, {})
    assert Tally().latest(wire.encode_record(PAIR), {}) == Latest()


def test_the_latest_tick_is_the_last_one_whatever_lies_behind_it() -> None:
    artifact = wire.encode_record(m.Artifact(1, "model", "", {}))
    records = b"".join((pair(1), pair(2), pair(3, 0.25, False), artifact))
    latest = Tally().latest(records, SCHEMAS)
    assert latest == Latest(3, 3.0, {"step": 3}, {"loss": 0.25, "ok": False})
    assert [type(value) for value in latest.stats.values()] == [float, bool]
    assert type(latest.clock["step"]) is int


def test_ticks_of_every_kind_count() -> None:
    latest = Tally().latest(pair(1) + note(2, "a") + note(3, "größe"), SCHEMAS)
    assert (latest.ticks, latest.seconds, latest.clock) == (3, 3.0, {})
    assert latest.stats["note"] == "größe"
    assert latest.stats["v"].tolist() == [3.0, 3.0]


def test_what_was_taken_in_counts_and_what_is_looked_at_does_not() -> None:
    tally = Tally()
    tally.add(pair(1) + pair(2), SCHEMAS)
    tally.add(note(3, "a"), SCHEMAS)
    for _ in range(2):
        assert tally.latest(pair(4), SCHEMAS).ticks == 4
    assert tally.latest(b"", SCHEMAS).ticks == 3
    assert tally.latest(b"", SCHEMAS).stats["note"] == "a"


def test_a_segment_without_a_tick_changes_nothing() -> None:
    tally = Tally()
    tally.add(pair(1), SCHEMAS)
    tally.add(wire.encode_record(m.Gap(7, "no room")), SCHEMAS)
    assert tally.latest(b"", SCHEMAS) == Latest(1, 1.0, {"step": 1}, {"loss": 0.5, "ok": True})


def test_bytes_that_are_no_stream_are_an_error() -> None:
    with pytest.raises(ProtocolError):
        Tally().latest(pair(1)[:-1], SCHEMAS)
