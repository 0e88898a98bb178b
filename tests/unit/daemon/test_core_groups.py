"""Merging as part of a daemon's life: when runs end, when it leaves, and after it was killed."""

from __future__ import annotations

from typing import Any

import pytest

from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon.merge_attempts import RETRY_FIRST_S
from tests.daemon_rig import ANNA, BERT, ROOT, Rig, Trainer, dones, make_run, only

EXP = f"{ROOT}/exp"


@pytest.fixture
def rig() -> Rig:
    """A daemon that merges when all seeds have ended."""
    return Rig(merge="on-finish")


def seed(name: str, num_seeds: int | None = None, **changes: Any) -> Trainer:
    """A trainer of one seed, named like it."""
    return Trainer(name, make_run(name, name, num_seeds=num_seeds, **changes))


def end(rig: Rig, *trainers: Trainer) -> None:
    """Let trainers log a tick and end, and have their files sealed."""
    for trainer in trainers:
        rig.take(ANNA, trainer.log(1).end().data())
    settle_files(rig)


def settle_files(rig: Rig) -> None:
    for _ in range(4):
        rig.tick()
        rig.work()
    rig.tick()


def group(rig: Rig, directory: str = EXP) -> dict[str, Any]:
    (line,) = [each for each in rig.core.group_reports() if each["directory"] == directory]
    return line


# --- runs end -------------------------------------------------------------------------------------
def test_seeds_are_merged_when_all_have_ended_and_their_files_have_their_final_form(
    rig: Rig,
) -> None:
    two = seed("2", 2).log(1)
    rig.take(ANNA, two.data())
    end(rig, seed("1", 2))
    assert rig.merges == []
    rig.take(ANNA, two.end().data())
    rig.tick()
    assert rig.merges == []  # it is not published yet
    settle_files(rig)
    assert rig.merges == [e.MergeGroup(EXP, 2, keep_seed_logs=False)]
    assert group(rig)["state"] == "waiting"
    rig.deliver(e.MergeBegun(rig.merges[0]))
    assert group(rig)["state"] == "merging"
    assert rig.merge() == [EXP]
    line = group(rig)
    assert (line["state"], line["expected"], line["merged"]) == ("merged", 2, 2)
    assert rig.merge() == [ROOT]  # the meta log
    rig.tick()
    assert (rig.merges, rig.core.idle, rig.core.is_empty) == ([], True, True)


def test_the_daemon_wakes_up_for_seeds_whose_number_nobody_said(rig: Rig) -> None:
    end(rig, seed("1"), seed("2"))
    assert rig.merges == []
    assert rig.core.next_due() == rig.now + rig.config.merge_settle_s
    rig.tick(rig.config.merge_settle_s)
    assert rig.merge() == [EXP]


def test_an_idle_daemon_merges_before_it_leaves_and_takes_clients_meanwhile(rig: Rig) -> None:
    end(rig, seed("1"), seed("2"))
    assert rig.core.idle
    rig.deliver(e.StopAsked(idle=True))
    rig.tick()
    assert rig.merges == [e.MergeGroup(EXP, 2, keep_seed_logs=False)]
    assert (rig.left, rig.core.stopping, rig.core.idle) == (None, None, False)
    rig.take(ANNA, seed("3").log(1).data())
    assert not any(isinstance(answer, m.Leaving) for answer in rig.answers(ANNA))
    rig.merge()
    rig.merge()
    assert not rig.core.idle  # "3" goes on


def test_an_idle_daemon_leaves_when_it_has_merged(rig: Rig) -> None:
    end(rig, seed("1"), seed("2"))
    for _ in range(2):
        rig.deliver(e.StopAsked(idle=True))
        rig.tick()
        rig.merge()
        rig.merge()
    rig.tick()
    assert rig.left == e.Leave(asked=False)
    assert rig.core.is_empty


def test_a_crashed_seed_counts(rig: Rig) -> None:
    one, two = seed("1", 2), seed("2", 2).log(1)
    end(rig, one)
    rig.take(ANNA, two.data())
    rig.deliver(e.ProducerGone(two.id))
    settle_files(rig)
    assert rig.merge() == [EXP]
    assert (group(rig)["finished"], group(rig)["crashed"]) == (1, 1)


def test_a_run_that_is_refused_is_not_waited_for(rig: Rig) -> None:
    rig.open_error = ("it lies outside", True)
    other = seed("other", 1, directory=f"{ROOT}/refused")
    rig.take(ANNA, other.log(1).data())
    rig.open_error = None
    end(rig, seed("1", 1))
    assert [line["directory"] for line in rig.core.group_reports()] == [EXP]
    assert (rig.merge(), rig.merge()) == ([EXP], [ROOT])


def test_what_could_not_be_merged_is_logged_once(rig: Rig) -> None:
    end(rig, seed("1", 1))
    rig.logged.clear()
    rig.merge("no room", retry=True)
    assert rig.logged == ["not merged: no room"]
    assert (group(rig)["state"], group(rig)["why"]) == ("failed", "no room")
    rig.tick()
    assert rig.merges == []
    rig.tick(100.0)
    rig.logged.clear()
    rig.merge("1 of 2", too_few=True)
    assert rig.logged == []
    assert rig.core.is_empty


# --- leaving --------------------------------------------------------------------------------------
def test_a_stop_merges_what_has_ended_before_it_answers(rig: Rig) -> None:
    end(rig, seed("1"), seed("2"))
    rig.take(ANNA, m.Stop(7))
    assert rig.merges == [e.MergeGroup(EXP, 2, keep_seed_logs=False)]
    assert (rig.left, dones(rig.answers(ANNA))) == (None, [])
    rig.merge()
    assert rig.merge() == [ROOT]
    rig.tick()
    assert rig.left == e.Leave(asked=True)
    assert dones(rig.answers(ANNA)) == [(7, "")]


def test_a_stop_does_not_wait_for_a_merge_for_ever(rig: Rig) -> None:
    end(rig, seed("1", 1))
    rig.deliver(e.PatienceEnded())
    assert rig.left is None  # nobody has asked it to leave
    rig.take(ANNA, m.Stop(7))
    assert (rig.left, dones(rig.answers(ANNA))) == (None, [])
    rig.take(BERT, m.Stop(8))
    rig.deliver(e.PatienceEnded())
    assert rig.left == e.Leave(asked=True)
    ((token, said),) = dones(rig.answers(ANNA))
    assert token == 7
    assert said.startswith("1 merge is left (exp): the next start does that")
    assert dones(rig.answers(BERT)) == [(8, said)]
    assert not rig.core.is_empty
    rig.start()
    assert rig.merges == [e.MergeGroup(EXP, 1, keep_seed_logs=False)]


def test_a_stop_does_not_wait_for_a_group_that_goes_on_and_the_next_daemon_merges_it(
    rig: Rig,
) -> None:
    live = seed("2", 2).log(1)
    rig.take(ANNA, live.data())
    end(rig, seed("1", 2))
    rig.take(ANNA, m.Stop(7))
    settle_files(rig)
    assert (rig.merges, rig.left) == ([], e.Leave(asked=True))
    rig.start()
    rig.take(ANNA, live.end().data())
    settle_files(rig)
    assert rig.merge() == [EXP]


@pytest.mark.parametrize("retry", [False, True])
def test_a_merge_that_fails_keeps_nobody_from_leaving(rig: Rig, retry: bool) -> None:
    end(rig, seed("1", 1))
    rig.merge("no room", retry=retry)
    assert rig.core.idle
    assert rig.core.is_empty is not retry
    rig.deliver(e.StopAsked(idle=True))
    rig.tick()
    for _ in range(2 * retry):
        assert rig.merges
        assert rig.left is None
        rig.merge("no room", retry=retry)
        rig.tick(RETRY_FIRST_S)
    assert rig.left == e.Leave(asked=False)
    if rig.core.is_empty:
        rig.segments.clear()  # as the daemon does at its end
    rig.start()  # what may pass is tried again
    rig.tick()
    assert bool(rig.merges) is retry


# --- killed ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("moment", ["pending", "merging", "refreshing"])
def test_a_daemon_that_is_killed_before_it_has_merged_is_followed_by_one_that_does(
    rig: Rig, moment: str, rotated: bool
) -> None:
    end(rig, seed("1", 2), seed("2", 2))
    if moment == "refreshing":
        assert rig.merge() == [EXP]
    assert len(rig.merges) == 1
    if rotated:
        rig.rotate()
        rig.tick()
    rig.start()
    if moment == "refreshing" and rotated:
        assert rig.merge() == [ROOT]
    else:
        assert rig.merges == [e.MergeGroup(EXP, 2, keep_seed_logs=False)]
        assert (rig.merge(), rig.merge()) == ([EXP], [ROOT])
    rig.rotate()
    rig.tick()
    assert rig.core.is_empty


@pytest.mark.parametrize("moment", ["failed", "resting"])
def test_a_meta_log_that_is_behind_survives_a_kill(rig: Rig, moment: str) -> None:
    end(rig, seed("1", 1))
    assert rig.merge() == [EXP]
    if moment == "failed":
        assert rig.merge(meta_error="no room") == [ROOT]
    else:
        rig.merges.clear()
        rig.deliver(e.MetaRefreshed(ROOT, took=5.0))
        end(rig, seed("2", 1))
        assert rig.merge() == [EXP]
    rig.tick()
    assert rig.merges == []
    assert (rig.core.idle, rig.core.is_empty) == (True, False)  # its journal is to stay
    rig.rotate()
    rig.tick()
    rig.start()
    assert rig.merges == [e.RefreshMeta(ROOT)]
    rig.merge()
    rig.tick()
    assert rig.core.is_empty


def test_a_meta_log_that_failed_is_tried_again_and_by_a_stop_too(rig: Rig) -> None:
    end(rig, seed("1", 1))
    rig.merge()
    rig.logged.clear()
    assert rig.merge(meta_error="no room") == [ROOT]
    assert rig.logged == ["the meta log is not refreshed: no room"]
    assert rig.core.meta_log_reports() == [{"directory": ROOT, "state": "failed", "why": "no room"}]
    assert rig.core.next_due() > rig.now
    rig.tick(rig.core.next_due() - rig.now)
    assert rig.merge(meta_error="no room") == [ROOT]
    rig.take(ANNA, m.Stop(7))
    for _ in range(2):
        assert rig.left is None
        assert rig.merge(meta_error="no room") == [ROOT]
        rig.tick(min(10.0, rig.core.next_due() - rig.now))
    assert rig.left == e.Leave(asked=True)
    ((_, said),) = dones(rig.answers(ANNA))
    assert said.startswith("1 merge is left (meta_log.hdf5)")


def test_many_merges_that_are_left_are_counted(rig: Rig) -> None:
    for i in range(7):
        end(rig, seed(str(i), 1, directory=f"{ROOT}/{i}"))
    rig.take(ANNA, m.Stop(7))
    rig.deliver(e.PatienceEnded())
    ((_, said),) = dones(rig.answers(ANNA))
    assert said.startswith("7 merges are left (0, 1, 2, 3, 4, …): ")


# --- a daemon that leaves -------------------------------------------------------------------------
def test_a_stop_that_comes_when_it_has_left_is_answered_too(rig: Rig) -> None:
    end(rig, seed("1", 1))
    rig.take(ANNA, m.Stop(7))
    rig.deliver(e.PatienceEnded())
    rig.receive(BERT, m.Stop(8))
    ((_, said),) = dones(rig.answers(ANNA))
    assert dones(rig.answers(BERT)) == [(8, said)]


def test_one_that_is_leaving_tells_so_to_those_who_want_to_log_and_refuses_other_versions(
    rig: Rig,
) -> None:
    end(rig, seed("1", 1))
    rig.take(ANNA, m.Stop(7))
    rig.take(BERT, m.Hello(m.PROTOCOL_VERSION, 1, "here"))
    assert rig.answers(BERT) == [m.Leaving()]
    rig.take(BERT, m.Hello(m.PROTOCOL_VERSION + 1, 1, "here"))
    (answer,) = rig.answers(BERT)
    assert isinstance(answer, m.Refused)


def test_what_is_merged_is_not_looked_at_again_once_the_journal_has_moved_on(rig: Rig) -> None:
    end(rig, seed("1", 2), seed("2", 2))
    rig.merge()
    rig.merge()
    rig.rotate()
    rig.tick()
    rig.start()
    rig.tick(1e6)
    assert rig.merges == []


def test_a_daemon_killed_while_it_waits_for_further_seeds_is_followed_by_one_that_merges(
    rig: Rig,
) -> None:
    end(rig, seed("1"), seed("2"))
    rig.start()
    assert rig.merges == []
    rig.tick(rig.config.merge_settle_s)
    assert rig.merge() == [EXP]


def test_a_run_that_an_earlier_daemon_knew_is_waited_for(rig: Rig) -> None:
    live = seed("2", 2).log(1)
    rig.take(ANNA, live.data())
    end(rig, seed("1", 2))
    rig.start()
    rig.tick(1e6)
    assert rig.merges == []
    assert group(rig)["running"] == 1
    rig.take(ANNA, live.end().data())
    settle_files(rig)
    assert rig.merge() == [EXP]


# --- going on -------------------------------------------------------------------------------------
def test_a_seed_that_goes_on_after_it_was_merged_is_merged_again(rig: Rig) -> None:
    end(rig, seed("1", 2), seed("2", 2))
    rig.merge()
    rig.merge()
    again = Trainer("again", make_run("again", "1", reload=True, num_seeds=2)).log(2)
    rig.take(ANNA, again.data())
    assert group(rig)["running"] == 1
    rig.take(ANNA, again.end().data())
    settle_files(rig)
    assert only(list(rig.merges), e.MergeGroup) == [e.MergeGroup(EXP, 2, keep_seed_logs=False)]


@pytest.mark.parametrize(
    ("changes", "job"),
    [
        ({"merge": "every", "merge_every_s": 5.0}, e.MergeGroup(EXP, 1, keep_seed_logs=False)),
        ({"keep_seed_logs": True}, e.MergeGroup(EXP, 1, keep_seed_logs=True)),
        ({"merge": "off"}, None),
    ],
)
def test_settings_decide(changes: dict[str, Any], job: e.MergeGroup | None) -> None:
    rig = Rig(**{"merge": "on-finish", **changes})
    end(rig, seed("1", 1))
    assert rig.merges == ([job] if job else [])
