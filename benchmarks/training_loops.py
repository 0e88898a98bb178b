"""The training loops that `training` slows down: real models, small ones, on one core.

A small model is the hard case: its steps are short, so that what a tick costs weighs most.  It
knows nothing of loggers; a loop is given a function to call with its ticks.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

_BATCH: Final = 64
_BATCHES: Final = 28  # of 64: as many as the digits of scikit-learn make
_INPUTS: Final = 64
_CLASSES: Final = 10
_HIDDEN: Final = 256

Step = Callable[[], float]
Update = Callable[[dict[str, Any], dict[str, Any]], None]


# --- models ---------------------------------------------------------------------------------------
def torch_step() -> Step:
    """A perceptron with one hidden layer, on random data.  Returns: trains a batch; its loss."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(_INPUTS, _HIDDEN), torch.nn.ReLU(), torch.nn.Linear(_HIDDEN, _CLASSES)
    )
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = torch.randn(_BATCHES, _BATCH, _INPUTS)
    targets = torch.randint(_CLASSES, (_BATCHES, _BATCH))
    batches = itertools.cycle(list(zip(inputs, targets, strict=True)))

    def step() -> float:
        x, y = next(batches)
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        return float(loss.item())

    return step


def sklearn_step() -> Step:
    """A linear classifier of digits.  Returns: trains a batch; its accuracy on that."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import SGDClassifier

    digits = load_digits()
    inputs = np.array_split(digits.data / 16, _BATCHES)
    targets = np.array_split(digits.target, _BATCHES)
    batches = itertools.cycle(list(zip(inputs, targets, strict=True)))
    model = SGDClassifier(random_state=0)
    classes = np.arange(_CLASSES)

    def step() -> float:
        x, y = next(batches)
        model.partial_fit(x, y, classes)
        return float(model.score(x, y))

    return step


# Name -> (the library, what makes the step).
LOOPS: Final[Mapping[str, tuple[str, Callable[[], Step]]]] = {
    "torch, perceptron": ("torch", torch_step),
    "scikit-learn, SGDClassifier": ("sklearn", sklearn_step),
}


def installed(loop: str) -> bool:
    """Whether there is the library of a loop."""
    return importlib.util.find_spec(LOOPS[loop][0]) is not None


# --- loops ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Pace:
    """How often a loop logs.  Args: every: so many steps; updates: so many ticks."""

    every: int
    updates: int

    @classmethod
    def of(cls, ticks_per_s: float, step_s: float) -> Pace:
        """The pace that comes nearest.  Args: step_s: how long a step takes."""
        a_step = ticks_per_s * step_s
        return cls(max(1, round(1 / a_step)), max(1, round(a_step)))

    def ticks(self, steps: int) -> int:
        """How many ticks so many steps make."""
        return -(-steps // self.every) * self.updates


def train(step: Step, steps: int) -> None:
    """Train without a thought of logging."""
    for _ in range(steps):
        step()


def train_and_log(step: Step, steps: int, pace: Pace, update: Update) -> None:
    """Train, and hand over ticks as a script does: dicts that are made for each."""
    for i in range(steps):
        loss = step()
        if i % pace.every == 0:
            for _ in range(pace.updates):
                update(
                    {"num_steps": i, "num_epochs": i // _BATCHES},
                    {"train_loss": loss, "learning_rate": 0.01},
                )


@dataclass(frozen=True, slots=True)
class Spent:
    """What a block of steps took, in seconds.

    Args:
        wall_s: on the clock.
        cpu_s: of all threads of the process.
        background_s: of all threads but the one that trains.
    """

    wall_s: float
    cpu_s: float
    background_s: float


def spent_by(block: Callable[[], None]) -> Spent:
    """Run a block in this thread, and see what it takes."""
    wall, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
    block()
    own_s = time.thread_time() - own
    cpu_s = time.process_time() - cpu
    return Spent(time.perf_counter() - wall, cpu_s, max(0.0, cpu_s - own_s))
