"""What processes that are gone left in their rings: taken in, a part at a time, and then removed.

A ring may hold a gigabyte.  Whoever logs or asks meanwhile is not to wait for all of it, nor is it
to be in memory at once; so a look takes some of it, and nothing while the core has no room.  It
reads rings and tells the core of them; when to look, and what waits for the end of it, is for
`daemon`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mle_client import messages as m
from mle_client.snapshot import LeftSnapshot
from mle_daemon import events as e
from mle_daemon import probes
from mle_daemon.core import Core

_LOG = logging.getLogger(__name__)

# A look takes no more of any ring after so many seconds.  To find where to go on in a gigabyte of
# segments takes another tenth.
LOOK_S: Final = 0.2
# A producer whose ring cannot be seen from here is taken for gone after so many seconds without a
# sign of life: three of its heartbeats.
_SILENT_AFTER_S: Final = 35.0
# A ring that was refused, for it is damaged or there are too many runs, is read again then.
_STUCK_RETRY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found.

    Args:
        lives: whether there are rings of processes that live.
        has_taken: whether something was taken in.
        is_complete: whether nothing is left that another look would take.
    """

    lives: bool
    has_taken: bool
    is_complete: bool


class Leftovers:
    """The rings below a root whose processes are gone.

    Args:
        root: that the daemon serves.
        core: asked what it has of a stream, and whether it has room.
        started: `time.monotonic` when the daemon did; producers have a while to be heard of.
        clock: `time.monotonic`.
        deliver: has the core handle an event, and the journal take what comes of it.
        take_left: has an artifact of a dead process stored.
        say_once: writes to the log what would be true again at the next look.
    """

    def __init__(
        self,
        root: str,
        core: Core,
        started: float,
        *,
        clock: Callable[[], float],
        deliver: Callable[[e.Event], None],
        take_left: Callable[[m.ProducerId, LeftSnapshot], None],
        say_once: Callable[[str], None],
    ) -> None:
        self._root = root
        self._core = core
        self._started = started
        self._clock = clock
        self._deliver = deliver
        self._store = take_left
        self._say_once = say_once
        self._storing: set[tuple[m.ProducerId, int]] = set()  # artifacts
        # Rings that are not taken, with the time of the next attempt; told once.
        self._stuck: dict[m.ProducerId, float] = {}
        self._until = 0.0  # by the clock, of the present look
        self._has_taken = False  # at that

    def look(self, now: float) -> Look:
        """Take in what processes that are gone have left, and see which others there are."""
        places = probes.find_rings(self._root)
        rings = {place.producer for place in places}
        alive, is_complete = set(rings), True
        self._until, self._has_taken = self._clock() + LOOK_S, False
        for ring in probes.abandoned(places, self._say_once):
            alive.discard(ring.place.producer)
            try:
                is_complete &= self._drain(ring, now)
            except OSError as error:
                self._say_once(f"the ring in {ring.place.directory} cannot be read: {error}")
            finally:
                ring.close()
        self._tell_gone(rings, now)
        self._stuck = {p: at for p, at in self._stuck.items() if p in rings}
        self._storing = {key for key in self._storing if key[0] in rings}
        self._deliver(e.RingsSeen(frozenset(rings)))
        return Look(bool(alive), self._has_taken, is_complete)

    def remove_done(self) -> None:
        """Before leaving, remove the rings of dead processes of which all is stored.

        Artifacts may have been stored since rings were last looked at, and once the journal is
        gone, the next daemon would take what such a ring holds for news.
        """
        places = probes.find_rings(self._root)
        rings = {place.producer for place in places}
        for ring in probes.abandoned(places, self._say_once):
            producer = ring.place.producer
            try:
                position, end = self._core.position(producer), 0
                for remains in ring.remains(self._say_once, position):
                    end = remains.base + len(remains.payload)
                if position >= end and self._core.is_settled(producer):
                    ring.remove()
                    rings.discard(producer)
            except OSError as error:
                self._say_once(f"the ring in {ring.place.directory} cannot be read: {error}")
            finally:
                ring.close()
        self._deliver(e.RingsSeen(frozenset(rings)))

    def _drain(self, ring: probes.AbandonedRing, now: float) -> bool:
        """Take in what a process left behind, and remove its ring once the journal has it.

        Returns:
            False where there is more to take at another look.
        """
        producer = ring.place.producer
        if now < self._stuck.get(producer, 0.0):
            return True
        end, position = 0, self._core.position(producer)
        for remains in ring.remains(self._say_once, position):
            end = remains.base + len(remains.payload)
            if end <= position:
                continue
            if self._core.is_full or (self._has_taken and self._clock() > self._until):
                return False
            data = m.Data(producer, remains.base, remains.payload)
            self._deliver(e.Received(e.NOBODY, data))
            before, position = position, self._core.position(producer)
            if position == before:  # the journal cannot be written, or this is refused
                break
            self._has_taken = True
        if position >= end:
            self._take_left(ring)
            if self._core.is_settled(producer):
                _LOG.info("the process of stream %s is gone; its ring is drained", producer.hex())
                ring.remove()
        elif not self._core.degraded:
            if producer not in self._stuck:
                where = ring.place.directory
                _LOG.error("the ring in %s is not taken, or not to its end; it stays there", where)
                self._take_left(ring)
            self._stuck[producer] = now + _STUCK_RETRY_S
        return True

    def _take_left(self, ring: probes.AbandonedRing) -> None:
        """Have the artifacts that a dead process left in memory stored."""
        producer = ring.place.producer
        wanted = self._core.wanted_artifacts(producer)
        left = {each.number: each for each in ring.left()} if wanted else {}
        for number in sorted(wanted & left.keys()):
            if (producer, number) not in self._storing:
                self._storing.add((producer, number))
                self._store(producer, left[number])
        self._deliver(e.ProducerGone(producer, frozenset(left)))

    def _tell_gone(self, rings: set[m.ProducerId], now: float) -> None:
        """One with a ring is gone when that has been read, and with what it has left behind."""
        for producer, process in self._core.processes().items():
            if producer not in rings and probes.is_gone(process):
                self._deliver(e.ProducerGone(producer))
        for producer in self._core.silent(now - _SILENT_AFTER_S):
            if producer not in rings and now - self._started > _SILENT_AFTER_S:
                self._deliver(e.ProducerGone(producer))
