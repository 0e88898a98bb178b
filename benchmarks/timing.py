"""The loop that times every single call, and what a list of times has to say.

It needs nothing but the standard library, so that it runs in other loggers' environments, too.  It
knows nothing of what is timed.
"""

from __future__ import annotations

import itertools
import statistics
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

Tick = tuple[dict[str, Any], dict[str, Any]]
Block = Callable[[Sequence[Tick]], "array[int]"]

_TIMED_LOOP: Final = """
def block(ticks, now=now, array=array, {names}):
    spent = array("q", bytes(8 * len(ticks)))
    i = 0
    for clock, stats in ticks:
        begin = now()
        {statement}
        spent[i] = now() - begin
        i += 1
    return spent
"""


def timed(statement: str, now: Callable[[], int], **names: Any) -> Block:
    """A function that runs a statement for each of some ticks and times every one of them.

    The loop is the same text for whatever is compared, so that its cost is the same, too;
    `timed("pass", now)` measures it.

    Args:
        statement: one line; sees `clock`, `stats` and `names`.
        now: the clock, in ns.

    Returns:
        block(ticks): the times in ns, the clock's own cost included.
    """
    namespace: dict[str, Any] = {"now": now, "array": array, **names}
    arguments = ", ".join(f"{name}={name}" for name in names)
    exec(_TIMED_LOOP.format(names=arguments, statement=statement), namespace)
    block: Block = namespace["block"]
    return block


def fine_median(values: Sequence[int], step: float) -> float:
    """The median of times from a clock with coarse steps, interpolated within the step.

    A clock of 10 ns tells a tick of 100 ns from one of 110 only by how often it shows which.
    """
    return statistics.median_grouped(values, step)


def clock_step(now: Callable[[], int]) -> int:
    """The smallest step between two readings of a clock, in its unit."""
    readings = [now() for _ in range(2_000)]
    return min(b - a for a, b in itertools.pairwise(readings) if b > a)


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which a share (0 to 1) of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
