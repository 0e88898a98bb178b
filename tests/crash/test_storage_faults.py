"""Disks that are full, refuse, stall or vanish: training goes on, status says why, all comes back.

In each test a trainer logs on while something is wrong with a disk.  Then that is over, and the
daemon must go on by itself: at the end every tick is in the file once and in order, or counted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from mle_client.endpoint import read_endpoint
from tests import checker
from tests.crash import shims, storage
from tests.crash.storage import DEAD, FULL, LOCKS, SYNCS, WRITES, Faults, Trainer, name_of
from tests.integration import daemons

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

_DISK_BYTES: Final = 48_000_000
_MODEL_BYTES: Final = 400_000
# `update()` waits for no disk.  A machine with other tests may keep a process from running a while.
LONGEST_UPDATE_S: Final = 2.0
# Everything is to go on within 5 s of a disk's recovery; the rest is for busy machines.
BACK_WITHIN_S: Final = 5.0 + 25.0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    if sys.platform != "linux":
        pytest.skip("the library that makes faults is for Linux")
    return shims.build("storage_faults", tmp_path_factory.mktemp("faults"))


@pytest.fixture
def faults(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Faults for the daemons and trainers that the test starts."""
    found = Faults(library, tmp_path / "control")
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    yield found
    found.close()


@contextlib.contextmanager
def at_work(root: Path, burst: int = 20) -> Iterator[Trainer]:
    """A trainer whose daemon has published something; in the end every tick is accounted for."""
    with daemons.running(root), Trainer(root / "exp", burst=burst) as trainer:
        trainer.wait_for(lambda told: told["acked"] > 100)
        assert trainer.ask("flush", 30)["flushed"]
        yield trainer
        end(trainer)


def end(trainer: Trainer) -> dict[str, Any]:
    """Let a trainer end, and look at what is stored."""
    told = trainer.end()
    assert told["longest_s"] < LONGEST_UPDATE_S
    assert told["unstored"] == 0
    storage.assert_stored(trainer, told)
    return told


def degraded(root: Path) -> str:
    return str(daemons.status(root)["degraded"])


def wait_until_told(root: Path, *words: str) -> str:
    """Until status says that it is degraded, in words among which these are."""
    return str(
        daemons.wait_for(lambda: (d := degraded(root)) and all(word in d for word in words) and d)
    )


def wait_until_back(root: Path, trainer: Trainer, what: str) -> None:
    """Until all that was logged and saved so far is on disk, and status says that all is well."""
    begun = time.monotonic()
    told = trainer.ask("tell")
    trainer.wait_for(
        lambda now: now["acked"] >= told["sent"] - now["lost"] and not now["unstored"],
        BACK_WITHIN_S,
    )
    went_on = time.monotonic() - begun
    assert trainer.ask("flush", BACK_WITHIN_S)["flushed"]
    flushed = time.monotonic() - begun
    daemons.wait_for(lambda: not degraded(root), BACK_WITHIN_S)
    print(f"{what}: all is taken after {went_on:.2f} s, flushed after {flushed:.2f} s")


def assert_readable(trainer: Trainer) -> None:
    """The published file reads whole, and has a beginning of what was logged."""
    columns, lost = storage.columns_of(trainer.folder, trainer.seed)
    rows = len(columns[checker.STEP])
    assert rows
    verdict = checker.judge(columns, trainer.seed, sent=rows, begun=rows, lost=lost)
    assert not verdict.faults


# --- full disks, real ones ------------------------------------------------------------------------
def fill_and_free(root: Path, place: Path, words: tuple[str, ...]) -> None:
    with at_work(root) as trainer:
        ballast = storage.fill(place)
        trainer.ask("save", _MODEL_BYTES)
        assert not trainer.ask("flush", 0.2)["flushed"]
        told = wait_until_told(root, *words)
        print(told)
        assert_readable(trainer)
        sent = trainer.ask("tell")["sent"]
        trainer.wait_for(lambda now: now["sent"] > sent)
        ballast.unlink()
        wait_until_back(root, trainer, f"full disk, {place.name}")


def test_a_full_disk(root: Path) -> None:
    with storage.small_memory(root, _DISK_BYTES):
        fill_and_free(
            root, root, ("No space left", str(root / ".mle/journal"), "bytes are waiting")
        )


@pytest.mark.long
def test_a_full_disk_whose_daemon_is_killed(root: Path) -> None:
    """None can be started until there is room; by then the pauses between attempts have grown."""
    with storage.small_memory(root, _DISK_BYTES), at_work(root) as trainer:
        ballast = storage.fill(root)
        os.kill(daemons.status(root)["pid"], signal.SIGKILL)
        time.sleep(10)
        assert "bytes free, too few" in daemons.mle_daemon("status", "--root", str(root)).stderr
        assert_readable(trainer)
        ballast.unlink()
        wait_until_back(root, trainer, "full disk, daemon killed")


def test_a_full_disk_for_publications_and_artifacts_alone(root: Path) -> None:
    staging = root / ".mle/staging"
    with storage.small_memory(staging, 4_000_000):
        words = (
            "No space left",
            str(staging),
            "bytes are needed",
            "log_seed_1.hdf5",
            "checkpoint 1 could not be received",
        )
        fill_and_free(root, staging, words)


@pytest.mark.long
def test_a_full_ext4(root: Path, tmp_path: Path) -> None:
    storage.make_image(tmp_path / "image", _DISK_BYTES)
    with storage.mounted(tmp_path / "image", root):
        fill_and_free(
            root, root, ("No space left", str(root / ".mle/journal"), "bytes are waiting")
        )


def test_what_finds_no_room_to_be_spilled_is_counted(root: Path) -> None:
    with storage.small_memory(root, 4 * _DISK_BYTES), at_work(root, burst=500) as trainer:
        ballast = storage.fill(root)
        told = trainer.wait_for(lambda now: now["lost"] > 1_000, 60)
        assert any("a tick was dropped" in error for error in told["errors"])
        wait_until_told(root, str(root / ".mle/spill"), "bytes are needed", ".mle/journal")
        assert_readable(trainer)
        ballast.unlink()
        wait_until_back(root, trainer, "full disk, spill")


# --- disks that refuse ----------------------------------------------------------------------------
REFUSALS: Final = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EIO: WRITES | SYNCS,
    errno.EROFS: DEAD,
}


def refuse(root: Path, faults: Faults, trainer: Trainer, where: str, code: int) -> None:
    place = root / where
    with faults.below(place, REFUSALS[code], code):
        trainer.ask("save", _MODEL_BYTES)
        assert not trainer.ask("flush", 0.2)["flushed"]
        told = wait_until_told(root, os.strerror(code))
        assert str(place) in told
        assert "bytes are " in told or where == "exp"  # there are only renamed and synced
        assert_readable(trainer)
    wait_until_back(root, trainer, f"{name_of(code)}, {where or 'root'}")


@pytest.mark.parametrize("where", ["", ".mle/staging"])
def test_a_disk_that_refuses(where: str, root: Path, faults: Faults) -> None:
    with at_work(root) as trainer:
        for code in (errno.EDQUOT, errno.EIO, errno.EROFS):
            refuse(root, faults, trainer, where, code)


@pytest.mark.long
@pytest.mark.parametrize("where", [".mle/journal", "exp", ".mle"])
def test_a_part_of_a_disk_that_refuses(where: str, root: Path, faults: Faults) -> None:
    with at_work(root) as trainer:
        for code in REFUSALS:
            refuse(root, faults, trainer, where, code)


def test_a_folder_that_cannot_be_synced(root: Path, faults: Faults) -> None:
    """What was renamed is there, but not for sure; nothing may count on it."""
    with at_work(root) as trainer:
        with faults.below(root / "exp/logs", SYNCS, errno.EIO):
            sent = trainer.ask("tell")["sent"]
            trainer.wait_for(lambda told: told["sent"] > sent)
            assert not trainer.ask("flush", 0.2)["flushed"]
            wait_until_told(root, os.strerror(errno.EIO), str(root / "exp/logs"))
            time.sleep(2.5)  # it is tried again
            assert str(root / "exp/logs") in degraded(root)
        wait_until_back(root, trainer, "EIO of a folder")
        assert not any("something else changed it" in e for e in trainer.ask("tell")["errors"])


def test_a_sync_of_the_journal_that_fails_is_never_believed_again(
    root: Path, faults: Faults
) -> None:
    with at_work(root) as trainer:
        before = newest_segment(root)
        with faults.below(root / ".mle/journal", SYNCS, errno.EIO):
            wait_until_told(root, os.strerror(errno.EIO), str(root / ".mle/journal"))
        wait_until_back(root, trainer, "EIO of fdatasync")
        assert newest_segment(root) > before


def newest_segment(root: Path) -> str:
    return max(path.name for path in (root / ".mle/journal").iterdir())


def stall(root: Path, faults: Faults, delay_s: float) -> None:
    with at_work(root) as trainer:
        with faults.below(root, SYNCS, delay_s=delay_s):
            trainer.ask("save", _MODEL_BYTES)
            wait_until_told(root, "the disk stalls", str(root / ".mle/journal"))
            acked = trainer.ask("tell")["acked"]
            trainer.wait_for(lambda now: now["acked"] > acked)  # meanwhile
            time.sleep(delay_s)
        wait_until_back(root, trainer, f"syncs of {delay_s:g} s")
        assert trainer.ask("tell")["lost"] == 0


def test_syncs_that_stall(root: Path, faults: Faults) -> None:
    stall(root, faults, 2.0)


@pytest.mark.long
def test_syncs_that_stall_for_five_seconds(root: Path, faults: Faults) -> None:
    stall(root, faults, 5.0)


def test_file_systems_without_locks(root: Path, runtime_dir: Path, faults: Faults) -> None:
    """The daemon and the rings do without: also who ended is found out."""
    with faults.below(Path(os.path.commonpath([root, runtime_dir])), LOCKS, errno.ENOLCK):
        with daemons.running(root), Trainer(root / "exp") as trainer:
            assert daemons.mle_daemon("start", "--root", str(root), "--foreground").returncode != 0
            trainer.wait_for(lambda told: told["acked"] > 100)
            told = trainer.ask("tell")
            trainer.process.kill()
            daemons.wait_for(lambda: daemons.status(root)["runs"][0]["state"] == "crashed")
        columns, _ = storage.columns_of(trainer.folder, trainer.seed)
        verdict = checker.judge(columns, trainer.seed, sent=told["sent"], begun=2**40)
        assert not verdict.faults


# --- folders that vanish --------------------------------------------------------------------------
def vanish(root: Path, where: str, is_back: Callable[[], bool]) -> tuple[Trainer, dict[str, Any]]:
    """Remove a folder below a trainer; then kill the daemon, which must not be missed."""
    daemon = daemons.start(root)
    with Trainer(root / "exp") as trainer:
        trainer.wait_for(lambda told: told["acked"] > 100)
        assert trainer.ask("flush", 30)["flushed"]
        shutil.rmtree(root / where)
        trainer.ask("save", _MODEL_BYTES)
        daemons.wait_for(is_back)
        assert trainer.ask("flush", 30)["flushed"]
        assert daemons.status(root)["pid"] == daemon["pid"]
        sent = trainer.ask("tell")["sent"]
        trainer.wait_for(lambda told: told["acked"] > sent)  # in the journal, not in the file
        os.kill(daemon["pid"], signal.SIGKILL)
        told = trainer.end()
        assert told["unstored"] == 0
    daemons.start(root)
    daemons.stop(root)
    return trainer, told


def has_journal(root: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(os.listdir(root / ".mle/journal"))
    return False


@pytest.mark.parametrize("where", [".mle", pytest.param(".mle/journal", marks=pytest.mark.long)])
def test_a_removed_folder_of_the_daemon_s_costs_nothing(where: str, root: Path) -> None:
    trainer, told = vanish(root, where, lambda: has_journal(root))
    assert storage.assert_stored(trainer, told) == 0


@pytest.mark.parametrize("where", [".", pytest.param("exp", marks=pytest.mark.long)])
def test_of_a_removed_experiment_all_is_stored_that_was_not_published(
    where: str, root: Path
) -> None:
    log = root / "exp/logs/log_seed_1.hdf5"
    trainer, told = vanish(root, where, lambda: has_journal(root) and log.exists())
    columns, lost = storage.columns_of(trainer.folder, trainer.seed)
    steps = columns[checker.STEP]
    np.testing.assert_array_equal(steps, np.arange(steps[0], told["sent"]))
    assert lost == 0


def test_a_daemon_whose_root_is_removed_leaves_when_nobody_logs(root: Path) -> None:
    daemons.start(root)
    endpoint = read_endpoint(str(root))
    assert endpoint is not None
    shutil.rmtree(root)
    daemons.wait_for(lambda: not os.path.exists(f"/proc/{endpoint.pid}"))
    assert not root.exists()


def test_status_has_the_trouble_as_text_and_as_json(root: Path, faults: Faults) -> None:
    with at_work(root), faults.below(root, FULL, errno.ENOSPC):
        wait_until_told(root, "No space left")
        said = daemons.mle_daemon("status", "--root", str(root)).stdout
        assert "DEGRADED" in said
        assert "bytes are waiting" in said
        plain = json.loads(daemons.mle_daemon("status", "--root", str(root), "--json").stdout)
        assert str(plain["degraded"]).partition(":")[0] in said  # the bytes are more by now
