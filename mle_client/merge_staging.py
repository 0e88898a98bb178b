"""Unfinished merged files: written aside under names of our own, synced, and compared.

It gives no file its final name and removes none but its own.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from mle_client import files, group_copies, layout, log_compare
from mle_client.errors import LogDamaged, MergeFailed
from mle_client.group_copies import Copy
from mle_client.merge_plan import LeftOut

_TEMPORARY: Final = "merge-"  # begins the token of an unfinished file
# Where nothing keeps others out, an unfinished file is left alone for so long after its last write.
_FORGOTTEN_AFTER_S: Final = 3600.0

Progress: TypeAlias = Callable[[int, int], None]  # told the bytes done and the bytes in all


def write_file(
    folder: str,
    copies: Sequence[Copy],
    unreadable: dict[str, LeftOut],
    *,
    base: str = "",
    base_copies: Sequence[Copy] = (),
    progress: Progress = lambda done, total: None,
) -> str | None:
    """Write a file of copied groups under a name of our own, synced and compared.

    Args:
        folder: where to.
        unreadable: files that cannot be copied as they are; more are added.
        base, base_copies: a file whose content comes first, and what is in it.

    Returns:
        Its path; None where a source cannot be copied.

    Raises:
        LogNotFound: a source is gone, or was replaced.
        MergeFailed: what was written does not read back.
        OSError: there is no room, or the disk fails.
    """
    path = os.path.join(folder, layout.temporary_name(_TEMPORARY + secrets.token_hex(8)))
    sizes = {source: os.stat(source).st_size for source in {copy.source for copy in copies}}
    done, total = 0, sum(sizes.values())

    def on_copied(copy: Copy) -> None:
        nonlocal done
        done += sizes.pop(copy.source, 0)
        progress(done, total)

    with files.new_file(path) as fd, group_copies.synced_meanwhile(fd):
        failed = group_copies.write_copies(path, fd, copies, base=base, on_copied=on_copied)
        if not failed:
            failed = _not_as_it_was(path, base_copies, copies)
    for copy, why in failed:
        unreadable[copy.source] = LeftOut(copy.source, why, damaged=True)
    if failed:
        files.remove(path)
    return None if failed else path


def _not_as_it_was(
    path: str, base: Sequence[Copy], copies: Sequence[Copy]
) -> list[tuple[Copy, str]]:
    """The copies in a file that are not what they are of, and how.

    Raises:
        MergeFailed: what was copied as a whole is not.
    """
    try:
        damaged = log_compare.differences(base, path)
        different = log_compare.differences(copies, path)
    except LogDamaged as error:
        raise MergeFailed(
            error.path, f"what was written does not read back: {error.why}"
        ) from error
    if damaged:
        said = f"what was written does not read back as it was ({damaged[0][1]}): check the disk"
        raise MergeFailed(damaged[0][0].source, said)
    return [
        (copy, f"a copy of it does not read back as it is ({where}): check the file, and the disk")
        for copy, where in different
    ]


def root_above(folder: str) -> str:
    """The nearest folder that has ours in it; the folder itself where none has."""
    above = os.path.realpath(folder)
    while not os.path.isdir(layout.state_path(above)):
        if above == os.path.dirname(above):
            return os.path.realpath(folder)
        above = os.path.dirname(above)
    return above


def scratch_folder(target: str) -> str:
    """Where unfinished files lie: on the file system of the target, and not where logs are."""
    folder = os.path.dirname(os.path.realpath(target))
    above = os.path.dirname(folder)
    if os.path.basename(folder) == "logs" and os.stat(above).st_dev == os.stat(folder).st_dev:
        return above
    return folder


def clean(folder: str, *, alone: bool) -> None:
    """Remove what a killed merge left.

    Args:
        alone: the folder is locked, so that nobody is at it.
    """
    prefix = layout.temporary_name(_TEMPORARY).removesuffix(".tmp")
    for name in os.listdir(folder):
        if name.startswith(prefix) and layout.is_temporary(name.removesuffix(".copy")):
            path = os.path.join(folder, name)
            if alone or _is_forgotten(path):
                files.remove(path)


def _is_forgotten(path: str) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime > _FORGOTTEN_AFTER_S
    except FileNotFoundError:
        return False
