"""A session of kills: trainers log known numbers, and whoever takes part is killed at any instant.

In each round a few trainers, forked so that a life costs little, log to one root; daemons are
started by them and by hand, merge what has ended twice a second, and are killed as they start, work
and merge.  Then the last daemon is stopped as a user would, and every file is read: all that
`update()` has returned for must be there once, in order and whole, whoever was killed when.

    python -m tests.crash.kill_session KILLS [REPORT]        by hand; `make crash N=KILLS` does that

The seed is printed; MLE_CRASH_SEED=… repeats a run as far as a schedule of kills can be repeated.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import psutil

from mle_client import MLELogger, discovery, layout, runtime
from tests import checker
from tests.checker import Verdict
from tests.integration import daemons

TRAINERS: Final = 3  # at a time; the machine may have two cores
KILLS_A_ROUND: Final = 25
_CONFIGS: Final = ("lr_0.1", "lr/0.5")
_TICKS: Final = (2_000, 40_000)  # of a trainer that is let live
_BURST: Final = 200  # ticks between two pauses
_SAVE_EVERY: Final = 3_000  # ticks between two checkpoints
_WEIGHTS: Final = 20_000  # numbers in one: some chunks
_LONGEST_PAUSE_S: Final = 0.004  # of a trainer
_BETWEEN_KILLS_S: Final = (0.0, 0.5)
_STARTING_S: Final = (0.0, 1.2)  # in which a daemon imports, recovers and begins to work
_AWAITED_S: Final = 3.0  # how long a merging process is waited for
_MERGING_S: Final = (0.0, 0.8)  # in which it imports and merges some
_CLOSE_S: Final = 60.0
# What is killed, and how often: a trainer, the daemon, both, everything, the merging process, a
# daemon that starts.
_TARGETS: Final = {"trainer": 3, "daemon": 3, "both": 2, "all": 1, "merging": 2, "starting": 3}


@dataclass(frozen=True, eq=False)
class Life:
    """A trainer.

    Args:
        folder: its experiment.
        seed: of its run.
        pid: of its process.
        notes: shared with it: calls of `update()` that were made, that have returned, and whether
            `close()` has returned and said that all was delivered.
    """

    folder: Path
    seed: int
    pid: int
    notes: mmap.mmap

    @property
    def begun(self) -> int:
        return _read(self.notes, 0)

    @property
    def sent(self) -> int:
        return _read(self.notes, 1)

    @property
    def closed(self) -> bool:
        return bool(_read(self.notes, 2))

    def is_over(self) -> bool:
        """Whether its process has ended.  It is reaped then; ask once more only if not."""
        return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid


_NOTE: Final = struct.Struct("<Q")


def _read(notes: mmap.mmap, index: int) -> int:
    return int(_NOTE.unpack_from(notes, index * _NOTE.size)[0])


def _write(notes: mmap.mmap, index: int, value: int) -> None:
    _NOTE.pack_into(notes, index * _NOTE.size, value)


def _start_life(folder: Path, seed: int, rng: random.Random) -> Life:
    notes = mmap.mmap(-1, 3 * _NOTE.size)
    ticks, pause_s = rng.randint(*_TICKS), rng.uniform(0, _LONGEST_PAUSE_S)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _live(str(folder), seed, ticks, pause_s, notes)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return Life(folder, seed, pid, notes)


def _live(folder: str, seed: int, ticks: int, pause_s: float, notes: mmap.mmap) -> None:
    log = MLELogger(
        folder,
        seed_id=seed,
        model_type="numpy",
        save_every_k_ckpt=2,
        on_error=lambda error: None,  # that daemons die is no news
    )
    for number in range(ticks):
        _write(notes, 0, number + 1)
        if number % _SAVE_EVERY == _SAVE_EVERY - 1:
            log.update(*checker.tick(seed, number), model={"w": np.full(_WEIGHTS, number)})
        else:
            log.update(*checker.tick(seed, number))
        _write(notes, 1, number + 1)
        if number % _BURST == 0:
            time.sleep(pause_s)
    report = log.close(timeout=_CLOSE_S)
    if (report.delivered, report.lost, report.unstored) != (ticks, 0, 0):
        raise RuntimeError(f"{report}: {log.errors()}")
    _write(notes, 2, 1)


@dataclass
class Session:
    """What a session has done and found.

    Args:
        seed: of everything that is random.
        kills: by what was killed.
        runs: that were read.
        checkpoints: that were read.
        verdict: on all ticks.
        problems: of anything else.
        rounds: that are over.
    """

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    checkpoints: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    problems: list[str] = field(default_factory=list)
    rounds: int = 0

    @property
    def killed(self) -> int:
        return self.kills.total()

    def report(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {
            "seed": self.seed,
            "kills": self.killed,
            "killed": dict(self.kills),
            "rounds": self.rounds,
            "runs": self.runs,
            "checkpoints": self.checkpoints,
            "ticks": self.verdict.stored,
            "faults": self.verdict.faults,
            "problems": self.problems,
        }


def run(kills: int, seed: int, base: Path) -> Session:
    """Kill so many processes, in rounds, until something is wrong.

    Args:
        base: an empty folder.
    """
    session, rng = Session(seed), random.Random(seed)
    while session.killed < kills and not (session.problems or session.verdict.faults):
        root = base / f"round_{session.rounds}"
        root.mkdir()
        most = min(KILLS_A_ROUND, kills - session.killed)
        with _Round(root, rng, session) as this:
            this.kill(most)
            this.end()
        this.check()
        session.rounds += 1
        if not (session.problems or session.verdict.faults):
            shutil.rmtree(root)  # else it is kept, to look at
    return session


class _Round:
    """Trainers and daemons of one root, and their kills."""

    def __init__(self, root: Path, rng: random.Random, session: Session) -> None:
        self._root, self._rng, self._session = root, rng, session
        self._lives: list[Life] = []
        self._alive: list[Life] = []
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> _Round:
        daemons.start(self._root)  # else loggers would start one for each experiment
        return self

    def __exit__(self, *_: object) -> None:
        for life in self._alive:
            os.kill(life.pid, signal.SIGKILL)
            os.waitpid(life.pid, 0)
        for process in self._daemon_processes():
            process.kill()
        for started in self._started:
            started.wait()

    # --- killing ------------------------------------------------------------------------------
    def kill(self, count: int) -> None:
        """Kill processes until so many were."""
        until = self._session.killed + count
        while self._session.killed < until:
            self._keep_trainers()
            time.sleep(self._rng.uniform(*_BETWEEN_KILLS_S))
            (target,) = self._rng.choices([*_TARGETS], [*_TARGETS.values()])
            getattr(self, f"_kill_{target}")()

    def _keep_trainers(self) -> None:
        self._reap()
        while len(self._alive) < TRAINERS:
            folder = self._root / self._rng.choice(_CONFIGS)
            life = _start_life(folder, 1 + len(self._lives), self._rng)
            self._lives.append(life)
            self._alive.append(life)

    def _reap(self) -> None:
        self._alive = [life for life in self._alive if not life.is_over()]
        self._started = [each for each in self._started if each.poll() is None]

    def _kill_trainer(self) -> None:
        self._reap()
        if self._alive:
            life = self._alive.pop(self._rng.randrange(len(self._alive)))
            os.kill(life.pid, signal.SIGKILL)
            os.waitpid(life.pid, 0)
            self._session.kills["trainer"] += 1

    def _kill_daemon(self) -> None:
        for process in self._daemon_processes():
            if not _is_merging(process):
                self._kill_process(process, "daemon")

    def _kill_both(self) -> None:
        self._kill_daemon()
        self._kill_trainer()

    def _kill_all(self) -> None:
        for process in self._daemon_processes():
            self._kill_process(process, "merging process" if _is_merging(process) else "daemon")
        while self._alive:
            self._kill_trainer()

    def _kill_merging(self) -> None:
        deadline = time.monotonic() + _AWAITED_S
        while time.monotonic() < deadline:
            self._keep_trainers()
            for process in filter(_is_merging, self._daemon_processes()):
                time.sleep(self._rng.uniform(*_MERGING_S))
                self._kill_process(process, "merging process")
                return
            time.sleep(0.02)

    def _kill_starting(self) -> None:
        command = [*daemons.PROGRAM, "start", "--root", str(self._root), "--foreground"]
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._started.append(started)
        time.sleep(self._rng.uniform(*_STARTING_S))
        if started.poll() is None:  # another one may serve the root
            started.kill()
            self._session.kills["daemon that starts"] += 1
        started.wait()

    def _kill_process(self, process: psutil.Process, name: str) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            process.wait(10)
            self._session.kills[name] += 1

    def _daemon_processes(self) -> list[psutil.Process]:
        """Daemons of the root, and their merging processes, whoever started them."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if _is_ours(words, str(self._root)) or (
                    _is_merging(process) and _is_ours(process.parent().cmdline(), str(self._root))
                ):
                    found.append(process)
        return found

    # --- the end ------------------------------------------------------------------------------
    def end(self) -> None:
        """Let the last trainers end, or crash, and the daemon write all and leave."""
        for life in self._alive:
            if self._rng.random() < 0.5:
                os.kill(life.pid, signal.SIGKILL)
                self._session.kills["trainer"] += 1
        for life in self._alive:
            code = os.waitstatus_to_exitcode(os.waitpid(life.pid, 0)[1])
            if code not in (0, -signal.SIGKILL):
                self._session.problems.append(f"trainer {life.seed} ended with {code}")
        self._alive = []
        daemons.start(self._root)
        daemons.stop(self._root)
        if discovery.has_leftovers(str(self._root)):
            left = [os.listdir(folder) for folder in runtime.ring_dirs(str(self._root))]
            self._session.problems.append(f"{self._root}: a journal or rings are left: {left}")

    def check(self) -> None:
        """Read everything."""
        stored: dict[tuple[Path, int], dict[str, Any]] = {}
        for folder in {life.folder for life in self._lives}:
            for seed, columns in read_logs(folder):
                if (folder, seed) in stored:
                    self._session.problems.append(f"{folder}: seed {seed} is in two files")
                stored[folder, seed] = columns
        for life in self._lives:
            columns = stored.pop((life.folder, life.seed), {})
            self._judge(life, columns)
        self._session.problems += [f"{where}: nobody logged it" for where in stored]
        self._session.runs += len(self._lives)
        self._check_checkpoints()

    def _judge(self, life: Life, columns: dict[str, Any]) -> None:
        lost, state = columns.pop("lost", 0), columns.pop("state", None)
        verdict = checker.judge(columns, life.seed, sent=life.sent, begun=life.begun, lost=lost)
        if verdict.faults or lost:
            self._session.problems.append(
                f"{life.folder}, seed {life.seed}: {verdict}, sent={life.sent}, lost={lost}"
            )
        if life.closed and state != "finished":
            self._session.problems.append(f"{life.folder}, seed {life.seed} is {state}")
        self._session.verdict += verdict

    def _check_checkpoints(self) -> None:
        for path in self._root.rglob("models/**/*.pkl"):
            try:
                weights = pickle.loads(path.read_bytes())["w"]
                whole = weights.shape == (_WEIGHTS,) and (weights == weights[0]).all()
            except Exception as error:
                whole, weights = False, error
            if not whole:
                self._session.problems.append(f"{path} is torn: {weights}")
            self._session.checkpoints += 1


def _is_merging(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any("merge_process" in word for word in process.cmdline())
    return False


def _is_ours(words: list[str], root: str) -> bool:
    return "mle_daemon" in words and any(word.startswith(root) for word in words)


def read_logs(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The runs in all logs of a folder: their seed, and their columns by name."""
    for path in sorted(folder.glob("logs/*.hdf5")):
        with h5py.File(path) as file:
            for name, group in file.items():
                columns = {key: group["stats"][key][:] for key in group["stats"]}
                if checker.STEP in group["time"]:
                    columns[checker.STEP] = group["time"][checker.STEP][:]
                columns["lost"] = int(group.attrs.get(layout.LOST_ATTR, 0))
                state = group.attrs[layout.STATE_ATTR]
                columns["state"] = state.decode() if isinstance(state, bytes) else state
                yield int(name.removeprefix("seed_").split("_dup")[0]), columns


def main(arguments: list[str]) -> int:
    """A session by hand."""
    seed = int(os.environ.get("MLE_CRASH_SEED", random.randrange(2**32)))
    os.environ.update(SETTINGS)
    with tempfile.TemporaryDirectory(prefix="mle-") as runtime:
        os.environ["MLE_RUNTIME_DIR"] = runtime
        base = Path(tempfile.mkdtemp(prefix="mle-kills-"))
        begun = time.monotonic()
        session = run(int(arguments[0]), seed, base)
    report = session.report() | {"seconds": round(time.monotonic() - begun)}
    text = json.dumps(report, indent=1)
    print(text)
    if len(arguments) > 1:
        Path(arguments[1]).write_text(text)
    return 1 if report["faults"] or report["problems"] else 0


# For daemons that loggers start, too: merges are to be killed, so there must be many.
SETTINGS: Final = {"MLE_MERGE": "every=0.5"}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
