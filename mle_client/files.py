"""Whole files: written aside, synced, then given their name in one step.

Whoever opens a name sees the old content or the new one, after any crash.  It knows nothing of what
is in a file, and removes none but its own unfinished copies.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

_COPY_BYTES: Final = 2**30  # asked of the kernel at once; it may do less
# The kernel cannot copy between these files by itself, or a folder cannot be synced here.
_NOT_POSSIBLE: Final = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP))
# A disk that is full, over quota, broken or read-only: it may be otherwise later.
_DISK_FAILS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS))
_HELD: Final = (errno.EWOULDBLOCK, errno.EACCES)  # by another process
# A link, a folder to be written to, a pipe or device that nobody is at.
_ODD: Final = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)
_LOOK_EVERY_S: Final = 0.02  # whether a folder is still locked
_SAY_AFTER_S: Final = 1.0  # of waiting: whoever sits at it begins to wonder

_copies = itertools.count()  # of this process, so that each has a name of its own


class NotSynced(OSError):
    """A file has its name, but not for sure after a power cut: its folder could not be synced."""


class OddFile(OSError):
    """A name leads to something else than a file."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which file a name leads to, and in which state.  Args: as of `os.stat_result`."""

    inode: int
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """That of a file."""
        return cls(found.st_ino, found.st_mtime_ns, found.st_size)


def open_left(path: str, flags: int = os.O_RDONLY) -> int:
    """Open a file that another process has left, if it is a file.

    To open what only looks like one can wait for ever (a pipe), or lead anywhere (a link).  Whose
    it is does not matter: on some file systems, what we wrote is somebody else's.

    Returns:
        A file descriptor.

    Raises:
        OddFile: it is something else.
        OSError: it cannot be opened.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _ODD:
            raise OddFile(error.errno, "it is no file", path) from error
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OddFile(errno.EINVAL, "it is no file", path)


@contextmanager
def locked(
    *folders: str, timeout: float, on_wait: Callable[[str], None] = lambda text: None
) -> Iterator[bool]:
    """Keep other processes, and threads, out of folders that they lock likewise.

    Args:
        folders: paths of existing ones; nothing is written to them.
        timeout: seconds to wait for whoever has one locked.
        on_wait: told for whom, and for how long, where that takes more than a second.

    Yields:
        Whether it keeps them out: not all file systems have locks.

    Raises:
        BlockingIOError: one is still locked then; says by whom.
        OSError: one cannot be opened.
    """
    with ExitStack() as stack:
        opened: dict[tuple[int, int], tuple[int, str]] = {}
        for folder in folders:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            found = os.fstat(fd)
            opened.setdefault((found.st_dev, found.st_ino), (fd, folder))
        deadline = time.monotonic() + timeout
        keeps_out = True
        for _, (fd, folder) in sorted(opened.items()):  # two never wait for each other
            keeps_out &= _lock(fd, folder, deadline, timeout, on_wait)
            stack.callback(_unlock, fd)
        yield keeps_out


def _lock(
    fd: int, folder: str, deadline: float, timeout: float, on_wait: Callable[[str], None]
) -> bool:
    """Lock a folder that is open.  Returns: whether there are locks here."""
    say_at = time.monotonic() + _SAY_AFTER_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                return False
        else:
            return True
        now = time.monotonic()
        if now >= say_at and now < deadline:
            say_at = deadline
            on_wait(
                f"{folder}: waiting for {_holder(fd)}, which has it locked, for up to "
                f"{deadline - now:.0f} s more"
            )
        if now >= deadline:
            said = f"{_holder(fd)} has had it locked for {timeout:g} s"
            raise BlockingIOError(errno.EWOULDBLOCK, said, folder)
        time.sleep(_LOOK_EVERY_S)


def _unlock(fd: int) -> None:
    """Unlock a folder, also where a forked child has inherited its descriptor."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def _holder(fd: int) -> str:
    """Who has a file locked, as far as the system tells."""
    found = os.fstat(fd)
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    with suppress(OSError), open("/proc/locks", encoding="ascii") as lines:
        for line in lines:  # such as "1: FLOCK  ADVISORY  WRITE 4242 fe:00:1234 0 EOF"
            match line.split():
                case [_, "FLOCK", _, _, pid, place, *_] if place == f"{device}:{found.st_ino}":
                    return f"process {pid}"
    return "another process"


@contextmanager
def needing(size: int, place: str) -> Iterator[None]:
    """Have errors of a disk say how many bytes it was to take, and where.

    Args:
        place: path of a folder or file.

    Raises:
        OSError: as it was raised, with that in it where a disk has failed.
    """
    try:
        yield
    except OSError as error:
        said = in_need(error, size, place)
        if said is error:
            raise
        raise said from error


def in_need(error: Exception, size: int, place: str) -> Exception:
    """An error, with what a disk was to take and where, if it is one of a disk.

    Args: as of `needing`.
    """
    if not isinstance(error, OSError) or error.errno not in _DISK_FAILS:
        return error
    if isinstance(error, NotSynced):
        return error
    return OSError(error.errno, f"{os.strerror(error.errno)}, {size} bytes are needed", place)


def write_all(fd: int, data: bytes) -> None:
    """Write all of some bytes.

    Raises:
        OSError: they do not fit, or the disk fails.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def copy_all(source: int, target: int) -> None:
    """Copy a file's content; the file system may share the blocks.  Args: open descriptors."""
    try:
        while os.copy_file_range(source, target, _COPY_BYTES):
            pass
    except OSError as error:
        if error.errno not in _NOT_POSSIBLE:
            raise
        os.lseek(source, 0, os.SEEK_SET)
        os.lseek(target, 0, os.SEEK_SET)
        while os.sendfile(target, source, None, _COPY_BYTES):
            pass


def reserve(fd: int, size: int) -> None:
    """Make a file that large, its blocks included, so that later writes find room.

    Raises:
        OSError: there is no room.
    """
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in _NOT_POSSIBLE:
            raise


@contextmanager
def new_file(path: str) -> Iterator[int]:
    """A new file to write to; synced at the end, removed if anything goes wrong.

    Yields:
        Its descriptor.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o666)
    try:
        yield fd
        os.fsync(fd)
    except BaseException:
        remove(path)
        raise
    finally:
        os.close(fd)


def land(staged: str, path: str, aside: str, *, within: str = "") -> None:
    """Give a synced file its name, whatever has that name now.

    Args:
        staged: its present path; nothing is left there.
        path: the name to get.
        aside: a path on the file system of `path`, for a copy where `staged` is on another one.
        within: a folder, with its own links followed, that `path` must not lead out of.

    Raises:
        PermissionError: it does.
        NotSynced: only the folder could not be synced: `path` is the new file.
        OSError: `path` is what it was.
    """
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        target = _pinned(folder, path, within) if within else path
        try:
            os.replace(staged, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copy_durably(staged, aside)
            os.replace(aside, target)
            remove(staged)
        try:
            _sync_folder(folder)
        except OSError as error:
            raise NotSynced(error.errno, error.strerror, os.path.dirname(path)) from error
    finally:
        os.close(folder)


def left(path: str, folder: str, within: str) -> PermissionError:
    """The error for a path that leads out of a folder.  Args: folder: that it leads to."""
    said = f"it leads to {folder}, out of {within}: put a folder in the place of the link"
    return PermissionError(errno.EPERM, said, path)


def _pinned(fd: int, path: str, within: str) -> str:
    """A path through its open folder, which is the checked one whatever its name leads to by now.

    Raises:
        PermissionError: the folder does not lie in another one.
    """
    through = f"/proc/self/fd/{fd}"
    is_linux = os.path.exists(through)
    folder = os.path.realpath(through if is_linux else os.path.dirname(path))
    if not is_inside(folder, within):
        raise left(path, folder, within)
    return os.path.join(through, os.path.basename(path)) if is_linux else path


def copy_durably(source: str, target: str) -> None:
    """Copy a file and sync the copy; nothing is left of it if that fails."""
    with open(source, "rb") as read_from, new_file(target) as fd:
        copy_all(read_from.fileno(), fd)


def make_folders(path: str, mode: int = 0o777) -> None:
    """Make a folder and those above it that are missing, so that they survive a power cut.

    Args:
        mode: of those that are made, less what the process's mask takes.

    Raises:
        OSError: one cannot be made; those above it may be.
    """
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        try:
            os.mkdir(folder, mode)
        except FileExistsError as error:
            if not os.path.isdir(folder):  # another thread was not faster, a file is in the way
                raise NotADirectoryError(
                    errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder
                ) from error
        sync_folder(os.path.dirname(folder))


def sync_way(path: str, top: str = "/") -> None:
    """Make a folder survive a power cut that somebody else may just have made.

    Args:
        path: absolute.
        top: the highest folder above it whose names are synced; by default all.  Those that may not
            be read are passed over: they are not ours, and older.

    Raises:
        OSError: the disk fails.
    """
    while path not in (top, "/"):
        path = os.path.dirname(path)
        with suppress(PermissionError):
            sync_folder(path)


def sync_folder(path: str) -> None:
    """Make the names in a folder survive a power cut, where its file system can.

    Raises:
        OSError: it is no folder, or the disk fails.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync_folder(fd)
    finally:
        os.close(fd)


def put_aside(path: str, folder: str, stamp: str, name: str = "") -> str:
    """Move a file into a folder under a name that is free there.

    A crash in between leaves it under both names; then moving it again removes the old one.

    Args:
        stamp: begins the new name.
        name: ends it; "" for the file's own.

    Returns:
        The file's new path.
    """
    kept = keep_aside(path, folder, stamp, name)
    os.unlink(path)
    return kept


def keep_aside(path: str, folder: str, stamp: str, name: str = "") -> str:
    """Give a file, which stays where it is, a further name in a folder; or copy it there.

    Args, Returns: as of `put_aside`.
    """
    make_folders(folder)
    if kept := _name_in(folder, path):
        return kept
    wanted = f"{stamp}-{name or os.path.basename(path)}"
    try:
        kept = _first_free(folder, wanted, lambda new: os.link(path, new, follow_symlinks=False))
    except OSError:  # another file system, or one without links
        kept = _copy_aside(path, folder, wanted)
    sync_folder(folder)
    return kept


def _name_in(folder: str, path: str) -> str:
    """The path that a file has in a folder already; "" if it has none."""
    found = os.stat(path, follow_symlinks=False)
    if found.st_nlink == 1:
        return ""
    with os.scandir(folder) as entries:
        same = (
            entry.path
            for entry in entries
            if entry.inode() == found.st_ino
            and os.path.samestat(entry.stat(follow_symlinks=False), found)
        )
        return next(same, "")


def _copy_aside(path: str, folder: str, name: str) -> str:
    copy = os.path.join(folder, f".{name}.{os.getpid()}-{next(_copies)}.tmp")
    copy_durably(path, copy)
    try:
        kept = _first_free(folder, name, _make)
        os.replace(copy, kept)
    except OSError:
        remove(copy)
        raise
    return kept


def _first_free(folder: str, name: str, take: Callable[[str], None]) -> str:
    """Have a name taken that nobody has, and return its path."""
    number = 1
    while True:
        path = os.path.join(folder, name if number == 1 else f"{number}-{name}")
        with suppress(FileExistsError):
            take(path)
            return path
        number += 1


def _make(path: str) -> None:
    """Make an empty file.  Raises: FileExistsError: there is one."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))


def is_inside(path: str, root: str) -> bool:
    """Whether a path leads into a folder once all links are followed.

    Args:
        root: with its own links followed.
    """
    return os.path.commonpath([os.path.realpath(path), root]) == root


def has_content(path: str, data: bytes) -> bool:
    """Whether a file holds just these bytes."""
    with open(path, "rb") as file:
        return file.read(len(data) + 1) == data


def remove(path: str) -> None:
    """Remove a file if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def remove_all(folder: str) -> None:
    """Remove every file of a folder, and make the folder if it is missing."""
    os.makedirs(folder, exist_ok=True)
    for entry in list(os.scandir(folder)):
        if not entry.is_dir(follow_symlinks=False):
            remove(entry.path)


def _sync_folder(fd: int) -> None:
    """Make the names in a folder survive a power cut, where its file system can."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_POSSIBLE:
            raise
