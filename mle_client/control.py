"""One request to a daemon and its answer: status, stop, publish.

Each request has a connection of its own, so that it works from any process and thread, forked ones
too, and leaves nothing behind.  No call waits longer than it says.  What trainers log does not come
this way; that is `transport`.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

from mle_client import addresses, descriptors, discovery, message_wire
from mle_client import messages as m
from mle_client.endpoint import (
    READY,
    Endpoint,
    is_alive,
    is_here,
    is_running,
    live_daemon,
    local_daemons,
    reachable_address,
    read_endpoint,
)
from mle_client.errors import (
    DaemonSilent,
    DaemonUnavailable,
    MLEError,
    ProtocolError,
    VersionMismatch,
)
from mle_client.handshake import Handshake
from mle_client.keys import ClientKeys, keys_for

_TOKEN: Final = 1  # one request a connection, so one token will do
# A daemon needs so much for its log, its endpoint and the first segment of its journal.
_ROOM_BYTES: Final = 65_536
_LOOK_EVERY_S: Final = 0.2  # whether the daemon's process is still there
_GONE_CHECK_S: Final = 0.02


def ask(
    address: str,
    message: m.Publish | m.AskStatus | m.Stop,
    timeout: float,
    *,
    keys: ClientKeys | None = None,
    is_there: Callable[[], bool] = lambda: True,
) -> m.Done | m.Status:
    """Send a request and wait for its answer.

    Args:
        address: ZeroMQ address of a daemon.
        message: the request.
        timeout: seconds.
        keys: for the connection; None where the daemon wants none.
        is_there: looked at meanwhile; False ends the wait.

    Raises:
        DaemonUnavailable: no answer in time, or no connection for want of the right keys.
        ProtocolError: it refused, or answered with what is no message.
        VersionMismatch: it speaks another version.
    """
    import zmq

    try:
        descriptors.require()
    except OSError as error:
        raise DaemonUnavailable(address, error.strerror or str(error)) from error
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    handshake = None

    def look() -> bool:
        if handshake is not None and (problem := handshake.problem()):
            raise DaemonUnavailable(address, problem)
        return is_there()

    try:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.MAXMSGSIZE, m.MAX_FRAME_BYTES)
        if keys is not None:
            keys.put_on(socket)
        handshake = Handshake(socket, keys) if addresses.is_tcp(address) else None
        socket.connect(address)
        socket.send_multipart(message_wire.encode(_hello()))
        asked = False
        for answer in _answers(socket, time.monotonic() + timeout, look):
            match answer:
                case m.Welcome(version):
                    if version != m.PROTOCOL_VERSION:
                        raise VersionMismatch(m.PROTOCOL_VERSION, version)
                    socket.send_multipart(message_wire.encode(message))
                    asked = True
                case m.Leaving() if not asked:  # it answers to those who want to log no more
                    socket.send_multipart(message_wire.encode(message))
                    asked = True
                case m.Refused(_, reason):
                    raise ProtocolError(f"the daemon refused: {reason}")
                case m.Done(token) | m.Status(token) if token == message.token:
                    return answer
    except zmq.ZMQError as error:
        raise DaemonUnavailable(address, str(error)) from error
    finally:
        if handshake is not None:
            handshake.close()
        context.destroy(linger=0)
    raise DaemonUnavailable(address, f"no answer within {timeout:g} s")


def status(root: str, timeout: float = 5.0) -> dict[str, Any]:
    """The report of a root's daemon; its keys are listed in `mle_daemon.status`.

    Raises:
        DaemonUnavailable: there is none.
        DaemonSilent: it does not answer.
    """
    answer = _ask_daemon(_daemon_of(root), m.AskStatus(_TOKEN), timeout)
    if not isinstance(answer, m.Status):
        raise MLEError(f"the daemon of {root} cannot report: {answer.error}")
    return answer.report


def stop(root: str, timeout: float = 60.0) -> str:
    """Stop a root's daemon and wait until its process is gone.

    Returns:
        "" where all is in the log files and merged, else what is not, or is not known to be, and
        what brings it there.

    Raises:
        DaemonUnavailable: there is none.
        DaemonSilent: it does not answer or is still there.
    """
    daemon = _daemon_of(root)
    deadline = time.monotonic() + timeout
    error = (
        "the daemon ended without saying that everything is in the log files; the journal has what "
        "is missing, and the next start writes it"
    )
    try:
        answer = _ask_daemon(daemon, m.Stop(_TOKEN), timeout)
        if isinstance(answer, m.Done):
            error = answer.error
    except ProtocolError:
        os.kill(daemon.pid, signal.SIGTERM)  # asks for the same in every version
    except DaemonUnavailable:
        if is_running(daemon):
            raise
    while is_running(daemon):
        if time.monotonic() > deadline:
            raise DaemonSilent(root, f"process {daemon.pid} is still there after {timeout:g} s")
        time.sleep(_GONE_CHECK_S)
    return error


# Called with a resolved path and seconds before anything under it is read: `logger` has the ticks
# of this process sent, which a daemon asked to publish does not know of yet.
BEFORE_READING: Final[list[Callable[[str, float], None]]] = []


def publish_before_reading(path: str, timeout: float = 10.0) -> None:
    """Have the daemons that serve a path write out what they have of it.

    Costs 0.1 ms where there is none.  A daemon that cannot do it is no reason not to read what is
    there: then a RuntimeWarning says so.

    Args:
        path: a log file or a folder; need not exist.
        timeout: seconds, for this process's loggers and all daemons together.
    """
    deadline = time.monotonic() + timeout
    where = os.path.realpath(path)
    for flush in BEFORE_READING:
        flush(where, max(0.0, deadline - time.monotonic()))
    for daemon in _serving(where):
        # What a daemon of a folder below serves is named by its own root.
        inside = where if discovery.is_inside(where, daemon.root) else daemon.root
        try:
            request = m.Publish(_TOKEN, inside)
            answer = _ask_daemon(daemon, request, max(0.0, deadline - time.monotonic()))
            problem = answer.error if isinstance(answer, m.Done) else ""
        except MLEError as error:
            problem = str(error)
        if problem:
            warnings.warn(
                f"reading {path} as it is on disk, which may lack the latest ticks: the daemon "
                f"with pid {daemon.pid} did not publish them ({problem})",
                RuntimeWarning,
                stacklevel=3,
            )


def is_served(path: str) -> bool:
    """Whether a live daemon looks after a path, or after something below it."""
    return bool(_serving(os.path.realpath(path)))


def _serving(where: str) -> list[Endpoint]:
    """The live daemons of the nearest folder above a path, and of folders below it."""
    found: dict[str, Endpoint] = {}
    above = discovery.nearest_daemon(where)
    if above is not None and is_alive(above):
        found[above.root] = above
    for daemon in local_daemons():
        if discovery.is_inside(daemon.root, where) and is_alive(daemon):
            found.setdefault(daemon.root, daemon)
    return list(found.values())


def _daemon_of(root: str) -> Endpoint:
    daemon = live_daemon(root)
    if daemon is None:
        last = read_endpoint(root)
        killed = last is not None and last.state == READY
        advice = "; the last one was killed, and starting one brings back what it had"
        why = "none runs there" + (advice if killed else "") + _no_room(root)
        raise DaemonUnavailable(root, why)
    return daemon


def _no_room(root: str) -> str:
    """What to do where a daemon cannot be started for lack of room; "" where there is some."""
    try:
        free = shutil.disk_usage(root).free
    except OSError:  # the root is gone, which is not the question
        return ""
    if free >= _ROOM_BYTES:
        return ""
    return f"; {root} has {free} bytes free, too few to start one: make room, and clients start it"


def _ask_daemon(
    daemon: Endpoint, message: m.Publish | m.AskStatus | m.Stop, timeout: float
) -> m.Done | m.Status:
    """Ask a daemon that was found alive; tell one that ended meanwhile from one that is silent."""
    if not is_here(daemon):
        raise DaemonSilent(daemon.root, f"it runs on {daemon.host}; ask it from there")
    address = reachable_address(daemon)
    keys = keys_for(address, known=True, advertised=daemon.options.get("keys"))
    try:
        return ask(address, message, timeout, keys=keys, is_there=lambda: is_running(daemon))
    except DaemonUnavailable as error:
        if not is_running(daemon):
            raise DaemonUnavailable(daemon.root, f"process {daemon.pid} ended") from error
        raise DaemonSilent(daemon.root, f"process {daemon.pid} runs, but {error.why}") from error


def _hello() -> m.Hello:
    return m.Hello(m.PROTOCOL_VERSION, os.getpid(), os.uname().nodename)


def _answers(socket: Any, deadline: float, look: Callable[[], bool]) -> Iterator[m.Message]:
    """What the daemon sends, until the deadline or until it is there no more."""
    while (left := deadline - time.monotonic()) > 0:
        if socket.poll(min(left, _LOOK_EVERY_S) * 1000):
            yield message_wire.decode(socket.recv_multipart())
        elif not look():
            return
