"""What an examination of a root found, and how it is told.

Pure.  A finding says what is, where, and what to do about it; `doctor` makes them.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

# How grave a finding is: good to know; needs somebody to do something, and nothing is lost
# meanwhile; a file is not what it must be.
NOTE, WAITING, DAMAGED = "note", "waiting", "damaged"
_GRAVEST_FIRST: Final = (DAMAGED, WAITING, NOTE)
# Of the table in `docs/cli.md`.
_EXIT_CODES: Final = {DAMAGED: 6, WAITING: 7, NOTE: 0}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Args:
        kind: NOTE, WAITING or DAMAGED.
        about: what was looked at: "disk", "permissions", "daemon", "journal", "ring", "spill",
            "log", "merge", "leftover" or "root", of one below.
        path: of the file or folder.
        what: was found.
        advice: what to do; "" where nothing need be done.
    """

    kind: str
    about: str
    path: str
    what: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Examined:
    """How much was looked at, so that "nothing found" says something.

    Args:
        logs: files.
        runs, ticks: of all but meta logs.
        segments: of the journal.
        rings: of processes, alive or not.
    """

    logs: int = 0
    runs: int = 0
    ticks: int = 0
    segments: int = 0
    rings: int = 0


def in_order(found: Iterable[Finding]) -> list[Finding]:
    """The gravest first, else as they were found."""
    return sorted(found, key=lambda finding: _GRAVEST_FIRST.index(finding.kind))


def exit_code(found: Iterable[Finding]) -> int:
    """That of the gravest finding."""
    kinds = {finding.kind for finding in found}
    return next((_EXIT_CODES[kind] for kind in _GRAVEST_FIRST if kind in kinds), 0)


def to_plain(root: str, found: Sequence[Finding], examined: Examined) -> dict[str, Any]:
    """For JSON."""
    return {
        "root": root,
        "healthy": exit_code(found) == 0,
        "examined": dataclasses.asdict(examined),
        "findings": [dataclasses.asdict(finding) for finding in in_order(found)],
    }


def describe(root: str, found: Sequence[Finding], examined: Examined) -> str:
    """For people."""
    lines = [
        f"{root}: {examined.logs} logs with {examined.runs} runs and {examined.ticks:,} updates, "
        f"{examined.segments} journal segments, {examined.rings} rings"
    ]
    for finding in in_order(found):
        lines.append(f"{finding.kind:<8} {_shortened(finding.path, root)}: {finding.what}")
        if finding.advice:
            lines.append(f"{'':<8} {finding.advice}")
    if exit_code(found) == 0:
        lines.append("all is well")
    return "\n".join(lines)


def _shortened(path: str, root: str) -> str:
    return posixpath.relpath(path, root) if path.startswith(f"{root}/") else path
