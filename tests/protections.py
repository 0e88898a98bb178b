"""Every protection, how to switch it off, and the test that notices.

A test that passes whether or not what it tests is there is worth nothing.  Each entry takes one
protection out of a copy of the project, by one edit, and runs the test that must fail then:

    python -m tests.protections [NAME …]      by hand; `make protections` runs all

It says nothing about protections that are missing.  `tests/unit/test_protections.py` sees to it that
every edit still fits the code, and that docs/reliability.md lists all.
"""

# ruff: noqa: E501  code is quoted as it stands

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[1]
_TIMEOUT_S: Final = 300.0
_FAILED: Final = 1  # pytest's exit status where tests have failed


@dataclass(frozen=True)
class Protection:
    """Something that keeps data, or the daemon, from harm.

    Args:
        name: what it is, in the table of docs/reliability.md.
        file: that it is in.
        code: what is there.
        without: what is there in its place when it is switched off.
        test: which notices, as pytest's arguments.
    """

    name: str
    file: str
    code: str
    without: str
    test: str


PROTECTIONS: Final = (
    Protection(
        "a piece whose append failed counts for nothing",
        "mle_daemon/intake.py",
        "            streams[producer].roll_back()\n",
        "            streams[producer].commit(next(p for _, p in staged if p.producer == producer))\n",
        "tests/property/test_delivery.py",
    ),
    Protection(
        "a piece that comes again is known by its position",
        "mle_daemon/ingest.py",
        "        if end <= expected:\n            return None\n        new = payload[expected - position :]\n",
        "        new = payload\n",
        "tests/property/test_delivery.py",
    ),
    Protection(
        "what the file has already is not published again",
        "mle_daemon/runs.py",
        "            self._keep([_new_in(p, member) for p, member in waiting if p.end > member.published])\n",
        "            self._keep([p for p, member in waiting])\n",
        "tests/property/test_delivery.py",
    ),
    Protection(
        "the ring of a killed trainer is read",
        "mle_daemon/daemon.py",
        "                self._drain(ring)\n",
        "                ring.remove()\n",
        "tests/integration/test_logger.py -k however_a_trainer_ends",
    ),
    Protection(
        "a daemon that leaves reads no ring",
        "mle_daemon/daemon.py",
        "        if self._core.stopping is not None:\n            return\n        places",
        "        places",
        "tests/integration/test_merging.py -k killed_while_a_daemon_stops",
    ),
    Protection(
        "one daemon a root",
        "mle_daemon/daemon.py",
        "    with RootLock(config.root):\n        return Daemon",
        "    with contextlib.nullcontext():\n        return Daemon",
        "tests/integration/test_cli_processes.py -k finds_the_root_locked",
    ),
    Protection(
        "what a failed append has left is cut off",
        "mle_daemon/journal.py",
        "                os.ftruncate(segment.fd, segment.end)\n",
        "",
        "tests/unit/daemon/test_journal.py",
    ),
    Protection(
        "each record of the journal has a checksum",
        "mle_daemon/journal_format.py",
        "        if valid and crc32(view[start : start + length]) == crc and start + length <= size:\n",
        "        if valid and start + length <= size:\n",
        "tests/property/test_journal_scan.py",
    ),
    Protection(
        "a journal of which records are lost lets a daemon start",
        "mle_daemon/artifacts.py",
        "            for other in self._checkpoints_before(waiting):\n                self.stored(other)  # a damaged journal has lost the word of it\n",
        "",
        "tests/property/test_damaged_journal.py",
    ),
    Protection(
        "a file is synced before it gets its name",
        "mle_client/files.py",
        "        yield fd\n        os.fsync(fd)\n",
        "        yield fd\n",
        "tests/crash/test_recorded_disk.py -k worst",
    ),
    Protection(
        "a name is synced before anybody counts on it",
        "mle_client/files.py",
        "            remove(staged)\n        _sync_folder(folder)\n",
        "            remove(staged)\n",
        "tests/crash/test_recorded_disk.py -k worst",
    ),
    Protection(
        "the way to a log is synced",
        "mle_daemon/store.py",
        "            files.sync_way(os.path.dirname(path), self.root)  # which others may have made\n",
        "",
        "tests/crash/test_recorded_disk.py -k worst",
    ),
    Protection(
        "the way to the journal is synced",
        "mle_daemon/recovery.py",
        "    files.make_folders(path, 0o700)\n    files.sync_way(path)  # the root may be as new, and a folder of it made by a trainer\n",
        '    __import__("os").makedirs(path, 0o700, exist_ok=True)\n',
        "tests/crash/test_recorded_disk.py -k worst",
    ),
    Protection(
        "the bytes of a checkpoint are synced before it gets its names",
        "mle_daemon/staging.py",
        "        os.fdatasync(self._descriptor(key))\n",
        "        self._descriptor(key)\n",
        "tests/crash/test_recorded_disk.py -k worst",
    ),
    Protection(
        "a checkpoint goes only after what replaces it is stored",
        "mle_daemon/landing.py",
        "            self._remover.spare(job.directory, job.names)\n",
        "            self._remover.spare(job.directory, job.names)\n            self._checkpoints.evict(job.directory, job.evict)\n            __import__('time').sleep(0.05)\n",
        "tests/crash/test_artifact_kills.py",
    ),
    Protection(
        "log files change in one step",
        "mle_client/files.py",
        "        try:\n            os.replace(staged, path)\n        except OSError as error:\n",
        "        try:\n            os.path.exists(path) and os.unlink(path)\n            os.rename(staged, path)\n        except OSError as error:\n",
        "tests/crash/test_merge_kills.py",
    ),
)


def notices(protection: Protection, folder: Path) -> bool:
    """Whether the test fails in a copy of the project without the protection.

    Args:
        folder: an empty one, for the copy.

    Raises:
        RuntimeError: the test does not run there, or takes too long.
    """
    copy = folder / "project"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT, capture_output=True, check=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, names):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, copy / name)
    changed = copy / protection.file
    code = changed.read_text()
    if code.count(protection.code) != 1:
        raise RuntimeError(f"{protection.file} has not, or has twice:\n{protection.code}")
    changed.write_text(code.replace(protection.code, protection.without))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0"]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    try:
        done = subprocess.run(
            [*command, *_words(protection.test)], cwd=copy, env=environment,
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{protection.test} takes more than {_TIMEOUT_S:g} s") from error
    if done.returncode not in (0, _FAILED):
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return done.returncode == _FAILED


def _words(test: str) -> list[str]:
    """The arguments in a test's text; what follows -k or -m is one."""
    words: list[str] = []
    for word in test.split(" "):
        if words and words[-1].startswith("-") and "=" not in words[-1]:
            words[-1] += f"={word}" if words[-1].startswith("--") else word
        else:
            words.append(word)
    return words


def main(names: Sequence[str]) -> int:
    """Switch protections off, one after another, and say what the tests made of it."""
    chosen = [p for p in PROTECTIONS if not names or any(name in p.name for name in names)]
    unnoticed = 0
    for protection in chosen:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mle-without-") as folder:
            try:
                said = "noticed" if notices(protection, Path(folder)) else "NOT NOTICED"
            except RuntimeError as error:
                said = f"NOT TRIED: {error}"
        unnoticed += said != "noticed"
        seconds = time.monotonic() - begun
        print(f"{said:12} {seconds:5.0f} s  {protection.name}  ({protection.test})", flush=True)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} protections are noticed when they are off")
    return 1 if unnoticed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
