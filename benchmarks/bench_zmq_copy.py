"""What it costs to give a piece of a ring to ZeroMQ: copied, or as it lies there.

    python benchmarks/bench_zmq_copy.py

Sends `memoryview`s from a DEALER to a ROUTER in another process, over ipc, as the sender thread
does, with copy=True and with copy=False and track=True.  Numbers are CPU time, so that other
programs on the machine change them little, and the least of many rounds.  They are those of the
thread that sends, and of the thread in which pyzmq lets go of what it did not copy.  A thread holds
the GIL for a part of its CPU time.  pyzmq makes the copy itself without it, so what does not grow
with the size bounds that part.

The decision that rests on it is docs/decisions/0002-copy-frames-into-zeromq.md.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import tempfile
import time
from typing import Any

import zmq
from zmq.utils.garbage import gc as releasing

SIZES = (64, 16 * 1024, 256 * 1024)  # bytes of a message
ROUNDS = 25
MESSAGES = 200  # a round; with the largest size 50 MB
SETTLE_S = 0.01  # so that what a round sent is not let go of in the next
ON_THE_WAY = 16  # messages sent ahead of answers: with the largest size the daemon's window


def receive(address: str) -> None:
    """Be the other process: take every message, and answer it."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(address)
        while True:
            identity, payload = socket.recv_multipart(copy=False)
            if len(payload) == 0:
                return
            socket.send_multipart([identity, b"."])


def send_round(socket: Any, view: memoryview, copy: bool) -> tuple[float, float]:
    """Send messages.  Returns: CPU seconds of a send, and of letting go of what was sent."""
    seconds = 0.0
    releasing_before = releasing_time()
    for number in range(MESSAGES):
        if number >= ON_THE_WAY:
            socket.recv()
        started = time.thread_time()
        if copy:
            socket.send(view, copy=True)
        else:
            socket.send(view, copy=False, track=True)
        seconds += time.thread_time() - started
    for _ in range(ON_THE_WAY):
        socket.recv()
    return seconds / MESSAGES, (releasing_time() - releasing_before) / MESSAGES


def releasing_time() -> float:
    """CPU seconds so far of the thread that lets go of messages."""
    thread = releasing.thread
    if thread is None or thread.ident is None:
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def timer_cost() -> float:
    """Seconds that `thread_time` adds to what is between two of its calls."""
    times = [time.thread_time() for _ in range(2001)]
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="mle-") as folder:
        address = f"ipc://{folder}/socket"
        receiver = multiprocessing.get_context("spawn").Process(target=receive, args=(address,))
        receiver.start()
        print(f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}; least of {ROUNDS} rounds")
        print(f"{'bytes':>8}  {'how':<22}{'sending, µs':>12}{'releasing, µs':>15}{'sum, µs':>10}")
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.connect(address)
            socket.copy_threshold = 0  # else pyzmq copies below 64 KiB whatever it is told
            for size in SIZES:
                measure(socket, size)
            socket.send(b"")
            receiver.join()


def measure(socket: Any, size: int) -> None:
    """Measure both ways in turns with messages of one size."""
    view = memoryview(bytearray(size))
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    timer = timer_cost()
    for _ in range(ROUNDS):
        for copy, results in found.items():
            results.append(send_round(socket, view, copy))
            time.sleep(SETTLE_S)
    for copy, results in found.items():
        sending, letting_go = (1e6 * min(column) for column in zip(*results, strict=True))
        sending -= 1e6 * timer
        how = "copy=True" if copy else "copy=False, track=True"
        print(
            f"{size:>8}  {how:<22}{sending:>12.1f}{letting_go:>15.1f}{sending + letting_go:>10.1f}"
        )


if __name__ == "__main__":
    main()
