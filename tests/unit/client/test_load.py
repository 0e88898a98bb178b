from __future__ import annotations

import contextlib
import errno
import os
import pickle
import subprocess
import sys
import threading
import types
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5f

from mle_client import (
    aggregate,
    discovery,
    experiments,
    h5access,
    layout,
    openlog,
    reader,
    stored,
)
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.load import load_log, load_meta_log
from mle_client.merge import merge_group, meta_log
from mle_client.metalog import MetaLog
from mle_client.runlog import RunLog


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
    log = load_log(tmp_path)
    assert isinstance(log, RunLog)
    assert log.stats.loss.tolist() == [0.5]
    assert load_log(tmp_path, reload_log=True).eval_ids == ["no_seed_provided"]


@pytest.mark.parametrize("reload_log", [False, True])
def test_a_run_without_a_seed_is_aggregated_like_a_single_seed(tmp_path, reload_log) -> None:
    path = write(tmp_path / "logs/log_no_seed_provided.hdf5", {"no_seed_provided": [0.5]})
    for log in (load_log(tmp_path, True, reload_log), load_meta_log(path, reload_log=reload_log)):
        assert log.eval_ids == ["eval"]
        assert log.eval.stats.loss.mean.tolist() == [0.5]
        assert log.eval.stats.loss.n.tolist() == [1]
        assert log.eval.meta.seeds == ["no_seed_provided"]


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


def test_of_a_damaged_log_among_others_the_error_says_how_the_others_are_loaded(tmp_path) -> None:
    good = write(tmp_path / "logs/log_seed_1.hdf5", {"seed_1": [1.0]})
    (tmp_path / "logs/log_seed_2.hdf5").write_bytes(b"torn")
    with pytest.raises(LogDamaged) as caught:
        load_log(tmp_path)
    assert f"load_log({str(good)!r}) and so on loads the others" in str(caught.value)
    with pytest.raises(LogDamaged) as alone:
        load_log(tmp_path / "logs/log_seed_2.hdf5")
    assert "the others" not in str(alone.value)


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
# --- configurations that are not merged -----------------------------------------------------------
def sweep(folder: Path) -> Path:
    """Configurations of two seeds: merged, not merged, and half so; and one without a seed."""
    write(folder / "lr_10/logs/log.hdf5", {"seed_1": [1.0], "seed_2": [2.0]})
    for seed in (1, 2):
        write(folder / f"lr_9/logs/log_seed_{seed}.hdf5", {f"seed_{seed}": [seed, 5.0]})
    write(folder / "models/logs/log.hdf5", {"seed_1": [0.0], "seed_2": [0.0, 0.0]})
    write(folder / "models/logs/log_seed_1.hdf5", {"seed_1": [3.0, 3.0]})
    write(folder / "plain/logs/log_no_seed_provided.hdf5", {"no_seed_provided": [7.0]})
    write(folder / ".hidden/logs/log.hdf5", {"seed_1": [9.0]})
    return folder


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("aggregated", [False, True])
def test_configurations_that_are_not_merged_are_loaded_as_if_they_were(
    tmp_path, aggregated, large, monkeypatch
) -> None:
    if large:
        monkeypatch.setattr(reader, "SMALL_BYTES", 0)
    folder = sweep(tmp_path / "sweep")
    loaded = [
        load_meta_log(path, aggregated) for path in (folder, f"{folder}/", folder / "meta_log.hdf5")
    ]
    assert not (folder / "meta_log.hdf5").exists()
    meta_log(str(folder), experiments.configurations_in(str(folder)))
    expected = load_meta_log(folder / "meta_log.hdf5", aggregated)
    assert expected.eval_ids == ["lr_9", "lr_10", "models", "plain"]
    for log in loaded:
        assert log.eval_ids == expected.eval_ids
        for name in log.eval_ids:
            if aggregated:
                assert log[name].stats.loss.mean.tolist() == expected[name].stats.loss.mean.tolist()
                assert log[name].meta.seeds == expected[name].meta.seeds
            else:
                assert list(log[name]) == list(expected[name])
                for seed in log[name]:
                    one, other = log[name][seed].stats.loss, expected[name][seed].stats.loss
                    assert one.tolist() == other.tolist()


def test_a_meta_log_is_read_where_there_is_one_and_an_experiment_where_there_is_none(
    tmp_path,
) -> None:
    folder = sweep(tmp_path)
    write(folder / "logs/log.hdf5", {"seed_1": [1.0]})
    assert load_meta_log(folder).eval_ids == ["eval"]
    names = {f"{name}/seed_1": [8.0] for name in ("lr_9", "lr_10", "models", "plain")}
    write(folder / "meta_log.hdf5", names)
    for path in (folder, folder / "meta_log.hdf5"):
        assert load_meta_log(path, only=["loss"]).lr_9.stats.loss.mean.tolist() == [8.0]


def test_a_daemon_is_asked_for_the_configurations_of_a_meta_log_that_is_not_there(
    tmp_path, asked
) -> None:
    sweep(tmp_path)
    load_meta_log(tmp_path / "meta_log.hdf5")
    assert asked == [str(tmp_path)]


def test_a_meta_log_that_is_behind_its_folder_is_read_with_one_warning(tmp_path) -> None:
    folder = sweep(tmp_path)
    meta = write(folder / "meta_log.hdf5", {"lr_9/seed_1": [8.0], "lr_10/seed_1": [8.0]})
    later = os.stat(meta).st_mtime_ns + 1
    os.utime(folder / "lr_10/logs/log.hdf5", ns=(later, later))
    with pytest.warns(UserWarning, match="is behind its folder") as caught:
        log = load_meta_log(meta)
    assert log.eval_ids == ["lr_9", "lr_10"]
    (warning,) = caught
    assert warning.filename == __file__
    assert str(warning.message) == (
        f"{meta} is behind its folder: models, plain not in it, lr_10 changed after it; "
        f"`mle-daemon merge --root {folder}` brings it up to date, or says what keeps it back"
    )
    other = meta.rename(folder / "other.hdf5")
    assert load_meta_log(other).eval_ids == ["lr_9", "lr_10"]  # another file promises nothing


def test_configurations_that_are_merged_while_they_are_read_are_read_from_where_they_went(
    tmp_path, monkeypatch
) -> None:
    folder, done = sweep(tmp_path), []
    real = experiments.log_files

    def log_files(path: str) -> list[str]:
        found = real(path)
        if path.endswith("lr_9") and len(done) < 2:
            done.append(path)
            if len(done) == 2:  # the first one looks whether there are any
                merge_group(path)
        return found

    monkeypatch.setattr(experiments, "log_files", log_files)
    assert load_meta_log(folder).lr_9.stats.loss.mean.tolist() == [1.5, 5.0]
    assert len(done) == 2


def test_a_damaged_log_of_one_configuration_is_named(tmp_path) -> None:
    (sweep(tmp_path) / "lr_9/logs/log_seed_1.hdf5").write_bytes(b"x")
    with pytest.raises(LogDamaged, match=r"lr_9/logs/log_seed_1\.hdf5"):
        load_meta_log(tmp_path)


def test_a_meta_log_in_a_folder_logs_is_no_log_of_the_experiment_that_is_called_so(
    tmp_path,
) -> None:
    folder = sweep(tmp_path / "logs")
    meta_log(str(folder), experiments.configurations_in(str(folder)))
    with pytest.raises(LogNotFound, match=r"load .*logs/meta_log\.hdf5"):
        load_log(tmp_path)
    assert load_meta_log(folder).eval_ids == ["lr_9", "lr_10", "models", "plain"]
    write(folder / "log_seed_1.hdf5", {"seed_1": [1.0]})
    assert load_log(tmp_path).eval_ids == ["seed_1"]


def test_without_configurations_a_meta_log_is_not_found(tmp_path) -> None:
    write(tmp_path / "deep/lr_1/logs/log.hdf5", {"seed_1": [1.0]})
    (tmp_path / "empty").mkdir()
    for path in ("meta_log.hdf5", "empty/meta_log.hdf5", "nowhere/meta_log.hdf5", "empty", "."):
        with pytest.raises(LogNotFound):
            load_meta_log(tmp_path / path)


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


# --- seeds that were merged -----------------------------------------------------------------------
@pytest.mark.parametrize("large", [False, True])
def test_a_seed_whose_file_was_merged_away_is_loaded_as_if_it_were_there(
    tmp_path, monkeypatch, large
) -> None:
    if large:
        monkeypatch.setattr(reader, "SMALL_BYTES", 0)
    own = write(tmp_path / "logs/log_seed_2.hdf5", {"seed_2": [2.0]})
    before = [load_log(own), load_log(own, aggregate_seeds=True)]
    write(tmp_path / "logs/log.hdf5", {"seed_1": [1.0], "seed_2": [2.0]})
    own.unlink()
    after = [load_log(own), load_log(str(own), aggregate_seeds=True)]
    assert (
        [log.eval_ids for log in before]
        == [log.eval_ids for log in after]
        == [["seed_2"], ["eval"]]
    )
    assert after[0].seed_2.stats.loss.tolist() == [2.0]
    assert after[1].eval.stats.loss.mean.tolist() == [2.0]
    assert after[1].eval.meta.seeds == [2]


def test_a_run_without_a_seed_is_itself_wherever_it_is(tmp_path) -> None:
    write(tmp_path / "logs/all.hdf5", {"no_seed_provided": [2.0], "seed_1": [1.0]})
    log = load_log(tmp_path / "logs/log_no_seed_provided.hdf5")
    assert isinstance(log, RunLog)
    assert log.stats.loss.tolist() == [2.0]


def test_a_seed_that_is_nowhere_is_not_found(tmp_path) -> None:
    write(tmp_path / "logs/log.hdf5", {"seed_1": [1.0]})
    with pytest.raises(LogNotFound, match=r"log_seed_2\.hdf5: there is no such file"):
        load_log(tmp_path / "logs/log_seed_2.hdf5")
    with pytest.raises(LogNotFound, match="no such folder or file"):
        load_log(tmp_path / "logs/other.hdf5")


# --- large files ----------------------------------------------------------------------------------
@pytest.fixture
def all_large(monkeypatch) -> None:
    """Every file is taken for a large one."""
    monkeypatch.setattr(reader, "SMALL_BYTES", 0)
    monkeypatch.setattr(stored, "_SMALL_BYTES", 0)


@pytest.fixture
def no_descriptors(all_large, monkeypatch) -> None:
    """Large files, and none of them can be held."""
    monkeypatch.setattr(openlog, "_descriptors_to_hold", lambda: 0)


def write_seeds(folder: Path, seeds: int = 4) -> None:
    for seed in range(seeds):
        write(folder / f"logs/log_seed_{seed}.hdf5", {f"seed_{seed}": [float(seed), 1.0]})


def merge(folder: Path) -> None:
    """As the daemon does: the merged log is there before the others go."""
    logs = sorted((folder / "logs").iterdir())
    with h5py.File(folder / "logs/log.hdf5.tmp", "w") as merged:
        for path in logs:
            with h5py.File(path) as file:
                for seed in file:
                    file.copy(seed, merged)
    os.replace(folder / "logs/log.hdf5.tmp", folder / "logs/log.hdf5")
    for path in logs:
        path.unlink()


def open_files(folder: Path) -> list[str]:
    """Files in a folder that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in found if path.startswith(str(folder))]


@pytest.mark.usefixtures("all_large")
def test_what_was_loaded_stays_as_it_was_when_its_file_is_replaced_or_merged(tmp_path) -> None:
    write_seeds(tmp_path)
    log, aggregated = load_log(tmp_path), load_log(tmp_path, aggregate_seeds=True)
    write(tmp_path / "logs/next", {"seed_0": [7.0] * 5})
    os.replace(tmp_path / "logs/next", tmp_path / "logs/log_seed_0.hdf5")
    merge(tmp_path)
    assert [run.stats.loss.tolist() for _, run in log.items()] == [[s, 1.0] for s in range(4)]
    assert aggregated.eval.stats.loss.mean.tolist() == [1.5, 1.0]
    assert load_log(tmp_path).seed_0.stats.loss.tolist() == [7.0] * 5


@pytest.mark.usefixtures("all_large")
def test_files_are_let_go_when_their_last_column_was_read(tmp_path) -> None:
    write_seeds(tmp_path)
    log = load_log(tmp_path)
    assert len(open_files(tmp_path)) >= 4
    for seed in range(4):
        for group in log[f"seed_{seed}"].values():
            group.values()
    assert open_files(tmp_path) == []


@pytest.mark.usefixtures("all_large")
def test_files_are_let_go_when_their_last_statistic_was_aggregated(tmp_path) -> None:
    write_seeds(tmp_path)
    log = load_log(tmp_path, aggregate_seeds=True)
    for group in log.eval.values():
        group.values()
    assert open_files(tmp_path) == []


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("aggregated", [False, True])
def test_files_are_let_go_when_what_was_loaded_is_forgotten(tmp_path, aggregated) -> None:
    write_seeds(tmp_path)
    log = load_log(tmp_path, aggregate_seeds=aggregated)
    assert open_files(tmp_path)
    del log
    assert open_files(tmp_path) == []


@pytest.mark.usefixtures("no_descriptors")
@pytest.mark.parametrize("aggregated", [False, True])
def test_where_files_cannot_be_held_all_is_read_at_once(tmp_path, aggregated) -> None:
    write_seeds(tmp_path)
    log = load_log(tmp_path, aggregate_seeds=aggregated)
    assert open_files(tmp_path) == []
    for path in (tmp_path / "logs").iterdir():
        path.unlink()
    if aggregated:
        assert log.eval.stats.loss.mean.tolist() == [1.5, 1.0]
        assert log.eval.time.num_updates.tolist() == [1, 2]
    else:
        assert [run.stats.loss.tolist() for _, run in log.items()] == [[s, 1.0] for s in range(4)]


@pytest.mark.usefixtures("no_descriptors")
def test_files_that_are_merged_while_they_are_aggregated_are_read_from_where_they_went(
    tmp_path, monkeypatch
) -> None:
    write_seeds(tmp_path)
    summarise, calls = aggregate.summarise, []

    def merge_first(*args: object) -> object:
        if not calls:
            merge(tmp_path)
        calls.append(1)
        return summarise(*args)

    monkeypatch.setattr(aggregate, "summarise", merge_first)
    log = load_log(tmp_path, aggregate_seeds=True)
    assert log.eval.stats.loss.mean.tolist() == [1.5, 1.0]
    assert log.eval.meta.seeds == [0, 1, 2, 3]
    assert len(calls) == 2


@pytest.mark.usefixtures("all_large")
def test_of_many_files_no_more_are_held_than_there_are_descriptors_for(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(openlog, "_descriptors_to_hold", lambda: 5)
    monkeypatch.setattr(openlog, "_MOST_HDF5_FILES", 2)
    write_seeds(tmp_path, 20)
    log = load_log(tmp_path)
    assert len(open_files(tmp_path)) <= 7
    aggregated = load_log(tmp_path, aggregate_seeds=True)
    assert len(open_files(tmp_path)) <= 7
    assert [run.stats.loss[0] for _, run in log.items()] == list(range(20))
    assert aggregated.eval.stats.loss.n.tolist() == [20, 20]


@pytest.mark.usefixtures("all_large")
def test_nothing_is_aggregated_before_it_is_looked_at(tmp_path, monkeypatch) -> None:
    path = tmp_path / "meta_log.hdf5"
    write(path, {f"config_{c}/seed_{s}": [float(c), float(s)] for c in range(3) for s in range(2)})
    seen: list[int] = []
    summarise = aggregate.summarise

    def counted(columns: list[object], *each: object) -> object:
        seen.append(len(columns))
        return summarise(columns, *each)

    monkeypatch.setattr(aggregate, "summarise", counted)
    log = load_meta_log(path)
    assert log.eval_ids == ["config_0", "config_1", "config_2"]
    assert log.stats_vars == ["loss"]
    assert log.config_1.ticks == 2
    assert seen == []
    assert log.config_1.stats.loss.mean.tolist() == [1.0, 0.5]
    assert seen == [2]


@pytest.mark.usefixtures("all_large")
def test_damage_that_shows_later_is_named_then(tmp_path) -> None:
    for seed in range(2):
        path = write(tmp_path / f"logs/log_seed_{seed}.hdf5", {f"seed_{seed}": [1.0]})
    with h5py.File(path, "r+") as file:
        dataset = file.create_dataset("seed_1/stats/acc", data=np.arange(9.0), compression="gzip")
        chunk = dataset.id.get_chunk_info(0)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\0" * chunk.size)
    for log in (load_log(tmp_path).seed_1, load_log(tmp_path, aggregate_seeds=True).eval):
        assert "acc" in log.stats
        with pytest.raises(LogDamaged, match=r"log_seed_1\.hdf5: .*move it out of the folder"):
            _ = log.stats.acc
        _ = log.stats.loss


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("aggregated", [False, True])
def test_large_and_small_files_give_the_same(tmp_path, aggregated, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "log.hdf5", "w") as file:
        for seed in range(3):
            add_run(file, f"seed_{seed}", rng.normal(size=50 + seed).tolist(), model_type="jax")
            file[f"seed_{seed}/stats/a%2Fb"] = rng.normal(size=(50, 2))
            file[f"seed_{seed}/stats/rare"] = np.array([1.0, 2.0])
            file[f"seed_{seed}/meta/stats_rows:rare"] = np.array([3, 7])
            file[f"seed_{seed}/stats/note"] = np.array([b"x", b"y"])
            file[f"seed_{seed}"].attrs[layout.STATE_ATTR] = "finished"
    large = load_log(tmp_path / "log.hdf5", aggregated)
    monkeypatch.setattr(reader, "SMALL_BYTES", 10**9)
    small = load_log(tmp_path / "log.hdf5", aggregated)
    assert large.eval_ids == small.eval_ids
    for name, run in large.items():
        other = small[name]
        assert (run.state, run.ticks, run.start_time) == (other.state, other.ticks, None)
        assert pickle.dumps(run.aligned("rare")) == pickle.dumps(other.aligned("rare"))
        assert pickle.dumps(run) == pickle.dumps(other)


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("aggregated", [False, True])
def test_threads_may_share_what_was_loaded(tmp_path, monkeypatch, aggregated) -> None:
    monkeypatch.setattr(openlog, "_MOST_HDF5_FILES", 1)
    for number in range(3):
        seeds = {f"seed_{number}{s}": [float(number)] * 100 for s in range(3)}
        write(tmp_path / f"logs/log_{number}.hdf5", seeds)
    log = load_log(tmp_path, aggregate_seeds=aggregated)
    failures: list[BaseException] = []

    def look() -> None:
        try:
            for name in log.eval_ids:
                run = log[name]
                assert len(run.stats.loss.mean if aggregated else run.stats.loss) == 100
                assert run.time.num_updates.tolist() == list(range(1, 101))
                assert run.aligned("loss")[0].tolist() == list(range(1, 101))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from mle_client import load_log, reader
reader.SMALL_BYTES = 0
one, all_ = load_log(sys.argv[1]), load_log(sys.argv[1], aggregate_seeds=True)
open(sys.argv[1] + "/another_file", "w").close()
assert [run.stats.loss[0] for _, run in one.items()] == list(range(200))
assert all_.eval.stats.loss.n.tolist() == [200, 200]
"""


def test_hundreds_of_large_files_need_few_descriptors(tmp_path) -> None:
    write_seeds(tmp_path, 200)
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=discovery.python_environment(),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("small", [0, 10**9], ids=["by pieces", "by HDF5"])
def test_a_merged_log_that_hdf5_has_closed_and_somebody_removed_can_still_be_read(
    tmp_path, monkeypatch, small
) -> None:
    monkeypatch.setattr(stored, "_SMALL_BYTES", small)
    monkeypatch.setattr(openlog, "_MOST_HDF5_FILES", 1)
    first = write(tmp_path / "first.hdf5", {"seed_1": [1.0, 2.0], "seed_2": [3.0]})
    second = write(tmp_path / "second.hdf5", {"seed_1": [4.0], "seed_2": [5.0]})
    one, other = load_log(first), load_log(second)
    first.unlink()
    os.replace(write(tmp_path / "third.hdf5", {"seed_9": [9.0]}), second)
    assert one.seed_1.stats.loss.tolist() == [1.0, 2.0]
    assert other.seed_2.stats.loss.tolist() == [5.0]
    assert one.seed_2.time.num_updates.tolist() == [1]


def test_a_log_that_may_not_be_read_is_named_with_what_to_do(tmp_path, monkeypatch) -> None:
    write(tmp_path / "logs/log_seed_1.hdf5", {"seed_1": [1.0]})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Unable to open file")

    monkeypatch.setattr(h5access, "_open", refuse)  # root may read everything
    with pytest.raises(PermissionError, match=r"may not read it: ask its owner.*log_seed_1\.hdf5"):
        load_log(tmp_path)


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("aggregated", [False, True])
def test_hdf5_has_no_log_of_a_single_run_open_when_it_was_loaded(tmp_path, aggregated) -> None:
    write_seeds(tmp_path, 3)
    log = load_log(tmp_path, aggregate_seeds=aggregated)
    assert h5f.get_obj_count(h5f.OBJ_ALL, h5f.OBJ_FILE) == 0
    with h5py.File(tmp_path / "logs/log_seed_1.hdf5", "r+") as file:  # others may even write
        file["new"] = 1
    assert len(log.eval.stats.loss.n if aggregated else log.seed_2.stats.loss) == 2
