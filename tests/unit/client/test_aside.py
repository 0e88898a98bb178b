"""What waits: in order, for as long as it may, whoever writes it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from mle_client.aside import Aside, Waiting
from mle_client.errors import LoggerClosed
from mle_client.ring import RingFull


class Queue:
    """A queue whose writes are kept, or fail as they are told to."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.refused: list[str] = []
        self.fails: Callable[[Waiting], None] = lambda waiting: None
        self.may_write = True
        self.aside = Aside(
            self._write,
            lambda waiting, error: self.refused.append(str(error)),
            lambda: self.may_write,
        )

    def _write(self, waiting: Waiting) -> None:
        self.fails(waiting)
        self.written.append(waiting.record)

    def put(self, *records: bytes) -> list[Waiting]:
        waiting = [Waiting(record=record) for record in records]
        for each in waiting:
            self.aside.put(each)
        return waiting


def fail(error: Exception) -> Callable[[Waiting], None]:
    def raise_it(waiting: Waiting) -> None:
        raise error

    return raise_it


def test_all_is_written_in_order() -> None:
    queue = Queue()
    queue.put(b"a", b"b", b"c")
    assert queue.aside.blocks
    assert queue.aside.settle(0.0)
    assert (queue.written, queue.aside.blocks) == ([b"a", b"b", b"c"], False)


def test_it_is_written_up_to_one() -> None:
    queue = Queue()
    _, second, _ = queue.put(b"a", b"b", b"c")
    assert queue.aside.settle(0.0, last=second)
    assert (queue.written, len(queue.aside)) == ([b"a", b"b"], 1)


def test_where_there_is_no_room_it_stays_and_the_wait_is_counted() -> None:
    queue = Queue()
    queue.put(b"a")
    queue.fails = fail(RingFull("full"))
    assert not queue.aside.settle(float("inf"), room_s=0.05)
    assert queue.aside.blocked_s >= 0.05
    queue.fails = lambda waiting: None
    assert queue.aside.settle(0.0)
    assert (queue.written, queue.refused) == ([b"a"], [])


def test_what_can_never_be_written_is_told_and_the_next_one_is_written() -> None:
    queue = Queue()
    first, _ = queue.put(b"a", b"b")
    queue.fails = lambda waiting: None if waiting is not first else fail(ValueError("no"))(waiting)
    assert queue.aside.settle(0.0)
    assert (queue.written, queue.refused, first.is_done) == ([b"b"], ["no"], True)


def test_who_ends_the_stream_takes_it_out() -> None:
    queue = Queue()
    (only,) = queue.put(b"a")
    queue.fails = fail(LoggerClosed("closed"))
    assert not queue.aside.settle(0.0)
    assert queue.aside.take() is only
    assert queue.refused == []


def test_who_has_interrupted_a_write_writes_nothing() -> None:
    queue = Queue()
    queue.put(b"a")
    queue.may_write = False
    assert not queue.aside.settle(float("inf"))
    assert queue.written == []


def test_a_write_that_settles_itself_comes_back() -> None:
    queue = Queue()
    queue.put(b"a", b"b")
    inner: list[bool] = []
    queue.fails = lambda waiting: inner.append(queue.aside.settle(float("inf")))
    assert queue.aside.settle(0.0)
    assert (queue.written, inner) == ([b"a", b"b"], [False, False])


@pytest.mark.parametrize("writes", [0, 3])
def test_a_turn_that_an_exception_took_is_found_again(writes: int) -> None:
    queue = Queue()
    queue.put(*[b"x"] * writes)
    queue.aside.settle(0.0)
    queue.put(b"a")
    queue.aside._turn.clear()
    assert queue.aside.settle(time.monotonic() + 60)
    assert queue.written[-1] == b"a"
