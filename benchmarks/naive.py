"""What one would write in an afternoon: batches of ticks, over ZeroMQ, to a process with a file.

Nothing is safe with it: a killed trainer takes its batch and ZeroMQ's queue along, and what is in
the file needs reading and sorting before anybody can plot it.  So what it costs is what merely
moving the ticks costs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgpack
import zmq

BATCH_TICKS: Final = 100
_END: Final = b""  # a sender's last message


class Sender:
    """Sends ticks.  Args: address: of the process that has the file."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.connect(address)
        self._batch: list[Any] = []

    def update(self, clock: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
        """Take a tick."""
        self._batch.append((dict(clock), dict(stats)))
        if len(self._batch) == BATCH_TICKS:
            self._send()

    def close(self) -> None:
        """Send what is left, and wait until it is gone."""
        self._send()
        self._socket.send(_END)
        self._socket.close(linger=-1)
        self._context.term()

    def _send(self) -> None:
        self._socket.send(msgpack.packb(self._batch))
        self._batch = []


@dataclass(frozen=True, slots=True)
class Stored:
    """What a sink did.  Args: closed_at: on the monotonic clock, s; cpu_s: since it was ready."""

    closed_at: float
    cpu_s: float


def sink(address: str, path: Path, senders: int, to_parent: Connection) -> None:
    """Append all that comes to a file until every sender is through.  Runs in its own process."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(address)
        to_parent.send("ready")
        before = time.process_time()
        with open(path, "wb") as file:
            while senders:
                message = socket.recv()
                if message == _END:
                    senders -= 1
                else:
                    file.write(message)
        to_parent.send(Stored(time.monotonic(), time.process_time() - before))


def count_ticks(path: Path) -> int:
    """How many ticks a sink's file holds."""
    with open(path, "rb") as file:
        return sum(len(batch) for batch in msgpack.Unpacker(file, use_list=False))
