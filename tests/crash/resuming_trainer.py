"""A script that saves models, figures and objects, and kills itself right after given saves.

Arguments: FOLDER SAVES VICTIMS KILL_AT.  VICTIMS is "trainer" or "pair", which means its daemon
first and then itself; KILL_AT are numbers of saves, joined by commas.  Started again, it goes on.
"""

import importlib.util
import os
import signal
import sys
from typing import Any

from mle_client import MLELogger
from mle_client.endpoint import live_daemon
from tests.crash.saves import ARGUMENTS, model, stats

FIGURE_EVERY = 20
EXTRA_EVERY = 7

folder, saves, victims, kill_at = sys.argv[1:5]


def figure(number: int) -> Any:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(1, 1))
    drawn.subplots().plot([0, number, 3])
    return drawn


def die() -> None:
    daemon = live_daemon(os.path.realpath(folder))
    if victims == "pair" and daemon is not None:
        os.kill(daemon.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


has_figures = importlib.util.find_spec("matplotlib") is not None
log = MLELogger(folder, **ARGUMENTS, reload=os.path.isdir(folder))
for number in range(log.model_log.model_save_counter + 1, int(saves) + 1):
    log.update(
        {"num_epochs": number},
        stats(number),
        model=model(number),
        plot_fig=figure(number) if has_figures and number % FIGURE_EVERY == 0 else None,
        extra_obj={"number": number} if number % EXTRA_EVERY == 0 else None,
    )
    if str(number) in kill_at.split(","):
        die()
report = log.close(timeout=60)
assert (report.lost, report.spilled, report.unstored) == (0, 0, 0), report
print(log.model_log.portfolio)
print(log.figure_log.fig_storage_paths, log.extra_log.extra_storage_paths)
