"""What was freed goes back to the system."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mle_daemon import allocator

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """What this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


ON_GLIBC = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
PROGRAM = """
import ctypes, sys, threading
from mle_daemon import allocator
if sys.argv[1] == "one":
    allocator.use_one_arena()
gate = threading.Barrier(5)
def work():
    gate.wait()
    held = [bytes(1000 * i) for i in range(1, 50)]
    gate.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
gate.wait(); gate.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
for thread in threads: thread.join()
"""


@ON_GLIBC
@pytest.mark.parametrize("arenas", ["one", "many"])
def test_threads_share_what_was_freed(arenas: str, tmp_path: Path) -> None:
    report = tmp_path / "report"
    subprocess.run([sys.executable, "-c", PROGRAM, arenas, str(report)], check=True, timeout=60)
    found = report.read_text().count("<heap nr=")
    assert (found == 1) is (arenas == "one")


@ON_GLIBC
def test_memory_between_what_is_still_held_goes_back() -> None:
    blocks = [os.urandom(1) * 50_000 for _ in range(1200)]
    held = blocks[::10]
    del blocks
    before = resident_bytes()
    allocator.give_back()
    assert resident_bytes() < before - 30 * 2**20
    assert len(held) == 120


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_function", lambda name: None)
    allocator.use_one_arena()
    allocator.give_back()
