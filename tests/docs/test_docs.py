"""The pages in docs/ and README.md say what the code does: examples run, links lead somewhere, and
tables of modules, messages, fields and bounds are those of the code."""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mle_client import (
    control,
    discovery,
    layout,
    message_wire,
    packing,
    ring,
    tick_writers,
    ticks,
    wire,
)
from mle_client import messages as m
from mle_client.errors import MLEError
from mle_daemon import events, limits

TREE = Path(__file__).parents[2]
DOCS = TREE / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *TREE.glob("*.md"), *TREE.glob("benchmarks/*.md")])
# Pages that are followed from top to bottom: files are saved, commands and Python are executed.
GUIDES = [DOCS / "tutorial.md", *sorted((DOCS / "howto").glob("*.md"))]
ARCHITECTURE = (DOCS / "architecture.md").read_text()
WIRE = (DOCS / "wire-protocol.md").read_text()

FENCE = re.compile(r"^( *)(```+|~~~+)(.*?)\n(.*?)^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")


def name_of(page: Path) -> str:
    return str(page.relative_to(TREE))


def section(page: str, heading: str) -> str:
    """What is between a heading and the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#+ |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in a text, without heads."""
    found: list[list[str]] = []
    for line in re.findall(r"^\|(.*)\|$", text, re.MULTILINE):
        cells = [cell.strip() for cell in line.split("|")]
        if set(cells[0]) <= set("-: ") and cells[0]:
            found.pop()  # the line before was the head
        else:
            found.append(cells)
    return found


# --- examples -------------------------------------------------------------------------------------
def script_of(page: Path) -> str:
    """The Python blocks of a page as one script in which every line has the number it has there."""
    text = page.read_text()
    lines = [""] * (text.count("\n") + 1)
    for block in FENCE.finditer(text):
        before = text[: block.start()].rstrip().rpartition("\n")[2]
        if block[3].strip() not in ("python", "py") or NOT_RUN.fullmatch(before.strip()):
            continue
        first = text.count("\n", 0, block.start(4))
        for i, line in enumerate(textwrap.dedent(block[4]).splitlines()):
            lines[first + i] = line
    return "\n".join(lines)


@pytest.fixture
def no_daemon_stays(tmp_path: Path) -> Iterator[None]:
    """Stop the daemons that a page's loggers started; they would leave some seconds later."""
    yield
    for file in tmp_path.rglob(f"{layout.STATE_DIR}/{layout.ENDPOINT_FILE}"):
        with contextlib.suppress(MLEError):
            control.stop(str(file.parents[1]), timeout=30)


SCRIPTS = [page for page in PAGES if page not in GUIDES and script_of(page).strip()]


@pytest.mark.usefixtures("no_daemon_stays")
@pytest.mark.parametrize("page", SCRIPTS, ids=name_of)
def test_the_python_blocks_of_a_page_run_one_after_another(page: Path, tmp_path: Path) -> None:
    script = tmp_path / f"{page.stem}.py"
    script.write_text(script_of(page))

    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path,
        env=discovery.python_environment(),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("no_daemon_stays")
def test_the_sweep_of_the_readme_can_be_loaded_where_nobody_has_started_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLE_MERGE", raising=False)  # as a user has it
    sweep = section((TREE / "README.md").read_text(), "Many seeds and configurations")
    (block,) = (each[4] for each in FENCE.finditer(sweep) if each[3].strip() == "python")
    run_python(block, tmp_path)
    for file in tmp_path.rglob(f"{layout.STATE_DIR}/{layout.ENDPOINT_FILE}"):
        assert control.stop(str(file.parents[1]), timeout=30) == ""

    assert not list(tmp_path.rglob("meta_log.hdf5"))  # no daemon writes outside of its root
    assert run_python(LOADS_THE_SWEEP, tmp_path) == "['lr_0.1', 'lr_0.5'] [1, 2, 3] 3\n" * 2


def run_python(program: str, folder: Path) -> str:
    """Run a program in a folder.  Returns: what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, timeout=50, check=False, cwd=folder,
        env=discovery.python_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADS_THE_SWEEP = """
from mle_client import load_meta_log
for path in ("exp/sweep", "exp/sweep/meta_log.hdf5"):
    log = load_meta_log(path)
    one = log["lr_0.5"]
    print(log.eval_ids, one.meta.seeds, one.stats.loss.n[-1])
"""


def steps_of(page: Path) -> list[tuple[str, str, str]]:
    """The blocks of a guide: language, title and text."""
    steps: list[tuple[str, str, str]] = []
    text = page.read_text()
    for block in FENCE.finditer(text):
        before = text[: block.start()].rstrip().rpartition("\n")[2]
        if NOT_RUN.fullmatch(before.strip()):
            continue
        language, _, attributes = block[3].strip().partition(" ")
        title = re.fullmatch(r'title="(.+)"', attributes)
        assert not attributes or title, f"{name_of(page)}: {block[3]}"
        steps.append((language, title[1] if title else "", textwrap.dedent(block[4])))
    return steps


# One Python for all blocks of a guide, as in a notebook: reads them, and answers with a traceback.
SESSION = """
import contextlib, io, json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            exec(compile(json.loads(line), "<guide>", "exec"), names)
        answer = ""
    except Exception:
        answer = said.getvalue() + traceback.format_exc()
    print(json.dumps(answer), flush=True)
"""


@contextlib.contextmanager
def python_session(**options: Any) -> Iterator[Callable[[str], str]]:
    """A Python that takes blocks.  Yields: runs one and returns what went wrong, "" if nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", SESSION],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None

        def run(block: str) -> str:
            print(json.dumps(block), file=process.stdin, flush=True)
            answer: str = json.loads(process.stdout.readline())
            return answer

        yield run


def shell_script(console: str) -> tuple[str, list[str]]:
    """The commands of a block of a terminal, and the lines that they are said to print."""
    lines = console.splitlines()
    commands = [line[2:] for line in lines if line[:2] in ("$ ", "> ")]
    return "\n".join(commands), [line for line in lines if line[:2] not in ("$ ", "> ")]


@pytest.mark.usefixtures("no_daemon_stays")
@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_a_guide_can_be_followed_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLE_MERGE", raising=False)  # as a user has it
    programs = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = discovery.python_environment() | {
        "PATH": os.pathsep.join(programs), "PYTHONWARNINGS": "error", "MPLBACKEND": "Agg",
    }  # fmt: skip
    with python_session(cwd=tmp_path, env=environment) as run:
        for language, title, text in steps_of(page):
            if title:
                (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / title).write_text(text)
            elif language == "python":
                assert run(text) == ""
            else:
                assert language == "console"
                script, printed = shell_script(text)
                done = subprocess.run(
                    ["bash", "-euc", script],
                    capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path,
                    env=environment,
                )  # fmt: skip
                assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
                assert set(printed) <= set(done.stdout.splitlines()), done.stdout


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_of_a_page_is_closed(page: Path) -> None:
    assert not re.search(r"^ *(```|~~~)", FENCE.sub("", page.read_text()), re.MULTILINE)


# --- links ----------------------------------------------------------------------------------------
def anchors(page: Path) -> set[str]:
    """The anchors that headings of a page get, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def links(page: Path) -> list[str]:
    """The links of a page that do not lead into the web."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    targets = [markdown or html for markdown, html in found]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def test_benchmarks_that_pages_name_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"benchmarks/\w+\.py", page.read_text()):
            assert (TREE / path).is_file(), f"{name_of(page)} names {path}"


# --- architecture ---------------------------------------------------------------------------------
def contracts() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(TREE / ".importlinter")
    return parser


@pytest.mark.parametrize("package", ["mle_client", "mle_daemon"])
def test_the_architecture_lists_the_modules_layer_by_layer(package: str) -> None:
    name = f"importlinter:contract:{package.removeprefix('mle_')}-layers"
    layers = [re.findall(r"\w+", line) for line in contracts()[name]["layers"].split("\n") if line]
    table = rows(section(ARCHITECTURE, f"`{package}`, high to low"))
    listed = [re.findall(r"`(\w+)`", cells[0])[0] for cells in table]
    files = {path.stem for path in (TREE / package).glob("*.py")} - {"__init__"}

    assert set(listed) == files
    for layer in layers:
        taken, listed = listed[: len(layer)], listed[len(layer) :]
        assert set(taken) == set(layer)


@pytest.mark.parametrize("package", ["mle_client", "mle_daemon"])
def test_the_architecture_marks_the_pure_modules(package: str) -> None:
    table = rows(section(ARCHITECTURE, f"`{package}`, high to low"))
    marked = {f"{package}.{cells[0].split('`')[1]}" for cells in table if "[p]" in cells[0]}
    pure = contracts()["importlinter:contract:pure"]["source_modules"].split()

    assert marked == {name for name in pure if name.startswith(f"{package}.")}


def test_the_architecture_names_every_event_and_instruction() -> None:
    named = set(re.findall(r"`(\w+)`", section(ARCHITECTURE, "Two pure machines")))
    values = {kind.__name__ for kind in (*events.Event.__args__, *events.Instruction.__args__)}

    assert values <= named


def test_the_architecture_shows_every_file_of_ours() -> None:
    tree = section(ARCHITECTURE, "Where files lie")
    for name, value in vars(layout).items():
        if name.endswith(("_FILE", "_DIR")):
            assert value in tree, name


def test_the_architecture_links_every_decision_and_they_are_numbered_without_a_hole() -> None:
    pages = sorted((DOCS / "decisions").glob("*.md"))

    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for number, page in enumerate(pages, 1):
        title = page.read_text().splitlines()[0]
        assert title.startswith(f"# {number}. ")
        line = f"{number}. [{title.removeprefix(f'# {number}. ')}](decisions/{page.name})"
        assert line in ARCHITECTURE
        for heading in ("Context", "Decision", "Consequences"):
            assert section(page.read_text(), heading).strip()


def test_the_picture_is_sound_and_numbers_the_steps_of_the_road() -> None:
    picture = ElementTree.parse(DOCS / "architecture.svg").getroot()
    texts = picture.iterfind(".//{http://www.w3.org/2000/svg}text[@class='number']")
    steps = [cells[0].split()[0] for cells in rows(section(ARCHITECTURE, "The road of a tick"))]

    assert [text.text for text in texts] == steps


# --- wire protocol --------------------------------------------------------------------------------
CHECKS: dict[Callable[[object], bool], str] = {
    packing.is_count: "count",
    packing.is_id: "id",
    packing.is_id_or_empty: "id or empty",
    packing.is_text: "text",
    packing.is_report: "map",
}


def test_the_protocol_page_is_of_this_version() -> None:
    assert WIRE.startswith(f"# Wire protocol, version {m.PROTOCOL_VERSION}\n")


def test_the_protocol_page_has_every_message_with_its_number_and_fields() -> None:
    described: dict[int, Any] = {}
    for number, *cells in rows(section(WIRE, "Messages")):
        if number.isdecimal():
            name, fields, _ = cells
            described[int(number)] = (name.strip("`"), re.findall(r"`(\w+)` ([a-z ]+)", fields))

    expected = {}
    for code, kind in message_wire._TYPES.items():
        names = [field.name for field in dataclasses.fields(kind) if field.name != "payload"]
        types = [CHECKS[check] for check in message_wire._CHECKS[kind]]
        expected[code] = (kind.__name__, list(zip(names, types, strict=True)))
    assert described == expected


def test_the_protocol_page_has_every_key_of_a_run_with_its_type() -> None:
    names = {bytes: "bin", float: "float", int: "int", type(None): "nil", bool: "bool", str: "str"}
    names |= {dict: "map", list: "list"}
    described = [
        (key.strip("`"), kind.removesuffix(", 16 bytes"))
        for key, kind, _ in rows(section(WIRE, "Run"))
    ]

    assert described == [
        (field.name, " or ".join(names[t] for t in wire._RUN_TYPES.get(field.name, (str,))))
        for field in dataclasses.fields(m.Run)
    ]


def test_the_protocol_page_has_every_type_of_a_value() -> None:
    cells = rows(section(WIRE, "Schema").replace("&#124;", "¦"))
    codes = re.findall(r"(?:`|<code>)([¦<\w]+)(?:`|</code>)", " ".join(cell[0] for cell in cells))

    assert {code.replace("¦", "|") for code in codes} == {"i8", "f8", "b1", "str", *m.ARRAY_CODES}


def test_the_protocol_page_has_every_bound() -> None:
    described = {name.strip("`"): value for name, value, *_ in rows(section(WIRE, "Bounds"))}

    assert described == {
        name: f"{value:,}" for name, value in vars(m).items() if name.startswith("MAX_")
    }


def test_the_protocol_page_has_every_limit() -> None:
    described = {name.strip("`"): value for name, value, *_ in rows(section(WIRE, "Limits"))}
    named = {name: value for name, value in described.items() if name.startswith("MAX_")}

    assert named == {
        name: f"{value:,}" for name, value in vars(limits).items() if name.startswith("MAX_")
    }


def hex_blocks(text: str) -> list[bytes]:
    """The bytes at the beginning of each line of the blocks of a text, up to two spaces."""
    blocks = [block[4] for block in FENCE.finditer(text) if block[3].strip() == "text"]
    return [
        bytes.fromhex("".join(line.partition("  ")[0] for line in block.splitlines()))
        for block in blocks
    ]


def test_the_example_tick_of_the_protocol_page_is_what_the_code_writes() -> None:
    clock, stats = (
        {"num_steps": 1000},
        {"loss": 0.5, "done": True, "grad": np.array([1, -2], "<f4")},
    )
    described = ticks.describe(clock, stats)
    schema = m.Schema(3, described.clock, described.stats)
    tick, schema_record = hex_blocks(section(WIRE, "Example"))

    assert tick == tick_writers.pack_fixed(schema, 1700000000.25, described.values)
    assert schema_record == wire.encode_record(schema)
    (block,) = wire.StreamDecoder({3: schema}).decode(tick)
    assert isinstance(block, wire.Block)
    assert block.column(1) == [0.5]


# --- ring -----------------------------------------------------------------------------------------
def test_the_ring_page_has_the_bounds_of_the_code() -> None:
    described = {
        name.strip("`"): value
        for name, value, *_ in rows(section((DOCS / "ring-format.md").read_text(), "A segment"))
    }

    assert described["MEMORY_FREE_SHARE"] == str(ring.MEMORY_FREE_SHARE)
    units = {
        "SEGMENT_BYTES": "KiB",
        "MEMORY_BYTES": "MiB",
        "MEMORY_FREE_BYTES": "GiB",
        "SPILL_BYTES": "GiB",
    }
    for name, unit in units.items():
        scale = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]
        assert described[name] == f"{getattr(ring, name) // scale} {unit}"
