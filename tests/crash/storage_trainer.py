"""A trainer that logs numbers from which each value follows, and does what it reads from a pipe.

    python -m tests.crash.storage_trainer FOLDER SEED PAUSE_S BURST

It logs a burst of ticks, pauses, and looks for a line: `tell` to say how far it is, `save BYTES`
for a checkpoint, `flush S`, `end S` to close.  Each is answered with a line of JSON.  Told to
`report`, it says by itself, some hundred times a second, how far it is; told to `barriers`, it also
saves and flushes now and then, and says after each flush what that covered.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from typing import Any, Final

import numpy as np

from mle_client import MLELogger
from tests import checker

_SAVE_EVERY_S: Final = 0.3  # while it reports by itself
_FLUSH_EVERY_S: Final = 0.25
_WEIGHTS: Final = 20_000  # numbers in a checkpoint then


class Trainer:
    """The state of one.  Args: as on the command line."""

    def __init__(self, folder: str, seed: int, pause_s: float, burst: int) -> None:
        self._seed, self._pause_s, self._burst = seed, pause_s, burst
        self._sent = 0
        self._longest_s = 0.0
        self._saves = 0  # asked for
        self._saved = 0  # of which `update()` has returned
        self._model: Any = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_over = False
        self._say_lock = threading.Lock()
        self._log = MLELogger(
            folder,
            seed_id=seed,
            model_type="numpy",
            save_every_k_ckpt=2,
            on_error=lambda error: None,  # they are in errors()
        )

    def run(self) -> None:
        """Log until told to end."""
        threading.Thread(target=self._read, daemon=True).start()
        while not self._is_over:
            for _ in range(self._burst):
                self._tick()
            time.sleep(self._pause_s)
            while not self._is_over and not self._lines.empty():
                self._do(*self._lines.get().split())

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)

    def _tick(self) -> None:
        model, self._model = self._model, None
        tick = checker.tick(self._seed, self._sent)
        begun = time.perf_counter()
        self._log.update(*tick, model=model)
        if model is not None:
            self._saved = self._saves
        else:
            self._longest_s = max(self._longest_s, time.perf_counter() - begun)
        self._sent += 1

    def _do(self, verb: str, argument: str = "0") -> None:
        if verb == "tell":
            self._say(self._told())
        elif verb == "save":
            self._saves += 1
            self._model = {"w": np.full(int(argument) // 8, float(self._saves))}
            self._tick()
            self._say({"saves": self._saves})
        elif verb == "flush":
            covers = self._sent
            self._say({"flushed": self._log.flush(float(argument)), "covers": covers})
        elif verb == "report":
            threading.Thread(target=self._report, daemon=True).start()
        elif verb == "barriers":
            threading.Thread(target=self._flush_and_save, daemon=True).start()
        elif verb == "end":
            report = self._log.close(timeout=float(argument))
            counts = [report.delivered, report.spilled, report.lost]
            self._say({**self._told(), "report": counts, "unstored": report.unstored})
            self._is_over = True

    def _told(self) -> dict[str, Any]:
        stats = self._log.stats()
        return {
            "sent": self._sent,
            "acked": stats.get("ticks", 0),
            "lost": stats.get("lost", 0),
            "unstored": stats.get("unstored", 0),
            "longest_s": self._longest_s,
            "errors": [str(error) for error in self._log.errors()],
        }

    def _report(self) -> None:
        while not self._is_over:
            # Read before the clock: it was so at that time or earlier.
            sent, acked = self._sent, self._log.stats()["ticks"]
            self._say({"sent": sent, "acked": acked, "at": time.monotonic()})
            time.sleep(0.005)

    def _flush_and_save(self) -> None:
        save_at = 0.0
        while not self._is_over:
            if time.monotonic() >= save_at and self._model is None:
                self._saves += 1
                self._model = {"w": np.full(_WEIGHTS, float(self._saves))}
                save_at = time.monotonic() + _SAVE_EVERY_S
            covers, saved = self._sent, self._saved
            if self._log.flush(10.0):
                self._say({"flushed": True, "covers": covers, "saved": saved})
            time.sleep(_FLUSH_EVERY_S)

    def _say(self, what: dict[str, Any]) -> None:
        with self._say_lock:
            print(json.dumps(what), flush=True)


if __name__ == "__main__":
    Trainer(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])).run()
