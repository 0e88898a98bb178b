"""The process that draws figures: it crashes, hangs, talks, idles, and is never left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest

from mle_client import renderer_process
from mle_client.renderer import Renderer, RenderingFailed
from mle_client.renderer_process import Surroundings

pytest.importorskip("matplotlib")

TIMEOUT_S = 30.0
PICTURE = b"a picture"


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.close()


@pytest.fixture(scope="module")
def warm() -> Iterator[Renderer]:
    """A process that has drawn already, for tests that do not end it."""
    renderer = Renderer()
    renderer.render(figure(), TIMEOUT_S)
    yield renderer
    renderer.close()


def figure(draw: Callable[[], object] = lambda: None, file_format: str = "png") -> bytes:
    """A pickled figure that does something when it is drawn, and becomes `PICTURE`."""
    picture = PICTURE

    class Drawing:
        def savefig(self, out: Any, format: str, dpi: int) -> None:
            assert dpi == 300
            draw()
            out.write(picture)

    return around(file_format) + cloudpickle.dumps(Drawing())


def around(file_format: str = "png") -> bytes:
    return Surroundings(
        file_format, sys.executable, sys.path, [], "C", None, pickle.dumps({})
    ).to_bytes()


def pid_of(renderer: Renderer) -> int:
    """The process, asked for itself."""

    def tell() -> None:
        import os

        raise LookupError(f"<{os.getpid()}>")

    with pytest.raises(RenderingFailed, match="LookupError") as caught:
        renderer.render(figure(tell), TIMEOUT_S)
    return int(str(caught.value).partition("<")[2].partition(">")[0])


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> bool:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def hang() -> None:
    while True:
        pass


# --- one after another ----------------------------------------------------------------------------
def test_one_process_draws_one_figure_after_another(warm: Renderer) -> None:
    pid = pid_of(warm)
    assert [warm.render(figure(), TIMEOUT_S) for _ in range(3)] == [PICTURE] * 3
    assert pid_of(warm) == pid


def test_it_starts_when_there_is_a_figure(renderer: Renderer) -> None:
    before = set(psutil.Process().children())  # of earlier tests: helpers, and some to be reaped
    Renderer().close()
    assert set(psutil.Process().children()) <= before
    assert renderer.render(figure(), TIMEOUT_S) == PICTURE
    assert len(set(psutil.Process().children()) - before) == 1


def test_it_stands_back_for_training(warm: Renderer) -> None:
    process = psutil.Process(pid_of(warm))
    assert process.nice() > psutil.Process().nice() or process.nice() == 19
    assert os.getsid(process.pid) == process.pid  # no ^C reaches it
    environment = process.environ()
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["OMP_NUM_THREADS"]) == ("", "1")


def test_a_figure_may_be_larger_than_any_pipe(warm: Renderer) -> None:
    ballast = b"x" * 20_000_000
    payload = figure(lambda: len(ballast))
    assert len(payload) > len(ballast)
    pieces = [payload[at : at + 999_999] for at in range(0, len(payload), 999_999)]
    assert warm.render([b"", *pieces, b""], TIMEOUT_S) == PICTURE


def test_what_a_figure_prints_does_not_get_into_the_picture(warm: Renderer) -> None:
    def chatter() -> None:
        import os
        import subprocess
        import sys

        print("x" * 1_000_000, flush=True)
        sys.stderr.write("y" * 1_000_000)
        os.write(1, b"z" * 1_000_000)
        assert os.read(0, 100) == b""  # nor does it read what is meant for the process
        subprocess.run([sys.executable, "-c", "print(input())"], stderr=subprocess.DEVNULL)

    assert warm.render(figure(chatter), TIMEOUT_S) == PICTURE
    assert warm.render(figure(), TIMEOUT_S) == PICTURE


def test_two_threads_get_their_own_pictures(warm: Renderer) -> None:
    pictures: dict[int, bytes] = {}

    def draw(number: int) -> None:
        picture = b"%d" % number * 1000

        class Drawing:
            def savefig(self, out: Any, **_: Any) -> None:
                out.write(picture)

        pictures[number] = warm.render(around() + cloudpickle.dumps(Drawing()), TIMEOUT_S)

    threads = [threading.Thread(target=draw, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pictures == {number: b"%d" % number * 1000 for number in range(4)}


# --- figures that fail ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "no figure"),
        (b"garbage of some length", "no figure"),
        (b"MLF1", "no figure"),
        (b"MLF1\xff\xff\xff\xff", "damaged"),
        (b"MLF1\x01\x00\x00\x00\x01", "damaged"),
        (b"MLF1\x01\x00\x00\x00\x80", "damaged"),  # an empty dict
        (around(), "cannot be loaded: EOFError"),
        (around() + b"garbage", "cannot be loaded"),
        (figure()[:-50], "cannot be loaded"),
        (around() + pickle.dumps("no figure"), "cannot be drawn: AttributeError"),
        (around() + pickle.dumps(10**20)[:-1], "cannot be loaded"),
    ],
)
def test_garbage_is_refused_and_costs_nothing_else(
    payload: bytes, reason: str, warm: Renderer
) -> None:
    pid = pid_of(warm)
    with pytest.raises(RenderingFailed, match=reason):
        warm.render(payload, TIMEOUT_S)
    assert pid_of(warm) == pid


@pytest.mark.parametrize("error", [SystemExit, MemoryError, ZeroDivisionError])
def test_an_error_in_a_figure_is_told_and_costs_nothing_else(
    error: type[BaseException], warm: Renderer
) -> None:
    pid = pid_of(warm)

    def fail() -> None:
        raise error("because\nof\nthis")

    with pytest.raises(RenderingFailed, match=r"because\sof\sthis"):
        warm.render(figure(fail), TIMEOUT_S)
    assert pid_of(warm) == pid


def test_without_matplotlib_the_reason_says_so(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not installed here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(RenderingFailed, match=r"cannot import matplotlib.*not installed here"):
        renderer.render(figure(), TIMEOUT_S)


def test_the_memory_of_a_figure_that_failed_is_free(renderer: Renderer) -> None:
    def fail() -> None:
        raise ValueError

    for draw, timeout in [(fail, TIMEOUT_S), (hang, 0.5)]:
        memory = bytearray(figure(draw))
        with pytest.raises(RenderingFailed) as caught:
            renderer.render(
                (memoryview(memory)[at : at + 100] for at in range(0, len(memory), 100)), timeout
            )
        memory.append(0)  # a BufferError if anything looks at it
        assert caught.value.__traceback__ is not None


# --- crashes --------------------------------------------------------------------------------------
def test_a_crash_is_tried_once_more_and_then_an_error(renderer: Renderer, tmp_path: Path) -> None:
    tries = tmp_path / "tries"

    def crash() -> None:
        import os
        import sys

        with open(tries, "a") as file:
            file.write("x")
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 11)

    with pytest.raises(RenderingFailed, match=r"ended 2 times over this one: SIGSEGV; last words"):
        renderer.render(figure(crash), TIMEOUT_S)
    assert tries.read_text() == "xx"
    assert renderer.render(figure(), TIMEOUT_S) == PICTURE


def test_a_crash_that_does_not_come_again_costs_no_figure(
    renderer: Renderer, tmp_path: Path
) -> None:
    first = tmp_path / "first"

    def crash_once() -> None:
        import os

        if not os.path.exists(first):
            os.mkdir(first)
            os.kill(os.getpid(), 9)

    payload = figure(crash_once)
    pieces = (payload[at : at + 100] for at in range(0, len(payload), 100))  # goes by only once
    assert renderer.render(pieces, TIMEOUT_S) == PICTURE
    first.rmdir()
    # One that was killed while idle does not count.
    pid = pid_of(renderer)
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: is_gone(pid))
    assert renderer.render(figure(crash_once), TIMEOUT_S) == PICTURE


def test_killed_for_memory_is_called_that(renderer: Renderer) -> None:
    def die() -> None:
        import os

        os.kill(os.getpid(), 9)

    with pytest.raises(RenderingFailed, match="SIGKILL, as where memory runs out"):
        renderer.render(figure(die), TIMEOUT_S)


def test_an_answer_that_is_none_is_a_crash(renderer: Renderer) -> None:
    def answer_nonsense() -> None:
        import contextlib
        import os
        import socket
        import stat

        for number in range(3, 100):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    socket.socket(fileno=number).sendall(b"nonsense" * 100)

    with pytest.raises(RenderingFailed, match="ended 2 times"):
        renderer.render(figure(answer_nonsense), TIMEOUT_S)


def test_a_python_that_does_not_start_is_told(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RenderingFailed, match="'/nowhere/python' cannot be started"):
        renderer.render(figure(), TIMEOUT_S)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RenderingFailed, match="exit status 1; it ended without a word"):
        renderer.render(figure(), TIMEOUT_S)


# --- time -----------------------------------------------------------------------------------------
def test_a_figure_that_hangs_is_ended_after_its_time(renderer: Renderer, tmp_path: Path) -> None:
    pid = pid_of(renderer)
    tries = tmp_path / "tries"

    def start_and_hang() -> None:
        import subprocess

        with open(tries, "a") as file:
            file.write(f"{subprocess.Popen(['sleep', '100']).pid} ")
        while True:
            pass

    began = time.monotonic()
    with pytest.raises(RenderingFailed, match=r"not drawn within 1 s"):
        renderer.render(figure(start_and_hang), 1.0)
    assert 1.0 <= time.monotonic() - began < 5.0
    assert is_gone(pid)
    (started,) = tries.read_text().split()  # it was not tried again
    assert wait_until(lambda: is_gone(int(started)))
    assert renderer.render(figure(), TIMEOUT_S) == PICTURE


def test_a_process_that_takes_nothing_is_ended_after_its_time(renderer: Renderer) -> None:
    os.kill(pid_of(renderer), signal.SIGSTOP)
    with pytest.raises(RenderingFailed, match="not drawn within"):
        renderer.render(figure() + b"x" * 10_000_000, 0.5)


def test_it_leaves_when_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer_process, "_IDLE_S", 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        renderer_process.serve(theirs)


def test_it_leaves_when_it_holds_too_much_memory(renderer: Renderer) -> None:
    pid = pid_of(renderer)

    def hoard() -> None:
        import mle_client.renderer_process

        mle_client.renderer_process._KEPT_BYTES = 0

    assert renderer.render(figure(hoard), TIMEOUT_S) == PICTURE
    assert wait_until(lambda: is_gone(pid))
    assert renderer.render(figure(), TIMEOUT_S) == PICTURE


# --- the end --------------------------------------------------------------------------------------
def test_close_ends_the_process_and_what_comes_later_fails(renderer: Renderer) -> None:
    pid = pid_of(renderer)
    renderer.close()
    renderer.close()
    assert not psutil.pid_exists(pid)
    with pytest.raises(RenderingFailed, match="closed"):
        renderer.render(figure(), TIMEOUT_S)


def test_close_does_not_wait_for_a_figure(renderer: Renderer) -> None:
    pid = pid_of(renderer)
    errors: list[Exception] = []

    def draw() -> None:
        try:
            renderer.render(figure(hang), TIMEOUT_S)
        except RenderingFailed as error:
            errors.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    assert wait_until(lambda: psutil.Process(pid).cpu_percent(0.1) > 20)
    began = time.monotonic()
    renderer.close()
    thread.join()
    assert time.monotonic() - began < 5.0
    assert "closed" in str(errors[0])
    assert is_gone(pid)


TRAINER = """
import os, signal, sys
from mle_client.renderer import Renderer
with open(sys.argv[1], "rb") as file:
    payload = file.read()
Renderer().render(payload, float(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("hangs", [False, True])
def test_it_ends_when_its_trainer_was_killed(hangs: bool, tmp_path: Path) -> None:
    pid_file, parent_pid = tmp_path / "pid", os.getpid()

    def note_pid() -> None:
        import os
        import signal

        pid_file.write_text(f"{os.getpid()} ")
        assert os.getppid() != parent_pid
        if hangs:
            os.kill(os.getppid(), signal.SIGKILL)
            while True:
                pass

    payload = tmp_path / "figure"
    payload.write_bytes(figure(note_pid))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    timeout_s = "5" if hangs else str(TIMEOUT_S)  # which ends it, too, where its trainer cannot
    command = [sys.executable, "-c", TRAINER, str(payload), timeout_s]
    done = subprocess.run(command, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert wait_until(lambda: is_gone(int(pid_file.read_text())), timeout=30.0)


def test_a_forked_child_leaves_the_process_to_its_parent(renderer: Renderer) -> None:
    pid = pid_of(renderer)
    gc.collect()  # of other tests; the child is to count what it closes itself
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            files = len(os.listdir("/proc/self/fd"))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                renderer.forget()
                gc.collect()
            renderer.close()
            closed = files - len(os.listdir("/proc/self/fd"))
            status = 0 if closed == 2 and not caught else 2
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert renderer.render(figure(), TIMEOUT_S) == PICTURE
    assert pid_of(renderer) == pid


# --- the command line -----------------------------------------------------------------------------
def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "mle_client.rendering", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def test_the_command_line_makes_a_picture_of_a_file(tmp_path: Path) -> None:
    source, target = tmp_path / "figure", tmp_path / "picture"
    source.write_bytes(figure())
    target.write_bytes(b"an older one")
    done = run("--input", source, "--output", target)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert target.read_bytes() == PICTURE
    assert {path.name for path in tmp_path.iterdir()} == {"figure", "picture"}


@pytest.mark.parametrize(
    "trouble", ["garbage", "no input", "no folder", "a folder in its place", "a failing figure"]
)
def test_the_command_line_says_in_one_line_what_is_wrong(trouble: str, tmp_path: Path) -> None:
    def fail() -> None:
        import logging
        import warnings

        warnings.warn("not asked for", stacklevel=1)
        logging.getLogger("matplotlib").error("not asked for")
        raise ValueError("two\nlines")

    source, target = tmp_path / "figure", tmp_path / "picture"
    source.write_bytes(b"garbage" if trouble == "garbage" else figure())
    if trouble == "a failing figure":
        source.write_bytes(figure(fail))
    if trouble == "no input":
        source.unlink()
    if trouble == "no folder":
        target = tmp_path / "missing" / "picture"
    if trouble == "a folder in its place":
        target.mkdir()
    done = run("--input", source, "--output", target)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert str(source) in done.stderr or str(target) in done.stderr
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} <= {"figure"}


def test_the_command_line_wants_both_files(tmp_path: Path) -> None:
    assert run("--input", tmp_path / "figure").returncode == 2
