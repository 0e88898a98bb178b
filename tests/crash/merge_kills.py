"""A program that merges, and is killed, or let down by the disk, at one system call after another.

Arguments: SHIM FOLDER SCENARIO.  It runs with SHIM, made of `kill_at_call.c`, loaded before the C
library.  A warm process forks one that merges for each trial, looks at what that left, merges once
more without disturbance, and looks again.  It answers each line on stdin with one of JSON:

    count                     the names of all calls of an undisturbed merge
    kill N                    problems of a merge that was killed right after its N-th call
    fail N CODE ONCE END      problems of one whose N-th call failed, and all after it unless ONCE;
                              END: its interpreter ends as any other does
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mle_client import layout, merge
from mle_client.errors import MLEError
from mle_daemon.store import Store
from tests.seed_logs import (
    Key,
    Values,
    everything,
    holds,
    leftovers,
    make_run,
    write_foreign,
    write_log,
)

DIED = -signal.SIGKILL
FAILED = 3  # exit status of a merge that says why it failed


@dataclass(frozen=True)
class Scenario:
    """A merge.

    Args:
        prepare: what lies there, given the root.
        merge: the same again makes it complete.
        may_go: losses that need not stay: they were to be overwritten.
    """

    prepare: Callable[[Path], object]
    merge: Callable[[Path], object]
    may_go: tuple[float, ...] = ()


# --- what lies there ------------------------------------------------------------------------------
def seeds(root: Path) -> None:
    """Three seeds, one of which crashed."""
    for i in (1, 2, 3):
        state = "crashed" if i == 3 else "finished"
        write_log(root / "exp", f"seed_{i}", [float(i)] * i, state=state)


def merged(root: Path) -> None:
    """Two merged seeds."""
    for i in (1, 2):
        write_log(root / "exp", f"seed_{i}", [float(i)] * i)
    merge.merge_group(str(root / "exp"))


def late(root: Path) -> None:
    """Two merged seeds and a third one."""
    merged(root)
    write_log(root / "exp", "seed_3", [3.0])


def again(root: Path, **facts: Any) -> None:
    """Two merged seeds, of which one was run again."""
    merged(root)
    write_log(root / "exp", "seed_1", [9.0], run="again", start=5.0, **facts)


def continued(root: Path) -> None:
    """Two merged seeds, of which one went on."""
    merged(root)
    write_log(root / "exp", "seed_2", [2.0, 2.0, 5.0], run="goes on", start=5.0)


def copied(root: Path) -> None:
    """Two logs by several names, and one that is merged already but has not gone."""
    write_log(root / "exp", "seed_1", [1.0])
    merge.merge_group(str(root / "exp"), keep_seed_logs=True)
    path = write_log(root / "exp", "seed_2", [2.0])
    shutil.copy(path, root / "exp/logs/log_copy.hdf5")
    os.link(path, root / "exp/logs/log_link.hdf5")


def with_notes(root: Path) -> None:
    """A merged file with more in it than runs, which has to be written anew."""
    import h5py

    again(root)
    with h5py.File(root / "exp/logs/log.hdf5", "a") as file:
        file["notes"] = [1, 2]


def foreign(root: Path) -> None:
    """Logs of mle-logging's, one of them of several seeds."""
    write_foreign(root / "exp/logs/log_seed_1.hdf5", {"seed_1": [1.0, 2.0]})
    write_foreign(root / "exp/logs/older.hdf5", {"seed_2": [2.0], "seed_3": [3.0]})


def sweep(root: Path) -> None:
    """Configurations, and a meta log with a run that is nowhere else."""
    for config in ("a", "b", "gone"):
        for i in (1, 2):
            write_log(root / config, f"seed_{i}", [float(i)], run=f"{config}{i}")
    merge.merge_group(str(root / "a"))
    merge.merge_config_logs(root, ["a", "gone"])
    shutil.rmtree(root / "gone")


def group(root: Path, **options: bool) -> None:
    merge.merge_group(str(root / "exp"), **options)


def take_out(root: Path) -> None:
    """Continue a merged seed as the daemon does."""
    run = make_run("seed_2", "goes on", reload=True, directory=str(root / "exp"))
    store = Store(str(root))
    store.clean_staging()
    store.open_run(run, "seed_2", layout.log_path(run.directory, "seed_2"))


SCENARIOS = {
    "first": Scenario(seeds, group),
    "keep": Scenario(seeds, lambda root: group(root, keep_seed_logs=True)),
    "late": Scenario(late, group),
    "again": Scenario(again, group),
    "overwrite": Scenario(lambda root: again(root, overwrite=True), group, may_go=(1.0,)),
    "continued": Scenario(continued, group),
    "copied": Scenario(copied, group),
    "with notes": Scenario(with_notes, group),
    "foreign": Scenario(
        foreign, lambda root: merge.merge_seed_logs(root / "exp/logs/log.hdf5", root / "exp")
    ),
    "other name": Scenario(
        late, lambda root: merge.merge_seed_logs(root / "exp/logs/all.hdf5", root / "exp")
    ),
    "elsewhere": Scenario(
        seeds, lambda root: merge.merge_seed_logs(root / "all.hdf5", root / "exp")
    ),
    "configurations": Scenario(sweep, lambda root: merge.merge_config_logs(root, ["a", "b"])),
    "take out": Scenario(merged, take_out),
}


# --- trials ---------------------------------------------------------------------------------------
class Trials:
    """A scenario that is tried again and again.

    Args:
        shim: path of the library.
        folder: an empty one, for the trials.
        scenario: one of the above.
    """

    def __init__(self, shim: str, folder: Path, scenario: Scenario) -> None:
        self._shim = ctypes.CDLL(shim)
        self._shim.call_name.restype = ctypes.c_char_p
        self._scenario = scenario
        self._template, self._root = folder / "template", folder / "root"
        (self._template / layout.STATE_DIR).mkdir(parents=True)
        scenario.prepare(self._template)
        self._restore()
        self._before = self._contents()
        self._calls = self._count()
        self._after = self._contents()  # of an undisturbed merge

    def count(self) -> list[str]:
        """The names of all calls."""
        return self._calls

    def kill(self, number: int) -> list[str]:
        """Kill a merge right after a call.  Returns: what is wrong then."""
        self._restore()
        status = self._fork(number, 0, True, False)
        problems = [] if status == DIED else [f"it ended with {status} and was not killed"]
        return problems + self._look()

    def fail(self, number: int, code: int, once: bool, end: bool) -> list[str]:
        """Let a call of a merge fail.  Returns: what is wrong then."""
        self._restore()
        status = self._fork(number, code, once, end)
        problems = [] if status in (0, FAILED) else [f"it ended with {status}"]
        return problems + self._look()

    def _restore(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.copytree(self._template, self._root, copy_function=shutil.copy2)

    def _count(self) -> list[str]:
        self._shim.arm(os.fsencode(self._root), -1, 0, 1)
        self._scenario.merge(self._root)
        names = [self._shim.call_name(i).decode() for i in range(self._shim.calls_seen())]
        self._shim.arm(b"", -1, 0, 1)
        return names

    def _fork(self, number: int, code: int, once: bool, end: bool) -> int:
        """Merge in another process, which is disturbed.  Returns: its exit status."""
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        status = 9
        try:
            os.dup2(2, 1)
            self._shim.arm(os.fsencode(self._root), number, code, int(once))
            self._scenario.merge(self._root)
            status = 0
        except (MLEError, OSError) as error:
            status = FAILED if isinstance(error, MLEError) or self._is_the_store_s else 9
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if end:
            sys.exit(status)
        os._exit(status)

    @property
    def _is_the_store_s(self) -> bool:
        """Whether an error of the system may reach the caller, who is the daemon."""
        return self._scenario.merge is take_out

    # --- looking ----------------------------------------------------------------------------------
    def _look(self) -> list[str]:
        """What is wrong with what a merge left, and what another one makes of it."""
        try:
            problems = self._lost()
            self._scenario.merge(self._root)
            problems += [f"then: {problem}" for problem in self._lost()]
            after = self._contents()
        except Exception as error:
            return [f"{type(error).__name__}: {error}"]
        if after.keys() != self._after.keys():
            problems.append(f"in the end there is {sorted(after)}, not {sorted(self._after)}")
        elif after != self._after:
            problems.append("in the end files hold something else")
        return problems + [f"{name} stays" for name in leftovers(self._root)]

    def _lost(self) -> list[str]:
        """The values that are in no file any more.  Each file that has a log's name is read."""
        found = everything(self._root)
        return [
            f"{key[-1]} of {path} is lost"
            for path, logs in self._before.items()
            for key, values in logs.items()
            if values["stats/loss"][0] not in self._scenario.may_go
            if not holds(found, key[-1], values)
        ]

    def _contents(self) -> dict[str, dict[Key, Values]]:
        """What files hold, by their paths without the times at which some were put aside."""
        found: dict[str, dict[Key, Values]] = {}
        for path, logs in everything(self._root).items():
            name = re.sub(r"\d{8}T\d{6}Z", "then", os.path.relpath(path, self._root))
            found[name] = logs
        return found


def main() -> None:
    """Answer lines until there are no more."""
    warnings.simplefilter("ignore")  # of what was left out
    shim, folder, scenario = sys.argv[1:]
    trials = Trials(shim, Path(folder), SCENARIOS[scenario])
    for line in sys.stdin:
        verb, *numbers = line.split()
        arguments = [int(number) for number in numbers]
        if verb == "count":
            answer = trials.count()
        elif verb == "kill":
            answer = trials.kill(*arguments)
        else:
            number, code, once, end = arguments
            answer = trials.fail(number, code, bool(once), bool(end))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
