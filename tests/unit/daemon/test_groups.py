"""When seeds are merged: as soon as all have ended, not before, and again after what passes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import layout
from mle_daemon import events as e
from mle_daemon.config import EVERY, OFF, ON_FINISH, DaemonConfig
from mle_daemon.group import INCOMPLETE, SINGLE
from mle_daemon.groups import Groups
from mle_daemon.merge_attempts import (
    FAILED,
    MERGED,
    MERGING,
    RETRY_FIRST_S,
    RETRY_MOST_S,
    WAITING,
)
from mle_daemon.meta_logs import REFRESH_REST

NEVER = float("inf")
SETTLE = DaemonConfig.merge_settle_s
A, B = "/exps/a", "/exps/b"


def groups_of(**changes: Any) -> Groups:
    """Groups of a daemon that merges when all have ended, unless something else is said."""
    return Groups(DaemonConfig("/exps", **{"merge": ON_FINISH, **changes}))


def run(groups: Groups, directory: str, *seeds: str, expected: int | None = None) -> None:
    """Let seeds begin and end."""
    for seed in seeds:
        groups.began(directory, seed, expected)
    for seed in seeds:
        groups.ended(directory, seed, "finished")


def due(groups: Groups, now: float, leaving: bool = False) -> list[tuple[str, int]]:
    """The groups to be merged, each with how many seeds must have ended."""
    return [
        (job.directory, job.at_least)
        for job in groups.due(now, leaving=leaving)
        if isinstance(job, e.MergeGroup)
    ]


def begin(groups: Groups, directory: str = A) -> None:
    """The merging process is at a group."""
    groups.begun(e.MergeGroup(directory, 1, keep_seed_logs=False))


def metas(groups: Groups, now: float) -> list[str]:
    """The folders whose meta log is to be refreshed."""
    return [job.folder for job in groups.due(now, leaving=False) if isinstance(job, e.RefreshMeta)]


def report(groups: Groups, directory: str = A) -> e.Report:
    (line,) = [each for each in groups.reports() if each["directory"] == directory]
    return line


# --- the number of seeds is known -----------------------------------------------------------------
def test_a_group_is_merged_at_once_when_as_many_have_ended_as_there_are() -> None:
    groups = groups_of()
    for seed in ("1", "2", "3"):
        groups.began(A, seed, 3)
    for seed in ("1", "2"):
        groups.ended(A, seed, "finished")
        assert (due(groups, 0.0), groups.next_due()) == ([], NEVER)
    groups.ended(A, "3", "crashed")
    assert due(groups, 0.0) == [(A, 3)]
    assert due(groups, 1e9) == []


def test_a_seed_that_ended_twice_is_one() -> None:
    groups = groups_of()
    groups.began(A, "2", 2)
    for _ in range(2):
        run(groups, A, "1", expected=2)
    assert due(groups, 1e9) == []


def test_a_seed_that_runs_again_has_not_ended() -> None:
    groups = groups_of()
    run(groups, A, "1", expected=2)
    groups.began(A, "2", 2)
    groups.began(A, "1", 2)
    groups.ended(A, "2", "finished")
    assert due(groups, 1e9) == []
    assert (report(groups)["running"], report(groups)["finished"]) == (1, 1)


def test_where_none_runs_the_files_are_looked_at_for_seeds_of_earlier_daemons() -> None:
    groups = groups_of()
    run(groups, A, "3", expected=3)
    assert due(groups, 0.0) == [(A, 3)]
    groups.not_merged(e.GroupNotMerged(A, "2 of 3", too_few=True), 0.0)
    assert report(groups)["state"] == INCOMPLETE
    assert due(groups, 1e9) == []
    assert groups.at_rest
    run(groups, A, "2", expected=3)
    assert due(groups, 1e9) == [(A, 3)]


def test_the_largest_number_that_was_said_counts() -> None:
    groups = groups_of()
    groups.began(A, "1", 2)
    groups.began(A, "2", 3)
    groups.began(A, "3", None)
    assert report(groups)["expected"] == 3


# --- it is not known ------------------------------------------------------------------------------
def test_a_group_of_unknown_size_is_merged_when_nothing_has_begun_for_a_while() -> None:
    groups = groups_of()
    run(groups, A, "1", "2")
    assert due(groups, 100.0) == []
    assert groups.next_due() == 100.0 + SETTLE
    groups.began(A, "3", None)
    assert due(groups, 100.0 + SETTLE) == []
    assert groups.next_due() == NEVER
    groups.ended(A, "3", "finished")
    assert due(groups, 200.0) == []
    assert due(groups, 199.9 + SETTLE) == []
    assert due(groups, 200.0 + SETTLE) == [(A, 2)]


def test_a_single_seed_is_nothing_to_merge() -> None:
    groups = groups_of(merge_settle_s=1.0)
    run(groups, A, "1")
    due(groups, 0.0)
    assert due(groups, 1.0) == [(A, 2)]
    groups.not_merged(e.GroupNotMerged(A, "1 of 2", too_few=True), 1.0)
    assert report(groups)["state"] == SINGLE
    assert due(groups, 1e9) == []


def test_a_run_that_turned_out_to_be_none_is_not_waited_for() -> None:
    groups = groups_of()
    run(groups, A, "1", "2", expected=3)
    groups.began(A, "3", 3)
    assert due(groups, 0.0) == []
    groups.left(A)
    assert due(groups, 0.0) == [(A, 3)]


# --- every so often -------------------------------------------------------------------------------
def test_every_so_often_what_has_ended_is_merged() -> None:
    groups = groups_of(merge=EVERY, merge_every_s=10.0)
    groups.began(A, "2", 3)
    run(groups, A, "1", expected=3)
    assert due(groups, 100.0) == [(A, 1)]
    groups.merged(e.GroupMerged(A, 1))
    run(groups, A, "3", expected=3)
    run(groups, B, "1", "2")
    assert due(groups, 109.0) == []
    assert groups.next_due() == 110.0
    assert due(groups, 110.0) == [(A, 1), (B, 2)]
    assert (due(groups, 120.0), groups.next_due()) == ([], NEVER)  # nothing has ended since


def test_one_that_leaves_does_not_wait_for_the_next_round() -> None:
    groups = groups_of(merge=EVERY, merge_every_s=1e6)
    run(groups, A, "1", "2")
    due(groups, 0.0)
    groups.merged(e.GroupMerged(A, 2))
    run(groups, A, "3")
    assert due(groups, 1.0) == []
    assert due(groups, 1.0, leaving=True) == [(A, 2)]


# --- never ----------------------------------------------------------------------------------------
def test_nothing_is_merged_where_nothing_is_to_be() -> None:
    groups = groups_of(merge=OFF)
    run(groups, A, "1", "2", expected=2)
    groups.restore(B, 2)
    assert (due(groups, 1e9), due(groups, 1e9, leaving=True)) == ([], [])
    assert (groups.next_due(), groups.pending(), groups.at_rest) == (NEVER, {}, True)
    assert report(groups)["state"] == OFF


# --- leaving --------------------------------------------------------------------------------------
def test_one_that_leaves_merges_what_has_ended_and_waits_for_that() -> None:
    groups = groups_of()
    run(groups, A, "1", "2")
    run(groups, B, "1", expected=2)
    groups.began("/exps/c", "1", None)
    run(groups, "/exps/c", "2", "3")
    assert not groups.at_rest
    assert due(groups, 0.0, leaving=True) == [(A, 2), (B, 2)]
    assert not groups.at_rest
    groups.merged(e.GroupMerged(A, 2))
    groups.not_merged(e.GroupNotMerged(B, "1 of 2", too_few=True), 0.0)
    due(groups, 0.0, leaving=True)
    assert groups.at_rest  # /exps/c has a run that goes on
    assert groups.pending() == {"/exps/c": None}


def test_one_that_has_nothing_else_to_do_waits_for_no_further_seed() -> None:
    groups = groups_of()
    run(groups, A, "1", "2")
    due(groups, 0.0)
    assert not groups.at_work  # it may become bored
    assert groups.hurry()
    assert due(groups, 1.0) == [(A, 2)]
    assert groups.at_work
    groups.merged(e.GroupMerged(A, 2))
    assert groups.at_work  # the meta log is next
    assert metas(groups, 1.0) == ["/exps"]
    assert groups.at_work
    groups.refreshed(e.MetaRefreshed("/exps"), 1.0)
    groups.due(1.0, leaving=False)
    assert not groups.at_work
    run(groups, A, "3")
    assert due(groups, 1.0) == []  # it was meant for that one time


def test_a_meta_log_that_rests_is_written_before_an_idle_daemon_leaves() -> None:
    groups = groups_of()
    merge_now(groups, A)
    assert metas(groups, 0.0) == ["/exps"]
    groups.refreshed(e.MetaRefreshed("/exps", took=1.0), 0.0)
    merge_now(groups, B)
    assert metas(groups, 1.0) == []
    assert not groups.at_work
    assert not groups.at_rest
    assert groups.hurry()
    assert metas(groups, 1.0) == ["/exps"]


def test_there_is_no_hurry_where_nothing_waits() -> None:
    groups = groups_of()
    run(groups, A, "1", expected=1)
    due(groups, 0.0)
    groups.merged(e.GroupMerged(A, 1))
    assert not groups.hurry()


@pytest.mark.parametrize("retry", [False, True])
def test_what_failed_is_no_reason_to_hurry(retry: bool) -> None:
    groups = groups_of()
    run(groups, A, "1", expected=1)
    due(groups, 0.0)
    groups.not_merged(e.GroupNotMerged(A, "no room", retry=retry), 0.0)
    groups.due(0.0, leaving=False)
    assert not groups.hurry()
    run(groups, A, "2")
    assert groups.hurry()  # another one has ended since


# --- failures -------------------------------------------------------------------------------------
def test_a_failure_that_may_pass_is_followed_by_another_attempt_ever_later() -> None:
    groups = groups_of()
    run(groups, A, "1", expected=1)
    now, waits = 1000.0, []
    for _ in range(8):
        assert due(groups, now) == [(A, 1)]
        assert report(groups)["state"] == WAITING
        begin(groups)
        assert report(groups)["state"] == MERGING
        groups.not_merged(e.GroupNotMerged(A, "no room", retry=True), now)
        assert due(groups, now) == []
        assert (report(groups)["state"], report(groups)["why"]) == (FAILED, "no room")
        waits.append(groups.next_due() - now)
        now = groups.next_due()
    assert waits[0] == RETRY_FIRST_S
    assert waits == sorted(waits)
    assert waits[-1] == RETRY_MOST_S
    assert due(groups, now) == [(A, 1)]
    groups.merged(e.GroupMerged(A, 1))
    assert (report(groups)["state"], report(groups)["why"]) == (MERGED, "")
    assert groups.next_due() == NEVER


def test_what_failed_is_tried_again_before_a_daemon_leaves() -> None:
    groups = groups_of()
    run(groups, A, "1", expected=1)
    due(groups, 0.0)
    groups.not_merged(e.GroupNotMerged(A, "no room", retry=True), 0.0)
    assert due(groups, 0.1) == []
    assert due(groups, 0.2, leaving=True) == [(A, 1)]
    assert groups.undone() == [A]
    groups.not_merged(e.GroupNotMerged(A, "no room", retry=True), 0.3)
    assert due(groups, 0.4, leaving=True) == []
    assert not groups.at_rest  # what was in the way may be gone in a moment
    assert groups.next_due() == 0.3 + RETRY_FIRST_S
    assert due(groups, 2.4, leaving=True) == [(A, 1)]
    groups.not_merged(e.GroupNotMerged(A, "no room", retry=True), 2.5)
    assert due(groups, 2.6, leaving=True) == []
    assert groups.at_rest
    assert groups.undone() == [A]


def test_a_daemon_that_leaves_has_no_reason_to_wake_up_for_what_it_will_not_merge() -> None:
    groups = groups_of(merge=EVERY, merge_every_s=1.0)
    groups.began(A, "1", None)
    run(groups, A, "2")
    groups.due(0.0, leaving=True)
    groups.due(9.0, leaving=True)
    assert groups.next_due() == NEVER


def test_a_seed_that_ends_after_a_failure_is_a_reason_to_try_at_once() -> None:
    groups = groups_of()
    run(groups, A, "1", expected=1)
    due(groups, 0.0)
    groups.not_merged(e.GroupNotMerged(A, "no room", retry=True), 0.0)
    run(groups, A, "2", expected=1)
    assert due(groups, 0.0) == [(A, 1)]


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("leaving", [False, True])
def test_a_merge_that_fails_keeps_no_daemon_from_leaving(retry: bool, leaving: bool) -> None:
    groups = groups_of()
    run(groups, A, "1", expected=1)
    due(groups, 0.0)
    groups.not_merged(e.GroupNotMerged(A, "why", retry=retry), 0.0)
    for attempt in range(4):
        now = attempt * RETRY_FIRST_S if leaving else 0.0
        for _ in due(groups, now, leaving=leaving):
            groups.not_merged(e.GroupNotMerged(A, "why", retry=retry), now)
    assert groups.at_rest
    assert groups.pending() == ({A: 1} if retry else {})
    assert (groups.next_due() == NEVER) is not retry


def test_what_was_left_out_of_a_merge_is_told() -> None:
    groups = groups_of()
    run(groups, A, "1", "2", expected=2)
    due(groups, 0.0)
    groups.merged(e.GroupMerged(A, 1, "log_2.hdf5: damaged"))
    line = report(groups)
    assert (line["state"], line["merged"], line["why"]) == (FAILED, 1, "log_2.hdf5: damaged")
    assert metas(groups, 0.0) == []
    assert groups.at_rest


def test_a_group_whose_folder_is_gone_is_forgotten_unless_it_goes_on() -> None:
    groups = groups_of()
    run(groups, A, "1", expected=1)
    due(groups, 0.0)
    groups.not_merged(e.GroupNotMerged(A, "no such folder", gone=True), 0.0)
    assert groups.reports() == []
    run(groups, A, "1", expected=1)
    due(groups, 0.0)
    groups.began(A, "2", 1)
    groups.not_merged(e.GroupNotMerged(A, "no such folder", gone=True), 0.0)
    assert report(groups)["running"] == 1


# --- the meta log ---------------------------------------------------------------------------------
def merge_now(groups: Groups, directory: str, now: float = 0.0) -> None:
    run(groups, directory, "1", expected=1)
    assert due(groups, now) == [(directory, 1)]
    groups.merged(e.GroupMerged(directory, 1))


def test_a_meta_log_is_refreshed_when_every_configuration_of_its_folder_is_merged() -> None:
    groups = groups_of()
    groups.began(B, "1", 1)
    groups.began("/exps/other/c", "1", 1)
    merge_now(groups, A)
    assert metas(groups, 0.0) == []
    groups.ended(B, "1", "finished")
    assert due(groups, 0.0) == [(B, 1)]
    groups.merged(e.GroupMerged(B, 1))
    assert metas(groups, 0.0) == ["/exps"]
    assert metas(groups, 0.0) == []
    groups.refreshed(e.MetaRefreshed("/exps"), 0.0)
    assert metas(groups, 1e9) == []
    groups.ended("/exps/other/c", "1", "finished")
    due(groups, 0.0)
    groups.merged(e.GroupMerged("/exps/other/c", 1))
    assert metas(groups, 0.0) == ["/exps/other"]


def test_what_is_merged_while_a_meta_log_is_written_is_written_once_more() -> None:
    groups = groups_of()
    merge_now(groups, A)
    assert metas(groups, 0.0) == ["/exps"]
    merge_now(groups, B)
    assert metas(groups, 0.0) == []
    groups.refreshed(e.MetaRefreshed("/exps"), 0.0)
    assert metas(groups, 0.0) == ["/exps"]


def test_meta_logs_take_a_bounded_share_of_the_time() -> None:
    groups = groups_of()
    merge_now(groups, A)
    assert metas(groups, 100.0) == ["/exps"]
    groups.refreshed(e.MetaRefreshed("/exps", took=3.0), 103.0)
    merge_now(groups, B)
    assert metas(groups, 104.0) == []
    assert not groups.at_rest  # a daemon that nobody needs stays for it
    assert groups.next_due() == 103.0 + 3.0 * REFRESH_REST
    assert metas(groups, groups.next_due()) == ["/exps"]
    assert groups.next_due() == NEVER


def test_a_daemon_that_leaves_writes_its_meta_logs_at_once() -> None:
    groups = groups_of()
    merge_now(groups, A)
    assert metas(groups, 100.0) == ["/exps"]
    groups.refreshed(e.MetaRefreshed("/exps", took=3.0), 103.0)
    merge_now(groups, B)
    assert metas(groups, 104.0) == []
    (job,) = groups.due(104.0, leaving=True)
    assert job == e.RefreshMeta("/exps")


def test_a_run_without_a_seed_is_waited_for_by_nobody() -> None:
    groups = groups_of()
    run(groups, A, layout.NO_SEED)
    assert (due(groups, 0.0), groups.next_due()) == ([], NEVER)
    assert report(groups)["state"] == SINGLE
    groups.refreshed(e.MetaRefreshed("/exps"), 0.0)
    assert groups.at_rest


def test_a_run_without_a_seed_is_in_the_meta_log() -> None:
    groups = groups_of()
    run(groups, A, layout.NO_SEED)
    assert metas(groups, 0.0) == ["/exps"]


def test_runs_without_a_seed_that_were_said_to_be_several_are_merged() -> None:
    groups = groups_of()
    run(groups, A, layout.NO_SEED, f"{layout.NO_SEED}_dup2", expected=2)
    assert due(groups, 0.0) == [(A, 2)]


def test_a_meta_log_that_could_not_be_written_is_tried_again_when_something_ends() -> None:
    groups = groups_of()
    merge_now(groups, A)
    assert metas(groups, 0.0) == ["/exps"]
    groups.refreshed(e.MetaRefreshed("/exps", "no room"), 0.0)
    for now in (0.0, 1e9):
        assert metas(groups, now) == []  # no spinning
    assert groups.at_rest
    groups.began(B, "1", 1)
    groups.left(B)
    assert metas(groups, 0.0) == ["/exps"]


@pytest.mark.parametrize("outcome", ["refused", "single", "gone"])
def test_what_has_nothing_to_merge_does_not_keep_a_meta_log_back(outcome: str) -> None:
    groups = groups_of(merge_settle_s=0.0)
    groups.began(B, "1", None)
    if outcome == "refused":
        groups.left(B)
    else:
        groups.ended(B, "1", "finished")
        assert due(groups, 0.0) == [(B, 2)]
        groups.not_merged(
            e.GroupNotMerged(B, "", too_few=outcome == "single", gone=outcome == "gone"), 0.0
        )
    merge_now(groups, A)
    assert metas(groups, 0.0) == ["/exps"]


def test_the_root_itself_has_no_meta_log() -> None:
    groups = groups_of()
    merge_now(groups, "/exps")
    assert metas(groups, 0.0) == []


# --- what survives --------------------------------------------------------------------------------
def test_a_group_is_in_the_journal_from_the_end_of_a_run_until_all_of_it_is_merged() -> None:
    groups = groups_of()
    groups.began(A, "1", 1)
    assert groups.pending() == {}
    groups.ended(A, "1", "finished")
    assert groups.pending() == {A: 1}
    due(groups, 0.0)
    assert groups.pending() == {A: 1}
    groups.merged(e.GroupMerged(A, 1))
    assert groups.pending() == {}
    assert groups.pending_meta_logs() == ["/exps"]  # a kill would leave it behind
    assert metas(groups, 0.0) == ["/exps"]
    assert groups.pending_meta_logs() == ["/exps"]
    groups.refreshed(e.MetaRefreshed("/exps"), 0.0)
    assert groups.pending_meta_logs() == []


@pytest.mark.parametrize(("expected", "soonest"), [(2, 0.0), (None, SETTLE)])
def test_what_an_earlier_daemon_left_is_merged(expected: int | None, soonest: float) -> None:
    groups = groups_of()
    groups.restore(A, expected)
    assert groups.pending() == {A: expected}
    assert [now for now in (0.0, SETTLE) if due(groups, now)] == [soonest]


def test_old_groups_are_forgotten_but_none_that_something_is_to_be_done_for() -> None:
    groups = groups_of(recent_runs=3)
    groups.began("/exps/live", "1", 1)
    run(groups, "/exps/waiting", "1")
    for i in range(50):
        directory = f"/exps/{i}"
        run(groups, directory, "1", expected=1)
        due(groups, 0.0)
        groups.merged(e.GroupMerged(directory, 1))
        groups.refreshed(e.MetaRefreshed("/exps"), 0.0)
        assert len(groups.reports()) <= 6
    names = [line["directory"] for line in groups.reports()]
    assert {"/exps/live", "/exps/waiting", "/exps/49"} <= set(names)


def test_what_was_forgotten_does_not_keep_a_meta_log_back() -> None:
    groups = groups_of(recent_runs=3)
    for i in range(9):
        run(groups, f"/exps/{i}", "1", expected=2)
        due(groups, 0.0)
        groups.not_merged(e.GroupNotMerged(f"/exps/{i}", "1 of 2", too_few=True), 0.0)
    due(groups, 0.0)
    found: list[str] = []
    for i in range(9):
        merge_now(groups, f"/exps/good{i}")
        found += metas(groups, 0.0)
    assert found[:1] == ["/exps"]


@pytest.mark.parametrize("count", [10, 1_000])
def test_a_round_in_which_nothing_is_due_looks_at_no_group(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    groups = groups_of()
    for i in range(count):
        run(groups, f"/exps/{i}", "1", "2")
    due(groups, 0.0)
    looks: list[object] = []
    monkeypatch.setattr(Groups, "_due_at", lambda *_: looks.append(1) or NEVER)
    for _ in range(5):
        assert due(groups, SETTLE - 1) == []
        assert groups.next_due() == SETTLE
    assert looks == []


# --- status ---------------------------------------------------------------------------------------
def test_what_is_told_of_a_group() -> None:
    groups = groups_of()
    groups.began(A, "1", 4)
    assert groups.reports() == [
        {
            "directory": A, "expected": 4, "running": 1, "finished": 0, "crashed": 0, "merged": 0,
            "state": WAITING, "why": "",
        }
    ]  # fmt: skip
    groups.ended(A, "1", "crashed")
    for seed in ("2", "3", "4"):
        run(groups, A, seed, expected=4)
    due(groups, 0.0)
    begin(groups)
    assert report(groups)["state"] == MERGING
    groups.merged(e.GroupMerged(A, 4))
    line = report(groups)
    assert [line[name] for name in ("finished", "crashed", "merged")] == [3, 1, 4]
    assert line["state"] == MERGED


def test_of_several_groups_that_are_to_be_merged_one_is_being_merged() -> None:
    groups = groups_of()
    for directory in (A, B):
        run(groups, directory, "1", expected=1)
    assert len(due(groups, 0.0)) == 2
    begin(groups, B)
    assert [report(groups, each)["state"] for each in (A, B)] == [WAITING, MERGING]


def counts(groups: Groups) -> tuple[int, int, int]:
    line = report(groups)
    return line["finished"], line["crashed"], line["merged"]


def test_seeds_of_earlier_daemons_are_counted_as_their_logs_say() -> None:
    groups = groups_of()
    run(groups, A, "4")  # late
    due(groups, 0.0)
    due(groups, SETTLE)
    states = {"1": "finished", "2": "crashed", "3": "finished", "4": "finished"}
    groups.merged(e.GroupMerged(A, 4, "", states))
    assert counts(groups) == (3, 1, 4)
    groups.began(A, "2", None)  # it goes on
    assert (counts(groups), report(groups)["state"]) == ((3, 0, 4), WAITING)


def test_a_seed_that_began_again_while_its_group_was_merged_has_not_ended() -> None:
    groups = groups_of()
    run(groups, A, "1", "2", expected=2)
    due(groups, 0.0)
    groups.began(A, "1", 2)
    groups.merged(e.GroupMerged(A, 2, "", {"1": "finished", "2": "finished"}))
    assert (counts(groups), report(groups)["running"]) == ((1, 0, 2), 1)


def test_what_a_killed_daemon_left_is_counted_when_it_is_merged() -> None:
    groups = groups_of()
    groups.restore(A, 2)
    due(groups, 0.0)
    groups.merged(e.GroupMerged(A, 2, "", {"1": "finished", "2": "crashed"}))
    assert counts(groups) == (1, 1, 2)
    assert report(groups)["state"] == MERGED


def test_a_group_of_which_seeds_are_missing_is_never_merged_and_keeps_the_meta_log_back() -> None:
    groups = groups_of(merge=EVERY, merge_every_s=5.0)
    groups.began(A, "3", 3)
    run(groups, A, "1", "2", expected=3)
    assert due(groups, 0.0) == [(A, 1)]
    groups.merged(e.GroupMerged(A, 2, "", {"1": "finished", "2": "finished"}))
    assert report(groups)["state"] == WAITING
    assert groups.due(0.0, leaving=False) == []
    assert groups.pending_meta_logs() == ["/exps"]
    groups.left(A)
    assert report(groups)["state"] == INCOMPLETE
    assert metas(groups, 0.0) == []
    assert groups.pending_meta_logs() == []
    run(groups, A, "3", expected=3)
    due(groups, 5.0)
    groups.merged(e.GroupMerged(A, 3, "", dict.fromkeys("123", "finished")))
    assert report(groups)["state"] == MERGED
    assert metas(groups, 5.0) == ["/exps"]


@pytest.mark.parametrize("expected", [None, 3])
def test_a_late_seed_beside_a_file_of_the_others_is_no_single_one(expected: int | None) -> None:
    groups = groups_of(merge_settle_s=0.0)
    run(groups, A, "3", expected=expected)
    due(groups, 0.0)
    few = e.GroupNotMerged(
        A, "1 of 2", too_few=True, seeds=2, states=dict.fromkeys("123", "finished")
    )
    groups.not_merged(few, 0.0)
    assert (report(groups)["state"], counts(groups)) == (INCOMPLETE, (3, 0, 2))
    assert "merge_seed_logs" in report(groups)["why"]
    assert metas(groups, 0.0) == ["/exps"]  # which has them all


def test_seeds_that_are_merged_under_another_name_are_merged() -> None:
    groups = groups_of()
    run(groups, A, "1", "2", expected=2)
    due(groups, 0.0)
    few = e.GroupNotMerged(
        A, "0 of 2", too_few=True, seeds=2, states=dict.fromkeys("12", "finished")
    )
    groups.not_merged(few, 0.0)
    assert (report(groups)["state"], report(groups)["why"]) == (MERGED, "")


# --- whatever happens -----------------------------------------------------------------------------
@st.composite
def lives(draw: st.DrawFn) -> list[tuple[str, str, str]]:
    """What happens to seeds of two groups, in order."""
    steps = st.tuples(st.sampled_from([A, B]), st.sampled_from("123"), st.sampled_from("bel"))
    return draw(st.lists(steps, max_size=30))


@given(lives(), st.sampled_from([ON_FINISH, EVERY]), st.sampled_from([None, 2]))
def test_every_group_with_a_run_that_ended_is_merged_in_the_end_and_none_twice_at_once(
    life: list[tuple[str, str, str]], merge: str, expected: int | None
) -> None:
    groups = groups_of(merge=merge, merge_every_s=5.0)
    running: dict[str, list[str]] = {A: [], B: []}
    behind: set[str] = set()
    merging: set[str] = set()
    now = 0.0

    def look() -> None:
        for directory, _ in due(groups, now):
            assert directory not in merging
            assert directory in behind
            merging.add(directory)
            behind.discard(directory)

    for directory, seed, what in life:
        now += 1.0
        if what == "b":
            groups.began(directory, seed, expected)
            running[directory].append(seed)
        elif running[directory]:
            ended = running[directory].pop()
            if what == "e":
                groups.ended(directory, ended, "finished")
                behind.add(directory)
            else:
                groups.left(directory)
        look()
        for directory in sorted(merging)[:1]:
            groups.merged(e.GroupMerged(directory, 1))
            merging.discard(directory)
    for directory, seeds in running.items():
        for seed in seeds:
            groups.ended(directory, seed, "finished")
            behind.add(directory)
    for _ in range(10):
        look()
        for directory in sorted(merging):
            groups.merged(e.GroupMerged(directory, 1))
        merging.clear()
        now = max(now, min(groups.next_due(), 1e6))
    assert behind == set()
    assert groups.pending().keys() <= {A, B}
