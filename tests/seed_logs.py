"""Logs of seeds for tests of merging: real files, made in a moment, and what lies in them.

Ours are written by the daemon's own writer, into memory; those of mle-logging by h5py as
mle-logging calls it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from mle_client import layout
from mle_client import messages as m
from mle_client.h5access import empty_image
from mle_daemon import h5datasets, h5edit, h5file, h5seal
from mle_daemon.columns import FileState
from mle_daemon.events import PublishRun
from mle_daemon.planning import plan_append
from tests.unit.daemon.test_planning import Stream, Tick

START = 1.7e9

# What a log says of one seed: the values of each column, by its path below the seed.
Values: TypeAlias = dict[str, tuple[Any, ...]]
# Where a log lies in a file: configuration, if any, and seed.
Key: TypeAlias = tuple[str, ...]


def run_id(name: str) -> m.RunId:
    """The id of a run that a test calls so."""
    return m.RunId(hashlib.md5(name.encode()).digest())


def make_run(seed: str, name: str, **changes: Any) -> m.Run:
    """A run."""
    plain: dict[str, Any] = {
        "run_id": run_id(name), "directory": "/exps/exp", "experiment_dir": "exp/",
        "seed_id": seed, "eval_id": "", "model_type": "no-model-type-provided",
        "start_time": START, "config_name": "", "config_file": b"", "config_text": "{'lr': 0.1}",
        "config_json": "", "num_seeds": None, "overwrite": False, "reload": False, "policy": {},
        "kept": {}, "tboard": False, "wandb": {}, "forked": False,
        "process": m.Process(1, "here", "7", "boot"),
    }  # fmt: skip
    return m.Run(**(plain | changes))


def ticks_of(losses: Sequence[Any]) -> list[Tick]:
    """Ticks with one clock and one statistic."""
    return [({"step": i}, {"loss": loss}) for i, loss in enumerate(losses)]


def log_bytes(
    seed: str,
    ticks: Sequence[Tick],
    *,
    run: str = "",
    start: float = 0.0,
    state: str = "finished",
    sealed: bool = True,
    kept: str = "",
    **changes: Any,
) -> bytes:
    """The bytes of a log of ours.

    Args:
        run: what the test calls the run; "" for the name of the seed.
        start: seconds after `START` at which it began.
        kept: as of `PublishRun`.
        changes: of `messages.Run`.
    """
    about = make_run(seed, run or seed, start_time=START + start, **changes)
    stream = Stream()
    stream._now = about.start_time  # so that a run that goes on has the clocks of its beginning
    blocks = tuple(stream.blocks(*ticks))
    plan = plan_append(None, blocks, about.start_time, lambda column: iter(()))
    columns = {(c.after.group, c.after.name): c.after for c in plan.appends}
    after = FileState(
        about.run_id.hex(), plan.rows, {"ab" * 16: plan.rows}, columns, state, about.start_time,
        0, kept=kept,
    )  # fmt: skip
    job = PublishRun(about, seed, "", None, blocks, 0, {}, state, kept)

    def edit(file: h5datasets.Id) -> None:
        h5edit.begin(file, about, seed)
        h5edit.append(file, seed, plan)
        h5edit.write_kept(file, seed, job)
        h5edit.mark(file, seed, after)

    image = h5file.edit_image(empty_image(), edit, "a test's log")
    if not sealed or state == "running":
        return image
    with h5file.opened("", image) as source:
        held = h5seal.stored_in(source.id)
        return h5file.edit_image(
            empty_image(), lambda file: h5seal.copy_compact(source.id, held, file), "a test's log"
        )


def write_log(folder: Path | str, seed: str, losses: Sequence[Any], **facts: Any) -> str:
    """Write the log of a seed where a daemon would, and return its path.

    Args:
        folder: of the configuration.
        facts: as of `log_bytes`.
    """
    path = layout.log_path(str(folder), seed)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_aside(path, log_bytes(seed, ticks_of(losses), **facts))
    return path


def write_aside(path: str, content: bytes) -> None:
    """Give a file its content as everybody here does: in one step."""
    Path(f"{path}.new").write_bytes(content)
    os.replace(f"{path}.new", path)


def write_foreign(path: Path | str, runs: Mapping[str, Sequence[Any]], **meta: str) -> str:
    """Write a log as mle-logging does, of one or several seeds.

    Args:
        runs: {name of a seed's group: losses}.
        meta: further texts of meta/.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with h5py.File(path, "w") as file:
        for seed, losses in runs.items():
            said = {"config_dict": "{'lr': 0.1}", "model_type": "none", **meta}
            for name, text in said.items():
                file.create_dataset(
                    f"{seed}/meta/{name}", data=[text.encode("ascii", "ignore")], dtype="S5000",
                    compression="gzip", compression_opts=4,
                )  # fmt: skip
            times = [b"24-01-01/00:00"] * len(losses)
            for name, values, kind in (
                ("time/time", times, "S5000"),
                ("time/num_updates", np.arange(1, len(losses) + 1), "float32"),
                ("stats/loss", losses, "float32"),
                ("stats/train/acc", losses, "float32"),
            ):
                file.create_dataset(
                    f"{seed}/{name}", data=values, dtype=kind, compression="gzip",
                    compression_opts=4,
                )  # fmt: skip
    return str(path)


# --- looking --------------------------------------------------------------------------------------
def read_logs(path: Path | str) -> dict[Key, Values]:
    """What a file says of each seed in it, read with plain h5py."""
    with h5py.File(path, "r") as file:
        return {key: _values(group) for key, group in _runs(file, ())}


def losses(path: Path | str) -> dict[str, list[Any]]:
    """The losses of each seed in a file, by the path of its group."""
    return {
        "/".join(key): list(each.get("stats/loss", ())) for key, each in read_logs(path).items()
    }


def everything(folder: Path | str) -> dict[str, dict[Key, Values]]:
    """What all files at or below a folder say that have a log's name."""
    return {
        os.path.join(above, name): read_logs(os.path.join(above, name))
        for above, _, names in os.walk(folder)
        for name in names
        if name.endswith(".hdf5")
    }


def holds(found: Mapping[str, Mapping[Key, Values]], seed: str, wanted: Values) -> bool:
    """Whether the values of a seed are in some file, at the beginning of what it says of it."""
    return any(
        key[-1] == seed and is_prefix(wanted, values)
        for each in found.values()
        for key, values in each.items()
    )


def is_prefix(one: Values, other: Values) -> bool:
    """Whether each column of one begins the column of another."""
    return all(
        name in other and json.dumps(other[name][: len(column)]) == json.dumps(column)
        for name, column in one.items()
    )


def leftovers(folder: Path | str) -> list[str]:
    """Unfinished files at or below a folder."""
    return [
        name
        for _, _, names in os.walk(folder)
        for name in names
        if name.endswith((".tmp", ".copy")) or name.startswith(".mle-")
    ]


def open_files() -> list[str]:
    """What the descriptors of this process lead to."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(found)


def _runs(group: Any, above: Key) -> Iterator[tuple[Key, Any]]:
    for name, child in group.items():
        if isinstance(child, h5py.Group):
            if "time" in child and "loss" not in child:
                yield (*above, name), child
            else:
                yield from _runs(child, (*above, name))


def _values(group: Any) -> Values:
    found: Values = {}

    def visit(name: str, item: Any) -> None:
        parts = name.split("/")
        if isinstance(item, h5py.Dataset) and (
            parts[0] in ("time", "stats") or layout.is_rows_name(parts[-1])
        ):
            column = "/".join((parts[0], *map(layout.unescape, parts[1:])))
            found[column] = tuple(_plain(value) for value in item[:].tolist())

    group.visititems(visit)
    return found


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
