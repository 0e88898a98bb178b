from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import h5py
import numpy as np
import pytest

from mle_client import layout
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.load import load_log, load_meta_log
from mle_client.metalog import MetaLog, RunLog


@pytest.fixture(autouse=True)
def asked(monkeypatch) -> list[str]:
    """Paths that a daemon was asked to publish; no daemon is reached."""
    paths: list[str] = []
    control = types.ModuleType("mle_client.control")
    control.publish_before_reading = lambda path, timeout=10.0: paths.append(path)
    monkeypatch.setitem(sys.modules, "mle_client.control", control)
    return paths


def add_run(file: h5py.Group, run: str, loss: list[float], **meta: str) -> None:
    file[f"{run}/stats/loss"] = np.array(loss)
    file[f"{run}/time/num_updates"] = np.arange(1, len(loss) + 1)
    file.require_group(f"{run}/meta")
    for name, value in meta.items():
        file[f"{run}/meta/{name}"] = [value.encode()]


def write(path: Path, runs: dict[str, list[float]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for run, loss in runs.items():
            add_run(file, run, loss)
    return path


# --- the five layouts -----------------------------------------------------------------------------
def test_a_run_without_a_seed_is_returned_itself(tmp_path) -> None:
    write(tmp_path / "logs/log_no_seed_provided.hdf5", {"no_seed_provided": [0.5]})
    for aggregate in (False, True):
        log = load_log(tmp_path, aggregate_seeds=aggregate)
        assert isinstance(log, RunLog)
        assert log.stats.loss.tolist() == [0.5]
    assert load_log(tmp_path, reload_log=True).eval_ids == ["no_seed_provided"]


def test_one_seed_is_a_run_by_name_and_can_be_aggregated(tmp_path) -> None:
    write(tmp_path / "logs/log_seed_1.hdf5", {"seed_1": [0.5, 0.25]})
    log = load_log(tmp_path)
    assert isinstance(log, MetaLog)
    assert log.seed_1.stats.loss.tolist() == [0.5, 0.25]
    aggregated = load_log(tmp_path, aggregate_seeds=True)
    assert aggregated.eval_ids == ["eval"]
    assert aggregated.eval.stats.loss.mean.tolist() == [0.5, 0.25]
    assert aggregated.eval.meta.seeds == [1]


def test_several_seeds_of_one_file_are_runs_by_name_or_one_aggregate(tmp_path) -> None:
    path = write(tmp_path / "logs/log.hdf5", {"seed_1": [1.0], "seed_2": [3.0, 4.0]})
    assert load_log(path).seed_2.stats.loss.tolist() == [3.0, 4.0]
    aggregated = load_log(path, aggregate_seeds=True)
    assert aggregated.eval.stats.loss.mean.tolist() == [2.0, 4.0]
    assert aggregated.eval.time.num_updates.tolist() == [1, 2]


def test_configurations_hold_their_own_seeds(tmp_path) -> None:
    path = tmp_path / "meta_log.hdf5"
    runs = {"config_1/seed_1": [1.0], "config_2/seed_1": [2.0], "config_2/seed_3": [4.0]}
    write(path, runs)
    log = load_meta_log(path, aggregate_seeds=False)
    assert {config: list(seeds) for config, seeds in log.items()} == {
        "config_1": ["seed_1"],
        "config_2": ["seed_1", "seed_3"],
    }
    assert log.config_2.seed_3.stats.loss.tolist() == [4.0]
    aggregated = load_meta_log(path)
    assert aggregated.config_1.stats.loss.mean.tolist() == [1.0]
    assert aggregated.config_2.stats.loss.mean.tolist() == [3.0]
    assert aggregated.config_2.meta.seeds == [1, 3]


def test_one_configuration_of_runs_without_a_seed_is_aggregated(tmp_path) -> None:
    path = write(tmp_path / "meta_log.hdf5", {"config_1/no_seed_provided": [1.0]})
    assert load_meta_log(path).config_1.meta.seeds == ["no_seed_provided"]
    assert load_meta_log(path, aggregate_seeds=False).eval_ids == ["config_1"]


@pytest.mark.parametrize("name", ["res_10²", "²", "①", "٣", "seed_१"])
def test_digits_of_other_scripts_are_text_of_a_name(tmp_path, name) -> None:
    write(tmp_path / "logs" / "log.hdf5", {name: [1.0], "seed_1": [2.0]})
    assert sorted(load_log(tmp_path).eval_ids) == sorted([name, "seed_1"])
    assert load_log(tmp_path, aggregate_seeds=True).eval.meta.seeds.count(name) == 1


def test_runs_come_in_natural_order(tmp_path) -> None:
    path = write(tmp_path / "log.hdf5", {f"seed_{i}": [1.0] for i in (10, 1, 2)} | {"a": [1.0]})
    assert load_log(path).eval_ids == ["a", "seed_1", "seed_2", "seed_10"]


# --- several files --------------------------------------------------------------------------------
def test_every_log_of_the_folder_is_loaded(tmp_path) -> None:
    for seed in (1, 2):
        write(tmp_path / f"logs/log_seed_{seed}.hdf5", {f"seed_{seed}": [float(seed)]})
    write(tmp_path / "logs/log.hdf5", {"seed_3": [3.0]})
    (tmp_path / "logs/.DS_Store").write_bytes(b"x")
    (tmp_path / "logs/._log.hdf5").write_bytes(b"x")
    (tmp_path / "logs/notes.txt").write_bytes(b"x")
    log = load_log(f"{tmp_path}/")
    assert {seed: run.stats.loss.tolist() for seed, run in log.items()} == {
        "seed_1": [1.0],
        "seed_2": [2.0],
        "seed_3": [3.0],
    }


def test_of_a_run_in_two_files_the_longer_is_taken_and_of_equals_the_one_of_its_own(
    tmp_path,
) -> None:
    write(tmp_path / "logs/log.hdf5", {"seed_1": [1.0, 1.0], "seed_2": [1.0], "seed_3": [1.0]})
    write(tmp_path / "logs/log_seed_1.hdf5", {"seed_1": [2.0]})
    write(tmp_path / "logs/log_seed_2.hdf5", {"seed_2": [2.0, 2.0]})
    write(tmp_path / "logs/log_seed_3.hdf5", {"seed_3": [2.0]})
    log = load_log(tmp_path)
    assert log.seed_1.stats.loss.tolist() == [1.0, 1.0]
    assert log.seed_2.stats.loss.tolist() == [2.0, 2.0]
    assert log.seed_3.stats.loss.tolist() == [2.0]


def test_of_two_runs_of_one_seed_the_one_that_began_later_is_taken(tmp_path) -> None:
    merged = write(tmp_path / "logs/log.hdf5", {"seed_1": [1.0] * 9, "seed_2": [1.0]})
    own = write(tmp_path / "logs/log_seed_1.hdf5", {"seed_1": [2.0]})
    for path, start_time in ((merged, 1000.0), (own, 2000.0)):
        with h5py.File(path, "r+") as file:
            file["seed_1"].attrs[layout.START_ATTR] = start_time
    assert load_log(tmp_path).seed_1.stats.loss.tolist() == [2.0]


def test_one_damaged_log_is_an_error_that_names_it(tmp_path) -> None:
    write(tmp_path / "logs/log_seed_1.hdf5", {"seed_1": [1.0]})
    (tmp_path / "logs/log_seed_2.hdf5").write_bytes(b"torn")
    with pytest.raises(LogDamaged, match=r"log_seed_2\.hdf5: .*move it out of the folder"):
        load_log(tmp_path)


# --- reading while others write -------------------------------------------------------------------
def test_a_daemon_is_asked_to_publish_before_anything_is_looked_for(tmp_path, asked) -> None:
    control = sys.modules["mle_client.control"]
    ask = control.publish_before_reading
    control.publish_before_reading = lambda path: (
        ask(path),
        write(tmp_path / "logs/log_seed_1.hdf5", {"seed_1": [1.0]}),
    )
    assert load_log(tmp_path).eval_ids == ["seed_1"]
    assert asked == [str(tmp_path)]


def test_files_that_are_merged_between_listing_and_opening_are_read_from_where_they_went(
    tmp_path, monkeypatch
) -> None:
    for seed in (1, 2):
        write(tmp_path / f"logs/log_seed_{seed}.hdf5", {f"seed_{seed}": [1.0]})
    listdir = os.listdir

    def list_then_merge(path):
        names = listdir(path)
        if "log_seed_2.hdf5" in names:
            write(tmp_path / "logs/log.hdf5", {"seed_1": [1.0], "seed_2": [1.0]})
            for seed in (1, 2):
                os.unlink(tmp_path / f"logs/log_seed_{seed}.hdf5")
        return names

    monkeypatch.setattr(os, "listdir", list_then_merge)
    assert load_log(tmp_path).eval_ids == ["seed_1", "seed_2"]


def test_files_that_vanish_whenever_they_are_read_are_given_up_with_a_clear_error(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(os, "listdir", lambda _path: ["log_seed_1.hdf5"])
    with pytest.raises(LogNotFound, match="vanished"):
        load_log(tmp_path)


def test_every_load_during_publications_is_one_publication(tmp_path) -> None:
    target = write(tmp_path / "logs/log_seed_1.hdf5", {"seed_1": [0.0]})
    stop = threading.Event()

    def publish() -> None:
        ticks = 1
        while not stop.is_set():
            ticks += 1
            write(tmp_path / "staging/next", {"seed_1": [float(ticks)] * ticks})
            os.replace(tmp_path / "staging/next", target)

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        lengths = []
        for _ in range(50):
            run = load_log(tmp_path).seed_1
            assert len(run.stats.loss) == len(run.time.num_updates)
            assert set(run.stats.loss) <= {0.0, float(len(run.stats.loss))}
            lengths.append(len(run.stats.loss))
    finally:
        stop.set()
        publisher.join()
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0]


# --- arguments ------------------------------------------------------------------------------------
@pytest.mark.parametrize("only", [["acc"], ("acc",), "acc"])
def test_only_the_statistics_asked_for_are_loaded(tmp_path, only) -> None:
    path = write(tmp_path / "log.hdf5", {"seed_1": [1.0]})
    with h5py.File(path, "r+") as file:
        file["seed_1/stats/acc"] = [0.5]
    for log in (load_log(path, only=only), load_meta_log(path, only=only)):
        assert log.stats_vars == ["acc"]
        assert log.time_vars == ["num_updates"]
    assert load_log(path, only=[]).stats_vars == []


def test_the_readmes_file_without_the_usual_extension_is_a_file_too(tmp_path) -> None:
    path = write(tmp_path / "multi_seed.hdf", {"seed_1": [1.0]})
    assert load_log(path).eval_ids == load_log(str(path)).eval_ids == ["seed_1"]


# --- nothing to load ------------------------------------------------------------------------------
def test_a_missing_folder_or_file_is_not_found(tmp_path) -> None:
    for load in (load_log, load_meta_log):
        with pytest.raises(FileNotFoundError, match="no such folder or file"):
            load(tmp_path / "nothing.hdf5")


def test_a_folder_without_logs_says_that_they_appear_later(tmp_path) -> None:
    with pytest.raises(LogNotFound, match="appears there when it is first saved"):
        load_log(tmp_path)
    (tmp_path / "logs").mkdir()
    with pytest.raises(LogNotFound) as caught:
        load_log(tmp_path)
    assert caught.value.path == str(tmp_path)
    assert caught.value.exit_code == 3


def test_a_folder_above_the_logs_says_where_they_are(tmp_path) -> None:
    write(tmp_path / "config_1/logs/log_seed_1.hdf5", {"seed_1": [1.0]})
    write(tmp_path / "meta_log.hdf5", {"config_1/seed_1": [1.0]})
    with pytest.raises(LogNotFound) as caught:
        load_log(tmp_path)
    assert str(caught.value).endswith(f"load {tmp_path}/config_1 or {tmp_path}/meta_log.hdf5")


def test_importing_the_module_loads_no_hdf5() -> None:
    code = "import sys, mle_client.load; sys.exit('h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
