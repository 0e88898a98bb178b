from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mle_client import aggregate, layout
from mle_client.aggregate import aggregate_seeds, summarise
from mle_client.metalog import AttrDict, RunLog

FRACTIONS = {"p10": 10, "p25": 25, "p50": 50, "p75": 75, "p90": 90}


def seed(stats: dict, meta: dict | None = None, *, ticks: int | None = None, **kwargs) -> RunLog:
    ticks = max(map(len, stats.values()), default=0) if ticks is None else ticks
    columns = {key: np.asarray(values) for key, values in stats.items()}
    return RunLog(meta or {}, columns, {"num_updates": np.arange(1, ticks + 1)}, **kwargs)


# --- numbers --------------------------------------------------------------------------------------
def by_numpy(columns: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The same with numpy, value by value, on what is there."""
    length = max(map(len, columns))
    item = columns[0].shape[1:]
    names = ("mean", "std", *FRACTIONS)
    expected = {name: np.full((length, *item), np.nan) for name in names}
    expected["n"] = np.zeros((length, *item), np.int64)
    for at in np.ndindex((length, *item)):
        here = np.array([c[at] for c in columns if at[0] < len(c)], np.float64)
        here = here[~np.isnan(here)]
        expected["n"][at] = len(here)
        if len(here):
            expected["mean"][at] = here.mean()
            expected["std"][at] = here.std()
            for name, percent in FRACTIONS.items():
                expected[name][at] = np.percentile(here, percent)
    return expected


floats = st.floats(-1e6, 1e6, width=32) | st.just(np.nan)
items = st.sampled_from([(), (3,), (2, 2)])
dtypes = st.sampled_from([np.float64, np.float32, np.int64, np.bool_, np.float16, np.longdouble])


@st.composite
def ragged_columns(draw) -> list[np.ndarray]:
    item, dtype = draw(items), draw(dtypes)
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=7))
    columns = []
    for length in lengths:
        column = draw(hnp.arrays(np.float64, (length, *item), elements=floats))
        if np.dtype(dtype).kind in "ib":
            column = np.nan_to_num(column)
        elif dtype is np.float16:
            column = np.clip(column, -1000, 1000)
        columns.append(column.astype(dtype))
    return columns


@given(ragged_columns(), st.sampled_from([2**20, 4]))
def test_summary_is_what_numpy_computes_on_the_values_that_are_there(columns, block_values) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregate, "_BLOCK_VALUES", block_values)  # 4: a block ends inside a column
        summary = summarise(columns)
    expected = by_numpy(columns)
    assert list(summary) == ["mean", "std", "p50", "p10", "p25", "p75", "p90", "n"]
    assert summary["n"].tolist() == expected["n"].tolist()
    for name in ("mean", "std", *FRACTIONS):
        assert summary[name].dtype == np.float64
        np.testing.assert_allclose(summary[name], expected[name], rtol=1e-9, atol=1e-6)


def test_percentiles_of_unequal_lengths_ignore_the_missing_rest() -> None:
    # mle-logging takes uninitialised memory here.
    columns = [np.arange(1.0, 7), np.arange(11.0, 17), np.array([21.0, 22.0, 23.0])]
    summary = summarise(columns)
    assert summary["p50"].tolist() == [11, 12, 13, 9, 10, 11]
    assert summary["p90"].tolist() == pytest.approx([19, 20, 21, 13, 14, 15])
    assert summary["n"].tolist() == [3, 3, 3, 2, 2, 2]


def test_summary_of_one_seed_is_that_seed_exactly() -> None:
    values = np.array([0.1, -0.0, 1e308, 5e-324])
    summary = summarise([values])
    for name in ("mean", *FRACTIONS):
        assert summary[name].tolist() == values.tolist()
    assert summary["std"].tolist() == [0.0] * 4


def test_infinite_values_do_not_make_percentiles_undefined() -> None:
    summary = summarise([np.array([1.0, 1.0]), np.array([np.inf, -np.inf]), np.array([2.0, 2.0])])
    assert summary["p50"].tolist() == [2.0, 1.0]
    assert summary["p90"].tolist() == [np.inf, pytest.approx(1.8)]
    assert summary["p10"].tolist() == [pytest.approx(1.2), -np.inf]
    assert summary["mean"].tolist() == [np.inf, -np.inf]


def test_the_order_of_seeds_does_not_change_a_bit_of_the_result() -> None:
    columns = list(np.random.default_rng(0).normal(size=(7, 50)) * 10.0 ** np.arange(7)[:, None])
    one, other = summarise(columns), summarise(columns[::-1])
    assert all((one[name] == other[name]).all() for name in one)


def test_arguments_are_left_as_they_were() -> None:
    column = np.array([3.0, 1.0, 2.0])
    summarise([column, column[::-1]])
    assert column.tolist() == [3.0, 1.0, 2.0]


def test_steps_without_any_value_have_n_0_and_no_warning() -> None:
    summary = summarise([np.array([np.nan, 1.0])])
    assert summary["n"].tolist() == [0, 1]
    assert np.isnan(summary["mean"][0])
    assert np.isnan(summary["p50"][0])


def test_columns_without_values_give_a_summary_without_values() -> None:
    assert {name: values.shape for name, values in summarise([np.empty((0, 3))]).items()} == (
        dict.fromkeys(("mean", "std", "p50", "p10", "p25", "p75", "p90", "n"), (0, 3))
    )
    assert summarise([np.empty((4, 0))])["mean"].shape == (4, 0)


# --- statistics of a group of seeds ---------------------------------------------------------------
def test_a_statistic_that_only_some_seeds_have_is_aggregated_over_those() -> None:
    runs = {"seed_1": seed({"loss": [1.0]}), "seed_2": seed({"loss": [3.0], "acc": [0.5]})}
    stats = aggregate_seeds(runs).stats
    assert isinstance(stats.loss, AttrDict)
    assert stats.loss.mean.tolist() == [2.0]
    assert stats.acc.n.tolist() == [1]


def test_text_is_a_list_of_columns_in_the_order_of_the_seeds() -> None:
    note = np.array(["a", "b"], object)
    runs = {
        "seed_1": seed({"note": note}),
        "seed_2": seed({}, ticks=2),
        "seed_3": seed({"note": note}),
    }
    result = aggregate_seeds(runs)
    assert [column.tolist() for column in result.stats.note] == [["a", "b"], [], ["a", "b"]]


def test_arrays_whose_shape_differs_between_seeds_are_not_averaged() -> None:
    runs = {"seed_1": seed({"v": np.zeros((2, 3))}), "seed_2": seed({"v": np.zeros((2, 4))})}
    assert [column.shape for column in aggregate_seeds(runs).stats.v] == [(2, 3), (2, 4)]


def test_clocks_are_those_of_the_longest_seed() -> None:
    result = aggregate_seeds({"seed_1": seed({"a": [1.0]}), "seed_2": seed({"a": [1.0, 2.0, 3.0]})})
    assert result.time.num_updates.tolist() == [1, 2, 3]
    assert len(result.stats.a.mean) == 3


def test_of_equally_long_clocks_that_of_the_longest_seed_is_taken() -> None:
    runs = {
        f"seed_{ticks}": RunLog(
            {}, {}, {"num_updates": np.arange(ticks), "epoch": np.array([ticks])}
        )
        for ticks in (2, 3, 1)
    }
    assert aggregate_seeds(runs).time.epoch.tolist() == [3]


def test_a_clock_that_the_longest_seed_lacks_is_kept() -> None:
    short = RunLog({}, {}, {"num_updates": np.array([1]), "epoch": np.array([5])})
    result = aggregate_seeds({"seed_1": short, "seed_2": seed({"a": [1.0, 2.0]})})
    assert result.time.epoch.tolist() == [5]
    assert result.time.num_updates.tolist() == [1, 2]


def test_a_rare_statistic_of_several_seeds_can_be_aligned() -> None:
    rows = {layout.rows_name("stats", "acc"): np.array([1, 3])}
    runs = {
        f"seed_{i}": seed({"acc": [0.0, float(i)], "loss": [1.0] * 5}, rows=rows) for i in (1, 3)
    }
    steps, summary = aggregate_seeds(runs).aligned("acc")
    assert steps.tolist() == [2, 4]
    assert summary.mean.tolist() == [0.0, 2.0]
    assert summary.n.tolist() == [2, 2]


def test_a_statistic_logged_at_every_tick_of_a_shorter_seed_is_aligned_with_its_ticks() -> None:
    runs = {"seed_1": seed({"acc": [0.5, 0.6]}), "seed_2": seed({}, ticks=4)}
    steps, summary = aggregate_seeds(runs).aligned("acc")
    assert steps.tolist() == [1, 2]
    assert summary["mean"].tolist() == [0.5, 0.6]


def test_columns_that_mle_logging_left_ragged_are_aggregated_but_not_aligned() -> None:
    result = aggregate_seeds({"seed_1": seed({"a": [1.0, 2.0, 3.0], "b": [5.0]})})
    assert result.stats.b.mean.tolist() == [5.0]
    with pytest.raises(ValueError, match="does not say at which"):
        result.aligned("b")


# --- meta data ------------------------------------------------------------------------------------
def test_meta_data_are_lists_in_the_order_of_the_seeds() -> None:
    runs = {
        "seed_1": seed({}, {"model_ckpt": "a", "config_fname": "c"}),
        "seed_2": seed({}, {"config_fname": "c"}),
        "alpha_run": seed({}, {"model_ckpt": "b", "config_fname": "c", "scores": [1.0, 2.0]}),
    }
    meta = aggregate_seeds(runs).meta
    assert meta.seeds == [1, 2, "alpha_run"]
    assert meta.model_ckpt == ["a", None, "b"]
    assert meta.scores == [None, None, [1.0, 2.0]]
    assert meta.config_fname == "c"


def test_meta_data_of_one_seed_are_the_values_themselves() -> None:
    meta = aggregate_seeds({"seed_4": seed({}, {"model_ckpt": "a", "scores": [1.0]})}).meta
    assert (meta.model_ckpt, meta.scores, meta.seeds) == ("a", [1.0], [4])


def test_different_configurations_in_one_group_are_warned_of() -> None:
    runs = {f"seed_{i}": seed({}, {"config_dict": {"lr": i}}) for i in (1, 2)}
    with pytest.warns(
        UserWarning, match="seed_1, seed_2 are aggregated although their config_dict"
    ):
        assert aggregate_seeds(runs).meta.config_dict == {"lr": 1}


def test_equal_configurations_are_not_warned_of_even_with_nan_in_them() -> None:
    runs = {f"seed_{i}": seed({}, {"config_dict": {"lr": float("nan")}}) for i in (1, 2)}
    aggregate_seeds(runs)  # a warning is an error here


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["finished", "finished"], "finished"),
        (["finished", "running", "crashed"], "running"),
        (["finished", "crashed"], "crashed"),
        (["finished", None], None),
        (["paused", "paused"], "paused"),
    ],
)
def test_the_state_of_a_group_is_that_of_its_least_finished_seed(states, expected) -> None:
    runs = {f"seed_{i}": seed({}, state=state) for i, state in enumerate(states)}
    assert aggregate_seeds(runs).state == expected
