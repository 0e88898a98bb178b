"""Finds the daemon of a folder, or starts one.

It opens no socket; `control` and `transport` talk to what is found here.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mle_client import layout, runtime
from mle_client.endpoint import (
    READY,
    Endpoint,
    is_alive,
    local_daemons,
    reachable_address,
    read_endpoint,
)
from mle_client.errors import DaemonStartFailed

DAEMON_VARIABLE: Final = "MLE_DAEMON"
_LAST_WORDS_LINES: Final = 20  # of a daemon that did not start; a traceback's interesting end
# A daemon that a logger started leaves when it has had no work for so long: longer than the pause
# between two runs of a script, shorter than anyone would wonder why it is still there.
OWN_DAEMON_IDLE_S: Final = 5.0


# --- finding --------------------------------------------------------------------------------------
def nearest_daemon(folder: str) -> Endpoint | None:
    """The daemon in charge of a folder, which need not exist.

    Returns:
        That of the nearest folder, this or above, that has a live one; else the nearest that
        was killed and has to be started again; else None.
    """
    crashed = None
    for endpoint in _on_the_way_up(folder):
        if is_alive(endpoint):
            return endpoint
        if crashed is None and endpoint.state == READY:
            crashed = endpoint
    return crashed


def find_root(experiment_dir: str) -> str:
    """The root that an experiment belongs to: its nearest daemon's, or the experiment itself."""
    endpoint = nearest_daemon(experiment_dir)
    return os.path.realpath(experiment_dir) if endpoint is None else endpoint.root


def root_of_address(address: str) -> str | None:
    """The root of this user's daemon at an address; of a live one if several say they had it."""
    candidates = [
        each for each in local_daemons() if address in (each.endpoint, reachable_address(each))
    ]
    candidates.sort(key=is_alive)
    return candidates[-1].root if candidates else None


def is_inside(path: str, root: str) -> bool:
    """Whether a resolved path is a root or below it."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def _on_the_way_up(folder: str) -> Iterator[Endpoint]:
    folder = os.path.realpath(folder)
    while True:
        endpoint = read_endpoint(folder)
        if endpoint is not None:
            yield endpoint
        above = os.path.dirname(folder)
        if above == folder:
            return
        folder = above


# --- choosing -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Target:
    """Where a logger sends to.

    Args:
        root: absolute path of the folder that the daemon serves, links resolved.
        address: of a daemon that runs, or that the user named; None where none runs yet.
        own: whether the root never had a daemon that still should run, so that the logger starts
            one that leaves by itself.  Where False and the daemon is gone, it is to be started
            again with the options in its endpoint file.
    """

    root: str
    address: str | None
    own: bool


def resolve(daemon: str | None, experiment_dir: str) -> Target:
    """Decide which daemon a logger uses.

    Args:
        daemon: an address, the root folder of a daemon, "auto" (the nearest parent folder's), or
            "embedded" (the experiment's own); None for what the variable MLE_DAEMON says, else
            "auto".
        experiment_dir: of the logger; need not exist.

    Raises:
        ValueError: `daemon` is none of these, or does not serve `experiment_dir`.
    """
    where = os.path.realpath(experiment_dir)
    said_by = "daemon" if daemon is not None else DAEMON_VARIABLE
    choice = daemon if daemon is not None else os.environ.get(DAEMON_VARIABLE) or "auto"
    if choice == "auto":
        return _target(find_root(where))
    if choice == "embedded":
        return _target(where)
    if "://" in choice:
        return _target_at(choice, where, said_by)
    root = os.path.realpath(os.path.expanduser(choice))
    if not choice or (os.path.exists(root) and not os.path.isdir(root)):
        raise ValueError(f"{said_by}={choice!r} is {_NO_DAEMON}")
    if not is_inside(where, root):
        raise ValueError(
            f"{said_by}={choice!r}: the folder {root} does not contain the experiment {where}; "
            f"give a folder above it, or 'auto', 'embedded' or an address"
        )
    return _target(root)


_NO_DAEMON: Final = (
    "neither an address (ipc://… or tcp://127.0.0.1:…), nor the root folder of a daemon, "
    "nor 'auto' or 'embedded'"
)


def _target(root: str) -> Target:
    endpoint = read_endpoint(root)
    if endpoint is None or endpoint.state != READY:
        return Target(root, None, own=True)
    return Target(root, endpoint.endpoint if is_alive(endpoint) else None, own=False)


def _target_at(address: str, where: str, said_by: str) -> Target:
    scheme, _, rest = address.partition("://")
    if not rest or not (scheme == "ipc" or (scheme == "tcp" and _has_port(rest))):
        raise ValueError(f"{said_by}={address!r} is {_NO_DAEMON}")
    root = root_of_address(address)
    if root is not None and not is_inside(where, root):
        raise ValueError(
            f"{said_by}={address!r}: the daemon there serves {root}, and the experiment {where} "
            f"is outside of it; start a daemon for a folder that holds both, or leave out {said_by}"
        )
    return Target(where if root is None else root, address, own=False)


def _has_port(rest: str) -> bool:
    """Whether an address over TCP names a host and a port to connect to."""
    host, _, port = rest.rpartition(":")
    digits = port.isascii() and port.isdigit() and len(port) <= len("65535")
    return bool(host) and digits and 0 < int(port) < 2**16


# --- starting -------------------------------------------------------------------------------------
def python_command(*arguments: str) -> list[str]:
    """The command line that runs the daemon's program with the Python that runs us."""
    # -P: what lies in the current folder must not pass for a module of ours.
    return [sys.executable, "-P", "-m", "mle_daemon", *arguments]


def python_environment() -> dict[str, str]:
    """An environment in which another Python finds the packages that this one runs from."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # Site packages must not come before the standard library, where PYTHONPATH would put them.
    if ours not in [*site.getsitepackages(), site.getusersitepackages()]:
        paths.append(ours)
    absolute = os.pathsep.join(os.path.abspath(path) for path in paths)
    return {**os.environ, **({"PYTHONPATH": absolute} if paths else {})}


def start_daemon(
    root: str,
    *,
    idle_timeout: float | None,
    endpoint: str | None = None,
    keys: str | None = None,
    merge: Sequence[str] = (),
    timeout: float = 20.0,
) -> Endpoint:
    """Start a daemon for a root, unless one is there, and wait until it takes clients.

    It is no child of this process: it outlives it, and nobody has to wait for its end.

    Args:
        root: of the daemon.
        idle_timeout: seconds without a client after which it leaves; None for never.
        endpoint: the address it shall listen at; None for a socket of its own choice.
        keys: folder of the keys for that; None for what the environment says.
        merge: options that say when it merges; none for what the environment says.
        timeout: seconds.

    Raises:
        DaemonStartFailed: it did not become ready in time, or ended; carries its last words.
    """
    log = layout.state_path(root, layout.LOG_FILE)
    command = python_command("start", "--root", root, "--json")
    if idle_timeout is not None:
        command += ["--idle-timeout", str(idle_timeout)]
    if endpoint is not None:
        command += ["--endpoint", endpoint]
    if keys is not None:
        command += ["--keys", keys]
    command += merge
    import subprocess  # only who starts one pays for loading it

    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=python_environment(),
            start_new_session=True,  # ^C in the trainer's terminal is not meant for it
            timeout=timeout,
        )
        return Endpoint.from_json(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise DaemonStartFailed(root, f"it was not ready after {timeout:g} s; see {log}") from error
    except OSError as error:
        raise DaemonStartFailed(root, f"{command[0]!r} does not run: {error}") from error
    except ValueError as error:
        # The exit status says less: where the trainer reaps children itself, it is lost.
        raise DaemonStartFailed(root, last_words(done.stderr)) from error


def start_again(root: str) -> Endpoint:
    """Start a root's daemon as the last one was started, if that was killed; else one of our own.

    Raises:
        DaemonStartFailed: as of `start_daemon`.
    """
    last = read_endpoint(root)
    if last is None or last.state != READY:
        return start_daemon(root, idle_timeout=OWN_DAEMON_IDLE_S)
    options = last.options
    return start_daemon(
        root,
        idle_timeout=options.get("idle_timeout"),
        endpoint=options.get("endpoint"),
        keys=options.get("keys"),
        merge=merge_options(options),
    )


def merge_options(options: Mapping[str, Any]) -> list[str]:
    """When a daemon merges, as options of the command line."""
    words = []
    for name in ("merge", "merge_settle"):
        if name in options:  # an earlier release has written none
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    return [*words, "--keep-seed-logs"] if options.get("keep_seed_logs") else words


def has_leftovers(root: str) -> bool:
    """Whether something waits for a daemon of a root: a journal, or the ring of a process."""
    journal = layout.state_path(root, layout.JOURNAL_DIR)
    return any(map(_has_entries, [journal, *runtime.ring_dirs(root)]))


def _has_entries(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(not entry.name.startswith(".") for entry in entries)  # those are unfinished
    except OSError:
        return False


def last_words(stderr: bytes) -> str:
    """The end of what a program wrote to stderr."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()[-_LAST_WORDS_LINES:]
    return "\n".join(lines) or "it ended without a word"
