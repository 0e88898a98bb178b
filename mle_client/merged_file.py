"""Writes one merged file: seeds of a configuration, or configurations with their seeds.

It is written aside, synced, compared with its sources dataset by dataset, and only then takes its
name; only after that do sources go.  So whatever is killed at whatever moment, every value stays in
some file.  Merging what is merged changes nothing, and a late seed is added.

What goes where is decided in `merge_plan`; HDF5 is for `seed_groups` and `log_compare`; which files
are merged, and when, is for `merge`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from mle_client import files, layout, log_compare, seed_groups
from mle_client.errors import (
    LogDamaged,
    LogNotFound,
    MergeFailed,
    MergeRefused,
    MLEError,
    TooFewSeeds,
)
from mle_client.merge_plan import LeftOut, Member, Plan, mixed_configurations, plan_merge
from mle_client.merge_staging import Progress, clean, root_above, scratch_folder, write_file
from mle_client.seed_groups import Copy, Described

# For another process that merges the same logs: it may have gigabytes to copy.
LOCK_TIMEOUT_S: Final = 600.0
_REMOVE_TIMEOUT_S: Final = 10.0  # for the daemon to give a log its name
_ATTEMPTS: Final = 5  # of reading files that are replaced meanwhile
_STAMP: Final = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    Args:
        path: of the merged file.
        seeds: {name: state} of the runs in it; the state is "running", "finished", "crashed", or
            None where the file does not say.
        added: names of those that it lacked before.
        removed: paths of the files that it replaces.
        left_out: files that stay because they are not, or not wholly, in it.
        put_aside: paths that logs were moved to whose place others took.
    """

    path: str
    seeds: dict[str, str | None] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    put_aside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge to be made.

    Args:
        target: path of the merged file; need not exist.
        sources: paths of the files to merge into it.
        folder: of the configuration; locked meanwhile.
        delete: remove the sources that the merged file has everything of.
        running: take runs that go on, as far as they got; their files stay.
        mixed: take runs of different configurations.
        at_least: how many seeds it takes that have ended, those that are merged already included.
        progress: called with bytes done and bytes in all.
    """

    target: str
    sources: tuple[str, ...]
    folder: str
    delete: bool = True
    running: bool = False
    mixed: bool = False
    at_least: int = 1
    progress: Progress = lambda done, total: None


# --- merging --------------------------------------------------------------------------------------
def merge(job: Merge) -> MergeReport:
    """Merge the logs of seeds.

    Raises:
        LogNotFound: there is nothing to merge.
        LogDamaged: the target is there and is no log, or no source is.
        MergeRefused: the runs have different configurations.
        TooFewSeeds: fewer have ended than it takes.
        MergeFailed: there is no room, no permission, or the disk fails; or another process has been
            merging these logs for `LOCK_TIMEOUT_S`.
    """
    unreadable: dict[str, LeftOut] = {}
    with _saying_why(job), files.locked(job.folder, LOCK_TIMEOUT_S):
        clean(scratch_folder(job.target))
        for _ in range(_ATTEMPTS + len(job.sources)):
            try:
                report = _attempt(job, unreadable)
            except FileNotFoundError as error:
                if isinstance(error, LogNotFound) and error.path == job.folder:
                    raise
                continue  # a source was replaced or removed meanwhile: look again
            if report is not None:
                return report
    raise MergeFailed(job.folder, "its logs change all the time: merge them when they are at rest")


def _attempt(job: Merge, unreadable: dict[str, LeftOut]) -> MergeReport | None:
    """Merge what can be read.

    Args:
        unreadable: files of which that is known already; more are added.

    Returns:
        None where more turned out to be unreadable.
    """
    described, left_out = _look(job, unreadable)
    members = [member for each in described.values() for member in each.members]
    if not members:
        raise _nothing(job, left_out)
    plan = plan_merge(members, _contains, running=job.running)
    ended = sum(not each.is_running for each in plan.seeds)
    if ended < job.at_least:
        running = tuple(each.seed for each in members if each.is_running)
        raise TooFewSeeds(job.folder, ended, job.at_least, running)
    if not job.mixed and (mixture := mixed_configurations(plan.seeds)):
        raise MergeRefused(
            job.folder,
            f"{mixture}: log each configuration to a folder of its own; merge_seed_logs() merges "
            "them all the same",
        )
    left_out += [LeftOut(path, why) for path, why in plan.left_out]
    aside: list[str] = []
    if plan.changes_target:
        staged = _stage(job, plan, unreadable)
        if staged is None:
            return None
        try:
            aside += [_put_aside(job, member) for member in plan.aside]
            files.land(staged, job.target, f"{staged}.copy")
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
    )


def merge_configurations(
    target: str,
    folder: str,
    sources: Mapping[str, Sequence[str]],
    progress: Progress = lambda done, total: None,
) -> MergeReport:
    """Merge configurations with their seeds.  Their own logs stay.

    Args:
        target: path of the merged file.  One that is there is replaced, or put aside where it has
            runs that the new one lacks.
        folder: that the configurations lie in; locked meanwhile.
        sources: {configuration: paths of its logs}.
        progress: called with bytes done and bytes in all.

    Returns:
        What was done; the seeds are named "<configuration>/<seed>".

    Raises:
        As of `merge`.
    """
    job = Merge(target, tuple(path for paths in sources.values() for path in paths), folder)
    unreadable: dict[str, LeftOut] = {}
    with _saying_why(job), files.locked(folder, LOCK_TIMEOUT_S):
        clean(scratch_folder(target))
        for _ in range(_ATTEMPTS + len(job.sources)):
            try:
                members, left_out = _members_of(sources, folder, unreadable)
                report = _write_configurations(job, members, unreadable, progress)
            except FileNotFoundError as error:
                if isinstance(error, LogNotFound) and error.path == folder:
                    raise
                continue
            if report is not None:
                return replace(report, left_out=tuple(left_out))
    raise MergeFailed(folder, "its logs change all the time: merge them when they are at rest")


def _members_of(
    sources: Mapping[str, Sequence[str]], folder: str, unreadable: dict[str, LeftOut]
) -> tuple[list[Member], list[LeftOut]]:
    """The log of each seed of each configuration, and the files that are left out."""
    found: list[Member] = []
    left_out: list[LeftOut] = []
    for config_id, paths in sources.items():
        job = Merge("", tuple(paths), folder)
        described, problems = _look(job, unreadable)
        plan = plan_merge(
            [member for each in described.values() for member in each.members],
            _contains,
            running=True,
        )
        if not plan.seeds:
            raise _nothing(job, problems)
        left_out += [each for each in problems if each.path in paths]
        found += [replace(member, config_id=config_id) for member in plan.seeds]
    return found, left_out


def _write_configurations(
    job: Merge, members: Sequence[Member], unreadable: dict[str, LeftOut], progress: Progress
) -> MergeReport | None:
    """Write a file of configurations, unless the one that is there is the same."""
    present: dict[str, Member] = {}
    if os.path.lexists(job.target):
        present = {member.group: member for member in seed_groups.describe(job.target).members}
    wanted = {member.group: member for member in members}
    report = MergeReport(job.target, {group: each.state for group, each in wanted.items()})
    if present.keys() == wanted.keys() and all(
        _is_same(present[group], wanted[group]) for group in wanted
    ):
        return report
    copies = [Copy(member.path, member.seed, member.group) for member in members]
    staged = write_file(scratch_folder(job.target), copies, unreadable, progress=progress)
    if staged is None:
        return None
    aside: tuple[str, ...] = ()
    try:
        if present.keys() - wanted.keys():
            replaced = layout.state_path(root_above(job.folder), layout.REPLACED_DIR)
            aside = (files.keep_aside(job.target, replaced, _stamp()),)
        files.land(staged, job.target, f"{staged}.copy")
    except BaseException:
        files.remove(staged)
        raise
    added = tuple(group for group in wanted if group not in present)
    return replace(report, added=added, put_aside=aside)


def _is_same(one: Member, other: Member) -> bool:
    """Whether two logs of ours are the same, as far as they say which they are."""
    told = [(each.run, each.rows, each.state, each.kept) for each in (one, other)]
    return bool(one.run) and told[0] == told[1]


def _look(job: Merge, unreadable: dict[str, LeftOut]) -> tuple[dict[str, Described], list[LeftOut]]:
    """What the merged file and its sources hold, and which of them say nothing."""
    described: dict[str, Described] = {}
    if os.path.lexists(job.target):
        described[job.target] = _of_seeds(job.target, in_target=True)
    for path in job.sources:
        if path in unreadable:
            continue
        try:
            described[path] = _of_seeds(path)
        except LogDamaged as error:
            unreadable[path] = LeftOut(path, error.why, damaged=True)
        except LogNotFound:
            continue  # merged by somebody else, or put aside
        except OSError as error:
            unreadable[path] = LeftOut(path, f"it cannot be opened: {error.strerror}")
    return described, list(unreadable.values())


def _of_seeds(path: str, *, in_target: bool = False) -> Described:
    """Describe a file of seeds.  Raises: as of `seed_groups.describe`."""
    found = seed_groups.describe(path, in_target=in_target)
    if any(member.config_id is not None for member in found.members):
        raise LogDamaged(path, "it holds whole configurations, and no seeds of one: move it away")
    return found


def _nothing(job: Merge, left_out: Sequence[LeftOut]) -> MLEError:
    """The error that no log can be merged."""
    if left_out:
        first = left_out[0]
        error = LogDamaged if first.damaged else MergeFailed
        more = f"; and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        return error(first.path, first.why + more)
    return LogNotFound(job.folder, "there is no log in its folder logs/: nothing to merge")


def _contains(older: Member, newer: Member) -> bool:
    try:
        return log_compare.contains((older.path, older.seed), (newer.path, newer.seed))
    except LogDamaged:
        return False  # what cannot be compared is kept


# --- the new file ---------------------------------------------------------------------------------
def _stage(job: Merge, plan: Plan, unreadable: dict[str, LeftOut]) -> str | None:
    """Write the merged file aside, synced and compared.

    Returns:
        Its path; None where a source turned out to be unreadable.
    """
    copies = [Copy(each.path, each.seed, each.seed) for each in plan.take]
    kept = [Copy(each.path, each.seed, each.seed) for each in plan.keep]
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


def _put_aside(job: Merge, member: Member) -> str:
    """Keep a log whose place in the merged file another one takes."""
    unreadable: dict[str, LeftOut] = {}
    copy = Copy(member.path, member.seed, member.seed)
    staged = write_file(scratch_folder(job.target), [copy], unreadable)
    if staged is None:
        raise LogDamaged(member.path, unreadable[member.path].why)
    folder = layout.state_path(root_above(job.folder), layout.REPLACED_DIR)
    name = os.path.basename(layout.log_path("", member.seed))
    return files.put_aside(staged, folder, _stamp(), name)


def _stamp() -> str:
    return datetime.now(UTC).strftime(_STAMP)


# --- the sources ----------------------------------------------------------------------------------
def _remove(
    job: Merge, plan: Plan, described: dict[str, Described]
) -> tuple[list[str], list[LeftOut]]:
    """Remove the files that the merged one replaces.  Returns: which went, and which did not."""
    removed, kept = [], []
    for path in plan.removable:
        found = described[path]
        if not all(each in plan.take or _is_merged(each, job.target) for each in found.members):
            kept.append(LeftOut(path, f"it holds values that {job.target} lacks; load both"))
            continue
        try:
            if _remove_if_still(path, found.stamp):
                removed.append(path)
        except OSError as error:
            why = f"everything in it is merged, but it cannot be removed ({error.strerror})"
            kept.append(LeftOut(path, why))
    return removed, kept


def _is_merged(member: Member, target: str) -> bool:
    return _contains(member, replace(member, path=target))


def _remove_if_still(path: str, stamp: files.Stamp) -> bool:
    """Remove a file unless another one has its name by now."""
    folder = os.path.dirname(path)
    with files.locked(folder, _REMOVE_TIMEOUT_S):
        try:
            if files.Stamp.of(os.stat(path)) != stamp:
                return False
            os.unlink(path)
        except FileNotFoundError:
            return False
    return True


@contextmanager
def _saying_why(job: Merge) -> Iterator[None]:
    """Turn what the system says into what the user can do about it."""
    try:
        yield
    except MLEError:
        raise
    except OSError as error:
        where = error.filename or job.target
        raise MergeFailed(str(where), _advice(error, job)) from error


def _advice(error: OSError, job: Merge) -> str:
    said = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = sum(os.stat(path).st_size for path in job.sources if os.path.exists(path))
        return f"{said}: merging takes {needed / 1e6:.1f} MB; make room and merge again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{said}: make the folder writable and merge again"
    return f"{said}: nothing was removed; merge again"
