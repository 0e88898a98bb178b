"""The thread that writes log files, so that the daemon's loop never waits for a disk.

One thread, for HDF5 has one lock: more would buy nothing.  Publications go before seals.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from mle_client.errors import LogDamaged, LogNotFound
from mle_client.files import NotSynced
from mle_daemon import allocator
from mle_daemon import events as e
from mle_daemon.mirrors import Mirrors
from mle_daemon.store import Store

_PUBLISH, _SEAL, _END = range(3)  # the order in which waiting jobs are taken
_THREAD_NAME: Final = "mle-writer"
# Publishing such a file, or sealing it, may have taken so much memory that it pays to give it back,
# which takes a millisecond.  For a while more is done first, and the loop drops the ticks.
_LARGE_FILE_BYTES: Final = 8 * 2**20
_REST_S: Final = 0.2


class Writer:
    """Carries out `PublishRun` and `SealRun`; their outcomes are fetched as events.

    Args:
        store, mirrors: used by this thread alone.
        wake: called when there is an outcome to fetch.
    """

    def __init__(self, store: Store, mirrors: Mirrors, wake: Callable[[], None]) -> None:
        self._store = store
        self._mirrors = mirrors
        self._wake = wake
        self._jobs: queue.PriorityQueue[tuple[int, int, e.PublishRun | e.SealRun | None]]
        self._jobs = queue.PriorityQueue()
        self._outcomes: deque[e.Event] = deque()
        self._count = 0
        self._is_fat = False  # there may be memory to give back
        self._thread = threading.Thread(target=self._work, name=_THREAD_NAME)
        self._thread.start()

    def submit(self, job: e.PublishRun | e.SealRun) -> None:
        """Have a job done."""
        self._put(_PUBLISH if isinstance(job, e.PublishRun) else _SEAL, job)

    def outcomes(self) -> list[e.Event]:
        """What has come of jobs since the last call."""
        found = []
        while self._outcomes:
            found.append(self._outcomes.popleft())
        return found

    def stop(self) -> None:
        """Finish the jobs submitted and end the thread."""
        self._put(_END, None)
        self._thread.join()

    def _put(self, priority: int, job: e.PublishRun | e.SealRun | None) -> None:
        self._count += 1
        self._jobs.put((priority, self._count, job))

    def _work(self) -> None:
        while True:
            job = self._next()
            if job is None:
                self._mirrors.stop()
                return
            outcome = self._do(job)
            del job  # it holds ticks
            if isinstance(outcome, e.Published | e.Sealed):
                self._is_fat = self._is_fat or outcome.file.size >= _LARGE_FILE_BYTES
            self._outcomes.append(outcome)
            del outcome
            self._wake()

    def _next(self) -> e.PublishRun | e.SealRun | None:
        """Wait for a job, and give memory back meanwhile."""
        if self._is_fat:
            try:
                return self._jobs.get(timeout=_REST_S)[2]
            except queue.Empty:
                allocator.give_back()
                self._is_fat = False
        return self._jobs.get()[2]

    def _do(self, job: e.PublishRun | e.SealRun) -> e.Event:
        """The outcome of a job.  Whatever goes wrong is one, too: the thread must go on."""
        started = time.monotonic()
        if isinstance(job, e.SealRun):
            self._mirrors.finish(job.run_id, job.file.status == "crashed")
            try:
                self._store.check_place(job.path)
                return e.Sealed(job.run_id, self._store.seal(job.path, job.file), "")
            except Exception as error:
                return e.Sealed(job.run_id, job.file, _say(error))
        try:
            self._store.check_place(job.path)
            tboard = self._mirrors.write_events(job)
            self._mirrors.pass_on(job)
            file, problems = self._store.publish(job, tboard)
        except Exception as error:
            gone = isinstance(error, LogDamaged | LogNotFound | NotSynced)
            removed = isinstance(error, LogNotFound)
            return e.PublishFailed(job.run.run_id, _say(error), reopen=gone, removed=removed)
        return e.Published(job.run.run_id, file, time.monotonic() - started, problems)


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
