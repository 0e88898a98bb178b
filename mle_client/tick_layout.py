"""How a tick lies in memory: its head, its values, and where the whole ones end in a ring.

Pure.  The form of the bytes is told at the head of `wire`.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mle_client import messages as m
from mle_client import packing
from mle_client.errors import ProtocolError

# The byte behind a record in a ring that no other follows yet: nil, which begins no record.
COMMITTED: Final = 0xC0
TEXT_MARK: Final = 0xDC
FIXED_MARK: Final = 0x92
_NUMBER_MARK: Final = 0xCE
_SHORT_BIN, _LONG_BIN = 0xC4, 0xC6
_SHORT_HEAD_BYTES: Final = 8  # 92 ce iiiiiiii c4 nn
_LONG_HEAD_BYTES: Final = 11


def has_fixed_layout(schema: m.Schema) -> bool:
    """Whether every tick of the schema has the same length and the same first bytes."""
    return all(field.kind.code != "str" for field in schema.fields)


def head(schema: m.Schema) -> bytes:
    """The constant bytes at the beginning of every tick of a schema."""
    if not has_fixed_layout(schema):
        return struct.pack(">BHBIB", TEXT_MARK, 2 + len(schema.fields), 0xCE, schema.number, 0xCB)
    length = fixed_values_bytes(schema)
    short = length <= 0xFF
    number = struct.pack(">BBI", FIXED_MARK, _NUMBER_MARK, schema.number)
    return number + struct.pack(
        ">BB" if short else ">BI", _SHORT_BIN if short else _LONG_BIN, length
    )


def fixed_values_bytes(schema: m.Schema) -> int:
    """Length of the time stamp and the values of a tick of fixed layout, in bytes."""
    return 8 + sum(value_bytes(field.kind) for field in schema.fields)


def value_bytes(kind: m.Kind) -> int:
    """Length of a value in a tick of fixed layout, in bytes."""
    return np.dtype(kind.code).itemsize * math.prod(kind.shape)


def extent_bytes(kind: m.Kind) -> int:
    """What an array would take if no length of its shape were 0: numpy bounds that, too."""
    return np.dtype(kind.code).itemsize * math.prod(max(1, length) for length in kind.shape)


@dataclass(frozen=True)
class FixedLayout:
    """How a fixed-layout tick lies in memory.

    Args:
        head: its first bytes.
        dtype: of one tick; fields "head", "t" and "v0", "v1", …
        bools: names of the fields that hold bools, each of which must be 0 or 1.
    """

    head: bytes
    dtype: np.dtype[Any]
    bools: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of one tick."""
        return self.dtype.itemsize

    def count_valid(self, data: memoryview, at: int, most: int) -> int:
        """How many ticks of this layout lie one after another from `at` on; `most` at the most."""
        ticks = np.frombuffer(data, self.dtype, most, at)
        good = ticks["head"] == np.frombuffer(self.head, self.dtype["head"])[0]
        for name in self.bools:
            good &= ticks[name] <= 1
        return most if good.all() else int(good.argmin())


def fixed_layout(schema: m.Schema) -> FixedLayout:
    """The layout of a schema for which `has_fixed_layout` holds."""
    first = head(schema)
    # A head of 8 bytes compares as one number; a longer one is rare.
    parts: list[tuple[str, Any]] = [("head", "<u8" if len(first) == 8 else f"S{len(first)}")]
    parts.append(("t", "<f8"))
    bools = []
    for i, field in enumerate(schema.fields):
        if field.kind == m.BOOL:
            bools.append(f"v{i}")
            parts.append((f"v{i}", "u1"))
        elif field.kind in (m.INT, m.FLOAT):
            parts.append((f"v{i}", "<" + field.kind.code))
        else:
            parts.append((f"v{i}", (field.kind.code, field.kind.shape)))
    return FixedLayout(first, np.dtype(parts), tuple(bools))


def committed_end(data: bytes | memoryview) -> int:
    """Where the whole records in a segment of a ring end.

    A writer puts a byte that is not zero behind each record it has finished, and nothing but zeros
    lies behind that; so what a killed process was about to write is told from what it wrote.

    Args:
        data: records from the first on, followed by the bytes behind them.

    Returns:
        The offset behind the last record that was finished.
    """
    view = memoryview(data)
    at = 0
    while True:
        length = _record_bytes(view, at)
        if length == 0 or at + length >= len(view) or view[at + length] == 0:
            return at
        at += _alike(view, at, length)


def _alike(view: memoryview, at: int, length: int) -> int:
    """Bytes of the finished records from `at` on that begin like the first; one at least."""
    if (
        bytes(view[at : at + 2]) != bytes((FIXED_MARK, _NUMBER_MARK))
        or (most := (len(view) - at) // length) < 2
    ):
        return length
    rows = np.frombuffer(view, np.uint8, most * length, at).reshape(most, length)
    same = (rows[:, :_SHORT_HEAD_BYTES] == rows[0, :_SHORT_HEAD_BYTES]).all(axis=1)
    count = most if same.all() else int(same.argmin())
    return max(1, count - 1) * length  # the last of them is looked at on its own


def _record_bytes(view: memoryview, at: int) -> int:
    """The length of the record at an offset; 0 where there is none, or no whole one."""
    start = bytes(view[at : at + _LONG_HEAD_BYTES])
    if not start or start[0] == 0:
        return 0
    if start[:2] == bytes((FIXED_MARK, _NUMBER_MARK)):
        if len(start) < _LONG_HEAD_BYTES:
            return 0
        if start[6] == _SHORT_BIN:
            return _SHORT_HEAD_BYTES + start[7]
        return _LONG_HEAD_BYTES + int.from_bytes(start[7:], "big")
    try:
        _, end = packing.unpack_prefix(view, at)
    except ProtocolError:
        return 0
    return end - at
