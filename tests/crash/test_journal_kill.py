"""A process that writes the journal is killed at any instant: what it was told to be safe is there.

Each round begins where the last one's records end, in the same folder, as a restarted daemon does.
The seed is printed; MLE_CRASH_SEED=… repeats a run as far as a schedule of kills can be repeated.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import time
from pathlib import Path
from typing import Final

import pytest

from mle_daemon.group_sync import GroupSync
from mle_daemon.journal import Journal
from mle_daemon.journal_format import Verdict
from mle_daemon.journal_reader import list_segments, read_segments

KILLS: Final = 40
LONGEST_LIFE_S: Final = 0.06
_NUMBER: Final = struct.Struct("<Q")

pytestmark = pytest.mark.crash


def record(number: int) -> list[bytes]:
    """The record of a number, in pieces: mostly short, now and then long enough to be cut."""
    size = 1_000_000 if number % 97 == 0 else number * 7919 % 300
    return [_NUMBER.pack(number), number.to_bytes(4, "little") * (size // 4)]


def write(folder: Path, first: int, seed: int, acknowledged: mmap.mmap) -> None:
    """Append records one after another, and note after each append how many are safe."""
    rng = random.Random(seed)
    journal = Journal(str(folder))
    GroupSync(journal, lambda *_: None, 0.005)
    number = first
    while True:
        count = rng.randint(1, 20)
        journal.append([record(number + i) for i in range(count)])
        number += count
        _NUMBER.pack_into(acknowledged, 0, number)
        if rng.random() < 0.02:
            journal.rotate([record(number)])
            number += 1
            _NUMBER.pack_into(acknowledged, 0, number)


def fork_writer(folder: Path, first: int, seed: int, acknowledged: mmap.mmap) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            write(folder, first, seed, acknowledged)
        finally:
            os._exit(1)
    return pid


def check(folder: Path, first: int) -> tuple[int, list[Verdict]]:
    """Assert that the records are `first`, `first` + 1, …; return how many, and the verdicts."""
    number = first
    verdicts: list[Verdict] = []
    for segment in read_segments(str(folder)):
        verdicts.append(segment.scan.verdict)
        for payload in segment.payloads():
            assert bytes(payload) == b"".join(record(number))
            number += 1
    return number, verdicts


def test_every_acknowledged_record_is_there_once_and_in_order(tmp_path: Path) -> None:
    seed = int(os.environ.get("MLE_CRASH_SEED", random.randrange(2**32)))
    print(f"MLE_CRASH_SEED={seed}")
    rng = random.Random(seed)
    kept = total = torn = 0
    for _ in range(KILLS):
        acknowledged = mmap.mmap(-1, _NUMBER.size)  # shared with the child; survives its death
        _NUMBER.pack_into(acknowledged, 0, total)
        pid = fork_writer(tmp_path, total, rng.randrange(2**32), acknowledged)
        time.sleep(rng.uniform(0, LONGEST_LIFE_S))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"

        (safe,) = _NUMBER.unpack(acknowledged[:])
        found, verdicts = check(tmp_path, kept)
        assert found >= safe
        assert set(verdicts) <= {"clean", "torn"}
        total = found
        torn += verdicts.count("torn")
        if rng.random() < 0.5:  # as after a publication: all segments go
            for file in list_segments(str(tmp_path)):
                os.unlink(file.path)
            kept = total
    print(f"{total} records, {torn} times a torn end was seen")
    assert total > KILLS  # otherwise it was killed before it wrote anything
