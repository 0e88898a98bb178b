"""The status report for people; `test_cli` has a whole one."""

from __future__ import annotations

from typing import Any

import pytest

from mle_daemon import status_text

ABOUT = {
    "pid": 1, "endpoint": "ipc:///s", "root": "/r", "uptime_s": 1.0, "version": "1", "degraded": "",
}  # fmt: skip
GROUP = {
    "directory": "/r/a/b", "expected": 4, "running": 1, "finished": 2, "crashed": 1, "merged": 0,
    "state": "waiting", "why": "",
}  # fmt: skip


def described(**parts: Any) -> list[str]:
    return status_text.describe({**ABOUT, "runs": [], **parts}).splitlines()


def test_without_runs_and_groups_it_says_so() -> None:
    assert described()[-1] == "no runs"
    assert described(groups=[])[-1] == "no runs"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "a/b        4        1         2        1       0  waiting  -"),
        ({"expected": None}, "a/b        ?        1         2        1       0  waiting  -"),
        ({"directory": "/r"}, ".          4        1         2        1       0  waiting  -"),
        (
            {"state": "failed", "why": "disk\nfull"},
            "a/b        4        1         2        1       0  failed  disk full",
        ),
    ],
)
def test_a_group_is_a_line(changes: dict[str, Any], line: str) -> None:
    assert described(groups=[{**GROUP, **changes}])[-1] == line


def test_a_meta_log_is_a_line() -> None:
    written = {"directory": "/r", "state": "merged", "why": ""}
    failed = {"directory": "/r/a", "state": "failed", "why": "disk\nfull"}
    assert described(groups=[GROUP], meta_logs=[written, failed])[-4:] == [
        "",
        "folder  meta log  why",
        ".       merged    -",
        "a       failed    disk full",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1.0 min"), (7200, "2.0 h"), (200_000, "2.3 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert status_text._duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e6, "2.5 MB"), (3e12, "3000.0 GB")],
)
def test_sizes(size: float, text: str) -> None:
    assert status_text.size_text(size) == text
