"""A run that was killed after any of its saves and continued ends as if nothing had happened.

Its trainer is killed, or its daemon and its trainer, right after a save returned.  Then the same
script goes on with `reload=True`.  In the end there is what a run leaves that nobody kills: every
file the same byte by byte, the log value by value but for the time that passed.

The seed is printed; MLE_CRASH_SEED=… kills at the same saves again.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import pytest

from mle_client import layout
from tests.crash.saves import SEED, assert_tidy, files_after, number_of
from tests.integration import daemons

SAVES: Final = 100
KILLS: Final = 10
NAME: Final = "run"  # of the folder, relative to where the script runs: meta/ has it, too
_TRAINER: Final = Path(__file__).with_name("resuming_trainer.py")

pytestmark = pytest.mark.crash


@dataclass(frozen=True)
class Outcome:
    """What a run has left.  Args: said: what the trainer printed of its lists in the end."""

    said: str
    files: dict[str, bytes]
    columns: dict[str, Any]
    elapsed: Any


def run_with_kills(place: Path, victims: str, kill_at: Iterable[int]) -> Outcome:
    """Run the script until it ends by itself.

    Args:
        place: an empty folder.
        victims: "trainer" or "pair".
        kill_at: numbers of the saves after which it is killed.
    """
    said = b""
    points = sorted(kill_at)
    arguments = [NAME, str(SAVES), victims, ",".join(map(str, points))]
    for life in range(len(points) + 1):
        done = subprocess.run(
            [sys.executable, str(_TRAINER), *arguments],
            cwd=place,
            env=daemons.environment(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == (-signal.SIGKILL if life < len(points) else 0), done.stderr
        assert done.stderr == b""
        said = done.stdout
    folder = place / NAME
    daemons.mle_daemon("stop", "--root", str(folder))
    daemons.wait_until_gone(folder)
    return look(folder, said.decode())


def look(folder: Path, said: str) -> Outcome:
    """What is on disk.  Args: said: goes into the outcome."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in paths}
    log = names.pop(f"logs/log_{SEED}.hdf5")
    files = {name: path.read_bytes() for name, path in names.items() if name[:5] != ".mle/"}
    columns: dict[str, Any] = {}

    def take(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            columns[name] = found[()]

    with h5py.File(log) as file:
        file[SEED].visititems(take)
    kept = f"meta/{layout.KEPT_NAME}"
    columns[kept] = columns[kept][0].rstrip()  # there is room behind it for a longer one
    elapsed = columns.pop("time/time_elapsed")
    del columns["time/time"]  # by the clock on the wall
    return Outcome(said, files, columns, elapsed)


_UNINTERRUPTED: list[Outcome] = []  # of the first test that needs it


def uninterrupted(place: Path) -> Outcome:
    """What is left where nothing is killed."""
    if not _UNINTERRUPTED:
        place.mkdir()
        _UNINTERRUPTED.append(run_with_kills(place, "trainer", ()))
    return _UNINTERRUPTED[0]


def assert_same(found: Outcome, expected: Outcome) -> None:
    """All but the passing of time is the same."""
    assert found.said == expected.said
    assert found.files.keys() == expected.files.keys()
    assert [name for name in found.files if found.files[name] != expected.files[name]] == []
    assert found.columns.keys() == expected.columns.keys()
    for name, column in expected.columns.items():
        np.testing.assert_array_equal(found.columns[name], column, name)
    assert (np.diff(found.elapsed) > 0).all()


def test_the_uninterrupted_run_leaves_what_it_should(root: Path, runtime_dir: Path) -> None:
    found = uninterrupted(root / "uninterrupted")

    models = {name: number_of(b) for name, b in found.files.items() if name[:7] == "models/"}
    assert models == files_after(SAVES)
    extras = {name for name in found.files if name.startswith("extra/")}
    assert extras == {f"extra/extra_{n}_{SEED}.pkl" for n in range(1, 15)}
    figures = {name for name in found.files if name.startswith("figures/")}
    assert figures in ({f"figures/fig_{n}_{SEED}.png" for n in range(1, 6)}, set())
    np.testing.assert_array_equal(found.columns["time/num_updates"], np.arange(SAVES) + 1)
    assert_tidy(root / "uninterrupted" / NAME, runtime_dir)


@pytest.mark.parametrize("victims", ["trainer", "pair"])
def test_a_run_killed_after_some_saves_ends_as_an_uninterrupted_one(
    root: Path, runtime_dir: Path, victims: str
) -> None:
    seed = int(os.environ.get("MLE_CRASH_SEED", random.randrange(2**32)))
    points = random.Random(f"{victims}{seed}").sample(range(1, SAVES + 1), KILLS // 2)
    print(f"MLE_CRASH_SEED={seed}, killed after {sorted(points)}")
    (root / "killed").mkdir()

    found = run_with_kills(root / "killed", victims, points)

    assert_same(found, uninterrupted(root / "uninterrupted"))
    assert_tidy(root / "killed" / NAME, runtime_dir)


@pytest.mark.long
@pytest.mark.parametrize("victims", ["trainer", "pair"])
@pytest.mark.parametrize("point", range(1, SAVES + 1))
def test_a_run_killed_after_any_save_ends_as_an_uninterrupted_one(
    root: Path, runtime_dir: Path, point: int, victims: str
) -> None:
    (root / "killed").mkdir()

    found = run_with_kills(root / "killed", victims, [point])

    assert_same(found, uninterrupted(root / "uninterrupted"))
    assert_tidy(root / "killed" / NAME, runtime_dir)
