"""How many machine instructions a call of `update()` and its parts take.

Where a machine is shared, seconds move by half; instructions hardly move at all.  A small program
(`counted`) runs a statement few times and many times under `valgrind --tool=callgrind`, or under
`perf stat` where only that works; the difference, by the difference of times, is what one call
takes, and start-up is in neither.  The empty loop is taken off.

The writer that `mle_client.ticks` generates is counted on its own, with no thread beside it, and
then `update()` of a real logger with a daemon, of which the caller's thread is counted alone.  An
instruction is not a unit of time: one that misses the cache takes as long as hundreds.
"""

from __future__ import annotations

import marshal
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import counted, harness
from benchmarks.harness import Picture, Result, Table
from benchmarks.workspace import Workspace, workspace
from mle_client import messages as m
from mle_client import tick_layout, tick_writers, ticks
from mle_client.ring import HEADER_BYTES

NAME: Final = "instructions"
FLOOR, WRITER, LOGGER = "floor: append copies of the dicts", "the writer alone", "update()"
_LOOP: Final = "the empty loop"
_TIMEOUT_S: Final = 300.0
_PROGRAM: Final = str(Path(counted.__file__))
_PROFILED: Final = (WRITER, FLOOR)
_TOP: Final = 14  # functions that a profile shows
# Lines of callgrind's output: "fn=(12) name" or "fn=(12)", and "+3 17", a place and its cost.
_FUNCTION: Final = re.compile(r"^fn=\((\d+)\)(?: ([^'\s]+))?")
_COST: Final = re.compile(r"^[+\-*\d]\S* (\d+)$")
_NAMED: Final = re.compile(r"^c?fn=\((\d+)\) ([^'\s]+)")

# Name -> what is called.
STATEMENTS: Final = {
    _LOOP: "pass",
    FLOOR: "buf.append((dict(clock), dict(stats)))",
    WRITER: "update(clock, stats)",
    "an empty function of that signature": "empty(clock, stats)",
    "time.time()": "now()",
    "struct pack_into": "pack(segment, at, 0.5, step, 96, 0.731, 0.843, head)",
}
_PARTS: Final = tuple(name for name in STATEMENTS if name not in (_LOOP, FLOOR, WRITER))


@dataclass(frozen=True, slots=True)
class Size:
    """How much is counted.

    Args:
        few, many: calls.
        statements: that are counted besides the loop, the floor and the writer.
        logger: whether a real one is, too.
    """

    few: int
    many: int
    statements: tuple[str, ...] = _PARTS
    logger: bool = True


SIZES: Final = {
    "full": Size(few=2_000, many=42_000),
    "quick": Size(few=2_000, many=12_000),
    "tiny": Size(few=100, many=300, statements=(), logger=False),
}


@dataclass(frozen=True, slots=True)
class Count:
    """Instructions of one call.  Args: functions: {name in C: its own}, where the tool tells."""

    total: float
    functions: Mapping[str, float] = field(default_factory=dict)


def run(size: Size) -> Result:
    """Count every statement, with whichever tool works here."""
    with workspace() as space:
        folder = space.root.parent
        tool = find_tool(folder)
        if not tool:
            return _nothing()
        names = (_LOOP, FLOOR, WRITER, *size.statements)
        described = {name: description(STATEMENTS[name]) for name in names}
        if size.logger:
            described[LOGGER] = _logger(space)
        harness.tell(f"{NAME}: {len(described)} statements, with {tool}")
        counts = _count_all(tool, folder, described, size)
    loop = counts.pop(_LOOP)
    tables = (_table(tool, size, counts, loop), *_profiles(counts, loop))
    figures = {
        "tool": tool,
        "loop": loop,
        "counts": counts,
        "interpreter": sysconfig.get_config_var("CONFIG_ARGS"),
    }
    return Result(NAME, tables, (), figures, _pictures(counts, loop))


def find_tool(folder: Path) -> str:
    """What counts instructions here: "callgrind", "perf", or "" for nothing."""
    command = [sys.executable, "-S", "-c", "pass"]
    for tool in ("callgrind", "perf"):
        try:
            place = Path(tempfile.mkdtemp(dir=folder))
            if _total(tool, command, place, dict(os.environ)).total > 0:
                return tool
        except (OSError, RuntimeError, subprocess.SubprocessError):
            continue
    return ""


def description(statement: str) -> dict[str, Any]:
    """What `counted` needs to run a statement with a generated writer."""
    described = ticks.describe(counted.CLOCK, counted.STATS)
    assert described.direct is not None
    schema = m.Schema(0, described.clock, described.stats)
    return {
        "kind": "source",
        "statement": statement,
        "signature": tick_writers._SIGNATURE,
        "source": tick_writers.writer_source(schema, described.direct, ()),
        "format": tick_writers.writer_struct(schema).format,
        "first": HEADER_BYTES + len(tick_layout.head(schema)),
    }


def _logger(space: Workspace) -> dict[str, Any]:
    folder = str(space.root / "run")
    return {"kind": "logger", "statement": "log.update(clock, stats)", "folder": folder}


# --- counting -------------------------------------------------------------------------------------
def _count_all(
    tool: str, folder: Path, described: Mapping[str, dict[str, Any]], size: Size
) -> dict[str, Count]:
    """Instructions of one call of each: by what many take more than few.

    As many processes at once as there are cores: that changes times, and no counts.
    """
    # The same hashes, and so the same collisions in dicts, in every process.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}

    def count(name: str, times: int) -> Count:
        place = Path(tempfile.mkdtemp(dir=folder))
        path = place / "description"
        path.write_bytes(marshal.dumps(described[name]))
        site = ["-S"] if described[name]["kind"] == "source" else []
        command = [sys.executable, *site, "-P", _PROGRAM, str(path), str(times)]
        return _total(tool, command, place, environment)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        few = {name: pool.submit(count, name, size.few) for name in described}
        many = {name: pool.submit(count, name, size.many) for name in described}
        calls = size.many - size.few
        return {name: _a_call(few[name].result(), many[name].result(), calls) for name in described}


def _a_call(few: Count, many: Count, calls: int) -> Count:
    functions = {
        name: (spent - few.functions.get(name, 0.0)) / calls
        for name, spent in many.functions.items()
    }
    return Count((many.total - few.total) / calls, functions)


def _total(tool: str, command: list[str], place: Path, environment: dict[str, str]) -> Count:
    """Instructions of a whole process, or, with callgrind, of its first thread."""
    if tool == "perf":
        return _perf(command, environment)
    options = ["--tool=callgrind", "--separate-threads=yes"]
    file = f"--callgrind-out-file={place}/out"
    _run(["valgrind", "-q", *options, file, *command], environment)
    return read_callgrind((place / "out-01").read_text())


def read_callgrind(text: str) -> Count:
    """What callgrind has found, by function, without what each has called."""
    functions: defaultdict[str, float] = defaultdict(float)
    names: dict[str, str] = {}
    function, of_callee = "", False
    for line in text.splitlines():
        if found := _NAMED.match(line):  # also of one that is called and comes later
            names.setdefault(found[1], found[2])
        if found := _FUNCTION.match(line):
            function = names[found[1]]
        elif line.startswith("calls="):
            of_callee = True  # the next line has the cost of these calls
        elif found := _COST.match(line):
            if not of_callee:
                functions[function] += int(found[1])
            of_callee = False
    return Count(sum(functions.values()), functions)


def _perf(command: list[str], environment: dict[str, str]) -> Count:
    """What `perf stat` counts.  Raises: RuntimeError: the machine does not count for us."""
    done = _run(["perf", "stat", "-x,", "-e", "instructions:u", *command], environment, "stderr")
    found = re.search(r"^(\d+),[^,]*,instructions", done, re.MULTILINE)
    if not found:
        raise RuntimeError(f"perf counts no instructions: {done.strip()}")
    return Count(float(found[1]))


def _run(command: list[str], environment: dict[str, str], stream: str = "stdout") -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT_S
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2_000:]}")
    return str(getattr(done, stream))


# --- tables ---------------------------------------------------------------------------------------


def _nothing() -> Result:
    title = "Instructions a call: neither valgrind nor perf counts them on this machine"
    return Result(NAME, (Table(title, ("call", "instructions"), (("update()", "not counted"),)),))


def _table(tool: str, size: Size, counts: Mapping[str, Count], loop: Count) -> Table:
    floor = counts[FLOOR].total - loop.total
    rows = [
        (name, each.total - loop.total, (each.total - loop.total) / floor)
        for name, each in counts.items()
    ]
    title = (
        f"Instructions a call, net of the loop's {loop.total:.0f}, counted with {tool} from "
        f"{size.few:,} to {size.many:,} calls"
    )
    return Table(title, ("call", "instructions", "x floor"), tuple(rows))


def _profiles(counts: Mapping[str, Count], loop: Count) -> list[Table]:
    """Where the instructions go, by function of the interpreter."""
    tables = []
    for name in _PROFILED:
        total = counts[name].total - loop.total
        own = {
            function: spent - loop.functions.get(function, 0.0)
            for function, spent in counts[name].functions.items()
        }
        top = sorted(own, key=lambda function: -own[function])[:_TOP]
        rows = [(function, own[function], 100 * own[function] / total) for function in top]
        rest = total - sum(own[function] for function in top)
        rows.append(("all others", rest, 100 * rest / total))
        if own:
            columns = ("function", "instructions", "share, %")
            tables.append(Table(f"Where they go: {name}", columns, tuple(rows)))
    return tables


def _pictures(counts: Mapping[str, Count], loop: Count) -> tuple[Picture, ...]:
    title, label = "Instructions of a call, 2 clocks + 2 statistics", "instructions, less the loop"
    values = tuple(each.total - loop.total for each in counts.values())
    return (Picture("calls", title, label, {label: values}, tuple(counts)),)
