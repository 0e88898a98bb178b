"""Where everything lies: files under a root, groups and names inside a log file.

Pure: strings in, strings out.  It opens nothing and imports no HDF5 library.
The layout itself, with its version, is specified in `docs/hdf5-layout.md`.
"""

from __future__ import annotations

import hashlib
import posixpath

FILE_FORMAT = 1  # version of the HDF5 layout, kept in the seed group's attribute FORMAT_ATTR

# --- attributes of a seed group; mle-logging never looks at attributes -------------------------
FORMAT_ATTR = "mle_format"  # int, FILE_FORMAT
RUN_ATTR = "mle_run"  # 32 hex digits, the run that owns the file
STATE_ATTR = "mle_state"  # "running", "finished" or "crashed"
ROWS_ATTR = "mle_rows"  # int, ticks stored: the length of time/num_updates
START_ATTR = "mle_start"  # float, seconds since the epoch at which time_elapsed is 0
APPLIED_ATTR = "mle_applied"  # JSON {producer hex: stream position up to which it is stored}
LOST_ATTR = "mle_lost"  # int, ticks that producers could not keep; absent where 0
REFUSED_ATTR = "mle_refused"  # int, values of a wrong type that were left out; absent where 0
# attribute of a stored column
STRING_ATTR = "mle_escaped"  # present and 1 where NUL characters are stored as C0 80
# attribute of meta/config_dict, where a Python literal cannot say the whole config
JSON_ATTR = "mle_json"

GROUPS = ("meta", "stats", "time")
# The clocks that every tick has, whatever the user logs.
OWN_CLOCKS = ("time", "time_elapsed", "num_updates")
NO_SEED = "no_seed_provided"
NO_CONFIG = "config-not-provided"
TIME_FORMAT = "%y-%m-%d/%H:%M"  # of the column time/time, as mle-logging writes it

# --- files under the root -----------------------------------------------------------------------
STATE_DIR = ".mle"
ENDPOINT_FILE = "daemon.json"
LOCK_FILE = "daemon.lock"
START_LOCK_FILE = "start.lock"
LOG_FILE = "daemon.log"
JOURNAL_DIR = "journal"
STAGING_DIR = "staging"  # unfinished copies of log files; same file system as the logs
SPILL_DIR = "spill"
REPLACED_DIR = "replaced"  # logs whose name a new run took


def state_path(root: str, *names: str) -> str:
    """The path of one of our own files under a root."""
    return posixpath.join(root, STATE_DIR, *names)


def log_path(experiment_dir: str, seed_id: str) -> str:
    """The log file of one run, as mle-logging names it."""
    return posixpath.join(experiment_dir, "logs/", f"log_{seed_id}.hdf5")


def merged_log_path(experiment_dir: str) -> str:
    """The merged log of all seeds of an experiment."""
    return posixpath.join(experiment_dir, "logs/", "log.hdf5")


def root_digest(root: str) -> str:
    """A short name for a root, for paths that must stay under the 107 bytes of an ipc address."""
    return hashlib.sha256(root.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def is_file_name(name: str) -> bool:
    """Whether a name is one plain part of a path, of a length that file systems take."""
    return (
        name not in ("", ".", "..")
        and not any(character in name for character in "/\0")
        and len(name.encode("utf-8", "surrogateescape")) <= 200
    )


def is_seed_id(seed_id: str) -> bool:
    """Whether a seed can have this name: it is part of a file name and the name of a group."""
    return is_file_name(seed_id)


# --- names of metrics ---------------------------------------------------------------------------
# HDF5 takes every UTF-8 string as the name of a link except "", "." and what holds "/" or NUL.
_ROWS_PREFIX = {"stats": "stats_rows:", "time": "time_rows:"}


def escape(name: str) -> str:
    """A metric's name as the name of an HDF5 dataset; `unescape` gives it back."""
    if name == "":
        return "%"
    if name in (".", ".."):
        return name.replace(".", "%2E")
    return name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")


def unescape(stored: str) -> str:
    """The metric's name of an HDF5 dataset's name.  Names that were never escaped stay."""
    if stored == "%":
        return ""
    for code, character in (("%00", "\0"), ("%2F", "/"), ("%2E", "."), ("%25", "%")):
        stored = stored.replace(code, character)
    return stored


def rows_name(group: str, name: str) -> str:
    """The dataset in meta/ with the row numbers of a column that not every tick has."""
    return _ROWS_PREFIX[group] + escape(name)


def is_rows_name(stored: str) -> bool:
    """Whether a dataset in meta/ holds row numbers and is no meta data of the user's."""
    return stored.startswith(tuple(_ROWS_PREFIX.values()))
