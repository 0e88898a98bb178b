"""The client's socket for artifacts: messages out, messages in.  It decides nothing.

Chunks are copied into ZeroMQ, not lent to it.  A MiB costs 0.1 ms without the GIL, the road as a
whole is as fast as without that copy, and a connection that was given up cannot read the memory of
a snapshot that was recycled since (docs/decisions/0002-copy-frames-into-zeromq.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mle_client import artifact_wire as aw
from mle_client import descriptors
from mle_client.errors import ProtocolError
from mle_client.keys import ClientKeys


class ArtifactSocket:
    """A DEALER socket, connected or not, with the context that it needs.  For one thread."""

    def __init__(self) -> None:
        self._context: Any = None
        self._socket: Any = None

    @property
    def is_open(self) -> bool:
        """Whether it is connected to an address; somebody may listen there, or not."""
        return self._socket is not None

    def connect(self, address: str, keys: ClientKeys | None = None) -> None:
        """Connect anew; what the old connection has not sent is forgotten.

        Args:
            keys: for the connection; None where the daemon wants none.

        Raises:
            OSError: this process has too few descriptors left.
        """
        import zmq

        self.disconnect()
        descriptors.require()
        if self._context is None:
            self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # `parcels.WINDOW_BYTES` bounds what waits here
        if keys is not None:
            keys.put_on(self._socket)
        self._socket.connect(address)

    def disconnect(self) -> None:
        """Forget the connection and what it has not sent."""
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def close(self) -> None:
        """Disconnect and end ZeroMQ's thread."""
        self.disconnect()
        if self._context is not None:
            self._context.term()
            self._context = None

    def send(self, message: aw.Request) -> None:
        """Send a message."""
        import zmq

        self._socket.send_multipart(aw.encode(message), zmq.NOBLOCK, copy=True)

    def wait(self, wake_fd: int, timeout_s: float) -> bool:
        """Wait for answers, or until there is something to read from a descriptor.

        Returns:
            Whether there is.
        """
        import zmq

        poller = zmq.Poller()
        poller.register(wake_fd, zmq.POLLIN)
        if self._socket is not None:
            poller.register(self._socket, zmq.POLLIN)
        return wake_fd in dict(poller.poll(int(timeout_s * 1000)))

    def answers(self) -> Iterator[aw.Reply]:
        """What has come.

        Raises:
            ProtocolError: it is nothing that a daemon sends.
        """
        import zmq

        while self._socket is not None:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = aw.decode(frames)
            if not isinstance(message, aw.Taken | aw.Declined | aw.Restart):
                raise ProtocolError(f"a daemon does not send {type(message).__name__}")
            yield message
