"""The loggers of a process, with made-up ones that only take notes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from mle_client import control, lifetime


class FakeLogger:
    """Waits in vain, for as long as it may.  Args: path: of its log."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.given: list[float] = []

    def stored_as(self) -> tuple[str, str]:
        return self.path, "seed_1"

    def flush(self, timeout: float) -> bool:
        self.given.append(timeout)
        time.sleep(timeout)
        return False


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], FakeLogger]:
    """Have a logger in this process."""
    made = []
    monkeypatch.setattr(lifetime, "_LOGGERS", {})

    def make(path: str) -> FakeLogger:
        made.append(FakeLogger(path))
        lifetime._LOGGERS[id(made[-1])] = weakref.ref(made[-1])
        return made[-1]

    return make


def test_before_reading_the_loggers_share_the_time_there_is(
    add: Callable[[str], FakeLogger],
) -> None:
    inside = [add(f"/exps/run/logs/log_seed_{i}.hdf5") for i in range(4)]
    outside = add("/exps/another/logs/log_seed_1.hdf5")
    began = time.monotonic()
    control.publish_before_reading("/exps/run", 0.4)
    assert time.monotonic() - began < 0.8
    for logger in inside:
        assert logger.given == [pytest.approx(0.1, abs=0.05)]
    assert outside.given == []


# --- closing --------------------------------------------------------------------------------------
class Closing(FakeLogger):
    """Closes in no time, or fails to.  Args: error: that closing raises."""

    def __init__(self, path: str = "/exps/run/logs/log_seed_1.hdf5", error: str = "") -> None:
        super().__init__(path)
        self.error = error
        self.closed: list[float] = []
        self.ways = 0
        self.forks = 0
        self.drops = 0

    def close(self, timeout: float) -> None:
        self.closed.append(timeout)
        lifetime.forget(self)
        if self.error:
            raise ValueError(self.error)

    def make_way(self) -> None:
        self.ways += 1

    def forked(self) -> None:
        self.forks += 1

    def dropped(self) -> None:
        self.drops += 1


@pytest.fixture
def no_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has no loggers."""
    for name in ("_LOGGERS", "_DROPPED"):
        monkeypatch.setattr(lifetime, name, {})
    monkeypatch.setattr(lifetime, "_collect_at", lifetime.COLLECT_AT)


def test_a_logger_that_user_code_dropped_is_closed_all_the_same(no_loggers: None) -> None:
    lifetime.register(Closing())
    (logger,) = lifetime.all_loggers()
    assert logger.drops == 0
    del logger
    gc.collect()
    (logger,) = lifetime.all_loggers()
    assert logger.drops == 1
    lifetime.close_all(5.0)
    assert len(logger.closed) == 1
    assert lifetime.all_loggers() == []


def test_one_that_has_ended_is_held_no_longer(no_loggers: None) -> None:
    lifetime.register(Closing())
    gc.collect()
    (logger,) = lifetime.all_loggers()
    reference = weakref.ref(logger)
    lifetime.forget(logger)
    del logger
    gc.collect()
    assert (lifetime.all_loggers(), reference()) == ([], None)


def test_one_that_was_closed_is_not_said_to_be_dropped(no_loggers: None) -> None:
    logger = Closing()
    lifetime.register(logger)
    lifetime.forget(logger)
    drops: list[int] = []
    logger.dropped = lambda: drops.append(1)  # type: ignore[method-assign]
    del logger
    gc.collect()
    assert drops == []


def test_dropped_loggers_are_looked_for_where_there_are_many(
    no_loggers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector may be off, or have no reason to come."""
    monkeypatch.setattr(lifetime, "MAX_DROPPED", 1_000)  # none of these ends
    gc.collect()
    gc.disable()
    try:
        for _ in range(4 * lifetime.COLLECT_AT):
            lifetime.register(Closing())
            assert len(lifetime._LOGGERS) <= lifetime.COLLECT_AT
        kept = [Closing() for _ in range(4 * lifetime.COLLECT_AT)]
        for logger in kept:  # of which there is nothing to be collected
            lifetime.register(logger)
    finally:
        gc.enable()
    assert {logger.drops for logger in kept} == {0}
    assert len(lifetime.all_loggers()) == 8 * lifetime.COLLECT_AT


def test_all_loggers_share_the_time_at_exit(no_loggers: None) -> None:
    class Slow(Closing):
        def close(self, timeout: float) -> None:
            super().close(timeout)
            time.sleep(min(timeout, 0.2))

    slow = [Slow() for _ in range(3)]
    for logger in slow:
        lifetime.register(logger)
    lifetime.close_all(0.3)
    given = sorted(timeout for logger in slow for timeout in logger.closed)
    assert given == [0.0, pytest.approx(0.1, abs=0.08), pytest.approx(0.3, abs=0.08)]


def test_one_that_fails_to_close_does_not_keep_the_others_open(no_loggers: None) -> None:
    made = [Closing(error="disk full"), Closing(), Closing(error="disk full")]
    for logger in made:
        lifetime.register(logger)
    with pytest.raises(ValueError, match="disk full"):
        lifetime.close_all(1.0)
    assert [len(logger.closed) for logger in made] == [1, 1, 1]


def test_a_logger_that_was_closed_is_not_closed_again(no_loggers: None) -> None:
    logger = Closing()
    lifetime.register(logger)
    lifetime.forget(logger)
    lifetime.forget(logger)
    lifetime.close_all(1.0)
    assert logger.closed == []


def test_only_who_writes_a_log_is_closed_for_who_continues_it(no_loggers: None) -> None:
    writer, other = Closing("/exp/logs/log_seed_1.hdf5"), Closing("/exp/logs/log_seed_10.hdf5")
    for logger in (writer, other):
        lifetime.register(logger)
    lifetime.close_writers_of("/exp/logs/log_seed_1.hdf5")
    assert (len(writer.closed), len(other.closed)) == (1, 0)


def test_only_who_writes_a_log_makes_way_for_who_begins_it_anew(no_loggers: None) -> None:
    writer, other = Closing("/exp/logs/log_seed_1.hdf5"), Closing("/exp/logs/log_seed_10.hdf5")
    for logger in (writer, other):
        lifetime.register(logger)
    lifetime.make_way_for("/exp/logs/log_seed_1.hdf5")
    assert (writer.ways, other.ways) == (1, 0)


def test_who_makes_loggers_faster_than_they_end_waits(
    no_loggers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(lifetime.MAX_DROPPED + 5):
        lifetime._DROPPED[number] = Closing()
    looks = []

    def end_one(seconds: float) -> None:
        looks.append(seconds)
        del lifetime._DROPPED[len(looks) - 1]

    monkeypatch.setattr("time.sleep", end_one)
    logger = Closing()
    lifetime.register(logger)
    assert len(looks) == 5
    lifetime.forget(logger)
    monkeypatch.setattr(lifetime, "EXIT_TIMEOUT_S", 0.0)  # nor for ever
    monkeypatch.setattr(lifetime, "MAX_DROPPED", 0)
    lifetime.register(logger)
    assert len(looks) == 5


# --- reading --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "is_flushed"),
    [
        ("/exps/run/logs/log_seed_1.hdf5", True),
        ("/exps/run/logs", True),
        ("/exps/run/", True),
        ("/exps", True),
        ("/", True),
        ("/exps/run/models/final/final_seed_1.pkl", True),
        ("/exps/run/logs/log.hdf5", True),
        ("/exps/run/logs/log_seed_10.hdf5", True),  # it is in the experiment's folder
        ("/exps/run2", False),
        ("/exps/ru", False),
        ("/exps/run2/models/final/final_seed_1.pkl", False),
        ("/elsewhere", False),
    ],
)
def test_who_has_to_do_with_what_is_read_is_flushed(
    no_loggers: None, monkeypatch: pytest.MonkeyPatch, path: str, is_flushed: bool
) -> None:
    logger = Closing()
    monkeypatch.setattr(logger, "flush", logger.given.append)
    lifetime.register(logger)
    lifetime._flush_before_reading(path, 1.0)
    assert bool(logger.given) == is_flushed


# --- processes ------------------------------------------------------------------------------------
def test_a_forked_child_tells_its_loggers(no_loggers: None) -> None:
    logger = Closing()
    lifetime.register(logger)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, bytes([logger.forks]))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1) == b"\1"
    os.close(read)
    os.close(write)
    assert logger.forks == 0


SCRIPT = """
import multiprocessing
import os
import sys

from mle_client import lifetime


class Logger:
    def close(self, timeout):
        lifetime.forget(self)
        print("closed in", multiprocessing.current_process().name, flush=True)

    def stored_as(self):
        return "/exp", "seed_1"

    def forked(self):
        lifetime.forget(self)

    def dropped(self):
        pass


def child():
    lifetime.register(Logger())


if __name__ == "__main__":
    lifetime.register(Logger())
    lifetime.register(Logger())
    if sys.argv[1:]:
        process = multiprocessing.get_context(sys.argv[1]).Process(target=child, name="a child")
        process.start()
        process.join()
"""


@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_loggers_are_closed_however_their_process_ends(tmp_path: Path, context: str | None) -> None:
    """A child of multiprocessing leaves by os._exit, which calls nothing at exit."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), *([context] if context else [])],
        capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines.count("closed in a child") == (1 if context else 0)
    assert lines.count("closed in MainProcess") == 2
