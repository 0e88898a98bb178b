"""Files of configurations: each has the seeds it should, and no run that was there is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import pytest

from mle_client import experiments, files, layout, merge, merged_configs
from mle_client.errors import LogDamaged, LogNotFound, MergeFailed, MergeRefused
from mle_client.merging import MergeReport
from tests.seed_logs import (
    everything,
    leftovers,
    losses,
    open_files,
    write_foreign,
    write_log,
)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A folder with two configurations of two seeds."""
    for config in ("a", "b"):
        for i in (1, 2):
            write_log(tmp_path / config, f"seed_{i}", [float(i)], run=f"{config}{i}")
    return tmp_path


EXPECTED = {f"{config}/seed_{i}": [float(i)] for config in "ab" for i in (1, 2)}


def path(sweep: Path) -> str:
    return layout.meta_log_path(str(sweep))


def refresh(sweep: Path) -> MergeReport:
    return merge.meta_log(str(sweep), experiments.configurations_in(str(sweep)))


# --- merging --------------------------------------------------------------------------------------
def test_configurations_with_their_seeds_are_in_one_file_and_their_logs_stay(sweep: Path) -> None:
    before = everything(sweep)
    report = refresh(sweep)
    assert losses(path(sweep)) == EXPECTED
    assert (report.path, report.added) == (path(sweep), tuple(EXPECTED))
    assert report.seeds == dict.fromkeys(EXPECTED, "finished")
    assert {name: each for name, each in everything(sweep).items() if name in before} == before
    assert leftovers(sweep) == []


@pytest.mark.parametrize("foreign", [False, True])
def test_a_file_that_has_all_is_left_as_it_is(sweep: Path, foreign: bool) -> None:
    if foreign:
        write_foreign(sweep / "c/logs/log_seed_1.hdf5", {"seed_1": [3.0]})
    refresh(sweep)
    before = files.Stamp.of(os.stat(path(sweep)))
    assert refresh(sweep).added == ()
    assert files.Stamp.of(os.stat(path(sweep))) == before
    if foreign:
        write_foreign(sweep / "c/logs/log_seed_1.hdf5", {"seed_1": [4.0]})
        refresh(sweep)
        assert losses(path(sweep))["c/seed_1"] == [4.0]


def test_it_does_not_matter_whether_seeds_are_merged(sweep: Path) -> None:
    merge.merge_group(str(sweep / "a"))
    refresh(sweep)
    assert losses(path(sweep)) == EXPECTED
    before = os.stat(path(sweep))
    merge.merge_group(str(sweep / "b"))
    refresh(sweep)
    assert os.stat(path(sweep)).st_ino == before.st_ino  # it was not written again


def test_a_file_that_has_all_looks_no_older_than_what_it_has(sweep: Path) -> None:
    refresh(sweep)
    later = os.stat(path(sweep)).st_mtime_ns + 10**9
    os.utime(sweep / "a/logs/log_seed_1.hdf5", ns=(later, later))
    for _ in range(2):
        assert refresh(sweep).added == ()
        assert os.stat(path(sweep)).st_mtime_ns == later


def test_what_goes_on_or_is_new_is_refreshed(sweep: Path) -> None:
    write_log(sweep / "a", "seed_3", [0.5], state="running")
    assert refresh(sweep).seeds["a/seed_3"] == "running"
    write_log(sweep / "a", "seed_3", [0.5, 0.6])
    write_log(sweep / "c", "seed_1", [9.0])
    report = refresh(sweep)
    assert losses(path(sweep)) == {**EXPECTED, "a/seed_3": [0.5, 0.6], "c/seed_1": [9.0]}
    assert (report.added, report.seeds["a/seed_3"]) == (("c/seed_1",), "finished")


def test_of_each_seed_the_latest_log_counts(sweep: Path) -> None:
    merge.merge_group(str(sweep / "a"))
    write_log(sweep / "a", "seed_1", [7.0], run="again", start=5.0)
    refresh(sweep)
    assert losses(path(sweep)) == {**EXPECTED, "a/seed_1": [7.0]}


def test_a_file_with_runs_that_are_nowhere_else_is_kept(sweep: Path) -> None:
    refresh(sweep)
    os.unlink(sweep / "a/logs/log_seed_1.hdf5")
    report = refresh(sweep)
    (kept,) = report.put_aside
    assert losses(kept) == EXPECTED
    assert "a/seed_1" not in losses(path(sweep))
    assert refresh(sweep).put_aside == ()


def test_a_file_with_more_in_it_than_runs_is_kept(sweep: Path) -> None:
    refresh(sweep)
    with h5py.File(path(sweep), "a") as file:
        file["notes"] = [1]
    assert refresh(sweep).put_aside == ()
    write_log(sweep / "c", "seed_1", [1.0])
    (kept,) = refresh(sweep).put_aside
    with h5py.File(kept) as file:
        assert file["notes"][:].tolist() == [1]


# --- what cannot be merged ------------------------------------------------------------------------
def test_what_is_damaged_is_left_out_and_named_under_its_own_configuration(sweep: Path) -> None:
    bad = sweep / "a/logs/log_seed_1.hdf5"
    bad.write_bytes(b"x")
    report = refresh(sweep)
    assert [each.path for each in report.left_out] == [str(bad)]
    assert list(report.seeds) == ["a/seed_2", "b/seed_1", "b/seed_2"]


def test_a_configuration_of_which_nothing_can_be_read_does_not_keep_the_others_back(
    sweep: Path,
) -> None:
    for i in (1, 2):
        (sweep / f"b/logs/log_seed_{i}.hdf5").write_bytes(b"x")
    report = refresh(sweep)
    assert (list(report.seeds), len(report.left_out)) == (["a/seed_1", "a/seed_2"], 2)
    for i in (1, 2):
        (sweep / f"a/logs/log_seed_{i}.hdf5").write_bytes(b"x")
    with pytest.raises(LogDamaged, match="and 3 more"):
        refresh(sweep)


def test_a_run_that_hdf5_cannot_copy_is_left_out(sweep: Path) -> None:
    bad = sweep / "a/logs/log_seed_1.hdf5"
    with h5py.File(bad, "a") as file:
        reference = file["seed_1/stats/loss"].ref
        file["seed_1/stats"].create_dataset("ref", data=[reference], dtype=h5py.ref_dtype)
    report = refresh(sweep)
    assert [each.path for each in report.left_out] == [str(bad)]
    assert "a/seed_1" not in losses(path(sweep))


def test_a_meta_log_that_is_damaged_is_named_and_stays(sweep: Path) -> None:
    Path(path(sweep)).write_bytes(b"x")
    with pytest.raises(LogDamaged) as caught:
        refresh(sweep)
    assert caught.value.path == path(sweep)
    assert Path(path(sweep)).read_bytes() == b"x"


def test_a_configuration_without_logs_is_named(sweep: Path) -> None:
    with pytest.raises(LogNotFound, match=str(sweep / "nowhere")):
        merge.meta_log(str(sweep), {"c": str(sweep / "nowhere")})
    with pytest.raises(LogNotFound):
        merge.meta_log(str(sweep), {})


def test_a_configuration_that_is_mixed_is_left_out_unless_it_is_to_be_taken(sweep: Path) -> None:
    write_log(sweep / "a", "seed_3", [3.0], config_text="{'lr': 7}")
    report = refresh(sweep)
    (left,) = report.left_out
    assert (left.path, report.mixed) == (str(sweep / "a"), "")
    assert "different configurations (lr: 0.1 / 7)" in left.why
    assert "it is not in meta_log.hdf5" in left.why
    assert list(losses(path(sweep))) == ["b/seed_1", "b/seed_2"]
    taken = merge.meta_log(str(sweep), experiments.configurations_in(str(sweep)), mixed=True)
    assert (len(taken.seeds), taken.left_out) == (5, ())
    assert "different configurations (lr: 0.1 / 7)" in taken.mixed


def test_where_all_configurations_are_mixed_nothing_is_written(sweep: Path) -> None:
    for config in "ab":
        write_log(sweep / config, "seed_3", [3.0], config_text="{'lr': 7}")
    with pytest.raises(MergeRefused, match="different configurations"):
        refresh(sweep)
    assert not os.path.exists(path(sweep))


def test_what_goes_on_is_told_and_in_the_file_as_far_as_it_got(sweep: Path) -> None:
    live = write_log(sweep / "a", "seed_3", [3.0], state="running")
    report = refresh(sweep)
    (left,) = report.left_out
    assert (left.path, left.running, left.damaged) == (live, True, False)
    assert "seed_3 is still running: meta_log.hdf5 has it as far as it got" in left.why
    write_foreign(sweep / "a/logs/all.hdf5", {"seed_3": [3.0]})
    write_log(sweep / "a", "seed_3", [3.0, 4.0])
    assert [each.running for each in refresh(sweep).left_out] == [False]  # another run of seed_3


# --- others at the same files ---------------------------------------------------------------------
@pytest.mark.parametrize("moment", ["plan_merge", "write_file", "land"])
def test_configurations_that_are_merged_meanwhile_are_not_missed(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    real, done = getattr(merged_configs, moment), []

    def call(*arguments: Any, **more: Any) -> Any:
        if not done:
            done.append(merge.merge_group(str(sweep / "a")))
            merge.merge_group(str(sweep / "b"))
        return real(*arguments, **more)

    monkeypatch.setattr(merged_configs, moment, call)
    refresh(sweep)
    assert losses(path(sweep)) == EXPECTED


def test_a_failure_leaves_what_was_there_and_nothing_open(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(sweep)
    os.unlink(sweep / "a/logs/log_seed_1.hdf5")
    before = open_files()

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("pwrite", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(MergeFailed, match="make room"):
                refresh(sweep)
        assert losses(path(sweep)) == EXPECTED
    assert open_files() == before
    assert leftovers(sweep) == []
