"""Other users of this machine, for tests that root runs: programs under uids that nobody has.

A user gets an environment without any setting of ours, and so the places that a real one gets:
/tmp/mle-<uid> and /dev/shm/mle-<uid>.  Where our interpreter or the packages lie in a folder that
others cannot enter, as in a home or a checkout of CI, its programs see them in another place,
through mounts that nobody else sees.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

TREE = Path(__file__).parents[2]
NEEDED = "import h5py, msgpack, numpy, psutil, yaml, zmq, mle_client, mle_daemon.daemon"
_FIRST_UID = 61_000  # above those of people and services, below nobody's


@dataclass(frozen=True)
class User:
    """A user.  Args: home: a folder of theirs that all may enter; mounts: what they need to see."""

    uid: int
    home: Path
    mounts: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs Python as this user."""
        python = os.path.join(self.mounts[sys.base_prefix], "bin", "python3")
        mounting = [
            shlex.join(["mount", "--bind", source, target])
            for source, target in self.mounts.items()
        ]
        us = f"--reuid {self.uid} --regid {self.uid} --clear-groups"
        run = f"exec setpriv {us} {shlex.join([python, *arguments])}"
        return ["unshare", "--mount", "sh", "-c", " && ".join([*mounting, run])]

    def environment(self) -> dict[str, str]:
        """A fresh login's, without a runtime folder."""
        packages = [self.mounts[str(TREE)], *map(self.mounts.get, site.getsitepackages())]
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.home),
            "PYTHONPATH": ":".join(filter(None, packages)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start Python as this user."""
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
            env={**self.environment(), **environment},
        )  # fmt: skip

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python as this user, for a minute at most."""
        with self.start(*arguments, **environment) as process:
            try:
                out, err = process.communicate(timeout=60)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def places(self) -> list[Path]:
        """The private folders of this user that others could name."""
        return [Path(f"/tmp/mle-{self.uid}"), Path(f"/dev/shm/mle-{self.uid}")]

    def owns(self, path: Path) -> Path:
        """Give a path, a link itself, to this user."""
        os.chown(path, self.uid, self.uid, follow_symlinks=False)
        return path

    def end(self) -> None:
        """End all that this user runs, and remove what lies in the common folders."""
        ours = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.uids().real == self.uid:
                    process.kill()
                    ours.append(process)
        psutil.wait_procs(ours, timeout=10)
        for place in self.places():
            with contextlib.suppress(FileNotFoundError):
                place.unlink() if place.is_symlink() else shutil.rmtree(place)


_tried: list[str] = []


def _why_not(user: User) -> str:
    """Why a user cannot run our packages; tried once."""
    if not _tried:
        done = user.run("-c", NEEDED)
        _tried.append(done.stderr[-300:] if done.returncode else "")
    return _tried[0]


@contextlib.contextmanager
def users(count: int = 2) -> Iterator[list[User]]:
    """Some users, who are gone in the end."""
    if os.geteuid() != 0:
        pytest.skip("takes several users: run the tests as root to see it")
    if not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        pytest.skip("takes unshare, setpriv and mount: install util-linux to see it")
    common = Path(tempfile.mkdtemp(prefix="mle-users-", dir="/tmp"))
    common.chmod(0o755)
    mounts = {}
    for number, source in enumerate([sys.base_prefix, str(TREE), *site.getsitepackages()]):
        (common / str(number)).mkdir()
        mounts[source] = str(common / str(number))
    found = []
    first = _FIRST_UID + os.getpid() % 2_000 * 2  # two runs at once have others
    for uid in range(first, first + count):
        home = common / f"home-{uid}"
        home.mkdir(mode=0o755)
        os.chown(home, uid, uid)
        found.append(User(uid, home, mounts))
    try:
        if why := _why_not(found[0]):
            pytest.skip(f"another user cannot run our packages: {why}")
        yield found
    finally:
        for user in found:
            user.end()
        shutil.rmtree(common)
