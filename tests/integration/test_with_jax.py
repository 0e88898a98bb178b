"""The tests that need jax, in a process of their own: jax starts threads, and where there are such
a process should not fork, as other tests do."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).parents[1]


@pytest.mark.timeout(300)
def test_what_needs_jax_passes() -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    files = [
        str(path)
        for path in sorted(_TESTS.rglob("test_*.py"))
        if path != Path(__file__) and "@pytest.mark.jax\n" in path.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "jax"]
    done = subprocess.run(
        [*command, *files], cwd=_TESTS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr
    assert "passed" in done.stdout.splitlines()[-1]
