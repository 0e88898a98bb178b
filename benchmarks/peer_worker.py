"""One process that logs with one logger, and says what that has cost it.

    python -P -m benchmarks.peer_worker '{"peer": "jsonl", "case": "run", ...}'

It runs in the logger's own environment, so it needs nothing but the standard library.  When the
logger is open it writes a line of JSON and waits for a line from the benchmark that has started it;
then it does its case, writes a line with the figures and waits again, so that what its processes
have used can be looked at while they live.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from benchmarks import timing
from benchmarks.peer_adapters import EPOCH, LOSS, PEERS, STEP, TEST_LOSS, Peer

NOTHING: Final = {  # what is no logger, and what is done for each tick instead
    "loop": "pass",
    "floor": "buf.append((dict(clock), dict(stats)))",
}
TIMER, FLOOR, UPDATE = "timer", "floor", "update"
WARM_UP_TICKS: Final = 200
_UPDATE: Final = "log.update(clock, stats)"
_NOW: Final = time.perf_counter_ns


@dataclass(frozen=True, slots=True)
class Order:
    """What to do.

    Args:
        peer: one of `PEERS` or `NOTHING`.
        case: one of `CASES`.
        target: where to log to.
        folder: to work in.
        seed: the number of the run.
        ticks: in a block, or in all.
        blocks: how many.
    """

    peer: str
    case: str
    target: str
    folder: str
    seed: int
    ticks: int
    blocks: int = 1


def main() -> None:
    """Run the program."""
    order = Order(**json.loads(sys.argv[1]))
    # What a logger prints must not come between the lines.
    to_parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    Path(order.folder).mkdir(parents=True, exist_ok=True)
    os.chdir(order.folder)
    opened = {} if order.peer in NOTHING else _import(order.peer)
    begin = _NOW()
    peer = None if order.peer in NOTHING else PEERS[order.peer](order.target, order.seed)
    opened["open_s"] = (_NOW() - begin) / 1e9
    CASES[order.case](order, peer, functools.partial(_say, to_parent), opened)


def _say(to_parent: TextIO, figures: Mapping[str, Any]) -> None:
    """Write a line, and wait for one."""
    print(json.dumps(figures), file=to_parent, flush=True)
    if not sys.stdin.readline():
        raise SystemExit("the benchmark has ended")


def _import(peer: str) -> dict[str, float]:
    """Import what a logger needs.  Returns: what the process takes of memory then."""
    os.environ.update(PEERS[peer].settings)
    for module in PEERS[peer].imports:
        importlib.import_module(module)
    return {"imported_rss": float(_rss())}


def _noise(seed: int, count: int) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(0.0, 1.0) for _ in range(count)]


# --- from the first tick until all is closed ------------------------------------------------------
def run(
    order: Order, peer: Peer | None, say: Callable[..., None], opened: dict[str, float]
) -> None:
    """Log ticks as fast as possible, and close."""
    losses = _noise(order.seed, order.ticks)
    buf: list[timing.Tick] = []
    loop = functools.partial(_untimed(order.peer), losses, log=peer and peer.log, buf=buf)
    say({**opened, "reaped_cpu_s": _reaped_cpu_s()})
    began_at, cpu_s, reaped_cpu_s = time.monotonic(), time.process_time(), _reaped_cpu_s()
    loop(first=0, end=1)
    first_at = time.monotonic()
    loop(first=1, end=order.ticks)
    called_at, rss = time.monotonic(), _rss()
    if peer:
        peer.close()
    closed_at, cpu_s = time.monotonic(), time.process_time() - cpu_s
    reaped_cpu_s = _reaped_cpu_s() - reaped_cpu_s
    say(
        {
            **opened,
            "began_at": began_at,
            "first_s": first_at - began_at,
            "called_at": called_at,
            "closed_at": closed_at,
            "cpu_s": cpu_s,
            "reaped_cpu_s": reaped_cpu_s,
            "rss": rss,
        }
    )
    if peer and (stored := peer.count()) not in (None, order.ticks):
        raise SystemExit(f"{order.peer} has stored {stored} ticks and not {order.ticks}")


def _untimed(peer: str) -> Callable[..., None]:
    """The loop, the same text for all but for what is done with a tick."""
    text = f"""
def loop(losses, first, end, log, buf):
    for i in range(first, end):
        clock = {{"{STEP}": i, "{EPOCH}": i >> 7}}
        stats = {{"{LOSS}": losses[i], "{TEST_LOSS}": losses[-1 - i]}}
        {NOTHING.get(peer, _UPDATE)}
"""
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    loop: Callable[..., None] = namespace["loop"]
    return loop


def _reaped_cpu_s() -> float:
    """CPU time of children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _rss() -> int:
    """Memory that the process has, in bytes; the most it had where the system tells no more."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()


# --- every single call ----------------------------------------------------------------------------
def calls(
    order: Order, peer: Peer | None, say: Callable[..., None], opened: dict[str, float]
) -> None:
    """Time calls, and beside them the floor and the timer, on the same dicts."""
    assert peer is not None
    blocks = {
        TIMER: timing.timed(NOTHING["loop"], _NOW),
        FLOOR: timing.timed(NOTHING["floor"], _NOW, buf=[]),
        UPDATE: timing.timed(_UPDATE, _NOW, log=peer.log),
    }
    spent: dict[str, list[int]] = {kind: [] for kind in blocks}
    say(opened)
    warm_up = min(WARM_UP_TICKS, order.ticks)
    for clock, stats in _ticks(0, warm_up):
        peer.log.update(clock, stats)
    for turn in range(order.blocks):
        ticks = _ticks(warm_up + turn * order.ticks, order.ticks)
        kinds = list(blocks)
        for kind in kinds[turn % 3 :] + kinds[: turn % 3]:
            spent[kind] += blocks[kind](ticks)
    peer.close()
    step = timing.clock_step(_NOW)
    say({kind: _percentiles(times, step) for kind, times in spent.items()})
    expected = warm_up + order.blocks * order.ticks
    if (stored := peer.count()) not in (None, expected):
        raise SystemExit(f"{order.peer} has stored {stored} ticks and not {expected}")


def _ticks(first: int, count: int) -> list[timing.Tick]:
    noise = _noise(first, count)
    return [
        ({STEP: i, EPOCH: i >> 7}, {LOSS: x, TEST_LOSS: x + 1})
        for i, x in enumerate(noise, start=first)
    ]


def _percentiles(times: list[int], step: float) -> dict[str, float]:
    return {
        "p50": timing.fine_median(times, step),
        **{name: timing.percentile(times, share) for name, share in _TAIL.items()},
    }


_TAIL: Final = {"p99": 0.99, "p99.9": 0.999, "max": 1.0}
CASES: Final = {"run": run, "calls": calls}

if __name__ == "__main__":
    main()
