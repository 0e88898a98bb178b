"""What can be said of one checkpoint, and the rules that want some of several.

Pure.  A rule says which of given checkpoints it wants; `retention` joins rules, and so decides what
a run keeps.

Under a metric, a better value comes before a worse one, infinities where they belong, then not a
number; of equal ones the older comes first.  This order is total, so what a rule wants of all that
was ever saved it finds among what it wanted before: a checkpoint that has left the best k has k
better ones, and never comes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

_MODES: Final = ("min", "max")


@dataclass(frozen=True, slots=True)
class Saved:
    """One checkpoint.

    Args:
        number: counts the saves of the run, from 1; 0 where mle-logging has not kept it.
        time: value of `ckpt_time_to_track`, None where it has none.
        metrics: the statistics of `Policy.metric_names` that it was saved with.
        clocks: the clocks of `Policy.clock_names` that it was saved with.
    """

    number: int
    time: int | float | None
    metrics: Mapping[str, float]
    clocks: Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class TopK:
    """Keep the best checkpoints.

    Args:
        metric: name of a statistic; a checkpoint without it is no candidate.
        k: how many.
        mode: "min" where small values are good, "max" where large ones are.

    Raises:
        TypeError, ValueError: an argument is none of that.
    """

    metric: str
    k: int
    mode: str = "min"

    def __post_init__(self) -> None:
        check_name("TopK: metric", self.metric)
        check_count("TopK: k", self.k)
        if self.mode not in _MODES:
            raise ValueError(f"TopK: mode={self.mode!r}: give 'min' or 'max'")


@dataclass(frozen=True, slots=True)
class EveryK:
    """Keep each checkpoint whose number is a multiple of k.  Args, Raises: as of `TopK`."""

    k: int

    def __post_init__(self) -> None:
        check_count("EveryK: k", self.k)


@dataclass(frozen=True, slots=True)
class LatestN:
    """Keep the latest checkpoints.  Args: n: how many.  Raises: as of `TopK`."""

    n: int

    def __post_init__(self) -> None:
        check_count("LatestN: n", self.n)


@dataclass(frozen=True, slots=True)
class KeepPeriod:
    """Keep the first checkpoint of each period of a clock.

    Period i goes from i * period up to, and without, (i + 1) * period.

    Args:
        clock: name of a clock; a checkpoint without a finite value of it is in no period.
        period: in units of the clock.

    Raises:
        TypeError, ValueError: an argument is none of that.
    """

    clock: str
    period: int | float

    def __post_init__(self) -> None:
        check_name("KeepPeriod: clock", self.clock)
        if not is_number(self.period):
            raise TypeError(f"KeepPeriod: period={self.period!r}: give a number above 0")
        if not 0 < self.period < math.inf:
            raise ValueError(f"KeepPeriod: period={self.period!r}: give a finite number above 0")


Rule: TypeAlias = TopK | EveryK | LatestN | KeepPeriod


def wanted(rule: Rule, candidates: Sequence[Saved]) -> set[int]:
    """The numbers that one rule keeps of some checkpoints.  Args: candidates: oldest first."""
    match rule:
        case TopK(metric, k, mode):
            rated = [saved for saved in candidates if metric in saved.metrics]
            return {saved.number for saved in sorted(rated, key=order(metric, mode))[:k]}
        case EveryK(k):
            return {saved.number for saved in candidates if saved.number % k == 0}
        case LatestN(n):
            return {saved.number for saved in candidates[-n:]}
        case KeepPeriod(clock, length):
            first: dict[int, int] = {}
            for saved in candidates:
                period = _maybe_period(saved.clocks.get(clock), length)
                if period is not None:
                    first.setdefault(period, saved.number)
            return set(first.values())


def order(metric: str, mode: str) -> Callable[[Saved], tuple[bool, float, int]]:
    """The key by which checkpoints are sorted from the best to the worst.

    One without the metric, left by a run that went by another, is as bad as one that has no number.
    """

    def key(saved: Saved) -> tuple[bool, float, int]:
        value = saved.metrics.get(metric, math.nan)
        if math.isnan(value):
            return True, 0.0, saved.number
        return False, value if mode == "min" else -value, saved.number

    return key


def _maybe_period(value: int | float | None, length: int | float) -> int | None:
    """The number of the period that a clock's value lies in; None for none."""
    if value is None:
        return None
    if isinstance(value, int) and isinstance(length, int):
        return value // length  # exact beyond 2**53, too
    try:
        return math.floor(value / length)
    except (OverflowError, ValueError):  # infinite, or not a number
        return None


def check_count(argument: str, value: object) -> None:
    """Raise unless a value is a count.  Args: argument: what the user calls it."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{argument}={value!r}: give an int of at least 1")
    if value < 1:
        raise ValueError(f"{argument}={value!r}: give an int of at least 1")


def check_name(argument: str, value: object) -> None:
    """Raise unless a value can name a statistic or clock.  Args: as of `check_count`."""
    if not isinstance(value, str):
        raise TypeError(f"{argument}={value!r}: give a name, as in the dicts of update()")
    if not value:
        raise ValueError(f"{argument} is empty: give a name, as in the dicts of update()")


def is_number(value: object) -> bool:
    """Whether a value is a plain number."""
    return isinstance(value, int | float)
