"""No connection is begun that would take a process's last descriptors."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mle_client import descriptors
from tests.integration import daemons

# A trainer with few descriptors left logs, goes on, and delivers when it has closed some.
TRAINS = """
import sys, time
from mle_client import MLELogger
log = MLELogger(sys.argv[1], on_error=lambda error: None)
files = []
try:
    while True:
        files.append(open("/dev/null"))
except OSError:
    pass
for file in files[: int(sys.argv[2])]:
    file.close()
log.update({"step": 0}, {"loss": 0.5})
log.flush(1.0)  # it may have connected before
for file in files:
    file.close()
assert log.flush(30.0), log.errors()
"""


@pytest.fixture
def limit() -> Iterator[int]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_few_are_an_error_that_says_what_to_do(limit: int) -> None:
    descriptors.require()
    used = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + descriptors.NEEDED // 2, limit))
    with pytest.raises(OSError, match="too few for a connection to the daemon: close"):
        descriptors.require()


@pytest.mark.parametrize("left", [2, 8])
def test_a_trainer_with_few_descriptors_goes_on_and_delivers_later(root: Path, left: int) -> None:
    with daemons.running(root):
        done = subprocess.run(
            ["sh", "-c", 'ulimit -n 96; exec "$@"', "sh", sys.executable, "-c", TRAINS,
             str(root / "run"), str(left)],
            env=daemons.environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
