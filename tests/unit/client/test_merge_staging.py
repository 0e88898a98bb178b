"""Unfinished merged files: whole or gone, and nobody removes another's."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import h5py
import pytest

from mle_client import group_copies, log_compare, merge_staging
from mle_client.errors import LogNotFound, MergeFailed
from mle_client.group_copies import Copy
from mle_client.merge_plan import LeftOut
from mle_client.merge_staging import clean, root_above, scratch_folder, write_file
from tests.seed_logs import leftovers, log_bytes, losses, ticks_of


def sources(folder: Path, count: int = 2) -> list[Copy]:
    """Logs of seeds to copy."""
    copies = []
    for i in range(count):
        path = folder / f"log_{i}.hdf5"
        path.write_bytes(log_bytes(f"s{i}", ticks_of([float(i)])))
        copies.append(Copy(str(path), f"s{i}", f"s{i}"))
    return copies


# --- writing --------------------------------------------------------------------------------------
def test_a_file_is_written_under_a_name_of_our_own_and_progress_is_told(tmp_path: Path) -> None:
    copies = sources(tmp_path)
    told: list[tuple[int, int]] = []
    path = write_file(str(tmp_path), copies, {}, progress=lambda *said: told.append(said))
    assert path is not None
    assert leftovers(tmp_path) == [os.path.basename(path)]
    assert losses(path) == {"s0": [0.0], "s1": [1.0]}
    sizes = [os.path.getsize(copy.source) for copy in copies]
    assert told == [(sizes[0], sum(sizes)), (sum(sizes), sum(sizes))]


def test_a_file_goes_on_from_another_one(tmp_path: Path) -> None:
    copies = sources(tmp_path)
    base = write_file(str(tmp_path), copies[:1], {})
    assert base is not None
    kept = [Copy(base, "s0", "s0")]
    path = write_file(str(tmp_path), copies[1:], {}, base=base, base_copies=kept)
    assert path is not None
    assert losses(path) == {"s0": [0.0], "s1": [1.0]}


def test_sources_that_cannot_be_copied_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    copies = sources(tmp_path, 3)
    Path(copies[1].source).write_bytes(b"x")
    unreadable: dict[str, LeftOut] = {}
    assert write_file(str(tmp_path), copies, unreadable) is None
    assert list(unreadable) == [copies[1].source]
    assert unreadable[copies[1].source].damaged
    assert leftovers(tmp_path) == []


def test_a_source_whose_copy_is_not_what_it_is_is_named(tmp_path: Path) -> None:
    copies = sources(tmp_path)
    with h5py.File(copies[0].source, "a") as file:  # HDF5 copies no references between files
        reference = file["s0/stats/loss"].ref
        file["s0/stats"].create_dataset("ref", data=[reference], dtype=h5py.ref_dtype)
    unreadable: dict[str, LeftOut] = {}
    assert write_file(str(tmp_path), copies, unreadable) is None
    (left,) = unreadable.values()
    assert "s0/stats/ref" in left.why
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("where", ["stats/loss", "meta/config_dict"])
def test_what_the_disk_garbled_is_noticed_and_never_takes_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    copies = sources(tmp_path)
    base = write_file(str(tmp_path), copies[:1], {})
    assert base is not None
    real = group_copies.write_copies

    def garble(path: str, *arguments: Any, **more: Any) -> Any:
        failed = real(path, *arguments, **more)
        with h5py.File(path) as file:
            offset = file[f"s0/{where}"].id.get_offset()
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(b"\x7f")
        return failed

    monkeypatch.setattr(group_copies, "write_copies", garble)
    kept = [Copy(base, "s0", "s0")]
    with pytest.raises(MergeFailed, match=rf"s0/{where}.*check the disk"):
        write_file(str(tmp_path), copies[1:], {}, base=base, base_copies=kept)
    unreadable: dict[str, LeftOut] = {}
    assert write_file(str(tmp_path), copies, unreadable) is None
    assert list(unreadable) == [copies[0].source]
    assert leftovers(tmp_path) == [os.path.basename(base)]


def test_a_file_that_does_not_read_back_at_all_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = group_copies.write_copies

    def garble(path: str, fd: int, *arguments: Any, **more: Any) -> Any:
        failed = real(path, fd, *arguments, **more)
        os.pwrite(fd, b"x" * 100, 0)
        return failed

    monkeypatch.setattr(group_copies, "write_copies", garble)
    with pytest.raises(MergeFailed, match="does not read back"):
        write_file(str(tmp_path), sources(tmp_path), {})
    assert leftovers(tmp_path) == []


def test_nothing_is_left_where_a_source_goes_away_or_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = sources(tmp_path)

    def gone(*_: Any) -> None:
        raise LogNotFound(copies[0].source, "gone")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    for name, fail, error in ((log_compare, gone, LogNotFound), (os, full, OSError)):
        with monkeypatch.context() as patch:
            patch.setattr(name, "differences" if fail is gone else "fsync", fail)
            with pytest.raises(error):
                write_file(str(tmp_path), copies, {})
        assert leftovers(tmp_path) == []


# --- places ---------------------------------------------------------------------------------------
def test_unfinished_files_lie_beside_the_target_but_never_among_logs(tmp_path: Path) -> None:
    logs = tmp_path / "exp" / "logs"
    logs.mkdir(parents=True)
    (tmp_path / "elsewhere").symlink_to(logs)
    assert scratch_folder(str(logs / "log.hdf5")) == str(tmp_path / "exp")
    assert scratch_folder(str(tmp_path / "elsewhere" / "log.hdf5")) == str(tmp_path / "exp")
    assert scratch_folder(str(tmp_path / "all.hdf5")) == str(tmp_path)


def test_they_lie_on_the_file_system_of_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    real = os.stat

    def stat(path: Any, *arguments: Any, **more: Any) -> os.stat_result:
        found = list(real(path, *arguments, **more))
        if path == str(logs):
            found[2] += 1  # st_dev, as if something were mounted there
        return os.stat_result(found)

    monkeypatch.setattr(os, "stat", stat)
    assert scratch_folder(str(logs / "log.hdf5")) == str(logs)


def test_the_root_is_the_nearest_folder_with_ours_in_it(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / ".mle").mkdir()
    (tmp_path / "link").symlink_to(inner)
    assert root_above(str(inner)) == root_above(str(tmp_path / "link")) == str(tmp_path)
    (tmp_path / ".mle").rmdir()
    assert root_above(str(inner)) == str(inner)


# --- cleaning -------------------------------------------------------------------------------------
def test_only_what_a_merge_left_is_removed(tmp_path: Path) -> None:
    keep = ["log.hdf5", ".mle", ".mle-other-1.tmp", "merge-1.tmp", ".mle-merge-1.hdf5"]
    for name in (*keep, ".mle-merge-1.tmp", ".mle-merge-2.tmp.copy"):
        (tmp_path / name).touch()
    clean(str(tmp_path), alone=True)
    assert sorted(os.listdir(tmp_path)) == sorted(keep)


def test_where_others_cannot_be_kept_out_only_what_is_forgotten_is_removed(tmp_path: Path) -> None:
    for name, age in ((".mle-merge-old.tmp", 7200), (".mle-merge-new.tmp", 60)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    clean(str(tmp_path), alone=False)
    assert os.listdir(tmp_path) == [".mle-merge-new.tmp"]


def test_another_merge_may_clean_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "listdir", lambda folder: [".mle-merge-gone.tmp"])
    for alone in (True, False):
        clean(str(tmp_path), alone=alone)
    assert merge_staging._FORGOTTEN_AFTER_S > 0
