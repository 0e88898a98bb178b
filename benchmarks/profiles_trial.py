"""A process that logs as fast as it can, for `profiles` to look at it or its daemon.

    python -m benchmarks.profiles_trial FOLDER CASE

It says a line when it has begun, and ends when its input does.
"""

from __future__ import annotations

import sys
import threading

from benchmarks.update_cost import CASES
from mle_client import MLELogger

_TICKS = 2_000  # that are made beforehand, and logged again and again
_TIMEOUT_S = 600.0


def log(folder: str, case: str) -> None:
    """Log ticks of a case until nobody listens any more."""
    make, _ = CASES[case]
    ticks = [make(i, 0.731 * i) for i in range(_TICKS)]
    over = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    logger = MLELogger(experiment_dir=folder, seed_id=1, on_full="block", block_timeout=_TIMEOUT_S)
    begun = False
    while not over.is_set():
        for clock, stats in ticks:
            logger.update(clock, stats)
        if not begun:
            begun = True
            print("logging", flush=True)
    report = logger.close(_TIMEOUT_S)
    if report.lost or report.spilled:
        raise RuntimeError(f"this is what became of the ticks: {report}")


if __name__ == "__main__":
    log(*sys.argv[1:3])
