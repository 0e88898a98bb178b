"""Which type a column gets from its values, and the values in that type.

Pure.  Numbers join in the narrowest type that keeps each of them exactly (`common_dtype`), text in
the narrowest width (`text_width`), times become the text of column time/time (`time_texts`).  What
may join what is not decided here but in `columns`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mle_client import layout

Array: TypeAlias = npt.NDArray[Any]

TIME_DTYPE: Final = np.dtype("S14")  # of time/time: layout.TIME_FORMAT is 14 ASCII characters
UNKNOWN_TIME: Final = b"00-00-00/00:00"  # for a time stamp that no calendar has
MIN_WIDTH: Final = 16  # bytes of a short text: room to grow before the column must be converted
MAX_WIDTH: Final = 256  # bytes of a text in a fixed-width column; one long line must not pad all
REFERENCE_BYTES: Final = 16  # of a text of varying length: where HDF5 keeps it


@dataclass(frozen=True, slots=True)
class Text:
    """The type of a text column, UTF-8.

    Args:
        width: bytes of one value in the file, zero-padded; 0 where lengths vary.
        escaped: whether a NUL character occurs, stored as the bytes C0 80.
    """

    width: int
    escaped: bool = False


Dtype: TypeAlias = np.dtype[Any] | Text


def numpy_dtype(dtype: Dtype) -> np.dtype[Any]:
    """The type that a column's values have in memory; text is an array of encoded bytes."""
    if isinstance(dtype, Text):
        return np.dtype(f"S{dtype.width}") if dtype.width else np.dtype(object)
    return dtype


def is_varying(dtype: Dtype) -> bool:
    """Whether values are texts of varying length, which HDF5 keeps apart from the column."""
    return numpy_dtype(dtype).hasobject


# --- numbers --------------------------------------------------------------------------------------
Part: TypeAlias = tuple[np.dtype[Any], Iterable[Array]]


def join_numbers(old: Sequence[Part], columns: Sequence[Array]) -> Array:
    """Some columns one after another, in the type that keeps them and the old values.

    Args:
        old: at most one type, with its values in pieces; these are looked at only where the
            choice hangs on them.
        columns: at least one, each of shape (n, ...).

    Returns:
        The columns joined, in native byte order.
    """
    new: list[Part] = [(column.dtype, [column]) for column in columns]
    dtype = common_dtype([*old, *new])
    values = [convert(column, dtype) for column in columns]
    return values[0] if len(values) == 1 else np.concatenate(values)


def convert(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values in another type that holds them."""
    with np.errstate(invalid="ignore"):  # a signalling NaN stays a NaN, without a warning
        return values.astype(dtype, copy=False)


def common_dtype(parts: Sequence[Part]) -> np.dtype[Any]:
    """The narrowest common type of numpy that keeps every value; long double where none does.

    Returns:
        numpy's common type, except that a 64-bit integer which a float64 would round makes it
        long double, whose 64 or more bits of mantissa keep both.
    """
    dtype: np.dtype[Any] = np.result_type(*(part for part, _ in parts))
    if dtype.kind != "f" or dtype == np.longdouble:
        return dtype
    mantissa = np.finfo(dtype).nmant + 1
    for part, pieces in parts:
        bits = part.itemsize * 8 - (part.kind == "i")
        if part.kind in "iu" and bits > mantissa and not all(_keeps(dtype, p) for p in pieces):
            return np.dtype(np.longdouble)
    return dtype


def _keeps(dtype: np.dtype[Any], integers: Array) -> bool:
    """Whether a float type holds all of some integers exactly."""
    rounded = integers.astype(dtype).astype(np.longdouble)
    return bool((rounded == integers.astype(np.longdouble)).all())


# --- text -----------------------------------------------------------------------------------------
def join_text(old: Text | None, columns: Sequence[Iterable[str]]) -> tuple[Text, Array]:
    """Some columns one after another, encoded, and the type that keeps them and the old values."""
    encoded = [value.encode() for value in itertools.chain.from_iterable(columns)]
    escaped = any(b"\0" in value for value in encoded)
    if escaped:
        encoded = [value.replace(b"\0", b"\xc0\x80") for value in encoded]
    dtype = Text(text_width(max(map(len, encoded))), escaped)
    if old is not None:
        fixed = old.width and dtype.width
        dtype = Text(max(old.width, dtype.width) if fixed else 0, escaped or old.escaped)
    values = np.empty(len(encoded), numpy_dtype(dtype))
    values[:] = encoded
    return dtype, values


def text_width(longest: int) -> int:
    """The width of a text column whose longest value has so many bytes; 0: let lengths vary."""
    if longest > MAX_WIDTH:
        return 0
    return max(MIN_WIDTH, 1 << max(longest - 1, 0).bit_length())


# --- times ----------------------------------------------------------------------------------------
def time_texts(times: npt.NDArray[np.float64]) -> Array:
    """The texts of column time/time: local time, to the minute.

    Each distinct minute is formatted once.

    Args:
        times: shape (n,), n >= 1, seconds since the epoch.

    Returns:
        Shape (n,), S14.
    """
    minutes = np.floor(times / 60)
    starts = np.flatnonzero(np.append(True, minutes[1:] != minutes[:-1]))
    distinct, which = np.unique(minutes[starts], return_inverse=True)
    texts = np.array([_minute_text(minute) for minute in distinct.tolist()], TIME_DTYPE)
    return np.repeat(texts[which], np.diff(starts, append=len(times)))


def _minute_text(minute: float) -> bytes:
    try:
        return datetime.fromtimestamp(minute * 60).strftime(layout.TIME_FORMAT).encode()
    except (ValueError, OverflowError, OSError):  # NaN, or outside the years 1 to 9999
        return UNKNOWN_TIME
