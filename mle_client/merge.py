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
from mle_client.errors import LogDamaged, LogNotFound, MergeFailed, TooFewSeeds
from mle_client.experiments import as_text, find_groups, is_meta_log, log_files, seed_log_files
from mle_client.merge_plan import LeftOut
from mle_client.merge_staging import Progress
from mle_client.merging import LOCK_TIMEOUT_S, Merge, MergeReport, Tell, check_target
from mle_client.older_calls import merge_hdf5_files as merge_hdf5_files  # as mle-logging

_LOOK_EVERY_S: Final = 0.5  # whether the seeds that are waited for have ended


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
        MergeFailed: there is no room, no permission, or the disk fails; or `merged_path` is a name
            that a file of seeds cannot have there.
        TimeoutError: fewer than `num_logs` seeds have ended in time.

    Warns:
        UserWarning: a log was left out, or stays, and why: it is damaged, its run goes on, or it
            holds another run of a seed; or the runs were not configured alike.
    """
    folder = os.fspath(experiment_dir)
    if not os.path.isdir(folder):
        raise LogNotFound(folder, "there is no such folder: check the path")
    target = os.fspath(merged_path)
    if is_meta_log(target) and _is_in_logs(target, folder):
        raise MergeFailed(target, "no seeds are looked for in a file of that name: take another")
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
        all_run_ids: names of their folders, or paths relative to `experiment_dir`; a single one may
            be a plain string.  Each has its logs in a folder logs/, its seeds merged or not.

    Returns:
        What was done; its seeds are named "<configuration>/<seed>".

    Raises:
        LogNotFound: there is no such folder, or no log in it.
        ValueError: no name is given, one leads out of `experiment_dir`, or several folders have it.
        LogDamaged: no log can be read, or meta_log.hdf5 is there and is none.
        MergeFailed: as of `merge_seed_logs`.

    Warns:
        UserWarning: a log was left out, and why; a run goes on, and is in it as far as it got; or
            the runs of a configuration were not configured alike.
    """
    folder = os.fspath(experiment_dir)
    if not os.path.isdir(folder):
        raise LogNotFound(folder, "there is no such folder: check the path")
    names = _names(all_run_ids)
    control.publish_before_reading(folder)
    report = meta_log(
        folder, {as_text(name): _folder_of(name, folder) for name in names}, mixed=True
    )
    if report.mixed:
        warnings.warn(f"{folder}: {report.mixed}", UserWarning, stacklevel=2)
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
    on_wait: Tell = lambda text: None,
) -> MergeReport:
    """Merge the seeds of one configuration that have ended into <folder>/logs/log.hdf5.

    Args:
        folder: of the configuration.
        at_least: how many seeds have to have ended, those merged already included.
        keep_seed_logs: leave the seeds' own logs where they are.
        progress: called with bytes done and bytes in all.
        on_wait: as of `merging.Merge`.

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
            own=True,
            at_least=at_least,
            progress=progress,
            on_wait=on_wait,
        )
    )


def meta_log(
    folder: str,
    configs: dict[str, str],
    progress: Progress = lambda done, total: None,
    *,
    mixed: bool = False,
    on_wait: Tell = lambda text: None,
) -> MergeReport:
    """Merge configurations into <folder>/meta_log.hdf5.

    Args:
        configs: {name: folder of a configuration}.
        progress: called with bytes done and bytes in all.
        mixed: take a folder, too, whose runs were not configured alike; else it is left out.
        on_wait: as of `merging.Merge`.

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
    return merged_configs.merge_configurations(
        path, folder, sources, progress, mixed=mixed, on_wait=on_wait
    )


def _is_in_logs(path: str, folder: str) -> bool:
    logs = os.path.join(folder, "logs")
    return os.path.realpath(os.path.dirname(path) or ".") == os.path.realpath(logs)


def _names(run_ids: Sequence[str]) -> list[str]:
    """The names of configurations, as groups of a file can have them, each once."""
    given = [run_ids] if isinstance(run_ids, (str, os.PathLike)) else run_ids
    names = [os.path.normpath(os.fspath(run_id)) for run_id in given]
    if not names:
        raise ValueError("all_run_ids is empty: name the folders of the configurations to merge")
    for name in names:
        if os.path.isabs(name) or name.split(os.sep)[0] in (os.curdir, os.pardir):
            raise ValueError(
                f"{name!r} is no name of a folder in experiment_dir: give a name such as 'lr_0.1', "
                "or a path relative to experiment_dir"
            )
    return list(dict.fromkeys(names))


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
