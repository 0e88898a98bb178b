"""Figures become pictures in another process, whatever that does."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mle_daemon import figure_process as module
from mle_daemon.figure_process import FigureProcess

SOON_S = 20.0

# Stands in for `mle_client.rendering`: what is in the figure's file is run.
PROGRAM = """
import sys
assert sys.argv[1::2] == ["--input", "--output"], sys.argv
source, target = sys.argv[2::2]
exec(open(source).read())
"""
DRAWS = "open(target, 'w').write('picture of ' + source)"


def rendering() -> list[psutil.Process]:
    """The processes that render.  Earlier tests may have left helpers, and some to be reaped."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if PROGRAM in child.cmdline():
                found.append(child)
    return found


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[FigureProcess]:
    monkeypatch.setattr(module, "rendering_command", lambda: [sys.executable, "-c", PROGRAM])
    figures = FigureProcess()
    yield figures
    figures.stop()


@pytest.fixture
def figure(tmp_path: Path) -> Callable[[str, str], str]:
    def figure(name: str, program: str) -> str:
        path = tmp_path / name
        path.write_text(program)
        return str(path)

    return figure


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def ended(figures: FigureProcess, count: int = 1, now: float = 0.0) -> list[tuple[str, str]]:
    """What has ended, once it is so many."""
    found: list[tuple[str, str]] = []
    end = time.monotonic() + SOON_S
    while len(found) < count:
        assert time.monotonic() < end, found
        found += figures.poll(now)
        time.sleep(0.005)
    return found


def test_a_figure_is_replaced_by_its_picture(
    figures: FigureProcess, figure: Callable[[str, str], str], tmp_path: Path
) -> None:
    path = figure("a.part", DRAWS)

    figures.submit(path)

    assert ended(figures) == [(path, "")]
    assert Path(path).read_text() == f"picture of {path}"
    assert os.listdir(tmp_path) == ["a.part"]
    assert not figures.busy


def test_figures_are_rendered_one_after_another(
    figures: FigureProcess, figure: Callable[[str, str], str], tmp_path: Path
) -> None:
    held = (
        f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
    )
    paths = [figure("0.part", held + DRAWS), *(figure(f"{i}.part", DRAWS) for i in (1, 2))]
    for path in paths:
        figures.submit(path)
    figures.poll(0.0)

    wait_for(lambda: bool(rendering()))  # until then it has no command of its own
    assert len(rendering()) == 1
    (tmp_path / "go").touch()
    assert ended(figures, 3) == [(path, "") for path in paths]


def test_looking_after_the_process_never_waits_for_it(
    figures: FigureProcess, figure: Callable[[str, str], str]
) -> None:
    figures.submit(figure("a.part", "import time; time.sleep(60)"))
    figures.poll(0.0)
    began = time.monotonic()

    assert figures.poll(1.0) == []

    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("sys.exit('no such font')", "no such font (exit status 1)"),
        ("import os; os.kill(os.getpid(), 9)", "(exit status -9)"),
        ("sys.stderr.write('x' * 100_000 + 'the end'); sys.exit(2)", "the end (exit status 2)"),
        ("pass", "No such file"),
        ("sys.stdout.write('y' * 1_000_000); sys.exit('full')", "full (exit status 1)"),
    ],
    ids=["an error", "killed", "many words", "no picture", "much output"],
)
def test_a_failure_says_why_and_the_next_figure_goes_on(
    figures: FigureProcess,
    figure: Callable[[str, str], str],
    tmp_path: Path,
    program: str,
    said: str,
) -> None:
    bad, good = figure("bad.part", program), figure("good.part", DRAWS)
    figures.submit(bad)
    figures.submit(good)

    (path, error), second = ended(figures, 2)

    assert path == bad
    assert error.startswith("cannot be rendered: ")
    assert said in error
    assert len(error) < 10_000
    assert second == (good, "")
    assert Path(bad).read_text() == program
    assert sorted(os.listdir(tmp_path)) == ["bad.part", "good.part"]


def test_one_that_takes_too_long_is_ended(
    figures: FigureProcess, figure: Callable[[str, str], str], tmp_path: Path
) -> None:
    aside = "open(target + '.1.tmp', 'w')"
    path = figure("a.part", f"{DRAWS}\n{aside}\nimport time; time.sleep(60)")
    figures.submit(path)
    figures.poll(100.0)
    wait_for(lambda: (tmp_path / "a.part.png.1.tmp").exists())
    assert figures.poll(100.0 + module.TIMEOUT_S - 0.1) == []

    ((failed, error),) = ended(figures, now=100.0 + module.TIMEOUT_S)

    assert (failed, error) == (path, "took longer than 60 s to render")
    assert rendering() == []
    assert os.listdir(tmp_path) == ["a.part"]


@pytest.mark.parametrize("which", [0, 1])
def test_one_that_is_cancelled_is_forgotten_and_the_other_goes_on(
    figures: FigureProcess, figure: Callable[[str, str], str], which: int
) -> None:
    paths = [figure(f"{i}.part", f"import time; time.sleep(0.2)\n{DRAWS}") for i in range(2)]
    for path in paths:
        figures.submit(path)
    figures.poll(0.0)

    figures.cancel(paths[which])

    assert ended(figures) == [(paths[1 - which], "")]
    assert not figures.busy


def test_a_program_that_cannot_be_started_is_a_failure(
    figures: FigureProcess, figure: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "rendering_command", lambda: ["/nonexistent"])
    path = figure("a.part", DRAWS)
    figures.submit(path)

    ((failed, error),) = figures.poll(0.0)

    assert failed == path
    assert error.startswith("cannot be rendered: ")
    assert "/nonexistent" in error
