"""Whoever wants more of a daemon than it has for one is told so, and nobody else notices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from mle_client import message_wire
from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon import limits
from tests.daemon_rig import (
    ANNA,
    BERT,
    CARL,
    Rig,
    Trainer,
    dones,
    ended,
    make_run,
    running,
)


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a bound so small that a test can reach it."""

    def make(**values: int) -> None:
        for name, value in values.items():
            monkeypatch.setattr(limits, name, value)

    return make


def refusals(rig: Rig, client: e.Client) -> list[str]:
    return [r.reason for r in rig.answers(client) if isinstance(r, m.Refused)]


def seed(name: str, **changes: Any) -> Trainer:
    return Trainer(name, make_run(name, name, **changes))


# --- runs ---------------------------------------------------------------------------------------
def test_a_run_too_many_is_refused_and_taken_when_another_has_ended(
    rig: Rig, bound: Callable[..., None]
) -> None:
    bound(MAX_RUNS=2)
    first, second, third = seed("a").log(1), seed("b").log(1), seed("c").log(1)
    rig.take(ANNA, first.data(), second.data())
    rig.take(BERT, third.data())
    assert refusals(rig, BERT) == [limits.TOO_MANY_RUNS]
    first.log(2).end()
    rig.take(ANNA, first.data(rig.core.position(first.id)))
    rig.settle()
    assert rig.rows(first) == [1, 2]
    rig.take(BERT, third.data())
    rig.settle()
    assert rig.rows(third) == [1]


def test_runs_of_one_round_count_before_they_are_journaled(
    rig: Rig, bound: Callable[..., None]
) -> None:
    bound(MAX_RUNS=2)
    rig.take(ANNA, *(seed(name).data() for name in "abc"))
    assert len(rig.core.runs) == 2
    assert refusals(rig, ANNA) == [limits.TOO_MANY_RUNS]


def test_a_daemon_that_starts_takes_all_that_its_journal_has(
    rig: Rig, bound: Callable[..., None]
) -> None:
    trainers = [seed(name).log(1) for name in "abc"]
    rig.take(ANNA, *(trainer.data() for trainer in trainers))
    bound(MAX_RUNS=1, MAX_SETTINGS_BYTES=1, MAX_PRODUCERS=0)
    rig.start()
    rig.settle()
    assert [rig.rows(trainer) for trainer in trainers] == [[1]] * 3


def test_configurations_take_so_much_memory_and_no_more(
    rig: Rig, bound: Callable[..., None]
) -> None:
    bound(MAX_SETTINGS_BYTES=3_000)
    first = seed("a", config_file=b"x" * 1_000, config_text="y" * 1_000)
    rig.take(ANNA, first.data())
    rig.take(BERT, seed("b", config_file=b"x" * 1_500).data())
    assert refusals(rig, BERT) == [limits.TOO_MUCH_CONFIGURED]
    rig.take(ANNA, first.end().data(rig.core.position(first.id)))
    rig.settle()
    rig.take(BERT, seed("b", config_file=b"x" * 1_500).data())
    assert refusals(rig, BERT) == []
    rig.start()  # what is restored counts as well
    rig.take(CARL, seed("c", config_file=b"x" * 2_000).data())
    assert refusals(rig, CARL) == [limits.TOO_MUCH_CONFIGURED]


def test_so_many_processes_log_to_a_run_and_no_more(rig: Rig, bound: Callable[..., None]) -> None:
    bound(MAX_PRODUCERS=2)
    parent = Trainer("main").log(1)
    rig.take(ANNA, parent.data())
    children = [Trainer(f"child {n}", dataclasses.replace(parent.run, forked=True)) for n in (1, 2)]
    rig.take(BERT, children[0].log(2).data())
    rig.take(CARL, children[1].log(3).data())
    assert refusals(rig, CARL) == [limits.TOO_MANY_PRODUCERS]
    rig.settle()
    assert sorted(rig.rows(parent)) == [1, 2]


# --- artifacts ------------------------------------------------------------------------------------
def test_so_many_artifacts_of_a_run_wait_and_any_number_is_stored(
    rig: Rig, bound: Callable[..., None]
) -> None:
    bound(MAX_WAITING_ARTIFACTS=3)
    trainer = Trainer("main").log(1)
    for _ in range(20):
        at = rig.core.position(trainer.id)
        numbers = [trainer.save() for _ in range(3)]
        rig.take(ANNA, trainer.data(at))
        rig.arrive(trainer, *numbers)
        rig.settle()
    assert len(rig.artifacts) == 60
    assert refusals(rig, ANNA) == []
    at = rig.core.position(trainer.id)
    for _ in range(4):
        trainer.save()
    rig.take(ANNA, trainer.data(at))
    assert refusals(rig, ANNA) == [limits.TOO_MANY_ARTIFACTS]


def test_the_client_stops_before_the_daemon_would_refuse_its_artifacts() -> None:
    assert 2 * m.MAX_UNSTORED <= limits.MAX_WAITING_ARTIFACTS


# --- waiting ------------------------------------------------------------------------------------
def test_so_many_flushes_of_a_run_wait_and_the_next_is_told(
    rig: Rig, bound: Callable[..., None]
) -> None:
    bound(MAX_FLUSHES=2)
    trainer = running(rig)
    rig.take(ANNA, *(m.Flush(token, trainer.id, trainer.head + 1) for token in (1, 2, 3)))
    assert dones(rig.answers(ANNA)) == [(3, limits.TOO_MANY_FLUSHES)]
    trainer.log(3)
    rig.take(ANNA, trainer.data(rig.core.position(trainer.id)))
    rig.settle()
    assert dones(rig.answers(ANNA)) == [(1, ""), (2, "")]


def test_so_many_readers_wait_and_the_next_is_told(rig: Rig, bound: Callable[..., None]) -> None:
    bound(MAX_READERS=1)
    trainer = running(rig)
    trainer.log(3)
    rig.take(ANNA, trainer.data(rig.core.position(trainer.id)))
    rig.receive(BERT, m.Publish(1, trainer.path))
    rig.receive(CARL, m.Publish(2, trainer.path))
    rig.settle()
    assert dones(rig.answers(BERT)) == [(1, "")]
    assert dones(rig.answers(CARL)) == [(2, limits.TOO_MANY_READERS)]


def test_readers_wait_for_so_many_runs_together(rig: Rig, bound: Callable[..., None]) -> None:
    bound(MAX_AWAITED_RUNS=1)
    for name in "ab":
        rig.take(ANNA, seed(name).log(1).data())
    rig.take(BERT, m.Publish(1, "/exps"))
    assert dones(rig.answers(BERT)) == [(1, limits.TOO_MANY_READERS)]


def test_so_many_wait_for_a_stop_and_the_next_is_told(rig: Rig, bound: Callable[..., None]) -> None:
    bound(MAX_STOPS=1)
    running(rig).log(3)
    rig.receive(ANNA, m.Stop(1))
    rig.receive(BERT, m.Stop(2))
    assert dones(rig.answers(BERT)) == [(2, limits.TOO_MANY_STOPS)]
    rig.settle()
    assert dones(rig.answers(ANNA)) == [(1, "")]


def test_so_many_streams_are_told_of_room_and_the_others_lose_nothing(
    bound: Callable[..., None],
) -> None:
    bound(MAX_PUT_OFF=1)
    rig = Rig(tail_limit_bytes=1)
    rig.take(ANNA, seed("a").log(1).data())
    late = [seed(name).log(1) for name in "bc"]
    for trainer in late:
        rig.take(BERT, trainer.data())
    rig.settle()
    told = [r.producer for r in rig.answers(BERT) if isinstance(r, m.Expect)]
    assert told == [late[0].id]
    for trainer in late:  # it comes again by itself
        rig.take(BERT, trainer.data())
        rig.settle()
    assert [rig.rows(trainer) for trainer in late] == [[1], [1]]


# --- reports and the log --------------------------------------------------------------------------
def test_a_connection_gets_so_many_reports(rig: Rig, bound: Callable[..., None]) -> None:
    bound(MAX_REPORTS=2, REPORTED_KEPT=2)
    assert [rig.core.may_report(ANNA) for _ in range(4)] == [True, True, False, False]
    assert rig.core.may_report(BERT)
    assert rig.core.may_report(CARL)  # for which ANNA is forgotten
    assert rig.core.may_report(ANNA)


def test_a_million_refusals_are_a_few_lines_in_the_log(rig: Rig) -> None:
    trainer = running(rig)
    rig.logged.clear()
    for _ in range(1_000):
        rig.now += 0.001
        rig.receive(ANNA, m.Data(trainer.id, trainer.head, b"\xc1"))
    assert len(refusals(rig, ANNA)) == 1_000
    assert len(rig.logged) == limits.REFUSALS_LOGGED
    rig.now += limits.REFUSALS_PERIOD_S
    rig.receive(ANNA, m.Data(trainer.id, trainer.head, b"\xc1"))
    assert "990 more" in rig.logged[-1]


def test_a_quiet_log_says_everything() -> None:
    sparingly = limits.Sparingly(lines=1, period_s=10.0)
    assert [sparingly.line("a", now) for now in (0.0, 10.0, 20.0)] == ["a", "a", "a"]


# --- counts ---------------------------------------------------------------------------------------
def test_lost_ticks_that_no_file_can_count_do_not_end_the_daemon(rig: Rig) -> None:
    trainer = Trainer("main").lose(m.MAX_COUNT).lose(m.MAX_COUNT).log(1)
    rig.take(ANNA, trainer.data())
    rig.settle()
    rig.rotate()
    assert rig.file(trainer).lost == m.MAX_COUNT
    message_wire.encode(m.Status(1, {"runs": rig.core.reports(rig.now)}))
    rig.start()
    rig.settle()
    assert rig.rows(trainer) == [1]


def test_an_ended_run_takes_no_room(rig: Rig, bound: Callable[..., None]) -> None:
    bound(MAX_RUNS=1)
    for name in "abc":
        ended(rig, name)
    assert refusals(rig, ANNA) == []
