"""The benchmarks run, at sizes at which their figures mean nothing, so that they never rot.

Each checks by itself that what it timed was also done: all ticks are in the files.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import ClassVar

import pytest

from benchmarks import __main__ as program
from benchmarks import (
    checkpoint,
    checkpoint_calls,
    end_to_end,
    growth,
    harness,
    loaders,
    loading,
    merge_beside,
    merging,
    savers,
    update_cost,
)
from benchmarks.harness import Goal, Result, Table
from benchmarks.workspace import cpu_s, workspace


def assert_is_complete(result: Result) -> None:
    """Every row has a cell for every column, and every figure is a number."""
    assert result.tables
    for table in result.tables:
        assert table.rows
        for row in table.rows:
            assert len(row) == len(table.columns)
            assert all(math.isfinite(cell) for cell in row if isinstance(cell, float))
    json.dumps(dataclasses.asdict(result), default=str)
    assert harness.describe(result)


# --- the benchmarks -------------------------------------------------------------------------------
def test_every_case_of_update_cost_can_be_measured() -> None:
    size = update_cost.SIZES["tiny"]

    with workspace() as space:
        spent = {case: update_cost.measure(space, case, size) for case in update_cost.CASES}

    for blocks in spent.values():
        assert {update_cost.FLOOR, update_cost.UPDATE, update_cost.SAVE} < set(blocks)
        assert all(len(each) == size.blocks for each in blocks.values())


def test_update_cost_reports_its_goal() -> None:
    tiny = update_cost.SIZES["tiny"]

    result = update_cost.run(dataclasses.replace(tiny, cases=("2 clocks + 2 statistics",)))

    assert_is_complete(result)
    assert [goal.limit for goal in result.goals] == [2.5, 1.0, 1.0]
    assert [each.name for each in result.pictures] == ["p50", "p99"]


def test_growth_reports_each_length_in_each_view() -> None:
    size = growth.SIZES["tiny"]

    result = growth.run(size)

    assert_is_complete(result)
    *opened, whole = [[row[0] for row in table.rows] for table in result.tables]
    assert opened == [[*size.lengths]] * 2
    assert whole == [*size.whole]
    assert [goal.limit for goal in result.goals] == [1.1] * 4


def test_end_to_end_runs_every_system() -> None:
    result = end_to_end.run(end_to_end.SIZES["tiny"])

    assert_is_complete(result)
    (table,) = result.tables
    assert [row[1] for row in table.rows] == [
        end_to_end.OURS,
        end_to_end.NAIVE,
        end_to_end.LOOP,
    ]
    assert [each.name for each in result.pictures] == ["cpu", "speed"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a library that mle-logging imports
def test_checkpoint_saves_in_every_way_that_is_installed() -> None:
    size = checkpoint.SIZES["tiny"]

    warm = checkpoint.measure_warm("numpy", size)

    assert {savers.COPY, savers.RAW, savers.OURS} <= set(warm)
    assert all(len(saves) == size.rounds for saves in warm.values())
    assert all(each.returned_s <= each.durable_s for saves in warm.values() for each in saves)


def test_checkpoint_looks_at_the_first_save_and_its_memory() -> None:
    save, memory = checkpoint.measure_alone("numpy", savers.OURS, checkpoint.SIZES["tiny"])

    assert save.returned_s > 0
    assert memory.before > 0


def test_checkpoint_times_ticks_with_a_model_on_its_way_and_without() -> None:
    ticks = checkpoint_calls.measure_ticks(model_bytes=20_000_000, rounds=1)

    assert all(len(times) >= 1 for times in ticks.values())
    assert [row[0] for row in checkpoint_calls.tick_table(ticks).rows] == list(ticks)


def test_checkpoint_times_figures() -> None:
    pytest.importorskip("matplotlib")

    # In a process of its own: matplotlib keeps the files of its fonts open.
    plots = harness.fresh(checkpoint_calls.measure_plots, 1)

    assert_is_complete(Result("checkpoint", (checkpoint_calls.plot_table(plots),)))
    assert [len(times) for times in plots.values()] == [1, 1]


def test_checkpoint_reports_what_is_missing_and_its_goals() -> None:
    size = dataclasses.replace(checkpoint.SIZES["tiny"], kinds=())
    one = {
        name: [checkpoint.Save(0.01, 0.02, 0.01, 2_000_000)] for name in (savers.COPY, savers.RAW)
    }
    warm = one | {savers.OURS: [checkpoint.Save(0.011, 0.03, 0.01, 2_000_000)]}
    cold = {name: [(saves[0], checkpoint.Memory(1, 2, 3))] for name, saves in warm.items()}

    table = checkpoint.table("numpy", size, warm, cold)
    goals = checkpoint.goals("numpy", size, warm)
    picture = checkpoint.picture("numpy", size, warm)

    assert_is_complete(Result("checkpoint", (table,), goals))
    assert {row[0] for row in table.rows} == set(savers.SAVERS["numpy"])
    assert [row[1] for row in table.rows if row[0] == "Orbax async"] == ["not installed"]
    assert [round(goal.measured, 3) for goal in goals] == [1.1, 1.5, 1.0]
    assert picture.at == (savers.COPY, savers.RAW, savers.OURS)
    assert picture.series["return"] == (10.0, 10.0, 11.0)
    assert [math.isnan(each) for each in picture.series["durable"]] == [True, False, False]


def test_loading_takes_all_its_views() -> None:
    size = loading.SIZES["tiny"]

    result = loading.run(size)

    assert_is_complete(result)
    seeds, dated, single, configs = result.tables
    assert [row[0] for row in seeds.rows] == [
        loaders.BYTES, loaders.OURS, loading.FOLDER, loaders.THEIRS,
    ]  # fmt: skip
    assert [row[0] for row in dated.rows] == [loaders.BYTES, loaders.OURS, loaders.THEIRS]
    assert [row[0] for row in single.rows] == [loaders.OURS, loaders.THEIRS]
    assert len(configs.rows) == 4
    assert [goal.limit for goal in result.goals] == [300, 1 / 6, 300, 1 / 6, 50]


def test_loading_leaves_out_what_is_not_installed_or_needs_more_memory_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = loading.SIZES["tiny"]
    monkeypatch.setattr(loading, "_DATE_BYTES", 2**60)

    rounds = loading.measure_dated(tmp_path / "dated", size)

    assert set(rounds[0]) == {loaders.BYTES, loaders.OURS}
    table = loading.seeds_table("some", size, rounds)
    assert_is_complete(Result("loading", (table,)))
    assert {row[4] for row in table.rows} == {""}


def test_loading_does_not_time_what_finds_something_else(tmp_path: Path) -> None:
    size = loading.SIZES["tiny"]
    found = loaders.Loaded(0.1, 0.1, 1, {"steps": 7, "mean": 0.0, "std": 0, "p50": 0, "p90": 0})

    with pytest.raises(RuntimeError, match="ours found steps = 7 and not 2000"):
        loading._check([{loaders.OURS: found}], (loaders.OURS,), 3, size.ticks, 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as above
def test_merging_runs_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in (set(), {merging.PEER}):
        monkeypatch.setattr(merging, "_missing", lambda missing=missing: missing)

        result = merging.run(merging.SIZES["tiny"])

        assert_is_complete(result)
        (table,) = result.tables
        assert {row[1] for row in table.rows} == merging.SYSTEMS.keys() - missing
        assert [goal.limit for goal in result.goals] == [1.5, 64]


def test_merge_beside_sees_ticks_with_merging_and_without() -> None:
    result = merge_beside.run(merge_beside.SIZES["tiny"])

    assert_is_complete(result)
    assert [goal.limit for goal in result.goals] == [1.05, 1.05]


# --- the harness ----------------------------------------------------------------------------------
def test_a_timed_loop_runs_its_statement_once_a_tick_and_times_each() -> None:
    readings = iter(range(0, 1_000, 5))
    seen: list[object] = []

    spent = harness.timed("seen.append((clock, stats))", lambda: next(readings), seen=seen)(
        [({"a": 1}, {"b": 2}), ({"a": 3}, {"b": 4})]
    )

    assert seen == [({"a": 1}, {"b": 2}), ({"a": 3}, {"b": 4})]
    assert list(spent) == [5, 5]


def test_nobody_is_always_first() -> None:
    order: list[str] = []

    rounds = harness.interleaved(
        {name: lambda name=name: order.append(name) or name for name in "abc"}, 3
    )

    assert "".join(order) == "abcbcacab"
    assert rounds == [{"a": "a", "b": "b", "c": "c"}] * 3


def test_the_median_of_a_coarse_clock_lies_between_its_steps() -> None:
    assert 100 < harness.fine_median([100] * 55 + [110] * 45, 10) < 110


def test_a_fresh_process_is_another_one() -> None:
    assert harness.fresh(os.getpid) != os.getpid()


def test_the_cpu_time_of_a_process_is_what_it_says_itself() -> None:
    before = time.process_time()
    seen = cpu_s(os.getpid())
    after = time.process_time()

    assert before - 0.02 <= seen <= after + 0.02


def test_a_result_is_kept_with_the_machine_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Result("some", (Table("a table", ("what", "ns"), (("it", 12.34),)),))
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setitem(program.BENCHMARKS, "some", FakeBenchmark(result))

    assert program.main(["some", "--size", "tiny"]) == 0

    assert "12.3" in capsys.readouterr().out
    (path,) = tmp_path.glob("some-*.json")
    kept = json.loads(path.read_text())
    assert kept["command"] == "python -m benchmarks some --size tiny"
    assert kept["machine"]["cores"] == os.cpu_count()
    assert kept["machine"]["numpy"][0].isdigit()
    assert kept["result"]["tables"][0]["rows"] == [["it", 12.34]]


@pytest.mark.parametrize(("measured", "status"), [(1.0, 0), (1.01, 1)])
def test_a_missed_goal_fails_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: float, status: int
) -> None:
    result = Result("some", (), (Goal("it", 1.0, measured),))
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setitem(program.BENCHMARKS, "some", FakeBenchmark(result))

    assert program.main(["some", "--size", "tiny", "--check"]) == status


@dataclasses.dataclass
class FakeBenchmark:
    """A benchmark that has its result already."""

    SIZES: ClassVar = {"tiny": None}
    result: Result

    def run(self, size: None) -> Result:
        return self.result
