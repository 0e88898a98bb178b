"""What is published, shown elsewhere too: TensorBoard's event files and W&B's offline mode.

Called by the thread that writes log files.  A mirror that fails holds up no log: what went wrong is
told once, and the log goes on without it.

Both come before the log.  It says how many bytes of TensorBoard's events count, and W&B's process
knows which rows it has; so each tick is shown once, whatever is killed and tried again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from mle_client import messages as m
from mle_client.errors import RunRefused
from mle_daemon.events import PublishRun
from mle_daemon.tboard import EventFiles, HistogramAt, ImageAt, events_of, histograms_at
from mle_daemon.wandb_mirror import WandbMirror

# For W&B to write what waits, of a run that is over: it starts within 2 s and takes 1,500 rows a
# second on a busy machine.
FINISH_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0  # for all of them, when the daemon stops; W&B's process goes on alone
_IMAGE_TAG: Final = "plot"  # mle-logging's
_LARGEST_IMAGE_BYTES: Final = 64 * 2**20  # of a picture that is copied into an event file


class Mirrors:
    """The mirrors of all runs under a root.

    Args:
        root: the folder that the daemon serves.
        on_problem: called, from any thread, with a run's id and what its user should know.
    """

    def __init__(self, root: str, on_problem: Callable[[m.RunId, str], None]) -> None:
        self._events = EventFiles(root)
        self._on_problem = on_problem
        self._wandb: dict[m.RunId, WandbMirror] = {}
        self._ending: list[threading.Thread] = []

    def write_events(self, job: PublishRun) -> int:
        """Write what a publication adds to TensorBoard's files.

        Returns:
            Bytes of the run's event file that count once the publication has succeeded.
        """
        offset = job.file.tboard if job.file else 0
        if not job.run.tboard:
            return offset
        first_row = job.file.rows if job.file else 0
        try:
            if job.file is None:
                self._events.begin(job.run, job.seed_id)
            events = events_of(job.blocks, first_row, self._histograms(job), self._images(job))
            return self._events.write(job.run, job.seed_id, offset, events)
        except (OSError, RunRefused) as error:
            self._on_problem(job.run.run_id, f"TensorBoard's files lack some ticks: {error}")
            return offset

    def _histograms(self, job: PublishRun) -> Iterator[HistogramAt]:
        for record in job.histograms:
            try:
                yield from histograms_at(record)
            except ValueError as error:
                self._on_problem(job.run.run_id, f"a histogram is malformed: {error}")

    def _images(self, job: PublishRun) -> Iterator[ImageAt]:
        for image in job.images:
            path = os.path.join(job.run.directory, image.name)
            try:
                with open(path, "rb") as file:
                    content = file.read(_LARGEST_IMAGE_BYTES)
            except OSError as error:
                self._on_problem(job.run.run_id, f"{image.name} is not in TensorBoard: {error}")
                continue
            yield image.seconds, image.step, _IMAGE_TAG, content

    def pass_on(self, job: PublishRun) -> None:
        """Pass on to W&B what a publication is to add."""
        run = job.run
        if not run.wandb:
            return
        mirror = self._wandb.get(run.run_id)
        if mirror is None:
            mirror = WandbMirror(run, lambda text: self._on_problem(run.run_id, text))
            self._wandb[run.run_id] = mirror
        mirror.rows(job.file.rows if job.file else 0, job.blocks)
        for image in job.images:
            mirror.image(image.row, os.path.join(run.directory, image.name))

    def finish(self, run_id: m.RunId, crashed: bool) -> None:
        """A run is over: nothing more is mirrored.  What waits is, in a thread of its own."""
        mirror = self._wandb.pop(run_id, None)
        if mirror is None:
            return
        end = partial(mirror.finish, FINISH_TIMEOUT_S, crashed=crashed)
        thread = threading.Thread(target=end, name="mle-mirror-end", daemon=True)
        thread.start()
        self._ending = [*(each for each in self._ending if each.is_alive()), thread]

    def stop(self) -> None:
        """End the mirrors of runs that go on, which the next daemon resumes, and wait for all."""
        for run_id in list(self._wandb):
            self.finish(run_id, crashed=False)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for thread in self._ending:
            thread.join(max(0.0, deadline - time.monotonic()))
