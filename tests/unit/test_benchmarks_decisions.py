"""The small benchmarks that decisions rest on run, at sizes at which their figures mean nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import (
    bench_artifact_road,
    bench_baton,
    bench_small_files,
    bench_tick_layout,
)


def figures_of(text: str, rows: int) -> list[str]:
    """The last lines, each of which has a figure."""
    lines = text.strip().splitlines()[-rows:]
    assert len(lines) == rows
    assert all(re.search(r"\d", line) for line in lines)
    return lines


@pytest.mark.parametrize(
    ("module", "rows"),
    [
        (bench_baton, len(bench_baton.VARIANTS)),
        (bench_tick_layout, 1 + len(bench_tick_layout.WRITERS)),
    ],
)
def test_every_way_to_write_a_tick_is_measured(
    module: ModuleType,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "ROUNDS", 2)
    monkeypatch.setattr(module, "CALLS", 20)
    module.main()
    lines = figures_of(capsys.readouterr().out, rows)
    assert len({line[:36] for line in lines}) == rows


def test_small_files_are_written_in_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_small_files.py", str(tmp_path)])
    monkeypatch.setattr(bench_small_files, "ROUNDS", 2)
    monkeypatch.setattr(bench_small_files, "TICKS", (10, 20))
    bench_small_files.main()
    figures_of(capsys.readouterr().out, 2)


def test_messages_are_sent_with_copies_and_without() -> None:
    """In a process of its own: what pyzmq makes for messages that are not copied stays."""
    program = (
        "from benchmarks import bench_zmq_copy as bench; "
        "bench.ROUNDS, bench.MESSAGES, bench.SIZES = 2, 40, (64,); "
        "bench.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    figures_of(done.stdout, 2)


def test_artifacts_take_every_road(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path), "--mb", "0.1", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_artifact_road.py", *arguments])
    bench_artifact_road.main()
    roads = len(bench_artifact_road.CHUNKS) + len(bench_artifact_road.WRITEBACKS)
    figures_of(capsys.readouterr().out, roads)
    assert list(tmp_path.iterdir()) == []
