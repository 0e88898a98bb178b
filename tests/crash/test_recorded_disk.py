"""Every disk that a crash may leave is recovered: of all changes of files, any first so many.

A session of training with several daemons, checkpoints and a merge is recorded once, call by call.
For a moment of it the disk is made as a crash would leave it (`recorded_disk.py`), a daemon
recovers it, and what was promised before that moment must be there.  Rings are gone: they lay in
memory.

The seed of what is random is printed; MLE_CRASH_SEED=… repeats it.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from mle_client import discovery
from mle_daemon import daemon
from mle_daemon.config import OFF, DaemonConfig
from tests import checker
from tests.crash import recorded_work as work
from tests.crash import shims
from tests.crash.kill_session import read_logs
from tests.crash.recorded_disk import CHANCE, PROCESSES, WORST, Change, Disk, read_trace

HERE: Final = Path(__file__).parent
# Where syncing costs nothing, if there is such a place: there are thousands of disks.
MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
MOMENTS: Final = 20  # of each kind of crash, where there is little time
LONG_PARTS: Final = 4  # of a long test, so that none takes minutes

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(sys.platform != "linux", reason="calls are recorded as on Linux"),
]


Ticks: TypeAlias = dict[tuple[str, int], int]  # of each run, by folder and seed


@dataclass(frozen=True)
class Promise:
    """What is safe.

    Args:
        run: its folder and seed.
        ticks: of it.
        since: the end of a change of files, in the trace.
    """

    run: tuple[str, int]
    ticks: int
    since: int


@dataclass(frozen=True)
class Recording:
    """A recorded session.

    Args:
        root: below which all is made anew for each disk.
        inode: of the root, when it was recorded.
        changes: of what lay below it.
    """

    root: Path
    inode: int
    changes: list[Change]
    promises: list[Promise]

    def promised(self, end: int) -> Ticks:
        """The ticks that are safe after the change that ends there."""
        return {p.run: p.ticks for p in self.promises if p.since <= end}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    """A session, recorded."""
    shim = shims.build("record_files", tmp_path_factory.mktemp("shim"))
    with tempfile.TemporaryDirectory(prefix="mle-disk-", dir=MEMORY) as folder:
        root, trace = Path(folder, "root"), Path(folder, "trace")
        root.mkdir()
        inode = root.stat().st_ino
        Path(folder, "run").mkdir(mode=0o700)
        environment = {
            **discovery.python_environment(),
            "LD_PRELOAD": shim,
            "MLE_RECORD_BELOW": str(root),
            "MLE_RECORD_TO": str(trace),
            "MLE_RUNTIME_DIR": f"{folder}/run",
            "MLE_MERGE": "on-finish",
        }
        program = [sys.executable, "-m", "tests.crash.recorded_work", str(root), str(trace)]
        done = subprocess.run(
            program, env=environment, cwd=HERE.parents[1], capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        changes = list(read_trace(trace.read_bytes()))
        promises = [read_promise(line, changes) for line in done.stdout.splitlines()]
        yield Recording(root, inode, changes, promises)


def read_promise(line: str, changes: list[Change]) -> Promise:
    """What the session has said."""
    folder, seed, ticks, size, is_synced = json.loads(line)
    if not is_synced:
        syncs = (c.end for c in changes if c.kind == "s" and c.path.endswith(".mlej"))
        size = next((end for end in syncs if end > size), changes[-1].end + 1)  # or never
    return Promise((folder, seed), ticks, size)


def recover(root: Path) -> int:
    """Have a daemon bring into the logs what the journal has.  Returns: its exit status."""
    pid = os.fork()  # a program that only starts takes longer than all that it does here
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        signal.alarm(30)
        config = DaemonConfig(str(root), merge=OFF)
        ready = lambda endpoint: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        os._exit(daemon.run(config, ready, detached=True))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(9)


def problems(root: Path, promised: Ticks, how: str, *, holds: bool) -> list[str]:
    """What is wrong with the files below a root.

    Args:
        promised: the ticks that are safe.
        how: the disk has crashed.
        holds: whether they must be in the logs now.
    """
    found: Ticks = {}
    wrong = []
    for folder in (work.EXPERIMENT, work.OTHER):
        for seed, columns in read_logs(root / folder):
            lost = columns.pop("lost")
            columns.pop("state")
            verdict = checker.judge(columns, seed, sent=0, begun=work.PARTS * work.TICKS)
            faults = verdict.faults
            if how == CHANCE:  # of what was not synced, what is there is kept
                faults = {name: faults[name] for name in faults.keys() - {"missing", "uncounted"}}
            if faults or lost:
                wrong.append(f"{folder}, seed {seed}: {faults}, lost={lost}")
            whole = first_missing(columns.get(checker.STEP, ()))
            found[folder, seed] = max(found.get((folder, seed), 0), whole)
    if holds:
        wrong += [
            f"{run}: {found.get(run, 0)} ticks of {ticks}"
            for run, ticks in promised.items()
            if found.get(run, 0) < ticks
        ]
    return wrong + [why for path in root.rglob("*.pkl") if (why := torn(path))]


def first_missing(steps: Sequence[int]) -> int:
    """The first number that is not there."""
    stored = set(map(int, steps))
    return next(number for number in itertools.count() if number not in stored)


def torn(path: Path) -> str:
    """What is wrong with a stored object; "" if nothing is."""
    try:
        stored = pickle.loads(path.read_bytes())
    except Exception as error:
        return f"{path} is torn: {error!r}"
    is_whole = "part" in stored or (
        stored["w"].shape == (work.WEIGHTS,) and (stored["w"] == stored["w"][0]).all()
    )
    return "" if is_whole else f"{path} is torn"


def check(recording: Recording, how: str, moments: list[int], rng: random.Random) -> None:
    """Recover the disks of some moments, one after another."""
    disk = Disk(str(recording.root), recording.inode)
    wanted = set(moments)
    for number, change in enumerate(recording.changes):
        disk.apply(change)
        if number not in wanted:
            continue
        shutil.rmtree(recording.root)
        disk.write_out(how, rng)
        promised = recording.promised(change.end)
        wrong = problems(recording.root, promised, how, holds=False)  # what is there is whole
        status = recover(recording.root)
        wrong += [f"the daemon ended with {status}"] if status else []
        wrong += [f"then: {each}" for each in problems(recording.root, promised, how, holds=True)]
        assert not wrong, (how, number, change.kind, change.path, change.other, wrong)


def some(recording: Recording, rng: random.Random) -> list[int]:
    """Moments: some by chance, and those right after a promise."""
    ends = [change.end for change in recording.changes]
    after = [bisect.bisect_left(ends, promise.since) for promise in recording.promises]
    return [*after, *rng.sample(range(len(recording.changes)), MOMENTS)]


@pytest.fixture
def rng() -> random.Random:
    """Chance, with a seed that is printed."""
    seed = int(os.environ.get("MLE_CRASH_SEED", random.randrange(2**32)))
    print(f"MLE_CRASH_SEED={seed}")
    return random.Random(seed)


@pytest.mark.parametrize("how", [PROCESSES, WORST, CHANCE])
def test_what_was_promised_is_there_after_a_crash(
    recording: Recording, how: str, rng: random.Random
) -> None:
    check(recording, how, some(recording, rng), rng)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(LONG_PARTS))
@pytest.mark.parametrize("how", [PROCESSES, WORST, CHANCE])
def test_what_was_promised_is_there_after_a_crash_at_every_moment(
    recording: Recording, how: str, part: int, rng: random.Random
) -> None:
    check(recording, how, list(range(part, len(recording.changes), LONG_PARTS)), rng)
