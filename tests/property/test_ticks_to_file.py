"""Any ticks that may be logged come back equal from the file, by way of the real ring and store."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mle_client import messages as m
from mle_client import wire
from mle_client.layout import OWN_CLOCKS
from mle_client.reader import read_runs
from mle_client.ring import Ring
from mle_daemon import events as e
from mle_daemon.store import Store
from tests.strategies import tick_sequences
from tests.unit.client.test_producer import Stage
from tests.unit.client.test_wire import RUN

Tick = tuple[dict[str, Any], dict[str, Any]]


def streamed(folder: Path, sequence: list[Tick]) -> list[wire.Block]:
    """The blocks of a real producer's stream."""
    stage = Stage(folder)
    for clock, stats in sequence:
        stage.update(clock, stats)
    blocks = [record for record in stage.records() if isinstance(record, wire.Block)]
    ring: Ring = stage.ring
    ring.delete()
    return blocks


def published(root: Path, blocks: list[wire.Block], cuts: list[int], sealed: bool) -> str:
    """The path of a log file that was published in pieces."""
    store = Store(str(root))
    directory = root / "run"
    run = m.Run(**{**{f: getattr(RUN, f) for f in RUN.__slots__}, "directory": str(directory)})
    path = str(directory / "logs" / "log_seed_1.hdf5")
    file, _ = store.open_run(run, "seed_1", path)
    edges = sorted({0, *(cut % (len(blocks) + 1) for cut in cuts), len(blocks)})
    for start, end in itertools.pairwise(edges):
        job = e.PublishRun(
            run, "seed_1", path, file, tuple(blocks[start:end]), 0, {"00" * 16: end}, "running"
        )
        file, problems = store.publish(job)
        assert problems == ()
    if sealed and file is not None:
        store.seal(path, file)
    return path


@given(tick_sequences(), st.lists(st.integers(0, 100), max_size=3), st.booleans())
def test_any_ticks_come_back_equal(sequence: list[Tick], cuts: list[int], sealed: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="mle-") as folder:
        root = Path(folder)
        blocks = streamed(root, sequence)
        path = published(root, blocks, cuts, sealed)
        if not sequence:
            assert not Path(path).exists()
            return
        run = read_runs(path)[None, "seed_1"]
    assert run.time["num_updates"].tolist() == list(range(1, len(sequence) + 1))
    for group, ticks in (
        ("time", [clock for clock, _ in sequence]),
        ("stats", [stats for _, stats in sequence]),
    ):
        names = {name for tick in ticks for name in tick if (group, name) not in _OWN}
        assert set(run[group]) - set(OWN_CLOCKS if group == "time" else ()) == names
        for name in names:
            rows = [row for row, tick in enumerate(ticks) if name in tick]
            assert run.row_numbers(group, name).tolist() == rows
            for value, row in zip(run[group][name], rows, strict=True):
                assert_same(value, ticks[row][name])


_OWN = {("time", name) for name in OWN_CLOCKS}


def assert_same(stored: Any, logged: Any) -> None:
    """Equal, NaN included; numbers exactly, whatever their types."""
    if isinstance(logged, str):
        assert stored == logged
        assert type(stored) is str
        return
    stored, logged = np.asarray(stored), np.asarray(logged)
    assert stored.shape == logged.shape
    for a, b in zip(stored.ravel(), logged.ravel(), strict=True):
        a_item, b_item = _exact(a), _exact(b)
        assert a_item == b_item or (a_item != a_item and b_item != b_item)


def _exact(value: Any) -> Any:
    """A Python number of the same value: ints and floats compare exactly there."""
    if isinstance(value, np.longdouble) and value == np.floor(value) and np.isfinite(value):
        return int(value)
    item = value.item()
    return float(item) if isinstance(item, np.longdouble) else item
