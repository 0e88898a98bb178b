"""A status report as text for people.

Pure.  What is in a report is described in `status`; `cli` prints it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any, Final

_COUNTS: Final = ("received", "journaled", "published", "lost")
_TITLES: Final = (
    *("experiment", "seed", "state"),
    *_COUNTS,
    *("lag", "waiting", "last error"),
)
_NUMBERS: Final = range(3, 9)  # columns whose text ends where the column ends
_GROUP_COUNTS: Final = ("expected", "running", "finished", "crashed", "merged")
_GROUP_TITLES: Final = ("group", "seeds", *_GROUP_COUNTS[1:], "merge", "why")
_GROUP_NUMBERS: Final = range(1, 6)
_META_TITLES: Final = ("folder", "meta log", "why")


def describe(report: dict[str, Any]) -> str:
    """A status report for people."""
    about = [
        ("pid", str(report["pid"])),
        ("endpoint", report["endpoint"]),
        ("root", report["root"]),
        ("uptime", _duration(report["uptime_s"])),
        ("version", report["version"]),
    ]
    if report["degraded"]:
        about.append(("DEGRADED", report["degraded"]))
    parts = [aligned(about)]
    if report["runs"]:
        rows = [_run_row(run, report["root"]) for run in report["runs"]]
        parts.append(aligned([_TITLES, *rows], right=_NUMBERS))
    else:
        parts.append("no runs")
    if report.get("groups"):  # an earlier release has none
        rows = [_group_row(group, report["root"]) for group in report["groups"]]
        parts.append(aligned([_GROUP_TITLES, *rows], right=_GROUP_NUMBERS))
    if report.get("meta_logs"):
        rows = [_meta_row(meta_log, report["root"]) for meta_log in report["meta_logs"]]
        parts.append(aligned([_META_TITLES, *rows]))
    return "\n\n".join(parts)


def _run_row(run: dict[str, Any], root: str) -> list[str]:
    ticks = run["ticks"]
    where = posixpath.relpath(run["experiment_dir"], root)
    counts = [str(ticks[name]) for name in _COUNTS]
    lag, waiting = _duration(run["lag_s"]), size_text(run["bytes_waiting"])
    error = " ".join(run["last_error"].split()) or "-"
    return [where, run["seed_id"], run["state"], *counts, lag, waiting, error]


def _group_row(group: dict[str, Any], root: str) -> list[str]:
    counts = ["?" if group[name] is None else str(group[name]) for name in _GROUP_COUNTS]
    return [_below(group, root), *counts, group["state"], _why(group)]


def _meta_row(meta_log: dict[str, Any], root: str) -> list[str]:
    return [_below(meta_log, root), meta_log["state"], _why(meta_log)]


def _below(merge: dict[str, Any], root: str) -> str:
    return posixpath.relpath(merge["directory"], root)


def _why(merge: dict[str, Any]) -> str:
    return " ".join(merge["why"].split()) or "-"


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of text as columns.  Args: right: those whose text ends where the column ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if days >= 2:
        return f"{days:.1f} days"
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.1f} min"


def size_text(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
