"""What a tick with `save=True` costs as its run grows.

Three views, for a cost can hide in one of them:

* *caller*: runs of each length are open at once.  In turn, each gets a few ticks, every call of
  which is timed, and a `flush()`, which is timed too, with the CPU time of both processes for it.
* *paced*: the same runs get 1,000 ticks a second for some seconds, as a trainer gives them.  Here a
  publication, which copies the file, must be paid from few ticks; a fast loop would hide it.
* *whole runs*: new runs of each length, and of longer ones, as fast as they can be logged, each
  with a daemon of its own, from the first tick until the daemon has sealed the file and left.  What
  a run costs however short it is, is taken off by looking at the differences between lengths.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from benchmarks import end_to_end, harness
from benchmarks.harness import Goal, Picture, Result, Table, Tick
from benchmarks.workspace import Workspace, workspace

NAME: Final = "growth"
FLAT: Final = 1.1  # a cost that is flat may be this much more at the greatest length
_NOW: Final = time.perf_counter_ns
_STEP_NS: Final = harness.clock_step(_NOW)
_PACE_S: Final = 0.01  # between two bursts: sleeping between single ticks would cost more than they
_EMPTY_BURSTS: Final = 50  # of which the cost of keeping the pace is learned
_WARM_UP_LOOPS: Final = 200  # some milliseconds: a core that slept is slow at first
_TIMEOUT_S: Final = 120.0
# Times the shortest run: below that the ticks cost less than the fixed part varies.
_NET_FROM: Final = 100


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        lengths: of the runs, in ticks.
        rounds: how often each of them is looked at.
        window: ticks whose calls are timed in a round.
        paced_s, paced_rounds: seconds of one paced window, and how many there are.
        ticks_per_s: the pace.
        whole_rounds: how often whole runs are logged.
        longer: lengths of whole runs besides, which are not kept open.
    """

    lengths: tuple[int, ...]
    rounds: int
    window: int
    paced_s: float
    paced_rounds: int
    ticks_per_s: int
    whole_rounds: int
    longer: tuple[int, ...] = ()

    @property
    def whole(self) -> tuple[int, ...]:
        """Lengths of whole runs."""
        return (*self.lengths, *self.longer)


SIZES: Final = {
    "full": Size((1_000, 10_000, 100_000, 1_000_000), 15, 100, 10.0, 3, 1_000, 5, (10_000_000,)),
    "quick": Size((1_000, 10_000, 100_000, 1_000_000), 5, 100, 4.0, 2, 1_000, 2, (10_000_000,)),
    "tiny": Size((100, 1_000), 1, 20, 0.1, 1, 1_000, 1, (10_000, 30_000)),
}


def run(size: Size) -> Result:
    """Take the three views."""
    harness.tell(f"{NAME}: open runs")
    visits, paces, open_bytes = harness.fresh(measure_open_runs, size)
    harness.tell(f"{NAME}: whole runs")
    whole = harness.interleaved(
        {str(n): partial(end_to_end.run_ours, 1, n, save=True) for n in size.whole},
        size.whole_rounds,
    )
    tables = (
        _caller_table(size, visits),
        _paced_table(size, paces),
        _whole_table(size, whole, open_bytes),
    )
    last, first = str(size.lengths[-1]), str(size.lengths[0])
    goals = (
        Goal(
            f"p50 of update(save=True) at {last} ticks, x {first} ticks",
            FLAT,
            harness.median(each[last].call_ns / each[first].call_ns for each in visits),
        ),
        *_paced_goals(size, paces),
        *_whole_goals(size, whole),
    )
    figures = {"visits": visits, "paces": paces, "whole": whole}
    return Result(NAME, tables, goals, figures, _pictures(size, visits, whole))


# --- runs that are open ---------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Visit:
    """A few ticks of one run and a flush.

    Args:
        call_ns: p50 of a call, net of the timer.
        flush_s: from the last call until `flush()` has returned.
        client_cpu_s, daemon_cpu_s: for all of it.
    """

    call_ns: float
    flush_s: float
    client_cpu_s: float
    daemon_cpu_s: float


@dataclass(frozen=True, slots=True)
class Pace:
    """A paced window of one run.

    Args:
        seconds: that it took.
        ticks: that were logged in it.
        client_cpu_s: without what keeping the pace costs.
        daemon_cpu_s: in the same time.
        written_bytes: by the daemon, to files and sockets.
    """

    seconds: float
    ticks: int
    client_cpu_s: float
    daemon_cpu_s: float
    written_bytes: int


def measure_open_runs(
    size: Size,
) -> tuple[list[dict[str, Visit]], list[dict[str, Pace]], dict[str, float]]:
    """Look at open runs of each length in turn.

    Returns:
        Of each round, length -> what a visit found; the same of paced windows; and of each length
        the bytes a tick of the file while the run is open.
    """
    with workspace() as space:
        ticks = _ticks()
        runs = {str(length): space.logger(str(length)) for length in size.lengths}
        for length in size.lengths:
            for clock, stats in itertools.islice(ticks, length):
                runs[str(length)].update(clock, stats, save=True)
            _flush(runs[str(length)])
        opened = {name: space.log_file(name).stat().st_size / int(name) for name in runs}
        visits = harness.interleaved(
            {name: partial(_visit, space, log, ticks, size.window) for name, log in runs.items()},
            size.rounds,
        )
        paces = harness.interleaved(
            {name: partial(_pace, space, log, ticks, size) for name, log in runs.items()},
            size.paced_rounds,
        )
        for log in runs.values():
            log.close(_TIMEOUT_S)
    return visits, paces, opened


def _ticks() -> Iterator[Tick]:
    noise = np.random.default_rng(0)
    for i in itertools.count():
        if i % 1_000 == 0:
            losses = noise.normal(size=(1_000, 2)).tolist()
        train, test = losses[i % 1_000]
        yield {"num_steps": i, "num_epochs": i >> 7}, {"train_loss": train, "test_loss": test}


def _flush(log: Any) -> None:
    if not log.flush(_TIMEOUT_S):
        raise RuntimeError(f"flush() failed: {log.errors()}")


def _visit(space: Workspace, log: Any, ticks: Iterator[Tick], window: int) -> Visit:
    these = list(itertools.islice(ticks, window))
    timer = harness.timed("pass", _NOW)
    update = harness.timed("log.update(clock, stats, save=True)", _NOW, log=log)
    for _ in range(_WARM_UP_LOOPS):
        timer(these)
    client, daemon = time.process_time(), space.daemon_cpu_s()
    spent = update(these)
    called_at = time.monotonic()
    _flush(log)
    return Visit(
        harness.fine_median(spent, _STEP_NS) - harness.fine_median(timer(these), _STEP_NS),
        time.monotonic() - called_at,
        time.process_time() - client,
        space.daemon_cpu_s() - daemon,
    )


def _pace(space: Workspace, log: Any, ticks: Iterator[Tick], size: Size) -> Pace:
    """Log at an even pace for a while, beginning with a file that is up to date."""
    count = round(size.ticks_per_s * _PACE_S)
    bursts = [list(itertools.islice(ticks, count)) for _ in range(round(size.paced_s / _PACE_S))]
    nothing: list[list[Tick]] = [[] for _ in bursts[:_EMPTY_BURSTS]]
    pacing_s = _log_bursts(log, nothing) / len(nothing) * len(bursts)
    _flush(log)
    daemon, written = space.daemon_cpu_s(), space.daemon_written_bytes()
    begun = time.monotonic()
    client = _log_bursts(log, bursts)
    found = Pace(
        time.monotonic() - begun,
        count * len(bursts),
        client - pacing_s,
        space.daemon_cpu_s() - daemon,
        space.daemon_written_bytes() - written,
    )
    _flush(log)  # or else what is left would be published in the window of another run
    return found


def _log_bursts(log: Any, bursts: Sequence[Sequence[Tick]]) -> float:
    """Log some ticks every now and then.  Returns: CPU time of this process for it, in seconds."""
    cpu_s, due = time.process_time(), time.monotonic()
    for burst in bursts:
        for clock, stats in burst:
            log.update(clock, stats, save=True)
        due += _PACE_S
        time.sleep(max(0.0, due - time.monotonic()))
    return time.process_time() - cpu_s


# --- tables ---------------------------------------------------------------------------------------
def _caller_table(size: Size, visits: list[dict[str, Visit]]) -> Table:
    first = str(size.lengths[0])
    rows = []
    for length in size.lengths:
        of = [each[str(length)] for each in visits]
        ratio = harness.median(each[str(length)].call_ns / each[first].call_ns for each in visits)
        flush = harness.median(v.flush_s for v in of) * 1e3
        client = harness.median(v.client_cpu_s for v in of) * 1e3
        daemon = harness.median(v.daemon_cpu_s for v in of) * 1e3
        call = harness.median(v.call_ns for v in of)
        rows.append((length, call, ratio, flush, client, daemon))
    columns = (
        *("ticks in the run", "call p50, ns", "x first", "flush() after, ms"),
        *("client CPU, ms", "daemon CPU, ms"),
    )
    title = f"caller: {size.window} ticks and a flush() at each length, medians over the rounds"
    return Table(title, columns, tuple(rows))


def _paced_table(size: Size, paces: list[dict[str, Pace]]) -> Table:
    rows = []
    for length in size.lengths:
        of = [each[str(length)] for each in paces]
        rows.append(
            (
                length,
                harness.median(p.client_cpu_s / p.ticks for p in of) * 1e6,
                harness.median(p.daemon_cpu_s / p.ticks for p in of) * 1e6,
                harness.median(p.daemon_cpu_s / p.seconds for p in of) * 100,
                harness.median(p.written_bytes / p.ticks for p in of),
            )
        )
    columns = (
        *("ticks in the run", "client CPU, us a tick", "daemon CPU, us a tick"),
        *("daemon, % of a core", "written, bytes a tick"),
    )
    title = (
        f"paced: {size.ticks_per_s:,} ticks a second with save=True, for {size.paced_s:g} s, "
        "medians over the rounds"
    )
    return Table(title, columns, tuple(rows))


def _whole_table(
    size: Size, rounds: list[dict[str, end_to_end.Run]], open_bytes: dict[str, float]
) -> Table:
    rows = []
    for before, length in itertools.pairwise((0, *size.whole)):
        of = [each[str(length)] for each in rounds]
        rows.append(
            (
                length,
                harness.median(run.wall_s for run in of) * 1e3,
                harness.median(run.producers_cpu_s for run in of) * 1e3,
                harness.median(run.writer_cpu_s for run in of) * 1e3,
                _marginal_us(rounds, before, length) if before else "",
                _net_us(rounds, size, length) if before else "",
                open_bytes.get(str(length), ""),
                harness.median(run.file_bytes / run.ticks for run in of),
            )
        )
    columns = (
        *("ticks in the run", "until closed, ms", "client CPU, ms", "daemon CPU, ms"),
        *("CPU of each further tick, us", "of all but the first", "file open, bytes a tick"),
        "sealed",
    )
    title = "whole runs: logged with save=True at full speed, medians over the rounds"
    return Table(title, columns, tuple(rows))


def _marginal_us(rounds: list[dict[str, end_to_end.Run]], short: int, long: int) -> float:
    """CPU time of both processes for each tick that the long run has and the short one has not."""
    costs = {
        length: harness.median(each[str(length)].cpu_us * length for each in rounds)
        for length in (short, long)
    }
    return (costs[long] - costs[short]) / (long - short)


def _net_us(rounds: list[dict[str, end_to_end.Run]], size: Size, length: int) -> float:
    """CPU time of a tick of a run, without that of the shortest run, which is all but fixed."""
    return harness.median(_net_in_round_us(each, size, length) for each in rounds)


def _net_in_round_us(runs: dict[str, end_to_end.Run], size: Size, length: int) -> float:
    first = size.lengths[0]
    spent = runs[str(length)].cpu_us * length - runs[str(first)].cpu_us * first
    return spent / (length - first)


def _paced_goals(size: Size, paces: list[dict[str, Pace]]) -> Iterator[Goal]:
    """That a tick at the pace of a training costs the daemon no more in the longest run."""
    first, last = size.lengths[0], size.lengths[-1]
    whats: tuple[tuple[str, Callable[[Pace], float]], ...] = (
        ("CPU of the daemon", lambda pace: pace.daemon_cpu_s / pace.ticks),
        ("bytes that the daemon writes", lambda pace: pace.written_bytes / pace.ticks),
    )
    for what, of in whats:
        both = [(of(each[str(last)]), of(each[str(first)])) for each in paces]
        # In a short window it may be that nothing was published, or written.
        ratio = harness.median(long / short if short else 1.0 for long, short in both)
        pace = f"{size.ticks_per_s:,} a second"
        yield Goal(f"{what} for a tick, {pace}, at {last:,} ticks, x {first:,}", FLAT, ratio)


def _whole_goals(size: Size, rounds: list[dict[str, end_to_end.Run]]) -> Iterator[Goal]:
    """That a tick costs no more in the longest run than in those that are not all fixed cost."""
    *shorter, last = size.whole
    for reference in (n for n in shorter if n >= _NET_FROM * size.lengths[0]):
        yield Goal(
            f"CPU of a tick in a run of {last:,}, x one of {reference:,}, net of the shortest run",
            FLAT,
            harness.median(
                _net_in_round_us(each, size, last) / _net_in_round_us(each, size, reference)
                for each in rounds
            ),
        )


def _pictures(
    size: Size, visits: list[dict[str, Visit]], whole: list[dict[str, end_to_end.Run]]
) -> tuple[Picture, ...]:
    calls = [harness.median(each[str(n)].call_ns for each in visits) for n in size.lengths]
    nets = [_net_us(whole, size, n) for n in size.whole[1:]]
    label = "ticks in the run"
    return (
        Picture(
            "calls",
            "update(save=True) as a run grows",
            "p50 of a call, ns",
            {"update(save=True)": tuple(calls)},
            tuple(map(float, size.lengths)),
            label,
        ),
        Picture(
            "ticks",
            "CPU of a tick of a whole run, both processes, net of the shortest run",
            "us a tick",
            {"both processes": tuple(nets)},
            tuple(map(float, size.whole[1:])),
            label,
        ),
    )
