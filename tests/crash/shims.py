"""Builds the libraries that tests load before the C library: `kill_at_call.c` and its like."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

_HERE: Final = Path(__file__).parent


def build(name: str, folder: Path) -> str:
    """Compile a shim; skips where there is no compiler.

    Args:
        name: of its source, without the ending.

    Returns:
        The path of the library.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("this needs a C compiler: install gcc")
    path = folder / f"{name}.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(path), str(_HERE / f"{name}.c")]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True, capture_output=True)
    return str(path)
