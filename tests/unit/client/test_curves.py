"""Which runs, values and names are drawn.  Nothing is drawn here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mle_client import layout
from mle_client.aggregate import aggregate_seeds
from mle_client.attrdict import AttrDict
from mle_client.curves import Curve, plan_curves
from mle_client.metalog import MetaLog
from mle_client.runlog import RunLog

GROUPS = layout.GROUPS


def run(loss: list[float], **stats: Any) -> RunLog:
    """A run with a tick for each loss; further statistics of other lengths say where they are."""
    ticks = np.arange(1, len(loss) + 1)
    columns, rows = {"loss": np.array(loss)}, {}
    for key, value in stats.items():
        if isinstance(value, dict):
            rows[layout.rows_name("stats", key)] = np.array(list(value))
            value = list(value.values())
        columns[key] = np.array(value)
    return RunLog({}, columns, {"num_updates": ticks, "num_steps": 10 * ticks}, rows=rows)


def curve_of(log: Any, target: Any = "loss", clock: str = "num_updates", **options: Any) -> Curve:
    (curve,) = plan_curves(log, clock, target, **options).curves
    return curve


def labels_of(log: Any, target: Any = "loss", **options: Any) -> list[str]:
    return [curve.label for curve in plan_curves(log, "num_updates", target, **options).curves]


# --- runs -----------------------------------------------------------------------------------------
def test_a_single_run_is_drawn_as_it_is() -> None:
    curve = curve_of(run([3.0, 2.0]), clock="num_steps")

    assert (curve.x.tolist(), curve.y.tolist()) == ([10, 20], [3.0, 2.0])
    assert (curve.run, curve.seed, curve.label, curve.band) == ("", "", "", None)


def test_runs_come_in_natural_order_whatever_their_order_in_the_log() -> None:
    log = {name: run([1.0]) for name in ("run_10", "run_2", "run_1")}

    assert labels_of(log) == labels_of(MetaLog(log)) == ["run_1", "run_2", "run_10"]


def test_run_ids_choose_runs_and_are_left_as_they_are() -> None:
    log = {name: run([1.0]) for name in "abc"}
    run_ids = ["c", "a"]

    assert labels_of(log, run_ids=run_ids) == ["a", "c"]
    assert run_ids == ["c", "a"]
    assert labels_of(log, run_ids=("b",)) == labels_of(log, run_ids="b") == ["b"]


def test_the_log_is_left_as_it_is() -> None:
    log = {"a": run([1.0])}

    plan_curves(log, "num_updates", "loss", run_ids=["a"])
    plan_curves(log["a"], "num_updates", "loss")

    assert list(log) == ["a"]
    assert list(log["a"]) == ["meta", "stats", "time"]


def test_every_run_has_its_own_seeds() -> None:
    log = {
        "a": AttrDict(seed_1=run([1.0])),
        "b": AttrDict(seed_1=run([2.0]), seed_10=run([3.0]), seed_9=run([4.0])),
    }
    curves = plan_curves(log, "num_updates", "loss").curves

    assert [(c.run, c.seed, c.y.tolist()) for c in curves] == [
        ("a", "seed_1", [1.0]),
        ("b", "seed_1", [2.0]),
        ("b", "seed_9", [4.0]),
        ("b", "seed_10", [3.0]),
    ]


@pytest.mark.parametrize("run_ids", [["a", "d"], "d"])
def test_an_unknown_run_is_an_error_that_names_the_runs(run_ids: Any) -> None:
    log = {name: run([1.0]) for name in "abc"}

    with pytest.raises(KeyError, match="no run 'd'; there is 'a', 'b', 'c'"):
        plan_curves(log, "num_updates", "loss", run_ids=run_ids)


@pytest.mark.parametrize(("log", "run_ids"), [({}, None), ({"a": run([1.0])}, [])])
def test_nothing_to_draw_is_an_error(log: Any, run_ids: Any) -> None:
    with pytest.raises(ValueError, match="no run is to be drawn"):
        plan_curves(log, "num_updates", "loss", run_ids=run_ids)


# --- statistics and clocks ------------------------------------------------------------------------
def test_a_rare_statistic_is_drawn_at_the_updates_that_logged_it() -> None:
    curve = curve_of(run([1.0] * 5, acc={1: 0.5, 3: 0.7}), "acc", "num_steps")

    assert (curve.x.tolist(), curve.y.tolist()) == ([20, 40], [0.5, 0.7])


def test_a_column_of_which_nobody_knows_the_updates_is_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="2 values in a run of 3 updates"):
        curve_of(run([1.0] * 3, acc=[0.5, 0.7]), "acc")


def test_a_plain_dict_of_columns_is_a_run_if_they_are_of_one_length() -> None:
    log = {"stats": {"loss": np.array([1.0, 2.0])}, "time": {"t": np.array([5, 6])}}

    assert curve_of(log, clock="t").x.tolist() == [5, 6]
    log["time"]["t"] = np.array([5])
    with pytest.raises(ValueError, match="2 values of 'loss' and 1 of 't'"):
        curve_of(log, clock="t")


def test_runs_without_the_statistic_are_passed_over_and_named_once() -> None:
    log = {"a": run([1.0]), "b": run([1.0], acc=[0.5]), "c": run([1.0])}
    plan = plan_curves(log, "num_updates", "acc")

    assert [curve.run for curve in plan.curves] == ["b"]
    assert plan.remarks == ["no statistic 'acc' in 'a', 'c', passed over"]


def test_a_statistic_that_no_run_has_is_an_error_that_names_those_there_are() -> None:
    log = {"a": run([1.0]), "b": AttrDict(seed_1=run([1.0], acc=[0.5]))}

    with pytest.raises(
        KeyError, match="no statistic 'lss' in 'a', 'b/seed_1'; there is 'loss', 'a"
    ):
        plan_curves(log, "num_updates", ["acc", "lss"])
    with pytest.raises(KeyError, match="no statistic 'x' in 'the run'; there is 'loss'"):
        plan_curves(run([1.0]), "num_updates", "x")


def test_so_it_is_with_clocks() -> None:
    log = {"a": run([1.0]), "b": run([2.0])}
    del log["b"].time["num_steps"]

    assert plan_curves(log, "num_steps", "loss").remarks == [
        "no clock 'num_steps' in 'b', passed over"
    ]
    with pytest.raises(KeyError, match="no clock 'epoch' in 'a', 'b'; there is 'num_updates', 'nu"):
        plan_curves(log, "epoch", "loss")


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ({"x": np.array(["a", "b"], object)}, "'x' of the run is text, or has no mean"),
        ({"x": np.array(["a", "b"])}, "is text"),
        ({"x": np.zeros((2, 3))}, r"'x' of the run holds arrays of shape \(3,\): only numbers"),
    ],
)
def test_what_is_no_number_is_refused(stats: Any, message: str) -> None:
    log = RunLog({}, stats, {"num_updates": np.array([1, 2])})

    with pytest.raises(ValueError, match=message):
        curve_of(log, "x")


def test_aggregated_text_and_arrays_are_refused_too() -> None:
    seed = RunLog(
        {}, {"note": np.array(["a"], object), "g": np.zeros((1, 3))}, {"num_updates": np.array([1])}
    )
    log = {"eval": aggregate_seeds({"seed_1": seed})}

    with pytest.raises(ValueError, match="'note' of eval is text, or has no mean"):
        curve_of(log, "note")
    with pytest.raises(ValueError, match="'g' of eval holds arrays"):
        curve_of(log, "g")


def test_a_clock_of_text_is_refused() -> None:
    log = RunLog({}, {"loss": np.array([1.0])}, {"time": np.array(["24-01-01/10:00"])})

    with pytest.raises(ValueError, match="the clock 'time' is text: draw over another one"):
        curve_of(log, clock="time")


# --- smoothing and bands --------------------------------------------------------------------------
def test_values_are_averaged_with_those_before_them() -> None:
    assert curve_of(run([1.0, 2.0, 4.0]), window=2).y.tolist() == [1.0, 1.5, 3.0]


@pytest.mark.parametrize("window", [0, -1, 1.5])
def test_a_window_that_makes_no_sense_is_refused(window: Any) -> None:
    with pytest.raises(ValueError, match="give 1 or more"):
        curve_of(run([1.0]), window=window)


def seeds() -> RunLog:
    return aggregate_seeds({f"seed_{i}": run([float(i), 10.0 * i]) for i in (1, 2, 6)})


def test_of_aggregated_seeds_the_mean_is_drawn_and_a_band_if_asked_for() -> None:
    loss = seeds().stats.loss

    for band, low, high in [
        ("std", loss["mean"] - loss["std"], loss["mean"] + loss["std"]),
        ("p10-90", loss["p10"], loss["p90"]),
    ]:
        curve = curve_of({"eval": seeds()}, band=band)
        assert curve.y.tolist() == [3.0, 30.0]
        assert curve.band is not None
        np.testing.assert_array_equal(curve.band, [low, high])
    assert curve_of({"eval": seeds()}).band is None


def test_a_band_is_smoothed_like_its_line() -> None:
    loss = seeds().stats.loss
    curve = curve_of({"eval": seeds()}, band="std", window=2)

    assert curve.band is not None
    np.testing.assert_allclose(
        curve.band[1], [loss["mean"][0] + loss["std"][0], (loss["mean"] + loss["std"]).mean()]
    )


def test_a_single_seed_has_no_band() -> None:
    assert curve_of(run([1.0]), band="std").band is None


def test_an_unknown_band_is_refused() -> None:
    with pytest.raises(ValueError, match="band='sem': there is 'std', 'p10-90', and None"):
        curve_of({"eval": seeds()}, band="sem")


# --- names ----------------------------------------------------------------------------------------
def test_several_statistics_begin_the_names() -> None:
    log = {"a": run([1.0], acc=[0.5]), "b": run([1.0], acc=[0.5])}

    assert labels_of(log, ["loss", "acc"]) == ["loss: a", "acc: a", "loss: b", "acc: b"]
    assert labels_of(log["a"], ["loss", "acc"]) == ["loss", "acc"]


def test_the_seeds_of_several_runs_share_a_name_and_those_of_one_do_not() -> None:
    log = {name: AttrDict(seed_1=run([1.0]), seed_2=run([2.0])) for name in "ab"}

    assert labels_of(log) == ["a", "", "b", ""]
    assert labels_of(log, run_ids="a") == ["a/seed_1", "a/seed_2"]


def test_the_name_is_that_of_the_first_seed_that_is_drawn() -> None:
    log = {
        "a": AttrDict(seed_1=run([1.0]), seed_2=run([1.0], acc=[0.5])),
        "b": AttrDict(seed_1=run([1.0], acc=[0.5])),
    }

    assert labels_of(log, "acc") == ["a", "b"]


@pytest.mark.parametrize("make", [RunLog, lambda *groups: dict(zip(GROUPS, groups, strict=True))])
@pytest.mark.parametrize("seeds", [False, True])
def test_runs_may_have_any_name_also_those_of_groups(make: Any, seeds: bool) -> None:
    one = make({}, {"loss": np.ones(2), "stats": np.ones(2)}, {"num_updates": np.arange(2)})
    log = {name: {"seed_1": one} if seeds else one for name in GROUPS}

    for names in (None, list(GROUPS)):
        plan = plan_curves(log, "num_updates", "loss", run_ids=names)
        assert [curve.run for curve in plan.curves] == list(GROUPS)
    assert len(plan_curves(one, "num_updates", "stats").curves) == 1


def test_no_statistic_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no statistic is to be drawn: name one"):
        plan_curves({"a": run([1.0])}, "num_updates", [])


def test_a_statistic_without_a_number_is_remarked_on() -> None:
    log = {"a": run([np.nan, np.inf], acc=[1.0, np.nan])}

    (remark,) = plan_curves(log, "num_updates", ["loss", "acc"]).remarks
    assert remark == "'loss' has no finite value in any run: no line is to be seen"


def test_a_base_label_is_a_format_of_every_name() -> None:
    log = {name: AttrDict(seed_1=run([1.0]), seed_2=run([2.0])) for name in "ab"}

    assert labels_of(log, base_label="lr = {}") == ["lr = a", "", "lr = b", ""]
    assert labels_of(log, base_label="all")[::2] == ["all", "all"]


def test_labels_are_taken_in_the_order_of_the_curves_and_stay_with_them() -> None:
    log = {"a": run([1.0]), "b": run([1.0], acc=[0.5]), "c": run([1.0], acc=[0.5])}

    assert labels_of(log, "acc", labels=["A", "B", "C"], base_label="<{}>") == ["<B>", "<C>"]


def test_labels_that_do_not_suffice_are_refused() -> None:
    with pytest.raises(ValueError, match="1 curve_labels for 2 curves"):
        labels_of({"a": run([1.0]), "b": run([1.0])}, labels=["A"])


def test_labels_for_runs_in_another_order_than_theirs_are_remarked_upon() -> None:
    log = {"a": run([1.0]), "b": run([1.0])}
    plan = plan_curves(log, "num_updates", "loss", run_ids=["b", "a"], labels=["A", "B"])

    assert [curve.label for curve in plan.curves] == ["A", "B"]
    assert plan.remarks == ["curve_labels are those of the runs in natural order: 'a', 'b'"]
    for calm in (
        plan_curves(log, "num_updates", "loss", run_ids=["b", "a"]),
        plan_curves(log, "num_updates", "loss", run_ids=["a", "b"], labels=["A", "B"]),
    ):
        assert calm.remarks == []


# --- what is left out -----------------------------------------------------------------------------
def test_values_of_unknown_update_are_not_drawn_and_remarked_upon_once() -> None:
    log = {
        "a": run([1.0, 2.0, 3.0], acc={-2: 0.1, -1: 0.2, 2: 0.3}),
        "b": run([1.0, 2.0, 3.0], acc={-1: 0.4, 1: 0.5}),
        "c": run([1.0], acc={-1: 0.6}),
        "d": run([1.0], acc=[0.7]),
    }
    plan = plan_curves(log, "num_updates", "acc")

    assert [curve.x.tolist() for curve in plan.curves] == [[3], [2], [], [1]]
    assert [curve.y.tolist() for curve in plan.curves] == [[0.3], [0.5], [], [0.7]]
    (remark,) = plan.remarks
    assert remark.startswith("left out: 4 values of 'acc' of a, b, c: nobody knows at which")


def test_clocks_of_seeds_that_differ_are_remarked_upon_once() -> None:
    seeds = {f"seed_{i}": run([1.0, 2.0][:i], acc=[0.5] * i) for i in (1, 2)}
    seeds["seed_1"]["time"]["num_steps"] = np.array([7])
    log = {"a": aggregate_seeds(seeds)}

    (remark,) = plan_curves(log, "num_steps", ["loss", "acc"]).remarks
    assert remark.startswith("the clock 'num_steps' is not the same in all seeds")
    assert plan_curves(log, "num_updates", "loss").remarks == []
