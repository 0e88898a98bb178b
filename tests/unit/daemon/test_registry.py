"""The runs and streams that the daemon knows."""

from __future__ import annotations

from mle_client import messages as m
from mle_daemon import state
from mle_daemon.config import DaemonConfig
from mle_daemon.groups import Groups
from mle_daemon.ingest import Stream
from mle_daemon.registry import ENDED_KEPT, Registry, saved_ends
from tests.daemon_rig import ANNA, Trainer, make_run


def enter(registry: Registry, trainer: Trainer) -> bool:
    """A trainer's first piece is journaled.  Returns: whether its run is new."""
    registry.streams[trainer.id] = Stream(trainer.id, trainer.head, 2)
    is_new = registry.enter(trainer.run, trainer.id)
    registry.runs[trainer.run.run_id].join(trainer.id, ANNA)
    return is_new


def registry_of(recent_runs: int) -> Registry:
    """An empty registry.  Args: recent_runs: as of `Registry`."""
    return Registry(recent_runs, Groups(DaemonConfig("/exps")))


def test_a_run_is_entered_with_its_first_stream() -> None:
    registry, parent = registry_of(3), Trainer()
    child = parent.fork()
    assert registry.run_of(parent.id) is None
    assert [enter(registry, parent), enter(registry, child)] == [True, False]
    run = registry.run_of(parent.id)
    assert run is not None
    assert run is registry.run_of(child.id)
    assert registry.positions(run) == {parent.id: parent.head, child.id: child.head}
    assert (run.seed_id, run.path) == ("seed_1", parent.path)


def test_what_is_published_of_a_stream() -> None:
    registry, trainer = registry_of(3), Trainer()
    assert (registry.published(trainer.id), registry.is_published(trainer.id, 9)) == (0, True)
    enter(registry, trainer)
    registry.runs[trainer.run.run_id].members[trainer.id].published = 7
    assert registry.published(trainer.id) == 7
    assert registry.is_published(trainer.id, 7)
    assert not registry.is_published(trainer.id, 8)


def test_a_retired_run_leaves_a_report_and_the_ends_of_its_streams() -> None:
    registry, trainer = registry_of(3), Trainer()
    enter(registry, trainer)
    run = registry.retire(trainer.run.run_id, 0.0)
    assert (registry.runs, registry.streams, registry.run_of(trainer.id)) == ({}, {}, None)
    assert registry.position(trainer.id) == trainer.head
    assert [line["seed_id"] for line in registry.reports(0.0)] == [run.seed_id]


def test_a_child_that_outlives_its_run_gets_the_name_that_the_run_had() -> None:
    registry, trainer = registry_of(3), Trainer()
    enter(registry, trainer)
    registry.runs[trainer.run.run_id].seed_id = "seed_1_dup2"
    registry.retire(trainer.run.run_id, 0.0)
    assert enter(registry, trainer.fork())
    assert registry.runs[trainer.run.run_id].seed_id == "seed_1_dup2"
    assert not registry.recent


def test_a_run_goes_with_its_last_stream() -> None:
    registry, trainer = registry_of(3), Trainer()
    child = trainer.fork()
    enter(registry, trainer)
    enter(registry, child)
    registry.put_away(child.id, 5, 1)
    assert list(registry.runs) == [trainer.run.run_id]
    registry.put_away(trainer.id, 5, 1)
    assert not registry.runs


def test_of_ended_streams_and_finished_runs_only_so_many_are_kept() -> None:
    registry = registry_of(2)
    trainers = [Trainer(f"run{i}") for i in range(3)]
    for trainer in trainers:
        enter(registry, trainer)
        registry.retire(trainer.run.run_id, 0.0)
    assert list(registry.recent) == [trainer.run.run_id for trainer in trainers[1:]]
    for i in range(ENDED_KEPT):
        registry.put_away(m.ProducerId(i.to_bytes(16, "big")), 1, 1)
    assert [registry.position(trainer.id) for trainer in trainers] == [0] * 3
    assert len(registry.ended) == ENDED_KEPT


def test_an_ended_stream_is_forgotten_once_its_ring_has_gone() -> None:
    registry = registry_of(3)
    seen, unseen, live = Trainer("seen"), Trainer("unseen"), Trainer("live")
    enter(registry, live)
    registry.put_away(seen.id, 5, 1)
    registry.put_away(unseen.id, 5, 1)
    registry.rings_seen(frozenset({seen.id, live.id}))
    registry.rings_seen(frozenset())
    assert registry.position(seen.id) == 0
    assert registry.position(unseen.id) == 5
    registry.put_away(live.id, 5, 1)
    assert registry.position(live.id) == 5
    registry.rings_seen(frozenset())
    assert registry.position(live.id) == 0


def test_what_is_saved_comes_back() -> None:
    registry, trainer, over = registry_of(3), Trainer(), Trainer("over")
    enter(registry, trainer)
    registry.put_away(over.id, 5, 1)
    run = registry.runs[trainer.run.run_id]
    run.seed_id, run.path, run.lost = "seed_1_dup2", "/path", 4
    member = run.members[trainer.id]
    member.main, member.over, member.crashed = False, True, True
    member.process = m.Process(7, "here", "9", "boot")
    saved = registry.saved()

    again = registry_of(3)
    assert [again.restore_run(saved_run) for saved_run in saved.runs] == [True]
    for stream in saved.streams:
        if stream.run_id is None:
            again.put_away(stream.producer, stream.position, stream.ticks)
        else:
            again.restore_stream(stream, stream.run_id)
    assert again.saved() == saved
    assert again.position(over.id) == 5


def test_a_saved_run_that_is_known_gives_its_name() -> None:
    registry, trainer = registry_of(3), Trainer()
    enter(registry, trainer)
    assert not registry.restore_run(state.SavedRun(trainer.run, "new", "/new", 4, {}))
    run = registry.runs[trainer.run.run_id]
    assert (run.seed_id, run.path, run.lost) == ("new", "/new", 0)


def test_some_runs_are_saved_with_their_own_streams_alone() -> None:
    registry, one, two = registry_of(3), Trainer("one"), Trainer("two")
    staged = Trainer("staged")
    enter(registry, one)
    enter(registry, two)
    registry.streams[staged.id] = Stream(staged.id)
    registry.put_away(Trainer("over").id, 5, 1)
    saved = registry.saved_runs([two.run.run_id])
    assert [run.run.run_id for run in saved.runs] == [two.run.run_id]
    assert [stream.producer for stream in saved.streams] == [two.id]


def test_a_saved_end_belongs_to_no_run() -> None:
    trainer = Trainer()
    (stream,) = saved_ends([Stream(trainer.id, 5, 2)]).streams
    assert (stream.producer, stream.position, stream.ticks) == (trainer.id, 5, 2)
    assert (stream.run_id, stream.over, stream.crashed) == (None, True, False)


def test_the_groups_are_told_of_every_run_that_comes_and_goes() -> None:
    groups = Groups(DaemonConfig("/exps"))
    registry = Registry(3, groups)
    one = Trainer("1", make_run("1", "1", num_seeds=2))
    two = Trainer("2", make_run("2", "2"))
    for trainer in (one, two):
        enter(registry, trainer)
    (line,) = groups.reports()
    assert (line["directory"], line["expected"], line["running"]) == ("/exps/exp", 2, 2)
    registry.retire(one.run.run_id, 0.0)  # it never had a file
    registry.put_away(two.id, 0, 0)
    assert groups.reports() == []
    assert registry.saved().groups == ()


def test_a_pending_group_is_saved_with_the_runs() -> None:
    groups = Groups(DaemonConfig("/exps"))
    groups.restore("/exps/exp", 4)
    groups.restore_meta_log("/exps")
    saved = Registry(3, groups).saved()
    assert (saved.groups, saved.meta_logs) == ((("/exps/exp", 4),), ("/exps",))
    assert saved_ends([], [("/exps/exp", None)]).groups == (("/exps/exp", None),)
