"""One daemon a root: the lock that decides who it is.

The lock is a `flock` on `<root>/.mle/daemon.lock`, which the system gives back when the process
ends, however it ends.  Where the file system has no such locks, a file that only one process can
create stands in for it.  A socket that answers decides nothing: two processes can bind one.

Both know one machine only.  A daemon on another one shows itself by touching its endpoint file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Final

from mle_client import files, layout, runtime
from mle_client.endpoint import STALE_AFTER_S, is_alive, is_here, read_endpoint
from mle_client.errors import RootLocked

# The file that stands in for a lock; beside the lock file, which exists wherever it was tried.
_STAND_IN: Final = layout.LOCK_FILE + ".pid"
_NO_LOCKS_HERE: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
# Two processes that find the same dead owner both replace its file; the later one wins, and after
# this time the other one sees it.  Far longer than from looking to replacing.
_SETTLE_S: Final = 0.25


@dataclass(frozen=True)
class Owner:
    """The process that a lock file names.  Args: as in `endpoint.Endpoint`."""

    pid: int
    started: str
    host: str
    boot_id: str

    @classmethod
    def this_process(cls) -> Owner:
        """The process that asks."""
        pid = os.getpid()
        started = runtime.process_started(pid) or ""
        return cls(pid, started, runtime.host(), runtime.boot_id())

    def is_here(self) -> bool:
        """Whether it would be among the processes that this one can see."""
        return runtime.sees_processes_of(self.host, self.boot_id)

    def is_running(self) -> bool:
        """Whether it runs on this machine."""
        return runtime.is_running(self.pid, self.started, self.boot_id)

    def __str__(self) -> str:
        return f"the process {self.pid} on {self.host}"


class RootLock:
    """Makes this process the daemon of a root, for life or until `release`.

    Args:
        root: absolute path of a folder that exists.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._path = layout.state_path(root, layout.LOCK_FILE)
        self._descriptor = -1
        self._stands_in = False

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RootLocked: another daemon has it.
            PermissionError: the root cannot be written to.
        """
        state_dir(self.root)
        descriptor = _open_lock(self._path)
        try:
            if not _flock(descriptor, self.root, self._path):
                _create_stand_in(self.root)
                self._stands_in = True
            self._check_other_machines()
        except BaseException:
            self._remove_stand_in()
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        if not self._stands_in:
            # For people and for `owner`; a full disk must not keep a daemon from its journal.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _encode(Owner.this_process()), 0)

    @property
    def is_lost(self) -> bool:
        """Whether the lock keeps nobody out: its file was removed, or another one is there."""
        if self._descriptor < 0:
            return True
        try:
            there = os.stat(self._path)
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ENOTDIR)
        return not os.path.samestat(there, os.fstat(self._descriptor))

    def regain(self) -> None:
        """Take the lock again after it was lost; the folder for it is made if need be.

        Raises:
            RootLocked: another daemon was faster.
            OSError: it cannot be taken now.
        """
        self.release()
        self.acquire()

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor < 0:
            return
        self._remove_stand_in()
        # The content goes first: whoever reads it must not take it for the next owner's.
        with contextlib.suppress(OSError):  # a disk that has become read-only
            os.ftruncate(self._descriptor, 0)
        with contextlib.suppress(OSError):  # a file system without locks
            # Closing alone would leave the lock to a child that was forked meanwhile.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)
        self._descriptor = -1

    def _check_other_machines(self) -> None:
        daemon = read_endpoint(self.root)
        if daemon is not None and not is_here(daemon) and is_alive(daemon):
            raise RootLocked(
                self.root,
                f"the process {daemon.pid} on {daemon.host}, which was there less than "
                f"{STALE_AFTER_S:g} s ago",
            )

    def _remove_stand_in(self) -> None:
        if self._stands_in:
            with contextlib.suppress(OSError):
                os.unlink(layout.state_path(self.root, _STAND_IN))
            self._stands_in = False

    def __enter__(self) -> RootLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def owner(root: str) -> Owner | None:
    """The process of this machine that holds a root's lock.  Takes no lock itself."""
    for name in (layout.LOCK_FILE, _STAND_IN):
        found = _read(layout.state_path(root, name))
        if found is not None and found.is_running():
            return found
    return None


def state_dir(root: str) -> str:
    """The folder for our own files under a root, made if need be.

    Where several users may write to a root, one of them can make this folder before us, with links
    in it to whatever shall be overwritten or removed by us.  So it must be ours, and all in it.

    Raises:
        PermissionError: the root cannot be written to, or another user made what is there.
    """
    path = layout.state_path(root)
    try:
        files.make_folders(path, 0o755)
        _check_ours(path)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise PermissionError(
            f"cannot write to {path} ({error.strerror}): a daemon keeps its journal there, so give "
            "it a folder that belongs to you, on a file system that is not read-only"
        ) from error
    return path


def why_not_ours(path: str) -> str:
    """Why our folder under a root is not used: it, or something in it, is another user's.

    Args:
        path: of the folder, which is there.

    Returns:
        What is whose, and what to do; "" where all is this user's.
    """
    found = [(path, os.stat(path).st_uid), (path, os.lstat(path).st_uid)]
    with os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # unfinished, and renamed meanwhile
                found.append((entry.path, entry.stat(follow_symlinks=False).st_uid))
    for name, owner in found:
        if owner != os.geteuid():
            return (
                f"{name} belongs to user {owner}: one user's daemon serves a folder; have that one "
                "log there, log to another folder, or remove it if nobody needs it"
            )
    return ""


def _check_ours(path: str) -> None:
    """Raise unless a folder and all in it are this user's; let no other write to it."""
    if why := why_not_ours(path):
        raise PermissionError(why)
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o022:
        os.chmod(path, mode & ~0o022)


def _open_lock(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError as error:
        raise PermissionError(f"cannot open {path}: another user's daemon made it") from error


def _flock(descriptor: int, root: str, path: str) -> bool:
    """Lock a file.  Returns: False where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RootLocked(root, _say(_read(path))) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        return False
    return True


# --- without locks in the file system -------------------------------------------------------------
def _create_stand_in(root: str) -> None:
    path = layout.state_path(root, _STAND_IN)
    content = _encode(Owner.this_process())
    try:
        _create(path, content)
        return
    except FileExistsError:
        found = _read(path)
        if found.is_running() if found is not None and found.is_here() else _is_fresh(path):
            raise RootLocked(root, _say(found)) from None
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with contextlib.suppress(FileExistsError):
        _create(path, content)
    time.sleep(_SETTLE_S)
    found = _read(path)
    if found != Owner.this_process():
        raise RootLocked(root, _say(found))


def _create(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _read(path: str) -> Owner | None:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(4096))
        named = Owner(**{name: found[name] for name in Owner.__dataclass_fields__})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return named if type(named.pid) is int else None


def _is_fresh(path: str) -> bool:
    """Whether a file is so new that its owner may be about to fill it, or on another machine about
    to write its endpoint file, by which it is known from then on."""
    try:
        return time.time() - os.stat(path).st_mtime < STALE_AFTER_S
    except FileNotFoundError:
        return False


def _encode(process: Owner) -> bytes:
    return json.dumps(asdict(process)).encode()


def _say(process: Owner | None) -> str:
    return "another process" if process is None else str(process)
