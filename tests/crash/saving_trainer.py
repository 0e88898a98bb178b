"""A script that saves a checkpoint at every step, and goes on where an earlier life of it ended.

Arguments: FOLDER SAVES NOTES PAUSE_S.  It notes what returned, line by line.
"""

import os
import random
import sys
import time

from mle_client import MLELogger
from tests.crash.saves import ARGUMENTS, model, stats

folder, saves, notes, pause_s = sys.argv[1:5]
paper = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)


def note(name: str, what: object) -> None:
    os.write(paper, f"{name} {what}\n".encode())


log = MLELogger(
    folder,
    **ARGUMENTS,
    reload=os.path.isdir(folder),
    on_error=lambda error: note("error", str(error).replace("\n", " ")),
)
begun = log.model_log.model_save_counter
note("begun", begun)
for number in range(begun + 1, int(saves) + 1):
    log.update({"num_epochs": number}, stats(number), model=model(number))
    note("saved", number)
    if random.random() < 0.9:  # else a burst
        time.sleep(float(pause_s))
report = log.close(timeout=60)
note("closed", f"lost={report.lost} spilled={report.spilled} unstored={report.unstored}")
