"""Published files: whole at any moment, exact, small, and never changed once seen."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mle_client import files, layout, merge_seed_logs, wire
from mle_client import messages as m
from mle_client.errors import LogDamaged, LogNotFound, RunRefused
from mle_daemon import h5edit, h5file, h5seal, store
from mle_daemon.columns import FileState, Plan
from mle_daemon.events import PublishRun
from mle_daemon.pieces import SLICE_BYTES, Key
from mle_daemon.store import Store
from tests.seed_logs import write_foreign
from tests.strategies import tick_sequences
from tests.unit.daemon.test_planning import Stream, Tick, assert_holds, blocks_of, splits

START = 1.7e9
BOTH_WAYS = pytest.mark.parametrize("image_bytes", [store.IMAGE_BYTES, 0], ids=["memory", "copy"])


def a_run(root: Path | str, **changes: Any) -> m.Run:
    """A run in the folder exp/ of a root."""
    directory = os.path.join(os.path.realpath(root), "exp")
    run = m.Run(
        run_id=m.RunId(bytes(range(16))),
        directory=directory,
        experiment_dir="exp/",
        seed_id="seed_1",
        eval_id="base",
        model_type="torch",
        start_time=START,
        config_name="",
        config_file=b"",
        config_text="{'lr': 0.1}",
        config_json="",
        num_seeds=None,
        overwrite=False,
        reload=False,
        policy={},
        kept={},
        tboard=False,
        wandb={},
        forked=False,
        process=m.Process(1, "here", "7", "boot"),
    )
    return replace(run, **changes)


class Log:
    """A run and its log file, published through a store."""

    def __init__(self, root: Path | str, **changes: Any) -> None:
        self.run = a_run(root, **changes)
        self.path = layout.log_path(self.run.directory, self.run.seed_id)
        self.store = Store(str(root))
        self.state: FileState | None = None

    def open(self) -> tuple[FileState | None, str]:
        """Open the run."""
        return self.store.open_run(self.run, self.run.seed_id, self.path)

    def publish(
        self,
        blocks: Sequence[wire.Block] = (),
        lost: int = 0,
        applied: Mapping[str, int] | None = None,
        status: str = "running",
    ) -> tuple[str, ...]:
        """Publish some blocks; returns the problems."""
        job = PublishRun(
            run=self.run,
            seed_id=self.run.seed_id,
            path=self.path,
            file=self.state,
            blocks=tuple(blocks),
            lost=lost,
            applied=applied or {},
            status=status,
        )
        self.state, problems = self.store.publish(job)
        return problems

    def seal(self) -> None:
        """Seal the log."""
        assert self.state is not None
        self.state = self.store.seal(self.path, self.state)

    def staged(self) -> list[str]:
        """What lies unfinished."""
        return os.listdir(layout.state_path(self.store.root, layout.STAGING_DIR))


@pytest.fixture
def log(root: Path) -> Log:
    """A run that was opened and has nothing published."""
    log = Log(root)
    log.open()
    return log


def some_blocks(count: int, first: int = 0) -> list[wire.Block]:
    """Ticks with a value of each kind."""
    return blocks_of(*ticks_of(count, first))


def ticks_of(count: int, first: int = 0) -> list[Tick]:
    """What these are made of."""
    return [
        ({"step": i}, {"loss": 1 / (i + 1), "ok": i % 2 == 0, "w": [i, 0.5], "note": f"n{i}"})
        for i in range(first, first + count)
    ]


def read(path: str) -> dict[Key, dict[int, Any]]:
    """The values of each column by their rows, read with plain h5py."""
    found = {}
    with h5py.File(path) as file:
        (seed,) = file.values()
        for group in ("stats", "time"):
            for stored, dataset in seed[group].items():
                name = layout.unescape(stored)
                rows_name = layout.rows_name(group, name)
                meta = seed["meta"]
                rows = meta[rows_name][:] if rows_name in meta else range(len(dataset))
                found[group, name] = dict(zip(map(int, rows), dataset[:], strict=True))
    return found


def content(path: str) -> dict[str, Any]:
    """All values and attributes of a file."""
    found: dict[str, Any] = {}

    def add(name: str, item: Any) -> None:
        found[name] = dict(item.attrs)
        if isinstance(item, h5py.Dataset):
            found[name + "/"] = (item.dtype, item.shape, item[:].tolist())

    with h5py.File(path) as file:
        file.visititems(add)
    return found


def note_rooms(patch: pytest.MonkeyPatch) -> list[int]:
    """What is reserved for each publication from now on; a file must not need more."""
    rooms: list[int] = []
    real = h5edit.growth

    def growth(job: PublishRun, plan: Plan) -> int:
        rooms.append(real(job, plan))
        return rooms[-1]

    patch.setattr(h5edit, "growth", growth)
    return rooms


@BOTH_WAYS
@pytest.mark.parametrize("slice_bytes", [1, 1000, 30_000])
def test_a_file_is_the_same_whatever_the_slices(
    image_bytes: int, slice_bytes: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "IMAGE_BYTES", image_bytes)
    ours, sliced = Log(root), Log(tmp_path / "sliced")
    sliced.run = ours.run
    sliced.store = Store(str(tmp_path / "sliced"), slice_bytes)
    rooms = note_rooms(monkeypatch)
    stream = Stream()
    published = [
        stream.blocks(*ticks_of(300)),
        stream.blocks(*[({}, {"loss": i, "rare": "x" * i}) for i in range(300)]),  # sparse, wide
        stream.blocks(*ticks_of(20), ({"step": 2**60 + 1}, {"loss": "of the wrong kind"})),
        stream.blocks(*[({"step": 0.5}, {"new": [[float(i)]]}) for i in range(300)]),
    ]
    for blocks in published:
        sizes = [log.state.size if log.state else 0 for log in (ours, sliced)]
        assert ours.publish(blocks) == sliced.publish(blocks)
        for log, size in zip((ours, sliced), sizes, strict=True):
            assert log.state is not None
            assert log.state.size <= size + rooms[-1]
        assert content(ours.path) == content(sliced.path)
    ours.seal()
    sliced.seal()
    assert content(ours.path) == content(sliced.path)


# --- what is in the file --------------------------------------------------------------------------
@pytest.mark.parametrize("image_bytes", [store.IMAGE_BYTES, 0], ids=["memory", "copy"])
@settings(max_examples=settings().max_examples // 4)
@given(data=st.data(), logged=tick_sequences())
def test_any_ticks_in_any_publications_are_in_the_file_exactly(
    image_bytes: int, data: st.DataObject, logged: list[Tick]
) -> None:
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "IMAGE_BYTES", image_bytes)
        rooms = note_rooms(patch)
        log = Log(root)
        log.store = Store(root, slice_bytes=data.draw(st.sampled_from([1, 200, SLICE_BYTES])))
        log.open()
        blocks = blocks_of(*logged)
        cuts = data.draw(splits(len(blocks)))
        for start, stop in itertools.pairwise(cuts):
            size = log.state.size if log.state else 0
            assert log.publish(blocks[start:stop], applied={"ab": stop}) == ()
            assert log.state is not None
            assert log.store.inspect(log.path) == log.state
            assert log.state.size <= size + rooms[-1]
            if data.draw(st.booleans()):
                log.state = Store(root).inspect(log.path)
        assert_holds(read(log.path), logged)
        log.seal()
        assert_holds(read(log.path), logged)
        assert log.store.inspect(log.path) == log.state
        assert log.state is not None
        size = log.state.size
        log.publish(blocks_of(*logged))
        assert_holds(read(log.path), [*logged, *logged])
        assert log.state.size <= size + rooms[-1]
        assert log.staged() == []


def test_columns_have_the_types_that_plain_h5py_shows(log: Log) -> None:
    log.publish(some_blocks(3))
    with h5py.File(log.path) as file:
        stats, time = file["seed_1/stats"], file["seed_1/time"]
        assert stats["loss"].dtype == np.float64
        assert stats["ok"].dtype == np.bool_
        assert stats["w"].shape == (3, 2)
        assert stats["note"].asstr()[:].tolist() == ["n0", "n1", "n2"]
        assert h5py.check_string_dtype(stats["note"].dtype) == ("utf-8", 16)
        assert time["step"].dtype == np.int64
        assert time["num_updates"][:].tolist() == [1, 2, 3]
        assert time["time_elapsed"][:].tolist() == [0.5, 1.0, 1.5]
        assert time["time"].dtype == np.dtype("S14")


def test_integers_and_floats_under_one_key_stay_exact(log: Log) -> None:
    log.publish(blocks_of(({}, {"x": 2**53 + 1, "y": 1})))
    log.publish(blocks_of(({}, {"x": 0.1, "y": 0.1})))
    with h5py.File(log.path) as file:
        x, y = file["seed_1/stats/x"], file["seed_1/stats/y"]
        assert (x.dtype, y.dtype) == (np.longdouble, np.float64)
        assert int(x[0]) == 2**53 + 1
        assert float(x[1]) == 0.1


def test_long_texts_empty_texts_and_nuls_survive(log: Log) -> None:
    texts = ["", "a", "x" * 300, "", "größe\0", "\0", "y" * 60_000]
    for text in texts:
        log.publish(blocks_of(({}, {"t": text})))
    log.seal()
    with h5py.File(log.path) as file:
        dataset = file["seed_1/stats/t"]
        assert dataset.attrs[layout.STRING_ATTR] == 1
        assert [v.replace(b"\xc0\x80", b"\0").decode() for v in dataset[:]] == texts


@settings(max_examples=settings().max_examples // 4)
@given(
    st.lists(
        st.lists(st.sampled_from([0, 10, 200, 2100, 4090, 60_000]), min_size=1, max_size=100),
        min_size=1,
        max_size=4,
    )
)
def test_texts_of_any_length_need_no_more_room_than_is_reserved(lengths: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        rooms = note_rooms(patch)
        log = Log(root, config_text="x" * 300_000, config_json="y" * 300_000)
        log.open()
        stream, size = Stream(), 0
        for i, some in enumerate(lengths):
            log.publish(stream.blocks(*[({}, {"t": "x" * n, "u": "y" * (n % 7)}) for n in some]))
            assert log.state is not None
            assert log.state.size <= size + rooms[-1]
            if i == 1:
                log.seal()
            size = log.state.size
        found = read(log.path)["stats", "t"].values()
        assert [len(text) for text in found] == [n for some in lengths for n in some]


def test_texts_without_nul_are_not_marked(log: Log) -> None:
    log.publish(blocks_of(({}, {"t": "plain"})))
    with h5py.File(log.path) as file:
        assert layout.STRING_ATTR not in file["seed_1/stats/t"].attrs


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "%2F", "größe 損失", "n\0ul", "k" * 4096])
def test_any_name_of_a_statistic_can_be_stored(log: Log, name: str) -> None:
    log.publish(blocks_of(({name: 1}, {name: 2.0}), ({}, {})))
    log.seal()
    found = read(log.path)
    assert found["stats", name] == {0: 2.0}
    assert found["time", name] == {0: 1}


@pytest.mark.parametrize("seed_id", ["no_seed_provided", "größe a.b", "..x", "s%2F"])
def test_any_name_of_a_seed_is_its_groups_name(root: Path, seed_id: str) -> None:
    log = Log(root, seed_id=seed_id)
    log.open()
    log.publish(some_blocks(1))
    with h5py.File(log.path) as file:
        assert list(file) == [seed_id]
    assert log.store.inspect(log.path) == log.state


def test_meta_is_what_mle_logging_writes(root: Path) -> None:
    log = Log(root, config_name="base.yaml", config_file=b"lr: 0.1", config_text="{'ü': 'ß'}")
    log.open()
    log.publish(some_blocks(1))
    with h5py.File(log.path) as file:
        meta = {name: dataset[:].tolist() for name, dataset in file["seed_1/meta"].items()}
    assert meta == {
        "log_paths": [b"exp/logs/log_seed_1.hdf5"],
        "experiment_dir": [b"exp/"],
        "config_fname": [b"exp/base.yaml"],
        "eval_id": [b"base"],
        "model_type": [b"torch"],
        "config_dict": ["{'ü': 'ß'}".encode()],
    }


def test_no_configuration_is_named_as_mle_logging_names_it(root: Path) -> None:
    log = Log(root, eval_id="")
    log.publish()
    with h5py.File(log.path) as file:
        assert file["seed_1/meta/config_fname"][:].tolist() == [layout.NO_CONFIG.encode()]
        assert file["seed_1/meta/eval_id"][:].tolist() == [b""]


@pytest.mark.parametrize("size", [10, 60_000, 3_000_000])
def test_a_configuration_of_any_size_is_kept_as_json_too(root: Path, size: int) -> None:
    json = '{"a": "' + "ß\0" * (size // 2) + '"}'
    log = Log(root, config_json=json, config_text="x" * size)
    log.publish(some_blocks(1))
    log.seal()
    with h5py.File(log.path) as file:
        config = file["seed_1/meta/config_dict"]
        assert config.attrs[layout.JSON_ATTR] == json.replace("\0", "\\u0000")
        assert config[0] == b"x" * size


@pytest.mark.parametrize("count", [0, 1, 5])
def test_nothing_lies_in_a_file_that_mle_logging_would_trip_over(log: Log, count: int) -> None:
    log.publish(some_blocks(count))
    with h5py.File(log.path) as file:
        assert list(file) == ["seed_1"]
        assert sorted(file["seed_1"]) == ["meta", "stats", "time"]
        for group in file["seed_1"].values():
            for dataset in group.values():
                assert len(dataset.shape) >= 1
                assert len(dataset) >= 1
    assert os.listdir(os.path.dirname(log.path)) == ["log_seed_1.hdf5"]


def test_files_are_of_the_format_that_old_readers_know(log: Log) -> None:
    log.publish(some_blocks(5))
    log.seal()
    assert Path(log.path).read_bytes()[:9] == b"\x89HDF\r\n\x1a\n\x00"


def test_attributes_say_what_is_stored(log: Log) -> None:
    log.publish(some_blocks(2), lost=3, applied={"ab": 10})
    log.publish(some_blocks(1), lost=5, applied={"ab": 20, "cd": 7}, status="crashed")
    with h5py.File(log.path) as file:
        attributes = dict(file["seed_1"].attrs)
    assert attributes.pop(layout.APPLIED_ATTR).strip() == b'{"ab": 20, "cd": 7}'
    assert attributes == {
        layout.FORMAT_ATTR: layout.FILE_FORMAT,
        layout.RUN_ATTR: bytes(range(16)).hex(),
        layout.STATE_ATTR: "crashed",
        layout.ROWS_ATTR: 3,
        layout.START_ATTR: START,
        layout.LOST_ATTR: 5,
    }


def test_positions_of_very_many_producers_are_kept(log: Log) -> None:
    applied = {f"{i:032x}": i for i in range(3000)}
    for count in (10, 1400, 3000):
        log.publish(applied=dict(list(applied.items())[:count]))
    assert log.store.inspect(log.path) == log.state
    assert log.state is not None
    assert log.state.applied == applied


def test_refused_values_are_counted_in_the_file_and_named(log: Log) -> None:
    log.publish(blocks_of(({}, {"x": 1.0, "y": 1.0})))
    (problem,) = log.publish(blocks_of(({}, {"x": "text", "y": 2.0}), ({}, {"x": "b", "y": 3.0})))
    assert "'x'" in problem
    assert log.state is not None
    assert log.state.refused == 2
    log.publish(blocks_of(({}, {"x": 4.0, "y": 4.0})))
    assert log.store.inspect(log.path) == log.state
    found = read(log.path)
    assert found["stats", "x"] == {0: 1.0, 3: 4.0}
    assert found["stats", "y"] == {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}


# --- size and cost --------------------------------------------------------------------------------
def floats(stream: Stream, count: int, first: int = 0) -> list[wire.Block]:
    return stream.blocks(*[({"s": first + i}, {"a": i / 3, "b": i / 7}) for i in range(count)])


def test_four_ticks_take_little_room(log: Log) -> None:
    log.publish(blocks_of(*[({}, {f"s{j}": i / 3 for j in range(10)}) for i in range(4)]))
    assert log.state is not None
    assert log.state.size < 19 * 4096


def test_a_number_takes_no_more_than_twenty_bytes_however_it_came(log: Log) -> None:
    stream = Stream()
    for first in range(0, 10_000, 250):
        log.publish(floats(stream, 250, first))
    assert log.state is not None
    # 5 columns of 8 bytes and one of 14
    assert log.state.size / 10_000 < 1.3 * (5 * 8 + 14)


def test_a_publication_writes_little_more_than_its_tail(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    real = h5edit.append_rows
    monkeypatch.setattr(
        h5edit,
        "append_rows",
        lambda d, at, values, memory: (
            written.append(len(values)),
            real(d, at, values, memory),
        ),
    )
    stream, rows = Stream(), 0
    for _ in range(60):
        log.publish(floats(stream, 200))
        rows += 200
    # Every number once, and once more where its column moved to larger chunks.
    assert 6 * rows <= sum(written) <= 6 * rows * 1.5


def test_many_short_publications_leave_no_holes_in_a_file(log: Log) -> None:
    stream = Stream()
    log.publish(floats(stream, 1), applied={"ab": 0})
    sizes = []
    for i in range(200):
        log.publish(floats(stream, 1), applied={"ab": i * 1000})
        assert log.state is not None
        sizes.append(log.state.size)
    assert sizes[-1] - sizes[0] < 200 * 54 + 6 * 4096


# --- published files are whole --------------------------------------------------------------------
FAULTS = [
    (files, "land", OSError(errno.EIO, "broken")),
    (os, "fsync", OSError(errno.EIO, "broken")),
    (os, "replace", OSError(errno.EACCES, "refused")),
    (h5edit, "append", MemoryError()),
    (h5edit, "mark", KeyboardInterrupt()),
]


@BOTH_WAYS
@pytest.mark.parametrize(("module", "name", "error"), FAULTS)
def test_a_publication_that_fails_leaves_the_file_as_it_was_and_nothing_else(
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    image_bytes: int,
    module: Any,
    name: str,
    error: BaseException,
) -> None:
    log.publish(some_blocks(3))
    monkeypatch.setattr(store, "IMAGE_BYTES", image_bytes)
    before, state = Path(log.path).read_bytes(), log.state

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(type(error)):
            log.publish(some_blocks(2, 3))
    assert Path(log.path).read_bytes() == before
    assert log.staged() == []
    assert log.store.inspect(log.path) == state
    log.publish(some_blocks(2, 3))
    assert list(read(log.path)["time", "step"].values()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("module", "name", "error"), FAULTS[:3])
def test_a_seal_that_fails_leaves_the_file_as_it_was(
    log: Log, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: BaseException
) -> None:
    log.publish(some_blocks(3))
    before = Path(log.path).read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(type(error)):
            log.seal()
    assert Path(log.path).read_bytes() == before
    assert log.staged() == []


@pytest.mark.parametrize(
    ("image_bytes", "module", "name"),
    [(store.IMAGE_BYTES, os, "write"), (0, os, "copy_file_range"), (0, os, "posix_fallocate")],
)
def test_a_full_disk_is_noticed_outside_of_hdf5(
    log: Log, monkeypatch: pytest.MonkeyPatch, image_bytes: int, module: Any, name: str
) -> None:
    log.publish(some_blocks(3))
    monkeypatch.setattr(store, "IMAGE_BYTES", image_bytes)
    before = Path(log.path).read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    def open_nothing(*_: Any) -> None:
        raise AssertionError("HDF5 was to write to a full disk")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        patch.setattr(h5file, "edit_file", open_nothing)
        with pytest.raises(OSError, match="No space"):
            log.publish(some_blocks(2, 3))
    assert Path(log.path).read_bytes() == before
    assert log.staged() == []
    log.publish(some_blocks(2, 3))
    assert list(read(log.path)["time", "step"].values()) == [0, 1, 2, 3, 4]


@BOTH_WAYS
@pytest.mark.parametrize("step", ["publish", "seal"])
def test_a_log_that_another_daemon_put_there_meanwhile_is_not_overwritten(
    log: Log, root: Path, monkeypatch: pytest.MonkeyPatch, image_bytes: int, step: str
) -> None:
    log.publish(some_blocks(3))
    theirs = Log(root, run_id=m.RunId(bytes(16)), seed_id="seed_2")
    theirs.open()
    theirs.publish(some_blocks(5))
    content, state = Path(theirs.path).read_bytes(), log.state
    monkeypatch.setattr(store, "IMAGE_BYTES", image_bytes)
    module, name = {"publish": (h5edit, "mark"), "seal": (h5seal, "differences")}[step]
    real = getattr(module, name)

    def replaced(*arguments: Any) -> Any:
        """The last thing that is done before the file gets its name."""
        os.replace(theirs.path, log.path)
        return real(*arguments)

    monkeypatch.setattr(module, name, replaced)
    with pytest.raises(LogDamaged, match="something else changed it"):
        log.publish(some_blocks(2, 3)) if step == "publish" else log.seal()
    assert Path(log.path).read_bytes() == content
    assert log.staged() == []
    assert log.state == state


@pytest.mark.parametrize("step", ["publish", "seal"])
def test_a_log_that_was_removed_meanwhile_is_gone(
    log: Log, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    log.publish(some_blocks(3))
    module, name = {"publish": (h5edit, "mark"), "seal": (h5seal, "differences")}[step]
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a: os.unlink(log.path) or real(*a))
    with pytest.raises(LogNotFound, match="gone"):
        log.publish(some_blocks(2, 3)) if step == "publish" else log.seal()
    assert not os.path.exists(log.path)
    assert log.staged() == []


def test_a_reader_keeps_the_file_it_has_opened(log: Log) -> None:
    log.publish(some_blocks(3))
    with h5py.File(log.path) as file:
        log.publish(some_blocks(3, 3))
        log.seal()
        assert file["seed_1/time/step"][:].tolist() == [0, 1, 2]
    assert len(read(log.path)["time", "step"]) == 6


def test_files_are_synced_before_they_get_their_name_and_the_name_after(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: steps.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd)
    )
    monkeypatch.setattr(os, "replace", lambda a, b: steps.append("replace") or rename(a, b))
    log.publish(some_blocks(1))
    place = steps.index("replace")
    folder = os.path.dirname(log.path)
    assert steps[0].endswith(".tmp")
    assert os.path.dirname(folder) in steps[:place]  # which has the folder's name
    assert steps[place + 1 :] == [folder]


@BOTH_WAYS
def test_a_log_on_another_file_system_is_copied_beside_the_logs_folder(
    log: Log, monkeypatch: pytest.MonkeyPatch, image_bytes: int
) -> None:
    monkeypatch.setattr(store, "IMAGE_BYTES", image_bytes)
    rename, moved = os.replace, []

    def across(source: str, target: str) -> None:
        if layout.STAGING_DIR in source:
            raise OSError(errno.EXDEV, "another file system")
        moved.append(os.path.dirname(source))
        rename(source, target)

    monkeypatch.setattr(os, "replace", across)
    log.publish(some_blocks(3))
    log.publish(some_blocks(3, 3))
    assert moved == [log.run.directory] * 2
    assert len(read(log.path)["time", "step"]) == 6
    assert log.staged() == []
    assert os.listdir(log.run.directory) == ["logs"]


def test_a_copied_file_is_cut_to_what_it_holds(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.publish(some_blocks(10))
    in_memory = content(log.path), os.path.getsize(log.path)
    monkeypatch.setattr(store, "IMAGE_BYTES", 0)
    os.unlink(log.path)
    log.state = None
    log.publish(some_blocks(10))
    assert (content(log.path), os.path.getsize(log.path)) == in_memory


def test_leftovers_are_removed_at_start(log: Log) -> None:
    log.publish(some_blocks(1))
    left = layout.state_path(log.store.root, layout.STAGING_DIR, "0-0.tmp")
    Path(left).write_bytes(b"unfinished")
    log.store.clean_staging()
    assert log.staged() == []
    assert log.store.inspect(log.path) == log.state


# --- a file that others touched -------------------------------------------------------------------
def change_run(path: str) -> None:
    with h5py.File(path, "r+") as file:
        file["seed_1"].attrs[layout.RUN_ATTR] = "0" * 32


def drop_rows(path: str) -> None:
    with h5py.File(path, "r+") as file:
        file["seed_1"].attrs[layout.ROWS_ATTR] = 1


def rename_seed(path: str) -> None:
    with h5py.File(path, "r+") as file:
        file.move("seed_1", "seed_2")
        del file["seed_2"].attrs[layout.FORMAT_ATTR]


def cut(path: str) -> None:
    os.truncate(path, 1000)


def overwrite(path: str) -> None:
    Path(path).write_bytes(b"something else")


@BOTH_WAYS
@pytest.mark.parametrize("act", [Log.publish, Log.seal])
@pytest.mark.parametrize("change", [change_run, drop_rows, rename_seed, cut, overwrite])
def test_a_file_that_something_else_changed_is_left_alone(
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    image_bytes: int,
    act: Callable[[Log], Any],
    change: Callable[[str], Any],
) -> None:
    log.publish(some_blocks(3))
    monkeypatch.setattr(store, "IMAGE_BYTES", image_bytes)
    change(log.path)
    changed = Path(log.path).read_bytes()
    with pytest.raises(LogDamaged):
        act(log)
    assert Path(log.path).read_bytes() == changed
    assert log.staged() == []


def test_a_file_that_is_gone_is_named(log: Log) -> None:
    log.publish(some_blocks(3))
    os.unlink(log.path)
    for act in (log.publish, log.seal):
        with pytest.raises(LogNotFound, match="log_seed_1"):
            act()


def test_a_new_log_puts_aside_what_came_in_between(log: Log) -> None:
    Path(log.path).write_bytes(b"of somebody else")
    log.publish(some_blocks(1))
    (kept,) = Path(layout.state_path(log.store.root, layout.REPLACED_DIR)).iterdir()
    assert kept.read_bytes() == b"of somebody else"
    assert len(read(log.path)["time", "step"]) == 1


# --- inspecting -----------------------------------------------------------------------------------
def test_there_is_nothing_to_inspect_where_no_file_is(log: Log) -> None:
    assert log.store.inspect(log.path) is None


@pytest.mark.parametrize("damage", [b"", b"no HDF5 at all", None])
def test_what_is_no_log_is_damaged(log: Log, damage: bytes | None) -> None:
    log.publish(some_blocks(3))
    whole = Path(log.path).read_bytes()
    Path(log.path).write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(LogDamaged):
        log.store.inspect(log.path)


def shorten(seed: Any) -> None:
    del seed["stats/loss"]
    seed["stats/loss"] = [1.0]


def lose_attribute(seed: Any) -> None:
    del seed.attrs[layout.ROWS_ATTR]


def come_from_the_future(seed: Any) -> None:
    seed.attrs[layout.FORMAT_ATTR] = layout.FILE_FORMAT + 1


@pytest.mark.parametrize("damage", [shorten, lose_attribute, come_from_the_future])
def test_a_log_whose_parts_do_not_fit_is_damaged(log: Log, damage: Callable[[Any], None]) -> None:
    log.publish(some_blocks(3))
    with h5py.File(log.path, "r+") as file:
        damage(file["seed_1"])
    with pytest.raises(LogDamaged):
        log.store.inspect(log.path)


def test_an_hdf5_file_without_a_log_is_damaged(log: Log) -> None:
    with h5py.File(log.path, "w") as file:
        file["data"] = [1.0]
    with pytest.raises(LogDamaged, match="no log"):
        log.store.inspect(log.path)


def test_a_log_of_mle_logging_is_read_as_one_that_is_not_ours(log: Log) -> None:
    with h5py.File(log.path, "w") as file:
        seed = file.create_group("seed_1")
        seed.create_dataset("meta/model_type", data=[b"torch"], dtype="S5000", compression="gzip")
        seed.create_dataset("time/time", data=[b"25-01-01/00:00"] * 3, dtype="S5000")
        seed.create_dataset("time/num_updates", data=[1, 2, 3], dtype="float32")
        seed.create_dataset("stats/loss", data=[0.5, 0.25], dtype="float32")
        seed.create_dataset("stats/train/acc", data=[0.5], dtype="float32")  # a name with a slash
    state = log.store.inspect(log.path)
    assert state is not None
    assert (state.run, state.rows, state.status) == ("", 3, "")
    assert state.columns["time", "time"].dtype == np.dtype("S5000")
    lengths = {name: column.length for (_, name), column in state.columns.items()}
    assert lengths == {"time": 3, "num_updates": 3, "loss": 2, "train/acc": 1}


# --- opening a run --------------------------------------------------------------------------------
def test_folders_are_made_and_the_configuration_is_copied(root: Path) -> None:
    log = Log(root, config_name="base.yaml", config_file=b"lr: 0.1")
    assert log.open() == (None, "")
    assert Path(log.run.directory, "base.yaml").read_bytes() == b"lr: 0.1"
    assert os.path.isdir(os.path.dirname(log.path))
    assert log.staged() == []


def test_a_configuration_that_is_there_already_is_left_alone(root: Path) -> None:
    log = Log(root, config_name="base.yaml", config_file=b"lr: 0.1")
    log.open()
    copy = Path(log.run.directory, "base.yaml")
    first = copy.stat().st_ino
    log.open()
    assert copy.stat().st_ino == first
    changed = Log(root, config_name="base.yaml", config_file=b"lr: 0.2")
    changed.open()
    assert copy.read_bytes() == b"lr: 0.2"


def test_a_configuration_does_not_follow_a_link_out_of_the_root(root: Path) -> None:
    outside = root.parent / "victim"
    outside.write_bytes(b"theirs")
    log = Log(root, config_name="base.yaml", config_file=b"ours")
    os.makedirs(log.run.directory)
    os.symlink(outside, os.path.join(log.run.directory, "base.yaml"))
    log.open()
    assert outside.read_bytes() == b"theirs"


def test_a_run_goes_on_where_its_file_ends(log: Log) -> None:
    log.publish(some_blocks(3), applied={"ab": 12})
    again = Log(log.store.root)
    state, note = again.open()
    assert (state, note) == (log.state, "")
    assert log.state is not None


def test_a_run_goes_on_even_if_it_was_told_to_overwrite(root: Path) -> None:
    log = Log(root, overwrite=True)
    log.open()
    log.publish(some_blocks(3))
    assert Log(root, overwrite=True).open()[0] == log.state


@pytest.mark.parametrize("damaged", [False, True])
def test_the_log_of_another_run_is_put_aside_and_said_where(log: Log, damaged: bool) -> None:
    log.publish(some_blocks(3))
    if damaged:
        os.truncate(log.path, 1000)
    old = Path(log.path).read_bytes()
    other = Log(log.store.root, run_id=m.RunId(bytes(16)))
    state, note = other.open()
    assert state is None
    assert not os.path.exists(log.path)
    kept = note.rpartition(" ")[2]
    assert Path(kept).read_bytes() == old
    assert Path(kept).parent == Path(layout.state_path(log.store.root, layout.REPLACED_DIR))


def test_logs_put_aside_in_the_same_second_do_not_replace_each_other(log: Log) -> None:
    for i in range(5):
        Path(log.path).write_bytes(b"%d" % i)
        log.open()
    kept = Path(layout.state_path(log.store.root, layout.REPLACED_DIR)).iterdir()
    assert sorted(path.read_bytes() for path in kept) == [b"0", b"1", b"2", b"3", b"4"]


def test_overwriting_removes_the_seeds_log_and_leaves_the_merged_one_to_the_others(
    log: Log,
) -> None:
    log.publish(some_blocks(3))
    merged = Path(layout.merged_log_path(log.run.directory))
    merged.write_bytes(b"merged")
    other = Log(log.store.root, run_id=m.RunId(bytes(16)), overwrite=True)
    assert other.open() == (None, "")
    assert os.listdir(os.path.dirname(log.path)) == [merged.name]


def outside_of(root: Path) -> str:
    return str(root.parent / "outside")


def through_a_link(root: Path) -> str:
    os.makedirs(outside_of(root))
    os.symlink(outside_of(root), root / "link")
    return str(root / "link" / "exp")


def linked_logs(root: Path) -> str:
    os.makedirs(outside_of(root))
    os.makedirs(root / "exp")
    os.symlink(outside_of(root), root / "exp" / "logs")
    return str(root / "exp")


def up_and_out(root: Path) -> str:
    return str(root / ".." / "outside")


def of_like_name(root: Path) -> str:
    return str(root) + "-not"


def the_daemons_own(root: Path) -> str:
    return str(root / layout.STATE_DIR / "journal")


def with_a_nul(root: Path) -> str:
    return str(root / "nul\0")


PLACES = [
    outside_of, through_a_link, linked_logs, up_and_out, of_like_name, the_daemons_own, with_a_nul,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_written_outside_of_the_root_or_among_our_own_files(
    root: Path, place: Callable[[Path], str]
) -> None:
    log = Log(root, directory=place(root))
    with pytest.raises(RunRefused):
        log.open()
    assert not os.path.exists(outside_of(root)) or os.listdir(outside_of(root)) == []
    assert not os.path.exists(root / layout.STATE_DIR / "journal")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "logs", "models", ".mle", "log_s.hdf5"])
def test_a_configuration_cannot_take_just_any_name(root: Path, name: str) -> None:
    with pytest.raises(RunRefused, match="configuration"):
        Log(root, config_name=name, config_file=b"x").open()


@pytest.mark.parametrize("seed_id", ["a/b", ".", "", "x" * 300])
def test_a_seed_cannot_have_just_any_name(root: Path, seed_id: str) -> None:
    with pytest.raises(RunRefused, match="seed_id"):
        Log(root, seed_id=seed_id).open()


# --- merged seeds ---------------------------------------------------------------------------------
def merged(log: Log, into: str = "log.hdf5") -> str:
    """Seal a log, have it merged, and return the path of the merged file."""
    log.publish(some_blocks(3), applied={"ab": 12}, status="finished")
    log.seal()
    path = os.path.join(os.path.dirname(log.path), into)
    merge_seed_logs(path, log.run.directory)
    assert not os.path.exists(log.path)
    return path


@pytest.mark.parametrize("into", ["log.hdf5", "all.hdf5"])
def test_a_merged_seed_that_goes_on_gets_a_log_of_its_own_again(log: Log, into: str) -> None:
    path = merged(log, into)
    before = Path(path).read_bytes()
    again = Log(log.store.root, run_id=m.RunId(bytes(16)), reload=True)
    again.state, note = again.open()
    assert note == ""
    assert again.state is not None
    assert (again.state.run, again.state.rows, again.state.applied) == (log.run.run_id.hex(), 3, {})
    assert Path(path).read_bytes() == before
    again.publish(some_blocks(2, first=3), status="finished")
    assert_holds(read(again.path), [*ticks_of(3), *ticks_of(2, first=3)])
    again.seal()
    merge_seed_logs(path, again.run.directory)
    assert_holds(read(path), [*ticks_of(3), *ticks_of(2, first=3)])
    assert os.listdir(os.path.dirname(path)) == [into]
    assert again.staged() == []


def test_a_run_whose_log_was_merged_before_it_was_over_goes_on_where_it_was(log: Log) -> None:
    path = merged(log)
    state, note = Log(log.store.root).open()
    assert note == ""
    assert state is not None
    assert (state.rows, state.applied) == (3, {"ab": 12})
    assert os.path.exists(path)


@pytest.mark.parametrize("forked", [False, True])
def test_a_forked_child_finds_the_run_of_its_parent_wherever_it_was_merged(
    log: Log, forked: bool
) -> None:
    merged(log, "all.hdf5")
    state, _ = Log(log.store.root, forked=forked).open()
    assert (state is not None) is forked


def test_another_run_of_a_merged_seed_begins_anew(log: Log) -> None:
    path = merged(log)
    for changes in ({}, {"overwrite": True}, {"seed_id": "seed_2", "reload": True}):
        other = Log(log.store.root, run_id=m.RunId(bytes(16)), **changes)
        assert other.open() == (None, "")
        assert not os.path.exists(other.path)
    assert os.path.exists(path)


def test_a_seed_that_mle_logging_merged_goes_on(root: Path) -> None:
    logs = root / "exp" / "logs"
    write_foreign(logs / "log.hdf5", {"seed_1": [1.0, 2.0], "seed_2": [3.0]})
    log = Log(root, reload=True)
    log.state, note = log.open()
    assert (log.state and log.state.rows, note) == (2, "")
    log.publish(blocks_of(({}, {"loss": 0.1})))
    with h5py.File(log.path) as file:
        assert list(file) == ["seed_1"]
        assert file["seed_1/stats/loss"][:].tolist() == [1.0, 2.0, 0.1]


@pytest.mark.parametrize("damage", [b"x" * 5000, b""])
def test_a_merged_file_that_is_damaged_stands_in_nobodys_way(root: Path, damage: bytes) -> None:
    logs = root / "exp" / "logs"
    logs.mkdir(parents=True)
    (logs / "log.hdf5").write_bytes(damage)
    for reload in (False, True):
        assert Log(root, reload=reload).open() == (None, "")
    assert (logs / "log.hdf5").read_bytes() == damage


def test_a_merged_seed_that_cannot_be_taken_out_stays_and_the_run_begins_anew(log: Log) -> None:
    path = merged(log)
    with h5py.File(path, "a") as file:
        reference = file["seed_1/stats/loss"].ref
        file["seed_1/stats"].create_dataset("ref", data=[reference], dtype=h5py.ref_dtype)
    before = Path(path).read_bytes()
    again = Log(log.store.root, run_id=m.RunId(bytes(16)), reload=True)
    state, note = again.open()
    assert state is None
    assert note.startswith(f"{path}: ")
    assert note.endswith("; this run begins anew")
    assert Path(path).read_bytes() == before
    assert again.staged() == []


@pytest.mark.parametrize("name", ["pwrite", "fsync", "replace"])
def test_a_disk_that_is_full_harms_no_merged_seed_and_the_run_is_opened_later(
    log: Log, name: str
) -> None:
    path = merged(log)
    before = Path(path).read_bytes()
    again = Log(log.store.root, run_id=m.RunId(bytes(16)), reload=True)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(OSError, match="No space"):
            again.open()
    assert (Path(path).read_bytes(), again.staged()) == (before, [])
    assert not os.path.exists(again.path)
    assert again.open()[0] is not None


def test_a_log_does_not_take_its_name_while_a_merge_removes_what_it_has_merged(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_LOCK_TIMEOUT_S", 0.05)
    log.publish(some_blocks(3))
    before = log.state
    with (
        files.locked(os.path.dirname(log.path), timeout=0),
        pytest.raises(BlockingIOError, match="has had it locked"),
    ):
        log.publish(some_blocks(3, first=3))
    assert log.store.inspect(log.path) == before
    assert log.staged() == []
    log.publish(some_blocks(3, first=3))


def test_nothing_else_waits_for_a_merge(root: Path) -> None:
    # The daemon's loop copies configurations itself, and a merge may take minutes.
    (root / "exp").mkdir()
    log = Log(root, config_name="base.yaml", config_file=b"lr: 0.1")
    with files.locked(str(root / "exp"), timeout=0):
        log.open()
        log.publish(some_blocks(3))
    assert (root / "exp" / "base.yaml").read_bytes() == b"lr: 0.1"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_log_says_whether_it_was_to_overwrite_older_ones(root: Path, overwrite: bool) -> None:
    log = Log(root, overwrite=overwrite)
    log.open()
    log.publish(some_blocks(3))
    log.seal()
    log.publish(some_blocks(3, first=3))
    with h5py.File(log.path) as file:
        assert (layout.OVERWRITE_ATTR in file["seed_1"].attrs) is overwrite


# --- sealing --------------------------------------------------------------------------------------
@BOTH_WAYS
def test_a_sealed_log_holds_the_same_in_less_room(
    log: Log, monkeypatch: pytest.MonkeyPatch, image_bytes: int
) -> None:
    monkeypatch.setattr(store, "IMAGE_BYTES", image_bytes)
    stream = Stream()
    log.publish(stream.blocks(*[({"s": i}, {"a": 0.5, "t": "x" * i}) for i in range(300)]))
    log.publish(floats(stream, 3000), lost=2, applied={"ab": 9}, status="finished")
    before, state = content(log.path), log.state
    log.seal()
    assert content(log.path) == before
    assert state is not None
    assert log.state is not None
    assert log.state.size == os.path.getsize(log.path) < state.size * 0.7
    assert log.state == log.store.inspect(log.path)
    assert (log.state.rows, log.state.lost, log.state.applied) == (3300, 2, {"ab": 9})
    assert all(column.sealed for column in log.state.columns.values())
    with h5py.File(log.path) as file:
        assert file["seed_1/stats/a"].compression == "gzip"
        assert file["seed_1/stats/a"].shuffle
        assert file["seed_1/meta/stats_rows:t"].chunks is None


def test_a_sealed_log_can_be_continued(log: Log) -> None:
    stream = Stream()
    log.publish(floats(stream, 5000))
    log.seal()
    log.publish(floats(stream, 10))
    found = read(log.path)["stats", "a"]
    assert len(found) == 5010
    assert found[5009] == 9 / 3


def test_a_seal_that_would_lose_a_value_is_not_kept(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.publish(some_blocks(3))
    before = Path(log.path).read_bytes()
    real = h5seal.write_rows

    def spoil(dataset: Any, at: int, values: Any, *others: Any) -> None:
        real(dataset, at, values + 1 if values.dtype == np.float64 else values, *others)

    monkeypatch.setattr(h5seal, "write_rows", spoil)
    with pytest.raises(LogDamaged, match="stats/loss"):
        log.seal()
    assert Path(log.path).read_bytes() == before
    assert log.staged() == []


# --- links that come later ------------------------------------------------------------------------
@pytest.mark.parametrize("to", ["outside", "own"])
@pytest.mark.parametrize("which", ["experiment", "logs"])
def test_a_place_that_became_a_link_is_left_alone(
    log: Log, root: Path, tmp_path: Path, to: str, which: str
) -> None:
    log.open()
    log.store.check_place(log.path)
    target = tmp_path / "outside" if to == "outside" else root / layout.STATE_DIR / "journal"
    (target / "logs").mkdir(parents=True)
    place = Path(log.run.directory) / ("logs" if which == "logs" else "")
    shutil.rmtree(place)
    place.symlink_to(target)
    with pytest.raises(PermissionError, match=f"it leads to {target}"):
        log.store.check_place(log.path)


def test_a_log_does_not_land_where_its_folder_led_meanwhile(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if what lies there is the very file that was read."""
    log.publish(some_blocks(1))
    outside, folder, name = tmp_path / "outside", *os.path.split(log.path)
    outside.mkdir()
    os.link(log.path, outside / name)
    before = (outside / name).stat()
    real = log.store._stage

    def stage(*arguments: Any) -> Any:
        staged = real(*arguments)
        os.rename(folder, tmp_path / "away")
        os.symlink(outside, folder)
        return staged

    monkeypatch.setattr(log.store, "_stage", stage)
    with pytest.raises(PermissionError, match=f"it leads to {outside}"):
        log.publish(some_blocks(1, 1))
    assert (outside / name).stat().st_ino == before.st_ino
    assert os.listdir(outside) == [name]
    assert log.staged() == []


# --- disks that fail ----------------------------------------------------------------------------
def test_a_name_that_could_not_be_synced_counts_only_when_it_was(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.open()
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}") == os.path.dirname(log.path):
            raise OSError(errno.EIO, "broken")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(files.NotSynced):
        log.publish(some_blocks(2))
    with pytest.raises(OSError, match="broken"):
        log.open()
    monkeypatch.setattr(os, "fsync", real)
    state, note = log.open()
    assert state is not None
    assert state.rows == 2
    assert note == ""


def test_a_full_disk_is_told_with_the_folder_and_the_bytes(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.open()
    monkeypatch.setattr(files, "write_all", fail_with(errno.ENOSPC))
    with pytest.raises(OSError, match=r"\d+ bytes are needed: '.*/\.mle/staging'"):
        log.publish(some_blocks(2))


def fail_with(error: int) -> Callable[..., None]:
    def fails(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    return fails
