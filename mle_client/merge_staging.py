"""Unfinished merged files: written aside under names of our own, synced, and compared.

It gives no file its final name and removes none but its own.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from mle_client import files, layout, log_compare, seed_groups
from mle_client.errors import MergeFailed
from mle_client.merge_plan import LeftOut
from mle_client.seed_groups import Copy

_TEMPORARY: Final = "merge-"  # begins the token of an unfinished file

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
        unreadable: files that turn out to be so are added.
        base, base_copies: a file whose content comes first, and what is in it.

    Returns:
        Its path; None where a source is unreadable or changed meanwhile.
    """
    path = os.path.join(folder, layout.temporary_name(_TEMPORARY + secrets.token_hex(8)))
    sizes = {source: os.stat(source).st_size for source in {copy.source for copy in copies}}
    done, total = 0, sum(sizes.values())

    def on_copied(copy: Copy) -> None:
        nonlocal done
        done += sizes.pop(copy.source, 0)
        progress(done, total)

    with files.new_file(path) as fd, seed_groups.synced_meanwhile(fd):
        failed = seed_groups.write_copies(path, fd, copies, base=base, on_copied=on_copied)
        different = [] if failed else log_compare.differences([*base_copies, *copies], path)
    for copy, why in failed:
        unreadable[copy.source] = LeftOut(copy.source, why, damaged=True)
    if failed or different:
        files.remove(path)
    if different:
        raise MergeFailed(
            folder,
            f"what was written does not read back as it was ({different[0]}): check the disk",
        )
    return None if failed else path


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
    return os.path.dirname(folder) if os.path.basename(folder) == "logs" else folder


def clean(folder: str) -> None:
    """Remove what a killed merge left.  The folder is locked, so nobody is at it."""
    prefix = layout.temporary_name(_TEMPORARY).removesuffix(".tmp")
    for name in os.listdir(folder):
        if name.startswith(prefix) and layout.is_temporary(name.removesuffix(".copy")):
            files.remove(os.path.join(folder, name))
