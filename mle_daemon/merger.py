"""Has logs merged by a process of its own, so that neither the loop nor the writer waits for it.

One process does one job after another.  It is started when there is one, and ended when there has
been none for a while.  It may be killed at any moment; then the job counts as failed.  One that has
read and written nothing for long is taken for hung, and killed.
"""

from __future__ import annotations

import json
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import IO, Any, Final

import psutil

from mle_client import discovery
from mle_daemon import events as e

_REST_S: Final = 10.0  # without a job; a new process takes some 0.2 s of processor time
# A disk may stall for minutes; locks are waited for much shorter (`merge_process.PATIENCE_S`).
_HUNG_AFTER_S: Final = 900.0
_LOOK_EVERY_S: Final = 5.0  # whether it reads and writes
# A file may be damaged so that HDF5 crashes on it; memory that was short may be there again.
_DEATHS: Final = 3  # within one and the same job, until that is given up
_THREAD_NAME: Final = "mle-merger"
_COMMAND: Final = (sys.executable, "-P", "-m", "mle_daemon.merge_process")
_LAST_WORDS_BYTES: Final = 4_096

Job = e.MergeGroup | e.RefreshMeta


class Merger:
    """Carries out `MergeGroup` and `RefreshMeta`.

    Args:
        on_outcome: called by another thread when a job begins, and with what came of it.
        root: that the daemon serves; nothing is merged outside.
    """

    def __init__(self, on_outcome: Callable[[e.Event], None], root: str) -> None:
        self._root = root
        self._on_outcome = on_outcome
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._lock = threading.Lock()  # of the process and of `_stopped`
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[bytes] | None = None
        self._stopped = False
        self._deaths: Counter[Job] = Counter()  # in a row
        self._thread = threading.Thread(target=self._run, name=_THREAD_NAME)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Have a job done."""
        self._jobs.put(job)

    def stop(self) -> None:
        """End the process at once, also within a job, and the thread."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._on_outcome(e.MergeBegun(job))
                self._on_outcome(self._do(job))
        finally:
            self._end()

    def _next(self) -> Job | None:
        while True:
            try:
                return self._jobs.get(timeout=_REST_S if self._process else None)
            except queue.Empty:
                self._end()

    def _do(self, job: Job) -> e.Event:
        """The outcome of a job."""
        begun = time.monotonic()
        outcome = self._outcome_of(job)
        if isinstance(outcome, e.MetaRefreshed):
            return replace(outcome, took=time.monotonic() - begun)
        return outcome

    def _outcome_of(self, job: Job) -> e.Event:
        try:
            outcome = _outcome(job, self._ask({**_plain(job), "root": self._root}))
        except Exception as error:  # whatever it said: this thread must go on
            self._end()
            self._deaths[job] += 1
            said = f"the merging process does not run: {error}"
            return _outcome(job, {"error": said, "retry": self._deaths[job] < _DEATHS})
        del self._deaths[job]
        return outcome

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._stopped:
                return {"error": "the daemon leaves", "retry": True}
            process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        if not _is_heard_of(process):
            raise OSError(
                f"it has read and written nothing for {_HUNG_AFTER_S:g} s, and was killed"
            )
        line = process.stdout.readline()
        if not line:
            raise OSError(f"it ended within the merge: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # read when the process has ended
        return subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=discovery.python_environment(),
            start_new_session=True,  # a signal to the daemon's terminal is not meant for it
            text=True,
            encoding="utf-8",
        )

    def _last_words(self) -> str:
        assert self._said is not None
        self._said.seek(0)
        return discovery.last_words(self._said.read()[-_LAST_WORDS_BYTES:])

    def _end(self) -> None:
        """End the process, if there is one; nothing waits for it."""
        with self._lock:
            process, self._process = self._process, None
            said, self._said = self._said, None
        if process is not None:
            process.kill()
            process.communicate()
        if said is not None:
            said.close()


def _is_heard_of(process: subprocess.Popen[str]) -> bool:
    """Wait for a process to say something, or to end.  Returns: False where it is hung."""
    signs, since = _signs_of_life(process.pid), time.monotonic()
    assert process.stdout is not None
    while not select.select([process.stdout], [], [], _LOOK_EVERY_S)[0]:
        now, before = time.monotonic(), signs
        signs = _signs_of_life(process.pid)
        if signs != before or signs is None:
            since = now
        elif now - since >= _HUNG_AFTER_S:
            return False
    return True


def _signs_of_life(pid: int) -> tuple[int, ...] | None:
    """How much a process has read and written; None where the system does not tell."""
    try:
        return tuple(psutil.Process(pid).io_counters())
    except (psutil.Error, OSError, AttributeError):
        return None


def _plain(job: Job) -> dict[str, Any]:
    """A job as `merge_process` takes it."""
    match job:
        case e.RefreshMeta(folder):
            return {"configurations_in": folder}
        case e.MergeGroup(directory, at_least, keep_seed_logs):
            return {"folder": directory, "at_least": at_least, "keep_seed_logs": keep_seed_logs}


def _outcome(job: Job, answer: dict[str, Any]) -> e.Event:
    error, retry = answer.get("error", ""), bool(answer.get("retry"))
    why = "" if error else "; ".join(answer["left_out"])
    match job:
        case e.RefreshMeta(folder):
            return e.MetaRefreshed(folder, error, retry, why)
        case e.MergeGroup(directory):
            seeds, states = answer.get("seeds", 0), answer.get("states", {})
            if not error:
                return e.GroupMerged(directory, seeds, why, states)
            too_few, gone = bool(answer.get("too_few")), bool(answer.get("gone"))
            return e.GroupNotMerged(directory, error, too_few, gone, retry, seeds, states)
