"""The page about performance has all that the benchmarks' files have, and says what is missing."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks import __main__ as program
from benchmarks import harness, page, pictures
from benchmarks.harness import Goal, Picture, Result, Table

GOALS = (Goal("p50 of a call, x floor", 4.0, 3.5), Goal("p99, x floor", 1.0, 2.0))
TABLE = Table(
    "ns a call | net",
    ("call", "times", "p50", "_name_"),
    (("`update()`", 12_345, 4.5678, "<built-in>"), ("other", "not installed", "", "")),
)
PICTURE = Picture("calls", "Calls", "ns", {"ours": (1.0, 2.0)}, ("a", "b"))
COST = Result("cost", (TABLE,), GOALS, {"rounds": [1, 2]}, (PICTURE,))
WHATS = {"cost": "What a call costs.", "other": "What else there is."}
BUSY = {"wall_s": 90.0, "others_cores": 0.25}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for results; pictures are not drawn, for matplotlib keeps its fonts' files open."""
    folder = tmp_path / "results"
    monkeypatch.setattr(pictures, "draw", lambda picture, path: path.write_bytes(b"PNG"))
    monkeypatch.setattr(harness, "RESULTS", folder)
    return folder


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the page."""
    folder = tmp_path / "docs"
    folder.mkdir()
    monkeypatch.setattr(page, "DOCS", folder)
    return folder


def written(docs: Path, failed: dict[str, str] | None = None, **files: Path) -> str:
    """The page of some files."""
    return page.write(WHATS, files, failed or {}, "python -m benchmarks --page", docs).read_text()


# --- the page -------------------------------------------------------------------------------------
@pytest.mark.usefixtures("results")
def test_goals_are_listed_met_and_missed_with_links_to_their_benchmarks(docs: Path) -> None:
    text = written(docs, cost=harness.save(COST, "tiny", BUSY))

    assert "1 of 2 goals are met." in text
    assert "[limits](performance/limits.md)" in text
    assert "| [cost](#cost) | p50 of a call, x floor | 3.5 | 4 | 0.875 | met |" in text
    assert "| [cost](#cost) | p99, x floor | 2 | 1 | 2 | **missed** |" in text


@pytest.mark.usefixtures("results")
def test_a_limit_of_nothing_has_no_ratio(docs: Path) -> None:
    none = Result("cost", (), (Goal("packages loaded", 0, 0),))

    assert "| packages loaded | 0 | 0 |  | met |" in written(
        docs, cost=harness.save(none, "tiny", BUSY)
    )


@pytest.mark.usefixtures("results")
def test_tables_are_shown_as_they_are_with_numbers_to_the_right(docs: Path) -> None:
    text = written(docs, cost=harness.save(COST, "tiny", BUSY))

    assert r"**ns a call \| net**" in text
    assert (
        "| call | times | p50 | \\_name\\_ |\n"
        "|---|--:|--:|---|\n"
        "| `update()` | 12,345 | 4.57 | \\<built-in> |\n"
        "| other | not installed |  |  |\n"
    ) in text


@pytest.mark.usefixtures("results")
def test_what_a_benchmark_is_and_how_busy_the_machine_was_is_told(docs: Path) -> None:
    text = written(docs, cost=harness.save(COST, "tiny", BUSY))

    assert (
        "## cost\n\nWhat a call costs.\n\n`python -m benchmarks cost --size tiny` took 90 s" in text
    )
    assert "while other programs used 0.2 cores" in text
    assert f"numpy {harness.machine()['numpy']}" in text


@pytest.mark.usefixtures("results")
def test_pictures_are_copied_and_those_of_an_earlier_page_go(docs: Path) -> None:
    (docs / page.FOLDER).mkdir()
    (docs / page.FOLDER / "cost-earlier.png").write_bytes(b"")
    (docs / page.LIMITS).write_text("# Limits\n")
    file = harness.save(COST, "tiny", BUSY)

    text = written(docs, cost=file)

    assert "![Calls](performance/cost-calls.png)" in text
    assert (docs / page.FOLDER / "cost-calls.png").read_bytes() == b"PNG"
    assert {each.name for each in (docs / page.FOLDER).iterdir()} == {"cost-calls.png", "limits.md"}


@pytest.mark.usefixtures("results")
def test_a_picture_that_could_not_be_drawn_is_told(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "draw", lambda picture, path: False)

    text = written(docs, cost=harness.save(COST, "tiny", BUSY))

    assert "No picture of *Calls* was drawn: that needs matplotlib." in text


@pytest.mark.usefixtures("results")
def test_a_benchmark_without_a_result_is_told(docs: Path) -> None:
    file = harness.save(COST, "tiny", BUSY)

    text = written(docs, cost=file)
    failed = written(docs, {"other": "RuntimeError: 19 ticks_ and not 20"}, cost=file)

    assert "**Without figures**: [other](#other) (not measured)." in text
    assert (
        "## other\n\nWhat else there is.\n\nThere are no figures of it here: not measured." in text
    )
    assert (
        r"There are no figures of it here: failed: RuntimeError: 19 ticks\_ and not 20." in failed
    )


def test_a_page_without_any_result_says_so(docs: Path) -> None:
    text = written(docs)

    assert "0 of 0 goals are met." in text
    assert text.count("There are no figures of it here: not measured.") == 2


@pytest.mark.usefixtures("results")
def test_the_same_files_make_the_same_page(docs: Path) -> None:
    file = harness.save(COST, "tiny", BUSY)

    assert written(docs, cost=file) == written(docs, cost=file)


# --- results --------------------------------------------------------------------------------------
@pytest.mark.usefixtures("results")
def test_no_folder_of_the_machine_is_in_a_result_or_on_the_page(tmp_path: Path, docs: Path) -> None:
    at = tmp_path
    said = f"root      {at}/root\n{at}/b.sock\nendpoint  ipc://{at}/a.sock -L{at}/lib"
    result = Result("cost", (Table("some", ("what",), ((said,),)),), (), {"status": [said]})

    file = harness.save(result, "tiny", BUSY)

    for text in (file.read_text(), written(docs, cost=file)):
        assert str(tmp_path) not in text
        assert not re.search(r"(?<![\w.…/(])/\w+/", text)
    kept = json.loads(file.read_text())["result"]["figures"]["status"]
    assert kept == ["root      …/root\n…/b.sock\nendpoint  ipc://…/a.sock -L…/lib"]


@pytest.mark.parametrize(
    "text", ["ticks/s", "a / b", "https://host/a/b", "100,000/s / what 8 reach"]
)
def test_what_is_no_path_stays(text: str) -> None:
    assert harness.without_folders(text) == text


def test_the_latest_result_of_a_size_counts(results: Path) -> None:
    results.mkdir()
    for stamp, size in (("2026-01-02", "quick"), ("2026-01-03", "quick"), ("2026-01-04", "tiny")):
        content = {"result": {"name": "cost"}, "size": size, "measured_at": stamp}
        (results / f"cost-{stamp}.json").write_text(json.dumps(content))
    (results / "other-2026.json").write_text("torn {")
    (results / "older-2026.json").write_text(json.dumps({"result": {"name": "other"}}))

    found = page.latest(["cost", "other"], "quick")

    assert found == {"cost": results / "cost-2026-01-03.json"}


# --- the program ----------------------------------------------------------------------------------
@dataclasses.dataclass
class Fake:
    """A benchmark that has its result already."""

    SIZES: ClassVar = {"quick": None, "tiny": None}
    result: Result | Exception

    def run(self, size: None) -> Result:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the program runs, to be filled."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(program, "LOGGING", found)
    monkeypatch.setattr(program, "BENCHMARKS", found)
    return found


@pytest.mark.usefixtures("results")
def test_the_page_is_written_after_all_benchmarks_have_run(
    docs: Path, fakes: dict[str, Any]
) -> None:
    fakes |= {"cost": Fake(COST), "other": Fake(dataclasses.replace(COST, name="other"))}

    assert program.main(["--page"]) == 0
    assert program.main(["--page", "--check"]) == 1  # a goal is missed

    text = (docs / page.PAGE).read_text()
    assert "`python -m benchmarks other --size quick` took" in text
    assert "## cost\n\nA benchmark that has its result already.\n" in text


@pytest.mark.usefixtures("results")
def test_a_benchmark_that_fails_leaves_the_others_their_figures(
    docs: Path, tmp_path: Path, fakes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    error = RuntimeError(f"{tmp_path}/log.hdf5 has 19 ticks\nand more")
    fakes |= {"other": Fake(error), "cost": Fake(COST)}

    assert program.main(["--page", "--size", "tiny"]) == 1

    assert "FAILED  other: RuntimeError: …/log.hdf5 has 19 ticks\n" in capsys.readouterr().err
    text = (docs / page.PAGE).read_text()
    assert "failed: RuntimeError: …/log.hdf5 has 19 ticks." in text
    assert "| p99, x floor |" in text


@pytest.mark.usefixtures("results")
def test_who_names_benchmarks_gets_no_page(docs: Path, fakes: dict[str, Any]) -> None:
    fakes |= {"cost": Fake(COST), "other": Fake(COST)}

    assert program.main(["--page", "--size", "quick", "cost", "--size", "tiny"]) == 0

    assert not (docs / page.PAGE).exists()


@pytest.mark.usefixtures("results")
def test_a_page_can_be_made_of_what_was_measured_before(docs: Path, fakes: dict[str, Any]) -> None:
    fakes |= {"cost": Fake(COST), "other": Fake(RuntimeError())}
    harness.save(COST, "quick", BUSY)

    assert program.main(["--page-only"]) == 0

    text = (docs / page.PAGE).read_text()
    assert "`python -m benchmarks cost --size quick` took 90 s" in text
    assert "[other](#other) (not measured)" in text


# --- pictures -------------------------------------------------------------------------------------
@pytest.mark.parametrize("log", [False, True])
def test_names_and_numbers_are_drawn(tmp_path: Path, log: bool) -> None:
    pytest.importorskip("matplotlib")
    values = {"ours": (1.0, 200.0), "other": (float("nan"), 3.0)}
    bars = Picture("bars", "Bars", "ns", values, ("a", "b"), log=log)
    lines = Picture("lines", "Lines", "ns", values, (1.0, 1_000.0), "ticks", log=log)

    # In a process of its own: matplotlib keeps the files of its fonts open.
    drawn = harness.fresh(draw_all, (bars, lines), tmp_path)

    assert drawn == [True, True]
    for path in (tmp_path / "Bars.png", tmp_path / "Lines.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def draw_all(all_of_them: tuple[Picture, ...], folder: Path) -> list[bool]:
    """Draw pictures into a folder, called as their titles."""
    return [pictures.draw(each, folder / f"{each.title}.png") for each in all_of_them]
