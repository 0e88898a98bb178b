"""One log out of the logs of several seeds: mean, spread and percentiles at every step.

Pure.  Seeds may have different lengths and lack values (NaN); each number says by "n" how many
values it rests on.  Different names for the same thing are not reconciled: step i of a statistic
is its i-th value in every seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mle_client import layout
from mle_client.metalog import Array, AttrDict, Rows, RunLog
from mle_client.seeds import described, different_settings, seed_number

Floats = npt.NDArray[np.float64]

PERCENTILES: Final = (50, 10, 25, 75, 90)  # in mle-logging's order
_BLOCK_VALUES: Final = 2**20  # sorted at a time: 8 MB, which the processor's caches help with
# Meta data that the seeds of one configuration share, so that one value stands for all.
_SHARED: Final = ("experiment_dir", "eval_id", "config_fname", "model_type", "config_dict")
# Of these, the ones that say that seeds do not belong together if they differ.
_IDENTITY: Final = ("config_dict", "eval_id", "model_type")
_STATES: Final = ("running", "crashed", "finished")  # the first that any seed is in


def aggregate_seeds(runs: Mapping[str, RunLog]) -> RunLog:
    """Aggregate the seeds of one configuration.

    Args:
        runs: {seed's name: its run}, at least one.

    Returns:
        A run whose statistics are dicts "mean", "std" (ddof 0), "p50", "p10", "p25", "p75", "p90"
        and "n" of arrays with shape (steps, *item), as long as the longest seed's column.  What
        has no mean (text, arrays whose shape differs between seeds) is a list of the seeds'
        columns.  A clock is that of the seed with most values of it.  Meta data are lists over the
        seeds, in the order of `meta.seeds`, None where a seed lacks them; with one seed, and for
        what seeds share, the value itself.

    Warns:
        UserWarning: the seeds were run with different configurations.
    """
    longest_first = sorted(runs.values(), key=lambda run: run.ticks, reverse=True)
    stats = {
        key: _statistic([run.stats.get(key) for run in runs.values()])
        for key in _names(runs.values(), "stats")
    }
    clocks, rows = {}, {}
    for group in ("time", "stats"):
        for key in _names(longest_first, group):
            holders = [run for run in longest_first if key in run[group]]
            longest = max(holders, key=lambda run: len(run[group][key]))
            rows.update(_rows_of(longest, group, key))
            if group == "time":
                clocks[key] = longest.time[key]
    states = {run.state for run in runs.values()}
    state = None if None in states else next(s for s in (*_STATES, *states) if s in states)
    return RunLog(_merged_meta(runs), stats, clocks, rows=rows, state=state)


def _names(runs: Iterable[RunLog], group: str) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run[group]))


def _rows_of(run: RunLog, group: str, key: str) -> dict[str, Rows]:
    try:
        return {layout.rows_name(group, key): run.row_numbers(group, key)}
    except ValueError:  # a file of mle-logging's does not say
        return {}


# --- meta data ------------------------------------------------------------------------------------
def _merged_meta(runs: Mapping[str, RunLog]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key in _names(runs.values(), "meta"):
        values = [run.meta.get(key) for run in runs.values()]
        if key in _SHARED:
            present = [run.meta[key] for run in runs.values() if key in run.meta]
            merged[key] = present[0]
            if key in _IDENTITY and (differences := _differences(present)):
                _warn_of_difference(key, list(runs), described(differences))
        else:
            merged[key] = values if len(values) > 1 else values[0]
    merged["seeds"] = [seed_number(name) for name in runs]
    return merged


def _differences(values: Sequence[Any]) -> list[str]:
    """In what the first value that differs from the first of all differs from that."""
    return next(filter(None, (different_settings(values[0], other) for other in values[1:])), [])


def _warn_of_difference(key: str, names: Sequence[str], differences: str) -> None:
    warnings.warn(
        f"{', '.join(names)} are aggregated although their {key} differs ({differences}): keep the "
        "runs of different configurations in different folders",
        UserWarning,
        stacklevel=2,
    )


# --- statistics -----------------------------------------------------------------------------------
def _statistic(columns: Sequence[Array | None]) -> AttrDict | list[Array]:
    """The summary of one statistic.  Args: columns: one a seed, None where a seed lacks it."""
    present = [column for column in columns if column is not None]
    numeric = all(column.dtype.kind in "biuf" for column in present)
    if numeric and len({column.shape[1:] for column in present}) == 1:
        return AttrDict(summarise(present))
    empty = np.array([], present[0].dtype)
    return [empty if column is None else column for column in columns]


def summarise(columns: Sequence[Array]) -> dict[str, Array]:
    """Mean, spread and percentiles over seeds, exact, NaN ignored.

    Args:
        columns: one a seed, numbers of shape (n_i, *item).

    Returns:
        "mean", "std" (ddof 0), "p50", "p10", "p25", "p75", "p90": float64, shape
        (longest, *item), NaN where no seed has a value; "n": int64, how many have one.
    """
    item = columns[0].shape[1:]
    width = int(np.prod(item, dtype=np.int64))
    flat = [column.reshape(len(column), width) for column in columns]
    longest = max(map(len, flat))
    # Half the width sorts twice as fast, and loses nothing of float32 and narrower columns.
    common = np.result_type(*(column.dtype for column in columns))
    dtype = np.float32 if common in (np.float16, np.float32) else np.float64
    names = ("mean", "std", *(f"p{q}" for q in PERCENTILES))
    results: dict[str, Array] = {name: np.empty((longest, width)) for name in names}
    results["n"] = np.empty((longest, width), np.int64)
    step = max(1, _BLOCK_VALUES // max(1, width * len(flat)))
    for start in range(0, longest, step):
        block = np.full((min(step, longest - start), width, len(flat)), np.nan, dtype)
        with np.errstate(invalid="ignore", over="ignore"):  # of infinities and extended precision
            for seed, column in enumerate(flat):
                part = column[start : start + step]
                block[: len(part), :, seed] = part
            summary = _summarise_block(block)
        for name, values in summary.items():
            results[name][start : start + step] = values
    return {name: values.reshape(longest, *item) for name, values in results.items()}


def _summarise_block(block: Array) -> dict[str, Array]:
    """The same for an array with the seeds along its last axis, which is sorted in place."""
    block.sort(axis=-1)  # NaN goes last, and the results do not depend on the seeds' order
    n = block.shape[-1] - np.count_nonzero(np.isnan(block), axis=-1)
    mean, std = _mean_and_std(block, n)
    percentiles = {f"p{q}": _percentile(block, n, q / 100) for q in PERCENTILES}
    return {"mean": mean, "std": std, **percentiles, "n": n}


def _mean_and_std(block: Array, n: npt.NDArray[np.intp]) -> tuple[Floats, Floats]:
    divisor = np.where(n == 0, np.nan, n)
    whole = int(n.min(initial=block.shape[-1])) == block.shape[-1]
    missing = None if whole else np.isnan(block)
    values = block.astype(np.float64)
    if missing is not None:
        values[missing] = 0.0
    mean = values.sum(axis=-1) / divisor
    values -= mean[..., np.newaxis]
    if missing is not None:
        values[missing] = 0.0
    np.multiply(values, values, out=values)
    return mean, np.sqrt(values.sum(axis=-1) / divisor)


def _percentile(block: Array, n: npt.NDArray[np.intp], fraction: float) -> Floats:
    """Between the two neighbours, linearly, as `numpy.percentile` does."""
    position = np.maximum(n - 1, 0) * fraction
    below = position.astype(np.intp)
    weight = position - below
    low = _pick(block, below)
    high = _pick(block, np.minimum(below + 1, np.maximum(n - 1, 0)))
    # Not low + (high - low) * weight: infinite neighbours would make that NaN.
    return np.where((weight == 0) | (low == high), low, low * (1 - weight) + high * weight)


def _pick(block: Array, index: npt.NDArray[np.intp]) -> Floats:
    if index.size and index.min() == index.max():  # no seed ended or lacks a value here
        return block[..., index.flat[0]].astype(np.float64)
    picked = np.take_along_axis(block, index[..., np.newaxis], axis=-1)
    return picked[..., 0].astype(np.float64)
