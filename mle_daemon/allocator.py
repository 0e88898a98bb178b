"""How glibc keeps memory that was freed: in one place, and no longer than it pays.

Otherwise there are up to eight places for each processor, and chance decides how much stays there.
Where the C library is another one nothing is done.  When to give back is decided elsewhere.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Final

_ARENA_MAX: Final = -8  # M_ARENA_MAX of glibc's malloc.h


def use_one_arena() -> None:
    """Have threads that begin later take memory from where the others do.

    They wait for one another for that, but these hold Python's lock nearly always.
    """
    if _function("malloc_trim") is not None and (mallopt := _function("mallopt")) is not None:
        mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Give back what this process has freed: in some 10 ms where that is 100 MB."""
    if (trim := _function("malloc_trim")) is not None:
        trim(0)


@cache
def _function(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none of that name."""
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found
