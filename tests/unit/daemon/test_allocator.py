"""What was freed goes back to the system."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from mle_daemon import allocator

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """What this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_memory_between_what_is_still_held_goes_back() -> None:
    blocks = [os.urandom(1) * 50_000 for _ in range(1200)]
    held = blocks[::10]
    del blocks
    before = resident_bytes()
    allocator.give_back()
    assert resident_bytes() < before - 30 * 2**20
    assert len(held) == 120


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_trim", lambda: None)
    allocator.give_back()
