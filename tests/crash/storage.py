"""Disks that fail: small file systems, faults that come and go, and trainers beside them.

File systems are mounted where that is allowed, and unmounted whatever the test does.  Faults are
made by a library that is loaded before the C library (`storage_faults.c`), for daemons and trainers
that are started while `Faults.environment` holds.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import h5py
import pytest

from mle_client import discovery, layout
from tests import checker

# Kinds of calls, as in the library.
WRITES, SYNCS, NAMES, LOCKS, CUTS = 1, 2, 4, 8, 16
_CONTROL: Final = struct.Struct("IiII4096s")
_FIELDS: Final = struct.Struct("IiI")
# What a disk refuses with an error; a full one lets files be cut and removed.
FULL: Final = WRITES | NAMES
DEAD: Final = WRITES | NAMES | SYNCS | CUTS

ANSWER_S: Final = 60.0  # a trainer's, on a machine that runs other tests besides


# --- file systems ---------------------------------------------------------------------------------
def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this needs the right to mount a file system: {done.stderr.strip()}")


def unmount(path: Path) -> None:
    """Unmount what is mounted at a path; files that are open there stay open."""
    subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True)


@contextlib.contextmanager
def small_memory(path: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes in memory.  Yields: `path`."""
    path.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    try:
        yield path
    finally:
        unmount(path)


def make_image(image: Path, size: int, *options: str) -> None:
    """Make a file with an empty ext4 in it; skips where there are no tools for that."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("this needs mkfs.ext4 (e2fsprogs)")
    with open(image, "wb") as file:
        file.truncate(size)
    command = ["mkfs.ext4", "-q", "-F", "-E", "nodiscard", *options, str(image)]
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def mounted(image: Path, path: Path, options: str = "loop") -> Iterator[Path]:
    """The file system in an image.  Yields: `path`."""
    path.mkdir(parents=True, exist_ok=True)
    _mount("-o", options, str(image), str(path))
    try:
        yield path
    finally:
        unmount(path)


def fill(folder: Path) -> Path:
    """Take all room there is.  Returns: the file that has it."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (1_000_000, 100_000, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
        with contextlib.suppress(OSError):
            os.fsync(file.fileno())  # what is reserved for pages yet to be written is taken, too
    return ballast


# --- faults ---------------------------------------------------------------------------------------
class Faults:
    """Lets calls of processes fail that were started with `environment`.

    Args:
        library: the compiled `storage_faults.c`.
        control: path of a file to be made, outside of what is to fail.
    """

    def __init__(self, library: str, control: Path) -> None:
        control.write_bytes(bytes(_CONTROL.size))
        self.environment = {"LD_PRELOAD": library, "MLE_TEST_FAULTS": str(control)}
        with open(control, "r+b") as file:
            self._control = mmap.mmap(file.fileno(), 0)

    def close(self) -> None:
        self._control.close()

    @property
    def hits(self) -> int:
        """How many calls were hit."""
        return int(_CONTROL.unpack_from(self._control)[3])

    @contextlib.contextmanager
    def below(
        self, folder: Path, kinds: int, error: int = 0, delay_s: float = 0.0
    ) -> Iterator[None]:
        """Let calls of some kinds below a folder fail with an error, or take long."""
        where = os.fsencode(os.path.realpath(folder))
        self._control[16 : 16 + len(where) + 1] = where + b"\0"
        before = self.hits
        _FIELDS.pack_into(self._control, 0, kinds, error, round(delay_s * 1000))
        try:
            yield
        finally:
            _FIELDS.pack_into(self._control, 0, 0, 0, 0)
        assert self.hits > before, "no call was hit: the library does not see them"


def name_of(code: int) -> str:
    """An error's name, as in ENOSPC."""
    return errno.errorcode[code]


# --- trainers -------------------------------------------------------------------------------------
class Trainer:
    """A process of `storage_trainer`.

    Args:
        folder: its experiment.
        seed: of its run.
        pause_s: between two bursts of ticks.
        burst: ticks in one.
    """

    def __init__(self, folder: Path, seed: int = 1, pause_s: float = 0.01, burst: int = 20) -> None:
        self.folder, self.seed = folder, seed
        command = [sys.executable, "-m", "tests.crash.storage_trainer"]
        self.process = subprocess.Popen(
            [*command, str(folder), str(seed), str(pause_s), str(burst)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=discovery.python_environment(),
        )
        self._rest = b""

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, *words: object) -> dict[str, Any]:
        """Send a line and return the answer."""
        self.tell(*words)
        deadline = time.monotonic() + ANSWER_S
        while True:
            for answer in self.said(deadline - time.monotonic()):
                return answer
            assert time.monotonic() < deadline, f"no answer to {words}"

    def tell(self, *words: object) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.process.stdin.flush()

    def said(self, timeout: float = 0.0) -> Iterator[dict[str, Any]]:
        """What it has said since the last call, having waited for something if there is nothing."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while select.select([fd], [], [], max(0.0, timeout))[0]:
            data = os.read(fd, 1 << 20)
            assert data, "the trainer has ended"
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from map(json.loads, lines)
            timeout = 0.0 if lines else timeout

    def wait_for(
        self, condition: Callable[[dict[str, Any]], Any], timeout: float = ANSWER_S
    ) -> dict[str, Any]:
        """Ask how far it is until something holds.  Returns: its last answer."""
        deadline = time.monotonic() + timeout
        while not condition(told := self.ask("tell")):
            assert time.monotonic() < deadline, f"waited in vain: {told}"
            time.sleep(0.02)
        return told

    def end(self, timeout: float = ANSWER_S) -> dict[str, Any]:
        """Have it close its logger.  Returns: what it says then."""
        told = self.ask("end", timeout)
        assert self.process.wait(ANSWER_S) == 0
        return told


def columns_of(folder: Path, seed: int) -> tuple[dict[str, Any], int]:
    """The columns of a run by name, and how many ticks its file counts as lost; by plain h5py."""
    with h5py.File(layout.log_path(str(folder), f"seed_{seed}")) as file:
        group = file[f"seed_{seed}"]
        columns = {name: group["stats"][name][:] for name in group["stats"]}
        columns[checker.STEP] = group["time"][checker.STEP][:]
        return columns, int(group.attrs.get(layout.LOST_ATTR, 0))


def assert_stored(trainer: Trainer, told: dict[str, Any]) -> int:
    """Every tick is in the file once, in order and whole, or counted as lost.

    Returns:
        How many are lost.
    """
    columns, lost = columns_of(trainer.folder, trainer.seed)
    sent = told["sent"]
    verdict = checker.judge(columns, trainer.seed, sent=sent, begun=sent, lost=lost)
    faults = {name: count for name, count in verdict.faults.items() if name != "missing"}
    assert not faults, (verdict, told)
    assert verdict.missing == lost == told["lost"], (verdict, lost, told)
    return lost
