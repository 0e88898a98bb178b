from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from mle_client import layout
from mle_client.metalog import AttrDict, MetaLog, RunLog


def run(loss: list[float], **others: list[float]) -> RunLog:
    stats = {"loss": np.array(loss), **{key: np.array(value) for key, value in others.items()}}
    ticks = np.arange(1, len(loss) + 1)
    return RunLog({"eval_id": "x"}, stats, {"num_updates": ticks, "num_steps": 10 * ticks})


# --- AttrDict -------------------------------------------------------------------------------------
def test_a_key_is_an_attribute_and_the_dict_a_mapping() -> None:
    values = AttrDict(a=1, b=2)
    assert values.a == values["a"] == 1
    assert list(values.keys()) == ["a", "b"]
    assert {**values} == {"a": 1, "b": 2} == values


def test_a_key_named_like_a_method_is_reached_by_brackets_and_the_method_still_works() -> None:
    values = AttrDict(keys=1, items=2)
    assert values["keys"] == 1
    assert list(values.keys()) == ["keys", "items"]


def test_setting_and_deleting_an_attribute_changes_the_key() -> None:
    values = AttrDict(a=1)
    values.b = 2
    del values.a
    assert values == {"b": 2}
    with pytest.raises(AttributeError):
        del values.a


def test_a_method_cannot_be_replaced_by_accident() -> None:
    values = AttrDict()
    with pytest.raises(AttributeError):
        values.keys = 3
    assert dict(values) == {}


def test_what_is_missing_is_an_error_that_names_what_there_is() -> None:
    values = AttrDict(train_loss=1)
    with pytest.raises(AttributeError, match=r"no 'test_loss' here; there is 'train_loss'$"):
        _ = values.test_loss
    with pytest.raises(KeyError, match="there is 'train_loss'"):
        _ = values["test_loss"]
    assert values.get("test_loss") is None
    many = AttrDict((f"key_{i}", i) for i in range(30))
    with pytest.raises(AttributeError, match=r"'key_19' …$"):
        _ = many.nothing


def test_nested_reaches_dicts_in_lists_and_todict_undoes_it() -> None:
    plain = {"a": {"b": 1}, "c": [{"d": 2}, 3]}
    values = AttrDict.nested(plain)
    assert (values.a.b, values.c[0].d, values.c[1]) == (1, 2, 3)
    assert type(values.toDict()["a"]) is dict
    assert values.toDict() == plain


def test_copies_keep_the_type_and_are_independent() -> None:
    values = AttrDict(a=1)
    other = values.copy()
    other.a = 2
    assert (values.a, other.a, type(other)) == (1, 2, AttrDict)


def test_keys_are_listed_for_completion() -> None:
    assert "train_loss" in dir(AttrDict(train_loss=1))
    assert {"seed_1", "filter"} <= set(dir(MetaLog({"seed_1": run([1.0])})))


# --- RunLog ---------------------------------------------------------------------------------------
def test_a_run_has_exactly_three_keys_whatever_else_is_known_of_it() -> None:
    log = RunLog({}, {}, {}, rows={"stats_rows:a": np.array([1])}, state="running", start_time=5.0)
    assert list(log) == ["meta", "stats", "time"]
    assert (log.state, log.start_time) == ("running", 5.0)
    assert log.ticks == 0


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_cloned_log_is_as_complete_as_the_original(clone) -> None:
    rows = {layout.rows_name("stats", "rare"): np.array([1, 3])}
    original = RunLog(
        {}, {"rare": np.array([5.0, 6.0])}, {"num_updates": np.arange(1, 5)}, rows=rows
    )
    cloned = clone(MetaLog({"seed_1": original})).seed_1
    steps, values = cloned.aligned("rare")
    assert steps.tolist() == [2, 4]
    assert values.tolist() == [5.0, 6.0]
    assert cloned.state is None


def test_a_statistic_of_every_tick_is_aligned_with_any_clock() -> None:
    steps, values = run([0.5, 0.25]).aligned("loss", clock="num_steps")
    assert steps.tolist() == [10, 20]
    assert values.tolist() == [0.5, 0.25]


def test_a_rare_statistic_is_aligned_with_the_ticks_that_logged_it() -> None:
    rows = {layout.rows_name("stats", "eval/acc"): np.array([1, 3])}
    stats = {"eval/acc": np.array([[1, 2], [3, 4]])}
    log = RunLog({}, stats, {"num_updates": np.arange(1, 6)}, rows=rows)
    steps, values = log.aligned("eval/acc")
    assert steps.tolist() == [2, 4]
    assert values.tolist() == [[1, 2], [3, 4]]


def test_ticks_without_the_clock_are_left_out() -> None:
    rows = {
        layout.rows_name("stats", "acc"): np.array([0, 2, 3]),
        layout.rows_name("time", "epoch"): np.array([2, 3, 4]),
    }
    time = {"num_updates": np.arange(1, 6), "epoch": np.array([7, 8, 9])}
    steps, values = RunLog({}, {"acc": np.array([0.1, 0.2, 0.3])}, time, rows=rows).aligned(
        "acc", clock="epoch"
    )
    assert steps.tolist() == [7, 8]
    assert values.tolist() == [0.2, 0.3]


def test_a_short_column_without_row_numbers_is_refused_and_not_guessed() -> None:
    with pytest.raises(ValueError, match=r"'acc' has 1 values in a run of 3 updates"):
        run([1.0, 2.0, 3.0], acc=[0.5]).aligned("acc")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="'los' here; there is 'loss'"):
        run([1.0]).aligned("los")
    with pytest.raises(KeyError, match="there is 'num_updates'"):
        run([1.0]).aligned("loss", clock="epochs")


def test_text_of_several_seeds_has_no_alignment() -> None:
    log = RunLog({}, {"note": [np.array(["a"])]}, {"num_updates": np.array([1])})
    with pytest.raises(ValueError, match="several seeds"):
        log.aligned("note")


# --- MetaLog --------------------------------------------------------------------------------------
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


def test_an_unknown_run_is_an_error_that_names_the_runs() -> None:
    with pytest.raises(AttributeError, match="no 'seed_2' here; there is 'seed_1'"):
        _ = MetaLog({"seed_1": run([1.0])}).seed_2
