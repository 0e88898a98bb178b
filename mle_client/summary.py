"""The numbers of one statistic over several seeds: mean, spread and percentiles at every step.

Pure.  It reads the seeds' columns a block of rows at a time, so that what it holds is bounded by
`_BLOCK_BYTES`, whatever the length of the columns; a row of all seeds is the least that it holds.
Values that are missing (NaN, or past a seed's end) do not count, and all results are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mle_client.attrdict import AttrDict
from mle_client.blocks import Array, Column, Each, one_by_one

Floats: TypeAlias = "npt.NDArray[np.float64]"
Counts: TypeAlias = "npt.NDArray[np.int64]"

PERCENTILES: Final = (50, 10, 25, 75, 90)  # in mle-logging's order
NAMES: Final = ("mean", "std", *(f"p{q}" for q in PERCENTILES))
# Held at once: a whole chunk of a sealed log (16,384 rows) of 512 seeds.  With more seeds than that
# a chunk is decompressed more than once.
_BLOCK_BYTES: Final = 64 * 2**20
_ENOUGH_VALUES: Final = 2**20  # in a block: 8 MiB, so that each thread has something to do
_PART_VALUES: Final = 2**17  # summarised at a time: 1 MiB, which fits into a core's own cache
_PART_STEPS: Final = 2**12  # the same for few seeds, whose results take more room than their values
_SEVERAL: Final = 2**17  # values from which on it pays to let threads help
# Between the seeds' rows in a block.  Rows that are a power of two apart would share the few lines
# of a cache, and transposing a block would take five times as long.
_PADDING: Final = 8


class Summary(AttrDict):
    """What the seeds' values of one statistic amount to.

    Its keys are mle-logging's: "mean", "std" (ddof 0), "p50", "p10", "p25", "p75", "p90"; each
    float64, shape (steps, *shape of a value), NaN where no seed has a value.

    Args:
        values: these.
        n: int64, of the same shape: on how many values the others rest.  `summary.n`,
            `summary["n"]` and `summary.get("n")` give it, and `"n" in summary`.  Whoever goes
            through all keys meets the seven alone, which mle-logging's summaries have:
            `{**summary, "n": summary.n}` is a dict of all eight.
    """

    __slots__ = ("_n",)

    _n: Counts

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]], n: Counts) -> None:
        super().__init__(values)
        self._n = n

    @property
    def n(self) -> Counts:
        """How many seeds have a value at each step."""
        return self._n

    def __contains__(self, key: object) -> bool:
        return key == "n" or super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The numbers of a name, or the default."""
        return self._n if key == "n" else super().get(key, default)

    def __missing__(self, key: object) -> Any:
        return self._n if key == "n" else super().__missing__(key)

    def at(self, steps: Any) -> Summary:
        """Some of the steps.  Args: steps: an index of numpy's."""
        return Summary(((name, values[steps]) for name, values in self.items()), self._n[steps])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Summary, (dict(self), self._n)


def summarise(columns: Sequence[Column], each: Each = one_by_one) -> Summary:
    """Summarise a statistic over seeds.

    Args:
        columns: one a seed, numbers of shape (n_i, *shape of a value); at least one.
        each: how many things are done; one that lets threads help makes it faster.

    Returns:
        As many steps as the longest column has.  The order of the seeds changes no bit of it.
    """
    item = columns[0].shape[1:]
    width = math.prod(item)
    length = max(map(len, columns))
    results = {name: np.empty(length * width) for name in NAMES}
    counts = np.empty(length * width, np.int64)
    if counts.size:
        rows = _rows_at_once(columns, width)
        block = _Block(len(columns), min(rows, length) * width, _common_dtype(columns))
        for start in range(0, length, rows):
            stop = min(start + rows, length)
            at = slice(start * width, stop * width)
            here = {name: values[at] for name, values in results.items()}
            block.take((stop - start) * width)
            share = each if len(columns) * block.count >= _SEVERAL else one_by_one
            share(partial(block.fill, columns, start, stop), range(len(columns)))
            share(partial(block.summarise, here, counts[at]), block.parts())
    shape = (length, *item)
    return Summary(
        ((name, values.reshape(shape)) for name, values in results.items()), counts.reshape(shape)
    )


def _common_dtype(columns: Sequence[Column]) -> type[np.floating[Any]]:
    """Half the width sorts twice as fast, and loses nothing of float32 and narrower columns."""
    common = np.result_type(*(column.dtype for column in columns))
    return np.float32 if common in (np.float16, np.float32) else np.float64


def _rows_at_once(columns: Sequence[Column], width: int) -> int:
    """Rows in a block: whole chunks, or a fraction of one, if they fit."""
    fitting = max(1, _BLOCK_BYTES // (8 * width * len(columns)))
    chunk = max(column.chunk_rows for column in columns)
    if fitting >= chunk:  # of small ones several, so that there is enough to do at once
        enough = _ENOUGH_VALUES // (width * len(columns))
        return chunk * max(1, min(fitting, enough) // chunk)
    return -(-chunk // -(-chunk // fitting))


class _Block:
    """Some steps of all seeds: a row a seed.

    Args:
        seeds: how many rows.
        room: values a row, at the most.
        dtype: float32 or float64.
    """

    def __init__(self, seeds: int, room: int, dtype: type[np.floating[Any]]) -> None:
        self._values = np.empty((seeds, room + _PADDING), dtype)
        self.count = room

    def take(self, count: int) -> None:
        """Say how many values a row has from now on."""
        self.count = count

    def fill(self, columns: Sequence[Column], start: int, stop: int, seed: int) -> None:
        """Read one seed's values, rows `start` to `stop` of its column."""
        row, column = self._values[seed], columns[seed]
        _, *item = column.shape
        rows = max(0, min(stop, len(column)) - start)
        filled = rows * math.prod(item)
        if filled:
            with np.errstate(over="ignore"):  # of extended precision
                column.read_into(row[:filled].reshape(rows, *item), start)
        row[filled : self.count] = np.nan

    def parts(self) -> list[slice]:
        """Steps that are summarised at a time."""
        step = max(1, min(_PART_VALUES // len(self._values), _PART_STEPS))
        return [slice(at, min(at + step, self.count)) for at in range(0, self.count, step)]

    def summarise(self, results: Mapping[str, Floats], counts: Counts, part: slice) -> None:
        """Write the results of some steps where they belong."""
        seeds_last = np.array(self._values[:, part].T, order="C")
        seeds_last.sort(axis=-1)  # NaN goes last, and the seeds' order does not matter any more
        # Infinities make sums and differences undefined, as they should be.
        with np.errstate(invalid="ignore", over="ignore"):
            n, *values = _summarise_sorted(seeds_last)
        counts[part] = n
        for name, result in zip(NAMES, values, strict=True):
            results[name][part] = result


# --- sorted values, the seeds last; they are overwritten ------------------------------------------
_Summarised: TypeAlias = "tuple[Any, ...]"  # n, and the values of NAMES; one a step


def _summarise_sorted(steps: Array) -> _Summarised:
    seeds = steps.shape[-1]
    if not np.isnan(steps[:, -1]).any():
        return _summarise_whole(steps)
    n = seeds - np.count_nonzero(np.isnan(steps), axis=-1)
    fewest = int(n.min())
    if fewest == n.max() and fewest:
        return _summarise_whole(steps[:, :fewest])
    return _summarise_ragged(steps, n)


def _summarise_whole(steps: Array) -> _Summarised:
    """Every step has a value of every seed."""
    n = steps.shape[-1]
    position = np.array(PERCENTILES) / 100 * (n - 1)
    below = position.astype(np.intp)
    low = steps[:, below].astype(np.float64)
    high = steps[:, np.minimum(below + 1, n - 1)].astype(np.float64)
    percentiles = _between(low, high, position - below)
    values = steps.astype(np.float64, copy=False)  # nobody needs the steps any more
    mean = _sums(values) / n
    values -= mean[:, np.newaxis]
    return n, mean, _deviation(values, n), *percentiles.T


def _summarise_ragged(steps: Array, n: npt.NDArray[np.intp]) -> _Summarised:
    """Steps have values of different numbers of seeds, or of none."""
    last = np.maximum(n - 1, 0)[:, np.newaxis]
    position = np.array(PERCENTILES) / 100 * last
    below = position.astype(np.intp)
    low = np.take_along_axis(steps, below, axis=-1).astype(np.float64)
    high = np.take_along_axis(steps, np.minimum(below + 1, last), axis=-1).astype(np.float64)
    percentiles = _between(low, high, position - below)
    missing = np.arange(steps.shape[-1]) >= n[:, np.newaxis]
    divisor = np.where(n == 0, np.nan, n)
    values = steps.astype(np.float64, copy=False)
    values[missing] = 0.0
    mean = _sums(values) / divisor
    values -= mean[:, np.newaxis]
    values[missing] = 0.0
    return n, mean, _deviation(values, divisor), *percentiles.T


def _sums(values: Floats) -> Floats:
    sums: Floats = np.einsum("ij->i", values)  # for few seeds five times as fast as .sum(axis=-1)
    return sums


def _deviation(differences: Floats, n: Any) -> Floats:
    squares: Floats = np.einsum("ij,ij->i", differences, differences)
    deviation: Floats = np.sqrt(squares / n)
    return deviation


def _between(low: Floats, high: Floats, weight: Floats) -> Floats:
    """Between two neighbours, linearly, as `numpy.percentile` does."""
    # Not low + (high - low) * weight: infinite neighbours would make that NaN.
    return np.where((weight == 0) | (low == high), low, low * (1 - weight) + high * weight)
