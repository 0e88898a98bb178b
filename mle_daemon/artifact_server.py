"""The daemon's socket for artifacts, in a thread of its own: frames in, files out.

It lets ticks alone: their socket, their thread and the journal are others'.  What is taken and what
becomes of it is decided by `arrivals`; here is the loop that drives it.  Nothing that comes in ends
that loop: what is no message is counted, logged now and then, and answered with `Declined`.

Memory: a message is written to its file before the next one is fetched.  ZeroMQ holds
`_RECEIVED_MESSAGES` chunks of each client at most, and no frame above `MAX_CHUNK_BYTES`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq

from mle_client import artifact_wire as aw
from mle_client.errors import ProtocolError
from mle_client.keys import ServerKeys
from mle_client.messages import NO_PRODUCER, ProducerId
from mle_daemon import events as e
from mle_daemon.arrivals import Arrivals, Left
from mle_daemon.connection_limit import LOOK_AGAIN_S, ConnectionLimit
from mle_daemon.gate import Gate
from mle_daemon.socket_file import SocketFile
from mle_daemon.staging import Staging

# Waiting in memory, of each client; a client of ours sends two chunks ahead of answers.
_RECEIVED_MESSAGES: Final = 4
# Answers that a client does not fetch: it is stopped or gone.
_SENT_MESSAGES: Final = 1_000
# Taken in one round, before what was left by dead processes gets its turn.
_ROUND_MESSAGES: Final = 4
# Of one message; ours have two at most, so what has more is refused, whatever else is in it.
_FRAMES_KEPT: Final = 3
_ERROR_PAUSE_S: Final = 0.1
_THREAD_NAME: Final = "mle-artifacts"

_log = logging.getLogger(__name__)


class ArtifactServer:
    """Takes artifacts from clients, and those that dead processes have left.

    Args:
        endpoint: to bind to; "ipc://path", or "tcp://address:port" with port * for a free one.
        staging: folder for their files, made if it is missing; its content is not looked at.
        deliver: called, from this thread, with `Arrived` and `NotArrived`.
        keys: that clients must know and have; None for whoever can connect.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(
        self,
        endpoint: str,
        staging: str,
        deliver: Callable[[e.Event], None],
        keys: ServerKeys | None = None,
    ) -> None:
        self.garbage = 0  # messages that were none
        self._arrivals = Arrivals(Staging(staging), deliver, self._send)
        self._commands: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, _SENT_MESSAGES)
        self._socket.setsockopt(zmq.RCVHWM, _RECEIVED_MESSAGES)
        self._socket.setsockopt(zmq.MAXMSGSIZE, aw.MAX_CHUNK_BYTES)
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
        self._thread = threading.Thread(target=self._work, name=_THREAD_NAME, daemon=True)
        self._thread.start()

    # --- called by the daemon -------------------------------------------------------------------
    def take_left(self, producer: ProducerId, left: Left) -> None:
        """Take a snapshot of a process that is gone; its files are read, and left alone."""
        self._do(lambda: self._arrivals.take_left(producer, left, time.monotonic()))

    def discard(self, producer: ProducerId, number: int) -> None:
        """Remove the bytes of an artifact that nobody wants."""
        self._do(lambda: self._arrivals.discard(producer, number))

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread; what is not whole is removed, what has arrived stays.

        Args:
            timeout: in seconds; None to wait as long as the disk needs.

        Returns:
            Whether it has ended; a stalled disk can keep it.
        """
        self._stopping = True
        if self._thread.is_alive():
            self._wake()
            self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        if self._wake_read >= 0:
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1
        return True

    def _do(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is full of wake-up calls already, or closed
            os.write(self._wake_write, b"!")

    # --- the thread -----------------------------------------------------------------------------
    def _work(self) -> None:
        while not self._stopping:
            try:
                self._round()
            except Exception:  # whatever it is, other artifacts must go on arriving
                _log.exception("the artifact server goes on after an error of its own")
                time.sleep(_ERROR_PAUSE_S)
        try:
            self._arrivals.close()
        except OSError as error:
            _log.warning("unfinished artifacts were left in the staging folder: %s", error)
        self._limit.close()
        self._socket.close(linger=0)
        if self._gate:
            self._gate.close()
        self._context.term()
        self._file.remove()

    def _round(self) -> None:
        wait_s = self._arrivals.wait_s()
        if not self._limit.is_open:
            wait_s = min(wait_s, LOOK_AGAIN_S)
        ready = dict(self._poller.poll(int(wait_s * 1000)))
        if self._wake_read in ready:
            os.read(self._wake_read, 65536)
        if self._gate:
            self._gate.answer()
        self._limit.look()
        while self._commands:
            self._commands.popleft()()
        for _ in range(_ROUND_MESSAGES):
            if not self._take_message():
                break
        self._arrivals.step(time.monotonic())

    def _take_message(self) -> bool:
        """Take one message, if there is one.  Returns: whether there was."""
        try:
            client = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return False
        frames: list[zmq.Frame] = []
        while self._socket.getsockopt(zmq.RCVMORE):
            frame = self._socket.recv(copy=False)
            if len(frames) < _FRAMES_KEPT:
                frames.append(frame)
        try:
            message = aw.decode([frame.buffer for frame in frames])
            if not isinstance(message, aw.Offer | aw.Chunk):
                raise ProtocolError(f"a client may not send a {type(message).__name__} message")
        except ProtocolError as error:
            self._refuse(client, error)
            return True
        if isinstance(message, aw.Offer):
            self._arrivals.offered(client, message, time.monotonic())
        else:
            self._arrivals.came(client, message, time.monotonic())
        return True

    def _refuse(self, client: bytes, error: ProtocolError) -> None:
        self.garbage += 1
        if self.garbage.bit_count() == 1:  # the first, the second, the fourth, …
            _log.warning("message %d that is none on the artifact socket: %s", self.garbage, error)
        self._send(client, aw.Declined(NO_PRODUCER, 0, str(error)))

    def _send(self, client: bytes, message: aw.Reply) -> None:
        """Send an answer; one that cannot be delivered is dropped, for the client asks again."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([client, *aw.encode(message)], zmq.NOBLOCK)
