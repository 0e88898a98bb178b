"""Starts processes that log with a peer, and brings home what that has cost.

A run is the peer's worker processes (`peer_worker`) and whatever these have started; for ours the
daemon, for the naive sender the process with the file.  Its CPU time is that of all of them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import naive
from benchmarks.end_to_end import Run, count_ticks, naive_sink
from benchmarks.peer_adapters import PEERS
from benchmarks.peer_environments import IMPORTS, MLE_LOGGING, TREE, python_of
from benchmarks.peer_worker import WARM_UP_TICKS, Order
from benchmarks.workspace import cpu_s, private_folders, workspace
from tests.compat import upstream

OURS, NAIVE = "ours", "naive"
_TIMEOUT_S: Final = 300.0
_STARTS: Final = 5  # of an interpreter, unless they have taken so many seconds before
_STARTS_S: Final = 1.0
_HELPERS_END_S: Final = 10.0  # they see that their worker is gone, and end


@dataclass(frozen=True, slots=True)
class PeerRun:
    """One run of one peer.

    Args:
        run: time, CPU time and bytes.
        open_s, first_s: what making the logger, and its first `update()`, took; the slowest's.
        imported_rss, rss: memory of a worker after the imports, and after its last tick, in bytes.
    """

    run: Run
    open_s: float
    first_s: float
    imported_rss: float
    rss: float


def python_with(peer: str) -> Path:
    """The interpreter that runs a peer."""
    return python_of(peer) if peer == MLE_LOGGING or peer in IMPORTS else Path(sys.executable)


# --- runs -----------------------------------------------------------------------------------------
def run(peer: str, producers: int, ticks: int) -> PeerRun:
    """From the first tick of some producers until all is closed."""
    with _place(peer, producers) as place, ExitStack() as stack:
        workers = [
            stack.enter_context(_Worker(place.order(peer, "run", seed, ticks)))
            for seed in range(producers)
        ]
        ready = [worker.receive() for worker in workers]
        helpers = [worker.helpers_cpu_s() for worker in workers]
        place.begin()
        for worker in workers:
            worker.go_on()
        done = [worker.receive() for worker in workers]
        helped_s = sum(
            worker.helpers_cpu_s() - before + figures["reaped_cpu_s"]
            for worker, before, figures in zip(workers, helpers, done, strict=True)
        )
        for worker in workers:
            worker.finish()
        ended = place.end(producers, ticks)
        began_at = min(each["began_at"] for each in done)
        closed_at = ended.closed_at or max(each["closed_at"] for each in done)
        measured = Run(
            producers * ticks,
            closed_at - began_at,
            max(each["called_at"] for each in done) - began_at,
            sum(each["cpu_s"] for each in done),
            helped_s + ended.cpu_s,
            ended.file_bytes,
        )
        return PeerRun(
            measured,
            max(each["open_s"] for each in ready),
            max(each["first_s"] for each in done),
            max(each.get("imported_rss", 0.0) for each in ready),
            max(each["rss"] for each in done),
        )


def calls(peer: str, blocks: int, ticks: int) -> dict[str, dict[str, float]]:
    """Percentiles of single calls, of the floor and of the timer, in ns: see `peer_worker`."""
    with (
        _place(peer, 1) as place,
        _Worker(place.order(peer, "calls", 0, ticks, blocks)) as worker,
    ):
        worker.receive()
        place.begin()
        worker.go_on()
        found: dict[str, dict[str, float]] = worker.receive()
        worker.finish()
        place.end(1, min(WARM_UP_TICKS, ticks) + blocks * ticks)
        return found


def import_s(peer: str) -> float:
    """What importing a peer takes, over what starting the interpreter takes."""
    imports = "import " + ", ".join(PEERS[peer].imports)
    empty, full = (_python_s(peer, code) for code in ("pass", imports))
    return full - empty


def _python_s(peer: str, code: str) -> float:
    """The least of some times that are over soon, for whatever else runs can only add to them."""
    times: list[float] = []
    while len(times) < _STARTS and sum(times) < _STARTS_S:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            subprocess.run(
                [python_with(peer), "-P", "-c", code],
                check=True, env=_environment(peer), cwd=folder, timeout=_TIMEOUT_S,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            times.append(time.perf_counter() - begin)
    return min(times)


def _environment(peer: str) -> dict[str, str]:
    settings = PEERS[peer].settings if peer in PEERS else {}
    return upstream.environment(PYTHONPATH=str(TREE), **settings)


# --- where a peer logs to -------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Ended:
    """Args: closed_at: where that is later than the workers' own; cpu_s: of the writer."""

    cpu_s: float = 0.0
    file_bytes: int = 0
    closed_at: float | None = None


class _Place:
    """A folder for each worker.

    Args:
        folder: of all.
        target: what all workers log to; else each has its folder.
    """

    def __init__(self, folder: Path, target: str = "") -> None:
        self.folder = folder
        self._target = target

    def order(self, peer: str, case: str, seed: int, ticks: int, blocks: int = 1) -> Order:
        """What a worker has to do."""
        folder = str(self.folder / f"worker_{seed}")
        return Order(peer, case, self._target or folder, folder, seed, ticks, blocks)

    def begin(self) -> None:
        """The workers are ready, and wait."""

    def end(self, producers: int, ticks: int) -> _Ended:
        """The workers have ended.  Args: ticks: of each of them."""
        return _Ended(file_bytes=_bytes_below(self.folder))


class _WithDaemon(_Place):
    def __init__(self, space: Any) -> None:
        super().__init__(space.root.parent / "workers", str(space.root / "run"))
        self._space = space
        self._before = 0.0

    def begin(self) -> None:
        self._before = self._space.daemon_cpu_s()

    def end(self, producers: int, ticks: int) -> _Ended:
        used = self._space.stop() - self._before
        for seed in range(producers):
            _check(count_ticks(self._space.log_file("run", seed)), ticks)
        return _Ended(used, _bytes_below(self._space.root / "run"))


class _WithSink(_Place):
    def __init__(
        self, folder: Path, address: str, path: Path, stored: Callable[[], naive.Stored]
    ) -> None:
        super().__init__(folder / "workers", address)
        self._path = path
        self._stored = stored

    def end(self, producers: int, ticks: int) -> _Ended:
        stored = self._stored()
        _check(naive.count_ticks(self._path), producers * ticks)
        return _Ended(stored.cpu_s, self._path.stat().st_size, stored.closed_at)


def _check(found: int, expected: int) -> None:
    if found != expected:
        raise RuntimeError(f"{found} ticks are stored and not {expected}")


@contextmanager
def _place(peer: str, producers: int) -> Iterator[_Place]:
    if peer == OURS:
        with workspace() as space:
            yield _WithDaemon(space)
        return
    with private_folders() as folder:
        if peer != NAIVE:
            yield _Place(folder)
            return
        with naive_sink(folder, producers) as (address, path, stored):
            yield _WithSink(folder, address, path, stored)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- workers --------------------------------------------------------------------------------------
class _Worker(contextlib.AbstractContextManager["_Worker"]):
    """A process that works on an order.  What it prints comes to light only if it fails."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed at the exit
        words = {name: getattr(order, name) for name in order.__slots__}
        self._process = subprocess.Popen(
            [python_with(order.peer), "-P", "-m", "benchmarks.peer_worker", json.dumps(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=_environment(order.peer),
        )
        self._timer = threading.Timer(_TIMEOUT_S, self._process.kill)
        self._timer.start()
        self._helpers: list[psutil.Process] = []

    def receive(self) -> Any:
        """The figures that come next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise self._failed()
        return json.loads(line)

    def go_on(self) -> None:
        """Let it do the next thing."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go on\n")
        self._process.stdin.flush()

    def helpers_cpu_s(self) -> float:
        """CPU time of the processes that it has started and that live, and of those they reaped."""
        used = 0.0
        self._helpers = psutil.Process(self._process.pid).children(recursive=True)
        for process in self._helpers:
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                times = process.cpu_times()
                used += cpu_s(process.pid) + times.children_user + times.children_system
        return used

    def finish(self) -> None:
        """Let it check what it has stored, and wait for its end."""
        self.go_on()
        if self._process.wait() != 0:
            raise self._failed()
        psutil.wait_procs(self._helpers, _HELPERS_END_S)

    def _failed(self) -> RuntimeError:
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        return RuntimeError(f"{self._order} ended with {self._process.returncode}: {said}")

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()
        self._timer.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for helper in self._helpers:
            with contextlib.suppress(psutil.NoSuchProcess):
                helper.kill()
        self._said.close()
