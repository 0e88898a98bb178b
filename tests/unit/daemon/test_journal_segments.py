"""Which journal segments may go."""

from __future__ import annotations

from collections.abc import Callable

from mle_client import messages as m
from mle_daemon.journal_segments import Segments

A, B = m.ProducerId(b"a" * 16), m.ProducerId(b"b" * 16)


def published(**ends: int) -> Callable[[m.ProducerId, int], bool]:
    """What the files hold.  Args: ends: position of stream `a` and of `b`."""
    held = {A: ends.get("a", 0), B: ends.get("b", 0)}
    return lambda producer, end: held[producer] >= end


def three_bases() -> Segments:
    segments = Segments()
    for number in (1, 2, 3):
        segments.rotated(number, ())
    segments.holds(1, A, 10)
    segments.holds(2, B, 20)
    return segments


def test_a_segment_goes_when_all_of_it_is_published_and_only_once() -> None:
    segments = three_bases()
    assert segments.drop(published(a=9, b=20)) == ()
    assert segments.drop(published(a=10, b=19)) == (1,)
    assert segments.drop(published(a=10, b=20)) == (2,)
    assert segments.drop(published(a=10, b=20)) == ()


def test_a_segment_does_not_go_before_an_older_one() -> None:
    assert three_bases().drop(published(a=0, b=20)) == ()


def test_the_last_segment_stays() -> None:
    segments = Segments()
    segments.rotated(1, ())
    assert segments.drop(published()) == ()


def test_the_latest_position_of_a_stream_in_a_segment_counts() -> None:
    segments = three_bases()
    segments.holds(1, A, 30)
    assert segments.drop(published(a=29, b=20)) == ()


def test_what_is_left_begins_with_a_state_record() -> None:
    """The journal began segment 3 by itself: it has no state record, so 2 stays with it."""
    segments = Segments()
    segments.rotated(1, ())
    segments.rotated(2, ())
    segments.holds(3, A, 10)
    assert segments.drop(published(a=10)) == (1,)
    segments.rotated(4, ())
    assert segments.drop(published(a=10)) == (2, 3)


def test_segments_of_an_earlier_process_go_with_what_was_replayed_of_them() -> None:
    segments = Segments()
    segments.holds(2, A, 10)
    segments.rotated(3, [1, 2])
    assert segments.drop(published(a=9)) == ()  # 2 is no base: it is not known how it begins
    assert segments.drop(published(a=10)) == (1, 2)
