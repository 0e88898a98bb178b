"""What cannot be put into the ring yet: it waits here, in the order of the calls, until it can.

A tick waits while a device computes its values, and everything that comes later waits behind it; so
do ticks of signal handlers that have interrupted a write.  What is put here is in no shared memory:
a kill of the process takes it along.

Any thread may write the oldest of it, one at a time: who has the *turn*, an item of a list like the
baton of `producer`.  It knows nothing of rings: how something is written is told to it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Final

from mle_client.errors import LoggerClosed
from mle_client.ring import RingFull, Segment
from mle_client.ticks import Described, arrived

# How often it is looked whether something can be written that somebody waits for.
_LOOK_EVERY_S: Final = 0.0002
# A turn is held for some microseconds.  Where nobody has given it back for so long, it is looked
# whether anybody has it; that is slow, and not to be done in every `update`.
_LONG_S: Final = 0.2


@dataclass(slots=True, eq=False)
class Waiting:
    """A tick, or a record that is none.

    Args:
        seconds: since the epoch, when it was logged.
        described: the tick; with pending values, until they have come.
        record: the bytes of another record.
        place: of the tick: the segment, and the offset behind it, where it was about to be written
            the last time; the writer may have been interrupted before or after that.
        is_done: it is written, or counted as lost.
    """

    seconds: float = 0.0
    described: Described | None = None
    record: bytes = b""
    place: tuple[Segment, int] | None = None
    is_done: bool = False

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return self.described.size if self.described is not None else len(self.record)

    def has_come(self) -> bool:
        """Whether every value is here.  The last first: a device computes them in order."""
        pending = self.described.pending if self.described is not None else ()
        return all(value.is_ready() for value in reversed(pending))

    def arrive(self) -> Described:
        """The tick with all values.  Raises: as of `ticks.arrived`."""
        assert self.described is not None
        if self.described.pending:
            self.described = arrived(self.described)
        return self.described


class Aside:
    """The queue.

    Args:
        write: puts something into the ring.  Raises: RingFull: there is no room; LoggerClosed: the
            stream has ended; another: it cannot be written, ever.
        refused: told of what cannot, and the error.
        may_write: whether this thread may; it may not have interrupted a writer.
    """

    def __init__(
        self,
        write: Callable[[Waiting], None],
        refused: Callable[[Waiting, Exception], None],
        may_write: Callable[[], bool],
    ) -> None:
        self._write = write
        self._refused = refused
        self._may_write = may_write
        self._queue: deque[Waiting] = deque()
        self._turn: list[None] = [None]  # empty while a thread writes
        self._turns = 0  # that were given back
        self._missing = 0, 0.0  # how many there were when the turn was first missed, and when
        self.blocked_s = 0.0  # that `settle` has waited for room

    @property
    def blocks(self) -> bool:
        """Whether what comes now has to wait behind something."""
        return bool(self._queue) or not self._turn

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def size(self) -> int:
        """About how many bytes all of it takes."""
        return sum(each.size for each in self._queue.copy())

    def put(self, waiting: Waiting) -> None:
        """Let something wait behind the rest."""
        self._queue.append(waiting)

    def withdraw(self, waiting: Waiting) -> bool:
        """Take something back.  Returns: whether it was still there."""
        with contextlib.suppress(ValueError):
            self._queue.remove(waiting)
            return True
        return False

    def oldest(self) -> Waiting | None:
        """What is to be written next."""
        with contextlib.suppress(IndexError):
            return self._queue[0]
        return None

    def take(self) -> Waiting | None:
        """Take out what is to be written next, for who ends the stream."""
        with contextlib.suppress(IndexError):
            return self._queue.popleft()
        return None

    def settle(
        self, until: float, room_s: float = float("inf"), last: Waiting | None = None
    ) -> bool:
        """Write what is there, oldest first, as far as its values have come and there is room.

        Args:
            until: when to stop waiting, by `time.monotonic`.
            room_s: seconds to wait for room.
            last: up to this one; None for all that is there now.  What comes meanwhile is not
                waited for.

        Returns:
            Whether that much is written.
        """
        if last is None:
            with contextlib.suppress(IndexError):
                last = self._queue[-1]
        looked = time.monotonic()
        room_until = looked + room_s
        while last is not None and not last.is_done:
            if not self._may_write() or self._is_here():
                return False
            has_room = True
            try:
                if self._write_oldest():
                    continue
            except RingFull:
                has_room = False
            now = time.monotonic()
            if not has_room:
                self.blocked_s += now - looked
            looked = now
            if now >= until or (now >= room_until and not has_room):
                return False
            time.sleep(_LOOK_EVERY_S)
        return True

    def _write_oldest(self) -> bool:
        """Write the oldest, unless another thread is at it.

        Returns:
            Whether it need not be looked at again.
        """
        try:
            self._turn.pop()
        except IndexError:
            self._find_turn()
            return False
        try:
            return self._write_next()
        finally:
            self._turns += 1
            self._turn[:] = [None]

    def _find_turn(self) -> None:
        """Put the turn back if nobody has it: an exception came between two steps of who had."""
        now = time.monotonic()
        turns, since = self._missing
        if turns != self._turns or not since:
            self._missing = self._turns, now
        elif now - since > _LONG_S:
            self._missing = self._turns, 0.0
            if _threads_inside(_WRITE_OLDEST) == 1 and turns == self._turns:  # only this one
                self._turn[:] = [None]

    def _write_next(self) -> bool:
        waiting = self.oldest()
        if waiting is None:  # another thread wrote it before we had the turn
            return True
        error: Exception | None = None
        try:
            if not waiting.has_come():
                return False
            # It stays in the queue until it is written, for others must wait behind it.
            self._write(waiting)
        except RingFull:
            raise
        except LoggerClosed:  # who has ended the stream takes it out, and counts it
            return False
        except Exception as caught:
            error = caught
        if not self.withdraw(waiting):
            return True
        waiting.is_done = True
        if error is not None:
            self._refused(waiting, error)
        return True

    def _is_here(self) -> bool:
        """Whether this call comes from inside a write of this very queue."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code is _WRITE_OLDEST and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False


_WRITE_OLDEST: Final = Aside._write_oldest.__code__


def _threads_inside(code: CodeType) -> int:
    return sum(_is_inside(frame, code) for frame in sys._current_frames().values())


def _is_inside(frame: Any, code: CodeType) -> bool:
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False
