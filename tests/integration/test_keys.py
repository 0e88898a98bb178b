"""Daemons at a TCP port that want keys, with real processes on both sides."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from mle_client import layout, load_log, runtime
from mle_daemon import keys_verb
from tests.integration import daemons

TICKS = 500
TRAINER = textwrap.dedent(
    """
    import sys
    import warnings
    import numpy as np
    from mle_client import MLELogger

    warnings.simplefilter("always")
    folder, wait = sys.argv[1], float(sys.argv[2])
    log = MLELogger(folder, ["step"], ["loss"], seed_id="seed_1", model_type="numpy")
    for step in range(500):
        log.update({"step": step}, {"loss": step / 2}, model=np.ones(9) if step == 9 else None)
    log.flush(wait)
    log.save_extra({"note": "x"})
    print(log.close(wait))
    """
)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The daemon's folder of keys."""
    keys_verb.make(str(tmp_path / "keys"))
    return tmp_path / "keys"


@pytest.fixture
def daemon(root: Path, keys: Path) -> Iterator[str]:
    """The address of a daemon that wants keys, at every address of this machine."""
    with daemons.running(root, "--endpoint", "tcp://0.0.0.0:0", "--keys", str(keys)) as said:
        yield said["endpoint"].replace("0.0.0.0", "127.0.0.1")


def train(folder: Path, wait: float = 20.0, **environment: str) -> tuple[str, str]:
    """Run a trainer to its end.  Returns: what it printed, and its warnings."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, str(folder), str(wait)],
        capture_output=True, text=True, timeout=60, env={**daemons.environment(), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def assert_whole(folder: Path) -> None:
    """All that a trainer logged and saved is there."""
    run = load_log(str(folder)).seed_1
    assert run.time.step.tolist() == list(range(TICKS))
    for name in ("models/final/final_seed_1.pkl", "extra/extra_1_seed_1.pkl"):
        daemons.wait_for((folder / name).exists)


def test_who_has_the_keys_logs_saves_asks_and_stops(
    root: Path, keys: Path, daemon: str, tmp_path: Path
) -> None:
    """Found in the daemon's file; and named by the environment, where that cannot be read."""
    out, err = train(root / "a")
    assert ("delivered=500" in out, err) == (True, "")
    client = tmp_path / "client"
    client.mkdir(mode=0o700)
    for name in ("server.key", "client.key", "client.key_secret"):
        shutil.copy2(keys / name, client / name)
    away = {"MLE_KEYS": str(client), "MLE_DAEMON": daemon.replace("127.0.0.1", "127.0.0.2")}
    out, err = train(root / "b", **away)
    assert ("delivered=500" in out, err) == (True, "")
    assert_whole(root / "a")  # asks the daemon to publish
    assert_whole(root / "b")
    assert [run["state"] for run in daemons.status(root)["runs"]] == ["finished"] * 2


def test_what_a_client_logs_that_is_not_let_in_comes_through_its_ring(
    root: Path, keys: Path, daemon: str, tmp_path: Path
) -> None:
    """And a neighbour with the right keys is served meanwhile."""
    keys_verb.make(str(tmp_path / "strange"))
    shutil.copy2(keys / "server.key", tmp_path / "strange")
    began = time.monotonic()
    out, err = train(root / "strange", 2.0, MLE_KEYS=str(tmp_path / "strange"))
    assert time.monotonic() - began < 20
    assert "delivered=0, spilled=500, lost=0" in out
    assert f"it does not let the key in {tmp_path}/strange/client.key in" in err
    out, err = train(root / "friend")
    assert "delivered=500" in out
    assert_whole(root / "friend")
    daemons.wait_for(lambda: not any(runtime_rings(root)))
    assert_whole(root / "strange")
    assert (
        "with a key that is not known"
        in Path(layout.state_path(str(root), "daemon.log")).read_text()
    )


def runtime_rings(root: Path) -> list[str]:
    return [name for folder in runtime.ring_dirs(str(root)) for name in os.listdir(folder)]


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("client", "it does not let the key in"),
        ("server", "it does not have the key in"),
        ("open", "other users can get at it"),
        ("none", "make keys with `mle-daemon keys"),
    ],
)
def test_the_command_line_says_soon_what_is_wrong_with_the_keys(
    root: Path, keys: Path, daemon: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    which: str, words: str,
) -> None:  # fmt: skip
    wrong = tmp_path / "wrong"
    if which != "none":
        keys_verb.make(str(wrong))
    if which == "client":
        shutil.copy2(keys / "server.key", wrong)
    if which == "open":
        wrong.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("MLE_KEYS", str(wrong))
        for verb in ("status", "stop"):
            done = daemons.mle_daemon(verb, "--root", str(root), timeout=20)
            assert done.returncode == 1
            assert words in done.stderr
            assert "Traceback" not in done.stderr
        with pytest.warns(RuntimeWarning, match=words), pytest.raises(FileNotFoundError):
            load_log(str(root / "nothing"))
    assert daemons.status(root)["runs"] == []


def test_a_client_of_the_plain_mechanism_gets_nothing_and_nobody_notices(
    root: Path, daemon: str
) -> None:
    with zmq.Context() as context:
        for _ in range(20):
            with context.socket(zmq.DEALER) as socket:
                socket.setsockopt(zmq.LINGER, 0)
                socket.connect(daemon)
                socket.send(b"hello")
                assert not socket.poll(20)
    assert daemons.status(root)["degraded"] == ""


def test_a_killed_daemon_is_started_again_with_its_keys(root: Path, daemon: str) -> None:
    daemons.kill_the_next(root, set())
    out, _ = train(root / "a")
    assert "delivered=500" in out
    report = daemons.status(root)
    assert report["endpoint"].startswith("tcp://0.0.0.0:")
    assert_whole(root / "a")


def test_a_port_that_others_reach_is_refused_without_keys(root: Path, tmp_path: Path) -> None:
    for words in ([], ["--foreground"]):
        done = daemons.mle_daemon(
            "start", "--root", str(root), "--endpoint", "tcp://0.0.0.0:0", *words, timeout=20
        )
        assert done.returncode == 2
        assert "mle-daemon keys --out DIR" in done.stderr
    assert list(root.iterdir()) == []


def test_a_daemon_with_keys_that_others_can_read_does_not_start(root: Path, keys: Path) -> None:
    (keys / "server.key_secret").chmod(0o644)
    options = ("--endpoint", "tcp://127.0.0.1:0", "--keys", str(keys))
    done = daemons.mle_daemon("start", "--root", str(root), *options, timeout=20)
    assert done.returncode == 1
    assert f"{keys}/server.key_secret: other users can get at it" in done.stderr
