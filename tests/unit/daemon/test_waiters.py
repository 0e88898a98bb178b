"""Who waits for what to be in a log file."""

from __future__ import annotations

from mle_daemon.runs import RunState, Waiter
from mle_daemon.waiters import Waiters
from tests.daemon_rig import ANNA, BERT, Trainer

READER, FLUSHER = Waiter(ANNA, 1), Waiter(BERT, 2)


def make(name: str) -> tuple[Trainer, RunState]:
    trainer = Trainer(name)
    run = RunState(trainer.run, trainer.run.seed_id, trainer.path)
    run.join(trainer.id, None)
    return trainer, run


def test_a_reader_waits_for_every_run_that_it_wants() -> None:
    (a, run_a), (b, run_b) = make("a"), make("b")
    runs = {a.run.run_id: run_a, b.run.run_id: run_b}
    waiters = Waiters()
    waiters.add(READER, {a.run.run_id: {a.id: 5}, b.run.run_id: {b.id: 7}})
    run_a.members[a.id].published = 5
    assert waiters.served(runs, runs) == []
    run_b.members[b.id].published = 7
    assert waiters.served(runs, runs) == [READER]
    assert waiters.served(runs, runs) == []


def test_a_reader_of_nothing_is_served_at_once() -> None:
    waiters = Waiters()
    waiters.add(READER, {})
    assert waiters.served({}, ()) == [READER]


def test_a_run_that_is_gone_and_a_producer_that_is_have_everything() -> None:
    (a, run_a), (b, _) = make("a"), make("b")
    waiters = Waiters()
    waiters.add(READER, {a.run.run_id: {b.id: 7}, b.run.run_id: {b.id: 7}})
    assert waiters.served({a.run.run_id: run_a}, ()) == [READER]


def test_flushes_are_served_with_the_readers() -> None:
    a, run = make("a")
    run.wait(FLUSHER, {a.id: 5})
    waiters = Waiters()
    runs = {a.run.run_id: run}
    assert waiters.served(runs, runs) == []
    run.members[a.id].published = 5
    assert waiters.served(runs, ()) == []  # nobody has looked at the run
    assert waiters.served(runs, runs) == [FLUSHER]


def test_all_who_wait_for_a_file_that_fails_are_named_and_forgotten() -> None:
    (a, run_a), (b, run_b) = make("a"), make("b")
    other = Waiter(ANNA, 3)
    waiters = Waiters()
    run_a.wait(FLUSHER, {a.id: 5})
    waiters.add(READER, {a.run.run_id: {a.id: 5}, b.run.run_id: {b.id: 7}})
    waiters.add(other, {b.run.run_id: {b.id: 7}})
    assert waiters.failed(run_a) == [FLUSHER, READER]
    assert waiters.failed(run_a) == []
    assert waiters.failed(run_b) == [other]
