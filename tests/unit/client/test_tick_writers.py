"""The generated writers: what they write, in which order, and what they do not take."""

from __future__ import annotations

import enum
import mmap
import random
from collections import Counter, OrderedDict, defaultdict
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from mle_client import messages as m
from mle_client import tick_layout, tick_writers, ticks, wire


class Color(enum.IntEnum):
    RED = 3


class OddName(str):
    """Equal to the same text, and yet another key."""

    __hash__ = object.__hash__


class Bench:
    """A generated writer over a small buffer."""

    def __init__(self, clock: dict[str, Any], stats: dict[str, Any], room: int = 4096) -> None:
        described = ticks.describe(clock, stats)
        assert described.direct is not None
        self.schema = m.Schema(0, described.clock, described.stats)
        self.baton = [64]
        self.missed: list[Any] = []
        self.saves = 0
        self.buffer = mmap.mmap(-1, room)
        self.head = tick_writers.head_before(self.schema)
        self.buffer[64 - len(self.head) : 64] = self.head
        extra = [name for name in clock if name in ("time", "time_elapsed", "num_updates")]
        hooks = tick_writers.Hooks(
            self.baton.pop, self.baton.append, lambda: 1.5, self._miss, self._save
        )
        self.writer = tick_writers.compile_writer(self.schema, described.direct, extra, hooks)
        self.writer.bind(self.buffer)

    def _miss(self, *tick: Any) -> None:
        self.missed.append(tick)

    def _save(self) -> None:
        self.saves += 1

    def stream(self) -> bytes:
        """What is committed: the last head is that of a tick to come."""
        return self.buffer[64 - len(self.head) : self.baton[0] - len(self.head)]

    def written(self) -> list[list[Any]]:
        decoder = wire.StreamDecoder({0: self.schema})
        rows = []
        for block in decoder.decode(self.stream()):
            assert isinstance(block, wire.Block)
            columns = [block.column(i) for i in range(len(self.schema.fields))]
            rows += [[column[i] for column in columns] for i in range(len(block))]
        return rows


def test_the_writer_writes_what_the_general_way_writes() -> None:
    clock = {"step": 7, "num_updates": 1}
    stats = {"f": 0.1, "b": True, "n": np.float32(2), "q": np.bool_(False), "v": np.arange(3.0)}
    bench = Bench(clock, stats)
    bench.writer.update(clock, stats)
    described = ticks.describe(clock, stats)
    assert bench.stream() == tick_writers.pack_fixed(bench.schema, 1.5, described.values)
    assert not bench.missed


@pytest.mark.parametrize(
    ("clock", "stats", "rest"),
    [
        ({"step": 1}, {"loss": 1}, {}),  # another type
        ({"step": 1}, {"loss": np.float64(1)}, {}),
        ({"step": 1.0}, {"loss": 1.0}, {}),
        ({"step": "1"}, {"loss": 1.0}, {}),
        ({"step": np.array(1.5)}, {"loss": 1.0}, {}),
        ({"step": 1}, {"loss": 1.0, "more": 1}, {}),
        ({"step": 1}, {}, {}),
        ({}, {"loss": 1.0}, {}),
        ({"epoch": 1}, {"loss": 1.0}, {}),
        ({"step": 2**63}, {"loss": 1.0}, {}),
        (None, {"loss": 1.0}, {}),
        ({"step": 1}, {"loss": 1.0}, {"model": object()}),
        ({"step": 1}, {"loss": 1.0}, {"grads": object()}),
    ],
)
def test_anything_unexpected_goes_the_general_way_and_writes_nothing(
    clock: Any, stats: Any, rest: dict[str, Any]
) -> None:
    bench = Bench({"step": 1}, {"loss": 1.0})
    bench.writer.update(clock, stats, **rest)
    assert len(bench.missed) == 1
    assert bench.baton == [64]


@pytest.mark.parametrize(
    "stats",
    [
        Counter(a=1),
        defaultdict(int, a=1),
        OrderedDict(a=1, b=2),
        MappingProxyType({"a": 1, "b": 2}),
    ],
)
@pytest.mark.parametrize("as_clock", [False, True])
def test_a_mapping_that_is_no_plain_dict_goes_the_general_way_untouched(
    stats: Any, as_clock: bool
) -> None:
    plain: dict[str, Any] = {"a": 1, "b": 2}
    bench = Bench(plain, {"loss": 1.0}) if as_clock else Bench({"step": 1}, plain)
    held = dict(stats)
    tick = (stats, {"loss": 1.0}) if as_clock else ({"step": 1}, stats)
    bench.writer.update(*tick)
    assert len(bench.missed) == 1
    assert bench.baton == [64]
    assert dict(stats) == held


@pytest.mark.parametrize("name", [np.str_, OddName])
def test_the_writer_takes_keys_of_other_text_types(name: type[str]) -> None:
    clock, stats = {name("num_updates"): 1, name("step"): 7}, {name("loss"): 1.0}
    bench = Bench(clock, stats)
    bench.writer.update({"num_updates": 1, "step": 7}, {"loss": 1.0})
    assert bench.written() == [[7, 1.0]]
    assert not bench.missed


def test_a_full_segment_goes_the_general_way() -> None:
    bench = Bench({"step": 1}, {"loss": 1.0}, room=64 + 2 * (8 + 3 * 8))
    for step in range(3):
        bench.writer.update({"step": step}, {"loss": 0.5})
    assert [row[0] for row in bench.written()] + [tick[0]["step"] for tick in bench.missed] == [
        0,
        1,
        2,
    ]


def test_saving_asks_once_after_the_tick_is_written() -> None:
    bench = Bench({"step": 1}, {"loss": 1.0})
    bench.writer.update({"step": 1}, {"loss": 1.0}, save=True)
    assert (bench.saves, len(bench.written())) == (1, 1)


def test_arrays_of_another_shape_or_type_go_the_general_way() -> None:
    bench = Bench({}, {"v": np.zeros(3)})
    for other in (np.zeros(4), np.zeros(3, np.float32), np.zeros((3, 1))):
        bench.writer.update({}, {"v": other})
    assert len(bench.missed) == 3


def test_keys_that_look_like_code_are_only_keys() -> None:
    name = 'x\'] = 1; raise SystemExit #\n"""\\'
    bench = Bench({}, {name: 1.0})
    bench.writer.update({}, {name: 2.0})
    assert bench.written() == [[2.0]]


@pytest.mark.parametrize("step", [True, np.int64(7), np.uint8(7), np.array(7), Color.RED])
def test_an_int_may_be_of_any_type_that_is_one(step: Any) -> None:
    bench = Bench({"step": 1}, {"loss": 1.0})
    bench.writer.update({"step": step}, {"loss": 1.0})
    assert bench.written() == [[int(step), 1.0]]
    assert not bench.missed


def test_a_tick_behind_which_nothing_was_put_is_not_whole() -> None:
    bench = Bench({"step": 1}, {"loss": 1.0})
    for step in range(3):
        bench.writer.update({"step": step}, {"loss": 0.5})
    content = bench.buffer[64 - len(bench.head) :]
    whole = len(bench.stream())
    assert tick_layout.committed_end(content) == whole
    for cut in range(1, len(bench.head) + 1):  # killed before the last bytes were written
        torn = content[: whole + len(bench.head) - cut] + bytes(500)
        size = whole if cut < len(bench.head) else whole * 2 // 3
        assert tick_layout.committed_end(torn) == size


def test_a_large_tick_has_a_longer_head() -> None:
    schema = m.Schema(5, (), (m.Field("v", m.Kind("<f8", (100,))),))
    packed = tick_writers.pack_fixed(schema, 1.0, [np.arange(100.0).tobytes()])
    assert len(packed) == 11 + 8 + 800
    (block,) = wire.StreamDecoder({5: schema}).decode(packed)
    assert isinstance(block, wire.Block)
    np.testing.assert_array_equal(block.column(0), [np.arange(100.0)])


# --- arrays of no dimension -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "others"),
    [
        (np.array(0.5), [np.array(1), np.array(0.5, np.float32), np.zeros(1), 0.5]),
        (np.array(7, np.int16), [np.array(7), np.array(True), 7.0]),
        (np.array(True), [True, np.array(1)]),
    ],
)
def test_a_number_in_an_array_is_taken_and_another_type_goes_the_general_way(
    value: Any, others: list[Any]
) -> None:
    bench = Bench({"step": 1}, {"x": value})
    bench.writer.update({"step": 1}, {"x": value})
    for other in others:
        bench.writer.update({"step": 1}, {"x": other})
    assert bench.written() == [[1, value.item()]]
    assert len(bench.missed) == len(others)


@pytest.mark.parametrize("text", [{}, {"text": "some"}], ids=["alone", "beside text"])
def test_a_number_that_no_int64_holds_goes_the_general_way(text: dict[str, str]) -> None:
    bench = Bench({}, {"x": np.array(7, np.uint64), **text})
    bench.writer.update({}, {"x": np.array(2**63, np.uint64), **text})
    assert len(bench.missed) == 1
    assert bench.baton == [64]


def test_a_loss_of_torch_in_host_memory_is_taken() -> None:
    torch = pytest.importorskip("torch")
    loss = torch.tensor(0.5, requires_grad=True) * 3
    bench = Bench({"step": 1}, {"x": loss})
    bench.writer.update({"step": 1}, {"x": loss})
    bench.writer.update({"step": 2}, {"x": loss.detach()})
    for other in (loss.double(), loss.reshape(1), loss.to("meta"), 1.5):
        bench.writer.update({"step": 3}, {"x": other})
    assert bench.written() == [[1, 1.5], [2, 1.5]]
    assert len(bench.missed) == 4


def test_half_precision_of_torch_is_taken() -> None:
    torch = pytest.importorskip("torch")
    value = torch.tensor(1.5, dtype=torch.bfloat16)
    bench = Bench({}, {"x": value})
    bench.writer.update({}, {"x": value})
    assert bench.written() == [[1.5]]


# --- text -----------------------------------------------------------------------------------------
TEXTS = ["", "train", "größe\0\n", "\U0001f600" * 60, "x" * 3_000]


@pytest.mark.parametrize("text", TEXTS)
def test_the_writer_of_text_writes_what_the_general_way_writes(text: str) -> None:
    clock = {"step": -7, "num_updates": 1}
    stats = {
        "f": 0.1, "b": True, "n": np.float32(2), "q": np.bool_(False), "v": np.arange(3.0),
        "i": np.array(7), "h": np.float64(1.25), "text": text, **dict.fromkeys("ABCDEFGHIJ", 1),
    }  # fmt: skip
    bench = Bench(clock, stats)
    bench.writer.update(clock, stats)
    described = ticks.describe(clock, stats)
    assert bench.stream() == wire.encode_text_tick(bench.schema, 1.5, described.values)
    assert not bench.missed


@pytest.mark.parametrize(
    ("clock", "stats"),
    [
        ({"step": 1}, {"phase": OddName("train")}),
        ({"step": 1}, {"phase": np.str_("train")}),
        ({"step": 1}, {"phase": None}),
        ({"step": 1}, {"phase": b"train"}),
        ({"step": 1}, {"phase": "\ud800"}),
        ({"step": 1}, {"phase": "x" * 5_000}),
        ({"step": 1}, {"phase": "train", "more": 1}),
        ({"step": 2**63}, {"phase": "train"}),
        ({"step": -(2**63) - 1}, {"phase": "train"}),
        ({"step": 2**70}, {"phase": "train"}),
        ({"step": True}, {"phase": "train"}),
        ({"step": 1.0}, {"phase": "train"}),
        ({"step": np.int64(1)}, {"phase": "train"}),
    ],
)
def test_anything_unexpected_beside_text_goes_the_general_way_and_writes_nothing(
    clock: Any, stats: Any
) -> None:
    bench = Bench({"step": 1}, {"phase": "train"}, room=10_000)
    bench.writer.update(clock, stats)
    assert len(bench.missed) == 1
    assert bench.baton == [64]
    bench.writer.update({"step": 2**63 - 1}, {"phase": "test"})  # and the next one is taken
    bench.writer.update({"step": -(2**63)}, {"phase": ""})
    assert bench.written() == [[2**63 - 1, "test"], [-(2**63), ""]]


def test_a_segment_without_room_for_the_text_goes_the_general_way() -> None:
    bench = Bench({}, {"text": "x"}, room=64 + 100)
    for length in (40, 60, 30):
        bench.writer.update({}, {"text": "x" * length})
    assert [len(row[0]) for row in bench.written()] == [40]
    assert len(bench.missed) == 2


class Stores(bytearray):
    """Memory that keeps what was stored, in order: (offset, bytes)."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.made: list[tuple[int, bytes]] = []

    def __setitem__(self, where: Any, value: Any) -> None:
        start = where.start if isinstance(where, slice) else where
        self.made.append((start, bytes(value) if isinstance(where, slice) else bytes([value])))
        super().__setitem__(where, value)


def test_a_tick_with_text_is_whole_or_not_there_whenever_its_process_is_killed() -> None:
    """Also where a copy is killed that is made in any order of its bytes."""
    rng = random.Random(3)
    bench = Bench({"step": 1}, {"text": "train", "x": 0})
    memory = Stores(4096)
    bench.writer.bind(memory)
    ends = [64]
    for step in range(12):
        bench.writer.update({"step": step}, {"text": "\0a\xc0"[step % 3 :] * step, "x": 0})
        ends.append(bench.baton[0])
    seen, whole = bytearray(4096), 0
    for start, stored in memory.made:
        commits = stored == b"\xdc" and start == ends[whole]
        for _ in range(20):
            torn = seen.copy()
            for at in rng.sample(range(len(stored)), rng.randrange(len(stored) + 1)):
                torn[start + at] = stored[at]
            is_whole = commits and torn[start] == stored[0]
            assert 64 + tick_layout.committed_end(torn[64:]) == ends[whole + is_whole]
        seen[start : start + len(stored)] = stored
        whole += commits
    assert 64 + tick_layout.committed_end(seen[64:]) == ends[-1]
