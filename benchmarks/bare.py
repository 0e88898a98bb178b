"""Interpreters that have loaded nothing yet: not this package's libraries, and not ours.

A process that `multiprocessing` spawns has imported the benchmark that it belongs to, and h5py and
psutil with it; what importing costs a script, and what memory a logger takes, is seen in these.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from benchmarks.workspace import variables
from mle_client import discovery

_CHECKOUT: Final = str(Path(__file__).parent.parent)


@dataclass(frozen=True, slots=True)
class Life:
    """A process from its beginning until its end.

    Args:
        wall_s, cpu_s: that it took; CPU time of all threads.
        said: on stdout.
    """

    wall_s: float
    cpu_s: float
    said: str


@contextlib.contextmanager
def bytecode() -> Iterator[None]:
    """Have interpreters that start meanwhile cache bytecode, in a folder that goes in the end.

    An installed package has its bytecode; a checkout may have none, and compiling takes longer
    than everything else.  The first one of a kind still compiles.
    """
    with tempfile.TemporaryDirectory(prefix="mle-bench-") as folder:
        settings = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": None}
        with variables(settings):
            yield


def environment() -> Mapping[str, str]:
    """An environment in which a bare interpreter finds this checkout."""
    given = discovery.python_environment()
    paths = [path for path in (_CHECKOUT, given.get("PYTHONPATH")) if path]
    return {**given, "PYTHONPATH": os.pathsep.join(paths)}


def live(command: Sequence[str]) -> Life:
    """Run a program, and see what it takes.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    begun = time.perf_counter()
    process = start(command, stdin=subprocess.DEVNULL)
    with cast(IO[str], process.stdout) as output:
        said = output.read()
    _, status, used = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command), said)
    return Life(wall_s, used.ru_utime + used.ru_stime, said)


def start(command: Sequence[str], stdin: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start a program whose words can be read, and to which some can be said."""
    settings: dict[str, Any] = {"stdin": stdin, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(command), env=environment(), **settings)
