"""Histograms: exact where they say so, bounded in time, and of any array of numbers."""

from __future__ import annotations

import itertools
import json
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mle_client.histograms import (
    BINS,
    MAX_COUNTED,
    Histogram,
    from_plain,
    histogram,
    to_plain,
)

DTYPES = ["f2", "f4", "f8", "i1", "u1", "i4", "i8", "u8", "b1", ">f4", ">i8"]


def check(spread: Histogram, values: Any) -> None:
    """Compare a histogram with what numpy says of the finite values."""
    flat = np.asarray(values).astype(np.float64).ravel()
    finite = flat[np.isfinite(flat)]
    assert spread.num == finite.size
    assert (spread.min, spread.max) == (finite.min(), finite.max())
    if spread.sum_squares < 1e300:
        rounding = 1e-9 * (1.0 + math.fsum(abs(finite)))  # large values may cancel each other
        assert spread.sum == pytest.approx(math.fsum(finite), rel=0, abs=rounding)
        assert spread.sum_squares == pytest.approx(math.fsum(finite * finite), rel=1e-9)
    assert sum(spread.counts) == pytest.approx(finite.size)
    assert spread.limits[-1] == spread.max
    assert len(spread.limits) == len(spread.counts) <= BINS
    edges = [spread.min, *spread.limits]
    assert len(edges) == 2 or all(a < b for a, b in itertools.pairwise(edges))


@given(
    hnp.arrays(
        st.sampled_from(DTYPES), hnp.array_shapes(max_dims=3, max_side=20), fill=st.nothing()
    )
)
@example(np.array([5e-324, 0.0]))
@example(np.array([0.0, 64 * 5e-324]))
@example(np.array([-1.7e308, 1.7e308, 0.0]))
@example(np.array([1.0, np.nextafter(1.0, 2.0)]))
@example(np.array([np.nan, 1.0, np.inf, -np.inf]))
def test_a_histogram_says_what_numpy_says(values: np.ndarray[Any, Any]) -> None:
    if not np.isfinite(values).any():
        assert histogram(values) == Histogram(0.0, 0.0, 0, 0.0, 0.0, (0.0,))
        return
    spread = histogram(values)
    check(spread, values)
    # As text: the sum of the largest numbers there are, of both signs, is no number.
    assert repr(from_plain(json.loads(json.dumps(to_plain(spread))))) == repr(spread)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_bins_hold_the_values_that_lie_between_their_edges(dtype: str) -> None:
    values = np.random.default_rng(1).standard_normal((300, 700)).astype(dtype)
    spread = histogram(values)

    expected, edges = np.histogram(values.astype(np.float64), BINS)
    np.testing.assert_allclose(spread.limits, edges[1:], rtol=1e-9, atol=1e-12)
    # A value on an edge may be counted on either side of it.
    assert np.abs(np.array(spread.counts) - expected).max() <= 1


@pytest.mark.parametrize("values", [[], np.empty((0, 3)), [math.nan], [math.inf, -math.inf]])
def test_where_nothing_is_finite_there_is_one_empty_bin(values: Any) -> None:
    assert histogram(values) == Histogram(0.0, 0.0, 0, 0.0, 0.0, (0.0,))
    assert histogram(values).limits == (0.0,)


def test_equal_values_lie_in_one_bin() -> None:
    assert histogram(np.full((3, 4), 2.5)) == Histogram(2.5, 2.5, 12, 30.0, 75.0, (12.0,))
    assert histogram(7) == Histogram(7.0, 7.0, 1, 7.0, 49.0, (1.0,))


def test_nan_and_infinities_count_nowhere() -> None:
    clean = np.arange(1000, dtype=np.float32)
    dirty = np.concatenate([clean, np.full(500, np.nan, np.float32), [np.inf, -np.inf]])
    assert histogram(dirty) == histogram(clean)


def test_squares_that_overflow_leave_the_rest_right() -> None:
    spread = histogram(np.array([-1e200, 1e200, 3.0]))
    assert (spread.min, spread.max, spread.num, spread.sum) == (-1e200, 1e200, 3, 3.0)
    assert spread.sum_squares == math.inf
    assert from_plain(to_plain(spread)) == spread


def test_half_precision_does_not_overflow_in_the_sums() -> None:
    spread = histogram(np.full(100_000, 1000.0, np.float16))
    assert (spread.sum, spread.sum_squares) == (1e8, 1e11)


def test_arrays_in_any_memory_order_are_the_same() -> None:
    values = np.random.default_rng(2).standard_normal((50, 60))
    for other in (np.asfortranarray(values), values[::-1, ::-1], values.T.copy().T):
        assert histogram(other).counts == histogram(values).counts


def test_bfloat16_is_taken_for_the_numbers_it_stands_for() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([-1.5, 0.0, 2.0, np.nan], ml_dtypes.bfloat16)
    spread = histogram(values)
    assert (spread.min, spread.max, spread.num, spread.sum) == (-1.5, 2.0, 3, 0.5)


@pytest.mark.parametrize(
    "values", [["a"], [1j], [None], np.zeros(2, "M8[s]"), np.zeros(2, "i4,f4")]
)
def test_what_holds_no_numbers_is_refused(values: Any) -> None:
    with pytest.raises(TypeError, match="real numbers"):
        histogram(values)


# --- large arrays ---------------------------------------------------------------------------------
def test_of_a_large_array_all_but_the_bins_is_exact() -> None:
    values = np.random.default_rng(3).standard_normal((1 << 11, 1 << 11), dtype=np.float32)
    values[7, 9], values[8, 10], values[9, 11] = 50.0, -40.0, np.nan
    spread = histogram(values)

    check(spread, values)
    finite = values[np.isfinite(values)].astype(np.float64)
    expected, _ = np.histogram(finite, BINS)
    error = np.abs(np.array(spread.counts) - expected).max() / finite.size
    assert 0 < error < 0.002  # as a sample of a million has it; 0 would mean that all were counted


def test_a_large_matrix_is_not_counted_by_some_of_its_columns_alone() -> None:
    """The values counted must not follow the period of the rows."""
    values = np.zeros((7_500, 1_000), np.float32)
    values[:, ::8] = 1.0  # every 8th value; a stride of 8, enough for a million, sees nothing else
    spread = histogram(values)
    assert spread.counts[-1] / spread.num == pytest.approx(1 / 8, rel=0.01)


def test_where_no_counted_value_is_finite_one_bin_holds_the_others() -> None:
    values = np.full(3 * MAX_COUNTED + 1, np.nan, np.float32)
    values[1], values[2] = -1.0, 5.0
    assert histogram(values) == Histogram(-1.0, 5.0, 2, 4.0, 26.0, (2.0,))


def test_millions_of_values_take_a_fraction_of_a_second() -> None:
    values = np.random.default_rng(4).standard_normal(5_000_000, dtype=np.float32)
    started = time.perf_counter()
    histogram(values)
    assert time.perf_counter() - started < 0.5  # 0.01 measured


# --- on the wire ----------------------------------------------------------------------------------
GOOD = to_plain(histogram([1.0, 2.0, 4.0]))


@pytest.mark.parametrize(
    "change",
    [
        {"min": 5.0},
        {"min": math.nan},
        {"max": math.inf},
        {"min": 1},
        {"num": -1},
        {"num": 2**63},
        {"num": 3.0},
        {"num": True},
        {"sum": "x"},
        {"counts": []},
        {"counts": [1.0] * (BINS + 1)},
        {"counts": [1.0, -1.0]},
        {"counts": [math.nan]},
        {"counts": ["x"]},
        {"counts": None},
    ],
)
def test_a_malformed_histogram_is_refused(change: dict[str, Any]) -> None:
    assert from_plain(GOOD)
    with pytest.raises(ValueError, match="histogram"):
        from_plain({**GOOD, **change})


@pytest.mark.parametrize("plain", [None, {}, [], 3, {k: v for k, v in GOOD.items() if k != "num"}])
def test_what_is_no_histogram_is_refused(plain: Any) -> None:
    with pytest.raises(ValueError, match="malformed"):
        from_plain(plain)
