"""The process that draws figures, as a background thread of the trainer sees it.

It starts the process when there is a figure, feeds it, and ends it where a figure takes too long.
What the process does is in `renderer_process`; nothing here looks into a figure.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import IO, Final

from mle_client.discovery import last_words, python_environment
from mle_client.errors import MLEError
from mle_client.renderer_process import ANSWER, ANSWER_MAGIC, REQUEST, REQUEST_MAGIC
from mle_client.rendering import Buffer

# The process draws on one processor and has no business on an accelerator, should a figure make
# it import what would use one.
_ENVIRONMENT: Final = {
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
}
_TRIES: Final = 2  # for a figure whose process ended: once may be bad luck, twice is the figure
_OWN_LIMIT_FACTOR: Final = 1.5  # of the time limit, after which the process ends itself
_WORDS_BYTES: Final = 4_096  # kept of what the process prints
_PIECE_BYTES: Final = 2**18  # read at once
_LEAVE_S: Final = 1.0  # for an idle process to end; it takes milliseconds
# A peer that is gone must be an error; a trainer may have made the signal deadly.
_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)


class RenderingFailed(MLEError):
    """A figure did not become a picture; the text says why."""


class _ProcessEnded(Exception):
    """The process ended in the middle of a figure."""


class Renderer:
    """Draws pickled figures one after another, in a process that it starts when needed.

    For one background thread; `close` may be called from another.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()  # one figure at a time
        self._process: _Process | None = None
        self._closed = False

    def render(self, payload: Buffer | Iterable[Buffer], timeout: float) -> bytes:
        """Draw a figure.

        Args:
            payload: what `rendering.pickle_figure` wrote, whole or in pieces.
            timeout: seconds that it may take in all.

        Returns:
            The bytes of the picture's file.

        Raises:
            RenderingFailed: it cannot be drawn, took too long, ended the process twice, or this
                was closed.
        """
        # A list: where the process ends, they are sent again.
        pieces = [payload] if isinstance(payload, Buffer) else list(payload)
        try:
            with self._lock:
                return self._render(pieces, timeout)
        finally:
            pieces.clear()  # an error's traceback would hold memory that is to be used again

    def _render(self, pieces: list[Buffer], timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        for _ in range(_TRIES):
            process = self._running()
            try:
                return process.render(pieces, timeout, deadline)
            except _ProcessEnded:
                how = self._end_process()
            except TimeoutError as error:
                process.kill()
                self._end_process()
                raise RenderingFailed(
                    f"the figure was not drawn within {timeout:g} s: draw less in it, or save it "
                    "with savefig()"
                ) from error
        raise RenderingFailed(
            f"the process that draws figures ended {_TRIES} times over this one: {how}"
        )

    def _running(self) -> _Process:
        """The process, started if it has to be.  Raises: RenderingFailed: that is impossible."""
        if self._process is not None and self._process.has_ended():  # idle for long, as a rule
            self._end_process()
        if self._process is None and not self._closed:
            try:
                self._process = _Process()
            except OSError as error:
                raise RenderingFailed(
                    f"{sys.executable!r} cannot be started to draw figures: {error}"
                ) from error
        # Now that `close` can see the process: either it ends it, or it is seen here.
        if self._process is None or self._closed:
            raise RenderingFailed("the figure was not drawn: its logger is closed")
        return self._process

    def close(self) -> None:
        """End the process; a figure that is being drawn is given up."""
        self._closed = True
        process = self._process
        if not self._lock.acquire(blocking=False):
            if process is not None:
                process.kill()
            self._lock.acquire()
        try:
            self._end_process()
        finally:
            self._lock.release()

    def _end_process(self) -> str:
        """End the process if there is one.  Returns: how it ended, in words."""
        process, self._process = self._process, None
        return "" if process is None else process.end()

    def forget(self) -> None:
        """In a forked child: the process and its connection are the parent's."""
        if self._process is not None:
            self._process.forget()
        self._reset()


class _Process:
    """The process, its connection, and the end of what it prints.  Raises: OSError: none."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._popen = subprocess.Popen(
                    # -P: what lies in the current folder must not pass for a module of ours.
                    [sys.executable, "-P", "-m", "mle_client.rendering"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    bufsize=0,
                    env={**python_environment(), **_ENVIRONMENT},
                    start_new_session=True,  # ^C in the trainer's terminal is not meant for it
                )
            except BaseException:
                self._socket.close()
                raise
        _RUNNING.add(self)
        assert self._popen.stdout is not None
        self._output: IO[bytes] = self._popen.stdout
        self._words = b""
        self._socket.setblocking(False)
        os.set_blocking(self._output.fileno(), False)

    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self._popen.poll() is not None

    def render(self, pieces: Iterable[Buffer], limit: float, deadline: float) -> bytes:
        """Draw a figure.

        Args:
            limit: seconds that it may take.
            deadline: of the monotonic clock.

        Raises:
            RenderingFailed: it cannot be drawn.
            TimeoutError: no answer came before the deadline.
            _ProcessEnded: the process did not answer, or not what it should.
        """
        request = deque(memoryview(piece).cast("B") for piece in pieces)
        size = sum(map(len, request))
        head = REQUEST.pack(REQUEST_MAGIC, limit * _OWN_LIMIT_FACTOR, size)
        request.appendleft(memoryview(head))
        try:
            is_picture, answer = self._exchange(request, deadline)
        finally:
            request.clear()  # as of `Renderer.render`
        if not is_picture:
            raise RenderingFailed(answer.decode("utf-8", "replace"))
        return answer

    def _exchange(self, request: deque[memoryview], deadline: float) -> tuple[bool, bytes]:
        """Send a request and wait for the answer.  Raises: as of `render`."""
        received = bytearray()
        with selectors.PollSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            selector.register(self._output, selectors.EVENT_READ)
            while (answer := _maybe_answer(received)) is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                for key, events in selector.select(left_s):
                    if key.fileobj is self._output:
                        if self._listen() == b"":
                            selector.unregister(self._output)
                        continue
                    if events & selectors.EVENT_READ:
                        self._receive(received)
                    if events & selectors.EVENT_WRITE and not self._send(request):
                        selector.modify(self._socket, selectors.EVENT_READ)
        return answer

    def _send(self, request: deque[memoryview]) -> bool:
        """Send what there is room for.  Returns: whether anything is left."""
        try:
            while request:
                sent = self._socket.send(request[0], _NO_SIGNAL)
                request[0] = request[0][sent:]
                if not request[0]:
                    request.popleft()
        except BlockingIOError:
            return True
        except OSError as error:
            raise _ProcessEnded from error
        return False

    def _receive(self, received: bytearray) -> None:
        try:
            piece = self._socket.recv(_PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise _ProcessEnded from error
        if not piece:
            raise _ProcessEnded
        received += piece

    def _listen(self) -> bytes | None:
        """Take some of what it has printed.  Returns: that; None for nothing, b"" for the end."""
        piece: bytes | None = self._output.read(_PIECE_BYTES)
        self._words = (self._words + (piece or b""))[-_WORDS_BYTES:]
        return piece

    def kill(self) -> None:
        """End it at once, and what it has started."""
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def end(self) -> str:
        """End it, by force if it does not leave.  Returns: how it ended, in words."""
        _RUNNING.discard(self)
        self._socket.close()  # which is how it learns that nobody wants it
        try:
            self._popen.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        status = self._popen.wait()
        while self._listen():
            pass
        self._output.close()
        return f"{_status_in_words(status)}; {last_words(self._words)}"

    def forget(self) -> None:
        """In a forked child: leave the parent's process alone."""
        _RUNNING.discard(self)
        self._socket.close()
        self._output.close()
        self._popen.returncode = 0  # else it would be looked after, as if it were our child


# The garbage collector, which finds that a logger was dropped, must not end its process before that
# logger has ended.
_RUNNING: Final[set[_Process]] = set()


def _maybe_answer(received: bytearray) -> tuple[bool, bytes] | None:
    """Whether it is a picture, and the picture or reason; None while bytes are missing.

    Raises:
        _ProcessEnded: no such process would have sent that.
    """
    if len(received) < ANSWER.size:
        return None
    magic, is_picture, size = ANSWER.unpack_from(received)
    end = ANSWER.size + size
    if magic != ANSWER_MAGIC or len(received) > end:
        raise _ProcessEnded
    return None if len(received) < end else (is_picture, bytes(received[ANSWER.size : end]))


def _status_in_words(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-status).name
        return f"{name}, as where memory runs out" if name == "SIGKILL" else name
    return f"signal {-status}"
