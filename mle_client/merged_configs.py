"""Merges configurations, with their seeds, into one file.  Their own logs stay.

Like `merged_file` it writes aside, syncs and compares before the new file takes its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from mle_client import files, log_compare
from mle_client.errors import MergeRefused
from mle_client.group_copies import Copy
from mle_client.merge_plan import LeftOut, Member, mixed_configurations, plan_merge
from mle_client.merge_staging import Progress, scratch_folder, write_file
from mle_client.merging import (
    Merge,
    MergeReport,
    Tell,
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
    *,
    mixed: bool = False,
    on_wait: Tell = lambda text: None,
) -> MergeReport:
    """Merge configurations with their seeds.

    Args:
        target: path of the merged file.  One that is there is replaced, or put aside where it has
            runs that the new one lacks.
        folder: that the configurations lie in; locked meanwhile.
        sources: lists {configuration: paths of its logs}; asked again when one went away.
        progress: called with bytes done and bytes in all.
        mixed: take a configuration, too, whose runs were not configured alike; else it is left out.
        on_wait: as of `merging.Merge`.

    Returns:
        What was done; the seeds are named "<configuration>/<seed>".  What is left out, and which
        runs are in it as far as they got, is told by `left_out`.

    Raises:
        LogNotFound: there is nothing to merge.
        LogDamaged: the target is there and is no log, or no source is.
        MergeRefused: no configuration has runs that were configured alike.
        MergeFailed: as of `merging.carry_out`.
    """

    def paths() -> list[str]:
        return [path for each in sources().values() for path in each]

    job = Merge(
        os.path.realpath(target), folder, paths, mixed=mixed, progress=progress, on_wait=on_wait
    )

    def attempt(unreadable: Unreadable) -> MergeReport | None:
        found = _look(job, sources(), unreadable)
        report = _write(job, found.members, found.described, unreadable)
        return report and replace(
            report, path=target, left_out=tuple(found.left_out), mixed="; ".join(found.mixed)
        )

    return carry_out(job, attempt)


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is to merge.

    Args:
        members: the log of each seed of each configuration, by the name that it gets.
        described: what each file holds.
        left_out: what is not, or not wholly, to be in the merged file.
        mixed: what tells of each configuration that is to be in it that its runs do not belong
            together.
    """

    members: dict[str, Member] = field(default_factory=dict)
    described: dict[str, Described] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)


def _look(job: Merge, sources: Mapping[str, Sequence[str]], unreadable: Unreadable) -> _Found:
    """Look at the logs of all configurations.

    Raises:
        MergeRefused, LogDamaged, LogNotFound: none of them can be merged.
    """
    found = _Found()
    refused: list[LeftOut] = []
    for config_id, paths in sources.items():
        these, problems = look(job, paths, unreadable)
        found.left_out.extend(problems)
        members = [member for each in these.values() for member in each.members]
        plan = plan_merge(members, contains, running=True)
        mixture = mixed_configurations(plan.seeds)
        if mixture and not job.mixed:
            refused.append(_refused(job, os.path.dirname(os.path.dirname(paths[0])), mixture))
            continue
        if mixture:
            found.mixed.append(mixture)
        found.left_out.extend(each for each in plan.left_out if not each.running)
        found.left_out.extend(_goes_on(job, each) for each in plan.seeds if each.is_running)
        found.members.update({f"{config_id}/{member.seed}": member for member in plan.seeds})
        found.described.update(these)
    if not found.members:
        if refused and not found.left_out:
            raise MergeRefused(refused[0].path, refused[0].why)
        raise nothing(job.folder, found.left_out)
    found.left_out.extend(refused)
    return found


def _refused(job: Merge, folder: str, mixture: str) -> LeftOut:
    return LeftOut(
        folder,
        f"it is not in {os.path.basename(job.target)}, for {mixture}: log each configuration to a "
        "folder of its own; merge_config_logs() merges them all the same",
    )


def _goes_on(job: Merge, member: Member) -> LeftOut:
    why = f"{member.seed} is still running: {os.path.basename(job.target)} has it as far as it got;"
    return LeftOut(member.path, f"{why} merge again when it has ended", running=True)


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
        _note_when(job.target, described)
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


def _note_when(target: str, described: Mapping[str, Described]) -> None:
    """Have a file that has all of its sources not look older than they are: see `experiments`."""
    latest = max(each.stamp.mtime_ns for each in described.values())
    with suppress(OSError):  # another user's file
        if os.stat(target).st_mtime_ns < latest:
            os.utime(target, ns=(latest, latest))


def _facts(member: Member) -> tuple[object, ...]:
    return member.run, member.rows, member.state, member.kept
