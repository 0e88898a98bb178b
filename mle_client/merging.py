"""What merges of seeds and of configurations have in common.

Locks, attempts, and what is said of a failure; which files a merge takes is told by its job, and
what is done with them by `merged_file` and `merged_configs`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeAlias

from mle_client import files, layout, log_compare, seed_groups
from mle_client.errors import LogDamaged, LogNotFound, MergeFailed, MLEError
from mle_client.group_copies import Copy
from mle_client.merge_plan import LeftOut, Member
from mle_client.merge_staging import Progress, clean, root_above, scratch_folder
from mle_client.seed_groups import Described

# For another process that merges the same logs: it may have gigabytes to copy.
LOCK_TIMEOUT_S: Final = 600.0
# How long merges of this process wait for it, where nothing else is said.
PATIENCE_S: Final[ContextVar[float]] = ContextVar("PATIENCE_S", default=LOCK_TIMEOUT_S)

Tell: TypeAlias = Callable[[str], None]  # told a sentence for the user

_ATTEMPTS: Final = 10  # of reading files that are replaced meanwhile
_STAMP: Final = "%Y%m%dT%H%M%SZ"
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


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
        mixed: what tells that the runs were not configured alike; "" if they were.
    """

    path: str
    seeds: dict[str, str | None] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    put_aside: tuple[str, ...] = ()
    mixed: str = ""


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge to be made.

    Args:
        target: path of the merged file; need not exist.
        folder: of the configuration, or of the configurations; locked meanwhile.
        sources: lists the paths of the files to merge.  Asked again when one of them went away.
        delete: remove the sources that the merged file has everything of.
        own: take those sources only that hold the one seed that their name says; others, such as a
            merged file that somebody named like them, stay as they are.
        running: take runs that go on, as far as they got; their files stay.
        mixed: take runs of different configurations.
        at_least: how many seeds it takes that have ended, those that are merged already included.
        progress: called with bytes done and bytes in all.
        patience_s: how long to wait for another merge of the same logs.
        on_wait: told for whom, after a second of waiting.
    """

    target: str
    folder: str
    sources: Callable[[], Sequence[str]]
    delete: bool = True
    own: bool = False
    running: bool = False
    mixed: bool = False
    at_least: int = 1
    progress: Progress = lambda done, total: None
    patience_s: float = field(default_factory=PATIENCE_S.get)
    on_wait: Tell = lambda text: None


# Files that cannot be read, or copied: what an attempt finds out about them, the next one knows.
Unreadable = dict[str, LeftOut]


def carry_out(job: Merge, attempt: Callable[[Unreadable], MergeReport | None]) -> MergeReport:
    """Have a merge attempted until it works, while nobody else merges the same logs.

    Args:
        attempt: returns None where it found more files unreadable.

    Raises:
        LogNotFound, LogDamaged, MergeRefused, TooFewSeeds: what the attempt raises.
        MergeFailed: there is no room, no permission, or the disk fails; another process has been
            merging these logs for too long; or they never come to rest.
    """
    unreadable: Unreadable = {}
    with _saying_why(job):
        check_target(job.target)
        scratch = scratch_folder(job.target)
        with files.locked(
            job.folder, scratch, timeout=job.patience_s, on_wait=job.on_wait
        ) as alone:
            for folder in {scratch, os.path.dirname(job.target)}:
                clean(folder, alone=alone)
            changes = 0
            while changes < _ATTEMPTS:
                try:
                    report = attempt(unreadable)
                except FileNotFoundError as error:
                    if isinstance(error, LogNotFound) and error.path == job.folder:
                        raise
                    changes += 1  # a source was replaced or removed meanwhile
                    continue
                if report is not None:
                    return report
    # The cause tells that it may go well the next time.
    raise MergeFailed(
        job.folder, "its logs change all the time: merge them when they are at rest"
    ) from BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def check_target(path: str) -> None:
    """Raise unless a merged file can have a path.

    Raises:
        MergeFailed: says why not.
    """
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise MergeFailed(path, f"there is no folder {folder}: make it, or merge into another one")
    if os.path.isdir(path):
        raise MergeFailed(path, "it is a folder: give the path of a file in it")


# --- looking --------------------------------------------------------------------------------------
def look(
    job: Merge, paths: Sequence[str], unreadable: Unreadable
) -> tuple[dict[str, Described], list[LeftOut]]:
    """What files of seeds hold, and which of them say nothing.

    Args:
        unreadable: those that are passed over; more are added.

    Raises:
        LogNotFound: one went away meanwhile.
    """
    described: dict[str, Described] = {}
    for path in paths:
        if path in unreadable:
            continue
        try:
            described[path] = describe_seeds(path)
        except LogDamaged as error:
            unreadable[path] = LeftOut(path, error.why, damaged=True)
        except LogNotFound:
            if not os.path.islink(path):
                raise
            unreadable[path] = LeftOut(path, "it is a link to nothing: remove it", damaged=True)
        except OSError as error:
            unreadable[path] = LeftOut(path, f"it cannot be opened: {error.strerror}")
    return described, [unreadable[path] for path in paths if path in unreadable]


def describe_seeds(path: str, *, in_target: bool = False) -> Described:
    """Describe a file of seeds.  Raises: as of `seed_groups.describe`."""
    found = seed_groups.describe(path, in_target=in_target)
    if any(member.config_id is not None for member in found.members):
        raise LogDamaged(path, "it holds whole configurations, and no seeds of one: move it away")
    return found


def nothing(folder: str, left_out: Sequence[LeftOut]) -> MLEError:
    """The error that no log of a configuration can be merged."""
    if left_out:
        first = left_out[0]
        error = LogDamaged if first.damaged else MergeFailed
        more = f"; and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        return error(first.path, first.why + more)
    return LogNotFound(folder, "there is no log in its folder logs/: nothing to merge")


def contains(older: Member, newer: Member) -> bool:
    """Whether the second has all that the first has; what cannot be compared is kept."""
    try:
        return log_compare.contains((older.path, older.group), (newer.path, newer.group))
    except LogDamaged:
        return False


# --- writing --------------------------------------------------------------------------------------
def copy_of(member: Member, described: dict[str, Described], name: str) -> Copy:
    """A run to copy.  Args: name: that it gets."""
    stamp = described[member.path].stamp
    return Copy(member.path, member.group, name, stamp, grows=member.is_running)


def land(staged: str, job: Merge) -> None:
    """Give a staged file the name of the merged file."""
    aside = os.path.join(os.path.dirname(job.target), f"{os.path.basename(staged)}.copy")
    files.land(staged, job.target, aside)


def replaced_folder(job: Merge) -> str:
    """Where logs go whose place others take."""
    return layout.state_path(root_above(job.folder), layout.REPLACED_DIR)


def stamp() -> str:
    """What begins the name of a file that is put aside."""
    return datetime.now(UTC).strftime(_STAMP)


# --- what is said ---------------------------------------------------------------------------------
@contextmanager
def _saying_why(job: Merge) -> Iterator[None]:
    """Turn what the system says into what the user can do about it."""
    try:
        yield
    except MLEError:
        raise
    except OSError as error:
        raise MergeFailed(_place(error, job), _advice(error, job)) from error


def _place(error: OSError, job: Merge) -> str:
    """The file that something is the matter with; or the folder, where it cannot be written to."""
    where = str(error.filename or job.target)
    if error.filename2 is not None:  # a file was to get a name; what is wrong is there
        where = str(error.filename2)
    elif layout.is_temporary(os.path.basename(where)) and error.errno not in _NO_PERMISSION:
        return job.target
    if error.errno not in _NO_PERMISSION or os.path.isdir(where):
        return where
    if _is_protected(error) or _is_unreadable(error):
        return where
    return os.path.dirname(where) or "."


def _advice(error: OSError, job: Merge) -> str:
    said = error.strerror or str(error)
    if error.errno in _NO_ROOM:
        return f"{said}: merging takes {_bytes(job) / 1e6:.1f} MB; make room and merge again"
    if _is_protected(error):
        return (
            f"{said}: it, or its folder, is protected against changes (`lsattr -d` tells, and "
            "`chattr -i` ends that); then merge again"
        )
    if _is_unreadable(error):
        return f"{said}: make it readable and merge again"
    if error.errno in _NO_PERMISSION:
        return f"{said}: make this folder writable and merge again"
    return f"{said}: nothing was removed; merge again"


def _is_protected(error: OSError) -> bool:
    """Whether a file cannot be replaced although its folder can be written to."""
    return (
        error.errno in _NO_PERMISSION
        and error.filename2 is not None
        and os.access(os.path.dirname(error.filename2) or ".", os.W_OK)
    )


def _is_unreadable(error: OSError) -> bool:
    """Whether a file that is there may not be read."""
    return (
        error.errno in _NO_PERMISSION
        and error.filename2 is None
        and os.path.isfile(error.filename or "")
        and not os.access(error.filename, os.R_OK)
    )


def _bytes(job: Merge) -> int:
    """How much room a merge takes."""
    total = 0
    for path in (job.target, *job.sources()):
        try:
            total += os.stat(path).st_size
        except OSError:
            continue
    return total
