"""Loggers that user code drops without close(): they end in the background, and nothing is lost."""

from __future__ import annotations

import functools
import gc
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mle_client import MLELogger, lifetime, load_log
from mle_client.errors import MLEError
from mle_client.logger import Report
from mle_client.transport import Transport
from tests.integration import daemons


@pytest.fixture
def served(root: Path) -> Iterator[Path]:
    """A root with a daemon."""
    with daemons.running(root):
        yield root


def states(root: Path) -> list[str]:
    return [run["state"] for run in daemons.status(root)["runs"]]


def log_and_drop(folder: Path, seed: int = 1, **settings: Any) -> None:
    log = MLELogger(str(folder), seed_id=seed, **settings)
    for i in range(100):
        log.update({"step": i}, {"x": float(i)})


def segments(runtime_dir: Path) -> list[Path]:
    return list(runtime_dir.rglob("*.seg"))


def test_a_logger_that_was_dropped_ends_its_run(served: Path, runtime_dir: Path) -> None:
    log_and_drop(served / "run")
    gc.collect()
    daemons.wait_for(lambda: states(served) == ["finished"])
    daemons.wait_for(lambda: not segments(runtime_dir))
    daemons.wait_for(lambda: lifetime.all_loggers() == [])
    daemons.wait_for(lambda: "mle-sender" not in [t.name for t in threading.enumerate()])
    assert load_log(str(served / "run")).seed_1.stats.x.tolist() == [float(i) for i in range(100)]


def test_who_reads_at_once_has_all_of_it(served: Path) -> None:
    log_and_drop(served / "run")
    gc.collect()
    assert load_log(str(served / "run")).seed_1.stats.x.tolist() == [float(i) for i in range(100)]


def test_it_does_not_end_before_who_waits_for_it(root: Path) -> None:
    with daemons.running(root) as daemon:
        os.kill(daemon["pid"], signal.SIGSTOP)
        try:
            log_and_drop(root / "run")
            gc.collect()
            (log,) = lifetime.all_loggers()
            with ThreadPoolExecutor(1) as threads:
                flushed = threads.submit(log.flush, 30)
                daemons.wait_for(lambda: log._transport.is_awaited(log._channel))
                daemons.wait_for(lambda: log._end)
                os.kill(daemon["pid"], signal.SIGCONT)
                assert flushed.result()
        finally:
            os.kill(daemon["pid"], signal.SIGCONT)


def test_one_that_is_collected_leaves_no_object(served: Path) -> None:
    log = MLELogger(str(served / "run"))
    log.update({"step": 0}, {"x": 0.0})
    reference = weakref.ref(log)
    del log
    daemons.wait_for(lambda: gc.collect() >= 0 and states(served) == ["finished"])
    daemons.wait_for(lambda: gc.collect() >= 0 and not lifetime.all_loggers())
    assert reference() is None


def test_what_a_dropped_logger_has_saved_is_stored(served: Path) -> None:
    from matplotlib.figure import Figure

    def save_and_drop() -> None:
        log = MLELogger(str(served / "run"), model_type="numpy")
        log.update({"step": 0}, {"x": 0.5}, {"w": np.ones(10)}, Figure())
        log.save_extra(np.zeros(10**7))

    save_and_drop()
    daemons.wait_for(lambda: gc.collect() >= 0 and lifetime._DROPPED)
    log = next(iter(lifetime._DROPPED.values()))
    daemons.wait_for(lambda: log._report)
    assert log._report == Report(1, 0, 0)
    daemons.wait_for(lambda: gc.collect() >= 0 and states(served) == ["finished"])
    for kind in ("models/final", "figures", "extra"):
        assert len(os.listdir(served / "run" / kind)) == 1
    # Its threads and the process that drew end, or the check of every test would say so.


@pytest.mark.parametrize("kept", ["update", "save", "model_log", "stats_log", "a partial update"])
def test_whatever_of_a_logger_is_kept_keeps_it(served: Path, kept: str) -> None:
    log = MLELogger(str(served / "run"))
    for i in range(3):
        log.update({"step": i}, {"x": 0.5})
    if kept == "a partial update":
        part: Any = functools.partial(log.update, stats_tick={"x": 0.5})
    else:
        part = getattr(log, kept)
    del log
    for _ in range(2):
        gc.collect()
    (log,) = lifetime.all_loggers()
    assert log.flush()
    assert states(served) == ["running"]
    log.update({"step": 3}, {"x": 0.5})
    assert log.close().delivered == 4
    del part


def test_one_whose_daemon_does_not_answer_is_kept_for_the_next_one(
    root: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mle_client.logger.EXIT_TIMEOUT_S", 0.3)
    with daemons.running(root) as daemon:
        os.kill(daemon["pid"], signal.SIGSTOP)
        try:
            log_and_drop(root / "run")
            gc.collect()
            daemons.wait_for(lambda: lifetime.all_loggers() == [])
            assert segments(runtime_dir)
        finally:
            os.kill(daemon["pid"], signal.SIGCONT)
        daemons.wait_for(lambda: states(root) in (["finished"], ["crashed"]))
        assert load_log(str(root / "run")).seed_1.stats.x.tolist() == [float(i) for i in range(100)]
    assert not segments(runtime_dir)


def test_what_goes_wrong_after_it_was_dropped_is_told(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_and_drop(served / "run")
    daemons.wait_for(lambda: gc.collect() >= 0 and states(served) == ["finished"])
    said: list[MLEError] = []
    # Its ticks may be safe before the daemon has looked at the file, and with that its end.
    monkeypatch.setattr(Transport, "is_awaited", lambda transport, channel: not said)
    log_and_drop(served / "run", on_error=said.append)  # a log of that name is put aside
    gc.collect()
    daemons.wait_for(lambda: lifetime.all_loggers() == [])
    assert any(".mle/replaced" in str(error) for error in said)


def test_it_ends_at_exit_too(served: Path) -> None:
    log_and_drop(served / "run")
    gc.collect()
    lifetime.close_all(10.0)
    assert states(served) == ["finished"]
    assert load_log(str(served / "run")).seed_1.stats.x.tolist() == [float(i) for i in range(100)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_leaves_what_its_parent_has_dropped_alone(served: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        log_and_drop(served / "run")
        pid = os.fork()
        if pid == 0:
            gc.collect()
            os._exit(len(lifetime.all_loggers()))
        assert os.waitpid(pid, 0)[1] == 0
        assert states(served) in ([], ["running"])
    finally:
        gc.enable()
    daemons.wait_for(lambda: gc.collect() >= 0 and states(served) == ["finished"])
    assert load_log(str(served / "run")).seed_1.stats.x.tolist() == [float(i) for i in range(100)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_does_not_hold_what_its_parent_is_ending(root: Path) -> None:
    with daemons.running(root) as daemon:
        os.kill(daemon["pid"], signal.SIGSTOP)
        try:
            log_and_drop(root / "run")
            gc.collect()
            assert len(lifetime.all_loggers()) == 1
            pid = os.fork()
            if pid == 0:
                os._exit(len(lifetime.all_loggers()))
            assert os.waitpid(pid, 0)[1] == 0
        finally:
            os.kill(daemon["pid"], signal.SIGCONT)
        daemons.wait_for(lambda: states(root) == ["finished"])
