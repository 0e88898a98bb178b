"""This user's folders and processes on this machine.

Sockets and rings must lie where no other user can reach them: whoever can write there can log into
our runs, or take our data.  So their folders are ours alone (mode 0700, no link) or not used.

Standard library only.  What lies in the folders is the business of others.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from typing import Final

from mle_client import layout

RUNTIME_VARIABLE: Final = "MLE_RUNTIME_DIR"
SHARED_MEMORY: Final = "/dev/shm"
_RINGS: Final = "rings"
_ROOT: Final = 0  # the user who may do everything anyway
_OUTSIDE: Final = 65534  # as whom a container shows those who own what it was given

# A socket's path, with NUL, must fit 104 bytes on the strictest system; ours end in "/", 12 hex
# digits and ".sock" or ".art.sock".
_LONGEST_SOCKET_DIR_BYTES: Final = 103 - 22


# --- folders --------------------------------------------------------------------------------------
def socket_dir() -> str:
    """The folder for this user's sockets, made if need be.

    Raises:
        PermissionError: none of the places for it can be used; says why of each.
    """
    problems = []
    for path in _socket_bases():
        if len(os.fsencode(path)) > _LONGEST_SOCKET_DIR_BYTES:
            problems.append(f"{path} is too long for the path of a socket")
        elif problem := _make_private(path):
            problems.append(problem)
        else:
            return path
    raise _no_place("sockets", problems)


def socket_path(root: str) -> str:
    """Where the daemon of a root has its socket, unless it was told otherwise."""
    return os.path.join(socket_dir(), f"{layout.root_digest(root)}.sock")


def artifact_socket_path(root: str) -> str:
    """Where the daemon of a root has its socket for artifacts, unless it was told otherwise."""
    return os.path.join(socket_dir(), f"{layout.root_digest(root)}.art.sock")


def socket_dirs() -> list[str]:
    """The folders that may hold sockets of this user, also of processes with other variables.

    Where a folder was chosen it is the only one: whoever sets that does not want to meet others.
    """
    if os.environ.get(RUNTIME_VARIABLE):
        return _existing(_socket_bases())
    usual = [f"/run/user/{os.geteuid()}/mle-daemon", _temporary_base(), _plain_base()]
    return _existing([*_socket_bases(), *usual])


def ring_dir(root: str, *, under_root: bool = False) -> str:
    """The folder for the rings of a root's producers, made if need be.

    In shared memory where there is some, else under the root.

    Args:
        root: of a daemon.
        under_root: whether to pass over shared memory, for where it is full.

    Raises:
        PermissionError: none of the places for it can be used; says why of each.
    """
    problems = []
    for private, path in [_under(root)] if under_root else _ring_places(root):
        problem = _make_private(private) or _make_inside(path)
        if not problem:
            return path
        problems.append(problem)
    raise _no_place("rings", problems)


def ring_dirs(root: str) -> list[str]:
    """The folders that may hold rings of a root, also of processes with other variables."""
    places = [*_ring_places(root), _ring_place(_shared_memory_base(), root), _under(root)]
    private = _existing(place for place, _ in places)
    return _existing(path for place, path in places if place in private)


def _socket_bases() -> list[str]:
    if chosen := os.environ.get(RUNTIME_VARIABLE):
        return [_chosen_base(chosen)]
    theirs = os.environ.get("XDG_RUNTIME_DIR", "")
    # After `sudo -E` it is another user's.
    usable = os.path.isabs(theirs) and os.path.isdir(theirs)
    usable = usable and os.stat(theirs).st_uid == os.geteuid()
    bases = [os.path.join(theirs, "mle-daemon")] if usable else []
    return [*bases, _temporary_base(), _plain_base()]


def _ring_places(root: str) -> list[tuple[str, str]]:
    """Folders that must be private, and where in each the rings are."""
    if chosen := os.environ.get(RUNTIME_VARIABLE):
        return [_ring_place(_chosen_base(chosen), root)]
    in_memory = os.path.isdir(SHARED_MEMORY)
    return [*([_ring_place(_shared_memory_base(), root)] if in_memory else []), _under(root)]


def _ring_place(base: str, root: str) -> tuple[str, str]:
    return base, os.path.join(base, _RINGS, layout.root_digest(root))


def _under(root: str) -> tuple[str, str]:
    private = layout.state_path(root, _RINGS)
    return private, os.path.join(private, layout.root_digest(root))


def _chosen_base(value: str) -> str:
    path = os.path.expanduser(value)
    if not os.path.isabs(path):  # it would be another one for each process's current folder
        raise ValueError(f"{RUNTIME_VARIABLE}={value!r}: give an absolute path")
    return path.rstrip("/")


def _temporary_base() -> str:
    return os.path.join(tempfile.gettempdir(), f"mle-{os.geteuid()}")


def _plain_base() -> str:
    return f"/tmp/mle-{os.geteuid()}"  # for where TMPDIR is a long path, or another in each job


def _shared_memory_base() -> str:
    return os.path.join(SHARED_MEMORY, f"mle-{os.geteuid()}")


def _make_private(path: str) -> str:
    """Make a folder that only we can enter.  Returns: "", or why it is none."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # whatever the umask took away
    except FileExistsError:
        pass
    except OSError as error:
        return f"{path} cannot be made ({error.strerror})"
    return _why_not_private(path)


def _make_inside(path: str) -> str:
    """Make a folder in one that only we can enter.  Returns: "", or why it cannot be made."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        return f"{path} cannot be made ({error.strerror})"
    return ""


def _why_not_private(path: str) -> str:
    """Why a folder is not ours alone; "" if it is."""
    return _why_open(path) or _why_replaceable(path)


def _why_replaceable(path: str) -> str:
    """Whose folder a folder lies in who could put another in its place; "" if there is nobody."""
    above = os.path.dirname(path)
    if os.path.basename(above) == layout.STATE_DIR:
        return ""  # under a root, which is as safe as our logs, its owner's
    above = os.path.realpath(above)
    while above != "/":
        owner = os.lstat(above).st_uid
        if owner not in (os.geteuid(), _ROOT, _OUTSIDE):
            return f"{path} lies in {above}, which belongs to user {owner}"
        above = os.path.dirname(above)
    return ""


def _why_open(path: str) -> str:
    try:
        found = os.lstat(path)
    except OSError as error:
        return f"{path} cannot be used ({error.strerror})"
    mode = stat.S_IMODE(found.st_mode) & 0o777
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} is a link or no folder"
    if found.st_uid != os.geteuid():
        return f"{path} belongs to user {found.st_uid}"
    return "" if mode == 0o700 else f"{path} is open to others (mode {mode:o}; chmod 700 it)"


def _existing(paths: Iterable[str]) -> list[str]:
    return [path for path in dict.fromkeys(paths) if not _why_not_private(path)]


def _no_place(purpose: str, problems: list[str]) -> PermissionError:
    return PermissionError(
        f"there is no folder for {purpose} that is yours alone: {'; '.join(problems)}. "
        f"Set {RUNTIME_VARIABLE} to a folder of yours on this machine"
    )


# --- processes ------------------------------------------------------------------------------------
def host() -> str:
    """The name of this machine."""
    return os.uname().nodename


def boot_id() -> str:
    """What tells this run of the system, and this view of its processes, from every other.

    Returns:
        Linux's boot id and, after a space, the pid namespace: two containers on one machine may
        have the same name, but the pids of one mean nothing in the other.  "" for each that the
        system does not tell.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return " "


def process_started(pid: int) -> str | None:
    """When a process of this machine began.

    Returns:
        Clock ticks since boot, as text; "" where the system does not tell; None if there is no
        such process or it has ended and only waits to be reaped.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything.
            state, *rest = file.read().rpartition(b")")[2].split()
    except OSError:
        return "" if not os.path.exists("/proc/self/stat") and _takes_signals(pid) else None
    return None if state in (b"Z", b"X") else rest[18].decode()


def is_running(pid: int, started: str, system: str) -> bool:
    """Whether this very process still runs.

    Args:
        pid: of the process.
        started: what `process_started` said of it then.
        system: what `boot_id` said then.
    """
    return system == boot_id() and process_started(pid) == started


def sees_processes_of(name: str, system: str) -> bool:
    """Whether a process that saw this host name and boot id is among those that we can see."""
    return name == host() and system.partition(" ")[2] == boot_id().partition(" ")[2]


def _takes_signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
