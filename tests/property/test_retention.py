"""What is kept, decided save by save and across restarts, is what hindsight would keep.

An oracle looks at all that was ever saved.  Streams have NaN, infinities, ties, missing metrics and
clocks that jump; at random points all that is known travels through JSON text, as it does when a
run is continued.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence

import pytest

from mle_client.retention import (
    EveryK,
    KeepPeriod,
    LatestN,
    Policy,
    Portfolio,
    Rule,
    Saved,
    TopK,
    plan_save,
    policy_from_plain,
    portfolio_from_plain,
    saved_from_plain,
    to_plain,
)

STREAMS, BATCHES = 10_000, 10
LONGEST = 16
METRICS = ("loss", "acc")
NONE_SAVED = Portfolio()


# --- the oracle -----------------------------------------------------------------------------------
def beats(a: Saved, b: Saved, metric: str, sign: int) -> bool:
    """Whether one checkpoint is to be kept rather than another.  Args: sign: -1 for "max"."""
    x, y = sign * a.metrics[metric], sign * b.metrics[metric]
    tie = x == y or (x != x and y != y)
    return a.number < b.number if tie else y != y or x < y


def best(history: Sequence[Saved], metric: str, k: int, sign: int) -> set[int]:
    """Those that fewer than k others beat."""
    rated = [s for s in history if metric in s.metrics]
    return {s.number for s in rated if sum(beats(o, s, metric, sign) for o in rated) < k}


def slots(history: Sequence[Saved], metric: str, k: int, sign: int) -> list[int]:
    """Who is in which slot: a newcomer takes the place of the one that is no longer among them."""
    taken: list[int] = []
    for end in range(1, len(history) + 1):
        members = best(history[:end], metric, k, sign)
        for number in members - set(taken):
            free = [i for i, old in enumerate(taken) if old not in members]
            place = free[0] if free else len(taken)
            taken[place : place + 1] = [number]
    return taken


def asked_for(rule: Rule, history: Sequence[Saved]) -> set[int]:
    """What one rule keeps of all that was saved."""
    if isinstance(rule, TopK):
        return best(history, rule.metric, rule.k, 1 if rule.mode == "min" else -1)
    if isinstance(rule, EveryK):
        return set(range(rule.k, len(history) + 1, rule.k))
    if isinstance(rule, LatestN):
        return set(range(max(1, len(history) + 1 - rule.n), len(history) + 1))
    first: dict[float, int] = {}
    for s in reversed(history):
        if math.isfinite(value := s.clocks.get(rule.clock, math.nan)):
            first[math.floor(value / rule.period)] = s.number
    return set(first.values())


# --- streams --------------------------------------------------------------------------------------
def any_value(rng: random.Random, earlier: list[float]) -> float | None:
    """A metric: 20 % missing, 20 % NaN, 30 % ties, the rest new, infinities among them."""
    chance = rng.random()
    if chance < 0.4:
        return None if chance < 0.2 else math.nan
    if earlier and chance < 0.7:
        return rng.choice(earlier)
    earlier.append(rng.choice((math.inf, -math.inf, -0.0, 0.0, *[rng.gauss(0, 1)] * 12)))
    return earlier[-1]


def any_stream(rng: random.Random) -> list[Saved]:
    """What a run saves."""
    earlier: dict[str, list[float]] = {name: [] for name in METRICS}
    clock: int | float = 0
    history = []
    for number in range(1, rng.randint(1, LONGEST) + 1):
        clock += rng.choice((0, 1, 1, 2, 0.5, 7, -3))
        at = rng.choice((*[clock] * 9, None, math.nan, math.inf))
        metrics = {name: any_value(rng, earlier[name]) for name in METRICS}
        known = {name: value for name, value in metrics.items() if value is not None}
        history.append(Saved(number, at, known, {} if at is None else {"epoch": at}))
    return history


def any_rule(rng: random.Random) -> Rule:
    return rng.choice(
        (
            TopK(rng.choice(METRICS), rng.randint(1, 4), rng.choice(("min", "max"))),
            EveryK(rng.randint(1, 5)),
            LatestN(rng.randint(1, 4)),
            KeepPeriod("epoch", rng.choice((1, 3, 0.5, 2.5))),
        )
    )


def any_policy(rng: random.Random) -> Policy:
    return Policy(
        every_k=rng.choice((None, 1, 2, 5)),
        top_k=rng.randint(1, 4),
        top_k_metric=rng.choice(METRICS),
        minimize=rng.random() < 0.5,
        rules=tuple(any_rule(rng) for _ in range(rng.randint(0, 3))),
    )


# --- one against the other ------------------------------------------------------------------------
def numbers(checkpoints: Sequence[Saved]) -> list[int]:
    return [s.number for s in checkpoints]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_what_is_kept_is_what_hindsight_would_keep(batch: int) -> None:
    for seed in range(batch, STREAMS, BATCHES):
        rng = random.Random(seed)
        policy, history = any_policy(rng), any_stream(rng)
        portfolio = NONE_SAVED
        for saved in history:
            if rng.random() < 0.2:  # a restart
                policy = policy_from_plain(json.loads(json.dumps(to_plain(policy))))
                portfolio = portfolio_from_plain(json.loads(json.dumps(to_plain(portfolio))))
                saved = saved_from_plain(json.loads(json.dumps(to_plain(saved))))
            before = set(numbers(portfolio.retained))
            plan = plan_save(policy, portfolio, saved)
            portfolio = plan.portfolio

            after = set(numbers(portfolio.retained))
            assert set(plan.evicted) == before - after
            assert (saved.number in after) == plan.retained == bool(policy.rules)
            assert (plan.slot is not None) == (saved in portfolio.top_k)
            assert plan.every_k == (saved in portfolio.every_k)

        compare(policy, portfolio, history)


def compare(policy: Policy, portfolio: Portfolio, history: list[Saved]) -> None:
    """Hold what is kept against the oracle."""
    sign = 1 if policy.minimize else -1
    assert policy.top_k is not None
    assert policy.top_k_metric is not None
    assert numbers(portfolio.top_k) == slots(history, policy.top_k_metric, policy.top_k, sign)
    every = asked_for(EveryK(policy.every_k), history) if policy.every_k else set()
    assert set(numbers(portfolio.every_k)) == every
    wanted = set().union(*(asked_for(rule, history) for rule in policy.rules))
    assert set(numbers(portfolio.retained)) == (wanted | {len(history)} if policy.rules else set())
    assert portfolio.saves == len(history)
