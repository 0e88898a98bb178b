"""A thread that does a logger's slow work in order: what update() must not wait for.

It knows nothing of the work.  What goes wrong in one piece of it is told, and the next one is done.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_LOG = logging.getLogger(__name__)

_JOIN_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A piece of work.

    Args:
        do: does it.
        failed: called with what it raised.
    """

    do: Callable[[], None]
    failed: Callable[[Exception], None]


class Worker:
    """A thread, from the first piece of work on.  Args: name: of the thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()  # guards the rest
        self._waiting: deque[Work] = deque()
        self._unfinished = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def submit(self, work: Work) -> None:
        """Have something done behind what was submitted before."""
        with self._changed:
            self._waiting.append(work)
            self._unfinished += 1
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()

    @property
    def unfinished(self) -> int:
        """Pieces of work that are not done."""
        return self._unfinished

    def wait(self, timeout: float) -> bool:
        """Wait until all is done.  Args: timeout: seconds.  Returns: whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._unfinished == 0, timeout)

    def close(self) -> int:
        """End the thread.  Returns: how many pieces of work are not done, and will not be."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_TIMEOUT_S)
        return self._unfinished

    def forget(self) -> None:
        """In a forked child: thread and work are the parent's."""
        self._reset()

    def _do(self, work: Work) -> None:
        try:
            work.do()
        except Exception as error:
            if not self._closing:  # else it failed because it was cut off
                work.failed(error)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                work = self._waiting.popleft()
            try:
                self._do(work)
            except Exception as error:  # of `failed`; the rest must be done all the same
                _LOG.exception("a failure in the background could not be told: %s", error)
            finally:
                del work  # it would keep what it refers to until there is more work
                with self._changed:
                    self._unfinished -= 1
                    self._changed.notify_all()
