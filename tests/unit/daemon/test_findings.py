"""Findings: the gravest counts, and each says where, what, and what to do."""

from __future__ import annotations

import pytest

from mle_daemon.findings import (
    DAMAGED,
    NOTE,
    WAITING,
    Examined,
    Finding,
    describe,
    exit_code,
    to_plain,
)

NOTED = Finding(NOTE, "leftover", "/r/.mle/replaced", "2 logs")
WAITS = Finding(WAITING, "ring", "/run/ring", "1 kB wait", "recover")
BROKEN = Finding(DAMAGED, "log", "/r/exp/logs/log.hdf5", "no HDF5 file", "move it")
EXAMINED = Examined(logs=3, runs=4, ticks=12_345, segments=1, rings=2)


@pytest.mark.parametrize(
    ("found", "code"), [([], 0), ([NOTED], 0), ([NOTED, WAITS], 7), ([WAITS, BROKEN, NOTED], 6)]
)
def test_the_gravest_finding_decides_the_exit_code(found: list[Finding], code: int) -> None:
    assert exit_code(found) == code
    assert to_plain("/r", found, EXAMINED)["healthy"] is (code == 0)
    assert ("all is well" in describe("/r", found, EXAMINED)) is (code == 0)


def test_people_read_the_gravest_first_with_paths_below_the_root() -> None:
    assert describe("/r", [NOTED, WAITS, BROKEN], EXAMINED).splitlines() == [
        "/r: 3 logs with 4 runs and 12,345 updates, 1 journal segments, 2 rings",
        "damaged  exp/logs/log.hdf5: no HDF5 file",
        "         move it",
        "waiting  /run/ring: 1 kB wait",
        "         recover",
        "note     .mle/replaced: 2 logs",
    ]


def test_programs_get_the_same() -> None:
    plain = to_plain("/r", [NOTED, BROKEN], EXAMINED)
    assert plain["root"] == "/r"
    assert plain["examined"]["ticks"] == 12_345
    assert [each["kind"] for each in plain["findings"]] == [DAMAGED, NOTE]
    assert plain["findings"][0] == {
        "kind": DAMAGED,
        "about": "log",
        "path": "/r/exp/logs/log.hdf5",
        "what": "no HDF5 file",
        "advice": "move it",
    }
