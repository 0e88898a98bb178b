"""`verbose=True`: has every update that is due shown in the terminal, as mle-logging does.

It stands between user code and the function that takes ticks, so a logger that is not verbose pays
nothing for it.  Printing is `console`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from mle_client.artifactlogs import ExtraLog, FigureLog, ModelLog
from mle_client.console import Console
from mle_client.retention import Portfolio


class Shown:
    """The updates of one logger in the terminal.

    Args:
        console: prints them.
        logs: where the paths are of what is saved.
        rows_before: ticks that a continued run has already.
    """

    def __init__(
        self, console: Console, logs: tuple[ModelLog, FigureLog, ExtraLog], rows_before: int
    ) -> None:
        self._console = console
        self._models, self._figures, self._extras = logs
        self._number = rows_before

    def wrap(self, update: Callable[..., None]) -> Callable[..., None]:
        """A function that logs with `update` and then shows."""

        def shown(
            clock_tick: Mapping[str, Any],
            stats_tick: Mapping[str, Any],
            model: Any = None,
            plot_fig: Any = None,
            extra_obj: Any = None,
            grads: Any = None,
            save: bool = False,
        ) -> None:
            before = self._models.portfolio
            update(clock_tick, stats_tick, model, plot_fig, extra_obj, grads, save)
            self._number += 1
            if self._console.wants(self._number):
                self._console.stored(self._paths(before, model, plot_fig, extra_obj))
                self._console.update(
                    clock_tick, stats_tick, number=self._number, seconds=time.time()
                )

        return shown

    def _paths(
        self, before: Portfolio, model: Any, plot_fig: Any, extra_obj: Any
    ) -> dict[str, str | None]:
        """Where the files of an update go, by kind."""
        paths: dict[str, str | None] = {}
        if plot_fig is not None:
            paths["figure"] = self._figures.fig_storage_paths[-1]
        if extra_obj is not None:
            paths["extra"] = self._extras.extra_storage_paths[-1]
        if model is not None:
            models, after = self._models, self._models.portfolio
            paths["model"] = models.final_model_save_fname
            if models.init_model_saved:
                paths["init"] = models.init_model_save_fname
            if after.every_k != before.every_k:
                paths["every_k"] = models.every_k_ckpt_list[-1]
            if after.top_k != before.top_k:
                slots = [s for s, saved in enumerate(after.top_k) if saved not in before.top_k]
                paths["top_k"] = models.top_k_ckpt_list[slots[-1]]
        return paths

    def forget(self) -> None:
        """In a forked child: what is printed there is not the parent's."""
        self._console.forget()

    def close(self, timeout: float) -> None:
        """Print what waits.  Args: timeout: seconds."""
        self._console.close(timeout)
