"""Two users of one machine: neither sees nor blocks the other, whatever traps they set."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.users import User, users

TRAINER = textwrap.dedent(
    """
    import json, sys, warnings
    from mle_client import MLELogger, load_log, runtime
    from mle_client.endpoint import local_daemons

    warnings.simplefilter("always")
    folder, count, wait = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    log = MLELogger(folder, ["step"], ["loss"], seed_id="seed_1")
    for step in range(count):
        log.update({"step": step}, {"loss": step / 2})
    flushed = log.flush(wait)
    places = [*runtime.socket_dirs(), *runtime.ring_dirs(log.experiment_dir)]
    daemons = [each.root for each in local_daemons()]
    closed = log.close(wait)
    rows = len(load_log(folder).seed_1.time.step) if flushed else 0
    print(json.dumps([flushed, rows, closed.spilled, places, daemons]))
    """
)
TICKS = 2_000


@pytest.fixture
def pair() -> Iterator[list[User]]:
    with users(2) as found:
        yield found


def train(user: User, name: str = "exp", wait: float = 20.0, **environment: str) -> tuple[Any, str]:
    """What a trainer of a user says in the end, and what it was warned of."""
    folder = str(user.home / name)
    done = user.run("-c", TRAINER, folder, str(TICKS), str(wait), **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_both_log_at_once_and_neither_meets_the_other(pair: list[User]) -> None:
    running = [user.start("-c", TRAINER, str(user.home / "exp"), str(TICKS), "20") for user in pair]
    said = []
    for process in running:
        with process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        said.append(json.loads(out))
    for user, other, (flushed, rows, _, places, daemons) in zip(
        pair, reversed(pair), said, strict=True
    ):
        assert (flushed, rows) == (True, TICKS)
        assert daemons == [str(user.home / "exp")]
        assert places
        assert not any(str(other.uid) in place for place in places)
        assert {os.stat(place).st_uid for place in user.places()} == {user.uid}
        assert {os.stat(place).st_mode & 0o777 for place in user.places()} == {0o700}


def test_the_daemon_of_one_user_is_none_to_another(pair: list[User]) -> None:
    """Who may read a root reads its logs; to log below it, they start a daemon of their own."""
    owner, guest = pair
    shared = owner.home / "shared"
    started = owner.run("-m", "mle_daemon", "start", "--root", str(shared))
    assert started.returncode == 0, started.stderr
    shared.chmod(0o777)
    asked = guest.run("-m", "mle_daemon", "status", "--root", str(shared))
    assert (asked.returncode, "Traceback" in asked.stderr) == (4, False)
    refused = guest.run("-m", "mle_daemon", "start", "--root", str(shared))
    assert refused.returncode == 1
    assert f"belongs to user {owner.uid}" in refused.stderr
    folder = str(shared / "guest")
    done = guest.run("-c", TRAINER, folder, str(TICKS), "20")
    assert (done.returncode, done.stderr) == (0, "")
    assert os.stat(shared / "guest" / "logs").st_uid == guest.uid
    report = owner.run("-m", "mle_daemon", "status", "--root", str(shared))
    assert "no runs" in report.stdout


def trap(kind: str, path: Path, attacker: User, victim: User) -> Path:
    """Have an attacker make what a victim would make.  Returns: the folder that it leads to."""
    if kind == "folder":
        path.mkdir(mode=0o777)
        path.chmod(0o777)
        attacker.owns(path)
        return path
    owner = victim if kind == "link to the victim's" else attacker
    target = owner.home / "target"
    if not target.exists():
        target.mkdir()
        target.chmod(0o777 if owner is attacker else 0o700)
        (owner.owns(target) / "precious").write_text("thesis")
        owner.owns(target / "precious")
    path.symlink_to(target)
    attacker.owns(path)
    return target


TRAPS = ["folder", "link to the victim's", "link to the attacker's"]


@pytest.mark.parametrize("kind", TRAPS[:2])
def test_folders_that_another_user_has_made_are_not_used(pair: list[User], kind: str) -> None:
    """Rings go under the root, sockets where the user says; until then the error says so."""
    attacker, victim = pair
    targets = [trap(kind, place, attacker, victim) for place in victim.places()]
    before = [sorted(os.listdir(target)) for target in targets]
    (flushed, _, spilled, places, _), err = train(victim, wait=1.5)
    assert (flushed, spilled) == (False, TICKS)
    assert "there is no folder for sockets that is yours alone" in err
    assert "Set MLE_RUNTIME_DIR" in err
    assert all(str(victim.home) in place for place in places)
    own = victim.owns(victim.home)
    (flushed, rows, *_), err = train(victim, "two", MLE_RUNTIME_DIR=str(own / "run"))
    assert (flushed, rows, err) == (True, TICKS, "")
    recovered = victim.run(
        "-m", "mle_daemon", "recover", "--root", str(victim.home / "exp"),
        MLE_RUNTIME_DIR=str(own / "run"),
    )  # fmt: skip
    assert (victim.home / "exp" / "logs" / "log_seed_1.hdf5").exists(), recovered.stderr
    assert [sorted(os.listdir(target)) for target in targets] == before


@pytest.mark.parametrize("kind", TRAPS)
@pytest.mark.parametrize("name", [".mle", ".mle/staging"])
def test_a_root_that_another_user_has_prepared_is_refused(
    pair: list[User], kind: str, name: str
) -> None:
    """A daemon removes what is in its own `staging`; a link there must not lead to a thesis."""
    attacker, victim = pair
    root = attacker.home / "exp"
    root.mkdir(mode=0o777)
    attacker.owns(root).chmod(0o777)
    if name != ".mle":
        (root / ".mle").mkdir()
        attacker.owns(root / ".mle").chmod(0o777)
    target = trap(kind, root / name, attacker, victim)
    before = sorted(os.listdir(target))
    for words in ([], ["--foreground"]):
        done = victim.run("-m", "mle_daemon", "start", "--root", str(root), *words)
        assert done.returncode == 1
        assert f"belongs to user {attacker.uid}" in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(os.listdir(target)) == before


def test_a_runtime_folder_inside_of_another_users_is_refused(pair: list[User]) -> None:
    """Who has made /tmp/jobs can put another folder in the place of /tmp/jobs/mine."""
    attacker, victim = pair
    jobs = attacker.home / "jobs"
    jobs.mkdir()
    attacker.owns(jobs).chmod(0o777)
    done = victim.run(
        "-m", "mle_daemon", "start", "--root", str(victim.home / "exp"),
        MLE_RUNTIME_DIR=str(jobs / "mine"),
    )  # fmt: skip
    assert done.returncode == 1
    assert f"which belongs to user {attacker.uid}" in done.stderr
