"""A training whose loss is still being computed when it is logged, in a process of its own.

    python -m benchmarks.devices_trial LIBRARY WAY FOLDER STEPS

LIBRARY is `jax` or `torch`; torch computes on a CUDA device, jax on whatever it finds.  Prints one
line of JSON: `Trained` of `benchmarks.devices`.  FOLDER is the experiment's.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mle_client import MLELogger

_TIMEOUT_S = 120.0
_WIDTH = 512
# Steps that the training is ahead of its device.  A queue that is full makes whoever asks for the
# next computation wait, logger or not.
_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Training:
    """One on some device.

    Args:
        step: () -> the loss, not computed yet.
        is_computed: (loss) -> whether it is.
        wait: (loss) waits until it is.
        device: its name.
    """

    step: Callable[[], Any]
    is_computed: Callable[[Any], bool]
    wait: Callable[[Any], object]
    device: str


def with_jax() -> Training:
    """One on jax's default device."""
    import jax

    def compute(matrix: Any) -> Any:
        for _ in range(4):
            matrix = matrix @ matrix / _WIDTH
        return matrix, matrix.sum()

    compiled = jax.jit(compute, donate_argnums=0)
    state = [jax.numpy.ones((_WIDTH, _WIDTH))]

    def step() -> Any:
        state[0], loss = compiled(state[0])
        return loss

    return Training(
        step,
        lambda loss: bool(loss.is_ready()),
        lambda loss: loss.block_until_ready(),
        str(jax.devices()[0].platform),
    )


def with_torch() -> Training:
    """One on torch's first CUDA device."""
    import torch

    width = 8 * _WIDTH  # such a device is faster
    state = [torch.ones((width, width), device="cuda")]
    computed: dict[int, Any] = {}  # by loss: what the device reaches after it

    def step() -> Any:
        matrix = state[0]
        for _ in range(4):
            matrix = matrix @ matrix / width
        state[0] = matrix
        loss = matrix.sum()
        computed[id(loss)] = torch.cuda.Event()
        computed[id(loss)].record()
        return loss

    return Training(
        step,
        lambda loss: bool(computed[id(loss)].query()),
        lambda loss: computed.pop(id(loss)).synchronize(),
        torch.cuda.get_device_name(0),
    )


def main(library: str, way: str, folder: str, steps: int) -> None:
    """Train, and log in one way: `given` as it is, or `read` by float() before."""
    training = {"jax": with_jax, "torch": with_torch}[library]()
    calls, waits = [], 0
    asked: deque[Any] = deque()
    log = MLELogger(experiment_dir=folder, seed_id=1, overwrite=True)
    for i in range(-10, steps):  # the first ones compile
        asked.append(training.step())
        if len(asked) > _AHEAD:
            training.wait(asked.popleft())
        loss = asked[-1]
        was_computed = training.is_computed(loss)
        begun = time.perf_counter()
        if way == "given":
            log.update({"num_steps": i}, {"train_loss": loss})
        else:
            log.update({"num_steps": i}, {"train_loss": float(loss)})
        calls.append(time.perf_counter() - begun)
        waits += i >= 0 and not was_computed and training.is_computed(loss)
    report = log.close(_TIMEOUT_S)
    if report.lost or report.spilled:
        raise RuntimeError(f"this is what became of the ticks: {report}")
    found = {"device": training.device, "calls_s": calls[10:], "waits": waits}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
