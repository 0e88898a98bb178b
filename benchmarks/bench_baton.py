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
from mle_client import tick_layout, tick_writers, ticks
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


def source_of(schema: m.Schema, direct: tuple[Any, ...]) -> str:
    """The source of the generated writer."""
    return tick_writers.writer_source(schema, direct, ())


def replaced(source: str, *changes: tuple[str, str]) -> str:
    """A source with some pieces replaced, all of which must be there."""
    for old, new in changes:
        if old not in source:
            raise ValueError(f"the generated writer has no {old!r} any more: adapt this benchmark")
        source = source.replace(old, new)
    return source


def as_it_is(source: str) -> str:
    """No change."""
    return source


def without_protection(source: str) -> str:
    """The same, but any thread may write at any time; the offset lies in the list for good."""
    return replaced(
        source,
        ("at = take()", "at = baton[0]"),
        ("give(at + ", "baton[0] = (at + "),
        ("give(at)", "pass"),
    )


def with_lock(source: str) -> str:
    """The same with `take` as a lock around all that the holder of the baton does."""
    return replaced(
        without_protection(source),
        ("at = baton[0]", "with take:\n                at = baton[0]"),
        ("            pack(", "                pack("),
        ("            baton[0] =", "                baton[0] ="),
    )


def with_numbers(source: str) -> str:
    """The same with a number in every tick, in place of its first clock."""
    return replaced(
        source,
        ("            v0 = clock_tick['number']\n", ""),
        ("len(stats_tick) == 7", "len(stats_tick) == 6"),
        ("now(), v0,", "now(), number,"),
        ("        try:", "        nonlocal number\n        try:"),
        ("at = take()", "at = take(); number += 1"),
        ("    buffer = None", "    buffer = None\n    number = 0"),
    )


def writer(
    change: Callable[[str], str], take: Any = None, numbered: bool = False
) -> tuple[Update, Callable[[], None]]:
    """A writer into a segment, and what empties the segment."""
    clock = {"number": 0, **CLOCK} if numbered else CLOCK
    described = ticks.describe(clock, STATS)
    assert described.direct is not None
    schema = m.Schema(0, described.clock, described.stats)
    first = HEADER_BYTES + len(tick_layout.head(schema))
    baton = [first]
    hooks = tick_writers.Hooks(take or baton.pop, baton.append, time.time, missed, missed)
    namespace: dict[str, Any] = {"baton": baton}
    exec(change(source_of(schema, described.direct)), namespace)
    constants = [(item, None) for item in described.direct]
    pack = tick_writers.writer_struct(schema).pack_into
    update, bind = namespace["make"](hooks, pack, struct.error, np.ndarray, constants)
    bind(bytearray(SEGMENT_BYTES))

    def empty() -> None:
        baton[:] = [first]

    return update, empty


def missed(*arguments: Any) -> None:
    raise AssertionError("the writer did not take the tick")


VARIANTS: dict[str, tuple[Update, Callable[[], None]]] = {
    "floor: append copies of the dicts": floor(),
    "no protection": writer(without_protection),
    "baton (what is used)": writer(as_it_is),
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
