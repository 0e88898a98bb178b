"""The page about performance: what the benchmarks have found, made of the files they leave.

Everything on it is from these files, but for the sentence about each benchmark, which is the first
line of its module; so the same files make the same page.  What is to be said of the figures by
hand is on a page of its own (`LIMITS`).

It runs no benchmark and judges no figure.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import harness
from benchmarks.harness import Goal, Table

DOCS: Final = Path(__file__).parents[1] / "docs"
PAGE: Final = "performance.md"
# Beside the page: pictures, and what is written by hand.
FOLDER: Final = "performance"
LIMITS: Final = f"{FOLDER}/limits.md"

# What Markdown would take for markup; an underscore within a word is none.
_MARKUP: Final = re.compile(r"[\\|*<~\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


@dataclass(frozen=True, slots=True)
class Measured:
    """A result as its file has it.

    Args:
        command: that measures it again.
        at: when it was done.
        machine, circumstances: as `harness.machine` and `harness.watching` tell.
        tables, goals: as in `harness.Result`.
        pictures: {name: (title, its file)}; the file is missing where there was no matplotlib.
    """

    command: str
    at: datetime.datetime
    machine: Mapping[str, Any]
    circumstances: Mapping[str, float]
    tables: tuple[Table, ...]
    goals: tuple[Goal, ...]
    pictures: Mapping[str, tuple[str, Path]]


def read(path: Path) -> Measured:
    """Read a file that `harness.save` has written, and know where its pictures are."""
    content = json.loads(path.read_text())
    result = content["result"]
    return Measured(
        content["command"],
        datetime.datetime.fromisoformat(content["measured_at"]),
        content["machine"],
        content["circumstances"],
        tuple(Table(**each) for each in result["tables"]),
        tuple(Goal(**each) for each in result["goals"]),
        {
            each["name"]: (each["title"], path.with_name(f"{path.stem}-{each['name']}.png"))
            for each in result["pictures"]
        },
    )


def latest(names: Iterable[str], size: str) -> dict[str, Path]:
    """The newest result's file of each benchmark that has one of this size."""
    found: dict[str, tuple[str, Path]] = {}
    for path in sorted(harness.RESULTS.glob("*.json")):
        with contextlib.suppress(ValueError, KeyError):  # another program's, or an older layout
            content = json.loads(path.read_text())
            name, at = content["result"]["name"], content["measured_at"]
            if content["size"] == size and at >= found.get(name, ("",))[0]:
                found[name] = at, path
    return {name: found[name][1] for name in names if name in found}


def write(
    benchmarks: Mapping[str, str],
    files: Mapping[str, Path],
    failed: Mapping[str, str],
    command: str,
    docs: Path,
) -> Path:
    """Write the page and its pictures; those of an earlier page go.

    Args:
        benchmarks: {name: what it measures, in Markdown}, in the page's order.
        files: {name: its result's file}, of those that have one.
        failed: {name: why}, of those that have none because they failed.
        command: that makes the page.
        docs: the folder of the page.

    Returns:
        The page's path.
    """
    found = {name: read(files[name]) for name in benchmarks if name in files}
    missing = {
        name: f"failed: {failed[name]}" if name in failed else "not measured"
        for name in benchmarks
        if name not in files
    }
    folder = docs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    parts = [*_head(found, command), *_goals(found, missing)]
    for name, what in benchmarks.items():
        parts += [f"## {name}", what]
        if name in found:
            parts += _section(name, found[name], folder)
        else:
            parts.append(f"There are no figures of it here: {_escaped(missing[name])}.")
    page = docs / PAGE
    page.write_text("\n\n".join(parts) + "\n")
    return page


# --- the head -------------------------------------------------------------------------------------
def _head(found: Mapping[str, Measured], command: str) -> Iterator[str]:
    yield "# Performance"
    yield f"<!-- Written by `{command}`: what is changed here by hand is lost. -->"
    yield (
        "This page is generated from what the benchmarks have found. `make bench` runs them and "
        f"writes it\nanew; this one was written by `{command}`.\n"
        "[benchmarks](../benchmarks/README.md) says what each is compared with, and how to read it."
    )
    if found:
        yield _lines(("", ""), _circumstances(list(found.values())))


def _circumstances(found: Sequence[Measured]) -> Iterator[tuple[str, str]]:
    """When and where it was measured; where that was several machines, all of them."""
    ends = sorted(each.at for each in found)
    took = sum(each.circumstances["wall_s"] for each in found)
    yield "measured", f"from {ends[0]:%Y-%m-%d %H:%M} to {ends[-1]:%Y-%m-%d %H:%M} UTC"
    yield "took", f"{took / 60:.0f} minutes in all"
    yield "machine", "; ".join(dict.fromkeys(_machine(each.machine) for each in found))
    yield "versions", "; ".join(dict.fromkeys(_versions(each.machine) for each in found))
    busy = sorted(each.circumstances["others_cores"] for each in found)
    yield "other programs", f"used {busy[0]:.1f} to {busy[-1]:.1f} cores meanwhile"


def _machine(machine: Mapping[str, Any]) -> str:
    return _escaped(
        f"{machine['processor'] or 'a processor without a name'}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB of memory, {machine['system']}"
    )


def _versions(machine: Mapping[str, Any]) -> str:
    names = ("python", *harness.PACKAGES)
    found = ", ".join(f"{name} {machine[name]}" for name in names if name in machine)
    commit = machine.get("commit")
    return _escaped(f"{found}; commit {commit}" if commit else found)


# --- goals ----------------------------------------------------------------------------------------
def _goals(found: Mapping[str, Measured], missing: Mapping[str, str]) -> Iterator[str]:
    goals = [(name, goal) for name, each in found.items() for goal in each.goals]
    met = sum(goal.met for _, goal in goals)
    yield "## Goals"
    yield (
        f"{met} of {len(goals)} goals are met. Why others are not, and what they would take, is "
        f"told in\n[limits]({LIMITS})."
    )
    if missing:
        told = ", ".join(f"[{name}](#{name}) ({_escaped(why)})" for name, why in missing.items())
        yield f"**Without figures**: {told}."
    if goals:
        yield _lines(
            ("benchmark", "goal", "measured", "at most", "measured/limit", ""),
            [(f"[{name}](#{name})", *_goal(goal)) for name, goal in goals],
            numbers=range(2, 5),
        )


def _goal(goal: Goal) -> tuple[str, ...]:
    ratio = harness.shown(goal.measured / goal.limit) if goal.limit else ""
    figures = harness.shown(goal.measured), harness.shown(goal.limit), ratio
    return _escaped(goal.what), *figures, "met" if goal.met else "**missed**"


# --- a benchmark ----------------------------------------------------------------------------------
def _section(name: str, measured: Measured, folder: Path) -> Iterator[str]:
    spent = measured.circumstances
    yield (
        f"`{measured.command}` took {spent['wall_s']:.0f} s, while other programs used "
        f"{spent['others_cores']:.1f} cores."
    )
    for table in measured.tables:
        yield f"**{_escaped(table.title)}**"
        yield _table(table)
    for picture, (title, file) in measured.pictures.items():
        if file.exists():
            copy = folder / f"{name}-{picture}.png"
            shutil.copyfile(file, copy)
            yield f"![{_escaped(title)}]({FOLDER}/{copy.name})"
        else:
            yield f"No picture of *{_escaped(title)}* was drawn: that needs matplotlib."


def _table(table: Table) -> str:
    """A table; a column that has a number is one of numbers, but never the first."""
    columns = list(zip(*table.rows, strict=True))
    numbers = [
        at
        for at, cells in enumerate(columns)
        if at and any(isinstance(c, int | float) for c in cells)
    ]
    rows = [tuple(_escaped(harness.shown(cell)) for cell in row) for row in table.rows]
    return _lines(tuple(map(_escaped, table.columns)), rows, numbers)


# --- Markdown -------------------------------------------------------------------------------------
def _lines(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table in Markdown.  Args: numbers: which columns are set to the right."""
    right = set(numbers)
    rule = ["--:" if at in right else "---" for at in range(len(head))]
    lines = (f"| {' | '.join(row)} |" for row in (head, *rows))
    first = next(lines)
    return "\n".join((first, f"|{'|'.join(rule)}|", *lines))


def _escaped(text: str) -> str:
    """A text as Markdown that shows just it, in one line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
