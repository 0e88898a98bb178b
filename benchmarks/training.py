"""How much slower a real training is while it logs.

Two views, for the first one is honest and coarse, the second fine and by the book:

* *beside*: short blocks of the same loop take turns in one process: without logging, with a logger
  whose `update` does nothing, and with ours at several paces.  All that logging does to a training
  is in the ratio, crowded caches too; and so is what else the machine does.
* *accounted*: what logging uses is measured by itself, in a longer window of each pace: CPU time of
  each call of `update()` where it is, between two steps, and that of the logger's thread, which may
  have a core of its own, but counts as if the training stood still meanwhile.

Every tick has `save=True`, as scripts written for mle-logging give it.
"""

from __future__ import annotations

import functools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import harness, training_loops
from benchmarks.harness import Goal, Picture, Result, Table
from benchmarks.training_loops import Pace, Spent, Step, Update
from benchmarks.workspace import Workspace, variables, workspace

NAME: Final = "training"
GOAL_PERCENT: Final = 0.3  # slower than without logging, at the pace of the goal
GOAL_TICKS_PER_S: Final = 1_000
PLAIN, NOTHING = "no logging", "update() does nothing"
_WARM_UP_S: Final = 0.5
_CALIBRATIONS: Final = 9
_CLOSE_TIMEOUT_S: Final = 120.0
_FLUSH_TIMEOUT_S: Final = 120.0
# A median of n values that scatter normally scatters by 1.253 sigma / sqrt(n), and sigma is their
# interquartile range / 1.349.
_ERROR_PER_RANGE: Final = 1.253 / 1.349
# BLAS must not spread a small product over the cores: its threads would pass for the logger's.
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        block_s: seconds of training in a block.
        rounds: blocks of each kind.
        window_s: seconds of the window in which costs are accounted, at each pace.
        paces: ticks a second.
    """

    block_s: float
    rounds: int
    window_s: float
    paces: tuple[int, ...] = (10, 100, 1_000, 10_000)


SIZES: Final = {
    "full": Size(block_s=0.4, rounds=150, window_s=10.0),
    "quick": Size(block_s=0.3, rounds=14, window_s=2.0),
    "tiny": Size(block_s=0.01, rounds=2, window_s=0.02, paces=(100, 1_000)),
}


@dataclass(frozen=True, slots=True)
class Account:
    """What logging used in a window of one pace.

    Args:
        wall_s: of the window.
        ticks: in it.
        call_s: CPU time of a call of `update()`, on average.
        background_s: CPU time of the other threads.
        daemon_s: CPU time of the daemon.
    """

    wall_s: float
    ticks: int
    call_s: float
    background_s: float
    daemon_s: float

    def slowdown(self, ticks_per_s: float) -> float:
        """The share of a core that logging takes from the training's process at a pace."""
        return self.call_s * ticks_per_s + self.background_s / self.wall_s


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of one loop.

    Args:
        step_s: of a step.
        ticks: {pace: ticks in a block}.
        rounds: {kind of block: what it took} of each round; ours are called after their pace.
        accounts: {pace: account}.
        floor_s: CPU time of `buf.append((dict(clock), dict(stats)))` between the same steps.
    """

    step_s: float
    ticks: Mapping[int, int]
    rounds: Sequence[Mapping[str, Spent]]
    accounts: Mapping[int, Account]
    floor_s: float


def run(size: Size) -> Result:
    """Train every model whose library is installed."""
    found: dict[str, Measured] = {}
    for loop in training_loops.LOOPS:
        harness.tell(f"{NAME}: {loop}")
        if training_loops.installed(loop):
            with variables(dict.fromkeys(_ONE_THREAD, "1")):
                found[loop] = harness.fresh(measure, loop, size)
    tables = (_beside_table(found), _account_table(found))
    goals = tuple(goal for loop in found for goal in _goals(loop, found[loop]))
    return Result(NAME, tables, goals, dict(found), _pictures(size, found))


# --- measuring ------------------------------------------------------------------------------------
def measure(loop: str, size: Size) -> Measured:
    """Measure one loop in this process, beside a daemon of its own."""
    step = training_loops.LOOPS[loop][1]()
    step_s = _step_s(step, size.block_s)
    steps = max(2, round(size.block_s / step_s))
    paces = {each: Pace.of(each, step_s) for each in size.paces}
    with workspace() as space:
        logs = {each: space.logger(str(each)) for each in size.paces}
        updates = {each: _saving(logs[each]) for each in size.paces}
        train_and_log = functools.partial(training_loops.train_and_log, step, steps)
        blocks: dict[str, Callable[[], None]] = {
            PLAIN: functools.partial(training_loops.train, step, steps),
            NOTHING: functools.partial(train_and_log, _goal_pace(paces), _nothing),
            **{str(each): functools.partial(train_and_log, paces[each], updates[each])
               for each in size.paces},
        }  # fmt: skip
        for block in blocks.values():  # the first ticks go the general way
            block()
        rounds = [_round(blocks, turn) for turn in range(size.rounds)]
        window = max(2, round(size.window_s / step_s))
        train_a_while = functools.partial(
            training_loops.train_and_log, step, window, _goal_pace(paces)
        )
        timer_s, floor_s = (_call_s(train_a_while, each)[0] for each in (_nothing, _floor()))
        accounts = {
            each: _account(space, logs[each], step, window, paces[each], timer_s)
            for each in size.paces
        }
        for each, log in logs.items():
            block_ticks, window_ticks = paces[each].ticks(steps), paces[each].ticks(window)
            _close(space, log, str(each), block_ticks * (size.rounds + 1) + window_ticks)
    ticks = {each: paces[each].ticks(steps) for each in size.paces}
    return Measured(step_s, ticks, rounds, accounts, max(0.0, floor_s - timer_s))


def _saving(log: Any) -> Update:
    return functools.partial(log.update, save=True)


def _nothing(clock: dict[str, Any], stats: dict[str, Any]) -> None:
    pass


def _floor() -> Update:
    buf: list[Any] = []

    def floor(clock: dict[str, Any], stats: dict[str, Any]) -> None:
        buf.append((dict(clock), dict(stats)))

    return floor


def _goal_pace(paces: Mapping[int, Pace]) -> Pace:
    return paces.get(GOAL_TICKS_PER_S) or next(iter(paces.values()))


def _step_s(step: Step, block_s: float) -> float:
    """How long a step takes, once the caches are warm."""
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < min(_WARM_UP_S, block_s):
        step()
        count += 1
    timed = functools.partial(training_loops.train, step, count)
    spent = [training_loops.spent_by(timed) for _ in range(_CALIBRATIONS if count > 1 else 1)]
    return harness.median(each.wall_s for each in spent) / count


def _round(blocks: Mapping[str, Callable[[], None]], turn: int) -> dict[str, Spent]:
    """One block of each kind.

    The daemon is still busy with a block's ticks when the next one begins: so everybody follows
    everybody equally often, which turns alone do not see to.
    """
    order = random.Random(turn).sample(sorted(blocks), len(blocks))
    return {kind: training_loops.spent_by(blocks[kind]) for kind in order}


def _account(
    space: Workspace, log: Any, step: Step, steps: int, pace: Pace, timer_s: float
) -> Account:
    """Train for a while, and see what logging uses in all three places."""
    _flush(log)
    train = functools.partial(training_loops.train_and_log, step, steps, pace)
    daemon = space.daemon_cpu_s()
    call_s, spent = _call_s(train, _saving(log))
    daemon_s = space.daemon_cpu_s() - daemon
    _flush(log)
    ticks = pace.ticks(steps)
    return Account(spent.wall_s, ticks, max(0.0, call_s - timer_s), spent.background_s, daemon_s)


def _call_s(train: Callable[[Update], None], update: Update) -> tuple[float, Spent]:
    """Train for a while.

    Returns:
        CPU time that a call is seen to take, on average, with what the clock takes; and all that
        the training took.
    """
    call, calls = _timed(update)
    spent = training_loops.spent_by(functools.partial(train, call))
    return calls[0] / calls[1] * 1e-9, spent


def _timed(update: Update) -> tuple[Update, list[int]]:
    """An update that adds up its CPU time.  Returns: it, and the sum in ns and number of calls."""
    spent = [0, 0]

    def timed(
        clock: dict[str, Any], stats: dict[str, Any], now: Callable[[], int] = time.thread_time_ns
    ) -> None:
        now()  # the training has pushed the clock's own code out of the caches
        begin = now()
        update(clock, stats)
        spent[0] += now() - begin
        spent[1] += 1

    return timed, spent


def _flush(log: Any) -> None:
    if not log.flush(_FLUSH_TIMEOUT_S):
        raise RuntimeError(f"flush() failed: {log.errors()}")


def _close(space: Workspace, log: Any, name: str, ticks: int) -> None:
    report = log.close(_CLOSE_TIMEOUT_S)
    stored = space.stored_ticks(name)
    if (stored, report.lost) != (ticks, 0):
        raise RuntimeError(f"{stored} of {ticks} ticks at {name} a second are stored: {report}")


# --- tables ---------------------------------------------------------------------------------------
def median_error(values: Sequence[float]) -> float:
    """The standard error of the median of some values; of a single one, 0."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return _ERROR_PER_RANGE * (high - low) / math.sqrt(len(values))


def _slower(found: Measured, kind: str, figure: str) -> list[float]:
    """By how many percent each block of a kind took more than its round's plain one."""
    return [
        (getattr(each[kind], figure) / getattr(each[PLAIN], figure) - 1) * 100
        for each in found.rounds
    ]


def _beside_table(found: Mapping[str, Measured]) -> Table:
    rows: list[tuple[Any, ...]] = []
    for loop in training_loops.LOOPS:
        if loop not in found:
            rows.append((loop, "not installed", *[""] * 7))
            continue
        kinds = {NOTHING: 0, **{str(pace): pace for pace in found[loop].ticks}}
        rows += [(loop, *_beside_row(found[loop], kind, pace)) for kind, pace in kinds.items()]
    columns = (
        *("loop", "ticks a second", "ms a step", "time: slower by, %", "+-"),
        *("CPU: more by, %", "+-", "CPU a tick, us", "+-"),
    )
    title = "Beside the same loop without logging; medians over the rounds, +- one standard error"
    return Table(title, columns, tuple(rows))


def _beside_row(found: Measured, kind: str, pace: int) -> tuple[Any, ...]:
    wall, cpu = _slower(found, kind, "wall_s"), _slower(found, kind, "cpu_s")
    a_tick: tuple[Any, Any] = ("", "")
    if pace:
        more = [
            (each[kind].cpu_s - each[PLAIN].cpu_s) / found.ticks[pace] * 1e6
            for each in found.rounds
        ]
        a_tick = (harness.median(more), median_error(more))
    return (
        f"{pace:,}" if pace else kind,
        found.step_s * 1e3,
        *(harness.median(wall), median_error(wall)),
        *(harness.median(cpu), median_error(cpu)),
        *a_tick,
    )


def _account_table(found: Mapping[str, Measured]) -> Table:
    rows: list[tuple[Any, ...]] = []
    for loop, measured in found.items():
        idle = harness.median(
            each[PLAIN].background_s / each[PLAIN].wall_s for each in measured.rounds
        )
        rows.append((loop, PLAIN, "", idle * 100, "", "", ""))
        floor = (measured.floor_s * 1e6, "", "", measured.floor_s * GOAL_TICKS_PER_S * 100, "")
        rows.append((loop, f"floor, {GOAL_TICKS_PER_S:,}", *floor))
        rows += [
            (loop, f"{pace:,}", *_account_row(pace, account))
            for pace, account in measured.accounts.items()
        ]
    columns = (
        *("loop", "ticks a second", "update(), us", "other threads, % of a core", "us a tick"),
        *("slower by, %", "daemon, % of a core"),
    )
    title = "Accounted: CPU time that logging uses"
    return Table(title, columns, tuple(rows) or (("no loop is installed", *[""] * 6),))


def _account_row(pace: int, account: Account) -> tuple[float, ...]:
    return (
        account.call_s * 1e6,
        account.background_s / account.wall_s * 100,
        account.background_s / account.ticks * 1e6,
        account.slowdown(pace) * 100,
        account.daemon_s / account.wall_s * 100,
    )


def _goals(loop: str, found: Measured) -> Iterator[Goal]:
    pace = GOAL_TICKS_PER_S
    if pace in found.ticks:
        title = f"{loop}, {pace:,} ticks a second"
        for name, figure in (("time", "wall_s"), ("CPU", "cpu_s")):
            percent = harness.median(_slower(found, str(pace), figure))
            yield Goal(f"{title}: {name}, more than without logging, %", GOAL_PERCENT, percent)
        accounted = found.accounts[pace].slowdown(pace) * 100
        yield Goal(f"{title}: accounted, slower by, %", GOAL_PERCENT, accounted)


def _pictures(size: Size, found: Mapping[str, Measured]) -> tuple[Picture, ...]:
    series: dict[str, tuple[float, ...]] = {}
    for loop, measured in found.items():
        series[f"{loop}: accounted"] = tuple(
            measured.accounts[pace].slowdown(pace) * 100 for pace in size.paces
        )
        series[f"{loop}: CPU beside"] = tuple(
            harness.median(_slower(measured, str(pace), "cpu_s")) for pace in size.paces
        )
    if not series:
        return ()
    title = "How much slower a training is while it logs"
    at = tuple(float(pace) for pace in size.paces)
    return (Picture("slower", title, "slower by, %", series, at, "ticks a second"),)
