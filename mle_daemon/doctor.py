"""Looks at everything that a root has: disk, daemon, journal, rings, spilled segments, logs.

It changes nothing, and does not wait for anybody but for the daemon's answer.  What is found while
a daemon or trainers work is a moment's view.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from mle_client import control, layout, reader, runtime
from mle_client.discovery import has_leftovers
from mle_client.endpoint import READY, Endpoint, is_alive, is_here, read_endpoint
from mle_client.errors import DaemonUnavailable, LogDamaged, LogNotFound, MLEError
from mle_client.runlog import RunLog
from mle_daemon import ownership, probes
from mle_daemon.findings import DAMAGED, NOTE, WAITING, Examined, Finding
from mle_daemon.journal_reader import Segment, read_segments
from mle_daemon.status_text import size_text

# Less room than this is soon too little: a journal segment takes 64 MB, a checkpoint what it takes.
_LITTLE_ROOM_BYTES: Final = 512 * 2**20
_LITTLE_MEMORY_BYTES: Final = 64 * 2**20
_ANSWER_S: Final = 5.0  # for the daemon
_META_LOG: Final = "meta_log.hdf5"
_RECOVER: Final = "mle-daemon recover --root {root}"


class Doctor:
    """An examination.

    Args:
        root: absolute path of a folder, links resolved.

    Attributes:
        found: so far.
        examined: how much was looked at.
    """

    def __init__(self, root: str) -> None:
        self.found: list[Finding] = []
        self.examined = Examined()
        self._root = root
        self._recover = _RECOVER.format(root=root)
        self._is_served = False

    def examine(self) -> None:
        """Look at everything."""
        self._disk()
        self._permissions()
        self._daemon()
        self._journal()
        self._rings()
        self._logs()
        self._leftovers()
        self._roots_below()

    def _find(self, kind: str, about: str, path: str, what: str, advice: str = "") -> None:
        self.found.append(Finding(kind, about, path, what, advice))

    # --- the machine --------------------------------------------------------------------------
    def _disk(self) -> None:
        free = shutil.disk_usage(self._root).free
        if free < _LITTLE_ROOM_BYTES:
            advice = "make room: while the disk is full, ticks wait in memory and in spill files"
            self._find(WAITING, "disk", self._root, f"{size_text(free)} are free", advice)
        for place in runtime.ring_dirs(self._root):
            free = shutil.disk_usage(place).free
            if free < _LITTLE_MEMORY_BYTES:
                advice = "make room there: rings of ticks and snapshots of models lie in it"
                self._find(WAITING, "disk", place, f"{size_text(free)} are free", advice)

    def _permissions(self) -> None:
        state = layout.state_path(self._root)
        for path in (self._root, *([state] if os.path.isdir(state) else [])):
            if not os.access(path, os.W_OK | os.X_OK):
                advice = "a daemon must write there: give it to the user who runs the trainers"
                self._find(WAITING, "permissions", path, "this user cannot write to it", advice)
        with suppress(OSError):  # there is none, or it cannot be looked into, which was told
            if why := ownership.why_not_ours(state):
                what, _, advice = why.partition(": ")
                self._find(WAITING, "permissions", state, what, advice)
        try:
            runtime.socket_dir()
        except OSError as error:
            advice = "say with MLE_RUNTIME_DIR where sockets may go, or mend what is said"
            self._find(WAITING, "permissions", self._root, str(error), advice)

    # --- the daemon ---------------------------------------------------------------------------
    def _daemon(self) -> None:
        endpoint = read_endpoint(self._root)
        path = layout.state_path(self._root, layout.ENDPOINT_FILE)
        if endpoint is None or endpoint.state != READY:
            return
        if not is_alive(endpoint):
            where = "" if is_here(endpoint) else f" on {endpoint.host}"
            what = f"the daemon (process {endpoint.pid}{where}) was killed"
            self._find(WAITING, "daemon", path, what, self._recover)
            return
        self._is_served = True
        if is_here(endpoint):
            self._ask(endpoint, path)

    def _ask(self, endpoint: Endpoint, path: str) -> None:
        try:
            report = control.status(self._root, _ANSWER_S)
        except DaemonUnavailable as error:
            advice = f"see {layout.state_path(self._root, layout.LOG_FILE)}; trainers go on"
            what = f"the daemon (process {endpoint.pid}) does not answer: {error.why}"
            self._find(WAITING, "daemon", path, what, advice)
            return
        except MLEError as error:
            self._find(WAITING, "daemon", path, str(error))
            return
        if report["degraded"]:
            self._find(WAITING, "daemon", path, report["degraded"], "it goes on when that is over")
        for run in report["runs"]:
            if run["last_error"]:
                log = layout.log_path(run["experiment_dir"], run["seed_id"])
                self._find(WAITING, "log", log, run["last_error"])
        for group in (*report["groups"], *report["meta_logs"]):
            if group["why"]:
                what = f"{group['state']}: {group['why']}"
                self._find(WAITING, "merge", group["directory"], what)

    # --- what waits ---------------------------------------------------------------------------
    def _journal(self) -> None:
        folder = layout.state_path(self._root, layout.JOURNAL_DIR)
        waiting = 0
        try:
            for segment in read_segments(folder):
                self.examined = replace(self.examined, segments=self.examined.segments + 1)
                waiting += len(segment.data)
                self._segment(segment)
        except LogDamaged as error:
            self._find(DAMAGED, "journal", error.path, error.why)
        except OSError as error:
            self._find(DAMAGED, "journal", folder, f"it cannot be read: {error.strerror}")
        if waiting and not self._is_served:
            what = f"{size_text(waiting)} wait for a daemon to bring them into the logs"
            self._find(WAITING, "journal", folder, what, self._recover)

    def _segment(self, segment: Segment) -> None:
        if segment.scan.verdict == "damaged":
            kept = len(segment.scan.frames) + len(segment.scan.after)
            what = f"{segment.scan.problem}; {kept} records around that are good"
            advice = f"{self._recover} takes what is good; look at the disk"
            self._find(DAMAGED, "journal", segment.path, what, advice)

    def _rings(self) -> None:
        places = probes.find_rings(self._root)
        self.examined = replace(self.examined, rings=len(places))
        for ring in probes.abandoned(places, self._odd_ring):
            try:
                ticks = sum(len(each.payload) for each in ring.remains(self._odd_ring))
                artifacts = len(ring.left())
            except OSError as error:
                why = f"it cannot be read: {error.strerror}"
                self._find(DAMAGED, "ring", ring.place.directory, why)
                continue
            finally:
                ring.close()
            if not self._is_served:
                what = f"a process has left {size_text(ticks)} of records and {artifacts} artifacts"
                self._find(WAITING, "ring", ring.place.directory, what, self._recover)
        self._orphaned_spills({place.producer.hex() for place in places})

    def _odd_ring(self, what: str) -> None:
        folder = runtime.ring_dirs(self._root)[0]
        self._find(DAMAGED, "ring", folder, what, "see what it is, and remove it")

    def _orphaned_spills(self, with_ring: set[str]) -> None:
        """Spilled segments whose ring in shared memory is gone, as after a reboot."""
        folder = layout.state_path(self._root, layout.SPILL_DIR)
        for name in sorted(set(_names(folder)) - with_ring):
            path = os.path.join(folder, name)
            size = sum(os.path.getsize(each) for each in _files(path))
            what = f"{size_text(size)} of records whose beginning was in shared memory, and is gone"
            advice = "they fit no log any more, as after a reboot: remove the folder"
            if size:
                self._find(DAMAGED, "spill", path, what, advice)

    # --- logs ---------------------------------------------------------------------------------
    def _logs(self) -> None:
        for path in _log_files(self._root):
            try:
                runs = reader.read_runs(path)
                for (_, seed), run in runs.items():
                    run.load()
                    self._run(path, seed, run)
            except LogNotFound:
                continue  # it was merged meanwhile
            except LogDamaged as error:
                self._find(DAMAGED, "log", error.path, error.why)
                continue
            except OSError as error:
                self._find(WAITING, "log", path, f"it cannot be read: {error.strerror or error}")
                continue
            self.examined = replace(self.examined, logs=self.examined.logs + 1)

    def _run(self, path: str, seed: str, run: RunLog) -> None:
        if os.path.basename(path) != _META_LOG:  # what that has is in others, too
            runs, ticks = self.examined.runs + 1, self.examined.ticks + run.ticks
            self.examined = replace(self.examined, runs=runs, ticks=ticks)
        if run.lost:
            what = f"{run.lost} updates of {seed} are missing: there was no room to keep them"
            self._find(NOTE, "log", path, what)
        if run.state == "running" and not self._is_served:
            what = f"{seed} was not ended: its trainer or its daemon was killed"
            self._find(WAITING, "log", path, what, self._recover)

    def _roots_below(self) -> None:
        """Experiments whose logger has started a daemon of its own."""
        for folder in left_roots(self._root):
            what = "its own daemon was killed, or a trainer, and left something to be brought in"
            self._find(WAITING, "root", folder, what, _RECOVER.format(root=folder))

    def _leftovers(self) -> None:
        replaced = layout.state_path(self._root, layout.REPLACED_DIR)
        aside = [each for each in _files(replaced) if each.endswith(".hdf5")]
        if aside:
            size = sum(map(os.path.getsize, aside))
            what = f"{len(aside)} logs ({size_text(size)}) that others of their name have replaced"
            self._find(NOTE, "leftover", replaced, what, "remove those that you do not miss")


def left_roots(root: str) -> list[str]:
    """Folders below a root in which daemons of their own have left something."""
    found = []
    for folder, folders, _ in os.walk(root):
        if folder != root and layout.STATE_DIR in folders:
            endpoint = read_endpoint(folder)
            is_served = endpoint is not None and is_alive(endpoint)
            was_killed = endpoint is not None and endpoint.state == READY
            if not is_served and (was_killed or has_leftovers(folder)):
                found.append(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


def _log_files(root: str) -> Iterator[str]:
    """Every log of a root and of the experiments below it."""
    for folder, folders, names in os.walk(root):
        in_logs = os.path.basename(folder) == "logs"
        # A folder in a log's place is told as what cannot be read.
        names += [name for name in folders if in_logs and name.endswith(".hdf5")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name == _META_LOG or (in_logs and name.endswith(".hdf5") and name[0] != "."):
                yield os.path.join(folder, name)


def _names(folder: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(folder)
    return []


def _files(folder: str) -> list[str]:
    return [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
