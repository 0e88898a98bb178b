"""One statement, run a number of times and nothing else: for a tool that counts instructions.

    python -S benchmarks/counted.py <description> <times>

The description is a file of `marshal`: `kind` is "source" for a statement with the tick writer that
`benchmarks.instructions` has generated, or "logger" for a real one that logs to `folder`.  The
former needs three built-in modules, so that start-up, which a tool slows down fifty-fold, is short.
"""

from __future__ import annotations

import marshal
import sys

TYPE_CHECKING = False  # to import `typing` takes more instructions than all that is counted
if TYPE_CHECKING:
    from typing import Any

CLOCK = {"num_steps": 12_345, "num_epochs": 96}
STATS = {"train_loss": 0.731, "test_loss": 0.843}


def repeated(statement: str, names: dict[str, Any]) -> Any:
    """A function that runs a statement so many times.  The loop is the same for all."""
    arguments = ", ".join(f"{name}={name}" for name in names)
    source = f"def repeat(times, {arguments}):\n    for _ in range(times):\n        {statement}\n"
    namespace = dict(names)
    exec(source, namespace)
    return namespace["repeat"]


def _with_source(description: dict[str, Any], times: int) -> None:
    import mmap
    import struct
    import time

    packer = struct.Struct(description["format"])
    segment = mmap.mmap(-1, description["first"] + (times + 1) * packer.size)
    baton = [description["first"]]

    class Hooks:
        take, give, now = baton.pop, baton.append, time.time

        @staticmethod
        def miss(*arguments: Any) -> None:
            raise AssertionError("the writer did not take the tick")

        save = miss

    namespace: dict[str, Any] = {}
    exec(description["source"], namespace)
    constants = [(each, None) for each in (int, int, float, float)]
    update, bind = namespace["make"](Hooks, packer.pack_into, struct.error, object, constants)
    bind(segment)
    exec(f"def empty({description['signature']}): pass", namespace)
    repeat = repeated(
        description["statement"],
        {
            **{"clock": CLOCK, "stats": STATS, "buf": [], "update": update},
            **{"empty": namespace["empty"], "now": time.time, "pack": packer.pack_into},
            **{"segment": segment, "at": description["first"]},
            **{"step": CLOCK["num_steps"], "head": bytes(8)},
        },
    )
    repeat(times)
    written = (baton[0] - description["first"]) // packer.size
    assert written in (0, times), f"{written} ticks were written and not {times}"


def _with_logger(description: dict[str, Any], times: int) -> None:
    from mle_client import MLELogger

    log = MLELogger(experiment_dir=description["folder"], seed_id=times)
    log.update(CLOCK, STATS)  # the first goes the general way
    repeated(description["statement"], {"clock": CLOCK, "stats": STATS, "log": log})(times)
    report = log.close(300.0)
    assert (report.delivered, report.lost) == (times + 1, 0), report


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as _file:
        _description = marshal.load(_file)
    kinds = {"source": _with_source, "logger": _with_logger}
    kinds[_description["kind"]](_description, int(sys.argv[2]))
