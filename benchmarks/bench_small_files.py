"""What a publication costs: the log changed in memory and written, or copied and changed on disk.

    python benchmarks/bench_small_files.py [FOLDER]

Publishes runs of several lengths again and again, each time with a quarter of their ticks more; the
file is put back in between.  FOLDER is where the logs go; without it, a temporary one.  Wall time
includes the sync of the file and its folder, CPU time is that of the publishing thread.

The decision that rests on it is docs/decisions/0008-small-files-in-memory.md.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

from mle_client import layout, tick_layout, wire
from mle_client import messages as m
from mle_daemon import store
from mle_daemon.columns import FileState
from mle_daemon.events import PublishRun

TICKS = (100, 10_000, 60_000, 300_000)
STATISTICS = 10
ROUNDS = 15
START = 1.7e9  # seconds since the epoch


def block(ticks: int) -> wire.Block:
    """So many ticks of one clock and some statistics."""
    clock = (m.Field("num_steps", m.INT),)
    stats = tuple(m.Field(f"statistic_{i}", m.FLOAT) for i in range(STATISTICS))
    schema = m.Schema(0, clock, stats)
    lying = np.zeros(ticks, tick_layout.fixed_layout(schema).dtype)
    lying["t"] = START + np.arange(ticks)
    lying["v0"] = np.arange(ticks)
    for i in range(STATISTICS):
        lying[f"v{i + 1}"] = np.random.default_rng(i).random(ticks)
    return wire.FixedBlock(schema, lying["t"].astype("=f8"), lying)


def run_in(folder: Path) -> m.Run:
    """A run that logs into a folder."""
    return m.Run(
        run_id=m.RunId(bytes(16)), directory=str(folder), experiment_dir=str(folder),
        seed_id="seed_1", eval_id="", model_type="no-model-type", start_time=START,
        config_name="", config_file=b"", config_text="{}", config_json="", num_seeds=None,
        overwrite=False, reload=False, policy={}, kept={}, tboard=False, wandb={}, forked=False,
        process=m.Process(1, "here", "", ""),
    )  # fmt: skip


def publication(run: m.Run, path: str, file: FileState | None, ticks: int) -> PublishRun:
    """What asks for some more ticks in the file."""
    return PublishRun(
        run, run.seed_id, path, file, (block(ticks),), 0, {"00" * 16: 1}, "running"
    )  # fmt: skip


def measure(folder: Path, ticks: int) -> tuple[int, dict[int, tuple[float, float]]]:
    """Publish both ways in turns.

    Returns:
        The file's bytes before, and for each bound of `store.IMAGE_BYTES` the medians of wall and
        CPU seconds.
    """
    run = run_in(folder)
    path = layout.log_path(run.directory, run.seed_id)
    publisher = store.Store(str(folder))
    publisher.clean_staging()
    publisher.open_run(run, run.seed_id, path)
    first, _ = publisher.publish(publication(run, path, None, ticks))
    original = Path(path).read_bytes()
    job = publication(run, path, first, ticks // 4)
    found: dict[int, list[tuple[float, float]]] = {2**40: [], 0: []}
    for _ in range(ROUNDS):
        for bound, times in found.items():
            Path(path).write_bytes(original)
            with mock.patch.object(store, "IMAGE_BYTES", bound):  # always or never in memory
                wall, cpu = time.perf_counter(), time.thread_time()
                publisher.publish(job)
                times.append((time.perf_counter() - wall, time.thread_time() - cpu))
    medians = {
        bound: (statistics.median(w for w, _ in times), statistics.median(c for _, c in times))
        for bound, times in found.items()
    }
    return len(original), medians


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as base:
        print(f"{'ticks':>8}{'file, kB':>10}{'in memory, ms':>22}{'on disk, ms':>22}")
        print(f"{'':>18}{'wall':>12}{'CPU':>10}{'wall':>12}{'CPU':>10}")
        for ticks in TICKS:
            size, medians = measure(Path(base).resolve() / str(ticks), ticks)
            cells = [1e3 * value for pair in medians.values() for value in pair]
            numbers = "".join(f"{v:>{12 - 2 * (i % 2)}.1f}" for i, v in enumerate(cells))
            print(f"{ticks:>8}{size / 1000:>10.0f}{numbers}")


if __name__ == "__main__":
    main()
