"""The program that writes one run into W&B's offline mode; `wandb_mirror` starts and feeds it.

It is a process of its own, because `wandb` keeps threads, a service and settings of its own, and
none of that belongs into the daemon.  It opens no connection that leaves this machine, asks for no
account and prints nothing: `wandb`'s own output goes nowhere.  Environment variables that it relies
on are set by `wandb_mirror`, in its environment alone.

On stdin come frames: 4 bytes, big-endian, the length of the msgpack array that follows.

    ["settings", {...}]                 the first; see `wandb_mirror`
    ["rows", first_row, times, columns] times: float64s as bytes; columns: [[name, code, shape,
                                        values], ...], values as bytes, or a list of strings
    ["image", row, path]
    ["finish", exit_code]               the last

On stdout go lines of JSON: {"problem": text}, each kind once; {"mirrored": rows} with the number so
far, now and then and at the end; and {"done": true} after all went well.

When stdin ends without "finish", the daemon is gone; what came is finished just the same.  How far
the run is mirrored stands in `wandb/.mle-<run id>` (a row number in ASCII), which this process
holds locked: so the successor that a restarted daemon sends waits for this one to be done, resumes
the same W&B run, and leaves out the rows that are there already.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Final

import msgpack
import numpy as np

from mle_client import files
from mle_daemon.values import time_texts

_NICENESS: Final = 10  # training and log files go first
# W&B shows an array of more items as a histogram, of so many bins, and so did mle-logging.
_LISTED_ITEMS: Final = 32
_BINS: Final = 32
_TELL_EVERY_S: Final = 0.5
_NOT_INSTALLED: Final = "the daemon's Python has no wandb: pip install mle-daemon[wandb] there"
_POSITION_DIGITS: Final = 20  # of 2**63, and one to spare; always as many, so none is left over

Report = Callable[[str, Any], None]


def main() -> int:
    """Mirror what comes on stdin.  Returns: the exit status; 1 after a problem that ended it."""
    frames = _frames(os.fdopen(_moved(0, os.O_RDONLY), "rb"))
    out = os.fdopen(_moved(1, os.O_WRONLY), "w", encoding="utf-8")
    os.dup2(1, 2)

    def report(kind: str, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the daemon is gone
            print(json.dumps({kind: value}), file=out, flush=True)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the daemon decides when it ends
    os.nice(_NICENESS)
    _, settings = next(frames)
    try:
        mirror = _Mirror(settings, report)
        mirror.take(frames)
        report("done", True)
    except ModuleNotFoundError as error:
        report("problem", _NOT_INSTALLED if error.name == "wandb" else str(error))
        return 1
    except Exception as error:
        report("problem", f"{type(error).__name__}: {error}")
        return 1
    finally:
        shutil.rmtree(settings["scratch"], ignore_errors=True)
    return 0


def _moved(descriptor: int, mode: int) -> int:
    """A standard stream under another number, which no process started here inherits."""
    copy = os.dup(descriptor)
    nothing = os.open(os.devnull, mode)
    os.dup2(nothing, descriptor)
    os.close(nothing)
    return copy


def _frames(stream: BinaryIO) -> Iterator[list[Any]]:
    while len(head := stream.read(4)) == 4:
        (length,) = struct.unpack(">I", head)
        if len(body := stream.read(length)) < length:
            return
        yield msgpack.unpackb(body, strict_map_key=False, max_bin_len=length)


class _Mirror:
    """One run in W&B's offline mode.

    Args:
        settings: see `wandb_mirror`.
        report: tells the daemon something.

    Raises:
        ModuleNotFoundError: there is no wandb here.
        OSError: the folder cannot be written to.
        Exception: wandb refuses the settings.
    """

    def __init__(self, settings: dict[str, Any], report: Report) -> None:
        import wandb  # half a second, after the streams were put in order

        self._wandb = wandb
        self._settings = settings
        self._report = report
        self._reported: set[str] = set()
        self._run: Any = None
        self._last = 0  # row that was logged last
        self._mirrored = 0  # rows
        self._told = time.monotonic()
        self._position = _open_position(settings["directory"], settings["run_id"])
        self._next = int(os.pread(self._position, _POSITION_DIGITS, 0) or 0)
        if self._next == 0:  # else nothing may be left to mirror
            self._start()

    def take(self, frames: Iterator[list[Any]]) -> None:
        """Write what the frames hold, and close the run."""
        exit_code = 0
        try:
            for kind, *values in frames:
                match kind:
                    case "rows":
                        first, times, columns = values
                        self._rows(first, np.frombuffer(times), columns)
                    case "image":
                        self._image(*values)
                    case "finish":
                        exit_code = values[0]
                if time.monotonic() - self._told > _TELL_EVERY_S:
                    self._tell()
            self._finish(exit_code)
        finally:
            self._tell()

    def _tell(self) -> None:
        self._report("mirrored", self._mirrored)
        self._told = time.monotonic()

    def _start(self) -> None:
        names = ("project", "entity", "group", "name", "job_type", "tags", "config")
        self._run = self._wandb.init(
            dir=self._settings["directory"],
            id=self._settings["run_id"],
            resume="allow",
            **{name: self._settings[name] for name in names},
        )
        where = os.path.realpath(self._run.dir)
        if not where.startswith(self._settings["directory"].rstrip("/") + "/"):
            self._finish(1)
            raise PermissionError(f"{self._settings['directory']} cannot be written to")

    def _rows(self, first: int, times: Any, columns: Sequence[Any]) -> None:
        count = len(times)
        known = min(max(self._next - first, 0), count)
        self._mirrored += known
        if known == count:
            return
        if self._run is None:
            self._start()
        named = {name: self._values(code, count, *rest) for name, code, *rest in columns}
        start = self._settings["start_time"]
        named["time/time"] = [text.decode() for text in time_texts(times)]
        named["time/time_elapsed"] = (times - start).tolist()
        named["_timestamp"] = times.tolist()
        for row, values in enumerate(zip(*named.values(), strict=True), first):
            if row - first >= known:
                tick = dict(zip(named, values, strict=True))
                self._log({k: v for k, v in tick.items() if v is not None}, row)
        self._next = first + count
        os.pwrite(self._position, b"%0*d" % (_POSITION_DIGITS, self._next), 0)

    def _log(self, tick: dict[str, Any], row: int) -> None:
        self._last = row
        try:
            self._run.log({**tick, "time/num_updates": row + 1}, step=row)
            self._mirrored += 1
        except Exception as error:
            self._problem("row", f"row {row} was left out: {type(error).__name__}: {error}")

    def _values(self, code: str, count: int, shape: list[int], packed: Any) -> list[Any]:
        """The values of a column, one for each row; None for one that W&B cannot show."""
        if code == "str":
            return list(packed)
        column = np.frombuffer(packed, code).reshape(count, *shape)
        return [self._array(item) for item in column] if shape else column.tolist()

    def _array(self, array: Any) -> Any:
        if array.size <= _LISTED_ITEMS:
            return array.tolist()
        numbers = array.astype(np.float64).ravel()
        numbers = numbers[np.isfinite(numbers)]
        try:
            return self._wandb.Histogram(numbers, num_bins=_BINS) if len(numbers) else None
        except ValueError:  # their range exceeds a float64
            return None

    def _image(self, row: int, path: str) -> None:
        """Log a figure, at its row if no later one was logged: W&B's steps never go back."""
        try:
            if self._run is None:
                self._start()
            self._last = max(self._last, row)
            image = self._wandb.Image(path, caption=f"step {row}")
            self._run.log({"img": image}, step=self._last)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            self._problem("image", f"the figure {os.path.basename(path)} was left out: {why}")

    def _finish(self, exit_code: int) -> None:
        if self._run is None:
            return
        folder = os.path.dirname(self._run.dir)
        self._run.finish(exit_code=exit_code)
        self._wandb.teardown(exit_code)
        link = os.path.join(folder, "logs", "debug-core.log")
        if os.path.islink(link):  # to a file in `scratch`, which is about to go
            os.unlink(link)

    def _problem(self, kind: str, text: str) -> None:
        if kind not in self._reported:
            self._reported.add(kind)
            self._report("problem", text)


def _open_position(directory: str, run_id: str) -> int:
    """Open and lock the file that says how far a run is mirrored.  Waits for its holder's end."""
    folder = os.path.realpath(os.path.join(directory, "wandb"))
    if not files.is_inside(folder, os.path.realpath(directory)):
        raise files.left(os.path.join(directory, "wandb"), folder, directory)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(directory, "wandb", f".mle-{run_id}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


if __name__ == "__main__":
    sys.exit(main())
