"""Looks at the rings that lie there: whose process is gone, and what it left behind.

It reads and removes files; what the records mean is for others.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mle_client import layout, runtime
from mle_client.messages import Process, ProducerId
from mle_client.remains import Remains, read_remains, take_over
from mle_client.ring import FULL_FILE, REMOVED, UNFINISHED, remove_folder
from mle_client.snapshot import LeftSnapshot, read_left

_FULL_BYTES: Final = 4096  # ours have two hundred
_LONG_S: Final = 60.0  # making a ring takes some milliseconds


@dataclass(frozen=True, slots=True)
class RingPlace:
    """Where one producer's segments lie.  Args: directory: with the owner file; spill: on disk."""

    producer: ProducerId
    directory: str
    spill: str


def find_rings(root: str) -> list[RingPlace]:
    """The rings of a root's producers, their processes alive or not."""
    places = []
    for parent in runtime.ring_dirs(root):
        for name in _names(parent):
            producer = _producer(name)
            if producer is not None:
                spill = layout.state_path(root, layout.SPILL_DIR, name)
                places.append(RingPlace(producer, os.path.join(parent, name), spill))
    return places


def full_rings(root: str) -> list[str]:
    """Why producers drop ticks now, as they say in their rings."""
    found = []
    for place in find_rings(root):
        with suppress(OSError), open(os.path.join(place.directory, FULL_FILE), "rb") as file:
            found.append(file.read(_FULL_BYTES).decode(errors="replace"))
    return found


def remove_unfinished(root: str) -> None:
    """Remove what processes have left that were killed while they made or removed a ring."""
    for parent in runtime.ring_dirs(root):
        for name in _names(parent):
            path = os.path.join(parent, name)
            if name.startswith(REMOVED) or (name.startswith(UNFINISHED) and _is_old(path)):
                shutil.rmtree(path, ignore_errors=True)


def _is_old(path: str) -> bool:
    with suppress(OSError):
        return time.time() - os.stat(path).st_mtime > _LONG_S
    return False


class AbandonedRing:
    """A ring whose process is gone, ours until it is closed."""

    def __init__(self, place: RingPlace, lock: int) -> None:
        self.place = place
        self._lock = lock

    def remains(self, on_odd: Callable[[str], None], behind: int = 0) -> Iterator[Remains]:
        """Its committed records, in stream order.  Args, Raises: as of `remains.read_remains`."""
        return read_remains(self.place.directory, self.place.spill, behind=behind, on_odd=on_odd)

    def left(self) -> list[LeftSnapshot]:
        """The artifacts that it holds."""
        snapshots = layout.SNAPSHOTS_DIR
        return read_left(
            os.path.join(self.place.directory, snapshots), os.path.join(self.place.spill, snapshots)
        )

    def remove(self) -> None:
        """Remove its files: all of it is in the journal."""
        shutil.rmtree(self.place.spill, ignore_errors=True)
        remove_folder(self.place.directory)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._lock)


def abandoned(places: list[RingPlace], on_odd: Callable[[str], None]) -> Iterator[AbandonedRing]:
    """Those of some rings whose process is gone.

    Args:
        on_odd: told of what looks like a ring and is none.
    """
    for place in places:
        try:
            lock = take_over(place.directory)
        except OSError as error:
            on_odd(f"{place.directory} is passed over, for its owner file is odd: {error}")
            continue
        if lock is not None:
            yield AbandonedRing(place, lock)


def is_gone(process: Process) -> bool:
    """Whether a process has ended, as far as that can be seen from here."""
    if not runtime.sees_processes_of(process.host, process.boot_id):
        # Another boot of this very machine: nothing of it runs any more.
        return process.host == runtime.host() and _is_earlier_boot(process.boot_id)
    return not runtime.is_running(process.pid, process.started, process.boot_id)


def _is_earlier_boot(boot_id: str) -> bool:
    ours, theirs = runtime.boot_id().partition(" ")[0], boot_id.partition(" ")[0]
    return bool(ours and theirs) and ours != theirs


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _producer(name: str) -> ProducerId | None:
    """The producer of a ring's directory name, or None where it is no ring."""
    try:
        raw = bytes.fromhex(name)
    except ValueError:
        return None
    return ProducerId(raw) if len(raw) == 16 else None
