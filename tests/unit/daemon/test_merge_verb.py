"""`mle-daemon merge`: what it merges, what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mle_client import control, discovery, files, layout, merge
from mle_client.errors import LogNotFound
from mle_daemon import cli, merge_verb
from tests.seed_logs import losses, write_foreign, write_log


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that daemons were asked to publish; none is reached."""
    paths: list[str] = []
    monkeypatch.setattr(control, "publish_before_reading", lambda path: paths.append(path))
    monkeypatch.setattr(control, "is_served", lambda path: True)
    return paths


@pytest.fixture
def sweep(root: Path) -> Path:
    """Two configurations of two seeds, of which one crashed, and one of a single seed."""
    for config in ("lr_0.1", "lr_0.5"):
        for i in (1, 2):
            crashed = (config, i) == ("lr_0.5", 2)
            state = "crashed" if crashed else "finished"
            write_log(root / config, f"seed_{i}", [float(i)], run=f"{config}{i}", state=state)
    write_log(root / "single", "seed_1", [1.0])
    return root


class Outcome:
    """What a command came to."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def plain(self) -> dict[str, Any]:
        """The output as JSON."""
        return dict(json.loads(self.out))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command for a root."""

    def run(root: Path, *words: str) -> Outcome:
        code = cli.main(["merge", "--root", str(root), *words])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run


def logs(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "logs"))


# --- what it merges -------------------------------------------------------------------------------
def test_every_configuration_below_is_merged_and_then_all_of_a_folder(
    sweep: Path, run: Any, published: list[str]
) -> None:
    outcome = run(sweep)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == (
        "lr_0.1: 2 seeds, 2 added\n"
        "lr_0.5: 2 seeds, 1 of them crashed, 2 added\n"
        "single: nothing to merge\n"
        "meta_log.hdf5: 5 runs, 1 of them crashed, 5 added\n"
    )
    assert [logs(sweep / name) for name in ("lr_0.1", "lr_0.5")] == [["log.hdf5"]] * 2
    assert logs(sweep / "single") == ["log_seed_1.hdf5"]
    assert len(losses(sweep / "meta_log.hdf5")) == 5
    assert published == [str(sweep)]
    again = run(sweep)
    assert again.code == 0
    assert "lr_0.1: 2 seeds, nothing new\n" in again.out
    assert again.out.endswith("meta_log.hdf5: 5 runs, 1 of them crashed, nothing new\n")


def test_those_that_are_named_are_merged_even_with_a_single_seed(sweep: Path, run: Any) -> None:
    outcome = run(sweep, "single", str(sweep / "lr_0.1"))
    assert outcome.out.startswith("single: 1 seed, 1 added\nlr_0.1: 2 seeds, 2 added\n")
    assert logs(sweep / "single") == logs(sweep / "lr_0.1") == ["log.hdf5"]
    assert len(logs(sweep / "lr_0.5")) == 2


def test_a_hidden_configuration_is_merged_if_it_is_named_and_is_in_no_meta_log(
    root: Path, run: Any
) -> None:
    write_log(root / ".hidden", "seed_1", [1.0])
    outcome = run(root, ".hidden")
    assert (outcome.code, outcome.out) == (0, ".hidden: 1 seed, 1 added\n")
    assert not (root / "meta_log.hdf5").exists()


def test_a_configuration_that_is_named_twice_is_merged_and_listed_once(
    sweep: Path, run: Any
) -> None:
    outcome = run(sweep, "single", str(sweep / "single"), "./single/")
    assert outcome.out.count("single:") == 1


def test_experiments_in_a_folder_logs_are_merged_into_a_meta_log_that_is_no_log_of_the_root(
    root: Path, run: Any
) -> None:
    for config in ("lr_1", "lr_2"):
        write_log(root / "logs" / config, "seed_1", [1.0])
    for _ in range(2):
        outcome = run(root)
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.startswith("logs/lr_1: nothing to merge\nlogs/lr_2: nothing to merge\n")
        assert list(losses(root / "logs/meta_log.hdf5")) == ["lr_1/seed_1", "lr_2/seed_1"]


def test_names_are_the_same_text_whatever_the_locale(root: Path) -> None:
    for i in (1, 2):
        write_log(root / "lr_ü", f"seed_ö{i}", [1.0])
    environment = {**discovery.python_environment(), "LC_ALL": "C", "PYTHONUTF8": "0"}
    said = []
    for words in (["lr_ü"], []):
        done = subprocess.run(
            [sys.executable, "-m", "mle_daemon", "merge", "--root", str(root), "--json", *words],
            capture_output=True, env=environment, check=True,
        )  # fmt: skip
        said.append(json.loads(done.stdout))
    assert list(said[0]["meta_logs"][0]["seeds"]) == ["lr_ü/seed_ö1", "lr_ü/seed_ö2"]
    assert [len(each["groups"][0]["added"]) for each in said] == [2, 0]
    assert [len(each["meta_logs"][0]["added"]) for each in said] == [2, 0]


def test_who_is_waited_for_is_told_on_stderr(
    sweep: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SAY_AFTER_S", 0.0)
    told = threading.Event()
    monkeypatch.setattr(merge_verb, "_clear_bar", told.set)  # is called before anything is said
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.locked(str(sweep / "lr_0.1"), timeout=0))
        release = stack.pop_all()

    def let_go() -> None:
        told.wait(30)
        release.close()

    thread = threading.Thread(target=let_go)
    thread.start()
    outcome = run(sweep)
    thread.join()
    assert outcome.code == 0
    said = f"{sweep}/lr_0.1: waiting for process {os.getpid()}, which has it locked, for up to "
    assert said in outcome.err


def test_a_name_may_be_relative_to_where_one_is(
    sweep: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sweep / "lr_0.1")
    assert run(sweep, ".").code == 0
    assert logs(sweep / "lr_0.1") == ["log.hdf5"]


def test_the_root_may_be_a_configuration_itself(sweep: Path, run: Any) -> None:
    outcome = run(sweep / "lr_0.1")
    assert outcome.out == ".: 2 seeds, 2 added\n"
    assert not (sweep / "lr_0.1" / "meta_log.hdf5").exists()
    assert not (sweep / "meta_log.hdf5").exists()


def test_logs_may_be_kept(sweep: Path, run: Any) -> None:
    assert run(sweep, "--keep-seed-logs").code == 0
    assert logs(sweep / "lr_0.1") == ["log.hdf5", "log_seed_1.hdf5", "log_seed_2.hdf5"]


def test_what_is_merged_under_another_name_is_no_problem(sweep: Path, run: Any) -> None:
    merge.merge_seed_logs(sweep / "lr_0.1/logs/all.hdf5", sweep / "lr_0.1")
    outcome = run(sweep)
    assert outcome.code == 0
    assert "lr_0.1: nothing to merge\n" in outcome.out
    assert "meta_log.hdf5: 5 runs" in outcome.out


# --- how it ends ----------------------------------------------------------------------------------
def test_a_folder_without_logs_and_a_name_that_is_none_are_not_found(
    sweep: Path, run: Any, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    outside = write_log(tmp_path / "outside", "seed_1", [1.0])
    for words in (
        (empty,), (sweep, "nowhere"), (sweep, str(tmp_path / "outside")), (tmp_path / "gone",)
    ):  # fmt: skip
        outcome = run(*words)
        assert (outcome.code, outcome.out) == (LogNotFound.exit_code, "")
        assert str(words[0]) in outcome.err
    assert os.path.exists(outside)


@pytest.mark.parametrize("single", [False, True])
def test_what_is_damaged_is_named_and_the_rest_is_merged(
    sweep: Path, run: Any, single: bool
) -> None:
    bad = sweep / "lr_0.1/logs/log_seed_1.hdf5"
    bad.write_bytes(b"x")
    if single:
        os.unlink(sweep / "lr_0.1/logs/log_seed_2.hdf5")
    outcome = run(sweep)
    assert outcome.code == 6
    assert f"{bad}: not a readable HDF5 file" in outcome.err
    assert "lr_0.5: 2 seeds" in outcome.out
    assert (
        "lr_0.1: not merged" if single else "lr_0.1: 1 seed, 1 added, 1 left out"
    ) in outcome.out
    assert bad.read_bytes() == b"x"


def test_different_configurations_in_one_folder_are_refused(sweep: Path, run: Any) -> None:
    write_log(sweep / "lr_0.1", "seed_3", [1.0], config_text="{'lr': 7}")
    outcome = run(sweep)
    assert outcome.code == 7
    assert "lr_0.1: not merged\nlr_0.5: 2 seeds" in outcome.out
    assert "different configurations (lr: 0.1 / 7)" in outcome.err
    assert len(logs(sweep / "lr_0.1")) == 3
    assert sorted(losses(sweep / "meta_log.hdf5")) == [
        "lr_0.5/seed_1", "lr_0.5/seed_2", "single/seed_1",
    ]  # fmt: skip
    assert "it is not in meta_log.hdf5" in outcome.err
    assert "meta_log.hdf5: 3 runs, 1 of them crashed, 3 added, 1 left out\n" in outcome.out


def test_what_is_wrong_with_a_configuration_that_was_not_named_is_told_of_the_meta_log(
    sweep: Path, run: Any
) -> None:
    write_log(sweep / "lr_0.1", "seed_3", [1.0], config_text="{'lr': 7}")
    write_log(sweep / "single", "seed_2", [1.0], state="running")
    outcome = run(sweep, "lr_0.5", "--json")
    assert outcome.code == 7
    (group,), (meta,) = outcome.plain["groups"], outcome.plain["meta_logs"]
    assert group["problems"] == []
    running, mixed = meta["problems"]
    assert "single/logs/log_seed_2.hdf5: seed_2 is still running: meta_log.hdf5 has it" in running
    assert mixed.startswith(f"{sweep}/lr_0.1: it is not in meta_log.hdf5")
    assert all(problem in outcome.err for problem in (running, mixed))
    assert sorted(meta["seeds"]) == [
        "lr_0.5/seed_1",
        "lr_0.5/seed_2",
        "single/seed_1",
        "single/seed_2",
    ]
    assert "4 runs, 1 of them crashed, 1 of them still running, nothing new, 1 left out" in (
        run(sweep, "lr_0.5").out
    )


def test_a_meta_log_of_mixed_configurations_alone_is_not_written_and_that_is_said(
    root: Path, run: Any
) -> None:
    for i in (1, 2):
        write_log(root / "bad", f"seed_{i}", [1.0], config_text=f"{{'lr': {i}}}")
    outcome = run(root)
    assert outcome.code == 7
    assert outcome.out == "bad: not merged\nmeta_log.hdf5: not merged\n"
    assert not (root / "meta_log.hdf5").exists()


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize("ended", [1, 2])
def test_runs_that_go_on_are_left_out_and_it_is_said_what_to_do(
    sweep: Path, run: Any, monkeypatch: pytest.MonkeyPatch, served: bool, ended: int
) -> None:
    monkeypatch.setattr(control, "is_served", lambda path: served)
    if ended == 1:
        os.unlink(sweep / "lr_0.1/logs/log_seed_2.hdf5")
    live = write_log(sweep / "lr_0.1", "seed_3", [1.0], state="running")
    outcome = run(sweep)
    assert outcome.code == 7
    assert ("1 of 2 seeds" if ended == 1 else "merge again when it has ended") in outcome.err
    assert ("no daemon looks after" in outcome.err) is not served
    assert losses(live) == {"seed_3": [1.0]}


def test_the_gravest_code_is_the_lowest(sweep: Path, run: Any) -> None:
    (sweep / "lr_0.5/logs/log_seed_1.hdf5").write_bytes(b"x")
    write_log(sweep / "lr_0.1", "seed_3", [1.0], config_text="{'lr': 7}")
    assert run(sweep).code == 6


def test_a_failure_of_one_configuration_does_not_keep_the_others_back(
    sweep: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = merge.merge_group

    def merge_group(folder: str, **options: Any) -> Any:
        if folder.endswith("lr_0.1"):
            raise PermissionError(13, "Permission denied", folder)
        return real(folder, **options)

    monkeypatch.setattr(merge, "merge_group", merge_group)
    outcome = run(sweep)
    assert outcome.code == 1
    assert "Permission denied" in outcome.err
    assert logs(sweep / "lr_0.5") == ["log.hdf5"]


# --- JSON -----------------------------------------------------------------------------------------
KEYS = {"path", "merged_into", "seeds", "added", "removed", "put_aside", "problems"}


def test_as_json_it_is_one_line_with_all_of_it(sweep: Path, run: Any) -> None:
    write_foreign(sweep / "lr_0.1/logs/log_bad.hdf5", {"config/seed_1": [1.0]})
    outcome = run(sweep, "--json")
    assert outcome.out.count("\n") == 1
    groups, metas = outcome.plain["groups"], outcome.plain["meta_logs"]
    assert all(set(each) == KEYS for each in (*groups, *metas))
    one, _, single = groups
    assert one["path"] == str(sweep / "lr_0.1")
    assert one["merged_into"] == layout.merged_log_path(one["path"])
    assert one["seeds"] == {"seed_1": "finished", "seed_2": "finished"}
    assert one["added"] == ["seed_1", "seed_2"]
    assert [os.path.basename(path) for path in one["removed"]] == [
        "log_seed_1.hdf5", "log_seed_2.hdf5",
    ]  # fmt: skip
    assert "whole configurations" in one["problems"][0]
    assert (single["merged_into"], single["seeds"]) == (None, {})
    assert metas[0]["seeds"]["lr_0.5/seed_2"] == "crashed"
    assert outcome.code == 6


def test_what_is_printed_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    said = page.partition("## What `merge` does")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", said)) >= KEYS | {"groups", "meta_logs"}


# --- progress -------------------------------------------------------------------------------------
def test_on_a_terminal_there_is_a_bar_that_goes_away(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    said: list[object] = []
    code = merge_verb.run(str(sweep), [], keep_seed_logs=False, as_json=False, say=said.append)
    shown = capsys.readouterr().err
    shares = [int(each) for each in re.findall(r"(\d+)%", shown)]
    assert (code, said) == (0, [])
    assert "lr_0.5" in shown
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert shown.endswith("\r\x1b[2K")
