"""Groups of seeds in log files: described, and copied from file to file.

The only writer of HDF5 in the client, and only of files under names of our own, which nobody else
has open.  It does not decide what goes where (`merge_plan`), nor give a file its name (`merge`).

A group is copied by HDF5 itself, object by object: compressed chunks are moved as they are.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from h5py import h5a, h5d, h5f, h5g, h5o, h5p, h5t

from mle_client import files, layout
from mle_client.configs import config_from_text
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.h5access import (
    ADVICE,
    UNREADABLE,
    Id,
    access,
    attribute,
    datasets,
    empty_image,
    encoded,
    first_value,
    reading,
    text_of,
)
from mle_client.merge_plan import Member, first_of

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# HDF5 writes object headers in blocks of this size, rather than each by itself: copying 50 seeds
# takes a tenth less time.
_META_BLOCK_BYTES: Final = 2**20
_META_BLOCK_SHARE: Final = 256  # of what is copied at the most, since the last block has a rest
_META_CACHE_BYTES: Final = 8 * 2**20
# Room for a copy's place in the groups above it, and for blocks that are not full.
_GROUP_BYTES: Final = 8 * 2**10
_SPARE_BYTES: Final = 2 * _META_BLOCK_BYTES
_SYNC_EVERY_S: Final = 0.05  # while a file is written: the disk works meanwhile


@dataclass(frozen=True, slots=True)
class Copy:
    """A group to copy.

    Args:
        source: path of the file that it is in.
        group: its name there, "/"-separated.
        name: its name in the new file, likewise.
    """

    source: str
    group: str
    name: str


@dataclass(frozen=True, slots=True)
class Described:
    """What a log file holds.

    Args:
        stamp: which file that is, see `files.Stamp`.
        members: its seeds.
    """

    stamp: files.Stamp
    members: tuple[Member, ...]


# --- describing -----------------------------------------------------------------------------------
def describe(path: str, *, in_target: bool = False, only: str | None = None) -> Described:
    """Look at a log file without reading its columns.

    Args:
        in_target: whether it is the merged file.
        only: name of the one seed to look at; None for all.

    Raises:
        LogNotFound: it is not there.
        LogDamaged: it is no log, or no longer, or of a newer release.
        OSError: the system refuses to open it.
    """
    with reading(path) as (file, fd):
        stamp = files.Stamp.of(os.fstat(fd))
        members = tuple(
            replace(_member(path, seed, group), in_target=in_target, config_id=config)
            for config, seed, group in _seeds(file, only)
        )
    if not members and only is None:
        raise LogDamaged(path, f"an HDF5 file without a run in it; {ADVICE}")
    return Described(stamp, members)


def merged_log_of(path: str, seed: str, *, anywhere: bool) -> Member | None:
    """Where a seed is whose own log is gone, since it was merged.

    Args:
        path: that its own log had.
        seed: its name.
        anywhere: in whatever file of the folder; else only where the daemon merges to.

    Returns:
        The latest of the logs of that name, if there is one.
    """
    folder = os.path.dirname(path)
    names = [os.path.basename(layout.merged_log_path(""))]
    if anywhere and os.path.isdir(folder):
        names = [n for n in os.listdir(folder) if n.endswith(".hdf5") and not n.startswith(".")]
    found: list[Member] = []
    for name in names:
        with suppress(LogDamaged, LogNotFound):
            found += describe(os.path.join(folder, name), only=seed).members
    same = [member for member in found if member.config_id is None]
    return first_of(same) if same else None


def _seeds(file: Id, only: str | None) -> Iterator[tuple[str | None, str, Id]]:
    """(configuration, seed, group) of all runs in a file; or of one seed."""
    for name, group in _groups(h5g.open(file, b"/"), only):
        if _is_run(group):
            yield None, name, group
            continue
        for seed, inner in _groups(group):
            if _is_run(inner):
                yield name, seed, inner


def _groups(parent: Id, only: str | None = None) -> Iterator[tuple[str, Id]]:
    """The groups right inside a group; or the one of some name."""
    for name in parent if only is None else filter(parent.__contains__, [encoded(only)]):
        child = h5o.open(parent, name)
        if isinstance(child, h5g.GroupID):
            yield name.decode("utf-8", "surrogateescape"), child


def _is_run(group: Id) -> bool:
    """Whether it holds columns, and not just runs that are named like groups of columns."""
    if h5a.exists(group, layout.FORMAT_ATTR.encode()):
        return True
    inside = [child for name, child in _groups(group) if name in layout.GROUPS]
    return bool(inside) and not any(
        all(name.encode() in child for name in layout.GROUPS) for child in inside
    )


def _member(path: str, seed: str, group: Id) -> Member:
    written_as = attribute(group, layout.FORMAT_ATTR)
    if written_as is not None and int(written_as) > layout.FILE_FORMAT:
        raise LogDamaged(path, f"layout {written_as} is of a newer release: install that")
    start, rows = attribute(group, layout.START_ATTR), attribute(group, layout.ROWS_ATTR)
    return Member(
        path,
        seed,
        rows=_longest_clock(group) if rows is None else int(rows),
        run=text_of(attribute(group, layout.RUN_ATTR)) or "",
        state=text_of(attribute(group, layout.STATE_ATTR)),
        start=None if start is None else float(start),
        overwrites=attribute(group, layout.OVERWRITE_ATTR) is not None,
        config=_config(group),
        kept=_kept(group),
    )


def _longest_clock(group: Id) -> int:
    if b"time" not in group:
        return 0
    return max((len(clock) for _, clock in datasets(h5g.open(group, b"time"))), default=0)


def _config(group: Id) -> Any:
    name = b"meta/config_dict"
    if b"meta" not in group or name not in group:
        return None
    dataset = h5d.open(group, name)
    json_text = text_of(attribute(dataset, layout.JSON_ATTR))
    return config_from_text(text_of(first_value(dataset)) or "", json_text or "")


def _kept(group: Id) -> str:
    name = f"meta/{layout.KEPT_NAME}".encode()
    if b"meta" not in group or name not in group:
        return ""
    return (text_of(first_value(h5d.open(group, name))) or "").rstrip(" ")  # it is padded


# --- copying --------------------------------------------------------------------------------------
def write_copies(
    path: str,
    fd: int,
    copies: Sequence[Copy],
    *,
    base: str = "",
    on_copied: Callable[[Copy], None] = lambda copy: None,
) -> list[tuple[Copy, str]]:
    """Write a file of copied groups.  It is not synced; see `synced_meanwhile`.

    Args:
        path: of a new, empty file.
        fd: a descriptor of it.
        copies: what to copy into it.
        base: a file whose content comes first, as it is; "" for none.
        on_copied: told of each copy.

    Returns:
        The copies that could not be made, and why.  What was written of them may be in the file.

    Raises:
        OSError: there is no room, or the disk fails.
    """
    failed: list[tuple[Copy, str]] = []
    if base:
        with open(base, "rb") as file:
            files.copy_all(file.fileno(), fd)
    else:
        files.write_all(fd, empty_image())
    # HDF5 does not survive a write that fails: find out before it begins.
    files.reserve(fd, os.fstat(fd).st_size + _room(copies))
    target = h5f.open(encoded(path), h5f.ACC_RDWR, _writing(_room(copies)))
    try:
        for source, group in itertools.groupby(copies, lambda copy: copy.source):
            failed += _copy_all(source, list(group), target, on_copied)
    finally:
        target.close()
    return failed


@contextmanager
def synced_meanwhile(fd: int) -> Iterator[None]:
    """Have the disk take what is being written, so that the last sync has little to wait for.

    Raises:
        OSError: the disk fails.  The system says so only once, so it must not be passed over.
    """
    done = threading.Event()
    errors: list[OSError] = []

    def sync() -> None:
        while not done.wait(_SYNC_EVERY_S) and not errors:
            try:
                os.fdatasync(fd)
            except OSError as error:
                errors.append(error)

    thread = threading.Thread(target=sync, name="mle-merge-sync")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if errors:
        raise errors[0]


def _room(copies: Sequence[Copy]) -> int:
    """Bytes that copies take at the most: HDF5 lays them at least as densely as they lay."""
    total = sum(os.stat(path).st_size for path in {copy.source for copy in copies})
    return total + total // 4 + len(copies) * _GROUP_BYTES + _SPARE_BYTES


def _copy_all(
    source: str, copies: list[Copy], target: Id, on_copied: Callable[[Copy], None]
) -> list[tuple[Copy, str]]:
    """Copy groups of one file.  Returns: those that could not be copied, and why."""
    failed: list[tuple[Copy, str]] = []
    try:
        with reading(source) as (file, _):
            for copy in copies:
                try:
                    h5o.copy(
                        file, encoded(copy.group), target, encoded(copy.name), lcpl=_links(copy)
                    )
                except UNREADABLE as error:
                    if isinstance(error, OSError) and error.errno in _NO_ROOM:
                        raise
                    failed.append((copy, str(error)))
                on_copied(copy)
    except (LogDamaged, LogNotFound) as error:
        return [(copy, error.why) for copy in copies]
    return failed


def _links(copy: Copy) -> Id:
    links = h5p.create(h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    if not copy.name.isascii():
        links.set_char_encoding(h5t.CSET_UTF8)
    return links


def _writing(room: int) -> Id:
    """How a file that grows by so many bytes is opened."""
    properties = access()
    properties.set_meta_block_size(min(_META_BLOCK_BYTES, room // _META_BLOCK_SHARE))
    cache = properties.get_mdc_config()
    cache.set_initial_size, cache.initial_size = True, _META_CACHE_BYTES
    cache.min_size, cache.max_size = _META_CACHE_BYTES, max(cache.max_size, _META_CACHE_BYTES)
    properties.set_mdc_config(cache)
    return properties
