"""Tables and datasets of runs, compared with the runs' columns."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pd = pytest.importorskip("pandas")
xr = pytest.importorskip("xarray")

from mle_client import layout  # noqa: E402
from mle_client.aggregate import aggregate_seeds  # noqa: E402
from mle_client.attrdict import AttrDict  # noqa: E402
from mle_client.metalog import MetaLog  # noqa: E402
from mle_client.runlog import RunLog  # noqa: E402
from mle_client.summary import PERCENTILES  # noqa: E402


def run(ticks: int, *, clocks: Any = (), **stats: Any) -> RunLog:
    """A run of so many ticks.

    Args:
        clocks, stats: columns; a dict has values by row.
    """
    columns: dict[str, dict[str, np.ndarray]] = {"stats": {}, "time": {}}
    rows = {}
    own = {"time_elapsed": np.arange(ticks) / 8, "num_updates": np.arange(1, ticks + 1)}
    for group, wanted in (("stats", stats), ("time", {**own, **dict(clocks)})):
        for key, value in wanted.items():
            if isinstance(value, dict):
                rows[layout.rows_name(group, key)] = np.array(list(value), np.int64)
                value = list(value.values())
            columns[group][key] = np.asarray(value)
    return RunLog({}, columns["stats"], columns["time"], rows=rows)


def text(*values: str) -> np.ndarray:
    return np.array(values, object)


# --- tables ---------------------------------------------------------------------------------------
def test_a_run_is_a_row_an_update_with_clocks_first() -> None:
    frame = run(3, loss=[3.0, 2.0, 1.0]).to_dataframe()

    assert list(frame) == ["num_updates", "time_elapsed", "loss"]
    assert frame.index.tolist() == [0, 1, 2]
    assert frame.loss.tolist() == [3.0, 2.0, 1.0]


def test_seeds_are_told_apart_by_name_and_follow_each_other() -> None:
    log = MetaLog({"seed_2": run(2, loss=[1, 2]), "seed_10": run(3, loss=[3, 4, 5])})
    frame = log.to_dataframe()

    assert list(frame) == ["seed", "num_updates", "time_elapsed", "loss"]
    assert frame.seed.tolist() == ["seed_2"] * 2 + ["seed_10"] * 3
    assert frame.loss.tolist() == [1, 2, 3, 4, 5]
    assert frame.loss.dtype == frame.num_updates.dtype == np.int64


def test_configurations_are_told_apart_too() -> None:
    log = MetaLog(
        {
            "a": AttrDict(seed_1=run(1, loss=[1.0])),
            "b": AttrDict(seed_1=run(1, loss=[2.0]), seed_2=run(2, loss=[3.0, 4.0])),
        }
    )
    frame = log.to_dataframe()

    assert frame[["config", "seed", "loss"]].to_numpy().tolist() == [
        ["a", "seed_1", 1.0],
        ["b", "seed_1", 2.0],
        ["b", "seed_2", 3.0],
        ["b", "seed_2", 4.0],
    ]


def test_a_rare_statistic_stands_at_the_updates_that_logged_it() -> None:
    log = MetaLog({"s": run(1, acc=[9.0]), "t": run(4, acc={1: 0.5, 3: 0.7})})

    np.testing.assert_array_equal(log.to_dataframe().acc, [9.0, np.nan, 0.5, np.nan, 0.7])


def test_a_rare_clock_does_so_too() -> None:
    frame = run(3, clocks={"epoch": {0: 1, 2: 2}}).to_dataframe()

    np.testing.assert_array_equal(frame.epoch, [1, np.nan, 2])


def test_what_a_run_lacks_is_missing_in_its_rows_alone() -> None:
    log = MetaLog({"s": run(2, loss=[1, 2]), "t": run(1, acc=[True])})
    frame = log.to_dataframe()

    np.testing.assert_array_equal(frame.loss, [1, 2, np.nan])
    np.testing.assert_array_equal(frame.acc, [np.nan, np.nan, 1.0])


@pytest.mark.parametrize(
    "dtype", ["int8", "uint64", "int64", "bool", "float16", "float32", "float64"]
)
def test_a_column_without_a_gap_has_the_type_that_was_logged(dtype: str) -> None:
    column = np.array([0, 1], dtype)

    assert run(2, x=column).to_dataframe().x.dtype == dtype
    assert MetaLog({"s": run(2, x=column), "t": run(2, x=column)}).to_dataframe().x.dtype == dtype
    assert run(2, x=column).to_xarray().x.dtype == dtype


@pytest.mark.parametrize(
    ("logged", "becomes"),
    [("int64", "float64"), ("bool", "float64"), ("float32", "float32"), ("float64", "float64")],
)
def test_a_column_with_a_gap_has_a_type_that_has_nan(logged: str, becomes: str) -> None:
    column = dict(enumerate(np.array([0, 1], logged)))
    log = run(3, x=column)
    log.stats["x"] = np.array([0, 1], logged)

    for found in (log.to_dataframe().x, log.to_xarray().x):
        assert found.dtype == becomes
        np.testing.assert_array_equal(np.asarray(found), [0, 1, np.nan])


def test_no_integer_is_rounded() -> None:
    large = 2**62 + 1
    gap = run(2, x={1: large})
    mixed = MetaLog({"s": run(1, x=[large]), "t": run(1, x=[0.5])})
    signs = MetaLog(
        {"s": run(1, x=np.array([2**64 - 1], "uint64")), "t": run(1, x=np.array([-1], "int64"))}
    )

    for log, expected in [(gap, [None, large]), (mixed, [large, 0.5]), (signs, [2**64 - 1, -1])]:
        for found in (log.to_dataframe().x.to_numpy(), log.to_xarray().x.to_numpy().ravel()):
            for value, exact in zip(found, expected, strict=True):
                assert np.isnan(value) if exact is None else value == np.longdouble(exact)
    assert MetaLog({"s": run(1, x=[large])}).to_dataframe().x.tolist() == [large]


def test_text_is_text_and_may_be_missing() -> None:
    log = MetaLog(
        {
            "s": run(1, clocks={"time": np.array(["24-01-01/10:00"])}, note=text("ü")),
            "t": run(2, clocks={"time": np.array(["24-01-01/10:01"] * 2)}, note={1: "b"}),
        }
    )
    frame = log.to_dataframe()

    assert frame.note.isna().tolist() == [False, True, False]
    assert frame.note.dropna().tolist() == ["ü", "b"]
    assert frame.time.tolist() == ["24-01-01/10:00"] + ["24-01-01/10:01"] * 2


def test_an_array_is_a_cell() -> None:
    log = MetaLog(
        {
            "s": run(2, g=np.arange(6).reshape(2, 3)),
            "t": run(2, g={1: [[7, 8], [9, 10]]}),
        }
    )
    cells = log.to_dataframe().g.tolist()

    assert [None if cell is None else cell.tolist() for cell in cells] == [
        [0, 1, 2],
        [3, 4, 5],
        None,
        [[7, 8], [9, 10]],
    ]


def test_a_statistic_named_like_a_column_gets_another_name() -> None:
    log = run(1, seed=[7], time_elapsed=[8], step=[9], clocks={"step": [10]})
    frame, data = MetaLog({"s": log}).to_dataframe(), MetaLog({"s": log}).to_xarray()

    assert list(frame)[:1] == ["seed"]
    assert frame["stats/seed"].tolist() == [7]
    assert frame["stats/time_elapsed"].tolist() == [8]
    assert (frame["step"].tolist(), frame["stats/step"].tolist()) == ([10], [9])
    assert data.step.values.tolist() == [1]
    assert (data["time/step"].item(), data["stats/step"].item()) == (10, 9)


def test_aggregated_seeds_have_a_column_for_each_part_of_a_statistic() -> None:
    seeds = {f"seed_{i}": run(2, loss=[i, 2 * i], acc={1: 0.5}) for i in (1, 2, 3)}
    aggregate = aggregate_seeds(seeds)
    frame = MetaLog({"a": aggregate, "b": aggregate}).to_dataframe()
    parts = ["mean", "std", *(f"p{q}" for q in PERCENTILES), "n"]

    assert list(frame) == [
        "config",
        *("num_updates", "time_elapsed"),
        *(f"{key}_{part}" for key in ("loss", "acc") for part in parts),
    ]
    assert frame.config.tolist() == ["a", "a", "b", "b"]
    for part in parts:
        assert frame[f"loss_{part}"].tolist() == aggregate.stats.loss[part].tolist() * 2
    assert frame.loss_n.dtype == np.int64
    np.testing.assert_array_equal(frame.acc_mean, [np.nan, 0.5] * 2)


def test_the_count_is_taken_where_it_is_no_key() -> None:
    class Statistic(AttrDict):
        def __missing__(self, key: object) -> Any:
            return np.array([4]) if key == "n" else super().__missing__(key)

    log = RunLog({"seeds": [1]}, {"x": Statistic(mean=np.array([0.5]))}, {"t": np.array([1])})

    assert MetaLog({"a": log}).to_dataframe().x_n.tolist() == [4]
    assert MetaLog({"a": log}).to_xarray().x_n.values.tolist() == [[4]]


def test_a_run_is_as_long_as_its_row_numbers_say() -> None:
    log = RunLog({}, {"x": np.array([7])}, {}, rows={layout.rows_name("stats", "x"): np.array([2])})

    np.testing.assert_array_equal(log.to_dataframe().x, [np.nan, np.nan, 7])
    np.testing.assert_array_equal(log.to_xarray().x, [np.nan, np.nan, 7])


def test_what_cannot_be_placed_is_left_out_and_named() -> None:
    short = run(3, loss=[1, 2, 3], acc=[0.5], good=[1, 2, 3])
    words = aggregate_seeds({"seed_1": run(1, note=text("a"), loss=[1])})

    for method in ("to_dataframe", "to_xarray"):
        with pytest.warns(UserWarning, match=r"left out: 'acc' has 1 values in a run of 3") as said:
            found = getattr(short, method)()
        assert said[0].filename == __file__
        assert "acc" not in found
        assert list(found["good"]) == [1, 2, 3]
        with pytest.warns(UserWarning, match="left out: 'note' of aggregated seeds has no mean"):
            assert "note" not in getattr(MetaLog({"eval": words}), method)()


def test_values_of_unknown_update_are_left_out_and_land_in_no_other_run() -> None:
    shape = [[1, 2], [3, 4], [5, 6]]
    log = MetaLog(
        {
            "seed_1": run(4, acc={-2: 9.0, -1: 8.0, 3: 1.0}, loss=[1, 2, 3, 4]),
            "seed_2": run(4, acc={-1: 7.0, 2: 2.0}, g=dict(zip((-2, -1, 1), shape, strict=True))),
        }
    )
    said = r"left out: 3 values of 'acc': nobody knows .*; 2 values of 'g': nobody knows"
    with pytest.warns(UserWarning, match=said) as warned:
        frame = log.to_dataframe()
    assert len(warned) == 1
    nothing = [np.nan] * 3
    np.testing.assert_array_equal(frame.acc, [*nothing, 1.0, np.nan, np.nan, 2.0, np.nan])
    assert [cell is None for cell in frame.g] == [True] * 5 + [False] + [True] * 2
    assert frame.g[5].tolist() == [5, 6]
    with pytest.warns(UserWarning, match=said):
        data = log.to_xarray()
    np.testing.assert_array_equal(data.acc, [[*nothing, 1.0], [np.nan, np.nan, 2.0, np.nan]])
    assert log.seed_1.stats.acc.tolist() == [9.0, 8.0, 1.0]


def test_values_of_unknown_update_are_left_out_of_aggregates_and_clocks() -> None:
    seeds = {
        f"seed_{i}": run(3, clocks={"epoch": {-1: 4, 2: 5}}, acc={-1: 9.0, 1: float(i)})
        for i in (1, 3)
    }
    with pytest.warns(UserWarning, match=r"left out: 1 values of 'epoch'.*; 1 values of 'acc'"):
        frame = MetaLog({"a": aggregate_seeds(seeds)}).to_dataframe()
    np.testing.assert_array_equal(frame.acc_mean, [np.nan, 2.0, np.nan])
    np.testing.assert_array_equal(frame.epoch, [np.nan, np.nan, 5.0])


def test_a_table_of_seeds_whose_clocks_differ_says_so_once() -> None:
    seeds = {f"seed_{i}": run(2, clocks={"step": [0, i]}, loss=[1, 2]) for i in (1, 2)}
    aggregate = aggregate_seeds(seeds)
    for method in ("to_dataframe", "to_xarray"):
        with pytest.warns(UserWarning, match="the clock 'step' is not the same") as warned:
            getattr(MetaLog({"a": aggregate, "b": aggregate}), method)()
        assert [each.filename for each in warned] == [__file__]


def test_aggregated_seeds_stand_at_the_updates_of_each() -> None:
    seeds = {"seed_1": run(4, acc={0: 1.0, 3: 3.0}), "seed_2": run(4, acc={0: 2.0, 2: 7.0})}
    frame = MetaLog({"a": aggregate_seeds(seeds)}).to_dataframe()
    np.testing.assert_array_equal(frame.acc_mean, [1.5, np.nan, 7.0, 3.0])
    np.testing.assert_array_equal(frame.acc_n, [2, np.nan, 1, 1])


def test_what_is_in_a_table_is_no_part_of_the_log() -> None:
    log = run(2, loss=[1.0, 2.0])
    frame, data = log.to_dataframe(), log.to_xarray()
    frame.loc[0, "loss"] = 7.0
    data.loss[0] = 7.0

    assert log.stats.loss.tolist() == [1.0, 2.0]


def test_empty_logs_are_empty_tables() -> None:
    assert MetaLog({}).to_dataframe().empty
    assert MetaLog({}).to_xarray().sizes == {"step": 0}
    assert list(run(0, loss=[]).to_dataframe()) == ["num_updates", "time_elapsed", "loss"]
    assert run(0, loss=[]).to_xarray().loss.shape == (0,)


def test_a_seed_without_a_value_does_not_change_the_type_of_the_others() -> None:
    log = MetaLog({"s": run(2, x=[1, 2]), "t": run(0, x=[])})

    assert log.to_dataframe().x.dtype == np.int64


@pytest.mark.parametrize(
    ("library", "method"), [("pandas", "to_dataframe"), ("xarray", "to_xarray")]
)
def test_without_the_library_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, library: str, method: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)

    for log in (run(1), MetaLog({"s": run(1)})):
        with pytest.raises(ImportError, match=rf"pip install 'mle-daemon\[{library}\]'"):
            getattr(log, method)()


# --- datasets -------------------------------------------------------------------------------------
def test_a_dataset_has_seeds_and_steps_and_clocks_as_coordinates() -> None:
    log = MetaLog({"seed_10": run(1, loss=[5]), "seed_2": run(3, loss=[1, 2, 3])})
    data = log.to_xarray()

    assert data.sizes == {"seed": 2, "step": 3}
    assert list(data.data_vars) == ["loss"]
    assert set(data.coords) == {"seed", "step", "num_updates", "time_elapsed"}
    assert data.seed.values.tolist() == ["seed_2", "seed_10"]
    assert data.step.values.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(data.loss, [[1, 2, 3], [5, np.nan, np.nan]])
    np.testing.assert_array_equal(data.num_updates[1], [1, np.nan, np.nan])
    assert data.loss.sel(seed="seed_2", step=3) == 3


def test_configurations_need_not_have_the_same_seeds() -> None:
    log = MetaLog(
        {
            "b": AttrDict(seed_1=run(1, loss=[1.0])),
            "a": AttrDict(seed_3=run(1, loss=[3.0]), seed_2=run(1, loss=[2.0])),
        }
    )
    data = log.to_xarray()

    assert data.loss.dims == ("config", "seed", "step")
    assert data.config.values.tolist() == ["b", "a"]
    assert data.seed.values.tolist() == ["seed_1", "seed_2", "seed_3"]
    np.testing.assert_array_equal(data.loss[..., 0], [[1, np.nan, np.nan], [np.nan, 2, 3]])


def test_arrays_get_dimensions_of_their_own() -> None:
    aggregate = aggregate_seeds({"seed_1": run(2, g=np.arange(12.0).reshape(2, 2, 3))})
    data = MetaLog({"a": aggregate}).to_xarray()

    assert data.g_mean.dims == ("config", "step", "g_dim_0", "g_dim_1")
    assert data.g_std.dims == data.g_mean.dims
    np.testing.assert_array_equal(data.g_mean[0], np.arange(12).reshape(2, 2, 3))
    single = run(3, g={1: [1, 2]}).to_xarray().g
    np.testing.assert_array_equal(single, [[np.nan] * 2, [1, 2], [np.nan] * 2])


def test_arrays_of_different_shapes_are_left_out_and_named() -> None:
    log = MetaLog({"s": run(1, g=[[1, 2]]), "t": run(1, g=[[1, 2, 3]], loss=[1])})

    with pytest.warns(UserWarning, match="left out: 'g' has arrays of different shapes"):
        assert list(log.to_xarray().data_vars) == ["loss"]


def test_missing_text_is_null() -> None:
    assert run(2, note={1: "b"}).to_xarray().note.isnull().values.tolist() == [True, False]


# --- any log --------------------------------------------------------------------------------------
kinds = {
    "integer": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=64),
    "bool": st.booleans(),
    "text": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3),
}
dtypes = {"integer": np.int64, "float": np.float64, "bool": np.bool_, "text": object}


@st.composite
def ragged_seeds(draw: st.DrawFn) -> dict[str, RunLog]:
    seeds = {}
    for i in range(draw(st.integers(1, 4))):
        ticks = draw(st.integers(0, 6))
        stats, rows = {}, {}
        for key, kind in kinds.items():
            if draw(st.booleans()):
                at = sorted(draw(st.sets(st.integers(0, ticks - 1)))) if ticks else []
                values = draw(st.lists(kind, min_size=len(at), max_size=len(at)))
                stats[key] = np.array(values, dtypes[key])
                rows[layout.rows_name("stats", key)] = np.array(at, np.int64)
        plain = run(ticks)
        seeds[f"seed_{i}"] = RunLog(plain.meta, stats, plain.time, rows=rows)
    return seeds


def same(found: Any, logged: Any) -> bool:
    if isinstance(logged, np.integer):
        return int(found) == int(logged)  # without numpy's rounding of the one to the other's type
    return bool(found == logged) or (found != found and logged != logged)


@given(ragged_seeds())
def test_every_value_is_found_again_at_its_update_and_nothing_else(
    seeds: dict[str, RunLog],
) -> None:
    frame, data = MetaLog(seeds).to_dataframe(), MetaLog(seeds).to_xarray()

    assert len(frame) == sum(log.ticks for log in seeds.values())
    for key in kinds:
        logged = {
            (name, row): value
            for name, log in seeds.items()
            if key in log.stats
            for row, value in zip(log.row_numbers("stats", key), log.stats[key], strict=True)
        }
        assert (key in frame) == (key in data) == any(key in log.stats for log in seeds.values())
        if key not in frame:
            continue
        table = dict(
            zip(zip(frame.seed, frame.num_updates - 1, strict=True), frame[key], strict=True)
        )
        for name, log in seeds.items():
            for row in range(len(data.step)):
                cell = data[key].sel(seed=name, step=row + 1).values[()]
                cells = [cell, table[name, row]] if row < log.ticks else [cell]
                for found in cells:
                    if (name, row) in logged:
                        assert same(found, logged[name, row])
                    else:
                        assert pd.isna(found)
        whole = len(logged) == len(frame)
        if key == "integer" and whole:
            assert frame[key].dtype == np.int64
        if key == "bool" and whole and logged:
            assert frame[key].dtype == np.bool_
