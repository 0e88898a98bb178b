"""The merging process, whatever it does, is answered for, and never outlives its daemon."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mle_daemon import events as e
from mle_daemon import merger as module
from mle_daemon.merger import Job, Merger
from tests.seed_logs import losses, write_log

SOON_S = 20.0
STATES = {"seed_1": "crashed"}

# Stands in for `mle_daemon.merge_process`: the name of a job's folder says what it does with it.
PROGRAM = """
import json, os, signal, sys, time
for line in sys.stdin:
    job = json.loads(line)
    what = os.path.basename(job.get("folder") or job["configurations_in"])
    answer = {"seeds": 2, "left_out": [], "states": {"seed_1": "crashed"}}
    match what:
        case "dies":
            sys.exit("out of memory")
        case "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "spins":
            while True:
                pass
        case "works":
            for _ in range(40):
                open("/dev/null").read()
                time.sleep(0.02)
        case "babbles":
            answer = "no"
        case "stutters":
            answer = {}
        case "leaves out":
            answer["left_out"] = ["log_1: damaged", "log_2: too"]
        case "few" | "gone" | "full":
            key = {"few": "too_few", "gone": "gone", "full": "retry"}[what]
            answer = {"error": what, key: True}
            if what == "few":
                answer |= {"seeds": 1, "states": {"seed_1": "crashed"}}
        case "tells":
            answer["seeds"] = os.getpid()
    print("{" if what == "mumbles" else json.dumps(answer), flush=True)
"""


class Desk:
    """A merger with its outcomes."""

    def __init__(self) -> None:
        self.outcomes: list[e.Event] = []
        self.begun: list[Job] = []
        self.changed = threading.Condition()
        self._others = set(psutil.Process().children())  # of earlier tests: helpers that stay
        self.merger = Merger(self.deliver, "/")

    def processes(self) -> list[psutil.Process]:
        """That merge."""
        return [each for each in psutil.Process().children() if each not in self._others]

    def deliver(self, event: e.Event) -> None:
        if isinstance(event, e.MergeBegun):
            self.begun.append(event.job)
            return
        with self.changed:
            self.outcomes.append(event)
            self.changed.notify_all()

    def wait(self, count: int) -> list[e.Event]:
        """The first outcomes, once there are so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.outcomes) >= count, SOON_S)
            return self.outcomes[:count]

    def do(self, *jobs: Job | str) -> list[e.Event]:
        """Have jobs done, and return what came of them."""
        with self.changed:
            before = len(self.outcomes)
        for job in jobs:
            self.merger.submit(group(job) if isinstance(job, str) else job)
        return self.wait(before + len(jobs))[before:]


def group(name: str) -> e.MergeGroup:
    return e.MergeGroup(f"/exps/{name}", 2, keep_seed_logs=False)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A merger whose process is the one above."""
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-c", PROGRAM))
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(module, "_HUNG_AFTER_S", 0.3)
    desk = Desk()
    yield desk
    desk.merger.stop()


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def failed(event: e.Event) -> e.GroupNotMerged:
    assert isinstance(event, e.GroupNotMerged)
    return event


# --- outcomes -------------------------------------------------------------------------------------
def test_jobs_are_done_one_after_another_by_one_process(desk: Desk) -> None:
    outcomes = desk.do("tells", e.RefreshMeta("/exps"), "tells")
    assert isinstance(outcomes[0], e.GroupMerged)
    assert outcomes[0] == outcomes[2]
    assert outcomes[0].seeds != os.getpid()
    assert outcomes[1] == e.MetaRefreshed("/exps")


def test_what_was_left_out_is_passed_on(desk: Desk) -> None:
    merged, refreshed = desk.do("leaves out", e.RefreshMeta("/exps/leaves out"))
    why = "log_1: damaged; log_2: too"
    assert merged == e.GroupMerged("/exps/leaves out", 2, why, STATES)
    assert refreshed == e.MetaRefreshed("/exps/leaves out", why=why)


def test_why_a_group_is_not_merged_is_passed_on(desk: Desk) -> None:
    few, gone, full, meta = desk.do("few", "gone", "full", e.RefreshMeta("/exps/full"))
    assert few == e.GroupNotMerged("/exps/few", "few", too_few=True, seeds=1, states=STATES)
    assert gone == e.GroupNotMerged("/exps/gone", "gone", gone=True)
    assert full == e.GroupNotMerged("/exps/full", "full", retry=True)
    assert meta == e.MetaRefreshed("/exps/full", "full", retry=True)


def test_a_job_that_waits_for_another_one_has_not_begun(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HUNG_AFTER_S", 1e9)
    desk.merger.submit(group("stops"))
    desk.merger.submit(e.RefreshMeta("/exps"))
    wait_for(lambda: any(each.status() == psutil.STATUS_STOPPED for each in desk.processes()))
    assert desk.begun == [group("stops")]
    desk.processes()[0].kill()
    desk.wait(2)
    assert desk.begun == [group("stops"), e.RefreshMeta("/exps")]


# --- a process that does not do what it should ----------------------------------------------------
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("dies", "ended within the merge: out of memory"),
        ("is killed", "ended within the merge"),
        ("mumbles", "does not run"),
        ("babbles", "does not run"),
        ("stutters", "does not run"),
        ("stops", "has read and written nothing for 0.3 s, and was killed"),
        ("spins", "has read and written nothing for 0.3 s, and was killed"),
    ],
)
def test_a_process_that_fails_is_replaced_and_the_job_may_be_tried_again(
    desk: Desk, what: str, said: str
) -> None:
    outcome, after = desk.do(what, "tells")
    assert said in failed(outcome).error
    assert failed(outcome).retry
    assert isinstance(after, e.GroupMerged)


def test_a_process_that_is_killed_by_somebody_is_replaced(desk: Desk) -> None:
    (before,) = desk.do("tells")
    assert isinstance(before, e.GroupMerged)
    os.kill(before.seeds, signal.SIGKILL)
    psutil.wait_procs(desk.processes())
    outcome, after = desk.do("tells", "tells")
    assert failed(outcome).retry
    assert isinstance(after, e.GroupMerged)
    assert after.seeds != before.seeds


def test_a_job_that_kills_every_process_is_given_up_in_the_end(desk: Desk) -> None:
    outcomes = desk.do(*["dies"] * 3)
    assert [failed(outcome).retry for outcome in outcomes] == [True, True, False]
    assert failed(*desk.do("is killed")).retry  # another one


def test_a_meta_log_that_kills_every_process_is_given_up_too(desk: Desk) -> None:
    outcomes = desk.do(*[e.RefreshMeta("/exps/dies")] * 3)
    assert [each.retry for each in outcomes if isinstance(each, e.MetaRefreshed)] == [
        *(True, True, False)
    ]


def test_deaths_are_counted_in_a_row(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.do("dies", "dies")
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-c", PROGRAM.replace("dies", "x")))
    assert isinstance(desk.do("dies")[0], e.GroupMerged)
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-c", PROGRAM))
    desk.do("is killed")
    assert failed(*desk.do("dies")).retry


def test_a_process_that_works_for_long_is_left_alone(desk: Desk) -> None:
    assert isinstance(desk.do("works")[0], e.GroupMerged)


def test_where_no_process_can_be_started_the_job_fails(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMMAND", ("/nowhere/python",))
    assert "No such file" in failed(*desk.do("tells")).error
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-c", PROGRAM))
    assert isinstance(desk.do("tells")[0], e.GroupMerged)


# --- its end --------------------------------------------------------------------------------------
def test_a_process_without_a_job_ends_after_a_while_and_another_takes_its_place(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REST_S", 0.05)
    (before,) = desk.do("tells")
    assert isinstance(before, e.GroupMerged)
    wait_for(lambda: not psutil.pid_exists(before.seeds))
    (after,) = desk.do("tells")
    assert isinstance(after, e.GroupMerged)
    assert after.seeds != before.seeds


@pytest.mark.parametrize("what", ["stops", "spins"])
def test_a_stop_waits_for_no_job(desk: Desk, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(module, "_HUNG_AFTER_S", 1e9)
    desk.merger.submit(group(what))
    desk.merger.submit(group("tells"))
    wait_for(psutil.Process().children)
    desk.merger.stop()
    outcomes = desk.wait(2)
    assert all(failed(outcome).retry for outcome in outcomes)
    assert desk.processes() == []


# --- the real one ---------------------------------------------------------------------------------
def test_the_real_process_merges(tmp_path: Path) -> None:
    for i in (1, 2):
        write_log(tmp_path / "exp", f"seed_{i}", [float(i)])
    desk = Desk()
    try:
        merged, few, refreshed, gone = desk.do(
            e.MergeGroup(str(tmp_path / "exp"), 2, keep_seed_logs=False),
            e.MergeGroup(str(tmp_path / "exp"), 3, keep_seed_logs=False),
            e.RefreshMeta(str(tmp_path)),
            e.MergeGroup(str(tmp_path / "gone"), 2, keep_seed_logs=False),
        )
        (process,) = desk.processes()
        assert process.nice() == 19
    finally:
        desk.merger.stop()
    states = dict.fromkeys(("seed_1", "seed_2"), "finished")
    assert merged == e.GroupMerged(str(tmp_path / "exp"), 2, "", states)
    assert failed(few).too_few
    assert refreshed == e.MetaRefreshed(str(tmp_path))
    assert failed(gone).gone
    assert losses(tmp_path / "exp/logs/log.hdf5") == {"seed_1": [1.0], "seed_2": [2.0]}
    assert len(losses(tmp_path / "meta_log.hdf5")) == 2
