"""A power cut takes what was not synced yet, and nothing that was; see `power_cuts`."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.crash import power_cuts

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]


def cut(times: int, folder: Path) -> None:
    seed = int(os.environ.get("MLE_CRASH_SEED", random.randrange(2**32)))
    print(f"MLE_CRASH_SEED={seed}")
    outcome = power_cuts.run(times, seed, folder)
    print(json.dumps(power_cuts.describe(outcome)))
    assert not outcome.problems, outcome.problems
    assert outcome.cuts == times


def test_what_was_synced_is_there_after_a_power_cut_and_no_file_is_torn(tmp_path: Path) -> None:
    cut(power_cuts.CUTS_A_ROUND, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_power_cuts(tmp_path: Path) -> None:
    cut(100, tmp_path)
