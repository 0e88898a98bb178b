"""What `verbose=True` prints, and when: a panel at the start, then a table, row by row.

A caller only puts values into a queue of bounded length.  A thread has `console_lines` lay them out
and writes them to what `sys.stdout` is by then.  It rests four times as long as it works, so that
laying out takes a fifth of the interpreter at the most.  When updates come faster than that, or the
terminal takes no more (Ctrl-S, a full pipe), the oldest lines are left out, and a line says how
many.

It never delays a caller, and raises nothing but at construction.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import queue
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

import numpy as np

from mle_client import device_values
from mle_client.layout import OWN_CLOCKS

if TYPE_CHECKING:
    from mle_client import console_lines

_NOT_INSTALLED: Final = "verbose=True needs the package rich: pip install mle-daemon[rich]"
_KEPT_LINES: Final = 1000  # that wait to be printed: a burst, and little memory
_REST: Final = 4  # times the processor time that laying out a line took
_SHOWN_ITEMS: Final = 64  # of an array; a larger one is shown by its type and shape
_SELECTABLE: Final = 1024  # descriptors below this one can be asked for (FD_SETSIZE)
_LOOK_EVERY_S: Final = 0.1  # at a terminal that takes no more
# Values of these types never change, so they need not be copied.
_FIXED_TYPES: Final = frozenset((int, float, bool, str, np.float64, np.float32, np.int64, np.int32))


class Console:
    """Prints what a logger does, in a thread of its own.

    Args:
        start_time: seconds since the epoch at which time_elapsed is 0.
        time_to_track, what_to_track: names that get a column before they are first logged.
        time_to_print, what_to_print: the only names that get one; None for all.
        print_every_k_updates: which updates `wants` wants; None for none.
        on_problem: called once, in the thread as a rule, with why lines cannot be printed.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(
        self,
        *,
        start_time: float,
        time_to_track: Sequence[str] = (),
        what_to_track: Sequence[str] = (),
        time_to_print: Sequence[str] | None = None,
        what_to_print: Sequence[str] | None = None,
        print_every_k_updates: int | None = 1,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        try:
            from mle_client import console_lines
        except ModuleNotFoundError as error:
            raise ImportError(_NOT_INSTALLED) from error
        console_lines.load_all_of_rich()
        self._line = console_lines
        self._layout = console_lines.Layout(
            start_time,
            [*OWN_CLOCKS, *time_to_track] if time_to_print is None else time_to_print,
            what_to_track if what_to_print is None else what_to_print,
            grows=(time_to_print is None, what_to_print is None),
        )
        self._every = print_every_k_updates
        self._on_problem = on_problem
        self._closed = False
        self._deadline = float("inf")
        self.left_out = 0  # lines that were never printed, as far as the thread knows
        self._begin()

    def _begin(self) -> None:
        self._lines: deque[tuple[int, console_lines.Line]] = deque(maxlen=_KEPT_LINES)
        self._count = itertools.count()
        self._next = 0  # the number of the line behind the one that was printed last
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False: there will be no more
        self._awake = False  # whether `_wake` holds something
        self._starting = threading.Lock()  # taken by whoever starts the thread, and kept
        self._thread: threading.Thread | None = None

    def forget(self) -> None:
        """In a forked child: leave the parent's lines to the parent."""
        self._begin()

    def wants(self, update_counter: int) -> bool:
        """Whether this update, counted from 1, is one to be printed."""
        every = self._every
        return every is not None and (update_counter % every == 0 or update_counter == 1)

    def started(self, **facts: Any) -> None:
        """Print the panel of a new run.

        Args:
            facts: arguments of the logger: experiment_dir, config_fname, time_to_track,
                what_to_track, seed_id, model_type, save_every_k_ckpt, save_top_k_ckpt.
        """
        lists = {name: [*value] for name, value in facts.items() if isinstance(value, list | tuple)}
        self._put(self._line.Started({**facts, **lists}))

    def reloaded(self, path: str) -> None:
        """Print that a run is continued.  Args: path: of the experiment's folder."""
        self._put(self._line.Reloaded(path, time.time()))

    def stored(self, paths: Mapping[str, str | None]) -> None:
        """Print where files of the next update go; call it before `update`.

        Args:
            paths: by kind: "figure", "extra", "init", "model", "every_k", "top_k"; None for none.
                Those of "init" and "model" are shown with the first update alone.
        """
        self._put(self._line.Stored(dict(paths)))

    def update(
        self, clock: Mapping[str, Any], stats: Mapping[str, Any], *, number: int, seconds: float
    ) -> None:
        """Print a row of the table.

        Args:
            clock, stats: of a tick that can be logged.  They may change afterwards: what they hold
                now is shown.
            number: of the update, from 1.
            seconds: since the epoch.
        """
        kept_clock = {name: _kept(value) for name, value in clock.items()}
        kept_stats = {name: _kept(value) for name, value in stats.items()}
        self._put(self._line.Row(kept_clock, kept_stats, number, seconds))

    def close(self, timeout: float) -> bool:
        """Print what waits and end the thread.

        Args:
            timeout: in seconds.

        Returns:
            Whether nothing waits any more; not so where the terminal takes no more.
        """
        self._closed = True
        thread = self._thread
        if thread is None:
            return True
        self._deadline = time.monotonic() + timeout
        self._wake.put(False)
        thread.join(timeout + 2 * _LOOK_EVERY_S)  # it may have looked just before
        return not thread.is_alive() and not self._lines and not self._is_late()

    def _put(self, line: console_lines.Line) -> None:
        # Nothing here waits for a lock, which the code that a signal interrupted may hold.
        if self._closed:
            return
        self._lines.append((next(self._count), line))
        if not self._awake:
            self._awake = True
            self._wake.put(True)
        if self._thread is None and self._starting.acquire(blocking=False):
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="mle-console", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is about to end
            self._closed = True
            self._complain(error)
        else:
            self._thread = thread

    # --- the thread ---------------------------------------------------------------------------
    def _run(self) -> None:
        going = True
        while going:
            going = self._wake.get()
            self._awake = False
            while self._lines and not self._is_late():
                began = time.thread_time()
                self._print(*self._lines.popleft())
                if not self._closed:
                    time.sleep(_REST * (time.thread_time() - began))
        if self._lines:
            self.left_out += self._lines[-1][0] + 1 - self._next

    def _print(self, number: int, line: console_lines.Line) -> None:
        """Print a line.  Whatever goes wrong, the thread goes on: stdout may be another soon."""
        missing = max(0, number - self._next)
        self._next = number + 1
        self.left_out += missing
        stream = sys.stdout
        if stream is None:  # a program without a terminal
            return
        try:
            text = self._layout.lay_out(self._line.Missing(missing), stream) if missing else ""
            self._write(stream, text + self._layout.lay_out(line, stream))
        except Exception as error:
            self.left_out += 1
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        on_problem, self._on_problem = self._on_problem, None
        if on_problem is not None:
            with contextlib.suppress(Exception):  # the callback's own affair
                on_problem(f"lines cannot be printed: {type(error).__name__}: {error}")

    def _write(self, stream: TextIO, text: str) -> None:
        """Write to stdout, so that giving up is possible while a terminal takes nothing."""
        encoding = getattr(stream, "encoding", None) or "utf-8"
        data = text.encode(encoding, "replace")
        descriptor = _descriptor(stream)
        if descriptor is None:  # a notebook, a test's capture, a copy of the output to a file
            stream.write(data.decode(encoding))
            stream.flush()
            return
        # By the descriptor, for a thread that blocks inside of `stream` holds its lock, and the
        # interpreter's last flush would abort the process.
        if self._wait_until_writable(descriptor):
            stream.flush()  # what was printed before comes first
        while data and self._wait_until_writable(descriptor):
            data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]
        if data:
            raise TimeoutError("the terminal takes no more")

    def _wait_until_writable(self, descriptor: int) -> bool:
        while not select.select([], [descriptor], [], _LOOK_EVERY_S)[1]:
            if self._is_late():
                return False
        return True

    def _is_late(self) -> bool:
        return time.monotonic() >= self._deadline


def _descriptor(stream: TextIO) -> int | None:
    """The file descriptor that a stream writes to as it is; None where something is in between."""
    if type(stream) is not io.TextIOWrapper:
        return None
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if type(raw) is not io.FileIO or raw.fileno() >= _SELECTABLE:
        return None
    return raw.fileno()


def _kept(value: Any) -> Any:
    """A value as it is now, whatever becomes of it; of a large array, what is shown of it."""
    if type(value) in _FIXED_TYPES:
        return value
    if isinstance(value, list | tuple):
        value = np.array(value)
    items = 1
    for length in getattr(value, "shape", ()):
        items *= length
    if items > _SHOWN_ITEMS:
        return f"{value.dtype} {tuple(value.shape)}"
    if hasattr(value, "detach"):  # torch: the copy stays on its device, nobody waits for it
        return value.detach().clone()
    if hasattr(value, "is_deleted"):  # jax: it may be given away for good
        pending = device_values.fetch(value)
        return np.array(value) if pending is None else pending
    return value.copy() if isinstance(value, np.ndarray) else value
