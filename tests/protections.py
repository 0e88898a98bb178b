"""Every protection, how to switch it off, and the test that notices.

A test that passes whether or not what it tests is there is worth nothing.  Each entry takes one
protection out of a copy of the project, by one edit, and runs the test that must fail then:

    python -m tests.protections [NAME …]      by hand; `make protections` runs all

It says nothing about protections that are missing.  `tests/unit/test_protections.py` sees to it
that every edit still fits the code, and that docs/reliability.md lists all.
"""

from __future__ import annotations

import os
import shlex
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
            [*command, *shlex.split(protection.test)], cwd=copy, env=environment,
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{protection.test} takes more than {_TIMEOUT_S:g} s") from error
    if done.returncode not in (0, _FAILED):
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return done.returncode == _FAILED


def main(names: Sequence[str]) -> int:
    """Switch protections off, one after another, and say what the tests made of it."""
    from tests.protection_list import PROTECTIONS  # which needs `Protection`

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
