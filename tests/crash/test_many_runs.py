"""One daemon takes a thousand runs at once, with few descriptors and bounded memory."""

from __future__ import annotations

import faulthandler
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

from mle_client import MLELogger, load_log
from tests.integration import daemons

DESCRIPTORS: Final = 256  # that the daemon may have
TICKS: Final = 10
# What the daemon may take: 80 MB, and 64 KiB for each run.
_DAEMON_BYTES: Final = 80_000_000
_RUN_BYTES: Final = 64 * 1024

pytestmark = pytest.mark.crash


@pytest.fixture
def daemon(root: Path) -> Iterator[psutil.Process]:
    """One with few descriptors."""
    limit = (DESCRIPTORS, DESCRIPTORS)
    process = subprocess.Popen(
        [*daemons.PROGRAM, "start", "--root", str(root), "--foreground"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit),
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield psutil.Process(process.pid)
    finally:
        daemons.stop(root)
        process.communicate()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """For this process: each logger has some."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_runs_at_once(root: Path, daemon: psutil.Process) -> None:
    faulthandler.cancel_dump_traceback_later()  # this takes longer than a test that hangs may
    runs = 1000
    logs = [MLELogger(str(root / f"run_{i}"), ["step"], ["loss"], seed_id=1) for i in range(runs)]
    for step in range(TICKS):
        for i, log in enumerate(logs):
            log.update({"step": step}, {"loss": float(i)})
    for log in logs:
        report = log.close(timeout=60)
        assert (report.delivered, report.spilled, report.lost) == (TICKS, 0, 0)
        assert log.errors() == []
    peak = next(
        int(line.split()[1]) * 1024
        for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    print(f"{runs} runs at once: {daemon.num_fds()} descriptors, at most {peak / 1e6:.0f} MB")
    assert peak <= _DAEMON_BYTES + runs * _RUN_BYTES
    for i in range(runs):
        run = load_log(str(root / f"run_{i}")).seed_1
        assert run.stats.loss.tolist() == [float(i)] * TICKS


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_hundred_clients_at_once(root: Path, daemon: psutil.Process) -> None:
    faulthandler.cancel_dump_traceback_later()  # as above
    clients = 200
    pids = []
    for i in range(clients):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                log = MLELogger(str(root / f"run_{i % 20}"), seed_id=i)
                for step in range(TICKS):
                    log.update({"step": step}, {"loss": float(i)})
                report = log.close(timeout=120)
                code = 0 if (report.delivered, report.lost) == (TICKS, 0) else 2
            finally:
                os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert set(codes) == {0}
    assert daemon.num_fds() < DESCRIPTORS
    for folder in range(20):
        runs = load_log(str(root / f"run_{folder}"))
        assert len(runs.eval_ids) == clients // 20
        for i in range(folder, clients, 20):
            assert runs[f"seed_{i}"].stats.loss.tolist() == [float(i)] * TICKS
