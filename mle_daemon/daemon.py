"""The daemon's loop: delivers events to `core` and carries out what it answers.

One thread for the loop, one that writes log files (`workers`), one that syncs the journal; logs are
merged by another process (`merger`).  The loop itself waits for nothing but its socket and the
journal's write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

from mle_client import layout, runtime
from mle_client import messages as m
from mle_client.endpoint import (
    BEAT_EVERY_S,
    STOPPED,
    Endpoint,
    remove_endpoint,
    touch_endpoint,
    write_endpoint,
)
from mle_client.errors import RootLocked, RunRefused
from mle_client.keys import server_keys
from mle_client.snapshot import LeftSnapshot
from mle_daemon import __version__, limits, probes, recovery, status
from mle_daemon import events as e
from mle_daemon.artifact_server import ArtifactServer
from mle_daemon.checkpoints import Checkpoints
from mle_daemon.config import DaemonConfig
from mle_daemon.core import Core
from mle_daemon.group_sync import GroupSync
from mle_daemon.journal import Journal, JournalPosition, JournalWriteError
from mle_daemon.landing import Landing
from mle_daemon.leftovers import Leftovers
from mle_daemon.merger import Merger
from mle_daemon.mirrors import Mirrors
from mle_daemon.ownership import RootLock
from mle_daemon.server import Server
from mle_daemon.store import Store
from mle_daemon.workers import Writer

_LOG = logging.getLogger(__name__)

# What a stop may take before the rest is left to the journal: service managers kill after 90 s.
_DRAIN_TIMEOUT_S: Final = 20.0
_LONGEST_WAIT_S: Final = 1.0
# After our folder was removed.  Who removes a root, and perhaps uses it anew, is through by then;
# that would fail if our folder came back meanwhile.  And a daemon that nobody needs has left.
_REMOVED_S: Final = 6.0
_STALLED_S: Final = 1.0  # of a sync; a busy disk takes some tenths
_LINE_CHARS: Final = 4_096  # of the log; what clients send may be in it
_REST_EVERY_S: Final = 0.02  # between looks at rings of which there is more to take
# What waits until all is taken of the rings of dead processes goes on without the rest when there
# has been no room for it in memory for so long: log files cannot be written, and that may last.
_NO_ROOM_S: Final = 5.0
_SAID_KEPT: Final = 1_000  # of what is told once
# How long one that leaves listens for those who were connecting: they need a few milliseconds.
_LATE_S: Final = 0.05
_STOP_TIMEOUT_S: Final = 10.0  # for what is arriving to be given up; a stalled disk can take longer


def run(config: DaemonConfig, on_ready: Callable[[Endpoint], None], detached: bool) -> int:
    """Serve a root until told to leave, or until idle for long enough.

    Args:
        config: of the daemon.
        on_ready: called when clients may come.
        detached: it has no terminal: SIGINT is not meant for it.

    Returns:
        The exit status: 0 if everything is in the log files, 1 if some is in the journal only.

    Raises:
        RootLocked: another daemon serves the root.
        LogDamaged: the journal holds something that is not ours.
        OSError: the root cannot be written to, or the address is in use.
    """
    with RootLock(config.root) as lock:
        return Daemon(config, lock).run(on_ready, detached)


class Daemon:
    """One life of a daemon.

    Args:
        config: of the daemon.
        lock: of its root, which was acquired.
    """

    def __init__(self, config: DaemonConfig, lock: RootLock) -> None:
        self._config = config
        self._lock = lock
        self._keys = server_keys(config.keys) if config.endpoint and config.keys else None
        self._id = secrets.token_hex(8)
        self._store = Store(config.root)
        self._checkpoints = Checkpoints(config.root)
        self._core = Core(config, self._id)
        self._started = self._last_work = time.monotonic()
        self._appends: list[tuple[bytes, ...]] = []
        self._leave: e.Leave | None = None
        self._signalled: list[e.Event] = []
        self._outcomes: deque[e.Event] = deque()  # of threads; appended to by any of them
        self._asked: list[tuple[e.Client, m.Publish | m.Stop]] = []  # to be handled
        self._refusals = limits.Sparingly()
        self._report: e.Report | None = None  # of this round
        self._said: set[str] = set()  # what is found at every look and is told once
        self._next_look = self._next_beat = 0.0
        self._is_draining = False  # there is more to take of the rings of dead processes
        self._took_at = self._started  # when some of that was taken last, or nothing was left
        self._sync_failed = False
        self._give_up_at = float("inf")
        self._complete = True  # every log has all there is
        self._has_root = True  # until it is removed, or another daemon's
        self._removed_at = float("inf")  # when some of it was first missing
        self._endpoint: Endpoint
        self._journal: Journal
        self._server: Server
        self._writer: Writer
        self._artifacts: ArtifactServer
        self._landing: Landing
        self._leftovers: Leftovers
        self._merger: Merger

    def run(self, on_ready: Callable[[Endpoint], None], detached: bool) -> int:
        """Recover, serve, leave.  See `mle_daemon.daemon.run`."""
        self._store.clean_staging()
        probes.remove_unfinished(self._config.root)
        directory = recovery.journal_directory(self._config.root)
        older = recovery.replay(directory, self._deliver_at_start)
        self._journal = Journal(directory)
        older.append(self._journal.end.segment)
        self._core.rotated(self._journal.rotate([(self._core.first_record(),)]), older)
        with self._serving() as endpoint, self._signals(detached):
            on_ready(endpoint)
            _LOG.info("ready: pid %d, %s, root %s", os.getpid(), endpoint.endpoint, endpoint.root)
            self._loop()
            self._leftovers.remove_done()
            self._answer_late()
        return self._end(endpoint)

    @contextlib.contextmanager
    def _serving(self) -> Iterator[Endpoint]:
        config = self._config
        address = config.endpoint or f"ipc://{runtime.socket_path(config.root)}"
        artifacts = f"ipc://{runtime.artifact_socket_path(config.root)}"
        if config.endpoint:  # at the same address of this machine, at any free port
            artifacts = f"{config.endpoint.rpartition(':')[0]}:*"
        staging = layout.state_path(config.root, layout.STAGING_DIR)
        self._leftovers = Leftovers(
            config.root,
            self._core,
            self._started,
            clock=time.monotonic,
            deliver=self._deliver_now,
            take_left=self._take_left,
            say_once=self._say_once,
        )
        with Server(address, self._keys) as self._server:
            mirrors = Mirrors(config.root, lambda run, text: self._outcome(e.Problem(run, text)))
            self._writer = Writer(self._store, mirrors, self._server.wake)
            self._landing = Landing(self._checkpoints, self._outcome)
            self._merger = Merger(self._outcome, config.root)
            self._artifacts = ArtifactServer(artifacts, staging, self._outcome, self._keys)
            self._core.artifacts_address = self._artifacts.endpoint
            sync = GroupSync(self._journal, self._synced, config.sync_interval_s)
            try:
                endpoint = Endpoint.of_this_process(
                    config.root,
                    self._server.endpoint,
                    version=__version__,
                    daemon_id=self._id,
                    options=config.as_options(),
                )
                write_endpoint(endpoint)
                self._endpoint = endpoint
                yield endpoint
            finally:
                self._merger.stop()
                self._artifacts.stop(_STOP_TIMEOUT_S)
                self._landing.stop()
                self._writer.stop()
                sync.stop()

    def _outcome(self, event: e.Event) -> None:
        """Called by threads: deliver an event in the loop's next round."""
        self._outcomes.append(event)
        self._server.wake()

    # --- the loop -----------------------------------------------------------------------------
    def _loop(self) -> None:
        while self._leave is None:
            now = time.monotonic()
            good, bad = self._server.wait(self._wait_s(now))
            self._report = None
            for client, reason in bad:
                if line := self._refusals.line(f"a client sent what is no message: {reason}", now):
                    _LOG.warning("%s", line)
                self._server.send(client, m.Refused(m.NO_PRODUCER, reason))
            for client, message in good:
                self._receive(client, message)
            for outcome in self._writer.outcomes():
                self._deliver(outcome)
            while self._outcomes:
                self._deliver(self._outcomes.popleft())
            self._answer_asked(now)
            self._flush_journal()
            self._housekeeping(time.monotonic())
            self._deliver(e.Tick())
            self._flush_journal()

    def _answer_late(self) -> None:
        """Answer those who have asked meanwhile, a second `stop` above all."""
        until = time.monotonic() + _LATE_S
        while (left := until - time.monotonic()) > 0:
            for client, message in self._server.wait(left)[0]:
                self._receive(client, message)
            self._answer_asked(time.monotonic())

    def _wait_s(self, now: float) -> float:
        until = min(self._core.next_due(), now + _LONGEST_WAIT_S)
        if self._core.stopping is None:  # else no ring is looked for
            until = min(until, self._next_look)
        return 0.0 if self._signalled and not self._is_draining else max(0.0, until - now)

    def _receive(self, client: e.Client, message: m.Request) -> None:
        if isinstance(message, m.AskStatus):
            self._answer_status(client, message.token)
            return
        self._last_work = time.monotonic()
        if isinstance(message, m.Publish | m.Stop) and len(self._asked) < limits.MAX_READERS:
            self._asked.append((client, message))
        else:
            self._handle(client, message)

    def _handle(self, client: e.Client, message: m.Request) -> None:
        try:
            self._deliver(e.Received(client, message))
        except Exception as error:  # a mistake of ours; it must not take the other runs along
            _LOG.exception("a %s message could not be handled", type(message).__name__)
            producer = message.producer if isinstance(message, m.Data) else m.NO_PRODUCER
            reason = f"the daemon failed at it ({type(error).__name__}); see its log"
            self._server.send(client, m.Refused(producer, reason))

    def _answer_status(self, client: e.Client, token: int) -> None:
        if not self._core.may_report(client):
            self._server.send(client, m.Done(token, limits.TOO_MANY_REPORTS))
            return
        if self._report is None:  # one for all who ask in this round
            self._report = self._status()
        self._server.send(client, m.Status(token, self._report))

    def _housekeeping(self, now: float) -> None:
        """What is done now and then."""
        if now >= self._next_look:
            self._next_look = now + self._config.scan_interval_s
            self._look_at_rings(now)
            self._mind_folders(now)
        if now >= self._next_beat:
            self._next_beat = now + BEAT_EVERY_S
            with contextlib.suppress(OSError):  # somebody removed the folder; the log says so
                touch_endpoint(self._config.root)
        if self._sync_failed or self._journal.end.offset >= self._config.journal_segment_bytes:
            self._sync_failed = False
            self._rotate()
        if self._core.stopping is not None and self._give_up_at == float("inf"):
            self._give_up_at = now + _DRAIN_TIMEOUT_S
        if now >= self._give_up_at and self._leave is None:
            self._complete = self._core.is_written
            if self._complete:
                _LOG.warning("leaving before all is merged; the next start merges the rest")
                self._deliver(e.PatienceEnded())
            else:
                _LOG.error("leaving although not everything is published; the journal has the rest")
                self._leave = e.Leave(asked=True)

    def _mind_folders(self, now: float) -> None:
        """Go on where somebody has removed the journal, our folder, or the whole root."""
        if not self._has_root or not (self._lock.is_lost or self._journal.is_removed):
            self._removed_at = float("inf")
            return
        self._removed_at = min(self._removed_at, now)
        if now - self._removed_at < _REMOVED_S:
            return
        self._removed_at = float("inf")
        if self._lock.is_lost and not self._regain_root():
            return
        _LOG.warning("files of the daemon were removed; what they had is published at once")
        self._rotate()
        self._deliver(e.PublishEverything())

    def _regain_root(self) -> bool:
        """Make our folder anew.  Returns: False where that cannot be, or need not."""
        if self._core.idle and not os.path.lexists(self._config.root):
            _LOG.info("the root was removed, and nobody logs to it")
            self._has_root, self._leave = False, e.Leave(asked=False)
            return False
        try:
            self._lock.regain()
            write_endpoint(self._endpoint)
        except RootLocked as error:
            _LOG.error("our folder was removed, and another daemon has come: %s", error)
            self._has_root = False
            self._deliver(e.StopAsked())
            return False
        except OSError as error:
            _LOG.warning("our folder was removed and cannot be made anew: %s", error)
            return False
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()  # it makes a new file for the next line
        return True

    # --- events and instructions --------------------------------------------------------------
    def _deliver_at_start(self, event: e.Event) -> None:
        self._deliver(event)

    def _deliver(self, event: e.Event) -> None:
        for instruction in self._core.handle(event, time.monotonic()):
            self._carry_out(instruction)

    def _carry_out(self, instruction: e.Instruction) -> None:
        match instruction:
            case e.Send(client, message):
                self._server.send(client, message)
            case e.AppendJournal(parts):
                self._appends.append(parts)
            case e.OpenRun():
                self._deliver(self._open(instruction))
            case e.PublishRun() | e.SealRun():
                self._writer.submit(instruction)
            case e.MergeGroup() | e.RefreshMeta():
                self._merger.submit(instruction)
            case e.StoreArtifact() | e.Evict():
                self._landing.submit(instruction)
            case e.DiscardArtifact(producer, artifact):
                self._artifacts.discard(producer, artifact)
            case e.DropSegments(numbers):
                for number in numbers:
                    self._drop(number)
            case e.Log(level, text):
                _LOG.log(logging.getLevelNamesMapping()[level.upper()], "%s", text[:_LINE_CHARS])
            case e.Leave():
                self._leave = instruction

    def _flush_journal(self) -> None:
        """Write what is to be appended, in one go, and tell the outcome."""
        while self._appends:
            records, self._appends = self._appends, []
            try:
                position = self._journal.append(records)
            except JournalWriteError as error:
                self._deliver(e.JournalFailed(str(error)))
                return
            self._deliver(e.Journaled(position.segment))

    def _open(self, instruction: e.OpenRun) -> e.Event:
        run, seed_id = instruction.run, instruction.seed_id
        run_id = run.run_id
        try:
            file, note = self._store.open_run(run, seed_id, instruction.path)
            extension = layout.model_extension(run.model_type)
            removed = self._checkpoints.reconcile(
                run.directory, seed_id, extension, instruction.retained, instruction.saves
            )
            if removed:
                _LOG.info("%s: removed what is kept no longer: %s", run.directory, removed)
        except RunRefused as error:
            return e.RunNotOpened(run_id, str(error), True)
        except Exception as error:
            return e.RunNotOpened(run_id, f"{type(error).__name__}: {error}", False)
        return e.RunOpened(run_id, file, note)

    # --- the journal's segments -----------------------------------------------------------------
    def _rotate(self) -> None:
        if not self._has_root:
            return
        try:
            number = self._journal.rotate([(self._core.first_record(),)])
        except (JournalWriteError, ValueError) as error:  # ValueError: the state is too large
            _LOG.warning("the journal cannot begin a new segment: %s", error)
            return
        self._core.rotated(number, ())

    def _drop(self, number: int) -> None:
        if not self._has_root:  # the file of that number is another daemon's
            return
        try:
            self._journal.drop(number)
        except JournalWriteError as error:  # it is replayed once more; nothing comes twice
            _LOG.warning("a needless journal segment stays: %s", error)

    def _synced(self, position: JournalPosition, error: Exception | None) -> None:
        """Called by the syncing thread."""
        if error is not None:
            _LOG.error("the journal cannot be synced: %s", error)
            self._sync_failed = True  # what that segment holds is not to be relied on

    # --- rings of processes that are gone -------------------------------------------------------
    def _look_at_rings(self, now: float) -> bool:
        """Take in what processes that are gone have left.

        Not while leaving: no ticks are taken any more, so a ring that is not read to its end stays
        for the next daemon, to which its run must go on.

        Returns:
            Whether that was all of it, or all that can be had for now.
        """
        if self._core.stopping is not None:
            return True
        look = self._leftovers.look(now)
        if look.lives or not self._core.idle:
            self._last_work = now
        if look.is_complete or look.has_taken:
            self._took_at = now
        self._is_draining = not look.is_complete and now - self._took_at < _NO_ROOM_S
        if self._is_draining:
            self._next_look = now + _REST_EVERY_S
        idle_timeout = self._config.idle_timeout_s
        if idle_timeout is not None and now - self._last_work >= idle_timeout:
            _LOG.info("nothing to do for %g s", idle_timeout)
            self._deliver(e.StopAsked(idle=True))
        return not self._is_draining

    def _answer_asked(self, now: float) -> None:
        """Handle what is about all that was logged so far, once dead trainers' part of it is here.

        Rings are looked at once for all who have asked in this round.
        """
        if not (self._asked or self._signalled) or (self._is_draining and now < self._next_look):
            return
        if not self._look_at_rings(now):
            return
        asked, self._asked = self._asked, []
        for client, message in asked:
            self._handle(client, message)
        while self._signalled:
            self._deliver(self._signalled.pop(0))

    def _deliver_now(self, event: e.Event) -> None:
        self._deliver(event)
        self._flush_journal()

    def _take_left(self, producer: m.ProducerId, left: LeftSnapshot) -> None:
        self._artifacts.take_left(producer, left)

    def _say_once(self, text: str) -> None:
        """Write to the log what would be true again in a second."""
        if text not in self._said:
            if len(self._said) >= _SAID_KEPT:
                self._said.clear()
            self._said.add(text)
            _LOG.warning("%s", text)

    # --- status, signals, the end ---------------------------------------------------------------
    def _status(self) -> e.Report:
        now = time.monotonic()
        return status.report(
            pid=os.getpid(),
            endpoint=self._server.endpoint,
            root=self._config.root,
            uptime_s=now - self._started,
            version=__version__,
            troubles=[
                *self._core.troubles(),
                *self._stalls(now),
                *probes.full_rings(self._config.root),
            ],
            runs=self._core.reports(now),
            groups=self._core.group_reports(),
            meta_logs=self._core.meta_log_reports(),
        )

    def _stalls(self, now: float) -> list[str]:
        """A sync of the journal that takes long."""
        since, path = self._journal.syncing
        if not path or now - since < _STALLED_S:
            return []
        return [f"{path}: the disk stalls, a sync has taken {now - since:.0f} s so far"]

    @contextlib.contextmanager
    def _signals(self, detached: bool) -> Iterator[None]:
        def on(event: e.Event) -> Callable[[int, FrameType | None], None]:
            def handler(number: int, frame: FrameType | None) -> None:
                self._signalled.append(event)
                self._server.wake()

            return handler

        wanted = {
            signal.SIGTERM: on(e.StopAsked()),
            signal.SIGINT: signal.SIG_IGN if detached else on(e.StopAsked()),
            signal.SIGUSR1: on(e.PublishEverything()),
            signal.SIGHUP: signal.SIG_IGN,
        }
        before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, endpoint: Endpoint) -> int:
        """Leave the root as the next daemon, and the clients, need to find it."""
        complete = self._complete
        if not self._has_root or self._lock.is_lost:  # what lies there is another daemon's
            self._journal.close()
            return 0 if complete else 1
        if complete:
            self._rotate()  # what the next one needs to know of runs that go on
            for file in self._journal.segments()[:-1]:
                self._drop(file.number)
        self._journal.close()
        if complete and self._core.is_empty:
            for file in self._journal.segments():
                os.unlink(file.path)
        asked = self._leave is not None and self._leave.asked
        if asked:
            write_endpoint(dataclasses.replace(endpoint, state=STOPPED))
        else:
            remove_endpoint(self._config.root)
        _LOG.info("left: %s", "everything is published" if complete else "the journal has a rest")
        return 0 if complete else 1
