"""Publishes log files: a new one is written aside and takes the old one's name in one step.

The only writer of HDF5, in layout version 1 (`docs/hdf5-layout.md`; `h5edit` has the details).  A
file that anyone can see is never changed, so that readers and crashes find a whole log at any
moment.  It keeps no file open, and does not decide when to publish.

A file of up to `IMAGE_BYTES` is changed in memory and then written; a larger one is copied, and its
growth reserved, before HDF5 opens it.  Either way a full disk is an `OSError` before HDF5 could see
it: HDF5 does not survive a write that fails.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from mle_client import files, layout
from mle_client.errors import LogDamaged, LogNotFound, RunRefused
from mle_client.group_copies import Copy
from mle_client.h5access import empty_image
from mle_client.merge_plan import LeftOut
from mle_client.merge_staging import write_file
from mle_client.messages import Run
from mle_client.seed_groups import merged_log_of
from mle_daemon import h5datasets, h5edit, h5file, h5seal
from mle_daemon.columns import Column, FileState, Plan
from mle_daemon.events import PublishRun
from mle_daemon.pieces import SLICE_BYTES
from mle_daemon.planning import ReadColumn, plan_append
from mle_daemon.values import Array

# Up to this size a file is changed in memory, in milliseconds.  That takes copies which, for larger
# ones, are four times as dear as letting the kernel copy the file.
IMAGE_BYTES: Final = 8 * 2**20
_STAMP: Final = "%Y%m%dT%H%M%SZ"
_CHANGED: Final = "it is no longer what the daemon published; something else changed it"
_GONE: Final = "the log that was published here is gone"
# For a merge to remove what it has merged, which takes it less than a millisecond.
_LOCK_TIMEOUT_S: Final = 2.0


class Store:
    """The log files under one root.

    `open_run` may be called by one thread, everything else by one other.

    Args:
        root: the folder that the daemon serves.
        slice_bytes: of ticks that are columns at a time, about.
    """

    def __init__(self, root: str, slice_bytes: int = SLICE_BYTES) -> None:
        self._slice_bytes = slice_bytes
        self.root = os.path.realpath(root)
        self._staging = layout.state_path(self.root, layout.STAGING_DIR)
        self._numbers = itertools.count()
        self._unsynced: set[str] = set()  # folders with names that a power cut might take back

    def clean_staging(self) -> None:
        """Remove what an earlier process left unfinished."""
        files.remove_all(self._staging)

    def inspect(self, path: str) -> FileState | None:
        """What a log file holds; None if there is none.

        Raises:
            LogDamaged: it is no log, or one that cannot be read.
        """
        try:
            image, found = _read(path)
        except FileNotFoundError:
            return None
        with h5file.opened(path, image) as file:
            return h5file.describe(file, path, found.st_size)

    # --- a run begins -----------------------------------------------------------------------------
    def open_run(self, run: Run, seed_id: str, path: str) -> tuple[FileState | None, str]:
        """Make a run's folders and copy its configuration; put a log aside that has its name.

        Args:
            seed_id: of its group; may differ from the run's own.
            path: of its log file.

        Returns:
            What is published of the run already, None where its log is yet to begin; and what the
            user should know, "" where there is nothing.

        Raises:
            RunRefused: it may not be written there, now or ever.
            OSError: it cannot be now.
        """
        self._confine(run, seed_id, path)
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        if folder in self._unsynced:  # else what is there would count as being on disk
            files.sync_folder(folder)
            self._unsynced.discard(folder)
        if run.config_name:
            self._copy_config(run)
        note, state = "", None
        try:
            state = self.inspect(path)
            if state is None and not os.path.lexists(path):
                state = self._take_out(run, seed_id, path)
        except LogDamaged as error:
            note = f"{error}; this run begins anew"
        if state is not None and state.run == run.run_id.hex():
            return state, ""
        if run.reload and state is not None and self._has_seed(path, seed_id):
            return replace(state, applied={}, tboard=0), ""
        if run.overwrite:
            files.remove(path)
            return None, ""
        kept = self._put_aside(path)
        return None, f"there was another log at {path}: it was moved to {kept}" if kept else note

    def _take_out(self, run: Run, seed_id: str, path: str) -> FileState | None:
        """Give a seed that goes on a log of its own again, after it was merged.

        It stays in the merged file, too, until the next merge.

        Returns:
            What the log holds; None where no merged file has what goes on.
        """
        # A forked child may go on when its parent's run is over and merged under whatever name.
        merged = merged_log_of(path, seed_id, anywhere=run.reload or run.forked)
        if merged is None or not (run.reload or merged.run == run.run_id.hex()):
            return None
        unreadable: dict[str, LeftOut] = {}
        copy = Copy(merged.path, merged.group, seed_id)
        os.makedirs(self._staging, exist_ok=True)
        staged = write_file(self._staging, [copy], unreadable)
        if staged is None:
            raise LogDamaged(merged.path, unreadable[merged.path].why)
        self._land(staged, path)
        return self.inspect(path)

    def _has_seed(self, path: str, seed_id: str) -> bool:
        image, _ = _read(path)
        with h5file.opened(path, image) as file:
            return seed_id in file

    def _confine(self, run: Run, seed_id: str, path: str) -> None:
        """Raise unless all that a run makes stays under the root, outside of our own folder."""
        if not layout.is_seed_id(seed_id):
            raise RunRefused(f"{seed_id!r} cannot be a seed_id: it is part of a file name")
        if run.config_name and not layout.is_config_name(run.config_name):
            raise RunRefused(f"{run.config_name!r} cannot be the name of a configuration file")
        for place in (run.directory, os.path.dirname(path), path):
            if "\0" in place or not files.is_inside(place, self.root):
                raise RunRefused(
                    f"{place} lies outside of {self.root}, the folder that this daemon serves: "
                    "log to a folder inside, or start a daemon for another one"
                )
            if files.is_inside(place, os.path.realpath(layout.state_path(self.root))):
                raise RunRefused(f"{place} is the daemon's own; log to another folder")

    def _copy_config(self, run: Run) -> None:
        """Copy a configuration beside the logs, unless it lies there already."""
        path = os.path.join(run.directory, run.config_name)
        if os.path.isdir(path):
            raise RunRefused(f"{path} is a folder: rename the configuration file")
        if os.path.exists(path) and files.has_content(path, run.config_file):
            return
        staged = self._new_name(run.run_id.hex())
        with files.needing(len(run.config_file), self._staging), files.new_file(staged) as fd:
            files.write_all(fd, run.config_file)
        self._land(staged, path)

    def _put_aside(self, path: str) -> str:
        """Move a log to where nothing is lost; "" if there is none."""
        if not os.path.lexists(path):
            return ""
        folder = layout.state_path(self.root, layout.REPLACED_DIR)
        return files.put_aside(path, folder, datetime.now(UTC).strftime(_STAMP))

    def check_place(self, path: str) -> None:
        """Raise unless a log's folder still is under the root.

        Somebody may have put a link in its place since the run was opened.

        Raises:
            PermissionError: it is not; nothing was written there.
        """
        folder = os.path.realpath(os.path.dirname(path))
        own = os.path.realpath(layout.state_path(self.root))
        if not files.is_inside(folder, self.root) or files.is_inside(folder, own):
            raise files.left(path, folder, self.root)

    # --- publishing -------------------------------------------------------------------------------
    def publish(self, job: PublishRun, tboard: int = 0) -> tuple[FileState, tuple[str, ...]]:
        """Publish a run's new ticks.

        Args:
            tboard: bytes of the run's event file that count from then on.

        Returns:
            What the file holds now, and what could not be stored.

        Raises:
            LogNotFound: the published file is gone.
            LogDamaged: it is no longer what was published, or was replaced meanwhile.
            NotSynced: the file is published, but may be what it was after a power cut; open the
                run again.
            OSError: there is no room, or the disk fails.  The published file is what it was.
        """
        path, before = job.path, job.file
        read, started = self._reader(job), job.run.start_time
        plan = plan_append(before, job.blocks, started, read, self._slice_bytes)
        after = replace(_state_after(job, plan), tboard=tboard)

        def edit(file: h5datasets.Id) -> None:
            if before is None:
                h5edit.begin(file, job.run, job.seed_id)
            elif not h5file.is_still(file, job.seed_id, before):
                raise LogDamaged(path, _CHANGED)
            elif not before.run:
                h5edit.adopt(file, job.seed_id)
            h5edit.append(file, job.seed_id, plan)
            h5edit.write_kept(file, job.seed_id, job)
            h5edit.mark(file, job.seed_id, after)

        room = h5edit.growth(job, plan)
        staged, found = self._stage(after.run, path if before else None, room, edit)
        if before is None:
            self._put_aside(path)
            files.make_folders(os.path.dirname(path))
            files.sync_way(os.path.dirname(path), self.root)  # which others may have made
        size = self._land(staged, path, found)
        return replace(after, size=size), tuple(map(str, plan.problems))

    def seal(self, path: str, state: FileState) -> FileState:
        """Give a finished log its final form: nothing unused in it, long columns compressed.

        Raises:
            LogNotFound, OSError: as of `publish`.
            LogDamaged: the file is no longer what was published, or was replaced meanwhile, or the
                new one does not read back as the old one; nothing was changed.
        """
        image, found = _read(path)
        with h5file.opened(path, image) as source:
            held = h5file.describe(source, path, found.st_size)
            if (held.run, held.rows) != (state.run, state.rows):
                raise LogDamaged(path, _CHANGED)
            room = h5seal.compact_room(state, found.st_size)
            datasets = h5seal.stored_in(source.id)
            staged, _ = self._stage(
                state.run, None, room, lambda file: h5seal.copy_compact(source.id, datasets, file)
            )
            try:
                _compare(datasets, staged, path)
            except BaseException:
                files.remove(staged)
                raise
        columns = {key: replace(column, sealed=True) for key, column in state.columns.items()}
        return replace(state, columns=columns, size=self._land(staged, path, found))

    def _reader(self, job: PublishRun) -> ReadColumn:
        def read(column: Column) -> Iterator[Array]:
            image, _ = _read(job.path)
            with h5file.opened(job.path, image) as file:
                yield from h5file.column_blocks(file, job.seed_id, column)

        return read

    # --- staging ----------------------------------------------------------------------------------
    def _stage(
        self, run: str, source: str | None, growth: int, edit: h5file.Edit
    ) -> tuple[str, os.stat_result | None]:
        """Write a changed copy of a log, or a new one, under a name of our own.

        Args:
            source: the log to copy, None to begin with nothing.
            growth: bytes that the changes may add.

        Returns:
            The path of the new file, synced, and what the source was then.
        """
        image, found = _read(source) if source else (empty_image(), None)
        size = found.st_size if found else 0
        with files.needing(size + growth, self._staging):
            staged = self._new_name(run)
            self._fill(staged, source, image, size + growth, edit)
        return staged, found

    def _fill(
        self, staged: str, source: str | None, image: bytes | None, size: int, edit: h5file.Edit
    ) -> None:
        """Write a changed copy.  Args: image: of the source, or of a new file; size: at most."""
        if image is not None and size <= IMAGE_BYTES:
            changed = h5file.edit_image(image, edit, source or staged)
            with files.new_file(staged) as fd:
                files.write_all(fd, changed)
            return
        with files.new_file(staged) as fd:
            if source:
                with open(source, "rb") as file:
                    files.copy_all(file.fileno(), fd)
            else:
                files.write_all(fd, empty_image())
            files.reserve(fd, size)
            h5file.edit_file(staged, edit)

    def _new_name(self, run: str) -> str:
        os.makedirs(self._staging, exist_ok=True)
        return os.path.join(self._staging, f"{run}-{next(self._numbers)}.tmp")

    def _land(self, staged: str, path: str, found: os.stat_result | None = None) -> int:
        """Give a staged file its name.

        Args:
            found: the file that it replaces, as it was when read; None where that does not matter.

        Returns:
            Its size in bytes.
        """
        folder, name = os.path.split(os.path.normpath(path))
        is_log = os.path.basename(folder) == "logs"
        # Merging takes every file there for a log, and must not take what comes now for what it has
        # merged.  Elsewhere nothing is to be waited for: a merge locks the folder of the experiment
        # as long as it takes.
        lock = files.locked(folder, timeout=_LOCK_TIMEOUT_S) if is_log else nullcontext()
        try:
            size = os.stat(staged).st_size
            with lock:
                if found is not None:
                    _check_still(path, found)
                aside = os.path.dirname(folder) if is_log else folder
                files.land(staged, path, os.path.join(aside, f".{name}.tmp"), within=self.root)
        except BaseException as error:
            if isinstance(error, files.NotSynced):
                self._unsynced.add(folder)
            files.remove(staged)
            raise
        return size


def _read(path: str) -> tuple[bytes | None, os.stat_result]:
    """A log file's bytes, None where they are too many to hold, and which file that is.

    Raises:
        LogNotFound: it is not there.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            return (file.read() if found.st_size <= IMAGE_BYTES else None), found
    except FileNotFoundError as error:
        raise LogNotFound(path, _GONE) from error


def _check_still(path: str, found: os.stat_result) -> None:
    """Raise unless a path leads to the file that was read there.

    The daemon of a folder above or below may have given the name to a log of its own while ours was
    being made.  One that does so between this look and the renaming is still overwritten: no
    system call does both.  That takes two daemons that serve one log, within microseconds.
    """
    try:
        now = os.stat(path)
    except FileNotFoundError as error:
        raise LogNotFound(path, _GONE) from error
    if files.Stamp.of(now) != files.Stamp.of(found):
        raise LogDamaged(path, _CHANGED)


def _compare(datasets: Mapping[str, h5datasets.Stored], staged: str, path: str) -> None:
    """Raise unless a staged copy of a log reads back as the log.  Args: datasets: of the log."""
    image, _ = _read(staged)
    with h5file.opened(staged, image) as copy:
        if different := h5seal.differences(datasets, copy.id):
            raise LogDamaged(path, f"its sealed copy differs in {', '.join(different[:5])}")


def _state_after(job: PublishRun, plan: Plan) -> FileState:
    """What a file holds when a plan was carried out; its size is yet to be seen."""
    before = job.file
    columns = dict(before.columns) if before else {}
    columns.update({(c.after.group, c.after.name): c.after for c in plan.appends})
    return FileState(
        run=job.run.run_id.hex(),
        rows=plan.rows,
        applied=dict(job.applied),
        columns=columns,
        status=job.status,
        start_time=job.run.start_time,
        size=0,
        lost=job.lost,
        refused=(before.refused if before else 0) + sum(p.values for p in plan.problems),
        kept=job.kept,
    )
