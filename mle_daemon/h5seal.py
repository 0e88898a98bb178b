"""What a seal writes: a log without anything unused in it, large columns compressed; read back.

Layout version 1, as `h5edit` has it.  Files are given open; what becomes of them is for `store`.

Each dataset is opened once, and its type asked for once: of a short run, that is most of what a
seal costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from h5py import h5a, h5g, h5o, h5s

from mle_client.h5access import datasets, decoded
from mle_daemon.columns import FileState
from mle_daemon.h5datasets import (
    Id,
    Stored,
    create,
    create_group,
    creation,
    read_blocks,
    write_rows,
)
from mle_daemon.h5file import ATTRIBUTES_BYTES
from mle_daemon.values import is_varying

SEALED_CHUNK_ROWS: Final = 16_384
SEALED_CHUNK_BYTES: Final = 2**20  # HDF5 caches a chunk of this size, but none that is larger
COMPRESS_BYTES: Final = 16 * 1024  # in smaller datasets there is nothing to gain


def stored_in(file: Id) -> dict[str, Stored]:
    """All datasets of a file by their paths."""
    return {path: Stored.of(dataset) for path, dataset in datasets(h5g.open(file, b"/"))}


def copy_compact(source: Id, held: Mapping[str, Stored], target: Id) -> None:
    """Copy a log into an empty file: nothing unused in between, large columns compressed.

    Args:
        held: the datasets of the source.
    """
    _copy_groups(h5g.open(source, b"/"), "", held, target)


def compact_room(state: FileState, size: int) -> int:
    """Bytes that a compact copy takes at the most.  Args: size: of the log."""
    # Text of varying length may lie less densely than it did.
    varying = any(is_varying(column.dtype) for column in state.columns.values())
    return size * (2 if varying else 1) + size // 8 + ATTRIBUTES_BYTES


def differences(held: Mapping[str, Stored], copy: Id) -> list[str]:
    """The paths of datasets that are not in two files with the same values.

    Args:
        held: the datasets of the one.
        copy: the other.
    """
    copied = stored_in(copy)
    different = held.keys() ^ copied.keys()
    different |= {p for p in held.keys() & copied.keys() if not _same(held[p], copied[p])}
    return sorted(different)


def _copy_groups(source: Id, prefix: str, held: Mapping[str, Stored], target: Id) -> None:
    for encoded in source:
        name = decoded(encoded)
        stored = held.get(prefix + name)
        if stored is not None:
            _copy_dataset(stored, target, name)
            continue
        group = h5o.open(source, encoded)
        copy = create_group(target, name)
        _copy_attributes(group, copy)
        _copy_groups(group, f"{prefix}{name}/", held, copy)


def _copy_dataset(stored: Stored, group: Id, name: str) -> None:
    row_bytes, length = stored.row_bytes, stored.shape[0]
    properties = creation(None)
    if length * row_bytes >= COMPRESS_BYTES and not stored.dtype.hasobject:
        rows = min(length, SEALED_CHUNK_ROWS, max(1, SEALED_CHUNK_BYTES // max(1, row_bytes)))
        properties = creation((rows, *stored.shape[1:]), compressed=True)
    space = h5s.create_simple(stored.shape)
    dataset = create(group, name, stored.kind, space, properties)
    for at, values in read_blocks(stored):
        write_rows(dataset, at, values, stored.memory, stored.shape[0])
    _copy_attributes(stored.dataset, dataset)


def _copy_attributes(source: Id, target: Id) -> None:
    for index in range(h5a.get_num_attrs(source)):
        old = h5a.open(source, index=index)
        value = np.empty(old.shape, old.dtype)
        old.read(value)
        h5a.create(target, old.name, old.get_type(), old.get_space()).write(value)


def _same(one: Stored, other: Stored) -> bool:
    """Whether two datasets have the same type, shape and values, bit by bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(
        a.tolist() == b.tolist() if a.dtype.hasobject else a.tobytes() == b.tobytes()
        for (_, a), (_, b) in zip(read_blocks(one), read_blocks(other), strict=True)
    )
