from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import h5py
import numpy as np
import pytest
from h5py import h5f
from hypothesis import given
from hypothesis import strategies as st

from mle_client import layout, reader, stored
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.reader import read_runs


@pytest.fixture(autouse=True, params=["read at once", "read when looked at"])
def size(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whether files count as small or as large ones: it makes no difference to what is read."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "read when looked at":
            patch.setattr(reader, "SMALL_BYTES", -1)
            patch.setattr(stored, "_SMALL_BYTES", 0)
        yield request.param


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "log_seed_1.hdf5")


def write(path: str, datasets: dict[str, object]) -> None:
    """An HDF5 file of the given datasets, as h5py stores them."""
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values


def write_as_mle_logging(path: str, run: str, stats: dict, time: dict, meta: dict) -> None:
    """A file with the types, the compression and the fixed strings of mle-logging 0.0.6."""
    with h5py.File(path, "a") as file:
        for group, columns in (("stats", stats), ("time", time), ("meta", meta)):
            for name, values in columns.items():
                dtype = "S5000" if isinstance(values[0], str) else "float32"
                data = [v.encode() for v in values] if dtype == "S5000" else values
                file.create_dataset(
                    f"{run}/{group}/{name}", data=data, dtype=dtype, compression="gzip"
                )


def store_text(group: h5py.Group, name: str, texts: list[str]) -> None:
    """A text column as the layout has it."""
    encoded = [text.encode().replace(b"\0", b"\xc0\x80") for text in texts]
    width = max(1, *map(len, encoded))
    group[name] = np.array(encoded, f"S{width}")
    group[name].attrs[layout.STRING_ATTR] = 1


# --- values ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "values",
    [
        np.array([-(2**63), 2**63 - 1]),
        np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324]),
        np.array([True, False]),
        np.array([1.5, 2.5], np.float32),
        np.array([np.longdouble(1) / 3]),
        np.arange(12, dtype=np.uint8).reshape(2, 3, 2),
        np.arange(3, dtype=">f8"),
        np.empty((0, 3)),
        np.empty((3, 0)),
    ],
    ids=["ints", "floats", "bools", "f4", "extended", "3-D", "big-endian", "no rows", "no items"],
)
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_numbers_come_back_in_the_stored_type_and_to_the_last_bit(
    path, values, compression
) -> None:
    with h5py.File(path, "w") as file:
        compression = compression if values.size else None
        file.create_dataset("seed_1/stats/x", data=values, compression=compression)
        file["seed_1/time/x"] = values
    run = read_runs(path)[None, "seed_1"]
    for column in (run.stats.x, run.time.x):
        assert column.dtype == values.dtype.newbyteorder("=")
        assert column.shape == values.shape
        assert column.tobytes() == values.astype(column.dtype).tobytes()


texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\0 é"), max_size=6)


@given(st.lists(texts, min_size=1, max_size=8))
def test_text_comes_back_exactly_with_nul_spaces_and_emptiness(tmp_path_factory, logged) -> None:
    path = str(tmp_path_factory.mktemp("text") / "log.hdf5")
    with h5py.File(path, "w") as file:
        store_text(file.create_group("seed_1/stats"), "note", logged)
    column = read_runs(path)[None, "seed_1"].stats.note
    assert column.tolist() == logged
    assert all(type(text) is str for text in column)


def test_only_escaped_columns_are_unescaped_and_foreign_bytes_are_shown(path) -> None:
    write(path, {"seed_1/stats/a": np.array([b"x\xc0\x80y", b"\xff"])})
    assert read_runs(path)[None, "seed_1"].stats.a.tolist() == ["x\\xc0\\x80y", "\\xff"]


def test_text_of_variable_length_and_of_more_dimensions_is_read(path) -> None:
    write(
        path,
        {"seed_1/stats/vlen": ["a", "bé", ""], "seed_1/stats/table": np.array([[b"a", b""]], "S3")},
    )
    stats = read_runs(path)[None, "seed_1"].stats
    assert stats.vlen.tolist() == ["a", "bé", ""]
    assert stats.table.tolist() == [["a", ""]]


def test_the_clock_time_is_a_numpy_text_array(path) -> None:
    write(path, {"seed_1/time/time": np.array([b"26-11-24/03:10"] * 2), "seed_1/time/tag": [b"a"]})
    time = read_runs(path)[None, "seed_1"].time
    assert time.time.dtype == "U14"
    assert time.time.tolist() == ["26-11-24/03:10"] * 2
    assert time.tag.dtype == object


def test_wide_padded_strings_are_read_in_blocks_and_narrowed(path) -> None:
    times = [f"26-11-24/{i // 60:02}:{i % 60:02}" for i in range(1000)]  # 5 MB of padding
    write_as_mle_logging(path, "seed_1", {"note": ["é", *times[1:]]}, {"time": times}, {})
    run = read_runs(path)[None, "seed_1"]
    assert run.time.time.dtype == "U14"
    assert run.time.time.tolist() == times
    assert run.stats.note.tolist() == ["é", *times[1:]]


def test_empty_and_scalar_datasets_of_others_are_columns_too(path) -> None:
    write(
        path,
        {
            "seed_1/stats/none": h5py.Empty("f4"),
            "seed_1/stats/one": 3,
            "seed_1/stats/text": "a",
            "seed_1/time/time": np.empty(0, "S14"),
        },
    )
    run = read_runs(path)[None, "seed_1"]
    assert run.stats.none.tolist() == []
    assert run.stats.one.tolist() == [3]
    assert run.stats.text.tolist() == ["a"]
    assert run.time.time.tolist() == []


# --- names and groups -----------------------------------------------------------------------------
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), unique=True))
def test_any_name_of_a_metric_comes_back(tmp_path_factory, names) -> None:
    path = str(tmp_path_factory.mktemp("names") / "log.hdf5")
    with h5py.File(path, "w") as file:
        group = file.create_group("seed_1/stats")
        for i, name in enumerate(names):
            group[layout.escape(name)] = [i]
    stats = read_runs(path)[None, "seed_1"].stats
    assert stats == {name: i for i, name in enumerate(names)}


def test_groups_that_mle_logging_made_of_slashes_are_joined_to_the_name(path) -> None:
    write_as_mle_logging(path, "seed_1", {"train/loss": [0.5], "a/b/c": [1.0]}, {}, {})
    assert set(read_runs(path)[None, "seed_1"].stats) == {"train/loss", "a/b/c"}


run_names = st.sampled_from(["seed_1", "seed_2", "time", "stats", "alpha"])
columns = st.sets(st.sampled_from(["loss", "acc", "x/y", "keys", "%"]), max_size=3)
contents = st.fixed_dictionaries({"meta": columns, "stats": columns, "time": columns})


@given(
    st.dictionaries(
        st.tuples(st.none() | st.sampled_from(["config_1", "a/b"]), run_names),
        contents.filter(lambda groups: any(groups.values())),
        min_size=1,
        max_size=5,
    )
)
def test_nothing_that_is_in_the_file_is_missing_from_the_result(tmp_path_factory, runs) -> None:
    path = str(tmp_path_factory.mktemp("layout") / "log.hdf5")
    with h5py.File(path, "w") as file:
        for (config, seed), groups in runs.items():
            run = file.create_group("/".join(filter(None, (config, seed))))
            for group, names in groups.items():
                if names or seed in layout.GROUPS:  # where a name says little, the groups must
                    run.create_group(group)
                for name in names:
                    run[group][layout.escape(name)] = [1]
    result = read_runs(path)
    assert {key: {g: set(v) for g, v in run.items()} for key, run in result.items()} == runs


def test_row_numbers_are_no_meta_data_but_align_the_column(path) -> None:
    with h5py.File(path, "w") as file:
        file["seed_1/stats/" + layout.escape("eval/acc")] = [0.5, 0.75]
        file["seed_1/time/num_updates"] = np.arange(1, 6)
        file["seed_1/meta/" + layout.rows_name("stats", "eval/acc")] = np.array([1, 3])
        file["seed_1/meta/model_type"] = [b"jax"]
    run = read_runs(path)[None, "seed_1"]
    assert list(run.meta) == ["model_type"]
    assert [column.tolist() for column in run.aligned("eval/acc")] == [[2, 4], [0.5, 0.75]]


def test_state_and_start_are_attributes_of_the_run_and_no_keys(path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("seed_1/stats")
        file["seed_1"].attrs[layout.STATE_ATTR] = "crashed"
        file["seed_1"].attrs[layout.START_ATTR] = 1000.5
        file.create_group("seed_2/stats")
        file["seed_2"].attrs[layout.STATE_ATTR] = np.bytes_(b"running")
        file.create_group("seed_3/stats")
    runs = read_runs(path)
    assert [run.state for run in runs.values()] == ["crashed", "running", None]
    assert [run.start_time for run in runs.values()] == [1000.5, None, None]
    assert list(runs[None, "seed_1"]) == ["meta", "stats", "time"]


# --- meta data ------------------------------------------------------------------------------------
def test_meta_data_are_decoded_and_single_values_unwrapped(path) -> None:
    write_as_mle_logging(
        path,
        "seed_1",
        {},
        {},
        {
            "eval_id": [""],
            "experiment_dir": ["exp/größe"],
            "every_k_ckpt_list": ["a", "b"],
            "top_k_performance": [0.5, 0.25],
            "score": [0.5],
            "config_dict": ["{'lr': 0.1, 'layers': (1, 2)}"],
        },
    )
    assert read_runs(path)[None, "seed_1"].meta == {
        "eval_id": "",
        "experiment_dir": "exp/größe",
        "every_k_ckpt_list": ["a", "b"],
        "top_k_performance": [0.5, 0.25],
        "score": 0.5,
        "config_dict": {"lr": 0.1, "layers": (1, 2)},
    }


def test_a_configuration_that_was_cut_off_stays_text(path) -> None:
    cut = str({"a" * 6000: 1})[:5000]
    write_as_mle_logging(path, "seed_1", {}, {}, {"config_dict": [cut], "model_type": ["jax"]})
    assert read_runs(path)[None, "seed_1"].meta == {"config_dict": cut, "model_type": "jax"}


def test_what_a_literal_cannot_say_of_a_configuration_is_taken_from_json(path) -> None:
    with h5py.File(path, "w") as file:
        file["seed_1/meta/config_dict"] = [b"{'a': 'nan', 1: (2,)}"]
        file["seed_1/meta/config_dict"].attrs[layout.JSON_ATTR] = '{"a": NaN, "1": [2]}'
    config = read_runs(path)[None, "seed_1"].meta.config_dict
    assert np.isnan(config.pop("a"))
    assert config == {1: (2,)}


# --- reading a part -------------------------------------------------------------------------------
def test_statistics_that_are_not_asked_for_are_not_read_from_disk(path) -> None:
    with h5py.File(path, "w") as file:
        for name in ("good", "bad"):
            file.create_dataset(f"seed_1/stats/{name}", data=np.arange(1000), compression="gzip")
        file["seed_1/time/num_updates"] = np.arange(1000)
        chunk = file["seed_1/stats/bad"].id.get_chunk_info(0)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\0" * chunk.size)
    with pytest.raises(LogDamaged):
        read_runs(path)[None, "seed_1"].load()
    run = read_runs(path, only={"good", "absent"})[None, "seed_1"].load()
    assert list(run.stats) == ["good"]
    assert run.stats.good.tolist() == list(range(1000))
    assert list(run.time) == ["num_updates"]


# --- files that are not as they should be ---------------------------------------------------------
def test_a_missing_file_is_not_found(path) -> None:
    with pytest.raises(LogNotFound, match="no such file"):
        read_runs(path)


@pytest.mark.parametrize("keep", [0, 100, 2000, -1])
def test_a_truncated_file_is_damaged_and_named(path, keep) -> None:
    write(path, {"seed_1/stats/x": np.arange(1000)})
    with open(path, "r+b") as file:
        file.truncate(keep % os.path.getsize(path))
    with pytest.raises(LogDamaged) as caught:
        read_runs(path)
    assert caught.value.path == path
    assert "restore it" in str(caught.value)


def test_a_file_of_something_else_is_damaged(path) -> None:
    write(path, {"images": np.zeros(3), "group/of/others": np.zeros(3)})
    with pytest.raises(LogDamaged, match="without a run"):
        read_runs(path)
    with open(path, "wb") as file:
        file.write(b"no HDF5 at all" * 100)
    with pytest.raises(LogDamaged, match="signature"):
        read_runs(path)


def test_a_folder_with_the_name_of_a_log_is_to_be_moved_away(tmp_path) -> None:
    with pytest.raises(LogDamaged, match="move it away"):
        read_runs(str(tmp_path))


def test_a_layout_of_a_newer_release_is_refused_with_what_to_do(path) -> None:
    write(path, {"seed_1/stats/x": [1]})
    with h5py.File(path, "r+") as file:
        file["seed_1"].attrs[layout.FORMAT_ATTR] = layout.FILE_FORMAT
    assert read_runs(path)[None, "seed_1"].stats.x.tolist() == [1]
    with h5py.File(path, "r+") as file:
        file["seed_1"].attrs[layout.FORMAT_ATTR] = layout.FILE_FORMAT + 1
    with pytest.raises(LogDamaged, match="newer release"):
        read_runs(path)


def test_a_file_that_a_network_file_system_replaced_is_gone_and_not_damaged(
    path, monkeypatch
) -> None:
    write(path, {"seed_1/stats/x": [1]})

    def stale(*_args: object, **_kwargs: object) -> None:
        raise OSError("Can't synchronously read data (error message = 'Stale file handle')")

    monkeypatch.setattr("mle_client.reader.attribute", stale)
    with pytest.raises(LogNotFound, match="replaced"):
        read_runs(path)


# --- handles and locks ----------------------------------------------------------------------------
def test_files_are_closed_whether_reading_went_well_or_not(tmp_path, path) -> None:
    write(path, {"seed_1/stats/x": np.arange(10), "seed_1/meta/a": [b"b"]})
    foreign = str(tmp_path / "foreign.hdf5")
    write(foreign, {"images": np.zeros(3)})
    read_runs(path)
    with pytest.raises(LogDamaged) as caught:
        read_runs(foreign)
    assert caught.value.__traceback__ is not None  # holds what the failed call held
    kinds = h5f.OBJ_FILE | h5f.OBJ_GROUP | h5f.OBJ_DATASET | h5f.OBJ_ATTR
    assert h5f.get_obj_count(h5f.OBJ_ALL, kinds) == 0


def test_a_lock_of_another_program_is_no_obstacle(path) -> None:
    write(path, {"seed_1/stats/x": [1]})
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert read_runs(path)[None, "seed_1"].stats.x.tolist() == [1]


@pytest.mark.parametrize("options", [{}, {"swmr": True}, {"locking": False}])
def test_a_file_that_is_open_in_this_process_already_can_be_read(path, options) -> None:
    write(path, {"seed_1/stats/x": [1]})
    with h5py.File(path, "r", **options) as file:
        assert read_runs(path)[None, "seed_1"].stats.x.tolist() == [1]
        assert file["seed_1/stats/x"][0] == 1  # the other handle is still good
