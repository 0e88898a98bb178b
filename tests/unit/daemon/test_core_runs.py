"""What the daemon decides about runs as a whole: their names, their end, and its own."""

from __future__ import annotations

import pytest

from mle_client import layout
from mle_client import messages as m
from mle_daemon import events as e
from tests.daemon_rig import (
    ANNA,
    BERT,
    CARL,
    ROOT,
    Rig,
    Trainer,
    acks,
    dones,
    ended,
    make_run,
    only,
    running,
)


# --- names ----------------------------------------------------------------------------------------
def test_a_second_live_run_of_a_name_waits_and_then_gets_another(rig: Rig) -> None:
    first = running(rig, "first")
    second = Trainer("second").log(9)
    rig.take(BERT, second.data())
    rig.tick(2.9)
    assert all(job.path != first.path for job in rig.jobs)
    rig.tick(0.2)
    rig.settle()
    path = layout.log_path(second.run.directory, "seed_1_dup2")
    assert rig.disk.files[path].rows == [9]
    assert rig.rows(first) == [1, 2]
    replies = rig.answers(BERT)
    assert m.Renamed(second.id, "seed_1_dup2") in replies
    assert any("seed_1_dup2" in reply.reason for reply in replies if isinstance(reply, m.Notice))


def test_a_third_one_gets_a_name_of_its_own(rig: Rig) -> None:
    running(rig, "first")
    others = [Trainer(name).log(i) for i, name in enumerate(("second", "third"))]
    rig.take(BERT, *(trainer.data() for trainer in others))
    rig.tick(3.1)
    rig.settle()
    names = [layout.log_path(f"{ROOT}/exp", f"seed_1_dup{i}") for i in (2, 3)]
    assert [rig.disk.files[name].rows for name in names] == [[0], [1]]


def test_a_name_is_kept_for_who_comes_while_its_holder_ends(rig: Rig) -> None:
    """A trainer that was killed and started again; the daemon notices a second later."""
    first = running(rig, "first")
    second = Trainer("second").log(9)
    rig.take(BERT, second.data())
    rig.tick(1.0)
    rig.deliver(e.ProducerGone(first.id))
    rig.tick(60.0)  # its sealing takes long
    assert rig.core.next_due() == float("inf")
    rig.settle()
    assert rig.rows(second) == [9]
    (kept,) = rig.disk.aside
    assert (kept.rows, kept.status, kept.sealed) == ([1, 2], "crashed", True)


def test_a_name_is_free_once_its_holder_is_sealed(rig: Rig) -> None:
    first = Trainer("first").log(1).end()
    rig.take(ANNA, first.data())
    rig.settle()
    second = Trainer("second").log(9)
    rig.take(BERT, second.data())
    rig.settle()
    assert rig.rows(second) == [9]
    replies = rig.answers(BERT)
    assert m.Notice(second.id, f"moved from {first.path}") in replies
    assert not any(isinstance(reply, m.Renamed) for reply in replies)


@pytest.mark.parametrize("rotated", [False, True])
def test_another_name_survives_a_restart(rig: Rig, rotated: bool) -> None:
    first = running(rig, "first")
    second = Trainer("second").log(9)
    rig.take(BERT, second.data())
    rig.tick(3.1)
    if rotated:
        rig.rotate()
    rig.deliver(e.ProducerGone(first.id))
    rig.start()
    second.log(10)
    rig.take(BERT, second.data())
    rig.settle()
    assert rig.disk.files[layout.log_path(f"{ROOT}/exp", "seed_1_dup2")].rows == [9, 10]
    assert m.Renamed(second.id, "seed_1_dup2") in rig.answers(BERT)


def test_another_name_is_journaled_even_if_the_journal_fails_just_then(rig: Rig) -> None:
    first = running(rig, "first")
    second = Trainer("second").log(9)
    rig.take(BERT, second.data())
    rig.journal_error = "disk full"
    rig.tick(3.1)
    rig.settle()
    rig.journal_error = ""
    rig.tick()
    first.end()
    rig.take(ANNA, first.data())
    rig.settle()
    rig.start()
    rig.settle()
    assert rig.rows(first) == [1, 2]
    assert rig.disk.aside == []


def test_who_joins_a_run_of_another_name_later_is_told(rig: Rig) -> None:
    running(rig, "first")
    second = Trainer("second").log(9)
    rig.take(BERT, second.data())
    rig.tick(3.1)
    child = second.fork().log(10)
    rig.take(CARL, child.data())
    assert m.Renamed(child.id, "seed_1_dup2") in rig.answers(CARL)


def test_a_child_that_outlives_its_parents_run_writes_to_the_same_file(rig: Rig) -> None:
    first = running(rig, "first")
    parent = Trainer("parent").log(9).end()
    rig.take(BERT, parent.data())
    rig.tick(3.1)
    rig.settle()
    first.end()
    rig.take(ANNA, first.data())
    rig.settle()
    assert rig.core.idle
    child = parent.fork().log(10)
    rig.take(CARL, child.data())
    rig.settle()
    assert rig.disk.files[layout.log_path(f"{ROOT}/exp", "seed_1_dup2")].rows == [9, 10]
    assert rig.rows(first) == [1, 2]
    assert len(rig.core.reports(rig.now)) == 2  # each run once


@pytest.mark.parametrize(("final", "stays"), [(True, False), (False, True)])
def test_a_folder_that_cannot_be_used(rig: Rig, final: bool, stays: bool) -> None:
    trainer = Trainer().log(1)
    rig.open_error = ("no folder", final)
    rig.take(ANNA, trainer.data())
    replies = rig.answers(ANNA)
    assert m.Notice(trainer.id, "no folder") in replies
    assert (m.Refused(trainer.id, "no folder") in replies) == final
    assert (trainer.run.run_id in rig.core.runs) == stays
    assert (rig.core.next_due() == rig.now + 2.0) == stays


# --- the end of a run -----------------------------------------------------------------------------
def test_a_finished_run_is_published_then_sealed_then_forgotten(rig: Rig) -> None:
    trainer = Trainer().log(1).end()
    rig.take(ANNA, trainer.data())
    (job,) = rig.jobs
    assert isinstance(job, e.PublishRun)
    assert job.status == "finished"
    rig.work()
    (seal,) = rig.jobs
    assert seal == e.SealRun(trainer.run.run_id, trainer.path, rig.file(trainer).state())
    rig.work()
    assert rig.file(trainer).sealed
    assert rig.core.idle
    assert rig.report(trainer)["state"] == "finished"
    assert rig.report(trainer)["ticks"]["published"] == 1


def test_a_seal_that_fails_leaves_the_file_and_ends_the_run_all_the_same(rig: Rig) -> None:
    trainer = Trainer().log(1).end()
    rig.take(ANNA, trainer.data())
    rig.work()
    rig.work("disk full")
    assert rig.core.idle
    assert rig.rows(trainer) == [1]
    assert any("disk full" in text for text in rig.logged)


@pytest.mark.parametrize("journaled_first", [False, True])
def test_a_child_that_joins_while_its_run_is_sealed_keeps_it_open(
    rig: Rig, journaled_first: bool
) -> None:
    parent = Trainer("parent").log(1).end()
    rig.take(ANNA, parent.data())
    rig.work()
    (seal,) = rig.jobs
    child = parent.fork().log(2)
    rig.receive(BERT, child.data())
    if journaled_first:
        rig.write_journal()
    rig.work()
    rig.settle()
    assert rig.rows(parent) == [1, 2]
    assert rig.file(parent).status == "running"
    assert not rig.file(parent).sealed  # what was sealed has been changed since
    child.end()
    rig.take(BERT, child.data(), m.Publish(1, ROOT))
    rig.settle()
    assert rig.core.idle
    assert (rig.file(parent).status, rig.file(parent).sealed) == ("finished", True)
    assert rig.disk.aside == []
    assert isinstance(seal, e.SealRun)


def test_a_reader_that_asks_while_a_run_is_sealed_and_joined_is_answered(rig: Rig) -> None:
    parent = Trainer("parent").log(1).end()
    rig.take(ANNA, parent.data())
    rig.work()
    rig.receive(CARL, m.Publish(1, ROOT))
    child = parent.fork().log(2)
    rig.receive(BERT, child.data())
    rig.work()
    rig.tick()
    assert dones(rig.answers(CARL)) == [(1, "")]


def test_a_late_child_joins_the_file_of_a_finished_run(rig: Rig) -> None:
    parent = Trainer("parent").log(1).lose(2).end()
    rig.take(ANNA, parent.data())
    rig.settle()
    assert rig.core.idle
    child = parent.fork().log(2).lose(1)
    rig.take(BERT, child.data())
    rig.settle()
    assert rig.rows(parent) == [1, 2]
    assert rig.file(parent).lost == 3  # what was lost before is not forgotten
    assert rig.disk.aside == []


def test_a_run_is_open_until_its_last_producer_is_through(rig: Rig) -> None:
    parent = Trainer("parent").log(1)
    child = parent.fork().log(2)
    rig.take(ANNA, parent.data())
    rig.take(BERT, child.data())
    parent.end()
    rig.take(ANNA, parent.data())
    rig.settle()
    assert rig.file(parent).status == "running"
    child.end()
    rig.take(BERT, child.data())
    rig.settle()
    assert rig.file(parent).status == "finished"


def test_a_producer_that_went_without_a_word_crashed(rig: Rig) -> None:
    trainer = running(rig)
    rig.deliver(e.ProducerGone(trainer.id))
    rig.settle()
    assert rig.core.idle
    assert (rig.file(trainer).status, rig.file(trainer).sealed) == ("crashed", True)
    assert rig.report(trainer)["state"] == "crashed"


def test_a_child_that_crashes_does_not_make_its_run_one_that_crashed(rig: Rig) -> None:
    parent = Trainer("parent").log(1)
    child = parent.fork().log(2)
    rig.take(ANNA, parent.data())
    rig.take(BERT, child.data())
    rig.deliver(e.ProducerGone(child.id))
    parent.end()
    rig.take(ANNA, parent.data())
    rig.settle()
    assert rig.file(parent).status == "finished"


def test_a_process_that_ends_behind_its_stream_did_not_crash(rig: Rig) -> None:
    trainer = Trainer().log(1).end()
    rig.take(ANNA, trainer.data())
    rig.deliver(e.ProducerGone(trainer.id))
    rig.settle()
    assert rig.file(trainer).status == "finished"


def test_the_gone_of_an_unknown_producer_is_nothing(rig: Rig) -> None:
    assert rig.deliver(e.ProducerGone(Trainer().id)) == []


def test_what_a_ring_still_held_is_taken_without_a_client(rig: Rig) -> None:
    trainer = running(rig)
    trainer.log(3)
    rig.take(e.NOBODY, trainer.data())
    rig.deliver(e.ProducerGone(trainer.id))
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3]
    assert all(client != e.NOBODY for client, _ in rig.sent)


def test_who_is_silent(rig: Rig) -> None:
    first = running(rig)
    rig.tick(10.0)
    second = Trainer("second", make_run("second", "seed_2")).log(1)
    rig.take(BERT, second.data())
    assert rig.core.silent(rig.now - 5.0) == [first.id]
    rig.take(ANNA, m.Hello(m.PROTOCOL_VERSION, 1, "here"))  # its heartbeat
    assert rig.core.silent(rig.now - 5.0) == []
    second.end()
    rig.take(BERT, second.data())
    rig.tick(10.0)
    assert rig.core.silent(rig.now - 5.0) == [first.id]  # the other one is through


def test_after_a_restart_everyone_is_silent_until_heard_from(rig: Rig) -> None:
    trainer = running(rig)
    rig.start()
    assert rig.core.silent(rig.now - 1.0) == [trainer.id]
    rig.take(BERT, trainer.data())
    assert rig.core.silent(rig.now - 1.0) == []


def test_what_the_dead_left_is_no_sign_of_life_of_others(rig: Rig) -> None:
    dead = running(rig)
    rig.start()
    rig.tick(10.0)
    other = Trainer("other", make_run("other", "seed_2")).log(1)
    rig.take(e.NOBODY, other.data())  # out of a ring
    assert rig.core.silent(rig.now - 5.0) == [dead.id, other.id]


def test_one_that_was_taken_for_gone_may_come_back(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data())
    rig.deliver(e.ProducerGone(trainer.id))
    rig.work()  # published as crashed, and now it is to be sealed
    trainer.log(2)
    rig.receive(ANNA, trainer.data())
    rig.work()
    rig.settle()
    assert rig.rows(trainer) == [1, 2]
    assert rig.file(trainer).status == "running"


def test_one_that_comes_back_too_late_is_told_so_and_never_that_all_is_well(rig: Rig) -> None:
    trainer = running(rig)
    rig.take(ANNA, m.Flush(1, trainer.id, trainer.head + 1))
    rig.deliver(e.ProducerGone(trainer.id))
    rig.settle()
    ((token, error),) = dones(rig.answers(ANNA))
    assert token == 1
    assert "closed its stream" in error
    seen = trainer.head
    trainer.log(3)
    rig.take(ANNA, trainer.data(seen), m.Flush(2, trainer.id, trainer.head))
    refused, done = rig.answers(ANNA)
    assert isinstance(refused, m.Refused)
    assert isinstance(done, m.Done)
    assert done.error == refused.reason


# --- what is forgotten ----------------------------------------------------------------------------
def test_a_finished_stream_is_known_until_its_ring_is_gone(rig: Rig) -> None:
    trainer = ended(rig)
    rig.deliver(e.RingsSeen(frozenset({trainer.id})))
    assert rig.core.position(trainer.id) == trainer.head
    rig.take(ANNA, trainer.data())
    assert acks(rig.answers(ANNA)) == [(trainer.head, 1, trainer.head)]
    rig.deliver(e.RingsSeen(frozenset()))
    assert rig.core.position(trainer.id) == 0


def test_while_the_ring_of_a_finished_stream_lies_there_the_journal_tells_that_it_ended(
    rig: Rig,
) -> None:
    trainer = ended(rig)
    assert rig.core.is_empty
    rig.deliver(e.RingsSeen(frozenset({trainer.id})))
    assert not rig.core.is_empty
    rig.deliver(e.RingsSeen(frozenset()))
    assert rig.core.is_empty


def test_a_ring_that_goes_before_its_run_is_sealed_is_remembered(rig: Rig) -> None:
    trainer = Trainer().log(1).end()
    rig.deliver(e.RingsSeen(frozenset({trainer.id})))
    rig.take(ANNA, trainer.data())
    rig.deliver(e.RingsSeen(frozenset()))
    assert rig.core.position(trainer.id) == trainer.head
    rig.settle()
    rig.deliver(e.RingsSeen(frozenset()))
    assert rig.core.position(trainer.id) == 0


def test_a_finished_stream_whose_ring_was_never_seen_stays_known(rig: Rig) -> None:
    trainer = ended(rig)
    rig.deliver(e.RingsSeen(frozenset()))
    assert rig.core.position(trainer.id) == trainer.head


def test_of_finished_runs_only_so_many_are_listed() -> None:
    rig = Rig(recent_runs=3)
    for i in range(5):
        ended(rig, f"run{i}")
    assert [line["seed_id"] for line in rig.core.reports(rig.now)] == ["run2", "run3", "run4"]


def test_connections_are_forgotten_with_what_they_were_for(rig: Rig) -> None:
    trainer = running(rig)
    for i in range(100):  # readers, and one client that reconnects
        rig.take(e.Client(b"%d" % i), m.Hello(m.PROTOCOL_VERSION, 1, "here"))
        rig.take(e.Client(b"%d" % i), trainer.data())
    rig.deliver(e.RingsSeen(frozenset()))
    assert set(rig.core._heard) == {e.Client(b"99")}
    assert rig.core.silent(rig.now - 1.0) == []


# --- leaving --------------------------------------------------------------------------------------
def test_a_stop_publishes_and_answers_everyone_who_asked(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data())
    rig.answers(ANNA)
    rig.take(BERT, m.Stop(1))
    rig.take(CARL, m.Stop(2))
    assert rig.answers(ANNA) == [m.Leaving(), m.Leaving()]
    assert rig.left is None
    assert dones(rig.answers(BERT)) == []
    rig.work()
    assert rig.rows(trainer) == [1]
    assert (dones(rig.answers(BERT)), dones(rig.answers(CARL))) == ([(1, "")], [(2, "")])
    assert rig.left == e.Leave(asked=True)


def test_two_that_ask_to_stop_in_one_round_are_both_answered(rig: Rig) -> None:
    rig.receive(BERT, m.Stop(1))
    rig.take(CARL, m.Stop(2))
    assert (dones(rig.answers(BERT)), dones(rig.answers(CARL))) == ([(1, "")], [(2, "")])


def test_it_leaves_only_when_every_file_is_up_to_date_and_sealed(rig: Rig) -> None:
    trainer = Trainer().log(1).end()
    rig.take(ANNA, trainer.data())
    rig.deliver(e.StopAsked())
    for _ in range(2):  # published, then sealed
        assert rig.left is None
        rig.work()
    rig.tick()
    assert rig.left == e.Leave(asked=True)
    assert rig.file(trainer).sealed
    assert rig.core.idle


def test_a_publication_that_fails_is_tried_again_before_it_leaves(rig: Rig) -> None:
    trainer = running(rig, "main", *range(100))
    seen = trainer.head
    trainer.log(101)
    rig.take(ANNA, trainer.data(seen))
    rig.deliver(e.StopAsked())
    rig.work("disk full")
    rig.tick()
    assert rig.left is None
    rig.tick(2.1)
    rig.work()
    rig.tick()
    assert rig.rows(trainer)[-1] == 101
    assert rig.left is not None


def test_what_comes_after_a_stop_stays_with_the_client(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.receive(BERT, m.Stop(1))
    assert rig.receive(ANNA, m.Hello(m.PROTOCOL_VERSION, 1, "here")) == [e.Send(ANNA, m.Leaving())]
    assert rig.receive(ANNA, trainer.data()) == [e.Send(ANNA, m.Leaving())]
    rig.tick()
    assert rig.left is not None
    assert rig.core.position(trainer.id) == 0


def test_what_came_before_a_stop_in_the_same_round_is_published(rig: Rig) -> None:
    trainer = Trainer().log(1)
    rig.take(ANNA, trainer.data(), m.Stop(1))
    assert rig.left is None
    rig.settle()
    rig.tick()
    assert rig.rows(trainer) == [1]
    assert rig.left is not None


def test_it_leaves_without_sealing_runs_that_go_on(rig: Rig) -> None:
    trainer = running(rig)
    rig.deliver(e.StopAsked())
    assert rig.left is not None
    assert not rig.core.idle
    rig.rotate()
    rig.start()
    trainer.log(3).end()
    rig.take(BERT, trainer.data())
    rig.settle()
    assert rig.rows(trainer) == [1, 2, 3]


def test_it_leaves_once(rig: Rig) -> None:
    leaves = [x for _ in range(2) for x in only(rig.deliver(e.StopAsked()), e.Leave)]
    assert leaves == [e.Leave(asked=True)]


def test_leaving_because_there_is_nothing_to_do_is_told_from_being_asked(rig: Rig) -> None:
    assert only(rig.deliver(e.StopAsked(idle=True)), e.Leave) == [e.Leave(asked=False)]


def test_it_is_idle_only_without_runs_and_without_anything_under_way(rig: Rig) -> None:
    assert rig.core.idle
    trainer = Trainer().log(1).end()
    rig.receive(ANNA, trainer.data())
    assert not rig.core.idle
    rig.tick()
    assert not rig.core.idle
    rig.settle()
    assert rig.core.idle
    assert rig.core.next_due() == float("inf")
