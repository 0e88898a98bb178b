"""What a run has stored beside its log: names, lists, and the way through JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from mle_client.kept import (
    OPTIONAL_LISTS,
    Kept,
    kept_from_json,
    kept_from_meta,
    kept_from_plain,
    kept_to_json,
    kept_to_plain,
    meta_lists,
    model_names,
)
from mle_client.retention import LatestN, Policy, Portfolio, Saved, TopK

NAN = float("nan")
POLICY = Policy(every_k=2, top_k=2, top_k_metric="loss", time_name="epoch")


def saves(policy: Policy, *losses: float) -> Kept:
    """What is kept after some checkpoints, one an epoch."""
    kept = Kept()
    for number, loss in enumerate(losses, 1):
        kept, _ = kept.with_model(policy, Saved(number, 10 * number, {"loss": loss}, {}))
    return kept


def lists_of(kept: Kept, policy: Policy = POLICY) -> dict[str, Any]:
    return dict(meta_lists(kept, policy, "exp/run_1/", "seed_1", ".pt"))


# --- what is kept ---------------------------------------------------------------------------------
def test_a_checkpoint_is_kept_as_its_plan_says() -> None:
    before = saves(POLICY, 3.0)
    kept, plan = before.with_model(POLICY, Saved(2, 20, {"loss": 1.0}, {}))
    assert kept.portfolio == plan.portfolio
    assert (plan.number, plan.every_k, plan.slot) == (2, True, 1)
    assert before.portfolio.saves == 1  # values do not change


def test_an_initial_checkpoint_comes_and_goes_and_touches_nothing_else() -> None:
    kept = saves(POLICY, 3.0).with_file("figure", "figures/a.png")
    assert kept.with_init().portfolio.init_saved
    assert kept.with_init().without_init() == kept


@pytest.mark.parametrize(("kind", "field"), [("figure", "figures"), ("extra", "extras")])
def test_files_are_listed_once_in_the_order_of_saving(kind: str, field: str) -> None:
    kept = Kept()
    for name in ("b", "a", "b"):
        kept = kept.with_file(kind, name)
    assert getattr(kept, field) == ("b", "a")
    assert kept == Kept(**{field: ("b", "a")})
    assert getattr(kept.without_file(kind, "b"), field) == ("a",)
    assert kept.without_file(kind, "c") == kept


def test_a_checkpoint_s_names_are_where_mle_logging_has_them() -> None:
    policy = Policy(every_k=1, top_k=1, top_k_metric="loss", rules=(LatestN(1),))
    kept, plan = Kept().with_model(policy, Saved(1, None, {"loss": 0.5}, {}))
    assert model_names(plan, "seed_1", ".pt") == (
        "models/final/final_seed_1.pt",
        "models/every_k/every_k_seed_1_k_1.pt",
        "models/top_k/top_k_seed_1_top_0.pt",
        "models/retained/retained_seed_1_1.pt",
    )
    _, plan = kept.with_model(Policy(), Saved(2, None, {}, {}))
    assert model_names(plan, "seed_1", ".pkl") == ("models/final/final_seed_1.pkl",)


# --- lists in meta/ -------------------------------------------------------------------------------
def test_lists_are_those_of_mle_logging() -> None:
    kept = saves(POLICY, 3.0, 2.0, 1.0, 9.0).with_init()
    kept = kept.with_file("figure", "figures/f.png").with_file("extra", "extra/e.pkl")
    models = "exp/run_1/models"
    assert lists_of(kept) == {
        "model_ckpt": (f"{models}/final/final_seed_1.pt",),
        "init_ckpt": (f"{models}/init/init_seed_1.pt",),
        "ckpt_time_to_track": ("epoch",),
        "every_k_storage_time": (20, 40),
        "every_k_ckpt_list": (
            f"{models}/every_k/every_k_seed_1_k_2.pt",
            f"{models}/every_k/every_k_seed_1_k_4.pt",
        ),
        "top_k_metric_name": ("loss",),
        "top_k_storage_time": (30, 20),
        "top_k_ckpt_list": (
            f"{models}/top_k/top_k_seed_1_top_0.pt",
            f"{models}/top_k/top_k_seed_1_top_1.pt",
        ),
        "top_k_performance": (1.0, 2.0),
        "fig_storage_paths": ("exp/run_1/figures/f.png",),
        "extra_storage_paths": ("exp/run_1/extra/e.pkl",),
    }


def test_a_list_that_mle_logging_would_not_have_is_missing() -> None:
    assert lists_of(Kept(), Policy()) == {}
    assert set(lists_of(saves(Policy(), 1.0), Policy())) == {"model_ckpt"}
    assert lists_of(Kept()) == {
        "ckpt_time_to_track": ("epoch",),
        "every_k_storage_time": (),
        "every_k_ckpt_list": (),
        "top_k_metric_name": ("loss",),
        "top_k_storage_time": (),
        "top_k_ckpt_list": (),
        "top_k_performance": (),
    }
    assert not set(OPTIONAL_LISTS) & set(lists_of(Kept()))


def test_a_checkpoint_without_the_clock_has_no_number_for_it() -> None:
    kept, _ = Kept().with_model(Policy(every_k=1), Saved(1, None, {}, {}))
    (time,) = lists_of(kept, Policy(every_k=1))["every_k_storage_time"]
    assert math.isnan(time)


def test_a_continued_run_that_goes_by_another_metric_has_lists() -> None:
    kept = saves(POLICY, 3.0, 2.0)
    other = Policy(top_k=2, top_k_metric="acc", minimize=False, time_name="epoch")
    lists = lists_of(kept, other)
    assert lists["top_k_metric_name"] == ("acc",)
    assert lists["top_k_storage_time"] == (10, 20)
    assert all(map(math.isnan, lists["top_k_performance"]))
    kept, plan = kept.with_model(other, Saved(3, 30, {"acc": 0.1}, {}))
    assert plan.slot is not None
    assert lists_of(kept, other)["top_k_performance"][plan.slot] == 0.1


# --- through JSON ---------------------------------------------------------------------------------
def everything() -> Kept:
    policy = Policy(every_k=1, top_k=2, top_k_metric="loss", rules=(TopK("loss", 1),))
    kept = Kept()
    for number, loss in enumerate((0.1, -math.inf, 1e300), 1):
        clocks = {"größe": 2**60, "t": 0.5}
        kept, _ = kept.with_model(policy, Saved(number, None, {"loss": loss}, clocks))
    return kept.with_init().with_file("figure", "figures/größe.png").with_file("extra", "extra/e")


@pytest.mark.parametrize("kept", [Kept(), everything()])
def test_it_comes_back_equal(kept: Kept) -> None:
    assert kept_from_json(kept_to_json(kept)) == kept
    assert kept_from_plain(kept_to_plain(kept)) == kept
    assert kept_to_json(kept).isascii()
    assert "\n" not in kept_to_json(kept)


def test_not_a_number_comes_back() -> None:
    kept = saves(POLICY, NAN)
    again = kept_from_json(kept_to_json(kept))
    assert math.isnan(again.portfolio.top_k[0].metrics["loss"])
    assert kept_to_json(again) == kept_to_json(kept)


def test_nothing_kept_is_no_text() -> None:
    assert kept_to_json(Kept()) == ""
    assert kept_from_json("") == kept_from_json("{}") == kept_from_plain({}) == Kept()


def test_padding_behind_the_text_is_no_matter() -> None:
    assert kept_from_json(kept_to_json(everything()) + "   ") == everything()


PLAIN = kept_to_plain(everything())


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        "x",
        3,
        {"portfolio": PLAIN["portfolio"]},
        {**PLAIN, "figures": "figures/a.png"},
        {**PLAIN, "figures": [1]},
        {**PLAIN, "extras": None},
        {**PLAIN, "portfolio": {}},
        {**PLAIN, "portfolio": None},
        {**PLAIN, "portfolio": {**PLAIN["portfolio"], "saves": -1}},
        {**PLAIN, "portfolio": {**PLAIN["portfolio"], "saves": 1}},  # and checkpoint 3
    ],
)
def test_what_something_else_wrote_is_a_value_error(plain: Any) -> None:
    with pytest.raises(ValueError, match=r"malformed|no map|something else|not a"):
        kept_from_plain(plain)
    with pytest.raises(ValueError, match=r"malformed|no map|something else|not a"):
        kept_from_json(json.dumps(plain))


def test_a_text_that_is_no_json_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        kept_from_json('{"portfolio": ')


# --- from a log of mle-logging's ------------------------------------------------------------------
META = {
    "experiment_dir": "figures/run_1/",  # a trap
    "model_ckpt": "figures/run_1/models/final/final_seed_1.pt",
    "init_ckpt": "figures/run_1/models/init/init_seed_1.pt",
    "ckpt_time_to_track": "epoch",
    "every_k_ckpt_list": [f"figures/run_1/models/every_k/every_k_seed_1_k_{n}.pt" for n in (8, 12)],
    "every_k_storage_time": [80, 120],
    "top_k_metric_name": "loss",
    "top_k_ckpt_list": [f"figures/run_1/models/top_k/top_k_seed_1_top_{n}.pt" for n in (0, 1)],
    "top_k_storage_time": [30, 50],
    "top_k_performance": [0.5, 0.25],
    "fig_storage_paths": [
        "figures/run_1/figures/fig_1_seed_1.png",
        "figures/run_1/figures/loss_figures/a.png",
        "figures/run_1/figures/fig_1_seed_1.png",
    ],
    "extra_storage_paths": ["figures/run_1/extra/e.pkl"],
}


def test_everything_that_mle_logging_tells_is_taken_over() -> None:
    kept = kept_from_meta(META, POLICY)
    assert kept == Kept(
        Portfolio(
            saves=12,
            init_saved=True,
            every_k=(Saved(8, 80, {}, {}), Saved(12, 120, {}, {})),
            top_k=(Saved(0, 30, {"loss": 0.5}, {}), Saved(0, 50, {"loss": 0.25}, {})),
        ),
        ("figures/fig_1_seed_1.png", "figures/loss_figures/a.png"),
        ("extra/e.pkl",),
    )
    kept, plan = kept.with_model(POLICY, Saved(13, 130, {"loss": 0.3}, {}))
    assert plan.slot == 0
    assert kept_from_json(kept_to_json(kept)) == kept


def test_lists_of_one_and_of_none_are_taken_over() -> None:
    """mle-logging splits a path into its letters, and looks at the last one for the number."""
    one = {name: value[0] if isinstance(value, list) else value for name, value in META.items()}
    kept = kept_from_meta(one, POLICY)
    assert kept.portfolio.every_k == (Saved(8, 80, {}, {}),)
    assert kept.portfolio.top_k == (Saved(0, 30, {"loss": 0.5}, {}),)
    assert kept.figures == ("figures/fig_1_seed_1.png",)
    none = {name: [] if isinstance(value, list) else value for name, value in META.items()}
    assert kept_from_meta(none, POLICY) == Kept(Portfolio(saves=1, init_saved=True))
    assert kept_from_meta({}, POLICY) == Kept()


def test_scores_are_of_the_metric_that_they_were_given_for() -> None:
    other = Policy(top_k=2, top_k_metric="acc", minimize=False)
    portfolio = kept_from_meta(META, other).portfolio
    assert [saved.metrics for saved in portfolio.top_k] == [{"loss": 0.5}, {"loss": 0.25}]
    nameless = {name: value for name, value in META.items() if name != "top_k_metric_name"}
    portfolio = kept_from_meta(nameless, other).portfolio
    assert [saved.metrics for saved in portfolio.top_k] == [{"acc": 0.5}, {"acc": 0.25}]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/old/place/figures/a.png", "figures/a.png"),  # the folder was moved or renamed
        ("figures/run_1//figures/sub/a.png", "figures/sub/a.png"),
        ("a.png", "figures/a.png"),
    ],
)
def test_paths_become_relative_to_the_folder_as_it_is_now(path: str, name: str) -> None:
    assert kept_from_meta({**META, "fig_storage_paths": path}, POLICY).figures == (name,)


def test_a_path_without_a_number_is_no_checkpoint() -> None:
    meta = {**META, "every_k_ckpt_list": ["odd.pt", "x_k_4.pt"], "every_k_storage_time": [1, 2]}
    assert kept_from_meta(meta, POLICY).portfolio.every_k == (Saved(4, 2, {}, {}),)
