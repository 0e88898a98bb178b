"""Which folders are experiments, and which files are their logs.

Told from names, and from when files last changed: it opens none, and changes nothing.  An
experiment is a folder that has log files in its own folder logs/.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from mle_client import layout
from mle_client.seeds import natural_key

# What merging, ours and mle-logging's, takes for a log by its name.
_SUFFIXES: Final = (".hdf5", ".h5", ".hdf")
_LOGS: Final = "logs"
# Folders of an experiment that may have many files, and no experiments below them.
_OF_AN_EXPERIMENT: Final = frozenset(
    (_LOGS, "tboards", "wandb", layout.MODELS_DIR, layout.FIGURES_DIR, layout.EXTRA_DIR)
)


@dataclass(frozen=True, slots=True)
class Behind:
    """In what a merged log of configurations is behind the folders beside it.

    Args:
        missing: configurations that are not in it.
        newer: configurations in it that have a log which changed later.
    """

    missing: tuple[str, ...]
    newer: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether it is behind."""
        return bool(self.missing or self.newer)


# --- files ----------------------------------------------------------------------------------------
def log_files(folder: str, *, other_than: str = "") -> list[str]:
    """The paths of all logs of an experiment, merged ones too, but for one.

    A meta_log.hdf5 in its folder logs/ is none of them: it is of the experiments inside of that.
    """
    logs = os.path.join(folder, _LOGS)
    if not os.path.isdir(logs):
        return []
    paths = [os.path.join(logs, n) for n in sorted(os.listdir(logs), key=natural_key) if _is_log(n)]
    excluded = os.path.realpath(other_than) if other_than else ""
    return [path for path in paths if os.path.realpath(path) != excluded]


def seed_log_files(folder: str) -> list[str]:
    """The paths of logs that are named as those of single seeds are; merged ones may be, too."""
    return [path for path in log_files(folder) if layout.seed_of_log(path) is not None]


def is_meta_log(path: str) -> bool:
    """Whether a file is named as the merged log of several configurations."""
    return os.path.basename(path) == os.path.basename(layout.meta_log_path(""))


def _is_log(name: str) -> bool:
    return name.endswith(_SUFFIXES) and not name.startswith(".") and not is_meta_log(name)


# --- folders --------------------------------------------------------------------------------------
def find_groups(root: str) -> list[str]:
    """The experiments at or below a root, in natural order, but for those in hidden folders."""
    found = []
    for folder, inside, _ in os.walk(root):
        is_one = _LOGS in inside and bool(log_files(folder))
        if is_one:
            found.append(folder)
        inside[:] = [
            name
            for name in inside
            if not name.startswith(".")
            and not (
                is_one and name in _OF_AN_EXPERIMENT and not log_files(os.path.join(folder, name))
            )
        ]
    return sorted(found, key=natural_key)


def configurations_in(folder: str) -> dict[str, str]:
    """The experiments right inside a folder, by name, in natural order; no hidden ones."""
    names = sorted((n for n in os.listdir(folder) if not n.startswith(".")), key=natural_key)
    paths = {as_text(name): os.path.join(folder, name) for name in names}
    return {name: path for name, path in paths.items() if log_files(path)}


def as_text(name: str) -> str:
    """A name in a path as the name of a group in a file, also where the locale is not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def behind(meta_log: str, names: Collection[str]) -> Behind:
    """Look in what a merged log of configurations is behind the folders beside it.

    Args:
        meta_log: its path.
        names: of the configurations in it.
    """
    folder = os.path.dirname(meta_log) or "."
    found = configurations_in(folder)
    written = os.stat(meta_log).st_mtime_ns
    return Behind(
        tuple(name for name in found if name not in names),
        tuple(name for name in found if name in names and _changed(found[name]) > written),
    )


def _changed(folder: str) -> int:
    """When a log of an experiment last changed, in nanoseconds since the epoch."""
    latest = 0
    for path in log_files(folder):
        try:
            latest = max(latest, os.stat(path).st_mtime_ns)
        except FileNotFoundError:  # merged meanwhile, or a link to nothing
            continue
    return latest
