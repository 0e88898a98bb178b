"""What a tick is made of: which values may be logged, and as what.

Pure: values in, fields and plain values out.  A tick's first appearance goes this way, and every
one that is unusual; `describe` looks at each value and refuses what cannot be stored.  From then on
a function that `tick_writers` generates takes ticks like it.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from mle_client import device_values, tick_layout
from mle_client import messages as m
from mle_client.device_values import Pending
from mle_client.layout import OWN_CLOCKS

_INT64 = range(-(2**63), 2**63)
_MAX_SHOWN_BITS: Final = 256  # of an integer in an error: 77 digits, a line

# Scalar types that `struct` converts exactly, without a call of ours in between.
_DIRECT: Final[dict[type, m.Kind]] = {
    int: m.INT,
    float: m.FLOAT,
    bool: m.BOOL,
    np.bool_: m.BOOL,
    **dict.fromkeys((np.float16, np.float32, np.float64), m.FLOAT),
    **dict.fromkeys(
        (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64), m.INT
    ),
}


@dataclass(frozen=True, slots=True)
class Item:
    """A number in an array, or in a tensor of torch in host memory, of no dimension.

    Args:
        type: the array's exact type.
        dtype: of the number, of numpy or of torch.
        is_tensor: it is one of torch's.
    """

    type: type
    dtype: Any
    is_tensor: bool


@dataclass(frozen=True, slots=True)
class Described:
    """A tick that may be stored.

    Args:
        clock, stats: its fields.
        values: plain Python numbers, strings or the raw bytes of arrays, in the fields' order; and
            `Pending` ones, which only their device knows yet.
        direct: what a generated writer checks, if it can take such values as they come: the exact
            type of each, for an array its numpy type and shape, or an `Item`.  None if not.
    """

    clock: tuple[m.Field, ...]
    stats: tuple[m.Field, ...]
    values: tuple[Any, ...]
    direct: tuple[Any, ...] | None

    @property
    def pending(self) -> tuple[Pending, ...]:
        """The values that have not come yet."""
        return tuple(value for value in self.values if isinstance(value, Pending))

    @property
    def size(self) -> int:
        """Bytes that the values take, without what tells them apart."""
        fields = (*self.clock, *self.stats)
        texts = (len(value.encode()) for value in self.values if isinstance(value, str))
        fixed = (tick_layout.value_bytes(field.kind) for field in fields if field.kind != m.TEXT)
        return sum(texts) + sum(fixed)


def describe(
    clock: Mapping[str, Any],
    stats: Mapping[str, Any],
    fetch: Callable[[Any], Pending | None] = lambda value: None,
) -> Described:
    """Look at every value of a tick.  Neither mapping is changed or kept.

    Args:
        clock: time-like values; the three that every tick has by itself are passed over.
        stats: the statistics.
        fetch: starts to fetch a value from its device; None for those that need not be.

    Raises:
        TypeError: a mapping, key or value is of a type that cannot be stored.
        ValueError: a value of a good type is out of bounds.
    """
    fields: dict[str, list[m.Field]] = {"clock": [], "stats": []}
    values: list[Any] = []
    types: list[Any] = []
    for group, mapping in (("clock", clock), ("stats", stats)):
        if not isinstance(mapping, Mapping):
            raise TypeError(
                f"update() takes two dicts, {{name: number}}; {group}_tick is a "
                f"{type(mapping).__name__}"
            )
        for name, value in mapping.items():
            key = _checked_key(name)
            if group == "clock" and key in OWN_CLOCKS:
                continue
            kind, plain, direct = _describe_value(key, value, fetch)
            fields[group].append(m.Field(key, kind))
            values.append(plain)
            types.append(direct)
    for group, found in fields.items():
        if len({field.name for field in found}) < len(found):  # of a subclass of str
            raise ValueError(f"two keys of {group}_tick have the same text: use plain strings")
    if len(values) > m.MAX_KEYS:
        raise ValueError(f"a tick with {len(values)} keys; {m.MAX_KEYS} is the most one may have")
    kinds = (field.kind for found in fields.values() for field in found)
    if sum(tick_layout.extent_bytes(kind) for kind in kinds if kind.shape) > m.MAX_TICK_BYTES:
        raise ValueError(
            f"a tick's arrays exceed {m.MAX_TICK_BYTES} bytes: store such arrays as extra objects"
        )
    is_direct = all(direct is not None for direct in types)
    return Described(
        tuple(fields["clock"]),
        tuple(fields["stats"]),
        tuple(values),
        tuple(types) if is_direct else None,
    )


def _checked_key(name: object) -> str:
    """The key as a plain str: what numpy's or an enumeration's `repr` says is no literal."""
    if not isinstance(name, str):
        raise TypeError(f"the key {name!r} is a {type(name).__name__}: keys must be strings")
    name = str.__str__(name)
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"the key {name!r} is no valid Unicode: remove the surrogates") from error
    if length > m.MAX_KEY_BYTES:
        raise ValueError(f"a key of {length} bytes; {m.MAX_KEY_BYTES} is the longest one may be")
    return name


def arrived(described: Described) -> Described:
    """A tick with the values that were pending; waits for them.

    Raises:
        ValueError: one is out of bounds.
        Exception: what the device's library raises where a value could not be computed.
    """
    fields = (*described.clock, *described.stats)
    values = tuple(
        _arrived(field, value) if isinstance(value, Pending) else value
        for field, value in zip(fields, described.values, strict=True)
    )
    return replace(described, values=values)


def _arrived(field: m.Field, pending: Pending) -> Any:
    array = _as_array(field.name, pending.get())
    return array.tobytes() if field.kind.shape else _plain(field.name, field.kind, array.item())


def _describe_value(
    name: str, value: Any, fetch: Callable[[Any], Pending | None]
) -> tuple[m.Kind, Any, Any]:
    """The kind of a value, its plain form, and what a generated writer checks (or None)."""
    kind = _DIRECT.get(type(value))
    if kind is not None:
        # A writer takes whatever is an int for an int, so all of these share one.
        return kind, _plain(name, kind, value), int if kind is m.INT else type(value)
    if isinstance(value, str):
        return m.TEXT, _checked_text(name, str.__str__(value)), str if type(value) is str else None
    if isinstance(value, numbers.Number):
        return _describe_number(name, value)
    pending = fetch(value)
    if pending is not None:
        return _kind_of(name, pending.dtype, pending.shape), pending, None
    array = _as_array(name, value)
    kind = _kind_of(name, array.dtype, array.shape)
    if array.ndim == 0:
        return kind, _plain(name, kind, array.item()), _item(value)
    direct = (array.dtype, array.shape) if array is value else None
    return kind, array.tobytes(), direct


def _item(value: Any) -> Item | None:
    """What a generated writer checks of an array of no dimension; None where it cannot."""
    is_tensor = device_values.is_plain_tensor(value)
    if is_tensor or type(value) is np.ndarray:
        return Item(type(value), value.dtype, is_tensor)
    return None


def _kind_of(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> m.Kind:
    """The kind that an array of numbers is stored as.  Arguments: of the array."""
    if dtype.kind == "V" and dtype.names is None:  # jax's bfloat16 and its like
        dtype = np.dtype(np.float32)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise TypeError(
            f"{name!r} holds items of type {dtype}: log arrays of numbers; "
            "other objects are stored by save_extra()"
        )
    if len(shape) > m.MAX_DIMENSIONS:
        raise ValueError(f"{name!r} has {len(shape)} dimensions; {m.MAX_DIMENSIONS} is the most")
    if not shape:
        return {"b": m.BOOL, "f": m.FLOAT}.get(dtype.kind, m.INT)
    return m.Kind(dtype.newbyteorder("<").str, shape)


def _plain(name: str, kind: m.Kind, value: Any) -> Any:
    if kind is m.FLOAT:
        return float(value)
    if kind is m.BOOL:
        return bool(value)
    number = int(value)
    if number not in _INT64:
        bits = number.bit_length()  # Python refuses to show integers of thousands of digits
        shown = number if bits <= _MAX_SHOWN_BITS else f"an integer of {bits} bits"
        raise ValueError(
            f"{name!r} is {shown}, which is no 64-bit integer: log it as float or as a string"
        )
    return number


def _describe_number(name: str, value: Any) -> tuple[m.Kind, Any, Any]:
    """Numbers of uncommon types: subclasses, fractions, decimals, extended floats."""
    if isinstance(value, numbers.Integral):
        return m.INT, _plain(name, m.INT, value), None
    try:
        number = float(value)
    except TypeError as error:
        raise TypeError(
            f"{name!r} is a {type(value).__name__}: log its real and imaginary parts on their own"
        ) from error
    except (OverflowError, ValueError) as error:  # a large fraction, a signalling NaN
        raise _no_float(name, value) from error
    if math.isinf(number) and value != number:  # decimals and extended floats do not raise
        raise _no_float(name, value)
    return m.FLOAT, number, None


def _no_float(name: str, value: object) -> ValueError:
    return ValueError(
        f"{name!r} is a {type(value).__name__} that no 64-bit float can hold: log its logarithm, "
        "or log it as a string"
    )


def _checked_text(name: str, text: str) -> str:
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r} is no valid Unicode: remove the surrogates") from error
    if length > m.MAX_STRING_BYTES:
        raise ValueError(
            f"{name!r} is a text of {length} bytes, and {m.MAX_STRING_BYTES} is the longest one "
            "may be: store longer texts as extra objects"
        )
    return text


def _as_array(name: str, value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """An array of numbers in little-endian order from arrays, tensors, lists and tuples."""
    source = value
    if hasattr(source, "detach"):  # torch: an array that requires a gradient refuses numpy
        source = source.detach().cpu()
    if isinstance(source, list | tuple) and any(map(_has_mask, source)):
        source = _stacked(name, source)
    if _has_mask(source):
        source = _without_mask(name, source)
    if not (isinstance(source, list | tuple) or hasattr(source, "__array__")):
        raise TypeError(
            f"{name!r} is a {type(value).__name__}: log numbers, strings or arrays of numbers; "
            "other objects are stored by save_extra()"
        )
    try:
        array = np.asarray(source)
    except TypeError as error:
        if not hasattr(source, "float"):  # a list of tensors that lie on a device
            raise TypeError(f"{name!r} cannot be made an array of numbers: {error}") from error
        array = np.asarray(source.float())  # torch's bfloat16, which numpy does not know
    except ValueError as error:
        raise ValueError(f"{name!r} is no array of one shape: {error}") from error
    if array.dtype.kind == "V" and array.dtype.names is None:  # jax's bfloat16 and its like
        array = array.astype(np.float32)
    _kind_of(name, array.dtype, array.shape)  # refuses what holds no numbers
    little = array.dtype.newbyteorder("<")
    return array if array.dtype == little and array is value else array.astype(little, copy=False)


def _has_mask(value: object) -> bool:
    # Only a subclass of numpy's arrays has one; numpy loads that when first asked for it.
    is_subclass = isinstance(value, np.ndarray) and type(value) is not np.ndarray
    return is_subclass and isinstance(value, np.ma.MaskedArray)


def _stacked(name: str, items: Sequence[Any]) -> np.ma.MaskedArray[Any, Any]:
    """One array of a list with masks in it, which `numpy.asarray` would drop."""
    try:
        return np.ma.stack([np.ma.asanyarray(item) for item in items])
    except ValueError as error:
        raise ValueError(f"{name!r} is no array of one shape: {error}") from error


def _without_mask(name: str, array: np.ma.MaskedArray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array with NaN where it is masked: what lies there is whatever was left over."""
    if not np.ma.is_masked(array):
        return array.data
    if array.dtype.kind != "f":
        raise ValueError(
            f"{name!r} has masked entries, which can be stored as NaN in arrays of floats only, "
            f"and these are {array.dtype}: log it as float, or filled in: x.filled(0)"
        )
    return array.filled(np.nan)


def conflict(known: m.Kind, new: m.Kind) -> str:
    """Why a key logged as `known` cannot be logged as `new`; "" if it can.

    Numbers of any type share a column, and so do arrays of one shape.
    """
    if (known.code == "str") != (new.code == "str"):
        return "it was logged as text before and is a number now, or the reverse: use two keys"
    if known.shape != new.shape:
        return (
            f"it had the shape {known.shape} and has {new.shape} now: a key keeps its shape; "
            "pad the array, or use another key"
        )
    return ""
