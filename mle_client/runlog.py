"""One run as loading returns it: its columns by name, and which values belong to one update.

Pure: it reads no file, and knows nothing of where the values came from.

    RunLog ── "meta" | "stats" | "time" ──> AttrDict ── name ──> value or column

Of large files a column is read when it is first looked at (`lazydict`); names, lengths and the
facts about a run need no column.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np

from mle_client import layout, updates
from mle_client.attrdict import AttrDict
from mle_client.blocks import Array, ArrayColumn, Column
from mle_client.lazydict import Deferred, LazyDict, Once, Unread, load_nested, peek
from mle_client.summary import Summary
from mle_client.updates import LinedUp, Rows

CLOCK: Final = "num_updates"  # that every run of ours has


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a run beside its columns.

    Args:
        state: "running", "finished" or "crashed"; None where the file does not say.
        start_time: seconds since the epoch at which its clock "time_elapsed" is 0, or None.
        ticks: how many updates it has; None where only the clocks tell.
        rows: {`layout.rows_name(group, key)`: shape (n,), the updates at which the key was
            logged, see `updates`}; may be unread.  None, or no such name, where it was logged at
            every one or nobody knows; of another length than the column where nobody knows.
        remarks: {clock: what whoever uses it should know, in words}.
        lost: updates that could not be kept, and are no rows.
    """

    state: str | None = None
    start_time: float | None = None
    ticks: int | None = None
    rows: Mapping[str, Rows | Once | None] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)
    lost: int = 0


class Opening:
    """A run that is opened when something of it is first looked at.

    Args:
        open_run: returns its groups "meta", "stats" and "time", and the facts; is called once, or
            again where it failed.
    """

    __slots__ = ("_open_run", "_opened")

    def __init__(self, open_run: Callable[[], tuple[Mapping[str, AttrDict], Facts]]) -> None:
        self._open_run: Callable[[], tuple[Mapping[str, AttrDict], Facts]] | None = open_run
        self._opened: tuple[Mapping[str, AttrDict], Facts] | None = None

    def __call__(self) -> tuple[Mapping[str, AttrDict], Facts]:
        open_run = self._open_run
        if open_run is not None:
            self._opened = open_run()
            self._open_run = None  # which may keep a file open
        assert self._opened is not None
        return self._opened

    def group(self, name: str) -> AttrDict:
        """One of the groups."""
        return self()[0][name]


class RunLog(LazyDict):
    """One run: its keys are "meta", "stats" and "time".

    Args:
        meta: values about the run.
        stats: one column a statistic, shape (n, *item); of aggregated seeds, see `aggregate`.
        time: one column a clock, shape (n,).
        rows, state, start_time: see `Facts`.
    """

    __slots__ = ("_known",)

    _known: Facts | Opening

    def __init__(
        self,
        meta: Mapping[str, Any],
        stats: Mapping[str, Any],
        time: Mapping[str, Any],
        *,
        rows: Mapping[str, Rows | None] | None = None,
        state: str | None = None,
        start_time: float | None = None,
    ) -> None:
        super().__init__(meta=AttrDict(meta), stats=AttrDict(stats), time=AttrDict(time))
        self._known = Facts(state, start_time, None, dict(rows or {}))

    @classmethod
    def unopened(cls, opening: Opening) -> RunLog:
        """A run that is opened when something of it is first looked at."""
        groups = {group: Deferred(partial(opening.group, group)) for group in layout.GROUPS}
        return cls._of(groups, opening)

    @classmethod
    def _of(cls, groups: Mapping[str, AttrDict | Unread], known: Facts | Opening) -> RunLog:
        run = cls.__new__(cls)
        run.update(groups)
        run._known = known
        return run

    @property
    def _facts(self) -> Facts:
        return self._known()[1] if isinstance(self._known, Opening) else self._known

    @property
    def state(self) -> str | None:
        """State of the run: "running", "finished", "crashed"; None where the file does not say."""
        return self._facts.state

    @property
    def start_time(self) -> float | None:
        """When the run began, in seconds since the epoch; None where the file does not say."""
        return self._facts.start_time

    @property
    def lost(self) -> int:
        """How many updates are missing, since there was no room to keep them."""
        return self._facts.lost

    @property
    def ticks(self) -> int:
        """How many updates the run has."""
        known = self._facts.ticks
        if known is not None:
            return known
        return max((len(peek(self.time, clock)) for clock in self.time), default=0)

    def load(self) -> RunLog:
        """Read all that is not read yet; no file is needed after that.

        Returns:
            The run itself.
        """
        load_nested(self)
        facts = self._facts
        rows = {name: _read_rows(rows) for name, rows in facts.rows.items()}
        self._known = replace(facts, rows={k: v for k, v in rows.items() if v is not None})
        return self

    def aligned(self, key: str, clock: str = "num_updates") -> tuple[Array, Any]:
        """Line a statistic up with a clock.

        Args:
            key: of a statistic, whether logged at every update or at some.
            clock: of a clock.  Updates at which it was not logged are left out.

        Returns:
            Two of equal length: the clock's values at the updates that logged the statistic, shape
            (n,), and the statistic's values there, shape (n, *item).  Of aggregated seeds the
            second is a `Summary` of such arrays, and the clock is that of one seed; see
            `aggregate`.

        Raises:
            KeyError: there is no such statistic or clock.
            ValueError: the file does not say at which updates they were logged.

        Warns:
            UserWarning: values are left out, for nobody knows their updates: mle-logging logged
                them, and the log was continued.  Or the seeds' clocks differ.
        """
        found = self.line_up(key, clock)
        said = [updates.left_out(name, count) for name, count in found.unknown.items()]
        remarks = [f"left out: {'; '.join(said)}"] if said else []
        for remark in [*remarks, *filter(None, [found.remark])]:
            warnings.warn(remark, UserWarning, stacklevel=2)
        return found.steps, found.values

    def line_up(self, key: str, clock: str = CLOCK) -> LinedUp:
        """Line a statistic up with a clock as `aligned`, and return what that warns of."""
        values, steps = self.stats[key], self.time[clock]
        if isinstance(values, list):
            raise ValueError(f"{key!r} of several seeds is no single column: load each seed")
        value_rows, step_rows = self.row_numbers("stats", key), self.row_numbers("time", clock)
        at_value, at_step = updates.common(value_rows, step_rows)
        counts = {
            key: updates.count_unknown(value_rows),
            f"time/{clock}" if clock == key else clock: updates.count_unknown(step_rows),
        }
        return LinedUp(
            steps[at_step],
            values.at(at_value) if isinstance(values, Summary) else values[at_value],
            {name: count for name, count in counts.items() if count},
            self.remark(clock),
        )

    def remark(self, clock: str) -> str:
        """What whoever uses a clock should know, in words; "" for nothing."""
        return self._facts.remarks.get(clock, "")

    def row_numbers(self, group: str, key: str) -> Rows:
        """The updates, counted from 0, at which a key of "stats" or "time" was logged.

        Returns:
            One a value, ascending; below 0 where nobody knows the update of a value that
            mle-logging logged, in a log that was continued.

        Raises:
            ValueError: the file does not say.
        """
        column = peek(self[group], key)
        stored = _read_rows(self._facts.rows.get(layout.rows_name(group, key)))
        length = len(column.n) if isinstance(column, Summary) else len(column)
        if stored is not None and len(stored) == length:
            return stored
        if stored is not None or length != self.ticks:
            raise _unknown_updates(key, length, self.ticks)
        return np.arange(length, dtype=np.int64)

    def row_column(self, group: str, key: str) -> Column | None:
        """The same of a run that is no aggregate, not read yet if it need not be.

        Returns:
            None where the key was logged at every update.

        Raises:
            ValueError: the file does not say.
        """
        rows: Any = self._facts.rows.get(layout.rows_name(group, key))
        if isinstance(rows, Once):
            rows = rows.peek()
        length = len(peek(self[group], key))
        if length != (self.ticks if rows is None else len(rows)):
            raise _unknown_updates(key, length, self.ticks)
        return ArrayColumn(rows) if isinstance(rows, np.ndarray) else rows

    def to_dataframe(self) -> Any:
        """Make a table of the run: a row an update, a column a clock or statistic.

        Returns:
            A `pandas.DataFrame`; `frames.to_dataframe` says which types its columns have.

        Raises:
            ImportError: there is no pandas.

        Warns:
            UserWarning: nobody knows at which updates a statistic, or some of its values, were
                logged; these are left out.
        """
        from mle_client import frames  # most users of a log never need it

        return frames.to_dataframe([(None, None, self)])

    def to_xarray(self) -> Any:
        """Make a dataset of the run: a variable a statistic, over the dimension "step".

        Returns:
            An `xarray.Dataset`; `frames.to_xarray` says what is in it.

        Raises:
            ImportError: there is no xarray.

        Warns:
            UserWarning: nobody knows at which updates a statistic, or some of its values, were
                logged; these are left out.
        """
        from mle_client import frames

        return frames.to_xarray([(None, None, self)])

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.load()
        return RunLog._of, ({group: self[group] for group in layout.GROUPS}, self._known)


def _unknown_updates(key: str, length: int, ticks: int) -> ValueError:
    return ValueError(
        f"{key!r} has {length} values in a run of {ticks} updates, and the file does not say at "
        "which: it was written by mle-logging, which does not keep that"
    )


def _read_rows(rows: Rows | Once | None) -> Rows | None:
    return rows.load() if isinstance(rows, Once) else rows
