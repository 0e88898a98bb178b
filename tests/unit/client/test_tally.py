"""How many ticks there are, and the latest, out of a stream's bytes."""

from __future__ import annotations

import sys
from typing import Any

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


def filled(*segments: bytes) -> Tally:
    """A tally that has taken them in."""
    tally, base = Tally(), 0
    for records in segments:
        tally.add(base, base + len(records), records, SCHEMAS)
        base += len(records)
    return tally


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
    tally = filled(pair(1) + pair(2), note(3, "a"))
    for _ in range(2):
        assert tally.latest(pair(4), SCHEMAS).ticks == 4
    assert tally.latest(b"", SCHEMAS).ticks == 3
    assert tally.latest(b"", SCHEMAS).stats["note"] == "a"


def test_a_segment_without_a_tick_changes_nothing() -> None:
    tally = filled(pair(1), wire.encode_record(m.Gap(7, "no room")))
    assert tally.latest(b"", SCHEMAS) == Latest(1, 1.0, {"step": 1}, {"loss": 0.5, "ok": True})


def test_a_segment_that_is_taken_in_twice_counts_once() -> None:
    tally = Tally()
    for _ in range(2):
        for _ in range(2):
            tally.add(0, 10, pair(1), SCHEMAS)
        assert tally.latest(pair(2), SCHEMAS).ticks == 2
    tally.add(10, 20, pair(2), SCHEMAS)
    tally.add(0, 10, pair(1), SCHEMAS)
    assert tally.latest(b"", SCHEMAS) == Latest(2, 2.0, {"step": 2}, {"loss": 0.5, "ok": True})


@pytest.mark.parametrize("at", range(1, 25))
def test_a_signal_handler_may_look_in_the_middle_of_counting(at: int) -> None:
    """It interrupts at each line in turn, and both find all that was taken in."""
    tally = filled(pair(1), pair(2), pair(3))
    lines = 0
    seen: list[int] = []

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal lines
        if frame.f_code is not Tally.count.__code__:
            return None
        lines += event == "line"
        if lines == at and not seen:
            seen.append(0)
            sys.settrace(None)
            seen[0] = tally.latest(pair(4), SCHEMAS).ticks
            sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        found = tally.latest(pair(4), SCHEMAS).ticks
    finally:
        sys.settrace(before)
    assert (seen, found) == ([4], 4)
    assert tally.latest(b"", SCHEMAS).ticks == 3


def test_bytes_that_are_no_stream_are_an_error() -> None:
    with pytest.raises(ProtocolError):
        Tally().latest(pair(1)[:-1], SCHEMAS)
