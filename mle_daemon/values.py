"""Which type a column gets from its values, and the values in that type.

Pure.  Numbers join in the narrowest type that keeps each of them exactly (`NumberType`), text in
the narrowest width (`TextType`), times become the text of column time/time (`time_texts`).  What
may join what is not decided here but in `columns`.
"""

from __future__ import annotations

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
_NUL: Final = b"\xc0\x80"  # for a NUL character, at which HDF5 ends a text


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
class NumberType:
    """The narrowest common type of numpy that keeps every number of a column.

    A 64-bit integer which a float64 would round makes it long double, whose 64 or more bits of
    mantissa keep both.  Only where it `hangs_on` values these have to be looked at.

    Args:
        parts: types of what is joined.

    Attributes:
        dtype: that keeps what was looked at.
    """

    def __init__(self, parts: Iterable[np.dtype[Any]]) -> None:
        self.dtype: np.dtype[Any] = np.result_type(*parts)
        is_float = self.dtype.kind == "f" and self.dtype != np.longdouble
        self._mantissa = np.finfo(self.dtype).nmant + 1 if is_float else None

    def hangs_on(self, part: np.dtype[Any]) -> bool:
        """Whether values of a type may need another type than the one that was found so far."""
        if self._mantissa is None or part.kind not in "iu":
            return False
        return part.itemsize * 8 - (part.kind == "i") > self._mantissa

    def look(self, values: Array) -> None:
        """Look at some of the values to be kept."""
        if self.hangs_on(values.dtype) and not _keeps(self.dtype, values):
            self.dtype, self._mantissa = np.dtype(np.longdouble), None


def _keeps(dtype: np.dtype[Any], integers: Array) -> bool:
    """Whether a float type holds all of some integers exactly."""
    rounded = integers.astype(dtype).astype(np.longdouble)
    return bool((rounded == integers.astype(np.longdouble)).all())


def convert(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values in another type that holds them, in native byte order."""
    with np.errstate(invalid="ignore"):  # a signalling NaN stays a NaN, without a warning
        return values.astype(dtype, copy=False)


# --- text -----------------------------------------------------------------------------------------
def encode_texts(values: Iterable[str]) -> list[bytes]:
    """Text as it is stored: UTF-8, a NUL character as the bytes C0 80."""
    encoded = [value.encode() for value in values]
    if b"\0" in b"".join(encoded):
        return [value.replace(b"\0", _NUL) for value in encoded]
    return encoded


class TextType:
    """The type that keeps all text of a column.

    Args:
        old: of what is stored; None for nothing.

    Attributes:
        dtype: that keeps what is stored and what was looked at.
        looked_at_bytes: of the text that was looked at.
    """

    def __init__(self, old: Text | None) -> None:
        self.dtype = old or Text(text_width(0))
        self.looked_at_bytes = 0

    def look(self, encoded: Sequence[bytes]) -> None:
        """Look at some text, as `encode_texts` makes it."""
        width = text_width(max(map(len, encoded), default=0))
        width = max(width, self.dtype.width) if width and self.dtype.width else 0
        joined = b"".join(encoded)  # quicker than to look at one after another
        self.dtype = Text(width, self.dtype.escaped or _NUL in joined)
        self.looked_at_bytes += len(joined)


def text_array(encoded: Sequence[bytes], dtype: Text) -> Array:
    """Encoded text as an array of a type that keeps it."""
    values = np.empty(len(encoded), numpy_dtype(dtype))
    values[:] = encoded
    return values


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
