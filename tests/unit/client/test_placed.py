"""Columns of different updates over the same steps, compared with values placed one by one."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import parallel, placed, summary
from mle_client.blocks import ArrayColumn, one_by_one
from mle_client.placed import Logged
from mle_client.summary import summarise


def logged(rows: Any, values: Any) -> Logged:
    """A column.  Args: rows: None for every update."""
    numbers = None if rows is None else ArrayColumn(np.array(rows, np.int64))
    return Logged(ArrayColumn(np.asarray(values)), numbers)


@st.composite
def columns(draw: st.DrawFn) -> list[Logged]:
    item = draw(st.sampled_from([(), (2,)]))
    dtype = draw(st.sampled_from(["f4", "f8", "i8", "?"]))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        known = sorted(draw(st.sets(st.integers(0, 12))))
        rows = [*range(-draw(st.integers(0, 2)), 0), *known]
        if draw(st.integers(0, 3)) == 0:
            rows = list(range(len(rows)))
        values = np.array(draw(st.lists(st.integers(0, 9), min_size=len(rows), max_size=len(rows))))
        whole = rows == list(range(len(rows))) and draw(st.booleans())
        shaped = np.broadcast_to(values.reshape(-1, *[1] * len(item)), (len(rows), *item))
        found.append(logged(None if whole else rows, shaped.astype(dtype)))
    return found


@given(columns(), st.integers(1, 5), st.integers(1, 5))
def test_every_value_stands_at_its_update_however_it_is_read(
    given_columns: list[Logged], block: int, piece: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placed, "_BLOCK_ROWS", block)
        steps, over_steps, unknown = placed.place(given_columns)
        tables = []
        for column in over_steps:
            table = np.full(column.shape, -1.0)
            for start in range(0, len(column), piece):
                column.read_into(table[start : start + piece], start)
            np.testing.assert_array_equal(column.load(), table)
            tables.append(table)

    rows = [
        range(len(one.column)) if one.rows is None else one.rows.load().tolist()
        for one in given_columns
    ]
    assert steps.tolist() == sorted({row for of in rows for row in of if row >= 0})
    assert unknown == sum(row < 0 for of in rows for row in of)
    for one, of, table in zip(given_columns, rows, tables, strict=True):
        at = dict(zip(of, one.column.load(), strict=True))
        for step, value in zip(steps.tolist(), table, strict=True):
            assert (value == at[step]).all() if step in at else np.isnan(value).all()


@given(columns(), st.integers(1, 5))
def test_whether_columns_have_the_same_steps_is_seen(
    given_columns: list[Logged], size: int
) -> None:
    longest = max(given_columns, key=lambda one: len(one.column))
    steps = np.concatenate([longest.block(start) for start, _ in longest.blocks()] or [[]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placed, "_BLOCK_ROWS", size)
        found = placed.have_steps(given_columns, steps)

    rows = [range(len(c.column)) if c.rows is None else c.rows.load() for c in given_columns]
    assert found == all(np.array_equal(of, steps[: len(of)]) for of in rows)


@pytest.mark.parametrize("each", [one_by_one, parallel.each])
def test_statistics_of_placed_columns_are_those_of_each_update(
    monkeypatch: pytest.MonkeyPatch, each: Any
) -> None:
    monkeypatch.setattr(placed, "_SEVERAL", 1)
    monkeypatch.setattr(placed, "_BLOCK_ROWS", 64)
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(rng.random(1000) < 0.5) for _ in range(5)]
    steps, over_steps, _ = placed.place([logged(of, of * 2) for of in rows], each)
    found = summarise(over_steps, each)

    np.testing.assert_array_equal(found.mean, steps * 2)
    np.testing.assert_array_equal(found.std, 0)
    np.testing.assert_array_equal(found.p90, steps * 2)
    np.testing.assert_array_equal(found.n, [sum(step in of for of in rows) for step in steps])


class Endless:
    """A column that is nowhere as a whole: value i is i times a number."""

    chunk_rows = 1
    dtype = np.dtype(np.int64)

    def __init__(self, length: int, factor: int) -> None:
        self.shape = (length,)
        self._factor = factor

    def __len__(self) -> int:
        return self.shape[0]

    def read_into(self, target: np.ndarray, start: int) -> None:
        target[...] = np.arange(start, start + len(target)) * self._factor

    def load(self) -> np.ndarray:
        raise AssertionError("it is read as a whole")


def test_neither_values_nor_row_numbers_are_held_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(summary, "_BLOCK_BYTES", 2**18)
    monkeypatch.setattr(summary, "_ENOUGH_VALUES", 2**14)
    length, seeds = 50_000, 40
    several = [
        Logged(Endless(length, 1), Endless(length, 1 + (seed == 0))) for seed in range(seeds)
    ]
    tracemalloc.start()
    try:
        steps, over_steps, _ = placed.place(several)
        found = summarise(over_steps)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert found.n[:4].tolist() == [seeds, seeds - 1, seeds, seeds - 1]
    assert found.mean[3] == 3.0
    results = 12 * 8 * len(steps)
    assert peak < results + 2**22 < seeds * length * 8
