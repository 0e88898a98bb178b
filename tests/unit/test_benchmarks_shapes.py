"""The benchmarks of how costs grow, and of what the limits are, run at sizes that mean nothing.

As those of `test_benchmarks`, each checks by itself that what it timed was also done.
"""

from __future__ import annotations

import marshal
import math
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks import ceiling, counted, instructions, shapes, streams, visible, watched_daemon
from benchmarks.workspace import watched_workspace, workspace
from tests.unit.test_benchmarks import assert_is_complete


# --- instructions ---------------------------------------------------------------------------------
def test_instructions_reports_each_statement_or_that_nothing_counts_them() -> None:
    result = instructions.run(instructions.SIZES["tiny"])

    assert_is_complete(result)
    calls = [row[0] for row in result.tables[0].rows]
    if result.figures:
        assert calls == [instructions.FLOOR, instructions.WRITER]
        assert all(row[1] > 0 for row in result.tables[0].rows)
    else:
        assert calls == ["update()"]


def test_instructions_says_so_where_no_tool_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> str:
        raise FileNotFoundError("valgrind")

    monkeypatch.setattr(instructions, "_run", fail)

    result = instructions.run(instructions.SIZES["tiny"])

    assert_is_complete(result)
    assert result.tables[0].rows == (("update()", "not counted"),)


@pytest.mark.parametrize("name", instructions.STATEMENTS)
def test_every_statement_that_is_counted_runs(tmp_path: Path, name: str) -> None:
    path = tmp_path / "description"
    path.write_bytes(marshal.dumps(instructions.description(instructions.STATEMENTS[name])))

    subprocess.run([sys.executable, "-S", counted.__file__, str(path), "7"], check=True)


def test_what_a_function_has_called_is_not_its_own() -> None:
    text = """events: Ir
fl=(1) a.c
fn=(1) main
12 100
+3 20
cfn=(2) helper'2
calls=2 40
+1 5000
* 3
fn=(2)
40 70
fn=(1)
-2 7
"""

    found = instructions.read_callgrind(text)

    assert found.functions == {"main": 130, "helper": 70}
    assert found.total == 200


def test_perf_is_read_and_believed_only_if_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["81234,,instructions:u,1000,100.00,,\n", "<not supported>,,instructions:u,0\n"])
    monkeypatch.setattr(instructions, "_run", lambda *arguments: next(said))

    assert instructions._perf(["true"], {}).total == 81_234
    with pytest.raises(RuntimeError, match="counts no instructions"):
        instructions._perf(["true"], {})


# --- shapes ---------------------------------------------------------------------------------------
def test_shapes_reports_all_numbers_of_keys_and_runs() -> None:
    size = shapes.SIZES["tiny"]

    result = shapes.run(size)

    assert_is_complete(result)
    assert [[row[0] for row in table.rows] for table in result.tables] == [
        [*size.keys],
        [*size.runs],
    ]
    for picture in result.pictures:
        assert all(len(values) == len(picture.at) for values in picture.series.values())


# --- ceiling --------------------------------------------------------------------------------------
def test_ceiling_reports_cases_threads_and_profiles() -> None:
    size = ceiling.SIZES["tiny"]

    result = ceiling.run(size)

    assert_is_complete(result)
    cases, threads, *profiles = result.tables
    expected = [(case, senders) for case in size.cases or () for senders in size.senders]
    assert [row[:2] for row in cases.rows] == expected
    assert {ceiling.WRITER, watched_daemon.LOOP} <= {row[1] for row in threads.rows}
    assert len(profiles) == 2


@pytest.mark.parametrize("case", ceiling.CASES)
def test_a_recorded_stream_is_stored_as_it_was_recorded(case: str) -> None:
    (clock, stats), _ = ceiling.CASES[case]
    recorded = streams.record((clock, stats), 50)

    with workspace() as space:
        assert streams.send(str(space.root), recorded, 2) > 0
        space.stop()
        with h5py.File(space.log_file("run", 1)) as file:
            stored = file[f"seed_1/stats/{recorded.statistic}"][:]
            steps = file["seed_1/time/num_steps"][:]

    assert stored.shape == (50, *np.shape(stats[recorded.statistic]))
    assert steps.tolist() == list(range(50))


def test_a_daemon_tells_of_its_threads_when_it_has_left() -> None:
    found = ceiling.look_inside(ceiling.CASES["a vector of 100"][0], 20, 1, ceiling.WRITER)

    assert 0 < found.threads[watched_daemon.LOOP] < found.process_s
    assert sum(found.threads.values()) <= found.process_s * 1.2
    assert found.profile[0][2] > 0


# --- visible --------------------------------------------------------------------------------------
def test_visible_reports_every_pace_from_every_side() -> None:
    size = visible.SIZES["tiny"]

    result = visible.run(size)

    assert_is_complete(result)
    found = {row[:2] for row in result.tables[0].rows}
    assert found == {(pace, kind) for pace in size.ticks_per_s for kind in visible.KINDS}
    assert all(0 < cell < math.inf for row in result.tables[0].rows for cell in row[2:])


def test_a_tick_is_synced_by_the_first_sync_that_began_after_it_was_written() -> None:
    appended = [1.0, 2.0, 3.0]
    synced = [(1.5, 1.6), (2.5, 2.6), (3.5, 3.9)]

    assert visible._synced_at([1.1, 2.4, 2.7, 3.2], appended, synced) == [1.6, 2.6, 2.6, 3.9]


def test_a_watched_daemon_notes_when_it_writes_and_syncs() -> None:
    with watched_workspace() as (space, report):
        with space.logger("run") as log:
            log.update({"num_steps": 1}, {"train_loss": 0.5})
        space.stop()
        assert '"synced": [[' in report.read_text()
