from __future__ import annotations

import copy
import pickle
import weakref

import numpy as np
import pytest

from mle_client import layout
from mle_client.aggregate import aggregate_seeds
from mle_client.attrdict import AttrDict
from mle_client.lazydict import LazyDict, Once, Unread, peek
from mle_client.runlog import Facts, Opening, RunLog


def seed(stats: dict, meta: dict | None = None, *, ticks: int | None = None, **kwargs) -> RunLog:
    ticks = max(map(len, stats.values()), default=0) if ticks is None else ticks
    columns = {key: np.asarray(values) for key, values in stats.items()}
    return RunLog(meta or {}, columns, {"num_updates": np.arange(1, ticks + 1)}, **kwargs)


# --- statistics of a group of seeds ---------------------------------------------------------------
def test_a_statistic_that_only_some_seeds_have_is_aggregated_over_those() -> None:
    runs = {"seed_1": seed({"loss": [1.0]}), "seed_2": seed({"loss": [3.0], "acc": [0.5]})}
    stats = aggregate_seeds(runs).stats
    assert isinstance(stats.loss, AttrDict)
    assert stats.loss.mean.tolist() == [2.0]
    assert stats.acc.n.tolist() == [1]


def test_text_is_a_list_of_columns_in_the_order_of_the_seeds() -> None:
    note = np.array(["a", "b"], object)
    runs = {
        "seed_1": seed({"note": note}),
        "seed_2": seed({}, ticks=2),
        "seed_3": seed({"note": note}),
    }
    result = aggregate_seeds(runs)
    assert [column.tolist() for column in result.stats.note] == [["a", "b"], [], ["a", "b"]]


def test_arrays_whose_shape_differs_between_seeds_are_not_averaged() -> None:
    runs = {"seed_1": seed({"v": np.zeros((2, 3))}), "seed_2": seed({"v": np.zeros((2, 4))})}
    assert [column.shape for column in aggregate_seeds(runs).stats.v] == [(2, 3), (2, 4)]


def test_clocks_are_those_of_the_longest_seed() -> None:
    result = aggregate_seeds({"seed_1": seed({"a": [1.0]}), "seed_2": seed({"a": [1.0, 2.0, 3.0]})})
    assert result.time.num_updates.tolist() == [1, 2, 3]
    assert len(result.stats.a.mean) == 3


def test_of_equally_long_clocks_that_of_the_longest_seed_is_taken() -> None:
    runs = {
        f"seed_{ticks}": RunLog(
            {}, {}, {"num_updates": np.arange(ticks), "epoch": np.array([ticks])}
        )
        for ticks in (2, 3, 1)
    }
    assert aggregate_seeds(runs).time.epoch.tolist() == [3]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ({"a": (5, 2), "b": (4, 4), "c": (9, 1)}, "b"),  # of each: updates, values of the clock
        ({"a": (5, 5), "b": (5, 5), "c": (4, 4)}, "a"),
        ({"a": (4, 3), "b": (9, 3), "c": (3, 3)}, "b"),
        ({"a": (1, 1), "b": (2, 2), "c": (3, 3)}, "c"),
    ],
)
def test_a_clock_is_that_of_the_seed_with_most_values_of_it(lengths, expected) -> None:
    runs = {
        name: RunLog(
            {},
            {},
            {"num_updates": np.arange(ticks), "epoch": np.array([ord(name)] * values)},
        )
        for name, (ticks, values) in lengths.items()
    }
    clock = aggregate_seeds(runs).time.epoch
    assert clock.tolist() == [ord(expected)] * lengths[expected][1]


def test_a_clock_that_the_longest_seed_lacks_is_kept() -> None:
    short = RunLog({}, {}, {"num_updates": np.array([1]), "epoch": np.array([5])})
    result = aggregate_seeds({"seed_1": short, "seed_2": seed({"a": [1.0, 2.0]})})
    assert result.time.epoch.tolist() == [5]
    assert result.time.num_updates.tolist() == [1, 2]


def test_a_rare_statistic_of_several_seeds_can_be_aligned() -> None:
    rows = {layout.rows_name("stats", "acc"): np.array([1, 3])}
    runs = {
        f"seed_{i}": seed({"acc": [0.0, float(i)], "loss": [1.0] * 5}, rows=rows) for i in (1, 3)
    }
    steps, summary = aggregate_seeds(runs).aligned("acc")
    assert steps.tolist() == [2, 4]
    assert summary.mean.tolist() == [0.0, 2.0]
    assert summary.n.tolist() == [2, 2]


def sparse(ticks: int, **columns: dict[int, float]) -> RunLog:
    """A run of so many updates.  Args: columns: of "stats", values by row."""
    rows = {layout.rows_name("stats", key): np.array(list(of)) for key, of in columns.items()}
    return seed({key: list(of.values()) for key, of in columns.items()}, ticks=ticks, rows=rows)


def test_a_statistic_that_a_seed_missed_once_is_aggregated_by_update() -> None:
    every_tenth = {row: float(row) for row in range(0, 100, 10)}
    missed = {row: value for row, value in every_tenth.items() if row != 30}
    runs = {f"seed_{i}": sparse(100, acc=every_tenth if i < 2 else missed) for i in range(3)}
    result = aggregate_seeds(runs)
    updates, summary = result.aligned("acc")
    assert updates.tolist() == [row + 1 for row in every_tenth]
    assert summary.mean.tolist() == summary.p10.tolist() == list(every_tenth.values())
    assert summary.std.tolist() == [0.0] * 10
    assert summary.n.tolist() == [3, 3, 3, 2, 3, 3, 3, 3, 3, 3]
    assert len(result.stats.acc.n) == 10


def test_seeds_that_never_log_at_the_same_update_are_not_mixed() -> None:
    runs = {"seed_1": sparse(5, acc={0: 1.0, 2: 2.0}), "seed_2": sparse(6, acc={1: 5.0, 5: 6.0})}
    result = aggregate_seeds(runs)
    assert len(peek(result.stats, "acc")) == 4
    assert result.row_numbers("stats", "acc").tolist() == [0, 1, 2, 5]
    assert result.stats.acc.mean.tolist() == [1.0, 5.0, 2.0, 6.0]
    assert result.stats.acc.n.tolist() == [1, 1, 1, 1]


def test_a_seed_that_logs_at_every_update_is_put_together_with_one_that_does_not() -> None:
    runs = {"seed_1": seed({"acc": [1, 2, 3]}), "seed_2": sparse(4, acc={1: 4, 3: 8})}
    result = aggregate_seeds(runs)
    assert result.row_numbers("stats", "acc").tolist() == [0, 1, 2, 3]
    assert result.stats.acc.mean.tolist() == [1.0, 3.0, 3.0, 8.0]
    assert result.stats.acc.n.tolist() == [1, 2, 1, 1]


def test_values_of_which_a_seed_does_not_know_the_update_are_left_out_of_the_others() -> None:
    runs = {"seed_1": sparse(9, acc={-2: 1.0, -1: 2.0, 7: 3.0}), "seed_2": sparse(9, acc={7: 5.0})}
    result = aggregate_seeds(runs)
    with pytest.warns(UserWarning, match="left out of the mean over seeds: 2 values of 'acc'"):
        assert result.stats.acc.mean.tolist() == [4.0]
    steps, summary = result.aligned("acc")
    assert (steps.tolist(), summary.n.tolist()) == ([8], [2])


def test_where_no_update_is_known_or_all_are_the_same_values_go_by_position() -> None:
    for one, other in [
        ({-2: 1.0, -1: 2.0}, {-1: 3.0}),
        ({-2: 1.0, -1: 2.0, 7: 0.0}, {-2: 3.0, -1: 4.0, 7: 0.0}),
    ]:
        result = aggregate_seeds({"seed_1": sparse(9, acc=one), "seed_2": sparse(9, acc=other)})
        assert result.stats.acc.mean[0] == 2.0
        with pytest.warns(UserWarning, match="2 values of 'acc': nobody knows"):
            steps, summary = result.aligned("acc")
        assert steps.tolist() == [8][: len(one) - 2]
        assert summary.mean.tolist() == [0.0][: len(one) - 2]


def test_a_seed_whose_updates_nobody_knows_makes_those_of_the_mean_unknown() -> None:
    runs = {"seed_1": seed({"acc": [1.0, 2.0]}), "seed_2": seed({"acc": [3.0]}, ticks=2)}
    result = aggregate_seeds(runs)
    assert result.stats.acc.mean.tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match="does not say at which"):
        result.aligned("acc")


# --- clocks of several seeds ----------------------------------------------------------------------
def clocked(clock: str, values: list, stats: dict | None = None, **kwargs) -> RunLog:
    ticks = 3
    time = {"num_updates": np.arange(1, ticks + 1), clock: np.array(values)}
    return RunLog({"eval_id": "lr_0.1"}, stats or {"loss": np.zeros(ticks)}, time, **kwargs)


def test_clocks_that_differ_at_one_update_are_warned_of_where_they_are_used() -> None:
    runs = {"seed_1": clocked("step", [0, 10, 20]), "seed_2": clocked("step", [0, 20, 40])}
    result = aggregate_seeds(runs).load()
    said = r"the clock 'step' is not the same in all seeds of 'lr_0.1': at update 2 seed_1 has 10"
    with pytest.warns(UserWarning, match=said) as warned:
        steps, summary = result.aligned("loss", "step")
    assert len(warned) == 1
    assert (steps.tolist(), summary.n.tolist()) == ([0, 10, 20], [2, 2, 2])
    result.aligned("loss")  # a warning is an error here


def test_clocks_of_shorter_seeds_and_of_fewer_updates_need_not_differ() -> None:
    epoch = layout.rows_name("time", "epoch")
    runs = {
        "seed_1": clocked("epoch", [1, 2], rows={epoch: np.array([0, 2])}),
        "seed_2": clocked("epoch", [2], rows={epoch: np.array([2])}),
        "seed_3": clocked("epoch", [7], rows={epoch: np.array([-1])}),
        "seed_4": clocked("other", [0, 1, 2]),
    }
    assert aggregate_seeds(runs).aligned("loss", "epoch")[0].tolist() == [1, 2]


def test_a_clock_that_is_no_number_anywhere_does_not_differ() -> None:
    runs = {f"seed_{i}": clocked("step", [0.0, np.nan, 1.0]) for i in (1, 2)}
    aggregate_seeds(runs).aligned("loss", "step")


@pytest.mark.parametrize("clock", ["time", "time_elapsed"])
def test_no_two_seeds_share_the_time_of_the_wall(clock) -> None:
    runs = {f"seed_{i}": clocked(clock, [i, i + 1, i + 2]) for i in (1, 2)}
    aggregate_seeds(runs).aligned("loss", clock)


def test_a_statistic_logged_at_every_tick_of_a_shorter_seed_is_aligned_with_its_ticks() -> None:
    runs = {"seed_1": seed({"acc": [0.5, 0.6]}), "seed_2": seed({}, ticks=4)}
    steps, summary = aggregate_seeds(runs).aligned("acc")
    assert steps.tolist() == [1, 2]
    assert summary["mean"].tolist() == [0.5, 0.6]


def test_columns_that_mle_logging_left_ragged_are_aggregated_but_not_aligned() -> None:
    result = aggregate_seeds({"seed_1": seed({"a": [1.0, 2.0, 3.0], "b": [5.0]})})
    assert result.stats.b.mean.tolist() == [5.0]
    with pytest.raises(ValueError, match="does not say at which"):
        result.aligned("b")


# --- meta data ------------------------------------------------------------------------------------
def test_meta_data_are_lists_in_the_order_of_the_seeds() -> None:
    runs = {
        "seed_1": seed({}, {"model_ckpt": "a", "config_fname": "c"}),
        "seed_2": seed({}, {"config_fname": "c"}),
        "alpha_run": seed({}, {"model_ckpt": "b", "config_fname": "c", "scores": [1.0, 2.0]}),
    }
    meta = aggregate_seeds(runs).meta
    assert meta.seeds == [1, 2, "alpha_run"]
    assert meta.model_ckpt == ["a", None, "b"]
    assert meta.scores == [None, None, [1.0, 2.0]]
    assert meta.config_fname == "c"


def test_meta_data_of_one_seed_are_the_values_themselves() -> None:
    meta = aggregate_seeds({"seed_4": seed({}, {"model_ckpt": "a", "scores": [1.0]})}).meta
    assert (meta.model_ckpt, meta.scores, meta.seeds) == ("a", [1.0], [4])


def test_different_configurations_in_one_group_are_warned_of() -> None:
    runs = {f"seed_{i}": seed({}, {"config_dict": {"lr": i}}) for i in (1, 2)}
    with pytest.warns(
        UserWarning, match="seed_1, seed_2 are aggregated although their config_dict"
    ):
        assert aggregate_seeds(runs).meta.config_dict == {"lr": 1}


def test_a_warning_names_some_of_many_seeds() -> None:
    runs = {f"seed_{i}": seed({}, {"config_dict": {"lr": i}}) for i in range(100)}
    with pytest.warns(UserWarning, match="seed_0, seed_1, seed_2, seed_3, seed_4 and 95 more are"):
        _ = aggregate_seeds(runs).meta


def test_equal_configurations_are_not_warned_of_even_with_nan_in_them() -> None:
    runs = {f"seed_{i}": seed({}, {"config_dict": {"lr": float("nan")}}) for i in (1, 2)}
    aggregate_seeds(runs).load()  # a warning is an error here


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["finished", "finished"], "finished"),
        (["finished", "running", "crashed"], "running"),
        (["finished", "crashed"], "crashed"),
        (["finished", None], None),
        (["paused", "paused"], "paused"),
    ],
)
def test_the_state_of_a_group_is_that_of_its_least_finished_seed(states, expected) -> None:
    runs = {f"seed_{i}": seed({}, state=state) for i, state in enumerate(states)}
    assert aggregate_seeds(runs).state == expected


# --- what is read when ----------------------------------------------------------------------------
class Counted(Unread):
    """A column that counts what is asked of it."""

    chunk_rows = 1

    def __init__(self, values: list[float]) -> None:
        self.values = np.array(values)
        self.shape, self.dtype = self.values.shape, self.values.dtype
        self.asked: list[str] = []

    def __len__(self) -> int:
        return len(self.values)

    def read_into(self, target: np.ndarray, start: int) -> None:
        self.asked.append("read")
        target[...] = self.values[start : start + len(target)]

    def load(self) -> np.ndarray:
        self.asked.append("load")
        return self.values


def unread_seed(columns: dict[str, Counted], opened: list[str], name: str) -> RunLog:
    def open_run() -> tuple[dict[str, AttrDict], Facts]:
        opened.append(name)
        stats = {key: column for key, column in columns.items() if not key.startswith("num_")}
        clocks = {key: column for key, column in columns.items() if key.startswith("num_")}
        meta = {"config_dict": {"lr": 1}, "eval_id": "x"}
        ticks = max(map(len, columns.values()))
        groups = {"meta": AttrDict(meta), "stats": LazyDict(stats), "time": LazyDict(clocks)}
        return groups, Facts("finished", 1.0, ticks)

    return RunLog.unopened(Opening(open_run))


def unread_seeds() -> tuple[dict[str, dict[str, Counted]], dict[str, RunLog], list[str]]:
    columns = {
        f"seed_{i}": {
            "loss": Counted([float(i)] * i),
            "acc": Counted([1.0] * i),
            "num_updates": Counted(list(range(i))),
        }
        for i in (1, 3, 2)
    }
    opened: list[str] = []
    runs = {name: unread_seed(of, opened, name) for name, of in columns.items()}
    return columns, runs, opened


def test_seeds_are_opened_when_something_of_their_aggregate_is_looked_at() -> None:
    _, runs, opened = unread_seeds()
    result = aggregate_seeds(runs)
    assert list(result) == ["meta", "stats", "time"]
    assert opened == []
    assert list(result.stats) == ["loss", "acc"]
    assert (result.ticks, result.state, result.start_time) == (3, "finished", None)
    assert result.row_numbers("stats", "loss").tolist() == [0, 1, 2]
    assert sorted(opened) == ["seed_1", "seed_2", "seed_3"]


def test_a_statistic_is_aggregated_when_it_is_looked_at_and_never_read_as_a_whole() -> None:
    columns, runs, _ = unread_seeds()
    result = aggregate_seeds(runs)
    assert result.stats.loss.n.tolist() == [3, 2, 1]
    assert result.stats.loss is result.stats["loss"]
    assert result.time.num_updates.tolist() == [0, 1, 2]
    assert [of["loss"].asked for of in columns.values()] == [["read"]] * 3
    assert [of["acc"].asked for of in columns.values()] == [[]] * 3
    assert [of["num_updates"].asked for of in columns.values()] == [[], ["load"], []]


def test_row_numbers_of_seeds_are_read_with_their_statistic_and_not_kept() -> None:
    rows, runs = {}, {}
    for name, of in (("seed_1", [0, 2, 4]), ("seed_2", [0, 2, 3])):
        rows[name] = Counted(of)
        acc, clock = Counted([1.0, 2.0, 3.0]), Counted([1, 2, 3, 4, 5])
        facts = Facts(ticks=5, rows={layout.rows_name("stats", "acc"): Once(rows[name])})
        groups = {
            "meta": AttrDict(),
            "stats": LazyDict(acc=acc, loss=clock),
            "time": LazyDict(num_updates=clock),
        }
        runs[name] = RunLog.unopened(Opening(lambda groups=groups, facts=facts: (groups, facts)))
    result = aggregate_seeds(runs)
    assert result.stats.loss.n.tolist() == [2] * 5
    assert all(of.asked == [] for of in rows.values())
    assert result.stats.acc.n.tolist() == [2, 2, 1, 1]
    assert "load" not in rows["seed_2"].asked  # a block at a time; of the longest one is enough
    assert result.row_numbers("stats", "acc").tolist() == [0, 2, 3, 4]


def test_seeds_are_let_go_when_the_last_of_their_columns_was_read() -> None:
    columns, runs, _ = unread_seeds()
    gone = [weakref.ref(column) for of in columns.values() for column in of.values()]
    result = aggregate_seeds(runs)
    for group in result.values():
        group.values()
    del columns, runs
    assert [each() for each in gone] == [None] * 9
    assert result.aligned("loss")[0].tolist() == [0, 1, 2]


def test_an_aggregate_can_be_copied_and_pickled() -> None:
    for clone in (copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))):
        cloned = clone(aggregate_seeds(unread_seeds()[1]))
        assert cloned.stats.loss["mean"].tolist() == [2.0, 2.5, 3.0]
        assert cloned.stats.loss.n.tolist() == [3, 2, 1]
        assert cloned.meta.seeds == [1, 3, 2]
        steps, summary = cloned.aligned("loss")
        assert (steps.tolist(), summary.n.tolist()) == ([0, 1, 2], [3, 2, 1])


def test_different_configurations_are_warned_of_when_the_aggregate_is_first_looked_at() -> None:
    runs = {f"seed_{i}": seed({"a": [1.0]}, {"config_dict": {"lr": i}}) for i in (1, 2)}
    result = aggregate_seeds(runs)
    with pytest.warns(UserWarning, match="lr: 1 / 2"):
        _ = result.stats
    _ = result.meta, result.stats.a  # a second warning is an error here


def test_the_statistics_of_seeds_are_mle_loggings_and_n_is_beside_them() -> None:
    result = aggregate_seeds(
        {"seed_1": seed({"loss": [1.0, 2.0]}), "seed_2": seed({"loss": [3.0]})}
    )
    assert list(result.stats.loss) == ["mean", "std", "p50", "p10", "p25", "p75", "p90"]
    assert result.stats.loss.n.tolist() == result.stats.loss["n"].tolist() == [2, 1]
