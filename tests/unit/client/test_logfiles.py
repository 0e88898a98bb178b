"""A seed's log is found wherever it went."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from mle_client import layout, logfiles
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.logfiles import read_seed
from mle_client.reader import read_runs


def write(path: Path, runs: dict[str, list[float]], start_time: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for run, loss in runs.items():
            file[f"{run}/stats/loss"] = np.array(loss)
            file[f"{run}/time/num_updates"] = np.arange(1, len(loss) + 1)
            if start_time is not None:
                file[run].attrs[layout.START_ATTR] = start_time
    return path


def losses(path: str) -> list[float]:
    found: list[float] = read_runs(path)[None, "seed_1"].stats.loss.tolist()
    return found


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Where the log of seed 1 is before it is merged."""
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs/log_seed_1.hdf5"


def found(own: Path) -> list[float]:
    return read_seed(str(own), "seed_1", losses)


def test_a_seed_is_in_its_own_file_as_long_as_there_is_one(own: Path) -> None:
    write(own, {"seed_1": [1.0]})
    write(own.with_name("log.hdf5"), {"seed_1": [2.0, 2.0]}, start_time=5.0)
    assert found(own) == [1.0]


@pytest.mark.parametrize("merged", ["log.hdf5", "all.hdf5", "log_seed_2.hdf5"])
def test_a_seed_without_a_file_is_in_that_which_it_was_merged_into(own: Path, merged: str) -> None:
    write(own.with_name(merged), {"seed_1": [2.0], "seed_2": [3.0]})
    write(own.with_name("zzz.hdf5"), {"seed_3": [4.0]})
    assert found(own) == [2.0]


def test_of_several_files_with_a_seed_that_with_its_newest_run_is_taken(own: Path) -> None:
    write(own.with_name("a.hdf5"), {"seed_1": [1.0]}, start_time=10.0)
    write(own.with_name("b.hdf5"), {"seed_1": [2.0]}, start_time=30.0)
    write(own.with_name("c.hdf5"), {"seed_1": [3.0] * 9}, start_time=20.0)
    assert found(own) == [2.0]


def test_a_seed_that_was_merged_while_its_file_was_looked_for_is_found(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merged file is replaced, which removes its name for nobody, and then by another."""
    write(own.with_name("log.hdf5"), {"seed_1": [1.0]})
    file_with, calls = logfiles._file_with, []

    def find(seed_id: str, path: str) -> str | None:
        where = file_with(seed_id, path)
        if not calls:
            os.rename(own.with_name("log.hdf5"), own.with_name("other.hdf5"))
        calls.append(where)
        return where

    monkeypatch.setattr(logfiles, "_file_with", find)
    assert found(own) == [1.0]
    assert len(calls) == 2


def test_a_file_that_comes_back_is_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run of the seed began just after its file had been looked for."""

    def come_back(_seed: str, _path: str) -> None:
        write(own, {"seed_1": [1.0]})

    monkeypatch.setattr(logfiles, "_file_with", come_back)
    assert found(own) == [1.0]


def test_a_seed_that_is_nowhere_is_not_found(own: Path) -> None:
    write(own.with_name("log.hdf5"), {"seed_2": [1.0]})
    with pytest.raises(LogNotFound, match="no other log of its folder has the seed") as caught:
        found(own)
    assert caught.value.path == str(own)
    with pytest.raises(LogNotFound):
        found(own.parent / "nowhere" / own.name)


def test_a_seed_may_be_in_a_damaged_file(own: Path) -> None:
    own.with_name("log.hdf5").write_bytes(b"torn")
    with pytest.raises(LogDamaged, match=r"log\.hdf5: "):
        found(own)
    write(own.with_name("other.hdf5"), {"seed_1": [1.0]})
    assert found(own) == [1.0]


def test_a_seed_that_goes_whenever_it_is_read_is_given_up(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logfiles, "_file_with", lambda *_: str(own.with_name("gone.hdf5")))
    with pytest.raises(LogNotFound, match="vanished while being read, 10 times"):
        found(own)


@pytest.mark.parametrize(
    ("path", "seed"),
    [
        ("exp/logs/log_seed_1.hdf5", "seed_1"),
        ("log_no_seed_provided.hdf5", "no_seed_provided"),
        ("log_a.b.hdf5", "a.b"),
        ("exp/logs/log.hdf5", None),
        ("log_.hdf5", None),
        ("log_seed_1", None),
        ("meta_log.hdf5", None),
    ],
)
def test_the_name_of_a_log_says_whose_it_is(path: str, seed: str | None) -> None:
    assert layout.seed_of_log(path) == seed
    if seed is not None:
        assert layout.seed_of_log(layout.log_path("exp", seed)) == seed
