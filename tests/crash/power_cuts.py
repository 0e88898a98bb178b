"""Power cuts: a root on a file system in an image, which is copied at random instants under load.

Each copy is the disk as a power cut would leave it: what the kernel had not written by then, and
what lay in shared memory, is not in it.  While a copy is made, all processes are stopped; it counts
when another copy right behind it has the same bytes, for the kernel itself may have been writing.
The disk is one without a cache of its own: what was written to it is on it.

When the load is over, each copy is mounted in the place of the root, recovered with an empty ring
folder, and compared with what trainers had said before the cut.

    python -m tests.crash.power_cuts CUTS        by hand

The seed is printed; MLE_CRASH_SEED=… repeats the instants.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import h5py

from mle_client import MLELogger, layout
from tests import checker
from tests.crash import storage
from tests.crash.kill_session import read_logs
from tests.integration import daemons

CUTS_A_ROUND: Final = 4
_IMAGE_BYTES: Final = 32 * 2**20
_BETWEEN_CUTS_S: Final = (0.2, 1.2)
# The journal is synced within 200 ms; on a machine that runs other tests, a sync takes a while.
SYNCED_AFTER_S: Final = 0.2
SLACK_S: Final = 1.5
_COPIES: Final = 50
_RECOVER_S: Final = 300.0  # a second or two, unless other tests run
_BLOCK_BYTES: Final = 65536
_MERGED_TICKS: Final = 200


@dataclass
class Said:
    """What a trainer has said before a cut.

    Args:
        seed: of its run.
        covers: ticks that a successful flush has covered.
        saved: checkpoints before that flush.
        reports: (seconds, ticks sent, ticks acknowledged), oldest first.
    """

    seed: int
    covers: int = 0
    saved: int = 0
    reports: list[tuple[float, int, int]] = field(default_factory=list)

    def hear(self, trainer: storage.Trainer) -> None:
        """Take in what it has said meanwhile."""
        for line in trainer.said():
            if "flushed" in line:
                self.covers, self.saved = line["covers"], line["saved"]
            else:
                self.reports.append((line["at"], line["sent"], line["acked"]))

    def acknowledged_by(self, at: float) -> int:
        """Ticks acknowledged at a time."""
        return max((acked for when, _, acked in self.reports if when <= at), default=0)

    def lost_s(self, stored: int, at: float) -> float:
        """How long before a time the first tick was sent that is not stored."""
        kept = [when for when, sent, _ in self.reports if sent <= stored]
        missed = any(sent > stored for _, sent, _ in self.reports)
        return at - max(kept, default=at) if missed else 0.0


@dataclass(frozen=True)
class Cut:
    """A copy of the image.  Args: at: when, by a monotonic clock; said: by trainers till then."""

    image: Path
    at: float
    said: list[Said]


@dataclass
class Outcome:
    """What a series of cuts has shown.

    Args:
        lost_s: of each trainer and cut, the age of the oldest tick that is missing.
    """

    seed: int
    cuts: int = 0
    ticks: int = 0
    logs: int = 0
    checkpoints: int = 0
    lost_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run(cuts: int, seed: int, base: Path) -> Outcome:
    """Cut the power so many times, in rounds, until something is wrong.

    Args:
        base: an empty folder.
    """
    outcome, rng = Outcome(seed), random.Random(seed)
    while outcome.cuts < cuts and not outcome.problems:
        folder = base / f"round_{outcome.cuts}"
        (root := folder / "root").mkdir(parents=True)
        image = folder / "image"
        storage.make_image(image, _IMAGE_BYTES)
        with storage.mounted(image, root):
            taken = _under_load(root, image, min(CUTS_A_ROUND, cuts - outcome.cuts), rng)
        for cut in taken:
            with storage.mounted(cut.image, root):
                _check(root, cut, outcome)
            outcome.cuts += 1
        if not outcome.problems:
            shutil.rmtree(folder)  # else it is kept, to look at
    return outcome


# --- the load -------------------------------------------------------------------------------------
def _under_load(root: Path, image: Path, cuts: int, rng: random.Random) -> list[Cut]:
    """Have trainers work and copy the image now and then; in the end all are killed."""
    taken = []
    daemon = daemons.start(root, "--merge", "on-finish", "--merge-settle", "0.1")
    try:
        # One saves and flushes; of the other one, the journal has what was logged last.
        trainers = [
            storage.Trainer(root / "exp", 1, pause_s=0.005),
            storage.Trainer(root / "exp", 2, pause_s=0.05, burst=1),
        ]
        with trainers[0], trainers[1]:
            _log_what_is_merged(root)
            said = [Said(trainer.seed) for trainer in trainers]
            for trainer in trainers:
                trainer.wait_for(lambda told: told["acked"], storage.ANSWER_S)
                trainer.tell("report")
            trainers[0].tell("barriers")
            for number in range(cuts):
                until = time.monotonic() + rng.uniform(*_BETWEEN_CUTS_S)
                while time.monotonic() < until:
                    _hear(trainers, said)
                    time.sleep(0.01)
                pids = [daemon["pid"], *(trainer.process.pid for trainer in trainers)]
                at = time.monotonic()
                with _stopped(pids):
                    copy = image.with_name(f"cut_{number}")
                    _copy(image, copy)
                    _hear(trainers, said)
                taken.append(Cut(copy, at, [_as_now(each) for each in said]))
    finally:
        os.kill(daemon["pid"], signal.SIGKILL)
        daemons.wait_until_gone(root)
    return taken


def _hear(trainers: list[storage.Trainer], said: list[Said]) -> None:
    for trainer, each in zip(trainers, said, strict=True):
        each.hear(trainer)


def _as_now(said: Said) -> Said:
    return Said(said.seed, said.covers, said.saved, list(said.reports))


def _log_what_is_merged(root: Path) -> None:
    """Two seeds that end, and wait for their merged file."""
    for seed in (1, 2):
        with MLELogger(str(root / "done"), seed_id=seed, num_seeds=2) as log:
            for number in range(_MERGED_TICKS):
                log.update(*checker.tick(seed, number))
    daemons.wait_for((root / "done/logs/log.hdf5").exists)


@contextlib.contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _copy(image: Path, copy: Path) -> None:
    """Copy an image as it is at one instant."""
    before = b""
    for _ in range(_COPIES):
        now = image.read_bytes()
        if now == before:
            _write_sparse(copy, now)
            return
        before = now
    raise AssertionError("the kernel never stops writing")


def _write_sparse(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.truncate(len(data))
        for at in range(0, len(data), _BLOCK_BYTES):
            block = data[at : at + _BLOCK_BYTES]
            if block.count(0) != len(block):
                os.pwrite(file.fileno(), block, at)


# --- the verdict ----------------------------------------------------------------------------------
def _check(root: Path, cut: Cut, outcome: Outcome) -> None:
    """Look at what a cut has left, recover it, and look again."""
    where = cut.image.name
    outcome.problems += [f"{where}: {problem}" for problem in _torn(root, outcome)]
    with tempfile.TemporaryDirectory(prefix="mle-", dir="/tmp") as rings:
        before = os.environ["MLE_RUNTIME_DIR"]
        os.environ["MLE_RUNTIME_DIR"] = rings  # shared memory is gone
        try:
            done = daemons.mle_daemon("recover", "--root", str(root), "--json", timeout=_RECOVER_S)
        finally:
            os.environ["MLE_RUNTIME_DIR"] = before
    found = [each for each in json.loads(done.stdout)["findings"] if each["about"] != "disk"]
    outcome.problems += [f"{where}: the doctor finds {each}" for each in found]
    outcome.problems += [f"{where}, recovered: {problem}" for problem in _torn(root, Outcome(0))]
    stored = dict(_read(root / "exp"))
    for said in cut.said:
        columns = stored.get(said.seed, {})
        synced = said.acknowledged_by(cut.at - SYNCED_AFTER_S - SLACK_S)
        verdict = checker.judge(
            columns,
            said.seed,
            sent=max(said.covers, synced),
            begun=2**40,  # some may have been sent that were not reported
        )
        outcome.ticks += verdict.stored
        outcome.lost_s.append(said.lost_s(verdict.stored, cut.at))
        if verdict.faults:
            outcome.problems.append(
                f"{where}, seed {said.seed}: {verdict}, flushed {said.covers}, synced {synced}"
            )
    _check_saved(root, cut, outcome)
    merged = dict(_read(root / "done"))
    for seed in (1, 2):
        verdict = checker.judge(merged.get(seed, {}), seed, sent=_MERGED_TICKS, begun=_MERGED_TICKS)
        if verdict.faults:
            outcome.problems.append(f"{where}, merged seed {seed}: {verdict}")


def _read(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for seed, columns in read_logs(folder):
        yield seed, {name: each for name, each in columns.items() if name not in ("lost", "state")}


def _check_saved(root: Path, cut: Cut, outcome: Outcome) -> None:
    """What was saved before a flush is there, or a later one in its place."""
    saved = cut.said[0].saved
    path = root / "exp" / layout.final_path("seed_1", ".pkl")
    if saved and (not path.exists() or _number(path) < saved):
        outcome.problems.append(f"{cut.image.name}: checkpoint {saved} is not in {path}")


def _number(path: Path) -> float:
    """The number of a checkpoint.  Raises: whatever: it is torn."""
    weights = pickle.loads(path.read_bytes())["w"]
    assert (weights == weights[0]).all()
    return float(weights[0])


def _torn(root: Path, outcome: Outcome) -> Iterator[str]:
    """Which published files do not read whole."""
    for path in sorted(root.rglob("*.hdf5")):
        if layout.STATE_DIR in path.parts or path.name.startswith("."):
            continue
        outcome.logs += 1
        try:
            with h5py.File(path) as file:
                file.visititems(lambda _, item: isinstance(item, h5py.Dataset) and item[()] is None)
        except Exception as error:
            yield f"{path} is torn: {error}"
    for path in sorted(root.rglob("models/**/*.pkl")):
        outcome.checkpoints += 1
        try:
            _number(path)
        except Exception as error:
            yield f"{path} is torn: {error}"


def describe(outcome: Outcome) -> dict[str, Any]:
    """An outcome, for people."""
    lost = sorted(outcome.lost_s)
    return {
        "seed": outcome.seed,
        "cuts": outcome.cuts,
        "ticks": outcome.ticks,
        "logs": outcome.logs,
        "checkpoints": outcome.checkpoints,
        "lost_ms": {
            "median": round(1000 * lost[len(lost) // 2]) if lost else None,
            "p90": round(1000 * lost[len(lost) * 9 // 10]) if lost else None,
            "most": round(1000 * lost[-1]) if lost else None,
        },
        "problems": outcome.problems,
    }


def main(arguments: list[str]) -> int:
    """A series by hand."""
    seed = int(os.environ.get("MLE_CRASH_SEED", random.randrange(2**32)))
    with tempfile.TemporaryDirectory(prefix="mle-") as runtime:
        os.environ["MLE_RUNTIME_DIR"] = runtime
        base = Path(tempfile.mkdtemp(prefix="mle-cuts-"))
        outcome = run(int(arguments[0]), seed, base)
    print(json.dumps(describe(outcome), indent=1))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
