"""The threads that give artifacts their names, and remove those that are kept no longer.

One stores, in the order in which it was asked to.  Another one removes, so that a slow removal does
not delay the next store, and only what a store that is on disk has made needless.  Neither decides
anything: what came of a store goes to a callback; a file that cannot be removed is tried again, and
the log says so.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from mle_client.errors import RunRefused
from mle_daemon import events as e
from mle_daemon.checkpoints import Checkpoints

_LOG = logging.getLogger(__name__)

# Between two attempts to remove a file.  It is in nobody's way, so that it may as well be long.
RETRY_REMOVAL_S: Final = 30.0
# Until a file that was replaced is freed, so that the journal's note of the new one comes first.
_LET_GO_AFTER_S: Final = 0.1

_File: TypeAlias = tuple[str, str]  # an experiment's folder, and a name in it
# Stands for the files that have lost their name to another one.
_REPLACED: Final[_File] = ("", "")


class Landing:
    """Carries out `StoreArtifact` and `Evict`.

    Args:
        checkpoints: used by these threads, but for `reconcile`.
        deliver: called in the storing thread with `ArtifactStored` or `ArtifactNotStored`.
    """

    def __init__(self, checkpoints: Checkpoints, deliver: Callable[[e.Event], None]) -> None:
        self._checkpoints = checkpoints
        self._deliver = deliver
        self._remover = _Remover(checkpoints)
        self._jobs: queue.SimpleQueue[e.StoreArtifact | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mle-landing")
        self._thread.start()

    def submit(self, job: e.StoreArtifact | e.Evict) -> None:
        """Have a job done."""
        if isinstance(job, e.Evict):
            self._remover.add(job.directory, job.names)
        else:
            self._jobs.put(job)

    def stop(self) -> None:
        """Finish the jobs submitted and end the threads."""
        self._jobs.put(None)
        self._thread.join()
        self._remover.stop()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            outcome = self._store(job)
            try:
                self._deliver(outcome)
            except Exception:
                _LOG.exception("the outcome of storing artifact %d was lost", job.number)

    def _store(self, job: e.StoreArtifact) -> e.Event:
        """The outcome of a job.  Whatever goes wrong is one, too: the thread must go on."""
        try:
            self._remover.spare(job.directory, job.names)
            self._checkpoints.store(job)
        except RunRefused as error:
            return e.ArtifactNotStored(job.producer, job.number, str(error), final=True)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            return e.ArtifactNotStored(job.producer, job.number, text, final=False)
        finally:
            self._remover.let_go()
        self._remover.add(job.directory, job.evict)
        return e.ArtifactStored(job.producer, job.number)


class _Remover:
    """Removes files in a thread of its own, each until it is gone.

    Args:
        checkpoints: removes them.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._changed = threading.Condition()  # of what follows
        self._due: dict[_File, float] = {}  # what to remove; not before this, by a monotonic clock
        self._under_way: _File | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="mle-remover")
        self._thread.start()

    def add(self, directory: str, names: Iterable[str]) -> None:
        """Have files removed."""
        with self._changed:
            self._due.update({(directory, name): 0.0 for name in names})
            self._changed.notify_all()

    def let_go(self) -> None:
        """Have the files freed that a store has replaced."""
        with self._changed:
            self._due.setdefault(_REPLACED, time.monotonic() + _LET_GO_AFTER_S)
            self._changed.notify_all()

    def spare(self, directory: str, names: Iterable[str]) -> None:
        """Leave these names alone: another run of the same seed is about to take them.

        Waits for the removal of one of them if it is under way.
        """
        spared = {(directory, name) for name in names}
        with self._changed:
            self._changed.wait_for(lambda: self._under_way not in spared)
            for file in spared & self._due.keys():
                del self._due[file]

    def stop(self) -> None:
        """Try once to remove all that is to be removed, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while (file := self._next()) is not None:
            again = self._remove(file)
            with self._changed:
                if again and not self._stopping:
                    self._due.setdefault(file, time.monotonic() + RETRY_REMOVAL_S)
                self._under_way = None
                self._changed.notify_all()

    def _next(self) -> _File | None:
        """Wait for a file that is to be removed now; None for the end."""
        with self._changed:
            while not self._stopping or self._due:
                if not self._due:
                    self._changed.wait()
                    continue
                file = min(self._due, key=self._due.__getitem__)
                early_s = self._due[file] - time.monotonic()
                if self._stopping or early_s <= 0:
                    del self._due[file]
                    self._under_way = file
                    return file
                self._changed.wait(early_s)
            return None

    def _remove(self, file: _File) -> bool:
        """Remove a file.  Returns: whether to try it again."""
        if file == _REPLACED:
            self._checkpoints.let_go()
            return False
        directory, name = file
        path = os.path.join(directory, name)
        try:
            self._checkpoints.evict(directory, (name,))
        except RunRefused as error:
            _LOG.warning("%s is kept no longer, but stays: %s", path, error)
        except Exception as error:  # the thread must go on
            _LOG.warning("%s is kept no longer, but cannot be removed: %s", path, error)
            return True
        return False
