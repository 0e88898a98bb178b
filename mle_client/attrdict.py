"""A dict whose keys are attributes too.

Pure.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Final

_NAMES_IN_ERRORS: Final = 20  # of the names that exist, where one was asked for that does not


class AttrDict(dict[str, Any]):
    """A dict whose keys are attributes too.

    Where a key is also the name of a method ("keys", "items"), the attribute is the method and
    the key is reached by [] alone.
    """

    __slots__ = ()

    @classmethod
    def nested(cls, value: Any) -> Any:
        """The value with every dict inside it, also those in lists, made an `AttrDict`."""
        if isinstance(value, Mapping):
            return cls((key, cls.nested(item)) for key, item in value.items())
        if isinstance(value, list):
            return [cls.nested(item) for item in value]
        return value

    def toDict(self) -> dict[str, Any]:
        """Plain dicts all the way down."""
        return {k: v.toDict() if isinstance(v, AttrDict) else v for k, v in self.items()}

    def copy(self) -> AttrDict:
        """A shallow copy of the same type."""
        return copy.copy(self)

    def __missing__(self, key: object) -> Any:
        raise KeyError(absent(key, self))

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(absent(name, self))

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name):
            super().__setattr__(name, value)  # refuses to replace a method
        else:
            self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(absent(name, self))
        del self[name]

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self]


def absent(name: object, available: Iterable[str]) -> str:
    """What to say of a name that there is not.  Args: available: the names that there are."""
    names = list(available)
    shown = ", ".join(map(repr, names[:_NAMES_IN_ERRORS])) or "nothing"
    return f"no {name!r} here; there is {shown}" + (" …" if len(names) > _NAMES_IN_ERRORS else "")
