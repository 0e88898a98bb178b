"""What a run has stored beside its log: checkpoints, figures, objects, and how meta/ tells of them.

Pure.  The daemon keeps one `Kept` a run and writes it into the log file twice: as the lists that
mle-logging has in meta/, and whole, as JSON in an attribute, for a run that is continued.  Client
and daemon derive the same names from it.  It decides nothing about what is kept (`retention`).
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mle_client import layout
from mle_client.layout import MetaList
from mle_client.retention import (
    Plan,
    Policy,
    Portfolio,
    Saved,
    plan_save,
    portfolio_from_plain,
    to_plain,
)

# The lists of meta/ that a run does not have while it has stored nothing of their kind.
OPTIONAL_LISTS: Final = ("model_ckpt", "init_ckpt", "fig_storage_paths", "extra_storage_paths")


@dataclass(frozen=True, slots=True)
class Kept:
    """All that a run has stored beside its log.

    Args:
        portfolio: its checkpoints.
        figures, extras: paths relative to the experiment's folder, in the order of saving.
    """

    portfolio: Portfolio = field(default_factory=Portfolio)
    figures: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()

    def with_model(self, policy: Policy, saved: Saved) -> tuple[Kept, Plan]:
        """What is kept when one more checkpoint was saved, and what that changes."""
        plan = plan_save(policy, self.portfolio, saved)
        return replace(self, portfolio=plan.portfolio), plan

    def with_init(self) -> Kept:
        """What is kept when the initial checkpoint was saved."""
        return replace(self, portfolio=replace(self.portfolio, init_saved=True))

    def without_init(self) -> Kept:
        """What is kept when the initial checkpoint turns out to be lost."""
        return replace(self, portfolio=replace(self.portfolio, init_saved=False))

    def with_file(self, kind: str, name: str) -> Kept:
        """What is kept when a figure or object was saved under a name, perhaps again."""
        if kind == "figure":
            return replace(self, figures=_with(self.figures, name))
        return replace(self, extras=_with(self.extras, name))

    def in_seed(self, seed_id: str, stored_as: str) -> Kept:
        """What is kept where the seed is stored under another name than it asked for."""
        if seed_id == stored_as:
            return self
        return replace(
            self,
            figures=tuple(layout.in_seed(n, seed_id, stored_as) for n in self.figures),
            extras=tuple(layout.in_seed(n, seed_id, stored_as) for n in self.extras),
        )

    def without_file(self, kind: str, name: str) -> Kept:
        """What is kept when a figure or object turns out to be lost."""
        if kind == "figure":
            return replace(self, figures=tuple(n for n in self.figures if n != name))
        return replace(self, extras=tuple(n for n in self.extras if n != name))


def kept_to_plain(kept: Kept) -> dict[str, Any]:
    """A map of plain values, for msgpack and JSON."""
    return {
        "portfolio": to_plain(kept.portfolio),
        "figures": list(kept.figures),
        "extras": list(kept.extras),
    }


def kept_from_plain(plain: object) -> Kept:
    """What `kept_to_plain` was given; an empty map is nothing kept.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(plain, Mapping):
        raise ValueError("what a run has kept is no map")
    if not plain:
        return Kept()
    try:
        lists = plain["figures"], plain["extras"]
        portfolio = portfolio_from_plain(plain["portfolio"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"what a run has kept is malformed: {error!r}") from error
    for names in lists:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("a list of names holds something else")
    return Kept(portfolio, tuple(lists[0]), tuple(lists[1]))


def kept_to_json(kept: Kept) -> str:
    """One line of JSON; "" for nothing kept."""
    return "" if kept == Kept() else json.dumps(kept_to_plain(kept), ensure_ascii=True)


def kept_from_json(text: str) -> Kept:
    """What `kept_to_json` was given.  Raises: ValueError: it is something else."""
    return kept_from_plain(json.loads(text) if text else {})


def model_names(plan: Plan, seed_id: str, extension: str) -> tuple[str, ...]:
    """The names of one checkpoint, relative to the experiment's folder."""
    number = plan.number
    names = [layout.final_path(seed_id, extension)]
    if plan.every_k:
        names.append(layout.every_k_path(seed_id, number, extension))
    if plan.slot is not None:
        names.append(layout.top_k_path(seed_id, plan.slot, extension))
    if plan.retained:
        names.append(layout.retained_path(seed_id, number, extension))
    return tuple(names)


# --- meta/ ----------------------------------------------------------------------------------------
def meta_lists(
    kept: Kept, policy: Policy, experiment_dir: str, seed_id: str, extension: str
) -> dict[str, MetaList]:
    """The lists of meta/ as mle-logging has them.

    Args:
        experiment_dir: as the user wrote it; paths begin with it.
        extension: of the model files.

    Returns:
        By name; a list that mle-logging would not have written is missing.
    """

    def full(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(posixpath.join(experiment_dir, name) for name in names)

    portfolio = kept.portfolio
    lists: dict[str, MetaList] = {}
    if portfolio.saves:
        lists["model_ckpt"] = full([layout.final_path(seed_id, extension)])
    if portfolio.init_saved:
        lists["init_ckpt"] = full([layout.init_path(seed_id, extension)])
    if policy.time_name is not None:
        lists["ckpt_time_to_track"] = (policy.time_name,)
    if policy.every_k is not None:
        lists["every_k_storage_time"] = _times(portfolio.every_k)
        numbers = [saved.number for saved in portfolio.every_k]
        lists["every_k_ckpt_list"] = full(
            layout.every_k_path(seed_id, number, extension) for number in numbers
        )
    if policy.top_k is not None and policy.top_k_metric is not None:
        metric = policy.top_k_metric
        lists["top_k_metric_name"] = (metric,)
        lists["top_k_storage_time"] = _times(portfolio.top_k)
        slots = range(len(portfolio.top_k))
        lists["top_k_ckpt_list"] = full(
            layout.top_k_path(seed_id, slot, extension) for slot in slots
        )
        # A continued run may have gone by another metric before.
        lists["top_k_performance"] = tuple(
            saved.metrics.get(metric, float("nan")) for saved in portfolio.top_k
        )
    if kept.figures:
        lists["fig_storage_paths"] = full(kept.figures)
    if kept.extras:
        lists["extra_storage_paths"] = full(kept.extras)
    return lists


def kept_from_meta(meta: Mapping[str, Any], policy: Policy) -> Kept:
    """What a log of mle-logging says it has kept.

    Args:
        meta: its meta/ as loaded: single values where a list has one item.
        policy: of the run that continues it; what mle-logging left unsaid is taken from there.
    """
    every_k = [
        Saved(number, time, {}, {})
        for path, time in zip(
            _listed(meta, "every_k_ckpt_list"),
            _listed(meta, "every_k_storage_time"),
            strict=False,
        )
        if (number := layout.every_k_number(str(path))) is not None
    ]
    metric = str(meta.get("top_k_metric_name", policy.top_k_metric or ""))
    top_k = [
        Saved(0, time, {metric: float(score)}, {})
        for time, score in zip(
            _listed(meta, "top_k_storage_time"), _listed(meta, "top_k_performance"), strict=False
        )
    ]
    saves = max([saved.number for saved in every_k], default=0)
    # mle-logging keeps no count of its own: it is at least that of the checkpoints it tells of.
    saves = max(saves, len(top_k), 1 if "model_ckpt" in meta else 0)
    portfolio = Portfolio(
        saves=saves,
        init_saved="init_ckpt" in meta,
        every_k=tuple(every_k),
        top_k=tuple(top_k),
    )
    folder = str(meta.get("experiment_dir", ""))
    figures = [_relative(path, folder, "figures") for path in _listed(meta, "fig_storage_paths")]
    extras = [_relative(path, folder, "extra") for path in _listed(meta, "extra_storage_paths")]
    # Named twice, they were saved twice.
    return Kept(portfolio, tuple(dict.fromkeys(figures)), tuple(dict.fromkeys(extras)))


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return names if name in names else (*names, name)


def _times(checkpoints: Sequence[Saved]) -> tuple[int | float, ...]:
    """When they were saved; not a number where the clock was missing."""
    return tuple(float("nan") if saved.time is None else saved.time for saved in checkpoints)


def _listed(meta: Mapping[str, Any], name: str) -> list[Any]:
    value = meta.get(name, [])
    if isinstance(value, str | int | float):
        return [value]
    return [item.item() if hasattr(item, "item") else item for item in value]


def _relative(path: object, experiment_dir: str, folder: str) -> str:
    """A path of mle-logging's, relative to the experiment's folder, wherever that was then."""
    name = str(path).removeprefix(experiment_dir).lstrip("/")
    if name.startswith(f"{folder}/"):
        return posixpath.normpath(name)
    return posixpath.join(folder, posixpath.basename(name))
