"""At which updates values were logged: row numbers, and what goes without one.

Pure.  Row numbers count updates from 0, and ascend.  One below 0 is that of a value of which nobody
knows the update: mle-logging logged it, which does not keep that, and the log was continued.  Such
values stay in their columns; whatever goes by update leaves them out and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Rows: TypeAlias = "npt.NDArray[np.int64]"
Indices: TypeAlias = "npt.NDArray[np.intp]"


@dataclass(frozen=True, eq=False, slots=True)
class LinedUp:
    """A statistic beside a clock.

    Args:
        steps: values of the clock, shape (n,).
        values: of the statistic at the same updates, shape (n, *item), or a summary of such.
        unknown: {name: how many values were left out, for nobody knows their updates}, of the
            statistic and the clock.
        remark: what else is to be said of them, in words; "" for nothing.
    """

    steps: npt.NDArray[Any]
    values: Any
    unknown: Mapping[str, int] = field(default_factory=dict)
    remark: str = ""


def known(rows: Rows) -> npt.NDArray[np.bool_]:
    """Of which values the update is known."""
    return rows >= 0


def count_unknown(rows: Rows) -> int:
    """Of how many values the update is not known."""
    return int(np.count_nonzero(~known(rows)))


def common(rows: Rows, others: Rows) -> tuple[Indices, Indices]:
    """Where in both of two columns the updates are that both have."""
    shorter = min(len(rows), len(others))
    if not count_unknown(rows[:1]) and np.array_equal(rows[:shorter], others[:shorter]):
        same = np.arange(shorter)  # as a rule; searching takes a hundred times as long
        return same, same
    shared, at, at_other = np.intersect1d(rows, others, assume_unique=True, return_indices=True)
    placed = known(shared)
    return at[placed], at_other[placed]


def left_out(name: str, count: int, where: Sequence[str] = ()) -> str:
    """Say that values were left out.  Args: where: names of the runs that have them."""
    of = f" of {', '.join(where)}" if where else ""
    return (
        f"{count} values of {name!r}{of}: nobody knows at which updates they were logged, for "
        "mle-logging, which wrote them, does not keep that"
    )
