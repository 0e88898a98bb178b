"""Rings of dead processes: taken in a part at a time, as far as there is room, and then removed."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from mle_client import messages as m
from mle_client import ring as rings
from mle_client import runtime, tick_layout
from mle_client.ring import HEADER_BYTES, Ring
from mle_client.snapshot import LeftSnapshot
from mle_daemon import events as e
from mle_daemon import leftovers
from mle_daemon.leftovers import Leftovers, Look
from tests.daemon_rig import Rig, Trainer, make_run

SEGMENT_BYTES = 16 * 1024
PIECE_S = 0.6 * leftovers.LOOK_S  # that a segment takes
STEPS = 4_000  # some 90 KB, in six segments


class Place:
    """A root with rings in it, and a daemon's core that is told of them."""

    def __init__(self, root: Path, rig: Rig) -> None:
        self.root, self.rig = str(root), rig
        self.seconds = 0.0  # by the clock
        self.stored: list[tuple[m.ProducerId, LeftSnapshot]] = []
        self.said: list[str] = []
        self.leftovers = Leftovers(
            self.root,
            rig.core,
            rig.now,
            clock=lambda: self.seconds,
            deliver=self._deliver,
            take_left=lambda producer, left: self.stored.append((producer, left)),
            say_once=self.said.append,
        )

    def _deliver(self, event: e.Event) -> None:
        if isinstance(event, e.Received):
            self.seconds += PIECE_S
        self.rig.deliver(event)
        self.rig.write_journal()

    def leave(self, trainer: Trainer) -> None:
        """Put all that a trainer has logged into a ring whose process is gone."""
        ring = Ring(
            f"{runtime.ring_dir(self.root)}/{trainer.id.hex()}",
            f"{self.root}/spill/{trainer.id.hex()}",
            trainer.id,
            {},
        )
        for start, end in zip(trainer.edges, trainer.edges[1:], strict=False):
            at = ring.active.end
            if at + end - start >= ring.active.size:
                ring.roll(end - start + 1)
                at = HEADER_BYTES
            behind = at + end - start
            ring.active.buffer[at:behind] = trainer.stream[start:end]
            ring.active.buffer[behind] = tick_layout.COMMITTED
            ring.reached(behind)
        ring.let_go()

    def rings(self) -> int:
        """How many lie there."""
        return len(list(Path(runtime.ring_dir(self.root)).iterdir()))

    def look(self) -> Look:
        return self.leftovers.look(self.rig.now)


@pytest.fixture
def place(root: Path) -> Place:
    return Place(root, Rig())


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rings, "SEGMENT_BYTES", SEGMENT_BYTES)


@pytest.fixture
def trainer() -> Trainer:
    return Trainer().log(*range(STEPS))


def test_a_large_ring_is_taken_in_a_part_at_a_time(place: Place, trainer: Trainer) -> None:
    place.leave(trainer)
    positions = [0]
    while not (look := place.look()).is_complete:
        assert look.has_taken
        positions.append(place.rig.core.position(trainer.id))
        assert 0 < positions[-1] - positions[-2] <= 2 * SEGMENT_BYTES
        assert place.rings() == 1
    assert len(positions) > 2
    assert place.rig.core.position(trainer.id) == trainer.head
    assert place.rings() == 0
    place.rig.settle()
    assert place.rig.rows(trainer) == list(range(STEPS))


def test_what_a_look_takes_is_shared_by_all_rings(place: Place) -> None:
    names = ("one", "two", "three", "four", "five")
    trainers = [Trainer(name, make_run(name, name)).log(1, 2) for name in names]
    for each in trainers:
        place.leave(each)
    left = []
    while not place.look().is_complete:
        left.append(place.rings())
    assert (left, place.rings()) == ([3, 1], 0)
    assert [place.rig.core.position(each.id) for each in trainers] == [t.head for t in trainers]


def test_a_look_takes_something_however_slow_all_is(
    place: Place, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "LOOK_S", -1.0)
    place.leave(trainer)
    looks = 0
    while not place.look().is_complete:
        looks += 1
    assert looks > 2
    assert place.rings() == 0


def test_nothing_is_taken_while_the_core_has_no_room(root: Path, trainer: Trainer) -> None:
    place = Place(root, Rig(tail_limit_bytes=SEGMENT_BYTES))
    place.leave(trainer)
    rounds = 0
    while not place.look().is_complete:
        full = place.rig.core.position(trainer.id)
        assert place.rig.core.is_full
        assert place.rig.core.held_bytes < 3 * SEGMENT_BYTES
        assert place.look() == Look(lives=False, has_taken=False, is_complete=False)
        assert place.rig.core.position(trainer.id) == full < trainer.head
        place.rig.tick(60.0)
        place.rig.work()
        place.rig.tick()
        rounds += 1
    assert rounds > 1
    place.rig.settle()
    assert place.rig.rows(trainer) == list(range(STEPS))


def test_while_the_journal_fails_the_ring_stays(place: Place, trainer: Trainer) -> None:
    place.rig.journal_error = "the disk is full"
    place.leave(trainer)
    assert place.look().is_complete  # another look takes nothing more
    assert (place.rig.core.position(trainer.id), place.rings(), place.said) == (0, 1, [])
    place.rig.journal_error = ""
    place.rig.tick(2.0)
    while not place.look().is_complete:
        pass
    assert (place.rig.core.position(trainer.id), place.rings()) == (trainer.head, 0)


def test_the_ring_of_a_process_that_lives_is_let_be(place: Place, trainer: Trainer) -> None:
    place.leave(trainer)
    ready = os.pipe()
    child = os.fork()
    if child == 0:
        owner = Path(runtime.ring_dir(place.root), trainer.id.hex(), rings.OWNER_FILE)
        with owner.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(ready[1], b"!")
            signal.pause()
    os.read(ready[0], 1)
    try:
        assert place.look() == Look(lives=True, has_taken=False, is_complete=True)
        assert (place.rig.core.position(trainer.id), place.rings()) == (0, 1)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready[0])
        os.close(ready[1])
    assert place.look().has_taken


def test_a_ring_of_which_all_is_stored_is_removed_before_leaving(
    place: Place, trainer: Trainer
) -> None:
    place.rig.take(e.NOBODY, trainer.data())
    place.rig.settle()
    place.leave(trainer)
    more = Trainer("more", make_run("more", "more")).log(1)
    place.leave(more)
    place.leftovers.remove_done()
    assert place.rings() == 1  # of which the core has nothing
