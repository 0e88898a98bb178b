"""TensorBoard's view of a run: every tick once and in its place, whatever was killed between."""

from __future__ import annotations

import itertools
import os
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import layout, tick_layout, tick_writers, ticks, wire
from mle_client import messages as m
from mle_client.errors import RunRefused
from mle_client.histograms import histogram, to_plain
from mle_client.weights import step_of
from mle_daemon import tboard
from mle_daemon.tboard import EventFiles, events_of, histograms_at
from tests import event_file_reader as reader
from tests.strategies import tick_sequences

START = 1_700_000_000.5
Tick = tuple[Mapping[str, Any], Mapping[str, Any]]


def blocks_of(*logged: Tick) -> list[wire.Block]:
    """The blocks of ticks that one producer logged, half a second apart."""
    schemas: dict[Any, m.Schema] = {}
    stream = b""
    for number, (clock, stats) in enumerate(logged):
        tick = ticks.describe(clock, stats)
        key = tick.clock, tick.stats
        if key not in schemas:
            schemas[key] = m.Schema(len(schemas), *key)
            stream += wire.encode_record(schemas[key])
        fixed = tick_layout.has_fixed_layout(schemas[key])
        pack = tick_writers.pack_fixed if fixed else wire.encode_text_tick
        stream += pack(schemas[key], START + number / 2, tick.values)
    return [r for r in wire.StreamDecoder().decode(stream) if isinstance(r, wire.Block)]


def scalars_of(*logged: Tick, first_row: int = 0, check: bool = True) -> list[reader.Seen]:
    data = b"".join(events_of(blocks_of(*logged), first_row))
    return reader.read_events(data, check=check)


def png(width: int, height: int) -> bytes:
    """A black picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(width)) * height)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def run_at(directory: Path, **changes: Any) -> m.Run:
    """A run that logs to a folder."""
    settings: dict[str, Any] = {
        "run_id": m.RunId(bytes(range(16))),
        "directory": str(directory),
        "experiment_dir": str(directory),
        "seed_id": "seed_0",
        "eval_id": "",
        "model_type": "numpy",
        "start_time": START,
        "config_name": "",
        "config_file": b"",
        "config_text": "",
        "config_json": "",
        "num_seeds": None,
        "overwrite": False,
        "reload": False,
        "policy": {},
        "kept": {},
        "tboard": True,
        "wandb": {},
        "forked": False,
        "process": m.Process(1, "box", "7", "boot"),
    }
    return m.Run(**{**settings, **changes})


@pytest.fixture
def files(root: Path) -> EventFiles:
    return EventFiles(str(root))


@pytest.fixture
def run(root: Path) -> m.Run:
    (root / "exp").mkdir()
    return run_at(root / "exp")


def event_file(run: m.Run, seed_id: str = "seed_0") -> Path:
    """The one event file of a run."""
    (path,) = Path(run.directory, "tboards", f"tboard_{seed_id}").iterdir()
    return path


def epochs(*numbers: int) -> bytes:
    """Events of some epochs."""
    return b"".join(
        events_of(blocks_of(*(({"num_epochs": n}, {"loss": n / 2}) for n in numbers)), 0)
    )


def epochs_in(path: Path) -> list[int]:
    return [seen.step for seen in reader.read(path.read_bytes())]


# --- events ---------------------------------------------------------------------------------------
def test_a_tick_becomes_its_numbers_at_the_users_first_clock() -> None:
    seen = scalars_of(
        ({"num_epochs": 3, "num_steps": 70}, {"loss": 0.1, "hits": 4, "ok": True}),
        ({"num_epochs": 4, "num_steps": 90}, {"loss": 0.2, "hits": 5, "ok": False}),
    )
    assert seen == [
        (START, 3, "performance/loss", float(np.float32(0.1))),
        (START, 3, "performance/hits", 4.0),
        (START, 3, "performance/ok", 1.0),
        (START + 0.5, 4, "performance/loss", float(np.float32(0.2))),
        (START + 0.5, 4, "performance/hits", 5.0),
        (START + 0.5, 4, "performance/ok", 0.0),
    ]


def test_without_a_clock_of_the_users_updates_are_numbered_over_the_run() -> None:
    assert [seen.step for seen in scalars_of(*[({}, {"a": 1})] * 3, first_row=40)] == [41, 42, 43]


def test_a_clock_that_every_tick_has_is_no_clock_of_the_users() -> None:
    """Our client sends none; another one may."""
    fields = m.Field("num_updates", m.INT), m.Field("e", m.INT)
    schema = m.Schema(0, fields, (m.Field("a", m.INT),))
    stream = wire.encode_record(schema) + tick_writers.pack_fixed(schema, START, [90, 5, 1])
    blocks = [r for r in wire.StreamDecoder().decode(stream) if isinstance(r, wire.Block)]
    (seen,) = reader.read_events(b"".join(events_of(blocks, 0)))
    assert seen.step == 5


def test_text_is_left_out_and_a_tick_of_text_alone_is_no_event() -> None:
    seen = scalars_of(({"e": 1}, {"note": "x", "a": 1.0}), ({"e": 2}, {"note": "x"}))
    assert [(s.step, s.tag) for s in seen] == [(1, "performance/a")]


def test_ticks_without_numbers_take_no_memory() -> None:
    blocks = blocks_of(({"step": 1}, {}), ({"step": 2}, {"note": "hello"}))
    tracemalloc.start()
    try:
        assert list(events_of(blocks, 0)) == [b""]
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_arrays_are_shown_by_their_mean() -> None:
    values = [np.array([1, 2, 6], np.uint8), np.full((2, 2), 60_000, np.float16)]
    seen = scalars_of(({"e": 1}, {"a": values[0], "b": values[1], "empty": np.empty(0)}))
    assert [s.value for s in seen[:2]] == [3.0, float(np.float16(60_000))]
    assert np.isnan(seen[2].value)


def test_nan_and_infinities_are_kept_and_too_large_numbers_become_infinite() -> None:
    seen = scalars_of(({"e": 1}, {"a": float("nan"), "b": -float("inf"), "c": 1e300}))
    assert np.isnan(seen[0].value)
    assert [s.value for s in seen[1:]] == [-float("inf"), float("inf")]


def test_ticks_of_several_schemas_keep_their_order() -> None:
    logged: list[Tick] = [
        ({"e": n}, {"train": n} if n % 3 else {"train": n, "test": -n}) for n in range(200)
    ]
    seen = scalars_of(*logged)
    assert [s.step for s in seen if s.tag == "performance/train"] == list(range(200))
    assert [s.step for s in seen] == sorted(s.step for s in seen)
    assert [s.value for s in seen if s.tag == "performance/test"] == [-n for n in range(0, 200, 3)]


@given(tick_sequences(max_ticks=6))
def test_every_number_of_every_tick_is_an_event_where_its_clock_is(logged: list[Tick]) -> None:
    expected = []
    for number, (clock, stats) in enumerate(logged):
        for name, value in stats.items():
            if not isinstance(value, str):
                expected.append((step_of(clock, 8 + number), f"performance/{name}"))
    seen = scalars_of(*logged, first_row=7, check=False)
    assert [(s.step, s.tag) for s in seen] == expected


@given(st.floats(), st.integers(1, 100))
def test_client_and_daemon_say_the_same_of_a_clock(clock: float, row: int) -> None:
    (seen,) = scalars_of(({"c": clock}, {"a": 1}), first_row=row - 1)
    assert seen.step == step_of({"c": clock}, row)


def test_events_come_in_pieces_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tboard, "_PIECE_BYTES", 10_000)
    logged: list[Tick] = [({"e": n}, {"a": n, "b": n} if n % 2 else {"a": n}) for n in range(900)]
    pieces = list(events_of(blocks_of(*logged), 0))
    assert len(pieces) > 5
    assert max(map(len, pieces)) <= 10_000
    steps = [s.step for s in reader.read_events(b"".join(pieces)) if s.tag == "performance/a"]
    assert steps == list(range(900))


def test_histograms_and_images_follow_the_scalars() -> None:
    spread = histogram([1.0, 2.0, 4.0])
    record = m.Histograms(START, 5, {"weights/w": to_plain(spread)})
    picture = png(3, 2)
    data = b"".join(
        events_of(
            blocks_of(({"e": 1}, {"a": 1})), 0, histograms_at(record), [(START, 5, "plot", picture)]
        )
    )
    scalar, weights, plot = reader.read_events(data)
    assert scalar.tag == "performance/a"
    assert (weights.seconds, weights.step, weights.tag) == (START, 5, "weights/w")
    assert [weights.value[n] for n in range(1, 6)] == [1.0, 4.0, 3.0, 7.0, 21.0]
    assert weights.value[6] == np.array(spread.limits).tobytes()
    assert weights.value[7] == np.array(spread.counts).tobytes()
    assert (plot.tag, plot.value) == ("plot", {1: 2, 2: 3, 4: picture})


def test_an_image_that_is_no_png_is_left_out() -> None:
    assert list(events_of([], 0, [], [(START, 5, "plot", b"<svg/>")])) == []


def test_a_record_of_malformed_histograms_is_refused() -> None:
    with pytest.raises(ValueError, match="malformed"):
        histograms_at(m.Histograms(START, 5, {"weights/w": {}}))


def test_keys_that_alternate_take_a_few_calls_a_scalar() -> None:
    alternating: list[Tick] = [
        ({"e": n}, {"a": n, "b": n, "c": n} if n % 2 else {"a": n}) for n in range(5_000)
    ]
    blocks = blocks_of(*alternating)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        events = sum(1 for _ in events_of(blocks, 0))
    finally:
        sys.setprofile(None)
    assert events > 0
    assert calls < 7 * 10_000  # as many scalars


# --- the file -------------------------------------------------------------------------------------
def test_a_file_is_begun_and_appended_to(files: EventFiles, run: m.Run, root: Path) -> None:
    length = files.write(run, "seed_0", 0, [epochs(1, 2)])
    path = event_file(run)
    assert path.name == "events.out.tfevents.1700000000.box.00010203.mle"
    assert path.stat().st_size == length

    assert files.write(run, "seed_0", length, [epochs(3), epochs(4)]) == path.stat().st_size
    assert epochs_in(path) == [1, 2, 3, 4]
    assert os.listdir(layout.state_path(str(root), layout.STAGING_DIR)) == []


def test_the_seed_under_which_a_run_is_stored_names_the_folder(
    files: EventFiles, run: m.Run
) -> None:
    files.write(run, "seed_0-2", 0, [epochs(1)])
    assert epochs_in(event_file(run, "seed_0-2")) == [1]


@pytest.mark.parametrize("torn", [0, 1, 15, 40])
@pytest.mark.parametrize("again", [[3], [3, 4], [3, 4, 5]])
def test_what_a_killed_daemon_wrote_and_did_not_publish_is_written_once(
    files: EventFiles, run: m.Run, torn: int, again: list[int]
) -> None:
    published = files.write(run, "seed_0", 0, [epochs(1, 2)])
    files.write(run, "seed_0", published, [epochs(3, 4)])  # killed before the log was published
    path = event_file(run)
    os.truncate(path, path.stat().st_size - torn)

    files.write(run, "seed_0", published, [epochs(*again)])
    assert epochs_in(path) == [1, 2, *again]


def test_a_first_publication_that_was_not_finished_is_begun_again(
    files: EventFiles, run: m.Run
) -> None:
    files.write(run, "seed_0", 0, [epochs(1, 2)])
    files.write(run, "seed_0", 0, [epochs(1)])
    assert epochs_in(event_file(run)) == [1]


@pytest.mark.parametrize("left", [0, 1, 11, 12, 39])
def test_where_a_file_was_cut_short_it_goes_on_behind_its_last_whole_record(
    files: EventFiles, run: m.Run, left: int
) -> None:
    begun = files.write(run, "seed_0", 0, [])
    first = files.write(run, "seed_0", begun, [epochs(1)])
    published = files.write(run, "seed_0", first, [epochs(2)])
    path = event_file(run)
    for size, expected in ((first + left, [1, 3]), (left, [3])):
        os.truncate(path, size)
        files.write(run, "seed_0", published, [epochs(3)])
        assert epochs_in(path) == expected


def test_a_file_that_was_removed_is_begun_anew(files: EventFiles, run: m.Run) -> None:
    published = files.write(run, "seed_0", 0, [epochs(1)])
    event_file(run).unlink()
    files.write(run, "seed_0", published, [epochs(2)])
    assert epochs_in(event_file(run)) == [2]


@pytest.mark.parametrize("begun", [False, True])
def test_what_is_written_is_synced_before_it_is_reported(
    files: EventFiles, run: m.Run, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    offset = files.write(run, "seed_0", 0, [epochs(1)]) if begun else 0
    synced: list[int] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(os.fstat(fd).st_size)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    assert files.write(run, "seed_0", offset, [epochs(2)]) in synced


def test_a_write_that_fails_is_tried_again_with_the_same_offset(
    files: EventFiles, run: m.Run
) -> None:
    def failing() -> Iterator[bytes]:
        yield epochs(2)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.write(run, "seed_0", 0, failing())
    assert list(Path(run.directory, "tboards", "tboard_seed_0").iterdir()) == []
    published = files.write(run, "seed_0", 0, [epochs(1)])
    with pytest.raises(OSError, match="No space"):
        files.write(run, "seed_0", published, failing())
    files.write(run, "seed_0", published, [epochs(2)])
    assert epochs_in(event_file(run)) == [1, 2]


def test_no_file_stays_open(files: EventFiles, run: m.Run) -> None:
    before = len(os.listdir("/proc/self/fd"))
    offset = 0
    for number in range(20):
        offset = files.write(run, "seed_0", offset, [epochs(number)])
    assert len(os.listdir("/proc/self/fd")) == before


# --- where it may lie -----------------------------------------------------------------------------
@pytest.mark.parametrize("place", ["tboards", "tboards/tboard_seed_0"])
def test_a_link_out_of_the_runs_folder_is_refused(
    files: EventFiles, run: m.Run, tmp_path: Path, place: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = Path(run.directory, place)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    for call in (lambda: files.write(run, "seed_0", 0, []), lambda: files.begin(run, "seed_0")):
        with pytest.raises(RunRefused, match="leads out of"):
            call()
    assert list(outside.iterdir()) == []


def test_an_event_file_that_became_a_link_is_not_written_through(
    files: EventFiles, run: m.Run
) -> None:
    published = files.write(run, "seed_0", 0, [epochs(1)])
    log = Path(run.directory, "log.hdf5")
    log.write_bytes(b"x" * 2 * published)
    path = event_file(run)
    path.unlink()
    path.symlink_to(log)
    with pytest.raises(OSError, match="symbolic links"):
        files.write(run, "seed_0", published, [epochs(2)])
    assert log.read_bytes() == b"x" * 2 * published


@pytest.mark.parametrize(
    "change",
    [
        {"process": m.Process(1, "a/b", "7", "boot")},
        {"process": m.Process(1, "../x", "7", "boot")},
        {"process": m.Process(1, "h" * 200, "7", "boot")},
        {"start_time": 1e300},
    ],
)
def test_names_that_are_no_file_names_are_refused(
    files: EventFiles, root: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(RunRefused, match="cannot be the name"):
        files.write(run_at(root, **change), "seed_0", 0, [])
    with pytest.raises(RunRefused, match="cannot be the name"):
        files.write(run_at(root), "../seed", 0, [])


# --- earlier runs of the seed ---------------------------------------------------------------------
def earlier_and_later(files: EventFiles, run: m.Run, **changes: Any) -> m.Run:
    """A second run of the seed, begun in the same second as the first."""
    files.write(run, "seed_0", 0, [epochs(1)])
    files.write(run, "seed_1", 0, [epochs(1)])
    later = run_at(Path(run.directory), run_id=m.RunId(b"\xff" * 16), **changes)
    files.begin(later, "seed_0")
    files.write(later, "seed_0", 0, [epochs(9)])
    assert epochs_in(event_file(run, "seed_1")) == [1]  # of the other seed nothing was touched
    return later


def test_a_run_that_overwrites_deletes_the_events_before_it(
    files: EventFiles, run: m.Run, root: Path
) -> None:
    later = earlier_and_later(files, run, overwrite=True)
    assert epochs_in(event_file(later)) == [9]
    assert not Path(layout.state_path(str(root), layout.REPLACED_DIR)).exists()


def test_a_run_that_takes_a_name_puts_the_events_before_it_aside(
    files: EventFiles, run: m.Run, root: Path
) -> None:
    later = earlier_and_later(files, run)
    assert epochs_in(event_file(later)) == [9]
    folder = Path(layout.state_path(str(root), layout.REPLACED_DIR, "tboard_seed_0"))
    (kept,) = folder.iterdir()
    assert epochs_in(kept) == [1]


def test_a_run_that_continues_leaves_the_events_before_it(files: EventFiles, run: m.Run) -> None:
    later = earlier_and_later(files, run, reload=True)
    folder = Path(later.directory, "tboards", "tboard_seed_0")
    assert sorted(epochs_in(path) for path in folder.iterdir()) == [[1], [9]]


def test_a_run_that_is_opened_again_keeps_its_own_events(files: EventFiles, run: m.Run) -> None:
    published = files.write(run, "seed_0", 0, [epochs(1)])
    beside = event_file(run).with_name("notes.txt")
    beside.write_text("mine")
    files.begin(run, "seed_0")
    files.write(run, "seed_0", published, [epochs(2)])
    assert beside.read_text() == "mine"
    beside.unlink()
    assert epochs_in(event_file(run)) == [1, 2]


# --- TensorBoard itself ---------------------------------------------------------------------------
def accumulated(folder: Path) -> Any:
    """A folder as TensorBoard's own reader sees it."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    everything = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}
    return accumulator.EventAccumulator(str(folder), everything).Reload()


def write_run(files: EventFiles, run: m.Run, steps: Sequence[int]) -> dict[int, Any]:
    """A run in several publications, one of which is written twice.  Returns: its spreads."""
    offset, spreads = 0, {}
    for row, step in enumerate(steps):
        spread = spreads[step] = histogram(np.arange(step + 2.0))
        events = list(
            events_of(
                blocks_of(({"num_epochs": step}, {"loss": step / 3, "acc": -step})),
                row,
                [(START + row, step, "weights/w", spread)],
                [(START + row, step, "plot", png(4 + row, 3))],
            )
        )
        if row == 1:
            files.write(run, "seed_0", offset, events)
        offset = files.write(run, "seed_0", offset, events)
    return spreads


def test_tensorboard_reads_what_was_logged(files: EventFiles, run: m.Run) -> None:
    steps = [1, 5, 200, 70_000]
    spreads = write_run(files, run, steps)
    seen = accumulated(event_file(run).parent)

    tags = seen.Tags()
    assert tags["scalars"] == ["performance/loss", "performance/acc"]
    assert tags["histograms"] == ["weights/w"]
    assert tags["images"] == ["plot"]
    assert seen.FirstEventTimestamp() == START

    losses = seen.Scalars("performance/loss")
    assert [s.step for s in losses] == steps
    assert [s.value for s in losses] == [float(np.float32(step / 3)) for step in steps]
    assert [s.wall_time for s in losses] == [START] * 4  # each of them is its batch's first tick
    for found in seen.Histograms("weights/w"):
        value, spread = found.histogram_value, spreads[found.step]
        assert (value.min, value.max, value.num) == (spread.min, spread.max, spread.num)
        assert (value.sum, value.sum_squares) == (spread.sum, spread.sum_squares)
        assert tuple(value.bucket_limit) == spread.limits
        assert tuple(value.bucket) == spread.counts
    images = seen.Images("plot")
    assert [(i.width, i.height, i.step) for i in images] == [
        (4 + row, 3, step) for row, step in enumerate(steps)
    ]
    assert images[0].encoded_image_string == png(4, 3)


def test_tensorboards_pages_show_what_was_logged(files: EventFiles, run: m.Run) -> None:
    """The web pages read through another loader, which converts scalars and histograms."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.util import tensor_util

    write_run(files, run, [1, 2, 3])
    files.write(run, "seed_1", 0, [b"".join(events_of([], 0, [(START, 1, "w", histogram([]))]))])
    shown: dict[str, list[Any]] = {}
    for seed in ("seed_0", "seed_1"):
        loader = event_file_loader.EventFileLoader(str(event_file(run, seed)))
        for value in itertools.chain.from_iterable(e.summary.value for e in loader.Load()):
            kind = value.metadata.plugin_data.plugin_name
            shown.setdefault(kind, []).append(tensor_util.make_ndarray(value.tensor))
    assert [float(v) for v in shown["scalars"][::2]] == [
        float(np.float32(n / 3)) for n in (1, 2, 3)
    ]
    assert shown["histograms"][0][:, 2].sum() == 3
    assert shown["histograms"][0][0, 0] == 0.0
    assert shown["histograms"][0][-1, 1] == 2.0
    assert shown["histograms"][3].shape == (0, 3)
    assert shown["images"][0][2] == png(4, 3)
