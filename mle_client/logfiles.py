"""Which files hold the runs of an experiment, and where the log of a seed is now.

When seeds are merged, a seed's own file disappears, after the merged one has appeared.  It reads
files only to see which runs are in them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from mle_client import experiments
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.reader import opened_runs
from mle_client.runlog import RunLog

T = TypeVar("T")

ATTEMPTS: Final = 10  # of reading files that are being merged: each lists the folder anew


def log_files(path: str) -> list[str]:
    """The log files of an experiment's folder, a merged one first; or the file itself.

    Raises:
        LogNotFound: there are none; says where to look.
    """
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise LogNotFound(path, "there is no such folder or file: check the path")
    names = _log_names(os.path.join(path, "logs"))
    if not names:
        raise LogNotFound(path, f"there is no log in its folder logs/{_suggestion(path)}")
    return [os.path.join(path, "logs", name) for name in names]


def read_seed(path: str, seed_id: str, read: Callable[[str], T]) -> T:
    """Read the log of a seed, from its own file or from the one that it was merged into.

    Args:
        path: of its own file.
        seed_id: name of its group.
        read: reads the file that it is given; is called again where that has gone meanwhile.

    Returns:
        What `read` returns.

    Raises:
        LogNotFound: there is no such file, and the seed is in no other one of the folder.
        LogDamaged: there is no such file, and another one, in which it may be, cannot be read.
    """
    for _ in range(ATTEMPTS):
        with suppress(LogNotFound):
            return read(path)
        try:
            elsewhere = _file_with(seed_id, path)
            if elsewhere is not None:
                return read(elsewhere)
            if not os.path.exists(path):
                why = "there is no such file, and no other log of its folder has the seed"
                raise LogNotFound(path, why)
        except LogNotFound as error:
            if error.path == path:
                raise
    raise vanished(path)


def vanished(path: str) -> LogNotFound:
    """The error for files that go away whenever they are read."""
    return LogNotFound(path, f"its files vanished while being read, {ATTEMPTS} times: try again")


def recency(run: RunLog) -> tuple[float, int]:
    """Orders runs of one name; the greater is the newer."""
    return (-math.inf if run.start_time is None else run.start_time), run.ticks


def _file_with(seed_id: str, path: str) -> str | None:
    """The file beside a path that has the newest run of a seed."""
    folder = os.path.dirname(path)
    found: list[tuple[tuple[float, int], str]] = []
    failures: list[Exception] = []
    for name in _log_names(folder):
        other = os.path.join(folder, name)
        try:
            with opened_runs(other) as runs:
                if (None, seed_id) in runs:
                    found.append((recency(runs[None, seed_id]), other))
        except (LogNotFound, LogDamaged, PermissionError) as error:
            failures.append(error)
    if failures and not found:
        raise failures[0]
    return max(found)[1] if found else None


def _hdf5_names(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    # Names that begin with a dot are other programs' helpers.
    return sorted(n for n in os.listdir(folder) if n.endswith(".hdf5") and not n.startswith("."))


def _log_names(folder: str) -> list[str]:
    """The logs of an experiment's own runs in a folder."""
    return [name for name in _hdf5_names(folder) if not experiments.is_meta_log(name)]


def _suggestion(path: str) -> str:
    """Where there are logs, if not at the path: a configuration's folder lies one below."""
    inside = [name for name in sorted(os.listdir(path)) if _log_names(f"{path}/{name}/logs")]
    files = _hdf5_names(path)
    in_logs = [f"logs/{name}" for name in _hdf5_names(os.path.join(path, "logs"))]  # a meta log
    if found := [*inside, *files, *in_logs]:
        return ": load " + " or ".join(os.path.join(path, name) for name in found)
    return ": a run appears there when it is first saved"
