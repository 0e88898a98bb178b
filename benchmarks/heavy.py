"""Packages that take long to load, and that a script which only logs should not have loaded."""

from __future__ import annotations

import sys

HEAVY = ("h5py", "psutil", "matplotlib", "torch", "rich")


def heavy_packages() -> list[str]:
    """Those that this process has loaded."""
    return [name for name in HEAVY if name in sys.modules]
