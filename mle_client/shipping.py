"""The thread that ships artifacts to the daemon, beside the one that ships ticks.

One thread and one socket for all the loggers of a process that use the same daemon.  It sends the
bytes as they lie in their snapshots, in chunks, and keeps each snapshot until the daemon has said
on the other socket that the artifact is stored; `parcels` decides what is sent when.  User code
never waits for it except in `make_room` and `wait`, and never longer than it says.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from mle_client import artifact_wire as aw
from mle_client.artifact_socket import ArtifactSocket
from mle_client.errors import MLEError, ProtocolError, RunRefused
from mle_client.keys import ClientKeys
from mle_client.messages import ProducerId
from mle_client.parcels import Buffer, Lane, Parcel, Shipment

# While something is on its way: for what nobody answers (`parcels.STALL_AFTER_S`).
_BUSY_WAIT_S: Final = 0.5
# The thread stays for so long without work: longer than the pause between two checkpoints of a
# small model, and an idle thread costs nothing but its stack.
_LINGER_S: Final = 30.0
_ERROR_PAUSE_S: Final = 0.2
_CLOSE_TIMEOUT_S: Final = 1.0


class Shipper:
    """Ships the artifacts of all loggers of this process that use one daemon."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards all that follows up to the blank line
        self._lanes: dict[ProducerId, Lane] = {}
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = -1, -1
        self._address = ""  # where the daemon takes artifacts; "" while it does not
        self._keys: ClientKeys | None = None  # for that
        self._connected_to = ""  # "" also where a new connection is wanted
        self._closing = False

        self._socket = ArtifactSocket()  # for the thread alone, as what follows
        self._idle_since = 0.0
        self._last_error = ""

    # --- called by loggers --------------------------------------------------------------------
    def add(self, producer: ProducerId, on_error: Callable[[MLEError], None]) -> None:
        """Take a producer's artifacts from now on.

        Args:
            on_error: called, from a thread in the background, with what went wrong there.
        """
        with self._changed:
            self._lanes[producer] = Lane(on_error)

    def remove(self, producer: ProducerId) -> None:
        """Ship no more of a producer's artifacts; what is not stored is left as it is."""
        with self._changed:
            self._lanes.pop(producer, None)
            self._closing = not self._lanes
            self._changed.notify_all()
        self._join()

    def submit(
        self,
        producer: ProducerId,
        snapshot: Shipment,
        droppable: Callable[[], bool] = lambda: False,
        on_dropped: Callable[[], None] = lambda: None,
    ) -> None:
        """Ship a snapshot behind the producer's earlier ones, and release it in the end.

        Args:
            droppable: whether it may be dropped where room is wanted and it was not begun.
            on_dropped: called, by `make_room`, when it was dropped.

        Raises:
            KeyError: the producer was not added.
            ValueError: it is larger than an artifact may be.
        """
        if snapshot.size > aw.MAX_ARTIFACT_BYTES:
            raise ValueError(
                f"an artifact of {snapshot.size} bytes is too large: {aw.MAX_ARTIFACT_BYTES} is "
                "the bound; save it in parts"
            )
        with self._changed:
            self._lanes[producer].parcels.append(Parcel(snapshot, droppable, on_dropped))
            self._closing = False
            self._changed.notify_all()
            if self._thread is None:
                self._start()
        self.wake()

    def make_room(self, producer: ProducerId, wanted_bytes: int, timeout: float) -> float:
        """Free memory of a producer's snapshots: drop what is droppable, then wait for the daemon.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Seconds waited.
        """
        with self._changed:
            lane = self._lanes.get(producer)
            if lane is None:
                return 0.0
            goal = lane.freed + wanted_bytes
            waiting = lane.not_begun()
        for parcel in waiting:
            if lane.freed >= goal:
                return 0.0
            if parcel.droppable():  # outside of the lock: it is the caller's
                self._drop(lane, parcel)
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: lane.freed >= goal or not lane.parcels, timeout)
        return time.monotonic() - began

    def wait(self, producer: ProducerId, timeout: float) -> bool:
        """Wait until all of a producer's artifacts are stored, or will never be.

        Args:
            timeout: in seconds.

        Returns:
            Whether they are.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._parcels(producer), timeout)

    def unstored(self, producer: ProducerId) -> int:
        """How many of a producer's artifacts are not stored."""
        with self._changed:
            return len(self._parcels(producer))

    def numbers(self, producer: ProducerId) -> frozenset[int]:
        """Which of a producer's artifacts are not stored."""
        with self._changed:
            return frozenset(parcel.shipment.number for parcel in self._parcels(producer))

    @property
    def is_busy(self) -> bool:
        """Whether anything is on its way."""
        return any(lane.parcels for lane in tuple(self._lanes.values()))

    def pending_bytes(self, producer: ProducerId) -> int:
        """Bytes of a producer's artifacts that are not stored."""
        with self._changed:
            return sum(parcel.size for parcel in self._parcels(producer))

    def dropped(self, producer: ProducerId) -> int:
        """How many of a producer's artifacts were dropped."""
        with self._changed:
            return self._lanes[producer].dropped if producer in self._lanes else 0

    def close(self) -> None:
        """End the thread; what is not stored is left as it is."""
        with self._changed:
            self._closing = True
        self._join()

    def _join(self) -> None:
        """Wait for the end of the thread if it is to end, and as long as it is."""
        with self._changed:
            thread = self._thread
            if thread is None or thread is threading.current_thread() or not self._closing:
                return
            self.wake()
            self._changed.wait_for(
                lambda: self._thread is not thread or not self._closing, _CLOSE_TIMEOUT_S
            )
            ended = self._thread is not thread
        if ended:
            thread.join(_CLOSE_TIMEOUT_S)

    def wake(self) -> None:
        """End the thread's present wait."""
        # Under the lock, or the number might be another file's by the time it is written to.
        with self._changed, contextlib.suppress(OSError):
            os.write(self._wake_write, b"!")

    # --- told by the transport ----------------------------------------------------------------
    def connect(self, address: str, keys: ClientKeys | None = None) -> None:
        """The daemon takes artifacts at an address.  The same again changes nothing.

        Args:
            keys: for the connection; None where the daemon wants none.
        """
        with self._changed:
            self._address, self._keys = address, keys
        self.wake()

    def disconnect(self) -> None:
        """The daemon is gone, or its connection: what is not stored is offered to the next one."""
        with self._changed:
            self._address = self._connected_to = ""
        self.wake()

    def stored(self, producer: ProducerId, number: int) -> None:
        """An artifact is on disk under its names."""
        self._end(producer, number, None)

    def rejected(self, producer: ProducerId, number: int, reason: str) -> bool:
        """An artifact will never be stored.  Returns: whether that is news."""
        return self._end(producer, number, RunRefused(reason))

    def forget(self) -> None:
        """In a forked child: the thread is the parent's, and its socket must not be touched."""
        _LEFT_TO_THE_PARENT.append((self._socket, self._lanes))
        for fd in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(fd)
        Shipper.__init__(self)

    # --- the end of a parcel ------------------------------------------------------------------
    def _parcels(self, producer: ProducerId) -> list[Parcel]:
        return self._lanes[producer].parcels if producer in self._lanes else []

    def _end(self, producer: ProducerId, number: int, error: MLEError | None) -> bool:
        with self._changed:
            lane = self._lanes.get(producer)
            parcel = lane.find(number) if lane else None
        if lane is None or parcel is None:
            return False
        self._finish(lane, parcel, error)
        return True

    def _drop(self, lane: Lane, parcel: Parcel) -> None:
        with self._changed:
            if parcel.begun or parcel not in lane.parcels:
                return
            lane.parcels.remove(parcel)
            lane.dropped += 1
        try:
            parcel.on_dropped()
        finally:
            self._free(lane, parcel)

    def _finish(self, lane: Lane, parcel: Parcel, error: MLEError | None) -> None:
        """Take a parcel out of its lane and free its memory, at once unless it is being read."""
        with self._changed:
            if parcel not in lane.parcels:
                return
            lane.parcels.remove(parcel)
            parcel.over = True
            busy = parcel.busy
        if not busy:
            self._free(lane, parcel)
        if error is not None:
            lane.on_error(error)

    def _free(self, lane: Lane, parcel: Parcel) -> None:
        parcel.let_go()
        try:
            parcel.shipment.release()
        finally:
            with self._changed:
                lane.freed += parcel.size
                self._changed.notify_all()

    # --- the thread ---------------------------------------------------------------------------
    def _start(self) -> None:
        """Start the thread; the caller holds the lock."""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._idle_since = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="mle-shipper", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while self._go_on():
            try:
                self._round()
            except Exception as error:  # whatever it is, the rest must go on being shipped
                self._report(error)
                with self._changed:
                    self._connected_to = ""
                time.sleep(_ERROR_PAUSE_S)

    def _go_on(self) -> bool:
        with self._changed:
            now = time.monotonic()
            if any(lane.parcels for lane in self._lanes.values()):
                self._idle_since = now
            if not self._closing and now - self._idle_since < _LINGER_S:
                return True
            self._socket.close()
            self._connected_to = ""
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1
            self._thread = None
            self._changed.notify_all()
            return False

    def _round(self) -> None:
        self._follow_address()
        if self._socket.is_open:
            self._pump()
        busy = any(lane.parcels for _, lane in self._all_lanes())
        if self._socket.wait(self._wake_read, _BUSY_WAIT_S if busy else _LINGER_S):
            os.read(self._wake_read, 65536)
        self._take_answers()

    def _follow_address(self) -> None:
        """Be connected to where the transport says, or to nothing."""
        with self._changed:
            address, keys = self._address, self._keys
            if address == self._connected_to and self._socket.is_open == bool(address):
                return
            self._connected_to = address
            for lane in self._lanes.values():
                lane.begin_again()
        if address:
            self._socket.connect(address, keys)
        else:
            self._socket.disconnect()

    def _all_lanes(self) -> tuple[tuple[ProducerId, Lane], ...]:
        with self._changed:
            return tuple(self._lanes.items())

    # --- sending ------------------------------------------------------------------------------
    def _pump(self) -> None:
        """Send as much as the windows allow, a chunk of each lane in turn."""
        moved = True
        while moved and not self._closing:
            moved = False
            for producer, lane in self._all_lanes():
                moved = self._offer(producer, lane) or moved
                moved = self._send_chunk(producer, lane) or moved
            self._take_answers()

    def _offer(self, producer: ProducerId, lane: Lane) -> bool:
        """Offer the next parcel of a lane.  Returns: whether there was one."""
        now = time.monotonic()
        with self._changed:
            parcel = lane.to_offer(now)
            if parcel is None:
                return False
            parcel.offered(now)
        shipment = parcel.shipment
        self._socket.send(aw.Offer(producer, shipment.number, shipment.size, shipment.form))
        return True

    def _send_chunk(self, producer: ProducerId, lane: Lane) -> bool:
        """Send a chunk of a lane.  Returns: whether one was to be sent."""
        with self._changed:
            parcel = lane.to_send()
            if parcel is None:
                return False
            parcel.busy = True
        try:
            payload = self._read(lane, parcel)
            if payload is not None:
                number, offset = parcel.shipment.number, parcel.sent
                self._socket.send(aw.Chunk(producer, number, offset, payload))
                parcel.sent += len(payload)
        finally:
            with self._changed:
                parcel.busy = False
                over = parcel.over
            if over:
                self._free(lane, parcel)
        return True

    def _read(self, lane: Lane, parcel: Parcel) -> Buffer | None:
        """The next bytes of a parcel; None where they cannot be read, which is its end."""
        try:
            return parcel.read(parcel.sent)
        except Exception as error:
            self._finish(lane, parcel, _as_ours(error))
            return None

    # --- answers ------------------------------------------------------------------------------
    def _take_answers(self) -> None:
        for message in self._socket.answers():
            with self._changed:
                lane = self._lanes.get(message.producer)
                parcel = lane.find(message.number) if lane else None
            if isinstance(message, aw.Declined) and not message.producer:
                self._report(ProtocolError(f"the daemon takes no artifacts: {message.reason}"))
            elif lane is not None and parcel is not None:  # else it is over, or removed
                self._answered(lane, parcel, message)

    def _answered(self, lane: Lane, parcel: Parcel, message: aw.Reply) -> None:
        match message:
            case aw.Taken(_, _, offset):
                parcel.taken(offset, time.monotonic())
                self._last_error = ""
            case aw.Declined(_, _, reason):
                self._finish(lane, parcel, RunRefused(reason))
            case aw.Restart():
                parcel.begin_again()

    def _report(self, error: Exception) -> None:
        """Tell every logger what keeps its artifacts from the daemon, once until that changes."""
        text = str(error)
        if text == self._last_error:
            return
        self._last_error = text
        for _, lane in self._all_lanes():
            lane.on_error(_as_ours(error))


def _as_ours(error: Exception) -> MLEError:
    return error if isinstance(error, MLEError) else MLEError(f"{type(error).__name__}: {error}")


# Kept so that the garbage collector of a forked child does not close what is not its own.
_LEFT_TO_THE_PARENT: list[object] = []
