"""The loggers of this process: closed at exit, told of a fork, flushed before somebody reads.

A logger that user code has dropped still has ticks to deliver.  So none is held here but by a weak
reference, and when the garbage collector finds that nobody else refers to it, it is held until it
has ended.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
import weakref
from typing import Any, Final, Protocol

from mle_client import control

# At exit, for all loggers of the process together: long enough for a daemon that is being started
# on a busy machine, short enough that nobody takes the program for hung.
EXIT_TIMEOUT_S: Final = 10.0
# Loggers that are made before the first collection of those that were dropped.  Each has two file
# descriptors, of which a process usually may have 1,024; the collector by itself comes when much
# memory has been taken, and a logger is little.
COLLECT_AT: Final = 32
# That were dropped and have not ended, before who makes another one waits: as where loggers are
# made faster than a daemon can be started.  Each of them ends, or is given up, in `EXIT_TIMEOUT_S`.
MAX_DROPPED: Final = 64
_LOOK_EVERY_S: Final = 0.005


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

    def dropped(self) -> None:
        """User code has dropped it: end in the background.  Called by the garbage collector."""


class _Lease:
    """What a logger has and nobody else: the garbage collector calls `__del__`, once, when nobody
    refers to the logger any more, in whatever thread and in the middle of whatever.
    """

    __slots__ = ("_logger",)

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def __del__(self) -> None:
        logger = self._logger
        if _LOGGERS.pop(id(logger), None) is not None:  # else it was closed
            _DROPPED[id(logger)] = logger
            logger.dropped()


# By id; each step that changes them is one that no other thread can come between.
_LOGGERS: dict[int, weakref.ref[Any]] = {}  # of `Closable`
_DROPPED: dict[int, Any] = {}  # that have not ended yet
_collect_at = COLLECT_AT
_registered_in: int = 0  # the process in which `close_all` is registered


def register(logger: Closable) -> None:
    """Close a logger when this process ends, also where `multiprocessing` ends it."""
    global _registered_in
    _LOGGERS[id(logger)] = weakref.ref(logger)
    if not hasattr(logger, "_lease"):
        setattr(logger, "_lease", _Lease(logger))  # noqa: B010  # no part of what it is
    _collect_dropped()
    _wait_for_dropped()
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


def _collect_dropped() -> None:
    """Have the garbage collector look for loggers that were dropped, where there are many."""
    global _collect_at
    if len(_LOGGERS) >= _collect_at:
        gc.collect()
        _collect_at = max(COLLECT_AT, 2 * len(_LOGGERS))


def _wait_for_dropped() -> None:
    """Wait while too many that were dropped have not ended."""
    deadline = time.monotonic() + EXIT_TIMEOUT_S
    while len(_DROPPED) > MAX_DROPPED and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)


def forget(logger: Closable) -> None:
    """A logger was closed."""
    _LOGGERS.pop(id(logger), None)
    _DROPPED.pop(id(logger), None)


def all_loggers() -> list[Any]:
    """Those that have not ended."""
    found = [reference() for reference in list(_LOGGERS.values())]
    return [*(logger for logger in found if logger is not None), *list(_DROPPED.values())]


def close_all(timeout: float = EXIT_TIMEOUT_S) -> None:
    """Close every logger of this process.  Args: timeout: seconds, for all together."""
    deadline = time.monotonic() + timeout
    failures = []
    for logger in all_loggers():
        try:
            logger.close(max(0.0, deadline - time.monotonic()))
        except Exception as error:  # the others are closed all the same
            failures.append(error)
    if failures:
        raise failures[0]


def close_writers_of(path: str) -> None:
    """Close the loggers of this process that write a log, for another one that continues it."""
    for logger in all_loggers():
        if logger.stored_as()[0] == path:
            logger.close(EXIT_TIMEOUT_S)


def make_way_for(path: str) -> None:
    """Have the loggers of this process that write a log make way for one that begins it anew."""
    for logger in all_loggers():
        if logger.stored_as()[0] == path:
            logger.make_way()


def is_logging(path: str) -> bool:
    """Whether a logger of this process writes a log."""
    real = os.path.realpath(path)
    return any(logger.stored_as()[0] == real for logger in all_loggers())


def _flush_before_reading(path: str, timeout: float) -> None:
    """Bring what this process logged under a path into the files.

    Args:
        path: of what is to be read.
        timeout: seconds, for all loggers together; one that waits in vain leaves the others theirs.
    """
    folder = path.rstrip("/") + "/"
    deadline = time.monotonic() + timeout
    asked = []
    for logger in all_loggers():
        stored = logger.stored_as()[0]
        # A model, figure or object of the run lies in the folder above that of its log.
        experiment = os.path.dirname(os.path.dirname(stored)) + "/"
        if stored == path or f"{stored}/".startswith(folder) or path.startswith(experiment):
            asked.append(logger)
    for waiting in range(len(asked), 0, -1):
        asked[-waiting].flush(max(0.0, deadline - time.monotonic()) / waiting)


control.BEFORE_READING.append(_flush_before_reading)


def _after_fork_in_child() -> None:
    for logger in all_loggers():
        logger.forked()
    _DROPPED.clear()  # the parent ends them
