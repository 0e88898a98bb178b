"""The journal on a real file system: appending, failing, syncing, rotating, dropping."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mle_daemon.journal import Journal, JournalPosition, JournalWriteError, read_segments
from mle_daemon.journal_format import FRAME_BYTES, HEADER_BYTES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    journal = Journal(str(folder))
    yield journal
    with contextlib.suppress(JournalWriteError):
        journal.close()


def records(folder: Path) -> list[bytes]:
    """All that a replay would see."""
    return [bytes(p) for segment in read_segments(str(folder)) for p in segment.payloads()]


def verdicts(folder: Path) -> dict[int, str]:
    return {segment.number: segment.scan.verdict for segment in read_segments(str(folder))}


@contextlib.contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """Let no file grow beyond a size; what fits is written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def open_segments() -> list[str]:
    """Names of the segments for which this process has a descriptor."""
    names = []
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            names.append(Path(os.readlink(entry.path)).name)
    return sorted(name for name in names if name.endswith(".mlej"))


def fail(error: int) -> Callable[..., Any]:
    def failing(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    return failing


class Syncs:
    """Notes which files are synced, and lets some fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.failing = ""
        self._fdatasync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, fd: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        if self.failing and name.startswith(self.failing):
            raise OSError(errno.EIO, "the disk is broken")
        self._fdatasync(fd)
        self.done.append(name)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


# --- appending ------------------------------------------------------------------------------------
def test_records_come_back_as_their_pieces_joined(journal: Journal, folder: Path) -> None:
    journal.append([(b"header", b"payload"), [bytearray(b"state")]])
    journal.append([(memoryview(b"a view"), b"", b"x")])

    assert records(folder) == [b"headerpayload", b"state", b"a viewx"]
    assert verdicts(folder) == {1: "clean"}


def test_the_position_returned_is_the_size_of_the_file(journal: Journal, folder: Path) -> None:
    for size in (1, 200, 70_000):
        position = journal.append([(b"x" * size,)])

        assert position == journal.end
        assert position == JournalPosition(1, (folder / "00000001.mlej").stat().st_size)


def test_appending_nothing_writes_nothing(journal: Journal) -> None:
    before = journal.end

    assert journal.append([]) == before


def test_one_append_is_one_write(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    pwritev = os.pwritev

    def counting(fd: int, buffers: Sequence[bytes], offset: int) -> int:
        calls.append(len(buffers))
        return pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", counting)
    journal.append([(b"header", b"payload")] * 300)

    assert calls == [900]


def test_more_buffers_than_the_kernel_takes_at_once(journal: Journal, folder: Path) -> None:
    many = [(b"%d" % i, b"", b"!") for i in range(5000)]

    journal.append(many)

    assert records(folder) == [b"%d!" % i for i in range(5000)]


@pytest.mark.parametrize("most", [1, 7, 8, 100])
def test_writes_that_are_cut_short_are_finished(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    def short(fd: int, buffers: Sequence[bytes], offset: int) -> int:
        return os.pwrite(fd, b"".join(buffers)[:most], offset)

    monkeypatch.setattr(os, "pwritev", short)
    journal.append([(b"one", b"", b"two"), (b"three" * 20,)])

    assert records(folder) == [b"onetwo", b"three" * 20]


@pytest.mark.parametrize("bad", [(), (b"",)])
def test_an_empty_record_is_refused_with_all_that_came_with_it(
    journal: Journal, folder: Path, bad: tuple[bytes, ...]
) -> None:
    with pytest.raises(ValueError, match="a record has 1 to"):
        journal.append([(b"good",), bad])

    journal.append([(b"next",)])
    assert records(folder) == [b"next"]


# --- failing --------------------------------------------------------------------------------------
def test_an_append_that_does_not_fit_leaves_no_trace(journal: Journal, folder: Path) -> None:
    good = journal.append([(b"before",)])
    with disk_full_at(good.offset + 1000), pytest.raises(JournalWriteError) as caught:
        journal.append([(b"fits",), (b"x" * 2000,)])

    assert caught.value.path == str(folder / "00000001.mlej")
    assert caught.value.errno == errno.EFBIG
    assert caught.value.needed == 2 * FRAME_BYTES + 4 + 2000
    assert (folder / "00000001.mlej").stat().st_size == good.offset
    assert journal.end == good


def test_appends_go_on_where_one_failed(journal: Journal, folder: Path) -> None:
    journal.append([(b"before",)])
    with disk_full_at(100):
        for _ in range(3):
            with pytest.raises(JournalWriteError):
                journal.append([(b"x" * 2000,)])
    journal.append([(b"after",)])

    assert records(folder) == [b"before", b"after"]
    assert verdicts(folder) == {1: "clean"}


def test_the_error_says_what_to_do(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", fail(errno.ENOSPC))
    with pytest.raises(JournalWriteError) as caught:
        journal.append([(b"x" * 100,)])

    assert "No space left on device, 112 bytes are waiting; make room" in str(caught.value)


@pytest.mark.parametrize("goes_on", ["append", "rotate"])
def test_what_could_not_be_cut_back_is_cut_back_before_anything_else(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch, goes_on: str
) -> None:
    good = journal.append([(b"before",)])
    with monkeypatch.context() as patch, disk_full_at(good.offset + 1000):
        patch.setattr(os, "ftruncate", fail(errno.EIO))
        with pytest.raises(JournalWriteError):
            journal.append([(b"whole",), (b"x" * 2000,)])
    assert records(folder) == [b"before", b"whole"]

    if goes_on == "append":
        assert journal.append([(b"after",)]).segment == 1
    else:
        journal.rotate([(b"after",)])
    assert records(folder) == [b"before", b"after"]
    assert set(verdicts(folder).values()) == {"clean"}


def test_a_segment_that_cannot_be_cut_back_is_left(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = journal.append([(b"before",)])
    monkeypatch.setattr(os, "ftruncate", fail(errno.EIO))
    with disk_full_at(good.offset + 1000), pytest.raises(JournalWriteError):
        journal.append([(b"x" * 2000,)])
    assert (folder / "00000001.mlej").stat().st_size == good.offset + 1000

    assert journal.append([(b"after",)]).segment == 2
    assert journal.append([(b"and on",)]).segment == 2
    assert records(folder) == [b"before", b"after", b"and on"]
    assert verdicts(folder) == {1: "torn", 2: "clean"}


def test_appending_nothing_after_that_begins_no_segment(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "ftruncate", fail(errno.EIO))
    with disk_full_at(100), pytest.raises(JournalWriteError):
        journal.append([(b"x" * 2000,)])

    assert journal.append([]).segment == 1


def test_an_exception_out_of_a_signal_handler_leaves_no_trace(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwritev = os.pwritev

    def interrupted(fd: int, buffers: Sequence[bytes], offset: int) -> int:
        pwritev(fd, buffers, offset)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append([(b"a long record that was written whole",)])
    journal.append([(b"short",)])

    assert records(folder) == [b"short"]
    assert verdicts(folder) == {1: "clean"}


def test_a_write_that_gets_nowhere_is_an_error(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)

    with pytest.raises(JournalWriteError, match="Input/output error"):
        journal.append([(b"x",)])


# --- starting and rotating ------------------------------------------------------------------------
def test_each_start_begins_a_new_segment_and_keeps_the_old(folder: Path) -> None:
    for i in range(3):
        journal = Journal(str(folder))
        assert journal.append([(b"%d" % i,)]).segment == i + 1
        journal.close()

    assert records(folder) == [b"0", b"1", b"2"]


def test_a_start_syncs_what_an_earlier_process_may_have_left_unsynced(
    folder: Path, syncs: Syncs
) -> None:
    Journal(str(folder)).close()
    syncs.done.clear()

    journal = Journal(str(folder))

    assert syncs.done == ["00000001.mlej"]
    journal.close()


def test_a_start_on_a_full_disk_says_so_and_leaves_nothing(folder: Path) -> None:
    with disk_full_at(10), pytest.raises(JournalWriteError, match="File too large"):
        Journal(str(folder))

    assert list(folder.iterdir()) == []


def test_rotation_begins_with_the_records_given(journal: Journal, folder: Path) -> None:
    journal.append([(b"old",)])

    assert journal.rotate([(b"sta", b"te"), (b"more",)]) == 2
    journal.append([(b"new",)])

    contents = [(s.number, [bytes(p) for p in s.payloads()]) for s in read_segments(str(folder))]
    assert contents == [(1, [b"old"]), (2, [b"state", b"more", b"new"])]
    assert [file.number for file in journal.segments()] == [1, 2]
    assert journal.segments()[1].size == journal.end.offset


def test_a_rotation_that_fails_changes_nothing(journal: Journal, folder: Path) -> None:
    journal.append([(b"before",)])
    with disk_full_at(200), pytest.raises(JournalWriteError) as caught:
        journal.rotate([(b"x" * 500,)])
    journal.append([(b"after",)])

    assert caught.value.needed == HEADER_BYTES + FRAME_BYTES + 500
    assert [path.name for path in folder.iterdir()] == ["00000001.mlej"]
    assert records(folder) == [b"before", b"after"]


def test_a_file_that_has_the_next_name_is_not_touched(journal: Journal, folder: Path) -> None:
    (folder / "00000002.mlej").write_bytes(b"somebody else's")

    with pytest.raises(JournalWriteError, match="File exists"):
        journal.rotate([])
    assert (folder / "00000002.mlej").read_bytes() == b"somebody else's"
    assert journal.rotate([]) == 3


def test_the_name_of_a_new_segment_is_synced(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))

    journal.rotate([])

    assert synced == [str(folder)]


def test_a_rotation_whose_name_cannot_be_synced_changes_nothing(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail(errno.EIO))
        with pytest.raises(JournalWriteError):
            journal.rotate([])

    assert [path.name for path in folder.iterdir()] == ["00000001.mlej"]
    assert journal.end.segment == 1


def test_a_file_system_that_syncs_no_folders_will_do(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))

    assert journal.rotate([]) == 2


# --- syncing --------------------------------------------------------------------------------------
def test_a_sync_covers_what_was_appended_before_it(journal: Journal, syncs: Syncs) -> None:
    position = journal.append([(b"x",)])
    assert journal.synced < position
    assert journal.dirty

    assert journal.sync() == position == journal.synced
    assert syncs.done == ["00000001.mlej"]
    assert not journal.dirty


def test_a_sync_with_nothing_to_do_asks_nothing_of_the_disk(journal: Journal, syncs: Syncs) -> None:
    journal.append([(b"x",)])
    journal.sync()
    journal.sync()

    assert syncs.done == ["00000001.mlej"]


def test_a_segment_that_was_rotated_away_is_synced_too(journal: Journal, syncs: Syncs) -> None:
    old = journal.append([(b"x",)])
    journal.rotate([])
    assert journal.synced < old

    assert journal.sync() == journal.end
    assert syncs.done == ["00000001.mlej", "00000002.mlej"]


def test_records_appended_during_a_sync_are_not_taken_for_synced(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    fdatasync = os.fdatasync

    def slow(fd: int) -> None:
        fdatasync(fd)
        journal.append([(b"meanwhile",)])

    before = journal.append([(b"x",)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", slow)
        assert journal.sync() == before
    assert journal.dirty
    assert journal.sync() == journal.end


def test_a_failed_sync_is_never_forgotten(journal: Journal, syncs: Syncs) -> None:
    good = journal.append([(b"a",)])
    journal.sync()
    journal.append([(b"b",)])
    syncs.failing = "00000001"
    with pytest.raises(JournalWriteError) as caught:
        journal.sync()
    syncs.failing = ""

    assert (caught.value.errno, caught.value.needed) == (errno.EIO, FRAME_BYTES + 1)
    assert not journal.dirty  # trying again would only seem to help
    with pytest.raises(JournalWriteError):
        journal.sync()
    assert journal.synced == good


def test_appends_after_a_failed_sync_go_elsewhere_and_are_synced(
    journal: Journal, folder: Path, syncs: Syncs
) -> None:
    journal.append([(b"a",)])
    syncs.failing = "00000001"
    with pytest.raises(JournalWriteError):
        journal.sync()

    assert journal.append([(b"b",)]).segment == 2
    with pytest.raises(JournalWriteError):
        journal.sync()
    assert syncs.done == ["00000002.mlej"]
    journal.drop(1)
    assert journal.sync() == journal.end == journal.synced


def test_sync_beside_append_rotate_and_drop(journal: Journal, folder: Path) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []
    seen: list[JournalPosition] = []

    def keep_syncing() -> None:
        try:
            while not stop.is_set():
                seen.append(journal.sync())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=keep_syncing)
    thread.start()
    for i in range(1500):
        journal.append([(b"%06d" % i, b"x" * 50)])
        if i % 100 == 99:
            journal.rotate([(b"state %d" % i,)])
        if i % 300 == 299:
            for file in journal.segments()[:-1]:
                journal.drop(file.number)
    journal.append([(b"last",)])
    stop.set()
    thread.join()

    assert errors == []
    assert seen == sorted(seen)
    assert journal.sync() == journal.end
    assert records(folder) == [b"state 1499", b"last"]


# --- dropping and closing -------------------------------------------------------------------------
def test_dropping_deletes_the_file_once(journal: Journal, folder: Path) -> None:
    journal.append([(b"old",)])
    journal.rotate([(b"new",)])

    journal.drop(1)
    journal.drop(1)

    assert records(folder) == [b"new"]


def test_a_sync_closes_all_segments_but_the_last(journal: Journal, folder: Path) -> None:
    for i in range(3):
        journal.append([(b"%d" % i,)])
        journal.rotate([])
    assert open_segments() == [f"0000000{i}.mlej" for i in (1, 2, 3, 4)]

    journal.sync()

    assert open_segments() == ["00000004.mlej"]


def test_what_replaces_a_segment_is_synced_before_it_goes(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch, syncs: Syncs
) -> None:
    monkeypatch.setattr(
        os, "unlink", lambda path: syncs.done.append(f"unlink {os.path.basename(path)}")
    )
    journal.append([(b"old",)])
    journal.rotate([(b"state",)])

    journal.drop(1)

    assert syncs.done == ["00000001.mlej", "00000002.mlej", "unlink 00000001.mlej"]


def test_a_segment_stays_while_its_replacement_cannot_be_synced(
    journal: Journal, folder: Path, syncs: Syncs
) -> None:
    journal.append([(b"old",)])
    journal.rotate([(b"state",)])
    syncs.failing = "00000002"
    with pytest.raises(JournalWriteError):
        journal.drop(1)
    assert records(folder) == [b"old", b"state"]

    journal.append([(b"elsewhere",)])  # in a third segment, but the state is in the bad one
    with pytest.raises(JournalWriteError):
        journal.drop(1)
    journal.rotate([(b"state again",)])
    journal.drop(2)
    journal.drop(1)
    assert records(folder) == [b"elsewhere", b"state again"]


def test_a_segment_that_could_not_be_synced_can_be_dropped(
    journal: Journal, folder: Path, syncs: Syncs
) -> None:
    journal.append([(b"old",)])
    journal.rotate([(b"state",)])
    syncs.failing = "00000001"

    journal.drop(1)

    assert records(folder) == [b"state"]
    assert journal.sync() == journal.end


def test_the_segment_in_use_cannot_be_dropped(journal: Journal) -> None:
    with pytest.raises(ValueError, match="rotate first"):
        journal.drop(1)


def test_a_segment_that_cannot_be_deleted_is_an_error(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.rotate([])
    monkeypatch.setattr(os, "unlink", fail(errno.EROFS))

    with pytest.raises(JournalWriteError, match="Read-only"):
        journal.drop(1)


def test_closing_syncs_and_ends_appending(folder: Path, syncs: Syncs) -> None:
    journal = Journal(str(folder))
    journal.append([(b"x",)])

    journal.close()
    journal.close()

    assert syncs.done == ["00000001.mlej"]
    assert journal.synced == journal.end
    for use in (lambda: journal.append([(b"y",)]), lambda: journal.rotate([])):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_closing_reports_what_could_not_be_synced_and_closes_all_the_same(
    folder: Path, syncs: Syncs
) -> None:
    journal = Journal(str(folder))
    journal.append([(b"x",)])
    syncs.failing = "00000001"

    with pytest.raises(JournalWriteError):
        journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.append([(b"y",)])


def test_a_journal_whose_folder_was_removed_says_so_and_makes_it_anew(
    journal: Journal, folder: Path
) -> None:
    journal.append([[b"gone"]])
    assert not journal.is_removed
    shutil.rmtree(folder)
    assert journal.is_removed
    journal.append([[b"gone, too"]])
    journal.rotate([[b"state"]])
    assert not journal.is_removed
    journal.append([[b"kept"]])
    assert records(folder) == [b"state", b"kept"]


def test_a_sync_that_is_under_way_is_shown(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: seen.append(journal.syncing))
    journal.append([[b"record"]])
    before = time.monotonic()
    journal.sync()
    ((since, path),) = seen
    assert since >= before
    assert path == str(folder / "00000001.mlej")
    assert journal.syncing[1] == ""
