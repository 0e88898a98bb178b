"""The profiles: what py-spy has seen is told by thread and function."""

from __future__ import annotations

import pytest

from benchmarks import peer_environments, profiles
from benchmarks.profiles import SPY, read
from benchmarks.workspace import workspace
from tests.unit.test_benchmarks import assert_is_complete

LOOP = "thread (1): MainThread;<module> (load.py:7);make.<locals>.update (<tick writer>:34)"
SEEN = f"""\
{LOOP} 3
{LOOP};s_pack_into (_struct.c:1955) 2
{LOOP};pthread_cond_wait (libc.so.6);0x7f (libc.so.6) 4
{LOOP};Condition.wait (threading.py:331);0x7f (libc.so.6) 2
thread (2): mle-writer;Writer._do (mle_daemon/workers.py:101);read (h5d.c:2);deflate (libz.so) 5
thread (3);zmq_loop (libzmq.so) 1
"""


def test_looks_are_told_by_thread_and_innermost_function_of_python() -> None:
    threads = read(SEEN.splitlines())

    main, writer, other = (
        threads["MainThread"],
        threads["mle-writer"],
        threads["a thread of a library"],
    )
    assert {name: dict(inner) for name, inner in main.runs.items()} == {
        "update (<tick writer>)": {"update (<tick writer>)": 3, "s_pack_into": 2}
    }
    assert (main.looks, main.waits) == (5, 6)
    assert dict(writer.runs["_do (workers.py)"]) == {"deflate": 5}
    assert dict(other.runs["–"]) == {"zmq_loop": 1}


def test_a_table_has_the_functions_with_most_looks_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profiles, "_TOP", 1)
    lines = [f"thread (1): MainThread;f{i} (a.py:1) {i}" for i in (1, 2, 7)]

    table = profiles._table("trainer", "a case", profiles.SIZES["tiny"], read(lines), "")

    assert table.rows == (
        ("MainThread", "f7 (a.py)", 7, 70.0, "f7 (a.py)", 100.0),
        ("MainThread", "all others", 3, 30.0, "", ""),
    )


def test_where_there_is_no_py_spy_the_tables_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_environments, "make_all", lambda peers: {SPY: "no registry"})

    result = profiles.run(profiles.SIZES["tiny"])

    assert_is_complete(result)
    assert len(result.tables) == 2
    assert all("no registry" in table.rows[0][0] for table in result.tables)


def test_a_process_logs_until_nobody_listens() -> None:
    (case,) = profiles.SIZES["tiny"].cases
    with workspace() as space:
        with profiles._trial(space, case) as process:
            pass
        assert process.returncode == 0
        assert space.stored_ticks("run") > 0


def test_py_spy_sees_both_processes_where_it_is_installed() -> None:
    if not peer_environments.is_made(SPY):
        pytest.skip("py-spy is not installed: `python -m benchmarks.peer_environments` does that")

    result = profiles.run(profiles.SIZES["tiny"])

    assert_is_complete(result)
    for table in result.tables:
        if "sees nothing here" in table.rows[0][0]:
            pytest.skip(table.rows[0][0])  # it may not look at processes
    assert "MainThread" in {row[0] for row in result.tables[0].rows}
