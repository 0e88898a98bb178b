"""How long an artifact takes through the artifact socket, from shared memory to a durable file.

    python benchmarks/bench_artifact_road.py [folder] [--mb 100] [--rounds 9]

A `Shipper` in this process, an `ArtifactServer` in another one, `folder` (by default the current
one) on the disk in question.  Each artifact is followed by one `write` and `fsync` of the same
bytes, which is what any copy to disk costs at least.  The time ends when this process knows that
the file is synced; the goal is 1.3 times the raw write.

It is done for several sizes of chunks, and with the kernel asked more or less often to write what
is there, one after the other in each round: whatever else the machine does meets all of them.  CPU
time is that of both processes.  The last column is what the server's process had written, as the
kernel counts it, for each byte.
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
WRITEBACKS = {"every 1 MiB": MIB, "every 16 MiB": 16 * MIB, "at the end": 2**40}
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
        pipe.send((event.path, time.process_time()))

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


class Road:
    """A shipper here and a server in another process, of one setting.

    Args:
        folder: on the disk, for this road alone.
        chunk, writeback: in bytes.
    """

    def __init__(self, name: str, folder: str, chunk: int, writeback: int) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.raw_seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._folder = folder
        self._chunk = chunk
        self._count = 0
        self._bytes = 0
        self._server_cpu = 0.0  # seconds, so far
        os.mkdir(folder)
        address = f"ipc://{folder}/socket"
        self._pipe, there = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(there, address, folder, writeback)
        )
        self._process.start()
        assert self._pipe.recv() == "ready"
        self._shipper = Shipper()
        self._shipper.add(PRODUCER, print)
        self._shipper.connect(address)

    def measure(self, view: memoryview) -> None:
        """Ship an artifact, and write it raw; the first one connects and is not counted."""
        parcels.CHUNK_BYTES = self._chunk  # type: ignore[misc]  # what is measured
        self._count += 1
        began, cpu_began = time.perf_counter(), time.process_time()
        self._shipper.submit(PRODUCER, Memory(self._count, view))
        path, server_cpu = self._pipe.recv()
        seconds = time.perf_counter() - began
        cpu_seconds = time.process_time() - cpu_began + server_cpu - self._server_cpu
        self._server_cpu = server_cpu
        self._shipper.stored(PRODUCER, self._count)
        with open(path, "rb") as file:
            assert file.read() == view
        os.unlink(path)
        self._bytes += len(view)
        raw_seconds = raw(self._folder, view)
        if self._count > 1:
            self.seconds.append(seconds)
            self.cpu_seconds.append(cpu_seconds)
            self.raw_seconds.append(raw_seconds)

    def report(self) -> str:
        """End the server.  Returns: a line of the table."""
        self._shipper.close()
        self._pipe.send("stop")
        written = self._pipe.recv() / self._bytes
        self._process.join()
        ours, theirs = statistics.median(self.seconds), statistics.median(self.raw_seconds)
        return (
            f"{self.name:24} {ours * 1e3:8.1f} {min(self.seconds) * 1e3:7.1f}"
            f" {theirs * 1e3:10.1f} {min(self.raw_seconds) * 1e3:7.1f}"
            f" {ours / theirs:8.2f} {statistics.median(self.cpu_seconds) * 1e3:8.1f} {written:8.3f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default=".")
    parser.add_argument("--mb", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=15)
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
        chunk, writeback = parcels.CHUNK_BYTES, staging._WRITEBACK_BYTES
        settings = [(f"chunks of {each // KIB} KiB", each, writeback) for each in CHUNKS]
        settings += [(f"written out {name}", chunk, each) for name, each in WRITEBACKS.items()]
        roads = [
            Road(name, f"{folder}/{i}", *setting) for i, (name, *setting) in enumerate(settings)
        ]
        for _ in range(options.rounds + 1):
            for road in roads:
                road.measure(view)
        print(f"{options.mb:g} MB, {options.rounds} rounds; medians and least in ms\n")
        heads = f"{'road':>8} {'':>7} {'raw':>10} {'':>7} {'ratio':>8} {'CPU':>8} {'written':>8}"
        print(f"{'':24} {heads}")
        for road in roads:
            print(road.report(), flush=True)
        del view


if __name__ == "__main__":
    main()
