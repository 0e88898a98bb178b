"""What logging a value costs that a device is still computing.

A training asks its device for a step and goes on before that is done; whoever reads the loss waits
for it.  The loss of each step is given to `update()` as it is, or read by `float()` before, as is
done for other loggers.  Where there is no CUDA device torch is left out; jax computes on the CPU
in threads of its own then, which the training does not wait for either.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import bare, harness
from benchmarks.harness import Goal, Picture, Result, Table
from benchmarks.workspace import workspace
from mle_client import load_log

NAME: Final = "devices"
GIVEN, READ = "update(loss)", "update(float(loss))"
_WAYS: Final = {GIVEN: "given", READ: "read"}
# Share of calls that came back with the value computed that was not before.  It happens that it is
# computed just then; a logger that waits has 1.
WAITS_GOAL: Final = 0.05


@dataclass(frozen=True, slots=True)
class Size:
    """Args: rounds: trainings of each kind; steps: of a training."""

    rounds: int
    steps: int


SIZES: Final = {"full": Size(11, 500), "quick": Size(5, 200), "tiny": Size(1, 20)}


@dataclass(frozen=True, slots=True)
class Trained:
    """One training.

    Args:
        device: that it used.
        calls_s: seconds of each update(), with float() where that is called.
        waits: calls that came back with the loss computed that was not when they began.
    """

    device: str
    calls_s: Sequence[float]
    waits: int


Trainings = Mapping[str, Sequence[Mapping[str, Trained]]]  # {library: [{way: …}, a round each]}


def run(size: Size) -> Result:
    """Train with each library that is there."""
    with bare.bytecode(), workspace() as space:
        found = {name: _trainings(name, space.root, size) for name in _libraries()}
    goals = tuple(
        Goal(f"{library}: calls that waited for the device", WAITS_GOAL, _waits(rounds, GIVEN))
        for library, rounds in found.items()
    )
    return Result(NAME, (_table(found),), goals, {"trainings": found}, _pictures(found))


def _libraries() -> list[str]:
    there = [name for name in ("jax",) if importlib.util.find_spec(name) is not None]
    if importlib.util.find_spec("torch") is not None:
        import torch

        there += ["torch"] if torch.cuda.is_available() else []
    return there


def _trainings(library: str, root: Path, size: Size) -> list[dict[str, Trained]]:
    harness.tell(f"{NAME}: {library}")
    variants = {way: partial(_train, library, way, root, size.steps) for way in _WAYS}
    return harness.interleaved(variants, size.rounds)


def _train(library: str, way: str, root: Path, steps: int) -> Trained:
    folder = str(root / f"{library}-{_WAYS[way]}")
    program = (sys.executable, "-P", "-m", "benchmarks.devices_trial")
    life = bare.live((*program, library, _WAYS[way], folder, str(steps)))
    if len(load_log(folder).seed_1.stats["train_loss"]) != 10 + steps:
        raise RuntimeError(f"{folder} does not hold every tick")
    return Trained(**json.loads(life.said))


# --- tables ---------------------------------------------------------------------------------------
def _waits(rounds: Sequence[Mapping[str, Trained]], way: str) -> float:
    return harness.median(each[way].waits / len(each[way].calls_s) for each in rounds)


def _call_us(rounds: Sequence[Mapping[str, Trained]], way: str, share: float) -> float:
    return harness.median(harness.percentile(each[way].calls_s, share) * 1e6 for each in rounds)


def _table(found: Trainings) -> Table:
    rows = [
        (
            *(library, rounds[0][way].device, way),
            *(_call_us(rounds, way, share) for share in (0.5, 0.99)),
            _waits(rounds, way),
        )
        for library, rounds in found.items()
        for way in _WAYS
    ]
    if "torch" not in found:
        rows.append(("torch", "no CUDA device here", "not measured", "", "", ""))
    columns = ("library", "device", "call", "p50, us", "p99, us", "calls that waited")
    return Table(
        "A call with a value that is being computed; medians over the rounds", columns, (*rows,)
    )


def _pictures(found: Trainings) -> tuple[Picture, ...]:
    if not found:
        return ()
    series = {way: tuple(_call_us(found[name], way, 0.5) for name in found) for way in _WAYS}
    title = "A call with a value that is being computed: p50"
    return (Picture("calls", title, "us", series, tuple(found), log=True),)
