"""The process that merges answers every job, and says what may pass by itself."""

from __future__ import annotations

import errno
import functools
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
from tests.seed_logs import losses, write_log


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    """A configuration with two seeds."""
    for i in (1, 2):
        write_log(tmp_path / "exp", f"seed_{i}", [float(i)])
    return tmp_path / "exp"


def seeds(folder: Path, at_least: int = 2, keep: bool = False) -> dict[str, Any]:
    return {"folder": str(folder), "at_least": at_least, "keep_seed_logs": keep}


# --- seeds ----------------------------------------------------------------------------------------
def test_seeds_are_merged_and_may_be_kept(exp: Path) -> None:
    assert _answer(seeds(exp, keep=True)) == {"seeds": 2, "left_out": []}
    assert len(os.listdir(exp / "logs")) == 3
    assert _answer(seeds(exp)) == {"seeds": 2, "left_out": []}
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
    monkeypatch.setattr(merge, "Merge", functools.partial(merging.Merge, patience_s=0.05))
    with files.locked(str(exp), timeout=0):
        answer = _answer(seeds(exp))
    assert "has had it locked" in answer["error"]
    assert answer["retry"]


# --- configurations -------------------------------------------------------------------------------
def test_configurations_are_merged_up_to_a_size(
    exp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"configurations_in": str(tmp_path)}
    assert _answer(job) == {"seeds": 2, "left_out": []}
    assert list(losses(tmp_path / "meta_log.hdf5")) == ["exp/seed_1", "exp/seed_2"]
    monkeypatch.setattr(merge_process, "META_LIMIT_BYTES", 1000)
    answer = _answer(job)
    assert "`mle-daemon merge` merges so many" in answer["error"]
    assert not answer["retry"]


# --- the process ----------------------------------------------------------------------------------
def test_it_answers_line_by_line_whatever_prints_and_ends_with_its_input(exp: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "mle_daemon.merge_process"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=discovery.python_environment(),
    ) as process:  # fmt: skip
        jobs = [seeds(exp, at_least=3), seeds(exp), {"configurations_in": str(exp.parent)}]
        out, err = process.communicate("".join(f"{json.dumps(job)}\n" for job in jobs), 30)
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer.get("seeds") for answer in answers] == [None, 2, 2]
    assert (err, process.returncode) == ("", 0)
