"""Mean, spread and percentiles over seeds."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mle_client import parallel, summary
from mle_client.blocks import ArrayColumn
from mle_client.summary import Summary

FRACTIONS = {"p10": 10, "p25": 25, "p50": 50, "p75": 75, "p90": 90}
KEYS = ["mean", "std", "p50", "p10", "p25", "p75", "p90"]


def summarise(columns: Sequence[np.ndarray], *each: Any) -> Summary:
    return summary.summarise([ArrayColumn(column) for column in columns], *each)


def by_numpy(columns: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The same with numpy, value by value, on what is there."""
    length = max(map(len, columns))
    item = columns[0].shape[1:]
    names = ("mean", "std", *FRACTIONS)
    expected = {name: np.full((length, *item), np.nan) for name in names}
    expected["n"] = np.zeros((length, *item), np.int64)
    for at in np.ndindex((length, *item)):
        here = np.array([c[at] for c in columns if at[0] < len(c)], np.float64)
        here = here[~np.isnan(here)]
        expected["n"][at] = len(here)
        if len(here):
            expected["mean"][at] = here.mean()
            expected["std"][at] = here.std()
            for name, percent in FRACTIONS.items():
                expected[name][at] = np.percentile(here, percent)
    return expected


floats = st.floats(-1e6, 1e6, width=32) | st.just(np.nan)
items = st.sampled_from([(), (3,), (2, 2)])
dtypes = st.sampled_from([np.float64, np.float32, np.int64, np.bool_, np.float16, np.longdouble])


@st.composite
def ragged_columns(draw) -> list[np.ndarray]:
    item, dtype = draw(items), draw(dtypes)
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=7))
    columns = []
    for length in lengths:
        column = draw(hnp.arrays(np.float64, (length, *item), elements=floats))
        if np.dtype(dtype).kind in "ib":
            column = np.nan_to_num(column)
        elif dtype is np.float16:
            column = np.clip(column, -1000, 1000)
        columns.append(column.astype(dtype))
    return columns


@given(ragged_columns(), st.sampled_from([2**26, 64]), st.sampled_from([2**17, 4]))
def test_summary_is_what_numpy_computes_on_the_values_that_are_there(
    columns, block_bytes, part_values
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "_BLOCK_BYTES", block_bytes)  # 64: a block ends inside a column
        patch.setattr(summary, "_PART_VALUES", part_values)
        found = summarise(columns)
    expected = by_numpy(columns)
    assert list(found) == KEYS
    assert found.n.tolist() == expected["n"].tolist()
    for name in KEYS:
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-6)


def test_percentiles_of_unequal_lengths_ignore_the_missing_rest() -> None:
    # mle-logging takes uninitialised memory here.
    columns = [np.arange(1.0, 7), np.arange(11.0, 17), np.array([21.0, 22.0, 23.0])]
    found = summarise(columns)
    assert found.p50.tolist() == [11, 12, 13, 9, 10, 11]
    assert found.p90.tolist() == pytest.approx([19, 20, 21, 13, 14, 15])
    assert found.n.tolist() == [3, 3, 3, 2, 2, 2]


def test_summary_of_one_seed_is_that_seed_exactly() -> None:
    values = np.array([0.1, -0.0, 1e308, 5e-324])
    found = summarise([values])
    for name in ("mean", *FRACTIONS):
        assert found[name].tolist() == values.tolist()
    assert found["std"].tolist() == [0.0] * 4


def test_infinite_values_do_not_make_percentiles_undefined() -> None:
    found = summarise([np.array([1.0, 1.0]), np.array([np.inf, -np.inf]), np.array([2.0, 2.0])])
    assert found.p50.tolist() == [2.0, 1.0]
    assert found.p90.tolist() == [np.inf, pytest.approx(1.8)]
    assert found.p10.tolist() == [pytest.approx(1.2), -np.inf]
    assert found["mean"].tolist() == [np.inf, -np.inf]


def test_the_order_of_seeds_does_not_change_a_bit_of_the_result() -> None:
    columns = list(np.random.default_rng(0).normal(size=(7, 50)) * 10.0 ** np.arange(7)[:, None])
    one, other = summarise(columns), summarise(columns[::-1])
    assert all((one[name] == other[name]).all() for name in one)


def test_arguments_are_left_as_they_were() -> None:
    column = np.array([3.0, 1.0, 2.0])
    summarise([column, column[::-1]])
    assert column.tolist() == [3.0, 1.0, 2.0]


def test_steps_without_any_value_have_n_0_and_no_warning() -> None:
    found = summarise([np.array([np.nan, 1.0])])
    assert found.n.tolist() == [0, 1]
    assert np.isnan(found["mean"][0])
    assert np.isnan(found.p50[0])


def test_columns_without_values_give_a_summary_without_values() -> None:
    found = summarise([np.empty((0, 3))])
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(KEYS, (0, 3))
    assert found.n.shape == (0, 3)
    assert summarise([np.empty((4, 0))])["mean"].shape == (4, 0)


# --- blocks ---------------------------------------------------------------------------------------
class Chunked(ArrayColumn):
    """A column that notes what is read of it."""

    def __init__(self, values: np.ndarray, chunk_rows: int) -> None:
        super().__init__(values)
        self.rows_of_a_chunk = chunk_rows
        self.reads: list[tuple[int, int]] = []

    @property
    def chunk_rows(self) -> int:
        return self.rows_of_a_chunk

    def read_into(self, target: np.ndarray, start: int) -> None:
        self.reads.append((start, start + len(target)))
        super().read_into(target, start)


@pytest.mark.parametrize(
    ("fitting", "expected"), [(100, [(0, 50)]), (25, [(0, 20), (20, 40), (40, 50)])]
)
def test_blocks_are_whole_chunks(monkeypatch, fitting, expected) -> None:
    monkeypatch.setattr(summary, "_BLOCK_BYTES", 3 * 8 * fitting)
    columns = [Chunked(np.arange(50.0), chunk_rows=10) for _ in range(3)]
    summary.summarise(columns)
    assert all(column.reads == expected for column in columns)


def test_of_large_chunks_a_block_has_no_more_than_one(monkeypatch) -> None:
    monkeypatch.setattr(summary, "_ENOUGH_VALUES", 16)
    columns = [Chunked(np.arange(20.0), chunk_rows=10) for _ in range(3)]
    summary.summarise(columns)
    assert columns[0].reads == [(0, 10), (10, 20)]


def test_chunks_that_do_not_fit_are_read_in_even_parts(monkeypatch) -> None:
    monkeypatch.setattr(summary, "_BLOCK_BYTES", 3 * 8 * 7)
    column = Chunked(np.arange(20.0), chunk_rows=10)
    summary.summarise([column] * 3)
    assert column.reads[::3] == [(0, 5), (5, 10), (10, 15), (15, 20)]


def test_memory_is_bounded_by_the_block_and_not_by_the_columns(monkeypatch) -> None:
    """What is read of all seeds before the next step of any is read."""
    monkeypatch.setattr(summary, "_BLOCK_BYTES", 8 * 1_000)
    columns = [Chunked(np.zeros(5_000), chunk_rows=64) for _ in range(100)]
    summary.summarise(columns)
    rows = max(stop - start for column in columns for start, stop in column.reads)
    assert rows * len(columns) <= 1_000


def test_columns_that_ended_are_not_read_any_more(monkeypatch) -> None:
    monkeypatch.setattr(summary, "_BLOCK_BYTES", 2 * 8 * 10)
    long, short = Chunked(np.zeros(30), 10), Chunked(np.zeros(5), 10)
    summary.summarise([long, short])
    assert short.reads == [(0, 5)]


def test_threads_change_nothing_but_the_time() -> None:
    rng = np.random.default_rng(1)
    columns = [rng.normal(size=5_000 + 10 * i) for i in range(60)]
    names: set[str] = set()

    def each(function: Callable[[Any], None], items: Sequence[Any]) -> None:
        def noted(item: Any) -> None:
            names.add(threading.current_thread().name)
            function(item)

        parallel.each(noted, items)

    one, other = summarise(columns), summarise(columns, each)
    assert names
    assert all((one[name] == other[name]).all() for name in KEYS)
    assert (one.n == other.n).all()


def test_little_is_not_shared_with_threads() -> None:
    def each(function: Callable[[Any], None], items: Sequence[Any]) -> None:
        raise AssertionError

    summarise([np.zeros(10)] * 3, each)


# --- the summary ----------------------------------------------------------------------------------
def test_how_many_seeds_there_are_can_be_asked_for_in_every_way() -> None:
    found = Summary({"mean": np.zeros(2)}, np.array([3, 2]))
    assert "n" in found
    assert "mean" in found
    assert "p1" not in found
    assert found.get("n") is found["n"] is found.n
    assert (found.get("p1"), found.get("p1", 5)) == (None, 5)


def test_whoever_goes_through_a_summary_meets_the_keys_of_mle_logging_alone() -> None:
    found = summarise([np.zeros((3, 2)), np.ones((2, 2))])
    assert list(found) == list(found.keys()) == [name for name, _ in found.items()] == KEYS
    assert len(found) == 7
    assert found.n is found["n"]
    assert found.n.dtype == np.int64
    assert found.n.tolist() == [[2, 2], [2, 2], [1, 1]]
    assert set(found.toDict()) == set(KEYS)


def test_a_name_that_a_summary_lacks_is_an_error_that_names_the_others() -> None:
    found = summarise([np.zeros(3)])
    with pytest.raises(KeyError, match="no 'p95' here; there is 'mean', 'std'"):
        _ = found["p95"]
    with pytest.raises(AttributeError, match="no 'p95' here"):
        _ = found.p95


def test_some_steps_of_a_summary_are_a_summary() -> None:
    found = summarise([np.arange(5.0), np.arange(3.0)]).at(np.array([1, 4]))
    assert found["mean"].tolist() == [1.0, 4.0]
    assert found.n.tolist() == [2, 1]
    assert isinstance(found, Summary)


@pytest.mark.parametrize(
    "clone",
    [copy.copy, copy.deepcopy, Summary.copy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["copy", "deepcopy", "method", "pickle"],
)
def test_a_cloned_summary_has_its_n(clone) -> None:
    cloned = clone(summarise([np.arange(5.0), np.arange(3.0)]))
    assert isinstance(cloned, Summary)
    assert list(cloned) == KEYS
    assert cloned.n.tolist() == [2, 2, 2, 1, 1]
    assert cloned.p50.tolist() == [0, 1, 2, 3, 4]
