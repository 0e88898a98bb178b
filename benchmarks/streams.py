"""Streams of ticks that are ready as bytes, and a sender that does nothing but send them.

What a trainer's process does for a tick is done beforehand, so that a daemon can be given more than
any trainer would.  The senders keep to the protocol: they greet, stay within the daemon's window,
and go on as they hear that what they sent is in the journal.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import zmq

from benchmarks.harness import Tick
from mle_client import message_wire, runtime, tick_layout, ticks, wire
from mle_client import messages as m
from mle_client.endpoint import reachable_address, read_endpoint
from mle_client.ring import SEGMENT_BYTES
from mle_client.session import Session

_TIMEOUT_S: Final = 300.0  # without any answer
_POLL_MS: Final = 1_000
_TOKEN: Final = 1


@dataclass(frozen=True, slots=True)
class Recorded:
    """Ticks as they lie in a ring.

    Args:
        schema: of all of them.
        pieces: the bytes, as many at a time as a segment of a ring has.
        ticks: how many there are.
        statistic: the name of one.
    """

    schema: m.Schema
    pieces: tuple[bytes, ...]
    ticks: int
    statistic: str


def record(first: Tick, count: int) -> Recorded:
    """Ticks like the first one: steps count, and floats are noise."""
    described = ticks.describe(*first)
    schema = m.Schema(0, described.clock, described.stats)
    if tick_layout.has_fixed_layout(schema):
        size, data = _fixed(schema, count)
        most = SEGMENT_BYTES // size * size
        pieces = [data[at : at + most] for at in range(0, len(data), most)]
    else:
        pieces = _texts(schema, described.values, count)
    return Recorded(schema, tuple(pieces), count, schema.stats[0].name)


def _fixed(schema: m.Schema, count: int) -> tuple[int, bytes]:
    layout = tick_layout.fixed_layout(schema)
    rows = np.zeros(count, layout.dtype)
    rows["head"] = np.frombuffer(layout.head, layout.dtype["head"])[0]
    rows["t"] = time.time() + np.arange(count) * 1e-6
    noise = np.random.default_rng(0)
    for i, each in enumerate(schema.fields):
        column = rows[f"v{i}"]
        column[:] = np.arange(count) >> i if each.kind == m.INT else noise.normal(size=column.shape)
    return layout.size, rows.tobytes()


def _texts(schema: m.Schema, values: Sequence[Any], count: int) -> list[bytes]:
    """Ticks with text, one by one: each has a length of its own."""
    pieces, piece = [], bytearray()
    now = time.time()
    noise = np.random.default_rng(0).normal(size=count).tolist()
    kinds = [each.kind for each in schema.fields]
    for i in range(count):
        changing = {m.INT: i, m.FLOAT: noise[i], m.TEXT: f"warm-up {i % 7}"}
        tick = [changing.get(kind, value) for kind, value in zip(kinds, values, strict=True)]
        encoded = wire.encode_text_tick(schema, now + i * 1e-6, tick)
        if len(piece) + len(encoded) > SEGMENT_BYTES:
            pieces.append(bytes(piece))
            piece.clear()
        piece += encoded
    return [*pieces, bytes(piece)]


@dataclass(slots=True)
class _Stream:
    """One on its way.  Args: rest: the pieces that were not sent yet, the next one last."""

    producer: m.ProducerId
    socket: zmq.Socket[bytes]
    rest: list[bytes]
    session: Session = field(default_factory=Session)
    window: int = 0
    asked: bool = False
    done: bool = False

    def send(self) -> None:
        """Send what the window allows, and in the end ask for the publication of all of it."""
        while self.rest and len(self.rest[-1]) <= self.session.may_send(self.window):
            piece = self.rest.pop()
            header = message_wire.data_header(self.producer, self.session.sent)
            self.socket.send_multipart([header, piece])
            self.session.sent_to(self.session.sent + len(piece), time.monotonic())
        if not self.rest and not self.asked:
            self.asked = True
            flush = m.Flush(_TOKEN, self.producer, self.session.sent)
            self.socket.send_multipart(message_wire.encode(flush))

    def take(self, message: m.Message) -> None:
        """Take an answer in."""
        match message:
            case m.Welcome():
                self.window = message.window
            case m.Ack(_, position, count, published):
                self.session.acknowledged(position, count, published, time.monotonic())
            case m.Done(_, ""):
                self.done = True
            case _:
                raise RuntimeError(f"the daemon answers {message}")


def send(root: str, recorded: Recorded, senders: int) -> float:
    """Send the ticks once for each of some senders, and wait until all are published.

    The seeds of one run, from 0 on, get them.

    Returns:
        Seconds, from the first piece on.
    """
    endpoint = read_endpoint(root)
    assert endpoint is not None
    with zmq.Context() as context:
        poller = zmq.Poller()
        streams = {}
        for seed in range(senders):
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(reachable_address(endpoint))
            socket.send_multipart(
                message_wire.encode(m.Hello(m.PROTOCOL_VERSION, os.getpid(), runtime.host()))
            )
            poller.register(socket, zmq.POLLIN)
            streams[socket] = _stream(root, seed, socket, recorded)
        try:
            return _send_all(poller, streams)
        finally:
            for socket in streams:
                socket.close()


def _send_all(poller: zmq.Poller, streams: dict[Any, _Stream]) -> float:
    begun = heard = time.monotonic()
    while not all(stream.done for stream in streams.values()):
        for socket, _ in poller.poll(_POLL_MS):
            heard = time.monotonic()
            streams[socket].take(message_wire.decode(socket.recv_multipart()))
            streams[socket].send()
        if time.monotonic() > heard + _TIMEOUT_S:
            raise TimeoutError(f"the daemon said nothing for {_TIMEOUT_S:g} s")
    return time.monotonic() - begun


def _stream(root: str, seed: int, socket: zmq.Socket[bytes], recorded: Recorded) -> _Stream:
    producer = m.ProducerId(secrets.token_bytes(16))
    opening = wire.encode_record(_run(root, seed)) + wire.encode_record(recorded.schema)
    pieces = [opening, *recorded.pieces, wire.encode_record(m.End())]
    return _Stream(producer, socket, pieces[::-1])


def _run(root: str, seed: int) -> m.Run:
    """A run of this process, which the daemon sees alive."""
    pid = os.getpid()
    process = m.Process(pid, runtime.host(), runtime.process_started(pid) or "", runtime.boot_id())
    return m.Run(
        run_id=m.RunId(secrets.token_bytes(16)), directory=f"{root}/run", experiment_dir="run/",
        seed_id=f"seed_{seed}", eval_id="", model_type="no-model-type-provided",
        start_time=time.time(), config_name="", config_file=b"", config_text="", config_json="",
        num_seeds=None, overwrite=False, forked=False, reload=False, policy={}, kept={},
        tboard=False, wandb={}, process=process,
    )  # fmt: skip
