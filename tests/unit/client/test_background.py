"""A thread for slow work: in order, each piece by itself, and none that is forgotten."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mle_client.background import Work, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("mle-test-worker")
    yield worker
    worker.close()


def fails(message: str) -> Callable[[], None]:
    def fail() -> None:
        raise ValueError(message)

    return fail


def ignore(error: Exception) -> None:
    pass


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mle-test-worker"]


def test_without_work_there_is_no_thread(worker: Worker) -> None:
    assert worker.wait(0)
    assert threads() == []
    assert worker.close() == 0


def test_work_is_done_in_order_by_one_thread(worker: Worker) -> None:
    done: list[int] = []
    by: set[threading.Thread] = set()

    def note(number: int) -> None:
        by.add(threading.current_thread())
        done.append(number)

    for number in range(100):
        worker.submit(Work(lambda number=number: note(number), ignore))  # type: ignore[misc]
    assert worker.wait(10)
    assert done == list(range(100))
    assert by == set(threads())
    assert len(by) == 1
    assert threading.current_thread() not in by


def test_what_fails_is_told_and_the_rest_is_done(worker: Worker) -> None:
    told: list[str] = []
    worker.submit(Work(fails("first"), lambda error: told.append(str(error))))
    worker.submit(Work(lambda: told.append("second"), ignore))
    assert worker.wait(10)
    assert told == ["first", "second"]


def test_whoever_fails_to_be_told_does_not_end_the_thread(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_again(error: Exception) -> None:
        raise RuntimeError("nobody listens")

    done: list[int] = []
    with caplog.at_level(logging.ERROR):
        worker.submit(Work(fails("first"), fail_again))
        worker.submit(Work(lambda: done.append(1), ignore))
        assert worker.wait(10)
    assert done == [1]
    assert "nobody listens" in caplog.text


def test_a_wait_has_its_time(worker: Worker) -> None:
    gate = threading.Event()
    worker.submit(Work(lambda: bool(gate.wait(10)) and None, ignore))
    began = time.monotonic()
    assert not worker.wait(0.05)
    assert time.monotonic() - began < 5
    gate.set()
    assert worker.wait(10)


def test_close_cuts_off_what_waits_and_says_how_much(worker: Worker) -> None:
    begun, gate = threading.Event(), threading.Event()
    done: list[int] = []

    def first() -> None:
        begun.set()
        gate.wait(10)
        done.append(1)

    worker.submit(Work(first, ignore))
    for number in (2, 3):
        worker.submit(Work(lambda number=number: done.append(number), ignore))  # type: ignore[misc]
    begun.wait(10)
    threading.Timer(0.1, gate.set).start()
    assert worker.close() == 2  # it waited for the one under way
    assert done == [1]
    assert threads() == []


def test_close_does_not_wait_for_ever() -> None:
    worker, gate = Worker("mle-test-worker"), threading.Event()
    worker.submit(Work(lambda: bool(gate.wait(10)) and None, ignore))
    began = time.monotonic()
    assert worker.close() == 1
    assert time.monotonic() - began < 5
    gate.set()


def test_what_fails_because_it_was_cut_off_is_no_failure(worker: Worker) -> None:
    gate, told = threading.Event(), []

    def cut_off() -> None:
        gate.wait(10)
        raise OSError("its socket is gone")

    worker.submit(Work(cut_off, told.append))
    threading.Timer(0.1, gate.set).start()
    worker.close()
    assert told == []


def test_work_may_close_its_own_worker(worker: Worker) -> None:
    told: list[Exception] = []
    worker.submit(Work(lambda: worker.close() and None, told.append))
    assert worker.wait(10)
    assert told == []


def test_a_forked_child_has_a_worker_of_its_own(worker: Worker) -> None:
    gate = threading.Event()
    worker.submit(Work(lambda: bool(gate.wait(10)) and None, ignore))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            worker.forget()
            worker.submit(Work(lambda: os.write(write, b"child") and None, ignore))
            worker.wait(10)
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    assert os.read(read, 10) == b"child"
    os.close(read)
    gate.set()
    assert worker.wait(10)
