"""One run as loading returns it: lined up by update, and read when it is looked at."""

from __future__ import annotations

import copy
import pickle
import weakref

import numpy as np
import pytest

from mle_client import layout
from mle_client.attrdict import AttrDict
from mle_client.lazydict import Deferred, LazyDict, Once, Unread
from mle_client.metalog import MetaLog
from mle_client.runlog import Facts, Opening, RunLog


def run(loss: list[float], **others: list[float]) -> RunLog:
    stats = {"loss": np.array(loss), **{key: np.array(value) for key, value in others.items()}}
    ticks = np.arange(1, len(loss) + 1)
    return RunLog({"eval_id": "x"}, stats, {"num_updates": ticks, "num_steps": 10 * ticks})


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


def test_values_of_unknown_update_are_left_out_and_counted() -> None:
    rows = {
        layout.rows_name("stats", "acc"): np.array([-3, -2, -1, 4]),
        layout.rows_name("time", "epoch"): np.array([-2, -1, 3, 4]),
    }
    time = {"num_updates": np.arange(1, 6), "epoch": np.array([1, 2, 3, 4])}
    log = RunLog({}, {"acc": np.array([0.1, 0.2, 0.3, 0.4])}, time, rows=rows)
    with pytest.warns(UserWarning, match="left out: 3 values of 'acc': nobody knows") as warned:
        steps, values = log.aligned("acc")
    assert (steps.tolist(), values.tolist()) == ([5], [0.4])
    assert [each.filename for each in warned] == [__file__]
    with pytest.warns(UserWarning, match=r"3 values of 'acc'.*; 2 values of 'epoch'") as warned:
        steps, values = log.aligned("acc", "epoch")
    assert (steps.tolist(), values.tolist()) == ([4], [0.4])
    assert len(warned) == 1
    assert log.stats.acc.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert log.row_numbers("stats", "acc").tolist() == [-3, -2, -1, 4]


def test_a_statistic_and_a_clock_of_one_name_are_told_apart() -> None:
    name = "epoch"
    rows = {layout.rows_name(group, name): np.array([-1]) for group in ("stats", "time")}
    log = RunLog({}, {name: np.array([1])}, {name: np.array([2])}, rows=rows)
    with pytest.warns(UserWarning, match=r"1 values of 'epoch'.*; 1 values of 'time/epoch'"):
        log.aligned(name, name)


def test_row_numbers_that_do_not_fit_their_column_say_nothing() -> None:
    rows = {layout.rows_name("stats", "acc"): np.array([1])}
    log = RunLog({}, {"acc": np.zeros(2)}, {"num_updates": np.arange(2)}, rows=rows)
    for ask in (log.row_numbers, log.row_column):
        with pytest.raises(ValueError, match="does not say at which"):
            ask("stats", "acc")


def test_row_numbers_are_a_column_that_is_not_read() -> None:
    stored = Counted([1, 3])
    rows = {layout.rows_name("stats", "acc"): Once(stored)}
    groups = {
        "meta": AttrDict(),
        "stats": AttrDict(acc=np.zeros(2), loss=np.zeros(4)),
        "time": AttrDict(),
    }
    log = RunLog.unopened(Opening(lambda: (groups, Facts(ticks=4, rows=rows))))
    assert log.row_column("stats", "acc") is stored
    assert log.row_column("stats", "loss") is None
    assert stored.reads == 0
    assert log.row_numbers("stats", "acc").tolist() == [1, 3]
    column = log.row_column("stats", "acc")
    assert column is not None
    assert column.load().tolist() == [1, 3]


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


# --- what is read later ---------------------------------------------------------------------------
class Counted(Unread):
    """A column that counts how often it is read."""

    def __init__(self, values: list[float]) -> None:
        self.values = np.array(values)
        self.reads = 0

    def __len__(self) -> int:
        return len(self.values)

    def load(self) -> np.ndarray:
        self.reads += 1
        return self.values


class Stored:
    """A run whose opening and reading are counted."""

    def __init__(self, ticks: int | None = None) -> None:
        self.columns = {"loss": Counted([1.0, 2.0, 3.0]), "rare": Counted([5.0])}
        self.clock = Counted([1, 2, 3])
        self.rows = Counted([2])
        self.ticks = ticks
        self.openings = 0

    def __call__(self) -> tuple[dict[str, AttrDict], Facts]:
        self.openings += 1
        groups = {
            "meta": LazyDict(eval_id=Deferred(lambda: "x")),
            "stats": LazyDict(self.columns),
            "time": LazyDict(num_updates=self.clock),
        }
        rows = {layout.rows_name("stats", "rare"): Once(self.rows)}
        return groups, Facts("finished", 5.0, self.ticks, rows)

    @property
    def reads(self) -> list[int]:
        return [each.reads for each in (*self.columns.values(), self.clock, self.rows)]


def test_a_run_is_opened_when_something_of_it_is_looked_at_and_once() -> None:
    stored = Stored()
    run = RunLog.unopened(Opening(stored))
    log = MetaLog({"seed_1": run})
    assert (list(run), len(run), log.eval_ids, stored.openings) == (
        ["meta", "stats", "time"], 3, ["seed_1"], 0,
    )  # fmt: skip
    assert run.state == "finished"
    assert log.stats_vars == ["loss", "rare"]
    assert run.stats is run["stats"]
    assert stored.openings == 1


@pytest.mark.parametrize("ticks", [3, None])
def test_names_and_facts_need_no_column(ticks: int | None) -> None:
    stored = Stored(ticks)
    run = RunLog.unopened(Opening(stored))
    assert isinstance(run.stats, AttrDict)
    assert isinstance(run.stats, dict)
    assert (run.ticks, run.state, run.start_time) == (3, "finished", 5.0)
    assert (list(run.stats), list(run.time), run.meta.eval_id) == (
        ["loss", "rare"], ["num_updates"], "x",
    )  # fmt: skip
    assert run.row_numbers("stats", "loss").tolist() == [0, 1, 2]
    assert stored.reads == [0, 0, 0, 0]


def test_aligning_reads_what_it_needs() -> None:
    stored = Stored()
    steps, values = RunLog.unopened(Opening(stored)).aligned("rare")
    assert (steps.tolist(), values.tolist()) == ([3], [5.0])
    assert stored.reads == [0, 1, 1, 1]


def test_a_run_that_cannot_be_opened_is_tried_again() -> None:
    stored, failures = Stored(), [OSError("not now")]

    def open_run() -> tuple[dict[str, AttrDict], Facts]:
        if failures:
            raise failures.pop()
        return stored()

    run = RunLog.unopened(Opening(open_run))
    with pytest.raises(OSError, match="not now"):
        _ = run.stats
    assert run.stats.loss.tolist() == [1, 2, 3]


def test_loading_reads_everything_and_lets_go_of_what_it_was_read_from() -> None:
    stored = Stored()
    gone = weakref.ref(stored)
    run = RunLog.unopened(Opening(stored))
    columns = [weakref.ref(each) for each in (*stored.columns.values(), stored.rows)]
    assert run.load() is run
    assert stored.reads == [1, 1, 1, 1]
    del stored
    assert [each() for each in (gone, *columns)] == [None] * 4
    assert run.aligned("rare")[0].tolist() == [3]


@pytest.mark.parametrize(
    "clone",
    [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_clone_of_an_unread_run_has_everything(clone) -> None:
    run = clone(RunLog.unopened(Opening(Stored())))
    assert type(run) is RunLog
    assert [values.tolist() for values in dict.values(run.stats)] == [[1, 2, 3], [5]]
    assert (run.state, run.start_time, run.ticks) == ("finished", 5.0, 3)
    assert run.aligned("rare")[0].tolist() == [3]


def test_a_run_is_also_a_dict_of_plain_dicts() -> None:
    run = RunLog.unopened(Opening(Stored()))
    plain = run.toDict()
    assert {name: type(group) for name, group in plain.items()} == dict.fromkeys(run, dict)
    assert plain["stats"]["rare"].tolist() == [5.0]
    assert {**run}["meta"] == dict(run)["meta"] == {"eval_id": "x"}
