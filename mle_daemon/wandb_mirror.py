"""Mirrors a run into W&B's offline mode: one child process for each run, fed by a thread.

Whatever happens to the mirror, neither ticks nor the daemon's loop wait for it: rows go into a
queue that is bounded in bytes, those that find it full are left out and counted, and so are all
once the child has died.  What goes wrong is told once, through a callback.

It does not read W&B's files, nor bring back what a dead child has not written: the log file has
every row.  `wandb_process` says what the child does and how it is spoken to.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import msgpack
import numpy as np

from mle_client import configs, discovery, wire
from mle_client import messages as m

# What may wait for a child: minutes of a run's ticks, and little for a daemon of many runs.
_CAPACITY_BYTES: Final = 32 * 2**20
_JOB_BYTES: Final = 512  # of Python objects around a block of one tick
_FRAME_BYTES: Final = 256 * 1024  # small, so that a child that is told to end has little to do
_REPORT_BYTES: Final = 4096  # of one line from the child; what else it says is cut
_KILLED_S: Final = 5.0  # for the kernel to end a killed process
_LOG_IS_WHOLE: Final = "the log file has all of them"

_SETTINGS: Final = ("project", "entity", "group", "name", "job_type", "tags")
# In the child's environment alone.  No account, no network, no output, nothing about this machine.
_CHILD_SETTINGS: Final = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_JOB_CREATION": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WANDB_X_DISABLE_META": "true",
    "WANDB_X_DISABLE_STATS": "true",
    "WANDB_X_SAVE_REQUIREMENTS": "false",
}


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What waits for the child: ticks, or a figure.

    Args:
        row: of the first tick, or that the figure belongs to.
        what: the ticks, or the path of the figure's PNG file.
        count: of ticks; 0 of a figure.
        size: in bytes, about.
    """

    row: int
    what: wire.Block | str
    count: int
    size: int


class WandbMirror:
    """One run's mirror.  None of its methods but `finish` waits.

    Args:
        run: to mirror; its `wandb` is what `checked_wandb_config` made.
        on_problem: called with what the user should know, once for each kind of problem; in a
            thread of the mirror's as a rule.
        capacity_bytes: of the rows that wait for the child.
    """

    def __init__(
        self,
        run: m.Run,
        on_problem: Callable[[str], None],
        *,
        capacity_bytes: int = _CAPACITY_BYTES,
    ) -> None:
        self._settings: dict[str, Any] = {
            **{name: run.wandb.get(name) for name in _SETTINGS},
            "directory": run.directory,
            "run_id": run.run_id.hex(),  # the same after a restart of the daemon
            "start_time": run.start_time,
        }
        self._config = (run.config_text, run.config_json)
        self._on_problem = on_problem
        self._capacity = capacity_bytes
        self._changed = threading.Condition()  # of what follows
        self._jobs: deque[_Job] = deque()
        self._waiting = 0  # bytes
        self._accepted = 0  # rows
        self._left_out = 0
        self._too_slow = False
        self._exit_code: int | None = None  # once there is nothing more to come
        self._child_gone = False
        self._ended = False
        self._given_up = False
        self._child: subprocess.Popen[bytes] | None = None
        self._explained = False  # the child said itself what was wrong
        self._mirrored = 0  # rows, as the child says
        self._done = False
        self._thread = threading.Thread(target=self._run, name="mle-wandb", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The child's process id; None before it was started."""
        return self._child.pid if self._child else None

    @property
    def left_out(self) -> int:
        """Rows that W&B's folder lacks, as far as is known."""
        return self._left_out

    def rows(self, first_row: int, blocks: Sequence[wire.Block]) -> None:
        """Mirror ticks.

        Args:
            first_row: 0-based number of the first tick in the run.  W&B's steps are these numbers.
            blocks: consecutive ticks.
        """
        for block in blocks:
            if len(block):
                self._put(_Job(first_row, block, len(block), _size(block)))
            first_row += len(block)

    def image(self, row: int, path: str) -> None:
        """Mirror a stored figure.  Args: row: 0-based, of its tick; path: of the PNG file."""
        self._put(_Job(row, path, 0, _JOB_BYTES))

    def finish(self, timeout: float, *, crashed: bool = False) -> bool:
        """Mirror what waits, close W&B's run, and reap the child, which is killed if it is late.

        Args:
            timeout: in seconds.
            crashed: the run did not end by itself.

        Returns:
            Whether every row is in W&B's folder.
        """
        with self._changed:
            if self._exit_code is None:
                self._exit_code = int(crashed)
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                self._given_up = True
                if self._child is not None:
                    self._child.kill()
            self._thread.join(_KILLED_S)
        return self._done and self._left_out == 0

    def _put(self, job: _Job) -> None:
        with self._changed:
            full = bool(self._jobs) and self._waiting + job.size > self._capacity
            too_slow = full and not self._too_slow
            self._too_slow |= full
            if full or self._ended or self._exit_code is not None:
                self._left_out += job.count
            else:
                self._jobs.append(job)
                self._waiting += job.size
                self._accepted += job.count
                self._changed.notify_all()
        if too_slow:
            self._tell(
                f"W&B's process is slower than the run: rows are left out of its mirror, "
                f"{_LOG_IS_WHOLE}"
            )

    # --- the thread ---------------------------------------------------------------------------
    def _run(self) -> None:
        scratch = ""
        try:
            scratch = tempfile.mkdtemp(prefix="mle-wandb-")
            self._mirror(scratch)
        except Exception as error:
            self._tell(f"the mirror for W&B failed: {type(error).__name__}: {error}")
        finally:
            with self._changed:
                self._ended = True
                self._left_out += self._accepted - self._mirrored
                self._jobs.clear()
            shutil.rmtree(scratch, ignore_errors=True)

    def _mirror(self, scratch: str) -> None:
        child = _start(self._settings["directory"], scratch)
        with child:
            with self._changed:
                self._child = child
                if self._given_up:
                    child.kill()
            assert child.stdin is not None
            assert child.stdout is not None
            listener = threading.Thread(
                target=self._listen, args=(child.stdout,), name="mle-wandb-listen", daemon=True
            )
            listener.start()
            with contextlib.suppress(BrokenPipeError):  # it ended; what was wrong is told below
                self._feed(child.stdin, scratch)
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            listener.join()
        if self._done:
            return
        if self._given_up:
            self._tell(f"W&B's mirror was not done in time: rows are left out, {_LOG_IS_WHOLE}")
        elif not self._explained:
            self._tell(
                f"W&B's process ended (status {child.returncode}): later rows are left out of "
                f"its mirror, {_LOG_IS_WHOLE}"
            )

    def _feed(self, stdin: IO[bytes], scratch: str) -> None:
        config = _plain(configs.config_from_text(*self._config))
        settings = {
            **self._settings,
            "scratch": scratch,
            "config": config if isinstance(config, dict) else {"config": config},
        }
        _write(stdin, ["settings", settings])
        while (job := self._next_job()) is not None:
            if isinstance(job.what, str):
                _write(stdin, ["image", job.row, job.what])
            else:
                for frame in _row_frames(job.row, job.what, job.size):
                    _write(stdin, frame)
        _write(stdin, ["finish", self._exit_code])

    def _next_job(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._jobs or self._child_gone or self._exit_code is not None
            )
            if not self._jobs or self._child_gone:
                return None
            job = self._jobs.popleft()
            self._waiting -= job.size
            return job

    def _listen(self, stdout: IO[bytes]) -> None:
        """Take what the child says, until its end."""
        while line := stdout.readline(_REPORT_BYTES):
            try:
                said = json.loads(line)
                if "mirrored" in said:
                    self._mirrored = int(said["mirrored"])
                elif "done" in said:
                    self._done = True
                else:
                    self._explained = True
                    self._tell(f"W&B: {said['problem']}")
            except (ValueError, KeyError, TypeError):
                continue  # no line of ours, such as the interpreter's own last words
        with self._changed:
            self._child_gone = True
            self._changed.notify_all()

    def _tell(self, text: str) -> None:
        with contextlib.suppress(Exception):  # the callback's own affair
            self._on_problem(text)


# --- frames ---------------------------------------------------------------------------------------
def _write(stdin: IO[bytes], frame: list[Any]) -> None:
    body = msgpack.packb(frame, use_bin_type=True)
    stdin.write(struct.pack(">I", len(body)) + body)
    stdin.flush()


def _row_frames(first: int, block: wire.Block, size: int) -> Iterator[list[Any]]:
    count = len(block)
    schema = block.schema
    names = [f"time/{field.name}" for field in schema.clock]
    names += [f"stats/{field.name}" for field in schema.stats]
    columns = [block.column(index) for index in range(len(names))]
    step = max(1, _FRAME_BYTES * count // size)
    for at in range(0, count, step):
        part = slice(at, min(at + step, count))
        packed = [
            [name, field.kind.code, field.kind.shape, _bytes(column[part])]
            for name, field, column in zip(names, schema.fields, columns, strict=True)
        ]
        yield ["rows", first + at, _bytes(block.times[part]), packed]


def _bytes(column: wire.Column) -> bytes | list[str]:
    return column if isinstance(column, list) else np.ascontiguousarray(column).tobytes()


def _size(block: wire.Block) -> int:
    """About how many bytes a block takes up."""
    if isinstance(block, wire.FixedBlock):
        return _JOB_BYTES + block.ticks.nbytes
    columns = [block.column(index) for index in range(len(block.schema.fields))]
    sizes = [sum(map(len, c)) if isinstance(c, list) else c.nbytes for c in columns]
    return _JOB_BYTES + block.times.nbytes + sum(sizes)


def _plain(config: Any) -> Any:
    """A configuration made of what msgpack and JSON know."""
    match config:
        case None | bool() | float() | str():
            return config
        case int() if -(2**63) <= config < 2**63:
            return config
        case dict():
            return {str(key): _plain(value) for key, value in config.items()}
        case list() | tuple() | set():
            return [_plain(item) for item in config]
    return str(config)


def _start(directory: str, scratch: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # -P: what lies in the run's folder must not pass for a module.
        [sys.executable, "-P", "-m", "mle_daemon.wandb_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=directory,
        env=_child_environment(scratch),
        start_new_session=True,
    )


def _child_environment(scratch: str) -> dict[str, str]:
    """The child's environment: none of the user's settings for W&B, and no key."""
    ours = discovery.python_environment()
    kept = {name: value for name, value in ours.items() if not name.startswith("WANDB_")}
    places = {
        "TMPDIR": scratch,
        "WANDB_CACHE_DIR": os.path.join(scratch, "cache"),
        "WANDB_CONFIG_DIR": os.path.join(scratch, "config"),
        "WANDB_DATA_DIR": os.path.join(scratch, "data"),
    }
    return {**kept, **_CHILD_SETTINGS, **places}
