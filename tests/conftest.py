"""What every test has: a runtime directory of its own, and a check that it leaves nothing behind.

The check looks for processes, file descriptors and threads of ours.  A leak fails the test that
left it, and leaked processes are ended by their pid, so that the next test starts clean.  Tests ask
for the fixture `root` where they need a folder to log into.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

# No deadlines: machines that run tests are shared.  In CI the examples are the same on every run,
# so that a change is judged by what it changes; a new failure is found by `dev` and `long`.
settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("dev", max_examples=100, deadline=None)
settings.register_profile("long", max_examples=5_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))

# Helpers whose assertions are to say what they found, as those of the test modules do.
pytest.register_assert_rewrite(
    "tests.crash.power_cuts",
    "tests.crash.recorded_disk",
    "tests.crash.recorded_work",
    "tests.crash.saves",
    "tests.crash.storage",
    "tests.integration.daemons",
    "tests.integration.sequences",
)

# Settings of the caller's shell that would change what a daemon or a logger does.
FOREIGN_SETTINGS = (
    "MLE_DAEMON",
    "MLE_KEYS",
    "MLE_SYNC",
    "MLE_ON_FULL",
    "MLE_SPILL_BYTES",
    "MLE_KEEP_SEED_LOGS",
    "NOTIFY_SOCKET",
)
DESCRIPTORS = Path("/proc/self/fd")  # Linux; elsewhere descriptors go unchecked
# Helpers that multiprocessing starts when first needed and keeps until the interpreter exits.
KEPT_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


# A shell has what it starts in the background ignore Ctrl-C, as would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("leak_grace_s", "seconds that a test's processes have to be gone", default="10")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder for a daemon to own."""
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def runtime_dir() -> Iterator[Path]:
    """Where this test's sockets and rings go, so that it never meets a daemon of the user's.

    Not under `tmp_path`: the address of an ipc socket ends at 107 bytes.
    """
    shortest = "/tmp" if os.access("/tmp", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="mle-", dir=shortest))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLE_RUNTIME_DIR", str(path))
        # Tests look at the logs of single seeds; those of merging ask for it.
        patch.setenv("MLE_MERGE", "off")
        for name in FOREIGN_SETTINGS:
            patch.delenv(name, raising=False)
        yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def nothing_left_behind(runtime_dir: Path, pytestconfig: pytest.Config) -> Iterator[None]:
    """Fail the test if a process, file descriptor or thread of its own outlives it."""
    pids = {process.pid for process in psutil.Process().children(recursive=True)}
    files = _descriptors()
    threads = set(threading.enumerate())
    yield
    grace_end = time.monotonic() + float(pytestconfig.getini("leak_grace_s"))
    while leaks := _leaks(runtime_dir, pids, files, threads):
        gc.collect()  # an error's traceback may hold what its handler has given up
        if time.monotonic() > grace_end:
            _end([process for process in _processes(runtime_dir) if process.pid not in pids])
            pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)
        time.sleep(0.02)


def _leaks(
    runtime_dir: Path, pids: set[int], files: dict[int, str], threads: set[threading.Thread]
) -> list[str]:
    """What is there now and was not there before, in words."""
    leaks = [
        f"process {process.pid} ({' '.join(_command(process))[:200]})"
        for process in _processes(runtime_dir)
        if process.pid not in pids
    ]
    leaks += [
        f"file descriptor {number} ({target})"
        for number, target in _descriptors().items()
        if files.get(number) != target
    ]
    leaks += [
        f"thread {thread.name}"
        for thread in threading.enumerate()
        if thread.name.startswith("mle-") and thread not in threads
    ]
    return leaks


def _processes(runtime_dir: Path) -> list[psutil.Process]:
    """Living descendants of this process, and daemons that were started under `runtime_dir`.

    A daemon has left its parent, but keeps the environment it was started with.
    """
    descendants = set(psutil.Process().children(recursive=True))
    return [
        process
        for process in psutil.process_iter()
        if (process in descendants or _is_daemon_of(process, runtime_dir)) and _is_alive(process)
    ]


def _is_daemon_of(process: psutil.Process, runtime_dir: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        environment = process.environ()
        return (
            environment.get("MLE_RUNTIME_DIR") == str(runtime_dir)
            and process.pid != os.getpid()
            and any("mle_daemon" in word or "mle-daemon" in word for word in process.cmdline())
        )
    return False


def _is_alive(process: psutil.Process) -> bool:
    """Whether it runs and is ours to mind.  A zombie runs no more; its parent reaps it."""
    with contextlib.suppress(psutil.Error):
        words = _command(process)
        return process.status() != psutil.STATUS_ZOMBIE and not any(
            helper in word for helper in KEPT_HELPERS for word in words
        )
    return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _descriptors() -> dict[int, str]:
    """The open file descriptors of this process and what they lead to."""
    if not DESCRIPTORS.is_dir():
        return {}
    found = {}
    for name in os.listdir(DESCRIPTORS):
        with contextlib.suppress(FileNotFoundError):  # the one that listed the directory
            found[int(name)] = os.readlink(DESCRIPTORS / name)
    found.pop(getattr(resource_tracker._resource_tracker, "_fd", None) or -1, None)
    return found


def _end(processes: list[psutil.Process]) -> None:
    """End processes by their pid: politely, then for good."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=1)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=5)
