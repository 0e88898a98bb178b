"""Columns of every kind of storage come back as HDF5 itself would give them, read in any way."""

from __future__ import annotations

import itertools
import os
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5s
from hypothesis import given
from hypothesis import strategies as st

from mle_client import layout, storage, stored
from mle_client.errors import LogDamaged
from mle_client.lazydict import Deferred, Once
from mle_client.openlog import OpenLog
from mle_client.storage import Storage
from mle_client.stored import StoredColumn, StoredValue

KINDS: dict[str, dict[str, Any]] = {
    "in one piece": {},
    "chunked": {"chunks": True},
    "sealed": {"chunks": True, "compression": "gzip", "compression_opts": 1, "shuffle": True},
    "mle-logging's": {"chunks": True, "compression": "gzip", "compression_opts": 4},
    "shuffled only": {"chunks": True, "shuffle": True},
    "with checksums": {"chunks": True, "fletcher32": True, "compression": "gzip"},
    "lzf": {"chunks": True, "compression": "lzf"},
}
DTYPES = ["<f8", "<i8", "<f4", ">f8", "<f2", "?", "u1", "<i2", "longdouble"]
# Of what is read without HDF5; the rest must be read by it, and no less right.
DIRECT = {"in one piece", "chunked", "sealed", "mle-logging's", "shuffled only"}


@pytest.fixture
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_SMALL_BYTES", 0)
    monkeypatch.setattr(stored, "_SEVERAL_BYTES", 0)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "log.hdf5")


def values_of(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=100, size=shape).astype(dtype)


def store(path: str, values: np.ndarray, chunk_rows: int = 7, **options: Any) -> None:
    if options.get("chunks"):
        options["chunks"] = (chunk_rows, *values.shape[1:])
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, **options)


def column_of(path: str, **options: Any) -> StoredColumn:
    return StoredColumn(OpenLog(path, hold=True), b"x", **options)


def rows_of(column: StoredColumn, start: int, stop: int, dtype: Any = None) -> np.ndarray:
    target = np.empty((stop - start, *column.shape[1:]), dtype or column.dtype)
    column.read_into(target, start)
    return target


def pieces_of(column: StoredColumn) -> Any:
    found = column.prepare()
    assert isinstance(found, Storage)
    return found.pieces


# --- numbers --------------------------------------------------------------------------------------
@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("item", [(), (3,), (2, 2)], ids=repr)
def test_numbers_are_the_stored_ones_in_native_order(
    path: str, kind: str, dtype: str, item: tuple[int, ...]
) -> None:
    values = values_of(dtype, (50, *item))
    store(path, values, **KINDS[kind])
    column = column_of(path)
    assert (column.shape, len(column)) == (values.shape, 50)
    assert column.dtype == values.dtype.newbyteorder("=")
    assert (pieces_of(column) is not None) == (kind in DIRECT)
    loaded = column.load()
    assert loaded.dtype == column.dtype
    assert loaded.tobytes() == values.astype(column.dtype).tobytes()
    for first, last in ((0, 50), (5, 23), (49, 50)):
        assert rows_of(column, first, last).tobytes() == loaded[first:last].tobytes()
        as_floats = rows_of(column, first, last, np.float32)
        assert as_floats.tolist() == values[first:last].astype(np.float32).tolist()


@pytest.mark.usefixtures("nothing_is_small")
@given(
    rows=st.integers(1, 40),
    chunk_rows=st.integers(1, 50),
    kind=st.sampled_from(sorted(KINDS)),
    cuts=st.lists(st.integers(0, 45), max_size=6),
)
def test_blocks_in_a_row_are_the_column(
    tmp_path_factory: pytest.TempPathFactory, rows: int, chunk_rows: int, kind: str, cuts: list[int]
) -> None:
    path = str(tmp_path_factory.mktemp("blocks") / "log.hdf5")
    values = np.arange(3.0 * rows).reshape(rows, 3)
    store(path, values, min(chunk_rows, rows), **KINDS[kind])
    column = column_of(path)
    edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    blocks = [rows_of(column, *edge) for edge in itertools.pairwise(edges)]
    assert np.concatenate(blocks).tolist() == values.tolist()


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("chunks", [(4, 3), (4, 9)], ids=["parts of rows", "wider than rows"])
def test_only_whole_rows_in_a_chunk_are_read_without_hdf5(
    path: str, chunks: tuple[int, ...], compression: str | None
) -> None:
    values = np.arange(60.0).reshape(10, 6)
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "x", data=values, chunks=chunks, maxshape=(None, None), compression=compression
        )
    column = column_of(path)
    assert pieces_of(column) is None
    assert rows_of(column, 3, 7).tolist() == values[3:7].tolist()
    assert column.load().tolist() == values.tolist()


@pytest.mark.usefixtures("nothing_is_small")
def test_chunks_that_were_never_written_have_the_fill_value(path: str) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (20,), "f8", chunks=(4,), fillvalue=7.5)[:4] = 1.0
    assert column_of(path).load().tolist() == [1.0] * 4 + [7.5] * 16


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("skipped", [0b01, 0b10, 0b11])
def test_a_chunk_may_have_been_stored_without_some_filter(path: str, skipped: int) -> None:
    values = values_of("<f8", (4,))
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", (4,), "f8", **KINDS["sealed"] | {"chunks": (4,)})
        shuffled = values.view("u1").reshape(-1, 8).T.tobytes()
        data = values.tobytes() if skipped & 0b01 else shuffled
        data = data if skipped & 0b10 else zlib.compress(data)
        dataset.id.write_direct_chunk((0,), data, skipped)
        assert dataset.id.get_chunk_info(0).filter_mask == skipped
    with h5py.File(path) as file:
        assert file["x"][:].tolist() == values.tolist()
    assert column_of(path).load().tolist() == values.tolist()


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("kind", ["sealed", "chunked", "in one piece"])
def test_a_file_with_something_before_it_is_read_right(path: str, kind: str) -> None:
    values = values_of("<f8", (50,))
    options = KINDS[kind] | ({"chunks": (7,)} if KINDS[kind] else {})
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("x", data=values, **options)
    assert column_of(path).load().tolist() == values.tolist()


@pytest.mark.usefixtures("nothing_is_small")
def test_values_that_lie_in_the_header_or_in_another_file_are_read_right(path: str) -> None:
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5d.COMPACT)
        space = h5s.create_simple((3,))
        compact = h5d.create(file.id, b"x", h5py.h5t.IEEE_F64LE, space, properties)
        compact.write(h5s.ALL, h5s.ALL, np.array([1.0, 2.0, 3.0]))
        file.create_dataset("y", data=np.arange(4.0), external=[(f"{path}.raw", 0, 32)])
    assert column_of(path).load().tolist() == [1, 2, 3]
    assert StoredColumn(OpenLog(path, hold=True), b"y").load().tolist() == [0, 1, 2, 3]


@pytest.mark.usefixtures("nothing_is_small")
def test_a_type_that_numpy_lacks_is_converted(path: str) -> None:
    with h5py.File(path, "w") as file:
        narrow = h5py.h5t.IEEE_F32LE.copy()
        narrow.set_fields(23, 15, 8, 0, 15)
        narrow.set_size(4)
        space = h5s.create_simple((3,))
        dataset = h5d.create(file.id, b"x", narrow, space)
        dataset.write(h5s.ALL, h5s.ALL, np.array([1.0, 1.5, -2.0]))
    column = column_of(path)
    assert pieces_of(column) is None
    assert column.load().tolist() == [1.0, 1.5, -2.0]


@pytest.mark.usefixtures("nothing_is_small")
def test_where_hdf5_cannot_list_chunks_at_once_they_are_asked_for_one_by_one(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = values_of("<f8", (50,))
    store(path, values, **KINDS["sealed"])

    class Older:
        """A dataset of HDF5 before 1.14."""

        def __init__(self, dataset: Any) -> None:
            self._dataset = dataset

        def __getattr__(self, name: str) -> Any:
            if name == "chunk_iter":
                raise AttributeError(name)
            return getattr(self._dataset, name)

    with h5py.File(path) as file:
        expected = storage._chunks(file["x"].id, 8)
        assert storage._chunks(Older(file["x"].id), 8) == expected
    assert expected is not None
    assert len(expected) == 8


# --- text -----------------------------------------------------------------------------------------
TEXTS = [f"{i:05} é" if i % 13 == 0 else f"{i:05}" for i in range(100)]


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("block", [1, 2**22], ids=["in blocks", "at once"])
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_that_of_hdf5(
    path: str, kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_TEXT_BLOCK_BYTES", block)
    encoded = np.array([text.encode() for text in TEXTS], "S32")
    store(path, encoded, **KINDS[kind])
    column = column_of(path)
    assert column.dtype == object
    assert column.load().tolist() == TEXTS
    assert column._read_text(10, 20).tolist() == TEXTS[10:20]


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("block", [1, 2**22], ids=["in blocks", "at once"])
def test_text_of_varying_length_is_read(
    path: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_TEXT_BLOCK_BYTES", block)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=TEXTS, dtype=h5py.string_dtype())
    assert column_of(path).load().tolist() == TEXTS


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("block", [1, 2**22], ids=["in blocks", "at once"])
def test_the_clock_time_is_one_array_of_text(
    path: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_TEXT_BLOCK_BYTES", block)
    times = [f"26-11-24/{i // 60:02}:{i % 60:02}" for i in range(100)]
    store(path, np.array(times, "S5000"), **KINDS["mle-logging's"])
    column = column_of(path, is_time=True).load()
    assert column.dtype == "U14"
    assert column.tolist() == times


@pytest.mark.usefixtures("nothing_is_small")
def test_text_that_ends_at_a_nul_is_read_by_hdf5(path: str) -> None:
    with h5py.File(path, "w") as file:
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(8)
        kind.set_strpad(h5py.h5t.STR_SPACEPAD)
        dataset = h5d.create(file.id, b"x", kind, h5s.create_simple((2,)))
        dataset.write(h5s.ALL, h5s.ALL, np.array([b"a b", b"c"], "S8"))
    assert column_of(path).load().tolist() == ["a b", "c"]


# --- several columns ------------------------------------------------------------------------------
@pytest.mark.parametrize("small", [0, 10**9], ids=["by pieces", "at once"])
def test_columns_that_are_loaded_together_are_those_loaded_alone(
    path: str, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(stored, "_SMALL_BYTES", small)
    monkeypatch.setattr(stored, "_SEVERAL_BYTES", 0)
    columns = {
        **{
            f"{kind} {dtype}": (kind, values_of(dtype, (50,))) for kind in KINDS for dtype in DTYPES
        },
        **{f"{kind} text": (kind, np.array(["a", "b"] * 25, "S3")) for kind in KINDS},
    }
    with h5py.File(path, "w") as file:
        for name, (kind, values) in columns.items():
            options = KINDS[kind] | ({"chunks": (7,)} if KINDS[kind] else {})
            file.create_dataset(name, data=values, **options)
    log = OpenLog(path, hold=True)
    found = StoredColumn.load_all([StoredColumn(log, name.encode()) for name in columns])
    for array, (_, values) in zip(found, columns.values(), strict=True):
        expected = values.astype(str) if values.dtype.kind == "S" else values
        assert array.tolist() == expected.tolist()


@pytest.mark.parametrize("small", [0, 10**9], ids=["large", "small"])
def test_what_a_column_is_needs_no_decompressing(
    path: str, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(stored, "_SMALL_BYTES", small)
    store(path, values_of("<f4", (50,)), **KINDS["sealed"])
    for number in range(8):
        damage(path, number)
    column = column_of(path)
    assert (len(column), column.shape, column.dtype) == (50, (50,), np.float32)


def test_a_small_column_that_was_read_in_blocks_is_not_kept(path: str) -> None:
    store(path, np.arange(50.0))
    column = column_of(path)
    assert len(column) == 50  # by which it is read
    for _ in range(2):
        assert rows_of(column, 0, 30).tolist() == list(range(30))
        assert column._found is not None
        assert rows_of(column, 30, 50).tolist() == list(range(30, 50))
        assert column._found is None
    assert column.load().tolist() == list(range(50))


def test_loading_a_column_also_reads_at_which_updates_it_was_logged(path: str) -> None:
    store(path, np.arange(3.0))
    rows = Once(Deferred(lambda: calls.append("rows") or np.arange(3)))
    calls: list[str] = []
    column = column_of(path, rows=rows)
    assert len(column) == 3
    assert calls == []
    column.load()
    assert calls == ["rows"]


# --- values of meta -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([b"one"], "one"),
        ([b"a", b"b"], ["a", "b"]),
        (["größe"], "größe"),
        ([0.5], 0.5),
        ([1, 2], [1, 2]),
        (3, 3),
        (h5py.Empty("f4"), []),
        (np.array([b"x" * 3000], "S5000"), "x" * 3000),
    ],
    ids=repr,
)
def test_values_are_unwrapped(path: str, data: Any, expected: Any) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = data
    assert StoredValue(OpenLog(path, hold=True), b"x", "x").load() == expected


def test_nul_in_a_value_comes_back(path: str) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = [b"a\xc0\x80b"]
        file["x"].attrs[layout.STRING_ATTR] = 1
    assert StoredValue(OpenLog(path, hold=True), b"x", "x").load() == "a\0b"


# --- damage ---------------------------------------------------------------------------------------
def damage(path: str, number: int = 1) -> None:
    with h5py.File(path) as file:
        chunk = file["x"].id.get_chunk_info(number)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\0" * chunk.size)


@pytest.mark.parametrize("small", [0, 10**9], ids=["by pieces", "at once"])
def test_a_damaged_chunk_is_an_error_that_names_the_file(
    path: str, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(stored, "_SMALL_BYTES", small)
    store(path, values_of("<f8", (50,)), **KINDS["sealed"])
    damage(path)
    column = column_of(path)
    for look in (column.load, lambda: rows_of(column, 7, 14)):
        with pytest.raises(LogDamaged, match="restore it from a copy") as caught:
            look()
        assert caught.value.path == path


@pytest.mark.usefixtures("nothing_is_small")
def test_what_is_not_damaged_can_be_read_all_the_same(path: str) -> None:
    values = values_of("<f8", (50,))
    store(path, values, **KINDS["sealed"])
    damage(path)
    assert rows_of(column_of(path), 14, 50).tolist() == values[14:].tolist()


@pytest.mark.usefixtures("nothing_is_small")
def test_a_file_that_is_cut_off_later_is_damaged(path: str) -> None:
    store(path, values_of("<f8", (5000,)))
    column = column_of(path)
    column.prepare()
    os.truncate(path, 1000)
    for look in (column.load, lambda: rows_of(column, 4000, 5000)):
        with pytest.raises(LogDamaged, match="it ends before byte"):
            look()
