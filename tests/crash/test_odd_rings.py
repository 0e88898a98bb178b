"""What lies among the rings and is none harms no daemon: it goes on, and its log names the file."""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from mle_client import MLELogger, load_log, ring, runtime, wire
from tests.daemon_rig import Trainer, make_run
from tests.integration import daemons

pytestmark = pytest.mark.crash


def dead_ring(root: Path) -> Path:
    """A folder as a killed process leaves it, without a segment."""
    folder = Path(runtime.ring_dir(str(root))) / secrets.token_hex(16)
    folder.mkdir(mode=0o700)
    (folder / "owner").write_text("{}")
    return folder


def segment(base: int, content: bytes) -> bytes:
    return ring.MAGIC + struct.pack("@Q", base) + bytes(48) + content + b"\xc0" + bytes(100)


def fifo_owner(root: Path) -> Path:
    path = dead_ring(root) / "owner"
    path.unlink()
    os.mkfifo(path)
    return path.parent


def folder_owner(root: Path) -> Path:
    path = dead_ring(root) / "owner"
    path.unlink()
    path.mkdir()
    return path.parent


def linked_owner(root: Path) -> Path:
    path = dead_ring(root) / "owner"
    path.unlink()
    path.symlink_to("/dev/null")
    return path.parent


def file_as_ring(root: Path) -> Path:
    path = dead_ring(root)
    (path / "owner").unlink()
    path.rmdir()
    path.write_text("no folder")
    return path


def linked_ring(root: Path) -> Path:
    path = dead_ring(root)
    away = path.rename(root / "away")
    path.symlink_to(away)
    return path


def fifo_segment(root: Path) -> Path:
    path = dead_ring(root) / "00000001.seg"
    os.mkfifo(path)
    return path


def linked_segment(root: Path) -> Path:
    path = dead_ring(root) / "00000001.seg"
    path.symlink_to("/dev/zero")
    return path


def folder_segment(root: Path) -> Path:
    path = dead_ring(root) / "00000001.seg"
    path.mkdir()
    return path


def giant_segment(root: Path) -> Path:
    path = dead_ring(root) / "00000001.seg"
    path.write_bytes(segment(0, b"\x91\xa3end"))
    os.truncate(path, 2**40)  # sparse
    return path


def garbage_segment(root: Path) -> Path:
    path = dead_ring(root) / "00000001.seg"
    path.write_bytes(segment(0, b"\x93\xa3run\x80\x01" + os.urandom(500)))
    return path.parent


def lying_segment(root: Path) -> Path:
    path = dead_ring(root) / "00000001.seg"
    run = make_run("lies", directory=str(root / "lies"))
    path.write_bytes(segment(2**64 - 1, wire.encode_record(run)))
    return path.parent


ODD: Final[tuple[Callable[[Path], Path], ...]] = (
    fifo_owner, folder_owner, linked_owner, file_as_ring, linked_ring, fifo_segment,
    linked_segment, folder_segment, giant_segment, garbage_segment, lying_segment,
)  # fmt: skip


def left_ring(root: Path) -> Path:
    """The ring of a trainer that was killed when it had logged three ticks."""
    folder = dead_ring(root)
    trainer = Trainer("left", make_run("left", directory=str(root / "left"))).log(1, 2, 3)
    (folder / "00000001.seg").write_bytes(segment(0, trainer.stream))
    return folder


def test_a_daemon_goes_on_beside_what_is_no_ring_and_names_it_once(root: Path) -> None:
    odd = [put(root) for put in ODD]
    left = left_ring(root)
    with daemons.running(root):
        log = MLELogger(str(root / "lives"), ["step"], ["loss"], seed_id=1)
        log.update({"step": 1}, {"loss": 1.0})
        assert log.close(timeout=30).delivered == 1
        said = root / ".mle" / "daemon.log"
        daemons.wait_for(lambda: all(str(path) in said.read_text() for path in odd))
        daemons.wait_for(lambda: not left.exists())
        for _ in range(3):
            load_log(str(root / "lives"))  # has the daemon look at its rings
        lines = said.read_text().splitlines()
        assert [sum(str(path) in line for line in lines) for path in odd] == [1] * len(odd)
        assert sum("refused a piece" in line for line in lines) <= 1  # of what is damaged
    assert load_log(str(root / "lives")).seed_1.time.step.tolist() == [1]
    assert load_log(str(root / "left")).seed_1.time.step.tolist() == [1, 2, 3]
