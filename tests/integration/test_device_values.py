"""A script that logs what jax is still computing, through a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mle_client import MLELogger, load_log
from tests.integration import daemons


@pytest.mark.jax
def test_a_script_that_logs_arrays_of_jax_never_waits_for_them(root: Path) -> None:
    import jax
    import jax.numpy as jnp

    def step(state: Any) -> Any:
        step, matrix = state
        for _ in range(4):
            matrix = matrix @ matrix / 500
        return (step + 1, matrix), matrix.sum() * 0 + step

    step = jax.jit(step, donate_argnums=0)  # the state of a step is gone with the next one
    state: Any = (jnp.int32(0), jnp.ones((500, 500)))
    state, loss = step(state)
    waiting = 0
    with daemons.running(root), MLELogger(experiment_dir=f"{root}/run") as log:
        for epoch in range(40):
            state, loss = step(state)
            log.update(
                {"step": state[0]}, {"loss": loss, "epoch": epoch, "kind": "train"}, save=True
            )
            waiting += not loss.is_ready()
        assert waiting > 20  # else this machine computes faster than it logs, and nothing is shown
        report = log.close()
    assert (report.lost, report.unstored) == (0, 0)
    loaded = load_log(f"{root}/run")
    assert np.array_equal(loaded.time["step"], range(2, 42))
    assert np.array_equal(loaded.stats["loss"], range(1, 41))
    assert np.array_equal(loaded.stats["epoch"], range(40))
