"""The doctor sees what is wrong with each thing that a root has, and nothing where all is well."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mle_client import layout, reader, runtime
from mle_client.endpoint import Endpoint, write_endpoint
from mle_client.errors import LogNotFound
from mle_client.merge import merge_config_logs
from mle_client.messages import ProducerId
from mle_client.ring import Ring
from mle_daemon.doctor import Doctor
from mle_daemon.journal import Journal
from tests.seed_logs import write_log

Found = Callable[[], dict[str, tuple[str, str]]]


@pytest.fixture
def found(root: Path) -> Found:
    """Examine the root: {what was looked at: (kind, what was found)}."""

    def examine() -> dict[str, tuple[str, str]]:
        doctor = Doctor(str(root))
        doctor.examine()
        assert len(doctor.found) == len({each.about for each in doctor.found}), doctor.found
        return {each.about: (each.kind, each.what) for each in doctor.found}

    return examine


def killed_daemon(root: Path) -> Endpoint:
    return Endpoint(
        pid=2**22 + 1, started="1", boot_id=runtime.boot_id(), host=runtime.host(),
        uid=os.geteuid(), endpoint="ipc:///x", root=str(root), version="1", daemon_id="a",
    )  # fmt: skip


def test_nothing_is_found_where_nothing_is_wrong(root: Path, found: Found) -> None:
    write_log(root / "exp", "seed_1", [1.0, 2.0])
    write_log(root / "deeper" / "exp", "seed_1", [1.0])
    merge_config_logs(root, ["exp"])  # what is in it was counted
    assert found() == {}
    doctor = Doctor(str(root))
    doctor.examine()
    assert (doctor.examined.logs, doctor.examined.runs, doctor.examined.ticks) == (3, 2, 3)


# --- roots below ----------------------------------------------------------------------------------
@pytest.mark.parametrize("left", ["journal", "killed", "nothing"])
def test_what_the_daemon_of_an_experiment_has_left_is_told(
    root: Path, found: Found, left: str
) -> None:
    below = root / "deeper" / "exp"
    journal = below / ".mle" / "journal"
    journal.mkdir(parents=True)
    if left == "journal":
        (journal / "00000001.mlej").touch()
    if left == "killed":
        write_endpoint(killed_daemon(below))
    expected = {"root": ("waiting", "its own daemon was killed, or a trainer, and left something")}
    told = {
        about: (kind, what[: len(expected["root"][1])]) for about, (kind, what) in found().items()
    }
    assert told == ({} if left == "nothing" else expected)


# --- disk and permissions -------------------------------------------------------------------------
def test_little_room_is_told(root: Path, found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert found() == {"disk": ("waiting", "3.0 MB are free")}


def test_a_root_that_cannot_be_written_to_is_told(
    root: Path, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert found() == {"permissions": ("waiting", "this user cannot write to it")}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: run the tests as root")
def test_a_folder_of_ours_that_is_another_users_is_told(root: Path, found: Found) -> None:
    (root / ".mle").mkdir()
    os.chown(root / ".mle", 61001, -1)
    kind, what = found()["permissions"]
    assert (kind, what) == ("waiting", f"{root}/.mle belongs to user 61001")


def test_a_runtime_folder_of_others_is_told(
    found: Found, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime_dir.chmod(0o777)
    kind, what = found()["permissions"]
    assert kind == "waiting"
    assert str(runtime_dir) in what


# --- daemon, journal, rings -----------------------------------------------------------------------
def test_a_daemon_that_was_killed_is_told_and_one_that_left_is_not(
    root: Path, found: Found
) -> None:
    (root / layout.STATE_DIR).mkdir()
    endpoint = killed_daemon(root)
    write_endpoint(endpoint)
    assert found() == {"daemon": ("waiting", f"the daemon (process {2**22 + 1}) was killed")}
    write_endpoint(endpoint.stopped())
    assert found() == {}


def journal_of(root: Path, *records: bytes) -> Path:
    folder = root / layout.STATE_DIR / layout.JOURNAL_DIR
    folder.mkdir(parents=True)
    journal = Journal(str(folder))
    for record in records:
        journal.append([[record]])
    journal.close()
    (path,) = folder.iterdir()
    return path


def test_a_journal_waits_for_a_daemon(root: Path, found: Found) -> None:
    size = journal_of(root, b"x" * 100).stat().st_size
    assert found() == {
        "journal": ("waiting", f"{size} B wait for a daemon to bring them into the logs")
    }


def test_a_damaged_segment_is_told_with_what_is_good_of_it(root: Path) -> None:
    path = journal_of(root, b"x" * 100, b"y" * 100, b"z" * 100)
    content = bytearray(path.read_bytes())
    content[content.index(b"yyy")] ^= 1
    path.write_bytes(content)
    doctor = Doctor(str(root))
    doctor.examine()
    damaged, waiting = doctor.found
    assert (damaged.kind, damaged.about, damaged.path) == ("damaged", "journal", str(path))
    assert "2 records around that are good" in damaged.what
    assert waiting.kind == "waiting"


def test_a_file_that_is_no_segment_is_told(root: Path, found: Found) -> None:
    path = journal_of(root)
    path.with_name("notes.mlej").write_text("hello")
    kind, what = found()["journal"]
    assert kind == "damaged"
    assert "no journal segment" in what


def ring_of(root: Path, producer: ProducerId) -> Ring:
    spill = layout.state_path(str(root), layout.SPILL_DIR, producer.hex())
    return Ring(
        os.path.join(runtime.ring_dir(str(root)), producer.hex()), spill, producer, {"pid": 1}
    )


def test_the_ring_of_a_dead_process_waits_for_a_daemon(root: Path) -> None:
    producer = ProducerId(b"p" * 16)
    pid = os.fork()
    if pid == 0:
        ring_of(root, producer)
        os._exit(0)
    os.waitpid(pid, 0)
    doctor = Doctor(str(root))
    doctor.examine()
    (finding,) = doctor.found
    assert (finding.kind, finding.about) == ("waiting", "ring")
    assert finding.what == "a process has left 0 B of records and 0 artifacts"
    assert "recover" in finding.advice
    assert doctor.examined.rings == 1
    assert os.path.isdir(finding.path)  # it looks and takes nothing


def test_the_ring_of_a_living_process_is_no_finding(root: Path, found: Found) -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        ring = ring_of(root, ProducerId(b"p" * 16))
        os.write(theirs, b"r")
        signal.pause()
        ring.delete()
    os.read(ours, 1)
    try:
        assert found() == {}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ours)
        os.close(theirs)
    assert found()["ring"][0] == "waiting"


def test_spilled_records_without_their_ring_are_told(root: Path, found: Found) -> None:
    spill = root / layout.STATE_DIR / layout.SPILL_DIR / ("ab" * 16)
    spill.mkdir(parents=True)
    assert found() == {}
    (spill / "00000002.seg").write_bytes(b"x" * 2000)
    kind, what = found()["spill"]
    assert kind == "damaged"
    assert what.startswith("2.0 kB of records")


# --- logs -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["exp/logs/log_seed_1.hdf5", "exp/logs/log.hdf5", "meta_log.hdf5"])
def test_a_damaged_log_is_named(root: Path, name: str) -> None:
    write_log(root / "good", "seed_1", [1.0])
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"no HDF5")
    doctor = Doctor(str(root))
    doctor.examine()
    (finding,) = doctor.found
    assert (finding.kind, finding.path) == ("damaged", str(root / name))
    assert doctor.examined.logs == 1


def test_a_folder_in_the_place_of_a_log_is_told(root: Path, found: Found) -> None:
    (root / "exp" / "logs" / "log_seed_1.hdf5").mkdir(parents=True)
    kind, what = found()["log"]
    assert (kind, what) == ("damaged", "it is a folder, or a device: move it away")


def test_a_log_whose_values_cannot_be_read_is_damaged(root: Path, found: Found) -> None:
    path = write_log(root / "exp", "seed_1", [float(i) for i in range(5000)])
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) - 4000)
    assert found()["log"][0] == "damaged"


@pytest.mark.parametrize("small_bytes", [0, 2**30], ids=["large", "small"])
def test_a_value_that_cannot_be_decoded_is_damage_in_large_logs_too(
    root: Path, found: Found, monkeypatch: pytest.MonkeyPatch, small_bytes: int
) -> None:
    monkeypatch.setattr(reader, "SMALL_BYTES", small_bytes)
    path = write_log(root / "exp", "seed_1", [float(i) for i in range(50_000)])
    with h5py.File(path, "a") as file:
        del file["seed_1/stats/loss"]
        column = file["seed_1/stats"].create_dataset(
            "loss", data=np.arange(50_000.0), chunks=(10_000,), compression="gzip"
        )
        chunk = column.id.get_chunk_info(3)
    assert found() == {}
    with open(path, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * 100)
    assert found()["log"][0] == "damaged"


def test_a_run_that_nobody_ended_waits_for_a_daemon(root: Path, found: Found) -> None:
    write_log(root / "exp", "seed_1", [1.0], state="running")
    kind, what = found()["log"]
    assert kind == "waiting"
    assert what.startswith("seed_1 was not ended")


def test_updates_that_were_lost_are_noted(root: Path, found: Found) -> None:
    path = write_log(root / "exp", "seed_1", [1.0])
    with h5py.File(path, "a") as file:
        file["seed_1"].attrs[layout.LOST_ATTR] = 7
    assert found() == {
        "log": ("note", "7 updates of seed_1 are missing: there was no room to keep them")
    }


def test_a_log_that_was_merged_meanwhile_is_no_finding(
    root: Path, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: str) -> Any:
        raise LogNotFound(path, "there is no such file")

    write_log(root / "exp", "seed_1", [1.0])
    monkeypatch.setattr(reader, "read_runs", gone)
    assert found() == {}


def test_logs_that_were_put_aside_are_noted(root: Path, found: Found) -> None:
    write_log(root / layout.STATE_DIR / layout.REPLACED_DIR / "exp", "seed_1", [1.0])
    kind, what = found()["leftover"]
    assert kind == "note"
    assert what.startswith("1 logs (")
