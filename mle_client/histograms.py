"""How the values of an array are spread: what TensorBoard shows of weights and gradients.

Pure: an array in, a few numbers out.  It knows neither models nor event files.

Of the finite values, smallest and largest, number, sum and sum of squares are of all of them; the
bins lie between smallest and largest, equally wide.  How many values are in each bin is counted
over all values of an array of up to `MAX_COUNTED`; of a larger one, over every n-th value, scaled
up to the whole.  n has no factor in common with the number of values, so that the values counted
are from all columns of a matrix.  NaN and infinities count nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

BINS: Final = 64  # enough for a picture; 0.7 KB a histogram on the wire
MAX_COUNTED: Final = 1_000_000  # values; each bin is then known to 0.1 % of all; 10 ms
_BLOCK: Final = 2**17  # values taken at once: as float64 they stay in a processor's cache

F64: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How the finite values of an array are spread.

    Args:
        min, max: 0 where there is none.
        num: how many.
        sum, sum_squares: of all of them.
        counts: values in each bin, not whole numbers where they were scaled; at least one bin.
    """

    min: float
    max: float
    num: int
    sum: float
    sum_squares: float
    counts: tuple[float, ...]

    @property
    def limits(self) -> tuple[float, ...]:
        """The right edge of each bin, the last one being `max`."""
        return tuple(_limits(self.min, self.max, len(self.counts)).tolist())


def histogram(values: Any) -> Histogram:
    """Look at how the values of an array are spread.

    Args:
        values: an array of numbers of any type and shape, or what numpy makes one of.

    Raises:
        TypeError: it holds something else.
    """
    flat = _flat(values)
    low, high, num, total, squares = _exact(flat)
    if num == 0:
        return Histogram(0.0, 0.0, 0, 0.0, 0.0, (0.0,))
    bins = BINS if bool((np.diff(_limits(low, high, BINS), prepend=low) > 0).all()) else 1
    counted = np.zeros(1, np.int64) if bins == 1 else _count(flat, low, high)
    if not counted.any():  # one bin, or none of the values looked at is finite
        return Histogram(low, high, num, total, squares, (float(num),))
    counts = counted * (num / int(counted.sum()))
    return Histogram(low, high, num, total, squares, tuple(counts.tolist()))


def to_plain(histogram: Histogram) -> dict[str, Any]:
    """A map of plain values, for msgpack."""
    h = histogram
    return {
        "min": h.min,
        "max": h.max,
        "num": h.num,
        "sum": h.sum,
        "sum_squares": h.sum_squares,
        "counts": list(h.counts),
    }


def from_plain(plain: Mapping[str, Any]) -> Histogram:
    """What `to_plain` was given.

    Raises:
        ValueError: it is something else.
    """
    try:
        low, high, total, squares = (plain[k] for k in ("min", "max", "sum", "sum_squares"))
        num, counts = plain["num"], plain["counts"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"a histogram is malformed: {error!r}") from error
    if not isinstance(counts, list) or not 1 <= len(counts) <= BINS:
        raise ValueError(f"a histogram has 1 to {BINS} bins")
    if any(type(value) is not float for value in (low, high, total, squares, *counts)):
        raise ValueError("a number of a histogram is no float")
    if type(num) is not int or not 0 <= num < 2**63 or not -math.inf < low <= high < math.inf:
        raise ValueError("a histogram's smallest and largest value, or their number, are none")
    if not all(0 <= count < math.inf for count in counts):
        raise ValueError("a histogram's counts are no counts")
    return Histogram(low, high, num, total, squares, tuple(counts))


def _flat(values: Any) -> npt.NDArray[Any]:
    """The values as numpy's numbers, one after another, without a copy where that is possible."""
    array = np.asarray(values)
    if array.dtype.kind == "V" and array.dtype.names is None:  # bfloat16 and its like
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"a histogram of items of type {array.dtype}: give real numbers")
    return array.ravel(order="K")


def _blocks(flat: npt.NDArray[Any]) -> Iterator[F64]:
    for at in range(0, len(flat), _BLOCK):
        yield flat[at : at + _BLOCK].astype(np.float64)


def _exact(flat: npt.NDArray[Any]) -> tuple[float, float, int, float, float]:
    """Smallest, largest, number, sum and sum of squares of the finite values."""
    low, high, num, total, squares = math.inf, -math.inf, 0, 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # a sum may exceed what a float can be
        for block in _blocks(flat):
            square = float(np.einsum("i,i", block, block))
            if not math.isfinite(square):
                block = block[np.isfinite(block)]
                square = float(np.einsum("i,i", block, block))
            if len(block):
                low, high = min(low, float(block.min())), max(high, float(block.max()))
                num, total, squares = num + len(block), total + float(block.sum()), squares + square
    return low, high, num, total, squares


def _limits(low: float, high: float, bins: int) -> F64:
    """The right edges of bins of one width; the halves keep the width from overflowing."""
    shares = np.arange(1, bins + 1) / bins
    limits: F64 = 2 * (low / 2 + (high / 2 - low / 2) * shares)
    limits[-1] = high
    return limits


def _count(flat: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.int64]:
    """How many of the values looked at lie in each bin."""
    counts = np.zeros(BINS, np.int64)
    for block in _blocks(flat[:: _stride(len(flat))]):
        finite = block[np.isfinite(block)]
        shares = (finite / 2 - low / 2) / (high / 2 - low / 2)
        places = np.minimum((shares * BINS).astype(np.int64), BINS - 1)
        counts += np.bincount(places, minlength=BINS)
    return counts


def _stride(size: int) -> int:
    """Every how many values one is counted."""
    stride = -(-size // MAX_COUNTED)
    while stride > 1 and math.gcd(stride, size) != 1:
        stride += 1
    return max(1, stride)
