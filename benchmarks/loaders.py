"""Ways of loading a log, each called in a process of its own.

A library is imported before the clock runs.  A way that loads when things are looked at looks at
all of them while it does.  What comes back is checked by whoever asked.
"""

from __future__ import annotations

import importlib
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

OURS, THEIRS, BYTES = "ours", "mle-logging", "h5py alone"
_STATISTIC: Final = "stat_0"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading took.

    Args:
        seconds, cpu_s: until all that was asked for was there.
        peak_bytes: of memory that the process had in use, libraries and all.
        found: of the last step of a statistic, to see that it is right: numbers by name.
    """

    seconds: float
    cpu_s: float
    peak_bytes: int
    found: Mapping[str, float]


# --- seeds, aggregated ----------------------------------------------------------------------------
def aggregate(way: str, path: str) -> Loaded:
    """Load a log and aggregate every statistic over its seeds.

    Args:
        way: `OURS`, `THEIRS`, or `BYTES`, which only reads every statistic.
        path: of a merged log, or of a folder for `OURS`.
    """
    load = _library(way)
    if way == BYTES:
        return _timed(lambda: load(path), lambda _: {})

    def look() -> Any:
        return dict(load(path, aggregate_seeds=True)["eval"]["stats"].items())

    return _timed(look, lambda stats: _last(stats[_STATISTIC]))


def _last(summary: Mapping[str, Any]) -> dict[str, float]:
    values = {name: float(summary[name][-1]) for name in ("mean", "std", "p50", "p90")}
    return {"steps": len(summary["mean"]), **values}


# --- one run --------------------------------------------------------------------------------------
def load_run(way: str, path: str) -> Loaded:
    """Load a log of one seed and look at every column."""
    load = _library(way)

    def look() -> Any:
        run = load(path)["seed_0"]
        return {group: dict(run[group].items()) for group in ("meta", "stats", "time")}

    def last(run: Any) -> dict[str, float]:
        column = run["stats"][_STATISTIC]
        return {"steps": len(column), "value": float(column[-1])}

    return _timed(look, last)


# --- many configurations --------------------------------------------------------------------------
def load_configs(path: str) -> dict[str, Loaded]:
    """Load a log of many configurations, and look at more and more of it.

    Returns:
        What it took until each of these had been done, from the beginning.
    """
    from mle_client import load_meta_log

    _ours()
    began, cpu = time.perf_counter(), time.process_time()
    marks: dict[str, Loaded] = {}

    def mark(what: str, found: Mapping[str, float]) -> None:
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        marks[what] = Loaded(seconds, cpu_s, _peak_bytes(), found)

    log = load_meta_log(path)
    mark("load_meta_log", {"configurations": len(log)})
    mark("one statistic of one of them", _last(log[log.eval_ids[0]].stats[_STATISTIC]))
    means = [log[name].stats[_STATISTIC]["mean"] for name in log.eval_ids]
    mark("that statistic of all", {"steps": sum(map(len, means))})
    count = sum(len(group.values()) for name in log.eval_ids for group in log[name].values())
    mark("everything of all", {"values": count})
    return marks


# --- libraries ------------------------------------------------------------------------------------
def _library(way: str) -> Callable[..., Any]:
    """What loads, imported.  Raises: ImportError: it is not installed."""
    if way == OURS:
        return _ours()
    if way == THEIRS:
        warnings.simplefilter("ignore")  # what it and its dependencies have to say
        load: Callable[..., Any] = importlib.import_module("mle_logging").load_log
        return load
    h5py = importlib.import_module("h5py")

    def read_statistics(path: str) -> None:
        with h5py.File(path) as file:
            for seed in file.values():
                for statistic in seed["stats"].values():
                    statistic[()]

    return read_statistics


def _ours() -> Callable[..., Any]:
    from mle_client import load_log

    for name in ("control", "logfiles"):  # which `load_log` imports when it is first called
        importlib.import_module(f"mle_client.{name}")
    return load_log


def _timed(look: Callable[[], Any], found: Callable[[Any], Mapping[str, float]]) -> Loaded:
    began, cpu = time.perf_counter(), time.process_time()
    seen = look()
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return Loaded(seconds, cpu_s, _peak_bytes(), found(seen))


def _peak_bytes() -> int:
    """The most memory that this process had in use so far."""
    if sys.platform == "linux":  # where getrusage counts what the parent had, too
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
