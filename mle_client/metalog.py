"""What loading returns: runs by name, and in each run columns by name.

Pure: it reads no file, and knows nothing of where the values came from.

    MetaLog ── name ──> RunLog                      one configuration, or aggregated seeds
            └─ name ──> AttrDict ── seed ──> RunLog     several configurations, each with seeds

Everything is reached by attribute and by key: `log.seed_1.stats.loss` and
`log["seed_1"]["stats"]["loss"]` are the same array.  A run is `runlog`'s.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from functools import cached_property
from typing import Any

from mle_client.attrdict import AttrDict, absent
from mle_client.runlog import CLOCK, RunLog


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
            iter_to_plot = next(iter(clocks), CLOCK) if CLOCK not in clocks else CLOCK
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
