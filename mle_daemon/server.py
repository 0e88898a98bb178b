"""The daemon's socket for ticks and requests: frames in, frames out.

It decides nothing.  A message that is none is reported as such, and its sender is told.
"""

from __future__ import annotations

import contextlib
import os
from types import TracebackType
from typing import Final

import zmq

from mle_client import message_wire
from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_client.keys import ServerKeys
from mle_daemon.connection_limit import ConnectionLimit
from mle_daemon.events import Client
from mle_daemon.gate import Gate
from mle_daemon.socket_file import SocketFile

# One round takes what came in meanwhile, so that the journal gets one write for many clients; the
# bounds keep a round's memory and the time to the next acknowledgement small.
_ROUND_MESSAGES: Final = 1_000
_ROUND_BYTES: Final = 4 * 2**20
# Waiting in memory, of each client, which may be of 32 MiB each: what comes in while a round lasts.
_RECEIVED_MESSAGES: Final = 100
# Of one message; ours have two at most, so what has more is refused, whatever else is in it.
_FRAMES_KEPT: Final = 3
# Replies that a client does not fetch: it is stopped or gone.  Enough for the acks of a minute.
_SEND_HIGH_WATER: Final = 10_000


class Server:
    """A bound ROUTER socket and a pipe that ends its wait.

    Args:
        endpoint: to bind to; "ipc://path", or "tcp://address:port" with port * for a free one.
        keys: that clients must know and have; None for whoever can connect.
    """

    def __init__(self, endpoint: str, keys: ServerKeys | None = None) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, _SEND_HIGH_WATER)
        self._socket.setsockopt(zmq.RCVHWM, _RECEIVED_MESSAGES)
        self._socket.setsockopt(zmq.MAXMSGSIZE, m.MAX_FRAME_BYTES)
        self._gate = Gate(self._context, self._socket, keys) if keys else None
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            if self._gate:
                self._gate.close()
            self._context.term()
            raise OSError(error.errno, f"cannot listen at {endpoint}: {error}") from error
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._poller.register(self._socket, zmq.POLLIN)
        if self._gate:
            self._poller.register(self._gate.questions, zmq.POLLIN)
        self._file = SocketFile(self.endpoint)
        self._limit = ConnectionLimit(self._socket, self.endpoint, self._file.bound)
        self._poller.register(self._limit.events, zmq.POLLIN)

    def wake(self) -> None:
        """End the present wait.  May be called from any thread and from signal handlers."""
        with contextlib.suppress(BlockingIOError):  # it is full of wake-up calls already
            os.write(self._wake_write, b"!")

    def wait(
        self, timeout_s: float
    ) -> tuple[list[tuple[Client, m.Request]], list[tuple[Client, str]]]:
        """Wait for messages.

        Returns:
            What came, and (client, reason) for what was no message.
        """
        ready = dict(self._poller.poll(max(0, int(timeout_s * 1000))))
        if self._wake_read in ready:
            os.read(self._wake_read, 65536)
        if self._gate:
            self._gate.answer()
        self._limit.look()
        good: list[tuple[Client, m.Request]] = []
        bad: list[tuple[Client, str]] = []
        size = 0
        while len(good) + len(bad) < _ROUND_MESSAGES and size < _ROUND_BYTES:
            try:
                client = Client(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
            frames: list[bytes] = []
            while self._socket.getsockopt(zmq.RCVMORE):
                frame = self._socket.recv()
                size += len(frame)
                if len(frames) < _FRAMES_KEPT:
                    frames.append(frame)
            try:
                good.append((client, message_wire.decode_request(frames)))
            except ProtocolError as error:
                bad.append((client, str(error)))
        return good, bad

    def send(self, client: Client, message: m.Reply) -> None:
        """Send a message; one that cannot be delivered is dropped, for the client asks again."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([client, *message_wire.encode(message)], zmq.NOBLOCK)

    def close(self) -> None:
        """Close the socket once what was sent is on its way, one second at most."""
        self._limit.close()
        self._socket.close(linger=1000)
        if self._gate:
            self._gate.close()
        self._context.term()
        self._file.remove()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
