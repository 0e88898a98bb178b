"""Reads log files: HDF5 in, `RunLog`s out.  Nothing else of the client opens a log to load it.

It takes files of ours (`docs/hdf5-layout.md`) and of mle-logging 0.0.6: seeds at the top, or seeds
inside configurations.  Keys are taken from each run as they are, so that none is lost because
another run lacks it.  It never writes.

A file is looked through for runs at once.  What a run holds is found out when something of it is
first looked at, and a column is read when it is; a small file is read as a whole, and closed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
from h5py import h5a, h5d, h5g, h5o

from mle_client import layout
from mle_client.attrdict import AttrDict
from mle_client.errors import LogDamaged
from mle_client.h5access import ADVICE, attribute
from mle_client.layout import is_rows_name
from mle_client.lazydict import LazyDict, Once
from mle_client.openlog import OpenLog
from mle_client.runlog import Facts, Opening, RunLog
from mle_client.stored import StoredColumn, StoredValue

# Configuration (None for seeds at the top of the file) and seed.
RunKey: TypeAlias = tuple[str | None, str]

# Smaller files are read as a whole, which takes up to 15 ms, where opening takes 3: then nothing is
# held, and an error shows at once.
SMALL_BYTES: Final = 4 * 2**20
_FORMAT: Final = layout.FORMAT_ATTR.encode()
_STATE: Final = layout.STATE_ATTR.encode()
_START: Final = layout.START_ATTR.encode()
_ROWS: Final = layout.ROWS_ATTR.encode()
_LOST: Final = layout.LOST_ATTR.encode()
_GROUP_NAMES: Final = tuple(name.encode() for name in layout.GROUPS)


def read_runs(path: str, only: Collection[str] | None = None) -> dict[RunKey, RunLog]:
    """Read every run of a log file; of a large one, columns when they are wanted.

    Args:
        path: of an HDF5 file.
        only: names of the statistics to read, None for all; the others are not touched.

    Returns:
        The runs.  Columns have the type that is stored; text columns are object arrays of str,
        except the clock "time", a numpy text array.

    Raises:
        LogNotFound: there is no such file, or it went away meanwhile.
        LogDamaged: it is no log, or no longer.
        OSError: the system refuses to open it, say for want of permission.
    """
    file = OpenLog(path, hold=file_size(path) > SMALL_BYTES)
    return find_runs(file, only) if file.held else load_runs(file, only)


@contextmanager
def opened_runs(path: str) -> Iterator[dict[RunKey, RunLog]]:
    """The runs of a log file, of which only what is looked at is read, and only inside `with`.

    Raises:
        What `read_runs` raises.
    """
    file = OpenLog(path, hold=False)
    try:
        yield find_runs(file)
    finally:
        file.close()


def load_runs(file: OpenLog, only: Collection[str] | None = None) -> dict[RunKey, RunLog]:
    """Read every run of a log file with all its columns, and close it."""
    try:
        runs = find_runs(file, only)
        for run in runs.values():
            run.load()
    finally:
        file.close()
    return runs


def find_runs(
    file: OpenLog,
    only: Collection[str] | None = None,
    soon: Collection[str] = ("stats", "time"),
) -> dict[RunKey, RunLog]:
    """Find every run of a log file.  What they hold is read when it is wanted.

    Args:
        file: is closed if it is no log.
        only: see `read_runs`.
        soon: groups whose columns are likely to be wanted, so that of a file with a single run it
            is found out at once where they lie.
    """
    try:
        return _find(file, only, soon)
    except BaseException:
        file.close()
        raise


def _find(
    file: OpenLog, only: Collection[str] | None, soon: Collection[str]
) -> dict[RunKey, RunLog]:
    with file.reading():
        hdf5 = file.hdf5()  # is kept open until this returns
        found = list(_find_runs(hdf5, b"", ()))
    if not found:
        raise LogDamaged(file.path, f"an HDF5 file without a run in it; {ADVICE}")
    openings = {
        key: Opening(partial(_open_run, file, path, is_ours, only)) for key, path, is_ours in found
    }
    if len(openings) == 1:  # then HDF5 need not keep the file open
        (opening,) = openings.values()
        groups, _ = opening()
        _prepare(groups, soon)
        file.rest()
    return {key: RunLog.unopened(opening) for key, opening in openings.items()}


def _prepare(groups: Mapping[str, AttrDict], soon: Collection[str]) -> None:
    """Read meta/, and find out where columns lie: they need no HDF5 after that as a rule."""
    for name in soon:
        for column in dict.values(groups[name]):
            if isinstance(column, StoredColumn):
                column.prepare()
    groups["meta"].items()  # which are read for that


def read_kept(path: str, seed_id: str) -> str:
    """What a run has stored beside its log, as JSON (`kept`).

    Returns:
        "" where the log does not say; mle-logging's has lists in meta/ instead.

    Raises:
        LogNotFound: there is no such file.
        LogDamaged: it cannot be read, or has no such run.
    """
    file = OpenLog(path, hold=False)
    try:
        with file.reading():
            meta = h5g.open(file.hdf5(), f"{seed_id}/meta".encode("utf-8", "surrogateescape"))
            name = layout.KEPT_NAME.encode()
            if name not in meta:
                return ""
            value = StoredValue(file, f"{seed_id}/meta/{layout.KEPT_NAME}".encode(), "").load()
            return str(value).rstrip(" ")  # it is padded
    finally:
        file.close()


def file_size(path: str) -> int:
    """Bytes of a file; 0 where that is not to be known."""
    try:
        return os.path.getsize(path)
    except OSError:  # whoever opens it says why
        return 0


# --- groups ---------------------------------------------------------------------------------------
def _find_runs(
    group: Any, path: bytes, above: tuple[str, ...]
) -> Iterator[tuple[RunKey, bytes, bool]]:
    """All runs below a group, however deep: a configuration's name may hold slashes.

    Yields:
        Of each its key, the path of its group, and whether it is one of ours.
    """
    for name in group:
        text, inside = _as_text(name), path + b"/" + name
        key = ("/".join(above) if above else None, text)
        if h5a.exists(group, _FORMAT, obj_name=name):
            yield key, inside, True
        elif isinstance(child := h5o.open(group, name), h5g.GroupID):
            if _is_run(child):
                yield key, inside, False
            else:
                yield from _find_runs(child, inside, (*above, text))


def _is_run(group: Any) -> bool:
    """Whether it holds columns, and not just runs that are named like groups of columns."""
    groups = [h5o.open(group, name) for name in group if name in _GROUP_NAMES]
    return bool(groups) and not any(
        isinstance(child, h5g.GroupID) and all(name in child for name in _GROUP_NAMES)
        for child in groups
    )


def _open_run(
    file: OpenLog, path: bytes, is_ours: bool, only: Collection[str] | None
) -> tuple[Mapping[str, AttrDict], Facts]:
    """What a run holds, no column of it read."""
    with file.reading():
        hdf5 = file.hdf5()  # is kept open until this returns
        run = h5g.open(hdf5, path)
        written_as = attribute(run, _FORMAT, np.int64)
        if written_as is not None and int(written_as) > layout.FILE_FORMAT:
            raise ValueError(f"layout {written_as} is of a newer release: install that")
        paths = {name: dict(_datasets(run, path, name, is_ours)) for name in layout.GROUPS}
        state = attribute(run, _STATE)
        start, ticks = attribute(run, _START, np.float64), attribute(run, _ROWS, np.int64)
        lost = attribute(run, _LOST, np.int64)
    rows = {k: Once(StoredColumn(file, p)) for k, p in paths["meta"].items() if is_rows_name(k)}
    meta = {k: p for k, p in paths["meta"].items() if k not in rows and k != layout.KEPT_NAME}
    groups: dict[str, AttrDict] = {
        "meta": LazyDict((name, StoredValue(file, p, name)) for name, p in _named(meta)),
        "stats": LazyDict(
            (name, StoredColumn(file, p, rows=rows.get(layout.rows_name("stats", name))))
            for name, p in _named(paths["stats"])
            if only is None or name in only
        ),
        "time": LazyDict(
            (
                name,
                StoredColumn(
                    file,
                    p,
                    is_time=name == "time",
                    rows=rows.get(layout.rows_name("time", name)),
                ),
            )
            for name, p in _named(paths["time"])
        ),
    }
    return groups, Facts(
        None if state is None else str(state),
        None if start is None else float(start),
        None if ticks is None else int(ticks),
        rows,
        lost=0 if lost is None else int(lost),
    )


def _named(paths: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Names of metrics instead of names of datasets."""
    return ((layout.unescape(stored), path) for stored, path in paths.items())


def _datasets(run: Any, path: bytes, group: str, is_ours: bool) -> Iterator[tuple[str, bytes]]:
    """Stored name and path of each dataset of a group.  A run may lack the group."""
    name = group.encode()
    if not run.links.exists(name):
        return
    child, inside = h5o.open(run, name), path + b"/" + name
    if is_ours:  # then all are datasets
        yield from ((_as_text(stored), inside + b"/" + stored) for stored in child)
    elif isinstance(child, h5g.GroupID):
        yield from _nested_datasets(child, inside, "")


def _nested_datasets(group: Any, path: bytes, prefix: str) -> Iterator[tuple[str, bytes]]:
    """mle-logging makes groups of a name with slashes: they are joined to the name again."""
    for name in group:
        child, inside, text = h5o.open(group, name), path + b"/" + name, prefix + _as_text(name)
        if isinstance(child, h5d.DatasetID):
            yield text, inside
        elif isinstance(child, h5g.GroupID):
            yield from _nested_datasets(child, inside, f"{text}/")


def _as_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
