"""The benchmarks of what a user feels run, at sizes at which their figures mean nothing.

Each checks by itself that what it measured was also done: all ticks are in the files.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import numpy as np
import pytest

from benchmarks import bare, devices, disk, memory, startup, training, training_loops
from benchmarks.devices import GIVEN, READ
from benchmarks.training_loops import Pace
from benchmarks.workspace import variables, workspace
from tests.unit.test_benchmarks import assert_is_complete


# --- training -------------------------------------------------------------------------------------
def test_training_looks_at_every_loop_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loops, "installed", lambda loop: loop.startswith("scikit-learn"))

    result = training.run(training.SIZES["tiny"])

    assert_is_complete(result)
    beside, accounted = result.tables
    assert [row[1] for row in beside.rows] == [
        "not installed", training.NOTHING, "100", "1,000",
    ]  # fmt: skip
    assert [row[1] for row in accounted.rows] == [
        training.PLAIN, "floor, 1,000", "100", "1,000",
    ]  # fmt: skip
    assert [goal.limit for goal in result.goals] == [training.GOAL_PERCENT] * 3


def test_training_says_that_no_loop_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loops, "installed", lambda loop: False)

    result = training.run(training.SIZES["tiny"])

    assert_is_complete(result)
    assert result.goals == result.pictures == ()


@pytest.mark.parametrize("loop", training_loops.LOOPS)
def test_a_step_trains(loop: str) -> None:
    pytest.importorskip(training_loops.LOOPS[loop][0])
    step = training_loops.LOOPS[loop][1]()

    assert all(np.isfinite(step()) for _ in range(3))


@pytest.mark.parametrize(
    ("ticks_per_s", "pace"), [(10, Pace(100, 1)), (1_000, Pace(1, 1)), (10_000, Pace(1, 10))]
)
def test_a_pace_is_kept_by_steps_of_a_millisecond(ticks_per_s: int, pace: Pace) -> None:
    seen: list[int] = []

    assert Pace.of(ticks_per_s, 1e-3) == pace
    training_loops.train_and_log(float, 250, pace, lambda clock, stats: seen.append(1))
    assert len(seen) == pace.ticks(250)


def test_the_error_of_a_median_gets_smaller_with_more_values() -> None:
    values = np.random.default_rng(0).normal(size=10_000)

    assert training.median_error([*values]) == pytest.approx(1.253 / 100, rel=0.05)
    assert training.median_error([1.0]) == 0


def test_steps_in_other_threads_are_told_apart() -> None:
    spent = training_loops.spent_by(lambda: None)

    assert 0 <= spent.background_s <= spent.cpu_s


# --- startup --------------------------------------------------------------------------------------
def test_startup_looks_at_imports_and_loggers() -> None:
    result = startup.run(startup.SIZES["tiny"])

    assert_is_complete(result)
    imports, loggers = result.tables
    assert {startup.NUMPY, startup.LOGGER, startup.STATUS} <= {row[0] for row in imports.rows}
    assert [row[0] for row in loggers.rows] == [startup.RUNNING, startup.ALONE]
    assert [goal.measured for goal in result.goals if "heavy" in goal.what] == [0, 0]


# --- devices --------------------------------------------------------------------------------------
def test_devices_tells_who_waits() -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    result = devices.run(devices.SIZES["tiny"])

    assert_is_complete(result)
    (table,) = result.tables
    assert [row[::2][:2] for row in table.rows[:2]] == [("jax", way) for way in (GIVEN, READ)]
    given, read = (row[-1] for row in table.rows[:2])
    assert given < read


def test_the_life_of_a_process_that_fails_is_none() -> None:
    with pytest.raises(Exception, match="exit status 3"):
        bare.live((sys.executable, "-c", "raise SystemExit(3)"))


def test_variables_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLE_TEST_SET", "before")
    monkeypatch.delenv("MLE_TEST_MISSING", raising=False)

    with variables({"MLE_TEST_SET": None, "MLE_TEST_MISSING": "now"}):
        assert "MLE_TEST_SET" not in os.environ
        assert os.environ["MLE_TEST_MISSING"] == "now"

    assert os.environ["MLE_TEST_SET"] == "before"
    assert "MLE_TEST_MISSING" not in os.environ


# --- memory ---------------------------------------------------------------------------------------
@pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's account of memory")
def test_memory_looks_at_a_script_and_at_runs() -> None:
    size = memory.SIZES["tiny"]

    result = memory.run(size)

    assert_is_complete(result)
    script, daemon, runs = result.tables
    assert len(script.rows) == len(daemon.rows) + 1 == 4 + len(size.ticks)
    assert [row[0] for row in runs.rows] == [*size.runs]
    assert len(result.goals) == 3 + len(size.ticks) + len(size.runs)


@pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's account of memory")
def test_memory_is_made_of_its_parts() -> None:
    found = memory.memory_of(os.getpid())

    assert found.private + found.code + found.shared == pytest.approx(found.rss, rel=0.1)
    assert 0 < found.pss <= found.peak


# --- disk -----------------------------------------------------------------------------------------
def test_disk_looks_at_every_kind_of_statistic() -> None:
    result = disk.run(disk.SIZES["tiny"])

    assert_is_complete(result)
    columns, files, lengths = result.tables
    assert [row[0] for row in columns.rows] == [*disk.CASES]
    assert [row[0] for row in files.rows][: len(disk.CASES)] == [*disk.CASES]
    assert [row[0] for row in lengths.rows] == [*disk.SIZES["tiny"].lengths]
    assert len(result.goals) == len(disk.CASES)


def test_what_a_tick_takes_is_free_of_what_every_file_has() -> None:
    logs = [disk.Stored(ticks, 5_000 + 20 * ticks, 0, 0) for ticks in (10, 100, 1_000)]

    assert disk.a_tick(logs, "file_bytes") == 20


def test_a_log_that_holds_other_numbers_is_not_measured() -> None:
    columns = {"loss": np.arange(5.0)}
    with workspace() as space:
        disk.log_columns(space, "run", columns)
        space.stop()
        with pytest.raises(RuntimeError, match="does not hold loss"):
            disk.look_at(space.log_file("run"), {"loss": np.arange(5.0) + 1})


def test_compressing_sorted_bytes_makes_little_of_a_constant() -> None:
    assert disk.compressed_bytes(np.full(10_000, 0.1)) < 1_000
