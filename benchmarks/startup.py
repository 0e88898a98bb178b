"""What a user waits for before the first tick: imports, the constructor, a daemon's start.

Imports are measured from outside, in bare interpreters that take turns: from the start of the
process until its end, beside one that imports numpy, which a training has anyway.  A constructor is
timed in a bare interpreter too, as a script has it: nothing of it was ever run in that process.
Bytecode is cached and files are in memory, as at everybody's second start.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import h5py
import psutil

from benchmarks import bare, harness
from benchmarks.harness import Goal, Picture, Result, Table
from benchmarks.workspace import Workspace, workspace
from mle_client.endpoint import read_endpoint
from mle_client.layout import log_path

NAME: Final = "startup"
IMPORT_GOAL_MS: Final = 60.0  # over numpy's
CONSTRUCTOR_GOAL_MS: Final = 5.0  # with a daemon that runs
NUMPY, LOGGER, LOADER = "import numpy", "+ MLELogger", "+ load_log"
PACKAGE, H5PY, THEIRS = "+ import mle_client", "+ import h5py", "+ mle-logging's MLELogger"
STATUS: Final = "mle-daemon status"
RUNNING, ALONE = "a daemon runs", "none does: it starts one"
_LEAVE_TIMEOUT_S: Final = 60.0

# Each after `import numpy`.
_IMPORTS: Final = {
    NUMPY: "pass",
    PACKAGE: "import mle_client",
    LOGGER: "from mle_client import MLELogger",
    H5PY: "import h5py",
    LOADER: "from mle_client import load_log",
    THEIRS: "from mle_logging import MLELogger",
}
_PROGRAM: Final = """
import numpy
{statement}
from benchmarks.heavy import heavy_packages
import sys
print(len(sys.modules), *heavy_packages())
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        rounds: how often everything is imported.
        trials: how often a logger begins, in either way.
    """

    rounds: int
    trials: int


SIZES: Final = {"full": Size(40, 30), "quick": Size(11, 9), "tiny": Size(1, 1)}


@dataclass(frozen=True, slots=True)
class Trial:
    """A script that began to log.  Args: seconds: {piece: its time}; heavy: packages it loaded."""

    seconds: Mapping[str, float]
    heavy: tuple[str, ...]


Lives = Sequence[Mapping[str, bare.Life]]
Trials = Sequence[Mapping[str, Trial]]


def run(size: Size) -> Result:
    """Start interpreters, then loggers."""
    with bare.bytecode(), workspace() as space:
        harness.tell(f"{NAME}: imports")
        lives = measure_imports(space, size.rounds)
        harness.tell(f"{NAME}: loggers")
        trials = measure_trials(space, size.trials)
    tables = (import_table(lives), trial_table(trials))
    figures = {"imports": lives, "trials": trials}
    return Result(NAME, tables, _goals(lives, trials), figures, (_picture(lives),))


# --- measuring ------------------------------------------------------------------------------------
def measure_imports(space: Workspace, rounds: int) -> Lives:
    """Let bare interpreters import in turn, after a round that fills the caches."""
    statements = dict(_IMPORTS)
    if importlib.util.find_spec("mle_logging") is None:
        del statements[THEIRS]
    program = (sys.executable, "-P")
    commands: dict[str, Sequence[str]] = {
        name: (*program, "-W", "ignore", "-c", _PROGRAM.format(statement=statement))
        for name, statement in statements.items()
    }
    commands[STATUS] = (*program, "-m", "mle_daemon", "status", "--root", str(space.root))
    variants = {name: partial(bare.live, command) for name, command in commands.items()}
    harness.interleaved(variants, 1)
    return harness.interleaved(variants, rounds)


def measure_trials(space: Workspace, trials: int) -> Trials:
    """Let bare interpreters begin to log, in turn, after a round that fills the caches."""
    found = []
    for turn in range(trials + 1):
        ways: dict[str, Callable[[], Trial]] = {
            RUNNING: partial(_trial, space.root / f"run-{turn}"),
            ALONE: partial(_trial_alone, space.root.parent / f"alone-{turn}"),
        }
        found.append({name: ways[name]() for name in harness.rotated(ways, turn)})
    return found[1:]


def _trial(folder: Path) -> Trial:
    life = bare.live((sys.executable, "-P", "-m", "benchmarks.startup_trial", str(folder)))
    with h5py.File(log_path(str(folder), "seed_1")) as file:
        if len(file["seed_1/stats/train_loss"]) != 2:
            raise RuntimeError(f"{folder} does not hold the two ticks")
    found = json.loads(life.said)
    return Trial(found["seconds"], tuple(found["heavy"]))


def _trial_alone(folder: Path) -> Trial:
    """The same where no daemon is in charge; the one that is started is ended."""
    try:
        return _trial(folder)
    finally:
        endpoint = read_endpoint(str(folder))
        if endpoint is not None:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                daemon = psutil.Process(endpoint.pid)
                os.kill(daemon.pid, signal.SIGTERM)
                daemon.wait(_LEAVE_TIMEOUT_S)


# --- tables ---------------------------------------------------------------------------------------
def _over_numpy_ms(lives: Lives, name: str, figure: str = "wall_s") -> float:
    """The median over the rounds of what a program took more than the one that imports numpy."""
    return harness.median(
        float(getattr(each[name], figure) - getattr(each[NUMPY], figure)) * 1e3 for each in lives
    )


def import_table(lives: Lives) -> Table:
    """Whole lives of interpreters."""
    rows = []
    for name in lives[0]:
        wall, cpu = (
            harness.median(getattr(each[name], figure) for each in lives) * 1e3
            for figure in ("wall_s", "cpu_s")
        )
        over: tuple[Any, ...] = ("", "")
        loaded: tuple[str, ...] = ("", "")
        if name != STATUS:
            over = (_over_numpy_ms(lives, name), _over_numpy_ms(lives, name, "cpu_s"))
            loaded = lives[0][name].said.strip().partition(" ")[::2]
        rows.append((name, wall, cpu, *over, *loaded))
    columns = (
        *("program", "ms", "CPU, ms", "over numpy, ms", "CPU over numpy, ms"),
        *("modules", "heavy ones"),
    )
    return Table("A Python that imports, from its start until its end; medians", columns, (*rows,))


def trial_table(trials: Trials) -> Table:
    """What each piece of a script's beginning takes."""
    pieces = tuple(trials[0][RUNNING].seconds)
    rows = [
        (
            way,
            *(
                harness.median(each[way].seconds[piece] for each in trials) * 1e3
                for piece in pieces
            ),
            " ".join(sorted({name for each in trials for name in each[way].heavy})),
        )
        for way in (RUNNING, ALONE)
    ]
    columns = ("logger", *(f"{piece}, ms" for piece in pieces), "heavy packages")
    return Table("A script that begins to log, after its imports; medians", columns, tuple(rows))


def _goals(lives: Lives, trials: Trials) -> tuple[Goal, ...]:
    constructor = harness.median(each[RUNNING].seconds["constructor"] for each in trials) * 1e3
    heavy = {
        name: len(lives[0][name].said.split()[1:])
        for name in (PACKAGE, LOGGER)
    }  # fmt: skip
    return (
        *(
            Goal(f"{name}: {what} over numpy, ms", IMPORT_GOAL_MS, _over_numpy_ms(lives, name, how))
            for name in heavy
            for what, how in (("time", "wall_s"), ("CPU", "cpu_s"))
        ),
        *(Goal(f"{name}: heavy packages loaded", 0, count) for name, count in heavy.items()),
        Goal("constructor with a daemon that runs, ms", CONSTRUCTOR_GOAL_MS, constructor),
    )


def _picture(lives: Lives) -> Picture:
    names = tuple(name for name in lives[0] if name not in (NUMPY, STATUS))
    series = {
        "time": tuple(_over_numpy_ms(lives, name) for name in names),
        "CPU time": tuple(_over_numpy_ms(lives, name, "cpu_s") for name in names),
    }
    return Picture("imports", "What importing takes, over numpy", "ms", series, names)
