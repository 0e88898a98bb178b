"""`merge_seed_logs` and `merge_config_logs`, and the same for a daemon and for the command line.

Plain functions over paths: they need no daemon, and ask a live one to publish first.  Which files
belong together is decided here; `merged_file` writes.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from typing import Final

from mle_client import control, files, layout, lifetime, merged_configs, merged_file, seed_groups
from mle_client.errors import LogDamaged, LogNotFound, TooFewSeeds
from mle_client.merge_plan import LeftOut
from mle_client.merge_staging import Progress
from mle_client.merging import LOCK_TIMEOUT_S, Merge, MergeReport, check_target
from mle_client.older_calls import merge_hdf5_files as merge_hdf5_files  # as mle-logging
from mle_client.seeds import natural_key

# What merging, ours and mle-logging's, takes for a log by its name.
_SUFFIXES: Final = (".hdf5", ".h5", ".hdf")
_LOOK_EVERY_S: Final = 0.5  # whether the seeds that are waited for have ended
# Folders that hold no experiments, and many files.
_NOT_SEARCHED: Final = frozenset(
    ("logs", "tboards", "wandb", layout.MODELS_DIR, layout.FIGURES_DIR, layout.EXTRA_DIR)
)


# --- as mle-logging has it ------------------------------------------------------------------------
def merge_seed_logs(
    merged_path: str | os.PathLike[str],
    experiment_dir: str | os.PathLike[str],
    num_logs: int | None = None,
    delete_files: bool = True,
    timeout: float | None = None,
) -> MergeReport:
    """Merge the logs of all seeds of an experiment into one file.

    Args:
        merged_path: of that file.  If it is there, what it lacks is added.
        experiment_dir: the folder; all logs in its folder logs/ are merged, those too that were
            merged under another name.
        num_logs: wait until so many seeds have ended; None to take what there is.  A seed that this
            process logs, and one that no daemon looks after, is not waited for.
        delete_files: remove the logs that the merged file replaces, once every dataset of theirs
            reads back from it as it was.
        timeout: seconds to wait for `num_logs`, and for another merge of these logs; None for as
            long as it takes, and 10 minutes.

    Returns:
        What was done.

    Raises:
        LogNotFound: there is no such folder, or no log in it.
        LogDamaged: no log can be read, or `merged_path` is there and is none.
        MergeFailed: there is no room, no permission, or the disk fails.
        TimeoutError: fewer than `num_logs` seeds have ended in time.

    Warns:
        UserWarning: a log was left out, or stays, and why: it is damaged, its run goes on, or it
            holds another run of a seed; or the runs were not configured alike.
    """
    folder = os.fspath(experiment_dir)
    if not os.path.isdir(folder):
        raise LogNotFound(folder, "there is no such folder: check the path")
    target = os.fspath(merged_path)
    deadline = None if timeout is None else time.monotonic() + timeout
    control.publish_before_reading(folder)
    if num_logs is not None:
        if not files.is_inside(target, os.path.realpath(folder)):  # else it may be yet to come
            check_target(target)
        _wait_for(num_logs, folder, timeout)
    patience = LOCK_TIMEOUT_S if deadline is None else max(0.0, deadline - time.monotonic())
    report = merged_file.merge(
        Merge(
            target,
            folder,
            lambda: log_files(folder, other_than=target),
            delete=delete_files,
            running=True,
            mixed=True,
            at_least=0,
            patience_s=patience,
        )
    )
    if report.mixed:
        warnings.warn(f"{folder}: {report.mixed}", UserWarning, stacklevel=2)
    _warn_of(report.left_out)
    return report


def merge_config_logs(
    experiment_dir: str | os.PathLike[str], all_run_ids: Sequence[str]
) -> MergeReport:
    """Merge the logs of several configurations into <experiment_dir>/meta_log.hdf5.

    Args:
        experiment_dir: a folder with those of the configurations in it, at whatever depth.
        all_run_ids: names of their folders.  Each has its logs in a folder logs/, its seeds merged
            or not.

    Returns:
        What was done; its seeds are named "<configuration>/<seed>".

    Raises:
        LogNotFound: there is no such folder, or no log in it.
        ValueError: several folders have that name.
        LogDamaged: no log can be read, or meta_log.hdf5 is there and is none.
        MergeFailed: as of `merge_seed_logs`.

    Warns:
        UserWarning: a log was left out, and why.
    """
    folder = os.fspath(experiment_dir)
    if not os.path.isdir(folder):
        raise LogNotFound(folder, "there is no such folder: check the path")
    control.publish_before_reading(folder)
    names = [os.path.normpath(run_id) for run_id in all_run_ids]
    report = meta_log(folder, {name: _folder_of(name, folder) for name in names})
    _warn_of(report.left_out)
    return report


def _warn_of(left_out: Sequence[LeftOut]) -> None:
    for each in left_out:
        warnings.warn(f"{each.path}: {each.why}", UserWarning, stacklevel=3)


# --- for a daemon and for the command line --------------------------------------------------------
def merge_group(
    folder: str,
    *,
    at_least: int = 1,
    keep_seed_logs: bool = False,
    progress: Progress = lambda done, total: None,
) -> MergeReport:
    """Merge the seeds of one configuration that have ended into <folder>/logs/log.hdf5.

    Args:
        folder: of the configuration.
        at_least: how many seeds have to have ended, those merged already included.
        keep_seed_logs: leave the seeds' own logs where they are.
        progress: called with bytes done and bytes in all.

    Raises:
        As of `merged_file.merge`.
    """
    if not os.path.isdir(folder):
        raise LogNotFound(folder, "there is no such folder: check the path")
    target = layout.merged_log_path(folder)
    if not (seed_log_files(folder) or os.path.lexists(target)):
        if log_files(folder):  # they are merged under another name
            raise TooFewSeeds(folder, 0, at_least)
        raise LogNotFound(folder, "there is no log in its folder logs/: nothing to merge")
    return merged_file.merge(
        Merge(
            target,
            folder,
            lambda: seed_log_files(folder),
            delete=not keep_seed_logs,
            at_least=at_least,
            progress=progress,
        )
    )


def meta_log(
    folder: str,
    configs: dict[str, str],
    progress: Progress = lambda done, total: None,
) -> MergeReport:
    """Merge configurations into <folder>/meta_log.hdf5.

    Args:
        configs: {name: folder of a configuration}.
        progress: called with bytes done and bytes in all.

    Raises:
        As of `merged_configs.merge_configurations`.
    """

    def sources() -> dict[str, list[str]]:
        found = {name: log_files(path) for name, path in configs.items()}
        for name, paths in found.items():
            if not paths:
                raise LogNotFound(folder, f"there is no log in the folder logs/ of {configs[name]}")
        return found

    path = layout.meta_log_path(folder)
    return merged_configs.merge_configurations(path, folder, sources, progress)


def find_groups(root: str) -> list[str]:
    """The folders at or below a root that have logs, in natural order."""
    found = []
    for folder, inside, _ in os.walk(root):
        if "logs" in inside and log_files(folder):
            found.append(folder)
        inside[:] = filter(_is_searched, inside)
    return sorted(found, key=natural_key)


def configurations_in(folder: str) -> dict[str, str]:
    """The folders right inside a folder that have logs, by name, in natural order."""
    names = sorted(filter(_is_searched, os.listdir(folder)), key=natural_key)
    paths = {name: os.path.join(folder, name) for name in names}
    return {name: path for name, path in paths.items() if log_files(path)}


def _is_searched(name: str) -> bool:
    return name not in _NOT_SEARCHED and not name.startswith(".")


# --- files ----------------------------------------------------------------------------------------
def log_files(folder: str, *, other_than: str = "") -> list[str]:
    """The paths of all logs of a configuration, merged ones too, but for one."""
    logs = os.path.join(folder, "logs")
    if not os.path.isdir(logs):
        return []
    names = [n for n in os.listdir(logs) if n.endswith(_SUFFIXES) and not n.startswith(".")]
    paths = [os.path.join(logs, name) for name in sorted(names, key=natural_key)]
    excluded = os.path.realpath(other_than) if other_than else ""
    return [path for path in paths if os.path.realpath(path) != excluded]


def seed_log_files(folder: str) -> list[str]:
    """The paths of the logs of single seeds, as a logger names them."""
    prefix, suffix = os.path.basename(layout.log_path("", "*")).split("*")
    return [
        path
        for path in log_files(folder)
        if os.path.basename(path).startswith(prefix) and path.endswith(suffix)
    ]


def _folder_of(run_id: str, folder: str) -> str:
    """The folder of a configuration."""
    direct = os.path.join(folder, run_id)
    if log_files(direct):
        return direct
    found = [path for path in find_groups(folder) if os.path.basename(path) == run_id]
    if len(found) > 1:
        raise ValueError(f"several folders are named {run_id!r}: {', '.join(found)}; rename one")
    if not found:
        raise LogNotFound(folder, f"there is no folder named {run_id!r} with logs in it")
    return found[0]


# --- waiting --------------------------------------------------------------------------------------
def _wait_for(count: int, folder: str, timeout: float | None) -> None:
    """Wait until so many seeds of a configuration have ended."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while (ended := len(_ended(folder))) < count:
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(
                f"{folder}: {ended} of {count} seeds have ended within {timeout:g} s; merge those "
                "without num_logs, or wait longer"
            )
        time.sleep(_LOOK_EVERY_S)


def _ended(folder: str) -> set[str]:
    """The seeds that nobody waits for: names, or paths of files that cannot be read."""
    ended: set[str] = set()
    for path in log_files(folder):
        try:
            members = seed_groups.describe(path).members
        except LogNotFound:
            continue
        except (LogDamaged, OSError):
            ended.add(path)
            continue
        ended |= {
            member.group
            for member in members
            if not member.is_running or lifetime.is_logging(path) or not control.is_served(folder)
        }
    return ended
