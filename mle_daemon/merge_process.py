"""What runs in the process that merges: jobs on stdin, what came of them on stdout.

    python -m mle_daemon.merge_process

One JSON object a line.  A job is {"folder": …, "at_least": n, "keep_seed_logs": bool} for the seeds
of a configuration, or {"configurations_in": …} for the meta log of a folder; with "root", which its
folder must not lead out of.  An answer is
{"seeds": n, "left_out": [why, …]}, or {"error": …} with "too_few", "gone" or "retry" where that is
so: see `events.GroupNotMerged`.  That for seeds has their "states", too: {seed: state}.

It asks for as little of the machine as it can, knows nothing of the daemon, and ends with its
stdin.  It may be killed at any moment: see `mle_client.merged_file`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import psutil

from mle_client import experiments, files, merge, merging
from mle_client.errors import LogNotFound, MergeFailed, MLEError, TooFewSeeds
from mle_client.layout import merged_log_path
from mle_client.merge_plan import RUNNING, Member, first_of
from mle_client.seed_groups import describe

_LOWEST: Final = 19  # of nice
# A meta log is written anew whenever a configuration is merged.  For more than this somebody has to
# ask: a folder that grows for months would be copied over and over.
META_LIMIT_BYTES: Final = 2 * 2**30
# For another merge of the same logs, which may take minutes: other jobs are done meanwhile.
PATIENCE_S: Final = 1.0
_FINISHED: Final = "finished"  # what a log that does not say it counts as
_PASSING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.ESTALE)


def main() -> int:
    """Answer jobs until there are no more.  Returns: the exit status."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not spoil the answers
    _step_back()
    merging.PATIENCE_S.set(PATIENCE_S)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)
    return 0


def _step_back() -> None:
    """Leave processor and disk to everybody else."""
    os.nice(_LOWEST)
    with contextlib.suppress(OSError):  # else sessions share the processor, whatever their nice
        Path("/proc/self/autogroup").write_text(str(_LOWEST), encoding="ascii")
    with contextlib.suppress(psutil.Error, OSError, AttributeError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return _do(job)
    except TooFewSeeds as error:
        return {"error": str(error), "too_few": True, **_found(job["folder"])}
    except (MLEError, OSError, ValueError) as error:
        gone = isinstance(error, LogNotFound) and error.path == job.get("folder")
        return {"error": str(error), "gone": gone, "retry": _passes(error)}
    except Exception as error:  # a mistake of ours; the next job may go well
        return {"error": f"{type(error).__name__}: {error}"}


def _do(job: dict[str, Any]) -> dict[str, Any]:
    _check_place(job)
    if folder := job.get("configurations_in"):
        report = _meta_log(folder)
        found: dict[str, Any] = {"seeds": len(report.seeds)}
    else:
        report = merge.merge_group(
            job["folder"], at_least=job["at_least"], keep_seed_logs=job["keep_seed_logs"]
        )
        found = _found(job["folder"], report)
    # A run that goes on is merged when it has ended: that is no problem.
    problems = [f"{left.path}: {left.why}" for left in report.left_out if not left.running]
    return {**found, "left_out": problems}


def _check_place(job: dict[str, Any]) -> None:
    """Raise where what a job writes to is outside of the root: there may be links by now."""
    folder = job.get("configurations_in") or os.path.dirname(merged_log_path(job["folder"]))
    if not files.is_inside(folder, job["root"]):
        raise files.left(folder, os.path.realpath(folder), job["root"])


def _meta_log(folder: str) -> merging.MergeReport:
    configs = experiments.configurations_in(folder)
    files = [file for path in configs.values() for file in experiments.log_files(path)]
    size = sum(os.stat(file).st_size for file in files)
    if size > META_LIMIT_BYTES:
        said = f"its logs have {size / 1e9:.1f} GB: `mle-daemon merge` merges so many"
        raise MergeFailed(folder, said)
    return merge.meta_log(folder, configs)


# --- what lies there ------------------------------------------------------------------------------
def _found(folder: str, report: merging.MergeReport | None = None) -> dict[str, Any]:
    """How many seeds are merged, under whatever name, and the states of all that have ended.

    Args:
        report: of a merge: tells of the seeds in the file that it wrote, and that their own logs
            need not be looked at.
    """
    own = experiments.seed_log_files(folder)
    of_several = set(experiments.log_files(folder, other_than=report.path if report else "")) - set(
        own
    )
    merged = _states(of_several)
    states = merged if report else _states([*of_several, *own])
    if report:
        written = {seed: state or _FINISHED for seed, state in report.seeds.items()}
        merged, states = merged | written, states | written
    ended = {seed: state for seed, state in states.items() if state != RUNNING}
    return {"seeds": len(merged), "states": ended}


def _states(paths: Iterable[str]) -> dict[str, str]:
    """The states of the seeds in files; of those that cannot be read nothing is told."""
    rivals: dict[str, list[Member]] = {}
    for path in paths:
        with contextlib.suppress(MLEError, OSError):
            for member in describe(path).members:
                if member.config_id is None:
                    rivals.setdefault(member.seed, []).append(member)
    return {seed: first_of(members).state or _FINISHED for seed, members in rivals.items()}


def _passes(error: BaseException) -> bool:
    """Whether what went wrong may go away by itself."""
    reason = error.__cause__ if isinstance(error, MergeFailed) else error
    return isinstance(reason, OSError) and reason.errno in _PASSING


if __name__ == "__main__":
    sys.exit(main())
