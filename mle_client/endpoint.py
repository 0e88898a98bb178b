"""The endpoint file: what a daemon says about itself, and whether that still holds.

A daemon says where it listens in `<root>/.mle/daemon.json`, and in a copy of that file in this
user's socket folder.  A file is believed only if this user wrote it, and a daemon counts as alive
only if the very process that wrote it still runs: a recycled pid, another user's file in a parent
folder that all may write to, and a copied experiment folder fool nobody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from mle_client import addresses, layout, runtime

READY: Final = "ready"  # it takes clients, or was killed while it did
STOPPED: Final = "stopped"  # it was told to leave; nobody needs to start it again

# A daemon touches its file this often.  It matters on other machines only, which cannot see its
# process: they take it for dead after STALE_AFTER_S, six missed beats, for a shared file system
# may show a change late.
BEAT_EVERY_S: Final = 5.0
STALE_AFTER_S: Final = 30.0

_LARGEST_FILE_BYTES: Final = 64 * 1024  # ours have a few hundred


@dataclass(frozen=True)
class Endpoint:
    """What a daemon says about itself.

    Args:
        pid: its process.
        started: when that process began, see `runtime.process_started`.
        boot_id: of the machine's running system, see `runtime.boot_id`.
        host: the machine's name.
        uid: of its user.
        endpoint: the ZeroMQ address it listens at.
        root: absolute path of the folder it serves, links resolved.
        version: of the package it runs from.
        daemon_id: new at every start.
        state: READY or STOPPED.
        options: how it was started, so that a client can start it again in the same way:
            "idle_timeout" (seconds or None), "endpoint" (address or None), "keys" (folder of the
            keys that clients need, or None), "merge" (as `mle-daemon start --merge` takes it),
            "merge_settle" (seconds), "keep_seed_logs".
        beat: when the file was last touched, seconds since the epoch.  Not stored.
    """

    pid: int
    started: str
    boot_id: str
    host: str
    uid: int
    endpoint: str
    root: str
    version: str
    daemon_id: str
    state: str = READY
    options: dict[str, Any] = field(default_factory=dict)
    beat: float = field(default=0.0, compare=False)

    @classmethod
    def of_this_process(
        cls, root: str, endpoint: str, *, version: str, daemon_id: str, options: dict[str, Any]
    ) -> Endpoint:
        """What this process says as the daemon of a root."""
        return cls(
            pid=os.getpid(),
            started=runtime.process_started(os.getpid()) or "",
            boot_id=runtime.boot_id(),
            host=runtime.host(),
            uid=os.geteuid(),
            endpoint=endpoint,
            root=root,
            version=version,
            daemon_id=daemon_id,
            options=options,
        )

    def stopped(self) -> Endpoint:
        """What a daemon says that was told to leave."""
        return dataclasses.replace(self, state=STOPPED)

    @classmethod
    def from_json(cls, text: str | bytes, beat: float = 0.0) -> Endpoint:
        """Read what `to_json` wrote.  Raises: ValueError: it did not write this."""
        found = json.loads(text)
        names = [each.name for each in dataclasses.fields(cls) if each.name != "beat"]
        if not isinstance(found, dict) or not found.keys() >= set(names):
            raise ValueError("not an endpoint file")
        types = {"pid": int, "uid": int, "options": dict}
        if any(type(found[name]) is not types.get(name, str) for name in names):
            raise ValueError("a value of an endpoint file has the wrong type")
        if found["pid"] <= 0:
            raise ValueError("no process has this pid")
        return cls(**{name: found[name] for name in names}, beat=beat)

    def to_json(self) -> str:
        """One line of JSON."""
        values = dataclasses.asdict(self)
        del values["beat"]
        return json.dumps(values)


# --- the file -------------------------------------------------------------------------------------
def write_endpoint(endpoint: Endpoint) -> None:
    """Tell everyone where a daemon listens, or with the state STOPPED that it left.

    Only the process that holds the root's lock may call this.
    """
    text = endpoint.to_json() + "\n"
    _replace(layout.state_path(endpoint.root, layout.ENDPOINT_FILE), text)
    if endpoint.state == READY:
        _replace(_copy_path(endpoint.root), text)
        _forget_removed_roots()
    else:
        _remove(_copy_path(endpoint.root))


def touch_endpoint(root: str) -> None:
    """Show processes on other machines that the daemon lives; due every BEAT_EVERY_S seconds."""
    os.utime(layout.state_path(root, layout.ENDPOINT_FILE))


def remove_endpoint(root: str) -> None:
    """Remove every trace of a daemon, as though there never was one."""
    _remove(layout.state_path(root, layout.ENDPOINT_FILE))
    _remove(_copy_path(root))


def read_endpoint(root: str) -> Endpoint | None:
    """What the last daemon of a root said about itself.

    Returns:
        None where there was none, the file is garbled or another user's, or it came here with a
        copy of another root.  A daemon on another machine may call the root by another path;
        the path is ours then.
    """
    endpoint = _read(layout.state_path(root, layout.ENDPOINT_FILE))
    if endpoint is None or endpoint.root == root:
        return endpoint
    ours = os.path.realpath(root)
    if not is_here(endpoint):
        return dataclasses.replace(endpoint, root=ours)
    return endpoint if endpoint.root == ours else None


def _copy_path(root: str) -> str:
    return os.path.join(runtime.socket_dir(), f"{layout.root_digest(root)}.json")


def _forget_removed_roots() -> None:
    """Remove what killed daemons of roots that somebody deleted left in the socket folder."""
    for endpoint in local_daemons():
        if not os.path.lexists(endpoint.root) and not is_running(endpoint):
            copy = _copy_path(endpoint.root)
            _remove(copy)
            _remove(os.path.splitext(copy)[0] + ".sock")
            _remove(os.path.splitext(copy)[0] + ".art.sock")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _replace(path: str, text: str) -> None:
    unfinished = f"{path}.{os.getpid()}.tmp"
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _read(path: str) -> Endpoint | None:
    try:
        # Not to hang on a pipe that somebody put there.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return None
        return Endpoint.from_json(os.read(descriptor, _LARGEST_FILE_BYTES), found.st_mtime)
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(descriptor)


def local_daemons() -> Iterator[Endpoint]:
    """What this user's daemons on this machine said about themselves, killed ones included."""
    for folder in runtime.socket_dirs():
        for name in _names(folder):
            endpoint = _read(os.path.join(folder, name)) if name.endswith(".json") else None
            if endpoint is not None:
                yield endpoint


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # it was there a moment ago
        return []


# --- the process behind it ------------------------------------------------------------------------
def is_here(endpoint: Endpoint) -> bool:
    """Whether the daemon's process would be among those that this process can see."""
    return runtime.sees_processes_of(endpoint.host, endpoint.boot_id)


def reachable_address(endpoint: Endpoint) -> str:
    """What to connect to: a daemon that listens at every address of its machine names none."""
    host = addresses.LOOPBACK if is_here(endpoint) else endpoint.host
    return addresses.seen_from_client(endpoint.endpoint, host)


def is_alive(endpoint: Endpoint) -> bool:
    """Whether the daemon serves clients; of one on another machine, whether it lately did."""
    if endpoint.state != READY:
        return False
    if not is_here(endpoint):
        return time.time() - endpoint.beat < STALE_AFTER_S
    return is_running(endpoint)


def is_running(endpoint: Endpoint) -> bool:
    """Whether the daemon's process exists on this machine, be it that it is leaving."""
    return runtime.is_running(endpoint.pid, endpoint.started, endpoint.boot_id)


def live_daemon(root: str) -> Endpoint | None:
    """The daemon that serves a root now."""
    endpoint = read_endpoint(root)
    return endpoint if endpoint is not None and is_alive(endpoint) else None
