"""A script that begins to log, in an interpreter that has loaded nothing else.

    python -m benchmarks.startup_trial FOLDER

Prints one line of JSON: seconds of each piece, and the names of heavy packages that are loaded in
the end.  FOLDER is the experiment's.
"""

from __future__ import annotations

import json
import sys
import time

from benchmarks.heavy import heavy_packages
from mle_client import MLELogger

_TIMEOUT_S = 120.0


def main(folder: str) -> None:
    """Construct a logger, log two ticks, have them stored, close, and construct another one."""
    marks = [time.perf_counter()]
    log = MLELogger(experiment_dir=folder, seed_id=1)
    marks.append(time.perf_counter())
    for i in range(2):
        log.update({"num_steps": i}, {"train_loss": 0.5})
        marks.append(time.perf_counter())
    flushed = log.flush(_TIMEOUT_S)
    marks.append(time.perf_counter())
    report = log.close(_TIMEOUT_S)
    marks.append(time.perf_counter())
    with MLELogger(experiment_dir=folder, seed_id=2):
        marks.append(time.perf_counter())
    if not flushed or report.lost or report.spilled:
        raise RuntimeError(f"this is what became of the ticks: {report}")
    names = ("constructor", "first update", "second update", "flush", "close", "next constructor")
    pieces = {name: marks[i + 1] - marks[i] for i, name in enumerate(names)}
    print(json.dumps({"seconds": pieces, "heavy": heavy_packages()}))


if __name__ == "__main__":
    main(sys.argv[1])
