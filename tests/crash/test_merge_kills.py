"""Merges are killed right after each call that changes a file, and each such call fails once.

Whatever is killed or fails: every value is in some file, every file that has a log's name is whole,
and another merge makes of it what an undisturbed one would have.  The calls are counted in the C
library, so HDF5's own count as well; `merge_kills.py` merges.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from mle_client import discovery
from mle_client.errors import MergeFailed
from mle_client.merge import merge_group
from tests.crash import shims
from tests.crash.merge_kills import SCENARIOS
from tests.seed_logs import everything, leftovers, losses, write_log

HERE: Final = Path(__file__).parent
# Where syncing costs nothing, if there is such a place: there are thousands of trials.
MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
SOME: Final = ("again", "late", "configurations")  # of the scenarios, where there is little time
# Of the calls that fill a file aside, one in so many is tried where there is little time.
STRIDE: Final = 50
PARTS: Final = 3  # of a long test, so that none takes minutes

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(sys.platform != "linux", reason="calls are counted as on Linux"),
]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The library that counts calls."""
    return shims.build("kill_at_call", tmp_path_factory.mktemp("shim"))


Ask = Callable[..., Any]


@pytest.fixture
def trials(shim: str) -> Iterator[Callable[[str], Ask]]:
    """Starts the program for a scenario, and returns a function that asks it something."""
    with tempfile.TemporaryDirectory(prefix="mle-kills-", dir=MEMORY) as folder:
        processes: list[subprocess.Popen[str]] = []

        def start(scenario: str) -> Ask:
            environment = {**discovery.python_environment(), "LD_PRELOAD": shim}
            command = [sys.executable, "-m", "tests.crash.merge_kills", shim, folder, scenario]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=environment, cwd=HERE.parents[1],
            )  # fmt: skip
            processes.append(process)
            assert process.stdin is not None
            assert process.stdout is not None

            def ask(*words: object) -> Any:
                print(*words, file=process.stdin, flush=True)
                line = process.stdout.readline()
                assert line, f"{scenario} ended at {words}"
                return json.loads(line)

            return ask

        yield start
        for process in processes:
            process.communicate()
            assert process.returncode == 0


def is_telling(names: list[str], number: int) -> bool:
    """Whether a call is more than one of many that fill a file aside."""
    return number % STRIDE == 0 or not names[number].startswith("pwrite")


def problems(ask: Ask, verb: str, numbers: list[int], names: list[str], *rest: object) -> list[str]:
    return [
        f"after call {number}, {names[number]}: {problem}"
        for number in numbers
        for problem in ask(verb, number, *rest)
    ]


def test_hdf5_s_own_writes_are_counted_and_so_is_all_that_makes_a_merge(
    trials: Callable[[str], Ask],
) -> None:
    names = trials("again")("count")
    kinds = {name.removesuffix("64").removesuffix("at") for name in names}
    assert {
        "open",
        "write",
        "pwrite",
        "posix_fallocate",
        "fsync",
        "rename",
        "link",
        "unlink",
    } <= kinds
    assert sum(name.startswith("pwrite") for name in names) > 30


@pytest.mark.parametrize("scenario", SOME)
def test_a_merge_that_is_killed_loses_nothing(trials: Callable[[str], Ask], scenario: str) -> None:
    ask = trials(scenario)
    names = ask("count")
    numbers = [number for number in range(len(names)) if is_telling(names, number)]
    assert problems(ask, "kill", numbers, names) == []


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_merge_that_is_killed_after_any_call_at_all_loses_nothing(
    trials: Callable[[str], Ask], scenario: str, part: int
) -> None:
    ask = trials(scenario)
    names = ask("count")
    assert problems(ask, "kill", list(range(part, len(names), PARTS)), names) == []


@pytest.mark.parametrize("once", [True, False])
def test_a_disk_that_fails_loses_nothing_and_crashes_nobody(
    trials: Callable[[str], Ask], once: bool
) -> None:
    ask = trials("again")
    names = ask("count")
    numbers = [number for number in range(len(names)) if is_telling(names, number)]
    assert problems(ask, "fail", numbers, names, errno.ENOSPC, int(once), 0) == []
    last = names.index("fsync")  # what goes before is HDF5 closing the file
    some = list(range(last - 4, last))
    assert problems(ask, "fail", some, names, errno.EIO, int(once), 1) == []


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_disk_that_fails_at_any_call_at_all_loses_nothing(
    trials: Callable[[str], Ask], scenario: str, code: int, once: bool, part: int
) -> None:
    ask = trials(scenario)
    names = ask("count")
    numbers = list(range(part, len(names), PARTS))
    assert problems(ask, "fail", numbers, names, code, int(once), 0) == []


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_program_whose_disk_failed_at_any_call_at_all_ends_as_any_other(
    trials: Callable[[str], Ask], scenario: str, part: int
) -> None:
    ask = trials(scenario)
    names = ask("count")
    numbers = list(range(part, len(names), 2 * PARTS))
    assert problems(ask, "fail", numbers, names, errno.ENOSPC, 0, 1) == []


# --- a disk that is full --------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_merging_on_a_disk_that_is_read_only_says_so(small_disk: Path) -> None:
    exp = small_disk / "exp"
    for seed in ("seed_1", "seed_2"):
        write_log(exp, seed, [1.0])
    before = everything(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(MergeFailed, match="Read-only file system: make this folder writable"):
        merge_group(str(exp))
    assert everything(small_disk) == before


def test_merging_on_a_disk_that_is_full_says_so_and_goes_on_when_there_is_room(
    small_disk: Path,
) -> None:
    exp = small_disk / "exp"
    values = {f"seed_{i}": [float(i)] * 3_000 for i in range(4)}
    for seed, logged in values.items():
        write_log(exp, seed, logged, sealed=False)
    needed = sum(entry.stat().st_size for entry in os.scandir(exp / "logs"))
    ballast = small_disk / "ballast"
    failures = 0
    for share in range(0, 200, 10):  # of what is needed
        ballast.write_bytes(b"")
        free = os.statvfs(small_disk).f_bavail * 4096
        ballast.write_bytes(bytes(max(0, free - needed * share // 100)))
        try:
            report = merge_group(str(exp))
        except MergeFailed as error:
            assert "No space left on device: merging takes" in str(error)  # noqa: PT017
            assert everything(small_disk).keys() == {
                str(exp / f"logs/log_{seed}.hdf5") for seed in values
            }
            assert leftovers(small_disk) == []
            failures += 1
        else:
            break
    assert failures > 3
    assert len(report.removed) == 4
    assert losses(exp / "logs/log.hdf5") == values
