"""When a run's log file is opened, and under which name."""

from __future__ import annotations

import pytest

from mle_client import messages as m
from mle_daemon.openings import NAME_WAIT_S, Openings
from mle_daemon.runs import RunState
from tests.daemon_rig import Trainer, make_run

NEVER = float("inf")


class Runs:
    """Runs in the order in which they came.  Args: runs: (name, seed_id) of each."""

    def __init__(self, *runs: tuple[str, str]) -> None:
        self.by_id: dict[m.RunId, RunState] = {}
        self.openings = Openings(self.by_id)
        for name, seed_id in runs:
            self.add(name, seed_id)

    def add(self, name: str, seed_id: str) -> RunState:
        trainer = Trainer(name, make_run(name, seed_id))
        run = RunState(trainer.run, seed_id, trainer.path)
        run.join(trainer.id, None)
        self.by_id[trainer.run.run_id] = run
        return run

    def want(self, *names: str) -> None:
        for name in names:
            self.openings.want(make_run(name).run_id, 10.0)

    def due(self, now: float) -> list[tuple[str, bool]]:
        return [(run.seed_id, is_free) for run, is_free in self.openings.due(now)]


def test_a_run_is_opened_once_and_not_before_its_time() -> None:
    runs = Runs(("a", "seed"))
    runs.want("a")
    assert runs.openings.next_at() == 10.0
    assert runs.due(9.9) == []
    assert runs.due(10.0) == [("seed", True)]
    assert (runs.due(10.0), runs.openings.next_at()) == ([], NEVER)


def test_nothing_is_due_where_nothing_waits() -> None:
    assert Runs(("a", "seed")).openings.next_at() == NEVER


def test_of_two_live_runs_of_one_name_the_later_waits_and_gets_another() -> None:
    runs = Runs(("a", "seed"), ("b", "seed"))
    runs.want("b")
    assert runs.openings.next_at() == 10.0 + NAME_WAIT_S
    assert runs.due(10.0) == []
    assert runs.due(10.0 + NAME_WAIT_S) == [("seed_dup2", False)]
    assert runs.openings.next_at() == NEVER  # until the journal has the name
    runs.openings.journaled()
    assert runs.due(10.0) == [("seed_dup2", True)]


def test_two_that_get_another_name_get_two() -> None:
    runs = Runs(("a", "seed"), ("b", "seed"), ("c", "seed"))
    runs.want("b", "c")
    assert runs.due(20.0) == [("seed_dup2", False), ("seed_dup3", False)]


def test_a_run_waits_as_long_as_it_takes_for_one_that_has_ended() -> None:
    runs = Runs(("a", "seed"), ("b", "seed"))
    runs.want("b")
    first = runs.by_id[make_run("a").run_id]
    first.gone(next(iter(first.members)))
    assert (runs.openings.next_at(), runs.due(1e9)) == (NEVER, [])
    del runs.by_id[make_run("a").run_id]
    assert runs.due(10.0) == [("seed", True)]


def test_a_daemon_that_leaves_does_not_wait_as_long() -> None:
    runs = Runs(("a", "seed"), ("b", "seed"))
    for member in runs.by_id[make_run("a").run_id].members.values():
        member.over = True
    runs.want("b")
    runs.openings.leaving = True
    assert runs.due(10.0) == []
    assert runs.due(10.0 + NAME_WAIT_S) == [("seed_dup2", False)]


def test_a_name_that_the_journal_lacks_is_asked_for_again() -> None:
    runs = Runs(("a", "seed"), ("b", "seed"))
    runs.want("b")
    runs.due(20.0)
    assert runs.openings.journal_failed() == {make_run("b").run_id}
    assert runs.due(20.0) == []
    runs.openings.journaled()
    assert runs.openings.journal_failed() == set()


@pytest.mark.parametrize("renamed", [False, True])
def test_a_run_that_is_gone_is_not_opened(renamed: bool) -> None:
    runs = Runs(("a", "seed"), ("b", "seed"))
    runs.want("b")
    if renamed:
        runs.due(20.0)
    del runs.by_id[make_run("b").run_id]
    assert (runs.openings.next_at(), runs.due(20.0)) == (NEVER, [])
    assert runs.openings.journal_failed() == set()


def test_a_run_that_is_gone_is_not_opened_when_it_comes_back_unasked() -> None:
    runs = Runs(("a", "seed"))
    runs.want("a")
    run = runs.by_id.pop(make_run("a").run_id)
    runs.due(20.0)
    runs.by_id[run.run.run_id] = run
    assert runs.due(20.0) == []


def test_a_run_that_was_gone_and_has_come_back_is_the_last_in_line() -> None:
    runs = Runs(("a", "first"), ("b", "second"))
    runs.want("a", "b")
    run = runs.by_id.pop(make_run("a").run_id)
    runs.by_id[run.run.run_id] = run
    runs.want("a")
    assert runs.due(10.0) == [("second", True), ("first", True)]
