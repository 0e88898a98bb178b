"""From a snapshot in shared memory to a synced file, over real sockets."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mle_client import parcels, rendering
from mle_client.errors import MLEError
from mle_client.messages import ProducerId
from mle_client.parcels import CHUNK_BYTES, WINDOW_BYTES
from mle_client.shipping import Shipper
from mle_client.snapshot import Arena, Snapshot, read_left
from mle_daemon import arrivals
from mle_daemon import events as e
from mle_daemon.artifact_server import ArtifactServer
from mle_daemon.staging import Staging

ANNA, BERT = ProducerId(b"anna" * 4), ProducerId(b"bert" * 4)
SOON_S = 40.0
MIB = 2**20


class Road:
    """A shipper and a server, with what the server has told."""

    def __init__(self, folder: Path, runtime_dir: Path) -> None:
        self.staging = folder / "staging"
        self.endpoint = f"ipc://{runtime_dir}/artifacts"
        self.events: list[e.Event] = []
        self.errors: list[MLEError] = []
        self.arena = Arena(str(runtime_dir / "snapshots"), str(folder / "spill"))
        self.shipper = Shipper()
        for producer in (ANNA, BERT):
            self.shipper.add(producer, self.errors.append)
        self.server = self.serve()

    def serve(self) -> ArtifactServer:
        """Start a server at the address."""
        self.server = ArtifactServer(self.endpoint, str(self.staging), self.events.append)
        return self.server

    def snapshot(self, number: int, content: bytes) -> Snapshot:
        """Take a snapshot."""
        writer = self.arena.begin()
        writer.write(content)
        return writer.commit(number, "model")

    def arrived(self, producer: ProducerId, number: int) -> Path:
        """Wait for an artifact, and say that it is stored."""
        found: list[e.Arrived] = []

        def look() -> bool:
            found[:] = [x for x in tuple(self.events) if isinstance(x, e.Arrived)]
            found[:] = [x for x in found if (x.producer, x.number) == (producer, number)]
            return bool(found)

        wait_for(look)
        self.shipper.stored(producer, number)
        return Path(found[0].path)

    def close(self) -> None:
        self.shipper.close()
        assert self.server.stop(SOON_S)
        self.arena.delete()


@pytest.fixture
def road(tmp_path: Path, runtime_dir: Path) -> Iterator[Road]:
    road = Road(tmp_path, runtime_dir)
    road.shipper.connect(road.endpoint)
    yield road
    road.close()


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk takes the disk a while."""
    write = Staging.write

    def slowly(*arguments: Any) -> None:
        time.sleep(0.05)
        write(*arguments)

    monkeypatch.setattr(Staging, "write", slowly)


def wait_for(happened: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, WINDOW_BYTES + 1, 50_000_000]
)
def test_every_byte_arrives(road: Road, size: int) -> None:
    content = os.urandom(size)
    road.shipper.submit(ANNA, road.snapshot(1, content))

    assert road.arrived(ANNA, 1).read_bytes() == content
    assert road.shipper.wait(ANNA, SOON_S)
    assert road.errors == []


def test_many_small_ones_arrive_in_order(road: Road) -> None:
    contents = [os.urandom(100 + number) for number in range(50)]
    for number, content in enumerate(contents, 1):
        road.shipper.submit(ANNA, road.snapshot(number, content))

    assert [road.arrived(ANNA, n + 1).read_bytes() for n in range(50)] == contents
    numbers = [event.number for event in road.events if isinstance(event, e.Arrived)]
    assert numbers == list(range(1, 51))


@pytest.mark.parametrize("told", [True, False], ids=["told by the transport", "found out"])
def test_a_server_that_is_started_anew_in_the_middle_gets_all_of_it(
    road: Road, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    monkeypatch.setattr(parcels, "STALL_AFTER_S", 0.5)
    content = os.urandom(40 * MIB)
    in_the_middle, go_on = threading.Event(), threading.Event()
    write = Staging.write

    def stop_in_the_middle(*arguments: Any) -> None:
        write(*arguments)
        if arguments[2] > 5 * MIB:
            in_the_middle.set()
            assert go_on.wait(SOON_S)

    monkeypatch.setattr(Staging, "write", stop_in_the_middle)
    road.shipper.submit(ANNA, road.snapshot(1, content))
    assert in_the_middle.wait(SOON_S)
    if told:
        road.shipper.disconnect()
    assert not road.server.stop(0.01)
    go_on.set()
    assert road.server.stop(SOON_S)
    assert road.events == []
    assert list(road.staging.iterdir()) == []

    road.serve()
    if told:
        road.shipper.connect(road.endpoint)

    assert road.arrived(ANNA, 1).read_bytes() == content
    assert len(road.events) == 1


@pytest.mark.usefixtures("slow_disk")
def test_a_small_one_of_another_producer_does_not_wait_for_a_large_one(road: Road) -> None:
    large, small = os.urandom(60 * MIB), os.urandom(2 * MIB)
    road.shipper.submit(ANNA, road.snapshot(1, large))
    wait_for(lambda: list(road.staging.iterdir()))
    road.shipper.submit(BERT, road.snapshot(1, small))

    assert road.arrived(BERT, 1).read_bytes() == small
    assert len(road.events) == 1
    assert road.arrived(ANNA, 1).read_bytes() == large


def test_a_full_disk_is_waited_out(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "FIRST_RETRY_S", 0.1)
    content = os.urandom(5 * MIB)
    snapshot = road.snapshot(1, content)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    try:
        road.shipper.submit(ANNA, snapshot)
        wait_for(lambda: road.events)
        (event,) = road.events
        assert isinstance(event, e.NotArrived)
        assert not event.final
        assert list(road.staging.iterdir()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert road.arrived(ANNA, 1).read_bytes() == content


def test_what_a_process_left_behind_arrives_whether_or_not_it_had_begun_to_send(
    road: Road, runtime_dir: Path, tmp_path: Path
) -> None:
    contents = [os.urandom(3 * MIB + 1), b"small"]
    arena = Arena(str(runtime_dir / "of-bert"), str(tmp_path / "of-bert"))
    for number, content in enumerate(contents, 1):
        with arena.begin() as writer:
            writer.write(content)
            writer.commit(number, "model")
    arena.forget()  # as if the process had ended

    for left in read_left(str(runtime_dir / "of-bert"), str(tmp_path / "of-bert")):
        road.server.take_left(BERT, left)

    assert [road.arrived(BERT, n).read_bytes() for n in (1, 2)] == contents


@pytest.mark.usefixtures("slow_disk")
def test_memory_is_bounded_by_the_windows_whatever_is_sent(road: Road) -> None:
    snapshots = [(p, road.snapshot(1, os.urandom(64 * MIB))) for p in (ANNA, BERT)]
    before, most = anonymous_bytes(), 0
    for producer, snapshot in snapshots:
        road.shipper.submit(producer, snapshot)
    while len(road.events) < 2:
        most = max(most, anonymous_bytes() - before)
        time.sleep(0.01)

    # Of 128 MiB; the rest is what two threads, and a process that has run other tests, take.
    assert most < 2 * WINDOW_BYTES + 16 * MIB


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = [line for line in file if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


def test_a_figure_that_a_process_left_behind_becomes_a_picture(
    road: Road, runtime_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    directories = str(runtime_dir / "of-bert"), str(tmp_path / "of-bert")
    arena = Arena(*directories)
    with arena.begin() as writer:
        rendering.pickle_figure(figure, writer, "png")
        writer.commit(1, "figure", "figure")
    arena.forget()

    (left,) = read_left(*directories)
    road.server.take_left(BERT, left)

    assert road.arrived(BERT, 1).read_bytes().startswith(b"\x89PNG")
