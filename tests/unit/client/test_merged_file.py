"""Merged files: every value stays in some file, whatever lies there and whoever interferes."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mle_client import files, h5access, layout, log_compare, merged_file
from mle_client.errors import (
    LogDamaged,
    LogNotFound,
    MergeFailed,
    MergeRefused,
    TooFewSeeds,
)
from mle_client.experiments import log_files
from mle_client.merging import Merge, MergeReport
from tests.seed_logs import (
    everything,
    leftovers,
    log_bytes,
    losses,
    open_files,
    ticks_of,
    write_aside,
    write_foreign,
    write_log,
)


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    """The folder of a configuration, in a root."""
    (tmp_path / ".mle").mkdir()
    (tmp_path / "exp" / "logs").mkdir(parents=True)
    return tmp_path / "exp"


def target(exp: Path) -> str:
    return layout.merged_log_path(str(exp))


def job(exp: Path, **changes: Any) -> Merge:
    """A merge of all logs of a configuration into the usual place."""
    into = changes.get("target", target(exp))
    plain: dict[str, Any] = {
        "target": into,
        "folder": str(exp),
        "sources": lambda: log_files(str(exp), other_than=into),
        "patience_s": 5.0,
    }
    return Merge(**(plain | changes))


def merge(exp: Path, **changes: Any) -> MergeReport:
    return merged_file.merge(job(exp, **changes))


def names(exp: Path) -> list[str]:
    return sorted(os.listdir(exp / "logs"))


def aside(exp: Path) -> list[str]:
    """What was put aside, without the stamps."""
    folder = exp.parent / ".mle" / "replaced"
    if not folder.is_dir():
        return []
    return sorted(name.partition("-")[2] for name in os.listdir(folder))


def reasons(report: MergeReport) -> dict[str, str]:
    return {os.path.basename(each.path): each.why for each in report.left_out}


# --- merging --------------------------------------------------------------------------------------
def test_seeds_become_one_file_and_their_own_go(exp: Path) -> None:
    paths = [write_log(exp, f"seed_{i}", [float(i), 0.5]) for i in (1, 2, 10)]
    states = {"seed_1": "finished", "seed_2": "finished", "seed_10": "finished"}
    report = merge(exp)
    assert losses(target(exp)) == {
        "seed_1": [1.0, 0.5], "seed_2": [2.0, 0.5], "seed_10": [10.0, 0.5],
    }  # fmt: skip
    assert names(exp) == ["log.hdf5"]
    assert (report.path, report.seeds) == (target(exp), states)
    assert list(report.seeds) == ["seed_1", "seed_2", "seed_10"]
    assert (report.added, report.removed) == (("seed_1", "seed_2", "seed_10"), tuple(paths))
    assert (report.left_out, report.put_aside, report.mixed) == ((), (), "")
    assert leftovers(exp) == []


def test_merging_what_is_merged_changes_nothing(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    write_log(exp, "seed_2", [1.0])
    merge(exp)
    before = files.Stamp.of(os.stat(target(exp)))
    report = merge(exp)
    assert files.Stamp.of(os.stat(target(exp))) == before
    assert (list(report.seeds), report.added, report.removed) == (["seed_1", "seed_2"], (), ())


@pytest.mark.parametrize("into", ["log.hdf5", "all.hdf5", "without_extension", "../all.hdf5"])
def test_late_seeds_are_added_whatever_the_merged_file_is_called(exp: Path, into: str) -> None:
    where = str(exp / "logs" / into)
    for i in range(3):
        write_log(exp, f"seed_{i}", [float(i)])
        assert merge(exp, target=where).added == (f"seed_{i}",)
    assert losses(where) == {"seed_0": [0.0], "seed_1": [1.0], "seed_2": [2.0]}


def test_a_crashed_seed_is_merged_as_far_as_it_got_and_marked(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0], state="crashed")
    write_log(exp, "seed_2", [2.0])
    assert merge(exp).seeds == {"seed_1": "crashed", "seed_2": "finished"}
    with h5py.File(target(exp)) as file:
        assert file["seed_1"].attrs[layout.STATE_ATTR] == "crashed"


def test_what_is_merged_may_be_merged_into_another_file(exp: Path) -> None:
    for i in (1, 2):
        write_log(exp, f"seed_{i}", [float(i)])
    merge(exp)
    write_log(exp, "seed_3", [3.0])
    report = merge(exp, target=str(exp / "logs" / "all.hdf5"))
    assert names(exp) == ["all.hdf5"]
    assert report.added == ("seed_1", "seed_2", "seed_3")


def test_logs_may_be_kept(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    for added in (("seed_1",), ()):
        report = merge(exp, delete=False)
        assert (report.added, report.removed) == (added, ())
    assert names(exp) == ["log.hdf5", "log_seed_1.hdf5"]
    assert merge(exp).removed == (str(exp / "logs" / "log_seed_1.hdf5"),)


def test_logs_of_mle_logging_and_of_ours_are_merged_together(exp: Path) -> None:
    write_foreign(exp / "logs/log_seed_1.hdf5", {"seed_1": [1.0, 2.0]})
    write_foreign(exp / "logs/older.hdf5", {"seed_2": [2.0], "seed_3": [3.0]})
    write_log(exp, "seed_4", [4.0])
    assert merge(exp).seeds == {
        "seed_1": None,
        "seed_2": None,
        "seed_3": None,
        "seed_4": "finished",
    }
    assert names(exp) == ["log.hdf5"]
    assert merge(exp).added == ()


def test_what_the_merged_file_has_besides_runs_stays_in_it(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    merge(exp)
    with h5py.File(target(exp), "a") as file:
        file["notes"] = [1, 2]
    write_log(exp, "seed_2", [2.0])
    merge(exp)
    with h5py.File(target(exp)) as file:
        assert sorted(file) == ["notes", "seed_1", "seed_2"]
    # Where the file has to be written anew, the old one is kept.
    write_log(exp, "seed_1", [9.0], run="again", start=5.0)
    merge(exp)
    assert aside(exp) == ["log.hdf5"]
    assert losses(target(exp)) == {"seed_1": [9.0], "seed_2": [2.0]}


# --- runs that go on, and go on again -------------------------------------------------------------
def test_a_run_that_goes_on_stays_where_it_is(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0], state="running")
    write_log(exp, "seed_2", [2.0])
    report = merge(exp)
    assert (list(report.seeds), names(exp)) == (["seed_2"], ["log.hdf5", "log_seed_1.hdf5"])
    (left,) = report.left_out
    assert left.running


def test_a_run_that_goes_on_may_be_merged_as_far_as_it_got(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0], state="running")
    report = merge(exp, running=True, at_least=0)
    assert (report.seeds, names(exp)) == ({"seed_1": "running"}, ["log.hdf5", "log_seed_1.hdf5"])
    assert losses(target(exp)) == {"seed_1": [1.0]}
    write_log(exp, "seed_1", [1.0, 2.0], run="seed_1")
    report = merge(exp)
    assert (losses(target(exp)), names(exp)) == ({"seed_1": [1.0, 2.0]}, ["log.hdf5"])
    assert (report.seeds, aside(exp)) == ({"seed_1": "finished"}, [])


def test_a_run_that_went_on_after_it_was_merged_takes_its_own_place(exp: Path) -> None:
    for i in (1, 2):
        write_log(exp, f"seed_{i}", [float(i)])
    merge(exp)
    write_log(exp, "seed_1", [1.0, 1.5], run="continues", start=7.0)
    report = merge(exp)
    assert losses(target(exp)) == {"seed_1": [1.0, 1.5], "seed_2": [2.0]}
    assert (report.added, report.put_aside, names(exp)) == (("seed_1",), (), ["log.hdf5"])


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_run_of_a_merged_seed_takes_its_place_and_the_old_one_is_kept_unless_overwritten(
    exp: Path, overwrite: bool
) -> None:
    for i in (1, 2):
        write_log(exp, f"seed_{i}", [float(i)] * 3)
    merge(exp)
    write_log(exp, "seed_1", [9.0], run="again", start=7.0, overwrite=overwrite)
    report = merge(exp)
    assert losses(target(exp)) == {"seed_1": [9.0], "seed_2": [2.0] * 3}
    assert aside(exp) == ([] if overwrite else ["log_seed_1.hdf5"])
    if not overwrite:
        assert losses(report.put_aside[0]) == {"seed_1": [1.0] * 3}
    assert leftovers(exp) == []


def test_what_a_killed_merge_has_put_aside_is_not_put_aside_again(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    merge(exp)
    write_log(exp, "seed_1", [9.0], run="again", start=7.0)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "land", die)
        with pytest.raises(KeyboardInterrupt):
            merge(exp)
    assert losses(target(exp)) == {"seed_1": [1.0]}
    merge(exp)
    assert (aside(exp), losses(target(exp))) == (["log_seed_1.hdf5"], {"seed_1": [9.0]})
    # But another run of that seed is.
    write_log(exp, "seed_1", [10.0], run="once more", start=8.0)
    merge(exp)
    assert len(aside(exp)) == 2


def test_a_second_log_of_one_run_does_not_push_the_first_one_out(exp: Path) -> None:
    # A forked child outlives the run of its parent, and the merged file is not where the daemon
    # looks: it begins a new file of the same run.
    where = str(exp / "logs" / "all.hdf5")
    write_log(exp, "seed_1", [1.0, 2.0], run="r")
    merge(exp, target=where)
    write_log(exp, "seed_1", [7.0], run="r")
    report = merge(exp, target=where)
    assert losses(where) == {"seed_1": [1.0, 2.0]}
    assert "lacks; load both" in reasons(report)["log_seed_1.hdf5"]
    write_log(exp, "seed_1", [7.0, 8.0, 9.0], run="r", overwrite=True)
    merge(exp, target=where)
    assert losses(where) == {"seed_1": [7.0, 8.0, 9.0]}
    assert aside(exp) == ["log_seed_1.hdf5"]


# --- several logs of one seed ---------------------------------------------------------------------
def test_a_copied_log_is_merged_once_and_goes(exp: Path) -> None:
    path = write_log(exp, "seed_1", [1.0])
    shutil.copy(path, exp / "logs" / "copy.hdf5")
    os.link(path, exp / "logs" / "link.hdf5")
    report = merge(exp)
    assert (names(exp), len(report.removed)) == (["log.hdf5"], 3)


def test_another_run_of_a_seed_stays_and_is_named(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0], start=5.0)
    write_aside(
        str(exp / "logs/old.hdf5"), log_bytes("seed_1", ticks_of([2.0, 3.0]), run="another")
    )
    for _ in range(2):
        report = merge(exp)
        assert "another run of seed_1" in reasons(report)["old.hdf5"]
        assert losses(exp / "logs/old.hdf5") == {"seed_1": [2.0, 3.0]}
    assert losses(target(exp)) == {"seed_1": [1.0]}


def test_a_file_of_several_seeds_stays_while_one_of_them_is_not_merged(exp: Path) -> None:
    write_foreign(exp / "logs/two.hdf5", {"seed_1": [1.0, 1.0, 1.0], "seed_2": [2.0]})
    write_log(exp, "seed_1", [9.0])
    report = merge(exp)
    assert losses(target(exp)) == {"seed_1": [9.0], "seed_2": [2.0]}
    assert names(exp) == ["log.hdf5", "two.hdf5"]
    assert list(reasons(report)) == ["two.hdf5"]


# --- what cannot be merged ------------------------------------------------------------------------
def damaged(path: Path, how: str) -> None:
    """Let something else lie where a log was."""
    content = path.read_bytes()
    path.unlink()
    match how:
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "no run in it":
            h5py.File(path, "w").close()
        case "cut short":
            path.write_bytes(content[:2000])
        case "no HDF5":
            path.write_bytes(b"x" * 5000)
        case "empty":
            path.touch()


@pytest.mark.parametrize(
    "damage", ["cut short", "empty", "no HDF5", "no run in it", "a folder", "a pipe"]
)
def test_what_is_no_log_is_left_out_named_and_kept(exp: Path, damage: str) -> None:
    for i in (1, 2, 3):
        write_log(exp, f"seed_{i}", [float(i)])
    damaged(exp / "logs/log_seed_2.hdf5", damage)
    for added in (("seed_1", "seed_3"), ()):
        report = merge(exp)
        assert report.added == added
        (left,) = report.left_out
        assert (left.path, left.damaged) == (str(exp / "logs/log_seed_2.hdf5"), True)
        assert names(exp) == ["log.hdf5", "log_seed_2.hdf5"]


def test_a_run_that_hdf5_cannot_copy_exactly_is_left_out_and_kept(exp: Path) -> None:
    path = write_log(exp, "seed_1", [1.0])
    write_log(exp, "seed_2", [2.0])
    with h5py.File(path, "a") as file:
        reference = file["seed_1/stats/loss"].ref
        file["seed_1/stats"].create_dataset("ref", data=[reference], dtype=h5py.ref_dtype)
    report = merge(exp)
    assert (list(report.seeds), list(reasons(report))) == (["seed_2"], ["log_seed_1.hdf5"])
    assert names(exp) == ["log.hdf5", "log_seed_1.hdf5"]


def test_a_log_with_more_in_it_than_runs_is_merged_and_kept(exp: Path) -> None:
    path = write_log(exp, "seed_1", [1.0])
    with h5py.File(path, "a") as file:
        file["notes"] = [1, 2]
    for added in (("seed_1",), ()):
        report = merge(exp)
        assert report.added == added
        assert "not (notes)" in reasons(report)["log_seed_1.hdf5"]
    with h5py.File(path) as file:
        assert file["notes"][:].tolist() == [1, 2]


def test_a_merged_file_that_is_damaged_is_not_touched_and_no_log_goes(exp: Path) -> None:
    path = write_log(exp, "seed_1", [1.0])
    for content in (b"x", log_bytes("seed_9", ticks_of([1.0]))[:3000]):
        Path(target(exp)).write_bytes(content)
        with pytest.raises(LogDamaged, match="move it out of the folder") as caught:
            merge(exp)
        assert caught.value.path == target(exp)
        assert Path(target(exp)).read_bytes() == content
    assert losses(path) == {"seed_1": [1.0]}


def test_a_merged_file_of_configurations_is_not_mistaken_for_one_of_seeds(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    write_foreign(target(exp), {"config/seed_1": [1.0]})
    with pytest.raises(LogDamaged, match="whole configurations"):
        merge(exp)


def test_where_there_is_nothing_that_is_said(exp: Path) -> None:
    with pytest.raises(LogNotFound, match="nothing to merge"):
        merge(exp)
    (exp / "logs/log_seed_1.hdf5").write_bytes(b"x")
    with pytest.raises(LogDamaged) as caught:
        merge(exp)
    assert caught.value.path == str(exp / "logs/log_seed_1.hdf5")


def test_too_few_seeds_are_not_merged_and_who_goes_on_is_named(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    write_log(exp, "seed_2", [1.0], state="running")
    with pytest.raises(TooFewSeeds, match="1 of 2 seeds have ended, and not seed_2"):
        merge(exp, at_least=2)
    assert names(exp) == ["log_seed_1.hdf5", "log_seed_2.hdf5"]
    write_log(exp, "seed_2", [1.0])
    merge(exp, at_least=2)
    assert list(merge(exp, at_least=2).seeds) == ["seed_1", "seed_2"]


def test_nobody_waits_for_a_seed_whose_file_is_damaged(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    (exp / "logs/log_seed_2.hdf5").write_bytes(b"x")
    report = merge(exp, at_least=2)
    assert (report.added, list(reasons(report))) == (("seed_1",), ["log_seed_2.hdf5"])


def test_different_configurations_are_refused_or_told(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    write_log(exp, "seed_2", [1.0], config_text="{'lr': 0.2, 'seed': 3}")
    with pytest.raises(MergeRefused, match=r"lr: 0\.1 / 0\.2"):
        merge(exp)
    assert names(exp) == ["log_seed_1.hdf5", "log_seed_2.hdf5"]
    assert "lr: 0.1 / 0.2" in merge(exp, mixed=True).mixed


# --- links ----------------------------------------------------------------------------------------
def test_a_linked_log_is_merged_and_only_the_link_goes(exp: Path, tmp_path: Path) -> None:
    real = write_log(tmp_path / "archive", "seed_1", [1.0])
    (exp / "logs/log_seed_1.hdf5").symlink_to(real)
    (exp / "logs/log_seed_2.hdf5").symlink_to(tmp_path / "nowhere")
    report = merge(exp)
    assert losses(target(exp)) == losses(real) == {"seed_1": [1.0]}
    assert "link to nothing" in reasons(report)["log_seed_2.hdf5"]
    assert names(exp) == ["log.hdf5", "log_seed_2.hdf5"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_target_that_is_a_link_stays_one(exp: Path, tmp_path: Path, exists: bool) -> None:
    real = tmp_path / "real.hdf5"
    (exp / "logs/log.hdf5").symlink_to(real)
    if exists:
        write_foreign(real, {"seed_0": [0.0]})
    write_log(exp, "seed_1", [1.0])
    report = merge(exp)
    assert report.path == target(exp)
    assert os.readlink(target(exp)) == str(real)
    assert losses(real) == {"seed_0": [0.0], "seed_1": [1.0]} if exists else {"seed_1": [1.0]}


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_log_that_is_the_merged_file_by_another_name_may_go(exp: Path, link: str) -> None:
    write_log(exp, "seed_1", [1.0])
    merge(exp)
    getattr(exp / "logs/log_again.hdf5", link)(target(exp))
    merge(exp, sources=lambda: [str(exp / "logs/log_again.hdf5")])
    assert (names(exp), losses(target(exp))) == (["log.hdf5"], {"seed_1": [1.0]})


def test_a_target_may_be_a_relative_path(exp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(exp, "seed_1", [1.0])
    monkeypatch.chdir(exp)
    assert merge(exp, target="all").path == "all"
    assert losses(exp / "all") == {"seed_1": [1.0]}


def test_the_target_may_be_on_another_file_system(
    exp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(exp, "seed_1", [1.0])
    real = os.replace

    def replace(source: Any, path: Any) -> None:
        if os.path.dirname(source) != os.path.dirname(path):
            raise OSError(errno.EXDEV, "another file system")
        real(source, path)

    monkeypatch.setattr(os, "replace", replace)
    merge(exp)
    assert losses(target(exp)) == {"seed_1": [1.0]}
    assert (leftovers(exp), names(exp)) == ([], ["log.hdf5"])


# --- others at the same files ---------------------------------------------------------------------
def interfering(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, act: Any) -> None:
    """Have something done right before a function is called for the first time."""
    real, done = getattr(where, name), []

    def call(*arguments: Any, **more: Any) -> Any:
        if not done:
            done.append(True)
            act()
        return real(*arguments, **more)

    monkeypatch.setattr(where, name, call)


MOMENTS = [
    (h5access, "_open"),
    (merged_file, "plan_merge"),
    (merged_file, "write_file"),
    (log_compare, "differences"),
    (merged_file, "land"),
    (merged_file, "_remove_if_still"),
]


@pytest.mark.parametrize(("where", "name"), MOMENTS)
def test_a_log_that_takes_a_name_meanwhile_is_never_removed_for_what_was_there(
    exp: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    write_log(exp, "seed_1", [1.0])
    write_log(exp, "seed_2", [2.0])

    def publish() -> None:
        write_log(exp, "seed_1", [1.0, 5.0], state="running")

    interfering(monkeypatch, where, name, publish)
    merge(exp)
    assert losses(exp / "logs/log_seed_1.hdf5") == {"seed_1": [1.0, 5.0]}
    assert losses(target(exp))["seed_2"] == [2.0]
    write_log(exp, "seed_1", [1.0, 5.0, 6.0])
    merge(exp)
    assert losses(target(exp)) == {"seed_1": [1.0, 5.0, 6.0], "seed_2": [2.0]}


@pytest.mark.parametrize(("where", "name"), MOMENTS)
def test_logs_that_go_away_meanwhile_are_no_failure(
    exp: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    gone = write_log(exp, "seed_1", [1.0])
    write_log(exp, "seed_2", [2.0])
    interfering(monkeypatch, where, name, lambda: os.unlink(gone))
    merge(exp)
    assert losses(target(exp))["seed_2"] == [2.0]
    assert names(exp) == ["log.hdf5"]


@pytest.mark.parametrize(("where", "name"), MOMENTS[:4])
def test_a_run_that_goes_on_while_it_is_merged_is_merged_as_it_was_at_some_moment(
    exp: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    write_log(exp, "seed_1", [1.0], state="running")
    interfering(
        monkeypatch, where, name, lambda: write_log(exp, "seed_1", [1.0, 2.0], state="running")
    )
    merge(exp, running=True, at_least=0)
    assert losses(target(exp))["seed_1"] in ([1.0], [1.0, 2.0])
    assert losses(exp / "logs/log_seed_1.hdf5") == {"seed_1": [1.0, 2.0]}


def test_a_seed_that_comes_while_another_merge_is_waited_for_is_merged_too(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    reports: list[MergeReport] = []
    with files.locked(str(exp), timeout=0):
        thread = threading.Thread(target=lambda: reports.append(merge(exp)))
        thread.start()
        os.rename(exp / "logs/log_seed_1.hdf5", exp / "logs/all.hdf5")
        write_log(exp, "seed_2", [2.0])
    thread.join()
    assert reports[0].added == ("seed_1", "seed_2")


def test_two_merges_of_different_folders_into_one_file_lose_nothing(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for i in range(6):
        write_log(folders[i % 2], f"seed_{i}", [float(i)])
    where = str(tmp_path / "all.hdf5")
    failures: list[BaseException] = []

    def work(folder: Path) -> None:
        try:
            merge(folder, target=where, patience_s=30.0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert losses(where) == {f"seed_{i}": [float(i)] for i in range(6)}


def test_a_merge_that_cannot_begin_says_who_is_at_it(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    with (
        files.locked(str(exp), timeout=0),
        pytest.raises(MergeFailed, match="has had it locked") as caught,
    ):
        merge(exp, patience_s=0.05)
    assert caught.value.path == str(exp)
    assert names(exp) == ["log_seed_1.hdf5"]


# --- failures -------------------------------------------------------------------------------------
def refuse(code: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("name", ["open", "posix_fallocate", "pwrite", "fsync", "replace"])
def test_a_disk_that_fails_harms_no_log(exp: Path, name: str) -> None:
    write_log(exp, "seed_1", [1.0])
    merge(exp)
    write_log(exp, "seed_1", [2.0], run="again", start=5.0)
    before = everything(exp)
    real = getattr(os, name)
    with pytest.MonkeyPatch.context() as patch:
        if name == "open":  # to write
            fail = refuse(errno.EACCES)
            patch.setattr(os, name, lambda p, f, *m: fail() if f & os.O_CREAT else real(p, f, *m))
        else:
            patch.setattr(os, name, refuse(errno.ENOSPC))
        with pytest.raises(MergeFailed):
            merge(exp)
    assert everything(exp) == before
    assert leftovers(exp) == []
    merge(exp)
    assert losses(target(exp)) == {"seed_1": [2.0]}


def test_a_log_that_cannot_be_removed_is_named_and_nothing_is_lost(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", refuse(errno.EACCES))
        report = merge(exp)
    assert "cannot be removed (Permission denied)" in reasons(report)["log_seed_1.hdf5"]
    assert losses(target(exp)) == {"seed_1": [1.0]}
    assert merge(exp).removed == (str(exp / "logs/log_seed_1.hdf5"),)


def test_a_log_is_removed_only_if_the_merged_file_has_its_values(exp: Path) -> None:
    # The merged file says that it has this run, but was changed since.
    path = write_log(exp, "seed_1", [1.0, 2.0])
    merge(exp, delete=False)
    with h5py.File(target(exp), "a") as file:
        file["seed_1/stats/loss"][1] = 9.0
    report = merge(exp)
    assert "lacks; load both" in reasons(report)["log_seed_1.hdf5"]
    assert losses(path) == {"seed_1": [1.0, 2.0]}


def test_a_log_whose_writer_comes_first_is_not_removed(
    exp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged_file, "_REMOVE_TIMEOUT_S", 0.05)
    write_log(exp, "seed_1", [1.0])
    with files.locked(str(exp / "logs"), timeout=0):
        report = merge(exp)
    assert "cannot be removed" in reasons(report)["log_seed_1.hdf5"]


def test_nothing_stays_open_whatever_happens(exp: Path) -> None:
    before = open_files()
    write_log(exp, "seed_1", [1.0])
    write_log(exp, "seed_2", [2.0], config_text="{'lr': 1}")
    (exp / "logs/log_seed_3.hdf5").write_bytes(b"x")
    with pytest.raises(MergeRefused):
        merge(exp)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", refuse(errno.EIO))
        with pytest.raises(MergeFailed):
            merge(exp, mixed=True)
    merge(exp, mixed=True)
    assert open_files() == before


# --- how much it takes ----------------------------------------------------------------------------
def test_many_seeds_are_merged_without_holding_them(exp: Path) -> None:
    content = log_bytes("seed_x", ticks_of(np.arange(2_000.0)), sealed=False)
    for i in range(60):
        path = exp / f"logs/log_seed_{i}.hdf5"
        path.write_bytes(content)
        with h5py.File(path, "a") as file:
            file.move("seed_x", f"seed_{i}")
    told: list[tuple[int, int]] = []
    report = merge(exp, progress=lambda *said: told.append(said))
    assert (len(report.added), len(told), names(exp)) == (60, 60, ["log.hdf5"])
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    assert os.path.getsize(target(exp)) < 60 * len(content)


def test_a_report_has_the_path_that_was_given(exp: Path) -> None:
    write_log(exp, "seed_1", [1.0])
    given = replace(job(exp), target=f"{exp}/./logs/log.hdf5")
    assert merged_file.merge(given).path == f"{exp}/./logs/log.hdf5"
