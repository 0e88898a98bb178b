"""What other calls cost the caller: `update()` while a model is on its way, and `save_plot()`.

Part of the benchmark `checkpoint`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any, Final

from benchmarks import harness, savers
from benchmarks.harness import Table
from benchmarks.workspace import workspace

WITHOUT, WITH = "no model", "a model on its way"
_NOW: Final = time.perf_counter
_WORK_S: Final = 100e-6  # of training in Python between two ticks; more ticks would be a benchmark
_WINDOW_TICKS: Final = 50
_PAUSE_S: Final = 0.05  # between two windows: files that were replaced are removed behind a save


def measure_ticks(model_bytes: int, rounds: int) -> dict[str, list[float]]:
    """The time of each `update()`, in seconds, with a model on its way and without."""
    model = savers.make_model("numpy", model_bytes)
    spent: dict[str, list[float]] = {WITHOUT: [], WITH: []}
    with workspace() as space, contextlib.closing(savers.Ours(model, space.root, space)) as saver:
        ticks = itertools.count(1)
        saver.save()
        saver.wait()
        for _ in range(rounds):
            saver.save()
            began = _NOW()
            while saver.log.stats()["unstored"]:
                spent[WITH] += _window(saver.log, ticks)
            until = 2 * _NOW() - began + _PAUSE_S
            saver.wait()
            time.sleep(_PAUSE_S)
            spent[WITHOUT] += _window(saver.log, ticks)
            while _NOW() < until:
                saver.log.stats()
                spent[WITHOUT] += _window(saver.log, ticks)
            saver.wait()
    return spent


def _window(log: Any, ticks: Iterator[int]) -> list[float]:
    """Some ticks of a training that is busy in Python."""
    times = []
    for number in itertools.islice(ticks, _WINDOW_TICKS):
        until = _NOW() + _WORK_S
        while _NOW() < until:
            pass
        clock, stats = {savers.CLOCK: number}, {"loss": 1.0}
        began = _NOW()
        log.update(clock, stats)
        times.append(_NOW() - began)
    return times


def tick_table(ticks: dict[str, list[float]]) -> Table:
    """Percentiles; a model that was stored before the first tick leaves a row without any."""
    rows = [
        (name, len(times), *(1e6 * harness.percentile(times, p) for p in (0.5, 0.99, 1.0)))
        for name, times in ticks.items()
        if times
    ]
    columns = ("while", "ticks", "p50", "p99", "max")
    return Table("update() in µs, after 100 µs of Python each", columns, tuple(rows))


def measure_plots(count: int) -> dict[str, list[float]]:
    """Seconds of saving a figure, by the way; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return {}
    figure = Figure()
    axes = figure.subplots()
    for slope in range(5):
        axes.plot([slope * x for x in range(200)], label=f"run {slope}")
    axes.legend()
    with workspace() as space, contextlib.closing(savers.Ours({}, space.root, space)) as saver:
        path = space.root.parent / "figure.png"

        def theirs() -> float:
            began = _NOW()
            figure.savefig(path, dpi=300)
            return _NOW() - began

        def ours() -> float:
            began = _NOW()
            saver.log.save_plot(figure)
            spent = _NOW() - began
            saver.wait()
            return spent

        variants = {"savefig(dpi=300)": theirs, "save_plot": ours}
        harness.interleaved(variants, 1)  # fonts are looked for, the process that draws is started
        rounds = harness.interleaved(variants, count)
    return {name: [each[name] for each in rounds] for name in variants}


def plot_table(plots: dict[str, list[float]]) -> Table:
    """What the caller pays for a figure."""
    rows: list[tuple[Any, ...]] = [
        (name, 1e3 * harness.median(times), 1e3 * max(times)) for name, times in plots.items()
    ]
    columns = ("call", "median", "max")
    missing = (("both", "matplotlib is not installed", ""),)
    return Table("A figure of five lines; ms", columns, tuple(rows) or missing)
