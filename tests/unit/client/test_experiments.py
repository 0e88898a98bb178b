"""Which folders are experiments, and which files their logs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mle_client import experiments
from mle_client.experiments import (
    Behind,
    behind,
    configurations_in,
    find_groups,
    log_files,
    seed_log_files,
)


def make(folder: Path, *names: str) -> Path:
    """Make empty logs of an experiment."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for name in names or ("log.hdf5",):
        (folder / "logs" / name).touch()
    return folder


def names_of(paths: list[str]) -> list[str]:
    return [os.path.basename(path) for path in paths]


def found_in(root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in find_groups(str(root))]


# --- files ----------------------------------------------------------------------------------------
def test_what_is_taken_for_a_log(tmp_path: Path) -> None:
    exp = make(
        tmp_path / "exp", "log_seed_10.hdf5", "log_seed_2.hdf5", "x.h5", "y.hdf", ".hidden.hdf5",
        "log.txt", "log_1.h5", "meta_log.hdf5", "log_.hdf5",
    )  # fmt: skip
    found = names_of(log_files(str(exp)))
    assert found == [
        "log_1.h5", "log_.hdf5", "log_seed_2.hdf5", "log_seed_10.hdf5", "x.h5", "y.hdf",
    ]  # fmt: skip
    assert names_of(seed_log_files(str(exp))) == found[2:4]
    (exp / "link").symlink_to(exp / "logs")
    without = log_files(str(exp), other_than=f"{exp}/link/x.h5")
    assert names_of(without) == [n for n in found if n != "x.h5"]
    assert log_files(str(exp / "nowhere")) == []


# --- folders --------------------------------------------------------------------------------------
def test_experiments_are_found_at_any_depth_in_natural_order_and_not_in_hidden_folders(
    tmp_path: Path,
) -> None:
    for folder in ("b10", "b9", "b9/inner", ".mle/replaced/x", ".hidden", "deep/er"):
        make(tmp_path / folder)
    (tmp_path / "empty" / "logs").mkdir(parents=True)
    assert found_in(tmp_path) == ["b9", "b9/inner", "b10", "deep/er"]
    assert list(configurations_in(str(tmp_path))) == ["b9", "b10"]
    assert find_groups(str(tmp_path / ".hidden")) == [str(tmp_path / ".hidden")]


NAMES = ["models", "extra", "figures", "wandb", "tboards", "logs"]


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_may_be_called_as_a_folder_of_an_experiment_is(
    tmp_path: Path, name: str
) -> None:
    make(tmp_path / name)
    make(tmp_path / name / "a")
    make(tmp_path / "b")
    assert found_in(tmp_path) == sorted(["b", name, f"{name}/a"])
    assert sorted(configurations_in(str(tmp_path))) == sorted(["b", name])


@pytest.mark.parametrize("name", NAMES)
def test_experiments_may_lie_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    make(tmp_path / name / "lr_1")
    (tmp_path / name / "meta_log.hdf5").touch()
    assert found_in(tmp_path) == [f"{name}/lr_1"]
    assert log_files(str(tmp_path)) == []


@pytest.mark.parametrize("name", NAMES)
def test_below_what_an_experiment_stores_no_others_are_looked_for(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a")
    make(tmp_path / "a" / name / "x")
    looked_into: list[str] = []
    walk = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked_into.append(path) or walk(path))
    assert found_in(tmp_path) == ["a"]
    assert str(tmp_path / "a") in looked_into
    assert str(tmp_path / "a" / name) not in looked_into


def test_an_experiment_right_inside_another_is_one_whatever_its_name(tmp_path: Path) -> None:
    make(tmp_path)  # as that of the README, with experiment_dir="exp/models/"
    make(tmp_path / "models")
    assert found_in(tmp_path) == [".", "models"]


def test_a_name_is_the_same_text_whatever_the_locale(tmp_path: Path) -> None:
    make(tmp_path / "ü")
    assert list(configurations_in(str(tmp_path))) == ["ü"]
    assert experiments.as_text("\udcc3\udcbc") == experiments.as_text("ü") == "ü"
    assert experiments.as_text("\udcff") == "\udcff"


# --- behind ---------------------------------------------------------------------------------------
def test_a_meta_log_is_behind_what_is_not_in_it_or_has_changed_since(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make(tmp_path / name, "log.hdf5", "log_seed_1.hdf5")
    meta = tmp_path / "meta_log.hdf5"
    meta.touch()
    now = os.stat(meta).st_mtime_ns
    os.utime(tmp_path / "a/logs/log_seed_1.hdf5", ns=(now + 1, now + 1))
    os.utime(tmp_path / "c/logs/log_seed_1.hdf5", ns=(now + 1, now + 1))
    (tmp_path / "b/logs/gone.hdf5").symlink_to(tmp_path / "nowhere")
    assert behind(str(meta), ["a", "b", "deep/d"]) == Behind(("c",), ("a",))
    os.utime(meta, ns=(now + 1, now + 1))
    assert not behind(str(meta), ["a", "b", "c"])
