"""Slices: all ticks once and in order, no more at a time than asked, nothing copied for it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import wire
from mle_daemon.pieces import Slice, Slices, for_columns
from tests.strategies import tick_sequences
from tests.unit.daemon.test_planning import Stream, Tick, blocks_of


def ticks_in(slices: list[Slice]) -> list[Any]:
    """The rows and times of all ticks, as slices tell them."""
    return [
        (each.first + i, float(time))
        for each in slices
        for i, time in enumerate(itertools.chain(*(block.times for block in each.blocks)))
    ]


@given(tick_sequences(), st.sampled_from([1, 60, 500, 2**20]), st.integers(0, 5))
def test_every_tick_is_in_one_slice(logged: list[Tick], most: int, first: int) -> None:
    blocks = blocks_of(*logged)
    slices = list(Slices(blocks, first, most))
    times = [float(time) for block in blocks for time in block.times]
    assert ticks_in(slices) == list(enumerate(times, first))
    assert all(len(block) for each in slices for block in each.blocks)
    assert all(each.times.tolist() == [t for b in each.blocks for t in b.times] for each in slices)


def test_a_long_block_is_cut_and_not_copied() -> None:
    (block,) = blocks_of(*[({"step": i}, {"loss": i / 2}) for i in range(1000)])
    assert isinstance(block, wire.FixedBlock)
    slices = list(Slices([block], 0, 10 * block.ticks.itemsize))
    assert [len(each.times) for each in slices] == [10] * 100
    for each in slices:
        (part,) = each.blocks
        assert isinstance(part, wire.FixedBlock)
        assert np.shares_memory(part.ticks, block.ticks)


def test_text_counts_with_its_length() -> None:
    stream = Stream()
    short = stream.blocks(*[({}, {"t": "x"}) for _ in range(64)])
    long = stream.blocks(*[({}, {"t": "x" * 4096}) for _ in range(64)])
    assert len(list(Slices(short, 0, 2**16))) == 1
    assert len(list(Slices(long, 0, 2**16))) > 4


def test_slices_are_larger_where_there_are_many_columns() -> None:
    assert [for_columns(100, n) for n in (0, 1, 300, 512, 10**6)] == [100, 100, 100, 200, 400]


def test_short_blocks_share_a_slice() -> None:
    stream = Stream()
    blocks = [b for i in range(100) for b in stream.blocks(({}, {"a": i} if i % 2 else {"b": i}))]
    assert len(blocks) == 100
    (only,) = Slices(blocks, 0, 2**20)
    pieces = only.pieces["stats", "a"]
    assert [piece.rows.tolist() for piece in pieces] == [list(range(1, 100, 2))]
    assert pieces[0].numbers().tolist() == list(range(1, 100, 2))


def test_without_ticks_there_is_one_empty_slice() -> None:
    (only,) = Slices([], 7, 1)
    assert (only.first, only.pieces, only.times.tolist()) == (7, {}, [])


@pytest.mark.parametrize("most", [1, 2**20])
def test_what_was_made_of_a_slice_is_kept_where_there_is_no_other(most: int) -> None:
    slices = Slices(blocks_of(*[({}, {"t": "x"})] * 3), 0, most)
    one, again = list(slices), list(slices)
    assert (one[0] is again[0]) == (len(one) == 1)
