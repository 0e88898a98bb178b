"""A dict whose values are read when they are first looked at.

Pure: what is not read yet stands in the dict as an `Unread`, which knows how to read itself.  Names
and length are known without reading; whatever shows a value reads it, once.  Copies and pickles
have all values and read nothing later.

Where a dict is meant, so is this: `dict(x)`, `{**x}`, `x == y`, `x | y` and the methods see values
and never an `Unread`.  What it adds is functions, not methods, for a key may have any name.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Sequence, ValuesView
from typing import Any, Final

from mle_client.attrdict import AttrDict

_NOT_GIVEN: Final = object()


class Unread:
    """A value that is not read yet; subclasses say how it is.

    No abstract base class: each access asks `isinstance`, which takes four times as long with one.
    """

    __slots__ = ()

    def load(self) -> Any:
        """Read the value."""
        raise NotImplementedError

    @classmethod
    def load_all(cls, unread: Sequence[Any]) -> list[Any]:
        """Read several values of this class, faster than one after another where that can be."""
        return [each.load() for each in unread]


class Deferred(Unread):
    """What a function returns.  Args: make: is called once, or again where it failed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def load(self) -> Any:
        """Call the function."""
        return self._make()


class Once(Unread):
    """A value that several ask for, and that is read once.  Args: source: reads it."""

    __slots__ = ("_source", "_value")

    def __init__(self, source: Unread) -> None:
        self._source: Unread | None = source
        self._value: Any = None

    def load(self) -> Any:
        """Read the value, or give the one that was read."""
        source = self._source
        if source is not None:
            self._value = source.load()
            self._source = None  # which may keep a file open
        return self._value

    def peek(self) -> Any:
        """The value if it was read, else what reads it."""
        return self._value if self._source is None else self._source


class LazyDict(AttrDict):
    """An `AttrDict`, some of whose values may be `Unread`.

    Threads may share it; a value may then be read twice.
    """

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        value = dict.__getitem__(self, key)
        return self._read(key, value) if isinstance(value, Unread) else value

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        value = dict.get(self, key, default)
        return self._read(key, value) if isinstance(value, Unread) else value

    def _read(self, key: str, unread: Unread) -> Any:
        value = unread.load()
        if dict.get(self, key) is unread:  # neither set nor read by somebody else meanwhile
            dict.__setitem__(self, key, value)
        return value

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The value of a key, which becomes the default where there was none."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, default: Any = _NOT_GIVEN) -> Any:
        """Remove a key.  Returns: its value."""
        if key in self:
            value = self[key]
            del self[key]
            return value
        return dict.pop(self, key) if default is _NOT_GIVEN else default

    def popitem(self) -> tuple[str, Any]:
        """Remove the last key.  Returns: it and its value."""
        key = next(reversed(self), None)
        return dict.popitem(self) if key is None else (key, self.pop(key))

    # C code takes a dict's values as they stand unless the class has an `__iter__` of its own.
    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    # The stubs promise dict's own views, which nobody else can make.
    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """All values, read."""
        return dict.values(load(self))

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """All names and values, read."""
        return dict.items(load(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, dict):
            return NotImplemented
        return dict.__eq__(load(self), load(other) if isinstance(other, LazyDict) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # as a dict's, which an `__eq__` would undo

    def __or__(self, other: Any) -> Any:
        return dict(self) | dict(other) if isinstance(other, dict) else NotImplemented

    def __ror__(self, other: Any) -> Any:
        return dict(other) | dict(self) if isinstance(other, dict) else NotImplemented

    def __repr__(self) -> str:
        return dict.__repr__(load(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return AttrDict, (), None, None, iter(self.items())


def load(lazy: LazyDict) -> LazyDict:
    """Read what is not read yet.  Returns: the dict."""
    unread = {key: value for key, value in dict.items(lazy) if isinstance(value, Unread)}
    kinds: dict[type[Unread], list[str]] = {}
    for key, value in unread.items():
        kinds.setdefault(type(value), []).append(key)
    for kind, keys in kinds.items():
        for key, value in zip(keys, kind.load_all([unread[k] for k in keys]), strict=True):
            if dict.get(lazy, key) is unread[key]:
                dict.__setitem__(lazy, key, value)
    return lazy


def load_nested(lazy: LazyDict) -> None:
    """Read what is not read yet in a dict and in those inside it."""
    for value in load(lazy).values():
        if isinstance(value, LazyDict):
            load_nested(value)


def peek(values: dict[str, Any], key: str) -> Any:
    """The value of a key as it stands, an `Unread` where it is not read.

    Raises:
        KeyError: there is no such key.
    """
    return dict.__getitem__(values, key)
