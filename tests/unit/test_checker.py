"""The checker finds every kind of fault, and none where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checker import ODD, PRODUCT, STEP, VALUE, WORD, Verdict, columns, judge, tick

SEED = 7
WITH_TEXT = 8


def stored(numbers: list[int]) -> dict[str, Any]:
    steps = np.array(numbers, np.int64)
    return {STEP: steps, **columns(SEED, steps)}


@pytest.mark.parametrize("seed", [SEED, WITH_TEXT])
@pytest.mark.parametrize("number", [0, 1, 99, 10**6])
def test_the_columns_of_many_numbers_are_the_ticks_of_each(number: int, seed: int) -> None:
    clocks, stats = tick(seed, number)
    assert clocks == {STEP: number}
    assert {name: values[0] for name, values in columns(seed, np.array([number])).items()} == stats


def test_text_that_is_not_what_was_logged_is_torn() -> None:
    steps = np.arange(4)
    there = {STEP: steps, **columns(WITH_TEXT, steps)}
    assert judge(there, WITH_TEXT, sent=4, begun=4).faults == {}
    there[WORD][2] = b"else"
    assert judge(there, WITH_TEXT, sent=4, begun=4).faults == {"torn": 1}


@given(st.integers(0, 50), st.integers(0, 1))
def test_what_was_sent_is_right_with_or_without_the_tick_that_was_cut_off(n: int, cut: int) -> None:
    for there in (n, n + cut):
        verdict = judge(stored(list(range(there))), SEED, sent=n, begun=n + cut)
        assert (verdict.stored, verdict.faults) == (there, {})


def test_a_run_that_has_left_nothing_has_lost_what_it_sent() -> None:
    assert judge({}, SEED, sent=0, begun=1).faults == {}
    assert judge({}, SEED, sent=3, begun=3).faults == {"missing": 3, "uncounted": 3}


@pytest.mark.parametrize(
    ("numbers", "faults"),
    [
        ([0, 1, 3], {"missing": 1, "uncounted": 1}),
        ([1, 2, 3], {"missing": 1, "uncounted": 1}),
        ([0, 1, 2], {"missing": 1, "uncounted": 1}),
        ([0, 1, 1, 2, 3], {"doubled": 1}),
        ([0, 1, 2, 3, 0, 1], {"doubled": 2, "reordered": 1}),
        ([0, 2, 1, 3], {"reordered": 1}),
        ([0, 1, 2, 3, 4], {"invented": 1}),
        ([0, 1, 2, 3, -1], {"invented": 1, "reordered": 1}),
    ],
)
def test_rows_that_are_missing_doubled_reordered_or_invented_are_counted(
    numbers: list[int], faults: dict[str, int]
) -> None:
    assert judge(stored(numbers), SEED, sent=4, begun=4).faults == faults


def test_what_is_counted_as_lost_must_be_what_is_missing() -> None:
    assert judge(stored([0, 3]), SEED, sent=4, begun=4, lost=2).faults == {"missing": 2}
    assert judge(stored([0, 1, 2, 3]), SEED, sent=4, begun=4, lost=1).faults == {"uncounted": 1}


@pytest.mark.parametrize("name", [VALUE, PRODUCT, ODD])
@pytest.mark.parametrize("change", ["another value", "a row less", "a row more", "no column"])
def test_a_row_that_is_not_whole_is_torn(name: str, change: str) -> None:
    rows = stored([0, 1, 2])
    if change == "another value":
        rows[name] = rows[name].copy()
        rows[name][1] = not rows[name][1]
    elif change == "no column":
        del rows[name]
    else:
        rows[name] = rows[name][:2] if change == "a row less" else np.append(rows[name], 1)
    assert judge(rows, SEED, sent=3, begun=3).faults.keys() == {"torn"}


def test_verdicts_add_up() -> None:
    total = Verdict(stored=3, missing=1) + Verdict(stored=2, torn=4)
    assert (total.stored, total.faults) == (5, {"missing": 1, "torn": 4})
