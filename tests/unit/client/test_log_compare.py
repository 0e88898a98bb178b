"""Comparing logs: no difference is passed over, and a run that goes on holds its beginning."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mle_client import files, log_compare
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.group_copies import Copy
from tests.seed_logs import Values, log_bytes, read_logs, ticks_of, write_foreign
from tests.strategies import tick_sequences
from tests.unit.daemon.test_planning import Tick


def rich(path: Path) -> None:
    """A file with a run that has whatever HDF5 can store."""
    ticks = [
        ({"step": i}, {"loss": 1 / (i + 1), "ok": i % 2 == 0, "note": f"n{i}", "long": "x" * i * 9})
        for i in range(3000)
    ]
    path.write_bytes(log_bytes("a", ticks, kept="{}"))
    with h5py.File(path, "a") as file:
        seed = file["a"]
        seed["stats/plain"] = np.arange(10.0)
        seed["stats/nan"] = np.array([np.nan, -0.0, np.inf])
        seed["stats/scalar"] = 1.5
        seed["stats/nothing"] = h5py.Empty("f")
        seed["stats/none_yet"] = np.zeros((0, 3))
        seed["stats/long_double"] = np.array([1, 2], np.longdouble)
        seed.create_dataset("stats/chunked", data=np.arange(9), chunks=(2,))
        lists = seed.create_dataset("stats/lists", (2,), h5py.vlen_dtype(int))
        lists[0], lists[1] = np.array([1, 2]), np.array([3])
        space = h5py.h5s.create_simple((3,))
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        h5py.h5d.create(seed["stats"].id, b"compact", h5py.h5t.NATIVE_INT32, space, compact)
        seed["type"] = np.dtype("f4")
        seed["soft"] = h5py.SoftLink("/a/stats/plain")
        seed["broken"] = h5py.SoftLink("/nowhere")
        seed["elsewhere"] = h5py.ExternalLink("other.hdf5", "/a")
        seed.attrs.update(text="größe", list=[1, 2], none=h5py.Empty("f"))
        seed["stats/plain"].attrs["unit"] = "m"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a run of everything."""
    path = tmp_path_factory.mktemp("logs") / "rich.hdf5"
    rich(path)
    return path


@pytest.fixture
def pair(tmp_path: Path, template: Path) -> tuple[Path, Path]:
    """The same file twice."""
    paths = tmp_path / "old.hdf5", tmp_path / "new.hdf5"
    for path in paths:
        shutil.copy(template, path)
    return paths


def different(old: Path, new: Path, group: str = "a") -> list[str]:
    return [where for _, where in log_compare.differences([Copy(str(old), group, group)], str(new))]


# --- copies ---------------------------------------------------------------------------------------
def test_a_copy_of_whatever_there_is_is_the_same(pair: tuple[Path, Path]) -> None:
    assert different(*pair) == []


def replace(name: str, value: Any, **storage: Any) -> Callable[[Any], None]:
    """A change: another dataset in the place of one."""

    def change(seed: Any) -> None:
        del seed[name]
        seed.create_dataset(name, data=value, **storage)

    return change


def write(name: str, at: Any, value: Any) -> Callable[[Any], None]:
    """A change: another value in a dataset."""

    def change(seed: Any) -> None:
        seed[name][at] = value

    return change


def link(name: str, to: Any) -> Callable[[Any], None]:
    """A change: a link to somewhere else."""

    def change(seed: Any) -> None:
        del seed[name]
        seed[name] = to

    return change


def flip(name: str, attribute: str, value: Any) -> Callable[[Any], None]:
    """A change: another value of an attribute."""
    return lambda seed: seed[name].attrs.__setitem__(attribute, value)


CHANGES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "a value in one piece": ("stats/plain", write("stats/plain", 9, -1.0)),
    "the sign of zero": ("stats/nan", write("stats/nan", 1, 0.0)),
    "a compressed value": ("stats/loss", write("stats/loss", 2999, 5.0)),
    "a value in chunks": ("stats/chunked", write("stats/chunked", 8, 0)),
    "a value without chunks": ("stats/compact", write("stats/compact", 2, 1)),
    "a truth": ("stats/ok", write("stats/ok", 2998, False)),
    "a text": ("stats/note", write("stats/note", 2999, b"n2998")),
    "a text of any length": ("stats/long", write("stats/long", 2999, b"x")),
    "an array of any length": ("stats/lists", write("stats/lists", 0, np.array([1, 3]))),
    "a scalar": ("stats/scalar", write("stats/scalar", (), 2.5)),
    "a row less": ("stats/plain", replace("stats/plain", np.arange(9.0))),
    "another type": ("stats/plain", replace("stats/plain", np.arange(10, dtype="f4"))),
    "other chunks": ("stats/plain", replace("stats/plain", np.arange(10.0), chunks=(5,))),
    "nothing in place of something": ("stats/plain", replace("stats/plain", h5py.Empty("f8"))),
    "a dataset that is gone": ("stats/plain", lambda seed: seed.__delitem__("stats/plain")),
    "a dataset too many": ("stats/more", lambda seed: seed.__setitem__("stats/more", [1])),
    "a group that is gone": ("meta", lambda seed: seed.__delitem__("meta")),
    "a group for a dataset": ("stats/plain", link("stats/plain", h5py.SoftLink("/a/stats"))),
    "an attribute of the seed": ("", flip(".", "text", "groß")),
    "an attribute of a dataset": ("stats/plain", flip("stats/plain", "unit", "km")),
    "an attribute too many": ("stats/plain", flip("stats/plain", "more", 1)),
    "an attribute that is gone": ("", lambda seed: seed.attrs.__delitem__("none")),
    "an attribute of another type": ("", lambda seed: seed.attrs.__setitem__("list", [1.0, 2.0])),
    "a named type": ("type", link("type", np.dtype("f8"))),
    "a soft link": ("soft", link("soft", h5py.SoftLink("/a/stats/loss"))),
    "a hard link for a soft one": ("soft", lambda s: link("soft", s["stats/plain"])(s)),
    "an external link": ("elsewhere", link("elsewhere", h5py.ExternalLink("x.hdf5", "/a"))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_difference_is_noticed_and_named(pair: tuple[Path, Path], what: str) -> None:
    where, change = CHANGES[what]
    with h5py.File(pair[1], "a") as file:
        change(file["a"])
    assert different(*pair) == [f"a/{where}" if where else "a"]
    assert different(*pair[::-1]) != []


def test_a_byte_that_the_disk_changed_is_noticed(pair: tuple[Path, Path]) -> None:
    with h5py.File(pair[1]) as file:
        offset = file["a/stats/loss"].id.get_chunk_info(0).byte_offset
    content = bytearray(pair[1].read_bytes())
    content[offset + 100] ^= 1
    pair[1].write_bytes(content)
    assert different(*pair) == ["a/stats/loss"]


def chunks(
    path: Path, order: Sequence[int], values: Sequence[float], masks: Sequence[int] | None = None
) -> None:
    """Three chunks of one value each, written in an order, compressed.

    Args:
        masks: of chunks that are stored as they are; 1 says so, and 0 does not.
    """
    with h5py.File(path, "w") as file:
        column = file.create_dataset("a/x", (3,), "f8", chunks=(1,), compression="gzip")
        for i in order:
            raw = np.float64(values[i]).tobytes()
            stored = zlib.compress(raw) if masks is None else raw
            column.id.write_direct_chunk((i,), stored, filter_mask=masks[i] if masks else 0)


def test_chunks_may_lie_in_any_order(tmp_path: Path) -> None:
    old, new = tmp_path / "old.hdf5", tmp_path / "new.hdf5"
    chunks(old, [0, 1, 2], [1.0, 2.0, 3.0])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        chunks(new, order, [1.0, 2.0, 3.0])
        assert different(old, new) == []
        for changed in range(3):
            values = [1.0, 2.0, 3.0]
            values[changed] = 9.0
            chunks(new, order, values)
            assert different(old, new) == ["a/x"]


def test_a_chunk_that_is_decoded_in_another_way_is_another_one(tmp_path: Path) -> None:
    old, new = tmp_path / "old.hdf5", tmp_path / "new.hdf5"
    chunks(old, [0, 1, 2], [1.0, 2.0, 3.0], masks=[1, 1, 1])
    chunks(new, [0, 1, 2], [1.0, 2.0, 3.0], masks=[1, 1, 1])
    assert different(old, new) == []
    chunks(new, [0, 1, 2], [1.0, 2.0, 3.0], masks=[1, 0, 1])  # the same bytes
    assert different(old, new) == ["a/x"]


def test_each_copy_is_compared_under_the_name_that_it_has(tmp_path: Path) -> None:
    sources = {}
    for seed in "ab":
        sources[seed] = tmp_path / f"{seed}.hdf5"
        sources[seed].write_bytes(log_bytes(seed, ticks_of([1.0, 2.0])))
    new = str(tmp_path / "new.hdf5")
    copies = [Copy(str(sources[s]), s, f"config/{s}") for s in "ab"]
    with h5py.File(new, "w") as file:
        for seed in "ab":
            with h5py.File(sources[seed]) as source:
                source.copy(seed, file, f"config/{seed}")
    assert log_compare.differences(copies, new) == []
    with h5py.File(new, "a") as file:
        file["config/b/stats/loss"][0] = 9.0
    assert log_compare.differences(copies, new) == [(copies[1], "config/b/stats/loss")]
    with h5py.File(new, "a") as file:
        del file["config/a"]
    (first, _) = log_compare.differences(copies, new)
    assert first[0] is copies[0]


def test_a_source_that_was_replaced_meanwhile_is_looked_at_again_unless_it_only_grew(
    pair: tuple[Path, Path],
) -> None:
    old, new = pair
    stamp = files.Stamp.of(old.stat())
    os.utime(old, ns=(1, 1))
    with pytest.raises(LogNotFound, match="replaced meanwhile"):
        log_compare.differences([Copy(str(old), "a", "a", stamp)], str(new))
    with h5py.File(old, "a") as file:
        file["a/stats/plain"][0] = 7.0
    assert log_compare.differences([Copy(str(old), "a", "a", stamp, grows=True)], str(new)) == []
    old.unlink()
    with pytest.raises(LogNotFound):
        log_compare.differences([Copy(str(old), "a", "a")], str(new))


def test_a_new_file_that_is_none_is_damaged(pair: tuple[Path, Path]) -> None:
    pair[1].write_bytes(b"x")
    with pytest.raises(LogDamaged) as caught:
        different(*pair)
    assert caught.value.path == str(pair[1])


# --- beginnings -----------------------------------------------------------------------------------
def contains(tmp_path: Path, older: bytes, newer: bytes) -> bool:
    paths = tmp_path / "older.hdf5", tmp_path / "newer.hdf5"
    for path, content in zip(paths, (older, newer), strict=True):
        path.write_bytes(content)
    return log_compare.contains((str(paths[0]), "a"), (str(paths[1]), "a"))


def log(*losses: Any, **facts: Any) -> bytes:
    return log_bytes("a", ticks_of(losses), **facts)


NAN = float("nan")


@pytest.mark.parametrize(
    ("older", "newer", "held"),
    [
        ([], [], True),
        ([], [1.0], True),
        ([1.0], [1.0], True),
        ([1.0], [1.0, 2.0], True),
        ([1.0, 2.0], [1.0], False),
        ([1.0], [2.0, 1.0], False),
        ([NAN, 1.0], [NAN, 1.0, NAN], True),
        ([1, 2], [1, 2, 2.5], True),
        ([2**53 + 1], [2**53 + 1, 0.5], True),
        ([2**53 + 1], [float(2**53), 0.5], False),
        ([True, False], [True, False, 7], True),
        ([True], [2], False),
        (["a"], ["a", "b" * 100], True),
        (["a"], ["a", "b" * 1000], True),
        (["größe", ""], ["größe", "", "a\0b"], True),
        (["a\0"], ["a"], False),
        (["a"], ["a\0", "b"], False),
        (["1"], [1], False),
        ([np.arange(3.0)], [np.arange(3.0), np.ones(3)], True),
        ([np.arange(3.0)], [np.arange(4.0)], False),
    ],
)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_run_that_goes_on_holds_its_beginning_in_whatever_types(
    tmp_path: Path, older: Sequence[Any], newer: Sequence[Any], held: bool, sealed: bool
) -> None:
    assert contains(tmp_path, log(*older, sealed=sealed), log(*newer)) is held


def test_a_column_that_not_every_tick_has_is_held_with_its_rows(tmp_path: Path) -> None:
    def sparse(*rows: int) -> bytes:
        return log_bytes("a", [({"step": i}, {"rare": 1.0} if i in rows else {}) for i in range(5)])

    assert contains(tmp_path, sparse(1), sparse(1, 3))
    assert not contains(tmp_path, sparse(1), sparse(2, 3))


def test_a_column_that_the_other_lacks_is_not_held_and_new_ones_do_not_matter(
    tmp_path: Path,
) -> None:
    one, two = ({"loss": 1.0}, {"loss": 1.0, "more": 2.0})
    logs = [log_bytes("a", [({"step": 0}, stats)]) for stats in (one, two)]
    assert contains(tmp_path, *logs)
    assert not contains(tmp_path, *logs[::-1])


def test_runs_of_different_configurations_do_not_hold_each_other(tmp_path: Path) -> None:
    assert not contains(tmp_path, log(), log(1.0, config_text="{'lr': 0.2}"))


def test_a_log_of_mle_logging_is_held_by_ours_that_continues_it(tmp_path: Path) -> None:
    def with_name(content: bytes, name: str) -> bytes:
        path = tmp_path / "x.hdf5"
        path.write_bytes(content)
        with h5py.File(path, "a") as file:
            file.move("a/stats/acc", f"a/stats/{name}")
        return path.read_bytes()

    values = [np.float32(0.1), np.float32(0.2), 0.3]
    ours = log_bytes("a", [({"n": i}, {"acc": float(v)}) for i, v in enumerate(values)])
    path = tmp_path / "foreign.hdf5"
    with h5py.File(path, "w") as file:
        file["a/stats/train/acc"] = np.array(values[:2], "f4")
        file["a/time/n"] = np.array([0, 1], "f4")
        file["a/meta/config_dict"] = np.array([b"{'lr': 0.1}"], "S5000")
    assert contains(tmp_path, path.read_bytes(), with_name(ours, "train%2Facc"))
    with h5py.File(path, "a") as file:
        file["a/stats/train/acc"][0] = 0.5
    assert not contains(tmp_path, path.read_bytes(), with_name(ours, "train%2Facc"))


@pytest.mark.parametrize("change", ["scalar", "group"])
def test_what_else_a_run_has_must_be_held_too(tmp_path: Path, change: str) -> None:
    path = tmp_path / "x.hdf5"
    path.write_bytes(log(1.0))
    with h5py.File(path, "a") as file:
        if change == "scalar":
            file["a/stats/best"] = 0.5
        else:
            file["a/notes/mine"] = [1, 2]
    more = path.read_bytes()
    assert contains(tmp_path, log(1.0), more)
    assert contains(tmp_path, more, more)
    assert not contains(tmp_path, more, log(1.0, 2.0))


def test_one_that_is_gone_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        log_compare.contains((str(tmp_path / "no"), "a"), (str(tmp_path / "no"), "a"))
    with pytest.raises(LogDamaged):
        contains(tmp_path, b"x", log())


@settings(max_examples=settings().max_examples // 4)
@given(logged=tick_sequences(), cut=st.integers(0, 20), other=tick_sequences())
@example(logged=[({}, {"": 0}), ({}, {}), ({}, {"": 0, "%": 0})], cut=2, other=[])
def test_of_any_ticks_the_first_are_held_and_nothing_is_held_that_is_not_there(
    tmp_path_factory: pytest.TempPathFactory, logged: list[Tick], cut: int, other: list[Tick]
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    whole, start = log_bytes("a", logged), log_bytes("a", logged[:cut])
    assert contains(folder, start, whole)
    if contains(folder, whole, start):
        assert len(start_values(folder, whole)) == len(start_values(folder, start))
    if contains(folder, log_bytes("a", other), whole):
        held, all_ = start_values(folder, log_bytes("a", other)), start_values(folder, whole)
        assert all(len(all_[name]) >= len(column) for name, column in held.items())


def start_values(folder: Path, content: bytes) -> Values:
    (folder / "look.hdf5").write_bytes(content)
    return read_logs(folder / "look.hdf5")[("a",)]


def test_a_foreign_log_is_held_by_a_copy_of_it(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "x.hdf5", {"a": [1.0, 2.0], "b": [1.0, 2.0, 3.0]})
    assert log_compare.contains((path, "a"), (path, "b"))
    assert not log_compare.contains((path, "b"), (path, "a"))
