"""The thread that ships rings to the daemon, and the only client module on the hot side of ZeroMQ.

One thread and one socket for all the loggers of a process that use the same daemon.  Its rounds:
connect if need be (starting a daemon where one is missing), read answers, send what is new.  User
code never waits for it except in `flush` and `close`, and never longer than it says.

The decisions about delivery are `session`'s; the bytes are `ring`'s, sent as they lie there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket as sockets
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import zmq

from mle_client import addresses, descriptors, discovery, message_wire
from mle_client import messages as m
from mle_client.discovery import Target
from mle_client.endpoint import (
    READY,
    Endpoint,
    is_alive,
    reachable_address,
    read_endpoint,
)
from mle_client.errors import (
    DaemonUnavailable,
    MLEError,
    ProtocolError,
    RunRefused,
    VersionMismatch,
)
from mle_client.handshake import Handshake
from mle_client.keys import ClientKeys, keys_for
from mle_client.producer import Producer
from mle_client.ring import Ring
from mle_client.session import Session
from mle_client.shipping import Shipper
from mle_client.snapshot import Arena

# How long a round waits while much comes in: a batch then has thousands of fast ticks, and what a
# ring takes in memory stays small.
_BUSY_WAIT_S: Final = 0.02
# While a round sends less than so many bytes, and as few were acknowledged, there is time: each
# takes some 0.4 ms of CPU, and what waits in the ring is as safe from a kill as what was sent.
_MUCH_BYTES: Final = 65_536
_CALM_WAIT_S: Final = 0.2
# Unanswered for so long, the daemon's process is looked at.
_LOOK_AFTER_S: Final = 0.5
_HELLO_TIMEOUT_S: Final = 5.0
# Tells the daemon that this process lives, where it cannot see its rings.
_HEARTBEAT_S: Final = 10.0
# How often snapshots' memory that nobody has used for a while is given back.
_TIDY_EVERY_S: Final = 30.0
_FIRST_RETRY_S: Final = 0.2
# As long as a daemon cannot be started, as on a full disk: everything goes on within 5 s of there
# being room.  An attempt costs some 0.2 s of CPU, of another process.
_LAST_RETRY_S: Final = 3.0
_REMOVED: Final = "its logger was closed meanwhile"


@dataclass(eq=False, slots=True)
class Channel:
    """One producer on its way to the daemon.

    It does not keep the producer, and so its logger, from being collected as garbage.

    Args:
        arena: that holds the producer's snapshots.
        on_error: called, from the sender's thread, with what went wrong in the background.
        reference: to the producer.
        end: called at each round of the sender, by which it is to be removed soon.
    """

    id: m.ProducerId
    ring: Ring
    arena: Arena
    on_error: Callable[[MLEError], None]
    reference: weakref.ref[Producer]
    end: Callable[[], None] | None = None
    session: Session = field(default_factory=Session)
    save_wanted: bool = False
    save_at: int | None = None  # the daemon is asked to publish when it was sent what is before
    refused: str = ""
    refused_artifacts: int = 0  # that the daemon has given up
    renamed: str = ""  # the seed's name where the daemon had to choose another

    @property
    def producer(self) -> Producer:
        """For who keeps it from being collected."""
        producer = self.reference()
        assert producer is not None
        return producer

    def catch_up(self) -> int:
        """As of `Producer`; one that has just been collected comes back, or has ended."""
        producer = self.reference()
        return self.ring.head if producer is None else producer.catch_up()

    def is_behind(self) -> bool:
        """Whether ticks wait for values that a device is still computing."""
        producer = self.reference()
        return producer is not None and producer.is_behind

    def end_by(self, producer: Producer, step: Callable[[], None]) -> None:
        """Have the sender end the stream of a logger that was collected.  Never waits."""
        self.reference = weakref.ref(producer)  # it is back: `step` keeps it
        self.end = step


@dataclass(eq=False, slots=True)
class _Wait:
    """A flush that user code waits for.

    Args:
        artifacts: whose records lie before the position, and that were not stored when it began.
    """

    token: int
    channel: Channel
    position: int
    artifacts: frozenset[int]
    over: threading.Event = field(default_factory=threading.Event)
    sent: bool = False
    error: str | None = None


@dataclass(eq=False, slots=True)
class _Link:
    """A connection.

    Args:
        address: that it goes to.
        endpoint: of the daemon, where its process can be looked at.
        keys: for it; None where the daemon wants none.
        handshake: watched where others might turn the connection away.
    """

    socket: Any
    address: str
    endpoint: Endpoint | None
    keys: ClientKeys | None
    handshake: Handshake | None
    since: float
    welcome: m.Welcome | None = None
    heartbeat_at: float = 0.0
    looked_at: float = 0.0


class Transport:
    """Ships the rings of all loggers of this process that use one daemon.

    Args:
        target: the daemon.
    """

    def __init__(self, target: Target) -> None:
        self.shipper = Shipper()
        self._target = target
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards the two collections and the thread's life
        self._channels: dict[m.ProducerId, Channel] = {}
        self._waits: dict[int, _Wait] = {}
        self._tokens = itertools.count(1)
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = -1, -1
        self._waker: Any = None  # waits for the pipe alone
        self._context: Any = None
        self._link: _Link | None = None
        self._acked_bytes = 0  # in this round
        self._retry_s = _FIRST_RETRY_S
        self._retry_at = 0.0
        self._tidy_at = 0.0
        self._told_to_leave = False
        self._last_error = ""

    # --- called by loggers --------------------------------------------------------------------
    def add(
        self, producer: Producer, arena: Arena, on_error: Callable[[MLEError], None]
    ) -> Channel:
        """Begin to ship a producer's ring and its snapshots."""
        channel = Channel(producer.id, producer.ring, arena, on_error, weakref.ref(producer))
        self.shipper.add(producer.id, lambda error: channel.on_error(error))
        with self._lock:
            self._channels[producer.id] = channel
            if self._thread is None:
                self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
                self._thread = threading.Thread(target=self._work, name="mle-sender", daemon=True)
                self._thread.start()
        return channel

    def remove(self, channel: Channel, timeout: float = 1.0) -> int:
        """Ship no more of a producer's ring; the thread ends with the last one.

        Returns:
            How many of its snapshots are not stored.
        """
        unstored = self.shipper.unstored(channel.id)
        self.shipper.remove(channel.id)
        with self._lock:
            self._channels.pop(channel.id, None)
            for wait in self._waits.values():
                if wait.channel is channel:  # from now on nobody answers
                    wait.error = "" if channel.session.published >= wait.position else _REMOVED
                    wait.over.set()
            thread = self._thread if not self._channels else None
        if thread is not None and thread is not threading.current_thread():
            self.wake()
            thread.join(timeout)
        return unstored

    def save(self, channel: Channel) -> None:
        """Ask for publication soon.  Cheap: the next round tells the daemon."""
        channel.save_wanted = True

    def flush(self, channel: Channel, head: Callable[[], int], timeout: float) -> bool:
        """Wait until everything so far is synced and in the log file, and every artifact stored.

        Args:
            head: tells where the stream ends.
            timeout: seconds.

        Returns:
            Whether it is.
        """
        artifacts = self.shipper.numbers(channel.id)  # first: their records lie before the head
        position = head()
        with self._lock:
            if channel.id not in self._channels:
                return channel.session.published >= position
            wait = _Wait(next(self._tokens), channel, position, artifacts)
            self._waits[wait.token] = wait
        self._retry_at = min(self._retry_at, time.monotonic())
        self.wake()
        wait.over.wait(timeout)
        with self._lock:
            self._waits.pop(wait.token, None)
        return wait.error == ""

    def is_awaited(self, channel: Channel) -> bool:
        """Whether somebody waits in `flush`."""
        return any(wait.channel is channel for wait in tuple(self._waits.values()))

    def wake(self) -> None:
        """End the thread's present wait."""
        # Under the lock, or the number might be another file's by the time it is written to.  Not
        # for long: a signal handler may be here while its own thread has the lock.
        if self._lock.acquire(timeout=_BUSY_WAIT_S):
            try:
                with contextlib.suppress(OSError):
                    os.write(self._wake_write, b"!")
            finally:
                self._lock.release()

    @property
    def connected(self) -> bool:
        """Whether a daemon has answered on the present connection."""
        return self._link is not None and self._link.welcome is not None

    # --- the thread ---------------------------------------------------------------------------
    def _work(self) -> None:
        wait_s = _BUSY_WAIT_S
        while self._go_on():
            try:
                moved = self._round(wait_s)
            except Exception as error:  # whatever it is, the ticks must go on being shipped
                self._report(error)
                self._disconnect()
                self._later()
                moved = 0
                time.sleep(_BUSY_WAIT_S)
            wait_s = _BUSY_WAIT_S if moved >= _MUCH_BYTES else _CALM_WAIT_S

    def _go_on(self) -> bool:
        with self._lock:
            if self._channels:
                return True
            self._disconnect()
            self.shipper.close()
            if self._context is not None:
                self._context.term()
                self._context = None
            read, write = self._wake_read, self._wake_write
            self._wake_read = self._wake_write = -1
            self._waker = None
            os.close(read)
            os.close(write)
            self._thread = None
            return False

    def _round(self, wait_s: float) -> int:
        """One round: wait, then send what has come meanwhile.

        Returns:
            How many bytes it has sent, or has heard to be safe: in the room that those have left, a
            logger that has waited for it goes on at full speed.
        """
        self._acked_bytes = 0
        self._listen(wait_s)
        for channel in tuple(self._channels.values()):
            channel.catch_up()
            if channel.end is not None:
                channel.end()
        now = time.monotonic()
        if now >= self._tidy_at:
            self._tidy_at = now + _TIDY_EVERY_S
            for channel in tuple(self._channels.values()):
                channel.arena.tidy()
        if self._link is None and now >= self._retry_at:
            self._connect(now)
        link = self._link
        if link is None or not self._is_well(link, now) or link.welcome is None:
            return 0
        sent = 0
        for channel in tuple(self._channels.values()):
            # One at a time: a trainer that saves at every tick must not put it off for ever.
            if channel.save_wanted and channel.save_at is None:
                channel.save_wanted = False  # first: what is logged from now on may ask again
                channel.save_at = channel.catch_up()
                channel.save_wanted |= channel.is_behind()  # and then for the rest
            sent += self._ship(link, channel, now)
        self._send_requests(link, now)
        return max(sent, self._acked_bytes)

    def _listen(self, wait_s: float) -> None:
        """Wait for answers, or to be woken, and take in what came."""
        self._wait(wait_s)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 65536)
        link = self._link
        handshake = link.handshake if link is not None else None
        if link is not None and handshake is not None and (problem := handshake.problem()):
            raise DaemonUnavailable(link.address, problem)
        while self._link is not None and self._link.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            self._answered(
                self._link, message_wire.decode(self._link.socket.recv_multipart(zmq.NOBLOCK))
            )

    def _wait(self, wait_s: float) -> None:
        """Wait to be woken; for the daemon's answers only where somebody waits for one.

        An acknowledgement can wait until the next round: a round for each would cost the trainer as
        much as sending does.
        """
        if self._waker is None:
            self._waker = select.poll()
            self._waker.register(self._wake_read, select.POLLIN)
        link = self._link
        if link is None or not self._is_expecting(link):
            self._waker.poll(int(wait_s * 1000))
            return
        poller = zmq.Poller()
        poller.register(self._wake_read, zmq.POLLIN)
        poller.register(link.socket, zmq.POLLIN)
        if link.handshake is not None:
            poller.register(link.handshake.monitor, zmq.POLLIN)
        poller.poll(int(wait_s * 1000))

    def _is_expecting(self, link: _Link) -> bool:
        """Whether something goes on when the daemon has answered."""
        is_full = any(c.session.sent < c.ring.head for c in tuple(self._channels.values()))
        return link.welcome is None or bool(self._waits) or is_full or self.shipper.is_busy

    # --- the connection -----------------------------------------------------------------------
    def _connect(self, now: float) -> None:
        address, endpoint = self._find_daemon()
        if address is None:
            self._later()
            return
        known = endpoint is not None
        advertised = endpoint.options.get("keys") if endpoint is not None else None
        keys = keys_for(address, known=known, advertised=advertised)
        descriptors.require()
        if self._context is None:
            self._context = zmq.Context()
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 1_000)  # messages; the window bounds their bytes
        if keys is not None:
            keys.put_on(socket)
        handshake = Handshake(socket, keys) if addresses.is_tcp(address) else None
        self._link = _Link(socket, address, endpoint, keys, handshake, now)
        socket.connect(address)
        self._hello(self._link, now)

    def _find_daemon(self) -> tuple[str | None, Endpoint | None]:
        """The address to connect to.  Starts a daemon where one is missing and may be started."""
        endpoint = read_endpoint(self._target.root)
        if endpoint is not None and endpoint.state == READY and is_alive(endpoint):
            self._told_to_leave = False
            return reachable_address(endpoint), endpoint
        if self._target.address is not None and endpoint is None:
            return self._target.address, None  # it serves a root that cannot be seen from here
        if self._told_to_leave and not self._waits:
            return None, None  # a user stopped it; what is in the rings can wait
        started = discovery.start_again(self._target.root)
        return reachable_address(started), started

    def _hello(self, link: _Link, now: float) -> None:
        link.heartbeat_at = now + _HEARTBEAT_S
        self._send(link, m.Hello(m.PROTOCOL_VERSION, os.getpid(), sockets.gethostname()))

    def _is_well(self, link: _Link, now: float) -> bool:
        """Whether to go on with a connection; if not it is given up, to be made anew."""
        if link.welcome is None:
            waiting = now - link.since
            lost = waiting > _HELLO_TIMEOUT_S
        else:
            waiting = _LOOK_AFTER_S if self._waits or self._outstanding() else 0.0
            lost = any(c.session.stalled(now) for c in tuple(self._channels.values()))
        if waiting >= _LOOK_AFTER_S and now - link.looked_at > _LOOK_AFTER_S:
            link.looked_at = now
            lost = lost or (link.endpoint is not None and not is_alive(link.endpoint))
        if lost:
            self._disconnect()
            self._retry_at = now
        return not lost

    def _outstanding(self) -> bool:
        return any(c.session.sent > c.session.acked for c in tuple(self._channels.values()))

    def _disconnect(self) -> None:
        if self._link is not None:
            if self._link.handshake is not None:
                self._link.handshake.close()
            self._link.socket.close(linger=0)
            self._link = None
            self.shipper.disconnect()
        for wait in tuple(self._waits.values()):
            wait.sent = False

    def _later(self) -> None:
        """Try to connect again after a while, a longer one each time."""
        self._retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    # --- answers ------------------------------------------------------------------------------
    def _answered(self, link: _Link, message: m.Message) -> None:
        now = time.monotonic()
        match message:
            case m.Welcome():
                self._welcomed(link, message, now)
            case m.Ack(producer, position, ticks, published):
                if channel := self._channels.get(producer):
                    before = channel.session.acked
                    channel.session.acknowledged(position, ticks, published, now)
                    self._acked_bytes += channel.session.acked - before
                    channel.ring.release(channel.session.acked)
            case m.Expect(producer, position):
                if channel := self._channels.get(producer):
                    channel.session.expected(position)
                    for wait in tuple(self._waits.values()):
                        if wait.channel is channel:
                            wait.sent = False
            case m.Refused(producer, reason):
                self._refused(producer, reason)
            case m.Notice(producer, reason):
                if channel := self._channels.get(producer):
                    channel.on_error(MLEError(reason))
            case m.Renamed(producer, seed_id):
                if channel := self._channels.get(producer):
                    channel.renamed = seed_id
            case m.Stored(producer, number, error):
                if error:
                    is_news = self.shipper.rejected(producer, number, error)
                    if (channel := self._channels.get(producer)) and is_news:
                        channel.refused_artifacts += 1
                else:
                    self.shipper.stored(producer, number)
            case m.Done(token, error):
                self._done(token, error)
            case m.Leaving():
                self._told_to_leave = True
                self._disconnect()
                self._later()
            case _:
                raise ProtocolError(f"a daemon does not send {type(message).__name__}")

    def _welcomed(self, link: _Link, welcome: m.Welcome, now: float) -> None:
        if welcome.version != m.PROTOCOL_VERSION:
            raise VersionMismatch(m.PROTOCOL_VERSION, welcome.version)
        first = link.welcome is None
        link.welcome = welcome
        self._retry_s = _FIRST_RETRY_S
        self._last_error = ""
        if first:
            for channel in tuple(self._channels.values()):
                channel.session.connected(now)
            host = addresses.host_of(link.address)
            self.shipper.connect(addresses.seen_from_client(welcome.artifacts, host), link.keys)

    def _refused(self, producer: m.ProducerId, reason: str) -> None:
        if not producer:
            raise RunRefused(reason)
        if channel := self._channels.get(producer):
            channel.refused = reason
            channel.on_error(RunRefused(reason))
            for wait in tuple(self._waits.values()):
                if wait.channel is channel:
                    self._done(wait.token, reason)

    def _done(self, token: int, error: str) -> None:
        wait = self._waits.get(token)
        if wait is None:
            return
        if error:
            wait.channel.on_error(MLEError(error))
        else:
            for number in wait.artifacts:  # the word of it was lost with a connection
                self.shipper.stored(wait.channel.id, number)
        wait.error = error
        wait.over.set()

    def _report(self, error: Exception) -> None:
        """Tell every logger what keeps its ticks from the daemon, once until something changes."""
        text = str(error)
        if text == self._last_error:
            return
        self._last_error = text
        known = (
            error if isinstance(error, MLEError) else MLEError(f"{type(error).__name__}: {error}")
        )
        for channel in tuple(self._channels.values()):
            channel.on_error(known)

    # --- sending ------------------------------------------------------------------------------
    def _ship(self, link: _Link, channel: Channel, now: float) -> int:
        """Send what is new of a ring, as far as the daemon's window goes.

        Returns:
            How many bytes.
        """
        session, ring = channel.session, channel.ring
        if channel.refused or session.sent >= ring.head or link.welcome is None:
            return 0
        sent = 0
        try:
            for position, payload in ring.pending(session.sent):
                room = session.may_send(link.welcome.window)
                if len(payload) > room and session.sent > session.acked:
                    break
                header = message_wire.data_header(channel.id, position)
                # Copied: a memcpy of a few hundred KB is cheaper than to keep a segment from being
                # recycled until ZeroMQ says that it has let go (docs/decisions).
                link.socket.send_multipart([header, payload], zmq.NOBLOCK, copy=True)
                session.sent_to(position + len(payload), now)
                sent += len(payload)
        except zmq.Again:
            pass  # the socket's queue is full; the next round goes on
        except LookupError as error:
            channel.refused = f"the daemon no longer knows this run ({error})"
            channel.on_error(MLEError(channel.refused))
        return sent

    def _send_requests(self, link: _Link, now: float) -> None:
        for channel in tuple(self._channels.values()):
            is_due = channel.save_at is not None and channel.session.sent >= channel.save_at
            if is_due and self._send(link, m.Save(channel.id)):
                channel.save_at = None
        for wait in tuple(self._waits.values()):
            if wait.channel.refused:
                self._done(wait.token, wait.channel.refused)
            elif not wait.sent and wait.channel.session.sent >= wait.position:
                flush = m.Flush(wait.token, wait.channel.id, wait.position)
                wait.sent = self._send(link, flush)
        if now >= link.heartbeat_at:
            self._hello(link, now)

    def _send(self, link: _Link, message: m.Request) -> bool:
        """Send a message.  Returns: False where the socket's queue is full, as of many loggers."""
        try:
            link.socket.send_multipart(message_wire.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def forget(self) -> None:
        """In a forked child: the thread is the parent's, and its socket must not be touched."""
        _LEFT_TO_THE_PARENT.append((self._context, self._link))
        self.shipper.forget()
        for fd in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._wake_read = self._wake_write = -1  # the numbers may be another file's soon
        self._waker = None
        self._channels = {}


# Kept so that the garbage collector of a forked child does not close what is not its own.
_LEFT_TO_THE_PARENT: list[object] = []
_TRANSPORTS: dict[str, Transport] = {}  # by root
_REGISTRY_LOCK = threading.Lock()


def transport_for(target: Target) -> Transport:
    """This process's transport to a daemon."""
    with _REGISTRY_LOCK:
        transport = _TRANSPORTS.get(target.root)
        if transport is None:
            transport = _TRANSPORTS[target.root] = Transport(target)
        return transport


def _after_fork_in_child() -> None:
    global _REGISTRY_LOCK
    _REGISTRY_LOCK = threading.Lock()  # the parent may have held it at the fork
    for transport in _TRANSPORTS.values():
        transport.forget()
    _TRANSPORTS.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
