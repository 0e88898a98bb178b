"""What the daemon knows after it was killed and started again, and what of the journal may go."""

from __future__ import annotations

import msgpack
import pytest

from mle_client import message_wire, packing
from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon import state
from tests.daemon_rig import (
    ANNA,
    BERT,
    ROOT,
    STEP,
    Rig,
    Trainer,
    acks,
    dones,
    ended,
    make_run,
    only,
    running,
)


# --- segments -------------------------------------------------------------------------------------
def test_a_segment_goes_when_all_in_it_is_published(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data())
    first = rig.last_segment
    rig.rotate()
    rig.tick()
    assert first in rig.segments
    rig.settle()
    assert sorted(rig.segments) == [first + 1]


def test_the_newest_segment_stays(rig: Rig) -> None:
    running(rig)
    assert sorted(rig.segments) == [rig.last_segment]


def test_segments_go_in_order(rig: Rig) -> None:
    """A replay must not find a later piece of a stream without the earlier one."""
    slow, quick = (Trainer(name, make_run(name, name)).log(1) for name in ("slow", "quick"))
    rig.take(ANNA, slow.data())
    first = rig.last_segment
    rig.rotate()
    rig.take(ANNA, quick.data(), m.Flush(1, quick.id, quick.head))
    rig.rotate()
    rig.work()
    assert rig.rows(quick) == [1]
    assert sorted(rig.segments) == [first, first + 1, first + 2]
    rig.settle()
    assert sorted(rig.segments) == [first + 2]


def test_a_segment_goes_with_its_runs(rig: Rig) -> None:
    ended(rig)
    last = rig.rotate()
    rig.tick()
    assert sorted(rig.segments) == [last]


def test_a_failed_publication_keeps_the_segment(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    first = rig.last_segment
    rig.rotate()
    rig.work("disk full")
    assert first in rig.segments


def test_a_segment_that_the_journal_began_unasked_cannot_be_the_oldest(rig: Rig) -> None:
    """It does not begin with what is known of the runs."""
    trainer = running(rig)
    first = rig.last_segment
    rig.begin_segment_unasked()
    trainer.log(3)
    rig.take(ANNA, trainer.data())
    assert first in rig.segments
    rig.start()
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3]
    assert sorted(rig.segments) == [rig.last_segment]


# --- a restart ------------------------------------------------------------------------------------
def test_a_restart_brings_back_what_was_not_published(rig: Rig) -> None:
    trainer = running(rig)
    trainer.log(3)
    rig.take(ANNA, trainer.data())
    rig.start()
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3]
    assert rig.core.position(trainer.id) == trainer.head
    trainer.log(4)
    rig.take(BERT, trainer.data(trainer.edges[-2]))  # of a schema that came before the restart
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3, 4]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("published", [False, True])
def test_replaying_any_number_of_times_comes_to_the_same(times: int, published: bool) -> None:
    rig = Rig()
    trainer = Trainer().log(1).lose(2)
    rig.take(ANNA, trainer.data())
    if published:
        rig.settle()
    trainer.log(2).lose(3)
    rig.take(ANNA, trainer.data())
    for _ in range(times):
        rig.start()
        if published:
            rig.settle()
    rig.settle()
    assert (rig.rows(trainer), rig.file(trainer).lost) == ([1, 2], 5)


def test_a_record_that_lies_in_the_journal_twice_counts_once(rig: Rig) -> None:
    """As after an append that failed and was not taken back."""
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data())
    seen = trainer.head
    trainer.log(2)
    rig.take(ANNA, trainer.data(seen))
    records = rig.segments[rig.last_segment]
    rig.segments[rig.last_segment] = [records[0], records[1], records[1], *records[2:], records[2]]
    rig.start()
    rig.settle()
    assert rig.rows(trainer) == [1, 2]


@pytest.mark.parametrize("settled", [False, True])
def test_a_run_that_ended_before_the_crash_is_finished_after_it(rig: Rig, settled: bool) -> None:
    trainer = Trainer().log(1).end()
    rig.take(ANNA, trainer.data())
    if settled:
        rig.work()
    rig.start()
    rig.settle()
    assert rig.core.idle
    assert (rig.rows(trainer), rig.file(trainer).sealed) == ([1], True)


def test_nothing_is_done_before_the_first_round(rig: Rig) -> None:
    """There is nobody yet to do it: neither a writer nor a socket."""
    trainer = Trainer().log(1).end()
    rig.take(ANNA, trainer.data())
    record = rig.segments[rig.last_segment][-1]
    rig.segments.clear()
    rig.start()
    assert rig.deliver(e.Recovered()) == []
    rig.core._replaying = True
    assert rig.deliver(e.Replayed(1, record)) == []
    assert rig.deliver(e.Recovered()) == []
    assert only(rig.deliver(e.Tick()), e.OpenRun)


def test_a_state_record_alone_brings_back_runs_and_streams(rig: Rig) -> None:
    parent = running(rig, "parent")
    child = parent.fork().log(3).end()
    rig.take(BERT, child.data())
    rig.settle()
    rig.rotate()
    rig.tick()
    assert len(rig.segments) == 1
    rig.start()
    assert rig.core.position(parent.id) == parent.head
    assert rig.core.position(child.id) == child.head
    seen = parent.head
    parent.log(4).end()
    rig.take(ANNA, parent.data(seen))
    rig.settle()
    assert rig.rows(parent) == [1, 2, 3, 4]
    assert rig.file(parent).status == "finished"  # it knew that the child was through


def test_a_state_record_remembers_who_crashed_and_what_was_lost(rig: Rig) -> None:
    parent = Trainer("parent").log(1).lose(5)
    child = parent.fork().log(2)
    rig.take(ANNA, parent.data())
    rig.take(BERT, child.data())
    rig.deliver(e.ProducerGone(parent.id))
    rig.settle()
    rig.rotate()
    rig.tick()
    rig.start()
    child.end()
    rig.take(BERT, child.data())
    rig.settle()
    assert (rig.file(parent).status, rig.file(parent).lost) == ("crashed", 5)


def test_a_finished_stream_is_known_after_a_restart(rig: Rig) -> None:
    trainer = ended(rig)
    rig.rotate()
    rig.tick()
    rig.start()
    rig.take(BERT, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    assert acks(rig.answers(BERT)) == [(trainer.head, 1, trainer.head)]
    assert rig.core.idle


@pytest.mark.parametrize("rotated", [False, True])
def test_a_finished_run_does_not_come_back(rig: Rig, rotated: bool) -> None:
    """Its user may have merged, moved or removed the file."""
    trainer = ended(rig)
    other = Trainer("other", make_run("other", "other")).log(1)
    rig.take(BERT, other.data())  # which keeps the segment
    if rotated:
        rig.rotate()
    rig.disk.files.clear()
    rig.start()
    rig.settle()
    assert list(rig.disk.files) == [other.path]
    assert rig.core.position(trainer.id) == trainer.head


def test_a_finished_run_does_not_come_back_in_place_of_a_later_one(rig: Rig) -> None:
    for name in ("first", "second"):
        trainer = Trainer(name).log(1).end()
        rig.take(ANNA, trainer.data())
        rig.settle()
    aside = list(rig.disk.aside)
    rig.start()
    rig.settle()
    assert rig.disk.aside == aside


def test_a_child_that_joined_later_comes_back_without_its_parent(rig: Rig) -> None:
    parent = Trainer("parent").log(1).end()
    rig.take(ANNA, parent.data())
    rig.settle()
    child = parent.fork().log(2)
    rig.take(BERT, child.data())
    rig.rotate()
    rig.start()
    rig.settle()
    assert rig.rows(parent) == [1, 2]


def test_a_late_child_is_kept_even_if_the_end_of_its_parent_is_damaged(rig: Rig) -> None:
    parent = Trainer("parent").log(1).end()
    rig.take(ANNA, parent.data())
    rig.settle()
    del rig.segments[rig.last_segment][-1]  # which says that the parent is through
    child = parent.fork().log(2)
    rig.take(BERT, child.data())
    rig.rotate()
    rig.start()
    rig.settle()
    assert rig.rows(parent) == [1, 2]


def test_a_name_is_taken_until_the_journal_says_that_its_holder_is_through(rig: Rig) -> None:
    first = Trainer("first").log(1).end()
    rig.take(ANNA, first.data())
    second = Trainer("second").log(2)
    rig.take(BERT, second.data())
    rig.journal_error = "disk full"
    rig.settle()
    assert rig.file(first).sealed
    rig.journal_error = ""
    rig.start()  # the next daemon has not heard of the end; nobody has the file's name yet
    rig.settle()
    assert rig.rows(second) == [2]
    assert [file.rows for file in rig.disk.aside] == [[1]]


def test_the_end_of_a_run_is_noted_as_soon_as_the_journal_takes_it(rig: Rig) -> None:
    trainer = Trainer().log(1).end()
    rig.take(ANNA, trainer.data())
    rig.journal_error = "disk full"
    rig.settle()
    assert not rig.core.idle
    rig.journal_error = ""
    rig.tick()
    assert rig.core.idle


def test_who_joins_while_the_end_of_the_run_is_being_noted_keeps_it_open(rig: Rig) -> None:
    parent = Trainer("parent").log(1).end()
    rig.take(ANNA, parent.data())
    rig.work()
    jobs, rig.jobs = rig.jobs, []
    child = parent.fork().log(2)
    for job in jobs:
        rig.deliver(rig._do(job, "", False))  # sealed: its end is to be appended
    rig.take(BERT, child.data())
    rig.settle()
    assert rig.rows(parent) == [1, 2]
    assert rig.file(parent).status == "running"
    rig.start()
    rig.settle()
    child.end()
    rig.take(BERT, child.data())
    rig.settle()
    assert rig.rows(parent) == [1, 2]
    assert rig.core.idle


def test_a_whole_stream_that_comes_again_is_told_from_what_the_file_has(rig: Rig) -> None:
    """Somebody removed the journal; the client has all of its stream yet and sends it in one."""
    trainer = running(rig)
    rig.segments.clear()
    rig.start()
    trainer.log(3)
    rig.take(ANNA, trainer.data())
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3]
    rig.segments.clear()
    rig.start()
    trainer.log(4)
    rig.take(ANNA, trainer.data())
    assert dones(rig.answers(ANNA)) == []
    rig.start()  # the same by way of the journal
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3, 4]
    assert rig.report(trainer)["ticks"]["lost"] == 0


def test_a_stream_that_was_closed_and_begun_again_is_not_lost_in_a_restart(rig: Rig) -> None:
    trainer = running(rig)
    rig.deliver(e.ProducerGone(trainer.id))  # by mistake
    rig.settle()
    for rings in (frozenset({trainer.id}), frozenset()):
        rig.deliver(e.RingsSeen(rings))
    assert rig.core.position(trainer.id) == 0
    trainer.log(3)
    rig.take(ANNA, trainer.data())
    rig.start()
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3]


def test_a_file_that_another_stream_of_that_name_wrote_loses_nothing(rig: Rig) -> None:
    trainer = Trainer().log(1, 2, 3)
    rig.take(ANNA, trainer.data())
    rig.settle()
    rig.segments.clear()
    rig.start()
    rig.disk.files[trainer.path].applied[trainer.id.hex()] -= 5  # inside of a record
    trainer.log(4)
    rig.take(ANNA, trainer.data())
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3, 1, 2, 3, 4]


@pytest.mark.parametrize("where", ["within a segment", "before a state record"])
def test_what_follows_damage_in_the_journal_is_kept(rig: Rig, where: str) -> None:
    trainer = Trainer()
    rig.take(ANNA, trainer.data())
    for step in range(1, 5):
        seen = trainer.head
        trainer.log(step)
        rig.take(ANNA, trainer.data(seen))
        if step == 3 and where == "before a state record":
            rig.rotate()
    first = min(rig.segments)
    del rig.segments[first][4]  # of the state, the beginning and ticks: tick 3
    rig.start()
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 4]
    assert any("ticks in them are missing" in text for text in rig.logged)
    rig.take(BERT, m.Publish(1, ROOT))
    assert dones(rig.answers(BERT)) == [(1, "")]
    seen = trainer.head
    trainer.log(5)
    rig.take(ANNA, trainer.data(seen))
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 4, 5]


def test_damage_that_takes_the_schema_is_bridged_by_the_state_record(rig: Rig) -> None:
    trainer = Trainer()
    rig.take(ANNA, trainer.data())
    trainer.log(1)
    rig.take(ANNA, trainer.data())
    rig.rotate()
    trainer.log(2)
    rig.take(ANNA, trainer.data())
    del rig.segments[min(rig.segments)][-1]
    rig.start()
    rig.settle()
    assert rig.rows(trainer) == [2]


def test_damage_at_the_very_end_keeps_nobody_waiting(rig: Rig) -> None:
    trainer = running(rig)
    trainer.log(3)
    rig.take(ANNA, trainer.data())
    rig.rotate()
    del rig.segments[min(rig.segments)][-1]
    rig.start()
    rig.settle()
    rig.take(BERT, m.Publish(1, ROOT))
    assert dones(rig.answers(BERT)) == [(1, "")]


def test_a_stream_whose_beginning_is_lost_is_passed_over_and_said(rig: Rig) -> None:
    trainer = Trainer()
    rig.take(ANNA, trainer.data())
    trainer.log(1)
    rig.take(ANNA, trainer.data())
    del rig.segments[rig.last_segment][1]
    rig.start()
    assert rig.core.idle
    assert any("beginning is lost" in text for text in rig.logged)


@pytest.mark.parametrize(
    "record",
    [
        b"\xc1",
        b"\x90",
        msgpack.packb(["state"]),
        msgpack.packb(["state", {"runs": 1, "streams": []}]),
        message_wire.encode(m.Hello(1, 1, "h"))[0],
        message_wire.encode(m.Hello(1, 1, "h"))[0] + b"more",
        b"".join(message_wire.encode(m.Data(Trainer().id, 0, b"\xc1"))),
        b"".join(message_wire.encode(Trainer(run=make_run(directory="/elsewhere")).data())),
    ],
)
def test_a_strange_record_in_the_journal_is_passed_over(rig: Rig, record: bytes) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data())
    rig.segments[rig.last_segment].insert(1, record)
    rig.start()
    rig.settle()
    assert rig.rows(trainer) == [1]


# --- the state record -----------------------------------------------------------------------------
def test_the_first_record_of_a_segment_is_a_state_record_of_all_that_is_known(rig: Rig) -> None:
    live = running(rig)
    done = ended(rig, "done")
    body, rest = packing.split_record(rig.core.first_record())
    assert rest == b""
    saved = state.decode(body)
    assert [(run.run, run.path) for run in saved.runs] == [(live.run, live.path)]
    streams = {stream.producer: stream for stream in saved.streams}
    assert streams[live.id].position == live.head
    assert streams[live.id].schemas == {0: STEP}
    assert streams[done.id].run_id is None
