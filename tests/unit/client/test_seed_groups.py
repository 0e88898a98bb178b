"""What log files hold: every run is found, whoever wrote it, and nothing else is taken for one."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from mle_client import files, layout, seed_groups
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.seed_groups import describe, merged_log_of
from tests.seed_logs import START, log_bytes, run_id, ticks_of, write_foreign, write_log


def members(path: str) -> dict[str, seed_groups.Member]:
    return {each.group: each for each in describe(path).members}


# --- whose it is ----------------------------------------------------------------------------------
@pytest.mark.parametrize("state", ["running", "finished", "crashed"])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_log_of_ours_says_all_of_itself(tmp_path: Path, state: str, sealed: bool) -> None:
    path = write_log(
        tmp_path, "größe 1%", [1.0, 2.0], run="r", start=3.0, state=state, sealed=sealed,
        overwrite=True, kept='{"figures": []}', config_text="{'lr': 'nan', 'n': [1]}",
        config_json='{"lr": NaN, "n": [1]}',
    )  # fmt: skip
    found = describe(path)
    (member,) = found.members
    assert (member.path, member.seed, member.group) == (path, "größe 1%", "größe 1%")
    assert (member.rows, member.run, member.state) == (2, run_id("r").hex(), state)
    assert (member.start, member.overwrites, member.kept) == (START + 3, True, '{"figures": []}')
    assert np.isnan(member.config["lr"])
    assert member.config["n"] == [1]
    assert not member.in_target
    assert found.stamp == files.Stamp.of(os.stat(path))
    assert found.others == ()


def test_a_log_of_mle_logging_says_less(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "log.hdf5", {"seed_1": [1.0, 2.0], "seed_2": []})
    found = members(path)
    assert {seed: each.rows for seed, each in found.items()} == {"seed_1": 2, "seed_2": 0}
    one = found["seed_1"]
    assert (one.run, one.state, one.start, one.overwrites, one.kept) == ("", None, None, False, "")
    assert one.config == {"lr": 0.1}


def test_a_run_without_clocks_and_meta_data_is_one(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["seed_1/stats/loss"] = [1.0]
    (found,) = describe(str(tmp_path / "x.hdf5")).members
    assert (found.rows, found.config) == (0, None)


@pytest.mark.parametrize("foreign", [False, True])
def test_seeds_may_be_named_as_the_groups_inside_of_runs_are(tmp_path: Path, foreign: bool) -> None:
    for seed in layout.GROUPS:
        path = tmp_path / f"logs/log_{seed}.hdf5"
        if foreign:
            write_foreign(path, {seed: [1.0]})
        else:
            write_log(tmp_path, seed, [1.0])
        assert list(members(str(path))) == [seed]
    path = tmp_path / "all.hdf5"
    write_foreign(path, {seed: [1.0] for seed in layout.GROUPS})
    assert list(members(str(path))) == sorted(layout.GROUPS)
    write_foreign(path, {f"config/{seed}": [1.0] for seed in layout.GROUPS})
    assert list(members(str(path))) == [f"config/{seed}" for seed in sorted(layout.GROUPS)]


def test_configurations_may_lie_as_deep_as_they_like(tmp_path: Path) -> None:
    runs = {"a/seed_1": [1.0], "b/c/d/seed_1": [2.0], "b/c/seed_2": [3.0]}
    found = members(write_foreign(tmp_path / "meta_log.hdf5", runs))
    assert {(each.config_id, each.seed) for each in found.values()} == {
        ("a", "seed_1"),
        ("b/c/d", "seed_1"),
        ("b/c", "seed_2"),
    }


def test_what_is_in_no_run_is_told_and_links_are_not_followed(tmp_path: Path) -> None:
    path = write_log(tmp_path, "seed_1", [1.0])
    with h5py.File(path, "a") as file:
        file["notes"] = [1, 2]
        file.create_group("empty")
        file["deep/down/notes"] = [1]
        file["type"] = np.dtype("f4")
        file["soft"] = h5py.SoftLink("/seed_1")
        file["broken"] = h5py.SoftLink("/nowhere")
        file.attrs["author"] = "me"
    found = describe(path)
    assert [each.seed for each in found.members] == ["seed_1"]
    assert sorted(found.others) == sorted(
        ["attributes of the file", "notes", "empty", "deep/down/notes", "type", "soft", "broken"]
    )


# --- what is none ---------------------------------------------------------------------------------
def test_an_hdf5_file_without_a_run_is_damaged_and_one_of_a_newer_release_is_left_alone(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "x.hdf5")
    with h5py.File(path, "w") as file:
        file["numbers"] = [1]
    with pytest.raises(LogDamaged, match="without a run in it"):
        describe(path)
    path = write_log(tmp_path, "seed_1", [1.0])
    with h5py.File(path, "a") as file:
        file["seed_1"].attrs[layout.FORMAT_ATTR] = layout.FILE_FORMAT + 1
    with pytest.raises(LogDamaged, match="newer release: install that"):
        describe(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_log_that_was_cut_short_is_damaged(tmp_path: Path, share: float) -> None:
    content = log_bytes("seed_1", ticks_of([1.0] * 100))
    path = tmp_path / "x.hdf5"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(LogDamaged) as caught:
        describe(str(path))
    assert caught.value.path == str(path)


# --- where a merged seed is -----------------------------------------------------------------------
@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder with a merged log where the daemon merges to, and one elsewhere."""
    write_foreign(tmp_path / "logs/log.hdf5", {"seed_1": [1.0], "seed_2": [1.0]})
    write_foreign(tmp_path / "logs/all.hdf5", {"seed_2": [1.0, 2.0], "seed_3": [1.0]})
    write_foreign(tmp_path / "logs/meta.hdf5", {"config/seed_4": [1.0]})
    (tmp_path / "logs/damaged.hdf5").write_bytes(b"x")
    return tmp_path / "logs"


@pytest.mark.parametrize(
    ("seed", "here", "anywhere"),
    [
        ("seed_1", "log.hdf5", "log.hdf5"),
        ("seed_2", "log.hdf5", "all.hdf5"),
        ("seed_3", None, "all.hdf5"),
        ("seed_4", None, None),
    ],
)
def test_a_merged_seed_is_found(
    logs: Path, seed: str, here: str | None, anywhere: str | None
) -> None:
    own = str(logs / f"log_{seed}.hdf5")
    for found, name in (
        (merged_log_of(own, seed, anywhere=False), here),
        (merged_log_of(own, seed, anywhere=True), anywhere),
    ):
        assert (found and found.path) == (name and str(logs / name))


def test_a_merged_file_that_cannot_be_opened_stands_in_the_way_of_none_but_those_that_continue(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, **_: object) -> None:
        raise PermissionError(13, "no", path)

    monkeypatch.setattr(seed_groups, "describe", refuse)
    own = str(logs / "log_seed_1.hdf5")
    assert merged_log_of(own, "seed_1", anywhere=False) is None
    with pytest.raises(PermissionError):
        merged_log_of(own, "seed_1", anywhere=True)


def test_where_there_is_no_folder_no_seed_is_merged(tmp_path: Path) -> None:
    assert merged_log_of(str(tmp_path / "logs/log_a.hdf5"), "a", anywhere=True) is None
    with pytest.raises(LogNotFound):
        describe(str(tmp_path / "logs/log_a.hdf5"))
