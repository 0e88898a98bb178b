"""Where everything lies: files under a root, groups and names inside a log file.

Pure: strings in, strings out.  It opens nothing and imports no HDF5 library.
The layout itself, with its version, is specified in `docs/hdf5-layout.md`.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from typing import Final, TypeAlias

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
OVERWRITE_ATTR = "mle_overwrite"  # int, 1: older logs of the seed were to go; absent otherwise
TBOARD_ATTR = "mle_tboard"  # int, bytes of the event file that count; absent where 0
# dataset in meta/: JSON of what the run has stored beside its log, see `kept`
KEPT_NAME = "mle_kept"
# attribute of a stored column
STRING_ATTR = "mle_escaped"  # present and 1 where NUL characters are stored as C0 80
# attribute of meta/config_dict, where a Python literal cannot say the whole config
JSON_ATTR = "mle_json"

# What a list in meta/ holds.
MetaList: TypeAlias = "tuple[str, ...] | tuple[int | float, ...]"

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
SNAPSHOTS_DIR = "snapshots"  # of artifacts, in the folders of a ring
REPLACED_DIR = "replaced"  # logs whose name a new run took


def state_path(root: str, *names: str) -> str:
    """The path of one of our own files under a root."""
    return posixpath.join(root, STATE_DIR, *names)


def log_path(experiment_dir: str, seed_id: str) -> str:
    """The log file of one run, as mle-logging names it."""
    return posixpath.join(experiment_dir, "logs/", f"log_{seed_id}.hdf5")


def seed_of_log(path: str) -> str | None:
    """The seed whose log a path of `log_path` is; None in others."""
    name = posixpath.basename(path)
    if not (name.startswith("log_") and name.endswith(".hdf5")):
        return None
    return name[len("log_") : -len(".hdf5")] or None


def merged_log_path(experiment_dir: str) -> str:
    """The merged log of all seeds of an experiment."""
    return posixpath.join(experiment_dir, "logs/", "log.hdf5")


def meta_log_path(folder: str) -> str:
    """The merged log of all configurations in a folder."""
    return posixpath.join(folder, "meta_log.hdf5")


def model_extension(model_type: str) -> str:
    """The suffix of model files, as mle-logging chooses it; "" where no models are saved."""
    if model_type in ("torch", "tensorflow"):
        return ".pt"
    return ".pkl" if model_type in ("jax", "sklearn", "numpy") else ""


# --- artifacts: paths relative to the experiment's folder, as mle-logging names them ------------
MODELS_DIR = "models"
FIGURES_DIR = "figures"
EXTRA_DIR = "extra"
_RETAINED_DIR = "models/retained"  # mle-logging has no such folder
_PART_BYTES: Final = 255  # of one part of a path; what Linux file systems take
# Of a path that a user gives: leaves room for the experiment's folder in the 4096 that Linux takes.
_GIVEN_PATH_BYTES: Final = 2048
# Of an experiment's folder: leaves room for the longest name of ours below it.
_FOLDER_PATH_BYTES: Final = 3_500
_FILE_NAME_BYTES: Final = 200  # of a part that gets more before and behind it
# Digits of a number in a file's name: more are no number of ours, and fit no msgpack integer.
_NUMBER: Final = "([0-9]{1,18})"
_TEMPORARY: Final = re.compile(r"\.mle-.*\.tmp", re.DOTALL)


def final_path(seed_id: str, extension: str) -> str:
    """The latest checkpoint.  Args: extension: of model files, with its dot."""
    return f"models/final/final_{seed_id}{extension}"


def init_path(seed_id: str, extension: str) -> str:
    """The initial checkpoint."""
    return f"models/init/init_{seed_id}{extension}"


def every_k_path(seed_id: str, number: int, extension: str) -> str:
    """A checkpoint that is kept because it is every k-th.  Args: number: of the save, from 1."""
    return f"models/every_k/every_k_{seed_id}_k_{number}{extension}"


def top_k_path(seed_id: str, slot: int, extension: str) -> str:
    """One of the best checkpoints.  Args: slot: from 0; it says nothing about the rank."""
    return f"models/top_k/top_k_{seed_id}_top_{slot}{extension}"


def retained_path(seed_id: str, number: int, extension: str) -> str:
    """A checkpoint that a rule of `retention` keeps.  Args: number: of the save, from 1."""
    return f"{_RETAINED_DIR}/retained_{seed_id}_{number}{extension}"


def figure_path(seed_id: str, number: int) -> str:
    """A figure without a name of its own.  Args: number: from 1."""
    return f"figures/fig_{number}_{seed_id}.png"


def extra_path(seed_id: str, number: int) -> str:
    """An object without a name of its own.  Args: number: from 1."""
    return f"extra/extra_{number}_{seed_id}.pkl"


def every_k_number(path: str) -> int | None:
    """The number of the save in a path of `every_k_path`, mle-logging's too; None in others."""
    found = re.search(rf"_k_{_NUMBER}(?:\.[a-z]+)?\Z", path)
    return int(found[1]) if found else None


def retained_number(path: str, seed_id: str, extension: str) -> int | None:
    """The number of the save in a path of `retained_path`; None in those of other seeds."""
    folder, name = posixpath.split(path)
    found = re.fullmatch(rf"retained_{re.escape(seed_id)}_{_NUMBER}{re.escape(extension)}", name)
    if folder != _RETAINED_DIR or not found or found[1].startswith("0"):
        return None
    return int(found[1])


def file_number(path: str, seed_id: str) -> int | None:
    """The number in a path of `figure_path` or `extra_path`; None in others."""
    seed = re.escape(seed_id)
    found = re.fullmatch(
        rf"figures/fig_{_NUMBER}_{seed}\.png|extra/extra_{_NUMBER}_{seed}\.pkl", path
    )
    return int(found[1] or found[2]) if found else None


def in_seed(path: str, seed_id: str, stored_as: str) -> str:
    """A path of `figure_path` or `extra_path` where the seed is stored under another name."""
    number = file_number(path, seed_id)
    if number is None or seed_id == stored_as:
        return path
    numbered = figure_path if path.startswith(f"{FIGURES_DIR}/") else extra_path
    return numbered(stored_as, number)


def temporary_name(token: str) -> str:
    """The name of an unfinished file of ours in a user's folder.  Args: token: makes it unique."""
    return f".mle-{token}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file name is one of `temporary_name`."""
    return _TEMPORARY.fullmatch(name) is not None


def artifact_path_problem(folder: str, name: str) -> str:
    """Why a user's name for a figure or object cannot be used; "" if it can.

    Args:
        folder: that it is to go into, "figures" or "extra".
        name: relative to that; it may have folders of its own.
    """
    parts = name.split("/")
    asked = f"give a path inside {folder}/, such as 'loss.png' or 'epoch_1/loss.png'"
    if name == "" or parts[-1] in ("", "."):
        return f"{name!r} names no file: {asked}"
    if name.startswith("/"):
        return f"{name!r} is an absolute path: {asked}"
    if ".." in parts:
        return f"{name!r} leads upwards: {asked}"
    if "\0" in name:
        return f"{name!r} holds a NUL character, which no file name can: leave it out"
    try:
        longest = max(len(part.encode("utf-8", "surrogateescape")) for part in parts)
        length = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return f"{name!r} is no valid Unicode: remove the surrogates"
    if longest > _PART_BYTES or length > _GIVEN_PATH_BYTES:
        return (
            f"{name[:40]!r}… is too long: a part of a path may have {_PART_BYTES} bytes, all of it "
            f"{_GIVEN_PATH_BYTES}"
        )
    if any(map(is_temporary, parts)):
        return f"{name!r} is named as unfinished files are, which are removed: give another name"
    return ""


def root_digest(root: str) -> str:
    """A short name for a root, for paths that must stay under the 107 bytes of an ipc address."""
    return hashlib.sha256(root.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def is_file_name(name: str) -> bool:
    """Whether a name is one plain part of a path, of a length that file systems take."""
    if name in ("", ".", "..") or any(character in name for character in "/\0"):
        return False
    try:
        return len(name.encode("utf-8", "surrogateescape")) <= _FILE_NAME_BYTES
    except UnicodeEncodeError:  # surrogates
        return False


def is_config_name(name: str) -> bool:
    """Whether a configuration file can have this name beside an experiment's folders and logs."""
    taken = (STATE_DIR, "logs", MODELS_DIR, FIGURES_DIR, EXTRA_DIR, "tboards", "wandb")
    # The folder that it goes into may be one of logs, or of configurations.
    is_ours = name in taken or is_temporary(name) or name.endswith(".hdf5")
    return is_file_name(name) and not is_ours


def is_path(path: str) -> bool:
    """Whether an experiment's folder can have this path: Linux bounds paths, and parts of them."""
    try:
        parts = [len(part.encode("utf-8", "surrogateescape")) for part in path.split("/")]
    except UnicodeEncodeError:  # surrogates
        return False
    return max(parts) <= _PART_BYTES and sum(parts) + len(parts) <= _FOLDER_PATH_BYTES


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
