"""After failures that may pass there is another attempt, ever later; and the state in a word."""

from __future__ import annotations

from mle_daemon.merge_attempts import (
    FAILED,
    MERGED,
    MERGING,
    RETRY_FIRST_S,
    RETRY_MOST_S,
    WAITING,
    Attempts,
)


def test_the_waits_after_failures_grow_up_to_a_bound() -> None:
    attempts, waits = Attempts(), []
    for now in range(0, 2000, 200):
        attempts.queue()
        attempts.fail("no room", float(now))
        waits.append(attempts.retry_at - now)
    assert waits[0] == RETRY_FIRST_S
    assert waits[1] == 2 * RETRY_FIRST_S
    assert waits == sorted(waits)
    assert waits[-1] == RETRY_MOST_S


def test_any_other_end_begins_the_count_anew() -> None:
    attempts = Attempts()
    attempts.fail("no room", 0.0)
    attempts.end(MERGED)
    assert (attempts.failures, attempts.retry_at, attempts.why) == (0, 0.0, "")
    attempts.fail("no room", 0.0)
    assert attempts.retry_at == RETRY_FIRST_S


def test_the_state_in_a_word() -> None:
    attempts = Attempts()
    assert attempts.word(waits=False) == WAITING
    attempts.queue()
    assert attempts.word(waits=False) == WAITING
    attempts.begun = True
    assert attempts.word(waits=True) == MERGING
    attempts.fail("no room", 0.0)
    assert attempts.word(waits=True) == FAILED
    attempts.end(MERGED)
    assert [attempts.word(waits=each) for each in (False, True)] == [MERGED, WAITING]
