"""A daemon that is sent garbage lives on, takes no more memory, and a neighbour loses nothing.

`MLE_FUZZ_SEED` repeats a run; its seed is printed.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
import zmq

from mle_client import MLELogger, load_log, message_wire
from mle_client import messages as m
from tests.daemon_rig import Trainer, make_run
from tests.integration import daemons

# What Python and malloc keep of what they had, and what the daemon remembers of runs: 10 to 15 MB.
_GROWTH_BYTES: Final = 40 * 2**20
# Meanwhile: what waits to be looked at, more where the daemon has to wait for a processor.
_PEAK_BYTES: Final = 200 * 2**20
# A few lines a minute; a line for each of 20,000 frames would be ten times that.
_LOG_BYTES: Final = 100_000
# Files of artifacts that are not whole, of which 32 are open at most, and a segment of the journal.
_MORE_DESCRIPTORS: Final = 40
_SLOWEST_ACK_S: Final = 30.0  # of a neighbour; a tenth of a second is usual

pytestmark = pytest.mark.crash


@dataclass
class Neighbour:
    """One who logs as it should, and waits for each acknowledgement.  Args: waits: in seconds."""

    root: Path
    endpoint: str
    waits: list[float] = field(default_factory=list)
    ticks: int = 0
    problem: str = ""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        run = make_run("waits", directory=str(self.root / "waits"), experiment_dir="waits")
        trainer = Trainer("waits", run)
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.connect(self.endpoint)
            socket.send_multipart(message_wire.encode(m.Hello(m.PROTOCOL_VERSION, 1, "here")))
            while not self._stop.wait(0.01):
                sent = trainer.head if self.ticks else 0
                trainer.log(self.ticks)
                self.ticks += 1
                began = time.monotonic()
                socket.send_multipart(message_wire.encode(trainer.data(sent)))
                if not self._is_acknowledged(socket, trainer.head):
                    self.problem = f"no acknowledgement of tick {self.ticks}"
                    return
                self.waits.append(time.monotonic() - began)
            socket.send_multipart(message_wire.encode(trainer.data(trainer.end().edges[-2])))
            self._is_acknowledged(socket, trainer.head)

    def _is_acknowledged(self, socket: Any, position: int) -> bool:
        deadline = time.monotonic() + _SLOWEST_ACK_S
        while (left := deadline - time.monotonic()) > 0:
            if socket.poll(left * 1000):
                message = message_wire.decode(socket.recv_multipart())
                if isinstance(message, m.Ack) and message.position >= position:
                    return True
        return False

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def log_bytes(root: Path) -> int:
    """Bytes of all that the daemon wrote to its log."""
    return sum(path.stat().st_size for path in (root / ".mle").glob("daemon.*"))


def fuzz(root: Path, frames: int) -> dict[str, Any]:
    """Have a daemon fuzzed beside two neighbours, and say what came of it."""
    seed = int(os.environ.get("MLE_FUZZ_SEED", random.randrange(2**32)))
    print(f"MLE_FUZZ_SEED={seed}")
    with daemons.running(root) as said:
        daemon = psutil.Process(said["pid"])
        log = MLELogger(str(root / "logs"), ["step"], ["loss"], seed_id=1)
        log.update({"step": 0}, {"loss": 0.0})
        assert log.flush(timeout=30)
        before, descriptors = daemon.memory_info().rss, daemon.num_fds()
        neighbour = Neighbour(root, said["endpoint"])
        fuzzer = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.sockets", str(root), str(frames), str(seed)],
            stdout=subprocess.PIPE, text=True, env=daemons.environment(),
        )  # fmt: skip
        steps = peak = 0
        try:
            while fuzzer.poll() is None:
                steps += 1
                log.update({"step": steps}, {"loss": float(steps)})
                peak = max(peak, daemon.memory_info().rss)
                time.sleep(0.005)
        finally:
            fuzzer.kill()
            output = fuzzer.communicate()[0]
            neighbour.stop()
        assert fuzzer.returncode == 0
        report = log.close(timeout=60)
        assert (report.delivered, report.lost, log.errors()) == (steps + 1, 0, [])
        daemons.wait_for(lambda: daemon.num_fds() <= descriptors + _MORE_DESCRIPTORS, timeout=10)
        waits = sorted(neighbour.waits)
        found = json.loads(output)
        found |= {
            "seed": seed, "rss before": before, "rss peak": peak,
            "rss after": daemon.memory_info().rss, "descriptors before": descriptors,
            "descriptors after": daemon.num_fds(), "log bytes": log_bytes(root),
            "acks": len(waits), "median ack s": waits[len(waits) // 2], "slowest ack s": waits[-1],
        }  # fmt: skip
    print(json.dumps(found, indent=1))
    assert not neighbour.problem
    for folder, ticks, key in (("logs", steps + 1, "step"), ("waits", neighbour.ticks, "step")):
        run = load_log(str(root / folder)).seed_1
        assert run.time[key].tolist() == list(range(ticks))
    return found


def check(found: dict[str, Any]) -> None:
    assert found["rss after"] - found["rss before"] <= _GROWTH_BYTES
    assert found["rss peak"] - found["rss before"] <= _PEAK_BYTES
    assert found["log bytes"] <= _LOG_BYTES


def test_garbage_harms_neither_the_daemon_nor_a_neighbour(root: Path) -> None:
    check(fuzz(root, 20_000))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_million_frames_of_garbage(root: Path) -> None:
    faulthandler.cancel_dump_traceback_later()  # this takes longer than a test that hangs may
    check(fuzz(root, 1_000_000))
