"""Keeps a bound socket from taking more connections than this process has descriptors for.

Each connection takes one.  libzmq ends the process where it finds none for another connection on an
ipc socket (4.3.5, `ipc_listener.cpp`), and journal, logs and artifacts need some, too.  So the
socket listens no more while few are left.  ZeroMQ then ends the connections that it has taken; its
clients connect again by themselves, and send again what was not acknowledged, when it listens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import time
from collections.abc import Callable
from typing import Any, Final

import zmq

from mle_daemon import limits

# Descriptors that are kept free: a quarter of all, for connections may come faster than we look.
_KEPT_SHARE: Final = 4
_MORE_TO_OPEN: Final = 8  # than that, before it listens again: not to turn to and fro
# What a daemon sets for itself where it may: enough for some ten thousand trainers.
WANTED_DESCRIPTORS: Final = 65_536
LOOK_AGAIN_S: Final = 1.0  # while it does not listen

_log = logging.getLogger(__name__)


def raise_limit() -> None:
    """Let this process have as many descriptors as it may, up to what it could need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class ConnectionLimit:
    """Opens and closes a bound socket to new connections.  For the thread of the socket.

    Args:
        socket: bound to `endpoint`, and to nothing else.
        on_bound: called when it is bound again.

    Attributes:
        events: a socket to be polled: it can be read when connections have come or gone.
        is_open: whether the socket listens.
    """

    def __init__(
        self, socket: Any, endpoint: str, on_bound: Callable[[], None] = lambda: None
    ) -> None:
        self._socket = socket
        self._endpoint = endpoint
        self._on_bound = on_bound
        self.events: Any = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self.is_open = True
        self._lines = limits.Sparingly()

    def look(self) -> None:
        """Listen no more where too few descriptors are left, and again where there are enough."""
        came_or_went = False
        with contextlib.suppress(zmq.Again):
            while True:
                self.events.recv_multipart(zmq.NOBLOCK)
                came_or_went = True
        if not came_or_went and self.is_open:
            return
        left, kept = _descriptors()
        if self.is_open and left < kept:
            self._socket.unbind(self._endpoint)
            self.is_open = False
            line = (
                f"only {left} descriptors are left: all connections are closed, to be made again "
                "when there is room; `ulimit -n` lets a daemon have more"
            )
            if line := self._lines.line(line, time.monotonic()):
                _log.warning("%s", line)
        elif not self.is_open and left >= kept + _MORE_TO_OPEN:
            try:
                self._socket.bind(self._endpoint)
            except zmq.ZMQError as error:  # tried again
                _log.warning("cannot listen at %s again: %s", self._endpoint, error)
                return
            self._on_bound()
            self.is_open = True

    def close(self) -> None:
        """Look no more.  Before the socket is closed."""
        self._socket.disable_monitor()
        self.events.close(linger=0)


def _descriptors() -> tuple[int, int]:
    """How many descriptors this process can still have, and how many are to be kept free."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return WANTED_DESCRIPTORS, 0
    return limit - len(os.listdir("/dev/fd")), limit // _KEPT_SHARE
