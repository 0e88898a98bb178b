"""What a figure of learning curves shows: which runs, which values, which names.

Pure.  It takes loaded runs as they are, writes nothing to them, and draws nothing: that is
`plot`.

    {name: run}, or {configuration: {seed: run}}  ── plan_curves ──>  one `Curve` a line

A run is anything with columns in ["time"] and ["stats"].  A statistic of aggregated seeds is a
mapping with "mean", "std", "p10", "p90"; of it, the mean is the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mle_client.seeds import natural_key
from mle_client.series import Array, Floats, moving_average
from mle_client.updates import LinedUp, left_out

# What a band shows of seeds: mean ± standard deviation, or from the 10th to the 90th percentile.
BANDS: Final = ("std", "p10-90")
_NAMES_IN_ERRORS: Final = 20


@dataclass(frozen=True, eq=False, slots=True)
class Curve:
    """One line of a figure.

    Args:
        run, seed: whose it is; the seed is "" where runs have none below them.
        target: the statistic.
        label: its name in the legend; "" where the name of another curve stands for it, too.
        x: the clock, shape (n,).
        y: the statistic, smoothed, shape (n,); NaN where there is a gap.
        band: lower and upper edge, both of shape (n,); None without a band.
    """

    run: str
    seed: str
    target: str
    label: str
    x: Array
    y: Floats
    band: tuple[Floats, Floats] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """All lines of a figure.  Args: remarks: what whoever looks at it should know, in words."""

    curves: Sequence[Curve]
    remarks: Sequence[str] = ()


@dataclass(frozen=True, eq=False, slots=True)
class _Source:
    run: str
    seed: str
    log: Mapping[str, Any]

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.run, self.seed))) or "the run"


def plan_curves(
    main_log: Any,
    clock: str,
    targets: str | Sequence[str],
    *,
    run_ids: str | Iterable[str] | None = None,
    labels: Sequence[str] = (),
    base_label: str = "{}",
    window: int = 1,
    band: str | None = None,
) -> Plan:
    """Choose what is drawn.

    Args:
        main_log: a run, or runs by name.
        clock: whose values are along the axis.
        targets: one statistic, or several; the names of several begin the labels.
        run_ids: names of runs in `main_log`; None for all.
        labels: one for each curve, in the order of the result; () to make them of the names.
        base_label: a format for labels.
        window: of the moving average, in values; 1 for none.
        band: a key of `BANDS`, or None.

    Returns:
        Curves in natural order of the runs, then of their seeds, then as in `targets`.

    Raises:
        KeyError: no run has that name, or none such a statistic or clock; says what there is.
        ValueError: it cannot be drawn: text, arrays, a column of which nobody knows the updates;
            or an argument makes no sense.
    """
    if window < 1 or int(window) != window:
        raise ValueError(f"a window of {window} values cannot be averaged: give 1 or more")
    if band not in (None, *BANDS):
        raise ValueError(f"band={band!r}: there is {_listed(BANDS)}, and None for no band")
    names = [targets] if isinstance(targets, str) else list(targets)
    if not names:
        raise ValueError("no statistic is to be drawn: name one, or several")
    if run_ids is not None:
        run_ids = [run_ids] if isinstance(run_ids, str) else list(run_ids)
    sources = _sources(main_log, run_ids)
    lines = [(source, target) for source in sources for target in names]
    if labels and len(labels) < len(lines):
        raise ValueError(f"{len(labels)} curve_labels for {len(lines)} curves: give one for each")
    remarks = _missing(sources, "time", [clock]) + _missing(sources, "stats", names)
    if labels and run_ids is not None and run_ids != sorted(run_ids, key=natural_key):
        order = _listed(dict.fromkeys(source.run for source in sources))
        remarks.append(f"curve_labels are those of the runs in natural order: {order}")
    made = labels or [_label(*line, sources, not isinstance(targets, str)) for line in lines]
    curves: list[Curve] = []
    beside: list[tuple[_Source, LinedUp]] = []
    used: set[str] = set()
    for (source, target), label in zip(lines, made, strict=False):
        if clock not in source.log["time"] or target not in source.log["stats"]:
            continue
        shown = base_label.format(label) if labels or label not in used else ""
        used.add(label)
        _check_numbers(source, target, clock)
        found = _lined_up(source, target, clock)
        beside.append((source, found))
        y, edges = _smoothed(found.values, int(window), band)
        curves.append(Curve(source.run, source.seed, target, shown, found.steps, y, edges))
    return Plan(curves, remarks + _without_values(names, curves) + _said(beside))


def _without_values(targets: Sequence[str], curves: Sequence[Curve]) -> list[str]:
    """What to say of statistics of which there is nothing to be seen."""
    return [
        f"{target!r} has no finite value in any run: no line is to be seen"
        for target in targets
        if not any(np.isfinite(curve.y).any() for curve in curves if curve.target == target)
    ]


# --- runs -----------------------------------------------------------------------------------------
def _sources(main_log: Any, run_ids: Sequence[str] | None) -> list[_Source]:
    if run_ids is None and _is_run(main_log):
        return [_Source("", "", main_log)]
    runs = main_log if isinstance(main_log, Mapping) else main_log.meta_log
    sources = []
    for name in sorted(runs if run_ids is None else run_ids, key=natural_key):
        if name not in runs:
            raise KeyError(f"no run {name!r}; there is {_listed(runs)}")
        entry = runs[name]
        if _is_run(entry):
            sources.append(_Source(name, "", entry))
        else:
            seeds = sorted(entry, key=natural_key)
            sources += [_Source(name, seed, entry[seed]) for seed in seeds]
    if not sources:
        raise ValueError(f"no run is to be drawn; there is {_listed(runs)}")
    return sources


def _is_run(entry: Any) -> bool:
    """Whether it is a run, and no configurations or seeds of which one is named "stats"."""
    if not (isinstance(entry, Mapping) and "stats" in entry and "time" in entry):
        return False
    if hasattr(type(entry), "aligned"):
        return True  # for certain, and its columns need not be read to find out
    stats = entry["stats"]
    inside = stats.values() if isinstance(stats, Mapping) else ()
    return not (_is_run(stats) or any(map(_is_run, inside)))


def _missing(sources: Sequence[_Source], group: str, keys: Sequence[str]) -> list[str]:
    """Which sources lack which keys of a group, in words.  Raises: KeyError: all lack one."""
    kind = {"time": "clock", "stats": "statistic"}[group]
    said = []
    for key in keys:
        without = [source.name for source in sources if key not in source.log[group]]
        if len(without) == len(sources):
            there = dict.fromkeys(name for source in sources for name in source.log[group])
            raise KeyError(f"no {kind} {key!r} in {_listed(without)}; there is {_listed(there)}")
        if without:
            said.append(f"no {kind} {key!r} in {_listed(without)}, passed over")
    return said


def _label(source: _Source, target: str, sources: Sequence[_Source], with_target: bool) -> str:
    """The name of a curve.  The seeds of several configurations go by their configuration's, for a
    legend of thirty names says nothing."""
    several = any(other.run != source.run for other in sources)
    name = source.run if several else "/".join(filter(None, (source.run, source.seed)))
    return ": ".join(filter(None, (target, name))) if with_target else name


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    shown = ", ".join(map(repr, found[:_NAMES_IN_ERRORS])) or "nothing"
    return shown + (" …" if len(found) > _NAMES_IN_ERRORS else "")


# --- values ---------------------------------------------------------------------------------------
def _smoothed(
    values: Any, window: int, band: str | None
) -> tuple[Floats, tuple[Floats, Floats] | None]:
    """A statistic, smoothed, and its band."""
    if not isinstance(values, Mapping):
        return moving_average(values, window), None
    mean = moving_average(values["mean"], window)
    if band == "std":
        std = moving_average(values["std"], window)
        return mean, (mean - std, mean + std)
    if band == "p10-90":
        low, high = (moving_average(values[name], window) for name in ("p10", "p90"))
        return mean, (low, high)
    return mean, None


def _check_numbers(source: _Source, target: str, clock: str) -> None:
    steps = np.asarray(source.log["time"][clock])
    if steps.dtype.kind not in "biuf":
        raise ValueError(
            f"the clock {clock!r} is text: draw over another one, such as time_elapsed"
        )
    values = source.log["stats"][target]
    column = values["mean"] if isinstance(values, Mapping) else values
    if isinstance(column, list) or column.dtype.kind not in "biuf":
        raise ValueError(
            f"{target!r} of {source.name} is text, or has no mean: only numbers are drawn"
        )
    if column.ndim > 1:
        raise ValueError(
            f"{target!r} of {source.name} holds arrays of shape {column.shape[1:]}: only numbers "
            "are drawn, so log a number of it too, such as its mean"
        )


def _lined_up(source: _Source, target: str, clock: str) -> LinedUp:
    """The clock at the updates that logged the statistic, and the statistic."""
    line_up = getattr(type(source.log), "line_up", None)  # of a run; else it is a plain dict
    if line_up is not None:
        lined_up: LinedUp = line_up(source.log, target, clock)
        return lined_up
    x, values = source.log["time"][clock], source.log["stats"][target]
    length = len(values["mean"] if isinstance(values, Mapping) else values)
    if len(x) != length:
        raise ValueError(
            f"{length} values of {target!r} and {len(x)} of {clock!r} in {source.name}, which does "
            "not say at which updates they were logged"
        )
    return LinedUp(x, values)


def _said(beside: Iterable[tuple[_Source, LinedUp]]) -> list[str]:
    """What is to be said of values beside a clock, of all runs together."""
    counts: dict[str, int] = {}
    where: dict[str, list[str]] = {}
    remarks: dict[str, None] = {}
    for source, found in beside:
        for name, count in found.unknown.items():
            counts[name] = counts.get(name, 0) + count
            where.setdefault(name, []).append(source.name)
        if found.remark:
            remarks[found.remark] = None
    said = [f"left out: {left_out(name, n, where[name])}" for name, n in counts.items()]
    return [*said, *remarks]
