"""One log out of the logs of several seeds.

Pure.  Seeds may have different lengths and lack keys or values.  Different names for the same thing
are not reconciled: step i of a statistic is its i-th value in every seed.  What is asked of the
seeds is asked when it is first looked at, a statistic when that statistic is; so a log of many
configurations costs what is looked at.  The numbers are `summary`'s.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from mle_client import layout
from mle_client.attrdict import AttrDict
from mle_client.blocks import Array, ArrayColumn, Column, Each, one_by_one
from mle_client.lazydict import Deferred, LazyDict, Once, Unread, peek
from mle_client.metalog import Facts, Opening, Rows, RunLog
from mle_client.seeds import described, different_settings, seed_number
from mle_client.summary import Summary, summarise

# Meta data that the seeds of one configuration share, so that one value stands for all.
_SHARED: Final = ("experiment_dir", "eval_id", "config_fname", "model_type", "config_dict")
# Of these, the ones that say that seeds do not belong together if they differ.
_IDENTITY: Final = ("config_dict", "eval_id", "model_type")
_SHOWN: Final = 5  # names of seeds in a warning
_STATES: Final = ("running", "crashed", "finished")  # the first that any seed is in


def aggregate_seeds(runs: Mapping[str, RunLog], each: Each = one_by_one) -> RunLog:
    """Aggregate the seeds of one configuration.

    Args:
        runs: {seed's name: its run}, at least one.
        each: see `summarise`.

    Returns:
        A run whose statistics are `Summary`s, as long as the longest seed's column.  What has no
        mean (text, arrays whose shape differs between seeds) is a list of the seeds' columns.  A
        clock is that of the seed with most values of it; of equals, of the seed with most updates.
        Meta data are lists over the seeds, in the order of `meta.seeds`, None where a seed lacks
        them; with one seed, and for what seeds share, the value itself.

    Warns:
        UserWarning: the seeds were run with different configurations; when something of the
            aggregate is first looked at.
    """
    return RunLog.unopened(Opening(partial(_aggregated, dict(runs), each)))


def _aggregated(runs: dict[str, RunLog], each: Each) -> tuple[Mapping[str, AttrDict], Facts]:
    """Groups and facts of an aggregate.  What is unread in them keeps only what it needs."""
    _warn_of_differences(runs)
    seeds = list(runs.values())
    metas = [seed.meta for seed in seeds]
    ticks = max(seed.ticks for seed in seeds)
    columns = {
        (group, key): _Columns([_column(seed, group, key) for seed in seeds], ticks, longest)
        for group, longest in (("stats", _longest), ("time", _longest_clock))
        for key in _names(seeds, group)
    }
    meta = LazyDict(
        (key, Deferred(partial(_meta_value, metas, key))) for key in _names(seeds, "meta")
    )
    meta["seeds"] = [seed_number(name) for name in runs]
    groups = {
        "meta": meta,
        "stats": LazyDict(
            (k, _Statistic(of, each)) for (g, k), of in columns.items() if g == "stats"
        ),
        "time": LazyDict((k, _Clock(of)) for (g, k), of in columns.items() if g == "time"),
    }
    rows = {layout.rows_name(group, key): of.rows for (group, key), of in columns.items()}
    return groups, Facts(_state(seeds), None, ticks, rows)


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
    """One seed's column.  Args: ticks: of the seed; row_numbers: raises what `RunLog`'s does."""

    column: Column
    ticks: int
    row_numbers: Callable[[], Rows]


class _Columns:
    """The columns of one key.

    Args:
        of_seeds: one a seed, None where a seed lacks the key.
        ticks: of the longest seed.
        longest: finds the longest of them.
    """

    def __init__(
        self,
        of_seeds: Sequence[_SeedsColumn | None],
        ticks: int,
        longest: Callable[[Sequence[_SeedsColumn]], _SeedsColumn],
    ) -> None:
        self.of_seeds = of_seeds
        self.rows = Once(Deferred(partial(_rows, longest, self.present(), ticks)))

    def present(self) -> list[_SeedsColumn]:
        """Those of the seeds that have the key."""
        return [each for each in self.of_seeds if each is not None]


def _column(run: RunLog, group: str, key: str) -> _SeedsColumn | None:
    if key not in run[group]:
        return None
    column: Any = peek(run[group], key)
    if not isinstance(column, Unread):
        column = ArrayColumn(column)
    return _SeedsColumn(column, run.ticks, partial(run.row_numbers, group, key))


def _longest(columns: Sequence[_SeedsColumn]) -> _SeedsColumn:
    """The column with most values; of equals, that of the seed with most updates."""
    return max(columns, key=lambda each: (len(each.column), each.ticks))


def _rows(
    longest: Callable[[Sequence[_SeedsColumn]], _SeedsColumn],
    columns: Sequence[_SeedsColumn],
    ticks: int,
) -> Rows | None:
    """At which updates an aggregate's steps were logged: those of the longest column."""
    try:
        rows = longest(columns).row_numbers()
    except ValueError:  # a file of mle-logging's does not say
        return None
    return None if len(rows) == ticks else rows


class _Clock(Unread):
    """The clock of some seed."""

    __slots__ = ("_columns",)

    def __init__(self, columns: _Columns) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(_longest_clock(self._columns.present()).column)

    def load(self) -> Array:
        """Read it, and at which updates it was logged."""
        self._columns.rows.load()
        return _longest_clock(self._columns.present()).column.load()


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


class _Statistic(Unread):
    """The summary of one statistic."""

    __slots__ = ("_columns", "_each")

    def __init__(self, columns: _Columns, each: Each) -> None:
        self._columns = columns
        self._each = each

    def __len__(self) -> int:
        return len(_longest(self._columns.present()).column)

    def load(self) -> Summary | list[Array]:
        """Read the columns, and at which updates they were logged."""
        self._columns.rows.load()
        present = [each.column for each in self._columns.present()]
        numeric = all(column.dtype.kind in "biuf" for column in present)
        if numeric and len({column.shape[1:] for column in present}) == 1:
            return summarise(present, self._each)
        empty = np.array([], present[0].dtype)
        return [each.column.load() if each else empty for each in self._columns.of_seeds]
