"""Merges configurations, with their seeds, into one file.  Their own logs stay.

Like `merged_file` it writes aside, syncs and compares before the new file takes its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mle_client import files, log_compare
from mle_client.group_copies import Copy
from mle_client.merge_plan import LeftOut, Member, plan_merge
from mle_client.merge_staging import Progress, scratch_folder, write_file
from mle_client.merging import (
    Merge,
    MergeReport,
    Unreadable,
    carry_out,
    contains,
    copy_of,
    land,
    look,
    nothing,
    replaced_folder,
    stamp,
)
from mle_client.seed_groups import Described, describe


def merge_configurations(
    target: str,
    folder: str,
    sources: Callable[[], Mapping[str, Sequence[str]]],
    progress: Progress = lambda done, total: None,
) -> MergeReport:
    """Merge configurations with their seeds.

    Args:
        target: path of the merged file.  One that is there is replaced, or put aside where it has
            runs that the new one lacks.
        folder: that the configurations lie in; locked meanwhile.
        sources: lists {configuration: paths of its logs}; asked again when one went away.
        progress: called with bytes done and bytes in all.

    Returns:
        What was done; the seeds are named "<configuration>/<seed>".

    Raises:
        LogNotFound: there is nothing to merge.
        LogDamaged: the target is there and is no log, or no source is.
        MergeFailed: as of `merging.carry_out`.
    """

    def paths() -> list[str]:
        return [path for each in sources().values() for path in each]

    job = Merge(os.path.realpath(target), folder, paths, progress=progress)

    def attempt(unreadable: Unreadable) -> MergeReport | None:
        members, described, left_out = _look(job, sources(), unreadable)
        report = _write(job, members, described, unreadable)
        return report and replace(report, path=target, left_out=tuple(left_out))

    return carry_out(job, attempt)


def _look(
    job: Merge, sources: Mapping[str, Sequence[str]], unreadable: Unreadable
) -> tuple[dict[str, Member], dict[str, Described], list[LeftOut]]:
    """The log of each seed of each configuration.

    Returns:
        Them by the names they get; what each file holds; and the files that are left out.
    """
    found: dict[str, Member] = {}
    described: dict[str, Described] = {}
    left_out: list[LeftOut] = []
    for config_id, paths in sources.items():
        these, problems = look(job, paths, unreadable)
        members = [member for each in these.values() for member in each.members]
        plan = plan_merge(members, contains, running=True)
        found |= {f"{config_id}/{member.seed}": member for member in plan.seeds}
        described |= these
        left_out += problems
    if not found:
        raise nothing(job.folder, left_out)
    return found, described, left_out


def _write(
    job: Merge,
    members: Mapping[str, Member],
    described: dict[str, Described],
    unreadable: Unreadable,
) -> MergeReport | None:
    """Write a file of configurations, unless the one that is there is the same."""
    copies = [copy_of(member, described, name) for name, member in members.items()]
    before = describe(job.target) if os.path.lexists(job.target) else None
    present = {member.group: member for member in before.members} if before else {}
    report = MergeReport(job.target, {name: each.state for name, each in members.items()})
    if present.keys() == members.keys() and _are_same(present, members, copies, job.target):
        return report
    staged = write_file(scratch_folder(job.target), copies, unreadable, progress=job.progress)
    if staged is None:
        return None
    aside: tuple[str, ...] = ()
    try:
        if before and (before.others or present.keys() - members.keys()):
            aside = (files.keep_aside(job.target, replaced_folder(job), stamp()),)
        land(staged, job)
    except BaseException:
        files.remove(staged)
        raise
    added = tuple(name for name in members if name not in present)
    return replace(report, added=added, put_aside=aside)


def _are_same(
    present: Mapping[str, Member], wanted: Mapping[str, Member], copies: Sequence[Copy], target: str
) -> bool:
    """Whether the runs of a file are those that it should have.

    Ours say which they are; those of mle-logging have to be compared.
    """
    foreign = [copy for copy in copies if not wanted[copy.name].run]
    ours = wanted.keys() - {copy.name for copy in foreign}
    return all(_facts(present[name]) == _facts(wanted[name]) for name in ours) and not (
        log_compare.differences(foreign, target)
    )


def _facts(member: Member) -> tuple[object, ...]:
    return member.run, member.rows, member.state, member.kept
