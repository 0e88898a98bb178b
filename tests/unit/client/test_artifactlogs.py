"""`model_log`, `figure_log`, `extra_log`: what mle-logging has, under the same names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from mle_client.artifactlogs import ExtraLog, FigureLog, ModelLog
from mle_client.kept import Kept
from mle_client.retention import LatestN, Policy, Saved


@dataclass
class FakeSaver:
    """Keeps what a test says."""

    policy: Policy = field(default_factory=Policy)
    kept: Kept = field(default_factory=Kept)
    seed_id: str = "seed_1"

    def save(self, **metrics: float) -> None:
        number = self.kept.portfolio.saves + 1
        saved = Saved(number, 10 * number, metrics, {})
        self.kept, _ = self.kept.with_model(self.policy, saved)


def model_log(saver: FakeSaver, model_type: str = "torch", seed_id: str = "seed_1") -> ModelLog:
    given: Any = saver
    return ModelLog(given, "exp/run_1/", lambda: seed_id, model_type)


def test_lists_are_right_at_once() -> None:
    saver = FakeSaver(
        Policy(every_k=2, top_k=1, top_k_metric="loss", time_name="epoch", rules=(LatestN(1),))
    )
    log = model_log(saver)
    assert log.every_k_ckpt_list == log.top_k_ckpt_list == log.retained_ckpt_list == []
    assert log.top_k_performance == log.top_k_storage_time == log.every_k_storage_time == []
    for loss in (3.0, 1.0, 2.0):
        saver.save(loss=loss)
    models = "exp/run_1/models"
    assert log.every_k_ckpt_list == [f"{models}/every_k/every_k_seed_1_k_2.pt"]
    assert log.every_k_storage_time == [20]
    assert log.top_k_ckpt_list == [f"{models}/top_k/top_k_seed_1_top_0.pt"]
    assert (log.top_k_storage_time, log.top_k_performance) == ([20], [1.0])
    assert log.retained_ckpt_list == [f"{models}/retained/retained_seed_1_3.pt"]
    assert log.model_save_counter == 3
    assert not log.init_model_saved
    saver.kept = saver.kept.with_init()
    assert log.init_model_saved


def test_without_a_policy_lists_are_empty() -> None:
    saver = FakeSaver()
    saver.save(loss=1.0)
    log = model_log(saver)
    assert log.every_k_ckpt_list == log.top_k_ckpt_list == log.retained_ckpt_list == []
    assert (log.save_every_k_ckpt, log.save_top_k_ckpt, log.top_k_metric_name) == (None,) * 3
    assert (log.ckpt_time_to_track, log.top_k_minimize_metric) == (None, None)


def test_what_was_asked_for_can_be_read() -> None:
    policy = Policy(every_k=2, top_k=3, top_k_metric="acc", minimize=False, time_name="epoch")
    log = model_log(FakeSaver(policy))
    assert (log.save_every_k_ckpt, log.save_top_k_ckpt, log.top_k_metric_name) == (2, 3, "acc")
    assert (log.ckpt_time_to_track, log.top_k_minimize_metric) == ("epoch", False)
    assert (log.experiment_dir, log.model_type, log.seed_id) == ("exp/run_1/", "torch", "seed_1")


@pytest.mark.parametrize(
    ("model_type", "extension"),
    [("torch", ".pt"), ("tensorflow", ".pt"), ("jax", ".pkl"), ("numpy", ".pkl"),
     ("sklearn", ".pkl"), ("no-model-type", "")],
)  # fmt: skip
def test_names_have_the_suffix_of_their_type(model_type: str, extension: str) -> None:
    log = model_log(FakeSaver(), model_type)
    assert log.final_model_save_fname == f"exp/run_1/models/final/final_seed_1{extension}"
    assert log.init_model_save_fname == f"exp/run_1/models/init/init_seed_1{extension}"
    assert log.model_fname_ext == extension


def test_folders_and_the_beginnings_of_names_are_mle_loggings() -> None:
    log = model_log(FakeSaver())
    assert (log.ckpt_dir, log.every_k_dir, log.top_k_dir) == (
        "exp/run_1/models/", "exp/run_1/models/every_k/", "exp/run_1/models/top_k/"
    )  # fmt: skip
    assert log.every_k_model_save_fname == "exp/run_1/models/every_k/every_k_seed_1_k_"
    assert log.top_k_model_save_fname == "exp/run_1/models/top_k/top_k_seed_1_top_"


def test_it_is_known_what_the_latest_checkpoint_is_kept_as() -> None:
    saver = FakeSaver(Policy(every_k=2, top_k=1, top_k_metric="loss", time_name="epoch"))
    log = model_log(saver)
    seen = [(log.stored_every_k, log.stored_top_k)]
    for loss in (3.0, 1.0, 2.0):
        saver.save(loss=loss)
        seen.append((log.stored_every_k, log.stored_top_k))
    assert seen == [(False, False), (False, True), (True, True), (False, False)]


def test_names_follow_the_seed_that_the_daemon_has_chosen() -> None:
    names = ["seed_1"]
    saver: Any = FakeSaver(Policy(every_k=1))
    log = ModelLog(saver, "exp", lambda: names[-1], "numpy")
    saver.save()
    names.append("seed_1_dup2")
    assert log.seed_id == "seed_1_dup2"
    assert log.final_model_save_fname == "exp/models/final/final_seed_1_dup2.pkl"
    assert log.every_k_ckpt_list == ["exp/models/every_k/every_k_seed_1_dup2_k_1.pkl"]


def test_figures_and_objects_are_listed_in_order() -> None:
    saver: Any = FakeSaver()
    figures, extras = FigureLog(saver, "exp/run_1"), ExtraLog(saver, "exp/run_1")
    assert figures.fig_storage_paths == extras.extra_storage_paths == []
    for name in ("b.png", "a/c.png"):
        saver.kept = saver.kept.with_file("figure", f"figures/{name}")
    saver.kept = saver.kept.with_file("extra", "extra/e.pkl")
    assert figures.fig_storage_paths == ["exp/run_1/figures/b.png", "exp/run_1/figures/a/c.png"]
    assert extras.extra_storage_paths == ["exp/run_1/extra/e.pkl"]
    assert (figures.fig_save_counter, extras.extra_save_counter) == (2, 1)
    assert figures.seed_id == extras.seed_id == "seed_1"
    assert (figures.figures_dir, extras.extra_dir) == ("exp/run_1/figures/", "exp/run_1/extra/")


def test_changing_a_list_changes_nothing() -> None:
    saver = FakeSaver(Policy(every_k=1))
    saver.save()
    log = model_log(saver)
    log.every_k_ckpt_list.clear()
    assert len(log.every_k_ckpt_list) == 1
