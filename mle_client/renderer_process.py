"""Turns pickled figures into pictures, in a process of its own: what that process runs.

    python -m mle_client.rendering                             for a trainer: one after another
    python -m mle_client.rendering --input FILE --output FILE  for the daemon: one

A figure is drawn as its own process would have drawn it at that moment: what drawing depends on
besides the figure (`Surroundings`) travels in front of it.  The process trusts what it gets, as
loading a pickle runs code: only the same user's trainer may send it anything.  It knows no pyplot,
keeps nothing between figures, and never asks for one.

A pickled figure:

    4 bytes  b"MLF1"
    u32      length of the next part; all integers are little-endian
    ...      msgpack: the fields of `Surroundings`
    ...      pickle: the figure

Over the socket that a trainer gave as file descriptor 0 (so that nothing that prints can get in
between), one request and its answer at a time:

    request  b"MLFr", f64 seconds that it may take, u64 size, pickled figure
    answer   b"MLFa", u8 1 if it is a picture and 0 if it is a reason, u64 size, picture or UTF-8
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import locale
import logging
import os
import pickle
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

import msgpack

FIGURE_MAGIC: Final = b"MLF1"
REQUEST: Final = struct.Struct("<4sdQ")
REQUEST_MAGIC: Final = b"MLFr"
ANSWER: Final = struct.Struct("<4s?Q")
ANSWER_MAGIC: Final = b"MLFa"
DPI: Final = 300  # of every picture: mle-logging's

_LENGTH: Final = struct.Struct("<I")
_HEAD_BYTES: Final = len(FIGURE_MAGIC) + _LENGTH.size
_REASON_CHARS: Final = 2_000  # of an error's text: enough to name the object that is at fault
_IDLE_S: Final = 300.0  # without a figure, then it leaves: starting again takes half a second
# Memory still held after a figure was drawn and dropped, with which it leaves; it needs 100 MB.
_KEPT_BYTES: Final = 1 << 30
_FILE_LIMIT_S: Final = 300  # for one figure from a file: the daemon that waits may be gone by then
_NICE: Final = 10  # training comes first
_OOM_SCORE: Final = "500"  # where memory runs out, this process is ended, and not the trainer
_NEEDED: Final = ("matplotlib.figure", "matplotlib.backends.backend_agg")


class NotRendered(Exception):
    """A figure did not become a picture; the text says why."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a picture depends on besides its figure.

    Args:
        file_format: of the picture, as matplotlib names it.
        python: the program that ran the trainer.
        import_path: where the trainer found its modules, absolute.
        fonts: font files that matplotlib knows there and does not bring along.
        locale: of the trainer, for numbers and dates on an axis.
        date_epoch: what dates on an axis count from; None where none were used.
        rc: pickled dict of the rcParams that differ from matplotlib's own.
    """

    file_format: str
    python: str
    import_path: list[str]
    fonts: list[str]
    locale: str
    date_epoch: str | None
    rc: bytes

    def to_bytes(self) -> bytes:
        """Put what stands in front of a pickled figure."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        packed: bytes = msgpack.packb(plain, unicode_errors="surrogateescape")
        return FIGURE_MAGIC + _LENGTH.pack(len(packed)) + packed


def split_figure(payload: memoryview) -> tuple[Surroundings, memoryview]:
    """Take a pickled figure apart.

    Returns:
        What it depends on, and its pickle.

    Raises:
        NotRendered: that is no pickled figure.
    """
    if bytes(payload[: len(FIGURE_MAGIC)]) != FIGURE_MAGIC or len(payload) < _HEAD_BYTES:
        raise NotRendered("these bytes are no figure that this release has pickled")
    end = _HEAD_BYTES + _LENGTH.unpack_from(payload, len(FIGURE_MAGIC))[0]
    try:
        plain = msgpack.unpackb(payload[_HEAD_BYTES:end], unicode_errors="surrogateescape")
        return Surroundings(**plain), payload[end:]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise NotRendered(f"the pickled figure is damaged: {_reason(error)}") from error


# --- drawing --------------------------------------------------------------------------------------
def render(payload: memoryview) -> bytes:
    """Draw a pickled figure.

    Returns:
        The file's bytes.

    Raises:
        NotRendered: it cannot be loaded or drawn; says why.
    """
    around, pickled = split_figure(payload)
    _extend_import_path(around.import_path)
    try:
        for module in _NEEDED:
            importlib.import_module(module)
    except ImportError as error:
        raise NotRendered(
            f"{sys.executable} cannot import matplotlib, with which {around.python} made the "
            f"figure: {_reason(error)}"
        ) from error
    with _surrounded_by(around):
        try:
            figure = pickle.loads(pickled)
        except (Exception, SystemExit) as error:  # it may import any module of the trainer's
            raise NotRendered(f"the figure cannot be loaded: {_reason(error)}") from error
        picture = io.BytesIO()
        try:
            figure.savefig(picture, format=around.file_format, dpi=DPI)
        except (Exception, SystemExit) as error:
            raise NotRendered(f"the figure cannot be drawn: {_reason(error)}") from error
    return picture.getvalue()


@contextlib.contextmanager
def _surrounded_by(around: Surroundings) -> Iterator[None]:
    """Set what drawing depends on, and matplotlib's own settings where nothing else is said."""
    import matplotlib

    # Not by rcParams.items(): asking for the backend would choose one.
    defaults = {k: v for k, v in dict.items(matplotlib.rcParamsDefault) if k != "backend"}
    try:
        changed: dict[str, Any] = pickle.loads(around.rc)
    except Exception as error:
        raise NotRendered(f"the rcParams cannot be loaded: {_reason(error)}") from error
    if around.date_epoch is not None:
        import matplotlib.dates

        # set_epoch() refuses once a date was drawn; another figure's epoch may be another.
        matplotlib.dates._epoch = around.date_epoch
    with contextlib.suppress(locale.Error):  # not every Python has every locale
        locale.setlocale(locale.LC_ALL, around.locale)
    _add_fonts(around.fonts)
    with matplotlib.rc_context(defaults):
        # One by one: a setting that this matplotlib does not know is not worth the picture.
        for name, value in changed.items():
            with contextlib.suppress(KeyError, ValueError):
                matplotlib.rcParams[name] = value
        yield


def _add_fonts(paths: list[str]) -> None:
    """Have matplotlib know fonts that the trainer has added."""
    if not paths:
        return
    from matplotlib.font_manager import fontManager

    known = {font.fname for font in fontManager.ttflist}
    for path in paths:
        if path not in known:
            # A file that is gone costs its letters another look, and not the whole picture.
            with contextlib.suppress(OSError, RuntimeError):
                fontManager.addfont(path)


def _extend_import_path(paths: list[str]) -> None:
    """Find modules where the trainer found them."""
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]


def _reason(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_CHARS]


# --- for a trainer --------------------------------------------------------------------------------
def serve(stream: socket.socket) -> None:
    """Render what comes, until the other side is gone or has been silent for minutes."""
    with contextlib.suppress(ImportError):  # every figure's answer will say so
        for module in _NEEDED:
            importlib.import_module(module)
    stream.settimeout(_IDLE_S)
    with contextlib.suppress(OSError, EOFError):  # the trainer has ended or sleeps
        while _held_bytes() < _KEPT_BYTES:
            _serve_one(stream)
            gc.collect()  # figures are full of cycles


def _serve_one(stream: socket.socket) -> None:
    magic, limit, size = REQUEST.unpack(_receive(stream, REQUEST.size))
    if magic != REQUEST_MAGIC:
        raise EOFError("no request")  # nothing after it can be understood
    payload = _receive(stream, size)
    # Also ends a loop that never comes back to Python, with no trainer left to end it.
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        answer, is_picture = render(payload), True
    except (NotRendered, MemoryError) as error:
        text = str(error) or "no memory is left for it"
        answer, is_picture = text.encode("utf-8", "backslashreplace"), False
    signal.setitimer(signal.ITIMER_REAL, 0)
    stream.sendall(ANSWER.pack(ANSWER_MAGIC, is_picture, len(answer)))
    stream.sendall(answer)


def _receive(stream: socket.socket, size: int) -> memoryview:
    """The next bytes.  Raises: EOFError: the other side is gone."""
    buffer = memoryview(bytearray(size))
    filled = 0
    while filled < size:
        received = stream.recv_into(buffer[filled:])
        if not received:
            raise EOFError("the trainer has closed the connection")
        filled += received
    return buffer


def _held_bytes() -> int:
    """The memory that this process occupies; 0 where the system does not say.

    Not getrusage's peak: it is inherited, so it would be the trainer's.
    """
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


# --- for the daemon -------------------------------------------------------------------------------
def render_file(source: str, target: str) -> None:
    """Render a pickled figure from a file into another, whole or not at all.

    Raises:
        NotRendered: as of `render`.
        OSError: one of the files.
    """
    with open(source, "rb") as file:
        picture = render(memoryview(file.read()))
    aside = f"{target}.tmp"
    try:
        with open(aside, "wb") as file:
            file.write(picture)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise


def main(arguments: list[str] | None = None) -> int:
    """Run the program.  Returns: its exit status."""
    parser = argparse.ArgumentParser("python -m mle_client.rendering", description=main.__doc__)
    parser.add_argument("--input", help="a pickled figure")
    parser.add_argument("--output", help="where its picture goes; with --input only")
    given = parser.parse_args(arguments)
    if (given.input is None) != (given.output is None):
        parser.error("--input and --output belong together")
    _stand_back()
    if given.input is None:
        # Nothing that a figure imports or starts shall read requests: it finds /dev/null at 0.
        with socket.socket(fileno=os.dup(0)) as stream, open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            serve(stream)
        os._exit(0)  # half the time of an orderly end, for which a trainer may wait
    signal.setitimer(signal.ITIMER_REAL, _FILE_LIMIT_S)
    try:
        render_file(given.input, given.output)
    except (NotRendered, OSError, MemoryError) as error:
        print(f"{given.input}: {str(error) or 'no memory is left for it'}", file=sys.stderr)
        return 1
    return 0


def _stand_back() -> None:
    """Leave the processors and the memory to training, and say nothing but what is asked for."""
    os.nice(_NICE)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(_OOM_SCORE)
    # The thread that started this process may have blocked signals, and that is inherited.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    logging.disable()
