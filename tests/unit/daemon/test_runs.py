"""One run: what its file lacks, who waits for it, how it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mle_client import messages as m
from mle_client import tick_writers, wire
from mle_client.kept import kept_from_plain, kept_to_json
from mle_client.retention import Portfolio, to_plain
from mle_daemon.columns import FileState
from mle_daemon.events import Image, PublishRun
from mle_daemon.ingest import RECORD_BYTES, Stream
from mle_daemon.runs import CRASHED, FINISHED, RETRY_AFTER_S, RUNNING, RunState, Waiter
from tests.daemon_rig import ANNA, BERT, STEP, Trainer, make_run


class Told:
    """A run with one producer, told of its stream piece by piece."""

    def __init__(self, opened: bool = True, file: FileState | None = None) -> None:
        self.trainer = Trainer()
        self.run = RunState(self.trainer.run, "seed_1", self.trainer.path)
        self.streams: dict[m.ProducerId, Stream] = {}
        if opened:
            self.run.opened_with(file, 0.0)

    def tell(self, trainer: Trainer | None = None, now: float = 0.0) -> None:
        """Tell what is new of a stream."""
        trainer = trainer or self.trainer
        stream = self.streams.setdefault(trainer.id, Stream(trainer.id))
        piece = stream.read(stream.position, trainer.stream[stream.position :])
        assert piece is not None
        stream.stage(piece)
        stream.commit(piece)
        self.run.join(trainer.id, ANNA, main=not trainer.run.forked)
        self.run.add(piece, now)

    def publish(self, now: float = 1.0) -> PublishRun:
        job = self.run.begin_publication()
        self.run.published(written(job), 0.5, now)
        return job


def written(job: PublishRun) -> FileState:
    rows = (job.file.rows if job.file else 0) + sum(map(len, job.blocks))
    return FileState(job.run.run_id.hex(), rows, job.applied, {}, job.status, 0.0, 10, job.lost)


def steps(job: PublishRun) -> list[int]:
    return [int(step) for block in job.blocks for step in np.asarray(block.column(0))]


def test_a_tail_is_published_in_order_of_arrival() -> None:
    told = Told()
    child = told.trainer.fork()
    told.trainer.log(1)
    told.tell()
    child.log(2)
    told.tell(child)
    told.trainer.log(3).lose(4)
    told.tell()
    job = told.run.begin_publication()
    assert steps(job) == [1, 2, 3]
    assert job.applied == {told.trainer.id.hex(): told.trainer.head, child.id.hex(): child.head}
    assert (job.lost, job.status, job.file) == (4, RUNNING, None)


def test_blocks_of_one_piece_keep_their_order() -> None:
    told = Told()
    other = replace(STEP, number=1)
    stream = b"".join(
        [wire.encode_record(told.trainer.run), wire.encode_record(STEP), wire.encode_record(other)]
        + [tick_writers.pack_fixed((STEP, other)[step % 2], 0.0, (step,)) for step in range(4)]
    )
    piece = Stream(told.trainer.id).read(0, stream)
    assert piece is not None
    told.run.join(told.trainer.id, ANNA)
    told.run.add(piece, 0.0)
    assert steps(told.run.begin_publication()) == [0, 1, 2, 3]


def test_what_comes_during_a_publication_waits_for_the_next() -> None:
    told = Told()
    told.trainer.log(1)
    told.tell()
    first = told.run.begin_publication()
    told.trainer.log(2)
    told.tell()
    assert told.run.publishing
    assert told.run.dirty
    told.run.published(written(first), 0.5, 1.0)
    assert steps(told.publish()) == [2]
    assert not told.run.dirty


def test_memory_is_counted_until_it_is_published() -> None:
    told = Told()
    told.trainer.log(1)
    told.tell()
    size = told.trainer.head
    held = size + 3 * RECORD_BYTES  # its run, its schema and the tick
    assert (told.run.tail_bytes, told.run.held_bytes) == (size, held)
    job = told.run.begin_publication()
    assert (told.run.tail_bytes, told.run.held_bytes) == (0, held)
    told.run.publication_failed("disk full", 10.0)
    assert (told.run.tail_bytes, told.run.held_bytes) == (size, held)
    job = told.run.begin_publication()
    told.run.published(written(job), 0.5, 1.0)
    assert told.run.held_bytes == 0


def test_a_failed_publication_goes_back_to_the_front() -> None:
    told = Told()
    told.trainer.log(1)
    told.tell()
    told.run.begin_publication()
    told.trainer.log(2)
    told.tell()
    told.run.publication_failed("disk full", 10.0)
    assert told.run.tail_bytes == told.trainer.head
    assert (told.run.error, told.run.due().retry_at) == ("disk full", 10.0 + RETRY_AFTER_S)
    assert told.run.due().wanted_now
    assert steps(told.publish()) == [1, 2]
    assert told.run.error == ""


def test_wishes_are_fulfilled_by_one_publication() -> None:
    told = Told()
    told.trainer.log(1)
    told.tell()
    told.run.wanted_now = told.run.save_wanted = True
    told.publish()
    due = told.run.due()
    assert (due.wanted_now, due.save_wanted) == (False, False)
    assert (due.published_at, due.publish_cost) == (1.0, 0.5)


def test_age_counts_from_the_oldest_tick_of_the_tail() -> None:
    told = Told()
    for now in (5.0, 6.0):
        told.trainer.log(int(now))
        told.tell(now=now)
    assert told.run.due().dirty_since == 5.0


# --- what a file holds already --------------------------------------------------------------------
def file_of(told: Told, position: int, rows: int, **changes: Any) -> FileState:
    file = FileState(
        told.trainer.run.run_id.hex(), rows, {told.trainer.id.hex(): position}, {}, RUNNING, 0.0, 9
    )
    return replace(file, **changes)


def test_what_the_file_has_leaves_the_tail_when_the_run_is_opened() -> None:
    told = Told(opened=False)
    for step in (1, 2, 3):
        told.trainer.log(step)
        told.tell()
    told.run.opened_with(file_of(told, told.trainer.tick_edges[1], 2), 0.0)
    assert told.run.tail_bytes == told.trainer.head - told.trainer.tick_edges[1]
    assert steps(told.run.begin_publication()) == [3]


@pytest.mark.parametrize("opened_first", [False, True])
def test_of_a_piece_that_the_file_has_in_part_the_rest_is_published(opened_first: bool) -> None:
    told = Told(opened=False)
    told.trainer.log(1, 2).lose(5).log(3).lose(6)
    file = file_of(told, told.trainer.tick_edges[1], 2, lost=4)
    if opened_first:
        told.run.opened_with(file, 0.0)
        told.tell()
    else:
        told.tell()
        told.run.opened_with(file, 0.0)
    job = told.run.begin_publication()
    assert (steps(job), job.lost) == ([3], 15)


def test_nothing_is_dirty_where_the_file_has_all() -> None:
    told = Told(opened=False)
    told.trainer.log(1)
    told.tell()
    told.run.opened_with(file_of(told, told.trainer.head, 1), 0.0)
    assert not told.run.dirty
    assert told.run.members[told.trainer.id].published == told.trainer.head


def test_a_file_with_another_state_is_to_be_brought_up_to_date() -> None:
    told = Told(opened=False)
    told.trainer.log(1)
    told.tell()
    told.run.opened_with(file_of(told, told.trainer.head, 1, status=CRASHED), 0.0)
    assert told.run.dirty
    assert told.run.begin_publication().status == RUNNING


def test_what_goes_into_no_file_counts_as_published() -> None:
    told = Told()
    told.tell()
    assert not told.run.dirty
    assert told.run.members[told.trainer.id].published == told.trainer.head


def test_a_stream_that_was_there_before_a_restart_and_has_no_ticks_is_published_too() -> None:
    told = Told(opened=False)
    child = told.trainer.fork()
    member = told.run.join(child.id, None)
    member.position = 100  # says the journal's state record
    told.run.opened_with(file_of(told, 50, 1), 0.0)
    assert member.published == 100


def test_a_publication_of_others_takes_nothing_back() -> None:
    told = Told()
    child = told.trainer.fork()
    told.trainer.log(1)
    told.tell()
    told.publish()
    told.tell(child)
    assert told.run.members[child.id].published == child.head
    told.trainer.log(2)
    told.tell()
    told.publish()
    assert told.run.members[child.id].published == child.head


# --- waiting --------------------------------------------------------------------------------------
def test_who_waits_is_served_once_and_when_all_positions_are_reached() -> None:
    told = Told()
    told.trainer.log(1)
    told.tell()
    first = told.trainer.head
    told.run.wait(Waiter(ANNA, 1), {told.trainer.id: first})
    told.run.wait(Waiter(BERT, 2), {told.trainer.id: first + 1})
    assert list(told.run.served()) == []
    assert told.run.due().wanted_now
    told.publish()
    assert list(told.run.served()) == [Waiter(ANNA, 1)]
    assert list(told.run.served()) == []
    told.trainer.log(2)
    told.tell()
    told.publish()
    assert list(told.run.served()) == [Waiter(BERT, 2)]


# --- how it ends ----------------------------------------------------------------------------------
def test_it_runs_until_every_producer_is_through() -> None:
    told = Told()
    child = told.trainer.fork()
    told.tell()
    told.tell(child)
    assert told.run.status == RUNNING
    told.trainer.end()
    told.tell()
    assert told.run.status == RUNNING
    child.end()
    told.tell(child)
    assert told.run.status == FINISHED


@pytest.mark.parametrize(("gone_is_main", "status"), [(True, CRASHED), (False, FINISHED)])
def test_only_the_loggers_own_process_makes_a_run_crash(gone_is_main: bool, status: str) -> None:
    told = Told()
    child = told.trainer.fork()
    gone, other = (told.trainer, child) if gone_is_main else (child, told.trainer)
    told.tell()
    told.tell(child)
    told.run.gone(gone.id)
    other.end()
    told.tell(other)
    assert told.run.status == status
    assert told.run.due().wanted_now


def test_one_that_comes_back_is_running_again() -> None:
    told = Told()
    told.trainer.log(1)
    told.tell()
    told.run.gone(told.trainer.id)
    assert told.run.status == CRASHED
    told.trainer.log(2)
    told.tell()
    assert told.run.status == RUNNING
    told.trainer.end()
    told.tell()
    assert told.run.status == FINISHED


def test_it_is_complete_when_the_file_has_its_last_state() -> None:
    told = Told(opened=False)
    told.trainer.log(1).end()
    told.tell()
    assert not told.run.complete
    told.run.opened_with(None, 0.0)
    assert not told.run.complete
    job = told.run.begin_publication()
    assert not told.run.complete
    told.run.published(written(job), 0.5, 1.0)
    assert told.run.complete


def test_a_publication_undoes_sealing_and_new_pieces_undo_what_the_journal_says() -> None:
    told = Told()
    told.trainer.log(1)
    told.tell()
    told.run.sealed = told.run.noted = True
    told.trainer.log(2)
    told.tell()
    assert not told.run.noted
    told.publish()
    assert not told.run.sealed


def test_a_producer_that_turns_out_to_be_through_takes_its_ticks_along() -> None:
    told = Told(opened=False)
    child = told.trainer.fork()
    told.trainer.log(1)
    told.tell()
    child.log(2)
    told.tell(child)
    told.run.forget(told.trainer.id)
    assert told.run.tail_bytes == child.head
    assert list(told.run.members) == [child.id]


# --- artifacts ------------------------------------------------------------------------------------
def saving(**changes: Any) -> Told:
    """A run that keeps every checkpoint."""
    told = Told(opened=False)
    run = make_run(policy={"every_k": 1}, model_type="numpy", **changes)
    told.trainer = Trainer("main", run)
    told.run = RunState(run, "seed_1", told.trainer.path)
    told.run.opened_with(None, 0.0)
    return told


def with_kept(job: PublishRun) -> FileState:
    return replace(written(job), kept=job.kept)


def test_what_was_saved_is_published_even_without_a_tick() -> None:
    told = saving()
    told.tell()
    assert not told.run.dirty  # nothing but its first record
    told.trainer.save("model")
    told.trainer.save("extra", "extra/a.pkl")
    told.tell()
    assert told.run.dirty
    job = told.run.begin_publication()
    assert json.loads(job.kept)["extras"] == ["extra/a.pkl"]
    assert job.lists["every_k_ckpt_list"] == ("exp/models/every_k/every_k_seed_1_k_1.pkl",)
    assert job.lists["extra_storage_paths"] == ("exp/extra/a.pkl",)
    told.run.published(with_kept(job), 0.1, 1.0)
    assert not told.run.dirty
    assert told.run.members[told.trainer.id].published == told.trainer.head


def test_what_turns_out_to_be_lost_is_published() -> None:
    told = saving()
    told.trainer.log(1)
    number = told.trainer.save("extra", "extra/a.pkl")
    told.tell()
    told.run.published(with_kept(told.run.begin_publication()), 0.1, 1.0)
    told.run.artifacts.lose((told.trainer.id, number))
    assert told.run.dirty
    job = told.run.begin_publication()
    assert (job.kept, job.lists.get("extra_storage_paths")) == ("", None)


def test_a_continued_log_that_says_what_is_kept_is_not_written_for_that() -> None:
    kept = {"portfolio": to_plain(Portfolio(3)), "figures": ["figures/a.png"], "extras": []}
    told = saving(reload=True, kept=kept)
    told.tell()
    file = FileState("other", 5, {}, {}, RUNNING, 0.0, 10, kept=kept_to_json(kept_from_plain(kept)))
    told.run.opened_with(file, 0.0)
    assert not told.run.dirty
    told.run.opened_with(replace(file, run="", kept=""), 0.0)  # mle-logging's does not say
    assert told.run.dirty


def test_names_in_the_file_are_those_of_the_seed_as_it_is_called() -> None:
    told = saving()
    told.trainer.save("model")
    told.tell()
    told.run.seed_id = "seed_1_dup2"
    lists = told.run.begin_publication().lists
    assert lists["model_ckpt"] == ("exp/models/final/final_seed_1_dup2.pkl",)


def test_a_run_with_something_to_store_is_not_complete() -> None:
    told = saving()
    told.trainer.log(1)
    number = told.trainer.save("extra", "extra/a.pkl")
    told.trainer.end()
    told.tell()
    told.run.published(with_kept(told.run.begin_publication()), 0.1, 1.0)
    assert (told.run.status, told.run.complete) == (FINISHED, False)
    told.run.artifacts.stored((told.trainer.id, number))
    assert told.run.complete


def test_a_piece_that_comes_again_announces_nothing_twice() -> None:
    told = saving()
    told.trainer.log(1)
    told.trainer.save("model")
    told.tell()
    before = told.run.artifacts.to_plain()
    told.streams.clear()  # as where a journal is replayed over the state record
    told.tell()
    assert told.run.artifacts.to_plain() == before


@pytest.mark.parametrize("mirror", [{"tboard": True}, {"wandb": {"project": "p"}}, {}])
def test_a_figure_of_a_tick_is_shown_once_it_is_stored(mirror: dict[str, Any]) -> None:
    told = saving(**mirror)
    told.trainer.log(1)
    number = told.trainer.save("figure", "figures/f.png", step=3, seconds=1.5, row=0)
    told.tell()
    job = told.run.begin_publication()
    assert job.images == ()
    told.run.published(with_kept(job), 0.1, 1.0)
    told.run.artifacts.stored((told.trainer.id, number))
    assert told.run.dirty == bool(mirror)
    if not mirror:
        return
    job = told.run.begin_publication()
    assert job.images == (Image(1.5, 3, 0, "figures/f.png"),)
    told.run.publication_failed("disk full", 1.0)
    job = told.run.begin_publication()  # a second attempt has it, too
    assert len(job.images) == 1
    told.run.published(with_kept(job), 0.1, 2.0)
    assert not told.run.dirty
    assert told.run.begin_publication().images == ()


def test_histograms_are_for_tensorboard_alone() -> None:
    histograms = m.Histograms(1.5, 3, {"w": {"num": 1}})
    for tboard in (True, False):
        told = saving(tboard=tboard)
        told.trainer.log(1)
        told.tell()
        told.run.published(with_kept(told.run.begin_publication()), 0.1, 1.0)
        told.trainer._put(wire.encode_record(histograms))
        told.tell()
        assert told.run.dirty == tboard
        if tboard:
            assert told.run.begin_publication().histograms == (histograms,)
