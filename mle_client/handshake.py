"""Why a connection through TCP does not come about: what ZeroMQ tells nobody who does not ask.

A socket whose peer turns it away looks as one whose peer is slow; it tries again for ever.  Its
monitor tells the two apart.  For one thread, the socket's.
"""

from __future__ import annotations

from typing import Any, Final

from mle_client.keys import ClientKeys

# A daemon that ends in the middle of a handshake looks like one that wants other keys, but not
# thrice in a row; ZeroMQ tries again every 0.1 to 0.2 s.  After every other failure it does not.
_FAILURES: Final = 3


class Handshake:
    """Watches a socket that is about to connect to a TCP port.

    Args:
        socket: of ZeroMQ.
        keys: that it shows; None for none.

    Attributes:
        monitor: a socket of ZeroMQ, to be polled; there is something to read at a failure only.
    """

    def __init__(self, socket: Any, keys: ClientKeys | None) -> None:
        import zmq

        self._socket, self._keys = socket, keys
        self._failed = 0
        self.monitor: Any = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        )

    def problem(self) -> str:
        """Why the daemon is not going to answer, and what to do; "" while it may."""
        import zmq
        from zmq.utils.monitor import recv_monitor_message

        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return self._not_let_in()
            again = event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            self._failed = self._failed + 1 if again else _FAILURES
        return "" if self._failed < _FAILURES else self._no_understanding()

    def _not_let_in(self) -> str:
        where = self._keys.folder if self._keys else ""
        return (
            f"it does not let the key in {where}/client.key in: copy that file into the daemon's "
            "folder of keys, under a name that ends in .key, and start the daemon anew"
        )

    def _no_understanding(self) -> str:
        if self._keys is None:
            return (
                "it wants keys: set MLE_KEYS to a folder with its server.key and your client.key "
                "and client.key_secret, as `mle-daemon keys` makes them"
            )
        return (
            f"it does not have the key in {self._keys.folder}/server.key, or uses none: MLE_KEYS "
            "must name a folder with the server.key of this very daemon"
        )

    def close(self) -> None:
        """Stop watching; before the socket is closed."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)
