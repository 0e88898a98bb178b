"""Draws learning curves with matplotlib.

What is drawn is decided in `curves`; this is its look.  It changes neither the user's style nor the
logs, and loads matplotlib when it is first called, with whatever backend the user has.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from mle_client.curves import Curve, plan_curves
from mle_client.series import Array, isolated, thin

# Okabe and Ito's colours, which people tell apart however they see colours, without the two that
# vanish on a white or a black page.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
# More runs than that are most often the steps of a sweep, which a scale of colours shows in order.
_SCALE: Final = "viridis"
_SCALE_END: Final = 0.88  # the rest is too light for a white page
_LINE_STYLES: Final = ("-", "--", ":", "-.")  # of several statistics of several runs
_BAND_ALPHA: Final = 0.22
_WIDTH: Final = 1.5  # of a line, in points
_WIDTH_OF_SEEDS: Final = 0.9  # where many of them have one colour
_DOT: Final = 12  # points squared: a value without neighbours
_DPI: Final = 300  # the finest that a figure is drawn for as a rule: print
_MARKER: Final = 5.0  # points: a curve of nothing but such values
_ENTRIES_INSIDE: Final = 6  # of a legend; a longer one stands beside the curves
_ENTRIES_AN_INCH: Final = 4.6  # of a figure's height, in small type: 27 at the default one
_COLUMNS_BESIDE: Final = 2  # more leave too little room for the curves
_LARGE_NUMBER: Final = 10_000  # from here on, ticks say 10k instead of 10000
_MARKED_VALUES: Final = 200  # tick marks that can be told apart


def visualize_1D_lcurves(
    main_log: Any,
    iter_to_plot: str = "num_updates",
    target_to_plot: str | Sequence[str] = "loss",
    smooth_window: int = 1,
    plot_title: str | None = None,
    xy_labels: Sequence[str] | None = None,
    base_label: str = "{}",
    curve_labels: Sequence[str] = (),
    every_nth_tick: int | None = None,
    plot_std_bar: bool = False,
    run_ids: str | Iterable[str] | None = None,
    rgb_tuples: Sequence[Any] | None = None,
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
    """Draw statistics of runs over a clock.

    The parameters up to `ax_lims` are mle-logging's, with its names, order and defaults.

    Args:
        main_log: a run, or runs by name: what `load_log` and `load_meta_log` return.
        iter_to_plot: the clock along the x-axis.
        target_to_plot: the statistic, or several.
        smooth_window: each value is drawn as the mean of so many, itself and those before it.
        plot_title: in place of the statistics' names; "" for none.
        xy_labels: of the two axes, in place of the names.
        base_label: a format for the curves' names, such as "lr = {}".
        curve_labels: the curves' names: by run in natural order ("run_2" before "run_10"), then by
            seed, then by statistic.
        every_nth_tick: label every so many values of the clock, instead of round numbers.
        plot_std_bar: draw a band of mean ± standard deviation around aggregated seeds.
        run_ids: names of the runs to draw, in any order; None for all.
        rgb_tuples: colours of the curves, in the order of `curve_labels`.
        num_legend_cols: columns of the legend, at least.
        fig, ax: where to draw; a figure without axes gets some.  None makes a figure with pyplot.
        figsize: width and height of a new figure, in inches.
        plot_labels: whether there is a legend.
        legend_title: its title.
        ax_lims: lower and upper end of the y-axis.
        band: what the band shows: "std", or "p10-90" for the 10th to the 90th percentile of the
            seeds; None to leave that to `plot_std_bar`.

    Returns:
        The figure and the axes.  Of a curve with more values than a print of the figure has
        pixels, those that would be seen are drawn, all peaks among them.

    Raises:
        KeyError: no run has that name, or none such a statistic or clock; says what there is.
        ValueError: it is no number at each update, or an argument makes no sense.
        ImportError: there is no matplotlib.

    Warns:
        UserWarning: some runs lack the statistic; the others are drawn.  Or values are left out,
            for nobody knows their updates; or the clock differs between aggregated seeds.
    """
    if every_nth_tick is not None and every_nth_tick < 1:
        raise ValueError(f"every_nth_tick={every_nth_tick}: give 1 or more")
    if xy_labels is not None and len(xy_labels) != 2:
        raise ValueError(f"xy_labels={xy_labels!r}: give two, of the x-axis and of the y-axis")
    plan = plan_curves(
        main_log,
        iter_to_plot,
        target_to_plot,
        run_ids=run_ids,
        labels=curve_labels,
        base_label=base_label,
        window=smooth_window,
        band=band or ("std" if plot_std_bar else None),
    )
    for remark in plan.remarks:
        warnings.warn(remark, UserWarning, stacklevel=2)
    is_new = ax is None
    fig, ax = _axes(fig, ax, figsize)
    for curve, style in zip(plan.curves, _styles(plan.curves, rgb_tuples), strict=True):
        _draw(ax, curve, style)
    targets = [target_to_plot] if isinstance(target_to_plot, str) else list(target_to_plot)
    title = ", ".join(targets)
    x_label, y_label = xy_labels if xy_labels is not None else (iter_to_plot, title)
    _decorate(ax, title if plot_title is None else plot_title, x_label, y_label, is_new)
    _place_ticks(ax, [curve.x for curve in plan.curves], every_nth_tick)
    if ax_lims is not None:
        ax.set_ylim(ax_lims)
    legend = _add_legend(ax, legend_title, num_legend_cols or 1, is_new) if plot_labels else None
    _tighten(fig)
    if legend is not None and is_new and _covers(ax, legend):
        _add_legend(ax, legend_title, num_legend_cols or 1, is_new, beside=True)
        _tighten(fig)
    return fig, ax


# --- where ----------------------------------------------------------------------------------------
def _axes(fig: Any, ax: Any, figsize: tuple[float, float]) -> tuple[Any, Any]:
    if ax is not None:
        return (ax.figure if fig is None else fig), ax
    if fig is not None:
        return fig, fig.gca()
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'mle-daemon[plot]'") from error
    return plt.subplots(figsize=figsize)  # type: ignore[no-any-return]


def _tighten(fig: Any) -> None:
    """Make room for labels and legend, unless the figure's owner has arranged it otherwise."""
    if not hasattr(fig, "get_layout_engine") or not hasattr(fig, "tight_layout"):
        return  # part of another figure
    engine = fig.get_layout_engine()
    arranged = engine is not None and not engine.adjust_compatible
    if not arranged and all(axes.get_subplotspec() is not None for axes in fig.axes):
        fig.tight_layout()


# --- curves ---------------------------------------------------------------------------------------
def _styles(curves: Sequence[Curve], colours: Sequence[Any] | None) -> list[dict[str, Any]]:
    """Colour, dashes and width of each curve.

    A run has one colour, its statistics differ in dashes; of a single run, each statistic or seed
    has a colour.
    """
    runs = list(dict.fromkeys(curve.run for curve in curves))
    targets = list(dict.fromkeys(curve.target for curve in curves))
    several = len(runs) > 1
    owners = [curve.run if several else f"{curve.seed}/{curve.target}" for curve in curves]
    places = {owner: place for place, owner in enumerate(dict.fromkeys(owners))}
    palette = _palette(len(places))
    given = [] if colours is None else list(colours)
    styles = []
    for i, (curve, owner) in enumerate(zip(curves, owners, strict=True)):
        colour = given[i % len(given)] if given else palette[places[owner]]
        dashes = targets.index(curve.target) % len(_LINE_STYLES) if several else 0
        width = _WIDTH_OF_SEEDS if several and curve.seed else _WIDTH
        styles.append({"color": colour, "linestyle": _LINE_STYLES[dashes], "linewidth": width})
    return styles


def _palette(size: int) -> Sequence[Any]:
    if size <= len(_COLOURS):
        return _COLOURS
    import matplotlib

    scale = matplotlib.colormaps[_SCALE]
    return [scale(share) for share in np.linspace(0, _SCALE_END, size)]


def _draw(ax: Any, curve: Curve, style: dict[str, Any]) -> None:
    pixels = max(1, math.ceil(ax.bbox.width / ax.figure.dpi * _DPI))
    if curve.band is not None:
        low, high = curve.band
        at = thin(curve.x, [low, high], pixels)
        ax.fill_between(
            curve.x[at], low[at], high[at], color=style["color"], alpha=_BAND_ALPHA, linewidth=0
        )
    at = thin(curve.x, [curve.y], pixels)
    x, y = curve.x[at], curve.y[at]
    alone = isolated(y)
    if alone.size and alone.size == np.count_nonzero(np.isfinite(y)):  # so the legend shows dots
        style = {"color": style["color"], "linestyle": "", "marker": "o", "markersize": _MARKER}
        ax.plot(x, y, **style, label=curve.label)
        return
    ax.plot(x, y, **style, label=curve.label, solid_joinstyle="round")
    if alone.size:
        ax.scatter(x[alone], y[alone], s=_DOT, color=style["color"], linewidth=0)


# --- around them ----------------------------------------------------------------------------------
def _decorate(ax: Any, title: str, x_label: str, y_label: str, is_new: bool) -> None:
    """Titles, grid and spines.  Letters of somebody else's axes keep the size they would have."""
    ax.set_title(title, **({"fontsize": "x-large", "pad": 10} if is_new else {}))
    ax.set_xlabel(x_label, **({"fontsize": "large"} if is_new else {}))
    ax.set_ylabel(y_label, **({"fontsize": "large"} if is_new else {}))
    ax.grid(True, alpha=0.35, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines["top"].set_visible(False)
    ax.spines["right"].set_visible(False)
    if is_new:
        ax.margins(x=0.02)


def _place_ticks(ax: Any, columns: Sequence[Array], every_nth: int | None) -> None:
    """Ticks of the x-axis.  Args: columns: the clock's values, one a curve."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if every_nth is not None:
        values = max(columns, key=len)
        ax.set_xticks(values[::every_nth], [_number(value) for value in values[::every_nth]])
        if len(values) <= _MARKED_VALUES:
            ax.set_xticks(np.setdiff1d(values, values[::every_nth]), minor=True)
        return
    whole = all(column.dtype.kind in "iu" for column in columns)
    locator = ax.xaxis.get_major_locator()
    if whole and isinstance(locator, MaxNLocator):
        locator.set_params(integer=True)
    if ax.get_xscale() == "linear" and ax.xaxis.isDefault_majfmt:
        largest = max((np.max(np.abs(column), initial=0) for column in columns), default=0)
        if largest >= _LARGE_NUMBER:
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def _number(value: Any) -> str:
    return f"{int(value)}" if math.isfinite(value) and value == int(value) else f"{value:g}"


def _add_legend(
    ax: Any, title: str | None, columns: int, is_new: bool, beside: bool = False
) -> Any:
    """Add a legend, or replace it.  Returns: it, or None where one entry would say nothing.

    Args:
        columns: at least.
        beside: whether it must not be among the curves; a long one of a new figure never is.
    """
    handles, labels = ax.get_legend_handles_labels()
    entries = len(labels)
    if entries < 2:
        return None
    options: dict[str, Any] = {"title": title, "framealpha": 0.85, "edgecolor": "none"}
    if is_new:
        options["fontsize"] = "medium" if entries <= 2 * _ENTRIES_INSIDE else "small"
    if is_new and (beside or entries > _ENTRIES_INSIDE):
        high = max(_ENTRIES_INSIDE, int(_ENTRIES_AN_INCH * ax.bbox.height / ax.figure.dpi))
        if entries > high * max(columns, _COLUMNS_BESIDE):
            handles, labels = _ends_of(handles, labels, high * columns)
        columns = max(columns, math.ceil(len(labels) / high))
        options |= {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
    legend = ax.legend(handles, labels, ncols=columns, **options)
    for line in legend.get_lines():
        line.set_linewidth(max(_WIDTH, line.get_linewidth()))
    return legend


def _ends_of(handles: list[Any], labels: list[str], room: int) -> tuple[list[Any], list[str]]:
    """The first entries of a legend and the last ones.  Args: room: how many in all."""
    from matplotlib.lines import Line2D

    half = (room - 1) // 2
    gap = Line2D([], [], linestyle="")
    return [*handles[:half], gap, *handles[-half:]], [*labels[:half], "…", *labels[-half:]]


def _covers(ax: Any, legend: Any) -> bool:
    """Whether a legend lies over curves or bands."""
    from matplotlib.collections import PolyCollection

    box = legend.get_window_extent()
    bands = [each for each in ax.collections if isinstance(each, PolyCollection)]
    paths = [(line.get_transform(), line.get_path(), False) for line in ax.lines]
    paths += [(band.get_transform(), path, True) for band in bands for path in band.get_paths()]
    return any(
        transform.transform_path(path).intersects_bbox(box, filled=filled)
        for transform, path, filled in paths
    )
