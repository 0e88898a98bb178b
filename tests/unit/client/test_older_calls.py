"""Functions of mle-logging's that translate to ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mle_client import load_log
from mle_client.older_calls import (
    aggregate_over_seeds,
    merge_hdf5_files,
    moving_smooth_ts,
    subselect_meta_log,
    tolerant_mean,
)
from tests.unit.daemon.test_planning import blocks_of
from tests.unit.daemon.test_store import Log


@pytest.fixture
def logs(root: Path) -> list[str]:
    """The logs of two seeds that have ended."""
    made = []
    for seed in (1, 2):
        log = Log(root, run_id=bytes([seed]) * 16, seed_id=f"seed_{seed}")
        log.open()
        log.publish(blocks_of(({"step": 1}, {"loss": float(seed)})), status="finished")
        made.append(log.path)
    return made


def test_logs_are_merged_and_stay(root: Path, logs: list[str]) -> None:
    report = merge_hdf5_files(root / "all.hdf5", logs)

    assert report.added == ("seed_1", "seed_2")
    assert load_log(root / "all.hdf5").seed_2.stats.loss.tolist() == [2.0]
    assert all(Path(path).exists() for path in logs)


def test_logs_go_where_that_is_asked_for(root: Path, logs: list[str]) -> None:
    merge_hdf5_files(str(root / "all.hdf5"), logs, delete_files=True)

    assert not any(Path(path).exists() for path in logs)
    assert load_log(root / "all.hdf5").eval_ids == ["seed_1", "seed_2"]


def test_logs_of_configurations_go_under_their_names(root: Path, logs: list[str]) -> None:
    merge_hdf5_files(root / "meta_log.hdf5", logs, file_ids=["one", "two"])
    found = load_log(root / "meta_log.hdf5")

    assert found.one.seed_1.stats.loss.tolist() == [1.0]
    assert found.two.seed_2.stats.loss.tolist() == [2.0]


def test_several_logs_of_a_configuration_go_under_one_name(root: Path, logs: list[str]) -> None:
    merge_hdf5_files(root / "meta_log.hdf5", logs, file_ids=["one", "one"])

    assert list(load_log(root / "meta_log.hdf5").one) == ["seed_1", "seed_2"]


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        ([], {}, "nothing to merge"),
        (["a.hdf5"], {"file_ids": ["one", "two"]}, "2 configurations for 1 log_paths"),
        (["a.hdf5"], {"file_ids": ["one"], "delete_files": True}, "remove them when"),
    ],
)
def test_calls_that_make_no_sense_are_refused(
    root: Path, paths: list[str], options: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        merge_hdf5_files(root / "all.hdf5", [root / path for path in paths], **options)


def a_seed(*losses: float) -> dict[str, dict[str, object]]:
    return {
        "meta": {"model_type": "torch"},
        "stats": {"loss": np.array(losses)},
        "time": {"num_updates": np.arange(1, len(losses) + 1)},
    }


def test_seeds_in_memory_are_aggregated() -> None:
    seeds = {"seed_1": a_seed(1.0, 2.0), "seed_2": a_seed(3.0)}
    one = aggregate_over_seeds(seeds)
    several = aggregate_over_seeds({"config_1": seeds}, batch_case=True)

    assert one.eval.stats.loss["mean"].tolist() == [2.0, 2.0]
    assert one.eval.meta.seeds == [1, 2]
    assert several.config_1.stats.loss["p50"].tolist() == [2.0, 2.0]


def test_runs_of_a_log_are_selected_by_name() -> None:
    log = {name: a_seed(1.0) for name in "abc"}

    assert list(subselect_meta_log(log, ["c", "a"])) == ["c", "a"]
    assert subselect_meta_log(log, ["b"]).b is log["b"]


@pytest.mark.parametrize("item", [(), (2,)])
def test_columns_of_different_lengths_have_a_mean_of_those_that_go_on(
    item: tuple[int, ...],
) -> None:
    long, short = np.full((3, *item), 3.0), np.full((2, *item), 1.0)
    mean, std = tolerant_mean([long, short])

    for found, values in ((mean, [2, 2, 3]), (std, [1, 1, 0])):
        assert np.ma.isMaskedArray(found)
        assert found.shape == (3, *item)
        assert found.reshape(3, -1)[:, 0].tolist() == values


def test_a_moving_mean_begins_with_as_many_values_as_there_are() -> None:
    mean, std = moving_smooth_ts(np.array([1.0, 3.0, 5.0]), 2)

    assert mean.tolist() == [1, 2, 4]
    assert std.tolist()[1:] == [np.sqrt(2), np.sqrt(2)]
    assert np.isnan(std[0])
    assert moving_smooth_ts(np.array([[1.0, 9.0], [3.0, 9.0]]))[0].tolist() == [1, 2]
