"""How HDF5 files are opened and begun, and what is in a group: what several modules need of HDF5.

Files of ours are such that HDF5 1.10 and later read them.  It knows nothing of logs.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5o, h5p, h5s

from mle_client.errors import LogDamaged, LogNotFound

Id: TypeAlias = Any  # of a file, group or dataset in HDF5's own interface; h5py has no types

# What HDF5, h5py and we raise where a file is damaged, or no log.
_DAMAGED: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError, EOFError)
# The same where little is read at a time: what takes too much memory has a size that was damaged.
UNREADABLE: Final = (*_DAMAGED, MemoryError)
ADVICE: Final = "restore it from a copy, or move it out of the folder"
_LINKS_IN_A_CIRCLE: Final = "a symbolic link that leads back to itself: remove it, or link the log"
_NOT_ALLOWED: Final = "this user may not read it: ask its owner to allow it, or read it as them"
_IMAGE_STEP: Final = 64 * 1024  # bytes by which a file in memory grows
_ATTEMPTS: Final = 10  # of opening a file that is replaced meanwhile
_ERRNO: Final = re.compile(r"errno = (\d+)")  # in the texts of HDF5

_image_numbers = itertools.count()  # HDF5 takes two images of one name for one file


def access(image: bytes | None = None) -> Id:
    """How files are opened: to be written in the format that HDF5 1.10 and older read, too.

    Args:
        image: of a file in memory; b"" for an empty one, None for a file on disk.
    """
    properties = h5p.create(h5p.FILE_ACCESS)
    properties.set_libver_bounds(h5f.LIBVER_EARLIEST, h5f.LIBVER_V110)
    properties.set_fclose_degree(h5f.CLOSE_STRONG)
    if image is not None:
        properties.set_fapl_core(_IMAGE_STEP, False)
    if image:
        properties.set_file_image(image)
    return properties


@functools.cache
def empty_image() -> bytes:
    """The bytes of a file with nothing in it."""
    file = h5f.create(image_name(), h5f.ACC_TRUNC, fapl=access(b""))
    try:
        return image_of(file)
    finally:
        file.close()


def image_of(file: Id) -> bytes:
    """The bytes of a file in memory."""
    h5f.flush(file)
    image: bytes = file.get_file_image()
    return image


def image_name() -> bytes:
    """A name for a file in memory."""
    return b"image-%d" % next(_image_numbers)


def encoded(name: str) -> bytes:
    """A path, or the name of a group or dataset, as HDF5 takes it."""
    return name.encode("utf-8", "surrogateescape")


def decoded(name: bytes) -> str:
    """The name of a group or dataset, or a text of ours, whatever bytes it has."""
    return name.decode("utf-8", "surrogateescape")


def said(error: BaseException) -> str:
    """What HDF5 says of an error, without addresses in memory."""
    code = system_error(error)
    return os.strerror(code) if code else str(error)


def system_error(error: BaseException) -> int:
    """The `errno` that made HDF5 fail; 0 where it was none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = _ERRNO.search(str(error))
    return int(found[1]) if found else 0


# --- reading --------------------------------------------------------------------------------------
@contextmanager
def reading(path: str) -> Iterator[tuple[Id, int]]:
    """A file to read, and a descriptor of it.

    Raises:
        LogNotFound: it is not there.
        LogDamaged: it is no HDF5 file, or no longer.
        OSError: the system refuses to open it.
    """
    with ExitStack() as stack:
        file, fd = opened(path)
        stack.callback(os.close, fd)
        stack.callback(close, file)
        with blaming(path, UNREADABLE):
            yield file, fd


@contextmanager
def blaming(path: str, errors: tuple[type[Exception], ...] = _DAMAGED) -> Iterator[None]:
    """Say of an error that it is about a file, and whose fault it is.

    Args:
        path: of the file that is read inside.
        errors: those that tell of a file; others, and those that name another file, go through.

    Raises: as of `reading`.
    """
    try:
        yield
    except (LogDamaged, LogNotFound):
        raise  # perhaps of another file that is read meanwhile
    except errors as error:
        if isinstance(error, OSError) and error.filename not in (None, path):
            raise
        raise _blamed(path, error) from error


def _blamed(path: str, error: BaseException) -> OSError | LogDamaged | LogNotFound:
    code = system_error(error)
    if code == errno.ENOENT:
        return LogNotFound(path, "there is no such file")
    # How a network file system says "replaced"; HDF5 does not always give the number.
    if code == errno.ESTALE or "Stale file handle" in str(error):
        return LogNotFound(path, "the file was replaced while it was read")
    if code in (errno.EACCES, errno.EPERM):
        return PermissionError(code, _NOT_ALLOWED, path)
    if code == errno.ELOOP:
        return OSError(code, _LINKS_IN_A_CIRCLE, path)
    if code:
        return OSError(code, os.strerror(code), path)
    return LogDamaged(path, f"not a readable HDF5 file ({said(error)}); {ADVICE}")


def opened(path: str) -> tuple[Id, int]:
    """Open a file to read.  It may be replaced meanwhile.

    Returns:
        The file as HDF5 has it, and a descriptor of the same file, both for the caller to close.

    Raises: as of `reading`.
    """
    for _ in range(_ATTEMPTS):
        with blaming(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait
        with ExitStack() as stack:
            stack.callback(os.close, fd)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise LogDamaged(path, "it is a folder, or a device: move it away")
            with blaming(path):
                file = _open_if_named(path, fd)
            if file is not None:
                stack.pop_all()
                return file, fd
    raise LogNotFound(path, "it is replaced all the time")


def close(file: Id) -> None:
    """Close a file with all that is open in it."""
    h5py.File(file).close()


def _open_if_named(path: str, fd: int) -> Id | None:
    """Open a file in HDF5, which opens none that has no name any more: None then."""
    try:
        # By its descriptor: the name may lead to another file by now.
        return _open(f"/proc/self/fd/{fd}" if os.path.isdir("/proc/self/fd") else path)
    except OSError:
        if os.fstat(fd).st_nlink:
            raise
        return None


def _open(name: str) -> Id:
    """A published file never changes, so a lock that cannot be had is no reason to give up."""
    properties = h5p.create(h5p.FILE_ACCESS)  # as h5py's own: the program may have it open, too
    try:
        return h5f.open(encoded(name), h5f.ACC_RDONLY, properties)
    except OSError as error:
        if "lock" not in str(error):
            raise
        properties.set_file_locking(False, True)
        return h5f.open(encoded(name), h5f.ACC_RDONLY, properties)


def datasets(group: Id, prefix: str = "") -> Iterator[tuple[str, Id]]:
    """All datasets below a group by their paths, but for those without even a shape."""
    for name in group:
        child, path = h5o.open(group, name), prefix + decoded(name)
        if isinstance(child, h5g.GroupID):
            yield from datasets(child, f"{path}/")
        elif isinstance(child, h5d.DatasetID) and child.shape is not None:
            yield path, child


def attribute(holder: Id, name: bytes, dtype: type[np.generic] | None = None) -> Any:
    """The value of an attribute, text as str.

    h5py's own `attrs` takes four times as long, and a merge asks thousands of times.

    Args:
        holder: a group or dataset.
        dtype: what to read it as; None for what it is stored as, which takes longer.

    Returns:
        None if there is none, or none with a value.
    """
    if not h5a.exists(holder, name):
        return None
    stored = h5a.open(holder, name)
    if stored.shape is None:
        return None
    value: np.ndarray[Any, Any] = np.empty(stored.shape, stored.dtype if dtype is None else dtype)
    stored.read(value)
    plain = value[()]
    return decoded(plain) if isinstance(plain, bytes) else plain


def first_value(dataset: Id) -> Any:
    """The first value of a dataset; None if it has none."""
    if dataset.shape is None or 0 in dataset.shape:
        return None
    values = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5s.ALL, h5s.ALL, values)
    return values.reshape(-1)[0]


def text_of(value: Any) -> str | None:
    """A stored text; None of None."""
    if isinstance(value, bytes):
        return decoded(value)
    return None if value is None else str(value)
