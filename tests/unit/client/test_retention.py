"""What a run keeps, save by save, and how that travels as plain values."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from mle_client.retention import (
    EveryK,
    KeepPeriod,
    LatestN,
    Plan,
    Policy,
    Portfolio,
    Saved,
    TopK,
    plan_save,
    policy_from_plain,
    portfolio_from_plain,
    saved_from_plain,
    to_plain,
)

NAN, INF = math.nan, math.inf
NOTHING = Portfolio()
BEST_2 = Policy(top_k=2, top_k_metric="loss")


def saved(number: int, loss: float | None = None, epoch: float | None = None) -> Saved:
    """A checkpoint; None for a value that it lacks."""
    metrics = {} if loss is None else {"loss": loss}
    return Saved(number, 10 * number, metrics, {} if epoch is None else {"epoch": epoch})


def run(policy: Policy, *checkpoints: Saved, start: Portfolio = NOTHING) -> list[Plan]:
    """The plans of some saves, one after another."""
    plans: list[Plan] = []
    for checkpoint in checkpoints:
        plans.append(plan_save(policy, plans[-1].portfolio if plans else start, checkpoint))
    return plans


def losses(policy: Policy, *values: float | None) -> list[Plan]:
    """The plans of saves 1, 2, … with these losses."""
    return run(policy, *[saved(i, value) for i, value in enumerate(values, 1)])


def numbers(checkpoints: tuple[Saved, ...]) -> list[int]:
    return [checkpoint.number for checkpoint in checkpoints]


# --- every k, the best k --------------------------------------------------------------------------
def test_every_kth_save_is_kept_for_ever() -> None:
    plans = run(Policy(every_k=3), *map(saved, range(1, 13)))
    assert [plan.number for plan in plans if plan.every_k] == [3, 6, 9, 12]
    assert numbers(plans[-1].portfolio.every_k) == [3, 6, 9, 12]


def test_without_a_policy_only_the_latest_is_kept() -> None:
    plan = losses(Policy(), 1.0, 2.0)[-1]
    assert plan == Plan(Portfolio(saves=2), 2, False, None, False, ())


@pytest.mark.parametrize(
    ("values", "slots", "kept"),
    [
        ([3, 2, 1], [0, 1, 0], [3, 2]),  # free slots first, then that of the worst
        ([1, 2, 3], [0, 1, None], [1, 2]),
        ([1, 2, 2], [0, 1, None], [1, 2]),  # a tie keeps the older
        ([2, 2, 1], [0, 1, 1], [1, 3]),  # of equally bad ones the younger goes
        ([3, 5, 3, 1], [0, 1, 1, 1], [1, 4]),
        ([5, 3, 3, 1], [0, 1, 0, 0], [4, 2]),  # the younger, though it has the first slot
        ([NAN, 5, 1, 2], [0, 1, 0, 1], [3, 4]),  # NaN goes first
        ([NAN, NAN, NAN], [0, 1, None], [1, 2]),
        ([NAN, NAN, INF], [0, 1, 1], [1, 3]),
        ([INF, INF, NAN], [0, 1, None], [1, 2]),
        ([INF, -INF, 0], [0, 1, 0], [3, 2]),
        ([None, 1, None, 2, None], [None, 0, None, 1, None], [2, 4]),  # no candidate
    ],
)
def test_the_best_take_slots(
    values: list[float | None], slots: list[int | None], kept: list[int]
) -> None:
    plans = losses(BEST_2, *values)
    assert [plan.slot for plan in plans] == slots
    assert numbers(plans[-1].portfolio.top_k) == kept


@pytest.mark.parametrize(
    ("values", "kept"),
    [([1, 2, 3], [3, 2]), ([NAN, 1, -INF], [3, 2]), ([2, 1, 1], [1, 2]), ([INF, NAN, 1], [1, 3])],
)
def test_the_best_can_be_the_largest(values: list[float], kept: list[int]) -> None:
    assert numbers(losses(replace(BEST_2, minimize=False), *values)[-1].portfolio.top_k) == kept


def test_slots_of_unknown_age_go_as_with_mle_logging() -> None:
    before = Portfolio(saves=3, top_k=(saved(0, 1.0), saved(0, 9.0), saved(0, 9.0)))
    (plan,) = run(BEST_2, saved(4, 2.0), start=before)
    assert plan.slot == 1


def test_a_smaller_k_takes_nothing_away() -> None:
    before = losses(Policy(top_k=3, top_k_metric="loss"), 1.0, 2.0, 3.0)[-1].portfolio
    plans = run(BEST_2, saved(4, 2.5), saved(5, 7.0), start=before)
    assert [plan.slot for plan in plans] == [2, None]
    assert numbers(plans[-1].portfolio.top_k) == [1, 2, 4]


def test_slots_without_the_metric_of_now_go_first() -> None:
    before = losses(BEST_2, 1.0, 2.0)[-1].portfolio
    (plan,) = run(
        Policy(top_k=2, top_k_metric="error"), Saved(3, 3, {"error": INF}, {}), start=before
    )
    assert plan.slot == 1


# --- rules ----------------------------------------------------------------------------------------
def test_a_checkpoint_stays_while_any_rule_wants_it() -> None:
    policy = Policy(rules=(TopK("loss", 1), EveryK(4), LatestN(2), KeepPeriod("epoch", 3)))
    values = [5.0, 4.0, 9.0, 8.0, 7.0, 6.0, 3.0, 8.0]
    plans = run(policy, *[saved(i, loss, epoch=i) for i, loss in enumerate(values, 1)])
    assert numbers(plans[-1].portfolio.retained) == [1, 3, 4, 6, 7, 8]
    assert [plan.evicted for plan in plans] == [(), (), (), (), (), (), (2, 5), ()]


def test_the_newest_stays_although_no_rule_wants_it() -> None:
    plans = losses(Policy(rules=(TopK("loss", 1),)), 1.0, 5.0, 6.0)
    assert all(plan.retained for plan in plans)
    assert [numbers(plan.portfolio.retained) for plan in plans] == [[1], [1, 2], [1, 3]]
    assert [plan.evicted for plan in plans] == [(), (), (2,)]


def test_without_rules_nothing_retained_earlier_is_removed() -> None:
    before = losses(Policy(rules=(LatestN(2),)), 1.0, 2.0, 3.0)[-1].portfolio
    (plan,) = run(Policy(), saved(4), start=before)
    assert (plan.retained, plan.evicted) == (False, ())
    assert numbers(plan.portfolio.retained) == [2, 3]


def test_other_rules_decide_about_what_was_retained_earlier() -> None:
    before = losses(Policy(rules=(LatestN(3),)), 1.0, 2.0, 3.0)[-1].portfolio
    (plan,) = run(Policy(rules=(TopK("loss", 1),)), saved(4, 9.0), start=before)
    assert plan.evicted == (2, 3)


def test_a_checkpoint_is_live_while_it_has_a_name_besides_the_latest() -> None:
    policy = Policy(every_k=2, top_k=1, top_k_metric="loss", rules=(LatestN(1),))
    portfolio = losses(policy, 1.0, 2.0, 3.0, 4.0, 5.0)[-1].portfolio
    assert [portfolio.live(number) for number in range(1, 6)] == [True, True, False, True, True]


def test_a_save_may_not_come_before_the_latest() -> None:
    with pytest.raises(ValueError, match="checkpoint 3 comes after checkpoint 3"):
        plan_save(Policy(), Portfolio(saves=3), saved(3))


# --- policies -------------------------------------------------------------------------------------
def test_a_policy_says_once_which_values_decide() -> None:
    rules = (TopK("acc", 1, "max"), TopK("loss", 1), KeepPeriod("epoch", 2), KeepPeriod("epoch", 3))
    policy = Policy(top_k=1, top_k_metric="loss", rules=rules)
    assert policy.metric_names == ("loss", "acc")
    assert policy.clock_names == ("epoch",)
    assert Policy(every_k=2, top_k_metric="loss").metric_names == ()


def test_rules_may_come_as_a_list() -> None:
    assert Policy(rules=[LatestN(1)]).rules == (LatestN(1),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"every_k": 0}, ValueError, "save_every_k_ckpt=0: give an int of at least 1"),
        ({"every_k": 1.5}, TypeError, "save_every_k_ckpt=1.5"),
        ({"top_k": 3}, ValueError, "save_top_k_ckpt=3 needs top_k_metric_name"),
        ({"top_k": True, "top_k_metric": "loss"}, TypeError, "save_top_k_ckpt=True"),
        ({"top_k": 1, "top_k_metric": ""}, ValueError, "top_k_metric_name is empty"),
        ({"time_name": 3}, TypeError, "ckpt_time_to_track=3"),
        ({"minimize": "min"}, TypeError, "top_k_minimize_metric='min': give True or False"),
        ({"rules": TopK("loss", 1)}, TypeError, r"retention=TopK.*give a list of rules"),
        ({"rules": [TopK]}, TypeError, "is none of TopK, EveryK, LatestN, KeepPeriod"),
        ({"rules": 3}, TypeError, "retention=3: give a list of rules"),
        ({"rules": "TopK"}, TypeError, "retention: 'T' is none of"),
    ],
)
def test_a_policy_that_makes_no_sense_says_what_to_give(
    arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Policy(**arguments)


# --- as plain values ------------------------------------------------------------------------------
POLICY = Policy(
    every_k=5, top_k=3, top_k_metric="loss", minimize=False, time_name="epoch",
    rules=(TopK("loss", 3, "max"), EveryK(10), LatestN(2), KeepPeriod("epoch", 0.5)),
)  # fmt: skip
ODD = Saved(7, 2**60 + 1, {"nan": NAN, "inf": INF, "-inf": -INF, "loss": 3.0}, {"a": 4, "b": 4.0})
PORTFOLIO = Portfolio(9, True, (ODD,), (ODD, replace(ODD, number=0, time=None)), (ODD,))


def json_road(plain: dict[str, Any]) -> Any:
    return json.loads(json.dumps(plain))


def msgpack_road(plain: dict[str, Any]) -> Any:
    return msgpack.unpackb(msgpack.packb(plain))


@pytest.mark.parametrize("road", [json_road, msgpack_road])
def test_all_of_it_survives_as_plain_values(road: Any) -> None:
    assert policy_from_plain(road(to_plain(POLICY))) == POLICY
    # As text, for NaN is not equal to itself and 4 is to 4.0.
    assert repr(saved_from_plain(road(to_plain(ODD)))) == repr(ODD)
    assert repr(portfolio_from_plain(road(to_plain(PORTFOLIO)))) == repr(PORTFOLIO)


def test_metrics_are_floats_whatever_a_sender_wrote() -> None:
    plain = {**to_plain(ODD), "metrics": {"loss": 3}}
    assert repr(saved_from_plain(plain).metrics) == "{'loss': 3.0}"


def test_an_empty_map_is_a_policy_without_arguments() -> None:
    assert policy_from_plain({}) == Policy()


MALFORMED = r"malformed|not a map|not a list|too large|give an int|needs top_k_metric_name"
GARBAGE: list[Any] = [None, 3, "x", b"y", [], {3: 4}, {"number": 1}, {"saves": 1, "x": 2}]


@pytest.mark.parametrize("plain", [*GARBAGE, {}])
def test_garbage_is_no_checkpoint_and_no_portfolio(plain: Any) -> None:
    with pytest.raises(ValueError, match="not a map of"):
        saved_from_plain(plain)
    with pytest.raises(ValueError, match="not a map of"):
        portfolio_from_plain(plain)


@pytest.mark.parametrize("plain", GARBAGE)
def test_garbage_is_no_policy(plain: Any) -> None:
    with pytest.raises(ValueError, match=r"not a map of|malformed"):
        policy_from_plain(plain)


@pytest.mark.parametrize(
    "change",
    [
        {"number": -1}, {"number": 1.0}, {"number": True}, {"number": "1"}, {"time": "now"},
        {"metrics": None}, {"metrics": [1]}, {"metrics": {"loss": "low"}}, {"metrics": {1: 1.0}},
        {"metrics": {"loss": 10**400}}, {"clocks": {"epoch": None}}, {"clocks": 3}, {"extra": 1},
    ],
)  # fmt: skip
def test_a_malformed_checkpoint_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=MALFORMED):
        saved_from_plain({**to_plain(ODD), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"every_k": 0}, {"every_k": "5"}, {"top_k_metric": None}, {"top_k_metric": 5},
        {"minimize": 1}, {"unknown": 1}, {"rules": 3}, {"rules": [3]}, {"rules": [{}]},
        {"rules": [{"rule": "Best"}]}, {"rules": [{"rule": ["TopK"]}]},
        {"rules": [{"rule": "EveryK"}]}, {"rules": [{"rule": "EveryK", "k": 0}]},
        {"rules": [{"rule": "EveryK", "k": 1, "n": 2}]}, {"rules": {"rule": "EveryK", "k": 1}},
    ],
)  # fmt: skip
def test_a_malformed_policy_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=MALFORMED):
        policy_from_plain({**to_plain(POLICY), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"saves": -1}, {"saves": 6}, {"saves": 9.0}, {"init_saved": 1}, {"every_k": None},
        {"top_k": [3]}, {"retained": [to_plain(ODD)] * 2}, {"retained": {}},
    ],
)  # fmt: skip
def test_a_malformed_portfolio_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=MALFORMED):
        portfolio_from_plain({**to_plain(PORTFOLIO), **change})
