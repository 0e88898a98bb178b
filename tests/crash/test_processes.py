"""Loggers in trees of processes, made and ended in every usual way: nothing hangs, nothing is lost.

Each case is a trainer's script.  Whoever logs in it writes its name and the numbers 0, 1, 2, …, so
that what is stored says whether each one's ticks are all there, once and in order.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from mle_client import load_log
from tests.integration import daemons

TIMEOUT_S: Final = 60  # of a script; each takes a second or two

pytestmark = pytest.mark.crash

_HEAD: Final = """
import multiprocessing, os, pickle, signal, subprocess, sys, threading, time
from mle_client import MLELogger

folder = sys.argv[1]

def log_some(log, who, count=100):
    for i in range(count):
        log.update({"i": i}, {"who": who})

def reap(*pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0

def child(log, who):
    pid = os.fork()
    if pid == 0:
        log_some(log, who)
        os._exit(0)
    return pid

"""
# What all say who have logged 100 numbers each.
_FOUR: Final = {"parent": 100, "child 0": 100, "child 1": 100, "child 2": 100}


@pytest.fixture
def served(root: Path) -> Iterator[Path]:
    """A root with a daemon."""
    with daemons.running(root):
        yield root


def start_script(folder: Path, body: str) -> subprocess.Popen[str]:
    """Start a trainer."""
    path = folder.with_suffix(".py")
    path.write_text(_HEAD + body)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(path), str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=daemons.environment(),
    )  # fmt: skip


def output_of(process: subprocess.Popen[str], timeout: float = TIMEOUT_S) -> str:
    """Wait for a trainer, which ends well.  Returns: what it has printed."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert (process.returncode, errors) == (0, "")
    return output


def run_script(folder: Path, body: str) -> str:
    """Run a trainer.  Returns: as of `output_of`."""
    return output_of(start_script(folder, body))


def logged(folder: Path) -> dict[str, int]:
    """How many numbers of each are stored, all of them from 0 on, in every log of a folder."""
    loaded: Any = load_log(str(folder))
    runs = [loaded[name] for name in loaded.eval_ids] if "eval_ids" in dir(loaded) else [loaded]
    found: dict[str, list[int]] = {}
    for run in runs:
        assert run.lost == 0
        for who, i in zip(run.stats.who.tolist(), run.time.i.tolist(), strict=True):
            found.setdefault(who, []).append(i)
    for who, numbers in found.items():
        assert numbers == list(range(len(numbers))), who
    return {who: len(numbers) for who, numbers in found.items()}


def wait_until_ended(root: Path) -> None:
    """Until the daemon has taken what each process has left, and says so."""
    daemons.wait_for(
        lambda: (
            (runs := daemons.status(root)["runs"])
            and all(run["state"] != "running" for run in runs)
            and all(run["ticks"]["published"] == run["ticks"]["received"] for run in runs)
        )
    )


FORKED: Final = {
    "fork": (
        """
log = MLELogger(folder)
log_some(log, "parent")
reap(*[child(log, f"child {n}") for n in range(3)])
""",
        _FOUR,
    ),
    "a child that never logs": (
        """
log = MLELogger(folder)
log_some(log, "parent")
pid = os.fork()
if pid == 0:
    sys.exit(0)  # runs what is to be run at exit, too
reap(pid)
""",
        {"parent": 100},
    ),
    "a child's child": (
        """
log = MLELogger(folder)
log_some(log, "parent")
pid = os.fork()
if pid == 0:
    log_some(log, "child 0")
    reap(child(log, "child 1"), child(log, "child 2"))
    sys.exit(0)
reap(pid)
""",
        _FOUR,
    ),
    "a pool": (
        """
log = MLELogger(folder)
log_some(log, "parent")

def work(n):
    log_some(log, f"child {n}")

with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.map(work, range(3))
    pool.close()
    pool.join()
""",
        _FOUR,
    ),
    "a pool that is terminated": (
        """
log = MLELogger(folder)
log_some(log, "parent")

def work(n):
    log_some(log, f"child {n}")

with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.map(work, range(3))
""",
        _FOUR,
    ),
    "an executor": (
        """
from concurrent.futures import ProcessPoolExecutor

log = MLELogger(folder)
log_some(log, "parent")

def work(n):
    log_some(log, f"child {n}")

with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    list(pool.map(work, range(3)))
""",
        _FOUR,
    ),
    "a child that closes the logger": (
        """
log = MLELogger(folder)
log_some(log, "parent", 50)
pid = os.fork()
if pid == 0:
    log_some(log, "child 0")
    report = log.close()
    os._exit(report != type(report)(100, 0, 0))
reap(pid)
for i in range(50, 100):
    log.update({"i": i}, {"who": "parent"})
assert log.close().delivered == 100
""",
        {"parent": 100, "child 0": 100},
    ),
    "a parent that closes it while a child logs": (
        """
log = MLELogger(folder)
log_some(log, "parent")
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    log_some(log, "child 0", 50)
    os.close(write)
    os.read(read, 1)  # until the parent has closed it
    for i in range(50, 100):
        log.update({"i": i}, {"who": "child 0"})
    os._exit(0)
assert log.close().delivered == 100
os.close(write)
reap(pid)
""",
        {"parent": 100, "child 0": 100},
    ),
    "a fork while another thread closes the logger": (
        """
log = MLELogger(folder)
log_some(log, "parent")
closing, forked, flush = threading.Event(), threading.Event(), log._transport.flush

def slow_flush(*arguments):
    closing.set()
    forked.wait()
    return flush(*arguments)

log._transport.flush = slow_flush
thread = threading.Thread(target=log.close)
thread.start()
closing.wait()
pid = child(log, "child 0")
forked.set()
thread.join()
reap(pid)
assert log.close().delivered == 100
""",
        {"parent": 100, "child 0": 100},
    ),
    "a child that replaces itself": (
        """
log = MLELogger(folder)
log_some(log, "parent")
pid = os.fork()
if pid == 0:
    log_some(log, "child 0")
    os.execv("/bin/sh", ["sh", "-c", "exit 0"])
reap(pid)
""",
        {"parent": 100, "child 0": 100},
    ),
    "a trainer that replaces itself": (
        """
if len(sys.argv) > 2:
    with MLELogger(folder, seed_id=2) as log:
        log_some(log, "child 0")
    sys.exit(0)
log = MLELogger(folder, seed_id=1)
log_some(log, "parent")
os.execv(sys.executable, [sys.executable, __file__, folder, "again"])
""",
        {"parent": 100, "child 0": 100},
    ),
    "another program": (
        """
text = '''
import sys
from mle_client import MLELogger
for seed in range(2):
    with MLELogger(sys.argv[1], seed_id=f"other {seed}") as log:
        for i in range(100):
            log.update({"i": i}, {"who": f"child {seed}"})
'''
log = MLELogger(folder)
log_some(log, "parent")
subprocess.run([sys.executable, "-c", text, folder], check=True)
""",
        {"parent": 100, "child 0": 100, "child 1": 100},
    ),
    "a service's two forks": (
        """
log = MLELogger(folder)
log_some(log, "parent")
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.dup2(write, 9)
    os.closerange(0, 9)  # as such programs do
    os.closerange(10, 4096)
    for _ in range(3):
        os.open(os.devnull, os.O_RDWR)
    log_some(log, "child 0")
    log.close()
    os.write(9, b"!")
    os._exit(0)
reap(pid)
os.close(write)
assert os.read(read, 1) == b"!"
""",
        {"parent": 100, "child 0": 100},
    ),
}


def test_who_inherits_a_logger_logs_on(served: Path) -> None:
    """All at once: what hangs is found by the time limit, and each has a folder of its own."""
    started = {
        case: start_script(served / case.replace(" ", "_"), body)
        for case, (body, _) in FORKED.items()
    }
    failed = {}
    for case, process in started.items():
        try:
            output_of(process)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed[case] = error
    assert not failed
    wait_until_ended(served)
    stored = {case: logged(served / case.replace(" ", "_")) for case in FORKED}
    assert stored == {case: expected for case, (_, expected) in FORKED.items()}


def test_a_child_may_outlive_its_parent(served: Path) -> None:
    body = """
log = MLELogger(folder)
log_some(log, "parent")
if os.fork() == 0:
    for fd in (0, 1, 2):  # so that nobody waits for this process
        os.close(fd)
        os.open(os.devnull, os.O_RDWR)
    while os.getppid() == PARENT:
        time.sleep(0.01)
    log_some(log, "child 0")
    log.close()
    os._exit(0)
"""
    run_script(served / "run", f"PARENT = os.getpid()\n{body}")
    daemons.wait_for(lambda: logged(served / "run") == {"parent": 100, "child 0": 100})
    wait_until_ended(served)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_new_process_makes_a_logger_of_its_own(served: Path, method: str) -> None:
    """And is told so where it is given one."""
    body = f"""
def work(n):
    with MLELogger(folder, seed_id=n) as log:
        log_some(log, f"child {{n}}")

if __name__ == "__main__":
    log = MLELogger(folder)
    log_some(log, "parent")
    context = multiprocessing.get_context({method!r})
    workers = [context.Process(target=work, args=(n,)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    with context.Pool(1) as pool:
        pool.map(work, [2])
    try:
        context.Process(target=work, args=(log,)).start()
    except TypeError as error:
        print(error)
"""
    output = run_script(served / "run", body)
    assert "cannot be pickled: make one in each process" in output
    wait_until_ended(served)
    assert logged(served / "run") == _FOUR


def test_workers_that_are_terminated_lose_nothing(served: Path) -> None:
    """As those of a data loader are, in the middle of whatever they do."""
    body = """
log = MLELogger(folder)
log_some(log, "parent")
context = multiprocessing.get_context("fork")
done = [context.Value("q", 0, lock=False) for _ in range(3)]

def work(n):
    i = 0
    while True:
        log.update({"i": i}, {"who": f"child {n}"})
        i += 1
        done[n].value = i

workers = [context.Process(target=work, args=(n,), daemon=True) for n in range(3)]
for worker in workers:
    worker.start()
while min(each.value for each in done) < 1000:
    time.sleep(0.01)
for worker in workers:
    worker.terminate()
    worker.join()
print(*[each.value for each in done])
"""
    counts = [int(word) for word in run_script(served / "run", body).split()]
    wait_until_ended(served)
    stored = logged(served / "run")
    assert stored.pop("parent") == 100
    # A worker may have been ended between a tick and the note that it was logged.
    assert [stored[f"child {n}"] - count in (0, 1) for n, count in enumerate(counts)] == [True] * 3


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not there: pip install torch"
)
@pytest.mark.parametrize("persistent", [False, True], ids=["for an epoch", "persistent"])
def test_the_workers_of_torch_s_data_loader_may_log(served: Path, persistent: bool) -> None:
    body = f"""
import torch
from torch.utils.data import DataLoader, Dataset

log = MLELogger(folder)
log_some(log, "parent")

class Items(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        log.update({{"i": index}}, {{"who": "worker"}})
        return index

loader = DataLoader(Items(), batch_size=2, num_workers=2, persistent_workers={persistent})
for _ in range(2):
    assert sorted(int(i) for batch in loader for i in batch) == list(range(12))
"""
    run_script(served / "run", body)
    wait_until_ended(served)
    run: Any = load_log(str(served / "run"))
    workers = [i for who, i in zip(run.stats.who, run.time.i, strict=True) if who == "worker"]
    assert sorted(workers) == sorted([*range(12)] * 2)


@pytest.mark.parametrize(
    "forks", [40, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_forks_find_no_lock_held(served: Path, forks: int) -> None:
    """While other threads log, save, wait and read, a child logs and ends its own stream."""
    body = f"""
import gc
log = MLELogger(folder, on_error=lambda error: None)
over = threading.Event()

def repeat(act):
    def work():
        i = 0
        while not over.is_set():
            act(i)
            i += 1
    return threading.Thread(target=work)

threads = [
    repeat(lambda i: log.update({{"i": i}}, {{"who": "parent"}})),
    repeat(lambda i: log.update({{"j": i}}, {{"x": 0.5}}, save=i % 10 == 0)),
    repeat(lambda i: (log.save_extra(i), time.sleep(0.01))),
    repeat(lambda i: log.flush(0.05)),
    repeat(lambda i: (log.stats(), log.errors())),
]
for thread in threads:
    thread.start()
gc.collect()
gc.freeze()
for n in range({forks}):
    pid = os.fork()
    if pid == 0:
        for i in range(3):
            log.update({{"k": n}}, {{"child": i}})
        if n % 4 == 0:
            code = log.close().delivered != 3
        else:
            code = 0
        os._exit(code)
    reap(pid)
over.set()
for thread in threads:
    thread.join()
"""
    output_of(start_script(served / "run", body), timeout=TIMEOUT_S + forks)
    wait_until_ended(served)
    run: Any = load_log(str(served / "run"))
    assert len(run.stats.child) == 3 * forks


# --- two loggers on one run -----------------------------------------------------------------------
def test_two_processes_on_one_run_are_stored_apart(served: Path) -> None:
    body = """
ready = multiprocessing.get_context("fork").Barrier(4)

def work(n):
    ready.wait()
    log = MLELogger(folder, seed_id=1, on_error=lambda error: None)
    log_some(log, f"child {n}", 500)
    log.flush()
    ready.wait()  # all are there at once
    for i in range(500, 1000):
        log.update({"i": i}, {"who": f"child {n}"})
    assert log.close().delivered == 1000

pids = []
for n in range(4):
    pid = os.fork()
    if pid == 0:
        work(n)
        os._exit(0)
    pids.append(pid)
reap(*pids)
"""
    run_script(served / "run", body)
    wait_until_ended(served)
    loaded = load_log(str(served / "run"))
    assert sorted(loaded.eval_ids) == ["seed_1", "seed_1_dup2", "seed_1_dup3", "seed_1_dup4"]
    for name in loaded.eval_ids:
        assert len(set(loaded[name].stats.who.tolist())) == 1  # never two in one log
    assert logged(served / "run") == {f"child {n}": 1000 for n in range(4)}
