"""The status report: plain values that fit both msgpack and JSON.

Pure.  Keys: `pid`, `endpoint`, `root`, `uptime_s`, `version`, `degraded` ("" or what is wrong),
`runs`: a list of `experiment_dir`, `seed_id`, `state`, `ticks` {received, journaled, published,
lost}, `artifacts_waiting` (saved, not on disk yet), `lag_s` (age of the oldest tick that is not
published), `bytes_waiting` (of the stream, not published), `last_error`;
`groups`: a list of `directory`, `expected` (how many seeds, None where nobody said), `running`,
`finished`, `crashed`, `merged` (seeds in the merged file), `state` ("waiting", "merging", "merged",
"incomplete", "single", "failed" or "off") and `why` it failed;
`meta_logs`: a list of `directory` (of the configurations), `state` ("waiting", "merging", "merged"
or "failed") and `why` it failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from mle_daemon.events import Report

_TOLD: Final = 4  # troubles; a full disk has one for each run


def report(
    *,
    pid: int,
    endpoint: str,
    root: str,
    uptime_s: float,
    version: str,
    troubles: Sequence[str],
    runs: Iterable[Report],
    groups: Iterable[Report],
    meta_logs: Iterable[Report],
) -> Report:
    """Put a report together.  Runs are ordered by folder and seed, the others by folder.

    Args:
        troubles: what fails now, the gravest first.
    """
    ordered = sorted(runs, key=lambda run: (run["experiment_dir"], run["seed_id"]))
    return {
        "pid": pid,
        "endpoint": endpoint,
        "root": root,
        "uptime_s": round(uptime_s, 3),
        "version": version,
        "degraded": _degraded(troubles),
        "runs": ordered,
        "groups": sorted(groups, key=lambda group: group["directory"]),
        "meta_logs": sorted(meta_logs, key=lambda meta_log: meta_log["directory"]),
    }


def _degraded(troubles: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(troubles))
    more = len(distinct) - _TOLD
    return "; ".join([*distinct[:_TOLD], *([f"and {more} more"] if more > 0 else [])])
