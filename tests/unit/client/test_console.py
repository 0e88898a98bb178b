"""The thread that prints: the order of lines, slow terminals, and what a caller feels of both."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")

from mle_client import console
from mle_client.console import Console

TIMEOUT = 20.0


@pytest.fixture
def make_console() -> Iterator[Callable[..., Console]]:
    made: list[Console] = []

    def make(**settings: Any) -> Console:
        settings = {"start_time": 0.0, "time_to_print": ["num_updates"], **settings}
        made.append(Console(**settings))
        return made[-1]

    yield make
    for each in made:
        each.close(TIMEOUT)


def numbers(text: str) -> list[int]:
    """The updates that a table of num_updates alone shows."""
    return [int(number) for number in re.findall(r"^\s*(\d+)\s*$", text, re.MULTILINE)]


def log(shown: Console, *updates: int, **stats: Any) -> None:
    for number in updates:
        shown.update({}, stats, number=number, seconds=1.0)


def test_lines_appear_in_order(make_console: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shown = make_console()
    shown.started(experiment_dir="exp/")
    shown.reloaded("exp/old")
    shown.stored({"figure": "fig_1.png"})
    log(shown, *range(1, 101))
    assert shown.close(TIMEOUT)
    out = capsys.readouterr().out
    assert numbers(out) == list(range(1, 101))
    places = [out.index(text) for text in ("mle-daemon v", "exp/old", "fig_1.png", "num_updates")]
    assert places == sorted(places)
    assert shown.left_out == 0


def test_a_line_goes_to_what_stdout_is_when_it_is_printed(
    make_console: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = make_console()
    for number in (1, 2):
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        log(shown, number)
        wait_for(lambda number=number: numbers(sys.stdout.getvalue()) == [number])  # type: ignore[attr-defined]


def test_a_program_without_stdout_is_let_be(
    make_console: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    problems: list[str] = []
    shown = make_console(on_problem=problems.append)
    log(shown, 1)
    assert shown.close(TIMEOUT)
    assert problems == []


def test_text_that_stdout_cannot_encode_is_replaced(
    make_console: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    shown = make_console(time_to_print=[], what_to_print=["größe"])
    log(shown, 1, größe=0.5)
    assert shown.close(TIMEOUT)
    assert b"gr??e" in raw.getvalue()
    assert shown.left_out == 0


@pytest.mark.parametrize(
    ("every", "wanted"), [(1, [1, 2, 3, 4, 5, 6]), (3, [1, 3, 6]), (10, [1]), (None, [])]
)
def test_every_kth_update_and_the_first_are_wanted(
    make_console: Any, every: int | None, wanted: list[int]
) -> None:
    shown = make_console(print_every_k_updates=every)
    assert [number for number in range(1, 7) if shown.wants(number)] == wanted


def test_values_are_shown_as_they_were_at_the_call(
    make_console: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = make_console(time_to_print=["step"], what_to_print=["array", "list"])
    holder = Holder(shown)
    clock, array, items = {"step": 1}, np.array([1, 2]), [3, 4]
    stats = {"array": array, "list": items}
    with holder:  # the thread has something else to do meanwhile
        shown.update(clock, stats, number=2, seconds=1.0)
        array[:] = items[:] = [8, 9]
        clock["step"] = stats["array"] = 9
    assert shown.close(TIMEOUT)
    assert capsys.readouterr().out.split()[-5:] == ["1", "[1", "2]", "[3", "4]"]


def test_a_large_array_is_not_copied(make_console: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shown = make_console(what_to_print=["x"])
    array = np.zeros((1000, 1000), np.float32)
    shown.update({}, {"x": array}, number=1, seconds=1.0)
    assert sys.getrefcount(array) == 2  # ours, and the argument's: nothing was kept either
    assert shown.close(TIMEOUT)
    assert "float32" in capsys.readouterr().out


def test_a_tensor_is_copied_at_the_call() -> None:
    class Tensor:
        shape = (2,)

        def __init__(self, values: list[float]) -> None:
            self.values = values

        def detach(self) -> Tensor:
            return self

        def clone(self) -> Tensor:
            return Tensor(list(self.values))

    tensor = Tensor([1.0, 2.0])
    kept = console._kept(tensor)
    tensor.values[0] = 9.0
    assert kept.values == [1.0, 2.0]


class Holder(io.StringIO):
    """A stdout that takes nothing for a while, as a terminal after Ctrl-S."""

    def __init__(self, shown: Console) -> None:
        super().__init__()
        self._shown = shown
        self._go_on = threading.Event()
        self._reached = threading.Event()

    def write(self, text: str) -> int:
        self._reached.set()
        assert self._go_on.wait(TIMEOUT)
        return super().write(text)

    def __enter__(self) -> Holder:
        self._before, sys.stdout = sys.stdout, self
        log(self._shown, 1)
        assert self._reached.wait(TIMEOUT)
        sys.stdout = self._before
        return self

    def __exit__(self, *exception: object) -> None:
        self._go_on.set()


def test_a_terminal_that_takes_nothing_costs_the_oldest_lines_and_no_time(
    make_console: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = make_console()
    with Holder(shown):
        began = time.thread_time()
        log(shown, *range(2, 10_002))
        cost = time.thread_time() - began
    assert shown.close(TIMEOUT)
    out = capsys.readouterr().out
    assert numbers(out) == list(range(9_002, 10_002))
    assert "9000 left out" in out
    assert shown.left_out == 9000
    assert cost < 1.0  # 0.02 s on the machine this was written on


@pytest.mark.usefixtures("capsys")
def test_an_update_never_waits_for_a_lock(make_console: Any) -> None:
    shown = make_console()
    log(shown, 1)
    calls = []

    def again(number: int, frame: Any) -> None:
        calls.append(number)
        log(shown, 2)

    before = signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            log(shown, 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert shown.close(TIMEOUT)
    assert calls


@pytest.fixture
def stdout_to(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Lets sys.stdout write to a descriptor, with the very classes that it has as a rule."""
    opened = []

    def redirect(descriptor: int) -> None:
        opened.append(open(descriptor, "w", encoding="utf-8"))  # noqa: SIM115
        monkeypatch.setattr(sys, "stdout", opened[-1])

    yield redirect
    monkeypatch.undo()
    for file in opened:
        with contextlib.suppress(OSError):
            file.close()


class Terminal:
    """A pseudo-terminal, and a thread that reads what arrives at its other side."""

    def __init__(self) -> None:
        self._master, self.descriptor = pty.openpty()
        tty.setraw(self.descriptor, termios.TCSANOW)
        self.text = b""

    def read(self, until: Callable[[bytes], bool]) -> str:
        end = time.monotonic() + TIMEOUT
        while not until(self.text):
            assert time.monotonic() < end, self.text
            if select.select([self._master], [], [], 0.05)[0]:
                self.text += os.read(self._master, 65536)
        return self.text.decode()

    def close(self) -> None:
        os.close(self._master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def test_a_real_terminal_gets_colours_and_every_row(
    make_console: Any,
    terminal: Terminal,
    stdout_to: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    stdout_to(terminal.descriptor)
    shown = make_console()
    print("before")
    log(shown, *range(1, 21))
    text = terminal.read(lambda text: b"20" in text)
    assert shown.close(TIMEOUT)
    print("after")
    text = terminal.read(lambda text: b"after" in text)
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "\x1b[31m" in text
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert numbers(plain) == list(range(1, 21))


def test_a_stopped_terminal_holds_up_nobody(
    make_console: Any, terminal: Terminal, stdout_to: Callable[[int], None]
) -> None:
    stdout_to(terminal.descriptor)
    problems: list[str] = []
    shown = make_console(on_problem=problems.append)
    log(shown, 1)
    terminal.read(lambda text: b"1" in text)
    termios.tcflow(terminal.descriptor, termios.TCOOFF)  # what Ctrl-S does
    began = time.monotonic()
    log(shown, *range(2, 5002))
    assert not shown.close(0.3)
    assert time.monotonic() - began < TIMEOUT / 2
    wait_for(thread_is_gone)
    assert shown.left_out == 5000
    assert len(problems) == 1
    assert "takes no more" in problems[0]


@pytest.mark.parametrize("read_on", [True, False])
def test_a_full_pipe_holds_up_nobody(
    make_console: Any, stdout_to: Callable[[int], None], read_on: bool
) -> None:
    reading, writing = os.pipe()
    stdout_to(writing)
    problems: list[str] = []
    shown = make_console(on_problem=problems.append)
    print("before")  # stays in a buffer of stdout's
    log(shown, *range(1, 5001))
    if read_on:
        received = b""
        while b" 5000 " not in received:
            assert select.select([reading], [], [], TIMEOUT)[0]
            received += os.read(reading, 65536)
        assert shown.close(TIMEOUT)
        assert received.startswith(b"before\n")
        seen = numbers(received.decode())
        assert seen == sorted(set(seen))
        assert len(seen) + shown.left_out == 5000
        assert problems == []
    else:
        wait_for(lambda: not select.select([], [writing], [], 0)[1])  # until it is full
        assert not shown.close(0.3)
        wait_for(thread_is_gone)
        assert len(problems) == 1
    os.close(reading)


def test_a_reader_that_left_is_told_of_once(
    make_console: Any, stdout_to: Callable[[int], None]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stdout_to(writing)
    problems: list[str] = []
    shown = make_console(on_problem=problems.append)
    log(shown, *range(1, 11))
    assert shown.close(TIMEOUT)
    assert shown.left_out == 10
    assert problems == ["lines cannot be printed: BrokenPipeError: [Errno 32] Broken pipe"]


def test_a_failing_callback_does_not_end_the_thread(
    make_console: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(text: str) -> None:
        raise RuntimeError(text)

    shown = make_console(on_problem=fail)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
        sys.stdout.close()
        log(shown, 1)
        wait_for(lambda: shown.left_out == 1)
    log(shown, 2)
    assert shown.close(TIMEOUT)
    assert numbers(capsys.readouterr().out) == [2]


def test_closing_ends_the_thread_and_later_lines_are_none(
    make_console: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = make_console()
    log(shown, 1)
    assert shown.close(TIMEOUT)
    assert thread_is_gone()
    log(shown, 2)
    assert shown.close(TIMEOUT)
    assert thread_is_gone()
    assert numbers(capsys.readouterr().out) == [1]


def test_a_console_that_printed_nothing_has_no_thread(make_console: Any) -> None:
    shown = make_console()
    assert thread_is_gone()
    assert shown.close(TIMEOUT)


PROGRAM = """
import os, sys, threading, time
from mle_client.console import Console
shown = Console(start_time=0.0, time_to_print=["num_updates"])
for number in range(1, 51):
    shown.update({}, {}, number=number, seconds=1.0)
child = os.fork()
if not child:
    shown.forget()
    shown.update({}, {}, number=1001, seconds=1.0)
else:
    os.waitpid(child, 0)
shown.close(20.0)
sys.stdout.flush()
os._exit(0)
"""


def test_a_forked_child_prints_its_own_lines_and_not_the_parents() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.stderr == ""
    assert sorted(numbers(done.stdout)) == [*range(1, 51), 1001]


LOADED_LATER = """
import sys
from mle_client.console import Console
shown = Console(start_time=0.0, what_to_print=["loss", "x"])
before = set(sys.modules)
shown.started(experiment_dir="exp/", time_to_track=["epoch"], seed_id=1, save_top_k_ckpt=3)
shown.reloaded("exp/")
shown.stored({"figure": "fig.png", "model": "größe 📉"})
shown.update({"epoch": 1}, {"loss": 0.5, "x": "損失"}, number=1, seconds=1e9)
assert shown.close(20.0)
print(sorted(set(sys.modules) - before), file=sys.stderr)
"""


def test_the_thread_imports_nothing() -> None:
    """A process that forks meanwhile would have a child with half a module."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED_LATER], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.stderr == "[]\n"


BLOCKED_AT_EXIT = """
import sys
from mle_client.console import Console
shown = Console(start_time=0.0, time_to_print=["num_updates"])
for number in range(5000):
    shown.update({}, {}, number=number, seconds=1.0)
print(shown.close(0.5), file=sys.stderr)
"""


def test_a_program_whose_output_nobody_reads_ends_all_the_same() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKED_AT_EXIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        try:
            assert program.wait(TIMEOUT) == 0
            assert program.stderr is not None
            assert program.stderr.read() == b"False\n"
        finally:
            program.kill()


def test_without_rich_the_constructor_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def without_rich(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError("No module named 'rich'", name="rich")
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "mle_client.console_lines", raising=False)
    monkeypatch.delattr(sys.modules["mle_client"], "console_lines", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_rich)
    with pytest.raises(ImportError, match=re.escape("pip install mle-daemon[rich]")):
        Console(start_time=0.0)


def test_the_thread_leaves_most_of_the_interpreter_to_the_caller(
    make_console: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Laying out as fast as it can would take half; a fifth is promised."""
    used = []

    def lay_out(line: Any, stream: Any) -> str:
        began = time.thread_time()
        while time.thread_time() - began < 0.002:
            pass
        used.append(time.thread_time() - began)
        return ""

    shown = make_console()
    monkeypatch.setattr(shown._layout, "lay_out", lay_out)
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        log(shown, 1)
        time.sleep(0.0005)
    share = sum(used) / (time.monotonic() - began)
    assert 0 < share < 0.3
    monkeypatch.undo()


def thread_is_gone() -> bool:
    return "mle-console" not in [thread.name for thread in threading.enumerate()]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
