"""One rule at a time: what it takes as arguments, and which checkpoints it wants."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mle_client.rules import EveryK, KeepPeriod, LatestN, Rule, Saved, TopK, wanted


def saves(*values: float | None, name: str = "loss") -> list[Saved]:
    """Checkpoints 1, 2, … with these values of a metric; None for none."""
    return [
        Saved(i, None, {} if value is None else {name: value}, {})
        for i, value in enumerate(values, 1)
    ]


def at(*values: Any) -> list[Saved]:
    """Checkpoints 1, 2, … at these values of the clock "epoch"."""
    return [
        Saved(i, None, {}, {} if value is None else {"epoch": value})
        for i, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize(
    ("rule", "candidates", "numbers"),
    [
        (TopK("loss", 2), saves(3.0, 1.0, 2.0), {2, 3}),
        (TopK("loss", 2, "max"), saves(3.0, 1.0, 2.0), {1, 3}),
        (TopK("loss", 2), saves(2.0, 1.0, 2.0, 2.0), {1, 2}),
        (TopK("loss", 2), saves(math.inf, -math.inf, 0.0), {2, 3}),
        (TopK("loss", 2, "max"), saves(math.inf, -math.inf, 0.0), {1, 3}),
        (TopK("loss", 2), saves(math.nan, math.inf, 9.0), {2, 3}),
        (TopK("loss", 2, "max"), saves(math.nan, -math.inf, 9.0), {2, 3}),
        (TopK("loss", 2), saves(math.nan, math.nan, math.nan), {1, 2}),
        (TopK("loss", 5), saves(None, math.nan, None, 1.0), {2, 4}),
        (TopK("other", 5), saves(1.0, 2.0), set()),
        (EveryK(2), saves(*[0.0] * 5), {2, 4}),
        (LatestN(2), saves(*[0.0] * 5), {4, 5}),
        (LatestN(9), saves(0.0), {1}),
        (KeepPeriod("epoch", 5), at(0, 1, 4, 5, 9, 10), {1, 4, 6}),
        (KeepPeriod("epoch", 5), at(3, 8, 2, 14), {1, 2, 4}),
        (KeepPeriod("epoch", 5), at(-1, -5, 0), {1, 3}),
        (KeepPeriod("epoch", 0.5), at(0.0, 0.4, 0.5, 1.7), {1, 3, 4}),
        (KeepPeriod("epoch", 0.1), at(0.95, 1.0, 1.05), {1, 2}),
        (KeepPeriod("epoch", 5), at(math.nan, math.inf, -math.inf, None, 1), {5}),
        (KeepPeriod("epoch", 5), at(2**63, 2**63 + 1, 2**63 + 2), {1, 3}),
        (KeepPeriod("epoch", 0.5), at(10**400, 1), {2}),
    ],
)
def test_each_rule_wants_these(rule: Rule, candidates: list[Saved], numbers: set[int]) -> None:
    assert wanted(rule, candidates) == numbers


def test_a_period_is_that_of_orbax_where_saves_hit_its_multiples() -> None:
    steps = list(range(0, 41, 2))
    kept = wanted(KeepPeriod("epoch", 10), at(*steps))
    assert [steps[number - 1] for number in sorted(kept)] == [s for s in steps if s % 10 == 0]


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: TopK("", 3), ValueError, "TopK: metric is empty"),
        (lambda: TopK(3, 3), TypeError, "TopK: metric=3"),  # type: ignore[arg-type]
        (lambda: TopK("loss", 0), ValueError, "TopK: k=0: give an int of at least 1"),
        (lambda: TopK("loss", True), TypeError, "TopK: k=True"),
        (lambda: TopK("loss", 2.0), TypeError, "TopK: k=2.0"),  # type: ignore[arg-type]
        (lambda: TopK("loss", 2, "least"), ValueError, "give 'min' or 'max'"),
        (lambda: EveryK(-1), ValueError, "EveryK: k=-1"),
        (lambda: EveryK("2"), TypeError, "EveryK: k='2'"),  # type: ignore[arg-type]
        (lambda: LatestN(0), ValueError, "LatestN: n=0"),
        (lambda: KeepPeriod("", 1), ValueError, "KeepPeriod: clock is empty"),
        (lambda: KeepPeriod("epoch", 0), ValueError, "period=0: give a finite number above 0"),
        (lambda: KeepPeriod("epoch", -0.5), ValueError, "period=-0.5"),
        (lambda: KeepPeriod("epoch", math.nan), ValueError, "period=nan"),
        (lambda: KeepPeriod("epoch", math.inf), ValueError, "period=inf"),
        (lambda: KeepPeriod("epoch", "5"), TypeError, "period='5'"),  # type: ignore[arg-type]
    ],
)
def test_a_rule_that_makes_no_sense_says_what_to_give(
    make: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        make()
