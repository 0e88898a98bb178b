"""Artifacts on their way in: what is answered, what is written, and what the daemon is told."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mle_client import artifact_wire as aw
from mle_client.messages import ProducerId
from mle_daemon import arrivals as module
from mle_daemon import events as e
from mle_daemon import figure_process
from mle_daemon.arrivals import Arrivals
from mle_daemon.staging import Staging

ANNA, BERT = ProducerId(b"anna" * 4), ProducerId(b"bert" * 4)
CLIENT, OTHER = b"client", b"other"
CONTENT = b"0123456789"
# Stands in for `mle_client.rendering`: a figure is "fails", or becomes "picture of ...".
PROGRAM = """
import os, sys, time
while os.path.exists(os.path.join(os.path.dirname(sys.argv[2]), "..", "hold")):
    time.sleep(0.01)
figure = open(sys.argv[2]).read()
if figure == "fails":
    sys.exit("it is ugly")
open(sys.argv[4], "w").write("picture of " + figure)
time.sleep(60 * (figure == "is slow"))
"""


class Rig:
    """Arrivals with a folder, and a clock that the test turns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1_000.0
        self.events: list[e.Event] = []
        self.sent: list[tuple[bytes, aw.Reply]] = []
        self.staging = Staging(str(folder))
        self.arrivals = Arrivals(
            self.staging, self.events.append, lambda *what: self.sent.append(what)
        )

    def offer(
        self, size: int = len(CONTENT), *, number: int = 1, form: str = "file", by: bytes = CLIENT
    ) -> list[aw.Reply]:
        """Have an artifact offered.  Returns: the answers."""
        self.arrivals.offered(by, aw.Offer(ANNA, number, size, form), self.now)
        return self.answers(by)

    def chunk(
        self, offset: int, data: bytes, *, number: int = 1, by: bytes = CLIENT
    ) -> list[aw.Reply]:
        """Have bytes come.  Returns: the answers."""
        self.arrivals.came(by, aw.Chunk(ANNA, number, offset, memoryview(data)), self.now)
        return self.answers(by)

    def answers(self, client: bytes) -> list[aw.Reply]:
        """What was sent to a client since the last look; nobody else got anything."""
        sent, self.sent[:] = list(self.sent), []
        assert all(to == client for to, _ in sent), sent
        return [message for _, message in sent]

    def take_events(self) -> list[e.Event]:
        events, self.events[:] = list(self.events), []
        return events

    def step(self, seconds: float = 0.0) -> list[aw.Reply]:
        """Let time pass.  Returns: what was sent to the client."""
        self.now += seconds
        self.arrivals.step(self.now)
        return self.answers(CLIENT)

    def finish_figures(self) -> None:
        """Let the process that renders end."""

        def step() -> bool:
            self.arrivals.step(self.now)
            return bool(self.events)

        wait_for(step)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def rendering() -> list[psutil.Process]:
    """The processes that render.  Earlier tests may have left helpers, and some to be reaped."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if PROGRAM in child.cmdline():
                found.append(child)
    return found


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(
        figure_process, "rendering_command", lambda: [sys.executable, "-c", PROGRAM]
    )
    rig = Rig(tmp_path / "staging")
    yield rig
    rig.arrivals.close()


@dataclass
class Left:
    """What a dead process has left.  Args: fails_at: offset at which reading fails."""

    content: bytes
    number: int = 1
    form: str = "file"
    size: int = -1
    fails_at: int | None = None

    def __post_init__(self) -> None:
        self.size = len(self.content) if self.size < 0 else self.size

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        for at in range(0, len(self.content), 3):
            if at == self.fails_at:
                raise OSError(errno.EIO, "bad sector")
            yield self.content[at : at + 3]


def taken(*offsets: int) -> list[aw.Reply]:
    return [aw.Taken(ANNA, 1, offset) for offset in offsets]


def part(number: int = 1) -> str:
    return f"{ANNA.hex()}-{number}.part"


def arrived(rig: Rig, size: int = len(CONTENT)) -> e.Arrived:
    return e.Arrived(ANNA, 1, str(rig.folder / part()), size)


def break_disk(monkeypatch: pytest.MonkeyPatch, call: str, error: int = errno.ENOSPC) -> None:
    def broken(*arguments: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, call, broken)


# --- the way of an artifact -----------------------------------------------------------------------
def test_an_artifact_arrives_in_pieces(rig: Rig) -> None:
    assert rig.offer() == taken(0)
    assert rig.chunk(0, b"0123") == taken(4)
    assert rig.take_events() == []
    assert rig.chunk(4, b"456789") == taken(10)

    assert rig.take_events() == [arrived(rig)]
    assert rig.files() == {part(): CONTENT}


def test_an_empty_artifact_arrives_with_its_offer(rig: Rig) -> None:
    assert set(rig.offer(0)) == set(taken(0))

    assert rig.take_events() == [arrived(rig, 0)]
    assert rig.files() == {part(): b""}


def test_the_client_is_told_only_when_all_is_synced(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    rig.offer()
    monkeypatch.setattr(os, "fdatasync", lambda fd: told.append(len(rig.sent) + len(rig.events)))

    rig.chunk(0, CONTENT)

    assert told == [0]


def test_what_is_there_already_is_passed_over_and_what_is_missing_asked_for(rig: Rig) -> None:
    rig.offer()
    rig.chunk(0, b"0123")

    assert rig.chunk(0, b"zzz") == taken(4)  # all of it is there
    assert rig.chunk(8, b"89") == taken(4)  # something is missing before it
    assert rig.chunk(2, b"zz456") == taken(7)  # the end of it is new
    assert rig.chunk(7, b"789") == taken(10)
    assert rig.files() == {part(): CONTENT}


def test_an_offer_is_answered_with_where_it_stands_to_whoever_asks(rig: Rig) -> None:
    rig.offer()
    rig.chunk(0, b"0123")

    assert rig.offer(by=OTHER) == taken(4)
    assert rig.chunk(4, b"456789", by=OTHER) == taken(10)
    assert rig.take_events() == [arrived(rig)]


def test_artifacts_of_one_producer_do_not_mix(rig: Rig) -> None:
    for number in (1, 2):
        rig.offer(number=number)
    for at in range(10):
        rig.chunk(at, CONTENT[at : at + 1], number=1)
        rig.chunk(at, CONTENT[9 - at : 10 - at], number=2)

    assert rig.files() == {part(1): CONTENT, part(2): CONTENT[::-1]}


def test_a_chunk_of_something_unknown_asks_for_its_offer(rig: Rig) -> None:
    assert rig.chunk(4, b"4") == [aw.Restart(ANNA, 1)]
    assert rig.files() == {}


# --- asked after ----------------------------------------------------------------------------------
def test_one_that_waits_for_its_name_is_not_told_of_twice(rig: Rig) -> None:
    rig.offer()
    rig.chunk(0, CONTENT)
    rig.take_events()

    assert rig.offer() == taken(10)
    assert rig.chunk(0, CONTENT) == taken(10)
    assert rig.take_events() == []


def test_one_whose_file_has_gone_to_its_place_is_told_of_again_without_a_transfer(rig: Rig) -> None:
    rig.offer()
    rig.chunk(0, CONTENT)
    rig.take_events()
    (rig.folder / part()).unlink()

    assert rig.offer() == taken(10)

    assert rig.take_events() == [arrived(rig)]
    assert rig.files() == {}


def test_what_was_discarded_is_forgotten(rig: Rig) -> None:
    rig.offer()
    rig.chunk(0, CONTENT)
    rig.offer(number=2)
    rig.chunk(0, b"0", number=2)

    rig.arrivals.discard(ANNA, 1)
    rig.arrivals.discard(ANNA, 2)
    rig.arrivals.discard(ANNA, 3)

    assert rig.files() == {}
    assert rig.offer() == taken(0)
    assert rig.chunk(1, b"1", number=2) == [aw.Restart(ANNA, 2)]


def test_not_more_than_so_many_are_remembered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    for number in (1, 2, 3):
        rig.offer(number=number)
        rig.chunk(0, CONTENT, number=number)

    assert rig.offer(number=3) == [aw.Taken(ANNA, 3, 10)]
    assert rig.offer(number=1) == [aw.Taken(ANNA, 1, 0)]


# --- clients that err -----------------------------------------------------------------------------
def test_more_bytes_than_offered_are_declined_and_nothing_is_left(rig: Rig) -> None:
    rig.offer()
    rig.chunk(0, b"0123")

    (answer,) = rig.chunk(4, b"4567890")

    assert answer == aw.Declined(ANNA, 1, "11 bytes came of an artifact of 10")
    assert rig.take_events() == [e.NotArrived(ANNA, 1, answer.reason, final=True)]
    assert rig.files() == {}


@pytest.mark.parametrize("size", [9, 11])
def test_an_offer_that_contradicts_an_earlier_one_is_declined(rig: Rig, size: int) -> None:
    rig.offer()

    (answer,) = rig.offer(size)

    assert isinstance(answer, aw.Declined)
    assert rig.take_events() == [e.NotArrived(ANNA, 1, answer.reason, final=True)]
    assert rig.files() == {}


def test_an_offer_that_contradicts_what_has_arrived_harms_nothing(rig: Rig) -> None:
    rig.offer()
    rig.chunk(0, CONTENT)
    rig.take_events()

    (answer,) = rig.offer(11)

    assert isinstance(answer, aw.Declined)
    assert rig.take_events() == []
    assert rig.files() == {part(): CONTENT}


def test_offers_beyond_the_bound_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ARRIVALS", 2)
    for number in (1, 2):
        rig.offer(number=number)

    assert rig.offer(number=3) == []
    rig.chunk(0, CONTENT, number=1)
    assert rig.offer(number=3) == [aw.Taken(ANNA, 3, 0)]


def test_one_client_leaves_room_for_the_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CLIENT_ARRIVALS", 2)
    for number in (1, 2):
        rig.offer(number=number)

    assert rig.offer(number=3) == []
    assert rig.offer(number=4, by=b"another") == [aw.Taken(ANNA, 4, 0)]
    rig.chunk(0, CONTENT, number=1)
    assert rig.offer(number=3) == [aw.Taken(ANNA, 3, 0)]


def test_one_of_which_nothing_is_heard_is_removed(rig: Rig) -> None:
    rig.offer(number=1)
    rig.offer(number=2)
    rig.step(module.FORGET_AFTER_S / 2)
    rig.chunk(0, b"0", number=2)

    rig.step(module.FORGET_AFTER_S / 2)

    assert list(rig.files()) == [part(2)]
    assert rig.chunk(0, b"0", number=1) == [aw.Restart(ANNA, 1)]


# --- the disk -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "error"),
    [("posix_fallocate", errno.ENOSPC), ("pwrite", errno.EDQUOT), ("fdatasync", errno.EIO)],
)
def test_a_failing_disk_costs_an_attempt_and_the_client_is_asked_again(
    rig: Rig, call: str, error: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_disk(patch, call, error)
        begun = rig.offer()
        assert rig.chunk(0, CONTENT) == []
        assert rig.chunk(4, b"456789") == []  # was under way
    (event,) = rig.take_events()
    assert begun == (taken(0) if call != "posix_fallocate" else [])
    assert isinstance(event, e.NotArrived)
    assert os.strerror(error) in event.error
    assert not event.final
    assert rig.files() == {}

    assert rig.step(module.FIRST_RETRY_S - 0.01) == []
    assert rig.step(module._LOOK_INTERVAL_S) == [aw.Restart(ANNA, 1)]
    assert rig.step(10.0) == []  # once
    assert rig.offer() == taken(0)
    assert rig.chunk(0, CONTENT) == taken(10)
    assert rig.take_events() == [arrived(rig)]


def test_while_the_disk_fails_it_is_tried_every_two_seconds_and_one_failure_is_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_disk(monkeypatch, "posix_fallocate")
    attempts = []
    began = rig.now
    rig.offer()
    for _ in range(1_000):
        if rig.step(0.2):
            attempts.append(round(rig.now - began))
            rig.offer()

    assert attempts[0] == round(module.FIRST_RETRY_S)
    assert {b - a for a, b in itertools.pairwise(attempts)} == {round(module.LAST_RETRY_S)}
    assert len(rig.take_events()) == 1


def test_an_offer_before_its_time_is_not_another_attempt(rig: Rig) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_disk(patch, "posix_fallocate")
        rig.offer()
    rig.now += module.FIRST_RETRY_S - 0.01

    assert rig.offer(by=OTHER) == []
    rig.now += 0.01
    assert rig.offer(by=OTHER) == taken(0)


def test_another_reason_of_failure_is_told(rig: Rig) -> None:
    for error in (errno.ENOSPC, errno.EIO):
        with pytest.MonkeyPatch.context() as patch:
            break_disk(patch, "posix_fallocate", error)
            rig.now += 100
            rig.offer()

    told = [event.error for event in rig.take_events() if isinstance(event, e.NotArrived)]
    assert ["No space" in told[0], "Input/output" in told[1]] == [True, True]


# --- what was left behind -------------------------------------------------------------------------
def test_what_a_dead_process_left_is_taken_a_piece_at_a_time(rig: Rig) -> None:
    rig.arrivals.take_left(ANNA, Left(CONTENT), rig.now)

    rig.step()
    assert rig.arrivals.wait_s() == 0.0
    rig.step()
    assert rig.files()[part()][:4] == b"012\0"
    for _ in range(3):
        assert rig.take_events() == []
        rig.step()

    assert rig.take_events() == [arrived(rig)]
    assert rig.files() == {part(): CONTENT}
    assert rig.arrivals.wait_s() == 60.0


def test_several_are_taken_one_after_another_and_what_clients_send_meanwhile(rig: Rig) -> None:
    rig.arrivals.take_left(BERT, Left(CONTENT), rig.now)
    rig.arrivals.take_left(BERT, Left(b"", number=2), rig.now)
    rig.arrivals.take_left(BERT, Left(CONTENT, number=3), rig.now)
    rig.offer()
    for at in range(10):
        rig.step()
        rig.chunk(at, CONTENT[at : at + 1])
    for _ in range(4):
        rig.step()

    found = [(x.producer, x.number) for x in rig.take_events() if isinstance(x, e.Arrived)]
    assert sorted(found) == [(ANNA, 1), (BERT, 1), (BERT, 2), (BERT, 3)]


def test_what_came_of_it_before_its_process_died_is_replaced(rig: Rig) -> None:
    rig.offer()
    rig.chunk(0, b"zzzz")

    rig.arrivals.take_left(ANNA, Left(CONTENT), rig.now)
    assert rig.chunk(4, b"zz") == []  # an echo
    assert rig.offer() == []
    for _ in range(6):
        rig.step()

    assert rig.take_events() == [arrived(rig)]
    assert rig.files() == {part(): CONTENT}


def test_what_had_arrived_before_its_process_died_is_told_of_again(rig: Rig) -> None:
    rig.offer()
    rig.chunk(0, CONTENT)

    rig.arrivals.take_left(ANNA, Left(CONTENT), rig.now)

    assert rig.take_events() == [arrived(rig), arrived(rig)]
    assert rig.arrivals.wait_s() == 60.0


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (Left(CONTENT, fails_at=6), "bad sector"),
        (Left(CONTENT, size=11), "not the 11 bytes"),
        (Left(CONTENT, size=8), "not the 8 bytes"),
        (Left(CONTENT, size=aw.MAX_ARTIFACT_BYTES + 1), "out of bounds"),
        (Left(CONTENT, form="pickle"), "out of bounds"),
    ],
    ids=["unreadable", "too short", "too long", "huge", "of another form"],
)
def test_what_was_left_and_is_no_artifact_will_never_arrive(
    rig: Rig, left: Left, said: str
) -> None:
    rig.arrivals.take_left(ANNA, left, rig.now)
    for _ in range(8):
        rig.step()

    (event,) = rig.take_events()
    assert isinstance(event, e.NotArrived)
    assert event.final
    assert said in event.error
    assert rig.files() == {}
    assert rig.arrivals.wait_s() == 60.0


def test_what_was_left_is_taken_once_the_disk_has_room(rig: Rig) -> None:
    rig.arrivals.take_left(ANNA, Left(CONTENT), rig.now)
    rig.step()
    with pytest.MonkeyPatch.context() as patch:
        break_disk(patch, "pwrite")
        rig.step()
    (event,) = rig.take_events()
    assert isinstance(event, e.NotArrived)
    assert not event.final
    rig.step()
    assert rig.files() == {}

    rig.step(module.FIRST_RETRY_S)
    for _ in range(6):
        rig.step()

    assert rig.take_events() == [arrived(rig)]
    assert rig.files() == {part(): CONTENT}


def test_one_that_is_discarded_while_it_is_copied_leaves_nothing(rig: Rig) -> None:
    rig.arrivals.take_left(ANNA, Left(CONTENT), rig.now)
    rig.step()
    rig.step()

    rig.arrivals.discard(ANNA, 1)
    rig.step()

    assert rig.files() == {}
    assert rig.take_events() == []
    assert rig.arrivals.wait_s() == 60.0


# --- figures --------------------------------------------------------------------------------------
def test_a_figure_that_comes_over_the_socket_is_declined(rig: Rig) -> None:
    (answer,) = rig.offer(form="figure")

    assert isinstance(answer, aw.Declined)
    assert "drawn where it was made" in answer.reason
    assert rig.files() == {}


def test_a_figure_that_was_left_becomes_a_picture_while_others_arrive(rig: Rig) -> None:
    hold = rig.folder.parent / "hold"
    hold.touch()
    rig.arrivals.take_left(ANNA, Left(CONTENT, form="figure"), rig.now)
    for _ in range(6):
        rig.step()
    rig.offer(number=2)
    rig.chunk(0, CONTENT, number=2)
    (first,) = rig.take_events()
    hold.unlink()

    rig.finish_figures()

    assert isinstance(first, e.Arrived)
    assert first.number == 2
    assert rig.files()[part()] == b"picture of " + CONTENT


def test_a_figure_that_cannot_be_rendered_will_never_arrive(rig: Rig) -> None:
    rig.arrivals.take_left(ANNA, Left(b"fails", form="figure"), rig.now)

    rig.finish_figures()

    (event,) = rig.take_events()
    assert isinstance(event, e.NotArrived)
    assert event.final
    assert "it is ugly" in event.error
    assert rig.files() == {}


def test_a_figure_that_is_discarded_while_it_is_rendered_leaves_nothing(rig: Rig) -> None:
    rig.arrivals.take_left(ANNA, Left(b"is slow", form="figure"), rig.now)
    wait_for(lambda: rig.step() == [] and len(rig.files()) == 2)

    rig.arrivals.discard(ANNA, 1)

    assert rendering() == []
    assert rig.files() == {}
    rig.step()
    assert rig.take_events() == []


def test_what_is_not_whole_is_removed_in_the_end_and_what_has_arrived_stays(rig: Rig) -> None:
    rig.offer()
    rig.chunk(0, CONTENT)
    rig.offer(number=2)
    rig.step()

    rig.arrivals.close()

    assert rig.files() == {part(): CONTENT}
