"""When meta logs are written: soon, not all the time, and again after what passes."""

from __future__ import annotations

import pytest

from mle_daemon import events as e
from mle_daemon.merge_attempts import FAILED, MERGED, MERGING, RETRY_FIRST_S, RETRY_MOST_S, WAITING
from mle_daemon.meta_logs import REFRESH_REST, MetaLogs

FOLDER, OTHER = "/exps/a", "/exps/b"
NEVER = float("inf")


@pytest.fixture
def logs() -> MetaLogs:
    """Those of a daemon that has met none."""
    return MetaLogs(recent=3)


def due(logs: MetaLogs, now: float = 0.0, *, leaving: bool = False) -> list[str]:
    return [job.folder for job in logs.due(now, leaving=leaving)]


def state(logs: MetaLogs) -> tuple[str, str]:
    """That of the only one, and why."""
    (line,) = logs.reports()
    assert line.keys() == {"directory", "state", "why"}
    return line["state"], line["why"]


def fail(logs: MetaLogs, now: float, *, retry: bool = True, took: float = 0.0) -> None:
    logs.refreshed(e.MetaRefreshed(FOLDER, "no room", retry, took=took), now)


def test_what_may_pass_is_tried_again_ever_later_and_told(logs: MetaLogs) -> None:
    logs.fall_behind(FOLDER)
    now, waits = 1000.0, []
    for _ in range(8):
        assert due(logs, now) == [FOLDER]
        assert state(logs) == (WAITING, "")
        logs.begin(FOLDER)
        assert state(logs) == (MERGING, "")
        fail(logs, now)
        assert due(logs, now) == []
        assert state(logs) == (FAILED, "no room")
        assert logs.pending() == [FOLDER]
        waits.append(logs.next_due() - now)
        now = logs.next_due()
    assert waits[0] == RETRY_FIRST_S
    assert waits == sorted(waits)
    assert waits[-1] == RETRY_MOST_S
    assert due(logs, now) == [FOLDER]
    logs.refreshed(e.MetaRefreshed(FOLDER), now)
    assert due(logs, now) == []
    assert state(logs) == (MERGED, "")
    assert (logs.next_due(), logs.pending()) == (NEVER, [])


def test_what_will_not_pass_waits_until_something_changes(logs: MetaLogs) -> None:
    logs.fall_behind(FOLDER)
    due(logs)
    fail(logs, 0.0, retry=False)
    assert [due(logs, now) for now in (0.0, 1e9)] == [[], []]
    assert due(logs, 1e9, leaving=True) == []
    assert (state(logs), logs.next_due()) == ((FAILED, "no room"), NEVER)
    assert (logs.pending(), logs.left()) == ([], [])
    logs.change(FOLDER)
    assert logs.pending() == [FOLDER]
    assert due(logs) == [FOLDER]


@pytest.mark.parametrize("retry", [False, True])
def test_what_is_merged_while_one_fails_is_written_all_the_same(
    logs: MetaLogs, retry: bool
) -> None:
    logs.fall_behind(FOLDER)
    due(logs)
    logs.fall_behind(FOLDER)
    fail(logs, 0.0, retry=retry)
    assert logs.pending() == [FOLDER]
    assert [each for now in (0.0, 100.0) for each in due(logs, now)] == [FOLDER]


def test_one_that_failed_is_tried_again_before_a_daemon_leaves(logs: MetaLogs) -> None:
    logs.fall_behind(FOLDER)
    due(logs)
    fail(logs, 0.0)
    assert due(logs, 0.0) == []
    assert not logs.rest  # it is no reason for an idle daemon to stay
    logs.leaving()
    assert due(logs, 0.1, leaving=True) == [FOLDER]
    fail(logs, 0.1)
    assert due(logs, 0.2, leaving=True) == []
    assert logs.rest
    assert due(logs, 2.2, leaving=True) == [FOLDER]
    fail(logs, 2.3)
    assert due(logs, 2.4, leaving=True) == []
    assert (logs.rest, logs.at_work, logs.left()) == (False, False, [FOLDER])


def test_the_journal_has_it_from_the_merge_of_a_configuration_until_it_is_written(
    logs: MetaLogs,
) -> None:
    logs.note(FOLDER, f"{FOLDER}/x", final=False, settled=False)
    logs.fall_behind(FOLDER)
    assert due(logs) == []
    assert (logs.pending(), logs.left()) == ([FOLDER], [])  # it waits for /exps/a/x
    logs.note(FOLDER, f"{FOLDER}/x", final=True)
    logs.change(FOLDER)
    assert due(logs) == [FOLDER]
    assert logs.pending() == logs.left() == [FOLDER]
    logs.refreshed(e.MetaRefreshed(FOLDER, took=5.0), 0.0)
    assert logs.pending() == []
    logs.fall_behind(FOLDER)
    assert due(logs) == []
    assert logs.next_due() == 5.0 * REFRESH_REST
    assert (logs.pending(), logs.rest) == ([FOLDER], True)


def test_one_that_waits_for_missing_seeds_is_not_written_by_the_next_daemon_before_they_come(
    logs: MetaLogs,
) -> None:
    logs.note(FOLDER, f"{FOLDER}/running", final=False, settled=False)
    logs.note(FOLDER, f"{FOLDER}/incomplete", final=False)
    logs.fall_behind(FOLDER)
    assert (due(logs), state(logs), logs.pending()) == ([], (WAITING, ""), [])
    logs.note(FOLDER, f"{FOLDER}/incomplete", final=True)
    assert logs.pending() == [FOLDER]


def test_what_was_left_out_is_told(logs: MetaLogs) -> None:
    logs.fall_behind(FOLDER)
    due(logs)
    logs.refreshed(e.MetaRefreshed(FOLDER, why="log_1.hdf5: damaged"), 0.0)
    assert due(logs) == []
    assert state(logs) == (FAILED, "log_1.hdf5: damaged")
    assert logs.pending() == []


def test_old_ones_are_forgotten_but_none_that_is_to_be_written(logs: MetaLogs) -> None:
    logs.note(OTHER, f"{OTHER}/x", final=False)
    logs.fall_behind(OTHER)
    for i in range(9):
        folder = f"/exps/{i}"
        logs.fall_behind(folder)
        assert due(logs) == [folder]
        logs.refreshed(e.MetaRefreshed(folder), 0.0)
        due(logs)
    assert [line["directory"] for line in logs.reports()] == [OTHER, "/exps/7", "/exps/8"]
