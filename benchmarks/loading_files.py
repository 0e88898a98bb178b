"""The logs that `loading` loads.

Ours are logged through a daemon and sealed by it; merged files are made of them by `Group.copy`,
as any HDF5 program would.  mle-logging's have its layout (gzip 4, float32, 5,000 bytes a text), but
are written here in one go, since its own `save()` writes all that there is again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from benchmarks.workspace import Workspace
from mle_client import MLELogger

_CONFIG: Final = {"lr": 0.1, "layers": [64, 64], "optimiser": {"name": "adam", "beta": 0.9}}
_CLOSE_TIMEOUT_S: Final = 120.0
_TEXT: Final = "S5000"  # mle-logging's for every text

Values = npt.NDArray[np.float64]


def values(seed: int, ticks: int, statistics: int) -> Values:
    """What a seed logs: losses that fall, and noise.  Returns: shape (ticks, statistics)."""
    trend = np.exp(-3 * np.arange(ticks) / ticks)[:, np.newaxis]
    noise = np.random.default_rng(seed).normal(scale=0.1, size=(ticks, statistics))
    sampled: Values = trend + noise
    return sampled


# --- ours -----------------------------------------------------------------------------------------
def log_seeds(space: Workspace, name: str, seeds: int, ticks: int, statistics: int) -> list[Path]:
    """Log some seeds of one experiment.  Returns: their files, once the daemon has stopped."""
    names = [f"stat_{i}" for i in range(statistics)]
    folder = space.root / name
    for seed in range(seeds):
        log = MLELogger(experiment_dir=str(folder), seed_id=seed, config_dict=_CONFIG)
        for i, row in enumerate(values(seed, ticks, statistics).tolist()):
            log.update({"num_steps": i}, dict(zip(names, row, strict=True)))
        report = log.close(_CLOSE_TIMEOUT_S)
        if report.lost:
            raise RuntimeError(f"ticks were lost: {report}")
    return [space.log_file(name, seed) for seed in range(seeds)]


def merge(logs: Sequence[Path], merged: Path) -> None:
    """Put the seeds of some logs into one file."""
    merged.parent.mkdir(parents=True)
    with h5py.File(merged, "w") as target:
        for path in logs:
            with h5py.File(path) as source:
                for seed in source:
                    source.copy(seed, target)


def merge_configs(logs: Sequence[Path], configs: int, merged: Path) -> None:
    """A file of many configurations, all of which have the same seeds."""
    with h5py.File(merged, "w") as target:
        for config in range(configs):
            group = target.create_group(f"config_{config}")
            for path in logs:
                with h5py.File(path) as source:
                    for seed in source:
                        source.copy(seed, group)


# --- mle-logging's --------------------------------------------------------------------------------
def write_as_mle_logging(
    path: Path, seeds: int, ticks: int, statistics: int, *, dated: bool
) -> None:
    """A merged log as mle-logging writes it.

    Args:
        dated: whether with its clock "time", 5,000 bytes a tick before they are compressed.
    """
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        for seed in range(seeds):
            _write_seed(file.create_group(f"seed_{seed}"), seed, ticks, statistics, dated)


def _write_seed(group: Any, seed: int, ticks: int, statistics: int, dated: bool) -> None:
    meta = {
        "log_paths": f"exp/logs/log_seed_{seed}.hdf5", "experiment_dir": "exp/",
        "config_fname": "config-not-provided", "eval_id": "base", "model_type": "no-model-type",
        "config_dict": str(_CONFIG),
    }  # fmt: skip
    for name, text in meta.items():
        _write(group, f"meta/{name}", [text.encode()], _TEXT)
    count = np.arange(ticks)
    _write(group, "time/num_updates", count + 1, "float32")
    _write(group, "time/num_steps", count, "float32")
    _write(group, "time/time_elapsed", count * 1e-4, "float32")
    if dated:
        times = [f"25-01-01/{i // 60 % 24:02}:{i % 60:02}".encode() for i in range(ticks)]
        _write(group, "time/time", times, _TEXT)
    for i, column in enumerate(values(seed, ticks, statistics).T):
        _write(group, f"stats/stat_{i}", column, "float32")


def _write(group: Any, name: str, data: Any, dtype: str) -> None:
    group.create_dataset(name=name, data=data, compression="gzip", compression_opts=4, dtype=dtype)
