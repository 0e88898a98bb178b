"""Brings a daemon up: in this process, or in the background and not returning before it is ready.

The daemon in the background is the same program again, run with `--foreground` in a session of its
own and with a pipe through which it says, in one line, where it listens.  The line is the only
sign of success; a pipe that ends without one means that the daemon ended, and its exit status and
last words say why.  They are in a file, for a daemon that lives on; what a full disk keeps from
that file comes through the pipe.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from logging.handlers import RotatingFileHandler
from typing import Final

from mle_client import layout
from mle_client.discovery import last_words, merge_options, python_command, python_environment
from mle_client.endpoint import Endpoint, live_daemon
from mle_client.errors import DaemonStartFailed, RootLocked
from mle_daemon import allocator, ownership
from mle_daemon.config import DaemonConfig

# What a daemon in the background writes to stderr: little, for its log is elsewhere, but the
# reason why it did not start, and the stacks of a crash in a C library.
_STDERR_FILE: Final = "daemon.err"
# So many containers more than before, and Python looks for cycles among them: ours make few, and a
# piece of ticks with text is thousands of lists, which were most of what decoding it took.
_NEW_OBJECTS: Final = 100_000
_LOG_BYTES: Final = 5_000_000  # then the log is put aside
_LOG_COPIES: Final = 2
# Another daemon that holds the root without taking clients is about to be ready or about to leave.
_OTHER_S: Final = 30.0
_POLL_S: Final = 0.05
_ATTEMPTS: Final = 3  # should another daemon take the root just then
_NAME: Final = "mle-daemon"  # begins what is said to the user
_STILL_WAITING_S: Final = 10.0  # a long journal takes minutes; the user should know


def say(text: object) -> None:
    """Tell the user something that is no data."""
    print(f"{_NAME}: {text}", file=sys.stderr, flush=True)


# --- in the background ----------------------------------------------------------------------------
def ensure_running(config: DaemonConfig) -> tuple[Endpoint, bool]:
    """Start a daemon in the background unless there is one, and wait until it takes clients.

    Returns:
        Where it listens, and whether it was there before.

    Raises:
        DaemonStartFailed: it ended; carries its last words and, as `exit_code`, its exit status.
        RootLocked: another process holds the root and takes no clients.
        PermissionError: the root cannot be written to.
    """
    ownership.state_dir(config.root)
    with _one_at_a_time(config.root):
        for attempt in range(1, _ATTEMPTS + 1):
            daemon = _other_daemon(config.root)
            if daemon is not None:
                return daemon, True
            try:
                return _spawn(config), False
            except DaemonStartFailed as error:
                if error.exit_code != RootLocked.exit_code or attempt == _ATTEMPTS:
                    raise
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def _one_at_a_time(root: str) -> Iterator[None]:
    """Keep other starts of a root waiting.  Only to spare them the work: `ownership` decides."""
    with open(layout.state_path(root, layout.START_LOCK_FILE), "ab") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _other_daemon(root: str) -> Endpoint | None:
    """The live daemon of a root, having waited for one that is coming up or leaving."""
    deadline = time.monotonic() + _OTHER_S
    while True:
        daemon = live_daemon(root)
        holder = ownership.owner(root)
        if daemon is not None or holder is None:
            return daemon
        if time.monotonic() > deadline:
            raise RootLocked(root, f"{holder}, which takes no clients")
        time.sleep(_POLL_S)


def _spawn(config: DaemonConfig) -> Endpoint:
    stderr_path = layout.state_path(config.root, _STDERR_FILE)
    with contextlib.ExitStack() as stack:
        read_end, write_end = os.pipe()
        pipe = stack.enter_context(open(read_end, "rb", buffering=0))
        with open(write_end, "wb"), open(stderr_path, "wb") as stderr:
            process = subprocess.Popen(
                _command(config, write_end),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[write_end],
                start_new_session=True,
                cwd="/",  # not to keep a file system from being unmounted
                env=python_environment(),
            )
        line = _first_line(pipe.fileno(), lambda: _tell_waiting(config.root, process.pid))
    if line.endswith(b"\n"):
        process.returncode = 0  # it outlives us; nobody is to wait for it, or to miss that
        return Endpoint.from_json(line)
    status = process.wait()
    with open(stderr_path, "rb") as file:
        words = last_words(file.read() or line)
    if status < 0:
        words += f"\nit was ended by {signal.Signals(-status).name}"
    failure = DaemonStartFailed(config.root, words)
    failure.exit_code = max(status, 1)
    raise failure


def _command(config: DaemonConfig, ready_fd: int) -> list[str]:
    command = python_command("start", "--foreground", "--ready-fd", str(ready_fd))
    command += ["--root", config.root]
    if config.endpoint is not None:
        command += ["--endpoint", config.endpoint]
    if config.keys is not None:
        command += ["--keys", config.keys]
    if config.idle_timeout_s is not None:
        command += ["--idle-timeout", str(config.idle_timeout_s)]
    return command + merge_options(config.as_options())


def _first_line(descriptor: int, tell_waiting: Callable[[], None]) -> bytes:
    """What comes through a pipe up to the end of a line, or all of it if there is no such end."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([descriptor], [], [], _STILL_WAITING_S)[0]:
            tell_waiting()
        elif chunk := os.read(descriptor, 65536):
            line += chunk
        else:
            break
    return line


def _tell_waiting(root: str, pid: int) -> None:
    log = layout.state_path(root, layout.LOG_FILE)
    say(f"process {pid} still brings back what the last daemon left; {log} says how far it is")


# --- in this process ------------------------------------------------------------------------------
def run_here(
    config: DaemonConfig, announce: Callable[[Endpoint], None], ready_fd: int | None
) -> int:
    """Be the daemon.

    Args:
        config: of the daemon.
        announce: called when clients may come, unless somebody waits at a pipe for that.
        ready_fd: the pipe; None in the foreground.

    Returns:
        The exit status.
    """
    ownership.state_dir(config.root)
    _log_to(layout.state_path(config.root, layout.LOG_FILE), detached=ready_fd is not None)
    faulthandler.enable()
    # A thread that blocks signals may have started us, and that is inherited.
    wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
    allocator.use_one_arena()  # before there are threads
    gc.set_threshold(_NEW_OBJECTS)
    from mle_daemon import connection_limit, daemon  # loads HDF5, which the other verbs need not

    connection_limit.raise_limit()

    waiting = ready_fd  # None when nobody does any more

    def ready(endpoint: Endpoint) -> None:
        nonlocal waiting
        waiting = None
        if ready_fd is not None:
            _tell_through(ready_fd, endpoint.to_json() + "\n")
        else:
            announce(endpoint)
            notify_systemd("READY=1")

    try:
        return daemon.run(config, ready, ready_fd is not None)
    except Exception as error:
        if waiting is not None:
            _tell_through(waiting, f"{_NAME}: {' '.join(str(error).split())}")
        if not isinstance(error, RootLocked):  # then the log is the other daemon's
            logging.getLogger(__name__).exception("the daemon ended by an error")
        raise
    finally:
        if ready_fd is None:
            notify_systemd("STOPPING=1")


def _tell_through(descriptor: int, text: str) -> None:
    # Whoever started us may have lost patience.
    with contextlib.suppress(BrokenPipeError), open(descriptor, "w", encoding="utf-8") as pipe:
        pipe.write(text)


def _log_to(path: str, *, detached: bool) -> None:
    # Opened by the first line, which only the root's owner writes.
    handlers: list[logging.Handler] = [
        RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=_LOG_COPIES, delay=True)
    ]
    if not detached:
        handlers.append(logging.StreamHandler())
    logging.raiseExceptions = not detached  # a full disk would fill the other file, too
    logging.captureWarnings(True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=handlers,
        force=True,
    )


def notify_systemd(state: str) -> None:
    """Tell the service manager that started us, if one did, how far we are."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, contextlib.suppress(OSError):
        sender.sendto(state.encode(), address)
