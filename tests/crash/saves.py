"""Checkpoints that tell their number, what a run that saves them must leave, and a look at that.

`saving_trainer.py` saves them; the tests of this folder kill it.
"""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from mle_client import EveryK, LatestN, TopK, layout, load_log
from mle_client.endpoint import Endpoint, is_running, read_endpoint
from mle_client.kept import Kept, meta_lists, model_names
from mle_client.retention import Policy, Saved
from tests.integration import daemons

SEED: Final = "seed_1"
EXTENSION: Final = ".pkl"
RULES: Final = [LatestN(2), TopK("score", 2, "max"), EveryK(100)]
# The arguments of `MLELogger`, and the same as the pure functions want them.
ARGUMENTS: Final[dict[str, Any]] = {
    "time_to_track": ["num_epochs"],
    "what_to_track": ["loss", "score"],
    "model_type": "numpy",
    "seed_id": 1,
    "ckpt_time_to_track": "num_epochs",
    "save_every_k_ckpt": 50,
    "save_top_k_ckpt": 3,
    "top_k_metric_name": "loss",
    "top_k_minimize_metric": True,
    "retention": RULES,
}
POLICY: Final = Policy(
    every_k=50, top_k=3, top_k_metric="loss", time_name="num_epochs", rules=tuple(RULES)
)
LARGE_BYTES: Final = 5_000_000  # takes the daemon milliseconds, in which it may be killed
_TRAINER: Final = Path(__file__).with_name("saving_trainer.py")
_UNFINISHED: Final = (".tmp", ".part", ".link", ".new")


# --- what is saved --------------------------------------------------------------------------------
def stats(number: int) -> dict[str, float]:
    """The statistics of a save: slowly better, with ties, values that are none, and gaps."""
    values: dict[str, float] = {"score": float(number * 7919 % 101)}
    if number % 11 == 5:
        return values
    values["loss"] = math.nan if number % 13 == 7 else float(number * 7 % 10 - number // 40)
    return values


def size(number: int) -> int:
    """Bytes of a checkpoint: few as a rule, now and then enough for several chunks."""
    return LARGE_BYTES if number % 23 == 0 else 100 + number * 7919 % 3000


def model(number: int) -> dict[str, Any]:
    """The checkpoint of a number."""
    content = np.resize(np.frombuffer(b"%d," % number, np.uint8), size(number))
    return {"number": number, "content": content, "crc": zlib.crc32(content)}


def number_of(content: bytes) -> int:
    """The number of a checkpoint.  Raises: AssertionError: it is not what was saved."""
    found = pickle.loads(content)
    number = int(found["number"])
    assert len(found["content"]) == size(number)
    assert found["content"][: len(str(number))].tobytes() == str(number).encode()
    assert zlib.crc32(found["content"]) == found["crc"]
    return number


# --- what must be left ----------------------------------------------------------------------------
_AFTER: Final[list[tuple[Kept, dict[str, int]]]] = [(Kept(), {})]  # by the number of saves


def kept_after(saves: int) -> Kept:
    """What is kept after so many saves."""
    return _after(saves)[0]


def files_after(saves: int) -> dict[str, int]:
    """The model files after so many saves, and the number of the checkpoint in each."""
    return _after(saves)[1]


def _after(saves: int) -> tuple[Kept, dict[str, int]]:
    while len(_AFTER) <= saves:
        number = len(_AFTER)
        kept, files = _AFTER[-1]
        kept, plan = kept.with_model(POLICY, Saved(number, number, stats(number), {}))
        gone = {layout.retained_path(SEED, each, EXTENSION) for each in plan.evicted}
        files = {name: each for name, each in files.items() if name not in gone}
        _AFTER.append((kept, files | dict.fromkeys(model_names(plan, SEED, EXTENSION), number)))
    return _AFTER[saves]


def model_files(folder: Path) -> dict[str, int]:
    """The files below models/, and the number of the checkpoint in each."""
    paths = [path for path in (folder / "models").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): number_of(path.read_bytes()) for path in paths}


def assert_left(folder: Path, runtime_dir: Path, saves: int) -> None:
    """Files, lists and ticks are those of an uninterrupted run, and there is nothing else.

    Args:
        folder: of the experiment, whose daemon has left.
        runtime_dir: of the test.
    """
    assert model_files(folder) == files_after(saves)
    run = load_log(str(folder))[SEED]
    lists = meta_lists(kept_after(saves), POLICY, str(folder), SEED, EXTENSION)
    for name, expected in lists.items():
        np.testing.assert_array_equal(np.atleast_1d(run.meta[name]), list(expected), name)
    epochs = run.time["num_epochs"]
    steps = np.diff(epochs)  # 0 where a trainer was killed between a tick and its checkpoint
    assert (epochs[0], epochs[-1]) == (1, saves)
    assert set(steps) <= {0, 1}
    np.testing.assert_array_equal(run.time["num_updates"], np.arange(len(epochs)) + 1)
    assert (np.diff(run.time["time_elapsed"]) >= 0).all()
    assert_tidy(folder, runtime_dir)


def assert_tidy(folder: Path, runtime_dir: Path) -> None:
    """Nothing unfinished is on disk or in memory, and no process of the test's is left."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    unfinished = [name for name in names if name.endswith(_UNFINISHED) or "/.mle-" in name]
    assert unfinished == []
    ours = [name for name in names if name.startswith(".mle/")]
    assert {name for name in ours if name.count("/") > 1} == set(), "staging, journal or spill"
    assert [path for path in runtime_dir.rglob("*") if not path.is_dir()] == []
    assert [folder.name for folder in runtime_dir.glob("rings/*/*")] == []
    daemons.wait_for(lambda: not processes(runtime_dir))


def processes(runtime_dir: Path) -> list[str]:
    """The command lines of processes that were started with a runtime folder, but for this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MLE_RUNTIME_DIR") == str(runtime_dir):
                found.append((process.pid, " ".join(process.cmdline())))
        except (psutil.Error, OSError):
            continue
    return [command for pid, command in found if pid != os.getpid()]


# --- who saves them -------------------------------------------------------------------------------
class Trainer:
    """`saving_trainer.py` in a folder, one life after another.

    Args:
        folder: of the experiment; its daemon is the one that the trainer starts.
        saves: how many, in all lives together.
        options: further arguments of the script.
    """

    def __init__(self, folder: Path, saves: int, *options: str) -> None:
        self.folder = folder
        self.saves = saves
        self._options = options
        self._notes = folder.parent / f"{folder.name}.notes"
        self._stderr = folder.parent / f"{folder.name}.stderr"
        self._notes.touch()
        self._known: list[list[str]] = []
        self._read_to = 0
        self._killed: set[int] = set()
        self.start()

    def start(self) -> None:
        """Begin another life."""
        arguments = [str(self.folder), str(self.saves), str(self._notes), *self._options]
        with open(self._stderr, "ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(_TRAINER), *arguments],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env=daemons.environment(),
            )

    @property
    def notes(self) -> list[list[str]]:
        """What it has noted so far, in words."""
        with open(self._notes, "rb") as file:
            file.seek(self._read_to)
            whole, _, _ = file.read().rpartition(b"\n")
        if whole:
            self._read_to += len(whole) + 1
            self._known += [line.split(" ", 1) for line in whole.decode().split("\n")]
        return self._known

    @property
    def returned(self) -> int:
        """The latest save that returned."""
        return next((int(what) for name, what in reversed(self.notes) if name == "saved"), 0)

    @property
    def stderr(self) -> str:
        """What all lives have written there."""
        return self._stderr.read_text()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait()

    def daemon(self) -> Endpoint | None:
        """The daemon that serves the folder and was not killed before."""
        found = read_endpoint(str(self.folder))
        return found if found and is_running(found) and found.pid not in self._killed else None

    def kill_daemon(self) -> bool:
        """SIGKILL the daemon.  Returns: whether there was one."""
        found = self.daemon()
        if found is None:
            return False
        self._killed.add(found.pid)
        psutil.Process(found.pid).kill()
        daemons.wait_for(lambda: not is_running(found))
        return True

    def end(self) -> None:
        """End what still runs of it and its daemon, which leaves by itself when it is idle."""
        self.kill()
        daemons.mle_daemon("stop", "--root", str(self.folder))
        daemons.wait_until_gone(self.folder)

    def assert_well(self) -> None:
        """It ended by itself, kept every save that had returned, and had nothing to complain of."""
        assert self.process.wait(60) == 0, self.stderr
        begun = returned = 0
        for name, what in self.notes:
            if name == "saved":
                returned = int(what)
            elif name == "begun":
                # One more where it was killed between a save and its note.
                assert returned <= int(what) <= returned + 1, f"a save was lost: {self.notes}"
                begun += 1
            else:
                assert name == "closed", what
        assert begun > 0
        assert self.notes[-1] == ["closed", "lost=0 spilled=0 unstored=0"]
        assert returned == self.saves or begun > 1
