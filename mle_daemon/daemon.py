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
from mle_client.errors import RunRefused
from mle_client.keys import server_keys
from mle_daemon import __version__, probes, recovery, status
from mle_daemon import events as e
from mle_daemon.artifact_server import ArtifactServer
from mle_daemon.checkpoints import Checkpoints
from mle_daemon.config import DaemonConfig
from mle_daemon.core import Core
from mle_daemon.group_sync import GroupSync
from mle_daemon.journal import Journal, JournalPosition, JournalWriteError
from mle_daemon.landing import Landing
from mle_daemon.merger import Merger
from mle_daemon.mirrors import Mirrors
from mle_daemon.ownership import RootLock
from mle_daemon.server import Server
from mle_daemon.store import Store
from mle_daemon.workers import Writer

_LOG = logging.getLogger(__name__)

# A producer whose ring cannot be seen from here is taken for gone after so many seconds without a
# sign of life: three of its heartbeats.
_SILENT_AFTER_S: Final = 35.0
# What a stop may take before the rest is left to the journal: service managers kill after 90 s.
_DRAIN_TIMEOUT_S: Final = 20.0
_LONGEST_WAIT_S: Final = 1.0
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
    with RootLock(config.root):
        return Daemon(config).run(on_ready, detached)


class Daemon:
    """One life of a daemon.  Args: config: of the daemon, whose root must be locked."""

    def __init__(self, config: DaemonConfig) -> None:
        self._config = config
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
        self._taking: set[tuple[m.ProducerId, int]] = set()  # dead producers' artifacts
        self._stuck: set[m.ProducerId] = set()  # rings that do not fit the journal; told once
        self._next_scan = self._next_beat = 0.0
        self._sync_failed = False
        self._give_up_at = float("inf")
        self._complete = True  # every log has all there is
        self._journal: Journal
        self._server: Server
        self._writer: Writer
        self._artifacts: ArtifactServer
        self._landing: Landing
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
            self._remove_done_rings()
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
            for client, reason in bad:
                _LOG.warning("a client sent what is no message: %s", reason)
                self._server.send(client, m.Refused(m.NO_PRODUCER, reason))
            for client, message in good:
                self._receive(client, message)
            for outcome in self._writer.outcomes():
                self._deliver(outcome)
            while self._outcomes:
                self._deliver(self._outcomes.popleft())
            while self._signalled:
                self._scan_rings(now)  # what a dead trainer left belongs to what is on disk then
                self._deliver(self._signalled.pop(0))
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

    def _wait_s(self, now: float) -> float:
        until = min(self._core.next_due(), now + _LONGEST_WAIT_S)
        if self._core.stopping is None:  # else no ring is looked for
            until = min(until, self._next_scan)
        return 0.0 if self._signalled else max(0.0, until - now)

    def _receive(self, client: e.Client, message: m.Request) -> None:
        if isinstance(message, m.AskStatus):
            self._server.send(client, m.Status(message.token, self._status()))
            return
        self._last_work = time.monotonic()
        try:
            if isinstance(message, m.Publish | m.Stop):  # what a dead trainer left belongs to it
                self._scan_rings(self._last_work)
            self._deliver(e.Received(client, message))
        except Exception as error:  # a mistake of ours; it must not take the other runs along
            _LOG.exception("a %s message could not be handled", type(message).__name__)
            producer = message.producer if isinstance(message, m.Data) else m.NO_PRODUCER
            reason = f"the daemon failed at it ({type(error).__name__}); see its log"
            self._server.send(client, m.Refused(producer, reason))

    def _housekeeping(self, now: float) -> None:
        """What is done now and then."""
        if now >= self._next_scan:
            self._next_scan = now + self._config.scan_interval_s
            self._scan_rings(now)
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
                _LOG.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)
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
        try:
            number = self._journal.rotate([(self._core.first_record(),)])
        except JournalWriteError as error:
            _LOG.warning("the journal cannot begin a new segment: %s", error)
            return
        self._core.rotated(number, ())

    def _drop(self, number: int) -> None:
        try:
            self._journal.drop(number)
        except JournalWriteError as error:  # it is replayed once more; nothing comes twice
            _LOG.warning("a needless journal segment stays: %s", error)

    def _synced(self, position: JournalPosition, error: Exception | None) -> None:
        """Called by the syncing thread."""
        if error is not None:
            _LOG.error("the journal cannot be synced: %s", error)
            self._sync_failed = True  # what that segment holds is not to be relied on

    # --- rings --------------------------------------------------------------------------------
    def _scan_rings(self, now: float) -> None:
        """Read the rings of processes that are gone, and see which others there are.

        Not while leaving: no ticks are taken any more, so a ring that is not read to its end stays
        for the next daemon, to which its run must go on.
        """
        if self._core.stopping is not None:
            return
        places = probes.find_rings(self._config.root)
        rings = {place.producer for place in places}
        alive = set(rings)
        for ring in probes.abandoned(places):
            alive.discard(ring.place.producer)
            try:
                self._drain(ring)
            except OSError as error:
                _LOG.warning("the ring in %s cannot be read: %s", ring.place.directory, error)
            finally:
                ring.close()
        # One with a ring is gone when that has been read, and with what it has left behind.
        for producer, process in self._core.processes().items():
            if producer not in rings and probes.is_gone(process):
                self._deliver(e.ProducerGone(producer))
        for producer in self._core.silent(now - _SILENT_AFTER_S):
            if producer not in rings and now - self._started > _SILENT_AFTER_S:
                self._deliver(e.ProducerGone(producer))
        self._deliver(e.RingsSeen(frozenset(rings)))
        if alive or not self._core.idle:
            self._last_work = now
        idle_timeout = self._config.idle_timeout_s
        if idle_timeout is not None and now - self._last_work >= idle_timeout:
            _LOG.info("nothing to do for %g s", idle_timeout)
            self._deliver(e.StopAsked(idle=True))

    def _drain(self, ring: probes.AbandonedRing) -> None:
        """Take in what a process left behind, and remove its ring once the journal has it."""
        producer = ring.place.producer
        end = 0
        for remains in ring.remains():
            end = remains.base + len(remains.payload)
            if end > self._core.position(producer):
                data = m.Data(producer, remains.base, remains.payload)
                self._deliver(e.Received(e.NOBODY, data))
                self._flush_journal()
        if self._core.position(producer) >= end:
            self._take_left(ring)
            if self._core.is_settled(producer):
                _LOG.info("the process of stream %s is gone; its ring is drained", producer.hex())
                ring.remove()
        elif producer not in self._stuck and not self._core.degraded:
            self._stuck.add(producer)
            _LOG.error("the ring in %s does not go on where the journal ends", ring.place.directory)
            self._take_left(ring)

    def _remove_done_rings(self) -> None:
        """Before leaving, remove the rings of dead processes of which all is stored.

        Artifacts may have been stored since rings were last looked at, and once the journal is
        gone, the next daemon would take what such a ring holds for news.
        """
        places = probes.find_rings(self._config.root)
        rings = {place.producer for place in places}
        for ring in probes.abandoned(places):
            producer = ring.place.producer
            try:
                end = max((each.base + len(each.payload) for each in ring.remains()), default=0)
                if self._core.position(producer) >= end and self._core.is_settled(producer):
                    ring.remove()
                    rings.discard(producer)
            except OSError as error:
                _LOG.warning("the ring in %s cannot be read: %s", ring.place.directory, error)
            finally:
                ring.close()
        self._deliver(e.RingsSeen(frozenset(rings)))

    def _take_left(self, ring: probes.AbandonedRing) -> None:
        """Have the artifacts that a dead process left in memory stored."""
        producer = ring.place.producer
        wanted = self._core.wanted_artifacts(producer)
        left = {each.number: each for each in ring.left()} if wanted else {}
        for number in sorted(wanted & left.keys()):
            if (producer, number) not in self._taking:
                self._taking.add((producer, number))
                self._artifacts.take_left(producer, left[number])
        self._deliver(e.ProducerGone(producer, frozenset(left)))

    # --- status, signals, the end ---------------------------------------------------------------
    def _status(self) -> e.Report:
        now = time.monotonic()
        return status.report(
            pid=os.getpid(),
            endpoint=self._server.endpoint,
            root=self._config.root,
            uptime_s=now - self._started,
            version=__version__,
            degraded=self._core.degraded,
            runs=self._core.reports(now),
            groups=self._core.group_reports(),
            meta_logs=self._core.meta_log_reports(),
        )

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
