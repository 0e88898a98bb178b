"""A program that sends what nobody should: `python -m tests.fuzz.sockets ROOT FRAMES SEED`.

It speaks with the daemon of ROOT from many connections at once: messages that are almost right, in
odd numbers of parts, frames that are too large, bytes that are not ZeroMQ's, connections that never
say anything, and some whose answers are never read.  It ends by printing what it has sent, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket as sockets
import sys
import time
from collections import Counter
from typing import Any, Final

import zmq

from mle_client import artifact_wire as aw
from mle_client import message_wire
from mle_client import messages as m
from mle_client.endpoint import read_endpoint
from mle_client.errors import ProtocolError
from tests.fuzz import messages
from tests.fuzz.choices import Choices

_CONNECTIONS: Final = 8  # whose answers are read
_DEAF: Final = 2  # whose are not
_RUNS: Final = 20
_HALF_OPEN: Final = 50
_TOO_LARGE_BYTES: Final = m.MAX_FRAME_BYTES + 1
_LARGEST_BYTES: Final = 2**20  # of an artifact
_TIMEOUT_MS: Final = 60_000
# A whole ZMTP 3.0 handshake, and a frame of which only the length comes.
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + bytes(32)
_READY: Final = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
_LIE: Final = b"\x02" + (2**62).to_bytes(8, "big") + b"x" * 100


class Fuzzer:
    """One life of the program.

    Args:
        address, artifacts: of the daemon's sockets.
        directory: an experiment's folder below its root.
        seed: of all that is random.
    """

    def __init__(self, address: str, artifacts: str, directory: str, seed: int) -> None:
        self.sent: Counter[str] = Counter()
        self._address = address
        self._directory = directory
        self._random = random.Random(seed)
        self._context = zmq.Context()
        self._readers = [self._connect(address) for _ in range(_CONNECTIONS)]
        self._deaf = [self._connect(address) for _ in range(_DEAF)]
        self._artifacts = self._connect(artifacts)
        self._half_open: list[sockets.socket] = []
        self._positions: dict[m.ProducerId, int] = {}

    def close(self) -> None:
        """Leave as a process does that is killed: without a word."""
        for half_open in self._half_open:
            half_open.close()
        self._context.destroy(linger=0)

    def run(self, frames: int) -> None:
        """Send so many frames, and what goes with them."""
        while self.sent["frames"] < frames:
            choices = Choices(self._random.randbytes(self._random.choice((8, 60, 300))))
            kind = self._random.random()
            if kind < 0.55:
                self._message(choices)
            elif kind < 0.80:
                self._stream(choices)
            elif kind < 0.93:
                self._artifact(choices)
            elif kind < 0.96:
                parts = [self._random.randbytes(self._random.randrange(40)) for _ in range(50)]
                self._send(self._some(), parts[: self._random.randrange(1, 50)])
            elif kind < 0.99:
                self._send(self._random.choice(self._deaf), message_wire.encode(m.AskStatus(1)))
            else:
                self._connection()
            if self.sent["frames"] % 5_000 < 3 and self.sent["too large"] < frames / 5_000:
                self._too_large()
            self._read()

    # --- frames -----------------------------------------------------------------------------------
    def _message(self, choices: Choices) -> None:
        frames = messages.frames(choices)
        with contextlib.suppress(ProtocolError):
            if isinstance(message_wire.decode(frames), m.Stop):
                return  # it would be obeyed
        self._send(self._some(), frames)

    def _stream(self, choices: Choices) -> None:
        """A piece of a stream that goes on where the daemon has it, as far as that is known."""
        number = self._random.randrange(_RUNS)
        producer = m.ProducerId(number.to_bytes(16, "big"))
        at = self._positions.setdefault(producer, 0)
        payload = messages.records(choices)
        if at == 0:
            # A mirror in W&B is a process of its own; there would be twenty.
            run = messages.run(choices, number, self._directory, wandb={})
            payload = run + payload
        if self._random.random() < 0.01:
            self._positions[producer] = self._random.randrange(2**63)
        self._send(self._some(), message_wire.encode(m.Data(producer, at, payload)))

    def _artifact(self, choices: Choices) -> None:
        frames = messages.artifact_frames(choices)
        with contextlib.suppress(ProtocolError):
            message = aw.decode(frames)
            if isinstance(message, aw.Offer) and message.size > _LARGEST_BYTES:
                return  # so much of the disk would be taken
        self._send(self._artifacts, frames)

    def _send(self, socket: Any, frames: list[bytes]) -> None:
        socket.send_multipart(frames)
        self.sent["messages"] += 1
        self.sent["frames"] += len(frames)

    def _read(self) -> None:
        for socket in (*self._readers, self._artifacts):
            with contextlib.suppress(zmq.Again):
                while True:
                    frames = socket.recv_multipart(zmq.NOBLOCK)
                    self.sent["answers"] += 1
                    if socket is not self._artifacts:
                        self._learn(message_wire.decode(frames))

    def _learn(self, message: m.Message) -> None:
        match message:
            case m.Ack(producer, position) | m.Expect(producer, position):
                self._positions[producer] = position
            case m.Refused(producer) if self._random.random() < 0.2:
                self._positions.pop(producer, None)

    # --- connections ------------------------------------------------------------------------------
    def _connect(self, address: str) -> Any:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.SNDTIMEO, _TIMEOUT_MS)
        socket.connect(address)
        socket.send_multipart(message_wire.encode(m.Hello(m.PROTOCOL_VERSION, 1, "fuzzer")))
        return socket

    def _some(self) -> Any:
        return self._random.choice(self._readers)

    def _connection(self) -> None:
        """A connection that is no good, or is over at once."""
        self.sent["connections"] += 1
        if self._random.random() < 0.3:
            self._connect(self._address).close(linger=0)
            return
        raw = sockets.socket(sockets.AF_UNIX)
        raw.settimeout(5.0)
        with contextlib.suppress(OSError):
            raw.connect(self._address.removeprefix("ipc://"))
            raw.sendall(
                self._random.choice((
                    b"", b"GET / HTTP/1.1\r\n\r\n", _GREETING[:20], _GREETING, _GREETING + _READY,
                    _GREETING + _READY + _LIE, self._random.randbytes(500), b"\xff" * 5000,
                ))
            )  # fmt: skip
        self._half_open.append(raw)
        if len(self._half_open) > _HALF_OPEN:
            self._half_open.pop(0).close()

    def _too_large(self) -> None:
        """A frame above the bound, which ends the connection that it comes on."""
        self.sent["too large"] += 1
        socket = self._connect(self._address)
        socket.send_multipart(
            [message_wire.data_header(m.ProducerId(bytes(16)), 0), bytes(_TOO_LARGE_BYTES)]
        )
        time.sleep(0.2)
        socket.close(linger=0)


def main(root: str, frames: str, seed: str) -> int:
    endpoint = read_endpoint(root)
    if endpoint is None:
        print(f"no daemon serves {root}", file=sys.stderr)
        return 2
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(endpoint.endpoint)
        socket.send_multipart(message_wire.encode(m.Hello(m.PROTOCOL_VERSION, 1, "fuzzer")))
        welcome = message_wire.decode(socket.recv_multipart())
        assert isinstance(welcome, m.Welcome)
    fuzzer = Fuzzer(endpoint.endpoint, welcome.artifacts, f"{root}/fuzzed", int(seed))
    began = time.monotonic()
    try:
        fuzzer.run(int(frames))
    finally:
        fuzzer.close()
    print(json.dumps({**fuzzer.sent, "seconds": round(time.monotonic() - began, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
