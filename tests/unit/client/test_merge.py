"""`merge_seed_logs` and `merge_config_logs` as mle-logging's users call them."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

import pytest

from mle_client import control, files, lifetime, merge, merge_config_logs, merge_seed_logs
from mle_client.errors import LogDamaged, LogNotFound, MergeFailed, TooFewSeeds
from mle_client.merge import merge_group
from tests.seed_logs import losses, write_foreign, write_log


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that daemons were asked to publish; none is reached."""
    paths: list[str] = []
    monkeypatch.setattr(control, "publish_before_reading", lambda path: paths.append(path))
    monkeypatch.setattr(control, "is_served", lambda path: False)
    monkeypatch.setattr(merge, "_LOOK_EVERY_S", 0.01)
    return paths


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    """An experiment with two seeds."""
    for i in (1, 2):
        write_log(tmp_path / "exp", f"seed_{i}", [float(i)])
    return tmp_path / "exp"


BOTH = {"seed_1": [1.0], "seed_2": [2.0]}


def names(exp: Path) -> list[str]:
    return sorted(os.listdir(exp / "logs"))


# --- merge_seed_logs ------------------------------------------------------------------------------
def test_all_seeds_of_an_experiment_become_one_file(exp: Path, published: list[str]) -> None:
    report = merge_seed_logs(exp / "logs" / "log.hdf5", exp)
    assert losses(exp / "logs/log.hdf5") == BOTH
    assert (report.added, names(exp)) == (("seed_1", "seed_2"), ["log.hdf5"])
    assert published == [str(exp)]


def test_merging_again_is_harmless_where_mle_logging_loses_everything(exp: Path) -> None:
    for _ in range(3):
        merge_seed_logs(f"{exp}/logs/log.hdf5", str(exp))
        assert losses(exp / "logs/log.hdf5") == BOTH
    write_log(exp, "seed_3", [3.0])
    merge_seed_logs(f"{exp}/logs/log.hdf5", str(exp), 3)
    assert losses(exp / "logs/log.hdf5") == {**BOTH, "seed_3": [3.0]}
    merge_seed_logs(f"{exp}/logs/other.hdf5", str(exp))
    assert (names(exp), len(losses(exp / "logs/other.hdf5"))) == (["other.hdf5"], 3)


def test_logs_are_kept_if_asked_for(exp: Path) -> None:
    merge_seed_logs(exp / "all.hdf5", exp, delete_files=False)
    assert names(exp) == ["log_seed_1.hdf5", "log_seed_2.hdf5"]


def test_what_is_left_out_is_warned_of_and_kept(exp: Path) -> None:
    (exp / "logs/log_seed_1.hdf5").write_bytes(b"x")
    write_log(exp, "seed_3", [3.0], state="running")
    (exp / "logs/.DS_Store").touch()
    (exp / "logs/notes.txt").touch()
    with pytest.warns(UserWarning, match=r"log_seed_[13]\.hdf5: ") as caught:
        report = merge_seed_logs(exp / "logs/log.hdf5", exp)
    said = [str(each.message) for each in caught]
    assert len(said) == 2
    assert said[0].startswith(f"{exp}/logs/log_seed_1.hdf5: not a readable HDF5 file")
    assert "seed_3 is still running: it is merged as far as it got" in said[1]
    assert caught[0].filename == __file__
    assert list(report.seeds) == ["seed_2", "seed_3"]
    assert "log_seed_1.hdf5" in names(exp)
    assert "log_seed_3.hdf5" in names(exp)


def test_different_configurations_are_merged_and_warned_of(exp: Path) -> None:
    write_log(exp, "seed_3", [3.0], config_text="{'lr': 0.2}")
    with pytest.warns(UserWarning, match=r"different configurations \(lr: 0\.1 / 0\.2\)") as caught:
        merge_seed_logs(exp / "logs/log.hdf5", exp)
    assert caught[0].filename == __file__
    assert len(losses(exp / "logs/log.hdf5")) == 3


def test_bad_paths_say_what_to_do(exp: Path, tmp_path: Path) -> None:
    with pytest.raises(LogNotFound, match="no such folder"):
        merge_seed_logs(tmp_path / "all.hdf5", tmp_path / "nowhere")
    with pytest.raises(LogNotFound, match="nothing to merge"):
        merge_seed_logs(tmp_path / "all.hdf5", tmp_path)
    with pytest.raises(MergeFailed, match="make it, or merge into another one"):
        merge_seed_logs(tmp_path / "nowhere" / "all.hdf5", exp, num_logs=99)  # before any waiting
    with pytest.raises(MergeFailed, match="give the path of a file in it"):
        merge_seed_logs(exp, exp)
    with pytest.raises(MergeFailed, match=r"logs/meta_log\.hdf5: .*take another"):
        merge_seed_logs(exp / "logs/meta_log.hdf5", exp)
    merge_seed_logs(tmp_path / "meta_log.hdf5", exp, delete_files=False)  # not in logs/


# --- waiting --------------------------------------------------------------------------------------
def test_a_number_of_logs_is_waited_for(exp: Path) -> None:
    late = threading.Timer(0.1, lambda: write_log(exp, "seed_3", [3.0]))
    late.start()
    report = merge_seed_logs(exp / "logs/log.hdf5", exp, num_logs=3)
    late.join()
    assert list(report.seeds) == ["seed_1", "seed_2", "seed_3"]


def test_more_logs_than_are_waited_for_are_merged_too(exp: Path) -> None:
    assert len(merge_seed_logs(exp / "logs/log.hdf5", exp, num_logs=1).seeds) == 2


def test_seeds_that_are_merged_and_files_that_are_damaged_are_not_waited_for(exp: Path) -> None:
    merge_seed_logs(exp / "logs/log.hdf5", exp)
    (exp / "logs/log_seed_3.hdf5").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merge_seed_logs(exp / "logs/log.hdf5", exp, num_logs=3, timeout=0)


def test_a_wait_ends_in_time_and_says_how_far_it_got(exp: Path) -> None:
    with pytest.raises(TimeoutError, match=r"2 of 3 seeds have ended within 0\.05 s"):
        merge_seed_logs(exp / "logs/log.hdf5", exp, num_logs=3, timeout=0.05)
    assert names(exp) == ["log_seed_1.hdf5", "log_seed_2.hdf5"]


def test_another_merge_is_waited_for_as_long_as_was_said(exp: Path) -> None:
    with (
        files.locked(str(exp), timeout=0),
        pytest.raises(MergeFailed, match="has had it locked"),
    ):
        merge_seed_logs(exp / "logs/log.hdf5", exp, timeout=0.05)


@pytest.mark.parametrize("reason", ["served", "its own logger", "no daemon"])
def test_only_a_run_that_a_daemon_looks_after_is_waited_for(
    exp: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    running = write_log(exp, "seed_3", [3.0], state="running")
    monkeypatch.setattr(control, "is_served", lambda path: reason != "no daemon")
    monkeypatch.setattr(
        lifetime, "is_logging", lambda path: reason == "its own logger" and path == running
    )
    if reason == "served":
        with pytest.raises(TimeoutError):
            merge_seed_logs(exp / "logs/log.hdf5", exp, num_logs=3, timeout=0.05)
    else:
        with pytest.warns(UserWarning, match="still running"):
            merge_seed_logs(exp / "logs/log.hdf5", exp, num_logs=3, timeout=0.05)


# --- merge_config_logs ----------------------------------------------------------------------------
@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Configurations of one seed each, at several depths."""
    for folder in ("a", "b", "deep/c", "deep/down/d"):
        write_log(tmp_path / folder, "seed_1", [1.0], run=folder)
    return tmp_path


def test_configurations_are_found_by_the_names_of_their_folders_at_any_depth(
    sweep: Path, published: list[str]
) -> None:
    for _ in range(2):
        report = merge_config_logs(sweep, ["b", "c", "d"])
        assert list(losses(sweep / "meta_log.hdf5")) == ["b/seed_1", "c/seed_1", "d/seed_1"]
        assert report.left_out == report.put_aside == ()
    assert published == [str(sweep)] * 2
    assert os.path.exists(sweep / "b/logs/log_seed_1.hdf5")


def test_a_configuration_may_be_given_as_a_path_below(sweep: Path) -> None:
    for given in (["deep/c", "a"], ["./deep/c/", "a/"]):
        report = merge_config_logs(sweep, given)
        assert sorted(losses(sweep / "meta_log.hdf5")) == ["a/seed_1", "deep/c/seed_1"]
        assert (sorted(report.seeds), report.put_aside) == (["a/seed_1", "deep/c/seed_1"], ())


def test_a_name_that_is_unknown_or_not_clear_is_refused(sweep: Path) -> None:
    with pytest.raises(LogNotFound, match="no folder named 'x'"):
        merge_config_logs(sweep, ["a", "x"])
    write_log(sweep / "deep/down/b", "seed_1", [1.0])
    write_log(sweep / "deep/b", "seed_1", [1.0])
    assert merge_config_logs(sweep, ["b"]).seeds == {"b/seed_1": "finished"}  # right inside
    (sweep / "b").rename(sweep / "was_b")
    with pytest.raises(ValueError, match="several folders are named 'b'"):
        merge_config_logs(sweep, ["b"])
    with pytest.raises(LogNotFound, match="no such folder"):
        merge_config_logs(sweep / "nowhere", ["a"])


@pytest.mark.parametrize("name", ["../b", "..", ".", "", "a/../../b", "/a"])
def test_a_name_that_leads_out_of_the_folder_or_nowhere_is_refused(sweep: Path, name: str) -> None:
    folder = sweep / "deep"
    given = name if name != "/a" else str(sweep / "a")
    with pytest.raises(ValueError, match="no name of a folder in experiment_dir"):
        merge_config_logs(folder, ["c", given])
    assert not (folder / "meta_log.hdf5").exists()


def test_a_name_may_be_given_alone_or_twice_and_none_is_an_error(sweep: Path) -> None:
    assert list(merge_config_logs(sweep, "a").seeds) == ["a/seed_1"]
    assert list(merge_config_logs(sweep, ["a", "a/"]).seeds) == ["a/seed_1"]
    with pytest.raises(ValueError, match="all_run_ids is empty"):
        merge_config_logs(sweep, [])


def test_runs_that_go_on_and_mixed_configurations_are_merged_and_warned_of(sweep: Path) -> None:
    write_log(sweep / "a", "seed_2", [2.0], state="running")
    write_log(sweep / "b", "seed_2", [2.0], config_text="{'lr': 0.2}")
    with pytest.warns(UserWarning, match="configurations|running") as caught:
        report = merge_config_logs(sweep, ["a", "b"])
    assert {each.filename for each in caught} == {__file__}
    mixed, running = (str(each.message) for each in caught)
    assert "different configurations (lr: 0.1 / 0.2)" in mixed
    assert "seed_2 is still running: meta_log.hdf5 has it as far as it got" in running
    assert list(report.seeds) == ["a/seed_1", "a/seed_2", "b/seed_1", "b/seed_2"]


def test_what_a_configuration_lacks_is_warned_of(sweep: Path) -> None:
    (sweep / "a/logs/log_seed_2.hdf5").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"a/logs/log_seed_2\.hdf5: not a readable") as caught:
        merge_config_logs(sweep, ["a", "b"])
    assert caught[0].filename == __file__
    (sweep / "a/logs/log_seed_1.hdf5").write_bytes(b"x")
    with pytest.raises(LogDamaged):
        merge_config_logs(sweep, ["a"])


# --- for the daemon -------------------------------------------------------------------------------
def test_a_group_is_merged_where_load_log_looks_and_only_seeds_own_logs_are_taken(
    exp: Path,
) -> None:
    write_foreign(exp / "logs/other.hdf5", {"seed_9": [9.0]})
    report = merge_group(str(exp), at_least=2)
    assert (list(report.seeds), names(exp)) == (["seed_1", "seed_2"], ["log.hdf5", "other.hdf5"])
    write_log(exp, "seed_3", [3.0])
    merge_group(str(exp), keep_seed_logs=True)
    assert names(exp) == ["log.hdf5", "log_seed_3.hdf5", "other.hdf5"]
    with pytest.raises(TooFewSeeds):
        merge_group(str(exp), at_least=4)


def test_a_group_that_is_merged_under_another_name_has_nothing_to_merge(exp: Path) -> None:
    merge_seed_logs(exp / "logs/all.hdf5", exp)
    with pytest.raises(TooFewSeeds):
        merge_group(str(exp))


def test_a_merged_file_that_is_named_like_the_log_of_a_seed_stays_what_it_is(exp: Path) -> None:
    own = exp / "logs/log_merged.hdf5"
    merge_seed_logs(own, exp)
    with pytest.raises(TooFewSeeds):
        merge_group(str(exp))
    for late in ("seed_3", "seed_4"):
        write_log(exp, late, [3.0])
    report = merge_group(str(exp))
    assert list(report.seeds) == ["seed_3", "seed_4"]
    assert losses(own) == BOTH
    assert names(exp) == ["log.hdf5", "log_merged.hdf5"]
    merge_seed_logs(exp / "logs/log.hdf5", exp)  # takes every log, as mle-logging's
    assert names(exp) == ["log.hdf5"]


def test_a_seeds_own_log_has_one_seed_which_its_name_says(exp: Path) -> None:
    write_foreign(exp / "logs/log_seed_3.hdf5", {"seed_3": [3.0]})
    write_foreign(exp / "logs/log_seed_4.hdf5", {"seed_4": [4.0], "seed_5": [5.0]})
    os.rename(write_log(exp, "seed_6", [6.0]), exp / "logs/log_first.hdf5")
    (exp / "logs/log_seed_7.hdf5").write_bytes(b"x")
    report = merge_group(str(exp))
    assert list(report.seeds) == ["seed_1", "seed_2", "seed_3"]
    assert [os.path.basename(each.path) for each in report.left_out] == ["log_seed_7.hdf5"]
    assert names(exp) == ["log.hdf5", "log_first.hdf5", "log_seed_4.hdf5", "log_seed_7.hdf5"]


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound, match="no such folder"):
        merge_group(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LogNotFound, match="nothing to merge"):
        merge_group(str(tmp_path / "empty"))
