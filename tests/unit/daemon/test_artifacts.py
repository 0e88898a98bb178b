"""One run's artifacts: what is stored when, under which names, and what goes for it."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_client.kept import Kept, kept_to_plain
from mle_client.retention import LatestN, Policy, Portfolio, Saved, TopK, to_plain
from mle_daemon import artifacts
from mle_daemon.artifacts import Artifacts, why_unfit
from mle_daemon.events import Image, StoreArtifact
from tests.daemon_rig import make_run

ANNA, BERT = m.ProducerId(b"anna" * 4), m.ProducerId(b"bert" * 4)
FINAL = "models/final/final_s.pkl"


class Run:
    """The artifacts of a run, and a disk that does what it is told."""

    def __init__(self, policy: Policy | None = None, kept: Kept | None = None) -> None:
        run = make_run(
            policy=to_plain(policy or Policy()),
            kept=kept_to_plain(kept) if kept else {},
            model_type="numpy",
        )
        self.of = Artifacts.of(run)
        self.run = run
        self.files: dict[str, int] = {}  # name -> number of the artifact
        self.saves = self.of.kept.portfolio.saves
        self.number = 0

    def model(self, at: int = 0, **metrics: float) -> int:
        """Announce a checkpoint."""
        self.saves += 1
        return self.announce("model", at=at, **to_plain(Saved(self.saves, None, metrics, {})))

    def announce(self, kind: str, name: str = "", at: int = 0, **facts: Any) -> int:
        """Announce an artifact."""
        self.number += 1
        self.of.announce(ANNA, at, m.Artifact(self.number, kind, name, facts))
        return self.number

    def drop(self, number: int) -> None:
        """Say that an artifact will not come."""
        self.of.announce(ANNA, 0, m.Artifact(number, m.DROPPED, "", {}))

    def arrive(self, *numbers: int) -> None:
        """Have bytes come."""
        for number in numbers:
            assert self.of.arrived(ANNA, number, f"/staging/{number}")

    def due(self, now: float = 0.0) -> list[StoreArtifact]:
        """What is to be stored."""
        return list(self.of.to_store("/exp", "s", now))

    def store(self, job: StoreArtifact) -> None:
        """Carry out a job, and note it."""
        for name in job.names:
            self.files[name] = job.number
        for name in job.evict:
            self.files.pop(name, None)
        self.of.stored((job.producer, job.number))

    def store_all(self) -> list[int]:
        """Store until nothing is due; returns the numbers, in order."""
        order = []
        while jobs := self.due():
            for job in jobs:
                order.append(job.number)
                self.store(job)
        return order

    def restart(self) -> None:
        """Take the state over, as the next process does."""
        plain = self.of.to_plain()
        again = msgpack.unpackb(msgpack.packb(plain), strict_map_key=False)
        self.of = Artifacts.of(self.run)
        self.of.restore(again)
        assert self.of.to_plain() == plain

    def saves_of(self, folder: str) -> list[int]:
        """The numbers of the artifacts in a folder of models/."""
        return sorted(n for name, n in self.files.items() if name.startswith(f"models/{folder}/"))


# --- arriving ------------------------------------------------------------------------------------
def test_an_artifact_is_stored_once_it_is_announced_and_has_arrived() -> None:
    run = Run()
    number = run.announce("extra", "extra/a.pkl")
    assert run.due() == []
    run.arrive(number)
    job = StoreArtifact(ANNA, number, f"/staging/{number}", "/exp", ("extra/a.pkl",), ())
    assert run.due() == [job]
    assert run.due() == []  # it is under way
    assert run.of.storing
    run.store(job)
    assert not run.of.pending
    assert not run.of.storing


def test_bytes_that_nobody_waits_for_are_not_taken() -> None:
    run = Run()
    assert not run.of.arrived(ANNA, 1, "/staging/1")
    number = run.announce("extra", "extra/a.pkl")
    run.arrive(number)
    assert run.of.arrived(ANNA, number, "/staging/again")  # it came once more
    (job,) = run.due()
    assert job.staged == "/staging/again"
    assert not run.of.arrived(ANNA, number, "/staging/third")  # it is being stored
    run.store(job)
    assert not run.of.arrived(ANNA, number, "/staging/fourth")
    assert run.of.knows(ANNA, number)
    assert not run.of.knows(ANNA, number + 1)
    assert not run.of.knows(BERT, number)


def test_a_record_that_comes_again_changes_nothing() -> None:
    run = Run(Policy(every_k=1))
    number = run.model()
    before = run.of.to_plain()
    waiting = run.of.pending[ANNA, number]
    run.of.announce(ANNA, 0, waiting.artifact)
    assert run.of.to_plain() == before
    run.arrive(number)
    run.store_all()
    run.of.announce(ANNA, 0, waiting.artifact)
    assert not run.of.pending


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_checkpoint_out_of_order_is_numbered_anew_instead_of_ending_the_daemon(
    number: int,
) -> None:
    run = Run(Policy(every_k=1))
    run.model()
    run.model()
    facts = to_plain(Saved(number, None, {}, {}))
    late = run.announce("model", **facts)
    run.arrive(1, 2, late)
    assert run.store_all() == [1, 2, late]
    assert run.files["models/every_k/every_k_s_k_3.pkl"] == late
    assert run.of.kept.portfolio.saves == 3


# --- names ----------------------------------------------------------------------------------------
def test_a_checkpoint_gets_every_name_that_its_policy_gives_it() -> None:
    policy = Policy(every_k=2, top_k=2, top_k_metric="loss", rules=(LatestN(1),))
    run = Run(policy)
    names = []
    for loss in (3.0, 2.0, 1.0, 9.0):
        run.arrive(run.model(loss=loss))
        (job,) = run.due()
        names.append([*job.names, *("-" + name for name in job.evict)])
        run.store(job)
    top, kept = "models/top_k/top_k_s_top_{}.pkl", "models/retained/retained_s_{}.pkl"
    kth = "models/every_k/every_k_s_k_{}.pkl"
    assert names == [
        [FINAL, top.format(0), kept.format(1)],
        [FINAL, kth.format(2), top.format(1), kept.format(2), "-" + kept.format(1)],
        [FINAL, top.format(0), kept.format(3), "-" + kept.format(2)],
        [FINAL, kth.format(4), kept.format(4), "-" + kept.format(3)],
    ]


def test_names_are_those_of_the_seed_as_it_is_called_by_then() -> None:
    run = Run(Policy(every_k=1, rules=(LatestN(1),)))
    run.arrive(run.model(), run.announce("init"), run.announce("figure", "figures/f.png"))
    jobs = list(run.of.to_store("/exp", "s_dup2", 0.0))
    assert [job.names for job in jobs] == [
        (
            "models/final/final_s_dup2.pkl",
            "models/every_k/every_k_s_dup2_k_1.pkl",
            "models/retained/retained_s_dup2_1.pkl",
        ),
        ("models/init/init_s_dup2.pkl",),
        ("figures/f.png",),
    ]


def test_names_go_on_where_a_continued_run_was() -> None:
    policy = Policy(every_k=5, top_k=1, top_k_metric="loss")
    before = Portfolio(saves=4, top_k=(Saved(2, None, {"loss": 1.0}, {}),))
    run = Run(policy, Kept(before))
    run.arrive(run.model(loss=2.0))
    (job,) = run.due()
    assert job.names == (FINAL, "models/every_k/every_k_s_k_5.pkl")


# --- turns ----------------------------------------------------------------------------------------
def test_checkpoints_are_stored_in_the_order_of_saving_and_nothing_else_waits_for_them() -> None:
    run = Run()
    first, second = run.model(), run.model()
    figure = run.announce("figure", "figures/f.png")
    run.arrive(second, figure)
    (job,) = run.due()
    assert job.number == figure
    run.arrive(first)
    assert run.store_all() == [first, second]
    assert run.files[FINAL] == second


@pytest.mark.parametrize(("kind", "name"), [("figure", "figures/f.png"), ("init", "")])
def test_what_is_saved_twice_under_a_name_is_stored_in_order(kind: str, name: str) -> None:
    """A figure that is drawn late, or one that failed, must not be put over a newer one."""
    run = Run()
    first, second = run.announce(kind, name), run.announce(kind, name)
    run.arrive(second)
    assert run.due() == []
    run.arrive(first)
    assert run.store_all() == [first, second]
    assert set(run.files.values()) == {second}


def test_a_checkpoint_waits_until_the_one_before_it_counts_as_stored() -> None:
    run = Run()
    run.arrive(run.model(), run.model())
    (first,) = run.due()
    assert run.due() == []
    run.store(first)
    assert [job.number for job in run.due()] == [2]


def test_after_a_failure_it_is_tried_again_with_all_that_belonged_to_it() -> None:
    run = Run(Policy(rules=(LatestN(1),)))
    run.arrive(run.model(), run.model())
    (job,) = run.due()
    run.store(job)
    (job,) = run.due()
    assert job.evict == ("models/retained/retained_s_1.pkl",)
    assert run.of.failed((ANNA, job.number), "disk full", 10.0)
    assert not run.of.failed((ANNA, job.number), "disk full", 10.0)  # no news
    assert run.of.failed((ANNA, job.number), "disk on fire", 10.0)
    assert run.of.next_retry() == 10.0 + artifacts.RETRY_AFTER_S
    assert run.due(11.9) == []
    assert run.due(12.0) == [job]


def test_what_is_blocked_asks_for_no_attention() -> None:
    """Else the daemon would look again and again, as fast as it can."""
    run = Run()
    run.model()
    run.arrive(run.model())
    assert run.of.next_retry() == float("inf")
    run.arrive(1)
    assert run.of.next_retry() == 0.0
    run.due()
    assert run.of.next_retry() == float("inf")


# --- dropped --------------------------------------------------------------------------------------
def test_a_dropped_checkpoint_is_passed_over() -> None:
    run = Run()
    run.model(), run.model(), run.model()
    run.drop(2)
    run.arrive(1, 3)
    assert run.store_all() == [1, 3]
    assert not run.of.pending
    assert run.of.wanted(ANNA) == frozenset()


def test_what_a_dropped_checkpoint_was_to_evict_goes_with_the_next_one() -> None:
    run = Run(Policy(rules=(LatestN(1),)))
    run.arrive(run.model())
    run.store_all()
    run.model(), run.model()
    run.drop(2)
    run.arrive(3)
    (job,) = run.due()
    assert job.evict == ("models/retained/retained_s_1.pkl",)
    run.of.failed((ANNA, 3), "disk full", -9.0)
    assert run.due() == [job]  # a second attempt has it, too
    run.store(job)
    assert run.saves_of("retained") == [3]


def test_a_dropped_checkpoint_takes_nothing_along_before_its_successor_is_on_disk() -> None:
    run = Run(Policy(rules=(LatestN(1),)))
    for _ in range(3):
        run.model()
    run.drop(2)  # which was to evict 1
    run.arrive(1)
    (job,) = run.due()
    assert job.evict == ()
    run.store(job)
    assert run.saves_of("retained") == [1]


def test_the_number_kept_does_not_fall_while_a_dropped_one_s_successors_are_on_their_way() -> None:
    run = Run(Policy(rules=(LatestN(2),)))
    run.arrive(run.model(), run.model())
    run.store_all()
    for _ in range(3):
        run.model()
    run.drop(3)
    run.arrive(4)
    run.store_all()
    assert run.saves_of("retained") == [2, 4]  # 3 has no file, so 2 stays for now
    run.arrive(5)
    run.store_all()
    assert run.saves_of("retained") == [4, 5]


def test_a_dropped_checkpoint_leaves_the_slots_as_they_would_have_been() -> None:
    run = Run(Policy(top_k=2, top_k_metric="loss"))
    for loss in (5.0, 4.0, 3.0, 2.0, 1.0):
        run.model(loss=loss)  # slots 0, 1, 0, 1, 0
    run.drop(3)
    run.arrive(1, 2, 4, 5)
    run.store_all()
    assert run.files["models/top_k/top_k_s_top_0.pkl"] == 5
    assert run.files["models/top_k/top_k_s_top_1.pkl"] == 4


def test_a_figure_that_could_not_be_drawn_is_not_kept() -> None:
    run = Run()
    number = run.announce("figure", "figures/f.png")
    run.drop(number)
    assert run.of.kept.figures == ()
    assert not run.of.pending


def test_what_arrived_is_not_dropped_and_what_is_unknown_is_no_matter() -> None:
    run = Run()
    number = run.announce("extra", "extra/a.pkl")
    run.arrive(number)
    run.drop(number)
    run.drop(99)
    assert run.store_all() == [number]


def test_nobody_waits_for_a_dropped_checkpoint() -> None:
    run = Run()
    run.model(at=10), run.model(at=20)
    run.drop(1)
    assert not run.of.waits({ANNA: 15})
    assert run.of.waits({ANNA: 25})
    assert not run.of.arrived(ANNA, 1, "/staging/1")


# --- lost -----------------------------------------------------------------------------------------
def test_what_is_lost_counts_as_never_saved() -> None:
    policy = Policy(every_k=1, top_k=1, top_k_metric="loss", rules=(TopK("loss", 1),))
    run = Run(policy)
    run.arrive(run.model(loss=2.0))
    run.store_all()
    kept = run.of.kept
    run.model(loss=1.0)
    assert run.of.kept != kept
    assert run.of.gone(ANNA, ()) == {(ANNA, 2): "checkpoint 2"}
    assert run.of.kept == kept
    assert not run.of.pending


def test_those_behind_a_lost_checkpoint_take_its_places() -> None:
    run = Run(Policy(top_k=2, top_k_metric="loss", rules=(TopK("loss", 2),)))
    for loss in (5.0, 1.0, 3.0, 4.0):
        run.model(loss=loss)
    run.arrive(1, 3, 4)
    assert run.of.lose((ANNA, 2)) == "checkpoint 2"
    run.store_all()
    top = [saved.number for saved in run.of.kept.portfolio.top_k]
    assert sorted(top) == [3, 4]
    assert [run.files[f"models/top_k/top_k_s_top_{slot}.pkl"] for slot in (0, 1)] == top
    assert run.saves_of("retained") == [3, 4]


def test_nobody_misses_a_checkpoint_whose_places_newer_ones_have() -> None:
    run = Run()
    run.model(), run.model()
    assert run.of.lose((ANNA, 1)) == ""
    assert run.of.lose((ANNA, 1)) == ""
    assert run.of.lose((ANNA, 2)) == "checkpoint 2"


def test_a_dropped_checkpoint_is_not_counted_on_when_what_replaced_it_is_lost() -> None:
    run = Run(Policy(rules=(TopK("loss", 1),)))
    for loss in (9.0, 2.0, 1.0, 5.0):
        run.model(loss=loss)
    run.drop(2)  # 3 is better
    run.arrive(1, 4)
    run.of.lose((ANNA, 3))
    run.store_all()
    assert [saved.number for saved in run.of.kept.portfolio.retained] == [4]
    assert run.saves_of("retained") == [4]
    assert not run.of.pending


def test_a_process_that_is_gone_loses_what_it_did_not_leave_behind() -> None:
    run = Run()
    arrived, left, lost = (run.announce("extra", f"extra/{i}") for i in range(3))
    run.of.announce(BERT, 0, m.Artifact(1, "extra", "extra/bert", {}))
    run.arrive(arrived)
    assert run.of.wanted(ANNA) == {left, lost}
    assert run.of.gone(ANNA, [left, 99]) == {(ANNA, lost): "extra/2"}
    assert run.of.kept.extras == ("extra/0", "extra/1", "extra/bert")
    assert run.of.wanted(ANNA) == {left}


def test_a_process_that_is_gone_does_not_lose_what_was_dropped() -> None:
    run = Run()
    run.model(), run.model()
    run.drop(1)
    assert run.of.gone(ANNA, [2]) == {}
    run.arrive(2)
    assert run.store_all() == [2]


def test_a_checkpoint_that_is_missed_cannot_be_dropped() -> None:
    """Whoever says so is no client of ours; the files are as if it had never been saved."""
    run = Run(Policy(every_k=2))
    run.model(), run.model(), run.model()
    run.drop(2)
    run.drop(3)
    assert run.of.kept.portfolio == Portfolio(saves=1)
    run.arrive(1)
    assert run.store_all() == [1]


def test_a_lost_checkpoint_leaves_the_initial_one_alone() -> None:
    run = Run()
    run.announce("init"), run.model()
    run.of.lose((ANNA, 2))
    assert run.of.kept.portfolio == Portfolio(init_saved=True)


def test_a_lost_initial_checkpoint_is_not_kept_unless_it_was_saved_again() -> None:
    run = Run()
    run.announce("init"), run.announce("init")
    assert run.of.lose((ANNA, 1)) == "the initial checkpoint"
    assert run.of.kept.portfolio.init_saved
    assert run.of.lose((ANNA, 2)) == "the initial checkpoint"
    assert not run.of.kept.portfolio.init_saved


def test_a_lost_figure_stays_listed_where_the_same_name_is_to_come() -> None:
    run = Run()
    run.announce("figure", "figures/f.png"), run.announce("figure", "figures/f.png")
    run.of.lose((ANNA, 1))
    assert run.of.kept.figures == ("figures/f.png",)
    run.of.lose((ANNA, 2))
    assert run.of.kept.figures == ()


# --- looking --------------------------------------------------------------------------------------
def test_a_wait_is_for_what_was_announced_before_a_position() -> None:
    run = Run()
    first = run.announce("extra", "extra/a", at=100)
    run.announce("extra", "extra/b", at=200)
    assert not run.of.waits({ANNA: 100})
    assert run.of.waits({ANNA: 101})
    assert not run.of.waits({BERT: 900})
    run.arrive(first)
    assert run.of.waits({ANNA: 101})
    run.store_all()
    assert not run.of.waits({ANNA: 200})
    assert run.of.waits({ANNA: 201})


def test_what_may_not_be_removed_yet_is_on_disk_or_wanted() -> None:
    run = Run(Policy(rules=(LatestN(1),)))
    run.arrive(run.model())
    run.store_all()
    run.model(), run.model()
    # 1 goes only when 2 is there; 2 may have a file from a process that was killed at once.
    assert run.of.protected == {1, 2, 3}
    run.arrive(2, 3)
    run.store_all()
    assert run.of.protected == {3}
    run.drop(run.model())
    run.model(), run.model()
    run.drop(5)
    assert run.of.protected == {3, 6}  # what is dropped has no file


def test_a_figure_of_a_tick_is_handed_on_once_it_is_on_disk() -> None:
    run = Run()
    facts = {"step": 7, "seconds": 1.5, "row": 3}
    run.arrive(run.announce("figure", "figures/f.png", **facts))
    run.arrive(run.announce("figure", "figures/g.png"))
    assert run.of.images == []
    run.store_all()
    assert run.of.images == [Image(1.5, 7, 3, "figures/f.png")]


# --- restarts -------------------------------------------------------------------------------------
def test_what_is_pending_outlives_the_process_without_its_bytes() -> None:
    policy = Policy(every_k=2, top_k=1, top_k_metric="loss", rules=(LatestN(1),))
    run = Run(policy)
    run.arrive(run.model(loss=1.0))
    run.store_all()
    run.model(loss=0.5), run.announce("figure", "figures/f.png"), run.model(loss=0.7)
    run.arrive(2, 3, 4)
    assert [job.number for job in run.due()] == [2, 3]
    run.restart()
    assert run.due() == []
    assert run.of.wanted(ANNA) == {2, 3, 4}
    assert run.of.knows(ANNA, 4)
    run.arrive(2, 3, 4)
    assert run.store_all() == [2, 3, 4]
    assert run.saves_of("retained") == [4]
    assert run.files["models/every_k/every_k_s_k_2.pkl"] == 2
    assert run.files["models/top_k/top_k_s_top_0.pkl"] == 2


def test_a_drop_outlives_the_process() -> None:
    run = Run(Policy(rules=(LatestN(1),)))
    run.arrive(run.model())
    run.store_all()
    run.model(), run.model()
    run.drop(2)
    run.restart()
    assert run.of.wanted(ANNA) == {3}
    run.arrive(3)
    run.store_all()
    assert run.saves_of("retained") == [3]


@pytest.mark.parametrize(
    "damage",
    [
        {"kept": None},
        {"kept": {"figures": []}},
        {"announced": [[1]]},
        {"stored": {}},
        {"stored": None},
        {"pending": [[b"p", 0, False, [1]]]},
        {"pending": 3},
    ],
)
def test_what_something_else_wrote_is_one_documented_error(damage: dict[str, Any]) -> None:
    plain = Run().of.to_plain()
    with pytest.raises(ProtocolError, match="artifacts of a run are malformed"):
        Run().of.restore({**plain, **damage})
    for name in plain:
        with pytest.raises(ProtocolError):
            Run().of.restore({key: value for key, value in plain.items() if key != name})


@pytest.mark.parametrize("settings", [{"policy": {"every_k": 0}}, {"kept": {"figures": 1}}])
def test_settings_that_no_client_sends_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="settings are malformed"):
        Artifacts.of(make_run(**settings))


# --- what is taken --------------------------------------------------------------------------------
SAVED = to_plain(Saved(1, None, {"loss": 1.0}, {"epoch": 2}))


@pytest.mark.parametrize(
    ("kind", "name", "facts", "words"),
    [
        ("model", "", SAVED, ""),
        ("model", "", {}, "not a map of"),
        ("model", "", {**SAVED, "number": -1}, "number"),
        ("model", "", {**SAVED, "metrics": {"loss": "low"}}, "metrics"),
        ("init", "", {}, ""),
        (m.DROPPED, "", {}, ""),
        ("figure", "figures/a/b.png", {"step": 1, "seconds": 0.5, "row": 1}, ""),
        ("figure", "figures/a.png", {}, ""),
        ("figure", "figures/a.png", {"step": 1}, "malformed"),
        ("figure", "figures/a.png", {"step": "1", "seconds": 0.5}, "malformed"),
        ("figure", "figures/a.png", {"step": 1, "seconds": "now"}, "malformed"),
        ("figure", "figures/a.png", {"step": 1, "seconds": 1.0, "row": None}, "malformed"),
        ("figure", "extra/a.png", {}, "not in figures/"),
        ("figure", "figures/../models/final/final_s.pkl", {}, "upwards"),
        ("extra", "extra/a.pkl", {}, ""),
        ("extra", "/etc/passwd", {}, "not in extra/"),
        ("extra", "extra//etc/passwd", {}, "absolute"),
        ("extra", "extra/", {}, "names no file"),
    ],
)
def test_records_that_no_client_of_ours_sends_are_seen(
    kind: str, name: str, facts: dict[str, Any], words: str
) -> None:
    why = why_unfit(m.Artifact(1, kind, name, facts))
    assert words in why
    assert bool(why) == bool(words)
