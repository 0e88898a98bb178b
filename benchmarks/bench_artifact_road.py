"""How long an artifact takes through the artifact socket, from shared memory to a durable file.

    python benchmarks/bench_artifact_road.py [folder] [--mb 100] [--rounds 9]

A `Shipper` in this process, an `ArtifactServer` in another one, `folder` (by default the current
one) on the disk in question.  Interleaved with it, in this process, one `write` and `fsync` of the
same bytes, which is what any copy to disk costs at least.  The time ends when this process knows
that the file is synced; the goal is 1.3 times the raw write.

Then the same with other sizes of chunks, and with the kernel asked more or less often to write what
is there, and what the server process wrote, as the kernel counts it.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

from mle_client import parcels
from mle_client.messages import ProducerId
from mle_client.shipping import Shipper
from mle_daemon import events as e
from mle_daemon import staging
from mle_daemon.artifact_server import ArtifactServer

GOAL = 1.3
KIB, MIB = 2**10, 2**20
CHUNKS = (256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB)
WRITEBACKS = (MIB, 4 * MIB, 16 * MIB, 2**40)
PRODUCER = ProducerId(b"benchmark-of-art")


class Memory:
    """An artifact in shared memory.  Args: view: its bytes."""

    form = "file"

    def __init__(self, number: int, view: memoryview) -> None:
        self.number = number
        self.size = len(view)
        self._view = view

    def chunks(self, chunk_bytes: int) -> Iterator[memoryview]:
        """As of `snapshot.Snapshot`."""
        for start in range(0, self.size, chunk_bytes):
            yield self._view[start : start + chunk_bytes]

    def release(self) -> None:
        """As of `snapshot.Snapshot`; the memory is used again."""


def serve(pipe: Connection, address: str, folder: str, writeback: int) -> None:
    """Be the daemon's process: tell what has arrived, and in the end what was written."""
    staging._WRITEBACK_BYTES = writeback  # type: ignore[misc]  # what is measured

    def deliver(event: e.Event) -> None:
        assert isinstance(event, e.Arrived), event
        pipe.send(event.path)

    server = ArtifactServer(address, folder, deliver)
    pipe.send("ready")
    pipe.recv()
    server.stop()
    pipe.send(written_bytes())


def written_bytes() -> int:
    """Bytes that this process had written to a disk."""
    with open("/proc/self/io", encoding="ascii") as file:
        return int(dict(line.split(": ") for line in file)["write_bytes"])


def raw(folder: str, view: memoryview) -> float:
    """Seconds of one write and a sync."""
    path = os.path.join(folder, "raw")
    began = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    rest = view
    while rest:
        rest = rest[os.write(fd, rest) :]
    os.fsync(fd)
    os.close(fd)
    seconds = time.perf_counter() - began
    os.unlink(path)
    return seconds


def measure(
    folder: str, view: memoryview, rounds: int, chunk: int, writeback: int
) -> tuple[list[float], list[float], float]:
    """Seconds through the road, seconds of raw writes, and bytes written for each byte."""
    address = f"ipc://{folder}/socket"
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(there, address, folder, writeback)
    )
    process.start()
    assert here.recv() == "ready"
    parcels.CHUNK_BYTES = chunk  # type: ignore[misc]  # what is measured
    shipper = Shipper()
    shipper.add(PRODUCER, print)
    shipper.connect(address)
    road, plain = [], []
    for number in range(1, rounds + 2):
        began = time.perf_counter()
        shipper.submit(PRODUCER, Memory(number, view))
        path = here.recv()
        seconds = time.perf_counter() - began
        shipper.stored(PRODUCER, number)
        with open(path, "rb") as file:
            assert file.read() == view
        os.unlink(path)
        raw_seconds = raw(folder, view)
        if number > 1:  # the first one connects, and finds cold caches
            road.append(seconds)
            plain.append(raw_seconds)
    shipper.close()
    here.send("stop")
    written = here.recv() / (len(view) * (rounds + 1))
    process.join()
    return road, plain, written


def report(name: str, road: list[float], plain: list[float], written: float) -> None:
    """Print a line of the table."""
    ours, theirs = statistics.median(road), statistics.median(plain)
    print(
        f"{name:24} {ours * 1e3:8.1f} {min(road) * 1e3:7.1f} {max(road) * 1e3:7.1f}"
        f" {theirs * 1e3:8.1f} {min(plain) * 1e3:7.1f} {max(plain) * 1e3:7.1f}"
        f" {ours / theirs:7.2f} {written:8.3f}",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default=".")
    parser.add_argument("--mb", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    size = int(options.mb * 1e6)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix=".artifacts-", dir=options.folder)
        )
        file = stack.enter_context(tempfile.TemporaryFile(dir="/dev/shm"))
        file.truncate(size)
        memory = mmap.mmap(file.fileno(), size)
        memory[:] = os.urandom(size)
        view = memoryview(memory)
        default_chunk, default_writeback = parcels.CHUNK_BYTES, staging._WRITEBACK_BYTES
        print(f"{options.mb:g} MB, {options.rounds} rounds; ms: median, least, most\n")
        print(f"{'':24} {'road':>8} {'':>15} {'raw':>8} {'':>15} {'ratio':>7} {'written':>8}")
        for chunk in CHUNKS:
            found = measure(folder, view, options.rounds, chunk, default_writeback)
            report(f"chunks of {chunk // KIB} KiB", *found)
        for writeback in WRITEBACKS:
            found = measure(folder, view, options.rounds, default_chunk, writeback)
            name = "never" if writeback == 2**40 else f"every {writeback // MIB} MiB"
            report(f"written out {name}", *found)
        del view


if __name__ == "__main__":
    main()
