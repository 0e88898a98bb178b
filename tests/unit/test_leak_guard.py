"""The check in conftest.py that fails a test which leaves something behind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).parents[1] / "conftest.py"
LEAKING = """
import os, subprocess, sys, threading, time

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)", "mle_daemon"]

def test_leaves_a_child(record_pid):
    record_pid(os.spawnv(os.P_NOWAIT, sys.executable, SLEEP))

def test_leaves_a_detached_daemon(record_pid):
    start = ("import subprocess, sys;"
             "print(subprocess.Popen(sys.argv[1:], start_new_session=True,"
             "                       stdout=subprocess.DEVNULL).pid)")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", start, *SLEEP],
                          stdout=subprocess.PIPE, check=True)
    record_pid(int(done.stdout))

def test_leaves_a_descriptor():
    os.dup(1)

def test_leaves_a_thread():
    threading.Thread(target=time.sleep, args=(30,), name="mle-sender", daemon=True).start()

def test_leaves_nothing(tmp_path):
    with open(tmp_path / "file", "w") as file:
        file.write(os.environ["MLE_RUNTIME_DIR"])
    thread = threading.Thread(target=time.sleep, args=(0.01,), name="mle-sender")
    thread.start()
    subprocess.run([sys.executable, "-c", ""], check=True)
"""
RECORD_PID = """

@pytest.fixture
def record_pid():
    def record(pid):
        with open("pids", "a") as file:
            file.write(f"{pid}\\n")
    return record
"""


def test_a_test_that_leaves_something_behind_fails_and_its_processes_are_ended(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest(CONFTEST.read_text() + RECORD_PID)
    pytester.makepyfile(LEAKING)

    result = pytester.runpytest_subprocess("-v", "-o", "leak_grace_s=0.2")

    result.assert_outcomes(passed=5, errors=4)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaves_a_child *",
            "left behind: process * mle_daemon)",
            "*ERROR at teardown of test_leaves_a_detached_daemon *",
            "left behind: process * mle_daemon)",
            "*ERROR at teardown of test_leaves_a_descriptor *",
            "left behind: file descriptor *",
            "*ERROR at teardown of test_leaves_a_thread *",
            "left behind: thread mle-sender",
        ]
    )
    pids = [int(line) for line in (pytester.path / "pids").read_text().split()]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_every_test_has_a_runtime_directory_of_its_own_that_is_short(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(
        """
        import os, pytest
        seen = set()

        @pytest.mark.parametrize("number", range(3))
        def test_runtime_directory(number, runtime_dir):
            assert os.environ["MLE_RUNTIME_DIR"] == str(runtime_dir)
            assert runtime_dir.stat().st_mode & 0o777 == 0o700
            assert len(str(runtime_dir)) < 40
            assert not any(os.path.exists(path) for path in seen)
            assert str(runtime_dir) not in seen
            seen.add(str(runtime_dir))
        """
    )

    pytester.runpytest_subprocess().assert_outcomes(passed=3)
