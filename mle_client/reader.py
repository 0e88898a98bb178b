"""Reads log files: HDF5 in, `RunLog`s out.  Nothing else of the client opens a log to load it.

It takes files of ours (`docs/hdf5-layout.md`) and of mle-logging 0.0.6: seeds at the top, or seeds
inside configurations.  Keys are taken from each run as they are, so that none is lost because
another run lacks it.  It never writes, and closes what it opened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5o, h5s

from mle_client import layout
from mle_client.configs import config_from_text
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.metalog import Array, RunLog

# Configuration (None for seeds at the top of the file) and seed.
RunKey: TypeAlias = tuple[str | None, str]

# Text is read in blocks of so many bytes: mle-logging stores 5000 for every string.
_TEXT_BLOCK_BYTES: Final = 4 * 2**20
_ADVICE: Final = "restore it from a copy, or move it out of the folder"
_GROUP_NAMES: Final = tuple(name.encode() for name in layout.GROUPS)


def read_runs(path: str, only: Collection[str] | None = None) -> dict[RunKey, RunLog]:
    """Read every run of a log file.

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
    try:
        with _open(path) as file:
            runs = {key: _read_run(group, only) for key, group in _find_runs(file.id, ())}
    except FileNotFoundError as error:
        raise LogNotFound(path, "there is no such file") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if "Stale file handle" in str(error):  # how a network file system says "replaced"
            raise LogNotFound(path, "the file was replaced while it was read") from error
        if isinstance(error, OSError) and error.errno:
            raise  # the file itself may be good
        raise LogDamaged(path, f"not a readable HDF5 file ({error}); {_ADVICE}") from error
    if not runs:
        raise LogDamaged(path, f"an HDF5 file without a run in it; {_ADVICE}")
    return runs


def read_kept(path: str, seed_id: str) -> str:
    """What a run has stored beside its log, as JSON (`kept`).

    Returns:
        "" where the log does not say; mle-logging's has lists in meta/ instead.

    Raises:
        LogDamaged: it cannot be read.
    """
    try:
        with _open(path) as file:
            meta = file[seed_id]["meta"]
            if layout.KEPT_NAME not in meta:
                return ""
            return str(_column(meta[layout.KEPT_NAME].id)[0]).rstrip(" ")  # it is padded
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError) as error:
        raise LogDamaged(path, f"meta/{layout.KEPT_NAME} cannot be read ({error})") from error


def read_names(path: str, seed_id: str) -> list[str]:
    """The names of a run's statistics, without reading their values."""
    with _open(path) as file:
        return [layout.unescape(name) for name, _ in _columns(file[seed_id].id, "stats")]


def _open(path: str) -> h5py.File:
    """A published file never changes, so a lock that cannot be had is no reason to give up."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
        return h5py.File(path, "r", locking=False)


# --- groups ---------------------------------------------------------------------------------------
def _find_runs(group: h5g.GroupID, above: tuple[str, ...]) -> Iterator[tuple[RunKey, h5g.GroupID]]:
    """All runs below a group, however deep: a configuration's name may hold slashes."""
    for name, child in _children(group):
        if not isinstance(child, h5g.GroupID):
            continue
        if _is_run(child):
            yield ("/".join(above) if above else None, name), child
        else:
            yield from _find_runs(child, (*above, name))


def _is_run(group: h5g.GroupID) -> bool:
    """Whether it holds columns, and not just runs that are named like groups of columns."""
    groups = [child for name, child in _children(group) if name in layout.GROUPS]
    return bool(groups) and not any(
        isinstance(child, h5g.GroupID) and all(name in child for name in _GROUP_NAMES)
        for child in groups
    )


def _children(group: h5g.GroupID) -> Iterator[tuple[str, h5g.GroupID | h5d.DatasetID]]:
    for name in group:
        yield name.decode("utf-8", "surrogateescape"), h5o.open(group, name)


def _read_run(group: h5g.GroupID, only: Collection[str] | None) -> RunLog:
    written_as = _attribute(group, layout.FORMAT_ATTR)
    if written_as is not None and int(written_as) > layout.FILE_FORMAT:
        raise ValueError(f"layout {written_as} is of a newer release: install that")
    columns = {name: dict(_columns(group, name)) for name in layout.GROUPS}
    rows = {k: _numbers(d) for k, d in columns["meta"].items() if layout.is_rows_name(k)}
    hidden = {*rows, layout.KEPT_NAME}
    meta = {k: d for k, d in columns["meta"].items() if k not in hidden}
    chosen = {k: d for k, d in _named(columns["stats"]) if only is None or k in only}
    state, start = _attribute(group, layout.STATE_ATTR), _attribute(group, layout.START_ATTR)
    return RunLog(
        {name: _meta_value(name, dataset) for name, dataset in _named(meta)},
        {name: _column(dataset) for name, dataset in chosen.items()},
        {name: _clock(name, dataset) for name, dataset in _named(columns["time"])},
        rows=rows,
        state=None if state is None else _as_text(state),
        start_time=None if start is None else float(start),
    )


def _columns(run: h5g.GroupID, name: str) -> Iterator[tuple[str, h5d.DatasetID]]:
    """Stored name and dataset of all columns of a group.  A run may lack the group."""
    if name.encode() in run:
        yield from _datasets(h5o.open(run, name.encode()), "")


def _datasets(
    group: h5g.GroupID | h5d.DatasetID, prefix: str
) -> Iterator[tuple[str, h5d.DatasetID]]:
    """mle-logging makes groups of a name with slashes: they are joined to the name again."""
    if isinstance(group, h5g.GroupID):
        for name, child in _children(group):
            if isinstance(child, h5d.DatasetID):
                yield prefix + name, child
            else:
                yield from _datasets(child, f"{prefix}{name}/")


def _named(columns: dict[str, h5d.DatasetID]) -> Iterator[tuple[str, h5d.DatasetID]]:
    for stored, dataset in columns.items():
        yield layout.unescape(stored), dataset


# --- values ---------------------------------------------------------------------------------------
def _meta_value(name: str, dataset: h5d.DatasetID) -> Any:
    """A value of meta/: lists of one item become the item, text a str, the configuration a dict."""
    values = _column(dataset).tolist()
    value = values[0] if len(values) == 1 else values
    if name == "config_dict" and isinstance(value, str):
        json_text = _attribute(dataset, layout.JSON_ATTR)
        return config_from_text(value, "" if json_text is None else _as_text(json_text))
    return value


def _clock(name: str, dataset: h5d.DatasetID) -> Array:
    if name != "time" or not dataset.shape or dataset.dtype.kind not in "SO":
        return _column(dataset)
    # Times of a known form have no trailing NUL that numpy's own text type would drop.
    blocks = [block.astype(str, copy=False) for block in _text_blocks(dataset)]
    return np.concatenate(blocks) if blocks else np.array([], str)


def _column(dataset: h5d.DatasetID) -> Array:
    """All values of a dataset, at least one-dimensional."""
    if dataset.shape is None:  # HDF5's "no data at all"
        return np.array([])
    if dataset.dtype.kind not in "SO":
        return np.atleast_1d(_numbers(dataset))
    column: Array = np.empty(dataset.shape or 1, object)
    start = 0
    for block in _text_blocks(dataset):
        column[start : start + len(block)] = block
        start += len(block)
    return column


def _numbers(dataset: h5d.DatasetID) -> Array:
    dtype = dataset.dtype
    values: Array = np.empty(dataset.shape, dtype.newbyteorder("="))
    if values.size:
        dataset.read(h5s.ALL, h5s.ALL, values)
    return values


# --- text -----------------------------------------------------------------------------------------
def _text_blocks(dataset: h5d.DatasetID) -> Iterator[Array]:
    """Strings exactly as they were logged, in arrays of numpy's text type or of objects."""
    stored = h5py.Dataset(dataset)
    shape = stored.shape or (1,)
    bytes_per_row = stored.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, _TEXT_BLOCK_BYTES // max(1, bytes_per_row))
    escaped = _attribute(dataset, layout.STRING_ATTR) is not None
    for start in range(0, shape[0], step):
        block = np.asarray(stored[start : start + step] if stored.shape else [stored[()]])
        yield _ascii(block) if _is_ascii(block) else _decoded(block, escaped)


def _is_ascii(block: Array) -> bool:
    return block.dtype.kind == "S" and bool((block.view(np.uint8) < 128).all())


def _ascii(block: Array) -> Array:
    """Text of plain bytes, without the padding that every string of the block has."""
    padded = block.reshape(-1, 1).view(np.uint8)
    used = np.flatnonzero(padded.any(axis=0))
    width = int(used[-1]) + 1 if used.size else 1
    # What .astype(str) does, at a fortieth of its cost: numpy's text is a uint32 a character.
    return padded[:, :width].astype(np.uint32).view(f"U{width}").reshape(block.shape)


def _decoded(block: Array, escaped: bool) -> Array:
    """Text of any bytes: UTF-8, in which C0 80 stands for NUL if `escaped`."""
    texts: Array = np.empty(block.shape, object)
    flat = texts.reshape(-1)
    for i, stored in enumerate(block.ravel().tolist()):
        plain = stored.replace(b"\xc0\x80", b"\0") if escaped else stored
        flat[i] = plain.decode("utf-8", "backslashreplace")
    return texts


def _as_text(attribute: Any) -> str:
    return attribute.decode() if isinstance(attribute, bytes) else str(attribute)


def _attribute(holder: h5g.GroupID | h5d.DatasetID, name: str) -> Any:
    """The value of an attribute, None if there is none."""
    if not h5a.exists(holder, name.encode()):
        return None
    if isinstance(holder, h5g.GroupID):
        return h5py.Group(holder).attrs[name]
    return h5py.Dataset(holder).attrs[name]
