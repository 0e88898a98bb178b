"""A daemon that says in the end what each of its threads has used; else as it always is.

    python -P benchmarks/watched_daemon.py <report> <profiled> start --root ...

The report is a JSON file: `threads`, {name: CPU time in s} of the loop and of each thread that has
ended; `process_s` of all threads since the loop began; `profile`, the functions of the thread that
is called as `profiled` ("" for none), with their own CPU time; `appended` and `synced`, when the
journal was written to and synced, on the monotonic clock, up to some number of each.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mle_daemon import cli
from mle_daemon.daemon import Daemon
from mle_daemon.journal import Journal

LOOP: Final = "loop"
_MOST: Final = 200_000  # times that are kept of each kind

_threads: defaultdict[str, float] = defaultdict(float)
_appended: list[float] = []
_synced: list[tuple[float, float]] = []
_found: dict[str, Any] = {"threads": _threads, "profile": []}


def _accounted(name: str, work: Callable[[], Any], profiled: str) -> Any:
    """Do a thread's work and note what it has used."""
    profile = cProfile.Profile(time.thread_time) if name == profiled else None
    before = time.thread_time()
    try:
        return profile.runcall(work) if profile else work()
    finally:
        _threads[name] += time.thread_time() - before
        if profile:
            _found["profile"] = _functions(profile)


def _functions(profile: cProfile.Profile) -> list[tuple[str, int, float]]:
    """(function, calls, own time in s), the greatest first."""
    stats: Any = pstats.Stats(profile)
    rows = [
        (f"{Path(file).name}:{name}" if line else name, calls[1], calls[2])
        for (file, line, name), calls in stats.stats.items()
    ]
    return sorted(rows, key=lambda row: -row[2])


def _watch(profiled: str) -> None:
    """Put our notes around what is watched."""
    run_thread, loop = threading.Thread.run, Daemon._loop
    append, sync = Journal.append, Journal.sync

    def run(self: threading.Thread) -> None:
        _accounted(self.name, lambda: run_thread(self), profiled)

    def watched_loop(self: Daemon) -> None:
        _found["process_s"] = -time.process_time()  # to which that at the end is added
        _accounted(LOOP, lambda: loop(self), profiled)

    def noted_append(self: Journal, *arguments: Any, **named: Any) -> Any:
        position = append(self, *arguments, **named)
        if len(_appended) < _MOST:
            _appended.append(time.monotonic())
        return position

    def noted_sync(self: Journal) -> Any:
        began = time.monotonic()
        position = sync(self)
        if len(_synced) < _MOST:
            _synced.append((began, time.monotonic()))
        return position

    patched: Any = threading.Thread
    patched.run = run
    patched = Daemon
    patched._loop = watched_loop
    patched = Journal
    patched.append, patched.sync = noted_append, noted_sync


if __name__ == "__main__":
    _watch(sys.argv[2])
    _status = cli.main(sys.argv[3:])
    _found["process_s"] += time.process_time()
    _found |= {"appended": _appended, "synced": _synced}
    Path(sys.argv[1]).write_text(json.dumps(_found))
    sys.exit(_status)
