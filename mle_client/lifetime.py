"""The loggers of this process: closed at exit, told of a fork, flushed before somebody reads.

References are strong: a logger that user code dropped still has ticks to deliver.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from typing import Any, Final, Protocol

from mle_client import control

# At exit, for all loggers of the process together: long enough for a daemon that is being started
# on a busy machine, short enough that nobody takes the program for hung.
EXIT_TIMEOUT_S: Final = 10.0


class Closable(Protocol):
    """What this module wants of a logger."""

    def close(self, timeout: float) -> Any:
        """End the run, waiting so many seconds at the most."""

    def flush(self, timeout: float) -> bool:
        """Bring the log up to date, waiting so many seconds at the most."""

    def stored_as(self) -> tuple[str, str]:
        """Path of the log and name of the seed in it."""

    def make_way(self) -> None:
        """Another logger of this process takes the name."""

    def forked(self) -> None:
        """Take note of being in a forked child."""


_LOGGERS: set[Any] = set()  # of `Closable`
_registered_in: int = 0  # the process in which `close_all` is registered


def register(logger: Closable) -> None:
    """Close a logger when this process ends, also where `multiprocessing` ends it."""
    global _registered_in
    _LOGGERS.add(logger)
    if _registered_in == os.getpid():
        return
    if _registered_in == 0:
        atexit.register(close_all)
        # Not before: what runs after a fork runs in the order of registration, and `transport` must
        # have let go of the parent's thread before a logger asks it for a new one.
        os.register_at_fork(after_in_child=_after_fork_in_child)
    _registered_in = os.getpid()
    if "multiprocessing" in sys.modules:  # its children leave by os._exit, without atexit
        from multiprocessing.util import Finalize

        Finalize(None, close_all, exitpriority=100)


def forget(logger: Closable) -> None:
    """A logger was closed."""
    _LOGGERS.discard(logger)


def close_all(timeout: float = EXIT_TIMEOUT_S) -> None:
    """Close every logger of this process.  Args: timeout: seconds, for all together."""
    deadline = time.monotonic() + timeout
    failures = []
    for logger in list(_LOGGERS):
        try:
            logger.close(max(0.0, deadline - time.monotonic()))
        except Exception as error:  # the others are closed all the same
            failures.append(error)
    if failures:
        raise failures[0]


def close_writers_of(path: str) -> None:
    """Close the loggers of this process that write a log, for another one that continues it."""
    for logger in list(_LOGGERS):
        if logger.stored_as()[0] == path:
            logger.close(EXIT_TIMEOUT_S)


def make_way_for(path: str) -> None:
    """Have the loggers of this process that write a log make way for one that begins it anew."""
    for logger in list(_LOGGERS):
        if logger.stored_as()[0] == path:
            logger.make_way()


def is_logging(path: str) -> bool:
    """Whether a logger of this process writes a log."""
    real = os.path.realpath(path)
    return any(logger.stored_as()[0] == real for logger in list(_LOGGERS))


def _flush_before_reading(path: str, timeout: float) -> None:
    """Bring what this process logged under a path into the files.

    Args:
        path: of what is to be read.
        timeout: seconds, for all loggers together; one that waits in vain leaves the others theirs.
    """
    folder = path.rstrip("/") + "/"
    deadline = time.monotonic() + timeout
    asked = []
    for logger in list(_LOGGERS):
        stored = logger.stored_as()[0]
        # A model, figure or object of the run lies in the folder above that of its log.
        experiment = os.path.dirname(os.path.dirname(stored)) + "/"
        if stored == path or f"{stored}/".startswith(folder) or path.startswith(experiment):
            asked.append(logger)
    for waiting in range(len(asked), 0, -1):
        asked[-waiting].flush(max(0.0, deadline - time.monotonic()) / waiting)


control.BEFORE_READING.append(_flush_before_reading)


def _after_fork_in_child() -> None:
    for logger in list(_LOGGERS):
        logger.forked()
