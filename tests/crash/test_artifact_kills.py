"""A trainer that saves checkpoints, its daemon, or both are killed at any instant.

While that goes on, a watcher looks at the files all the time.  At any moment a final name leads to
a whole checkpoint, none that was there is missing, and none goes before what replaces it is there.
In the end there is what an uninterrupted run would have left, and nothing else.

The seed is printed; MLE_CRASH_SEED=… repeats a run as far as a schedule of kills can be repeated.
"""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Final

import pytest

from mle_client import layout
from tests.crash.saves import EXTENSION, SEED, Trainer, assert_left, files_after, number_of

SAVES: Final = 300
KILLS: Final = 6  # instants; at some, trainer and daemon are killed
PAUSE_S: Final = 0.006  # between two saves: the disk keeps up, and kills hit every step of it
LATEST_KILL_S: Final = 0.03  # after the save that sets it off: four saves later at most
LOOK_EVERY_S: Final = 0.002  # a look takes as long; the processes that are looked at need the CPU
_RETAINED: Final = "models/retained/"
_FINAL: Final = layout.final_path(SEED, EXTENSION)

pytestmark = pytest.mark.crash


class Watcher:
    """Looks at the checkpoints of a run, again and again, from a thread of its own.

    Args:
        folder: of the experiment.
    """

    def __init__(self, folder: Path) -> None:
        self.looks = 0
        self.problems: list[str] = []
        self._folder = folder
        self._seen: dict[str, int] = {}  # names that must stay, and the number last found there
        self._whole: dict[tuple[str, int, int, int], int] = {}  # files that were read before
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher")

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S) and not self.problems:
            try:
                self._look()
            except Exception as error:
                self.problems.append(f"{type(error).__name__}: {error}")
            self.looks += 1

    def _look(self) -> None:
        retained = self._retained()
        stored = self._seen.get(_FINAL, 0)
        for name in {*self._seen, *self._names()}:
            self._check(name)
        # Checkpoints get their names in order, so that those of all before are there by now.
        if stored:
            for name, number in files_after(stored - 1).items():
                if not name.startswith(_RETAINED) and self._seen.get(name, -1) < number:
                    self.problems.append(f"{name} is not that of {number}; {stored} is stored")
        self._check_retained(retained)

    def _check(self, name: str) -> None:
        """A name that must stay leads to a whole checkpoint, and never to an older one."""
        number = self._number(name)
        if number is None:
            self.problems.append(f"{name} is gone")
        elif number < self._seen.get(name, 0):
            self.problems.append(f"{name} went back from {self._seen[name]} to {number}")
        else:
            self._seen[name] = number

    def _check_retained(self, found: set[int]) -> None:
        """What the rules keep is there until what they keep instead is."""
        if not found:
            return
        # A folder is not read in an instant.  What it lacks was kept no longer by a checkpoint
        # that was stored before it was read to its end, so one that is there soon after.
        latest = max(found)
        soon_after = max(max(self._retained()), max(self._retained()))
        for number in _retained_after(latest) - found:
            if all(number in _retained_after(n) for n in range(latest, soon_after + 1)):
                self.problems.append(f"{number} is not among {sorted(found)}, {_RETAINED}")

    def _retained(self) -> set[int]:
        """The numbers in models/retained; each file that is read is whole."""
        try:
            names = os.listdir(self._folder / _RETAINED)
        except FileNotFoundError:
            return set()
        numbers = set()
        for name in names:
            number = layout.retained_number(f"{_RETAINED}{name}", SEED, EXTENSION)
            if number is None:
                self.problems.append(f"{name} is no name in {_RETAINED}")
                continue
            numbers.add(number)
            if self._number(f"{_RETAINED}{name}") not in (None, number):  # None: it has just gone
                self.problems.append(f"{name} holds another checkpoint")
        return numbers

    def _names(self) -> list[str]:
        found = []
        for kind in ("final", "every_k", "top_k", "init"):
            try:
                found += [f"models/{kind}/{n}" for n in os.listdir(self._folder / "models" / kind)]
            except FileNotFoundError:
                continue
        return found

    def _number(self, name: str) -> int | None:
        """The number of the checkpoint in a file; None if there is none."""
        try:
            file = open(self._folder / name, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return None
        with file:
            was = os.fstat(file.fileno())
            key = name, was.st_ino, was.st_mtime_ns, was.st_size
            if key not in self._whole:
                self._whole[key] = number_of(file.read())
            return self._whole[key]


def _retained_after(saves: int) -> set[int]:
    names = files_after(saves)
    return {number for name, number in names.items() if name.startswith(_RETAINED)}


def kill_now_and_then(trainer: Trainer, kills: int, rng: random.Random) -> dict[str, int]:
    """Kill trainer and daemon at random instants until the trainer has ended by itself.

    Args:
        kills: how many instants.

    Returns:
        How often whom.
    """
    killed = {"trainer": 0, "daemon": 0}
    # The last ones hit trainers that wait for the end, and those that find nothing left to do.
    for target in sorted(rng.randint(0, trainer.saves) for _ in range(kills)):
        victims = rng.choice(
            [["trainer"], ["daemon"], ["trainer", "daemon"], ["daemon", "trainer"]]
        )
        while trainer.returned < target and trainer.process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, LATEST_KILL_S))
        for victim in victims:
            if victim == "trainer":
                trainer.kill()
                killed["trainer"] += 1
            elif trainer.kill_daemon():
                killed["daemon"] += 1
            if rng.random() < 0.3:  # also in the middle of a start
                time.sleep(rng.uniform(0, 0.8))
        if trainer.process.poll() is not None:
            trainer.start()
    return killed


@pytest.mark.parametrize(
    "attempt", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 21))]
)
def test_whoever_is_killed_files_are_whole_and_none_is_missing(
    root: Path, runtime_dir: Path, attempt: int
) -> None:
    seed = int(os.environ.get("MLE_CRASH_SEED", random.randrange(2**32)))
    print(f"attempt {attempt}: MLE_CRASH_SEED={seed}")
    folder = root / "run"
    trainer = Trainer(folder, SAVES, str(PAUSE_S))
    try:
        with Watcher(folder) as watcher:
            killed = kill_now_and_then(trainer, KILLS, random.Random(seed))
            trainer.assert_well()
    finally:
        trainer.end()
    print(f"killed {killed}, looked {watcher.looks} times")
    assert watcher.problems == []
    assert sum(killed.values()) >= KILLS / 2
    assert watcher.looks > SAVES
    assert_left(folder, runtime_dir, SAVES)
