"""The hot path under everything that can come between two of its steps."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mle_client import device_values, wire
from mle_client import messages as m
from mle_client import producer as producer_module
from mle_client.aside import Aside, Waiting
from mle_client.device_values import Pending
from mle_client.errors import LoggerClosed
from mle_client.producer import Producer
from mle_client.remains import read_remains
from mle_client.ring import SEGMENT_BYTES, Ring, RingFull, Segment
from mle_client.tally import Latest, Tally
from tests.unit.client.test_wire import RUN

LATE = (
    "{} ticks are lost: their values have not come from their device, or there is no room for them"
)


class Stage:
    """A producer whose `update` is called as user code calls it."""

    def __init__(
        self, folder: Path, tally: Tally | None = None, wait_s: float = 0.0, **bounds: int
    ) -> None:
        self.saves = 0
        self.artifacts: list[Any] = []
        self.lost: list[str] = []
        self.ring = Ring(
            str(folder / "ring"), str(folder / "spill"), m.ProducerId(b"p" * 16), {}, **bounds
        )
        self.update: Callable[..., None]
        self.producer = Producer(
            m.ProducerId(b"p" * 16),
            self.ring,
            RUN,
            on_save=self._save,
            on_artifacts=lambda *artifacts: self.artifacts.append(artifacts),
            on_lost=self.lost.append,
            tally=tally,
            wait_s=wait_s,
        )
        self.producer.install(lambda update: setattr(self, "update", update))

    def _save(self) -> None:
        self.saves += 1

    def records(self) -> list[wire.Record]:
        self.producer.catch_up()
        stream = b"".join(bytes(view) for _, view in self.ring.pending(0))
        return wire.StreamDecoder().decode(stream)

    def fill(self, left: int) -> int:
        """Log ticks until fewer bytes than `left` are free.  Returns: how many."""
        for number in range(10**6):
            self.producer.catch_up()
            if self.ring.active.size - self.ring.active.end < left:
                break
            self.update({"step": number}, {"loss": 0.5})
        assert self.producer.lost == 0
        return number

    def column(self, name: str) -> list[Any]:
        """The values of one key, in stream order."""
        values: list[Any] = []
        for block in self.records():
            if isinstance(block, wire.Block):
                names = [field.name for field in block.schema.fields]
                if name in names:
                    values += list(block.column(names.index(name)))
        return values


@dataclass(eq=False)
class OnDevice:
    """A value that a device is still computing."""

    number: float
    is_computed: bool = False
    fails: bool = False


class Device:
    """Computes in order, when it is told to."""

    def __init__(self) -> None:
        self.queue: deque[OnDevice] = deque()
        self.waits = 0

    def value(self, number: float, **state: bool) -> OnDevice:
        value = OnDevice(number, **state)
        self.queue.append(value)
        return value

    def compute(self, count: int = 10**9) -> None:
        for _ in range(min(count, len(self.queue))):
            self.queue.popleft().is_computed = True

    def fetch(self, value: Any) -> Pending | None:
        if not isinstance(value, OnDevice):
            return None

        def get() -> np.ndarray[Any, Any]:
            if value.fails:
                raise RuntimeError("the device has failed")
            self.waits += not value.is_computed
            return np.array(value.number)

        return Pending(np.dtype(float), (), lambda: value.is_computed or value.fails, get)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(device_values, "fetch", device.fetch)
    return device


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.ring.delete()


def test_a_stream_begins_with_its_run(stage: Stage) -> None:
    assert stage.records() == [RUN]


def test_ticks_come_in_order_whatever_their_shape(stage: Stage) -> None:
    for i in range(100):
        stats: dict[str, Any] = {"i": i}
        if i % 3 == 0:
            stats["note"] = f"number {i}"
        if i % 5 == 0:
            stats["v"] = np.full(2, i)
        stage.update({"step": i}, stats)
    assert stage.column("i") == list(range(100))
    assert stage.column("note") == [f"number {i}" for i in range(0, 100, 3)]


def test_counters_and_other_mappings_are_stored_as_they_are(stage: Stage) -> None:
    stage.update({"step": 0}, {"a": 1, "b": 2})
    counts = [Counter(a=3, c=4), defaultdict(int, a=5), OrderedDict(a=6, b=7), {"a": 8, "b": 9}]
    for stats in counts:
        before = dict(stats)
        for _ in range(2):
            stage.update({"step": 1}, stats)
        assert dict(stats) == before
    assert stage.column("a") == [1, 3, 3, 5, 5, 6, 6, 8, 8]
    assert stage.column("b") == [2, 7, 7, 9, 9]
    assert stage.column("c") == [4, 4]


def test_no_writer_is_made_for_a_mapping_that_it_would_not_take(stage: Stage) -> None:
    stage.update({"step": 0}, {"loss": 0.5})
    fast = stage.update
    stage.update({"step": 1}, OrderedDict(error=1.0))
    assert stage.update is fast
    stage.update({"step": 2}, {"loss": 0.5})
    assert stage.column("step") == [0, 1, 2]


def test_keys_may_be_numpys_text(stage: Stage) -> None:
    for i in range(3):
        stage.update({"step": i}, dict.fromkeys(np.array(["loss", "error"]), 1.0 * i))
    assert stage.column("error") == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("ticks_before", [0, 1, 2])
def test_a_call_with_too_little_names_the_method_that_was_called(
    stage: Stage, ticks_before: int
) -> None:
    kept = stage.update
    for _ in range(ticks_before):
        stage.update({"step": 1}, {"loss": 1.0})
    for update in (stage.update, kept):
        with pytest.raises(TypeError, match=r"^update\(\) missing 1 required.*stats_tick"):
            update({"step": 1})
    stage.producer.close()
    with pytest.raises(TypeError, match=r"^update\(\) missing"):
        stage.update({"step": 1})


def test_the_latest_shape_gets_a_writer_of_its_own(stage: Stage) -> None:
    general = stage.update
    stage.update({"step": 1}, {"loss": 1.0})
    fast = stage.update
    assert fast is not general
    stage.update({"step": 1}, {"loss": 1.0})
    assert stage.update is fast
    stage.update({}, {"accuracy": 1.0})
    stage.update({"step": 1}, {"loss": 1.0})
    assert stage.update is fast


def test_a_kept_reference_to_update_stays_good(stage: Stage) -> None:
    stage.update({"step": 0}, {"loss": 0.0})
    kept = stage.update
    stage.update({}, {"other": 1})
    for i in range(1, 20_000):  # through several segments
        kept({"step": i}, {"loss": float(i)})
    assert stage.column("step") == list(range(20_000))


def test_segments_change_without_losing_a_tick(stage: Stage) -> None:
    for i in range(20_000):
        stage.update({"step": i}, {"loss": 0.5, "accuracy": 0.25})
    assert len(stage.ring.segments) > 2
    assert stage.column("step") == list(range(20_000))


def test_threads_share_a_producer(stage: Stage) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(number: int) -> None:
        for i in range(2_000):
            stats = {"who": number, "i": i} if i % 7 else {"who": number, "i": i, "text": "t"}
            stage.update({}, stats)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    who, i = stage.column("who"), stage.column("i")
    for number in range(4):
        assert [b for a, b in zip(who, i, strict=True) if a == number] == list(range(2_000))


@contextlib.contextmanager
def signalled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Have SIGUSR2 come at random instants, thousands of times a second."""
    over = threading.Event()

    def send() -> None:
        chance = random.Random(1)
        while not over.wait(chance.uniform(0, 0.0005)):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handler)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGUSR2, before)


def test_a_signal_handler_may_log_at_any_instant(stage: Stage) -> None:
    logged, inside = 0, False

    def handler(number: int, frame: object) -> None:
        nonlocal logged, inside
        if inside:  # one is enough
            return
        inside = True
        stage.update({"step": -1}, {"loss": -1.0})
        logged += 1
        inside = False

    step = 0
    with signalled(handler):
        while logged < 300:
            stage.update({"step": step}, {"loss": 0.5})
            step += 1
    stage.producer.catch_up()
    steps = stage.column("step")
    assert [value for value in steps if value >= 0] == list(range(step))
    assert steps.count(-1) == logged


class Interrupted(BaseException):
    """As KeyboardInterrupt is raised: between any two steps."""


# A file that is being opened when the exception comes is closed by the garbage collector.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_an_exception_at_any_instant_loses_no_finished_tick(stage: Stage) -> None:
    armed = False

    def handler(number: int, frame: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupted

    finished, step, interruptions = [], 0, 0
    with signalled(handler):
        while interruptions < 300:
            try:
                armed = True
                while True:
                    step += 1
                    stage.update({"step": step}, {"loss": 0.5})
                    finished.append(step)
            except Interrupted:
                interruptions += 1
    stored = stage.column("step")
    assert set(finished) <= set(stored)
    assert stored == sorted(set(stored))
    # What is stored and not finished was interrupted behind the commit: one a time at the most.
    assert len(stored) - len(finished) <= interruptions


@pytest.mark.parametrize("bad", [{"x": object()}, {"x": 2**63}, {"loss": "text"}, {"loss": [1.0]}])
def test_a_refused_tick_leaves_its_neighbours_unharmed(stage: Stage, bad: dict[str, Any]) -> None:
    stage.update({"step": 1}, {"loss": 1.0})
    with pytest.raises((TypeError, ValueError)):
        stage.update({"step": 2}, bad)
    stage.update({"step": 3}, {"loss": 3.0})
    assert stage.column("step") == [1, 3]


def test_an_int_out_of_range_in_a_known_shape_is_refused(stage: Stage) -> None:
    stage.update({"step": 1}, {"loss": 1.0})
    with pytest.raises(ValueError, match="64-bit"):
        stage.update({"step": 2**63}, {"loss": 1.0})
    stage.update({"step": 3}, {"loss": 1.0})
    assert stage.column("step") == [1, 3]


def test_a_key_keeps_its_shape_over_the_run(stage: Stage) -> None:
    stage.update({}, {"v": np.zeros(3)})
    with pytest.raises(ValueError, match="shape"):
        stage.update({}, {"v": np.zeros(4)})
    with pytest.raises(ValueError, match="shape"):
        stage.update({"other": 1}, {"v": 1.0})


def test_when_nothing_has_room_ticks_are_counted_and_the_stream_says_so(tmp_path: Path) -> None:
    stage = Stage(tmp_path, memory_bytes=2**18, spill_bytes=0)
    for i in range(10_000):
        stage.update({"step": i}, {"loss": 0.5})
    lost = stage.producer.lost
    assert lost > 0
    assert len(stage.column("step")) == 10_000 - lost
    assert stage.lost
    stage.ring._memory_bytes = 2**20  # room again
    stage.update({"step": 10_000}, {"loss": 0.5})
    gaps = [record for record in stage.records() if isinstance(record, m.Gap)]
    assert sum(gap.ticks for gap in gaps) == lost
    assert stage.column("step")[-1] == 10_000
    stage.ring.delete()


def test_ticks_whose_schema_was_dropped_are_dropped_too(tmp_path: Path) -> None:
    """A daemon refuses a stream with ticks of a schema that it was not sent."""
    stage = Stage(tmp_path, memory_bytes=SEGMENT_BYTES, spill_bytes=0)
    before = stage.fill(left=400)
    name = "k" * 500  # no room for that, but for the value
    for number in range(3):
        stage.update({}, {name: 1})
        stage.update({"step": before + number}, {"loss": 0.5})
    assert stage.producer.lost == 3
    assert stage.column("step") == list(range(before + 3))
    stage.ring._memory_bytes = 2**20  # room again
    stage.update({}, {name: 2})
    assert stage.column(name) == [2]
    stage.ring.delete()


def test_no_tick_comes_before_the_gap_that_is_before_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path, memory_bytes=SEGMENT_BYTES, spill_bytes=0)
    before = stage.fill(left=1_000)
    for number in range(3):  # too large for what is free; the next ones are not
        stage.update({}, {"text": "x" * 2_000})
        stage.update({"step": before + 2 * number}, {"loss": 0.5})
        stage.update({"step": before + 2 * number + 1}, {"loss": 0.5})
    kinds = [
        f"lost {each.ticks}" if isinstance(each, m.Gap) else f"{len(each)} stored"
        for each in stage.records()
        if isinstance(each, m.Gap | wire.Block)
    ]
    assert kinds == [f"{before} stored", *["lost 1", "2 stored"] * 3]
    assert stage.producer.lost == 3
    stage.ring.delete()


def test_a_gap_is_told_when_there_is_room_though_no_tick_comes(tmp_path: Path) -> None:
    stage = Stage(tmp_path, memory_bytes=SEGMENT_BYTES, spill_bytes=0)
    stage.fill(left=1_000)
    stage.update({}, {"text": "x" * 2_000})
    for _ in range(2):  # once
        stage.producer.catch_up()
        assert [each.ticks for each in stage.records() if isinstance(each, m.Gap)] == [1]
    assert stage.producer.lost == 1
    stage.ring.delete()


def test_who_is_told_of_a_loss_may_end_the_stream(tmp_path: Path) -> None:
    stage = Stage(tmp_path, memory_bytes=SEGMENT_BYTES, spill_bytes=0)
    stage.producer._on_lost = lambda reason: stage.lost.append(f"{stage.producer.close()} {reason}")
    stage.fill(left=100)
    stage.update({}, {"text": "x" * 2_000})
    assert len(stage.lost) == 1
    assert stage.producer.has_ended
    stage.ring.delete()


# --- waiting for room -----------------------------------------------------------------------------
class Blocked:
    """A thread whose update() waits for room."""

    def __init__(self, stage: Stage) -> None:
        self.number = stage.fill(left=100)
        self.error: Exception | None = None
        self._stage = stage
        self._thread = threading.Thread(target=self._log)
        self._thread.start()
        while not stage.producer.blocked_s and self._thread.is_alive():
            time.sleep(0.001)

    def _log(self) -> None:
        try:
            self._stage.update({"step": self.number}, {"loss": 0.5, "text": "x" * 2_000})
        except Exception as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def blocking(tmp_path: Path) -> Iterator[Stage]:
    """One that waits longer than any test takes."""
    stage = Stage(tmp_path, wait_s=600, memory_bytes=SEGMENT_BYTES, spill_bytes=0)
    yield stage
    stage.ring.delete()


def test_a_tick_that_may_wait_is_stored_when_there_is_room(blocking: Stage) -> None:
    blocked = Blocked(blocking)
    blocking.ring._memory_bytes = 2**20
    blocked.join()
    assert blocking.column("step") == list(range(blocked.number + 1))
    assert (blocking.producer.lost, blocking.lost) == (0, [])


def test_a_tick_that_has_waited_in_vain_is_counted(tmp_path: Path) -> None:
    stage = Stage(tmp_path, wait_s=0.05, memory_bytes=SEGMENT_BYTES, spill_bytes=0)
    number = stage.fill(left=100)
    for _ in range(2):
        stage.update({"step": number}, {"loss": 0.5, "text": "x" * 2_000})
    assert stage.producer.lost == 2
    assert stage.producer.blocked_s >= 0.1
    assert "after 0.05 s" in stage.lost[0]
    stage.producer.close()
    assert sum(each.ticks for each in stage.records() if isinstance(each, m.Gap)) == 2
    stage.ring.delete()


def test_who_waits_for_room_keeps_nobody_else_from_logging(blocking: Stage) -> None:
    blocked = Blocked(blocking)
    blocking.update({"step": blocked.number}, {"loss": 0.5})  # it is small enough
    assert blocking.producer.catch_up() == blocking.ring.head
    assert blocking.column("step") == list(range(blocked.number + 1))
    blocking.producer.close()
    blocked.join()


def test_a_stream_may_end_while_a_tick_waits_for_room(blocking: Stage) -> None:
    blocked = Blocked(blocking)
    blocking.producer.close()
    blocked.join()
    assert isinstance(blocked.error, LoggerClosed)
    assert isinstance(blocking.records()[-1], m.End)
    assert blocking.column("step") == list(range(blocked.number))


def test_a_signal_ends_the_wait_for_room(blocking: Stage) -> None:
    number = blocking.fill(left=100)

    def interrupt(*_: object) -> None:
        if blocking.producer.blocked_s:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(KeyboardInterrupt):
            blocking.update({"step": number}, {"loss": 0.5, "text": "x" * 2_000})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    blocking.ring._memory_bytes = 2**20
    blocking.update({"step": number}, {"loss": 0.5})
    assert blocking.column("step") == list(range(number + 1))
    assert blocking.producer.lost == 0


def test_who_reads_a_stream_neither_waits_for_room_nor_drops(
    tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader is who makes room."""
    stage = Stage(tmp_path, wait_s=0.5, memory_bytes=SEGMENT_BYTES, spill_bytes=0)
    number = stage.fill(left=4_000)
    stage.update({"step": number}, {"loss": device.value(0.5), "text": "x" * 5_000})
    device.compute()
    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
        stage.producer.catch_up()
    assert (stage.producer.lost, stage.producer.blocked_s) == (0, 0.0)
    assert stage.producer.is_behind
    stage.ring._memory_bytes = 2**20
    stage.producer.catch_up()
    assert not stage.producer.is_behind
    assert stage.column("step") == list(range(number + 1))
    stage.ring.delete()


def test_a_stream_that_ends_without_room_tells_how_many_ticks_were_lost(tmp_path: Path) -> None:
    stage = Stage(tmp_path, memory_bytes=2**18, spill_bytes=0)
    for i in range(10_000):
        stage.update({"step": i}, {"loss": 0.5})
    stage.producer.close()
    *_, gap, end = stage.records()
    assert isinstance(end, m.End)
    assert (gap.ticks, stage.producer.has_ended) == (stage.producer.lost, True)
    stage.ring.delete()


def test_where_the_disk_takes_no_end_it_can_be_had_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, memory_bytes=2**18, spill_bytes=0)
    for i in range(10_000):
        stage.update({"step": i}, {"loss": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr("mle_client.ring._create_segment", no_room)
        stage.producer.close()
    assert not stage.producer.has_ended
    assert not isinstance(stage.records()[-1], m.Gap | m.End)
    for _ in range(2):
        assert stage.producer.end() == stage.ring.head
    *_, gap, end = stage.records()
    assert (isinstance(end, m.End), gap.ticks) == (True, stage.producer.lost)
    stage.ring.delete()


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_after_close_every_update_is_refused(stage: Stage) -> None:
    stage.update({"step": 1}, {"loss": 1.0})
    kept = stage.update
    stage.producer.close()
    for update in (kept, stage.update):
        with pytest.raises(LoggerClosed):
            update({"step": 2}, {"loss": 1.0})
    assert isinstance(stage.records()[-1], m.End)
    assert stage.column("step") == [1]


def test_saving_and_artifacts_are_passed_on_after_the_tick(stage: Stage) -> None:
    stage.update({"step": 1}, {"loss": 1.0}, save=True)
    stage.update({"step": 2}, {"loss": 1.0}, save=True)
    stage.update({"step": 3}, {"loss": 1.0}, "model", None, None, None, True)
    assert stage.saves == 3
    assert stage.artifacts == [({"step": 3}, {"loss": 1.0}, "model", None, None, None)]
    assert stage.column("step") == [1, 2, 3]


def test_the_callers_dicts_are_neither_changed_nor_kept(stage: Stage) -> None:
    clock, stats = {"num_updates": 5, "step": 1}, {"loss": 1.0}
    for _ in range(3):
        stage.update(clock, stats)
        assert (clock, stats) == ({"num_updates": 5, "step": 1}, {"loss": 1.0})
    stats["loss"] = 2.0
    assert stage.column("loss") == [1.0] * 3


def test_a_disabled_producer_forwards_to_its_successor(stage: Stage) -> None:
    stage.update({"step": 1}, {"loss": 1.0})
    kept = stage.update
    forwarded: list[Any] = []
    stage.producer.disable("forked")
    stage.producer.forward = lambda *tick: forwarded.append(tick[0])
    kept({"step": 2}, {"loss": 1.0})
    assert forwarded == [{"step": 2}]


def test_killed_at_any_instant_every_returned_tick_is_in_the_ring(tmp_path: Path) -> None:
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:  # child: logs, and says after each tick that it returned
            stage = Stage(folder)
            i = 0
            while True:
                stage.update({"step": i}, {"loss": 0.5})
                i += 1
                if i % 50 == 0:
                    os.write(write, i.to_bytes(8, "big"))
        os.close(write)
        said = 0
        while said < 2_000 + 777 * attempt:
            said = int.from_bytes(os.read(read, 8), "big")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while chunk := os.read(read, 8):
            said = int.from_bytes(chunk, "big")
        os.close(read)
        stream = b"".join(
            part.payload for part in read_remains(str(folder / "ring"), str(folder / "spill"))
        )
        steps = [
            step
            for block in wire.StreamDecoder().decode(stream)
            if isinstance(block, wire.Block)
            for step in block.column(0)
        ]
        assert steps == list(range(len(steps)))
        assert len(steps) >= said


# --- other records, and the latest tick -----------------------------------------------------------
EXTRA = m.Artifact(1, "extra", "extra/a.pkl", {})


def test_a_record_lies_behind_the_ticks_so_far(stage: Stage) -> None:
    for i in range(3):
        stage.update({"step": i}, {"loss": 1.0})
    stage.producer.record(EXTRA)
    stage.update({"step": 3}, {"loss": 1.0})
    stage.producer.record(m.Histograms(1.5, 7, {"w": {"num": 1}}))
    found = [type(record).__name__ for record in stage.records()]
    assert found == ["Run", "Schema", "FixedBlock", "Artifact", "FixedBlock", "Histograms"]
    assert EXTRA in stage.records()
    assert stage.column("step") == [0, 1, 2, 3]


def test_after_close_no_record_is_taken(stage: Stage) -> None:
    stage.producer.close()
    with pytest.raises(LoggerClosed):
        stage.producer.record(EXTRA)
    with pytest.raises(LoggerClosed):
        stage.producer.latest()


def test_a_record_without_room_is_the_callers_to_know(tmp_path: Path) -> None:
    stage = Stage(tmp_path, memory_bytes=SEGMENT_BYTES, spill_bytes=0)
    taken: list[int] = []
    with contextlib.suppress(RingFull):
        for number in range(1, 10**6):
            stage.producer.record(m.Artifact(number, "extra", "extra/a.pkl", {}))
            taken.append(number)
    assert 1_000 < len(taken) < 10**5
    with pytest.raises(RingFull):
        stage.producer.record(EXTRA)
    assert [r.number for r in stage.records() if isinstance(r, m.Artifact)] == taken
    assert stage.lost == []
    stage.ring.delete()


def test_a_record_that_a_daemon_would_refuse_is_not_written(stage: Stage) -> None:
    """The daemon would refuse the rest of the stream with it."""
    with pytest.raises(ValueError, match="bound"):
        stage.producer.record(m.Histograms(0.0, 1, {"w": "x" * m.MAX_PLAIN_BYTES}))
    assert len(stage.records()) == 1


def test_keys_of_all_combinations_are_bounded_in_bytes_and_the_others_go_on(stage: Stage) -> None:
    keys = [f"{n:04}" + "x" * 1_000 for n in range(1_000)]
    for number in range(4):
        stage.update({f"clock {number}": 1}, dict.fromkeys(keys, 1.0))
    with pytest.raises(ValueError, match="keys of all combinations in one run exceed"):
        stage.update({"clock 4": 1}, dict.fromkeys(keys, 1.0))
    stage.update({"clock 0": 2}, dict.fromkeys(keys, 2.0))
    assert sum(len(r) for r in stage.records() if isinstance(r, wire.Block)) >= 2


def test_a_run_that_a_daemon_would_refuse_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(m, "MAX_RUN_BYTES", 100)
    with pytest.raises(ValueError, match="the configuration of a run and what it has kept"):
        Stage(tmp_path)
    assert not (tmp_path / "ring").exists()


def test_an_artifact_with_too_many_facts_is_refused(stage: Stage) -> None:
    facts = {"metrics": "x" * m.MAX_FACTS_BYTES}
    with pytest.raises(ValueError, match="65536 is the bound"):
        stage.producer.record(m.Artifact(1, "model", "", facts))
    assert len(stage.records()) == 1


@pytest.mark.parametrize("tally", [None, Tally()])
def test_the_latest_tick_is_known(tmp_path: Path, tally: Tally | None) -> None:
    stage = Stage(tmp_path, tally=tally)
    assert stage.producer.latest() == Latest()
    stage.update({"step": 4}, {"loss": 0.5, "note": "x"})
    stage.update({"step": np.int64(5)}, {"acc": np.float32(0.25)})
    before = time.time()
    stage.update({"step": 6, "epoch": 1}, {"loss": 0.125, "ok": True})
    latest = stage.producer.latest()
    assert before <= latest.seconds <= time.time()
    assert (latest.ticks, latest.clock) == (3, {"step": 6, "epoch": 1})
    assert latest.stats == {"loss": 0.125, "ok": True}
    assert [type(value) for value in latest.stats.values()] == [float, bool]
    stage.ring.delete()


def test_looking_at_the_latest_tick_disturbs_no_other(stage: Stage) -> None:
    for i in range(50):
        stage.update({"step": i}, {"loss": 1.0 * i})
        if i % 7 == 0:
            stage.update({"other": i}, {"note": "x"})
        assert stage.producer.latest().ticks == i + 1 + i // 7 + 1
    assert stage.column("step") == list(range(50))


def test_ticks_are_counted_over_segments_and_dropped_ones_are_not(tmp_path: Path) -> None:
    bounds = {"memory_bytes": 3 * SEGMENT_BYTES, "spill_bytes": 0}
    stage = Stage(tmp_path, tally=Tally(), **bounds)
    written = 0
    while len(stage.ring.segments) < 3 or not stage.lost:
        stage.update({"step": written}, {"v": np.full(100, written, np.float64)})
        written = len(stage.column("step")) if stage.lost else written + 1
    for _ in range(20):
        stage.update({"step": -1}, {"v": np.zeros(100)})
    latest = stage.producer.latest()
    assert latest.ticks == written
    assert latest.clock == {"step": written - 1}
    assert latest.stats["v"].tolist() == [written - 1] * 100
    stage.ring.delete()


def test_what_is_known_of_a_tick_outlives_the_memory_that_it_was_in(tmp_path: Path) -> None:
    stage = Stage(tmp_path, tally=Tally())
    stage.update({"step": 1}, {"v": np.arange(3.0)})
    large = {"w": "x" * (SEGMENT_BYTES - 1_000)}
    stage.producer.record(m.Histograms(0.0, 1, large))  # goes into a segment of its own
    stage.ring.release(stage.producer.catch_up())
    latest = stage.producer.latest()
    assert (latest.ticks, latest.stats["v"].tolist()) == (1, [0.0, 1.0, 2.0])
    stage.ring.delete()


def test_a_signal_handler_may_save_at_any_instant(tmp_path: Path) -> None:
    """It finds what is written by then, and its record comes behind the tick it interrupts."""
    stage = Stage(tmp_path, tally=Tally())
    saved: list[int] = []
    seen: list[int] = []
    inside = False

    def handler(number: int, frame: object) -> None:
        nonlocal inside
        if inside:
            return
        inside = True
        seen.append(stage.producer.latest().ticks)
        saved.append(len(saved) + 1)
        stage.producer.record(m.Artifact(len(saved), "extra", "extra/a.pkl", {}))
        inside = False

    with signalled(handler):
        step = 0
        while len(saved) < 300:
            stage.update({"step": step}, {"loss": 0.5})
            if step % 10 == 0:
                stage.update({"other": step}, {"note": "text", "loss": 0.5})
                stage.producer.latest()
            step += 1
    records = stage.records()
    found = [record.number for record in records if isinstance(record, m.Artifact)]
    assert found == saved
    assert stage.column("step") == list(range(step))
    assert seen == sorted(seen)
    assert stage.producer.latest().ticks == step + (step + 9) // 10
    assert stage.lost == []
    stage.ring.delete()


def test_a_signal_handler_may_look_while_a_segment_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, tally=Tally())
    roll, seen = stage.ring.roll, list[tuple[int, int]]()

    def interrupted(*arguments: Any, **options: Any) -> Segment:
        before = stage.producer.latest().ticks
        segment = roll(*arguments, **options)
        seen.append((before, stage.producer.latest().ticks))
        return segment

    monkeypatch.setattr(stage.ring, "roll", interrupted)
    logged = []
    while len(seen) < 3:
        logged.append(len(logged))
        stage.update({"step": logged[-1]}, {"loss": 0.5})
    assert all(before == after > 0 for before, after in seen)
    assert stage.producer.latest().ticks == len(logged)
    assert stage.column("step") == logged
    stage.ring.delete()


def test_ticks_of_all_shapes_in_turn_are_there_in_order(stage: Stage) -> None:
    """Of fixed layout and with text, short and long, over the ends of many segments."""
    rng = random.Random(11)
    shapes: list[Callable[[], dict[str, Any]]] = [
        lambda: {"loss": 0.5},
        lambda: {"loss": 0.5, "phase": rng.choice(["train", "größe", ""])},
        lambda: {"loss": 0.5, "phase": "x" * rng.randrange(6_000)},
        lambda: {"vector": np.arange(40.0), "phase": "test"},
        lambda: {"zero": np.array(0.5)},
    ]
    expected = []
    for step in range(6_000):
        stats = shapes[rng.choice([0, 0, 1, 1, 1, 2, 3, 4])]()
        stage.update({"step": step}, stats)
        expected.append((step, stats.get("phase")))
        if rng.random() < 0.01:
            stage.producer.catch_up()
    found = []
    for block in stage.records():
        if isinstance(block, wire.Block):
            names = [field.name for field in block.schema.fields]
            columns = {name: block.column(names.index(name)) for name in names}
            phases = columns.get("phase", [None] * len(block))
            found += list(zip(map(int, columns["step"]), phases, strict=True))
    assert found == expected
    assert stage.producer.lost == 0


# --- values that a device is still computing ------------------------------------------------------
def test_a_tick_whose_value_is_being_computed_is_written_when_it_has_come(
    stage: Stage, device: Device
) -> None:
    before = time.time()
    stage.update({"step": 0}, {"loss": device.value(0.5)})
    after = time.time()
    assert stage.column("loss") == []
    time.sleep(0.01)
    device.compute()
    assert stage.column("loss") == [0.5]
    (block,) = (record for record in stage.records() if isinstance(record, wire.Block))
    assert before <= block.times[0] <= after
    assert device.waits == 0


def test_ticks_stay_in_order_behind_one_that_is_being_computed(
    stage: Stage, device: Device
) -> None:
    rng = random.Random(7)
    for step in range(1_000):
        loss: Any = 0.5
        if rng.random() < 0.3:
            loss = device.value(0.25)
        stats = {"loss": loss} if rng.random() < 0.8 else {"loss": loss, "text": "some"}
        stage.update({"step": step}, stats)
        if rng.random() < 0.3:
            device.compute(rng.randrange(4))
        if rng.random() < 0.1:
            stage.producer.catch_up()
    device.compute()
    assert stage.column("step") == list(range(1_000))
    assert device.waits == stage.producer.lost == 0


def test_the_generated_writer_is_back_when_nothing_is_set_aside(
    stage: Stage, device: Device
) -> None:
    for step in range(3):
        stage.update({"step": step}, {"loss": 0.5})
    quick = stage.update
    stage.update({"step": 3}, {"loss": device.value(0.5)})
    stage.update({"step": 4}, {"loss": 0.5})
    assert stage.update is not quick or stage.producer.is_behind
    device.compute()
    stage.update({"step": 5}, {"loss": 0.5})
    assert stage.update is quick
    stage.update({"step": 6}, {"loss": 0.5})
    assert stage.column("step") == list(range(7))


def test_what_does_not_fit_is_refused_before_it_is_computed(stage: Stage, device: Device) -> None:
    stage.update({"step": 0}, {"loss": device.value(0.5)})
    with pytest.raises(ValueError, match="'loss' cannot be logged"):
        stage.update({"step": 1}, {"loss": "text"})
    with pytest.raises(ValueError, match="'loss' cannot be logged"):
        stage.update({"step": 1}, {"loss": np.zeros(3)})
    stage.update({"step": 1}, {"loss": 1})
    device.compute()
    assert stage.column("step") == [0, 1]


def test_a_computation_that_fails_is_told_and_counted(stage: Stage, device: Device) -> None:
    stage.update({"step": 0}, {"loss": 0.5})
    stage.update({"step": 1}, {"loss": device.value(0.5, fails=True)})
    stage.update({"step": 2}, {"loss": 0.5})
    assert stage.column("step") == [0, 2]
    assert (stage.producer.lost, stage.lost) == (
        1,
        ["a tick was refused: the device has failed"],
    )
    assert [record.ticks for record in stage.records() if isinstance(record, m.Gap)] == [1]


def test_close_waits_for_a_device_as_long_as_it_may(stage: Stage, device: Device) -> None:
    stage.update({"step": 0}, {"loss": device.value(0.5)})
    threading.Timer(0.1, device.compute).start()
    stage.producer.close(timeout=60)
    assert stage.column("step") == [0]
    assert stage.producer.lost == 0


def test_what_a_device_has_not_computed_at_the_end_is_counted(stage: Stage, device: Device) -> None:
    stage.update({"step": 0}, {"loss": 0.5})
    stage.update({"step": 1}, {"loss": device.value(0.5)})
    stage.update({"step": 2}, {"loss": 0.5})
    stage.producer.close(timeout=0.05)
    *_, gap, _, end = stage.records()
    assert (gap, end) == (m.Gap(1, gap.reason), m.End())
    assert stage.column("step") == [0, 2]
    assert stage.producer.lost == 1
    assert stage.lost == [LATE.format(1)]
    with pytest.raises(LoggerClosed):
        stage.update({"step": 3}, {"loss": 0.5})


def test_who_is_far_ahead_of_the_device_waits_for_it(
    stage: Stage, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "_MAX_SET_ASIDE", 8)
    for step in range(8):
        stage.update({"step": step}, {"loss": device.value(0.5)})
    assert len(stage.producer._aside) == 8
    threading.Timer(0.1, device.compute).start()
    stage.update({"step": 8}, {"loss": device.value(0.5)})
    assert len(stage.producer._aside) <= 8  # it has waited for the oldest
    assert stage.column("step") == list(range(9))


def test_an_artifact_is_noted_behind_its_tick(stage: Stage, device: Device) -> None:
    stage.update({"step": 0}, {"loss": device.value(0.5)})
    stage.producer.record(m.Artifact(1, m.DROPPED, "", {}))
    assert len(stage.producer._aside) == 2
    threading.Timer(0.1, device.compute).start()
    stage.producer.record(m.Artifact(2, "figure", "figures/a.png", {}))
    kinds = [type(record) for record in stage.records()]
    assert kinds[-3:] == [wire.FixedBlock, m.Artifact, m.Artifact]


def test_a_thread_that_reads_leaves_order_and_number_of_ticks_alone(
    stage: Stage, device: Device
) -> None:
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            device.compute(3)
            stage.producer.catch_up()

    def log(thread: int) -> None:
        for step in range(400):
            loss = device.value(0.5) if step % 3 else 0.5
            stage.update({"step": 1_000 * thread + step}, {"loss": loss})

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=log, args=(i,)) for i in range(3)]
    try:
        for thread in (reader, *writers):
            thread.start()
        for thread in writers:
            thread.join()
    finally:
        done.set()
        reader.join()
        sys.setswitchinterval(interval)
    device.compute()
    steps = stage.column("step")
    for i in range(3):
        own = [step for step in steps if step // 1_000 == i]
        assert own == [1_000 * i + step for step in range(400)]
    assert stage.producer.lost == 0


def test_a_signal_handler_logs_while_set_aside_ticks_are_written(
    stage: Stage, device: Device
) -> None:
    handled = itertools.count()

    def handler(number: int, frame: object) -> None:
        stage.update({"step": 1_000_000 + next(handled)}, {"loss": 0.5})

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for step in range(2_000):
            stage.update({"step": step}, {"loss": device.value(0.5)})
            device.compute(step % 3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    device.compute()
    steps = stage.column("step")
    assert [step for step in steps if step < 1_000_000] == list(range(2_000))
    late = sorted(step - 1_000_000 for step in steps if step >= 1_000_000)
    assert late == list(range(next(handled)))  # sorted: one handler may interrupt another
    assert late


def test_the_turn_of_a_thread_that_an_exception_took_is_found_out(
    stage: Stage, device: Device
) -> None:
    stage.update({"step": 0}, {"loss": device.value(0.5)})
    device.compute()
    stage.producer._aside._turn.clear()
    assert stage.producer.settle(60.0)
    assert stage.column("step") == [0]


def test_who_waits_for_what_is_set_aside_does_not_wait_for_what_comes_later(
    stage: Stage, device: Device
) -> None:
    stage.update({"step": 0}, {"loss": device.value(0.5)})
    over = threading.Event()

    def log() -> None:
        step = 1
        while not over.is_set():
            stage.update({"step": step}, {"loss": device.value(0.5)})
            device.compute(1)  # always one behind
            step += 1

    thread = threading.Thread(target=log)
    thread.start()
    try:
        assert all(stage.producer.settle(60.0) for _ in range(20))
    finally:
        over.set()
        thread.join()


def test_an_interrupt_behind_a_late_write_doubles_no_tick(
    stage: Stage, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.update({"step": 0}, {"loss": device.value(0.5)})
    stage.update({"step": 1}, {"loss": 0.5})
    device.compute()
    withdraw, left = Aside.withdraw, [1]

    def interrupted(self: Aside, waiting: Waiting) -> bool:
        if left:
            left.pop()
            raise KeyboardInterrupt
        return withdraw(self, waiting)

    monkeypatch.setattr(Aside, "withdraw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage.update({"step": 2}, {"loss": 0.5})
    stage.update({"step": 3}, {"loss": 0.5})
    assert stage.column("step") == [0, 1, 3]
    assert stage.producer.lost == 0


def test_what_would_be_too_large_later_is_refused_now(stage: Stage, device: Device) -> None:
    stage.update({"step": 0}, {"loss": device.value(0.5)})
    count = 2 * m.MAX_TICK_BYTES // m.MAX_STRING_BYTES
    texts = {f"text {i}": "ö" * (m.MAX_STRING_BYTES // 2) for i in range(count)}
    with pytest.raises(ValueError, match="is the most one may have"):
        stage.update({"step": 1}, texts)
    device.compute()
    assert stage.column("step") == [0]


def test_records_that_wait_are_there_when_the_stream_ends(stage: Stage, device: Device) -> None:
    stage.update({"step": 0}, {"loss": device.value(0.5)})
    stage.producer.record(m.Artifact(1, m.DROPPED, "", {}))
    stage.producer.close()
    kinds = [type(record) for record in stage.records()]
    assert kinds[-3:] == [m.Artifact, m.Gap, m.End]


def test_a_callback_that_closes_finds_each_lost_tick_counted_once(
    stage: Stage, device: Device
) -> None:
    stage.update({"step": 0}, {"loss": device.value(0.5, fails=True)})
    stage.update({"step": 1}, {"loss": 0.5})
    stage.producer._on_lost = lambda why: stage.producer.close()  # type: ignore[assignment]
    with contextlib.suppress(LoggerClosed):
        stage.producer.catch_up()
    assert stage.column("step") == [1]
    assert stage.producer.lost == 1


def test_where_there_is_no_room_an_update_waits_so_long_at_most(
    tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "_MAX_SET_ASIDE", 4)
    stage = Stage(tmp_path, wait_s=0.2, memory_bytes=SEGMENT_BYTES, spill_bytes=0)
    number = stage.fill(left=4_000)
    for i in range(4):
        stage.update({"step": number + i}, {"loss": device.value(0.5), "text": "x" * 5_000})
    device.compute()
    assert (stage.producer.lost, stage.producer.blocked_s) == (0, 0.0)
    stage.update({"step": number + 4}, {"loss": device.value(0.5), "text": "x" * 5_000})
    assert stage.producer.lost == 1
    assert 0.2 <= stage.producer.blocked_s < 0.4
    stage.ring.delete()


@pytest.mark.parametrize("text", [{}, {"text": "some"}], ids=["numbers", "text"])
def test_close_in_a_signal_handler_that_has_interrupted_a_write_comes_back(
    stage: Stage, text: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closes: list[int] = []
    real = time.time

    def now() -> float:  # asked for while the baton is held
        if closes == [0]:
            closes[0] = stage.producer.close()
        return real()

    monkeypatch.setattr(time, "time", now)
    for step in range(3):
        stage.update({"step": step}, {"loss": 0.5, **text})
    closes.append(0)
    with contextlib.suppress(LoggerClosed):
        stage.update({"step": 3}, {"loss": 0.5, **text})
    assert closes != [0]
    assert stage.column("step")[:3] == [0, 1, 2]
    with pytest.raises(LoggerClosed):
        stage.producer.update({"step": 4}, {"loss": 0.5, **text})
