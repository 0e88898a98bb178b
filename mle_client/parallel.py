"""Several things at once: work that Python lets run side by side, such as decompressing.

The threads are there only while a call lasts.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

T = TypeVar("T")

_MOST_THREADS: Final = (
    8  # more would wait for each other where Python or HDF5 lets one in at a time
)


def each(function: Callable[[T], None], items: Sequence[T]) -> None:
    """Call a function for each item, from several threads, the caller's among them.

    Args:
        function: works on one item; no two calls may touch the same things.
        items: in whose order the calls begin.

    Raises:
        What the first call that failed raised, once no other runs any more.
    """
    counter = itertools.count()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not failures and (at := next(counter)) < len(items):
                function(items[at])
        except BaseException as error:  # the caller is told
            failures.append(error)

    helpers = []
    for number in range(min(_threads(), len(items)) - 1):
        helper = threading.Thread(target=work, name=f"mle-reader-{number}", daemon=True)
        with suppress(RuntimeError):  # no more threads are to be had
            helper.start()
            helpers.append(helper)
    work()
    try:
        for helper in helpers:
            helper.join()
    except BaseException as error:  # an interrupt
        failures.append(error)
        for helper in helpers:
            helper.join()
    try:
        if failures:
            raise failures[0]
    finally:
        failures.clear()  # or the error would keep alive what keeps it


def _threads() -> int:
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        cores = os.cpu_count() or 1
    return min(cores, _MOST_THREADS)
