"""A run's ticks as TensorBoard's events, and the file that they are appended to.

    <experiment>/tboards/tboard_<seed>/events.out.tfevents.<start time>.<host>.<run>.mle

`events_of` is pure: a tick becomes one event that holds each of its numbers as
"performance/<statistic>", an array as its mean; text is left out, NaN is not.  It stands at the
user's first clock that is a number, its fraction cut off, for steps are integers; where there is
none, at the number of the update.

An event file is the one file that is appended to in place.  Its readers follow it while it grows,
take an unfinished record for the end, and read nothing a second time.  That each event is in it
once is decided by the log file: a publication first appends events here, syncs them, and then says
in the log how long this file is.  What lies behind that length was written by a daemon that was
killed before it published, and is cut off by the next one.

It does not decide what is mirrored or when, and never reads an event back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mle_client import files, layout, wire
from mle_client import messages as m
from mle_client.errors import RunRefused
from mle_client.histograms import Histogram, from_plain
from mle_daemon import tboard_format as fmt

_FOLDER: Final = "tboards"
_MARK: Final = "tfevents"  # in the name of every file that TensorBoard takes for an event file
_STAMP: Final = "%Y%m%dT%H%M%SZ"
_PIECE_BYTES: Final = 4 * 2**20  # of events in memory at once, about; a tick's events are not split
_INT64_END: Final = 2.0**63

HistogramAt: TypeAlias = tuple[float, int, str, Histogram]  # seconds, step, tag
ImageAt: TypeAlias = tuple[float, int, str, bytes]  # seconds, step, tag, the file


# --- events ---------------------------------------------------------------------------------------
def events_of(
    blocks: Sequence[wire.Block],
    first_row: int,
    histograms: Iterable[HistogramAt] = (),
    images: Iterable[ImageAt] = (),
) -> Iterator[bytes]:
    """Turn what a publication adds to a run into records of an event file.

    Args:
        blocks: ticks in arrival order.
        first_row: number of rows that the run has before them.
        histograms, images: each with its seconds since the epoch, step and tag; of the images,
            only PNG files are taken, which every TensorBoard can show.

    Yields:
        Whole records, some `_PIECE_BYTES` of them together.
    """
    groups = [group for group in _groups(blocks, first_row) if group.tags]
    window = max(1, _PIECE_BYTES // max((group.event_bytes for group in groups), default=1))
    end = first_row + sum(map(len, blocks))
    for start in range(first_row, end, window):
        yield _scalars(groups, start, min(window, end - start))
    for seconds, step, tag, histogram in histograms:
        yield fmt.histogram_event(seconds, step, tag, histogram)
    for seconds, step, tag, image in images:
        if fmt.png_size(image) != (0, 0):
            yield fmt.image_event(seconds, step, tag, image)


def histograms_at(record: m.Histograms) -> list[HistogramAt]:
    """The histograms of a record.

    Raises:
        ValueError: one of them is none.
    """
    tags = record.tags.items()
    return [(record.seconds, record.step, tag, from_plain(plain)) for tag, plain in tags]


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """The ticks of one schema.

    Args:
        rows: of the run, ascending; shape (n,) as `times` and `steps`.
        tags: k of them.
        values: shape (n, k).
    """

    rows: npt.NDArray[np.int64]
    times: npt.NDArray[np.float64]
    steps: npt.NDArray[np.int64]
    tags: tuple[str, ...]
    values: npt.NDArray[np.float32]

    @property
    def event_bytes(self) -> int:
        """Bytes of one tick's event, about."""
        return 48 + sum(len(tag) + 16 for tag in self.tags)


def _groups(blocks: Sequence[wire.Block], first_row: int) -> Iterator[_Group]:
    """The ticks of each schema together, so that blocks of one tick each are not dear."""
    same: dict[int, list[tuple[int, wire.Block]]] = {}  # a stream's schemas are single objects
    for block in blocks:
        same.setdefault(id(block.schema), []).append((first_row, block))
        first_row += len(block)
    for parts in same.values():
        rows = np.concatenate([np.arange(at, at + len(part)) for at, part in parts])
        yield _group([part for _, part in parts], rows)


def _group(blocks: Sequence[wire.Block], rows: npt.NDArray[np.int64]) -> _Group:
    schema = blocks[0].schema
    fields = enumerate(schema.stats, len(schema.clock))
    shown = [(i, field.name) for i, field in fields if field.kind.code != "str"]
    values = np.empty((len(rows), len(shown)), np.float32)
    with np.errstate(over="ignore"):  # what exceeds a float32 is shown as infinite
        for k, (i, _) in enumerate(shown):
            values[:, k] = np.concatenate([_means(block, i) for block in blocks])
    times = np.concatenate([block.times for block in blocks])
    tags = tuple(f"performance/{name}" for _, name in shown)
    return _Group(rows, times, _steps(blocks, rows), tags, values)


def _means(block: wire.Block, index: int) -> npt.NDArray[np.float64]:
    """One number for each tick: shape (n,)."""
    values = np.asarray(block.column(index))
    if values.ndim == 1:
        return values.astype(np.float64)
    rows = values.reshape(len(values), int(np.prod(values.shape[1:]))).astype(np.float64)
    with np.errstate(all="ignore"):  # an array may hold anything
        means: npt.NDArray[np.float64] = rows.sum(axis=1) / np.float64(rows.shape[1])
    return means


def _steps(blocks: Sequence[wire.Block], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each tick stands on the x-axis; `weights.step_of` says the same of a single tick."""
    updates = rows + 1
    for index, field in enumerate(blocks[0].schema.clock):
        if field.name in layout.OWN_CLOCKS or field.kind not in (m.INT, m.FLOAT):
            continue
        clock: npt.NDArray[Any] = np.concatenate([np.asarray(b.column(index)) for b in blocks])
        if field.kind == m.INT:
            return clock.astype(np.int64)
        fits = (clock >= -_INT64_END) & (clock < _INT64_END)
        return np.where(fits, np.where(fits, clock, 0).astype(np.int64), updates)
    return updates


def _scalars(groups: Sequence[_Group], start: int, count: int) -> bytes:
    """The events of the ticks of `count` rows, in their order."""
    events = [b""] * count
    for group in groups:
        a, b = np.searchsorted(group.rows, (start, start + count)).tolist()
        found = fmt.scalar_events(group.times[a:b], group.steps[a:b], group.tags, group.values[a:b])
        for row, event in zip((group.rows[a:b] - start).tolist(), found, strict=True):
            events[row] = event
    return b"".join(events)


# --- the file -------------------------------------------------------------------------------------
class EventFiles:
    """The event files under one root.  No file stays open between calls.

    Methods may be called by several threads, though for one run by one at a time.

    Args:
        root: the folder that the daemon serves.
    """

    def __init__(self, root: str) -> None:
        self._staging = layout.state_path(root, layout.STAGING_DIR)
        self._replaced = layout.state_path(root, layout.REPLACED_DIR)

    def begin(self, run: m.Run, seed_id: str) -> None:
        """Make room for a run whose log begins anew: TensorBoard joins all events of a folder.

        The events of an earlier run of that seed are deleted where the run overwrites it, left
        there where it continues it, and put aside otherwise.

        Raises:
            RunRefused: as of `write`.
            OSError: the folder cannot be changed.
        """
        path = _event_path(run, seed_id)
        if run.reload:
            return
        folder, stamp = os.path.dirname(path), datetime.now(UTC).strftime(_STAMP)
        for other in _event_files(folder):
            if other == path:
                continue  # our own; the log says how much of it counts
            if run.overwrite:
                files.remove(other)
            else:
                kept_in = os.path.join(self._replaced, os.path.basename(folder))
                files.put_aside(other, kept_in, stamp)

    def write(self, run: m.Run, seed_id: str, offset: int, events: Iterable[bytes]) -> int:
        """Append events behind what the log says is there.

        Where somebody has removed the file or cut it short, it goes on behind what is left.

        Args:
            seed_id: under which the run is stored.
            offset: bytes of the file when its log was published last; 0 before that.
            events: whole records.

        Returns:
            Bytes of the file, all of them synced.

        Raises:
            RunRefused: the file would lie outside of the run's folder.
            OSError: there is no room, or the disk fails; call it again with the same `offset`.
        """
        path = _event_path(run, seed_id)
        with suppress(FileNotFoundError):
            if offset:
                return _append(path, offset, events)
        return self._create(path, run, events)

    def _create(self, path: str, run: m.Run, events: Iterable[bytes]) -> int:
        """Begin a file, under a name of our own until it is whole."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.makedirs(self._staging, exist_ok=True)
        staged = os.path.join(self._staging, f"{run.run_id.hex()}-events.tmp")
        with files.new_file(staged) as fd:
            files.write_all(fd, fmt.file_version_event(run.start_time))
            length = _write(fd, events)
        try:
            # The aside name is one that TensorBoard passes over.
            files.land(staged, path, os.path.join(os.path.dirname(path), ".mle.tmp"))
        except BaseException:
            files.remove(staged)
            raise
        return length


def _event_path(run: m.Run, seed_id: str) -> str:
    """The path of a run's event file.

    Raises:
        RunRefused: it would lie outside of the run's folder.
    """
    # Names in the order of time; the run's id keeps apart what began in the same second.
    when, host, run_id = f"{run.start_time:010.0f}", run.process.host, run.run_id.hex()[:8]
    name = f"events.out.{_MARK}.{when}.{host}.{run_id}.mle"
    folder = f"tboard_{seed_id}"
    path = os.path.join(run.directory, _FOLDER, folder, name)
    if not layout.is_file_name(name) or not layout.is_file_name(folder):
        raise RunRefused(f"{folder}/{name} cannot be the name of an event file")
    if not files.is_inside(path, os.path.realpath(run.directory)):
        raise RunRefused(
            f"{path} leads out of {run.directory}: replace the link by a folder, or leave out "
            "use_tboard"
        )
    return path


def _event_files(folder: str) -> list[str]:
    try:
        found = [e for e in os.scandir(folder) if _MARK in e.name]
    except FileNotFoundError:
        return []
    return [entry.path for entry in found if entry.is_file(follow_symlinks=False)]


def _append(path: str, offset: int, events: Iterable[bytes]) -> int:
    """Cut a file to a length and write on from there.

    Raises:
        FileNotFoundError: it is gone, or nothing of it is left.
    """
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size < offset:
            offset = _whole_records_end(fd, size)
            if offset == 0:
                raise FileNotFoundError(path)
        os.ftruncate(fd, offset)
        os.lseek(fd, offset, os.SEEK_SET)
        length = _write(fd, events)
        os.fsync(fd)
        return length
    finally:
        os.close(fd)


def _write(fd: int, events: Iterable[bytes]) -> int:
    """Write events where a file stands.  Returns: where it stands then."""
    for piece in events:
        files.write_all(fd, piece)
    return os.lseek(fd, 0, os.SEEK_CUR)


def _whole_records_end(fd: int, size: int) -> int:
    """Where the last whole record ends of a file that was cut short."""
    end = 0
    while (length := fmt.whole_record_bytes(os.pread(fd, fmt.HEAD_BYTES, end))) is not None:
        if end + length > size:
            break
        end += length
    return end
