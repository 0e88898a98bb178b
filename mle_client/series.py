"""Columns of numbers as they are drawn: smoothed, and thinned to what a picture can show.

Pure, and linear in the number of values.  It knows nothing of runs or figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


def moving_average(values: Array, window: int) -> Floats:
    """Average each value with those before it, as pandas' `rolling(window, min_periods=1).mean()`.

    Args:
        values: numbers, shape (n,).  NaN and infinities do not count.
        window: how many values are averaged, this one included; 1 or more.

    Returns:
        Shape (n,); NaN where no value of the window counts.
    """
    values = np.asarray(values, np.float64)
    counts = np.isfinite(values)
    if window == 1 or len(values) < 2:
        return np.where(counts, values, np.nan)
    with np.errstate(invalid="ignore", over="ignore"):  # 0/0 where nothing counts; huge values
        sums = _window_sums(np.where(counts, values, 0.0), window)
        return sums / _window_sums(counts.astype(np.float64), window)


def _window_sums(values: Floats, window: int) -> Floats:
    """Sum of each value and those before it, `window` in all.

    A window is the end of one block of that length and the beginning of the next.  So only its own
    values are added up, and one value of 1e30 does not swallow all that come after it, as it does
    where running totals are subtracted.
    """
    size = len(values)
    window = min(window, size)
    blocks = np.zeros((-(-size // window), window))
    blocks.reshape(-1)[:size] = values
    sums = np.cumsum(blocks, axis=1)
    ends = np.cumsum(blocks[:, ::-1], axis=1)[:, ::-1]
    sums[1:, :-1] += ends[:-1, 1:]
    return sums.reshape(-1)[:size]


def thin(x: Array, columns: Sequence[Floats], pixels: int) -> Indices:
    """Choose the values that a picture can show, among them every peak.

    The axis is cut into as many pieces as it has pixels; of each, the least and the greatest value
    are kept.  A second set of pieces, each longer than the last by the same factor, keeps enough
    at the beginning for a logarithmic axis, too.

    Args:
        x: positions, shape (n,).
        columns: each of shape (n,), drawn over `x`.
        pixels: how many the axis has.

    Returns:
        Indices to keep, ascending, at most some three for each pixel and column.  A piece without
        a finite value keeps one of the others, so that a gap stays a gap.
    """
    size = len(x)
    if size <= 2 * pixels:
        return np.arange(size)
    starts = _pieces(x, pixels)
    kept = [_extremes(column, starts) for column in columns]
    return np.unique(np.concatenate([*kept, [0, size - 1]])).astype(np.intp)


def _pieces(x: Array, pixels: int) -> Indices:
    """The index at which each piece starts."""
    size = len(x)
    longer_and_longer = np.geomspace(1, size, max(2, pixels // 2))[:-1]
    if x[-1] > x[0] and bool(np.all(x[1:] >= x[:-1])):
        equal = np.searchsorted(x, np.linspace(x[0], x[-1], pixels + 1)[:-1])
    else:  # it goes back, stands still or has NaN: equal numbers of values
        equal = np.linspace(0, size, pixels + 1)[:-1].astype(np.intp)
    starts = np.concatenate([[0], equal, longer_and_longer.astype(np.intp)])
    return np.unique(starts).astype(np.intp)


def _extremes(column: Floats, starts: Indices) -> Indices:
    """The first least and the first greatest finite value of each piece; its start without one."""
    lengths = np.diff(starts, append=len(column))
    finite = np.isfinite(column)
    empty = ~np.logical_or.reduceat(finite, starts)
    kept = [starts[empty]]
    for nothing, reduce in ((np.inf, np.minimum.reduceat), (-np.inf, np.maximum.reduceat)):
        found = reduce(np.where(finite, column, nothing), starts)
        at = np.flatnonzero(finite & (column == np.repeat(found, lengths)))
        piece = np.searchsorted(starts, at, side="right")
        kept.append(at[np.unique(piece, return_index=True)[1]])
    return np.concatenate(kept)


def isolated(values: Floats) -> Indices:
    """The values that a line does not show, for no neighbour is there to draw it to."""
    finite = np.isfinite(values)
    neighbours = np.zeros(len(values), bool)
    neighbours[1:] |= finite[:-1]
    neighbours[:-1] |= finite[1:]
    return np.flatnonzero(finite & ~neighbours)
