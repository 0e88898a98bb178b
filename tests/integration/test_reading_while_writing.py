"""Whoever reads while runs are being written gets a consistent prefix of the truth."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from mle_client import load_log
from mle_client.errors import LogNotFound
from mle_client.runlog import RunLog
from tests.integration import daemons
from tests.integration.sequences import expected, log_sequence

TICKS = 20_000


def assert_prefix(run: RunLog, seed: int) -> int:
    """Check one load.  Returns: how many ticks it had."""
    length = len(run.time.num_updates)
    for name, values in expected(seed, length).items():
        column = run.time[name] if name.startswith("num_") else run.stats[name]
        assert len(column) == length, name
        np.testing.assert_array_equal(column, values, err_msg=name)
    return length


@pytest.mark.parametrize("asked", [True, False], ids=["by load_log", "by whoever opens the file"])
def test_every_load_is_a_consistent_prefix(root: Path, asked: bool) -> None:
    folder = root / "run"
    lengths: list[int] = []
    with daemons.running(root):
        context = multiprocessing.get_context("spawn")
        writers = [
            context.Process(target=log_sequence, args=(str(folder), seed, TICKS, None, 0.01))
            for seed in range(2)
        ]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            try:
                log = load_log(str(folder)) if asked else load_log(f"{folder}/logs/log_seed_0.hdf5")
            except LogNotFound:
                continue
            lengths += [assert_prefix(log[seed], int(seed[-1])) for seed in log.eval_ids]
        for writer in writers:
            writer.join()
        log = load_log(str(folder))
        assert [assert_prefix(log[f"seed_{seed}"], seed) for seed in range(2)] == [TICKS] * 2
    assert len(set(lengths)) > 3  # it did look at different moments


def test_a_reader_without_a_daemon_takes_what_is_there(root: Path) -> None:
    daemons.start(root)
    log_sequence(str(root / "run"), 1, 100)
    daemons.stop(root)
    assert assert_prefix(load_log(str(root / "run")).seed_1, 1) == 100
