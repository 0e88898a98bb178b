"""Artifacts get all their names or none that is torn, at every instant, and nowhere else."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mle_client import layout
from mle_client.errors import RunRefused
from mle_client.messages import ProducerId
from mle_daemon.checkpoints import Checkpoints
from mle_daemon.events import StoreArtifact

NEW, OLD = os.urandom(100_000), b"old"
FINAL = layout.final_path("seed_1", ".pt")
KTH = layout.every_k_path("seed_1", 5, ".pt")
TOP = layout.top_k_path("seed_1", 0, ".pt")
NAMES = (FINAL, KTH, TOP)
PRODUCER = ProducerId(bytes(16))


@pytest.fixture
def exp(root: Path) -> Path:
    """The folder of an experiment."""
    path = root / "exp"
    path.mkdir()
    return path


@pytest.fixture
def checkpoints(root: Path) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(str(root))
    yield checkpoints
    checkpoints.let_go()


def staged_job(root: Path, *names: str, evict: tuple[str, ...] = ()) -> StoreArtifact:
    """A job whose file is staged as it is when its bytes have arrived."""
    staging = root / ".mle" / "staging"
    staging.mkdir(parents=True, exist_ok=True)
    (staging / "00-1.part").write_bytes(NEW)
    return StoreArtifact(
        PRODUCER, 1, str(staging / "00-1.part"), str(root / "exp"), names or NAMES, evict
    )


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder and what they hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def staging_of(root: Path) -> list[str]:
    return os.listdir(root / ".mle" / "staging")


def without_links(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let no hard link be made."""

    def link(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)


def across_file_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let renames out of the daemon's own folder fail as between file systems."""
    rename = os.replace

    def replace(a: str, b: str) -> None:
        if ("/.mle/" in a) != ("/.mle/" in b):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(a, b)

    monkeypatch.setattr(os, "replace", replace)


# --- names ----------------------------------------------------------------------------------------
def test_an_artifact_is_written_once_and_has_all_its_names(
    root: Path, exp: Path, checkpoints: Checkpoints
) -> None:
    job = staged_job(root)
    number = os.stat(job.staged).st_ino
    checkpoints.store(job)
    assert tree(exp) == dict.fromkeys(NAMES, NEW)
    assert {(exp / name).stat().st_ino for name in NAMES} == {number}
    assert staging_of(root) == []


def test_files_of_that_name_are_replaced_and_their_other_names_stay(
    root: Path, exp: Path, checkpoints: Checkpoints
) -> None:
    checkpoints.store(staged_job(root))
    job = staged_job(root, FINAL)
    Path(job.staged).write_bytes(b"newer")
    checkpoints.store(job)
    assert tree(exp) == {FINAL: b"newer", KTH: NEW, TOP: NEW}


def nameless_files() -> list[str]:
    """Files that this process holds though they have no name any more."""
    links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
    held = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [path for path in held if path.endswith("(deleted)") and FINAL in path]


def test_a_replaced_file_is_freed_later_and_not_by_the_store(
    root: Path, checkpoints: Checkpoints
) -> None:
    checkpoints.store(staged_job(root, FINAL))
    checkpoints.store(staged_job(root, FINAL))
    assert len(nameless_files()) == 1
    checkpoints.let_go()
    assert nameless_files() == []


def test_of_many_replaced_files_few_are_held(root: Path, checkpoints: Checkpoints) -> None:
    for _ in range(20):
        checkpoints.store(staged_job(root, FINAL))
    assert len(nameless_files()) < 10


def test_a_pipe_in_the_way_is_replaced_without_waiting_for_it(
    root: Path, exp: Path, checkpoints: Checkpoints
) -> None:
    (exp / FINAL).parent.mkdir(parents=True)
    os.mkfifo(exp / FINAL)
    checkpoints.store(staged_job(root, FINAL))
    assert tree(exp) == {FINAL: NEW}


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV])
def test_where_links_fail_names_get_copies(
    root: Path, exp: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    without_links(monkeypatch, code)
    checkpoints.store(staged_job(root))
    assert tree(exp) == dict.fromkeys(NAMES, NEW)
    assert staging_of(root) == []


def test_another_file_system_gets_copies(
    root: Path, exp: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    across_file_systems(monkeypatch)
    checkpoints.store(staged_job(root))
    assert tree(exp) == dict.fromkeys(NAMES, NEW)
    assert staging_of(root) == []


def test_no_unfinished_file_is_in_a_users_folder_where_links_work(
    root: Path, exp: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    rename = os.replace

    def replace(a: str, b: str) -> None:
        seen.update(tree(exp))
        rename(a, b)

    monkeypatch.setattr(os, "replace", replace)
    checkpoints.store(staged_job(root))
    assert seen <= set(NAMES)


def test_a_copy_that_gets_no_name_is_removed(
    root: Path, exp: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(a: str, b: str) -> None:
        code = errno.EXDEV if "/.mle/" in a else errno.EACCES
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        checkpoints.store(staged_job(root))
    assert tree(exp) == {}


@pytest.mark.parametrize("across", [False, True])
def test_a_full_disk_leaves_the_old_files_and_the_next_attempt_succeeds(
    root: Path, exp: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, across: bool
) -> None:
    for name in NAMES:
        (exp / name).parent.mkdir(parents=True)
        (exp / name).write_bytes(OLD)
    job = staged_job(root)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        if across:
            across_file_systems(patch)
            without_links(patch, errno.EXDEV)
            patch.setattr(os, "copy_file_range", full)
        with pytest.raises(OSError, match="No space"):
            checkpoints.store(job)
    assert tree(exp) == dict.fromkeys(NAMES, OLD)
    checkpoints.store(job)
    assert tree(exp) == dict.fromkeys(NAMES, NEW)
    assert staging_of(root) == []


def test_a_folder_that_could_not_be_synced_is_synced_the_next_time(
    root: Path, exp: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.store(staged_job(root))
    job = staged_job(root)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            checkpoints.store(job)
    assert not os.path.exists(job.staged)  # it has its names; only their folders are not synced
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    checkpoints.store(job)
    assert {str((exp / name).parent) for name in NAMES} <= set(synced)


def test_names_are_on_disk_before_store_returns(
    root: Path, exp: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[str, set[str]] = {}

    def fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        synced[path] = set(os.listdir(path)) if os.path.isdir(path) else set()

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints.store(staged_job(root))
    for name in (*NAMES, "models"):  # each entry was there when its folder was last synced
        assert (exp / name).name in synced[str((exp / name).parent)]
    for folder in ("final", "every_k", "top_k"):
        assert folder in synced[str(exp / "models")]


# --- killed at every step -------------------------------------------------------------------------
class Killed(BaseException):
    """The process is gone."""


def dying(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Let a process do so many things to the disk, and none after those."""
    left = [steps]

    def mortal(name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            if left[0] <= 0:
                raise Killed
            left[0] -= 1
            return call(*args, **kwargs)

        return step

    for name in ("link", "replace", "unlink", "fsync", "mkdir", "open", "copy_file_range"):
        patch.setattr(os, name, mortal(name))


def kills(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> Iterator[int]:
    """Do something again and again, killed one step later each time, until it is not."""
    for steps in range(200):
        try:
            with monkeypatch.context() as patch:
                dying(patch, steps)
                work()
        except Killed:
            yield steps
        else:
            assert steps > 8, "it does nothing to the disk"
            return
    pytest.fail("it does not end")


@pytest.mark.parametrize("links", [True, False])
def test_killed_anywhere_each_name_is_whole_and_the_next_process_finishes(
    root: Path, exp: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        without_links(monkeypatch, errno.EPERM)
        across_file_systems(monkeypatch)
    for name in NAMES[:2]:
        (exp / name).parent.mkdir(parents=True)

    def work() -> None:
        dies = Checkpoints(str(root))
        try:
            dies.store(job)
        finally:
            dies.let_go()  # as the end of a process does

    job = staged_job(root)
    for name in NAMES[:2]:
        (exp / name).write_bytes(OLD)
    for _ in kills(monkeypatch, work):
        for name, content in tree(exp).items():
            assert content in (OLD, NEW) or layout.is_temporary(os.path.basename(name)), name
        after = Checkpoints(str(root))
        if not os.path.exists(job.staged):  # it comes once more: nobody was told that it is stored
            assert tree(exp) == dict.fromkeys(NAMES, NEW)
            job = staged_job(root)
        after.reconcile(str(exp), "seed_1", ".pt", frozenset(), 1)
        after.store(job)
        after.let_go()
        assert tree(exp) == dict.fromkeys(NAMES, NEW)
        assert staging_of(root) == []
        job = staged_job(root)
        for name in NAMES[:2]:
            (exp / name).write_bytes(OLD)
        shutil.rmtree((exp / TOP).parent)


# --- places ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "../x.png", "figures/../../x.png", "/etc/x", "figures/", "figures", "", "logs/log.hdf5",
        "figures/a\0b", ".mle/journal/1", "figures/" + layout.temporary_name("x"),
    ],
)  # fmt: skip
def test_a_name_elsewhere_is_refused(
    root: Path, exp: Path, checkpoints: Checkpoints, name: str
) -> None:
    with pytest.raises(RunRefused):
        checkpoints.store(staged_job(root, FINAL, name))
    with pytest.raises(RunRefused):
        checkpoints.evict(str(exp), [name])
    assert tree(exp) == {}  # not under its good name either


@pytest.mark.parametrize("outside", ["elsewhere", "root/other", "root/.mle/journal"])
def test_no_link_leads_out_of_the_experiment(
    root: Path, exp: Path, checkpoints: Checkpoints, tmp_path: Path, outside: str
) -> None:
    (tmp_path / outside).mkdir(parents=True)
    (tmp_path / outside / "x.png").write_bytes(OLD)
    (exp / "figures").symlink_to(tmp_path / outside)
    for name in ("figures/x.png", "figures/new/x.png"):
        with pytest.raises(RunRefused, match="out of"):
            checkpoints.store(staged_job(root, FINAL, name))
    with pytest.raises(RunRefused, match="out of"):
        checkpoints.evict(str(exp), ["figures/x.png"])
    assert tree(exp) == {}
    assert tree(tmp_path / outside) == {"x.png": OLD}


def test_an_experiment_outside_of_the_root_is_refused(
    root: Path, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "exp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunRefused, match="out of"):
        checkpoints.store(staged_job(root))
    assert tree(tmp_path / "elsewhere") == {}


def test_an_experiment_that_is_the_root_cannot_reach_the_daemons_own_folder(
    root: Path, checkpoints: Checkpoints
) -> None:
    job = staged_job(root, "figures/x.png")
    (root / "figures").symlink_to(root / ".mle" / "staging")
    job = StoreArtifact(PRODUCER, 1, job.staged, str(root), job.names, ())
    with pytest.raises(RunRefused, match="the daemon's own"):
        checkpoints.store(job)


def test_a_link_inside_the_experiment_is_followed(
    root: Path, exp: Path, checkpoints: Checkpoints
) -> None:
    (exp / "plots").mkdir()
    (exp / "figures").symlink_to(exp / "plots")
    checkpoints.store(staged_job(root, "figures/x.png"))
    assert tree(exp) == {"plots/x.png": NEW}


def test_a_name_that_is_a_link_is_replaced_and_not_followed(
    root: Path, exp: Path, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    (exp / "figures").mkdir()
    (exp / "figures" / "x.png").symlink_to(tmp_path / "mine")
    (exp / "figures" / "y.png").symlink_to(tmp_path / "folder")
    checkpoints.store(staged_job(root, "figures/x.png", "figures/y.png"))
    assert tree(exp) == {"figures/x.png": NEW, "figures/y.png": NEW}
    assert (tmp_path / "mine").read_bytes() == OLD


def test_a_copy_does_not_go_through_a_link_either(
    root: Path, exp: Path, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "temporary_name", lambda token: ".mle-x.tmp")
    (tmp_path / "mine").write_bytes(OLD)
    (exp / "figures").mkdir()
    (exp / "figures" / ".mle-x.tmp").symlink_to(tmp_path / "mine")
    across_file_systems(monkeypatch)
    checkpoints.store(staged_job(root, "figures/x.png"))
    assert tree(exp) == {"figures/x.png": NEW}
    assert (tmp_path / "mine").read_bytes() == OLD


@pytest.mark.parametrize("name", ["figures/x.png", "figures/x.png/y.png", "figures/a/b/c.png"])
def test_what_is_in_the_way_is_named_and_no_name_is_given_away(
    root: Path, exp: Path, checkpoints: Checkpoints, name: str
) -> None:
    (exp / "figures").mkdir()
    if name == "figures/x.png":
        (exp / "figures" / "x.png").mkdir()
    else:
        (exp / "figures" / "x.png").write_bytes(OLD)
        (exp / "figures" / "a").write_bytes(OLD)
    with pytest.raises(RunRefused, match=r"figures/(x\.png|a)"):
        checkpoints.store(staged_job(root, FINAL, name))
    assert FINAL not in tree(exp)


def test_a_path_that_is_too_long_is_refused(
    root: Path, exp: Path, checkpoints: Checkpoints
) -> None:
    deep = exp / "/".join(["x" * 200] * 11)
    deep.mkdir(parents=True)
    job = staged_job(root, f"figures/{'/'.join(['y' * 200] * 10)}/x.png")
    with pytest.raises(RunRefused, match="too long"):
        checkpoints.store(StoreArtifact(PRODUCER, 1, job.staged, str(deep), job.names, ()))


def test_bytes_that_somebody_has_removed_are_no_reason_to_try_again(
    root: Path, exp: Path, checkpoints: Checkpoints
) -> None:
    job = staged_job(root)
    os.unlink(job.staged)
    with pytest.raises(RunRefused, match="is gone"):
        checkpoints.store(job)


# --- removing -------------------------------------------------------------------------------------
def test_evicted_files_are_gone_for_good_and_missing_ones_are_no_matter(
    exp: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [layout.retained_path("seed_1", number, ".pt") for number in (1, 2, 3)]
    checkpoints.evict(str(exp), names)
    (exp / names[0]).parent.mkdir(parents=True)
    (exp / names[0]).write_bytes(OLD)
    (exp / names[2]).write_bytes(OLD)
    left: list[list[str]] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: left.append(os.listdir(os.readlink(f"/proc/self/fd/{fd}")))
    )
    checkpoints.evict(str(exp), names[:2])
    assert left == [["retained_seed_1_3.pt"]]  # synced, when the file was no longer there


def test_a_folder_is_not_evicted(exp: Path, checkpoints: Checkpoints) -> None:
    name = layout.retained_path("seed_1", 1, ".pt")
    (exp / name).mkdir(parents=True)
    with pytest.raises(RunRefused, match="is a folder"):
        checkpoints.evict(str(exp), [name])
    assert (exp / name).is_dir()


def fill(exp: Path) -> None:
    """Put files into an experiment, ours and others."""
    for name in (
        *[layout.retained_path("seed_1", number, ".pt") for number in (1, 2, 3, 8)],
        layout.retained_path("seed_1_2", 1, ".pt"),
        layout.retained_path("seed_2", 1, ".pt"),
        layout.retained_path("seed_1", 1, ".pkl"),
        "models/retained/retained_seed_1_01.pt",
        "models/retained/notes.txt",
        "models/retained_seed_1_1.pt",
        "models/final/.mle-0011-00-1.part.tmp",
        "figures/deep/.mle-0011-00-1.part.tmp",
        "figures/mine.tmp",
        "figures/.mle-",
        "logs/.mle-0011-00-1.part.tmp",
        FINAL,
    ):
        (exp / name).parent.mkdir(parents=True, exist_ok=True)
        (exp / name).write_bytes(OLD)


OURS = [
    "figures/deep/.mle-0011-00-1.part.tmp",
    "models/final/.mle-0011-00-1.part.tmp",
    "models/retained/retained_seed_1_1.pt",
    "models/retained/retained_seed_1_3.pt",
]


def test_only_what_an_earlier_process_was_to_remove_is_removed(
    exp: Path, checkpoints: Checkpoints
) -> None:
    fill(exp)
    before = tree(exp)
    removed = checkpoints.reconcile(str(exp), "seed_1", ".pt", frozenset({2}), 7)
    assert sorted(removed) == OURS
    assert tree(exp) == {name: before[name] for name in before if name not in OURS}
    assert checkpoints.reconcile(str(exp), "seed_1", ".pt", frozenset({2}), 7) == []


def test_what_was_removed_stays_so_after_a_power_cut(
    exp: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(exp)
    left: dict[str, set[str]] = {}

    def fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        left[os.path.relpath(path, exp)] = set(os.listdir(path))

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints.reconcile(str(exp), "seed_1", ".pt", frozenset({2}), 7)
    assert set(left) == {os.path.dirname(name) for name in OURS}
    assert not {os.path.basename(name) for name in OURS} & set().union(*left.values())


def test_nothing_is_removed_through_links(
    exp: Path, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    fill(tmp_path / "elsewhere")
    before = tree(tmp_path / "elsewhere")
    (exp / "models").mkdir()
    (exp / "figures").symlink_to(tmp_path / "elsewhere" / "figures")
    (exp / "models" / "retained").symlink_to(tmp_path / "elsewhere" / "models" / "retained")
    (exp / "models" / "final").symlink_to(tmp_path / "elsewhere" / "models" / "final")
    assert checkpoints.reconcile(str(exp), "seed_1", ".pt", frozenset(), 9) == []
    assert tree(tmp_path / "elsewhere") == before


def test_links_and_folders_named_as_ours_stay(exp: Path, checkpoints: Checkpoints) -> None:
    retained = exp / "models" / "retained"
    (retained / "retained_seed_1_1.pt").mkdir(parents=True)
    (retained / "retained_seed_1_2.pt").symlink_to(exp)
    assert checkpoints.reconcile(str(exp), "seed_1", ".pt", frozenset(), 9) == []
    assert len(os.listdir(retained)) == 2


def test_unfinished_files_of_this_process_are_left_to_it(
    root: Path, exp: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    across_file_systems(monkeypatch)
    rename = os.replace
    removed: list[str] = []

    def replace(a: str, b: str) -> None:
        if layout.is_temporary(os.path.basename(a)):  # another seed's run begins meanwhile
            removed.extend(checkpoints.reconcile(str(exp), "seed_2", ".pt", frozenset(), 9))
        rename(a, b)

    monkeypatch.setattr(os, "replace", replace)
    checkpoints.store(staged_job(root))
    assert removed == []
    assert tree(exp) == dict.fromkeys(NAMES, NEW)
