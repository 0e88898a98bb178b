"""The client's half of delivery, position by position."""

from __future__ import annotations

from mle_client.session import STALL_AFTER_S, Session


def test_after_a_new_connection_everything_unacknowledged_is_sent_again() -> None:
    session = Session()
    session.sent_to(100, now=0.0)
    session.acknowledged(60, ticks=6, published=0, now=0.1)
    session.connected(now=1.0)
    assert session.sent == 60


def test_the_window_bounds_what_is_on_its_way() -> None:
    session = Session()
    session.sent_to(100, now=0.0)
    assert session.may_send(window=150) == 50
    session.acknowledged(100, ticks=1, published=0, now=0.1)
    assert session.may_send(window=150) == 150


def test_old_acknowledgements_change_nothing() -> None:
    session = Session()
    session.sent_to(100, now=0.0)
    session.acknowledged(80, ticks=8, published=50, now=0.1)
    session.acknowledged(40, ticks=4, published=20, now=0.2)
    assert (session.acked, session.ticks, session.published) == (80, 8, 50)


def test_an_acknowledgement_beyond_what_was_sent_counts_as_sent() -> None:
    session = Session()  # the daemon had it from an earlier connection
    session.acknowledged(80, ticks=8, published=0, now=0.0)
    assert session.sent == 80


def test_the_daemon_can_ask_for_an_earlier_position() -> None:
    session = Session()
    session.sent_to(100, now=0.0)
    session.expected(0)
    assert session.sent == 0


def test_a_connection_stalls_only_while_something_is_on_its_way() -> None:
    session = Session()
    assert not session.stalled(now=100.0)
    session.sent_to(10, now=100.0)
    assert not session.stalled(now=100.0 + STALL_AFTER_S)
    assert session.stalled(now=100.1 + STALL_AFTER_S)
    session.acknowledged(10, ticks=1, published=0, now=200.0)
    assert not session.stalled(now=300.0)


def test_progress_puts_the_stall_off() -> None:
    session = Session()
    session.sent_to(10, now=0.0)
    session.acknowledged(5, ticks=1, published=0, now=STALL_AFTER_S)
    assert not session.stalled(now=STALL_AFTER_S + 1)
