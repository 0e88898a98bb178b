"""What loading returns: runs by name, and in each run columns by name.

Pure: it reads no file, and knows nothing of where the values came from.

    MetaLog ── name ──> RunLog                      one configuration, or aggregated seeds
            └─ name ──> AttrDict ── seed ──> RunLog     several configurations, each with seeds
    RunLog  ── "meta" | "stats" | "time" ──> AttrDict ── name ──> value or column

Everything is reached by attribute and by key: `log.seed_1.stats.loss` and
`log["seed_1"]["stats"]["loss"]` are the same array.  Of large files a column is read when it is
first looked at (`lazydict`); names, lengths and the facts about a run need no column.
"""

from __future__ import annotations

import warnings
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final

import numpy as np

from mle_client import layout, updates
from mle_client.attrdict import AttrDict, absent
from mle_client.blocks import Array, ArrayColumn, Column
from mle_client.lazydict import Deferred, LazyDict, Once, Unread, load_nested, peek
from mle_client.summary import Summary
from mle_client.updates import LinedUp, Rows

__all__ = ["Array", "AttrDict", "Facts", "MetaLog", "Opening", "Rows", "RunLog"]

_CLOCK: Final = "num_updates"  # that every run of ours has


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

    def line_up(self, key: str, clock: str = _CLOCK) -> LinedUp:
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


class MetaLog:
    """Runs by name.

    A run that is named like a method is reached by key alone: `log["values"]`.  `==` asks whether
    two are the same object; what is in their columns, `numpy.array_equal` compares.

    Args:
        meta_log: {name: `RunLog`, or {seed: `RunLog`}}.
        non_aggregated: mle-logging's; the runs say it themselves.

    Attributes:
        meta_log: the same.
        num_configs: how many names.
    """

    def __init__(self, meta_log: Mapping[str, Any], non_aggregated: bool = False) -> None:
        self.meta_log = AttrDict(meta_log)
        self.num_configs = len(self.meta_log)

    @cached_property
    def meta_vars(self) -> list[str]:
        """Names that any run has in "meta"."""
        return self._names("meta")

    @cached_property
    def stats_vars(self) -> list[str]:
        """Names of the statistics that any run has."""
        return self._names("stats")

    @cached_property
    def time_vars(self) -> list[str]:
        """Names of the clocks that any run has."""
        return self._names("time")

    def _names(self, group: str) -> list[str]:
        names: dict[str, None] = {}
        for entry in self.meta_log.values():
            for run in [entry] if isinstance(entry, RunLog) else entry.values():
                names.update(dict.fromkeys(run[group]))
        return list(names)

    @property
    def eval_ids(self) -> list[str]:
        """Names of the runs."""
        return list(self.meta_log)

    def filter(self, run_ids: str | Iterable[str]) -> MetaLog:
        """Select some runs by name.

        Args:
            run_ids: names, or one.

        Raises:
            KeyError: there is no run of that name.
        """
        run_ids = [run_ids] if isinstance(run_ids, str) else run_ids
        return MetaLog({run_id: self.meta_log[run_id] for run_id in run_ids})

    def plot(
        self,
        target_to_plot: str | Sequence[str],
        iter_to_plot: str | None = None,
        smooth_window: int = 1,
        plot_title: str | None = None,
        xy_labels: Sequence[str] | None = None,
        base_label: str = "{}",
        run_ids: str | Iterable[str] | None = None,
        curve_labels: Sequence[str] = (),
        every_nth_tick: int | None = None,
        plot_std_bar: bool = False,
        fname: Any = None,
        num_legend_cols: int | None = 1,
        fig: Any = None,
        ax: Any = None,
        figsize: tuple[float, float] = (9, 6),
        plot_labels: bool = True,
        legend_title: str | None = None,
        ax_lims: Sequence[float] | None = None,
        *,
        band: str | None = None,
    ) -> tuple[Any, Any]:
        """Draw a statistic of the runs over a clock.

        Args:
            target_to_plot: the statistic, or several.
            iter_to_plot: the clock; None for "num_updates", else the first there is.
            fname: of a picture to save, at 300 dpi; its ending says which kind.
            Others: those of `plot.visualize_1D_lcurves`.

        Returns:
            The figure and the axes, also where a picture was saved.

        Raises:
            KeyError, ValueError, ImportError: as `plot.visualize_1D_lcurves`.
            OSError: the picture cannot be written.
        """
        from mle_client import plot  # most users of a log never need it

        if iter_to_plot is None:
            clocks = self.time_vars
            iter_to_plot = next(iter(clocks), _CLOCK) if _CLOCK not in clocks else _CLOCK
        fig, ax = plot.visualize_1D_lcurves(
            self.meta_log,
            iter_to_plot,
            target_to_plot,
            smooth_window,
            plot_title,
            xy_labels,
            base_label,
            curve_labels,
            every_nth_tick,
            plot_std_bar,
            self.eval_ids if run_ids is None else run_ids,
            num_legend_cols=num_legend_cols,
            fig=fig,
            ax=ax,
            figsize=figsize,
            plot_labels=plot_labels,
            legend_title=legend_title,
            ax_lims=ax_lims,
            band=band,
        )
        if fname is not None:
            fig.savefig(fname, dpi=300)
        return fig, ax

    def to_dataframe(self) -> Any:
        """Make a table of all runs: a row for each update of each.

        Returns:
            A `pandas.DataFrame`: "config" and "seed" say whose a row is; `frames.to_dataframe` says
            the rest.

        Raises:
            ImportError: there is no pandas.

        Warns:
            UserWarning: nobody knows at which updates a statistic, or some of its values, were
                logged; these are left out.
        """
        from mle_client import frames

        return frames.to_dataframe(self._runs())

    def to_xarray(self) -> Any:
        """Make a dataset of all runs: a variable a statistic, over "config", "seed" and "step".

        Returns:
            An `xarray.Dataset`; `frames.to_xarray` says what is in it.

        Raises:
            ImportError: there is no xarray.

        Warns:
            UserWarning: nobody knows at which updates a statistic, or some of its values, were
                logged, or its arrays have different shapes; these are left out.
        """
        from mle_client import frames

        return frames.to_xarray(self._runs())

    def _runs(self) -> list[tuple[str | None, str | None, RunLog]]:
        """(configuration, seed, run) of each; None for what it does not have."""
        runs: list[tuple[str | None, str | None, RunLog]] = []
        for name, entry in self.meta_log.items():
            if not isinstance(entry, RunLog):
                runs += [(name, seed, run) for seed, run in entry.items()]
            elif "seeds" in entry.meta:  # it was aggregated
                runs.append((name, None, entry))
            else:
                runs.append((None, name, entry))
        return runs

    def keys(self) -> KeysView[str]:
        """Names of the runs."""
        return self.meta_log.keys()

    def items(self) -> ItemsView[str, Any]:
        """Names and runs."""
        return self.meta_log.items()

    def values(self) -> ValuesView[Any]:
        """The runs."""
        return self.meta_log.values()

    def get(self, run_id: str, default: Any = None) -> Any:
        """The run of a name, or the default."""
        return self.meta_log.get(run_id, default)

    def __getitem__(self, run_id: str) -> Any:
        return self.meta_log[run_id]

    def __getattr__(self, name: str) -> Any:
        if name == "meta_log":  # not there yet while a copy is being made
            raise AttributeError(name)
        if name in self.meta_log:
            return self.meta_log[name]
        raise AttributeError(absent(name, self.meta_log))

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta_log)

    def __len__(self) -> int:
        return len(self.meta_log)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self.meta_log]

    def __repr__(self) -> str:
        return f"MetaLog({', '.join(self.meta_log)})"
