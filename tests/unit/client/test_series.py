from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mle_client.series import isolated, moving_average, thin

values = st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf])
columns = hnp.arrays(np.float64, st.integers(0, 60), elements=values)


# --- moving average -------------------------------------------------------------------------------
@given(columns, st.integers(1, 70))
def test_a_moving_average_is_that_of_pandas(column: np.ndarray, window: int) -> None:
    expected = pd.Series(column).rolling(window, min_periods=1).mean().to_numpy()

    np.testing.assert_allclose(moving_average(column, window), expected, rtol=1e-9, atol=1e-6)


@given(columns, st.integers(1, 70))
def test_a_moving_average_is_the_mean_of_the_finite_values_of_the_window(
    column: np.ndarray, window: int
) -> None:
    found = moving_average(column, window)

    for i, value in enumerate(found):
        inside = column[max(0, i + 1 - window) : i + 1]
        finite = inside[np.isfinite(inside)]
        assert np.isnan(value) if not len(finite) else np.isclose(value, finite.mean(), atol=1e-6)


def test_a_huge_value_swallows_none_of_those_after_it() -> None:
    found = moving_average(np.array([1e30, 1.0, 2.0, 3.0, 5.0]), 2)

    assert found[2:].tolist() == [1.5, 2.5, 4.0]


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.float16, np.longdouble])
def test_any_type_of_number_is_averaged_as_float64(dtype: type) -> None:
    found = moving_average(np.array([0, 1, 1], dtype), 2)

    assert (found.dtype, found.tolist()) == (np.float64, [0.0, 0.5, 1.0])


def test_the_column_is_left_as_it_is() -> None:
    column = np.array([1.0, np.inf, 3.0])
    column.flags.writeable = False

    moving_average(column, 1)[0] = 7.0  # nor is it returned
    moving_average(column, 2)

    assert column.tolist() == [1.0, np.inf, 3.0]


# --- thinning -------------------------------------------------------------------------------------
@given(
    hnp.arrays(np.float64, st.integers(1, 400), elements=values),
    st.integers(1, 20),
    st.sampled_from(["even", "bursts", "back", "still", "nan"]),
)
def test_thinning_keeps_both_ends_and_all_extremes_and_is_bounded(
    column: np.ndarray, pixels: int, spacing: str
) -> None:
    steps = np.arange(len(column))
    x = {
        "even": steps,
        "bursts": steps**3 / 7,
        "back": steps % 50,
        "still": np.zeros(len(column)),
        "nan": np.where(steps % 3, np.nan, steps),
    }[spacing]
    kept = thin(x, [column], pixels)

    assert kept.tolist() == sorted(set(kept.tolist()))
    assert kept[0] == 0
    assert kept[-1] == len(column) - 1
    assert len(kept) <= max(2 * pixels, 2 * (pixels + max(2, pixels // 2)) + 2)
    finite = column[np.isfinite(column)]
    if len(finite):
        shown = column[kept][np.isfinite(column[kept])]
        assert (shown.min(), shown.max()) == (finite.min(), finite.max())


def test_what_a_picture_can_show_is_kept_whole() -> None:
    assert thin(np.arange(10), [np.zeros(10)], 5).tolist() == list(range(10))
    assert thin(np.arange(0), [np.zeros(0)], 5).tolist() == []


def test_a_spike_of_one_value_among_a_million_is_kept() -> None:
    column = np.zeros(1_000_000)
    column[123_456], column[654_321] = 1.0, -1.0

    kept = thin(np.arange(len(column)), [column], 2000)

    assert {123_456, 654_321} <= set(kept.tolist())
    assert len(kept) < 7_000


def test_every_column_keeps_its_own_extremes() -> None:
    low, high = np.zeros(1000), np.ones(1000)
    low[400], high[600] = -5.0, 5.0

    assert {400, 600} <= set(thin(np.arange(1000), [low, high], 10).tolist())


def test_a_burst_of_values_takes_no_room_from_the_rest_of_the_axis() -> None:
    # A thousand values within the first second, then one every second.
    x = np.concatenate([np.linspace(0, 1, 1000), np.arange(2, 102)])

    kept = thin(x, [np.sin(np.arange(len(x)))], 100)

    assert np.count_nonzero(x[kept] > 1) >= 95


def test_an_axis_that_goes_back_is_cut_by_the_number_of_values() -> None:
    x = np.concatenate([np.arange(0, 10_000), np.arange(100, 10_100)])

    kept = thin(x, [np.sin(np.arange(len(x)))], 100)

    assert np.diff(kept).max() <= 2 * len(x) / 100


def test_the_beginning_is_kept_for_a_logarithmic_axis() -> None:
    x = np.arange(1, 1_000_001)

    kept = x[thin(x, [np.cos(np.arange(len(x)))], 2000)]

    for start in 10.0 ** np.arange(1, 6):
        assert np.count_nonzero((kept >= start) & (kept < 10 * start)) > 80


def test_a_gap_stays_a_gap() -> None:
    column = np.ones(1000)
    column[300:600] = np.nan

    kept = thin(np.arange(1000), [column], 20)

    assert np.isnan(column[kept]).any()
    assert np.isfinite(column[kept][[0, -1]]).all()


# --- isolated values ------------------------------------------------------------------------------
def test_values_without_a_neighbour_are_found() -> None:
    nan = np.nan

    assert isolated(np.array([1, nan, 2, 3, nan, 4])).tolist() == [0, 5]
    assert isolated(np.array([1.0])).tolist() == [0]
    assert isolated(np.array([1.0, 2.0, 3.0])).tolist() == []
    assert isolated(np.array([nan, nan])).tolist() == []
    assert isolated(np.array([])).tolist() == []
