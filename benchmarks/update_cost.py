"""What a call of `MLELogger.update()` costs the caller.

Everything is real: the ring, the thread that ships it, a daemon that journals and publishes.  The
*floor*, `buf.append((dict(clock), dict(stats)))`, is what it costs to keep a copy of a tick in a
list, and is run on the very same dicts in the same process; nothing that keeps what it is given can
be much cheaper.  The list is never emptied.

Blocks of some 2,000 calls take turns, so that a change of the machine's speed hits all alike.  The
time that the thread takes from the interpreter is in whichever block it falls.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks import harness
from benchmarks.harness import Goal, Picture, Result, Table, Tick
from benchmarks.workspace import Workspace, workspace

NAME: Final = "update_cost"
FLOOR, UPDATE, SAVE = "floor", "update", "update(save=True)"
_TIMER = "timer"
_NOW: Final = time.perf_counter_ns
_STEP_NS: Final = harness.clock_step(_NOW)
_MAIN_CASE: Final = "2 clocks + 2 statistics"
# Of the main case, times the floor's: p50, and the slow calls, in which the floor collects garbage.
GOAL_X_FLOOR: Final = 2.5
TAIL_GOAL_X_FLOOR: Final = 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        blocks: of each kind in one process.
        calls: in a block.
        processes: for the main case; where memory happens to lie makes one process a tenth faster
            than another, for the floor as for the rest.
    """

    blocks: int
    calls: int
    processes: int = 1
    cases: tuple[str, ...] | None = None


def _clock(i: int) -> dict[str, Any]:
    return {"num_steps": i, "num_epochs": i // 100}


def _scalars(count: int) -> Callable[[int, float], Tick]:
    names = [f"statistic_{k}" for k in range(count)]
    return lambda i, x: (_clock(i), {name: x + k for k, name in enumerate(names)})


def _plain(i: int, x: float) -> Tick:
    return _clock(i), {"train_loss": x, "test_loss": x + 1}


def _vector(i: int, x: float) -> Tick:
    return _clock(i), {"gradient_norms": np.full(100, x)}


def _text(i: int, x: float) -> Tick:
    return _clock(i), {"train_loss": x, "phase": f"warm-up {i % 7}"}


def _alternating(i: int, x: float) -> Tick:
    if i % 2:
        return _clock(i), {"train_loss": x, "learning_rate": x + 1}
    return _clock(i), {"train_loss": x, "test_loss": x + 1}


# Name -> (the i-th tick from a float, its share of the calls: the floor keeps all in memory).
CASES: Final[dict[str, tuple[Callable[[int, float], Tick], float]]] = {
    _MAIN_CASE: (_plain, 1.0),
    "2 clocks + 50 statistics": (_scalars(50), 0.2),
    "a vector of 100": (_vector, 0.5),
    "a float and a string": (_text, 0.5),
    "keys that alternate": (_alternating, 0.5),
}

# Bytes: none; about a core's own caches; more than those, and than most shared ones.
COLD_REACHES: Final = (0, 256 << 10, 4 << 20, 64 << 20)

SIZES: Final = {
    "full": Size(blocks=40, calls=2_000, processes=7),
    "quick": Size(blocks=15, calls=2_000, processes=3),
    "tiny": Size(blocks=3, calls=50),
}


def run(size: Size) -> Result:
    """Measure every case in a process and with a daemon of its own."""
    rows: list[tuple[Any, ...]] = []
    figures: dict[str, Any] = {}
    for case in size.cases or tuple(CASES):
        harness.tell(f"{NAME}: {case}")
        repeats = size.processes if case == _MAIN_CASE else 1
        lives = [harness.fresh(_measure_alone, case, size) for _ in range(repeats)]
        spent = {kind: [block for life in lives for block in life[kind]] for kind in lives[0]}
        figures[case] = {kind: list(map(_block_figures, spent[kind])) for kind in spent}
        rows += [(case, *row) for row in _rows(spent, figures[case])]
    table = Table(
        "Caller's cost of a call in ns, net of the timer; x floor: medians over the rounds",
        ("case", "call", "p50", "p99", "p99.9", "max", "mean", "p50 x floor", "mean x floor"),
        tuple(rows),
    )
    harness.tell(f"{NAME}: cold")
    cold = harness.fresh(_measure_cold, size)
    figures["cold"] = cold
    tables = (table, _cold_table(cold))
    return Result(NAME, tables, tuple(_goals(rows)), figures, _pictures(table))


def _goals(rows: Sequence[tuple[Any, ...]]) -> Iterator[Goal]:
    by_call = {row[:2]: row for row in rows}
    floor, update = by_call[_MAIN_CASE, FLOOR], by_call[_MAIN_CASE, UPDATE]
    yield Goal(f"p50 of update with {_MAIN_CASE}, x floor", GOAL_X_FLOOR, update[7])
    for at, name in ((3, "p99"), (4, "p99.9")):
        what = f"{name} of update with {_MAIN_CASE}, x floor's"
        yield Goal(what, TAIL_GOAL_X_FLOOR, update[at] / floor[at])


def _pictures(table: Table) -> tuple[Picture, ...]:
    """A usual call and a slow one, for each case."""
    ns = {row[:2]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    cases = tuple(dict.fromkeys(case for case, _ in ns))
    return tuple(
        Picture(
            figure,
            f"What a call costs: {figure}",
            "ns, net of the timer",
            {
                kind: tuple(ns[case, kind][figure] for case in cases)
                for kind in (FLOOR, UPDATE, SAVE)
            },
            cases,
            log=True,
        )
        for figure in ("p50", "p99")
    )


# --- calls between other work ---------------------------------------------------------------------
def _measure_cold(size: Size) -> dict[int, dict[str, float]]:
    """Single calls, each after so many bytes of other memory were read and written.

    Returns:
        Bytes -> kind of call -> p50 in ns, net of the timer.
    """
    make, _ = CASES[_MAIN_CASE]
    found = {}
    with workspace() as space:
        log = space.logger("cold")
        for i in range(100):
            log.update(*make(i, 0.5 * i))
        blocks = _blocks(log)
        for reach in COLD_REACHES:
            other = np.zeros(reach // 8)
            spent: dict[str, array[int]] = {kind: array("q") for kind in blocks}
            for turn in range(size.calls // 10):
                for kind in harness.rotated(blocks, turn):
                    tick = [make(turn, 0.5 * turn)]
                    np.add(other, 1.0, out=other)
                    spent[kind].extend(blocks[kind](tick))
            timer = harness.fine_median(spent[_TIMER], _STEP_NS)
            p50 = {kind: harness.fine_median(each, _STEP_NS) for kind, each in spent.items()}
            found[reach] = {kind: ns - timer for kind, ns in p50.items() if kind != _TIMER}
        log.close(60.0)
    return found


def _cold_table(cold: dict[int, dict[str, float]]) -> Table:
    rows = [
        (f"{reach >> 10:,} KiB", each[FLOOR], each[UPDATE], each[SAVE], each[UPDATE] / each[FLOOR])
        for reach, each in cold.items()
    ]
    columns = ("other memory touched before a call", FLOOR, UPDATE, SAVE, "update x floor")
    return Table(f"p50 of single calls in ns, {_MAIN_CASE}, between other work", columns, (*rows,))


# --- calls in a loop ------------------------------------------------------------------------------
def _measure_alone(case: str, size: Size) -> dict[str, list[array[int]]]:
    with workspace() as space:
        return measure(space, case, size)


def measure(space: Workspace, case: str, size: Size) -> dict[str, list[array[int]]]:
    """Measure one case.

    Returns:
        Kind of call -> for each block, the times in ns, the timer's cost included.
    """
    make, share = CASES[case]
    calls = max(20, int(size.calls * share))
    batches = _batches(make, calls)
    log = space.logger(case)
    for clock, stats in next(batches):  # the first ticks go the general way
        log.update(clock, stats)
    blocks = _blocks(log)
    spent: dict[str, list[array[int]]] = {kind: [] for kind in blocks}
    for turn in range(size.blocks):
        ticks = next(batches)
        for kind in harness.rotated(blocks, turn):
            spent[kind].append(blocks[kind](ticks))
    report = log.close(60.0)
    if (report.delivered, report.lost) != ((2 * size.blocks + 1) * calls, 0):
        raise RuntimeError(f"this is what became of the ticks: {report}")
    return spent


def _batches(make: Callable[[int, float], Tick], calls: int) -> Iterator[list[Tick]]:
    """Dicts for one block after another; the numbers are what a noisy training logs."""
    generator = np.random.default_rng(0)
    first = 0
    while True:
        noise = generator.normal(size=calls).tolist()
        yield [make(first + i, x) for i, x in enumerate(noise)]
        first += calls


def _blocks(log: Any) -> dict[str, harness.Block]:
    buf: list[Tick] = []
    return {
        _TIMER: harness.timed("pass", _NOW),
        FLOOR: harness.timed("buf.append((dict(clock), dict(stats)))", _NOW, buf=buf),
        UPDATE: harness.timed("log.update(clock, stats)", _NOW, log=log),
        SAVE: harness.timed("log.update(clock, stats, save=True)", _NOW, log=log),
    }


def _block_figures(spent: array[int]) -> dict[str, float]:
    return {"p50": harness.fine_median(spent, _STEP_NS), "mean": sum(spent) / len(spent)}


def _rows(
    spent: dict[str, list[array[int]]], blocks: dict[str, list[dict[str, float]]]
) -> Iterator[tuple[Any, ...]]:
    """The table's rows of a case, without its name."""
    timer = _pooled(spent[_TIMER])
    timer_p50 = harness.fine_median(timer, _STEP_NS)
    for kind in (FLOOR, UPDATE, SAVE):
        all_ns = _pooled(spent[kind])
        tail = [harness.percentile(all_ns, share) for share in (0.99, 0.999, 1.0)]
        net = [ns - timer_p50 for ns in (harness.fine_median(all_ns, _STEP_NS), *tail)]
        mean = sum(all_ns) / len(all_ns) - sum(timer) / len(timer)
        x_floor = [_x_floor(blocks, kind, figure) for figure in ("p50", "mean")]
        yield kind, *net, mean, *x_floor


def _pooled(blocks: Sequence[array[int]]) -> list[int]:
    return [ns for block in blocks for ns in block]


def _x_floor(blocks: dict[str, list[dict[str, float]]], kind: str, figure: str) -> float:
    """The median over the rounds of the ratio to the floor, both net of that round's timer."""
    return harness.median(
        (mine[figure] - timer[figure]) / (floor[figure] - timer[figure])
        for mine, floor, timer in zip(blocks[kind], blocks[FLOOR], blocks[_TIMER], strict=True)
    )
