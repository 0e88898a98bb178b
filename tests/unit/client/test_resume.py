"""What a run begins with that continues another one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mle_client import control, discovery, layout, resume
from mle_client.errors import DaemonStartFailed, LogDamaged, LogNotFound
from mle_client.kept import Kept, kept_to_json
from mle_client.reader import read_kept
from mle_client.resume import Resumed
from mle_client.retention import Policy, Portfolio, Saved

POLICY = Policy(every_k=1, top_k=1, top_k_metric="loss")
KEPT = Kept(
    Portfolio(3, True, (Saved(3, 9, {"loss": 0.5}, {}),), (Saved(2, 8, {"loss": 0.1}, {}),)),
    figures=("figures/fig_1_seed_1.png", "figures/own.png"),
    extras=("extra/own.pkl",),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An experiment's folder with a log of ours in it."""
    folder = tmp_path / "exp"
    (folder / "logs").mkdir(parents=True)
    write(folder, KEPT)
    return folder


def write(folder: Path, kept: Kept | str, seed_id: str = "seed_1", **attributes: Any) -> None:
    """A log as ours are."""
    text = kept if isinstance(kept, str) else kept_to_json(kept)
    with h5py.File(folder / "logs" / f"log_{seed_id}.hdf5", "w", track_order=True) as file:
        seed = file.create_group(seed_id)
        for name, values in {
            "time/time": np.array([b"25-01-01/00:00"] * 3),
            "time/time_elapsed": [0.5, 1.5, 2.5],
            "time/num_updates": [1, 2, 3],
            "time/num_epochs": [7, 8, 9],
            "time/num_steps": [70, 80, 90],
            "stats/loss": [3.0, 2.0, 1.0],
            "stats/train%2Facc": [1.0],
            "meta/stats_rows:train%2Facc": [2],
            "meta/experiment_dir": np.array([b"exp/"]),
        }.items():
            seed[name] = values
        seed["meta"][layout.KEPT_NAME] = np.array([text.encode() + b"   "])
        seed.attrs[layout.FORMAT_ATTR] = 1
        for name, value in attributes.items():
            seed.attrs[name] = value


def resumed(folder: Path, seed_id: str = "seed_1", policy: Policy = POLICY) -> Resumed | None:
    return resume.resume(str(folder), str(folder.parent), seed_id, policy)


# --- what is found --------------------------------------------------------------------------------
def test_a_log_says_where_a_run_goes_on(folder: Path) -> None:
    found = resumed(folder)
    assert found is not None
    assert (found.rows, found.elapsed, found.kept) == (3, 2.5, KEPT)
    assert set(found.clocks) == {"num_epochs", "num_steps"}
    assert set(found.stats) == {"loss", "train/acc"}


def test_nothing_kept_is_nothing_kept(folder: Path) -> None:
    write(folder, Kept())
    found = resumed(folder)
    assert found is not None
    assert found.kept == Kept()


def test_a_log_without_a_tick_begins_at_zero(folder: Path) -> None:
    with h5py.File(folder / "logs" / "log_seed_2.hdf5", "w") as file:
        file.create_group("seed_2/meta")["experiment_dir"] = [b"exp/"]
    assert resumed(folder, "seed_2") == Resumed()


def test_what_a_kill_left_of_a_clock_is_no_time(folder: Path) -> None:
    with h5py.File(folder / "logs" / "log_seed_1.hdf5", "r+") as file:
        file["seed_1/time/time_elapsed"][1:] = np.nan
    found = resumed(folder)
    assert found is not None
    assert found.elapsed == 0.5


def test_where_nothing_was_logged_nothing_is_continued(folder: Path) -> None:
    assert resumed(folder, "seed_2") is None
    assert resumed(folder, "seed_10") is None


def test_without_the_folder_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound, match="no such folder"):
        resumed(tmp_path / "typo")
    (tmp_path / "file").write_text("")
    with pytest.raises(LogNotFound, match="no such folder"):
        resumed(tmp_path / "file")


def test_a_file_of_another_seed_is_not_continued(folder: Path) -> None:
    os.rename(folder / "logs" / "log_seed_1.hdf5", folder / "logs" / "log_seed_2.hdf5")
    with pytest.raises(LogNotFound, match="holds no run named 'seed_2'"):
        resumed(folder, "seed_2")


@pytest.mark.parametrize("kept", ["{", "[]", '{"portfolio": {}}'])
def test_a_log_that_does_not_say_what_is_kept_is_damaged(folder: Path, kept: str) -> None:
    write(folder, kept)
    with pytest.raises(LogDamaged, match="what it says of checkpoints cannot be read"):
        resumed(folder)


def test_a_damaged_log_is_not_taken_for_none(folder: Path) -> None:
    os.truncate(folder / "logs" / "log_seed_1.hdf5", 1000)
    with pytest.raises(LogDamaged):
        resumed(folder)


def merge(folder: Path) -> None:
    """As when seeds are merged: the merged log is there before the others go."""
    logs = sorted((folder / "logs").iterdir())
    with h5py.File(folder / "logs" / "log.hdf5", "w") as merged:
        for path in logs:
            with h5py.File(path) as file:
                for seed in file:
                    file.copy(seed, merged)
    for path in logs:
        path.unlink()


def test_a_log_that_was_merged_with_others_says_the_same(folder: Path) -> None:
    write(folder, Kept(), "seed_2")
    before = [resumed(folder), resumed(folder, "seed_2")]
    merge(folder)
    assert [resumed(folder), resumed(folder, "seed_2")] == before
    assert before[0] is not None
    assert (before[0].rows, before[0].kept) == (3, KEPT)
    assert resumed(folder, "seed_3") is None


def test_a_log_is_not_read_as_a_whole(folder: Path) -> None:
    path = folder / "logs" / "log_seed_1.hdf5"
    with h5py.File(path, "r+") as file:
        dataset = file.create_dataset(
            "seed_1/stats/torn", data=np.zeros(100_000), chunks=(100_000,), compression="gzip"
        )
        chunk = dataset.id.get_chunk_info(0)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\1" * chunk.size)
    found = resumed(folder)
    assert found is not None
    assert "torn" in found.stats


# --- files in the folder --------------------------------------------------------------------------
def test_figures_and_objects_that_only_the_folder_tells_of_count(folder: Path) -> None:
    """Those of a trainer whose log was not published any more."""
    for name in (
        "figures/fig_1_seed_1.png", "figures/fig_10_seed_1.png", "figures/fig_9_seed_1.png",
        "figures/fig_99_seed_10.png", "figures/other.png", "extra/extra_4_seed_1.pkl",
        "extra/extra_5_seed_1.png",
    ):  # fmt: skip
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    found = resumed(folder)
    assert found is not None
    assert found.kept.figures == (
        *KEPT.figures, "figures/fig_9_seed_1.png", "figures/fig_10_seed_1.png",
    )  # fmt: skip
    assert found.kept.extras == (*KEPT.extras, "extra/extra_4_seed_1.pkl")
    assert found.kept.portfolio == KEPT.portfolio


# --- the daemon -----------------------------------------------------------------------------------
def test_the_log_is_brought_up_to_date_before_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def publish(path: str, timeout: float) -> None:
        asked.append(path)
        write(folder, KEPT.with_file("extra", "extra/late.pkl"))

    monkeypatch.setattr(control, "publish_before_reading", publish)
    found = resumed(folder)
    assert found is not None
    assert found.kept.extras[-1] == "extra/late.pkl"
    assert asked == [str(folder)]


@pytest.fixture
def daemons(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Say what there is: (something is left, a daemon lives, it can be started)."""

    def make(left: bool, lives: bool, starts: bool = True) -> list[str]:
        started: list[str] = []

        def start_again(root: str) -> None:
            started.append(root)
            if not starts:
                raise DaemonStartFailed(root, "no python")

        monkeypatch.setattr(discovery, "has_leftovers", lambda root: left)
        monkeypatch.setattr(resume, "live_daemon", lambda root: object() if lives else None)
        monkeypatch.setattr(discovery, "start_again", start_again)
        return started

    return make


@pytest.mark.parametrize(
    ("left", "lives", "is_started"),
    [(True, False, True), (True, True, False), (False, False, False), (False, True, False)],
)
def test_what_was_left_in_memory_has_a_daemon_started(
    folder: Path, daemons: Callable[..., list[str]], left: bool, lives: bool, is_started: bool
) -> None:
    started = daemons(left, lives)
    assert resumed(folder) is not None
    assert started == ([str(folder.parent)] if is_started else [])


def test_what_cannot_be_brought_back_is_said(
    folder: Path, daemons: Callable[..., list[str]]
) -> None:
    daemons(True, False, starts=False)
    with pytest.warns(RuntimeWarning, match="may be missing from what this one continues"):
        assert resumed(folder) is not None


def test_with_a_daemon_nothing_is_warned_of(
    folder: Path, daemons: Callable[..., list[str]]
) -> None:
    daemons(False, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed(folder)


# --- the reader's part ----------------------------------------------------------------------------
def test_what_is_kept_is_read_without_its_padding(folder: Path) -> None:
    path = str(folder / "logs" / "log_seed_1.hdf5")
    assert read_kept(path, "seed_1") == kept_to_json(KEPT)

    with h5py.File(path, "r+") as file:
        del file["seed_1/meta"][layout.KEPT_NAME]
    assert read_kept(path, "seed_1") == ""
    with pytest.raises(LogDamaged):
        read_kept(path, "seed_2")
    os.truncate(path, 100)
    with pytest.raises(LogDamaged):
        read_kept(path, "seed_1")
