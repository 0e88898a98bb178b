"""`load_log` and `load_meta_log`: from a folder or a file to runs.

It asks a live daemon to publish first, and works without one.  HDF5 itself is `reader`'s, what
comes back is described in `metalog`, the mean over seeds in `aggregate`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from mle_client import layout
from mle_client.aggregate import aggregate_seeds as aggregate_over
from mle_client.errors import LogNotFound
from mle_client.metalog import AttrDict, MetaLog, RunLog
from mle_client.seeds import NaturalKey, natural_key

if TYPE_CHECKING:
    from mle_client.reader import RunKey

# Of reading a folder whose files are being merged: each attempt lists it anew.
_ATTEMPTS: Final = 10
_AGGREGATED: Final = "eval"  # mle-logging's name for the aggregated seeds of one folder


def load_log(
    experiment_dir: str | os.PathLike[str],
    aggregate_seeds: bool = False,
    reload_log: bool = False,
    *,
    only: Sequence[str] | None = None,
) -> MetaLog | RunLog:
    """Load the runs of an experiment.

    Args:
        experiment_dir: the folder, all of whose logs/*.hdf5 are read, or one log file.  Of a seed
            that is in two files, such as a merged one and its own, the run that began later is
            taken; of the same run, the copy with more updates; of equals, that in its own file.
        aggregate_seeds: whether to aggregate over seeds; see `aggregate`.
        reload_log: whether a single run without a seed is to be returned under its name as well.
        only: names of the statistics to read; the others are not read from disk.

    Returns:
        Runs by name, in natural order ("seed_2" before "seed_10"): seeds; or configurations with
        seeds inside; or, aggregated, configurations, or "eval" for seeds without one.  A single run
        without a seed is returned itself, with `.meta`, `.stats` and `.time`.

        Other than in mle-logging, text is text and not bytes, values have the type that was
        logged, `meta.eval_id` is "" where there is none, and `meta.seeds` always a list.

    Raises:
        LogNotFound: there is no log; says where to look.
        LogDamaged: a file is no log, or no longer; names it.
    """
    from mle_client.control import publish_before_reading

    path = os.fspath(experiment_dir)
    publish_before_reading(path)
    names = {only} if isinstance(only, str) else None if only is None else set(only)
    return _assemble(_read(path, names), aggregate_seeds, reload_log)


def load_meta_log(
    log_fname: str | os.PathLike[str],
    aggregate_seeds: bool = True,
    reload_log: bool = False,
    *,
    only: Sequence[str] | None = None,
) -> MetaLog | RunLog:
    """Load the runs of a file, such as meta_log.hdf5, and aggregate them over seeds.

    Arguments, result and errors are those of `load_log`.
    """
    return load_log(log_fname, aggregate_seeds, reload_log, only=only)


# --- files ----------------------------------------------------------------------------------------
def _read(path: str, only: set[str] | None) -> dict[RunKey, RunLog]:
    """All runs at a path.  Files may be replaced and merged meanwhile."""
    from mle_client.reader import read_runs  # here, so that importing this module loads no HDF5

    for _ in range(_ATTEMPTS):
        runs: dict[RunKey, RunLog] = {}
        try:
            for file in _log_files(path):
                for key, run in read_runs(file, only).items():
                    if key not in runs or _recency(run) >= _recency(runs[key]):
                        runs[key] = run
        except LogNotFound as error:
            if error.path == path:
                raise
            continue
        return runs
    raise LogNotFound(path, f"its files vanished while being read, {_ATTEMPTS} times: try again")


def _recency(run: RunLog) -> tuple[float, int]:
    """Orders runs of one name; the greater is the newer."""
    return (-math.inf if run.start_time is None else run.start_time), run.ticks


def _log_files(path: str) -> list[str]:
    """The log files of a folder, a merged one first; or the file itself."""
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise LogNotFound(path, "there is no such folder or file: check the path")
    names = _hdf5_names(os.path.join(path, "logs"))
    if not names:
        raise LogNotFound(path, f"there is no log in its folder logs/{_suggestion(path)}")
    return [os.path.join(path, "logs", name) for name in names]


def _hdf5_names(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    # Names that begin with a dot are other programs' helpers.
    return sorted(n for n in os.listdir(folder) if n.endswith(".hdf5") and not n.startswith("."))


def _suggestion(path: str) -> str:
    """Where there are logs, if not at the path: a configuration's folder lies one below."""
    inside = [name for name in sorted(os.listdir(path)) if _hdf5_names(f"{path}/{name}/logs")]
    files = _hdf5_names(path)
    if inside or files:
        return ": load " + " or ".join(os.path.join(path, name) for name in (*inside, *files))
    return ": a run appears there when it is first saved"


# --- runs -----------------------------------------------------------------------------------------
def _assemble(runs: Mapping[RunKey, RunLog], aggregate: bool, reload_log: bool) -> MetaLog | RunLog:
    if set(runs) == {(None, layout.NO_SEED)}:
        run = runs[None, layout.NO_SEED]
        return MetaLog({layout.NO_SEED: run}) if reload_log else run
    configs: dict[str | None, dict[str, RunLog]] = {}
    for config, seed in sorted(runs, key=_order):
        configs.setdefault(config, {})[seed] = runs[config, seed]
    entries: dict[str, Any] = {}
    for config, seeds in configs.items():
        if aggregate:
            entries[_AGGREGATED if config is None else config] = aggregate_over(seeds)
        elif config is None:
            entries.update(seeds)
        else:
            entries[config] = AttrDict(seeds)
    return MetaLog(entries)


def _order(key: RunKey) -> tuple[NaturalKey, NaturalKey]:
    config, seed = key
    return natural_key(config or ""), natural_key(seed)
