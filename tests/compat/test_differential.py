"""The same programs on mle-logging 0.0.6 and on ours: trees, files, values and results are the same
but for `intended_differences`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat import upstream
from tests.compat.compare import differences, facts
from tests.compat.intended_differences import TABLE
from tests.integration import daemons

PROGRAMS = Path(__file__).parent / "programs"
HABITS = "seen habits "


def run_both(tmp_path: Path, *steps: tuple[str, ...]) -> list[str]:
    """Run programs one after another, on both sides at once.  Returns: in what these differ."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    python = upstream.require()
    for folder in (theirs, ours):
        folder.mkdir()
    with daemons.running(ours):
        for program, *arguments in steps:
            run = [PROGRAMS / program, *arguments]
            sides = [
                start([python, "-W", "ignore", *run, theirs], upstream.environment()),
                start(
                    [sys.executable, "-W", "ignore", "-m", "mle_client.compat", *run, ours],
                    daemons.environment(),
                ),
            ]
            # Of both, whatever becomes of one: none is to outlive the test.
            said = [side.communicate(timeout=100)[1] for side in sides]
            assert [side.returncode for side in sides] == [0, 0], said
    return differences(facts(theirs), facts(ours))


def start(command: list[object], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True
    )


def check(changes: list[str], patterns: dict[str, str]) -> None:
    """Fail for a difference that is not intended, and for an intended one that there is not."""
    matched = {pattern: [c for c in changes if re.fullmatch(pattern, c)] for pattern in patterns}
    declared = {change for lines in matched.values() for change in lines}

    assert [change for change in changes if change not in declared] == []
    assert [f"{patterns[p]}: {p}" for p, lines in matched.items() if not lines] == []


def patterns(*, of_habits: bool) -> dict[str, str]:
    """{pattern: number of its difference}."""
    return {
        pattern: difference.number
        for difference in TABLE
        for pattern in difference.seen
        if pattern.startswith(HABITS) == of_habits
    }


@pytest.mark.timeout(140)
def test_a_sweep_leaves_the_same_files_and_sees_the_same_results(tmp_path: Path) -> None:
    steps = [("sweep.py", what) for what in ("train", "continue", "look")]

    check(run_both(tmp_path, *steps), patterns(of_habits=False))


def test_habits_of_mle_logging_are_kept_or_meant_to_be_broken(tmp_path: Path) -> None:
    changes = [line for line in run_both(tmp_path, ("habits.py",)) if line.startswith(HABITS)]

    check(changes, patterns(of_habits=True))


def test_every_difference_is_shown_by_something() -> None:
    tree = Path(__file__).parents[2]
    nowhere = [
        each.number
        for each in TABLE
        if not each.seen and not (each.elsewhere and (tree / each.elsewhere).is_file())
    ]

    assert nowhere == []
    assert len({each.number for each in TABLE}) == len(TABLE)
