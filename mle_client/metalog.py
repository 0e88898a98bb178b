"""What loading returns: runs by name, and in each run columns by name.

Pure: it reads no file, and knows nothing of where the values came from.

    MetaLog ── name ──> RunLog                      one configuration, or aggregated seeds
            └─ name ──> AttrDict ── seed ──> RunLog     several configurations, each with seeds
    RunLog  ── "meta" | "stats" | "time" ──> AttrDict ── name ──> value or column

Everything is reached by attribute and by key: `log.seed_1.stats.loss` and
`log["seed_1"]["stats"]["loss"]` are the same array.
"""

from __future__ import annotations

import copy
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mle_client import layout

Array: TypeAlias = "npt.NDArray[Any]"
Rows: TypeAlias = "npt.NDArray[np.int64]"

_CLOCK: Final = "num_updates"  # that every run of ours has
_NAMES_IN_ERRORS: Final = 20  # of the names that exist, where one was asked for that does not


class AttrDict(dict[str, Any]):
    """A dict whose keys are attributes too.

    Where a key is also the name of a method ("keys", "items"), the attribute is the method and
    the key is reached by [] alone.
    """

    __slots__ = ()

    @classmethod
    def nested(cls, value: Any) -> Any:
        """The value with every dict inside it, also those in lists, made an `AttrDict`."""
        if isinstance(value, Mapping):
            return cls((key, cls.nested(item)) for key, item in value.items())
        if isinstance(value, list):
            return [cls.nested(item) for item in value]
        return value

    def toDict(self) -> dict[str, Any]:
        """Plain dicts all the way down."""
        return {k: v.toDict() if isinstance(v, AttrDict) else v for k, v in self.items()}

    def copy(self) -> AttrDict:
        """A shallow copy of the same type."""
        return copy.copy(self)

    def __missing__(self, key: object) -> Any:
        raise KeyError(_absent(key, self))

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(_absent(name, self))

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name):
            super().__setattr__(name, value)  # refuses to replace a method
        else:
            self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(_absent(name, self))
        del self[name]

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self]


def _absent(name: object, available: Mapping[str, Any]) -> str:
    names = list(available)
    shown = ", ".join(map(repr, names[:_NAMES_IN_ERRORS])) or "nothing"
    return f"no {name!r} here; there is {shown}" + (" …" if len(names) > _NAMES_IN_ERRORS else "")


class RunLog(AttrDict):
    """One run: its keys are "meta", "stats" and "time".

    Args:
        meta: values about the run.
        stats: one column a statistic, shape (n, *item); of aggregated seeds, see `aggregate`.
        time: one column a clock, shape (n,).
        rows: {`layout.rows_name(group, key)`: shape (n,), the ticks at which the key was logged},
            for keys that not every tick has.
        state: "running", "finished" or "crashed"; None where the file does not say.
        start_time: seconds since the epoch at which its clock "time_elapsed" is 0, or None.
    """

    __slots__ = ("_rows", "_start_time", "_state")

    _rows: dict[str, Rows]
    _state: str | None
    _start_time: float | None

    def __init__(
        self,
        meta: Mapping[str, Any],
        stats: Mapping[str, Any],
        time: Mapping[str, Any],
        *,
        rows: Mapping[str, Rows] | None = None,
        state: str | None = None,
        start_time: float | None = None,
    ) -> None:
        super().__init__(meta=AttrDict(meta), stats=AttrDict(stats), time=AttrDict(time))
        self._rows = dict(rows or {})
        self._state = state
        self._start_time = start_time

    @property
    def state(self) -> str | None:
        """State of the run: "running", "finished", "crashed"; None where the file does not say."""
        return self._state

    @property
    def start_time(self) -> float | None:
        """When the run began, in seconds since the epoch; None where the file does not say."""
        return self._start_time

    @property
    def ticks(self) -> int:
        """How many updates the run has."""
        return max(map(len, self.time.values()), default=0)

    def aligned(self, key: str, clock: str = "num_updates") -> tuple[Array, Any]:
        """Line a statistic up with a clock.

        Args:
            key: of a statistic, whether logged at every update or at some.
            clock: of a clock.  Updates at which it was not logged are left out.

        Returns:
            Two of equal length: the clock's values at the updates that logged the statistic, shape
            (n,), and the statistic's values there, shape (n, *item).  Of aggregated seeds the
            second is a dict of such arrays.

        Raises:
            KeyError: there is no such statistic or clock.
            ValueError: the file does not say at which updates they were logged.
        """
        values, steps = self.stats[key], self.time[clock]
        if isinstance(values, list):
            raise ValueError(f"{key!r} of several seeds is no single column: load each seed")
        _, at_value, at_step = np.intersect1d(
            self.row_numbers("stats", key),
            self.row_numbers("time", clock),
            assume_unique=True,
            return_indices=True,
        )
        if isinstance(values, AttrDict):
            return steps[at_step], AttrDict((k, v[at_value]) for k, v in values.items())
        return steps[at_step], values[at_value]

    def row_numbers(self, group: str, key: str) -> Rows:
        """The updates, counted from 0, at which a key of "stats" or "time" was logged.

        Raises:
            ValueError: the file does not say.
        """
        stored = self._rows.get(layout.rows_name(group, key))
        if stored is not None:
            return stored
        column = self[group][key]
        length = len(next(iter(column.values()))) if isinstance(column, AttrDict) else len(column)
        if length != self.ticks:
            raise ValueError(
                f"{key!r} has {length} values in a run of {self.ticks} updates, and the file does "
                "not say at which: it was written by mle-logging, which does not keep that"
            )
        return np.arange(length, dtype=np.int64)

    def to_dataframe(self) -> Any:
        """Make a table of the run: a row an update, a column a clock or statistic.

        Returns:
            A `pandas.DataFrame`; `frames.to_dataframe` says which types its columns have.

        Raises:
            ImportError: there is no pandas.

        Warns:
            UserWarning: nobody knows at which updates a statistic was logged; it is left out.
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
            UserWarning: nobody knows at which updates a statistic was logged; it is left out.
        """
        from mle_client import frames

        return frames.to_xarray([(None, None, self)])


class MetaLog:
    """Runs by name.

    Args:
        meta_log: {name: `RunLog`, or {seed: `RunLog`}}.

    Attributes:
        meta_log: the same.
        num_configs: how many names.
        meta_vars, stats_vars, time_vars: names that any run has in the group.
    """

    def __init__(self, meta_log: Mapping[str, Any]) -> None:
        self.meta_log = AttrDict(meta_log)
        self.num_configs = len(self.meta_log)
        self.meta_vars = self._names("meta")
        self.stats_vars = self._names("stats")
        self.time_vars = self._names("time")

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

    def filter(self, run_ids: Iterable[str]) -> MetaLog:
        """Select some runs by name.

        Raises:
            KeyError: there is no run of that name.
        """
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
            UserWarning: nobody knows at which updates a statistic was logged; it is left out.
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
            UserWarning: nobody knows at which updates a statistic was logged, or its arrays have
                different shapes; it is left out.
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

    def __getitem__(self, run_id: str) -> Any:
        return self.meta_log[run_id]

    def __getattr__(self, name: str) -> Any:
        if name == "meta_log":  # not there yet while a copy is being made
            raise AttributeError(name)
        if name in self.meta_log:
            return self.meta_log[name]
        raise AttributeError(_absent(name, self.meta_log))

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta_log)

    def __len__(self) -> int:
        return len(self.meta_log)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self.meta_log]

    def __repr__(self) -> str:
        return f"MetaLog({', '.join(self.meta_log)})"
