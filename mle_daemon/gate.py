"""Who may connect to a TCP port: clients whose public key the daemon knows.

Answers ZeroMQ's questions about who connects (ZAP, RFC 27), in the thread that polls the guarded
socket; `zmq.auth` would take a thread and an event loop for each of the daemon's two sockets
(docs/decisions/0014-keys-for-tcp.md).  What a client may do that was let in is not decided here.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import zmq
from zmq.utils import z85

from mle_client.keys import ServerKeys

_ADDRESS: Final = "inproc://zeromq.zap.01"  # where ZeroMQ looks for somebody to ask
_DOMAIN: Final = b"mle-daemon"

_log = logging.getLogger(__name__)


class Gate:
    """Guards a socket that is not bound yet.

    Args:
        context: the socket's; it can have one gate.
        socket: of ZeroMQ.
        keys: the daemon's, and of those that it lets in.

    Attributes:
        questions: a socket of ZeroMQ, to be polled; `answer` is due when one has come.
        refused: connections that were refused.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], socket: Any, keys: ServerKeys
    ) -> None:
        self._clients = keys.clients
        self.refused = 0
        self.questions = context.socket(zmq.REP)
        self.questions.bind(_ADDRESS)
        socket.curve_secretkey = keys.secret
        socket.curve_publickey = keys.public
        socket.curve_server = True
        socket.zap_domain = _DOMAIN
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody is let in whom nobody was asked about

    def answer(self) -> None:
        """Answer every question that has come."""
        while self.questions.poll(0):
            version, request, *asked = self.questions.recv_multipart()
            if self._may_enter(asked):
                verdict = [b"200", b"OK"]
            else:
                verdict = [b"400", b"this key is not known here"]
            # Then the user's name and meta data, of which there are none.
            self.questions.send_multipart([version, request, *verdict, b"", b""])

    def _may_enter(self, asked: list[bytes]) -> bool:
        """Judge [domain, address, identity, mechanism, key, …]."""
        is_ours = len(asked) > 4 and asked[0] == _DOMAIN and asked[3] == b"CURVE"
        if is_ours and z85.encode(asked[4]) in self._clients:
            return True
        self.refused += 1
        if self.refused.bit_count() == 1:  # the first, the second, the fourth, …
            where = asked[1].decode(errors="replace") if len(asked) > 1 else "somewhere"
            _log.warning("connection %d with a key that is not known, from %s", self.refused, where)
        return False

    def close(self) -> None:
        """Answer nobody any more; nobody is let in then."""
        self.questions.close(linger=0)
