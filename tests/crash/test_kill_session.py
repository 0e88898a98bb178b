"""Trainers, daemons and merging processes are killed at any instant: nothing is lost or doubled.

This is the short version of `make crash`; see `kill_session`.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Final

import pytest

from tests.crash import kill_session

KILLS: Final = 10

pytestmark = pytest.mark.crash


@pytest.mark.timeout(180)
def test_every_tick_is_there_once_whoever_was_killed_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = int(os.environ.get("MLE_CRASH_SEED", random.randrange(2**32)))
    print(f"MLE_CRASH_SEED={seed}")
    for name, value in kill_session.SETTINGS.items():
        monkeypatch.setenv(name, value)

    session = kill_session.run(KILLS, seed, tmp_path)

    assert session.problems == []
    assert session.verdict.faults == {}
    assert session.killed >= KILLS
    assert session.verdict.stored > 0
