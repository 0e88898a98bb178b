"""Seeds are merged by real daemons, by hand and by user code, whoever is killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest

from mle_client import (
    MLELogger,
    control,
    discovery,
    files,
    layout,
    load_log,
    load_meta_log,
    merge_seed_logs,
)
from mle_client.endpoint import live_daemon, read_endpoint
from mle_client.merge import merge_group
from tests.integration import daemons
from tests.integration.daemons import wait_for
from tests.seed_logs import leftovers, losses, write_foreign, write_log

# What a logger says that continues a run is looked at elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:reload=True:RuntimeWarning")

NEVER = ("--merge-settle", "1e6")  # as far as the daemon can tell, further seeds may come
SOON = ("--merge-settle", "0.3")
ON_FINISH = ("--merge", "on-finish")


@pytest.fixture
def exp(root: Path) -> Iterator[Path]:
    """The folder of a configuration, in a root whose daemon is gone in the end."""
    yield root / "exp"
    if daemon := live_daemon(str(root)):
        os.kill(daemon.pid, signal.SIGKILL)
        daemons.wait_until_gone(root)


def log(exp: Path, seed: int, values: Sequence[float], **arguments: Any) -> None:
    """Log a seed from this process, from its beginning to its end."""
    with MLELogger(str(exp), ["step"], ["loss"], seed_id=seed, **arguments) as logger:
        for step, value in enumerate(values):
            logger.update({"step": step}, {"loss": value})


CRASHES = """
import os, signal, sys
from mle_client import MLELogger
exp, seed = sys.argv[1:3]
logger = MLELogger(exp, ["step"], ["loss"], seed_id=int(seed), **eval(sys.argv[3]))
for step in range(5):
    logger.update({"step": step}, {"loss": float(step)})
print("logged", flush=True)
if sys.stdin.read() == "":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@contextlib.contextmanager
def crashing(exp: Path, seed: int, **arguments: Any) -> Iterator[None]:
    """A process that logs five values 0.0 to 4.0, goes on, and is killed in the end."""
    with subprocess.Popen(
        [sys.executable, "-c", CRASHES, str(exp), str(seed), repr(arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=daemons.environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"logged\n"
        try:
            yield
        finally:
            process.communicate()


def crash(exp: Path, seed: int, **arguments: Any) -> None:
    with crashing(exp, seed, **arguments):
        pass


def names(exp: Path) -> list[str]:
    return sorted(os.listdir(exp / "logs"))


def merged(exp: Path) -> dict[str, list[Any]]:
    """The losses in the merged file."""
    path = layout.merged_log_path(str(exp))
    return losses(path) if os.path.exists(path) else {}


def group(exp: Path) -> dict[str, Any]:
    """What the daemon says of a configuration; nothing where it does not know it."""
    report = control.status(str(exp.parent))
    found = [line for line in report["groups"] if line["directory"] == os.path.realpath(exp)]
    return dict(found[0]) if found else {}


def wait_until_merged(exp: Path, *seeds: int) -> None:
    """Wait until the daemon has merged these seeds, and no others, and has nothing more to do."""
    expected = {f"seed_{seed}" for seed in seeds}
    wait_for(lambda: set(merged(exp)) == expected and group(exp)["state"] == "merged")


def merging_process(root: Path) -> psutil.Process | None:
    """The merging process of a root's daemon, if there is one."""
    endpoint = read_endpoint(str(root))
    assert endpoint is not None
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(endpoint.pid).children():
            if "mle_daemon.merge_process" in child.cmdline():
                return child
    return None


# --- when all have ended --------------------------------------------------------------------------
def test_seeds_are_merged_when_as_many_have_ended_as_there_are(root: Path, exp: Path) -> None:
    with daemons.running(root, *ON_FINISH, *NEVER):
        for seed in (1, 2):
            log(exp, seed, [float(seed)] * 3, num_seeds=3)
        assert group(exp)["state"] in ("waiting", "merging", "incomplete")
        log(exp, 3, [3.0], num_seeds=3)
        wait_until_merged(exp, 1, 2, 3)
        line = group(exp)
        assert [line[name] for name in ("expected", "running", "finished", "merged")] == [
            3,
            0,
            3,
            3,
        ]
        wait_for((root / "meta_log.hdf5").exists)
        shown = daemons.mle_daemon("status", "--root", str(root)).stdout
        assert "group  seeds  running  finished  crashed  merged  merge   why" in shown
        assert "exp        3        0         3        0       3  merged  -" in shown
    assert names(exp) == ["log.hdf5"]
    assert merged(exp) == {"seed_1": [1.0] * 3, "seed_2": [2.0] * 3, "seed_3": [3.0]}
    assert list(load_log(exp)) == ["seed_1", "seed_2", "seed_3"]
    assert load_meta_log(root / "meta_log.hdf5").exp.stats.loss.mean[0] == 2.0
    assert leftovers(root) == []


def test_where_nobody_said_how_many_the_end_of_the_last_one_is_waited_for(
    root: Path, exp: Path
) -> None:
    with daemons.running(root, *ON_FINISH, *SOON):
        with crashing(exp, 2):
            log(exp, 1, [1.0])
            wait_for(lambda: group(exp)["running"] == 1)
            assert merged(exp) == {}
        wait_until_merged(exp, 1, 2)
        assert (group(exp)["finished"], group(exp)["crashed"]) == (1, 1)
        log(exp, 3, [3.0])  # late
        wait_until_merged(exp, 1, 2, 3)
    assert merged(exp) == {"seed_1": [1.0], "seed_2": [0.0, 1.0, 2.0, 3.0, 4.0], "seed_3": [3.0]}
    with h5py.File(exp / "logs/log.hdf5") as file:
        assert file["seed_2"].attrs[layout.STATE_ATTR] == "crashed"
    assert load_log(exp).seed_2.state == "crashed"


def test_seeds_may_run_under_different_daemons_in_turn(root: Path, exp: Path) -> None:
    for seed in (1, 2):
        with daemons.running(root, *ON_FINISH):
            log(exp, seed, [float(seed)], num_seeds=2)
    assert merged(exp) == {"seed_1": [1.0], "seed_2": [2.0]}
    assert names(exp) == ["log.hdf5"]


def test_a_stop_merges_what_has_ended(root: Path, exp: Path) -> None:
    with daemons.running(root, *ON_FINISH, *NEVER):
        for seed in (1, 2):
            log(exp, seed, [float(seed)])
        assert merged(exp) == {}
    assert merged(exp) == {"seed_1": [1.0], "seed_2": [2.0]}
    assert not (root / ".mle" / "journal").exists() or os.listdir(root / ".mle" / "journal") == []


def test_a_daemon_that_a_logger_started_merges_and_then_leaves(
    exp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLE_MERGE", "on-finish")
    for seed in (1, 2):
        log(exp, seed, [float(seed)])
    daemons.wait_until_gone(exp, timeout=25)  # sooner than further seeds are waited for
    assert merged(exp) == {"seed_1": [1.0], "seed_2": [2.0]}
    assert not (exp / "meta_log.hdf5").exists()


# --- otherwise ------------------------------------------------------------------------------------
def test_every_so_often_what_has_ended_is_merged_and_the_rest_goes_on(
    root: Path, exp: Path
) -> None:
    with daemons.running(root, "--merge", "every=0.3"):
        with crashing(exp, 3, num_seeds=3):
            for seed in (1, 2):
                log(exp, seed, [float(seed)], num_seeds=3)
            wait_for(lambda: len(merged(exp)) == 2)
            wait_for(lambda: group(exp)["state"] == "waiting" and group(exp)["merged"] == 2)
            assert group(exp)["running"] == 1
        wait_until_merged(exp, 1, 2, 3)


def test_nothing_is_merged_where_nothing_is_to_be(root: Path, exp: Path) -> None:
    with daemons.running(root, "--merge", "off", *SOON):
        for seed in (1, 2):
            log(exp, seed, [float(seed)], num_seeds=2)
        assert group(exp)["state"] == "off"
    assert names(exp) == ["log_seed_1.hdf5", "log_seed_2.hdf5"]


def test_seeds_own_logs_may_be_kept(root: Path, exp: Path) -> None:
    with daemons.running(root, *ON_FINISH, "--keep-seed-logs"):
        for seed in (1, 2):
            log(exp, seed, [float(seed)], num_seeds=2)
        wait_until_merged(exp, 1, 2)
    assert names(exp) == ["log.hdf5", "log_seed_1.hdf5", "log_seed_2.hdf5"]


def test_a_folder_that_somebody_removes_is_no_trouble(root: Path, exp: Path) -> None:
    with daemons.running(root, *ON_FINISH, "--merge-settle", "1"):
        for seed in (1, 2):
            log(exp, seed, [float(seed)])
            log(root / "other", seed, [float(seed)])
        shutil.rmtree(exp)
        wait_until_merged(root / "other", 1, 2)
        wait_for(lambda: group(exp) == {})
        wait_for((root / "meta_log.hdf5").exists)
    assert list(losses(root / "meta_log.hdf5")) == ["other/seed_1", "other/seed_2"]


def test_what_cannot_be_merged_is_told_and_the_daemon_goes_on(root: Path, exp: Path) -> None:
    with daemons.running(root, *ON_FINISH):
        log(exp, 1, [1.0], num_seeds=2, config_dict={"lr": 1})
        log(exp, 2, [2.0], num_seeds=2, config_dict={"lr": 2})
        wait_for(lambda: group(exp)["state"] == "failed")
        assert "different configurations (lr: 1 / 2)" in group(exp)["why"]
        log(root / "other", 1, [1.0], num_seeds=1)
        wait_until_merged(root / "other", 1)
    assert names(exp) == ["log_seed_1.hdf5", "log_seed_2.hdf5"]


# --- killed ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("moment", ["before", "within"])
def test_a_daemon_that_is_killed_is_followed_by_one_that_merges(
    root: Path, exp: Path, moment: str
) -> None:
    daemons.start(root, *ON_FINISH, *NEVER)
    log(exp, 1, [1.0])
    log(exp, 2, [2.0], num_seeds=None if moment == "before" else 2)
    if moment == "within":
        wait_for(lambda: merging_process(root) or merged(exp))
    daemons.kill_the_next(root, set())
    with daemons.running(root, *ON_FINISH, *SOON):
        wait_until_merged(exp, 1, 2)
    assert merged(exp) == {"seed_1": [1.0], "seed_2": [2.0]}
    assert names(exp) == ["log.hdf5"]
    assert leftovers(root) == []
    wait_for(lambda: not orphans(root))


def orphans(root: Path) -> list[psutil.Process]:
    """Merging processes whose daemon is gone; they end with what they are at."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.ppid() == 1 and "mle_daemon.merge_process" in process.cmdline():
                found.append(process)
    return found


def test_a_merging_process_that_is_killed_is_replaced(root: Path, exp: Path) -> None:
    with daemons.running(root, *ON_FINISH):
        log(exp, 1, [1.0] * 1000, num_seeds=2)
        wait_for(lambda: group(exp)["state"] == "incomplete")
        process = wait_for(lambda: merging_process(root))
        process.suspend()  # so that it is killed within the merge
        log(exp, 2, [2.0] * 1000, num_seeds=2)
        wait_for(lambda: group(exp)["state"] == "merging")
        assert control.status(str(root))["degraded"] == ""
        log(root / "other", 1, [1.0])  # nobody waits for it
        process.kill()
        wait_for(lambda: "ended within the merge" in group(exp)["why"] or merged(exp))
        wait_until_merged(exp, 1, 2)
    assert merged(exp) == {"seed_1": [1.0] * 1000, "seed_2": [2.0] * 1000}


@pytest.mark.long  # it waits for 20 s
def test_a_stop_does_not_wait_for_a_merging_process_that_hangs(root: Path, exp: Path) -> None:
    daemons.start(root, *ON_FINISH)
    log(exp, 1, [1.0], num_seeds=2)
    process = wait_for(lambda: merging_process(root))
    wait_for(lambda: group(exp)["state"] == "incomplete")
    process.suspend()
    log(exp, 2, [2.0], num_seeds=2)
    with stopping(root), stopping(root):
        wait_for(lambda: group(exp)["state"] == "merging")
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert names(exp) == ["log_seed_1.hdf5", "log_seed_2.hdf5"]
    with daemons.running(root, *ON_FINISH):
        wait_until_merged(exp, 1, 2)


@contextlib.contextmanager
def stopping(root: Path) -> Iterator[None]:
    """A stop that is asked for at the beginning, and leaves a merge to the next daemon."""
    with subprocess.Popen(
        [*daemons.PROGRAM, "stop", "--root", str(root)], stderr=subprocess.PIPE, text=True
    ) as process:
        yield
        _, said = process.communicate(timeout=60)
    assert "1 merge is left (exp): the next start does that" in said
    assert process.returncode == 7


# --- locked ---------------------------------------------------------------------------------------
def test_a_group_that_is_locked_keeps_no_other_one_waiting_and_is_left_by_a_stop(
    root: Path, exp: Path
) -> None:
    daemons.start(root, *ON_FINISH)
    exp.mkdir()
    with files.locked(str(exp), timeout=0):
        for folder in (exp, root / "other"):
            for seed in (1, 2):
                log(folder, seed, [float(seed)], num_seeds=2)
        wait_until_merged(root / "other", 1, 2)
        wait_for(lambda: group(exp)["state"] == "failed")
        assert "has had it locked" in group(exp)["why"]
        with stopping(root):
            pass
    with daemons.running(root, *ON_FINISH):
        wait_until_merged(exp, 1, 2)
        wait_for((root / "meta_log.hdf5").exists)


LOGS_ON = """
import os, signal, sys
from mle_client import MLELogger
logger = MLELogger(sys.argv[1], seed_id=1, on_error=lambda error: None)
for step in range(200):
    if step == 100:
        logger.flush()
        print("logged", flush=True)
        sys.stdin.readline()
    logger.update({"step": step}, {"loss": float(step)})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_trainer_leaves_that_is_killed_while_a_daemon_stops_is_for_the_next_one(
    root: Path, exp: Path
) -> None:
    stop = [*daemons.PROGRAM, "stop", "--root", str(root)]
    daemons.start(root, *ON_FINISH)
    with subprocess.Popen(
        [sys.executable, "-c", LOGS_ON, str(root / "other")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=daemons.environment(),
    ) as trainer:  # fmt: skip
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"logged\n"
        for seed in (1, 2):
            log(exp, seed, [float(seed)], num_seeds=2)
        merges = wait_for(lambda: merging_process(root))
        merges.suspend()  # so the daemon stays while it stops
        first = subprocess.Popen(stop, stderr=subprocess.DEVNULL)
        time.sleep(1.0)  # it is not told when the daemon has heard
        trainer.communicate(b"\n")
    second = subprocess.Popen(stop, stderr=subprocess.DEVNULL)  # each asks for what is left
    time.sleep(1.0)
    merges.resume()
    assert {first.wait(), second.wait()} == {0}
    with daemons.running(root, *ON_FINISH):
        wait_for(lambda: load_log(str(root / "other")).seed_1.state == "crashed")
    assert load_log(str(root / "other")).seed_1.time.step.tolist() == list(range(200))
    assert not discovery.has_leftovers(str(root))


def test_a_meta_log_that_cannot_be_written_is_tried_again(root: Path, exp: Path) -> None:
    with daemons.running(root, *ON_FINISH):
        with files.locked(str(root), timeout=0):
            log(exp, 1, [1.0], num_seeds=1)
            wait_for(lambda: meta_log(root)["state"] == "failed")
            assert "has had it locked" in meta_log(root)["why"]
        wait_for(lambda: meta_log(root)["state"] == "merged")
    assert list(losses(root / "meta_log.hdf5")) == ["exp/seed_1"]


def meta_log(root: Path) -> dict[str, Any]:
    """What the daemon says of a folder's meta log."""
    (line,) = control.status(str(root))["meta_logs"] or [{"state": ""}]
    return dict(line)


# --- under another name, and under daemons before -------------------------------------------------
def test_a_late_seed_beside_a_merged_file_of_another_name_is_left_as_it_is(
    root: Path, exp: Path
) -> None:
    with daemons.running(root, "--merge", "off"):
        for seed in (1, 2):
            log(exp, seed, [float(seed)])
    merge_seed_logs(exp / "logs/multi.hdf5", exp)
    with daemons.running(root, *ON_FINISH, *SOON):
        log(exp, 3, [3.0])
        wait_for(lambda: group(exp)["state"] == "incomplete")
        line = group(exp)
        assert [line[name] for name in ("finished", "merged")] == [3, 2]
        assert "merge_seed_logs" in line["why"]
        wait_for(lambda: meta_log(root)["state"] == "merged")
    assert names(exp) == ["log_seed_3.hdf5", "multi.hdf5"]
    assert len(losses(root / "meta_log.hdf5")) == 3


def test_seeds_of_earlier_daemons_are_counted(root: Path, exp: Path) -> None:
    with daemons.running(root, *ON_FINISH), crashing(exp, 3, num_seeds=3):
        for seed in (1, 2):
            log(exp, seed, [float(seed)], num_seeds=3)
    with daemons.running(root, *ON_FINISH, *SOON):
        log(exp, 4, [4.0])
        wait_until_merged(exp, 1, 2, 3, 4)
        line = group(exp)
        assert [line[name] for name in ("finished", "crashed", "merged")] == [3, 1, 4]


# --- going on -------------------------------------------------------------------------------------
def test_a_merged_seed_that_goes_on_is_merged_again(root: Path, exp: Path) -> None:
    with daemons.running(root, *ON_FINISH, *SOON):
        for seed in (1, 2):
            log(exp, seed, [float(seed)] * 3, num_seeds=2)
        wait_until_merged(exp, 1, 2)
        with MLELogger(str(exp), ["step"], ["loss"], seed_id=1, reload=True) as again:
            again.update({"step": 3}, {"loss": 9.0})
            assert again.flush(timeout=20)
            run = load_log(exp).seed_1
            assert run.stats.loss.tolist() == [1.0] * 3 + [9.0]
            assert run.time.num_updates.tolist() == [1, 2, 3, 4]
            assert merged(exp)["seed_1"] == [1.0] * 3
        wait_for(lambda: merged(exp)["seed_1"] == [1.0] * 3 + [9.0])
    assert merged(exp) == {"seed_1": [1.0] * 3 + [9.0], "seed_2": [2.0] * 3}
    assert names(exp) == ["log.hdf5"]
    assert not (root / ".mle" / "replaced").exists()


def test_a_seed_may_go_on_while_it_is_merged(root: Path, exp: Path) -> None:
    expected = {1: [1.0], 2: [2.0]}
    with daemons.running(root, *ON_FINISH, *SOON):
        for seed in (1, 2):
            log(exp, seed, expected[seed], num_seeds=2)
        for round_ in range(6):  # its merge begins at the end of the one before
            value = 10.0 + round_
            log(exp, 1, [value], num_seeds=2, reload=True)
            expected[1].append(value)
    assert merged(exp) == {f"seed_{seed}": values for seed, values in expected.items()}
    assert names(exp) == ["log.hdf5"]
    with h5py.File(exp / "logs/log.hdf5") as file:
        assert file["seed_1/time/num_updates"][:].tolist() == list(range(1, 8))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_merged_seed_may_be_run_again_and_the_others_stay(
    root: Path, exp: Path, overwrite: bool
) -> None:
    with daemons.running(root, *ON_FINISH, *SOON):
        for seed in (1, 2):
            log(exp, seed, [float(seed)] * 3, num_seeds=2)
        wait_until_merged(exp, 1, 2)
        log(exp, 1, [7.0], overwrite=overwrite)
        wait_for(lambda: merged(exp)["seed_1"] == [7.0])
    assert merged(exp) == {"seed_1": [7.0], "seed_2": [2.0] * 3}
    assert load_log(exp).seed_1.stats.loss.tolist() == [7.0]
    replaced = root / ".mle" / "replaced"
    kept = [losses(path) for path in replaced.iterdir()] if replaced.is_dir() else []
    assert kept == ([] if overwrite else [{"seed_1": [1.0] * 3}])


# --- reading meanwhile ----------------------------------------------------------------------------
MERGES = """
import sys
from mle_client import merge_seed_logs
exp = sys.argv[1]
print("ready", flush=True)
for i in range(10**6):
    merge_seed_logs(f"{exp}/logs/{'all' if i % 2 else 'log'}.hdf5", exp)
    if sys.stdin in __import__("select").select([sys.stdin], [], [], 0)[0]:
        break
"""


def test_whoever_loads_while_seeds_are_merged_finds_all_of_them(exp: Path) -> None:
    expected = {f"seed_{i}": [float(i)] * i for i in range(1, 4)}
    for seed, values in expected.items():
        write_log(exp, seed, values)
    with subprocess.Popen(
        [sys.executable, "-c", MERGES, str(exp)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=daemons.environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        inodes: set[int] = set()
        loads = 0
        while loads < 200 or len(inodes) <= 5:  # they are merged again and again
            loads += 1
            runs = load_log(exp)
            assert {seed: run.stats.loss.tolist() for seed, run in runs.items()} == expected
            inodes.add(min(os.scandir(exp / "logs"), key=lambda entry: entry.name).inode())
        process.communicate(b"\n")
    assert process.returncode == 0


# --- by hand --------------------------------------------------------------------------------------
def test_several_mergers_at_once_do_not_disturb_each_other(root: Path, exp: Path) -> None:
    expected = {f"seed_{i}": [float(i)] for i in range(8)}
    for seed, values in expected.items():
        write_log(exp, seed, values)
    command = [*daemons.PROGRAM, "merge", "--root", str(root), "--json"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=daemons.environment())
        for _ in range(2)
    ]
    merge_group(str(exp))
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    for output in outputs:
        assert list(json.loads(output)["groups"][0]["seeds"]) == list(expected)
    assert merged(exp) == expected
    assert names(exp) == ["log.hdf5"]
    assert leftovers(root) == []


def test_a_folder_of_mle_logging_s_is_merged_by_hand(root: Path, exp: Path) -> None:
    for i in (1, 2):
        write_foreign(exp / f"logs/log_seed_{i}.hdf5", {f"seed_{i}": [float(i)]})
    (exp / "logs/log_seed_3.hdf5").write_bytes(b"x")
    done = daemons.mle_daemon("merge", "--root", str(root))
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        6,
        "exp: 2 seeds, 2 added, 1 left out",
    )
    assert "log_seed_3.hdf5: not a readable HDF5 file" in done.stderr
    assert merged(exp) == {"seed_1": [1.0], "seed_2": [2.0]}


def test_merging_by_hand_beside_a_daemon_takes_what_it_has_and_leaves_it_what_goes_on(
    root: Path, exp: Path
) -> None:
    with daemons.running(root, *ON_FINISH, *NEVER):
        log(exp, 1, [1.0])
        with crashing(exp, 2):
            log(exp, 3, [3.0])
            done = daemons.mle_daemon("merge", "--root", str(root))
            assert done.returncode == 7
            assert "seed_2 is still running: merge again when it has ended" in done.stderr
            assert merged(exp) == {"seed_1": [1.0], "seed_3": [3.0]}
    assert merged(exp) == {"seed_1": [1.0], "seed_2": [0.0, 1.0, 2.0, 3.0, 4.0], "seed_3": [3.0]}
    assert names(exp) == ["log.hdf5"]


MEASURES = """
import sys
import h5py, psutil
from mle_client.merge import merge_group
process = psutil.Process()
before = process.memory_info().rss
merge_group(sys.argv[1])
import resource
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.mark.long
def test_many_large_seeds_are_merged_in_little_memory(exp: Path) -> None:
    logs = exp / "logs"
    logs.mkdir(parents=True)
    numbers = np.random.default_rng(0).random(64_000)
    for i in range(200):
        with h5py.File(logs / f"log_seed_{i}.hdf5", "w") as file:
            file[f"seed_{i}/stats/loss"] = numbers + i  # 0.5 MB
            file[f"seed_{i}/time/num_updates"] = np.arange(1, 64_001)
    done = subprocess.run(
        [sys.executable, "-c", MEASURES, str(exp)],
        capture_output=True, text=True, env=daemons.environment(), check=True,
    )  # fmt: skip
    assert int(done.stdout) < 64 * 2**20
    assert names(exp) == ["log.hdf5"]
    assert os.path.getsize(logs / "log.hdf5") > 200e6


# --- by user code ---------------------------------------------------------------------------------
def test_a_process_may_merge_what_it_logs_itself(root: Path, exp: Path) -> None:
    path = exp / "logs" / "log.hdf5"
    with daemons.running(root, "--merge", "off"):
        with contextlib.ExitStack() as stack:
            loggers = [
                stack.enter_context(MLELogger(str(exp), ["step"], ["loss"], seed_id=seed))
                for seed in (1, 2)
            ]
            for logger in loggers:
                logger.update({"step": 0}, {"loss": 0.5})
            with pytest.warns(UserWarning, match="merged as far as it got, and its own log stays"):
                report = merge_seed_logs(path, exp, num_logs=2, timeout=20)
            assert losses(path) == {"seed_1": [0.5], "seed_2": [0.5]}
            assert (report.seeds, len(names(exp))) == (
                {"seed_1": "running", "seed_2": "running"},
                3,
            )
            for logger in loggers:
                logger.update({"step": 1}, {"loss": 0.25})
        merge_seed_logs(path, exp, num_logs=2, timeout=20)
    assert losses(path) == {"seed_1": [0.5, 0.25], "seed_2": [0.5, 0.25]}
    assert names(exp) == ["log.hdf5"]


def test_runs_of_other_processes_are_waited_for_as_long_as_was_said(root: Path, exp: Path) -> None:
    path = exp / "logs" / "log.hdf5"
    with daemons.running(root, "--merge", "off"):
        log(exp, 1, [1.0])
        with crashing(exp, 2):
            with pytest.raises(TimeoutError, match="1 of 2 seeds have ended"):
                merge_seed_logs(path, exp, num_logs=2, timeout=0.5)
            reports: list[Any] = []
            thread = threading.Thread(
                target=lambda: reports.append(merge_seed_logs(path, exp, 2, timeout=30))
            )
            thread.start()
        thread.join()
    assert reports[0].seeds == {"seed_1": "finished", "seed_2": "crashed"}
    assert names(exp) == ["log.hdf5"]


def test_what_the_daemon_has_merged_may_be_merged_under_another_name(root: Path, exp: Path) -> None:
    with daemons.running(root, *ON_FINISH, *SOON):
        for seed in (1, 2):
            log(exp, seed, [float(seed)], num_seeds=2)
        wait_until_merged(exp, 1, 2)
        merge_seed_logs(exp / "logs" / "all.hdf5", exp, num_logs=2, timeout=20)
        assert names(exp) == ["all.hdf5"]
        log(exp, 1, [5.0], reload=True)
        assert load_log(exp).seed_1.stats.loss.tolist() == [1.0, 5.0]
        merge_seed_logs(exp / "logs" / "all.hdf5", exp, timeout=20)
    assert losses(exp / "logs/all.hdf5") == {"seed_1": [1.0, 5.0], "seed_2": [2.0]}
