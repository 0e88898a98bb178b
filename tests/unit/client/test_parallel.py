"""Work is shared among threads, and none outlives the call."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from mle_client import parallel


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_threads", lambda: 4)


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_every_item_is_worked_on_once(count: int) -> None:
    done: list[int] = []
    parallel.each(done.append, range(count))
    assert sorted(done) == list(range(count))


def test_several_items_are_worked_on_at_once() -> None:
    barrier = threading.Barrier(4)
    parallel.each(lambda _: barrier.wait(10), range(4))


def test_the_first_failure_ends_the_work_and_is_raised() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 3:
            raise ValueError("this one")
        done.append(item)

    with pytest.raises(ValueError, match="this one"):
        parallel.each(work, range(100_000))
    assert len(done) < 99_999
    assert not [t for t in threading.enumerate() if t.name.startswith("mle-reader")]


def test_a_failure_keeps_nothing_alive_that_its_handler_has_given_up() -> None:
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)

    def fail(_: Thing) -> None:
        raise ValueError("no")

    gc.disable()  # a cycle would be found by it alone
    try:
        with pytest.raises(ValueError, match="no"):
            parallel.each(fail, [thing])
        del thing
        assert gone() is None
    finally:
        gc.enable()


def test_where_no_thread_can_be_had_the_caller_does_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    parallel.each(done.append, range(10))
    assert done == list(range(10))


def test_there_are_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= parallel._threads() <= parallel._MOST_THREADS
