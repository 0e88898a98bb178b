"""Plans: no value of a tick is lost, moved or changed, however its blocks arrive."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import layout, tick_layout, tick_writers, ticks, wire
from mle_client import messages as m
from mle_daemon import pieces
from mle_daemon.columns import Append, Column, FileState, Part, Plan
from mle_daemon.pieces import SLICE_BYTES, Key
from mle_daemon.planning import plan_append
from mle_daemon.values import Array, Text, numpy_dtype
from tests.strategies import tick_sequences

START = 1.7e9
Tick = tuple[Mapping[str, Any], Mapping[str, Any]]


class Stream:
    """A producer: ticks in, blocks out, over the wire's bytes."""

    def __init__(self) -> None:
        self._decoder = wire.StreamDecoder()
        self._schemas: dict[tuple[Any, Any], m.Schema] = {}
        self._now = START

    def blocks(self, *logged: Tick) -> list[wire.Block]:
        """The blocks of some ticks, half a second apart."""
        payload = b"".join(self._records(clock, stats) for clock, stats in logged)
        return [r for r in self._decoder.decode(payload) if isinstance(r, wire.Block)]

    def _records(self, clock: Mapping[str, Any], stats: Mapping[str, Any]) -> Iterator[bytes]:
        tick = ticks.describe(clock, stats)
        self._now += 0.5
        return self.tick(tick.clock, tick.stats, tick.values, self._now)

    def tick(
        self,
        clock: tuple[m.Field, ...],
        stats: tuple[m.Field, ...],
        values: Sequence[Any],
        seconds: float,
    ) -> Any:
        """The records of one tick that nobody checked."""
        packed = b""
        if (clock, stats) not in self._schemas:
            schema = m.Schema(len(self._schemas), clock, stats)
            self._schemas[clock, stats] = schema
            packed = wire.encode_record(schema)
        schema = self._schemas[clock, stats]
        if tick_layout.has_fixed_layout(schema):
            return packed + tick_writers.pack_fixed(schema, seconds, values)
        return packed + wire.encode_text_tick(schema, seconds, values)


def blocks_of(*logged: Tick) -> list[wire.Block]:
    """The blocks of some ticks of one producer."""
    return Stream().blocks(*logged)


class MemoryFile:
    """A file as arrays: what a plan must do to it, done as simply as possible."""

    def __init__(self, slice_bytes: int = SLICE_BYTES) -> None:
        self._slice_bytes = slice_bytes
        self._begun: list[Append] = []
        self.state: FileState | None = None
        self.values: dict[Key, list[Any]] = {}
        self.rows: dict[Key, list[int]] = {}

    def publish(self, blocks: Sequence[wire.Block]) -> Plan:
        plan = plan_append(self.state, blocks, START, self.read, self._slice_bytes)
        columns = dict(self.state.columns) if self.state else {}
        for change in plan.appends:
            assert change.before == columns.get((change.after.group, change.after.name))
        for part in plan.parts():
            self._append(part)
        columns |= {(c.after.group, c.after.name): c.after for c in plan.appends}
        for key, column in columns.items():
            assert len(self.values[key]) == column.length
            assert column.dense or len(self.rows[key]) == column.length
        self.state = FileState("", plan.rows, {}, columns, "running", START, 0)
        return plan

    def read(self, column: Column) -> Iterator[Array]:
        values = self.values[column.group, column.name]
        yield np.array(values, numpy_dtype(column.dtype)).reshape(len(values), *column.shape)

    def _append(self, part: Part) -> None:
        change = part.change
        key = (change.after.group, change.after.name)
        assert part.values.dtype == numpy_dtype(change.after.dtype)
        assert part.values.flags.c_contiguous
        assert part.values.shape[1:] == change.after.shape
        assert part.at == len(self.values.setdefault(key, []))
        assert part.is_first == (change not in self._begun)
        assert change.after.dense == (part.rows is None)
        self._begun.append(change)
        self.values[key].extend(part.values)
        if part.rows is not None:
            stored = change.stored_rows if part.is_first else ()
            assert len(part.rows) == len(part.values)
            self.rows.setdefault(key, []).extend([*stored, *part.rows.tolist()])

    def logged(self) -> dict[Key, dict[int, Any]]:
        """The values of each column by their rows."""
        assert self.state is not None
        found = {}
        for key, values in self.values.items():
            column = self.state.columns[key]
            rows = range(self.state.rows) if column.dense else self.rows[key]
            found[key] = dict(zip(rows, values, strict=True))
        return found


def expected_of(logged: Iterable[Tick]) -> dict[Key, dict[int, Any]]:
    """What a file should hold of some ticks, but for the daemon's own clocks."""
    expected: dict[Key, dict[int, Any]] = {}
    for row, (clock, stats) in enumerate(logged):
        for group, values in (("time", clock), ("stats", stats)):
            for name, value in values.items():
                if group == "stats" or name not in layout.OWN_CLOCKS:
                    expected.setdefault((group, name), {})[row] = value
    return expected


def same(stored: Any, given: Any) -> bool:
    """Whether a stored value is the value that was logged, exactly."""
    if isinstance(given, str):
        return bytes(stored).replace(b"\xc0\x80", b"\0").decode() == given
    with np.errstate(invalid="ignore"):
        a = np.asarray(stored).astype(np.longdouble)
        b = np.asarray(given).astype(np.longdouble)
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def same_bits(one: Any, other: Any) -> bool:
    """Whether two stored values are the same to the bit."""
    if isinstance(one, bytes):
        return bool(one == other)
    one, other = np.asarray(one), np.asarray(other)
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.dtype == np.longdouble:  # which has bytes that mean nothing
        return bool(np.array_equal(one, other, equal_nan=True))
    return one.tobytes() == other.tobytes()


def assert_holds(file: Mapping[Key, Mapping[int, Any]], logged: Sequence[Tick]) -> None:
    """Fail unless a file holds just what was logged, and the daemon's clocks."""
    expected = expected_of(logged)
    own = {("time", name) for name in layout.OWN_CLOCKS} if logged else set()
    assert set(file) == set(expected) | own
    for key, values in expected.items():
        assert file[key].keys() == values.keys(), key
        for row, value in values.items():
            assert same(file[key][row], value), (key, row, file[key][row], value)
    if logged:
        updates = file["time", "num_updates"]
        assert updates == {row: row + 1 for row in range(len(logged))}


def splits(size: int) -> st.SearchStrategy[list[int]]:
    """Cuts of a sequence into pieces, empty ones included."""
    return st.lists(st.integers(0, size), max_size=4).map(lambda cuts: [0, *sorted(cuts), size])


@given(st.data(), tick_sequences())
def test_any_ticks_in_any_publications_come_to_the_same(
    data: st.DataObject, logged: list[Tick]
) -> None:
    blocks = blocks_of(*logged)
    file = MemoryFile(slice_bytes=data.draw(st.sampled_from([1, 50, 400, SLICE_BYTES])))
    cuts = data.draw(splits(len(blocks)))
    for start, stop in itertools.pairwise(cuts):
        assert file.publish(blocks[start:stop]).problems == ()
    assert_holds(file.logged(), logged)


@given(st.data(), tick_sequences(), tick_sequences(), st.sampled_from([1, 50, 400]))
def test_a_file_becomes_the_same_whatever_the_slices(
    data: st.DataObject, one: list[Tick], two: list[Tick], slice_bytes: int
) -> None:
    pending = [Stream().blocks(*one), Stream().blocks(*two)]  # keys may be of two kinds
    blocks: list[wire.Block] = []
    while any(pending):
        blocks.append(data.draw(st.sampled_from([p for p in pending if p])).pop(0))
    sliced, whole = MemoryFile(slice_bytes), MemoryFile()
    for start, stop in itertools.pairwise(data.draw(splits(len(blocks)))):
        plans = [file.publish(blocks[start:stop]) for file in (sliced, whole)]
        assert plans[0].problems == plans[1].problems
    assert sliced.state == whole.state
    assert sliced.rows == whole.rows
    assert sliced.values.keys() == whole.values.keys()
    for key, values in whole.values.items():
        assert all(map(same_bits, sliced.values[key], values))


def test_one_slice_of_ticks_is_columns_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[pieces.Slice] = weakref.WeakSet()

    class Watched(pieces.Slice):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            alive.add(self)

    monkeypatch.setattr(pieces, "Slice", Watched)
    stream = Stream()
    blocks = stream.blocks(*[({"step": i}, {"a": i / 2, "t": "x" * 9}) for i in range(600)])
    blocks += stream.blocks(*[({"step": i}, {"a": i, "v": [i, 1]}) for i in range(600)])
    plan = plan_append(None, blocks, START, lambda column: [], slice_bytes=4000)
    assert not alive  # though it has looked at the text
    parts = 0
    for part in plan.parts():
        assert part.values.nbytes <= 4000
        assert len(alive) <= 1
        parts += 1
    assert parts > 10 * len(plan.appends)


def test_ticks_alike_make_dense_columns_in_their_types() -> None:
    plan = plan_append(
        None,
        blocks_of(*[({"step": i}, {"loss": i / 2, "best": i > 1, "w": [i, 2]}) for i in range(3)]),
        START,
        lambda column: [],
    )
    found = {(a.after.group, a.after.name): a for a in plan.appends}
    values = {part.change.after.name: part.values for part in plan.parts()}
    assert plan.rows == 3
    assert all(part.rows is None for part in plan.parts())
    assert all(a.after.dense and a.before is None for a in plan.appends)
    assert values["time_elapsed"].tolist() == [0.5, 1.0, 1.5]
    assert values["num_updates"].tolist() == [1, 2, 3]
    assert values["time"].dtype == np.dtype("S14")
    assert found["time", "step"].after == Column("time", "step", np.dtype("i8"), (), 3, True)
    assert found["stats", "best"].after.dtype == np.dtype("?")
    assert found["stats", "w"].after == Column("stats", "w", np.dtype("<i8"), (2,), 3, True)
    assert found["stats", "w"].after.row_bytes == 16


def test_a_column_that_begins_late_knows_its_rows() -> None:
    file = MemoryFile()
    file.publish(blocks_of(({}, {"a": 1.0}), ({}, {"a": 2.0})))
    file.publish(blocks_of(({}, {"a": 3.0, "b": 1.0}), ({}, {"a": 4.0, "b": 2.0})))
    assert file.rows == {("stats", "b"): [2, 3]}


def test_a_column_that_misses_a_row_gets_the_numbers_of_all_its_rows() -> None:
    file = MemoryFile()
    file.publish(blocks_of(({}, {"a": 1.0}), ({}, {"a": 2.0})))
    file.publish(blocks_of(({}, {"b": 1.0}), ({}, {"a": 3.0})))
    assert file.rows[("stats", "a")] == [0, 1, 3]
    file.publish(blocks_of(({}, {"a": 4.0})))
    assert file.rows[("stats", "a")] == [0, 1, 3, 4]


def test_a_column_without_any_new_value_becomes_sparse_once() -> None:
    file = MemoryFile()
    file.publish(blocks_of(({}, {"a": 1.0}), ({}, {"a": 2.0})))
    assert [a.after.name for a in file.publish(blocks_of(({}, {"b": 1.0}))).appends][-2:] == [
        "a",
        "b",
    ]
    later = file.publish(blocks_of(({}, {"b": 2.0})))
    assert "a" not in [a.after.name for a in later.appends]
    assert file.rows[("stats", "a")] == [0, 1]


def test_nothing_new_plans_nothing() -> None:
    file = MemoryFile()
    file.publish(blocks_of(({}, {"a": 1.0})))
    assert file.publish([]).appends == ()


def test_blocks_of_two_producers_keep_the_order_of_arrival() -> None:
    one, two = Stream(), Stream()
    blocks = [
        *one.blocks(({}, {"a": 1.0})),
        *two.blocks(({"step": 1}, {"a": 2})),
        *one.blocks(({}, {"a": 3.0}), ({}, {"a": 4.0})),
        *two.blocks(({"step": 1}, {"a": 5})),
    ]
    file = MemoryFile()
    file.publish(blocks)
    assert list(file.logged()["stats", "a"].values()) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert file.rows == {("time", "step"): [1, 4]}


def test_many_short_blocks_of_schemas_that_take_turns_are_handled_by_the_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Stream()
    blocks = [
        block
        for i in range(500)
        for block in stream.blocks(({"step": i}, {"a": i / 2} if i % 2 else {"b": i, "t": "x"}))
    ]
    assert len(blocks) == 500
    fetched = []
    for kind in (wire.FixedBlock, wire.TextBlock):
        real = kind.column
        monkeypatch.setattr(
            kind, "column", lambda self, i, real=real: fetched.append(i) or real(self, i)
        )
    list(plan_append(None, blocks, START, lambda column: []).parts())
    assert len(fetched) == 5  # once for each field of either schema


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("text", 1.0),
        (1.0, "text"),
        (1.0, [1.0]),
        ([1.0, 2.0], [1.0]),
        ("text", [1.0]),
        ([1], True),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_a_value_that_does_not_fit_is_refused_and_costs_nothing_else(
    first: Any, second: Any, together: bool
) -> None:
    one, two = Stream(), Stream()
    blocks = [
        *one.blocks(({}, {"x": first, "y": 1.0})),
        *two.blocks(({}, {"x": second, "y": 2.0}), ({}, {"x": second, "y": 3.0})),
        *one.blocks(({}, {"x": first, "y": 4.0})),
    ]
    file = MemoryFile()
    plans = [file.publish(blocks)] if together else [file.publish([block]) for block in blocks]
    problems = [problem for plan in plans for problem in plan.problems]
    assert [(p.group, p.name, p.values) for p in problems] == [("stats", "x", 2)]
    assert "'x'" in str(problems[0])
    assert "another name" in str(problems[0])
    logged = [({}, {"x": first, "y": 1.0}), ({}, {"y": 2.0}), ({}, {"y": 3.0})]
    assert_holds(file.logged(), [*logged, ({}, {"x": first, "y": 4.0})])


def test_the_clocks_of_the_daemon_cannot_be_overruled() -> None:
    stream = Stream()
    clock = (m.Field("num_updates", m.INT), m.Field("step", m.INT))
    payload = stream.tick(clock, (), (77, 5), START)
    (_, block) = wire.StreamDecoder().decode(payload)
    assert isinstance(block, wire.Block)
    file = MemoryFile()
    (problem,) = file.publish([block]).problems
    assert (problem.group, problem.name, problem.values) == ("time", "num_updates", 1)
    assert file.logged()["time", "num_updates"] == {0: 1}
    assert file.logged()["time", "step"] == {0: 5}


def test_columns_of_mle_logging_take_exact_values_and_longer_text() -> None:
    columns = {
        ("stats", "loss"): Column("stats", "loss", np.dtype("f4"), (), 1, True),
        ("stats", "note"): Column("stats", "note", np.dtype("S5000"), (), 1, True),
        ("time", "time"): Column("time", "time", np.dtype("S5000"), (), 1, True),
    }
    state = FileState("", 1, {}, columns, "", 0.0, 0)
    plan = plan_append(state, blocks_of(({}, {"loss": 0.1, "note": "ä"})), START, lambda c: [])
    after = {a.after.name: a.after for a in plan.appends}
    assert after["loss"].dtype == np.dtype("f8")
    assert after["note"].dtype == Text(0)
    assert after["time"].dtype == np.dtype("S14")
    assert plan.problems == ()


def foreign(ticks: int, **lengths: int) -> FileState:
    """A log of mle-logging's.  Args: ticks: of the clocks that every update has; lengths: of a
    statistic "acc", or of clocks."""
    own = dict.fromkeys(layout.OWN_CLOCKS, ticks)
    found = [Column("time", name, np.dtype("f4"), (), own.get(name, 0), True) for name in own]
    for name, length in lengths.items():
        group = "stats" if name == "acc" else "time"
        found.append(Column(group, name, np.dtype("f4"), (), length, True))
    columns = {(column.group, column.name): column for column in found}
    rows = max(column.length for column in found)
    return FileState("", rows, {}, columns, "", 0.0, 0)


def rows_after_one_more(state: FileState) -> dict[str, list[int]]:
    """The row numbers that a log of mle-logging's gets with its first tick of ours."""
    plan = plan_append(state, blocks_of(({}, {"new": 1.0})), START, lambda column: [])
    (parts,) = [[p for p in plan.parts() if p.rows is not None]]
    return {p.change.after.name: [*p.change.stored_rows, *p.rows.tolist()] for p in parts}


def test_a_rare_statistic_is_not_taken_for_one_that_lacks_its_last_rows() -> None:
    found = rows_after_one_more(foreign(6, acc=2, epoch=2, step=6))
    assert found["acc"] == found["epoch"] == [-2, -1]
    assert found["step"] == [0, 1, 2, 3, 4, 5]


def test_a_column_as_long_as_a_clock_of_every_update_lacks_its_last_rows() -> None:
    state = foreign(6, acc=4, epoch=2)
    columns = dict(state.columns)
    columns["time", "num_updates"] = Column("time", "num_updates", np.dtype("f4"), (), 4, True)
    found = rows_after_one_more(FileState("", 6, {}, columns, "", 0.0, 0))
    assert found["acc"] == [0, 1, 2, 3]
    assert found["epoch"] == [-2, -1]
