"""What may be logged, and what is refused and how."""

from __future__ import annotations

import enum
import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mle_client import messages as m
from mle_client import ticks
from mle_client.discovery import python_environment


class Color(enum.IntEnum):
    RED = 3


class Name(str, enum.Enum):  # noqa: UP042  # what older code has
    LOSS = "loss"


class OddName(str):
    """Equal to the same text, and yet another key."""

    __hash__ = object.__hash__


class FakeTensor:
    """Looks like a torch tensor that requires a gradient."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def detach(self) -> Any:
        return self

    def cpu(self) -> Any:
        return np.asarray(self.value)


@pytest.mark.parametrize(
    ("value", "kind", "plain"),
    [
        (3, m.INT, 3),
        (True, m.BOOL, True),
        (0.5, m.FLOAT, 0.5),
        (np.float32(0.1), m.FLOAT, float(np.float32(0.1))),
        (np.uint64(2**63 - 1), m.INT, 2**63 - 1),
        (np.bool_(False), m.BOOL, False),
        (np.array(7), m.INT, 7),
        (np.array(0.25, np.float32), m.FLOAT, 0.25),
        (Color.RED, m.INT, 3),
        (Fraction(1, 4), m.FLOAT, 0.25),
        (Decimal("0.5"), m.FLOAT, 0.5),
        ("text", m.TEXT, "text"),
        (np.str_("text"), m.TEXT, "text"),
        (Name.LOSS, m.TEXT, "loss"),
        (Decimal("Infinity"), m.FLOAT, math.inf),
        (np.ma.array([1, 2], mask=False), m.Kind("<i8", (2,)), np.array([1, 2]).tobytes()),
        ([1, 2], m.Kind("<i8", (2,)), np.array([1, 2]).tobytes()),
        ((0.5,), m.Kind("<f8", (1,)), np.array([0.5]).tobytes()),
        (np.arange(2, dtype=">f4"), m.Kind("<f4", (2,)), np.arange(2, dtype="<f4").tobytes()),
        (np.ones((2, 2))[:, ::2], m.Kind("<f8", (2, 1)), np.ones(2).tobytes()),
        (FakeTensor(1.5), m.FLOAT, 1.5),
        (FakeTensor([1.0, 2.0]), m.Kind("<f8", (2,)), np.array([1.0, 2.0]).tobytes()),
    ],
)
def test_values_in_many_forms_are_taken(value: Any, kind: m.Kind, plain: Any) -> None:
    described = ticks.describe({}, {"x": value})
    assert described.stats == (m.Field("x", kind),)
    assert described.values == (plain,)


@pytest.mark.parametrize(
    ("stats", "error", "advice"),
    [
        ({"x": None}, TypeError, "save_extra"),
        ({"x": object()}, TypeError, "save_extra"),
        ({"x": {"a": 1}}, TypeError, "save_extra"),
        ({"x": 1j}, TypeError, "real and imaginary"),
        ({"x": 2**63}, ValueError, "64-bit"),
        ({"x": -(2**63) - 1}, ValueError, "64-bit"),
        ({"x": 10**5000}, ValueError, "an integer of 16610 bits.* 64-bit"),
        ({"x": Fraction(10**400)}, ValueError, "Fraction.* as a string"),
        ({"x": Decimal("1e400")}, ValueError, "Decimal.* as a string"),
        ({"x": Decimal("sNaN")}, ValueError, "Decimal.* as a string"),
        ({"x": np.longdouble("1e4000")}, ValueError, "longdouble.* as a string"),
        ({"x": np.ma.array([1, 2], mask=[0, 1])}, ValueError, "masked.* log it as float"),
        ({"x": [np.ma.array([1, 2], mask=[0, 1])]}, ValueError, "masked.* log it as float"),
        ({"x": np.ma.array([True], mask=True)}, ValueError, "masked.* log it as float"),
        ({"x": [np.ma.array([1.0, 2.0], mask=True), [1.0]]}, ValueError, "one shape"),
        ({"x": 1, OddName("x"): 2}, ValueError, "plain strings"),
        ({"x": [1, [2]]}, ValueError, "one shape"),
        ({"x": ["a"]}, TypeError, "arrays of numbers"),
        ({"x": np.array([object()])}, TypeError, "arrays of numbers"),
        ({"x": "\ud800"}, ValueError, "surrogates"),
        ({"x": "a" * (m.MAX_STRING_BYTES + 1)}, ValueError, "extra objects"),
        ({"x": np.zeros(m.MAX_TICK_BYTES, np.uint8), "y": [1]}, ValueError, "extra objects"),
        ({"x": np.zeros((0, 2**20, 2**4))}, ValueError, "extra objects"),  # numpy has a bound, too
        ({"x": np.zeros((1,) * 32)}, ValueError, "dimensions"),
        ({1: 1.0}, TypeError, "keys must be strings"),
        ({"\ud800": 1.0}, ValueError, "surrogates"),
        ({"k" * (m.MAX_KEY_BYTES + 1): 1.0}, ValueError, "longest"),
        ({str(i): 0 for i in range(m.MAX_KEYS + 1)}, ValueError, "most"),
        ([("x", 1)], TypeError, "two dicts"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_advice(
    stats: Any, error: type[Exception], advice: str
) -> None:
    with pytest.raises(error, match=advice):
        ticks.describe({}, stats)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (np.ma.masked, math.nan),
        (np.ma.array([1.0, 2.0], mask=True).mean(), math.nan),
        (np.ma.array(5.0, mask=True), math.nan),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), [1.0, math.nan]),
        (np.ma.array([1.0, 2.0], np.float16, mask=[1, 0]), [math.nan, 2.0]),
        ([1.0, np.ma.masked], [1.0, math.nan]),
        ((np.ma.array([1.0, 2.0], mask=[1, 0]), [3.0, 4.0]), [[math.nan, 2.0], [3.0, 4.0]]),
    ],
)
def test_what_is_masked_is_missing(value: Any, stored: Any) -> None:
    described = ticks.describe({}, {"x": value})
    (field,), (plain,) = described.stats, described.values
    if field.kind.shape:
        plain = np.frombuffer(plain, field.kind.code).reshape(field.kind.shape)
    np.testing.assert_array_equal(plain, stored)


def test_plain_arrays_do_not_load_numpys_masked_ones() -> None:
    code = (
        "import sys, numpy as np; from mle_client import ticks;"
        "ticks.describe({}, {'x': np.ones(2), 'y': [1.0, np.float32(2)], 'z': [np.ones(2)]});"
        "print('numpy.ma' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=python_environment(),
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("key", [np.str_("loss"), Name.LOSS, OddName("loss")], ids=type)
def test_keys_of_other_text_types_become_plain_text(key: str) -> None:
    described = ticks.describe({key: 1}, {key: 1.0})
    assert [type(field.name) for field in (*described.clock, *described.stats)] == [str, str]
    assert described.stats == (m.Field("loss", m.FLOAT),)


def test_clocks_that_every_tick_has_anyway_are_passed_over() -> None:
    described = ticks.describe({"num_updates": 10, "time": 1, "epoch": 2}, {})
    assert described.clock == (m.Field("epoch", m.INT),)


def test_the_callers_dicts_are_left_alone() -> None:
    clock, stats = {"a": 1}, {"b": np.zeros(2)}
    ticks.describe(clock, stats)
    assert list(clock) == ["a"]
    assert list(stats) == ["b"]


def test_numbers_share_a_key_and_nothing_else_does() -> None:
    assert ticks.conflict(m.INT, m.FLOAT) == ""
    assert ticks.conflict(m.Kind("<f4", (3,)), m.Kind("<f8", (3,))) == ""
    assert "shape" in ticks.conflict(m.Kind("<f4", (3,)), m.Kind("<f4", (4,)))
    assert "shape" in ticks.conflict(m.FLOAT, m.Kind("<f4", (3,)))
    assert "text" in ticks.conflict(m.FLOAT, m.TEXT)
