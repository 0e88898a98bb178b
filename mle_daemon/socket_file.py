"""The file of a bound socket: it goes with the socket, unless another daemon's has taken its place.

Where somebody removes a root under its daemon, the next one listens at the same path.  The file
that lies there then is that one's, and without it nobody would reach it.
"""

from __future__ import annotations

import contextlib
import os


class SocketFile:
    """The file of a socket of ZeroMQ, which leaves files that it did not name itself.

    Args:
        endpoint: that the socket is bound to; one of TCP has no file.
    """

    def __init__(self, endpoint: str) -> None:
        scheme, _, path = endpoint.partition("://")
        self._path = path if scheme == "ipc" else ""
        self._found: os.stat_result | None = None
        self.bound()

    def bound(self) -> None:
        """Take note of the file: the socket has just been bound."""
        self._found = self._look()

    def remove(self) -> None:
        """Remove the file if it is still that of this socket, which is closed."""
        found = self._look()
        if found is not None and self._found is not None and os.path.samestat(found, self._found):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    def _look(self) -> os.stat_result | None:
        try:
            return os.stat(self._path, follow_symlinks=False) if self._path else None
        except FileNotFoundError:
            return None
