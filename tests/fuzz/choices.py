"""Bytes read as choices: how a fuzzer's input, or a seed's, becomes messages that are almost right.

Pure.  The same bytes make the same choices, so that whatever a fuzzer has found can be tried again.
Once the bytes are used up, every choice is the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgpack

T = TypeVar("T")

# What numbers, texts and the like are at their edges.
INTEGERS: Final = (0, 1, 2, -1, 255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
FLOATS: Final = (0.0, -0.0, 1.5, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324)
TEXTS: Final = (
    "", "a", "loss", "\0", "..", "../../etc", "/", "a/b", "é", "損失", "x" * 300, "y" * 70_000,
    "i8", "f8", "b1", "str", "<f8", "|u1", "extra/1", "figures/a.png", "model", "init", "dropped",
)  # fmt: skip
BYTES: Final = (b"", b"\0", b"p" * 16, bytes(16), b"x" * 300, b"\xff\xfe")
# What msgpack's own edges look like: a surrogate, deep nesting, counts and lengths that are lies,
# a time stamp, the byte that is never used, half a NaN.
SPLICES: Final = (
    b"\xed\xa0\x80", b"\x91" * 2_000, b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\xd6\xff\0\0\0\0", b"\xc1", b"\xcb\x7f\xf8",
)  # fmt: skip
_DEPTH: Final = 3


class Choices:
    """Choices made by bytes.  Args: data: the bytes, two for each choice as a rule."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether there are bytes left."""
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """The next bytes, fewer where there are no more."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def below(self, count: int) -> int:
        """A number from 0 to `count` - 1."""
        return int.from_bytes(self.take(1 if count <= 256 else 2), "big") % max(1, count)

    def one_in(self, count: int) -> bool:
        """True once in so many times."""
        return self.more and self.below(count) == 0

    def pick(self, items: Sequence[T]) -> T:
        """One of some items."""
        return items[self.below(len(items))]

    def integer(self) -> int:
        """An integer that msgpack has, mostly one at an edge."""
        return self.pick(INTEGERS) if self.below(3) else self.below(1000)

    def scalar(self) -> Any:
        """A value without parts."""
        return self.pick((
            lambda: self.integer(), lambda: self.pick(TEXTS), lambda: self.pick(FLOATS),
            lambda: self.pick(BYTES), lambda: self.pick((None, True, False)),
            lambda: self.take(self.below(20)), lambda: msgpack.ExtType(self.below(128), b""),
            lambda: msgpack.Timestamp(self.below(100)),
        ))()  # fmt: skip

    def key(self) -> Any:
        """A key of a map, text as a rule; NaN, which equals no other key, among the others."""
        return self.pick(TEXTS) if self.below(4) else self.scalar()

    def value(self, depth: int = _DEPTH) -> Any:
        """Any value of msgpack."""
        kind = self.below(8) if depth else 7
        if kind == 0:
            return [self.value(depth - 1) for _ in range(self.below(5))]
        if kind == 1:
            return {self.key(): self.value(depth - 1) for _ in range(self.below(5))}
        return self.scalar()

    def changed(self, value: Any) -> Any:
        """A value with a part of it replaced, left out, or there twice."""
        if isinstance(value, list) and value and self.below(4):
            at = self.below(len(value))
            match self.below(8):
                case 0:
                    return value[:at] + value[at + 1 :]
                case 1:
                    return [*value[:at], value[at], *value[at:]]
                case _:
                    return [*value[:at], self.changed(value[at]), *value[at + 1 :]]
        if isinstance(value, dict) and value and self.below(4):
            key = self.pick(list(value))
            match self.below(8):
                case 0:
                    return {name: item for name, item in value.items() if name != key}
                case 1:
                    return {**value, self.key(): self.value()}
                case _:
                    return {**value, key: self.changed(value[key])}
        return self.value()

    def spoilt(self, data: bytes) -> bytes:
        """Bytes with some flipped, cut off, put in, or there twice."""
        at = self.below(len(data) + 1)
        match self.below(6):
            case 0:
                return data[:at]
            case 5:
                return data[:at] + self.pick(SPLICES) + data[at:]
            case 1:
                return data[:at] + self.take(1 + self.below(4)) + data[at + 1 :]
            case 2:
                return data[:at] + self.take(1 + self.below(8)) + data[at:]
            case 3:
                return data[:at] + data[self.below(len(data) + 1) :]
            case _:
                return data + data[at:]
