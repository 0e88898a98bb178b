"""How HDF5 files are opened and begun, and what is in a group: what several modules need of HDF5.

Files of ours are such that HDF5 1.10 and later read them.  It knows nothing of logs.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeAlias

import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5o, h5p, h5s

from mle_client.errors import LogDamaged, LogNotFound

Id: TypeAlias = Any  # of a file, group or dataset in HDF5's own interface; h5py has no types

# What HDF5 and h5py raise where a file is damaged, or no log.
UNREADABLE: Final = (
    *(OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError),
    MemoryError,  # a size that was damaged
)
ADVICE: Final = "restore it from a copy, or move it out of the folder"
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
    """The name of a group or dataset, whatever bytes it has."""
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
        file, fd = _opened(path, stack)
        stack.callback(file.close)
        try:
            yield file, fd
        except (LogDamaged, LogNotFound):
            raise  # perhaps of another file that is read meanwhile
        except UNREADABLE as error:
            if isinstance(error, OSError) and error.filename:
                raise
            if code := system_error(error):
                raise OSError(code, os.strerror(code), path) from error
            raise LogDamaged(path, f"it cannot be read: {said(error)}; {ADVICE}") from error


def _opened(path: str, stack: ExitStack) -> tuple[Id, int]:
    """Open a file, and have its descriptor closed.  Raises: as of `reading`."""
    for _ in range(_ATTEMPTS):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait
        except FileNotFoundError as error:
            raise LogNotFound(path, "there is no such file") from error
        stack.callback(os.close, fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise LogDamaged(path, "it is a folder, or a device: move it away")
        try:
            # By its descriptor: the name may lead to another file by now.
            return _open(f"/proc/self/fd/{fd}" if os.path.isdir("/proc/self/fd") else path), fd
        except OSError as error:
            if not os.fstat(fd).st_nlink:
                continue  # it was replaced, and HDF5 opens no file that has no name any more
            if code := system_error(error):
                raise OSError(code, os.strerror(code), path) from error
            raise LogDamaged(path, f"not a readable HDF5 file ({error}); {ADVICE}") from error
    raise LogNotFound(path, "it is replaced all the time")


def _open(name: str) -> Id:
    """A published file never changes, so a lock that cannot be had is no reason to give up."""
    properties = access()
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


def attribute(holder: Id, name: str) -> Any:
    """The value of an attribute, a text as bytes; None if there is none, or none in it.

    h5py's own `attrs` takes four times as long, and a merge asks thousands of times.
    """
    key = name.encode()
    if not h5a.exists(holder, key):
        return None
    stored = h5a.open(holder, key)
    if stored.shape is None:
        return None
    value = np.empty(stored.shape, stored.dtype)
    stored.read(value)
    return value[()]


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
        return value.decode("utf-8", "backslashreplace")
    return None if value is None else str(value)
