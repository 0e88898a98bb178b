"""mle-logging 0.0.6, as released, reads what we write."""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mle_client import MLELogger
from tests.integration import daemons
from tests.integration.sequences import expected, log_sequence

READER = Path(__file__).with_name("read_with_mle_logging.py")


def read(*paths: Path | str) -> dict[str, Any]:
    """What mle-logging's load_log sees."""
    done = subprocess.run(
        [sys.executable, str(READER), *map(str, paths)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_every_value_of_eight_processes_at_once(root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with daemons.running(root):
        processes = [
            context.Process(target=log_sequence, args=(f"{root}/run", seed, 10_000))
            for seed in range(8)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    runs = read(*(root / "run/logs").iterdir())
    assert set(runs) == {f"seed_{seed}" for seed in range(8)}
    for seed in range(8):
        run = runs[f"seed_{seed}"]
        for name, values in expected(seed, 10_000).items():
            stored = run["time"][name] if name.startswith("num_") else run["stats"][name]
            np.testing.assert_array_equal(stored, values, err_msg=name)


@pytest.mark.parametrize("ticks", [1, 10, 5_000])
def test_every_value_of_a_seed(root: Path, ticks: int) -> None:
    with daemons.running(root):
        log_sequence(str(root / "run"), 3, ticks)
    run = read(root / "run")["seed_3"]
    assert set(run) == {"meta", "stats", "time"}
    for name, values in expected(3, ticks).items():
        stored = run["time"][name] if name.startswith("num_") else run["stats"][name]
        np.testing.assert_array_equal(stored, values, err_msg=name)
    assert set(run["time"]) == {"time", "time_elapsed", "num_updates", "num_steps", "num_epochs"}
    assert set(run["stats"]) == {"loss", "accuracy", "count", "odd"}


def test_a_running_log_is_read_as_well(root: Path) -> None:
    with daemons.running(root), MLELogger(str(root / "run")) as log:
        log.update({"step": 1}, {"loss": 0.5})
        assert log.flush()
        assert read(root / "run")[""]["stats"]["loss"] == [0.5]


def test_meta_data_and_configuration(root: Path) -> None:
    config = root / "config_1.yaml"
    config.write_text("lr: 0.1\nlayers: [1, 2]\nname: größe\n")
    with (
        daemons.running(root),
        MLELogger(f"{root}/run", config_fname=str(config), seed_id=1, model_type="torch") as log,
    ):
        log.update({}, {"x": 1})
    meta = read(root / "run/config_1")["seed_1"]["meta"]
    assert meta == {
        "config_dict": {"lr": 0.1, "layers": [1, 2], "name": "größe"},
        "config_fname": f"{root}/run/config_1/config_1.yaml",
        "eval_id": "config_1",
        "experiment_dir": f"{root}/run/config_1",
        "log_paths": f"{root}/run/config_1/logs/log_seed_1.hdf5",
        "model_type": "torch",
    }


def test_vectors_text_and_sparse_keys(root: Path) -> None:
    with daemons.running(root), MLELogger(f"{root}/run", seed_id="alpha") as log:
        for i in range(10):
            stats: dict[str, Any] = {"v": np.full(3, i, np.float32), "note": f"größe {i}"}
            if i % 3 == 0:
                stats["rare"] = i / 7
            stats["odd/name"] = math.inf if i % 2 else -1.5
            log.update({"step": i}, stats)
    stats = read(root / "run")["alpha"]["stats"]
    assert stats["v"] == [[float(i)] * 3 for i in range(10)]
    assert stats["note"] == [f"größe {i}" for i in range(10)]
    assert stats["rare"] == [i / 7 for i in (0, 3, 6, 9)]
    assert stats["odd%2Fname"] == [math.inf if i % 2 else -1.5 for i in range(10)]


def test_a_configuration_that_is_no_literal_can_still_be_read(root: Path) -> None:
    config = {"nan": math.nan, "array": np.arange(3), "what": object}
    with daemons.running(root), MLELogger(f"{root}/run", config_dict=config, seed_id=1) as log:
        log.update({}, {"x": 1})
    stored = read(root / "run")["seed_1"]["meta"]["config_dict"]
    assert stored["array"] == [0, 1, 2]
    assert set(stored) == {"nan", "array", "what"}
