"""Memory that was freed, given back to the system: glibc keeps it, and how much depends on chance.

It does nothing where the C library is another one, and does not decide when it is worth while.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Give back what this process has freed.  It takes about a millisecond for 100 MB."""
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    """malloc_trim(3); None where the C library has none."""
    trim: Callable[[int], int] | None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim
