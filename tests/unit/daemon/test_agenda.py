"""Which runs are looked at in a round."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mle_client.messages import RunId
from mle_daemon.agenda import NEVER, Agenda

A, B = RunId(b"a"), RunId(b"b")


def test_what_is_touched_is_looked_at_once_in_the_order_of_the_events() -> None:
    agenda = Agenda()
    agenda.touch(B)
    agenda.touch(A, B)
    assert agenda.next_at() <= 0.0
    assert agenda.take(5.0) == [B, A]
    assert agenda.take(5.0) == []
    assert agenda.next_at() == NEVER


def test_what_is_put_off_is_looked_at_when_its_time_has_come() -> None:
    agenda = Agenda()
    agenda.put_off(A, 7.0)
    agenda.put_off(B, 6.0)
    assert agenda.next_at() == 6.0
    assert agenda.take(5.9) == []
    assert agenda.take(6.0) == [B]
    assert agenda.next_at() == 7.0
    agenda.put_off(A, NEVER)
    assert agenda.next_at() == NEVER
    assert agenda.take(8.0) == []


def test_the_last_time_counts() -> None:
    agenda = Agenda()
    for at in (7.0, 5.0, 9.0, 6.0):
        agenda.put_off(A, at)
    assert agenda.next_at() == 6.0
    assert agenda.take(5.5) == []
    assert agenda.take(6.0) == [A]
    assert agenda.take(10.0) == []


_STEPS = st.lists(
    st.tuples(st.sampled_from(("touch", "put off", "take")), st.integers(0, 3), st.integers(0, 20))
)


@given(_STEPS)
def test_it_is_as_a_plain_list_of_times(steps: list[tuple[str, int, int]]) -> None:
    agenda, now = Agenda(), 0
    touched: set[RunId] = set()
    times: dict[RunId, float] = {}
    for what, number, time in steps:
        run_id = RunId(bytes([number]))
        if what == "touch":
            agenda.touch(run_id)
            touched.add(run_id)
        elif what == "put off":
            at = NEVER if time == 20 else float(time)
            agenda.put_off(run_id, at)
            times[run_id] = at
        else:
            now = max(now, time)
            due = {each for each, at in times.items() if at <= now}
            assert set(agenda.take(now)) == touched | due
            times = {each: at for each, at in times.items() if each not in due}
            touched.clear()
        if not touched:
            assert agenda.next_at() == min(times.values(), default=NEVER)
