"""`mle-daemon doctor` and `mle-daemon recover`, on what real processes leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from mle_client import MLELogger, load_log
from tests.integration import daemons

TRAINS = """
import os, signal, sys
from mle_client import MLELogger
log = MLELogger(sys.argv[1], seed_id=1)
for i in range(5000):
    log.update({"step": i}, {"loss": 0.5 * i})
os.kill(int(sys.argv[2]), signal.SIGKILL)
for i in range(5000, 6000):
    log.update({"step": i}, {"loss": 0.5 * i})
os.kill(os.getpid(), signal.SIGKILL)
"""

SAVES = """
import os, signal, sys
import numpy as np
from mle_client import MLELogger
log = MLELogger(sys.argv[1], seed_id=1, model_type="numpy", save_every_k_ckpt=1)
log.update({"step": 0}, {"loss": 0.0})
assert log.flush(20)
os.kill(int(sys.argv[2]), signal.SIGSTOP)
for i in range(1, 21):
    log.update({"step": i}, {"loss": 0.5 * i}, model={"w": np.full(1000, i)})
os.kill(int(sys.argv[2]), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_both(root: Path, script: str) -> None:
    """Have a script kill its daemon and itself."""
    daemon = daemons.start(root)
    done = subprocess.run(
        [sys.executable, "-c", script, str(root / "exp"), str(daemon["pid"])],
        env=daemons.environment(), check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    daemons.kill_all(root)  # the trainer may have begun to start another one


def doctor(root: Path) -> tuple[int, dict[str, Any]]:
    done = daemons.mle_daemon("doctor", "--root", str(root), "--json")
    return done.returncode, json.loads(done.stdout)


def test_a_living_daemon_is_well(root: Path) -> None:
    with daemons.running(root):
        code, report = doctor(root)
        assert (code, report["findings"], report["healthy"]) == (0, [], True)
        done = daemons.mle_daemon("recover", "--root", str(root))
        assert done.returncode == 0, done.stderr
        assert "by itself" in done.stderr
    code, report = doctor(root)
    assert (code, report["findings"]) == (0, [])


def test_what_killed_processes_left_is_told_and_recovered_once(root: Path) -> None:
    kill_both(root, TRAINS)

    code, report = doctor(root)
    assert code == 7
    assert {each["about"] for each in report["findings"]} >= {"daemon", "ring"}
    assert all(each["kind"] == "waiting" for each in report["findings"])

    done = daemons.mle_daemon("recover", "--root", str(root))
    assert done.returncode == 0, done.stderr
    assert "is in the logs" in done.stderr
    assert "all is well" in done.stdout
    run = load_log(str(root / "exp")).seed_1
    assert (run.state, run.lost) == ("crashed", 0)
    assert run.time.step.tolist() == list(range(6000))

    before = (root / "exp/logs/log_seed_1.hdf5").stat()
    done = daemons.mle_daemon("recover", "--root", str(root), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["examined"]["ticks"] == 6000
    after = (root / "exp/logs/log_seed_1.hdf5").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_every_model_that_killed_processes_left_in_memory_is_recovered_at_once(root: Path) -> None:
    kill_both(root, SAVES)

    done = daemons.mle_daemon("recover", "--root", str(root))
    assert done.returncode == 0, done.stderr
    assert "all is well" in done.stdout
    assert len(list((root / "exp/models/every_k").iterdir())) == 20
    assert load_log(str(root / "exp")).seed_1.time.step.tolist() == list(range(21))


def test_what_the_daemon_of_an_experiment_left_is_told_and_recovered_from_above(
    root: Path,
) -> None:
    """A logger starts a daemon for its own folder where nobody has started one above."""
    (root / "exp").mkdir()
    with daemons.running(root / "exp") as daemon:
        done = subprocess.run(
            [sys.executable, "-c", TRAINS, str(root / "exp"), str(daemon["pid"])],
            env=daemons.environment(), check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL
        daemons.kill_all(root / "exp")
        code, report = doctor(root)
        assert (code, report["findings"][0]["about"]) == (7, "root")
        assert report["findings"][0]["advice"] == f"mle-daemon recover --root {root}/exp"
        done = daemons.mle_daemon("recover", "--root", str(root))
        assert (done.returncode, done.stderr) == (
            0,
            f"mle-daemon: what was left under {root}/exp is in the logs\n",
        )
        assert load_log(str(root / "exp")).seed_1.time.step.tolist() == list(range(6000))
        daemons.start(root / "exp")  # to be stopped


def test_a_stopped_daemon_is_told_from_a_killed_one(root: Path) -> None:
    said = daemons.start(root)
    os.kill(said["pid"], signal.SIGSTOP)
    try:
        code, report = doctor(root)
    finally:
        os.kill(said["pid"], signal.SIGCONT)
        daemons.stop(root)
    assert code == 7
    assert [each["about"] for each in report["findings"]] == ["daemon"]
    assert "does not answer" in report["findings"][0]["what"]


def test_there_is_nothing_to_recover_in_a_folder_that_never_had_a_daemon(root: Path) -> None:
    done = daemons.mle_daemon("recover", "--root", str(root))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(root.iterdir()) == []


def test_a_merge_that_failed_is_told(root: Path) -> None:
    with daemons.running(root, "--merge", "on-finish", "--merge-settle", "0.1"):
        for seed, lr in ((1, 0.1), (2, 0.2)):  # of different configurations
            with MLELogger(str(root / "exp"), config_dict={"lr": lr}, seed_id=seed) as log:
                log.update({"step": 1}, {"loss": 0.5})
        daemons.wait_for(lambda: any(each["why"] for each in daemons.status(root)["groups"]))
        code, report = doctor(root)
    assert code == 7
    (finding,) = report["findings"]
    assert (finding["about"], finding["path"]) == ("merge", str(root / "exp"))
    assert "different configurations" in finding["what"]
