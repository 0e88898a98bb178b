"""A known sequence of ticks, the processes that log it, and the verdict on what is stored."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mle_client import MLELogger, load_log
from mle_client.layout import log_path


def tick(seed: int, i: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The i-th tick of a seed: two clocks and four statistics."""
    return (
        {"num_steps": 10 * i, "num_epochs": i // 100},
        {"loss": 1.0 / (i + 1), "accuracy": i * 1e-4 + seed, "count": i * seed, "odd": i % 2 == 1},
    )


def expected(seed: int, ticks: int) -> dict[str, np.ndarray[Any, Any]]:
    """What a file must hold of the first ticks of a seed, by name of the column."""
    i = np.arange(ticks)
    return {
        "num_steps": 10 * i,
        "num_epochs": i // 100,
        "num_updates": i + 1,
        "loss": 1.0 / (i + 1),
        "accuracy": i * 1e-4 + seed,
        "count": i * seed,
        "odd": i % 2 == 1,
    }


def log_sequence(
    experiment_dir: str, seed: int, ticks: int, daemon: str | None = None, pause_s: float = 0.0
) -> None:
    """Log the sequence of one seed.  Args: pause_s: seconds between two hundred ticks."""
    with MLELogger(
        experiment_dir,
        ["num_steps", "num_epochs"],
        ["loss", "accuracy", "count", "odd"],
        seed_id=seed,
        daemon=daemon,
    ) as log:
        for i in range(ticks):
            log.update(*tick(seed, i))
            if pause_s and i % 200 == 0:
                time.sleep(pause_s)
        report = log.close(timeout=60)
    assert (report.delivered, report.spilled, report.lost) == (ticks, 0, 0), (
        report,
        log.errors(),
    )


def assert_stored(experiment_dir: str | Path, seed: int, ticks: int) -> None:
    """Each value is there once and in order, by plain h5py and by `load_log`."""
    path = log_path(str(experiment_dir), f"seed_{seed}")
    with h5py.File(path) as file:
        group = file[f"seed_{seed}"]
        for name, values in expected(seed, ticks).items():
            kind = "time" if name.startswith("num_") else "stats"
            stored = group[kind][name][:]
            assert stored.dtype == values.dtype, name
            np.testing.assert_array_equal(stored, values, err_msg=name)
        elapsed = group["time"]["time_elapsed"][:]
        assert len(elapsed) == ticks
        assert (np.diff(elapsed) >= 0).all()
    run = load_log(str(experiment_dir))[f"seed_{seed}"]
    for name, values in expected(seed, ticks).items():
        loaded = run.time[name] if name.startswith("num_") else run.stats[name]
        np.testing.assert_array_equal(loaded, values, err_msg=name)
