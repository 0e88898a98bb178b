"""Daemons for tests: started as a user starts them, ended whatever the test does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from mle_client import discovery
from mle_client.endpoint import is_running, read_endpoint

PROGRAM = [sys.executable, "-m", "mle_daemon"]


def mle_daemon(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run `mle-daemon` with some arguments."""
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


def start(root: Path, *options: str) -> dict[str, Any]:
    """Start a daemon and return what it says of itself."""
    done = mle_daemon("start", "--root", str(root), "--json", *options)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def status(root: Path) -> dict[str, Any]:
    """The status report of a root's daemon."""
    done = mle_daemon("status", "--root", str(root), "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def stop(root: Path) -> None:
    """Stop a daemon, which must have everything on disk."""
    done = mle_daemon("stop", "--root", str(root))
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running(root: Path, *options: str) -> Iterator[dict[str, Any]]:
    """A daemon that is stopped in the end."""
    said = start(root, *options)
    try:
        yield said
    finally:
        stop(root)


def kill_the_next(root: Path, killed: set[int]) -> int:
    """SIGKILL the root's daemon as soon as there is one that was not killed before.

    Returns:
        The pid it had.
    """
    endpoint = wait_for(
        lambda: (e := read_endpoint(str(root))) and e.pid not in killed and is_running(e) and e
    )
    os.kill(endpoint.pid, signal.SIGKILL)
    wait_for(lambda: not is_running(endpoint))
    return int(endpoint.pid)


def kill_all(root: Path) -> None:
    """SIGKILL the daemons of a root, those too that somebody is just starting."""
    while found := [process for process in psutil.process_iter() if _is_of(process, str(root))]:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait(10)


def _is_of(process: psutil.Process, root: str) -> bool:
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        is_alive = process.status() != psutil.STATUS_ZOMBIE
        return is_alive and "mle_daemon" in words and root in words
    return False


def environment() -> dict[str, str]:
    """An environment in which scripts of the tests find the packages."""
    return discovery.python_environment()


def wait_until_gone(root: Path, timeout: float = 30.0) -> None:
    """Wait until a daemon that leaves by itself has left."""
    wait_for(lambda: (e := read_endpoint(str(root))) is None or not is_running(e), timeout)


def end_all(timeout: float = 30.0) -> None:
    """End the daemons that this test's programs have started, also of roots that are removed."""
    ours = os.environ["MLE_RUNTIME_DIR"]
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_daemon = "mle_daemon" in process.cmdline()
            if is_daemon and process.environ().get("MLE_RUNTIME_DIR") == ours:
                process.terminate()
                found.append(process)
    _, alive = psutil.wait_procs(found, timeout)
    assert not alive, alive


def wait_for(condition: Callable[[], Any], timeout: float = 30.0) -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value
