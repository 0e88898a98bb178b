"""A process whose memory `memory` looks at while it rests: a script, or many runs at once.

    python -m benchmarks.memory_trial script FOLDER
    python -m benchmarks.memory_trial runs FOLDER

It says a line whenever it rests, and goes on when it is told a number: `script` how many ticks its
run shall have by then, `runs` how many runs shall be open; 0 has a script close its run.

Nothing but what a script needs is imported, and no ticks are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mle_client import MLELogger

_TIMEOUT_S = 600.0
TICKS_OF_A_RUN = 10
_WAITING = 16  # flushes at a time, which the daemon serves together


def script(folder: str) -> None:
    """A script with one run.  It rests with numpy alone, with MLELogger imported, and so on."""
    import numpy

    _rest(numpy.__name__)
    from mle_client import MLELogger

    _rest("imported")
    log = MLELogger(experiment_dir=folder, seed_id=1, on_full="block", block_timeout=_TIMEOUT_S)
    ticks = 0
    while goal := _rest("ticks"):
        for i in range(ticks, goal):
            log.update({"num_steps": i}, {"train_loss": i * 1e-3, "test_loss": i * 2e-3})
        ticks = goal
        _flush(log)
    report = log.close(_TIMEOUT_S)
    if report.lost or report.spilled:
        raise RuntimeError(f"this is what became of the ticks: {report}")
    _rest("closed")


def runs(folder: str) -> None:
    """A process with many runs, each of which has some ticks.  It closes none: it is killed."""
    from mle_client import MLELogger

    logs: list[MLELogger] = []
    while goal := _rest("runs"):
        new = [MLELogger(experiment_dir=folder, seed_id=i) for i in range(len(logs), goal)]
        for log in new:
            for i in range(TICKS_OF_A_RUN):
                log.update({"num_steps": i}, {"train_loss": i * 1e-3, "test_loss": i * 2e-3})
        with ThreadPoolExecutor(_WAITING) as pool:
            list(pool.map(_flush, new))
        logs += new


def _rest(reached: str) -> int:
    """Say that it rests.  Returns: the next goal; 0 where there is no more."""
    print(reached, flush=True)
    return int(sys.stdin.readline() or 0)


def _flush(log: MLELogger) -> None:
    if not log.flush(_TIMEOUT_S):
        raise RuntimeError(f"flush() failed: {log.errors()}")


if __name__ == "__main__":
    _KINDS: dict[str, Callable[[str], None]] = {"script": script, "runs": runs}
    _KINDS[sys.argv[1]](sys.argv[2])
