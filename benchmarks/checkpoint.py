"""What it costs to save a model, and to save a figure.

Four views:

* *warm*: all ways of saving (`savers`) take turns in one process, with one model.  Timed are the
  return of the call, and when the bytes are on the disk; the kernel says how many were written.
* *cold*: the first call of each in a process of its own, and the memory that it took.
* *calls* (`checkpoint_calls`): what `update()` costs while a model is on its way, and in turn with
  that while none is; and what `save_plot()` costs.
* *memory* for a model of 1 GB.

A save ends before the next one begins, whoever's it is.  Libraries that are not installed are rows
that say so.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import checkpoint_calls as calls
from benchmarks import harness, savers
from benchmarks.harness import Goal, Picture, Result, Table
from benchmarks.workspace import Workspace, workspace

NAME: Final = "checkpoint"
RETURN_GOAL: Final = 1.1  # x a copy into mapped memory; see the issue that asked for these
DURABLE_GOAL: Final = 1.3  # x a raw write and fsync
WRITTEN_GOAL: Final = 1.01  # x the model's size: headers, the zip layout, the journal's records
_NOW: Final = time.perf_counter
_SETTLE_S: Final = 0.05  # after a save: files that it replaced are removed behind it
_MB: Final = 1e6
_MISSING: Final = "not installed"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Args:
        bytes: of the model.
        rounds: in which each way of saving has its turn.
        cold: processes for each way of saving.
        tick_rounds: windows of ticks with a model on its way, and as many without.
        plots: figures saved in each way.
        large_bytes: of the model whose memory is looked at; 0 for none.
        kinds: of models.
    """

    bytes: int
    rounds: int
    cold: int
    tick_rounds: int
    plots: int
    large_bytes: int = 0
    kinds: tuple[str, ...] = ("numpy", "torch")


SIZES: Final = {
    "full": Size(100_000_000, 11, 3, 9, 9, large_bytes=1_000_000_000),
    "quick": Size(100_000_000, 5, 1, 3, 3),
    "tiny": Size(2_000_000, 1, 1, 1, 1),
}


@dataclass(frozen=True, slots=True)
class Save:
    """One save.

    Args:
        returned_s, durable_s: from the beginning of the call.
        cpu_s: that the calling thread used until it returned; others on the machine cannot add
            to it as they do to the time.
        written: bytes that trainer and daemon had written to disks.
    """

    returned_s: float
    durable_s: float
    cpu_s: float
    written: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak memory of three saves, as the kernel keeps it (VmHWM).

    The daemon maps none of the trainer's memory, so that no page is counted twice.  What was made
    before the first save is in `before`, the buffers that a plain copy goes into among it.

    Args:
        before: what trainer and daemon had, in bytes.
        trainer, daemon: by how much they grew, in bytes.
    """

    before: int
    trainer: int
    daemon: int


def run(size: Size) -> Result:
    """Take the views."""
    figures: dict[str, Any] = {}
    tables: list[Table] = []
    found_goals: list[Goal] = []
    pictures: list[Picture] = []
    for kind in size.kinds:
        harness.tell(f"{NAME}: {kind}, warm")
        warm = harness.fresh(measure_warm, kind, size)
        harness.tell(f"{NAME}: {kind}, cold")
        cold = _cold(kind, size, [name for name in savers.SAVERS[kind] if name in warm])
        tables.append(table(kind, size, warm, cold))
        if warm:
            found_goals += goals(kind, size, warm)
            pictures.append(picture(kind, size, warm))
        figures[kind] = {name: _figures(warm[name], cold[name]) for name in warm}
    harness.tell(f"{NAME}: ticks")
    figures["ticks"] = ticks = harness.fresh(calls.measure_ticks, size.bytes, size.tick_rounds)
    tables.append(calls.tick_table(ticks))
    harness.tell(f"{NAME}: figures")
    figures["plots"] = plots = harness.fresh(calls.measure_plots, size.plots)
    tables.append(calls.plot_table(plots))
    if size.large_bytes:
        harness.tell(f"{NAME}: a large model")
        large = Size(size.large_bytes, 1, 1, 1, 1)
        _, memory = harness.fresh(measure_alone, "numpy", savers.OURS, large)
        figures["large"] = asdict(memory)
        tables.append(_large_table(size, memory))
    return Result(NAME, tuple(tables), tuple(found_goals), figures, tuple(pictures))


def _figures(warm: list[Save], cold: list[tuple[Save, Memory]]) -> dict[str, Any]:
    return {
        "warm": [asdict(each) for each in warm],
        "cold": [asdict(each) for each, _ in cold],
        "memory": [asdict(each) for _, each in cold],
    }


# --- saving ---------------------------------------------------------------------------------------
def measure_warm(kind: str, size: Size) -> dict[str, list[Save]]:
    """All ways of saving a kind of model, in turn.

    Returns:
        Name -> its saves, without those of libraries that are not installed; nothing where the
        model's own library is not.
    """
    try:
        model = savers.make_model(kind, size.bytes)
    except ImportError:
        return {}
    with workspace() as space, contextlib.ExitStack() as stack:
        found = {}
        for name in savers.SAVERS[kind]:
            with contextlib.suppress(ImportError):
                found[name] = stack.enter_context(_saver(kind, name, model, space))
        for saver in [*found.values()] * 2:  # memory that is kept is made, then taken into account
            _save(saver, space)
        saves: dict[str, list[Save]] = {name: [] for name in found}
        for turn in range(size.rounds):
            for name in harness.rotated(found, turn):
                saves[name].append(_save(found[name], space))
        return saves


def measure_alone(kind: str, name: str, size: Size) -> tuple[Save, Memory]:
    """The first save in this process, and the peak memory of it and two more."""
    model = savers.make_model(kind, size.bytes)
    with workspace() as space, _saver(kind, name, model, space) as saver:
        time.sleep(_SETTLE_S)
        pids = psutil.Process().pid, space.daemon_pid
        before = [_memory(pid, "VmRSS") for pid in pids]
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is counted from here on
        save = _save(saver, space)
        for _ in range(2):
            _save(saver, space)
        peak = [_memory(pid, "VmHWM") for pid in pids]
        trainer, daemon = (p - b for p, b in zip(peak, before, strict=True))
        return save, Memory(sum(before), trainer, daemon)


@contextlib.contextmanager
def _saver(kind: str, name: str, model: Any, space: Workspace) -> Iterator[savers.Saver]:
    folder = space.root.parent / re.sub(r"\W+", "_", name)
    folder.mkdir()
    saver = savers.SAVERS[kind][name](model, folder, space)
    try:
        yield saver
    finally:
        saver.close()


def _save(saver: savers.Saver, space: Workspace) -> Save:
    pids = psutil.Process().pid, space.daemon_pid
    written = sum(map(_written, pids))
    began, cpu = _NOW(), time.thread_time()
    saver.save()
    returned, cpu = _NOW() - began, time.thread_time() - cpu
    saver.wait()
    durable = _NOW() - began
    time.sleep(_SETTLE_S)
    written = sum(map(_written, pids)) - written
    saver.clean()
    return Save(returned, durable, cpu, written)


def _written(pid: int) -> int:
    """Bytes that a process had written to disks so far; shared memory is none."""
    counters: Any = psutil.Process(pid).io_counters()
    return int(counters.write_bytes)


def _memory(pid: int, which: str) -> int:
    """A figure of /proc/<pid>/status, in bytes."""
    (line,) = re.findall(rf"^{which}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(line) * 1024


def _cold(kind: str, size: Size, names: list[str]) -> dict[str, list[tuple[Save, Memory]]]:
    found: dict[str, list[tuple[Save, Memory]]] = {name: [] for name in names}
    for turn in range(size.cold):
        for name in harness.rotated(names, turn) if names else ():
            found[name].append(harness.fresh(measure_alone, kind, name, size))
    return found


# --- tables ---------------------------------------------------------------------------------------
def table(
    kind: str,
    size: Size,
    warm: dict[str, list[Save]],
    cold: dict[str, list[tuple[Save, Memory]]],
) -> Table:
    """All ways of saving a kind of model; `cold` has for each what `measure_alone` found."""
    rows: list[tuple[Any, ...]] = []
    for name in savers.SAVERS[kind]:
        if name not in warm:
            rows.append((name, _MISSING, *[""] * 8))
            continue
        saves, memory = warm[name], [each for _, each in cold[name]]
        rows.append(
            (
                name,
                1e3 * harness.median(each.returned_s for each in saves),
                _ratio(warm, name, "returned_s", savers.COPY),
                _ratio(warm, name, "cpu_s", savers.COPY),
                1e3 * harness.median(each.returned_s for each, _ in cold[name]),
                1e3 * harness.median(each.durable_s for each in saves),
                _ratio(warm, name, "durable_s", savers.RAW),
                harness.median(each.written for each in saves) / size.bytes,
                harness.median(each.trainer for each in memory) / _MB,
                harness.median(each.daemon for each in memory) / _MB,
            )
        )
    return Table(
        f"{kind}, {size.bytes / _MB:g} MB; times in ms, x: medians over the rounds",
        (
            "way",
            "return",
            "x copy",
            "CPU x copy",
            "cold",
            "durable",
            "x raw",
            "written/size",
            "trainer +MB",
            "daemon +MB",
        ),
        tuple(rows),
    )


def _ratio(warm: dict[str, list[Save]], name: str, what: str, to: str) -> float:
    """The median over the rounds of the ratio to another way."""
    pairs = zip(warm[name], warm[to], strict=True)
    return harness.median(float(getattr(a, what) / getattr(b, what)) for a, b in pairs)


def _large_table(size: Size, memory: Memory) -> Table:
    figures = (size.large_bytes, memory.before, memory.trainer, memory.daemon)
    columns = ("model, MB", "before, both", "trainer's growth", "daemon's growth")
    return Table("Peak memory in MB", columns, (tuple(each / _MB for each in figures),))


def goals(kind: str, size: Size, warm: dict[str, list[Save]]) -> tuple[Goal, ...]:
    """What of this should be how."""
    returned = _ratio(warm, savers.OURS, "returned_s", savers.COPY)
    durable = _ratio(warm, savers.OURS, "durable_s", savers.RAW)
    written = harness.median(each.written for each in warm[savers.OURS]) / size.bytes
    return (
        Goal(f"{kind}: return, x copy into mapped memory", RETURN_GOAL, returned),
        Goal(f"{kind}: durable, x raw write + fsync", DURABLE_GOAL, durable),
        Goal(f"{kind}: bytes written, x size", WRITTEN_GOAL, written),
    )


def picture(kind: str, size: Size, warm: dict[str, list[Save]]) -> Picture:
    """How long training waits, and how long it takes until the model is on the disk."""

    def ms(name: str, figure: str) -> float:
        return 1e3 * float(harness.median(getattr(each, figure) for each in warm[name]))

    in_memory = (savers.COPY, savers.COPY_OWN)  # never durable
    series = {
        "return": tuple(ms(name, "returned_s") for name in warm),
        "durable": tuple(
            float("nan") if name in in_memory else ms(name, "durable_s") for name in warm
        ),
    }
    title = f"Saving a {kind} model of {size.bytes / _MB:g} MB"
    return Picture(kind, title, "ms", series, tuple(warm), log=True)
