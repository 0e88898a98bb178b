"""Loggers and daemons that begin and end many times: nothing is left of them, and nothing hangs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from mle_client import MLELogger, layout, load_log, runtime
from mle_client.lifetime import COLLECT_AT
from tests.integration import daemons

TICKS: Final = 10
# Of a trainer that never closes a logger: enough for 128 at once.
DESCRIPTORS: Final = 256
# The first loggers of a process load modules and fill caches; later ones may take no more.
WARM_UP: Final = 5

pytestmark = pytest.mark.crash


def held() -> dict[str, int]:
    """What this process has of everything that a logger takes."""
    process = psutil.Process()
    return {
        "descriptors": process.num_fds(),
        "threads": threading.active_count(),
        "children": len(process.children(recursive=True)),
        "mappings": sum("mle" in each.path for each in process.memory_maps(grouped=False)),
    }


def files(*folders: str) -> list[str]:
    """Every file and socket below some folders."""
    return [os.path.join(where, name) for f in folders for where, _, n in os.walk(f) for name in n]


def daemons_of(root: Path) -> list[int]:
    """The processes that serve a root."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "mle_daemon" in words and str(root) in words:
            found.append(process.pid)
    return found


def complete(root: Path) -> int:
    """How many log files the daemon has finished: more than its `stop` has time for."""
    return Path(layout.state_path(str(root), layout.LOG_FILE)).read_text().count("is complete: f")


def log_a_little(folder: Path, seed: int) -> MLELogger:
    log = MLELogger(str(folder), seed_id=seed)
    for i in range(TICKS):
        log.update({"step": i}, {"x": float(seed)})
    return log


def assert_stored(folder: Path, runs: int) -> None:
    loaded: Any = load_log(str(folder))
    assert len(loaded.eval_ids) == runs
    for seed in range(runs):
        assert loaded[f"seed_{seed}"].stats.x.tolist() == [float(seed)] * TICKS


@pytest.mark.parametrize(
    "cycles", [30, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_loggers_that_begin_and_end(root: Path, runtime_dir: Path, cycles: int) -> None:
    with daemons.running(root) as daemon:
        server = psutil.Process(daemon["pid"])
        for seed in range(cycles):
            log = log_a_little(root / "exp", seed)
            assert log.close(timeout=30).delivered == TICKS
            if seed == WARM_UP:
                before, served = held(), server.num_fds()
        assert held() == before
        daemons.wait_for(lambda: server.num_fds() <= served + 2)  # what it has in hand just now
        assert files(*runtime.ring_dirs(str(root)), layout.state_path(str(root), "spill")) == []
        assert daemons_of(root) == [daemon["pid"]]
        assert_stored(root / "exp", cycles)
    assert [name for name in files(str(runtime_dir)) if not name.endswith(".json")] == []


@pytest.mark.parametrize(
    "cycles", [5, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(5000)])]
)
def test_daemons_that_begin_and_end(root: Path, runtime_dir: Path, cycles: int) -> None:
    """Each takes a run of one logger that lives on, and one of its own."""
    for seed in range(cycles):
        with daemons.running(root) as daemon:
            assert daemons_of(root) == [daemon["pid"]]
            assert log_a_little(root / "exp", seed).close(timeout=30).delivered == TICKS
        assert daemons_of(root) == []
        if seed == min(WARM_UP, cycles // 2):
            before, left = held(), sorted(files(str(runtime_dir), str(root / ".mle")))
    assert held() == before
    assert sorted(files(str(runtime_dir), str(root / ".mle"))) == left
    assert_stored(root / "exp", cycles)


@pytest.mark.parametrize(
    "runs",
    [5 * COLLECT_AT, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(600)])],
)
def test_a_sweep_that_never_closes_a_logger(root: Path, runs: int) -> None:
    """As programs for mle-logging never do."""
    text = f"""
import gc, os, sys
from mle_client import MLELogger

def train(seed):
    log = MLELogger(sys.argv[1], seed_id=seed)
    for i in range({TICKS}):
        log.update({{"step": i}}, {{"x": float(seed)}})

gc.disable()  # in a program with much in memory it comes as seldom
for seed in range({runs}):
    train(seed)
"""
    with daemons.running(root):
        done = subprocess.run(
            [sys.executable, "-c", text, str(root / "exp")],
            capture_output=True, text=True, timeout=500, env=daemons.environment(), check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS,) * 2),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        # What the last ones had left when their process gave up waiting, the daemon takes itself.
        daemons.wait_for(lambda: complete(root) == runs, timeout=200)
        assert files(*runtime.ring_dirs(str(root))) == []
        assert_stored(root / "exp", runs)
