"""What two sides have left behind and have seen, compared: each difference as one line of text.

    file sweep/.mle/daemon.lock: none → there
    hdf5 single/logs/log_no_seed_provided.hdf5 no_seed_provided/stats/loss: float32 → float64
    seen train config_1.json/1/tracked/train_loss: rounded to float32 → exact

Left is mle-logging, right is ours.  Of the times at which something was logged, types and shapes
are compared, and not the values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

TIMES = ("time", "time_elapsed")
SCRATCH = "habits"  # a folder that is not compared: what matters of it was seen
SEEN = "seen-"  # begins the name of a file in which a program says what it has seen
ABSENT = "none"
_SHOWN = 60  # characters of values in a line

Facts = dict[str, str | list[Any]]  # where it is: what is there, or its values


def facts(folder: Path) -> Facts:
    """Everything about a folder, and about what programs saw in it."""
    found: Facts = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith(SCRATCH):
            continue
        if path.name.startswith(SEEN):
            where = f"seen {path.stem.removeprefix(SEEN)}"
            found.update(_seen(f"{where} ", json.loads(path.read_text())))
            continue
        found[f"{'folder' if path.is_dir() else 'file'} {name}"] = "there"
        if path.suffix == ".hdf5":
            found.update(_hdf5(path, name))
    return found


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """In what two sides differ."""
    lines = []
    for where in sorted(theirs.keys() | ours.keys()):
        change = _change(theirs.get(where, ABSENT), ours.get(where, ABSENT))
        if change:
            lines.append(f"{where}: {change}")
    return lines


# --- facts ----------------------------------------------------------------------------------------
def _hdf5(path: Path, name: str) -> Iterator[tuple[str, str | list[Any]]]:
    with h5py.File(path, "r") as file:
        items: list[tuple[str, Any]] = []
        file.visititems(lambda place, item: items.append((place, item)))
        for place, item in items:
            where = f"hdf5 {name} {place}"
            if isinstance(item, h5py.Group):
                yield where, "group"
                continue
            values = item[()]
            kind = "text" if values.dtype.kind == "S" else str(values.dtype)
            yield where, f"{kind} {list(values.shape)}"
            if values.dtype.kind == "S":
                yield f"{where} bytes", str(values.dtype.itemsize)
            if place.rpartition("/")[2] not in TIMES:
                yield f"{where} =", [_text(value) for value in values.ravel().tolist()]


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _seen(where: str, value: dict[str, Any]) -> Iterator[tuple[str, str | list[Any]]]:
    """Flatten what `programs/seen.py` has described."""
    is_time = where.rpartition("/")[2] in TIMES
    if "keys" in value:
        yield where, value["is"]
        for key, item in value["keys"].items():
            yield from _seen(f"{where}{'' if where.endswith(' ') else '/'}{key}", item)
    elif "dtype" in value:
        yield where, f"{value['is']} of {value['dtype']} {value['shape']}"
        if not is_time:
            yield f"{where} =", value["values"]
    elif "items" in value:
        items = value["items"]
        plain = all("value" in item for item in items)
        kinds = " and ".join(sorted({item["is"] for item in items}))
        yield where, f"{value['is']} of {len(items)} {kinds}".rstrip()
        if plain and not is_time:
            yield f"{where} =", [item["value"] for item in items]
        elif not plain:
            for i, item in enumerate(items):
                yield from _seen(f"{where}[{i}]", item)
    else:
        yield where, value["is"]
        if not is_time:
            yield f"{where} =", [value["value"]]


# --- differences ----------------------------------------------------------------------------------
def _change(theirs: str | list[Any], ours: str | list[Any]) -> str:
    """What is different; "" if nothing is."""
    if isinstance(theirs, str) or isinstance(ours, str):
        return "" if theirs == ours else f"{_short(theirs)} → {_short(ours)}"
    if _are_same(theirs, ours):
        return ""
    if _is_rounded(theirs, ours):
        return "rounded to float32 → exact"
    return f"{_short(theirs)} → {_short(ours)}"


def _are_same(theirs: list[Any], ours: list[Any]) -> bool:
    return len(theirs) == len(ours) and all(
        one == other or (_is_nan(one) and _is_nan(other))
        for one, other in zip(theirs, ours, strict=True)
    )


def _is_rounded(theirs: list[Any], ours: list[Any]) -> bool:
    """Whether mle-logging's values are ours in single precision, or computed from such values."""
    if len(theirs) != len(ours) or not all(isinstance(v, int | float) for v in [*theirs, *ours]):
        return False
    left, right = np.array(theirs, float), np.array(ours, float)
    # Of differences between such values, which may be much smaller than these.
    scale = np.max(np.abs(right), initial=0.0, where=np.isfinite(right))
    close = np.isclose(left, right, rtol=2**-22, atol=scale * 2**-22)
    return bool((close | (np.isnan(left) & np.isnan(right))).all())


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _short(value: str | list[Any]) -> str:
    text = value if isinstance(value, str) else ", ".join(map(repr, value))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
