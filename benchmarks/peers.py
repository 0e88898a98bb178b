"""Our logger beside its peers: what a call costs, what a whole run does, and what starting takes.

All of them log the same ticks, two clocks and two statistics, in turn.  Four views:

* *calls*: every call is timed in blocks that take turns with the floor,
  `buf.append((dict(clock), dict(stats)))`, and with the timer alone, on the same dicts in the same
  process.
* *run*: an untimed loop in a process of its own, from the first tick until `close()` has returned;
  CPU time of all processes.  The floor and the loop alone are run so, too: what the trainer's
  process spends, all its threads, is compared with what the floor spends, both less the loop.
* *8 at once*: as many processes, from the first tick of any until the last has closed.
* *start*: importing, making a logger, its first tick, and the memory that a process has then.

How many ticks each logs is chosen so that each takes about as long; afterwards they are counted.
The peers do not promise the same, and some record more than the numbers: the README says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

from benchmarks import harness, peer_environments, peer_runs
from benchmarks.harness import Goal, Picture, Result, Table
from benchmarks.peer_runs import NAIVE, OURS, PeerRun
from benchmarks.peer_worker import FLOOR, TIMER, UPDATE

NAME: Final = "peers"
LOOP: Final = "loop"
AT_ONCE: Final = 8
GOAL_TICKS_PER_S: Final = 800_000  # of 8 processes; this and the other goals: see the issue
_MISSING: Final = "not installed"
_US: Final = 1e6

LABELS: Final[Mapping[str, str]] = {
    LOOP: "the loop alone",
    FLOOR: "floor: a list of copies",
    OURS: "ours",
    NAIVE: "naive sender",
    "jsonl": "JSON lines",
    "mle-logging": "mle-logging, saved at the end",
    "csv": "Lightning CSVLogger",
    "trackio": "trackio",
    "tensorboardx": "tensorboardX",
    "wandb": "wandb, offline",
    "mlflow": "MLflow, file store",
}


@dataclass(frozen=True, slots=True)
class Amount:
    """Ticks of a peer.  Args: run: in all; at_once: of each of 8; block: whose calls are timed."""

    run: int
    at_once: int
    block: int


# So that each takes a second, about.
AMOUNTS: Final[Mapping[str, Amount]] = {
    LOOP: Amount(200_000, 0, 0),
    FLOOR: Amount(200_000, 0, 0),
    OURS: Amount(200_000, 50_000, 2_000),
    NAIVE: Amount(200_000, 50_000, 2_000),
    "jsonl": Amount(100_000, 25_000, 2_000),
    "mle-logging": Amount(20_000, 5_000, 1_000),
    "csv": Amount(50_000, 10_000, 2_000),
    "trackio": Amount(10_000, 1_000, 1_000),
    "tensorboardx": Amount(2_000, 500, 150),
    "wandb": Amount(4_000, 300, 300),
    "mlflow": Amount(800, 100, 60),
}
PEERS: Final = tuple(peer for peer in AMOUNTS if peer not in (LOOP, FLOOR))


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        rounds: of calls, runs and starts.
        at_once_rounds: of 8 processes at once.
        blocks: of calls in a round.
        share: of the ticks in `AMOUNTS`.
        peers: which.
    """

    rounds: int
    at_once_rounds: int
    blocks: int
    share: float = 1.0
    peers: tuple[str, ...] = PEERS


SIZES: Final = {
    "full": Size(rounds=7, at_once_rounds=5, blocks=30, share=2.0),
    "quick": Size(rounds=3, at_once_rounds=2, blocks=15),
    "tiny": Size(1, 1, 2, 0.002, (OURS, NAIVE, "jsonl", "mle-logging")),
}

Runs = list[dict[str, PeerRun]]
Calls = list[dict[str, dict[str, dict[str, float]]]]


def run(size: Size) -> Result:
    """Make the environments, and let the peers take turns in each view."""
    wanted = [peer for peer in size.peers if peer not in (OURS, NAIVE, "jsonl")]
    problems = {peer: why for peer, why in peer_environments.make_all(wanted).items() if why}
    for peer, why in problems.items():
        harness.tell(f"{NAME}: {LABELS[peer]} is left out: {why}")
    peers = [peer for peer in size.peers if peer not in problems]
    calls, runs, at_once, starts = _measure(size, peers)
    missing = tuple(LABELS[peer] for peer in problems)
    tables = (
        _calls_table(calls, missing),
        _runs_table(runs, missing),
        _at_once_table(at_once, missing),
        _starts_table(starts, runs, missing),
        _versions_table(peers),
    )
    figures = {
        "problems": problems,
        "calls": calls,
        "runs": [{peer: asdict(each) for peer, each in turn.items()} for turn in runs],
        "8 at once": [{peer: asdict(each) for peer, each in turn.items()} for turn in at_once],
        "import_s": starts,
    }
    pictures = tuple(_pictures(peers, tables[:4]))
    return Result(NAME, tables, _goals(calls, runs, at_once), figures, pictures)


def _measure(size: Size, peers: list[str]) -> tuple[Calls, Runs, Runs, list[dict[str, float]]]:
    """What each round of each view has found."""

    def ticks(amount: int) -> int:
        return max(10, int(amount * size.share))

    def block(peer: str) -> int:  # longer blocks would not be nearer to each other in time
        return max(10, int(AMOUNTS[peer].block * min(1.0, size.share)))

    def in_turn(view: str, one: Callable[[str], Any], names: list[str], rounds: int) -> Any:
        def told(name: str) -> Any:
            harness.tell(f"{NAME}: {view}, {LABELS[name]}")
            return one(name)

        return harness.interleaved({name: partial(told, name) for name in names}, rounds)

    def one_run(peer: str) -> PeerRun:
        return peer_runs.run(peer, 1, ticks(AMOUNTS[peer].run))

    def many(peer: str) -> PeerRun:
        return peer_runs.run(peer, AT_ONCE, ticks(AMOUNTS[peer].at_once))

    def calls(peer: str) -> dict[str, dict[str, float]]:
        return peer_runs.calls(peer, size.blocks, block(peer))

    return (
        in_turn("calls", calls, peers, size.rounds),
        in_turn("a run", one_run, [LOOP, FLOOR, *peers], size.rounds),
        in_turn(f"{AT_ONCE} at once", many, peers, size.at_once_rounds),
        in_turn("start", peer_runs.import_s, peers, size.rounds),
    )


def _versions_table(peers: list[str]) -> Table:
    others = (peer for peer in peers if peer not in (OURS, NAIVE, "jsonl"))
    named = ((peer, peer_environments.version(peer)) for peer in others)
    rows = tuple((LABELS[peer], version) for peer, version in named if version)
    return Table("What was measured beside ours", ("logger", "release"), rows or (("none", ""),))


# --- calls ----------------------------------------------------------------------------------------
def _calls_table(calls: Calls, missing: tuple[str, ...]) -> Table:
    def row(peer: str) -> tuple[Any, ...]:
        spent = (_net(calls, peer, name) / 1e3 for name in ("p50", "p99", "p99.9", "max"))
        ratios = (_x_floor(calls, peer, name) for name in ("p50", "p99", "p99.9"))
        return LABELS[peer], *spent, *ratios

    return _table(
        "A call, us, net of the timer; x floor: in the same process; medians over the rounds",
        *(("logger", "p50", "p99", "p99.9", "max", "p50 x floor", "p99 x floor", "p99.9 x floor"),),
        rows=map(row, calls[0]),
        missing=missing,
    )


def _net(calls: Calls, peer: str, name: str) -> float:
    return harness.median(each[peer][UPDATE][name] - each[peer][TIMER]["p50"] for each in calls)


def _x_floor(calls: Calls, peer: str, name: str) -> float:
    """The median over the rounds of the ratio to the floor, both net of that round's timer."""
    return harness.median(
        (each[UPDATE][name] - each[TIMER]["p50"]) / (each[FLOOR][name] - each[TIMER]["p50"])
        for each in (turn[peer] for turn in calls)
    )


# --- runs -----------------------------------------------------------------------------------------
def _runs_table(runs: Runs, missing: tuple[str, ...]) -> Table:
    def row(peer: str) -> tuple[Any, ...]:
        return (
            LABELS[peer],
            runs[0][peer].run.ticks,
            _middle(runs, lambda each: each[peer].run.ticks / each[peer].run.wall_s),
            _middle(runs, lambda each: each[peer].run.cpu_us),
            _middle(runs, lambda each: _trainer_us(each[peer])),
            _middle(runs, lambda each: each[peer].run.cpu_us / each[NAIVE].run.cpu_us),
            _middle(runs, lambda each: _trainer_x_floor(each, peer)),
            _middle(runs, lambda each: each[peer].run.file_bytes / each[peer].run.ticks),
        )

    return _table(
        "First tick until close() has returned; CPU in us a tick; medians over the rounds",
        *(("logger", "ticks", "ticks/s", "CPU, all", "CPU, trainer"),),
        *(("all x naive", "trainer x floor, both less the loop", "bytes a tick"),),
        rows=map(row, runs[0]),
        missing=missing,
    )


def _at_once_table(at_once: Runs, missing: tuple[str, ...]) -> Table:
    def row(peer: str) -> tuple[Any, ...]:
        return (
            LABELS[peer],
            at_once[0][peer].run.ticks,
            _per_s(at_once, peer),
            _middle(at_once, lambda each: each[peer].run.ticks / each[peer].run.calls_s),
            _middle(at_once, lambda each: each[peer].run.cpu_us),
            _middle(at_once, lambda each: each[peer].run.cpu_us / each[NAIVE].run.cpu_us),
        )

    return _table(
        f"{AT_ONCE} processes at once, until the last has closed; CPU of all in us a tick",
        *(("logger", "ticks", "ticks/s", "calls/s", "CPU, all", "all x naive"),),
        rows=map(row, at_once[0]),
        missing=missing,
    )


def _middle(runs: Runs, figure: Callable[[dict[str, PeerRun]], float]) -> float:
    return harness.median(figure(each) for each in runs)


def _per_s(runs: Runs, peer: str) -> float:
    return _middle(runs, lambda each: each[peer].run.ticks / each[peer].run.wall_s)


def _trainer_us(each: PeerRun) -> float:
    return each.run.producers_cpu_s / each.run.ticks * _US


def _trainer_x_floor(turn: dict[str, PeerRun], peer: str) -> float:
    loop = _trainer_us(turn[LOOP])
    return (_trainer_us(turn[peer]) - loop) / (_trainer_us(turn[FLOOR]) - loop)


# --- start ----------------------------------------------------------------------------------------
def _starts_table(starts: list[dict[str, float]], runs: Runs, missing: tuple[str, ...]) -> Table:
    def row(peer: str) -> tuple[Any, ...]:
        imported = harness.median(each[peer] for each in starts)
        opened = _middle(runs, lambda each: each[peer].open_s)
        first = _middle(runs, lambda each: each[peer].first_s)
        return (
            LABELS[peer],
            *(1e3 * seconds for seconds in (imported, opened, first, imported + opened + first)),
            _middle(runs, lambda each: each[peer].imported_rss / 1e6),
            _middle(runs, lambda each: each[peer].rss / 1e6),
            runs[0][peer].run.ticks,
        )

    return _table(
        "Start, ms, medians over the rounds; memory of the trainer's process, MB",
        *(("logger", "import", "constructor", "first update", "all three"),),
        *(("RSS, imported", "RSS, after ticks", "ticks"),),
        rows=map(row, starts[0]),
        missing=missing,
    )


# --- all views ------------------------------------------------------------------------------------
def _table(
    title: str,
    *columns: tuple[str, ...],
    rows: Iterator[tuple[Any, ...]],
    missing: tuple[str, ...],
) -> Table:
    """A table with a row for each that is missing, too."""
    named = tuple(name for some in columns for name in some)
    empty = ("",) * (len(named) - 2)
    return Table(title, named, (*rows, *((label, _MISSING, *empty) for label in missing)))


def _goals(calls: Calls, runs: Runs, at_once: Runs) -> tuple[Goal, ...]:
    cpu = _middle(runs, lambda each: each[OURS].run.cpu_us)
    x_naive = _middle(runs, lambda each: each[OURS].run.cpu_us / each[NAIVE].run.cpu_us)
    trainer = _middle(runs, lambda each: _trainer_x_floor(each, OURS))
    return (
        Goal("CPU of all processes a tick, us", 2.0, cpu),
        Goal("CPU of all processes a tick, x naive", 1.0, x_naive),
        Goal("CPU of the trainer's process a tick, x floor's mean", 1.0, trainer),
        *(
            Goal(f"{name} of update, x floor's", 1.0, _x_floor(calls, OURS, name))
            for name in ("p99", "p99.9")
        ),
        Goal(
            f"{GOAL_TICKS_PER_S:,} ticks/s / what {AT_ONCE} processes reach",
            1.0,
            GOAL_TICKS_PER_S / _per_s(at_once, OURS),
        ),
    )


def _pictures(peers: list[str], tables: tuple[Table, ...]) -> Iterator[Picture]:
    """Bars of what matters most in each view."""
    calls, runs, at_once, starts = tables
    labels = tuple(LABELS[peer] for peer in peers)
    for name, title, label, table, column in (
        ("calls", "p50 of a call", "us, net of the timer", calls, "p50"),
        ("cpu", "CPU time of all processes", "us a tick", runs, "CPU, all"),
        ("at_once", f"{AT_ONCE} processes at once", "ticks/s until closed", at_once, "ticks/s"),
        ("start", "Import, constructor and first update", "ms", starts, "all three"),
    ):
        at = table.columns.index(column)
        values = {row[0]: row[at] for row in table.rows}
        yield Picture(
            name, title, label, {column: tuple(values[each] for each in labels)}, labels, log=True
        )
