"""What publications write into a log file: groups, columns, meta data, attributes.

Layout version 1; `docs/hdf5-layout.md` is the specification.  In short:

    <seed_id>/                    attributes mle_format, mle_run, mle_state, mle_rows, mle_start, …
        time/<clock>              columns: (values,) or (values, *shape)
        stats/<statistic>
        meta/log_paths …          one text each
        meta/stats_rows:<name>    row numbers of a column that not every tick has

Files are given open; it knows no paths and decides nothing about them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import h5py
import numpy as np
from h5py import h5d, h5g, h5s

from mle_client import layout
from mle_client.h5access import attribute
from mle_client.kept import OPTIONAL_LISTS
from mle_client.layout import MetaList
from mle_client.messages import Run
from mle_daemon.columns import Append, Column, FileState, Part, Plan
from mle_daemon.events import PublishRun
from mle_daemon.h5datasets import (
    BLOCK_BYTES,
    Id,
    Stored,
    append_rows,
    create,
    create_group,
    creation,
    read_blocks,
    write_rows,
)
from mle_daemon.h5file import (
    ATTRIBUTES_BYTES,
    file_type,
    foreign_columns,
    memory_type,
    set_changing_text,
    set_number,
    set_text,
)
from mle_daemon.values import REFERENCE_BYTES, Array, Dtype, Text, convert, is_varying, numpy_dtype

# Chunks grow with the column, to 1/8 of it at most: a short run wastes little, and the index of a
# column stays a single node up to a million numbers.  At 32 KiB, 256 KiB and 2 MiB a column is
# stored again in larger chunks: averaged over a run, a number is written twice at the most.
CHUNK_BYTES: Final = (512, 4096, 32 * 1024, 256 * 1024)
CHUNK_SHARE: Final = 8
LIST_WIDTH_STEP: Final = 16  # bytes by which the texts of a list get wider: numbers in paths grow
VARYING_CHUNK_ROWS: Final = 256  # of text of varying length, which would leave holes if it moved
_ROWS_DTYPE: Final = np.dtype(np.int64)  # of row numbers
_DATASET_BYTES: Final = 16 * 1024  # header and index of a dataset, generously


# --- a publication --------------------------------------------------------------------------------
def begin(file: Id, run: Run, seed_id: str) -> None:
    """Write the groups and meta data of a new log.  Next: `append`, `mark`."""
    seed = create_group(file, seed_id)
    meta, _, _ = (create_group(seed, group) for group in layout.GROUPS)
    config_path = f"{run.experiment_dir.rstrip('/')}/{run.config_name}"
    _write_text(meta, "log_paths", layout.log_path(run.experiment_dir, seed_id))
    _write_text(meta, "experiment_dir", run.experiment_dir)
    _write_text(meta, "config_fname", config_path if run.config_name else layout.NO_CONFIG)
    _write_text(meta, "eval_id", run.eval_id)
    _write_text(meta, "model_type", run.model_type)
    config = _write_text(meta, "config_dict", run.config_text)
    if run.config_json:
        # HDF5 ends a text at a NUL; JSON has another way to write one.
        set_text(config, layout.JSON_ATTR, run.config_json.replace("\0", "\\u0000"))
    set_number(seed, layout.FORMAT_ATTR, np.int64(layout.FILE_FORMAT))
    set_number(seed, layout.START_ATTR, np.float64(run.start_time))
    set_text(seed, layout.RUN_ATTR, run.run_id.hex())
    if run.overwrite:
        set_number(seed, layout.OVERWRITE_ATTR, np.int64(1))


def adopt(file: Id, seed_id: str) -> None:
    """Give a log of mle-logging's the groups and names of ours.  Next: `append`, `mark`."""
    seed = h5py.Group(h5g.open(file, seed_id.encode()))
    for name in layout.GROUPS:
        seed.require_group(name)
    for name in ("time", "stats"):
        group = seed[name]
        for column, _ in foreign_columns(seed, name):
            if layout.escape(column) != column:
                group.move(column, layout.escape(column))
        for emptied in [key for key, item in group.items() if isinstance(item, h5py.Group)]:
            del group[emptied]


def append(file: Id, seed_id: str, plan: Plan) -> None:
    """Append what a plan says."""
    seed = h5g.open(file, seed_id.encode())
    groups = {name: h5g.open(seed, name.encode()) for name in layout.GROUPS}
    for part in plan.parts():
        after = part.change.after
        _extend(groups[after.group], layout.escape(after.name), part)
        for rows in _rows_parts(part):
            _extend(groups["meta"], rows.change.after.name, rows)


def write_kept(file: Id, seed_id: str, job: PublishRun) -> None:
    """Write into meta/ what the run has stored beside its log, if that has changed."""
    if job.kept == (job.file.kept if job.file else ""):
        return
    meta = h5g.open(h5g.open(file, seed_id.encode()), b"meta")
    for name, values in job.lists.items():
        _write_list(meta, name, values)
    for name in OPTIONAL_LISTS:
        if name not in job.lists and name.encode() in meta:
            meta.unlink(name.encode())
    _write_changing(meta, layout.KEPT_NAME, job.kept)


def mark(file: Id, seed_id: str, state: FileState) -> None:
    """Write into the seed group's attributes what the file holds."""
    seed = h5g.open(file, seed_id.encode())
    if attribute(seed, layout.RUN_ATTR.encode()) != state.run:  # another run's log goes on
        set_number(seed, layout.FORMAT_ATTR, np.int64(layout.FILE_FORMAT))
        set_number(seed, layout.START_ATTR, np.float64(state.start_time))
        set_text(seed, layout.RUN_ATTR, state.run)
    set_number(seed, layout.ROWS_ATTR, np.int64(state.rows))
    set_changing_text(seed, layout.APPLIED_ATTR, json.dumps(dict(state.applied)))
    if attribute(seed, layout.STATE_ATTR.encode()) != state.status:
        set_text(seed, layout.STATE_ATTR, state.status)
    for name, count in (
        (layout.LOST_ATTR, state.lost),
        (layout.REFUSED_ATTR, state.refused),
        (layout.TBOARD_ATTR, state.tboard),
    ):
        if count:
            set_number(seed, name, np.int64(count))


def growth(job: PublishRun, plan: Plan) -> int:
    """Bytes by which a file grows at the most when a plan is carried out."""
    total = ATTRIBUTES_BYTES + 128 * len(job.applied)
    for change in plan.appends:
        total += _growth(change, job.file)
        if not change.after.dense:
            total += _growth(_rows_append(change), job.file)
    if job.kept != (job.file.kept if job.file else ""):
        total += 2 * len(job.kept) + len(job.lists) * _DATASET_BYTES
        total += 2 * sum(_list_array(values).nbytes for values in job.lists.values())
    if job.file is None:
        total += 4 * (len(job.run.config_text) + len(job.run.config_json))
    return total + total // 8


def _growth(change: Append, file: FileState | None) -> int:
    before, after, gained = change.before, change.after, change.gained
    total = (gained + 2 * _chunk_rows(after)) * after.row_bytes + _DATASET_BYTES
    if is_varying(after.dtype):
        total += 2 * (change.text_bytes + gained * REFERENCE_BYTES)
    if before is not None and (
        before.sealed or before.dtype != after.dtype or _chunk_rows(before) != _chunk_rows(after)
    ):
        total += before.length * after.row_bytes
        if is_varying(before.dtype) and file is not None:
            total += 2 * file.size
        elif is_varying(after.dtype):
            total += 2 * before.length * (before.row_bytes + REFERENCE_BYTES)
    return total


def _rows_append(change: Append) -> Append:
    """The row numbers that a sparse column gains, as what a column in meta/ gains."""
    before, after = change.before, change.after
    name = layout.rows_name(after.group, after.name)
    column = Column("meta", name, _ROWS_DTYPE, (), after.length, dense=True)
    if before is None or before.dense:
        return Append(None, column)
    return Append(replace(column, length=before.length, sealed=before.sealed), column)


def _rows_parts(part: Part) -> Iterator[Part]:
    """The row numbers of values that are appended, as parts of what a column in meta/ gains."""
    if part.rows is None:
        return
    change, is_first = _rows_append(part.change), part.is_first
    stored, step = part.change.stored_rows, BLOCK_BYTES // _ROWS_DTYPE.itemsize
    for at in range(0, len(stored) if is_first else 0, step):
        block = stored[at : at + step]
        rows = np.arange(block.start, block.stop, dtype=_ROWS_DTYPE)
        yield Part(change, is_first, at, rows, None)
        is_first = False
    yield Part(change, is_first, part.at, part.rows, None)


# --- columns --------------------------------------------------------------------------------------
def _extend(group: Id, name: str, part: Part) -> None:
    """Append values to a dataset, making it or storing it again first where needed."""
    before, after = part.change.before, part.change.after
    if part.is_first and before is None:
        dataset = _create_column(group, name, after)
    else:
        dataset = h5d.open(group, name.encode())
    if part.is_first and before is not None and _is_outgrown(dataset, before, after):
        dataset = _store_again(group, name, dataset, before, after)
    append_rows(dataset, part.at, part.values, memory_type(after.dtype))
    if part.is_first and isinstance(after.dtype, Text) and after.dtype.escaped:
        set_number(dataset, layout.STRING_ATTR, np.int64(1))


def _is_outgrown(dataset: Id, before: Column, after: Column) -> bool:
    """Whether a column must be stored again to become what it will be."""
    return before.sealed or _is_other(before.dtype, after.dtype) or _is_cramped(dataset, after)


def _store_again(group: Id, name: str, old: Id, before: Column, after: Column) -> Id:
    """A column's values in another dataset, of its new type and with larger chunks."""
    group.unlink(name.encode())  # the space is free for other columns once `old` is closed
    new = _create_column(group, name, after)
    to = numpy_dtype(after.dtype)
    for at, values in read_blocks(Stored.of(old)):
        append_rows(new, at, convert(values, to), memory_type(after.dtype))
    return new


def _is_other(one: Dtype, other: Dtype) -> bool:
    """Whether a dataset of one type cannot take values of the other as they are."""
    return isinstance(one, Text) != isinstance(other, Text) or numpy_dtype(one) != numpy_dtype(
        other
    )


def _is_cramped(dataset: Id, after: Column) -> bool:
    """Whether a column has outgrown its chunks."""
    return bool(dataset.get_create_plist().get_chunk()[0] < _chunk_rows(after))


def _chunk_rows(column: Column) -> int:
    """Rows in a chunk of a column that grows."""
    if is_varying(column.dtype):
        return VARYING_CHUNK_ROWS
    row_bytes = max(1, column.row_bytes)
    share = column.length * row_bytes // CHUNK_SHARE
    size = max((size for size in CHUNK_BYTES if size <= share), default=CHUNK_BYTES[0])
    return max(1, size // row_bytes)


def _create_column(group: Id, name: str, column: Column) -> Id:
    """A dataset without values that can grow."""
    properties = creation((_chunk_rows(column), *column.shape))
    lengths = (h5s.UNLIMITED, *(length or h5s.UNLIMITED for length in column.shape))
    space = h5s.create_simple((0, *column.shape), lengths)
    return create(group, name, file_type(column.dtype), space, properties)


def _write_text(meta: Id, name: str, text: str) -> Id:
    """Write one text, as mle-logging reads it: an array of one, as wide as the text."""
    encoded = text.encode()
    dtype = Text(max(1, len(encoded)))
    dataset = create(meta, name, file_type(dtype), h5s.create_simple((1,)), creation(None))
    dataset.write(h5s.ALL, h5s.ALL, np.array([encoded], numpy_dtype(dtype)), memory_type(dtype))
    return dataset


def _write_list(meta: Id, name: str, values: MetaList) -> None:
    """Write a list of texts or numbers, as mle-logging reads it.

    Over the one that is there, if it can be: what is unlinked leaves a hole that stays, and a list
    may change with every publication.  One that has changed its length can grow from then on.
    """
    array = _list_array(values)
    dtype: Dtype = Text(array.dtype.itemsize) if array.dtype.kind == "S" else array.dtype
    column = Column("meta", name, dtype, (), len(array), dense=True)
    dataset = None
    if name.encode() in meta:
        dataset = h5d.open(meta, name.encode())
        grows = dataset.get_space().get_simple_extent_dims(True) == (h5s.UNLIMITED,)
        if _is_other(dataset.dtype, array.dtype) or (grows and _is_cramped(dataset, column)):
            grows = False
        elif dataset.shape == array.shape:
            grows = True
        if not grows:
            meta.unlink(name.encode())
            dataset = _create_column(meta, name, column)
    if dataset is None:
        space = h5s.create_simple(array.shape)
        dataset = create(meta, name, file_type(dtype), space, creation(None))
    if dataset.shape != array.shape:
        dataset.set_extent(array.shape)
    write_rows(dataset, 0, array, memory_type(dtype), len(array))


def _write_changing(meta: Id, name: str, text: str) -> None:
    """Write one text that changes often, over the one that is there if it fits.

    It is padded with spaces, which are no part of it.
    """
    encoded = text.encode()
    dataset = h5d.open(meta, name.encode()) if name.encode() in meta else None
    if dataset is not None and dataset.dtype.itemsize < len(encoded):
        meta.unlink(name.encode())
        dataset = None
    if dataset is None:
        dtype = Text(max(64, len(encoded) + len(encoded) // 2))
        space = h5s.create_simple((1,))
        dataset = create(meta, name, file_type(dtype), space, creation(None))
    width = dataset.dtype.itemsize
    padded = np.array([encoded.ljust(width)], f"S{width}")
    dataset.write(h5s.ALL, h5s.ALL, padded, memory_type(Text(width)))


def _list_array(values: MetaList) -> Array:
    texts = [value.encode("utf-8", "surrogateescape") for value in values if isinstance(value, str)]
    if texts or not values:
        longest = max([1, *map(len, texts)])
        return np.array(texts, f"S{-(-longest // LIST_WIDTH_STEP) * LIST_WIDTH_STEP}")
    return np.array(values, np.int64 if all(isinstance(v, int) for v in values) else np.float64)
