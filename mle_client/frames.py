"""Runs as a table of pandas, or as a dataset of xarray.

It computes nothing: every value is one of the runs', placed at the update that logged it.  The
libraries are loaded when they are first needed.

    run.stats.loss  [1.0, 0.8, 0.7, 0.6]              loss   1.0   0.8   0.7   0.6
    run.stats.acc   [0.5, 0.7], logged at 1 and 3     acc    NaN   0.5   NaN   0.7
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mle_client import updates
from mle_client.seeds import natural_key

Array: TypeAlias = "npt.NDArray[Any]"
Integers: TypeAlias = "npt.NDArray[np.int64]"

# Configuration and seed, None for what there is not, and the `RunLog`.
Run: TypeAlias = tuple[str | None, str | None, Any]

_APART: Final = ("config", "seed")  # in the order of `Run`
_STEP: Final = "step"  # the dimension along which a run's updates lie
_FIRST: Final = "num_updates"  # the clock that says which update a row is
_COUNT: Final = "n"  # of an aggregated statistic: how many seeds a value rests on
_EXACT: Final = 2**53  # up to here, float64 holds every integer


def to_dataframe(runs: Sequence[Run]) -> Any:
    """Make a table: a row for each update of each run, in their order.

    Args:
        runs: all that are to be in it, told apart by configuration and seed.

    Returns:
        A `pandas.DataFrame` with the columns "config" and "seed" where any run has one, then the
        clocks, "num_updates" first, then the statistics.  An aggregated statistic has a column for
        each of its parts: "loss_mean", "loss_std", …, "loss_n".  A statistic named like a column
        before it becomes "stats/<name>".

        Columns have the type that was logged.  Where a run or an update lacks a value there is NaN,
        and integers and bools are floats then: float64, or long double where that would round.
        Text that is missing is None or NaN, whichever pandas has.  A cell of an array statistic
        holds the array, or None.

    Raises:
        ImportError: there is no pandas.

    Warns:
        UserWarning: a statistic is left out: nobody knows at which updates it was logged, or it is
            text of aggregated seeds.  Or values of one are: of those that mle-logging logged
            before the log was continued, nobody may know the updates.  Or the seeds of an
            aggregate have different values of a clock at one update.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("a table needs pandas: pip install 'mle-daemon[pandas]'") from error
    dimensions = _dimensions(runs)
    columns, problems = _gather(runs, dimensions)
    _warn_of(runs, problems)
    lengths = _lengths(runs, columns)
    starts = np.cumsum(lengths) - lengths
    table: dict[str, Any] = {}
    for dimension, index in dimensions.items():
        names = np.array(list(index), object)
        table[dimension] = np.repeat(names[_indices(runs, dimension, index)], lengths)
    for column in columns:
        fill = _cells if column.item_shapes != {()} else _filled
        table[column.name] = fill(column, starts, int(lengths.sum()))
    return pd.DataFrame(table)


def to_xarray(runs: Sequence[Run]) -> Any:
    """Make a dataset over configurations, seeds and updates.

    Args:
        runs: all that are to be in it, told apart by configuration and seed.

    Returns:
        An `xarray.Dataset` with the dimensions "config" and "seed" where any run has one, and
        "step", the number of the update, from 1 to that of the longest run.  Its variables are the
        statistics, those of arrays with further dimensions "<name>_dim_0", …; its coordinates are
        the clocks.  Names and types are those of `to_dataframe`; a clock that is named like a
        dimension becomes "time/<name>".

    Raises:
        ImportError: there is no xarray.

    Warns:
        UserWarning: a statistic is left out: as `to_dataframe`, or its arrays have different shapes
            in different runs.
    """
    try:
        import xarray as xr
    except ImportError as error:
        raise ImportError("a dataset needs xarray: pip install 'mle-daemon[xarray]'") from error
    dimensions = _dimensions(runs)
    gathered, problems = _gather(runs, [*dimensions, _STEP])
    columns = [column for column in gathered if len(column.item_shapes) == 1]
    ragged = [column.name for column in gathered if len(column.item_shapes) > 1]
    problems += [f"{name!r} has arrays of different shapes" for name in ragged]
    _warn_of(runs, problems)
    steps = int(_lengths(runs, columns).max(initial=0))
    shape = [len(index) for index in dimensions.values()]
    starts = np.zeros(len(runs), np.int64)
    for dimension, index in dimensions.items():
        starts = starts * len(index) + _indices(runs, dimension, index)
    coordinates: dict[str, Any] = {name: list(index) for name, index in dimensions.items()}
    coordinates[_STEP] = np.arange(1, steps + 1)
    variables: dict[str, Any] = {}
    for column in columns:
        (item,) = column.item_shapes
        filled = _filled(column, starts * steps, math.prod(shape) * steps)
        dims = [*dimensions, _STEP, *(f"{column.key}_dim_{i}" for i in range(len(item)))]
        target = coordinates if column.group == "time" else variables
        target[column.name] = (dims, filled.reshape(*shape, steps, *item))
    return xr.Dataset(variables, coordinates)


# --- runs -----------------------------------------------------------------------------------------
def _dimensions(runs: Sequence[Run]) -> dict[str, dict[str, int]]:
    """What tells the runs apart.  Returns: {"config" or "seed": {name: its place}}."""
    dimensions = {}
    for i, dimension in enumerate(_APART):
        if any(run[i] is not None for run in runs):
            names = list(dict.fromkeys(run[i] or "" for run in runs))
            if dimension == "seed":  # configurations need not have the same ones
                names.sort(key=natural_key)
            dimensions[dimension] = {name: place for place, name in enumerate(names)}
    return dimensions


def _indices(runs: Sequence[Run], dimension: str, index: Mapping[str, int]) -> Integers:
    """The place of each run along a dimension."""
    i = _APART.index(dimension)
    return np.array([index[run[i] or ""] for run in runs], np.int64)


def _lengths(runs: Sequence[Run], columns: Iterable[_Column]) -> Integers:
    """How many updates each run has."""
    lengths = np.array([run.ticks for _, _, run in runs], np.int64)
    for column in columns:
        for piece in column.pieces:
            lengths[piece.run] = max(lengths[piece.run], piece.rows.max(initial=-1) + 1)
    return lengths


# --- columns of all runs --------------------------------------------------------------------------
@dataclass(frozen=True, eq=False, slots=True)
class _Piece:
    """One run's part of a column.  Args: rows: the updates at which its values were logged, all of
    which are known."""

    run: int
    rows: Integers
    values: Array


@dataclass(frozen=True, eq=False, slots=True)
class _Column:
    """A clock, a statistic, or a part of an aggregated one, in all runs that have it.

    Args:
        group, key: where it is in the runs.
        name: of the column in the result.
        pieces: at least one.
    """

    group: str
    key: str
    name: str
    pieces: Sequence[_Piece]

    @property
    def item_shapes(self) -> set[tuple[int, ...]]:
        return {piece.values.shape[1:] for piece in self.pieces}


def _gather(runs: Sequence[Run], taken: Iterable[str]) -> tuple[list[_Column], list[str]]:
    """The columns that can be placed, and in words which cannot.  Args: taken: names in use."""
    columns: list[_Column] = []
    problems: list[str] = []
    used = set(taken)
    for group in ("time", "stats"):
        for key in _keys(runs, group):
            try:
                parts, unknown = _parts(runs, group, key)
            except ValueError as error:
                problems.append(str(error))
                continue
            if unknown:
                problems.append(updates.left_out(key, unknown))
            for part, pieces in parts.items():
                name = f"{key}{part}"
                while name in used:
                    name = f"{group}/{name}"
                used.add(name)
                # The type and shape of a column without a value say nothing.
                filled = [piece for piece in pieces if piece.rows.size] or pieces[:1]
                columns.append(_Column(group, key, name, filled))
    return columns, problems


def _keys(runs: Sequence[Run], group: str) -> list[str]:
    keys = list(dict.fromkeys(key for _, _, run in runs for key in run[group]))
    return sorted(keys, key=lambda key: (group, key) != ("time", _FIRST))


def _parts(runs: Sequence[Run], group: str, key: str) -> tuple[dict[str, list[_Piece]], int]:
    """The values of a key: {"": of runs} or {"_mean": …, …: of aggregated seeds}.

    Returns:
        These, and how many are left out, for nobody knows at which updates they were logged.

    Raises:
        ValueError: nobody knows that of a run's whole column.
    """
    parts: dict[str, list[_Piece]] = {}
    unknown = 0
    for i, (_, _, run) in enumerate(runs):
        if key not in run[group]:
            continue
        column = run[group][key]
        if isinstance(column, list):
            raise ValueError(f"{key!r} of aggregated seeds has no mean")
        rows = run.row_numbers(group, key)
        without = updates.count_unknown(rows)
        unknown += without
        placed = updates.known(rows) if without else slice(None)
        for part, values in _columns_of(column):
            parts.setdefault(part, []).append(_Piece(i, rows[placed], values[placed]))
    return parts, unknown


def _columns_of(column: Any) -> Iterator[tuple[str, Array]]:
    if not isinstance(column, Mapping):
        yield "", column
        return
    for part in (*(part for part in column if part != _COUNT), _COUNT):
        yield f"_{part}", column[part]


def _warn_of(runs: Sequence[Run], problems: Sequence[str]) -> None:
    said = [f"left out: {'; '.join(problems)}"] if problems else []
    remarks = [run.remark(clock) for _, _, run in runs for clock in run["time"]]
    for remark in dict.fromkeys([*said, *filter(None, remarks)]):
        warnings.warn(remark, UserWarning, stacklevel=4)


# --- values ---------------------------------------------------------------------------------------
def _filled(column: _Column, starts: Integers, length: int) -> Array:
    """A column of all runs.

    Args:
        column: its values have one shape.
        starts: where each run begins, shape (runs,).
        length: of the result.

    Returns:
        Shape (length, *item); NaN or None where nothing was logged.
    """
    (item,) = column.item_shapes
    missing = length > sum(len(piece.rows) for piece in column.pieces)
    dtype = _dtype([piece.values for piece in column.pieces], missing)
    empty = None if dtype.kind == "O" else np.nan if missing else 0
    filled = np.full((length, *item), empty, dtype)
    for piece in column.pieces:
        filled[starts[piece.run] + piece.rows] = piece.values
    return filled


def _dtype(columns: Sequence[Array], missing: bool) -> np.dtype[Any]:
    """A type that holds all values as they are, and NaN if need be."""
    if any(column.dtype.kind not in "biuf" for column in columns):
        return np.dtype(object)
    dtype = np.result_type(*(column.dtype for column in columns))
    if missing and dtype.kind != "f":
        dtype = np.dtype(np.float64)
    if dtype.kind == "f" and any(
        column.dtype.kind in "iu"
        and (column.max(initial=0) > _EXACT or column.min(initial=0) < -_EXACT)
        for column in columns
    ):
        return np.dtype(np.longdouble)
    return dtype


def _cells(column: _Column, starts: Integers, length: int) -> Array:
    """The same for arrays, one to a cell."""
    cells = np.full(length, None, object)
    for piece in column.pieces:
        for row, value in zip(piece.rows, piece.values, strict=True):
            cells[starts[piece.run] + row] = value
    return cells
