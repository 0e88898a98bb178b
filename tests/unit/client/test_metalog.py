"""Runs by name: by attribute and key, chosen, counted and named."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from mle_client.attrdict import AttrDict
from mle_client.metalog import MetaLog
from mle_client.runlog import RunLog


def run(loss: list[float], **others: list[float]) -> RunLog:
    stats = {"loss": np.array(loss), **{key: np.array(value) for key, value in others.items()}}
    ticks = np.arange(1, len(loss) + 1)
    return RunLog({"eval_id": "x"}, stats, {"num_updates": ticks, "num_steps": 10 * ticks})


def test_runs_are_reached_by_attribute_key_and_iteration() -> None:
    log = MetaLog({"seed_1": run([1.0]), "filter": run([2.0])})
    assert log.seed_1.stats.loss is log["seed_1"]["stats"]["loss"]
    assert log["filter"].stats.loss.tolist() == [2.0]
    assert list(log) == list(log.keys()) == log.eval_ids == ["seed_1", "filter"]
    assert [name for name, _ in log.items()] == log.eval_ids
    assert len(log) == log.num_configs == 2
    assert repr(log) == "MetaLog(seed_1, filter)"


def test_names_of_variables_are_those_of_all_runs_not_of_the_first() -> None:
    log = MetaLog({"a": run([1.0]), "b": AttrDict(seed_1=run([1.0], acc=[2.0]))})
    assert log.meta_vars == ["eval_id"]
    assert log.stats_vars == ["loss", "acc"]
    assert log.time_vars == ["num_updates", "num_steps"]


def test_filter_keeps_the_order_asked_for_and_refuses_unknown_names() -> None:
    log = MetaLog({"a": run([1.0]), "b": run([2.0]), "c": run([3.0])})
    assert log.filter(["c", "a"]).eval_ids == ["c", "a"]
    assert log.eval_ids == ["a", "b", "c"]
    with pytest.raises(KeyError, match="no 'd' here; there is 'a', 'b', 'c'"):
        log.filter(["d"])


def test_one_name_is_a_selection_too() -> None:
    log = MetaLog({"seed_0": run([1.0]), "s": run([2.0])})
    assert log.filter("seed_0").eval_ids == ["seed_0"]


def test_runs_can_be_had_as_of_a_dict_also_those_named_like_its_methods() -> None:
    names = ["values", "get", "keys", "filter"]
    log = MetaLog({name: run([float(i)]) for i, name in enumerate(names)})
    assert [entry.stats.loss[0] for entry in log.values()] == [0, 1, 2, 3]
    assert log.get("values") is log["values"]
    assert (log.get("x"), log.get("x", 5)) == (None, 5)
    assert [log[name].stats.loss[0] for name in names] == [0, 1, 2, 3]


def test_what_mle_logging_is_told_of_aggregation_changes_nothing() -> None:
    for arguments in ((True,), (False,)):
        assert MetaLog({"seed_0": run([1.0])}, *arguments).stats_vars == ["loss"]


def test_logs_are_equal_if_they_are_the_same() -> None:
    log = MetaLog({"seed_0": run([1.0, 2.0])})
    assert log == log
    assert log != copy.deepcopy(log)


def test_an_unknown_run_is_an_error_that_names_the_runs() -> None:
    with pytest.raises(AttributeError, match="no 'seed_2' here; there is 'seed_1'"):
        _ = MetaLog({"seed_1": run([1.0])}).seed_2


def test_names_of_runs_are_listed_for_completion() -> None:
    assert {"seed_1", "filter"} <= set(dir(MetaLog({"seed_1": run([1.0])})))
