"""Which checkpoints a run keeps: every k-th, the best k, and what its rules want.

Pure, and the same in client and daemon, so that a name is known before a file is there.  It names
no file (`layout`, `kept`) and removes none.  What it decides about a checkpoint hangs on what was
saved, not on what lies in a folder.

Rules are joined: a checkpoint stays while one of them wants it.  They are asked about what is kept,
and decide as if all that was ever saved were there (`rules` says why).

A policy, a portfolio and a checkpoint become maps of plain values and back, for msgpack and for
Python's json, which knows NaN and infinity:

    saved      {number, time, metrics: {name: float}, clocks: {name: number}}
    policy     the arguments of `Policy`; of a rule its own, and "rule": the name of its class
    portfolio  the arguments of `Portfolio`, with lists of checkpoints

`docs/retention.md` is for users.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from mle_client.rules import (
    EveryK,
    KeepPeriod,
    LatestN,
    Rule,
    Saved,
    TopK,
    check_count,
    check_name,
    is_number,
    order,
    wanted,
)

__all__ = [
    "EveryK",
    "KeepPeriod",
    "LatestN",
    "Plan",
    "Policy",
    "Portfolio",
    "Rule",
    "Saved",
    "TopK",
    "plan_save",
    "policy_from_plain",
    "portfolio_from_plain",
    "saved_from_plain",
    "to_plain",
]

_RULES: Final[dict[str, type[Rule]]] = {
    rule.__name__: rule for rule in (TopK, EveryK, LatestN, KeepPeriod)
}


# --- what is decided about ------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Policy:
    """Which checkpoints are kept; without any argument, the latest alone.

    Args:
        every_k: `save_every_k_ckpt`.
        top_k: `save_top_k_ckpt`.
        top_k_metric: `top_k_metric_name`, with `top_k` alone.
        minimize: `top_k_minimize_metric`.
        time_name: `ckpt_time_to_track`.
        rules: `retention`; a checkpoint stays while one of them wants it.

    Raises:
        TypeError, ValueError: an argument makes no sense; says what to give.
    """

    every_k: int | None = None
    top_k: int | None = None
    top_k_metric: str | None = None
    minimize: bool = True
    time_name: str | None = None
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if self.every_k is not None:
            check_count("save_every_k_ckpt", self.every_k)
        if self.top_k is not None:
            check_count("save_top_k_ckpt", self.top_k)
            if self.top_k_metric is None:
                raise ValueError(
                    f"save_top_k_ckpt={self.top_k!r} needs top_k_metric_name: "
                    "give the name of a statistic"
                )
        for argument, name in (
            ("top_k_metric_name", self.top_k_metric),
            ("ckpt_time_to_track", self.time_name),
        ):
            if name is not None:
                check_name(argument, name)
        if not isinstance(self.minimize, bool):
            raise TypeError(f"top_k_minimize_metric={self.minimize!r}: give True or False")
        object.__setattr__(self, "rules", _checked_rules(self.rules))

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The statistics that decide, each once; `Saved.metrics` is to have them."""
        best = [self.top_k_metric] if self.top_k is not None and self.top_k_metric else []
        return tuple(dict.fromkeys(best + [r.metric for r in self.rules if isinstance(r, TopK)]))

    @property
    def clock_names(self) -> tuple[str, ...]:
        """The clocks that decide, each once; `Saved.clocks` is to have them."""
        return tuple(dict.fromkeys(r.clock for r in self.rules if isinstance(r, KeepPeriod)))


@dataclass(frozen=True, slots=True)
class Portfolio:
    """All checkpoints that a run keeps.

    Args:
        saves: number of the latest checkpoint; 0 before the first.
        init_saved: whether there is an initial checkpoint, which has no number.
        every_k: those of `Policy.every_k`, oldest first.
        top_k: those of `Policy.top_k`, by slot.
        retained: those of `Policy.rules`, oldest first.
    """

    saves: int = 0
    init_saved: bool = False
    every_k: tuple[Saved, ...] = ()
    top_k: tuple[Saved, ...] = ()
    retained: tuple[Saved, ...] = ()

    def live(self, number: int) -> bool:
        """Whether a checkpoint has a name besides that of the latest."""
        return any(saved.number == number for saved in (*self.every_k, *self.top_k, *self.retained))


@dataclass(frozen=True, slots=True)
class Plan:
    """What saving one checkpoint changes.

    Args:
        portfolio: all that is kept then.
        number: of the checkpoint.
        every_k: whether it is kept for ever as every k-th.
        slot: its place among the best, which it takes from the one there; None for none.
        retained: whether the rules have a say about it: then it is kept now, the newest never goes.
        evicted: numbers of checkpoints that the rules kept up to now.
    """

    portfolio: Portfolio
    number: int
    every_k: bool
    slot: int | None
    retained: bool
    evicted: tuple[int, ...]


# --- deciding -------------------------------------------------------------------------------------
def plan_save(policy: Policy, portfolio: Portfolio, saved: Saved) -> Plan:
    """Decide what is kept when one more checkpoint was saved.

    Without rules nothing is evicted: what an earlier life of the run retained stays.

    Args:
        saved: its number is above `portfolio.saves`.

    Raises:
        ValueError: it is not.
    """
    if saved.number <= portfolio.saves:
        raise ValueError(f"checkpoint {saved.number} comes after checkpoint {portfolio.saves}")
    is_kth = policy.every_k is not None and saved.number % policy.every_k == 0
    slot = _slot(policy, portfolio.top_k, saved)
    retained = portfolio.retained
    evicted: tuple[int, ...] = ()
    if policy.rules:
        retained, evicted = _retain(policy.rules, (*portfolio.retained, saved))
    top_k = portfolio.top_k
    if slot is not None:
        top_k = (*top_k[:slot], saved, *top_k[slot + 1 :])
    after = replace(
        portfolio,
        saves=saved.number,
        every_k=(*portfolio.every_k, saved) if is_kth else portfolio.every_k,
        top_k=top_k,
        retained=retained,
    )
    return Plan(after, saved.number, is_kth, slot, bool(policy.rules), evicted)


def _slot(policy: Policy, best: Sequence[Saved], saved: Saved) -> int | None:
    """The slot that a checkpoint takes: a free one, or that of the worst if it is better.

    mle-logging takes the first of the slots with the worst value.  Here it is that of the youngest
    among them, since ties keep the older, and the first where their ages are not known.
    """
    metric = policy.top_k_metric
    if policy.top_k is None or metric is None or metric not in saved.metrics:
        return None
    if len(best) < policy.top_k:
        return len(best)
    rank = order(metric, "min" if policy.minimize else "max")
    worst = max(range(len(best)), key=lambda slot: rank(best[slot]))
    return worst if rank(saved) < rank(best[worst]) else None


def _retain(
    rules: Iterable[Rule], candidates: Sequence[Saved]
) -> tuple[tuple[Saved, ...], tuple[int, ...]]:
    """What the rules keep, and the numbers of the others.  Args: candidates: oldest first."""
    kept = {candidates[-1].number}.union(*(wanted(rule, candidates) for rule in rules))
    return (
        tuple(saved for saved in candidates if saved.number in kept),
        tuple(saved.number for saved in candidates if saved.number not in kept),
    )


# --- as plain values ------------------------------------------------------------------------------
def to_plain(value: Saved | Policy | Portfolio | Rule) -> dict[str, Any]:
    """A map of plain values."""
    plain = {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    return {"rule": type(value).__name__, **plain} if isinstance(value, Rule) else plain


def saved_from_plain(plain: object) -> Saved:
    """What `to_plain` was given.  Raises: ValueError: it is something else."""
    given = _map_of(plain, {"number", "time", "metrics", "clocks"})
    _check_plain(_is_whole(given["number"]), "the number of a checkpoint", given["number"])
    time = given["time"]
    _check_plain(time is None or is_number(time), "the time of a checkpoint", time)
    values = {}
    for name in ("metrics", "clocks"):
        values[name] = _map_of(given[name])
        for value in values[name].values():
            _check_plain(is_number(value), f"one of the {name} of a checkpoint", value)
    try:
        metrics = {name: float(value) for name, value in values["metrics"].items()}
    except OverflowError as error:
        raise ValueError("one of the metrics of a checkpoint is too large") from error
    return Saved(given["number"], time, metrics, values["clocks"])


def policy_from_plain(plain: object) -> Policy:
    """What `to_plain` was given; an empty map is a policy without arguments.

    Raises:
        ValueError: it is something else.
    """
    given = _map_of(plain)
    rules = [_map_of(rule) for rule in _list_of(given.pop("rules", []))]
    try:
        made = [_RULES[rule.pop("rule")](**rule) for rule in rules]
        return Policy(**given, rules=tuple(made))
    except (KeyError, TypeError) as error:
        raise ValueError(f"a policy of checkpoints is malformed: {error!r}") from error


def portfolio_from_plain(plain: object) -> Portfolio:
    """What `to_plain` was given.  Raises: ValueError: it is something else."""
    given = _map_of(plain, {item.name for item in fields(Portfolio)})
    saves, init_saved = given["saves"], given["init_saved"]
    _check_plain(_is_whole(saves), "the number of saves", saves)
    _check_plain(isinstance(init_saved, bool), "init_saved", init_saved)
    lists = {
        name: tuple(saved_from_plain(item) for item in _list_of(given[name]))
        for name in ("every_k", "top_k", "retained")
    }
    numbers = [saved.number for kept in lists.values() for saved in kept]
    _check_plain(max(numbers, default=0) <= saves, "a checkpoint after the latest", numbers)
    numbers = [saved.number for saved in lists["retained"]]
    _check_plain(sorted(set(numbers)) == numbers, "the order of retained checkpoints", numbers)
    return Portfolio(saves, init_saved, **lists)


def _plain(value: Any) -> Any:
    if isinstance(value, Saved | Rule):
        return to_plain(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _map_of(plain: object, names: set[str] | None = None) -> dict[str, Any]:
    """A copy of a map with text for keys.  Args: names: which, where they are given."""
    if not isinstance(plain, Mapping) or not all(isinstance(key, str) for key in plain):
        raise ValueError(f"not a map of names: {_short(plain)}")
    if names is not None and set(plain) != names:
        raise ValueError(f"not a map of {', '.join(sorted(names))}: {_short(plain)}")
    return dict(plain)


def _list_of(plain: object) -> Sequence[object]:
    if not isinstance(plain, list | tuple):
        raise ValueError(f"not a list: {_short(plain)}")
    return plain


def _check_plain(good: bool, what: str, value: object) -> None:
    if not good:
        raise ValueError(f"{what} is malformed: {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


# --- checks ---------------------------------------------------------------------------------------
def _checked_rules(rules: object) -> tuple[Rule, ...]:
    asked = "give a list of rules, such as [TopK('loss', k=3), LatestN(2)]"
    if isinstance(rules, Rule) or not isinstance(rules, Sequence):
        raise TypeError(f"retention={rules!r}: {asked}")
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"retention: {rule!r} is none of {', '.join(_RULES)}: {asked}")
    return tuple(rules)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
