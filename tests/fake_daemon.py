"""A daemon that answers by a script, over a real socket, for tests of those who talk to one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import zmq

from mle_client import message_wire
from mle_client import messages as m

Script = Callable[[m.Message], list[Any]]


class FakeDaemon:
    """A ROUTER that answers by a script, and remembers what it was asked."""

    def __init__(self, address: str, script: Script) -> None:
        self.asked: list[m.Message] = []
        self._script = script
        self._over = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(address,))
        self._thread.start()
        assert self._ready.wait(5)

    def _serve(self, address: str) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            socket.bind(address)
            self._ready.set()
            while not self._over.is_set():
                if not socket.poll(5):
                    continue
                client, *frames = socket.recv_multipart()
                self.asked.append(message_wire.decode(frames))
                for answer in self._script(self.asked[-1]):
                    encoded = [answer] if isinstance(answer, bytes) else message_wire.encode(answer)
                    socket.send_multipart([client, *encoded])

    def close(self) -> None:
        self._over.set()
        self._thread.join()
