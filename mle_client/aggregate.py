"""One log out of the logs of several seeds.

Pure.  Seeds may have different lengths and lack keys or values.  Different names for the same thing
are not reconciled.  What is asked of the seeds is asked when it is first looked at, a statistic
when that statistic is; so a log of many configurations costs what is looked at.  The numbers are
`summary`'s.

A step of a statistic is an update: where the seeds logged it at different ones, any of these
(`placed`).  Updates are counted, whatever a clock says.  Where it is not known of every seed at
which updates it was logged, as in mle-logging's files, step i is the i-th value of every seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np

from mle_client import layout, placed, updates
from mle_client.attrdict import AttrDict
from mle_client.blocks import Array, ArrayColumn, Column, Each, one_by_one
from mle_client.lazydict import Deferred, LazyDict, Once, Unread, peek
from mle_client.runlog import Facts, Opening, RunLog
from mle_client.seeds import described, different_settings, seed_number
from mle_client.summary import Summary, summarise
from mle_client.updates import Rows

# Meta data that the seeds of one configuration share, so that one value stands for all.
_SHARED: Final = ("experiment_dir", "eval_id", "config_fname", "model_type", "config_dict")
# Of these, the ones that say that seeds do not belong together if they differ.
_IDENTITY: Final = ("config_dict", "eval_id", "model_type")
_SHOWN: Final = 5  # names of seeds in a warning
# Row numbers that fit no column: nobody knows them.
_UNKNOWN: Final = np.empty(0, np.int64)
_STATES: Final = ("running", "crashed", "finished")  # the first that any seed is in


def aggregate_seeds(runs: Mapping[str, RunLog], each: Each = one_by_one) -> RunLog:
    """Aggregate the seeds of one configuration.

    Args:
        runs: {seed's name: its run}, at least one.
        each: see `summarise`.

    Returns:
        A run whose statistics are `Summary`s, with a step for each update at which any seed logged
        the statistic; `row_numbers` says which these are.  Where that is not known of every seed,
        there are as many steps as the longest seed's column has, and step i is the i-th value of
        every seed.  What has no mean (text, arrays whose shape differs between seeds) is a list of
        the seeds' columns.  A clock is that of the seed with most values of it; of equals, of the
        seed with most updates.
        Meta data are lists over the seeds, in the order of `meta.seeds`, None where a seed lacks
        them; with one seed, and for what seeds share, the value itself.

    Warns:
        UserWarning: the seeds were run with different configurations; when something of the
            aggregate is first looked at.  Values of a statistic are left out, for seeds logged it
            at different updates, and of these values nobody knows them; when that is first looked
            at.  The aggregate's `aligned`, plots and tables warn where seeds have different values
            of a clock at one update; of large logs the seeds' clocks are not read for that.
    """
    return RunLog.unopened(Opening(partial(_aggregated, dict(runs), each)))


def _aggregated(runs: dict[str, RunLog], each: Each) -> tuple[Mapping[str, AttrDict], Facts]:
    """Groups and facts of an aggregate.  What is unread in them keeps only what it needs."""
    _warn_of_differences(runs)
    seeds = list(runs.values())
    metas = [seed.meta for seed in seeds]
    ticks = max(seed.ticks for seed in seeds)
    clocks = {key: _Clock(_columns(seeds, "time", key), ticks) for key in _names(seeds, "time")}
    statistics = {
        key: _Statistic(key, _columns(seeds, "stats", key), ticks, each)
        for key in _names(seeds, "stats")
    }
    meta = LazyDict(
        (key, Deferred(partial(_meta_value, metas, key))) for key in _names(seeds, "meta")
    )
    meta["seeds"] = [seed_number(name) for name in runs]
    groups = {
        "meta": meta,
        "stats": LazyDict(statistics),
        "time": LazyDict(clocks),
    }
    rows = {layout.rows_name("stats", key): of.rows for key, of in statistics.items()}
    rows |= {layout.rows_name("time", key): of.rows for key, of in clocks.items()}
    remarks = {key: said for key in clocks if (said := _disagreement(key, runs))}
    return groups, Facts(_state(seeds), None, ticks, rows, remarks)


def _names(runs: Iterable[RunLog], group: str) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run[group]))


def _state(runs: Iterable[RunLog]) -> str | None:
    states = {run.state for run in runs}
    return None if None in states else next(s for s in (*_STATES, *states) if s in states)


# --- meta data ------------------------------------------------------------------------------------
def _meta_value(metas: Sequence[AttrDict], key: str) -> Any:
    if key in _SHARED:
        return next(meta[key] for meta in metas if key in meta)
    values = [meta.get(key) for meta in metas]
    return values if len(values) > 1 else values[0]


def _warn_of_differences(runs: Mapping[str, RunLog]) -> None:
    for key in _IDENTITY:
        present = [run.meta[key] for run in runs.values() if key in run.meta]
        if differences := _differences(present):
            warnings.warn(
                f"{_shown(list(runs))} are aggregated although their {key} differs "
                f"({described(differences)}): keep the runs of different configurations in "
                "different folders",
                UserWarning,
                stacklevel=2,
            )


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _differences(values: Sequence[Any]) -> list[str]:
    """In what the first value that differs from the first of all differs from that."""
    return next(filter(None, (different_settings(values[0], other) for other in values[1:])), [])


# --- columns --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _SeedsColumn:
    """One seed's column.

    Args:
        ticks: of the seed.
        row_numbers, row_column: raise what `RunLog`'s do.
    """

    column: Column
    ticks: int
    row_numbers: Callable[[], Rows]
    row_column: Callable[[], Column | None]


_OfSeeds: TypeAlias = Sequence[_SeedsColumn | None]  # one a seed, None where it lacks the key


def _columns(seeds: Iterable[RunLog], group: str, key: str) -> _OfSeeds:
    return [_column(seed, group, key) for seed in seeds]


def _column(run: RunLog, group: str, key: str) -> _SeedsColumn | None:
    if key not in run[group]:
        return None
    column: Any = peek(run[group], key)
    if not isinstance(column, Unread):
        column = ArrayColumn(column)
    ask = partial(run.row_numbers, group, key), partial(run.row_column, group, key)
    return _SeedsColumn(column, run.ticks, *ask)


def _present(of_seeds: _OfSeeds) -> list[_SeedsColumn]:
    """Those of the seeds that have the key."""
    return [each for each in of_seeds if each is not None]


def _longest(columns: Sequence[_SeedsColumn]) -> _SeedsColumn:
    """The column with most values; of equals, that of the seed with most updates."""
    return max(columns, key=lambda each: (len(each.column), each.ticks))


def _unless_all(rows: Rows, ticks: int) -> Rows | None:
    """None for row numbers that are those of every update."""
    return None if len(rows) == ticks and not updates.count_unknown(rows) else rows


# --- clocks ---------------------------------------------------------------------------------------
class _Clock(Unread):
    """The clock of some seed.

    Args:
        of_seeds: see `_OfSeeds`.
        ticks: of the longest seed.

    Attributes:
        rows: at which updates it was logged, for `Facts`.
    """

    __slots__ = ("_clocks", "rows")

    def __init__(self, of_seeds: _OfSeeds, ticks: int) -> None:
        self._clocks = _present(of_seeds)
        self.rows = Once(Deferred(partial(_clock_rows, self._clocks, ticks)))

    def __len__(self) -> int:
        return len(_longest_clock(self._clocks).column)

    def load(self) -> Array:
        """Read it, and at which updates it was logged."""
        self.rows.load()
        return _longest_clock(self._clocks).column.load()


def _clock_rows(clocks: Sequence[_SeedsColumn], ticks: int) -> Rows | None:
    try:
        return _unless_all(_longest_clock(clocks).row_numbers(), ticks)
    except ValueError:  # a file of mle-logging's does not say
        return None


def _longest_clock(clocks: Sequence[_SeedsColumn]) -> _SeedsColumn:
    """What `_longest` gives, without asking every file: no clock has more values than updates."""
    longest_first = sorted(clocks, key=lambda each: each.ticks, reverse=True)
    best, length = longest_first[0], len(longest_first[0].column)
    for each in longest_first[1:]:
        if each.ticks <= length:
            break
        if len(each.column) > length:
            best, length = each, len(each.column)
    return best


def _disagreement(clock: str, runs: Mapping[str, RunLog]) -> str:
    """Say in what the seeds' clocks differ; "" where they do not, or are not all in memory."""
    if clock in layout.OWN_CLOCKS:  # the number of the update, and times, which no seeds share
        return ""
    named = {name: of for name, run in runs.items() if (of := _column(run, "time", clock))}
    if not all(isinstance(of.column, ArrayColumn) for of in named.values()):
        return ""
    longest = _longest_clock(list(named.values()))
    (first,) = (name for name, of in named.items() if of is longest)
    for name, of in named.items():
        if of is not longest and (differs := _first_difference(longest, of)):
            update, value, other = differs
            return (
                f"the clock {clock!r} is not the same in all seeds{_whose(runs)}: at update "
                f"{update} {first} has {value} and {name} has {other}.  Values are aggregated by "
                f"update, and the aggregate has the clock of {first}"
            )
    return ""


def _whose(runs: Mapping[str, RunLog]) -> str:
    """Of which configuration seeds are, in words."""
    for run in runs.values():
        if name := run.meta.get("eval_id") or run.meta.get("experiment_dir"):
            return f" of {name!r}"
    return ""


def _first_difference(one: _SeedsColumn, other: _SeedsColumn) -> tuple[int, Any, Any] | None:
    """The first update, counted from 1, at which two clocks differ, and what they have there."""
    try:
        rows, others = one.row_numbers(), other.row_numbers()
    except ValueError:  # a file of mle-logging's does not say
        return None
    at, at_other = updates.common(rows, others)
    values, theirs = one.column.load()[at], other.column.load()[at_other]
    differs = np.flatnonzero((values != theirs) & ((values == values) | (theirs == theirs)))
    if not differs.size:
        return None
    i = differs[0]
    return int(rows[at[i]]) + 1, values[i], theirs[i]


# --- statistics -----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Arranged:
    """The columns of a statistic, so that step i of each is the same step.

    Args:
        columns: None where they have no mean.
        length: how many steps there are.
        rows: the updates that these are, for `Facts`.
        unknown: how many values are left out, for nobody knows their updates.
    """

    columns: Sequence[Column] | None
    length: int
    rows: Rows | None
    unknown: int = 0


class _Statistic(Unread):
    """The summary of one statistic.

    Args:
        key: its name.
        of_seeds: see `_OfSeeds`.
        ticks: of the longest seed.
        each: see `summarise`.

    Attributes:
        rows: the updates of its steps, for `Facts`.
    """

    __slots__ = ("_arranged", "_each", "_key", "_of_seeds", "rows")

    def __init__(self, key: str, of_seeds: _OfSeeds, ticks: int, each: Each) -> None:
        self._key = key
        self._of_seeds = of_seeds
        self._each = each
        self._arranged = Once(Deferred(partial(_arrange, _present(of_seeds), ticks, each)))
        self.rows = Once(Deferred(partial(_arranged_rows, self._arranged)))

    def __len__(self) -> int:
        return int(self._arranged.load().length)

    def load(self) -> Summary | list[Array]:
        """Read the columns, and at which updates they were logged."""
        arranged: _Arranged = self._arranged.load()
        self.rows.load()
        if arranged.columns is None:
            empty = np.array([], _present(self._of_seeds)[0].column.dtype)
            return [each.column.load() if each else empty for each in self._of_seeds]
        if arranged.unknown:
            said = updates.left_out(self._key, arranged.unknown)
            warnings.warn(f"left out of the mean over seeds: {said}", UserWarning, stacklevel=2)
        return summarise(arranged.columns, self._each)


def _arranged_rows(arranged: Once) -> Rows | None:
    found: _Arranged = arranged.load()
    return found.rows


def _arrange(present: Sequence[_SeedsColumn], ticks: int, each: Each) -> _Arranged:
    """Find out whether the seeds logged a statistic at the same updates, and see to it."""
    columns = [one.column for one in present]
    length = max(map(len, columns))
    numeric = all(column.dtype.kind in "biuf" for column in columns)
    if not numeric or len({column.shape[1:] for column in columns}) > 1:
        return _Arranged(None, length, _UNKNOWN)
    longest = _longest(present)
    try:
        steps = longest.row_numbers()
        logged = [placed.Logged(one.column, one.row_column()) for one in present]
    except ValueError:  # a file of mle-logging's does not say
        return _Arranged(columns, length, _UNKNOWN)
    others = [of for of, one in zip(logged, present, strict=True) if one is not longest]
    if placed.have_steps(others, steps, each):
        return _Arranged(columns, length, _unless_all(steps, ticks))
    rows, over_steps, unknown = placed.place(logged, each)
    if not len(rows):  # no value of which the update is known: by position, as above
        return _Arranged(columns, length, np.arange(-length, 0, dtype=np.int64))
    return _Arranged(over_steps, len(rows), _unless_all(rows, ticks), unknown)
