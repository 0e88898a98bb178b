"""A session of training whose every change of a file is recorded; see `recorded_disk.py`.

Arguments: ROOT TRACE.  It runs with `record_files.c` loaded before the C library.  What was
promised goes to stdout, as JSON, a line for each promise: from this size of the trace on, so much
is safe; or, of what is acknowledged only, from the next sync of the journal on.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Final

import numpy as np

from mle_client import MLELogger
from tests import checker
from tests.integration import daemons

SEEDS: Final = (1, 2)  # which are merged in the end; the third is still running
EXPERIMENT, OTHER = "exp", "other"
PARTS: Final = 4  # of a run, with a promise after each
TICKS: Final = 60  # of a part
WEIGHTS: Final = 500


def log_run(folder: str, seed: int, trace: str, *, ends: bool) -> None:
    """Log a run, and say after each part of it what is safe."""
    log = MLELogger(
        folder,
        seed_id=seed,
        num_seeds=len(SEEDS),
        model_type="numpy",
        save_every_k_ckpt=2,
        save_top_k_ckpt=2,
        top_k_metric_name=checker.VALUE,
        top_k_minimize_metric=True,
    )
    promised = functools.partial(promise, trace, os.path.basename(folder), seed)
    for number in range(PARTS * TICKS):
        if ends and number % (TICKS // 2) == 9:  # the other run has nothing but its log
            log.update(*checker.tick(seed, number), model={"w": np.full(WEIGHTS, number)})
        else:
            log.update(*checker.tick(seed, number))
        if number % TICKS == TICKS // 2:
            daemons.wait_for(lambda: not log.stats()["bytes_waiting"])
            promised(number + 1, is_synced=False)
        if number % TICKS == TICKS - 1:
            if ends:
                log.save_extra({"part": number // TICKS})
            assert log.flush(timeout=30), log.errors()
            promised(number + 1)
    if ends:
        report = log.close(timeout=30)
        assert (report.lost, report.unstored) == (0, 0), report
        promised(PARTS * TICKS)


def promise(trace: str, folder: str, seed: int, ticks: int, *, is_synced: bool = True) -> None:
    """Say what is safe from now on, or, where it is not synced yet, soon."""
    size = os.path.getsize(trace)
    print(json.dumps([folder, seed, ticks, size, is_synced]), flush=True)


def main(root: str, trace: str) -> None:
    """Two seeds that end, with a stop of the daemon between, a merge, and a run that goes on."""
    daemons.start(Path(root))
    for seed in SEEDS:
        log_run(f"{root}/{EXPERIMENT}", seed, trace, ends=True)
        daemons.stop(Path(root))
        daemons.start(Path(root))
    daemons.wait_for(lambda: os.path.exists(f"{root}/{EXPERIMENT}/logs/log.hdf5"))
    log_run(f"{root}/{OTHER}", 3, trace, ends=False)
    daemons.kill_all(Path(root))  # the recording is over, and others are about to use the root
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
