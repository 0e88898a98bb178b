"""The loggers of a process, with made-up ones that only take notes."""

from __future__ import annotations

import time
from collections.abc import Callable

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
    monkeypatch.setattr(lifetime, "_LOGGERS", set())

    def make(path: str) -> FakeLogger:
        logger = FakeLogger(path)
        lifetime._LOGGERS.add(logger)
        return logger

    return make


def test_before_reading_the_loggers_share_the_time_there_is(
    add: Callable[[str], FakeLogger],
) -> None:
    inside = [add(f"/root/run/logs/log_seed_{i}.hdf5") for i in range(4)]
    outside = add("/root/another/logs/log_seed_1.hdf5")
    began = time.monotonic()
    control.publish_before_reading("/root/run", 0.4)
    assert time.monotonic() - began < 0.8
    for logger in inside:
        assert logger.given == [pytest.approx(0.1, abs=0.05)]
    assert outside.given == []
