"""The process that merges answers every job, and says what may pass by itself."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mle_client import discovery, files, merge, merged_file, merging
from mle_client.errors import LogDamaged, MergeFailed, MergeRefused
from mle_daemon import merge_process
from mle_daemon.merge_process import _answer
from tests.seed_logs import losses, write_foreign, write_log


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    """A configuration with two seeds."""
    for i in (1, 2):
        write_log(tmp_path / "exp", f"seed_{i}", [float(i)])
    return tmp_path / "exp"


def seeds(folder: Path, at_least: int = 2, keep: bool = False) -> dict[str, Any]:
    return {"folder": str(folder), "at_least": at_least, "keep_seed_logs": keep, "root": "/"}


# --- seeds ----------------------------------------------------------------------------------------
def test_seeds_are_merged_and_may_be_kept(exp: Path) -> None:
    states = dict.fromkeys(("seed_1", "seed_2"), "finished")
    assert _answer(seeds(exp, keep=True)) == {"seeds": 2, "left_out": [], "states": states}
    assert len(os.listdir(exp / "logs")) == 3
    assert _answer(seeds(exp)) == {"seeds": 2, "left_out": [], "states": states}
    assert os.listdir(exp / "logs") == ["log.hdf5"]


def test_what_is_left_out_is_told_but_for_runs_that_go_on(exp: Path) -> None:
    write_log(exp, "seed_3", [1.0], state="running")
    (exp / "logs/log_seed_4.hdf5").write_bytes(b"x")
    answer = _answer(seeds(exp))
    assert answer["seeds"] == 2
    (said,) = answer["left_out"]
    assert said.startswith(f"{exp}/logs/log_seed_4.hdf5: not a readable HDF5 file")


def test_too_few_seeds_and_folders_that_are_gone_are_told_apart(exp: Path, tmp_path: Path) -> None:
    assert _answer(seeds(exp, at_least=3))["too_few"]
    for gone in (tmp_path / "gone", tmp_path):
        answer = _answer(seeds(gone))
        assert answer["gone"]
        assert str(gone) in answer["error"]


def test_the_states_of_all_seeds_are_told_wherever_they_are(exp: Path) -> None:
    os.rename(exp / "logs/log_seed_1.hdf5", exp / "logs/one.hdf5")
    write_log(exp, "seed_3", [1.0], state="running")
    (exp / "logs/log_seed_4.hdf5").write_bytes(b"x")
    few = _answer(seeds(exp, at_least=3))
    states = dict.fromkeys(("seed_1", "seed_2"), "finished")
    assert (few["too_few"], few["seeds"], few["states"]) == (True, 1, states)
    write_log(exp, "seed_3", [1.0], state="crashed")
    answer = _answer(seeds(exp))
    assert (answer["seeds"], answer["states"]) == (3, {**states, "seed_3": "crashed"})


def test_a_log_that_does_not_say_has_finished(exp: Path) -> None:
    write_foreign(exp / "logs/log_seed_3.hdf5", {"seed_3": [3.0]})
    answer = _answer(seeds(exp))
    assert answer["states"]["seed_3"] == "finished"


# --- failures -------------------------------------------------------------------------------------
def failed(code: int) -> MergeFailed:
    error = MergeFailed("log", "why")
    error.__cause__ = OSError(code, os.strerror(code))
    return error


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (failed(errno.ENOSPC), True),
        (failed(errno.EDQUOT), True),
        (failed(errno.EIO), True),
        (failed(errno.EAGAIN), True),
        (failed(errno.EACCES), False),
        (OSError(errno.ESTALE, "stale"), True),
        (MergeFailed("log", "why"), False),
        (MergeRefused("log", "other configurations"), False),
        (LogDamaged("log", "damaged"), False),
        (ValueError("a mistake"), False),
        (ZeroDivisionError("a mistake"), False),
    ],
)
def test_only_what_may_pass_is_to_be_tried_again(
    exp: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, retry: bool
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(merge, "merge_group", fail)
    answer = _answer(seeds(exp))
    assert str(error) in answer["error"]
    assert bool(answer.get("retry")) is retry
    assert not answer.get("gone")
    assert not answer.get("too_few")


def test_logs_that_never_come_to_rest_and_folders_that_are_locked_are_tried_again(
    exp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changes(*_: Any, **__: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "replaced")

    with monkeypatch.context() as patch:
        patch.setattr(merged_file, "plan_merge", changes)
        assert _answer(seeds(exp))["retry"]
    patience = merging.PATIENCE_S.set(0.05)
    try:
        with files.locked(str(exp), timeout=0):
            answer = _answer(seeds(exp))
    finally:
        merging.PATIENCE_S.reset(patience)
    assert "has had it locked" in answer["error"]
    assert answer["retry"]


# --- configurations -------------------------------------------------------------------------------
def test_configurations_are_merged_up_to_a_size(
    exp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"configurations_in": str(tmp_path), "root": "/"}
    assert _answer(job) == {"seeds": 2, "left_out": []}
    assert list(losses(tmp_path / "meta_log.hdf5")) == ["exp/seed_1", "exp/seed_2"]
    monkeypatch.setattr(merge_process, "META_LIMIT_BYTES", 1000)
    answer = _answer(job)
    assert "`mle-daemon merge` merges so many" in answer["error"]
    assert not answer["retry"]


# --- places ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("link", ["exp", "exp/logs", ""])
def test_nothing_is_merged_outside_of_the_root(exp: Path, tmp_path: Path, link: str) -> None:
    """Where somebody has put a link in the place of a folder since its runs began."""
    root = tmp_path / "root"
    if link == "":
        root.mkdir()
        job = {"configurations_in": str(tmp_path), "root": str(root)}
    else:
        (root / link).parent.mkdir(parents=True)
        (root / link).symlink_to(tmp_path / link)
        job = {**seeds(root / "exp"), "root": str(root)}
    before = sorted(os.listdir(exp / "logs"))
    answer = _answer(job)
    assert f"out of {root}" in answer["error"]
    assert not answer.get("retry")
    assert sorted(os.listdir(exp / "logs")) == before
    assert not (tmp_path / "meta_log.hdf5").exists()


# --- the process ----------------------------------------------------------------------------------
def answers(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """What a process of its own answers, which has nothing else to say and ends well."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "mle_daemon.merge_process"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=discovery.python_environment(),
    ) as process:  # fmt: skip
        out, err = process.communicate("".join(f"{json.dumps(job)}\n" for job in jobs), 30)
    assert (err, process.returncode) == ("", 0)
    return [json.loads(line) for line in out.splitlines()]


def test_it_answers_line_by_line_whatever_prints_and_ends_with_its_input(exp: Path) -> None:
    said = answers(
        seeds(exp, at_least=3), seeds(exp), {"configurations_in": str(exp.parent), "root": "/"}
    )
    assert [answer.get("seeds") for answer in said] == [0, 2, 2]


def test_what_is_locked_keeps_no_other_job_waiting_for_long(exp: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "other", "seed_1", [1.0])
    with files.locked(str(exp), timeout=0), files.locked(str(tmp_path), timeout=0):
        locked, meta, other = answers(
            seeds(exp),
            {"configurations_in": str(tmp_path), "root": "/"},
            seeds(tmp_path / "other", 1),
        )
    for answer in (locked, meta):
        assert f"has had it locked for {merge_process.PATIENCE_S:g} s" in answer["error"]
        assert answer["retry"]
    assert other["seeds"] == 1
