"""Which journal segments hold what, and which of them may go.

Pure.  A segment may go once every tick in it is in a published file, and the oldest goes first: a
replay must not find a later piece of a stream without the earlier one.  What is left begins with a
*base*, a segment whose first record is a state record with all that was known when it was begun;
only a segment that `core` asked for is one, not one that the journal began by itself behind a bad
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mle_client import messages as m


class Segments:
    """The segments that are on disk, by number, and the end of each stream's part in them."""

    def __init__(self) -> None:
        self._ends: dict[int, dict[m.ProducerId, int]] = {}
        self._bases: set[int] = set()

    def rotated(self, number: int, older: Iterable[int]) -> None:
        """A base was begun.  Args: older: the numbers of those that lie there still."""
        for old in older:
            self._ends.setdefault(old, {})
        self._ends[number] = {}
        self._bases.add(number)

    def holds(self, number: int, producer: m.ProducerId, end: int) -> None:
        """A piece of a stream is in a segment.  Args: end: the position behind it."""
        self._ends.setdefault(number, {})[producer] = end

    def drop(self, is_published: Callable[[m.ProducerId, int], bool]) -> tuple[int, ...]:
        """Forget the segments that may go.

        Args:
            is_published: whether the log file of a stream's run has it up to a position.

        Returns:
            Their numbers, in order.
        """
        numbers = sorted(self._ends)
        count = 0
        for index, number in enumerate(numbers[:-1]):
            if not _is_through(self._ends[number], is_published):
                break
            if numbers[index + 1] in self._bases:
                count = index + 1
        for number in numbers[:count]:
            del self._ends[number]
        self._bases.difference_update(numbers[:count])
        return tuple(numbers[:count])


def _is_through(
    ends: dict[m.ProducerId, int], is_published: Callable[[m.ProducerId, int], bool]
) -> bool:
    """Whether all of a segment is published; what is needs not be asked again, and goes."""
    while ends:
        producer, end = next(iter(ends.items()))
        if not is_published(producer, end):
            return False
        del ends[producer]
    return True
