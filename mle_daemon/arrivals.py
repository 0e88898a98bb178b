"""Artifacts that are on their way into the daemon: what is taken, where each stands, what failed.

It knows no socket and no thread: who drives it hands in messages and the time, and passes on what
it answers.  It looks into none of the bytes and gives no file its final name; when an artifact is
whole and synced it says so (`Arrived`), and again when a client asks after one whose file has gone
to its place meanwhile.

Nothing that a client sends can make it raise.  What the disk refuses is tried again, by asking the
client for it; what can never be taken is declined.  Files are the business of `staging`.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from mle_client import artifact_wire as aw
from mle_client import files
from mle_client.messages import ProducerId
from mle_daemon import events as e
from mle_daemon.figure_process import FigureProcess
from mle_daemon.staging import Key, Staging

# Artifacts at once.  A client sends one at a time, so this many are from no sensible one.
MAX_ARRIVALS: Final = 1_000
# Of them, on one connection: a process with many loggers sends one of each at a time.  Its others
# wait, and those of other processes do not.
MAX_CLIENT_ARRIVALS: Final = 200
# Whole artifacts that are remembered, 200 bytes each: a question about one costs no transfer.
_REMEMBERED: Final = 10_000
# After a failure, and after the next ones: all goes on within seconds of the disk's recovery.
FIRST_RETRY_S: Final = 1.0
LAST_RETRY_S: Final = 2.0
# Nothing was heard of an unfinished one for so long: its client is gone.  One that lives asks every
# `parcels.STALL_AFTER_S`, and one that was only stopped begins again.
FORGET_AFTER_S: Final = 600.0
_LEFT_CHUNK_BYTES: Final = 2**20  # what other clients wait for while one is copied
_LOOK_INTERVAL_S: Final = 0.2  # at what is due
_PICTURE_POLL_S: Final = 0.02  # at a process that takes 0.3 s as a rule


class Left(Protocol):
    """A snapshot of a process that is gone: `snapshot.LeftSnapshot`, or what looks like one."""

    @property
    def number(self) -> int:
        """Of the artifact."""

    @property
    def form(self) -> str:
        """One of `artifact_wire.FORMS`."""

    @property
    def size(self) -> int:
        """In bytes."""

    def chunks(self, chunk_bytes: int) -> Iterator[aw.Buffer]:
        """The bytes, in pieces of at most so many."""


class State(Enum):
    """What an artifact waits for."""

    WAITING = auto()  # for room, after a failure; or, one that was left behind, for its turn
    ASKED = auto()  # for its client, which was asked to send it again
    WRITING = auto()  # for bytes
    RENDERING = auto()  # for its picture


@dataclass(eq=False, slots=True)
class Arrival:
    """An artifact that is not whole yet.

    Args:
        client: who sends it; b"" for nobody.
        left: where it is read from, if it was left behind.
        at: bytes that are written.
        retry_at: not before then, while `WAITING`.
        delay_s: that was waited after the last failure.
        error: of the last failure.
    """

    size: int
    form: str
    client: bytes
    heard_at: float
    left: Left | None = None
    state: State = State.WAITING
    at: int = 0
    retry_at: float = 0.0
    delay_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Whole:
    """An artifact that has arrived.  Args: offered: its size on the way, in bytes."""

    offered: int
    event: e.Arrived


class Arrivals:
    """All artifacts on their way.  For one thread.

    Args:
        staging: where they are written.
        deliver: called with `Arrived` and `NotArrived`.
        send: called with a client and an answer for it.
    """

    def __init__(
        self,
        staging: Staging,
        deliver: Callable[[e.Event], None],
        send: Callable[[bytes, aw.Reply], None],
    ) -> None:
        self._staging = staging
        self._deliver = deliver
        self._send = send
        self._figures = FigureProcess()
        self._arrivals: dict[Key, Arrival] = {}
        self._whole: OrderedDict[Key, _Whole] = OrderedDict()
        self._copying: tuple[Key, Arrival, Iterator[aw.Buffer]] | None = None
        self._look_at = 0.0

    # --- what clients send --------------------------------------------------------------------
    def offered(self, client: bytes, offer: aw.Offer, now: float) -> None:
        """A client has an artifact, or asks what became of it."""
        key = offer.producer, offer.number
        if offer.form != aw.FILE:  # to draw one is to run what it holds
            self._send(client, aw.Declined(*key, "a figure is drawn where it was made"))
            return
        if key in self._whole:
            self._asked_after(key, client, offer.size)
            return
        arrival = self._arrivals.get(key)
        if arrival is None:
            if not self._is_room_for(client):
                return  # it is offered again
            arrival = self._arrivals[key] = Arrival(offer.size, offer.form, client, now)
        elif arrival.left is not None:
            return  # its process is gone, so this is an echo
        elif offer.size != arrival.size:
            self._decline(key, client, "it was offered with another size before")
            return
        arrival.client, arrival.heard_at = client, now
        if arrival.state is State.ASKED or (
            arrival.state is State.WAITING and now >= arrival.retry_at
        ):
            self._begin(key, arrival, now)
        if arrival.state is State.WRITING:
            self._answer(key, client, arrival.at)
            if arrival.at == arrival.size:
                self._end(key, arrival, now)

    def _is_room_for(self, client: bytes) -> bool:
        theirs = sum(arrival.client == client for arrival in self._arrivals.values())
        return len(self._arrivals) < MAX_ARRIVALS and theirs < MAX_CLIENT_ARRIVALS

    def _asked_after(self, key: Key, client: bytes, size: int) -> None:
        whole = self._whole[key]
        if size != whole.offered:
            self._send(client, aw.Declined(*key, "it came with another size before"))
            return
        self._answer(key, client, size)
        if not os.path.exists(whole.event.path):  # then what was said of it may have been lost
            self._deliver(whole.event)

    def came(self, client: bytes, chunk: aw.Chunk, now: float) -> None:
        """A client has sent bytes."""
        key = chunk.producer, chunk.number
        if key in self._whole:
            self._answer(key, client, self._whole[key].offered)
            return
        arrival = self._arrivals.get(key)
        if arrival is None:
            self._send(client, aw.Restart(*key))
            return
        arrival.heard_at = now
        end = chunk.offset + len(chunk.payload)
        if arrival.left is not None or arrival.state is not State.WRITING:
            return  # the rest of what was given up
        if end > arrival.size:
            self._decline(key, client, f"{end} bytes came of an artifact of {arrival.size}")
        elif chunk.offset <= arrival.at < end:
            self._write(key, arrival, chunk.payload[arrival.at - chunk.offset :], now)
        else:  # it is there already, or something before it is missing
            self._answer(key, client, arrival.at)

    # --- what the daemon wants ------------------------------------------------------------------
    def take_left(self, producer: ProducerId, left: Left, now: float) -> None:
        """Take what a dead process has left behind, a piece at each `step`."""
        key = producer, left.number
        arrival = self._arrivals.get(key)
        if key in self._whole:
            self._deliver(self._whole[key].event)
        elif left.size > aw.MAX_ARTIFACT_BYTES or left.form not in aw.FORMS:
            self._lost(key, "what was left of it is out of bounds")
        elif arrival is None or arrival.state is not State.RENDERING:
            self._arrivals[key] = Arrival(left.size, left.form, b"", now, left)

    def discard(self, producer: ProducerId, number: int) -> None:
        """Remove the bytes of an artifact that nobody wants."""
        key = producer, number
        self._whole.pop(key, None)
        self._drop(key)

    def step(self, now: float) -> None:
        """Go on with what no message starts: left artifacts, pictures, further attempts."""
        self._copy_left(now)
        self._fetch_pictures(now)
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_INTERVAL_S
        for key, arrival in tuple(self._arrivals.items()):
            if arrival.left is not None or arrival.state is State.RENDERING:
                continue
            if now - arrival.heard_at >= FORGET_AFTER_S:
                self._drop(key)
            elif arrival.state is State.WAITING and now >= arrival.retry_at:
                arrival.state = State.ASKED
                self._send(arrival.client, aw.Restart(*key))

    def wait_s(self) -> float:
        """How long until `step` is to be called again if nothing comes; in seconds."""
        if self._copying is not None:
            return 0.0
        if self._figures.busy:
            return _PICTURE_POLL_S
        if self._arrivals:
            return _LOOK_INTERVAL_S
        return 60.0

    def close(self) -> None:
        """End what goes on and remove what is not whole."""
        for key in tuple(self._arrivals):
            self._drop(key)
        self._figures.stop()

    # --- an artifact's way ------------------------------------------------------------------------
    def _begin(self, key: Key, arrival: Arrival, now: float) -> None:
        try:
            self._staging.begin(key, arrival.size)
        except OSError as error:
            self._failed(key, arrival, error, now)
        else:
            arrival.state, arrival.at = State.WRITING, 0

    def _write(self, key: Key, arrival: Arrival, data: aw.Buffer, now: float) -> None:
        try:
            self._staging.write(key, arrival.at, data)
        except OSError as error:
            self._failed(key, arrival, error, now)
            return
        arrival.at += len(data)
        if arrival.at == arrival.size:
            self._end(key, arrival, now)
        else:
            self._answer(key, arrival.client, arrival.at)

    def _end(self, key: Key, arrival: Arrival, now: float) -> None:
        """All bytes are written."""
        try:
            path = self._staging.finish(key)
        except OSError as error:
            self._failed(key, arrival, error, now)
            return
        self._answer(key, arrival.client, arrival.size)
        if arrival.form == aw.FIGURE:
            arrival.state = State.RENDERING
            self._figures.submit(path)
        else:
            self._arrived(key, arrival, path, arrival.size)

    def _arrived(self, key: Key, arrival: Arrival, path: str, size: int) -> None:
        del self._arrivals[key]
        event = e.Arrived(*key, path, size)
        self._whole[key] = _Whole(arrival.size, event)
        while len(self._whole) > _REMEMBERED:
            self._whole.popitem(last=False)
        self._deliver(event)

    def _fetch_pictures(self, now: float) -> None:
        for path, error in self._figures.poll(now):
            for key, arrival in tuple(self._arrivals.items()):
                if self._staging.path(key) != path:
                    continue
                if error:
                    self._lost(key, f"the figure {error}")
                else:
                    self._arrived(key, arrival, path, os.path.getsize(path))

    # --- what was left behind ---------------------------------------------------------------------
    def _copy_left(self, now: float) -> None:
        """Copy a piece of an artifact that was left behind, one such artifact after another."""
        if self._copying is None:
            self._copying = self._next_left(now)
            return
        key, arrival, pieces = self._copying
        if self._arrivals.get(key) is not arrival:  # it was discarded
            self._copying = None
            return
        try:
            piece = next(pieces, b"")
        except Exception as error:  # whatever it is, these files will be no better later
            self._lost(key, f"what was left of it cannot be read: {_say(error)}")
            return
        if not len(piece) or arrival.at + len(piece) > arrival.size:
            self._lost(key, f"what was left of it are not the {arrival.size} bytes it had")
            return
        self._write(key, arrival, piece, now)
        if arrival.state is not State.WRITING or key not in self._arrivals:
            self._copying = self._next_left(now)  # at once: there may be a thousand small ones

    def _next_left(self, now: float) -> tuple[Key, Arrival, Iterator[aw.Buffer]] | None:
        for key, arrival in tuple(self._arrivals.items()):
            waits = arrival.state is State.WAITING and now >= arrival.retry_at
            if arrival.left is None or not waits:
                continue
            self._begin(key, arrival, now)
            if arrival.state is not State.WRITING:
                continue
            if arrival.size:
                return key, arrival, arrival.left.chunks(_LEFT_CHUNK_BYTES)
            self._end(key, arrival, now)
        return None

    # --- failures -----------------------------------------------------------------------------
    def _failed(self, key: Key, arrival: Arrival, error: Exception, now: float) -> None:
        """The disk does not take it: try again, from the beginning, later."""
        with suppress(OSError):  # then it is made anew all the same
            self._staging.remove(key)
        arrival.state = State.WAITING
        arrival.delay_s = min(max(FIRST_RETRY_S, 2 * arrival.delay_s), LAST_RETRY_S)
        arrival.retry_at = now + arrival.delay_s
        text = _say(files.in_need(error, arrival.size, self._staging.folder))
        if text != arrival.error:
            arrival.error = text
            self._deliver(e.NotArrived(*key, text, final=False))

    def _decline(self, key: Key, client: bytes, reason: str) -> None:
        """The client is at fault, and would be again."""
        self._send(client, aw.Declined(*key, reason))
        self._lost(key, reason)

    def _lost(self, key: Key, reason: str) -> None:
        """It will never arrive."""
        self._drop(key)
        self._deliver(e.NotArrived(*key, reason, final=True))

    def _drop(self, key: Key) -> None:
        """Leave nothing of one that is not whole, or is not wanted."""
        if self._copying is not None and self._copying[0] == key:
            self._copying = None
        self._arrivals.pop(key, None)
        self._figures.cancel(self._staging.path(key))
        self._staging.remove(key)

    def _answer(self, key: Key, client: bytes, offset: int) -> None:
        if client:
            self._send(client, aw.Taken(*key, offset))


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
