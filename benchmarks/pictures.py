"""Draws what a benchmark found: bars for names, lines for numbers.

It knows nothing of what is measured.  Where matplotlib is missing there are no pictures.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from benchmarks.harness import Picture

_DECADES: Final = 100.0  # numbers that span more are drawn on a logarithmic axis
_INCHES: Final = (7.0, 3.4)
_DPI: Final = 110
_BAR_INCHES: Final = 0.24


def draw(picture: Picture, path: Path) -> bool:
    """Draw a picture to a PNG file.  Returns: whether there is matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if picture.at and isinstance(picture.at[0], str):
        bars = len(picture.at) * len(picture.series)
        figure.set_size_inches(_INCHES[0], max(1.6, 0.9 + _BAR_INCHES * bars))
        _bars(picture, axes)
    else:
        _lines(picture, axes)
    axes.set_title(picture.title, fontsize=10)
    if len(picture.series) > 1:
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    return True


def _bars(picture: Picture, axes: Any) -> None:
    """Horizontal bars, the first name on top, each with its value."""
    count = len(picture.series)
    height = 0.8 / count
    for index, (name, values) in enumerate(picture.series.items()):
        places = [place - 0.4 + (index + 0.5) * height for place in range(len(picture.at))]
        drawn = axes.barh(places, values, height, label=name)
        axes.bar_label(drawn, labels=[_label(v) for v in values], fontsize=7, padding=2)
    axes.set_yticks(range(len(picture.at)), picture.at, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(picture.label)
    if picture.log:
        axes.set_xscale("log")
    axes.margins(x=0.12)


def _label(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _lines(picture: Picture, axes: Any) -> None:
    for name, values in picture.series.items():
        axes.plot(picture.at, values, marker="o", markersize=3, label=name)
    axes.set_xlabel(picture.at_label)
    axes.set_ylabel(picture.label)
    numbers = [float(each) for each in picture.at]
    if min(numbers) > 0 and max(numbers) / min(numbers) >= _DECADES:
        axes.set_xscale("log")
    if picture.log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
