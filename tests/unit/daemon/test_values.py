"""Types of columns: every number is kept exactly, every text whole, every minute formatted once."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import layout
from mle_daemon import values
from mle_daemon.values import (
    Array,
    NumberType,
    Text,
    TextType,
    convert,
    encode_texts,
    text_array,
    time_texts,
)

BIG = 2**53 + 1  # the first integer that a float64 rounds


def common_dtype(*columns: Array) -> np.dtype[Any]:
    """The type of some columns joined, each of which was looked at."""
    kind = NumberType([column.dtype for column in columns])
    for column in columns:
        kind.look(column)
    return kind.dtype


def join_text(old: Text | None, texts: list[str]) -> tuple[Text, Array]:
    """The type of some text behind what is stored, and the values in it."""
    kind, encoded = TextType(old), encode_texts(texts)
    kind.look(encoded)
    assert kind.looked_at_bytes == sum(map(len, encoded))
    return kind.dtype, text_array(encoded, kind.dtype)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (np.array([1, 2]), np.array([3]), "i8"),
        (np.array([1, 2]), np.array([0.5]), "f8"),
        (np.array([BIG]), np.array([0.5]), "g"),
        (np.array([-BIG]), np.array([0.5]), "g"),
        (np.array([2**60]), np.array([0.5]), "f8"),  # a power of two needs no mantissa
        (np.array([0.5]), np.array([7]), "f8"),
        (np.array([0.5]), np.array([BIG]), "g"),
        (np.array([0.5], np.longdouble), np.array([7]), "g"),
        (np.array([True]), np.array([7]), "i8"),
        (np.array([True]), np.array([0.5]), "f8"),
        (np.array([True]), np.array([False]), "?"),
        (np.array([1], "u1"), np.array([-1], "i1"), "i2"),
        (np.array([0.5], "f2"), np.array([1], "i2"), "f4"),
        (np.array([0.5], "f4"), np.array([2**24 + 1], "i4"), "f8"),
        (np.array([2**64 - 1], "u8"), np.array([-1], "i8"), "g"),
        (np.array([1.0], "f4"), np.array([1.0], "f8"), "f8"),
    ],
)
def test_a_column_gets_the_narrowest_type_that_keeps_every_value(
    old: Array, new: Array, expected: str
) -> None:
    assert common_dtype(old, new) == np.dtype(expected)
    assert common_dtype(new, old) == np.dtype(expected)


def test_the_last_of_many_values_can_decide() -> None:
    assert common_dtype(np.arange(5), np.array([0.5]), np.array([1, BIG])) == np.longdouble


def test_values_are_looked_at_only_where_the_type_hangs_on_them() -> None:
    for one, other in (("i8", "i8"), ("f8", "f8"), ("i4", "f8"), ("?", "i8"), ("f8", "g")):
        kind = NumberType([np.dtype(one), np.dtype(other)])
        assert not kind.hangs_on(np.dtype(one))
        assert not kind.hangs_on(np.dtype(other))
    kind = NumberType([np.dtype("i8"), np.dtype("f8")])
    assert kind.hangs_on(np.dtype("i8"))
    kind.look(np.array([BIG]))
    assert not kind.hangs_on(np.dtype("i8"))  # nothing can make it another one


_NUMBERS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1).map(lambda v: np.array(v, "i8")),
    st.lists(st.integers(0, 2**64 - 1), min_size=1).map(lambda v: np.array(v, "u8")),
    st.lists(st.floats(), min_size=1).map(lambda v: np.array(v, "f8")),
    st.lists(st.floats(width=32), min_size=1).map(lambda v: np.array(v, "f4")),
    st.lists(st.booleans(), min_size=1).map(np.array),
    st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1).map(lambda v: np.array(v, "i2")),
)


@given(st.lists(_NUMBERS, min_size=1, max_size=4))
def test_joined_numbers_are_the_numbers_that_were_joined(columns: list[Array]) -> None:
    dtype = common_dtype(*columns)
    joined = np.concatenate([convert(column, dtype) for column in columns])
    given_values = [value for column in columns for value in column.tolist()]
    assert len(joined) == len(given_values)
    for stored, value in zip(joined, given_values, strict=True):
        assert stored == np.longdouble(value) or (stored != stored and value != value)


def test_a_signalling_nan_is_converted_like_any_other() -> None:
    signalling = np.array([0x7C01], "u2").view("f2")
    assert np.isnan(convert(signalling, np.dtype("f8"))).all()


@pytest.mark.parametrize(
    ("longest", "width"), [(0, 16), (16, 16), (17, 32), (32, 32), (200, 256), (256, 256), (257, 0)]
)
def test_text_is_as_wide_as_the_next_power_of_two_up_to_a_bound(longest: int, width: int) -> None:
    assert join_text(None, ["x" * longest])[0] == Text(width)


@pytest.mark.parametrize(
    ("old", "text", "expected"),
    [
        (Text(64), "short", Text(64)),
        (Text(16), "x" * 40, Text(64)),
        (Text(0), "short", Text(0)),
        (Text(16), "x" * 300, Text(0)),
        (Text(16, escaped=True), "plain", Text(16, escaped=True)),
        (Text(16), "a\0", Text(16, escaped=True)),
        (None, "größe" * 3, Text(32)),  # 21 bytes
    ],
)
def test_a_text_column_only_widens(old: Text | None, text: str, expected: Text) -> None:
    dtype, stored = join_text(old, [text])
    assert dtype == expected
    assert stored[0].replace(b"\xc0\x80", b"\0").decode() == text


def test_nul_characters_are_stored_as_two_bytes_so_that_padding_cannot_swallow_them() -> None:
    dtype, stored = join_text(None, ["a\0b\0", "", "\0"])
    assert dtype == Text(16, escaped=True)
    assert stored.tolist() == [b"a\xc0\x80b\xc0\x80", b"", b"\xc0\x80"]


@given(st.lists(st.floats(0, 4e9), min_size=1, max_size=50))
def test_times_are_local_minutes(times: list[float]) -> None:
    expected = [datetime.fromtimestamp(t).strftime(layout.TIME_FORMAT).encode() for t in times]
    assert time_texts(np.array(times)).tolist() == expected


def test_times_that_no_calendar_has_get_a_text_all_the_same() -> None:
    times = np.array([np.nan, 1.7e9, np.inf, -np.inf, 1e300, -1e300])
    texts = time_texts(times).tolist()
    assert [text == values.UNKNOWN_TIME for text in texts] == [True, False, True, True, True, True]


def test_a_minute_is_formatted_once_however_many_ticks_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    formatted: list[Any] = []
    real = values._minute_text
    monkeypatch.setattr(values, "_minute_text", lambda m: formatted.append(m) or real(m))
    minutes = np.tile(np.repeat([0.0, 60.0, 120.0], 1000), 20)  # three producers that take turns
    assert len(time_texts(1.7e9 + minutes)) == 60_000
    assert len(formatted) == 3
