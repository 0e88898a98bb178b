"""Makes pictures of pickled figures, in a process of its own, one after another.

The daemon never unpickles anything: what a pickle does when it is loaded is up to whoever wrote it.
So the process gets two paths and a time limit, and its end is looked for, never waited for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from typing import IO, Final

from mle_client import discovery, files

# A figure takes 0.3 s as a rule, and the first one's imports a second more.
TIMEOUT_S: Final = 60.0
_LAST_WORDS_BYTES: Final = 4_096


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    source: str
    target: str


class FigureProcess:
    """A queue of figures and the process that renders the first of them.  For one thread."""

    def __init__(self) -> None:
        self._jobs: deque[_Job] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None  # what the process writes to stderr
        self._ends_at = 0.0

    @property
    def busy(self) -> bool:
        """Whether there is something to render."""
        return bool(self._jobs)

    def submit(self, source: str) -> None:
        """Replace a file that holds a pickled figure by its picture."""
        self._jobs.append(_Job(source, f"{source}.png"))

    def poll(self, now: float) -> list[tuple[str, str]]:
        """Look after the process.

        Args:
            now: a monotonic clock's seconds.

        Returns:
            (path, error) of what has ended since the last call; the error is "" where the file is
            the picture now, synced.
        """
        ended = []
        while self._jobs:
            job = self._jobs[0]
            try:
                error = self._step(job, now)
            except OSError as failure:
                error = f"cannot be rendered: {failure}"
            if error is None:
                break
            self._jobs.popleft()
            self._clear_up(job)
            ended.append((job.source, error))
        return ended

    def cancel(self, source: str) -> None:
        """Forget a figure; its process is ended if it has one."""
        for job in tuple(self._jobs):
            if job.source == source:
                if job is self._jobs[0]:
                    self._clear_up(job)
                self._jobs.remove(job)

    def stop(self) -> None:
        """End the process and forget the queue."""
        for job in tuple(self._jobs):
            self.cancel(job.source)

    def _step(self, job: _Job, now: float) -> str | None:
        """What came of the first job; None while that is open."""
        if self._process is None:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115  # read when the process has ended
            self._process = subprocess.Popen(
                [*rendering_command(), "--input", job.source, "--output", job.target],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                env=discovery.python_environment(),
                start_new_session=True,  # a signal to the daemon's terminal is not meant for it
            )
            self._ends_at = now + TIMEOUT_S
        status = self._process.poll()
        if status is None:
            late = now >= self._ends_at
            return f"took longer than {TIMEOUT_S:g} s to render" if late else None
        if status != 0:
            return f"cannot be rendered: {self._last_words()} (exit status {status})"
        _take_over(job)
        return ""

    def _last_words(self) -> str:
        assert self._said is not None
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - _LAST_WORDS_BYTES))
        return discovery.last_words(self._said.read())

    def _clear_up(self, job: _Job) -> None:
        """Leave nothing of the process or of an unfinished picture."""
        if self._process is not None:
            self._process.kill()  # nothing happens if it has ended
            self._process.wait()
            self._process = None
        if self._said is not None:
            self._said.close()
            self._said = None
        folder, name = os.path.split(job.target)
        for entry in os.listdir(folder):
            if entry.startswith(name):  # the picture, or what it was written to aside
                files.remove(os.path.join(folder, entry))


def rendering_command() -> list[str]:
    """The program that makes a picture of a figure."""
    # -P: what lies in the current folder must not pass for a module of ours.
    return [sys.executable, "-P", "-m", "mle_client.rendering"]


def _take_over(job: _Job) -> None:
    """Put a finished picture in the place of the figure."""
    fd = os.open(job.target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(job.target, job.source)
