"""What the daemon decides: events in, instructions out.

Messages, the journal, publication and who waits for it.  The core is driven by a `Rig`, which
carries out what it says on lists in place of disks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from mle_client import message_wire, wire
from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon import intake
from tests.daemon_rig import (
    ANNA,
    BERT,
    ROOT,
    STEP,
    Rig,
    Trainer,
    acks,
    dones,
    make_run,
    only,
    running,
)


# --- hello ----------------------------------------------------------------------------------------
def test_a_client_is_welcomed_and_told_its_window(rig: Rig) -> None:
    rig.take(ANNA, m.Hello(m.PROTOCOL_VERSION, 1, "here"))
    window = rig.config.window_bytes
    assert rig.answers(ANNA) == [m.Welcome(m.PROTOCOL_VERSION, "daemon", ROOT, window)]


def test_a_client_is_told_where_artifacts_are_taken(rig: Rig) -> None:
    rig.core.artifacts_address = "ipc:///run/artifacts"
    rig.take(ANNA, m.Hello(m.PROTOCOL_VERSION, 1, "here"))
    (welcome,) = rig.answers(ANNA)
    assert isinstance(welcome, m.Welcome)
    assert welcome.artifacts == "ipc:///run/artifacts"


def test_a_client_of_another_version_is_told_both(rig: Rig) -> None:
    rig.take(ANNA, m.Hello(m.PROTOCOL_VERSION + 1, 1, "here"))
    (refused,) = rig.answers(ANNA)
    assert isinstance(refused, m.Refused)
    assert refused.producer == m.NO_PRODUCER
    assert f"protocol {m.PROTOCOL_VERSION}" in refused.reason
    assert f"client {m.PROTOCOL_VERSION + 1}" in refused.reason


# --- data: what is taken --------------------------------------------------------------------------
def test_a_piece_goes_to_the_journal_as_it_came_and_is_acknowledged_only_then(rig: Rig) -> None:
    data = Trainer().log(1, 2).data()
    (append,) = rig.receive(ANNA, data)
    assert append == e.AppendJournal(tuple(message_wire.encode(data)))
    rig.deliver(e.Tick())
    assert rig.answers(ANNA) == []
    rig.write_journal()
    assert acks(rig.answers(ANNA)) == [(len(data.payload), 2, 0)]


def test_the_pieces_of_a_round_are_acknowledged_at_once(rig: Rig) -> None:
    trainer = Trainer().log(1, 2, 3)
    middle = trainer.edges[3]
    rig.take(ANNA, trainer.data(0, middle), trainer.data(middle))
    assert acks(rig.answers(ANNA)) == [(trainer.head, 3, 0)]


def test_what_came_before_is_acknowledged_again_and_not_taken(rig: Rig) -> None:
    trainer = running(rig)
    assert only(rig.receive(BERT, trainer.data()), e.AppendJournal) == []
    assert acks(rig.answers(BERT)) == [(trainer.head, 2, trainer.head)]
    rig.settle()
    assert rig.rows(trainer) == [1, 2]


def test_of_an_overlapping_piece_only_what_is_new_is_taken(rig: Rig) -> None:
    trainer = running(rig)
    seen = trainer.head
    trainer.log(3)
    (append,) = only(rig.receive(ANNA, trainer.data()), e.AppendJournal)
    assert append.parts == tuple(message_wire.encode(trainer.data(seen)))
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3]


def test_a_repeat_of_what_the_journal_does_not_have_yet_is_not_taken_twice(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data(), trainer.data())
    rig.settle()
    assert rig.rows(trainer) == [1]
    assert rig.report(trainer)["ticks"]["received"] == 1


def test_where_something_is_missing_it_is_asked_for(rig: Rig) -> None:
    trainer = running(rig)
    seen = trainer.head
    trainer.log(3, 4)
    rig.take(ANNA, trainer.data(trainer.edges[-2]))
    assert rig.answers(ANNA) == [m.Expect(trainer.id, seen)]
    rig.take(ANNA, trainer.data(seen))
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3, 4]


def test_an_unknown_stream_is_asked_for_from_its_beginning(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data(trainer.edges[1]))
    assert rig.answers(ANNA) == [m.Expect(trainer.id, 0)]


def test_an_empty_piece_of_an_unknown_stream_is_harmless(rig: Rig) -> None:
    trainer = Trainer()
    rig.take(ANNA, m.Data(trainer.id, 0, b""))
    assert acks(rig.answers(ANNA)) == [(0, 0, 0)]
    assert rig.core.idle


# --- data: what is refused ------------------------------------------------------------------------
def beginning(**changes: Any) -> bytes:
    return Trainer(run=make_run(**changes)).log(1).stream


def saved(kind: str, name: str, facts: dict[str, Any]) -> bytes:
    return wire.encode_record(m.Artifact(1, kind, name, facts))


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (beginning(directory="/elsewhere/exp"), "outside of /exps"),
        (beginning(directory="/expsless/exp"), "outside of /exps"),
        (beginning(directory=f"{ROOT}/../etc"), "outside of /exps"),
        (beginning(directory=f"{ROOT}/a\0b"), "outside of /exps"),
        (beginning(seed_id="a/b"), "seed_id"),
        (beginning(seed_id=".."), "seed_id"),
        (beginning(seed_id=""), "seed_id"),
        (beginning(config_name="../config.yaml"), "configuration file"),
        (beginning(config_name=".."), "configuration file"),
        (Trainer().log(1).stream[Trainer().head :], "begins with its run"),
        (beginning() + beginning(), "holds no other"),
        (wire.encode_record(m.End()), "begins with its run"),
        (beginning(policy={"every_k": 0}), "settings are malformed"),
        (beginning(policy={"unknown": 1}), "settings are malformed"),
        (beginning(kept={"figures": []}), "settings are malformed"),
        (beginning() + saved("model", "", {}), "not a map of"),
        (beginning() + saved("model", "", {"number": "1"}), "not a map of"),
        (beginning() + saved("extra", "extra/../../x", {}), "upwards"),
        (beginning() + saved("extra", "/etc/passwd", {}), "not in extra/"),
        (beginning() + saved("figure", "figures/a.png", {"step": "x"}), "malformed"),
        (b"\xc1garbage", "not msgpack"),
        (beginning()[:-1], ""),
        (msgpack.packb(["state", {"runs": [], "streams": []}]), "no record"),
    ],
)
def test_what_no_correct_client_sends_is_refused_and_not_journaled(
    rig: Rig, payload: bytes, words: str
) -> None:
    producer = Trainer().id
    assert only(rig.receive(ANNA, m.Data(producer, 0, payload)), e.AppendJournal) == []
    (refused,) = rig.answers(ANNA)
    assert isinstance(refused, m.Refused)
    assert refused.producer == producer
    assert words in refused.reason
    rig.tick()
    assert rig.core.idle


def test_a_root_with_the_name_of_another_ones_beginning_is_another(rig: Rig) -> None:
    trainer = Trainer(run=make_run(directory=ROOT))
    rig.take(ANNA, trainer.data())
    assert acks(rig.answers(ANNA))  # the root itself is inside


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xc1",
        Trainer().stream,
        wire.encode_record(m.Schema(0, (), (m.Field("other", m.INT),))) + b"\xc1",
    ],
)
def test_a_refused_piece_harms_neither_those_before_it_nor_those_behind_it(
    rig: Rig, garbage: bytes
) -> None:
    trainer = Trainer().log(1)
    head = trainer.head
    rig.receive(ANNA, trainer.data())  # staged, with the schema of all that follows
    rig.receive(ANNA, m.Data(trainer.id, head, garbage))
    rig.receive(ANNA, trainer.data())  # a repeat that must not count
    trainer.log(2)
    rig.take(ANNA, trainer.data(head))
    assert [type(reply) for reply in rig.answers(ANNA)] == [m.Refused, m.Ack, m.Ack]
    rig.settle()
    assert rig.rows(trainer) == [1, 2]


def test_nothing_is_taken_behind_the_end_of_a_stream(rig: Rig) -> None:
    trainer = Trainer().log(1).end()
    rig.take(ANNA, trainer.data())
    head = trainer.head
    trainer.log(2)
    rig.take(ANNA, trainer.data(head))
    assert isinstance(rig.answers(ANNA)[-1], m.Refused)
    rig.settle()
    assert rig.rows(trainer) == [1]


# --- the journal fails ----------------------------------------------------------------------------
def test_what_the_journal_did_not_take_is_not_acknowledged_and_may_come_again(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.journal_error = "disk full"
    rig.take(ANNA, trainer.data())
    assert rig.answers(ANNA) == []
    assert rig.core.degraded == "disk full"
    assert rig.core.idle
    rig.journal_error = ""
    rig.take(BERT, trainer.data())
    assert acks(rig.answers(BERT)) == [(trainer.head, 1, 0)]
    assert rig.core.degraded == ""
    rig.settle()
    assert rig.rows(trainer) == [1]


def test_a_broken_journal_is_tried_once_a_second_with_what_one_client_has(rig: Rig) -> None:
    first, second = Trainer("first").log(1), Trainer("second").log(2)
    rig.take(ANNA, first.data())
    rig.answers(ANNA)
    begun = first.head
    first.log(3)
    rig.journal_error = "disk full"
    rig.take(ANNA, first.data(begun))
    rig.take(BERT, second.data())
    assert rig.core.next_due() <= rig.now + intake.RETRY_AFTER_S
    rig.tick(0.9 * intake.RETRY_AFTER_S)
    assert (rig.answers(ANNA), rig.answers(BERT)) == ([], [])
    rig.tick(0.1 * intake.RETRY_AFTER_S)
    assert (rig.answers(ANNA), rig.answers(BERT)) == ([m.Expect(first.id, begun)], [])
    rig.take(ANNA, first.data(begun))  # still full
    rig.tick(intake.RETRY_AFTER_S)
    assert (rig.answers(ANNA), rig.answers(BERT)) == ([], [m.Expect(second.id, 0)])
    rig.journal_error = ""
    rig.take(BERT, second.data())
    assert m.Expect(first.id, begun) in rig.answers(ANNA)  # the others at once
    assert acks(rig.answers(BERT)) == [(second.head, 1, 0)]
    assert rig.core.degraded == ""


def test_a_broken_journal_that_nobody_writes_to_is_tried_too(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.journal_error = "disk full"
    rig.take(ANNA, trainer.data())
    rig.tick(intake.RETRY_AFTER_S)  # who is asked has gone
    rig.journal_error = ""
    rig.tick(intake.RETRY_AFTER_S)
    assert rig.core.degraded == ""
    assert rig.core.next_due() == float("inf")


def test_what_keeps_files_from_the_disk_is_told_until_it_is_over(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data())
    number = trainer.save()
    rig.tick(rig.config.publish_min_age_s)
    rig.work("no room")
    rig.take(ANNA, trainer.data(trainer.edges[-2]))
    rig.deliver(e.NotArrived(trainer.id, number, "no room for it", final=False))
    log, artifact = rig.core.troubles()
    assert log == f"{trainer.path}: no room"
    assert "extra/1 could not be received: no room for it" in artifact
    rig.deliver(e.Arrived(trainer.id, number, "/staged", 1))
    rig.settle()
    assert rig.core.troubles() == []


def test_a_journal_that_fails_takes_back_all_pieces_of_a_round(rig: Rig) -> None:
    trainer = Trainer().log(1, 2)
    middle = trainer.edges[3]
    rig.journal_error = "disk full"
    rig.take(ANNA, trainer.data(0, middle), trainer.data(middle))  # both of a new stream
    rig.journal_error = ""
    rig.take(ANNA, trainer.data())
    assert acks(rig.answers(ANNA)) == [(trainer.head, 2, 0)]


def test_a_schema_that_the_journal_did_not_take_is_forgotten(rig: Rig) -> None:
    trainer = Trainer()
    rig.take(ANNA, trainer.data())
    begun = trainer.head
    trainer.log(1)
    rig.journal_error = "disk full"
    rig.take(ANNA, trainer.data(begun))
    rig.journal_error = ""
    tick = trainer.stream[begun + len(wire.encode_record(STEP)) :]
    rig.take(ANNA, m.Data(trainer.id, begun, tick))  # without its schema
    assert isinstance(rig.answers(ANNA)[-1], m.Refused)


def test_while_the_journal_fails_nobody_is_asked_to_send_again_at_once(rig: Rig) -> None:
    """Each would, as fast as it can."""
    trainer = Trainer().log(1)
    rig.journal_error = "disk full"
    rig.take(ANNA, trainer.data())
    head = trainer.head
    trainer.log(2)
    rig.take(ANNA, trainer.data(head), m.Flush(1, trainer.id, trainer.head))
    assert rig.answers(ANNA) == []


def test_a_journal_error_is_told_once_and_so_is_its_end(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.journal_error = "disk full"
    for _ in range(3):
        rig.take(ANNA, trainer.data())
    rig.journal_error = ""
    rig.take(ANNA, trainer.data())
    told = [text for text in rig.logged if "journal" in text]
    assert told == [
        "the journal cannot be written: disk full", "the journal is being written again"
    ]  # fmt: skip


def test_a_flush_that_waited_for_the_journal_is_forgotten_with_its_piece(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.journal_error = "disk full"
    rig.take(ANNA, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    rig.journal_error = ""
    rig.take(BERT, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    rig.settle()
    assert dones(rig.answers(BERT)) == [(1, "")]
    assert rig.answers(ANNA) == []  # that connection is gone; the client asked on another


# --- publication ----------------------------------------------------------------------------------
def test_a_run_is_opened_once_and_published_when_it_is_due(rig: Rig) -> None:
    trainer = Trainer().log(1)
    opened = rig.receive(ANNA, trainer.data())
    rig.write_journal()
    opened += rig.deliver(e.Tick())
    assert rig.jobs == []
    assert rig.core.next_due() == rig.now + rig.config.publish_min_age_s
    rig.tick(rig.config.publish_min_age_s)
    (job,) = rig.jobs
    assert isinstance(job, e.PublishRun)
    assert (job.path, job.seed_id, job.file) == (trainer.path, "seed_1", None)
    assert (job.status, job.applied) == ("running", {trainer.id.hex(): trainer.head})


def test_publication_keeps_the_order_of_arrival_over_producers(rig: Rig) -> None:
    parent = Trainer("parent").log(1)
    child = parent.fork().log(2)
    rig.take(ANNA, parent.data())
    rig.take(BERT, child.data())
    seen = parent.head
    parent.log(3)
    rig.take(ANNA, parent.data(seen))
    rig.settle()
    assert rig.rows(parent) == [1, 2, 3]
    assert rig.file(parent).applied == {
        parent.id.hex(): parent.head, child.id.hex(): child.head
    }  # fmt: skip


def test_of_a_run_one_publication_is_under_way_at_a_time(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    seen = trainer.head
    trainer.log(2)
    rig.take(ANNA, trainer.data(seen), m.Flush(2, trainer.id, trainer.head))
    assert len(rig.jobs) == 1
    rig.work()
    assert rig.rows(trainer) == [1]
    assert dones(rig.answers(ANNA)) == [(1, "")]
    rig.tick()
    rig.work()
    assert rig.rows(trainer) == [1, 2]
    assert dones(rig.answers(ANNA)) == [(2, "")]


def nine_due(rig: Rig) -> list[Trainer]:
    """Trainers whose runs are to be published because time has passed, the oldest first."""
    trainers = [Trainer(f"run {i}", make_run(f"run {i}", seed_id=f"seed_{i}")) for i in range(9)]
    for trainer in trainers:
        rig.take(ANNA, trainer.log(1).data())
        rig.tick(0.01)
    rig.tick(rig.config.publish_max_age_s)
    return trainers


def test_what_is_waited_for_is_published_before_what_nobody_waits_for(rig: Rig) -> None:
    trainers = nine_due(rig)
    assert [job.path for job in rig.jobs] == [each.path for each in trainers[:2]]
    last = trainers[-1]
    rig.take(ANNA, m.Flush(7, last.id, last.head))
    assert [job.path for job in rig.jobs[2:]] == [last.path]
    rig.tick()
    assert len(rig.jobs) == 3


def test_what_nobody_waits_for_has_its_turn_however_much_comes(rig: Rig) -> None:
    trainers = nine_due(rig)
    published = []
    while rig.jobs:
        published += [job.path for job in rig.jobs]
        for trainer in trainers[2:5]:
            before = trainer.head
            rig.take(ANNA, trainer.log(2).data(before))
        rig.work()
    assert published[:9] == [each.path for each in trainers]
    assert rig.core.next_due() > rig.now


def test_clients_are_told_what_is_published(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data())
    rig.answers(ANNA)
    rig.settle()
    assert acks(rig.answers(ANNA)) == [(trainer.head, 1, trainer.head)]


def test_a_run_without_ticks_makes_no_file(rig: Rig) -> None:
    trainer = Trainer().end()
    rig.take(ANNA, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    rig.settle()
    assert dones(rig.answers(ANNA)) == [(1, "")]
    assert rig.disk.files == {}
    assert rig.core.idle


def test_lost_ticks_alone_are_worth_a_file(rig: Rig) -> None:
    trainer = Trainer().lose(3).end()
    rig.take(ANNA, trainer.data())
    rig.settle()
    assert (rig.file(trainer).lost, rig.file(trainer).rows) == (3, [])


def test_save_brings_the_publication_forward(rig: Rig) -> None:
    trainer = running(rig, "main", *range(100))
    seen = trainer.head
    trainer.log(101)
    rig.take(ANNA, trainer.data(seen))
    late = rig.core.next_due()
    rig.take(ANNA, m.Save(trainer.id))
    assert rig.core.next_due() < late
    rig.settle()
    assert rig.rows(trainer)[-1] == 101


def test_a_signal_publishes_every_run(rig: Rig) -> None:
    trainers = [Trainer(name, make_run(name, name)).log(1) for name in ("a", "b")]
    for trainer in trainers:
        rig.take(ANNA, trainer.data())
    rig.deliver(e.PublishEverything())
    rig.work()
    assert [rig.rows(trainer) for trainer in trainers] == [[1], [1]]


def test_problems_of_a_publication_reach_client_and_log(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    (job,) = rig.jobs
    assert isinstance(job, e.PublishRun)
    rig.jobs = []
    file = rig.disk.publish(job)
    rig.deliver(e.Published(trainer.run.run_id, file, 0.0, ("values of 'x' not stored",)))
    notices = [reply for reply in rig.answers(ANNA) if isinstance(reply, m.Notice)]
    assert notices == [m.Notice(trainer.id, "values of 'x' not stored")]
    assert any("'x' not stored" in text for text in rig.logged)


def test_a_failed_publication_is_tried_again_with_all_it_had(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    seen = trainer.head
    trainer.log(2)
    rig.take(ANNA, trainer.data(seen))
    rig.work("disk full")
    assert dones(rig.answers(ANNA)) == [(1, "disk full")]
    assert rig.report(trainer)["last_error"] == "disk full"
    assert rig.core.held_bytes > trainer.head
    rig.tick()
    assert rig.jobs == []  # not at once
    rig.now = rig.core.next_due()
    rig.tick()
    rig.work()
    assert rig.rows(trainer) == [1, 2]
    assert rig.report(trainer)["last_error"] == ""


def test_a_publication_that_was_wanted_at_once_is_so_after_a_failure(rig: Rig) -> None:
    trainer = running(rig, "main", *range(100))
    seen = trainer.head
    trainer.log(101)
    rig.take(ANNA, trainer.data(seen))
    rig.deliver(e.PublishEverything())
    rig.work("disk full")
    assert rig.core.next_due() <= rig.now + 2.0  # and not half a minute later


def test_an_error_is_told_once_while_it_lasts(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    for _ in range(3):
        rig.work("disk full")
        rig.tick(10.0)
    notices = [reply for reply in rig.answers(ANNA) if isinstance(reply, m.Notice)]
    assert notices == [m.Notice(trainer.id, "disk full")]


def test_a_log_that_somebody_removed_is_begun_anew(rig: Rig) -> None:
    trainer = running(rig)
    rig.disk.files.clear()
    seen = trainer.head
    trainer.log(3)
    rig.take(ANNA, trainer.data(seen), m.Flush(1, trainer.id, trainer.head))
    rig.work("it is gone", reopen=True)
    assert dones(rig.answers(ANNA)) == [(1, "it is gone")]
    rig.settle()
    assert rig.rows(trainer) == [3]


def test_a_log_that_somebody_removed_is_not_made_again_for_the_run_s_end_alone(rig: Rig) -> None:
    trainer = running(rig)
    rig.disk.files.clear()
    seen = trainer.head
    rig.take(ANNA, trainer.end().data(seen))
    (job,) = rig.jobs
    rig.jobs.clear()
    rig.deliver(e.PublishFailed(job.run.run_id, "it is gone", reopen=True, removed=True))
    rig.settle()
    assert rig.disk.files == {}
    assert rig.core.idle
    rig.start()
    rig.settle()
    assert (rig.disk.files, rig.core.idle) == ({}, True)


# --- waits ----------------------------------------------------------------------------------------
def test_a_flush_publishes_at_once_and_is_answered_when_the_file_has_it(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data(), m.Flush(7, trainer.id, trainer.head))
    assert dones(rig.answers(ANNA)) == []
    rig.work()
    assert dones(rig.answers(ANNA)) == [(7, "")]


def test_a_flush_of_what_is_published_is_answered_at_once(rig: Rig) -> None:
    trainer = running(rig)
    rig.take(BERT, m.Flush(7, trainer.id, trainer.head))
    assert dones(rig.answers(BERT)) == [(7, "")]


def test_a_flush_beyond_what_came_waits_for_it(rig: Rig) -> None:
    trainer = running(rig)
    seen = trainer.head
    trainer.log(3)
    rig.take(ANNA, m.Flush(7, trainer.id, trainer.head))
    rig.settle()
    assert dones(rig.answers(ANNA)) == []
    rig.take(ANNA, trainer.data(seen))
    rig.settle()
    assert dones(rig.answers(ANNA)) == [(7, "")]


def test_a_flush_of_an_unknown_stream_asks_for_the_stream(rig: Rig) -> None:
    trainer = Trainer()
    rig.take(ANNA, m.Flush(7, trainer.id, trainer.head))
    assert rig.answers(ANNA) == [m.Expect(trainer.id, 0)]


def test_a_flush_of_a_finished_stream_is_answered_from_memory(rig: Rig) -> None:
    trainer = Trainer().log(1).end()
    rig.take(ANNA, trainer.data())
    rig.settle()
    assert rig.core.idle
    rig.take(BERT, m.Flush(7, trainer.id, trainer.head))
    assert dones(rig.answers(BERT)) == [(7, "")]


def test_the_last_flush_of_a_run_waits_for_its_final_state(rig: Rig) -> None:
    trainer = running(rig)
    seen = trainer.head
    trainer.end()
    rig.take(ANNA, trainer.data(seen), m.Flush(7, trainer.id, trainer.head))
    assert dones(rig.answers(ANNA)) == []
    rig.work()
    assert rig.file(trainer).status == "finished"
    assert dones(rig.answers(ANNA)) == [(7, "")]


@pytest.mark.parametrize("wait_for_the_rest", [False, True])
def test_a_flush_waits_while_the_folder_cannot_be_used_and_is_told(
    rig: Rig, wait_for_the_rest: bool
) -> None:
    trainer = Trainer().log(1)
    rig.open_error = ("no permission", False)
    rig.take(ANNA, trainer.data(), m.Flush(7, trainer.id, trainer.head))
    rig.tick(2.0)
    assert dones(rig.answers(ANNA)) == [(7, "no permission")]
    rig.open_error = None
    rig.settle()
    assert rig.rows(trainer) == [1]


@pytest.mark.parametrize(
    ("path", "waits"),
    [
        (ROOT, True),
        (f"{ROOT}/", True),
        (f"{ROOT}/exp", True),
        (f"{ROOT}/exp/logs", True),
        (f"{ROOT}/exp/logs/log_main.hdf5", True),
        (f"{ROOT}/exp/logs/log.hdf5", True),  # it will be merged into this one
        (f"{ROOT}/ex", False),
        (f"{ROOT}/exp/logs/log_main", False),
        (f"{ROOT}/other", False),
    ],
)
def test_a_reader_gets_what_was_journaled_of_the_runs_it_reads(
    rig: Rig, path: str, waits: bool
) -> None:
    trainer = Trainer(run=make_run(seed_id="main")).log(1)
    rig.take(ANNA, trainer.data())
    rig.take(BERT, m.Publish(1, path))
    assert dones(rig.answers(BERT)) == ([] if waits else [(1, "")])
    assert bool(rig.jobs) == waits
    rig.work()
    assert dones(rig.answers(BERT)) == ([(1, "")] if waits else [])


def test_a_reader_need_not_wait_for_what_comes_later(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data())
    rig.take(BERT, m.Publish(1, ROOT))
    seen = trainer.head
    trainer.log(2)
    rig.take(ANNA, trainer.data(seen))
    rig.work()
    assert dones(rig.answers(BERT)) == [(1, "")]


def test_a_reader_waits_for_all_runs_and_hears_of_a_failure(rig: Rig) -> None:
    good, bad = (Trainer(name, make_run(name, name)).log(1) for name in ("good", "bad"))
    rig.take(ANNA, good.data(), bad.data())
    rig.take(BERT, m.Publish(1, ROOT))
    jobs = {job.path: job for job in rig.jobs if isinstance(job, e.PublishRun)}
    rig.jobs = []
    rig.deliver(rig._do(jobs[good.path], "", False))
    assert dones(rig.answers(BERT)) == []
    rig.deliver(rig._do(jobs[bad.path], "disk full", False))
    assert dones(rig.answers(BERT)) == [(1, "disk full")]


def test_a_reader_of_a_run_that_finishes_meanwhile_is_answered(rig: Rig) -> None:
    trainer = Trainer().log(1).end()
    rig.take(ANNA, trainer.data())
    (job,) = rig.jobs
    rig.take(BERT, m.Publish(1, ROOT))
    assert isinstance(job, e.PublishRun)
    rig.settle()
    assert rig.core.idle
    assert dones(rig.answers(BERT)) == [(1, "")]


def forked_child_that_said_only_hello(rig: Rig) -> Trainer:
    """Of a run with a file; nothing of its stream goes into one."""
    parent = running(rig)
    child = parent.fork()
    rig.take(BERT, child.data())
    return child


def logger_without_ticks(rig: Rig) -> Trainer:
    trainer = Trainer()
    rig.take(BERT, trainer.data())
    rig.rotate()  # so that only the state record knows of it
    rig.tick()
    return trainer


@pytest.mark.parametrize("silent", [forked_child_that_said_only_hello, logger_without_ticks])
def test_nobody_waits_for_a_stream_without_ticks_after_a_restart(
    rig: Rig, silent: Callable[[Rig], Trainer]
) -> None:
    trainer = silent(rig)
    rig.start()
    rig.take(BERT, m.Publish(1, ROOT), m.Flush(2, trainer.id, trainer.head))
    rig.settle()
    assert dones(rig.answers(BERT)) == [(2, ""), (1, "")]
    rig.rotate()
    rig.tick()
    assert len(rig.segments) == 1  # nor does a segment


def test_a_schema_behind_published_ticks_keeps_nobody_waiting(rig: Rig) -> None:
    parent = running(rig)
    child = parent.fork().log(3)
    rig.take(BERT, child.data())
    rig.settle()
    seen = child.head
    child._put(wire.encode_record(dataclasses.replace(STEP, number=1)))  # a tick will follow
    rig.take(BERT, child.data(seen))
    seen = parent.head
    parent.log(4)
    rig.take(ANNA, parent.data(seen))
    rig.settle()
    rig.answers(BERT)
    rig.take(BERT, m.Publish(1, ROOT), m.Flush(2, child.id, child.head))
    assert dones(rig.answers(BERT)) == [(2, ""), (1, "")]


# --- too much at once -----------------------------------------------------------------------------
def test_past_the_limit_data_wait_with_the_clients_until_there_is_room() -> None:
    trainer = Trainer().log(1, 2)
    rig = Rig(tail_limit_bytes=trainer.head)
    rig.take(ANNA, trainer.data())
    assert len(rig.jobs) == 1  # the largest tail is published at once, due or not
    seen = trainer.head
    trainer.log(3)
    rig.take(BERT, trainer.data(seen))
    assert rig.answers(BERT) == []
    assert rig.core.position(trainer.id) == seen
    rig.work()
    rig.tick()
    assert m.Expect(trainer.id, seen) in rig.answers(BERT)
    rig.take(BERT, trainer.data(seen))
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3]


def test_past_the_limit_a_new_streams_flush_is_not_answered_by_another_put_off() -> None:
    rig = Rig(tail_limit_bytes=1)
    holder = Trainer("holder", make_run("holder", "holder")).log(1)
    rig.open_error = ("no folder yet", False)
    rig.take(ANNA, holder.data())
    newcomer = Trainer("new", make_run("new", "new")).log(1)
    rig.take(BERT, newcomer.data(), m.Flush(1, newcomer.id, newcomer.head))
    assert rig.answers(BERT) == []  # else it would send and ask as fast as it can


def test_past_the_limit_rings_of_the_dead_are_taken_all_the_same() -> None:
    rig = Rig(tail_limit_bytes=1)
    trainer = Trainer().log(1)
    rig.open_error = ("no folder yet", False)
    rig.take(ANNA, trainer.data())
    trainer.log(2)
    rig.take(e.NOBODY, trainer.data())
    assert rig.core.position(trainer.id) == trainer.head


def test_a_stop_has_a_run_published_whose_name_one_has_that_waits_for_its_artifacts() -> None:
    rig = Rig()
    first = Trainer("first").log(1)
    first.save()
    rig.take(ANNA, first.end().data())
    rig.settle_files()
    second = Trainer("second", make_run("second")).log(2)
    rig.take(BERT, second.data())
    rig.deliver(e.StopAsked())
    rig.settle_files()
    rig.settle_files()
    assert rig.left is not None
    assert sorted(file.rows for file in rig.disk.files.values()) == [[1], [2]]


# --- status ---------------------------------------------------------------------------------------
def test_the_report_of_a_run(rig: Rig) -> None:
    trainer = running(rig)
    seen = trainer.head
    trainer.log(3).lose(4)
    rig.take(ANNA, trainer.data(seen))
    rig.now += 1.5
    assert rig.report(trainer) == {
        "experiment_dir": f"{ROOT}/exp",
        "seed_id": "seed_1",
        "state": "running",
        "ticks": {"received": 3, "journaled": 3, "published": 2, "lost": 4},
        "artifacts_waiting": 0,
        "lag_s": 1.5,
        "bytes_waiting": trainer.head - seen,
        "last_error": "",
    }


def test_the_report_counts_ticks_that_are_being_published_as_not_published(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    assert rig.report(trainer)["ticks"]["published"] == 0
    rig.work()
    assert rig.report(trainer)["ticks"]["published"] == 1
    assert rig.report(trainer)["bytes_waiting"] == 0


def test_a_status_request_is_not_for_the_core(rig: Rig) -> None:
    assert rig.receive(ANNA, m.AskStatus(1)) == []
