"""What a run has kept, in the meta/ of its log: right, read by others, and without holes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mle_client import layout
from mle_client.kept import Kept, kept_from_json, kept_to_json, meta_lists
from mle_client.reader import read_kept, read_runs
from mle_client.retention import LatestN, Policy, Saved
from mle_daemon import store
from mle_daemon.columns import FileState
from mle_daemon.events import PublishRun
from tests.unit.daemon.test_planning import blocks_of
from tests.unit.daemon.test_store import Log

READER = Path(__file__).parents[2] / "compat" / "read_with_mle_logging.py"
POLICY = Policy(every_k=1, top_k=3, top_k_metric="loss", time_name="epoch", rules=(LatestN(2),))


class Keeping(Log):
    """A log whose run keeps checkpoints, figures and objects."""

    def __init__(self, root: Path, policy: Policy = POLICY, **changes: Any) -> None:
        super().__init__(root, **changes)
        self.policy, self.kept = policy, Kept()
        self.open()

    def save(self, time: float | None = None, **metrics: float) -> None:
        """Save a checkpoint."""
        number = self.kept.portfolio.saves + 1
        saved = Saved(number, number if time is None else time, metrics, {})
        self.kept, _ = self.kept.with_model(self.policy, saved)

    def write(self, *ticks: tuple[dict[str, Any], dict[str, Any]]) -> FileState:
        """Publish ticks and what is kept."""
        lists = meta_lists(self.kept, self.policy, self.run.experiment_dir, self.run.seed_id, ".pt")
        job = PublishRun(
            run=self.run, seed_id=self.run.seed_id, path=self.path, file=self.state,
            blocks=tuple(blocks_of(*ticks)), lost=0, applied={}, status="running",
            kept=kept_to_json(self.kept), lists=lists,
        )  # fmt: skip
        self.state, _ = self.store.publish(job)
        assert self.store.inspect(self.path) == self.state
        return self.state

    def meta(self) -> dict[str, Any]:
        """The datasets of meta/ as h5py reads them."""
        with h5py.File(self.path) as file:
            return {name: dataset[:].tolist() for name, dataset in file["seed_1/meta"].items()}

    def listed(self) -> dict[str, Any]:
        """The lists among them, decoded."""
        return {
            name: [v.decode() if isinstance(v, bytes) else v for v in values]
            for name, values in self.meta().items()
            if name in meta_lists(self.kept, self.policy, "", "", "")
        }


@pytest.fixture
def log(root: Path) -> Keeping:
    return Keeping(root)


# --- the lists ------------------------------------------------------------------------------------
def test_lists_and_portfolio_are_written_as_they_are(log: Keeping) -> None:
    for loss in (3.0, 2.0, 9.0, 1.0):
        log.save(loss=loss)
    log.kept = log.kept.with_init().with_file("figure", "figures/a.png")
    log.write(({"epoch": 1}, {"loss": 1.0}))
    wanted = meta_lists(log.kept, POLICY, "exp/", "seed_1", ".pt")
    assert log.listed() == {name: list(values) for name, values in wanted.items()}
    assert read_kept(log.path, "seed_1") == kept_to_json(log.kept)
    assert kept_from_json(read_kept(log.path, "seed_1")) == log.kept


@pytest.mark.parametrize("image_bytes", [store.IMAGE_BYTES, 0], ids=["memory", "copy"])
def test_they_are_right_after_every_publication(
    root: Path, monkeypatch: pytest.MonkeyPatch, image_bytes: int
) -> None:
    """Whatever grows, shrinks, widens or is replaced."""
    monkeypatch.setattr(store, "IMAGE_BYTES", image_bytes)
    log = Keeping(root)
    chance = np.random.default_rng(1)
    for step in range(60):
        if step % 3 != 2:
            log.save(loss=float(chance.random()), time=step if step < 30 else step + 0.5)
        log.kept = log.kept.with_file("figure", f"figures/{'x' * int(chance.integers(40))}.png")
        if step % 7 == 6:
            log.kept = log.kept.without_file("figure", log.kept.figures[0])
        if step == 40:
            log.kept = replace(log.kept, figures=())
        log.write(({"epoch": step}, {"loss": 1.0}))
        wanted = meta_lists(log.kept, POLICY, "exp/", "seed_1", ".pt")
        assert log.listed() == {name: list(values) for name, values in wanted.items()}
        assert ("fig_storage_paths" in log.meta()) == bool(log.kept.figures)


def test_numbers_have_the_type_that_holds_them(log: Keeping) -> None:
    log.save(loss=1.0)
    log.write()
    with h5py.File(log.path) as file:
        meta = file["seed_1/meta"]
        assert meta["every_k_storage_time"].dtype == np.int64
        assert meta["top_k_performance"].dtype == np.float64
    log.save(time=0.5, loss=float("nan"))
    log.write()
    with h5py.File(log.path) as file:
        meta = file["seed_1/meta"]
        assert meta["every_k_storage_time"][:].tolist() == [1.0, 0.5]
        assert np.isnan(meta["top_k_performance"][1])


def test_a_list_that_does_not_apply_any_more_goes(log: Keeping) -> None:
    """A figure could not be drawn, the initial checkpoint was lost."""
    log.kept = log.kept.with_init().with_file("figure", "figures/a.png")
    log.write()
    assert {"init_ckpt", "fig_storage_paths"} <= set(log.meta())
    log.kept = Kept()
    log.write()
    assert not {"init_ckpt", "fig_storage_paths", "model_ckpt"} & set(log.meta())
    assert read_kept(log.path, "seed_1") == ""
    assert log.state is not None
    assert log.state.kept == ""


def test_what_has_not_changed_is_not_written(log: Keeping) -> None:
    log.save(loss=1.0)
    log.write()
    with h5py.File(log.path, "r+") as file:
        file["seed_1/meta/top_k_performance"][0] = 99.0
    log.write(({"epoch": 1}, {"loss": 1.0}))
    assert log.meta()["top_k_performance"] == [99.0]
    log.save(loss=0.5)
    log.write()
    assert log.meta()["top_k_performance"] == [1.0, 0.5]


def test_a_run_that_keeps_nothing_has_no_trace_of_it(log: Keeping) -> None:
    log.policy = Policy()
    log.write(({"epoch": 1}, {"loss": 1.0}))
    assert set(log.meta()) == {
        "log_paths", "experiment_dir", "config_fname", "eval_id", "model_type", "config_dict",
    }  # fmt: skip


def test_a_growing_list_costs_what_it_holds_and_not_more_with_each_publication(
    log: Keeping,
) -> None:
    """HDF5 does not use again what is unlinked in an earlier publication."""
    sizes = {}
    for number in range(1, 401):
        log.save(loss=1 / number)
        log.kept = log.kept.with_file("figure", f"figures/fig_{number}_seed_1.png")
        sizes[number] = log.write(({"epoch": number}, {"loss": 1 / number})).size
    content = len(kept_to_json(log.kept)) + sum(
        len(value) if isinstance(value, str) else 8 for values in log.listed().values()
        for value in values
    )  # fmt: skip
    assert sizes[400] < 200_000 + 3 * content
    assert sizes[400] - sizes[200] < 2.5 * (sizes[200] - sizes[100]) + 50_000


def test_the_room_that_is_reserved_is_enough(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a full disk would be seen by HDF5, which does not survive it."""
    monkeypatch.setattr(store, "IMAGE_BYTES", 0)
    reserved: list[int] = []
    reserve = store.files.reserve
    monkeypatch.setattr(
        store.files, "reserve", lambda fd, size: (reserved.append(size), reserve(fd, size))
    )
    log = Keeping(root)
    for step in range(30):
        for number in range(20 * step):
            log.kept = log.kept.with_file("extra", f"extra/{step}-{number}-{'x' * 60}.pkl")
        log.save(loss=1.0)
        assert log.write(({"epoch": step}, {"loss": 1.0})).size <= reserved[-1]


def test_a_seal_keeps_what_is_kept(log: Keeping) -> None:
    for number in range(50):
        log.save(loss=1 / (number + 1))
        log.write(({"epoch": number}, {"loss": 1.0}))
    before = log.meta()
    log.seal()
    assert log.meta() == before
    assert log.store.inspect(log.path) == log.state
    os_size = os.path.getsize(log.path)
    log.save(loss=0.0)
    log.write(({"epoch": 50}, {"loss": 1.0}))  # as where the run is continued
    assert read_kept(log.path, "seed_1") == kept_to_json(log.kept)
    assert os.path.getsize(log.path) > os_size


def test_another_run_of_ours_goes_on_with_it(log: Keeping) -> None:
    log.save(loss=1.0)
    log.write(({"epoch": 1}, {"loss": 1.0}))
    log.seal()
    again = Keeping(Path(log.store.root), run_id=bytes(16), reload=True, start_time=1.0)
    state, note = again.open()
    assert note == ""
    assert state is not None
    assert (state.rows, state.applied, state.kept) == (1, {}, kept_to_json(log.kept))
    again.state, again.kept = state, log.kept
    again.save(loss=0.5)
    again.write(({"epoch": 2}, {"loss": 0.5}))
    assert again.state is not None
    assert (again.state.run, again.state.rows) == (bytes(16).hex(), 2)
    run = read_runs(again.path)[None, "seed_1"]
    assert run.stats.loss.tolist() == [1.0, 0.5]
    assert run.time.num_updates.tolist() == [1, 2]
    assert run.start_time == 1.0
    with h5py.File(again.path) as file:
        assert file["seed_1"].attrs[layout.RUN_ATTR] == bytes(16).hex()
    assert os.listdir(os.path.dirname(again.path)) == ["log_seed_1.hdf5"]


def test_a_run_that_does_not_continue_puts_it_aside(log: Keeping) -> None:
    log.write(({"epoch": 1}, {"loss": 1.0}))
    again = Keeping(Path(log.store.root), run_id=bytes(16), reload=False)
    assert not os.path.exists(again.path)


def test_a_run_whose_seed_is_not_in_the_file_does_not_continue_it(log: Keeping) -> None:
    log.write(({"epoch": 1}, {"loss": 1.0}))
    other = Log(Path(log.store.root), run_id=bytes(16), reload=True, seed_id="seed_2")
    os.rename(log.path, other.path)
    assert other.open()[0] is None
    assert not os.path.exists(other.path)  # it was put aside


# --- mle-logging reads them -----------------------------------------------------------------------
def read_by_mle_logging(path: str) -> dict[str, Any]:
    """The run's meta data, by mle-logging's load_log."""
    done = subprocess.run(
        [sys.executable, str(READER), path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    meta: dict[str, Any] = json.loads(done.stdout)["seed_1"]["meta"]
    return meta


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_mle_logging_s_load_log_reads_lists_of_any_length(
    log: Keeping, count: int, sealed: bool
) -> None:
    """And makes an item of a list of one, as it does with its own."""
    for number in range(count):
        log.save(loss=1 / (number + 1))
        log.kept = log.kept.with_file("figure", f"figures/größe_{number}.png")
        log.write(({"epoch": number}, {"loss": 1.0}))
    if not count:
        log.kept = log.kept.with_init()  # so that there is something
        log.write(({"epoch": 0}, {"loss": 1.0}))
    if sealed:
        log.seal()
    meta = read_by_mle_logging(log.path)
    wanted = meta_lists(log.kept, POLICY, "exp/", "seed_1", ".pt")
    for name, values in wanted.items():
        assert meta[name] == (values[0] if len(values) == 1 else list(values)), name
    assert ("fig_storage_paths" in meta) == bool(count)
