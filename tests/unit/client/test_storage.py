"""What a damaged header says is not believed: reading ends in values, or in `LogDamaged`.

How sound files are read is in `test_stored` and `test_reader`.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mle_client.errors import LogDamaged
from mle_client.reader import read_runs
from tests.unit.daemon.test_store import Log, some_blocks

ROWS = 12_345

# Spoils one bit of a log at a time, every other time in or after a number of rows, and loads it in
# little memory.  Arguments: the log, how many rows it has, how often.  Prints what ended otherwise.
SPOIL = """
import random, re, resource, sys
from mle_client import reader
from mle_client.errors import LogDamaged, LogNotFound

path, rows, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
whole = open(path, "rb").read()
sizes = [found.start() for found in re.finditer(re.escape(rows.to_bytes(8, "little")), whole)]
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (256 << 20),) * 2)
draw = random.Random(7)
for number in range(count):
    reader.SMALL_BYTES = draw.choice([-1, 1 << 22])
    at = draw.randrange(len(whole)) if number % 2 else draw.choice(sizes) + draw.randrange(64)
    spoilt = bytearray(whole)
    spoilt[at] ^= 1 << draw.randrange(8)
    with open(path, "wb") as file:
        file.write(spoilt)
    try:
        for run in reader.read_runs(path).values():
            run.load()
    except (LogDamaged, LogNotFound):
        pass
    except BaseException as error:
        print(number, at, spoilt[at], repr(error)[:200])
"""


def write_ours(path: Path) -> None:
    """A log while its run goes on."""
    log = Log(path.parent)
    log.open()
    log.publish(some_blocks(40))
    os.replace(log.path, path)


def write_theirs(path: Path) -> None:
    """A log with the types and the compression of mle-logging 0.0.6."""
    with h5py.File(path, "w") as file:
        for name, data, dtype in (
            ("meta/model_type", [b"torch"], "S5000"),
            ("stats/loss", np.arange(6), "float32"),
            ("stats/vector", np.ones((6, 3)), "float32"),
            ("time/num_updates", np.arange(1, 7), "float32"),
            ("time/time", [b"26-01-01/00:00"] * 6, "S5000"),
        ):
            options: Any = {"compression": "gzip", "compression_opts": 4, "dtype": dtype}
            file.create_dataset(f"seed_1/{name}", data=data, **options)


@pytest.mark.parametrize(("write", "rows"), [(write_ours, 40), (write_theirs, 6)])
def test_a_bit_that_is_not_what_it_was_ends_in_values_or_in_damage(
    tmp_path: Path, write: Any, rows: int
) -> None:
    path = tmp_path / "log_seed_1.hdf5"
    write(path)
    done = subprocess.run(
        [sys.executable, "-c", SPOIL, str(path), str(rows), "400"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "options",
    [{}, {"chunks": (1000,)}, {"chunks": (1000,), "compression": "gzip", "shuffle": True}],
    ids=["in one piece", "in chunks", "compressed"],
)
@pytest.mark.parametrize("rows", [ROWS + 2**40, ROWS + 2**24], ids=["absurd", "many"])
def test_no_room_is_made_for_more_rows_than_a_file_can_hold(
    tmp_path: Path, options: dict[str, Any], rows: int
) -> None:
    path = tmp_path / "log_seed_1.hdf5"
    with h5py.File(path, "w") as file:
        loss = np.random.default_rng(0).random(ROWS)
        file.create_dataset("seed_1/stats/loss", data=loss, **options)
    whole = path.read_bytes()
    assert struct.pack("<Q", ROWS) in whole
    path.write_bytes(whole.replace(struct.pack("<Q", ROWS), struct.pack("<Q", rows)))

    with pytest.raises(LogDamaged, match="restore it from a copy"):
        read_runs(str(path))


def test_what_compresses_best_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log_seed_1.hdf5"
    zeros = np.zeros(2**21)
    with h5py.File(path, "w") as file:
        options: Any = {"compression": 9, "chunks": (2**20,)}
        stored = file.create_dataset("seed_1/stats/zeros", data=zeros, **options)
        assert stored.id.get_storage_size() < zeros.nbytes / 1000
    assert read_runs(str(path))[None, "seed_1"].stats.zeros.size == zeros.size
