"""Real processes log through a real daemon; every value is in the files once and in order."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import daemons
from tests.integration.sequences import assert_stored, log_sequence

PROCESSES = 8
TICKS = 10_000
SCRIPT = Path(__file__).with_name("plain_script.py")


def run_all(method: str, folder: Path, daemon: str | None = None, ticks: int = TICKS) -> None:
    """Log eight sequences from eight processes at once, and look at all of them."""
    context = multiprocessing.get_context(method)
    processes = [
        context.Process(target=log_sequence, args=(str(folder), seed, ticks, daemon))
        for seed in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    for seed in range(PROCESSES):
        assert_stored(folder, seed, ticks)


def test_eight_spawned_processes_through_one_daemon(root: Path) -> None:
    with daemons.running(root):
        run_all("spawn", root / "run")
        report = daemons.status(root)
    assert len(report["runs"]) == PROCESSES
    for run in report["runs"]:
        assert run["state"] == "finished"
        assert run["ticks"] == {
            "received": TICKS, "journaled": TICKS, "published": TICKS, "lost": 0
        }  # fmt: skip


def test_eight_forked_processes_with_no_daemon_started_by_hand(root: Path) -> None:
    run_all("fork", root / "run")
    daemons.wait_until_gone(root / "run")


def test_eight_spawned_processes_with_no_daemon_started_by_hand(root: Path) -> None:
    run_all("spawn", root / "run", ticks=2_000)
    daemons.wait_until_gone(root / "run")


def test_eight_processes_over_tcp(root: Path) -> None:
    with daemons.running(root, "--endpoint", "tcp://127.0.0.1:0") as daemon:
        assert daemon["endpoint"].startswith("tcp://127.0.0.1:")
        run_all("spawn", root / "run", daemon["endpoint"])


@pytest.mark.parametrize("with_daemon", [False, True])
def test_a_plain_script_without_a_main_guard(root: Path, with_daemon: bool) -> None:
    if with_daemon:
        daemons.start(root)
    folder = root / "run"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "3", "1000"],
        capture_output=True, text=True, timeout=60, check=False, cwd=Path.cwd(),
        env=daemons.environment(),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert_stored(folder, 3, 1000)
    if with_daemon:
        daemons.stop(root)
    else:
        daemons.wait_until_gone(folder)


def test_killing_the_daemon_ten_times_is_not_noticed(root: Path) -> None:
    folder = root / "run"
    daemons.start(root)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=log_sequence, args=(str(folder), seed, TICKS, None, 0.25))
        for seed in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    daemons.wait_for(lambda: (folder / "logs").exists())
    killed: set[int] = set()
    while len(killed) < 10:
        killed.add(daemons.kill_the_next(root, killed))
    assert any(process.is_alive() for process in processes), "they were through too early"
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    for seed in range(PROCESSES):
        assert_stored(folder, seed, TICKS)
    daemons.stop(root)
