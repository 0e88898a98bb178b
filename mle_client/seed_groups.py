"""What log files hold, told without reading their columns: which seeds, in which state, how much.

It reads; what follows from it is decided in `merge_plan`, and groups are copied by `group_copies`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from h5py import h5a, h5d, h5g, h5l, h5o

from mle_client import files, layout
from mle_client.configs import config_from_text
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.h5access import (
    ADVICE,
    Id,
    attribute,
    datasets,
    decoded,
    encoded,
    first_value,
    reading,
    text_of,
)
from mle_client.merge_plan import Member, first_of

_FORMAT: Final = layout.FORMAT_ATTR.encode()
_STATE: Final = layout.STATE_ATTR.encode()
_START: Final = layout.START_ATTR.encode()
_ROWS: Final = layout.ROWS_ATTR.encode()
_RUN: Final = layout.RUN_ATTR.encode()
_OVERWRITE: Final = layout.OVERWRITE_ATTR.encode()
_JSON: Final = layout.JSON_ATTR.encode()


@dataclass(frozen=True, slots=True)
class Described:
    """What a log file holds.

    Args:
        stamp: which file that is, see `files.Stamp`.
        members: its seeds.
        others: what else is in it, by name.
    """

    stamp: files.Stamp
    members: tuple[Member, ...]
    others: tuple[str, ...] = ()


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
    others: list[str] = []
    with reading(path) as (file, fd):
        stamp = files.Stamp.of(os.fstat(fd))
        members = tuple(
            replace(
                _member(path, names[-1], group),
                in_target=in_target,
                config_id="/".join(names[:-1]) or None,
            )
            for names, group in _runs(h5g.open(file, b"/"), (), others, only)
        )
    if not members and only is None:
        raise LogDamaged(path, f"an HDF5 file without a run in it; {ADVICE}")
    return Described(stamp, members, tuple(others))


def merged_log_of(path: str, seed: str, *, anywhere: bool) -> Member | None:
    """Where a seed is whose own log is gone, since it was merged.

    Args:
        path: that its own log had.
        seed: its name.
        anywhere: in whatever file of the folder; else only where the daemon merges to.

    Returns:
        The latest of the logs of that name, if there is one.

    Raises:
        OSError: the system refuses to open a file; only where it is looked for anywhere.
    """
    folder = os.path.dirname(path)
    names = [os.path.basename(layout.merged_log_path(""))]
    if anywhere and os.path.isdir(folder):
        names = [n for n in os.listdir(folder) if n.endswith(".hdf5") and not n.startswith(".")]
    found: list[Member] = []
    for name in names:
        try:
            found += describe(os.path.join(folder, name), only=seed).members
        except (LogDamaged, LogNotFound):
            continue
        except OSError:
            if anywhere:
                raise
    same = [member for member in found if member.config_id is None]
    return first_of(same) if same else None


def _runs(
    parent: Id, above: tuple[str, ...], others: list[str], only: str | None
) -> Iterator[tuple[tuple[str, ...], Id]]:
    """All runs below a group, by configuration, if any, and seed.

    Args:
        above: names of the group and of those that it is in.
        others: gets the names of what is in no run.
        only: name of the one run to look at; None for all.
    """
    if h5a.get_num_attrs(parent):
        others.append(f"attributes of {'/'.join(above) or 'the file'}")
    for name in parent if only is None else filter(parent.__contains__, [encoded(only)]):
        names = (*above, decoded(name))
        is_link = parent.links.get_info(name).type != h5l.TYPE_HARD
        child = None if is_link else h5o.open(parent, name)
        if isinstance(child, h5g.GroupID) and _is_run(child):
            yield names, child
        elif isinstance(child, h5g.GroupID) and len(child):
            if only is None:
                yield from _runs(child, names, others, None)
        else:
            others.append("/".join(names))


def _groups(parent: Id) -> Iterator[tuple[str, Id]]:
    """The groups right inside a group."""
    for name in parent:
        child = h5o.open(parent, name)
        if isinstance(child, h5g.GroupID):
            yield decoded(name), child


def _is_run(group: Id) -> bool:
    """Whether it holds columns, and not just runs that are named like groups of columns."""
    if h5a.exists(group, _FORMAT):
        return True
    inside = [child for name, child in _groups(group) if name in layout.GROUPS]
    return bool(inside) and not any(
        all(name.encode() in child for name in layout.GROUPS) for child in inside
    )


def _member(path: str, seed: str, group: Id) -> Member:
    written_as = attribute(group, _FORMAT)
    if written_as is not None and int(written_as) > layout.FILE_FORMAT:
        raise LogDamaged(path, f"layout {written_as} is of a newer release: install that")
    start, rows = attribute(group, _START), attribute(group, _ROWS)
    return Member(
        path,
        seed,
        rows=_longest_clock(group) if rows is None else int(rows),
        run=attribute(group, _RUN) or "",
        state=attribute(group, _STATE),
        start=None if start is None else float(start),
        overwrites=attribute(group, _OVERWRITE) is not None,
        config=_config(group),
        kept=_kept(group),
    )


def _longest_clock(group: Id) -> int:
    if b"time" not in group:
        return 0
    clocks = (clock for _, clock in datasets(h5g.open(group, b"time")) if clock.shape)
    return max((clock.shape[0] for clock in clocks), default=0)


def _config(group: Id) -> Any:
    name = b"meta/config_dict"
    if b"meta" not in group or name not in group:
        return None
    dataset = h5d.open(group, name)
    json_text = attribute(dataset, _JSON)
    return config_from_text(text_of(first_value(dataset)) or "", json_text or "")


def _kept(group: Id) -> str:
    name = f"meta/{layout.KEPT_NAME}".encode()
    if b"meta" not in group or name not in group:
        return ""
    return (text_of(first_value(h5d.open(group, name))) or "").rstrip(" ")  # it is padded
