"""Plans of merges: no value is given up unless the merged file has it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client.merge_plan import (
    LeftOut,
    Member,
    Plan,
    first_of,
    mixed_configurations,
    plan_merge,
)


def member(path: str, seed: str = "a", rows: int = 1, **facts: Any) -> Member:
    """A log that says when it began, of a run called like its file."""
    plain: dict[str, Any] = {"run": path, "state": "finished", "start": 0.0, "config": {"lr": 1}}
    return Member(path, seed, rows, **(plain | facts))


def merged(seed: str = "a", rows: int = 1, **facts: Any) -> Member:
    """A log in the merged file."""
    return member("log", seed, rows, in_target=True, **facts)


def plan(
    *members: Member, contained: bool = False, running: bool = False, asked: Any = None
) -> Plan:
    """A plan where one log has all of another, or has not.  Args: asked: gets the questions."""

    def contains(older: Member, newer: Member) -> bool:
        if asked is not None:
            asked.append((older, newer))
        return contained

    return plan_merge(members, contains, running=running)


def reasons(made: Plan) -> dict[str, str]:
    return {each.path: each.why for each in made.left_out}


# --- one log of each seed -------------------------------------------------------------------------
def test_logs_of_different_seeds_are_taken_and_may_go() -> None:
    one, other = member("1", "seed_10"), member("2", "seed_9")
    made = plan(one, other)
    assert (made.take, made.keep, made.removable) == ((one, other), (), ("1", "2"))
    assert [each.seed for each in made.seeds] == ["seed_9", "seed_10"]
    assert made.changes_target
    assert made.left_out == ()


def test_what_is_merged_already_stays_and_nothing_changes() -> None:
    made = plan(merged("a"), merged("b"))
    assert (made.take, len(made.keep), made.changes_target) == ((), 2, False)


def test_a_late_seed_is_added() -> None:
    late = member("2", "b")
    made = plan(merged("a"), late)
    assert (made.take, made.keep, made.drop, made.aside) == ((late,), (merged("a"),), (), ())


def test_a_log_that_is_merged_but_not_removed_yet_may_go() -> None:
    made = plan(merged(run="r"), member("1", run="r"))
    assert (made.changes_target, made.removable) == (False, ("1",))


# --- runs that go on ------------------------------------------------------------------------------
def test_a_run_that_goes_on_is_left_for_later() -> None:
    going, over = member("1", "a", state="running"), member("2", "b")
    made = plan(going, over)
    assert (made.take, made.removable) == ((over,), ("2",))
    assert made.left_out == (LeftOut("1", reasons(made)["1"], running=True),)
    assert "merge again when it has ended" in reasons(made)["1"]


def test_a_run_that_goes_on_may_be_taken_as_far_as_it_got_and_its_file_stays() -> None:
    going = member("1", state="running")
    made = plan(going, running=True)
    assert (made.take, made.removable) == ((going,), ())
    assert "its own log stays" in reasons(made)["1"]


def test_a_merged_run_that_went_on_is_taken_again_when_it_has_ended() -> None:
    early = merged(rows=5, run="r", state="running")
    made = plan(early, member("1", rows=9, run="r"), contained=True)
    assert (made.take[0].rows, made.drop, made.removable) == (9, (early,), ("1",))


def test_of_equal_copies_of_one_run_the_one_that_has_ended_counts() -> None:
    made = plan(
        merged(rows=5, run="r", state="running"), member("1", rows=5, run="r"), contained=True
    )
    assert made.take[0].state == "finished"


def test_a_merged_seed_stays_merged_while_it_runs_again() -> None:
    old, again = merged(rows=5, run="old"), member("1", rows=1, start=9.0, state="running")
    made = plan(old, again)
    assert (made.keep, made.take, made.removable) == ((old,), (), ())


# --- several logs of one seed ---------------------------------------------------------------------
def test_the_later_run_counts_however_short_it_is() -> None:
    early, late = member("1", rows=100), member("2", rows=1, start=5.0)
    made = plan(early, late)
    assert made.take == (late,)
    assert "another run of a than 2" in reasons(made)["1"]
    assert made.removable == ("2",)


def test_of_runs_that_do_not_say_when_they_began_the_longer_counts() -> None:
    made = plan(member("1", rows=2, start=None, run=""), member("2", rows=3, start=None, run=""))
    assert [each.path for each in made.take] == ["2"]


def test_a_run_that_says_when_it_began_counts_before_one_that_does_not() -> None:
    made = plan(member("1", rows=9, start=None, run=""), member("2", rows=1, start=-1.0))
    assert [each.path for each in made.take] == ["2"]


def test_a_log_whose_values_the_winner_has_may_go() -> None:
    made = plan(member("1", rows=1), member("2", rows=2, start=5.0), contained=True)
    assert made.removable == ("1", "2")


@pytest.mark.parametrize("overwrites", [False, True])
def test_a_log_in_the_merged_file_goes_only_if_the_winner_has_it_or_was_to_overwrite_it(
    overwrites: bool,
) -> None:
    old, new = merged(rows=100), member("2", rows=1, start=5.0, overwrites=overwrites)
    made = plan(old, new)
    assert (made.drop, made.aside) == (((old,), ()) if overwrites else ((), (old,)))
    assert plan(old, new, contained=True).drop == (old,)


def test_two_files_of_one_run_in_the_merged_file_s_place_are_compared_all_the_same() -> None:
    # A forked child that outlives its parent's run may have begun another file of that run.
    asked: list[Any] = []
    old, new = merged(rows=2, run="r"), member("2", rows=9, run="r", overwrites=True)
    made = plan(old, new, asked=asked)
    assert asked == [(old, new)]
    assert (made.aside, made.drop) == ((old,), ())


def test_a_run_s_own_log_counts_before_an_equal_copy_that_says_less_of_what_is_stored() -> None:
    made = plan(merged(run="r", kept="{}"), member("1", run="r", kept='{"figures": []}'))
    assert [each.path for each in made.take] == ["1"]


def test_copies_of_one_file_give_one_seed_and_all_may_go() -> None:
    made = plan(member("1", run="r"), member("2", run="r"), contained=True)
    assert (len(made.take), made.removable) == (1, ("1", "2"))


# --- files of several seeds -----------------------------------------------------------------------
def test_a_file_of_several_seeds_stays_if_one_of_them_is_not_taken() -> None:
    both = [member("all", "a", rows=9), member("all", "b")]
    made = plan(*both, member("1", "a", start=5.0))
    assert [(each.path, each.seed) for each in made.seeds] == [("1", "a"), ("all", "b")]
    assert made.removable == ("1",)
    assert "another run of a" in reasons(made)["all"]


def test_a_file_of_several_seeds_may_go_if_all_of_them_are_taken_or_had() -> None:
    both = [member("all", "a"), member("all", "b")]
    made = plan(*both, member("1", "a", start=5.0), contained=True)
    assert made.removable == ("all", "1")


def test_a_file_of_several_seeds_stays_while_one_of_them_runs() -> None:
    made = plan(member("all", "a", state="running"), member("all", "b"))
    assert [each.seed for each in made.take] == ["b"]
    assert (made.removable, list(reasons(made))) == ((), ["all"])


# --- configurations -------------------------------------------------------------------------------
def test_seeds_may_differ_in_their_seeds_and_in_nothing_else() -> None:
    one, same = member("1", "a", config={"lr": 1, "seed": 1}), member("2", "b", config={"lr": 1})
    assert mixed_configurations([one, same]) == ""
    other = replace(same, config={"lr": 2, "depth": None})
    said = mixed_configurations([one, same, other])
    assert "lr: 1 / 2" in said
    assert "depth: not set / None" in said
    assert "a in 1 and b in 2" in said
    assert mixed_configurations([]) == mixed_configurations([one]) == ""


# --- whatever there is ----------------------------------------------------------------------------
# A run as its values: the numbers 0 to rows - 1 of its name.
STARTS = {"r": 0.0, "s": 1.0, "t": None}


def contains(older: Member, newer: Member) -> bool:
    return older.run == newer.run and older.rows <= newer.rows


@st.composite
def folders(draw: st.DrawFn) -> list[Member]:
    """Files with a few seeds each, and a merged file."""
    found = []
    for path in ("log", *(f"f{i}" for i in range(draw(st.integers(0, 4))))):
        for seed in draw(st.sets(st.sampled_from("abc"))):
            run = draw(st.sampled_from("rst"))
            found.append(
                Member(
                    path, seed, draw(st.integers(0, 3)), run=run, start=STARTS[run],
                    state=draw(st.sampled_from(["running", "finished", None])),
                    overwrites=draw(st.booleans()), in_target=path == "log",
                )
            )  # fmt: skip
    return found


@given(folders(), st.booleans())
def test_a_plan_gives_up_no_value_that_was_not_to_be_overwritten(
    members: list[Member], running: bool
) -> None:
    made = plan_merge(members, contains, running=running)
    after = [*made.seeds, *made.aside]
    after += [m for m in members if not m.in_target and m.path not in made.removable]
    for before in members:
        if not any(one.seed == before.seed and contains(before, one) for one in after):
            (winner,) = [each for each in made.seeds if each.seed == before.seed]
            assert before.in_target
            assert winner.overwrites
            assert winner.run != before.run
    assert set(made.removable).isdisjoint(each.path for each in made.left_out)


@given(folders(), st.booleans())
def test_a_plan_has_one_log_of_each_seed_and_it_is_the_first_of_all(
    members: list[Member], running: bool
) -> None:
    made = plan_merge(members, contains, running=running)
    considered = [m for m in members if running or m.in_target or not m.is_running]
    assert sorted(each.seed for each in made.seeds) == sorted({m.seed for m in considered})
    for winner in made.seeds:
        assert winner is first_of([m for m in considered if m.seed == winner.seed])
    in_target = {id(m) for m in members if m.in_target}
    planned = [id(each) for each in (*made.keep, *made.drop, *made.aside)]
    assert sorted(planned) == sorted(in_target)


@given(folders(), st.booleans())
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    members: list[Member], running: bool
) -> None:
    made = plan_merge(members, contains, running=running)
    then = [replace(each, path="log", in_target=True) for each in made.seeds]
    then += [m for m in members if not m.in_target and m.path not in made.removable]
    assert not plan_merge(then, contains, running=running).changes_target


@given(st.permutations(range(5)), st.integers(0, 2))
def test_the_order_of_the_files_does_not_matter_to_which_log_counts(
    order: list[int], starts: int
) -> None:
    rivals = [
        Member(str(i), "a", rows=i // 2, run=str(i), start=float(i % (starts + 1)))
        for i in range(5)
    ]
    best = {first_of([rivals[i] for i in each]) for each in (order, order[::-1])}
    assert len({(m.start, m.rows) for m in best}) == 1


def test_of_equals_the_first_file_counts() -> None:
    rivals = [member(str(i), run=str(i)) for i in range(3)]
    assert [first_of(list(p)).path for p in itertools.permutations(rivals)] == list("001122")
