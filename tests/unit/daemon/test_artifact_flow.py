"""Artifacts between socket, journal and disk: who is told what, and when."""

from __future__ import annotations

from typing import Any

import pytest

from mle_client import messages as m
from mle_client.kept import kept_from_json
from mle_client.retention import LatestN, Policy, to_plain
from mle_daemon import artifact_flow
from mle_daemon import events as e
from tests.daemon_rig import (
    ANNA,
    BERT,
    ROOT,
    Rig,
    Trainer,
    dones,
    make_run,
    only,
    running,
    staged,
)

EXTRA = f"{ROOT}/exp/extra/"
FINAL = f"{ROOT}/exp/models/final/final_seed_1.pkl"
RETAINED = f"{ROOT}/exp/models/retained/retained_seed_1_"


def models(policy: Policy | None = None, **changes: Any) -> Trainer:
    """A trainer that has logged a tick and saves models."""
    settings = to_plain(policy or Policy())
    return Trainer("main", make_run(policy=settings, model_type="numpy", **changes)).log(1)


def stored(replies: list[m.Reply]) -> list[tuple[int, str]]:
    """(number, error) of each artifact that a client was told of."""
    return [(reply.number, reply.error) for reply in replies if isinstance(reply, m.Stored)]


def notices(replies: list[m.Reply]) -> list[str]:
    """What a client was told that went wrong."""
    return [reply.reason for reply in replies if isinstance(reply, m.Notice)]


def taken(rig: Rig, trainer: Trainer) -> None:
    """Have what is new of a stream taken, and the run's folder opened."""
    rig.take(ANNA, trainer.data(rig.core.position(trainer.id)))


def kept_in_file(rig: Rig, trainer: Trainer) -> Any:
    """What the log file says is kept."""
    return kept_from_json(rig.file(trainer).kept)


# --- arriving -------------------------------------------------------------------------------------
def test_an_artifact_is_stored_and_its_client_told(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save(name="extra/a.pkl")
    taken(rig, trainer)
    assert rig.land() == []
    rig.arrive(trainer, number)
    (job,) = rig.land()
    assert job == e.StoreArtifact(
        trainer.id, number, staged(trainer, number), f"{ROOT}/exp", ("extra/a.pkl",), ()
    )
    assert stored(rig.answers(ANNA)) == [(number, "")]
    assert rig.artifacts == {EXTRA + "a.pkl": staged(trainer, number)}


@pytest.mark.parametrize("first_piece", [True, False])
def test_bytes_may_come_before_their_record(rig: Rig, first_piece: bool) -> None:
    trainer = Trainer().log(1)
    if not first_piece:
        taken(rig, trainer)
    number = trainer.save(name="extra/a.pkl")
    rig.arrive(trainer, number)
    assert rig.land() == []
    assert rig.discarded == []
    taken(rig, trainer)
    assert len(rig.land()) == 1
    assert rig.artifacts == {EXTRA + "a.pkl": staged(trainer, number)}


def test_bytes_that_nobody_ever_announces_are_discarded_in_the_end(rig: Rig) -> None:
    trainer = Trainer("nobody's")
    for number in range(1, artifact_flow._EARLY_KEPT + 1):
        rig.arrive(trainer, number)
    assert rig.discarded == []
    rig.arrive(trainer, artifact_flow._EARLY_KEPT + 1)
    assert rig.discarded == [(trainer.id, 1)]


def test_bytes_that_come_before_they_are_dropped_are_discarded(rig: Rig) -> None:
    trainer = models()
    taken(rig, trainer)
    first = trainer.save("model")
    trainer.save("model")
    trainer.drop(first)
    rig.arrive(trainer, first)
    taken(rig, trainer)
    assert rig.discarded == [(trainer.id, first)]


def test_while_the_folder_cannot_be_used_nothing_is_stored(rig: Rig) -> None:
    rig.open_error = "no such disk", False
    trainer = Trainer().log(1)
    number = trainer.save()
    taken(rig, trainer)
    rig.arrive(trainer, number)
    assert rig.landings == []
    rig.open_error = None
    rig.settle()
    assert stored(rig.answers(ANNA)) == [(number, "")]


# --- told -----------------------------------------------------------------------------------------
def test_a_client_is_told_only_when_the_journal_knows(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    taken(rig, trainer)
    rig.arrive(trainer, number)
    rig.answers(ANNA)
    rig.deliver(e.ArtifactStored(trainer.id, number))
    assert rig.answers(ANNA) == []
    rig.write_journal()
    assert stored(rig.answers(ANNA)) == [(number, "")]


def test_while_the_journal_fails_a_client_keeps_its_bytes(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    taken(rig, trainer)
    rig.answers(ANNA)
    rig.journal_error = "disk full"
    rig.arrive(trainer, number)
    rig.land()
    for _ in range(3):
        rig.tick()
        rig.arrive(trainer, number)  # its client asks after it
    assert stored(rig.answers(ANNA)) == []
    rig.start()  # nobody was told, so it is to be stored once more
    rig.journal_error = ""
    rig.take(ANNA, trainer.data())
    rig.arrive(trainer, number)
    assert [job.number for job in rig.land()] == [number]
    assert stored(rig.answers(ANNA)) == [(number, "")]


def test_what_the_journal_did_not_take_it_takes_when_it_can(rig: Rig) -> None:
    trainer = Trainer().log(1)
    first, second = trainer.save(), trainer.save()
    taken(rig, trainer)
    rig.journal_error = "disk full"
    rig.arrive(trainer, first, second)
    rig.land()
    rig.tick()
    rig.journal_error = ""
    rig.tick()
    assert stored(rig.answers(ANNA)) == [(first, ""), (second, "")]
    rig.start()
    assert rig.core.wanted_artifacts(trainer.id) == frozenset()


def test_bytes_that_come_again_are_discarded_and_the_client_told_again(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    taken(rig, trainer)
    rig.arrive(trainer, number)
    rig.land()
    rig.answers(ANNA)
    rig.arrive(trainer, number)
    assert rig.discarded == [(trainer.id, number)]
    assert stored(rig.answers(ANNA)) == [(number, "")]
    assert rig.land() == []


def test_bytes_that_are_being_stored_are_left_alone(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    taken(rig, trainer)
    rig.arrive(trainer, number)
    rig.answers(ANNA)
    rig.arrive(trainer, number)
    assert rig.discarded == []
    assert rig.answers(ANNA) == []
    assert len(rig.land()) == 1


def test_a_client_that_came_back_is_told(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    taken(rig, trainer)
    rig.arrive(trainer, number)
    rig.take(BERT, m.Data(trainer.id, trainer.head, b""))  # on a new connection
    rig.land()
    assert stored(rig.answers(ANNA)) == []
    assert stored(rig.answers(BERT)) == [(number, "")]


def test_a_client_that_only_asks_on_its_new_connection_is_told(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    taken(rig, trainer)
    rig.arrive(trainer, number)
    rig.take(BERT, m.Flush(7, trainer.id, trainer.head))
    rig.settle()
    told = [reply for reply in rig.answers(BERT) if not isinstance(reply, m.Ack)]
    assert told == [m.Stored(trainer.id, number, ""), m.Done(7, "")]


# --- failures -------------------------------------------------------------------------------------
def test_what_cannot_be_stored_now_is_told_once_and_tried_again(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number, other = trainer.save(name="extra/a"), trainer.save(name="extra/b")
    taken(rig, trainer)
    rig.arrive(trainer, number, other)
    rig.answers(ANNA)
    for _ in range(4):
        rig.land("disk full")
        rig.tick(2.0)
    said = notices(rig.answers(ANNA))
    assert said == [f"extra/{name} could not be stored: disk full" for name in "ab"]
    assert rig.discarded == []
    rig.land()
    assert stored(rig.answers(ANNA)) == [(number, ""), (other, "")]


@pytest.mark.parametrize("announced", [True, False])
def test_what_can_never_be_taken_in_is_lost(rig: Rig, announced: bool) -> None:
    trainer = Trainer().log(1)
    number = trainer.save(name="extra/a.pkl")
    failure = e.NotArrived(trainer.id, number, "its size is wrong", final=True)
    if announced:
        taken(rig, trainer)
        rig.deliver(failure)
    else:
        rig.deliver(failure)
        rig.receive(ANNA, trainer.data())
        rig.appends.clear()
        rig.deliver(e.Journaled(rig.last_segment))  # of the record, but not of its loss
    replies = rig.answers(ANNA)
    assert stored(replies) == []  # the journal is to know first
    rig.write_journal()
    (told,) = stored(replies + rig.answers(ANNA))
    assert told == (number, "extra/a.pkl could not be received: its size is wrong")
    assert notices(replies) == [told[1]]
    assert rig.discarded == [(trainer.id, number)]
    rig.settle()
    assert kept_in_file(rig, trainer).extras == ()


def test_an_attempt_of_the_socket_that_failed_is_a_notice(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    rig.deliver(e.NotArrived(trainer.id, number, "disk full", final=False))  # not known yet
    taken(rig, trainer)
    assert notices(rig.answers(ANNA)) == ["extra/1 could not be received: disk full"]
    for _ in range(2):
        rig.deliver(e.NotArrived(trainer.id, number, "disk full", final=False))
    assert notices(rig.answers(ANNA)) == []  # told once
    rig.arrive(trainer, number)
    rig.tick(2.0)
    rig.land()
    assert stored(rig.answers(ANNA)) == [(number, "")]


def test_what_can_never_be_stored_is_lost_and_the_next_checkpoint_takes_its_turn(rig: Rig) -> None:
    trainer = models(Policy(every_k=1))
    first, second = trainer.save("model"), trainer.save("model")
    taken(rig, trainer)
    rig.arrive(trainer, first, second)
    rig.land("a folder has that name", final=True)
    rig.tick()
    assert [job.number for job in rig.land()] == [second]
    told = dict(stored(rig.answers(ANNA)))
    assert "a folder has that name" in told[first]
    assert told[second] == ""
    rig.settle()
    assert [saved.number for saved in kept_in_file(rig, trainer).portfolio.every_k] == [2]


def test_an_outcome_that_nobody_waits_for_harms_nobody(rig: Rig) -> None:
    trainer = running(rig)
    for event in (
        e.ArtifactStored(trainer.id, 9),
        e.ArtifactNotStored(trainer.id, 9, "why", True),
        e.NotArrived(trainer.id, 9, "why", False),
        e.ArtifactStored(Trainer("unknown").id, 1),
        e.ArtifactNotStored(Trainer("unknown").id, 1, "why", False),
        e.ProducerGone(Trainer("unknown").id, frozenset((1,))),
    ):
        rig.deliver(event)
    rig.settle()
    assert rig.rows(trainer) == [1, 2]
    assert rig.discarded == []
    assert dict(stored(rig.answers(ANNA))) == {9: ""}


# --- a process is gone ----------------------------------------------------------------------------
def test_what_a_dead_process_left_behind_is_waited_for(rig: Rig) -> None:
    trainer = models(Policy(every_k=1))
    first, second = trainer.save("model"), trainer.save("model")
    taken(rig, trainer)
    assert rig.core.wanted_artifacts(trainer.id) == {first, second}
    rig.deliver(e.ProducerGone(trainer.id, frozenset((first, second))))
    rig.settle()
    assert not rig.file(trainer).sealed  # the run is over but not complete
    assert not rig.core.is_settled(trainer.id)
    rig.arrive(trainer, first, second)
    rig.settle()
    assert rig.artifacts[FINAL] == staged(trainer, second)
    assert rig.core.is_settled(trainer.id)
    assert rig.file(trainer).sealed


def test_what_a_dead_process_did_not_leave_behind_is_lost(rig: Rig) -> None:
    trainer = models(Policy(every_k=1))
    first, _ = trainer.save("model"), trainer.save("model")
    taken(rig, trainer)
    rig.deliver(e.ProducerGone(trainer.id, frozenset((first,))))
    assert rig.core.wanted_artifacts(trainer.id) == {first}
    (said,) = notices(rig.answers(ANNA))
    assert said == "checkpoint 2 is lost: its process ended before it had taken it"
    rig.arrive(trainer, first)
    rig.settle()
    assert rig.file(trainer).sealed
    kept = kept_in_file(rig, trainer).portfolio
    assert [saved.number for saved in kept.every_k] == [1]


def test_a_client_that_was_only_silent_is_told_that_what_it_saved_is_lost(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save(name="extra/a.pkl")
    taken(rig, trainer)
    rig.deliver(e.ProducerGone(trainer.id))
    rig.write_journal()
    why = "extra/a.pkl is lost: its process ended before it had taken it"
    assert stored(rig.answers(ANNA)) == [(number, why)]
    rig.take(BERT, m.Data(trainer.id, trainer.head, b""))
    rig.arrive(trainer, number)  # too late
    assert stored(rig.answers(BERT)) == [(number, why)]
    assert rig.discarded == [(trainer.id, number)]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_a_client_that_flushes_hears_first_what_is_lost(
    rig: Rig, ended: bool, restart: bool
) -> None:
    trainer = Trainer().log(1)
    number = trainer.save(name="extra/a.pkl")
    if ended:
        trainer.end()
    taken(rig, trainer)
    rig.deliver(e.NotArrived(trainer.id, number, "no", final=True))
    rig.settle()
    if restart:
        rig.start()
        rig.settle()
    rig.take(BERT, m.Flush(7, trainer.id, trainer.head))
    rig.settle()
    lost, done = rig.answers(BERT)
    assert isinstance(lost, m.Stored)
    assert (lost.producer, lost.number) == (trainer.id, number)
    assert lost.error
    assert done == m.Done(7, "")


def test_a_lost_checkpoint_that_nobody_misses_is_no_news(rig: Rig) -> None:
    trainer = models()
    first, second = trainer.save("model"), trainer.save("model")
    taken(rig, trainer)
    rig.deliver(e.ProducerGone(trainer.id, frozenset((second,))))
    rig.write_journal()
    replies = rig.answers(ANNA)
    assert notices(replies) == []
    assert [number for number, _ in stored(replies)] == [first]


def test_bytes_of_a_lost_artifact_are_told_of_when_the_journal_knows(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    taken(rig, trainer)
    rig.answers(ANNA)
    rig.deliver(e.NotArrived(trainer.id, number, "no", final=True))
    rig.deliver(e.Arrived(trainer.id, number, staged(trainer, number), 1))
    assert stored(rig.answers(ANNA)) == []
    rig.write_journal()
    assert len(stored(rig.answers(ANNA))) == 1


def test_a_silent_client_whose_bytes_are_here_loses_nothing(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save(name="extra/a.pkl")
    rig.open_error = "busy", False
    taken(rig, trainer)
    rig.arrive(trainer, number)
    rig.deliver(e.ProducerGone(trainer.id))
    rig.open_error = None
    rig.settle()
    assert rig.artifacts == {EXTRA + "a.pkl": staged(trainer, number)}


# --- waiting --------------------------------------------------------------------------------------
def test_a_flush_waits_for_what_was_saved_before_it_and_not_for_what_came_later(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    rig.take(ANNA, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    rig.settle()
    assert dones(rig.answers(ANNA)) == []
    head = trainer.head
    trainer.save()
    rig.take(ANNA, trainer.data(head))
    rig.settle()
    rig.arrive(trainer, number)
    rig.settle()
    assert dones(rig.answers(ANNA)) == [(1, "")]


def test_a_flush_waits_for_an_artifact_in_the_first_piece_of_its_stream(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    rig.receive(ANNA, trainer.data())
    rig.receive(ANNA, m.Flush(1, trainer.id, trainer.head))  # before anything is journaled
    rig.settle()
    assert dones(rig.answers(ANNA)) == []
    rig.arrive(trainer, number)
    rig.settle()
    assert dones(rig.answers(ANNA)) == [(1, "")]


def test_a_reader_waits_for_artifacts_too(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    rig.take(ANNA, trainer.data())
    rig.take(BERT, m.Publish(7, f"{ROOT}/exp"))
    rig.settle()
    assert dones(rig.answers(BERT)) == []
    rig.arrive(trainer, number)
    rig.settle()
    assert dones(rig.answers(BERT)) == [(7, "")]


def test_who_waits_for_a_lost_artifact_is_answered(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    rig.take(ANNA, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    rig.deliver(e.NotArrived(trainer.id, number, "no", final=True))
    rig.settle()
    assert dones(rig.answers(ANNA)) == [(1, "")]


def test_a_finished_run_is_sealed_when_its_artifacts_are_stored(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    trainer.end()
    rig.take(ANNA, trainer.data(), m.Flush(1, trainer.id, trainer.head))
    rig.settle()
    assert not rig.file(trainer).sealed
    assert rig.report(trainer)["artifacts_waiting"] == 1
    rig.arrive(trainer, number)
    rig.settle()
    assert rig.file(trainer).sealed
    assert dones(rig.answers(ANNA)) == [(1, "")]


def test_a_stop_does_not_wait_for_what_live_clients_have_not_sent(rig: Rig) -> None:
    trainer = Trainer().log(1)
    trainer.save()
    taken(rig, trainer)
    rig.receive(BERT, m.Stop(5))
    rig.settle()
    assert rig.left is not None
    assert dones(rig.answers(BERT)) == [(5, "")]


def test_a_stop_waits_for_what_a_dead_process_has_left_in_memory(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    taken(rig, trainer)
    rig.deliver(e.ProducerGone(trainer.id, frozenset((number,))))
    rig.deliver(e.StopAsked())
    rig.settle_files()
    assert rig.left is None
    rig.arrive(trainer, number)
    rig.settle()
    assert rig.left is not None
    assert len(rig.artifacts) == 1


def test_a_stop_waits_for_what_is_being_stored_and_for_the_journal(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    taken(rig, trainer)
    rig.arrive(trainer, number)
    while rig.jobs:
        rig.work()
    jobs, rig.landings = rig.landings, []
    rig.receive(BERT, m.Stop(5))
    for _ in range(5):
        rig.tick()
        rig.work()
    assert rig.left is None
    rig.landings = jobs
    rig.journal_error = "disk full"
    rig.land()
    rig.tick()
    assert rig.left is None
    rig.journal_error = ""
    rig.settle()
    assert rig.left is not None
    assert stored(rig.answers(ANNA)) == [(number, "")]


def test_an_ended_run_with_a_missing_artifact_does_not_keep_the_daemon(rig: Rig) -> None:
    trainer = Trainer().log(1)
    number = trainer.save()
    trainer.end()
    taken(rig, trainer)
    rig.deliver(e.StopAsked())
    rig.settle()
    assert rig.left is not None
    rig.start()
    assert rig.core.wanted_artifacts(trainer.id) == {number}
    rig.arrive(trainer, number)
    rig.settle()
    assert rig.file(trainer).sealed


def test_a_blocked_checkpoint_lets_the_daemon_sleep(rig: Rig) -> None:
    trainer = models()
    trainer.save("model")
    second = trainer.save("model")
    taken(rig, trainer)
    rig.arrive(trainer, second)
    rig.settle()  # else something is due for ever
    assert rig.core.next_due() == float("inf")


# --- restarts -------------------------------------------------------------------------------------
@pytest.mark.parametrize("rotate", [False, True])
def test_what_is_pending_is_asked_for_again_by_the_next_process(rig: Rig, rotate: bool) -> None:
    trainer = models(Policy(rules=(LatestN(1),)))
    first = trainer.save("model")
    taken(rig, trainer)
    rig.arrive(trainer, first)
    rig.settle()
    second = trainer.save("model")
    taken(rig, trainer)
    rig.arrive(trainer, second)
    if rotate:
        rig.rotate()
    rig.settle_files()
    rig.start()
    assert rig.core.wanted_artifacts(trainer.id) == {second}
    assert rig.landings == []
    rig.take(ANNA, trainer.data())
    rig.arrive(trainer, second)
    rig.settle()
    assert rig.artifacts == {
        FINAL: staged(trainer, second),
        f"{RETAINED}2.pkl": staged(trainer, second),
    }


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("outcome", ["stored", "lost"])
def test_what_is_settled_stays_settled(rig: Rig, outcome: str, rotate: bool) -> None:
    trainer = models(Policy(every_k=1))
    number = trainer.save("model")
    taken(rig, trainer)
    if outcome == "stored":
        rig.arrive(trainer, number)
        rig.land()
    else:
        rig.deliver(e.NotArrived(trainer.id, number, "no", final=True))
        rig.write_journal()
    if rotate:
        rig.rotate()
    before = rig.core.runs[trainer.run.run_id].artifacts.to_plain()
    rig.start()
    assert rig.core.runs[trainer.run.run_id].artifacts.to_plain() == before
    assert rig.core.is_settled(trainer.id)
    kept = rig.core.runs[trainer.run.run_id].artifacts.kept
    assert kept.portfolio.saves == (1 if outcome == "stored" else 0)


def test_a_kill_between_disk_and_journal_stores_it_once_more(rig: Rig) -> None:
    trainer = models(Policy(rules=(LatestN(1),)))
    first, second = trainer.save("model"), trainer.save("model")
    taken(rig, trainer)
    rig.arrive(trainer, first, second)
    rig.land()
    (job,) = rig.landings
    rig.give_names(job)  # and no word of it
    rig.start()
    rig.take(ANNA, trainer.data())
    rig.arrive(trainer, second)
    assert [again.number for again in rig.land()] == [second]
    assert rig.artifacts == {
        FINAL: staged(trainer, second),
        f"{RETAINED}2.pkl": staged(trainer, second),
    }


def test_a_run_is_opened_with_what_may_not_be_removed_from_its_folder(rig: Rig) -> None:
    trainer = models(Policy(rules=(LatestN(1),)))
    first = trainer.save("model")
    taken(rig, trainer)
    rig.arrive(trainer, first)
    rig.settle()
    trainer.save("model")
    taken(rig, trainer)
    opened = []
    handle = rig.deliver

    def watched(event: e.Event) -> list[e.Instruction]:
        done = handle(event)
        opened.extend(only(done, e.OpenRun))
        return done

    rig.deliver = watched  # type: ignore[method-assign]
    rig.start()
    assert [(job.retained, job.saves) for job in opened] == [(frozenset((1, 2)), 2)]


# --- in the log file ------------------------------------------------------------------------------
def test_what_is_kept_is_published_with_its_lists(rig: Rig) -> None:
    trainer = models(Policy(every_k=1, time_name="num_epochs"))
    trainer.save("model", time=4)
    trainer.save("figure", "figures/loss.png")
    taken(rig, trainer)
    rig.receive(ANNA, m.Save(trainer.id))
    rig.settle()
    lists = rig.file(trainer).lists
    assert lists["every_k_ckpt_list"] == ("exp/models/every_k/every_k_seed_1_k_1.pkl",)
    assert lists["every_k_storage_time"] == (4,)
    assert lists["fig_storage_paths"] == ("exp/figures/loss.png",)
    assert kept_in_file(rig, trainer).figures == ("figures/loss.png",)


def test_a_run_that_only_saves_objects_has_a_log(rig: Rig) -> None:
    trainer = Trainer()
    number = trainer.save(name="extra/a.pkl")
    trainer.end()
    taken(rig, trainer)
    rig.arrive(trainer, number)
    rig.settle()
    assert rig.file(trainer).sealed
    assert rig.rows(trainer) == []
    assert kept_in_file(rig, trainer).extras == ("extra/a.pkl",)


def test_a_continued_run_goes_on_with_what_the_log_has(rig: Rig) -> None:
    first = models(Policy(every_k=1))
    number = first.save("model")
    first.end()
    taken(rig, first)
    rig.arrive(first, number)
    rig.settle()
    kept = rig.core.runs.get(first.run.run_id)
    assert kept is None
    plain = {
        "portfolio": to_plain(kept_in_file(rig, first).portfolio),
        "figures": [],
        "extras": [],
    }
    again = make_run("again", policy=first.run.policy, model_type="numpy", reload=True, kept=plain)
    second = Trainer("again", again).log(2)
    number = second.save("model")
    rig.take(BERT, second.data())
    rig.arrive(second, number)
    rig.settle()
    assert rig.rows(second) == [1, 2]
    assert rig.disk.aside == []
    portfolio = kept_in_file(rig, second).portfolio
    assert [saved.number for saved in portfolio.every_k] == [1, 2]
    assert set(rig.artifacts) == {
        FINAL,
        *(f"{ROOT}/exp/models/every_k/every_k_seed_1_k_{n}.pkl" for n in (1, 2)),
    }
