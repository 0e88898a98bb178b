"""Merges the logs of seeds into one file.

It is written aside, synced, compared with its sources dataset by dataset, and only then takes its
name; only after that do sources go.  So whatever is killed at whatever moment, every value stays in
some file.  Merging what is merged changes nothing, and a late seed is added.

What goes where is decided in `merge_plan`; HDF5 is for `seed_groups`, `group_copies` and
`log_compare`; which files are merged, and when, is for `merge`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from mle_client import files, layout
from mle_client.errors import LogDamaged, LogNotFound, MergeRefused, TooFewSeeds
from mle_client.experiments import as_text
from mle_client.group_copies import Copy
from mle_client.merge_plan import LeftOut, Member, Plan, mixed_configurations, plan_merge
from mle_client.merge_staging import scratch_folder, write_file
from mle_client.merging import (
    Merge,
    MergeReport,
    Unreadable,
    carry_out,
    contains,
    copy_of,
    describe_seeds,
    land,
    look,
    nothing,
    replaced_folder,
    stamp,
)
from mle_client.seed_groups import Described, describe

_REMOVE_TIMEOUT_S: Final = 10.0  # for the daemon to give a log its name


def merge(job: Merge) -> MergeReport:
    """Merge the logs of seeds.

    Raises:
        LogNotFound: there is nothing to merge.
        LogDamaged: the target is there and is no log, or no source is.
        MergeRefused: the runs have different configurations.
        TooFewSeeds: fewer have ended than it takes.
        MergeFailed: as of `merging.carry_out`.
    """
    real = replace(job, target=os.path.realpath(job.target))  # a link stays one
    report = carry_out(real, lambda unreadable: _attempt(real, unreadable))
    return replace(report, path=job.target)


def _attempt(job: Merge, unreadable: Unreadable) -> MergeReport | None:
    """Merge what can be read.

    Args:
        unreadable: files of which that is known already; more are added.

    Returns:
        None where more turned out to be unreadable.
    """
    described, left_out = look(job, job.sources(), unreadable)
    found = len(described)
    if job.own:
        described = {path: each for path, each in described.items() if _is_own(path, each)}
    if os.path.lexists(job.target):
        described[job.target] = describe_seeds(job.target, in_target=True)
    members = [member for each in described.values() for member in each.members]
    if not members and found and not left_out:
        raise TooFewSeeds(job.folder, 0, job.at_least)  # all are in a file of another name
    if not members:
        raise nothing(job.folder, left_out)
    plan = plan_merge(members, contains, running=job.running)
    _check(job, plan, members, left_out)
    left_out += plan.left_out
    aside: list[str] = []
    if plan.changes_target:
        staged = _stage(job, plan, described, unreadable)
        if staged is None:
            return None
        try:
            aside += _put_aside(job, plan, described)
            land(staged, job)
        except BaseException:
            files.remove(staged)
            raise
    removed, kept = _remove(job, plan, described) if job.delete else ([], [])
    return MergeReport(
        job.target,
        {member.seed: member.state for member in plan.seeds},
        tuple(member.seed for member in plan.take),
        tuple(removed),
        (*left_out, *kept),
        tuple(aside),
        mixed_configurations(plan.seeds),
    )


def _is_own(path: str, found: Described) -> bool:
    """Whether a file is the log of one seed, and named so."""
    seed = layout.seed_of_log(path)
    return seed is not None and [each.group for each in found.members] == [as_text(seed)]


def _check(job: Merge, plan: Plan, members: Sequence[Member], left_out: Sequence[LeftOut]) -> None:
    """Raise unless the runs may be merged.

    A file that cannot be read counts as a seed that has ended: nobody waits for it.
    """
    ended = sum(not each.is_running for each in plan.seeds) + len(left_out)
    if ended < job.at_least:
        running = tuple(each.seed for each in members if each.is_running)
        raise TooFewSeeds(job.folder, ended, job.at_least, running)
    if not job.mixed and (mixture := mixed_configurations(plan.seeds)):
        raise MergeRefused(
            job.folder,
            f"{mixture}: log each configuration to a folder of its own; merge_seed_logs() merges "
            "them all the same",
        )


# --- the new file ---------------------------------------------------------------------------------
def _stage(
    job: Merge, plan: Plan, described: dict[str, Described], unreadable: Unreadable
) -> str | None:
    """Write the merged file aside, synced and compared.

    Returns:
        Its path; None where a source turned out to be unreadable.
    """
    copies = [copy_of(each, described, each.group) for each in plan.take]
    kept = [copy_of(each, described, each.group) for each in plan.keep]
    # What stays is copied as a whole, unless there is something in between that goes.
    base = job.target if kept and not (plan.drop or plan.aside) else ""
    return write_file(
        scratch_folder(job.target),
        copies if base else kept + copies,
        unreadable,
        base=base,
        base_copies=kept if base else [],
        progress=job.progress,
    )


def _put_aside(job: Merge, plan: Plan, described: dict[str, Described]) -> list[str]:
    """Keep the logs whose places in the merged file others take, where they are not kept yet."""
    if (plan.drop or plan.aside) and described[job.target].others:
        # The new file holds runs alone.
        return [files.keep_aside(job.target, replaced_folder(job), stamp())]
    return [_copy_aside(job, each) for each in plan.aside if not _is_aside(job, each)]


def _is_aside(job: Merge, member: Member) -> bool:
    """Whether a merge has kept a log that was killed right after that."""
    folder = replaced_folder(job)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    paths = [os.path.join(folder, name) for name in names if name.endswith(f"-{_name(member)}")]
    return any(_holds(path, member) for path in paths)


def _holds(path: str, member: Member) -> bool:
    try:
        found = describe(path, only=member.seed).members
    except (LogDamaged, LogNotFound):
        return False
    return any(contains(member, each) for each in found)


def _copy_aside(job: Merge, member: Member) -> str:
    unreadable: Unreadable = {}
    copy = Copy(member.path, member.group, member.group)
    staged = write_file(scratch_folder(job.target), [copy], unreadable)
    if staged is None:
        raise LogDamaged(member.path, unreadable[member.path].why)
    return files.put_aside(staged, replaced_folder(job), stamp(), _name(member))


def _name(member: Member) -> str:
    return os.path.basename(layout.log_path("", member.seed))


# --- the sources ----------------------------------------------------------------------------------
def _remove(
    job: Merge, plan: Plan, described: dict[str, Described]
) -> tuple[list[str], list[LeftOut]]:
    """Remove the files that the merged one replaces.  Returns: which went, and which did not."""
    removed, kept = [], []
    for path in plan.removable:
        found = described[path]
        why = _why_not(job, plan, found)
        try:
            if not why and _remove_if_still(path, found.stamp):
                removed.append(path)
        except OSError as error:
            said = error.strerror or str(error)
            why = f"everything in it is merged, but it cannot be removed ({said})"
        if why:
            kept.append(LeftOut(path, why))
    return removed, kept


def _why_not(job: Merge, plan: Plan, source: Described) -> str:
    """Why a source may not be removed; "" where it may."""
    if source.others:
        return f"its runs are merged; what else is in it is not ({', '.join(source.others)})"
    if all(each in plan.take or _is_merged(each, job.target) for each in source.members):
        return ""
    return f"it holds values that {job.target} lacks; load both"


def _is_merged(member: Member, target: str) -> bool:
    return contains(member, replace(member, path=target))


def _remove_if_still(path: str, stamp: files.Stamp) -> bool:
    """Remove a file unless another one has its name by now."""
    with files.locked(os.path.dirname(path), timeout=_REMOVE_TIMEOUT_S):
        try:
            if files.Stamp.of(os.stat(path)) != stamp:
                return False
            os.unlink(path)
        except FileNotFoundError:
            return False
    return True
