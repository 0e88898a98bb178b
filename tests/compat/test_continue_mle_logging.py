"""Logs of mle-logging 0.0.6, as released, are continued: by hand, and after a kill.

They are written by mle-logging's own MLELogger, taken over by a store in their first publication,
and read back by our reader and by mle-logging's.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mle_client import layout
from mle_client.kept import kept_to_json, kept_to_plain, meta_lists
from mle_client.metalog import MetaLog
from mle_client.reader import read_kept, read_runs
from mle_client.resume import resume
from mle_client.retention import Policy, Saved, to_plain
from mle_daemon.columns import FileState
from mle_daemon.events import PublishRun
from mle_daemon.store import Store
from tests.unit.daemon.test_planning import blocks_of
from tests.unit.daemon.test_store import a_run

READER = Path(__file__).with_name("read_with_mle_logging.py")
WRITER = Path(__file__).with_name("write_with_mle_logging.py")
POLICY = Policy(every_k=2, top_k=2, top_k_metric="loss", time_name="num_steps")
LATER = 1.7e9  # seconds since the epoch, at which a run goes on


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of logs of every kind."""
    folder = tmp_path_factory.mktemp("written")
    done = subprocess.run(
        [sys.executable, str(WRITER), str(folder)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class Continued:
    """A log of mle-logging's that a run of ours continues."""

    def __init__(self, root: Path, written: Path, kind: str, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.folder = root / "exp"
        shutil.copytree(written / kind, self.folder)
        self.path = layout.log_path(str(self.folder), "seed_1")
        found = resume(str(self.folder), str(root), "seed_1", self.policy)
        assert found is not None
        self.found, self.kept = found, found.kept
        self.run = a_run(
            root, experiment_dir=f"{self.folder}/", reload=True, model_type="numpy",
            start_time=LATER - found.elapsed, policy=to_plain(self.policy),
            kept=kept_to_plain(found.kept),
        )  # fmt: skip
        self.store = Store(str(root))
        state, note = self.store.open_run(self.run, "seed_1", self.path)
        assert note == ""
        assert state is not None
        self.state: FileState = state

    def publish(self, *ticks: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Publish ticks, half a second apart, and what is kept."""
        lists = meta_lists(self.kept, self.policy, self.run.experiment_dir, "seed_1", ".pkl")
        job = PublishRun(
            run=self.run, seed_id="seed_1", path=self.path, file=self.state,
            blocks=tuple(blocks_of(*ticks)), lost=0, applied={"ab": 1}, status="running",
            kept=kept_to_json(self.kept), lists=lists,
        )  # fmt: skip
        self.state, problems = self.store.publish(job)
        assert problems == ()
        assert self.store.inspect(self.path) == self.state

    def read(self) -> Any:
        """The run, by our reader."""
        return read_runs(self.path)[None, "seed_1"]

    def read_by_mle_logging(self) -> Any:
        """The run, by mle-logging's."""
        done = subprocess.run(
            [sys.executable, str(READER), self.path],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["seed_1"]


def as_float32(*values: float) -> list[float]:
    """What mle-logging keeps of values."""
    return [float(value) for value in np.array(values, np.float32)]


def test_rows_and_clocks_go_on(root: Path, written: Path) -> None:
    log = Continued(root, written, "plain")
    assert (log.found.rows, log.found.clocks) == (6, ("num_steps",))
    assert set(log.found.stats) == {"loss", "vector"}
    for i in (7, 8):
        tick = {"num_steps": i}, {"loss": 0.1 * i, "vector": np.arange(3.0) * i}
        log.publish(tick)
    run = log.read()
    assert run.time.num_updates.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert run.time.num_updates.dtype == np.int64
    assert run.time.num_steps.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    old = [float(np.float32(1 / step)) for step in range(1, 7)]
    assert run.stats.loss.tolist() == [*old, 0.1 * 7, 0.1 * 8]
    assert run.stats.vector.tolist()[5:] == [[0, 6, 12], [0, 7, 14], [0, 8, 16]]
    assert len(run.time.time) == 8
    assert run.time.time[0] == run.time.time[5]
    assert len(run.time.time[0]) == len("25-01-01/00:00")
    elapsed = run.time.time_elapsed
    assert elapsed[5] == pytest.approx(log.found.elapsed)
    assert elapsed[6] >= elapsed[5]
    assert run.meta.config_dict == {"lr": 0.1}
    assert (run.state, run.start_time) == ("running", log.run.start_time)


def test_mle_logging_reads_what_was_continued(root: Path, written: Path) -> None:
    log = Continued(root, written, "plain")
    log.publish(({"num_steps": 7}, {"loss": 0.7}))
    log.state = log.store.seal(log.path, log.state)
    assert log.store.inspect(log.path) == log.state
    run = log.read_by_mle_logging()
    assert run["time"]["num_steps"] == [1, 2, 3, 4, 5, 6, 7]
    assert run["stats"]["loss"][-1] == 0.7
    assert len(run["stats"]["vector"]) == 6
    assert log.read().aligned("vector")[0].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_key_that_not_every_tick_had_goes_on(root: Path, written: Path) -> None:
    """Nobody knows the rows of its old values, and no wrong ones are made up."""
    log = Continued(root, written, "sparse")
    log.publish(({"num_steps": 7}, {"loss": 0.7}))
    log.publish(({"num_steps": 8}, {"loss": 0.8, "rare": 8.0}))
    run = log.read()
    assert run.stats.rare.tolist() == [1, 3, 5, 8]
    with pytest.warns(UserWarning, match="left out: 3 values of 'rare': nobody knows at which"):
        steps, values = run.aligned("rare", "num_steps")
    assert (steps.tolist(), values.tolist()) == ([8], [8.0])
    assert run.aligned("loss", "num_steps")[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert log.read_by_mle_logging()["stats"]["rare"] == [1, 3, 5, 8]


def test_a_key_that_never_comes_again_stays(root: Path, written: Path) -> None:
    log = Continued(root, written, "sparse")
    log.publish(({"other": 7}, {"new": 0.7}))
    run = log.read()
    assert run.stats.rare.tolist() == [1, 3, 5]
    assert run.aligned("new")[0].tolist() == [7]
    assert run.aligned("loss")[0].tolist() == [1, 2, 3, 4, 5, 6]


def test_names_that_mle_logging_stores_otherwise_go_on(root: Path, written: Path) -> None:
    log = Continued(root, written, "odd_names")
    names = ["train/loss", "train/acc%", "größe"]
    assert set(log.found.stats) == {"loss", *names}
    for step in (4, 5):
        log.publish(({"num_steps": step}, dict.fromkeys(names, step / 2)))
    run = log.read()
    assert set(run.stats) == {"loss", *names}
    assert [run.stats[name].tolist() for name in names] == [
        [1, 2, 3, 2.0, 2.5],
        [2, 4, 6, 2.0, 2.5],
        [3, 6, 9, 2.0, 2.5],
    ]


def test_integers_join_what_mle_logging_made_floats(root: Path, written: Path) -> None:
    log = Continued(root, written, "plain")
    log.publish(({"num_steps": 2**53 + 1}, {"loss": 3}))
    assert int(log.read().time.num_steps[-1]) == 2**53 + 1
    assert log.read().stats.loss[-1] == 3


@pytest.mark.parametrize("kind", ["clocks_only", "no_model"])
def test_a_log_without_statistics_goes_on(root: Path, written: Path, kind: str) -> None:
    """One of mle-logging's has no group then that it has nothing for."""
    log = Continued(root, written, kind)
    rows = log.found.rows
    assert rows == (1 if kind == "clocks_only" else 0)
    log.publish(({"n": 2}, {"loss": 0.5}))
    log.state = log.store.seal(log.path, log.state)
    run = log.read()
    assert run.time.num_updates.tolist() == list(range(1, rows + 2))
    assert run.stats.loss.tolist() == [0.5]


@pytest.mark.parametrize("number", range(1, 7))
def test_a_log_that_a_kill_left_ragged_goes_on(root: Path, written: Path, number: int) -> None:
    log = Continued(root, written, f"killed_{number}")
    rows = log.found.rows
    assert rows == (4 if number == 1 else 7)
    assert log.state.rows == rows
    before = log.read()
    for step in (1, 2):
        log.publish(({"num_steps": rows + step}, {"loss": 0.5, "acc": 0.25}))
    run = log.read()
    assert run.time.num_updates.tolist() == list(range(1, rows + 3))
    assert run.time.time_elapsed.shape == run.time.time.shape == (rows + 2,)
    assert np.isfinite(run.time.time_elapsed[-2:]).all()
    for group in ("time", "stats"):
        for name in {"num_steps", "loss", "acc"} & set(before[group]):
            old = before[group][name].tolist()
            assert run[group][name].tolist()[: len(old)] == old
            assert len(run[group][name]) == len(old) + 2
    for name in ("loss", "acc"):
        found = run.line_up(name, "num_steps")
        known = dict(zip(found.steps.tolist(), found.values.tolist(), strict=True))
        assert known[rows + 1] == known[rows + 2] == run.stats[name][-1]
    log.state = log.store.seal(log.path, log.state)
    assert log.store.inspect(log.path) == log.state


def test_old_values_of_several_seeds_are_in_no_row_of_another(root: Path, written: Path) -> None:
    pytest.importorskip("pandas")
    runs = {}
    for seed in ("one", "two"):
        log = Continued(root / seed, written, "sparse")
        log.publish(({"num_steps": 7}, {"loss": 0.7, "rare": 7.0}), ({"num_steps": 8}, {}))
        runs[seed] = log.read()
    with pytest.warns(UserWarning, match="left out: 6 values of 'rare': nobody knows at which"):
        frame = MetaLog(runs).to_dataframe()
    assert frame.rare.dropna().to_dict() == {6: 7.0, 14: 7.0}


def test_a_clock_that_not_every_tick_had_says_nothing_about_a_statistic_as_long(
    root: Path, written: Path
) -> None:
    log = Continued(root, written, "sparse_clock")
    log.publish(({"num_steps": 7}, {"loss": 0.7}), ({"num_steps": 8, "epoch": 3}, {"acc": 0.8}))
    run = log.read()
    said = "left out: 2 values of 'acc': nobody knows"
    with pytest.warns(UserWarning, match=said):
        steps, values = run.aligned("acc", "num_steps")
    assert (steps.tolist(), values.tolist()) == ([8], [0.8])
    with pytest.warns(UserWarning, match=rf"{said}.*; 2 values of 'epoch': nobody knows"):
        epochs, values = run.aligned("acc", "epoch")
    assert (epochs.tolist(), values.tolist()) == ([3], [0.8])


def test_a_short_clock_of_every_tick_says_what_the_old_rows_of_a_statistic_are(
    root: Path, written: Path
) -> None:
    log = Continued(root, written, "killed_2")
    log.publish(({"num_steps": 8}, {"loss": 0.5}))
    updates, losses = log.read().aligned("loss")
    assert updates.tolist() == [1, 2, 3, 4, 8]
    assert losses.tolist() == [*as_float32(1, 1 / 2, 1 / 3, 1 / 4), 0.5]


def test_a_takeover_without_a_tick_is_whole(root: Path, written: Path) -> None:
    log = Continued(root, written, "killed_3")
    log.publish()
    log.publish(({"num_steps": 8}, {"loss": 0.5}))
    assert log.read().time.num_updates.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_was_written_again_by_somebody_else_meanwhile_is_seen(
    root: Path, written: Path
) -> None:
    log = Continued(root, written, "plain")
    other = Continued.__new__(Continued)
    other.__dict__.update(log.__dict__)
    other.run = replace(log.run, run_id=type(log.run.run_id)(b"o" * 16))
    other.publish(({"num_steps": 7}, {"loss": 0.7}))
    with pytest.raises(Exception, match="no longer what the daemon published"):
        log.publish(({"num_steps": 7}, {"loss": 0.7}))


# --- what is kept ---------------------------------------------------------------------------------
def test_checkpoints_and_objects_of_mle_logging_are_continued(root: Path, written: Path) -> None:
    log = Continued(root, written, "models", POLICY)
    portfolio = log.kept.portfolio
    assert portfolio.init_saved
    assert [(saved.number, saved.time) for saved in portfolio.every_k] == [(2, 2), (4, 4)]
    best = {saved.metrics["loss"]: saved.time for saved in portfolio.top_k}
    assert best == dict(zip(as_float32(1 / 5, 1 / 4), (5, 4), strict=True))
    assert portfolio.saves == 4  # mle-logging does not count; it tells of four
    assert log.kept.extras == ("extra/extra_1_seed_1.pkl", "extra/named.pkl")
    log.kept, plan = log.kept.with_model(POLICY, Saved(5, 9, {"loss": 0.0}, {}))
    assert plan.slot == [saved.time for saved in portfolio.top_k].index(4)  # the worse one
    log.publish(({"num_steps": 9}, {"loss": 0.0}))
    meta = log.read_by_mle_logging()["meta"]
    models = f"{log.folder}/models"
    assert meta["every_k_ckpt_list"] == [
        f"{models}/every_k/every_k_seed_1_k_{number}.pkl" for number in (2, 4)
    ]
    assert sorted(meta["top_k_storage_time"]) == [5, 9]
    assert meta["extra_storage_paths"] == [
        f"{log.folder}/extra/{name}" for name in ("extra_1_seed_1.pkl", "named.pkl")
    ]
    assert read_kept(log.path, "seed_1") == kept_to_json(log.kept)


def test_lists_of_one_are_continued(root: Path, written: Path) -> None:
    log = Continued(root, written, "one_model", POLICY)
    assert [saved.number for saved in log.kept.portfolio.every_k] == [2]
    assert len(log.kept.portfolio.top_k) == 2
    assert log.kept.portfolio.saves == 2


def test_another_metric_than_mle_logging_went_by_takes_all_slots(root: Path, written: Path) -> None:
    policy = Policy(top_k=2, top_k_metric="acc", minimize=False, time_name="num_steps")
    log = Continued(root, written, "models", policy)
    kept = log.kept
    assert [set(saved.metrics) for saved in kept.portfolio.top_k] == [{"loss"}, {"loss"}]
    lists = meta_lists(kept, policy, "exp", "seed_1", ".pkl")
    assert all(math.isnan(value) for value in lists["top_k_performance"])  # type: ignore[arg-type]
    for number, acc in ((5, 0.5), (6, 0.1), (7, 0.2)):
        kept, _ = kept.with_model(policy, Saved(number, None, {"acc": acc}, {}))
    assert {saved.number for saved in kept.portfolio.top_k} == {5, 7}
