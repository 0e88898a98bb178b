"""A place for one measurement: an empty root with a daemon of its own, away from the user's.

The daemon runs as our child in the foreground, so that what it used is known to the microsecond,
also after its end.  Rings and sockets lie in shared memory, as they do for users.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import psutil

from mle_client import MLELogger, discovery, layout, runtime

# Of the caller's shell: they would send what we log to another daemon, or make every save wait.
_FOREIGN_SETTINGS: Final = (
    *(
        "MLE_DAEMON",
        "MLE_SYNC",
        "MLE_ON_FULL",
        "MLE_SPILL_BYTES",
        "MLE_MERGE",
        "MLE_KEEP_SEED_LOGS",
        "NOTIFY_SOCKET",
    ),
)
_STOP_TIMEOUT_S: Final = 120.0
_CPU_CLOCK: Final = 2  # Linux: CPUCLOCK_SCHED, the CPU time of all threads of a process


def cpu_s(pid: int) -> float:
    """CPU time that a running process has used so far, all threads, in seconds."""
    if sys.platform == "linux":  # what clock_getcpuclockid(3) returns; psutil counts in 10 ms
        return time.clock_gettime((~pid << 3) | _CPU_CLOCK)
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


class Workspace:
    """A root with a daemon.

    Args:
        root: its folder.
        options: of the command line.  Without any it merges nothing: the logs of seeds stay.
        program: a command that is run in place of `python -m mle_daemon`.
    """

    def __init__(self, root: Path, *options: str, program: Sequence[str] = ()) -> None:
        self.root = root
        words = ["start", "--root", str(root), "--foreground", "--json"]
        words += options or ("--merge", "off")
        self._daemon = subprocess.Popen(
            [*program, *words] if program else discovery.python_command(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=discovery.python_environment(),
        )
        assert self._daemon.stdout is not None
        json.loads(self._daemon.stdout.readline())  # it is ready

    def logger(self, name: str, seed: int = 1) -> MLELogger:
        """A logger of a run under the root."""
        return MLELogger(experiment_dir=str(self.root / name), seed_id=seed)

    def log_file(self, name: str, seed: int = 1) -> Path:
        """Where the run's log is."""
        return Path(layout.log_path(str(self.root / name), f"seed_{seed}"))

    def stored_ticks(self, name: str, seed: int = 1) -> int:
        """How many ticks the run's log holds."""
        with h5py.File(self.log_file(name, seed)) as file:
            return len(file[f"seed_{seed}/time/num_updates"])

    @property
    def daemon_pid(self) -> int:
        """The daemon's process."""
        return self._daemon.pid

    def daemon_cpu_s(self) -> float:
        """CPU time that the daemon has used so far, in seconds."""
        return cpu_s(self._daemon.pid)

    def daemon_written_bytes(self) -> int:
        """Bytes that the daemon has written to files and sockets so far."""
        counters: Any = psutil.Process(self._daemon.pid).io_counters()
        return int(counters.write_chars)

    def stop(self) -> float:
        """Stop the daemon, which brings everything to disk first.

        Returns:
            CPU time that it used in all, in seconds.
        """
        if self._daemon.returncode is not None:
            raise ValueError("the daemon was stopped before")
        os.kill(self._daemon.pid, signal.SIGTERM)  # `send_signal` would reap it had it ended
        with _killing_after(self._daemon, _STOP_TIMEOUT_S):
            _, status, used = os.wait4(self._daemon.pid, 0)
        self._daemon.returncode = os.waitstatus_to_exitcode(status)
        assert self._daemon.stdout is not None
        self._daemon.stdout.close()
        if self._daemon.returncode != 0:
            raise RuntimeError(f"the daemon ended with {self._daemon.returncode}: see {self.root}")
        return used.ru_utime + used.ru_stime

    def kill(self) -> None:
        """Kill the daemon, which leaves what it has in its journal."""
        self._daemon.kill()
        self._daemon.wait()
        assert self._daemon.stdout is not None
        self._daemon.stdout.close()

    @property
    def running(self) -> bool:
        """Whether the daemon was not stopped yet."""
        return self._daemon.returncode is None


@contextlib.contextmanager
def _killing_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """End a process for good should it not end by itself."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextlib.contextmanager
def private_folders() -> Iterator[Path]:
    """Point loggers and daemons, ours and those of our children, to folders of our own.

    Yields:
        A folder on disk, empty; it goes in the end.
    """
    in_memory = runtime.SHARED_MEMORY if os.access(runtime.SHARED_MEMORY, os.W_OK) else None
    sockets = tempfile.mkdtemp(prefix="mle-bench-", dir=in_memory)
    folder = tempfile.mkdtemp(prefix="mle-bench-")
    foreign = dict.fromkeys(_FOREIGN_SETTINGS)
    try:
        with variables({**foreign, runtime.RUNTIME_VARIABLE: sockets}):
            yield Path(os.path.realpath(folder))
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of the environment, or take them away where the value is None, for a while."""
    before = {name: os.environ.pop(name, None) for name in values}
    os.environ.update({name: value for name, value in values.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def workspace(program: Sequence[str] = ()) -> Iterator[Workspace]:
    """A workspace whose daemon is stopped, and whose files go, in the end.

    Args:
        program: as of `Workspace`.
    """
    with private_folders() as folder:
        root = folder / "root"
        root.mkdir()
        space = Workspace(root, program=program)
        try:
            yield space
        finally:
            if space.running:
                space.stop()


@contextlib.contextmanager
def watched_workspace(profiled: str = "") -> Iterator[tuple[Workspace, Path]]:
    """A workspace whose daemon tells of its threads when it has left.

    Args:
        profiled: the thread whose functions are timed; "" for none.

    Yields:
        It, and the file in which `watched_daemon` reports.
    """
    with tempfile.TemporaryDirectory(prefix="mle-bench-") as folder:
        report = Path(folder) / "report"
        program = Path(__file__).with_name("watched_daemon.py")
        command = [sys.executable, "-P", str(program), str(report), profiled]
        with workspace(command) as space:
            yield space, report
