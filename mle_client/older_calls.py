"""Functions of mle-logging whose work others do here, with its parameters.

For programs that are not changed (`compat`).  They translate arguments and results, no more.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mle_client import merged_configs, merged_file
from mle_client.aggregate import aggregate_seeds
from mle_client.attrdict import AttrDict
from mle_client.control import publish_before_reading
from mle_client.merging import Merge, MergeReport
from mle_client.runlog import RunLog

_EVAL = "eval"  # mle-logging's name for the aggregated seeds of one configuration


def merge_hdf5_files(
    new_filename: str | os.PathLike[str],
    log_paths: Sequence[str | os.PathLike[str]],
    file_ids: Sequence[str] | None = None,
    delete_files: bool = False,
) -> MergeReport:
    """Merge log files, as `merge_seed_logs` and `merge_config_logs` merge those of a folder.

    Args:
        new_filename: path of the merged file.  If it is there, what it lacks is added; with
            `file_ids`, it is replaced.
        log_paths: of the logs.
        file_ids: the configuration that each log belongs to, under whose name its seeds go; None to
            have seeds only.
        delete_files: remove the logs that the merged file replaces; not with `file_ids`.

    Raises:
        ValueError: `file_ids` has another length than `log_paths`, or comes with `delete_files`.
        MLEError: as of `merged_file.merge`.
    """
    target, paths = os.fspath(new_filename), [os.fspath(path) for path in log_paths]
    if not paths:
        raise ValueError("log_paths is empty: there is nothing to merge")
    for path in paths:
        publish_before_reading(path)
    folder = _folder_above(paths)
    if file_ids is None:
        return merged_file.merge(
            Merge(
                target,
                folder,
                lambda: [path for path in paths if os.path.lexists(path)],
                delete=delete_files,
                running=True,
                mixed=True,
                at_least=0,
            )
        )
    if len(file_ids) != len(paths):
        raise ValueError(
            f"file_ids names {len(file_ids)} configurations for {len(paths)} log_paths"
        )
    if delete_files:
        raise ValueError(
            "delete_files=True with file_ids: logs of configurations stay; remove them when you "
            "have looked into the merged file"
        )
    configurations: dict[str, tuple[str, ...]] = {}
    for config, path in zip(file_ids, paths, strict=True):
        configurations[config] = (*configurations.get(config, ()), path)
    return merged_configs.merge_configurations(target, folder, lambda: configurations, mixed=True)


def _folder_above(paths: Sequence[str]) -> str:
    """The folder that logs lie below, and none of them in: `merged_file` locks theirs, too."""
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath(folders)
    return os.path.dirname(common) if common in folders else common


def aggregate_over_seeds(result_dict: Mapping[str, Any], batch_case: bool = False) -> AttrDict:
    """Aggregate seeds that are in memory; `load_log(..., aggregate_seeds=True)` reads them as well.

    Args:
        result_dict: {seed: {"meta": …, "stats": …, "time": …}}, or {configuration: such a dict}.
        batch_case: whether it is the second.

    Returns:
        {"eval": aggregated run}, or {configuration: aggregated run}; see `aggregate`.
    """
    configurations = result_dict if batch_case else {_EVAL: result_dict}
    return AttrDict(
        (config, aggregate_seeds({seed: _as_run(run) for seed, run in seeds.items()}))
        for config, seeds in configurations.items()
    )


def subselect_meta_log(meta_log: Mapping[str, Any], run_ids: Iterable[str]) -> AttrDict:
    """Select some runs by name; `MetaLog.filter` does it for what was loaded.

    Raises:
        KeyError: there is no run of that name.
    """
    return AttrDict((run_id, meta_log[run_id]) for run_id in run_ids)


def tolerant_mean(arrs: Sequence[Any]) -> tuple[Any, Any]:
    """Mean and standard deviation (ddof 0) over columns of different lengths.

    Args:
        arrs: one a seed, shape (n_i, *shape of a value); at least one.

    Returns:
        Two masked arrays of shape (longest n, *shape of a value).  Seeds that have ended do not
        count; a NaN does.
    """
    columns = [np.asarray(column) for column in arrs]
    length = max(map(len, columns))
    values = np.zeros((length, *columns[0].shape[1:], len(columns)))
    missing = np.ones(values.shape, bool)
    for seed, column in enumerate(columns):
        values[: len(column), ..., seed] = column
        missing[: len(column), ..., seed] = False
    stacked = np.ma.MaskedArray(values, missing)
    return stacked.mean(axis=-1), stacked.std(axis=-1)


def moving_smooth_ts(ts: Any, window_size: int = 20) -> tuple[Any, Any]:
    """Mean and standard deviation (ddof 1) of each value and those before it in a window.

    Args:
        ts: shape (n,); of more columns, the first one counts.
        window_size: how many values; at the beginning, as many as there are.

    Returns:
        Two of pandas' series.

    Raises:
        ImportError: there is no pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("moving_smooth_ts needs pandas: pip install pandas") from error
    window = pandas.DataFrame(ts).iloc[:, 0].rolling(window_size, min_periods=1)
    return window.mean(), window.std()


def _as_run(run: Mapping[str, Any]) -> RunLog:
    return run if isinstance(run, RunLog) else RunLog(run["meta"], run["stats"], run["time"])
