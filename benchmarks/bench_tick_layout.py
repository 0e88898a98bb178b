"""What the layout of a tick, and the checks before it is written, cost an update().

    python -m benchmarks.bench_tick_layout

Takes the writer that `mle_client.ticks` generates, and puts back what it had before: a msgpack type
byte before each value; a word in the segment's header that says where the last whole record ends;
and checks that `struct` makes anyhow.  An empty function shows what is out of reach.  The floor is
`buf.append((dict(clock), dict(stats)))`, as in `update_cost`.

Each call is timed on its own; reported is the median, net of the timer.  Blocks of calls take turns
in one process, and the ratio is taken within a round.

The decision that rests on it is docs/decisions/0009.
"""

from __future__ import annotations

import mmap
import random
import struct
import time
from array import array
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks import harness
from benchmarks.harness import Tick
from mle_client import messages as m
from mle_client import tick_layout, tick_writers, ticks
from mle_client.ring import HEADER_BYTES, SEGMENT_BYTES

ROUNDS: Final = 60
CALLS: Final = 2_000  # a block: less than a segment
_NOW: Final = time.perf_counter_ns
_TIMER, _FLOOR = "timer", "floor: append copies of the dicts"

# A change of (source of the writer, format of its struct).
Change = Callable[[str, str], tuple[str, str]]


def replaced(source: str, old: str, new: str) -> str:
    """A source with a piece replaced, which must be there."""
    if old not in source:
        raise ValueError(f"the generated writer has no {old!r} any more: adapt this benchmark")
    return source.replace(old, new)


def with_checks(source: str, layout: str) -> tuple[str, str]:
    """Look at the types of ints, at both lengths, and whether there is room."""
    source = replaced(
        source,
        "len(clock_tick) + len(stats_tick) == 4",
        "type(v0) is T0 and type(v1) is T1 and len(clock_tick) == 2 and len(stats_tick) == 2",
    )
    source = replaced(source, "    buffer = None", "    buffer = None\n    limit = LIMIT")
    taken = "at = take()\n            "
    return replaced(source, taken, f"{taken}if at > limit: raise Error\n            "), layout


def with_word(source: str, layout: str) -> tuple[str, str]:
    """Store where the records end in a word of the segment."""
    source = replaced(source, "    buffer = None", "    buffer = None\n    words = WORDS")
    size = struct.calcsize(layout)
    stored = f"at += {size}\n            words[2] = at\n            give(at)"
    return replaced(source, f"give(at + {size})", stored), layout


def with_type_bytes(source: str, layout: str) -> tuple[str, str]:
    """Write each value as a msgpack value, with its type in a byte before it."""
    source = replaced(source, "v0, v1, v2, v3", "0xD3, v0, 0xD3, v1, 0xCB, v2, 0xCB, v3")
    changed = replaced(layout, "@dqqdd", ">dBqBqBdBd")
    size, before = struct.calcsize(changed), struct.calcsize(layout)
    return replaced(source, f"at + {before}", f"at + {size}"), changed


def tick(i: int, x: float) -> Tick:
    """What is logged: two clocks and two statistics."""
    return {"num_steps": i, "num_epochs": i // 100}, {"train_loss": x, "test_loss": x + 1}


def missed(*arguments: Any) -> None:
    raise AssertionError("the writer did not take the tick")


def writer(*changes: Change) -> tuple[Callable[..., None], Callable[[], None]]:
    """A writer into a segment, and what empties the segment."""
    described = ticks.describe(*tick(0, 0.5))
    assert described.direct is not None
    schema = m.Schema(0, described.clock, described.stats)
    first = HEADER_BYTES + len(tick_layout.head(schema))
    source = tick_writers.writer_source(schema, described.direct, ())
    layout = tick_writers.writer_struct(schema).format
    for change in changes:
        source, layout = change(source, layout)
    packer = struct.Struct(layout)
    segment = mmap.mmap(-1, SEGMENT_BYTES)
    segment[:] = bytes(SEGMENT_BYTES)
    namespace: dict[str, Any] = {
        "LIMIT": SEGMENT_BYTES - packer.size,
        "WORDS": memoryview(segment)[:HEADER_BYTES].cast("Q"),
    }
    exec(source, namespace)
    baton = [first]
    hooks = tick_writers.Hooks(baton.pop, baton.append, time.time, missed, missed)
    constants = [(item, None) for item in described.direct]
    update, bind = namespace["make"](hooks, packer.pack_into, struct.error, np.ndarray, constants)
    bind(segment)

    def empty() -> None:
        baton[:] = [first]

    return update, empty


def empty_function() -> tuple[Callable[..., None], Callable[[], None]]:
    """Nothing, with the signature of `MLELogger.update`."""
    namespace: dict[str, Any] = {}
    exec(f"def update({tick_writers._SIGNATURE}): pass", namespace)
    return namespace["update"], lambda: None


WRITERS: Final = {
    "type bytes, word, checks (before)": writer(with_type_bytes, with_checks, with_word),
    "type bytes, checks": writer(with_type_bytes, with_checks),
    "byte string, word, checks": writer(with_checks, with_word),
    "byte string, checks": writer(with_checks),
    "byte string (what is used)": writer(),
    "empty function": empty_function(),
}


def measure() -> dict[str, list[float]]:
    """The median time of a call in each round, in ns, the timer's included."""
    blocks: dict[str, harness.Block] = {
        _TIMER: harness.timed("pass", _NOW),
        _FLOOR: harness.timed("buf.append((dict(clock), dict(stats)))", _NOW, buf=[]),
    }
    for name, (update, _) in WRITERS.items():
        blocks[name] = harness.timed("update(clock, stats)", _NOW, update=update)
    step = harness.clock_step(_NOW)
    found: dict[str, list[float]] = {name: [] for name in blocks}
    for turn in range(ROUNDS):
        values = [tick(turn * CALLS + i, random.random()) for i in range(CALLS)]
        for name in harness.rotated(blocks, turn):
            if name in WRITERS:
                WRITERS[name][1]()
            spent: array[int] = blocks[name](values)
            found[name].append(harness.fine_median(spent, step))
    return found


def main() -> None:
    """Measure and print."""
    found = measure()
    timer = found.pop(_TIMER)
    net = {
        name: [ns - t for ns, t in zip(spent, timer, strict=True)] for name, spent in found.items()
    }
    print(f"{'':<36}{'ns a call':>10}{'x floor':>9}   (p50; {ROUNDS} rounds of {CALLS} calls)")
    for name, spent in net.items():
        ratio = harness.median(ns / floor for ns, floor in zip(spent, net[_FLOOR], strict=True))
        print(f"{name:<36}{harness.median(spent):>10.0f}{ratio:>9.2f}")


if __name__ == "__main__":
    main()
