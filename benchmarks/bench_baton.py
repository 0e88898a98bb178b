"""What it costs an update() that only one thread at a time may write to the ring.

    python benchmarks/bench_baton.py

Takes the writer that `mle_client.ticks` generates and replaces the lines that take and give back
the write offset: by nothing at all, by a lock, by one that the same thread may take twice.  One
more variant numbers every tick.  The floor is what a logger cannot do without that keeps the
caller's dicts: `buf.append((dict(clock), dict(stats)))`.  Numbers are CPU time of a call; a round
measures all variants in turn, and the ratio is taken within a round.

The decisions that rest on it are docs/decisions/0001 and 0003.
"""

from __future__ import annotations

import statistics
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mle_client import messages as m
from mle_client import ticks, wire
from mle_client.ring import HEADER_BYTES, SEGMENT_BYTES

ROUNDS = 41
CALLS = 2_000  # a round and variant: together less than a segment
CLOCK = {"num_steps": 1000, "num_epochs": 1}
STATS = {"train_loss": 0.1, "train_acc": 0.9, "test_loss": 0.2, "test_acc": 0.8}

Update = Callable[[dict[str, Any], dict[str, Any]], None]


def floor() -> tuple[Update, Callable[[], None]]:
    """Keep copies of the two dicts."""
    buffer: list[Any] = []

    def update(clock: dict[str, Any], stats: dict[str, Any]) -> None:
        buffer.append((dict(clock), dict(stats)))

    return update, buffer.clear


def source_of(schema: m.Schema, direct: tuple[Any, ...]) -> list[str]:
    """The lines of the generated writer."""
    return ticks.writer_source(schema, direct, ()).splitlines()


def without_protection(lines: list[str]) -> list[str]:
    """The same, but any thread may write at any time."""
    kept = [line for line in lines if line.strip() != "give(at)"]
    kept = [line.replace("at = take()", "at = words[1]") for line in kept]
    return [line if line.strip() != "else:" else f"{line} pass" for line in kept]


def with_lock(lines: list[str]) -> list[str]:
    """The same with `take` as a lock, whose __enter__ and __exit__ stand for take and give."""
    pack = next(line for line in lines if line.strip().startswith("pack("))
    first = lines.index(next(line for line in lines if "at = take()" in line))
    last = max(i for i, line in enumerate(lines) if line.strip() == "give(at)")
    indent = " " * 16
    guarded = [
        f"{indent}with take:",
        f"{indent}    at = words[1]",
        f"{indent}    if at <= limit:",
        f"{indent}        {pack.strip()}",
        f"{indent}        words[1] = at + SIZE",
        f"{indent}        written = True",
        f"{indent}if written and not save:",
        f"{indent}    return",
    ]
    return [*lines[:first], *guarded, *lines[last + 1 :]]


def with_numbers(lines: list[str]) -> list[str]:
    """The same with a number in every tick, in place of its first clock."""
    text = "\n".join(lines)
    text = text.replace("            v0 = clock_tick['number']\n", "")
    text = text.replace("type(v0) is T0 and ", "")
    text = text.replace("len(clock_tick) == 3", "len(clock_tick) == 2")
    text = text.replace("0xD3, v0", "0xD3, number")
    text = text.replace(
        "        written = False", "        nonlocal number\n        written = False"
    )
    text = text.replace("at = take()", "at = take(); number += 1")
    return text.replace("    limit = -1", "    limit = -1\n    number = 0").splitlines()


def writer(
    change: Callable[[list[str]], list[str]], take: Any = None, numbered: bool = False
) -> tuple[Update, Callable[[], None]]:
    """A writer into a segment, and what empties the segment."""
    clock = {"number": 0, **CLOCK} if numbered else CLOCK
    described = ticks.describe(clock, STATS)
    assert described.direct is not None
    schema = m.Schema(0, described.clock, described.stats)
    baton = [HEADER_BYTES]
    hooks = ticks.Hooks(take or baton.pop, baton.append, time.time, missed, missed)
    namespace: dict[str, Any] = {}
    exec("\n".join(change(source_of(schema, described.direct))), namespace)
    packer = ticks.tick_struct(schema)
    update, bind = namespace["make"](
        hooks, packer.pack_into, wire.head(schema), packer.size, struct.error, np.ndarray,
        [(item, None) for item in described.direct],
    )  # fmt: skip
    buffer = bytearray(SEGMENT_BYTES)
    words = memoryview(buffer)[:HEADER_BYTES].cast("Q")
    bind(buffer, words, SEGMENT_BYTES - packer.size)

    def empty() -> None:
        words[1] = baton[0] = HEADER_BYTES

    empty()
    return update, empty


def missed(*arguments: Any) -> None:
    raise AssertionError("the writer did not take the tick")


VARIANTS: dict[str, tuple[Update, Callable[[], None]]] = {
    "floor: append copies of the dicts": floor(),
    "no protection": writer(without_protection),
    "baton (what is used)": writer(list),
    "baton, and a number in every tick": writer(with_numbers, numbered=True),
    "threading.Lock": writer(with_lock, threading.Lock()),
    "threading.RLock": writer(with_lock, threading.RLock()),
}


def time_of(update: Update, empty: Callable[[], None]) -> float:
    """CPU seconds of a call, with the loop around it."""
    empty()
    repeat = range(CALLS)
    started = time.thread_time()
    for _ in repeat:
        update(CLOCK, STATS)
    return (time.thread_time() - started) / CALLS


def loop_time() -> float:
    """CPU seconds of the loop alone, for one call."""
    repeat = range(CALLS)
    started = time.thread_time()
    for _ in repeat:
        pass
    return (time.thread_time() - started) / CALLS


def main() -> None:
    """Measure and print."""
    assert CALLS * 80 < SEGMENT_BYTES
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):
        loop = loop_time()
        for name, variant in VARIANTS.items():
            found[name].append(time_of(*variant) - loop)
    floors = next(iter(found.values()))
    print(f"{'':<36}{'ns a call':>10}{'x floor':>9}   (median of {ROUNDS} rounds of {CALLS} calls)")
    for name, times in found.items():
        ratio = statistics.median(t / f for t, f in zip(times, floors, strict=True))
        print(f"{name:<36}{1e9 * statistics.median(times):>10.0f}{ratio:>9.2f}")


if __name__ == "__main__":
    main()
