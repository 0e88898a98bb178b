"""What merges have in common: one at a time, again when files change, and errors that help."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mle_client import files, merging
from mle_client.errors import LogDamaged, LogNotFound, MergeFailed, TooFewSeeds
from mle_client.merge_plan import LeftOut
from mle_client.merging import Merge, MergeReport, carry_out, check_target, look, nothing
from tests.seed_logs import write_foreign, write_log


def job(folder: Path, **changes: Any) -> Merge:
    """A merge in a folder that exists."""
    plain: dict[str, Any] = {
        "target": str(folder / "all.hdf5"), "folder": str(folder), "sources": lambda: [],
        "patience_s": 0.05,
    }  # fmt: skip
    return Merge(**(plain | changes))


def failing(error: BaseException) -> Any:
    def attempt(unreadable: dict[str, LeftOut]) -> MergeReport:
        raise error

    return attempt


# --- attempts -------------------------------------------------------------------------------------
def test_a_merge_is_attempted_again_while_its_files_change(tmp_path: Path) -> None:
    outcomes: list[Any] = [LogNotFound("x", "replaced"), FileNotFoundError(2, "gone"), None]

    def attempt(unreadable: dict[str, LeftOut]) -> MergeReport | None:
        if not outcomes:
            return MergeReport("done")
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        return None

    assert carry_out(job(tmp_path), attempt).path == "done"


def test_files_that_never_come_to_rest_are_given_up_and_may_be_merged_later(tmp_path: Path) -> None:
    with pytest.raises(MergeFailed, match="change all the time") as caught:
        carry_out(job(tmp_path), failing(LogNotFound("x", "replaced")))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EAGAIN


def test_any_number_of_files_may_turn_out_to_be_unreadable(tmp_path: Path) -> None:
    def attempt(unreadable: dict[str, LeftOut]) -> MergeReport | None:
        if len(unreadable) == 100:
            return MergeReport("done")
        unreadable[str(len(unreadable))] = LeftOut("x", "why")
        return None

    assert carry_out(job(tmp_path), attempt).path == "done"


def test_that_there_is_nothing_to_merge_is_no_change_of_files(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        carry_out(job(tmp_path), failing(LogNotFound(str(tmp_path), "nothing")))


# --- one at a time --------------------------------------------------------------------------------
@pytest.mark.parametrize("shared", ["folder", "target's folder"])
def test_merges_of_one_folder_or_into_one_folder_wait_for_each_other(
    tmp_path: Path, shared: str
) -> None:
    for name in ("exp", "out"):
        (tmp_path / name).mkdir()
    this = job(tmp_path / "exp", target=str(tmp_path / "out" / "all.hdf5"))
    locked = tmp_path / ("exp" if shared == "folder" else "out")
    with (
        files.locked(str(locked), timeout=0),
        pytest.raises(MergeFailed, match=r"has had it locked for 0\.05 s") as caught,
    ):
        carry_out(this, failing(AssertionError("it did not wait")))
    assert caught.value.path == str(locked)
    assert carry_out(this, lambda unreadable: MergeReport("done")).path == "done"


def test_what_a_killed_merge_left_is_removed_and_what_a_living_one_has_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / ".mle-merge-1.tmp").touch()
    seen: list[list[str]] = []

    def attempt(unreadable: dict[str, LeftOut]) -> MergeReport:
        seen.append(os.listdir(tmp_path))
        (tmp_path / ".mle-merge-2.tmp").touch()
        (tmp_path / "exp").mkdir()
        other = job(tmp_path / "exp", target=str(tmp_path / "other.hdf5"))
        with pytest.raises(MergeFailed, match="locked"):
            carry_out(other, failing(AssertionError("it did not wait")))
        return MergeReport("done")

    carry_out(job(tmp_path), attempt)
    assert seen == [[]]
    assert (tmp_path / ".mle-merge-2.tmp").exists()


# --- what is said ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "merging takes 0.0 MB; make room and merge again"),
        (errno.EDQUOT, "make room"),
        (errno.EIO, "nothing was removed; merge again"),
    ],
)
def test_what_the_system_says_comes_with_what_to_do(tmp_path: Path, code: int, advice: str) -> None:
    for name in (None, str(tmp_path / ".mle-merge-1.tmp"), "/somewhere/else"):
        with pytest.raises(MergeFailed, match=advice) as caught:
            carry_out(job(tmp_path), failing(OSError(code, os.strerror(code), name)))
        expected = name if name == "/somewhere/else" else str(tmp_path / "all.hdf5")
        assert caught.value.path == expected
        assert os.strerror(code) in caught.value.why


def test_how_much_room_a_merge_takes_is_told_whatever_becomes_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(bytes(3_000_000))
    this = job(tmp_path, sources=lambda: [str(tmp_path / "1"), str(tmp_path / "gone")])
    with pytest.raises(MergeFailed, match=r"takes 3\.0 MB"):
        carry_out(this, failing(OSError(errno.ENOSPC, "full")))


def test_errors_of_ours_are_not_changed(tmp_path: Path) -> None:
    error = TooFewSeeds("x", 1, 2)
    with pytest.raises(TooFewSeeds) as caught:
        carry_out(job(tmp_path), failing(error))
    assert caught.value is error


def test_a_target_that_cannot_be_says_why(tmp_path: Path) -> None:
    with pytest.raises(MergeFailed, match=r"there is no folder .*nowhere: make it"):
        check_target(str(tmp_path / "nowhere" / "all.hdf5"))
    with pytest.raises(MergeFailed, match="it is a folder: give the path of a file"):
        check_target(str(tmp_path))
    check_target(str(tmp_path / "all.hdf5"))
    check_target("all")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize("name", [".mle-merge-1.tmp", "log.hdf5", "", None])
def test_where_nothing_may_be_written_the_folder_is_named_that_it_was_to_be_written_to(
    tmp_path: Path, code: int, name: str | None
) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    where = None if name is None else os.path.join(folder, name)
    this = job(folder, target=str(folder / "log.hdf5"))
    with pytest.raises(MergeFailed, match="make this folder writable") as caught:
        carry_out(this, failing(OSError(code, os.strerror(code), where)))
    assert os.path.normpath(caught.value.path) == str(folder)


@pytest.mark.parametrize("writable", [True, False])
def test_a_merged_file_that_may_not_be_replaced_is_told_from_a_folder_that_is_not_writable(
    tmp_path: Path, writable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: writable)
    (tmp_path / "logs").mkdir()
    target = str(tmp_path / "logs" / "log.hdf5")
    said, staged = os.strerror(errno.EPERM), str(tmp_path / ".mle-merge-1.tmp")
    with pytest.raises(MergeFailed) as caught:
        carry_out(
            job(tmp_path, target=target), failing(OSError(errno.EPERM, said, staged, None, target))
        )
    assert caught.value.path == (target if writable else str(tmp_path / "logs"))
    assert ("protected against changes" in caught.value.why) is writable


def test_a_file_that_may_not_be_read_is_named_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    target = tmp_path / "all.hdf5"
    target.touch()
    with pytest.raises(MergeFailed, match="make it readable") as caught:
        carry_out(job(tmp_path), failing(PermissionError(errno.EACCES, "denied", str(target))))
    assert caught.value.path == str(target)


def test_who_is_waited_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SAY_AFTER_S", 0.0)
    told: list[str] = []
    this = job(tmp_path, on_wait=told.append)
    with files.locked(str(tmp_path), timeout=0), pytest.raises(MergeFailed):
        carry_out(this, failing(AssertionError("it did not wait")))
    (said,) = told
    assert said.startswith(f"{tmp_path}: waiting for process {os.getpid()}, which has it locked")
    told.clear()
    carry_out(this, lambda unreadable: MergeReport("done"))
    assert told == []


# --- looking --------------------------------------------------------------------------------------
def test_files_that_say_nothing_are_told_and_not_looked_at_again(tmp_path: Path) -> None:
    good = write_log(tmp_path, "seed_1", [1.0])
    damaged, dangling = tmp_path / "logs/log_2.hdf5", tmp_path / "logs/log_3.hdf5"
    damaged.write_bytes(b"x")
    dangling.symlink_to(tmp_path / "nowhere")
    whole = write_foreign(tmp_path / "logs/log_4.hdf5", {"config/seed_1": [1.0]})
    unreadable: dict[str, LeftOut] = {}
    paths = [good, str(damaged), str(dangling), whole]
    found, left_out = look(job(tmp_path), paths, unreadable)
    assert list(found) == [good]
    assert [each.path for each in left_out] == paths[1:]
    assert all(each.damaged for each in left_out)
    for words, each in zip(
        ("not a readable", "link to nothing", "whole configurations"), left_out, strict=True
    ):
        assert words in each.why
    damaged.write_bytes(Path(good).read_bytes())
    assert look(job(tmp_path), paths, unreadable)[1] == left_out


def test_a_file_that_went_away_is_no_reason_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        look(job(tmp_path), [str(tmp_path / "log_1.hdf5")], {})


def test_a_file_that_the_system_refuses_is_told_and_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(merging, "describe_seeds", refuse)
    _, (left,) = look(job(tmp_path), ["log"], {})
    assert (left.damaged, left.why) == (False, "it cannot be opened: Permission denied")


def test_the_error_that_nothing_can_be_merged_names_the_first_file() -> None:
    assert isinstance(nothing("exp", []), LogNotFound)
    error = nothing("exp", [LeftOut("1", "damaged", damaged=True), LeftOut("2", "too")])
    assert isinstance(error, LogDamaged)
    assert str(error) == "1: damaged; and 1 more"
    assert type(nothing("exp", [LeftOut("1", "cannot be opened")])) is MergeFailed
