"""Whatever goes wrong on the way, a folder ends as that of a run in which nothing did.

A client saves checkpoints and figures, drops what nobody will miss, is killed and continued.  The
daemon is killed at any step, its disk and its journal fail, and what comes to it comes late, early
or twice.  What is compared with is a folder in which each save was carried out at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mle_client import layout
from mle_client import messages as m
from mle_client.kept import Kept, kept_from_json, kept_to_plain, model_names
from mle_client.retention import (
    EveryK,
    LatestN,
    Policy,
    Portfolio,
    Rule,
    Saved,
    TopK,
    plan_save,
    to_plain,
)
from mle_client.rules import wanted
from mle_daemon import events as e
from tests.daemon_rig import ANNA, ROOT, Rig, Trainer, make_run, staged

SEED, EXTENSION = "seed_1", ".pkl"
FOLDER = f"{ROOT}/exp/"
LOSSES = [0.0, 1.0, 2.0, 3.0, float("nan"), None]
RULES: list[tuple[Rule, ...]] = [
    (),
    (LatestN(1),),
    (LatestN(3),),
    (TopK("loss", 2),),
    (EveryK(3), TopK("loss", 1, "max")),
    (LatestN(2), TopK("loss", 2)),
]
POLICIES = st.builds(
    Policy,
    every_k=st.sampled_from([None, 1, 2, 3]),
    top_k=st.integers(1, 3),
    top_k_metric=st.just("loss"),
    rules=st.sampled_from(RULES),
)
WEIGHTS = {
    "save": 6, "plot": 2, "ship": 5, "arrive": 6, "land": 6, "answers": 4, "drop": 4, "lose": 2,
    "disk_fails": 1, "journal_fails": 1, "journal_works": 2, "time_passes": 2, "publish": 2,
    "kill_daemon": 2, "kill_daemon_between_disk_and_journal": 2, "repeat": 1, "rotate": 1,
    "kill_and_continue": 1,
}  # fmt: skip
ACTIONS = [name for name, weight in WEIGHTS.items() for _ in range(weight)]


@dataclass
class Folder:
    """A folder in which each save is carried out at once.  Args: files: name -> what it is."""

    policy: Policy
    portfolio: Portfolio = field(default_factory=Portfolio)
    files: dict[str, str] = field(default_factory=dict)

    def save(self, saved: Saved, content: str) -> None:
        """Save a checkpoint."""
        plan = plan_save(self.policy, self.portfolio, saved)
        self.portfolio = plan.portfolio
        for name in model_names(plan, SEED, EXTENSION):
            self.files[FOLDER + name] = content
        for number in plan.evicted:
            self.files.pop(FOLDER + layout.retained_path(SEED, number, EXTENSION))


class WatchedRig(Rig):
    """Tells of every artifact that gets its names."""

    on_named: Callable[[e.StoreArtifact], None]

    def give_names(self, job: e.StoreArtifact) -> None:
        super().give_names(job)
        self.on_named(job)


class Saving(RuleBasedStateMachine):
    """Args of a run are drawn once: its policy, and whether saves are lost or dropped in it."""

    @initialize(policy=POLICIES, loses=st.booleans())
    def begin(self, policy: Policy, loses: bool) -> None:
        self.policy, self.loses = policy, loses
        self.rig = WatchedRig()
        self.rig.on_named = self.named
        self.runs = 0
        self.kept = Kept()  # as the client sees it
        self.saves: list[tuple[Saved, str]] = []  # that count, and their content
        self.figures: dict[str, str] = {}
        self.landed: list[Saved] = []
        self.has_dropped = False
        self.begin_run()

    def begin_run(self) -> None:
        """Have a client begin the run, or continue it."""
        self.runs += 1
        run = make_run(
            f"life {self.runs}", SEED, policy=to_plain(self.policy), model_type="numpy",
            reload=self.runs > 1, kept=kept_to_plain(self.kept) if self.runs > 1 else {},
        )  # fmt: skip
        self.trainer = Trainer(f"life {self.runs}", run).log(self.runs)
        self.numbers: dict[int, Saved | str] = {}  # artifacts: checkpoint, or name of a figure
        self.held: set[int] = set()  # artifacts whose bytes the client keeps
        self.begun: set[int] = set()  # of which something was sent

    @rule(
        action=st.sampled_from(ACTIONS),
        number=st.integers(0, 20),
        loss=st.sampled_from(LOSSES),
    )
    def happens(self, action: str, number: int, loss: float | None) -> None:
        getattr(self, action)(number, loss)

    # --- the client ---------------------------------------------------------------------------
    def save(self, number: int, loss: float | None) -> None:
        metrics = {} if loss is None else {"loss": loss}
        saved = Saved(self.kept.portfolio.saves + 1, None, metrics, {})
        artifact = self.trainer.save("model", **to_plain(saved))
        self.kept, _ = self.kept.with_model(self.policy, saved)
        self.saves.append((saved, staged(self.trainer, artifact)))
        self.numbers[artifact] = saved
        self.held.add(artifact)

    def plot(self, number: int, loss: float | None) -> None:
        name = f"figures/{number % 2}.png"
        artifact = self.trainer.save("figure", name)
        self.kept = self.kept.with_file("figure", name)
        self.figures[FOLDER + name] = staged(self.trainer, artifact)
        self.numbers[artifact] = name
        self.held.add(artifact)

    def ship(self, number: int, loss: float | None) -> None:
        """Send the stream, all of it again as after a new connection."""
        self.rig.take(ANNA, self.trainer.data())

    def arrive(self, number: int, loss: float | None) -> None:
        """Have the bytes of one artifact come in, of the oldest as a rule."""
        if self.held:
            held = sorted(self.held)
            chosen = held[number % len(held) if number > 10 else 0]
            self.begun.add(chosen)
            self.rig.deliver(e.Arrived(self.trainer.id, chosen, staged(self.trainer, chosen), 1))

    def repeat(self, number: int, loss: float | None) -> None:
        """Have bytes come in that came before."""
        self.arrive(0, loss)
        self.arrive(0, loss)

    def answers(self, number: int, loss: float | None) -> None:
        """Forget the bytes of what is stored."""
        for reply in self.rig.answers(ANNA):
            if isinstance(reply, m.Stored):
                self.held.discard(reply.number)

    def drop(self, number: int, loss: float | None) -> None:
        """Drop checkpoints whose places newer ones have, as a client does that needs room."""
        for artifact in sorted(self.held - self.begun)[: 1 + number % 3]:
            saved = self.numbers[artifact]
            if self.loses or not isinstance(saved, Saved):
                continue
            portfolio = self.kept.portfolio
            if saved.number != portfolio.saves and not portfolio.live(saved.number):
                self.trainer.drop(artifact)
                self.held.discard(artifact)
                self.has_dropped = True

    def lose(self, number: int, loss: float | None) -> None:
        """Have the daemon find out that a checkpoint can never be taken."""
        rig, held = self.rig, sorted(self.held)
        wanted = sorted(rig.core.wanted_artifacts(self.trainer.id).intersection(held))
        if not self.loses or not wanted or rig.journal_error:
            return
        lost = wanted[number % len(wanted)]
        saved = self.numbers[lost]
        if isinstance(saved, Saved) and all(saved is not each for each in self.landed):
            rig.deliver(e.NotArrived(self.trainer.id, lost, "torn", final=True))
            rig.write_journal()
            self.held.discard(lost)
            self.saves = [(each, name) for each, name in self.saves if each is not saved]

    # --- the daemon ---------------------------------------------------------------------------
    def named(self, job: e.StoreArtifact) -> None:
        saved = self.numbers[job.number]
        if isinstance(saved, Saved) and all(saved is not each for each in self.landed):
            assert all(each.number < saved.number for each in self.landed)
            self.landed.append(saved)

    def land(self, number: int, loss: float | None) -> None:
        self.rig.land()
        self.rig.tick()

    def disk_fails(self, number: int, loss: float | None) -> None:
        self.rig.land("disk full")

    def journal_fails(self, number: int, loss: float | None) -> None:
        self.rig.journal_error = "disk full"

    def journal_works(self, number: int, loss: float | None) -> None:
        self.rig.journal_error = ""
        self.rig.tick()

    def time_passes(self, number: int, loss: float | None) -> None:
        self.rig.tick(1.0 + number)

    def publish(self, number: int, loss: float | None) -> None:
        self.rig.work()

    def rotate(self, number: int, loss: float | None) -> None:
        if not self.rig.journal_error:
            self.rig.rotate()

    def kill_daemon(self, number: int, loss: float | None) -> None:
        if not self.rig.journal_error:  # else it could not begin a new segment
            self.rig.start()

    def kill_daemon_between_disk_and_journal(self, number: int, loss: float | None) -> None:
        for job in self.rig.landings[:1]:
            job = replace(job, evict=job.evict if number % 2 else ())
            self.rig.give_names(job)
        self.kill_daemon(number, loss)

    def kill_and_continue(self, number: int, loss: float | None) -> None:
        """Kill the client, have the daemon take what it left, and continue the run."""
        self.finish(gone=True)
        file = self.rig.file(self.trainer)
        self.kept = kept_from_json(file.kept)
        self.begin_run()

    # --- what must be true --------------------------------------------------------------------
    @precondition(lambda self: hasattr(self, "rig"))
    @invariant()
    def the_folder_has_what_it_should_by_now(self) -> None:
        if self.landed and self.policy.rules:
            self.what_the_rules_want_of_what_was_stored_is_there()
        if not self.has_dropped:
            self.as_many_of_the_best_are_there_as_were_stored()

    def what_the_rules_want_of_what_was_stored_is_there(self) -> None:
        keep = {self.landed[-1].number}.union(
            *(wanted(each, self.landed) for each in self.policy.rules)
        )
        for number in keep:
            assert FOLDER + layout.retained_path(SEED, number, EXTENSION) in self.rig.artifacts

    def as_many_of_the_best_are_there_as_were_stored(self) -> None:
        rated = [saved for saved in self.landed if "loss" in saved.metrics]
        found = [name for name in self.rig.artifacts if "/top_k/" in name]
        assert len(found) >= min(self.policy.top_k or 0, len(rated))

    def finish(self, gone: bool = False) -> None:
        """Let all that is under way come to its end."""
        rig, trainer = self.rig, self.trainer
        rig.journal_error = ""
        rig.tick()
        if gone:
            rig.take(ANNA, trainer.data())
            rig.deliver(e.ProducerGone(trainer.id, frozenset(self.held)))
        else:
            trainer.end()
            rig.take(ANNA, trainer.data())
        rig.arrive(trainer, *sorted(self.held))
        rig.settle()
        self.answers(0, None)
        assert not self.held or gone
        assert rig.core.is_settled(trainer.id)
        assert rig.file(trainer).sealed

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.finish()
        folder = Folder(self.policy)
        for saved, content in self.saves:
            folder.save(saved, content)
        assert self.rig.artifacts == {**folder.files, **self.figures}
        kept = kept_from_json(self.rig.file(self.trainer).kept)
        assert _comparable(kept.portfolio) == _comparable(folder.portfolio)


def _comparable(portfolio: Portfolio) -> dict[str, Any]:
    """A portfolio in which a NaN equals another; the number of saves may count lost ones."""
    plain = to_plain(portfolio)
    return {name: repr(plain[name]) for name in ("every_k", "top_k", "retained")}


Saving.TestCase.settings = settings(stateful_step_count=60, max_examples=settings().max_examples)
TestSaving = Saving.TestCase


@pytest.mark.parametrize("seed", range(10))
def test_many_lives(seed: int) -> None:
    """The same by plain chance, which gets further from the beginning than hypothesis does."""
    chance = random.Random(seed)
    for _ in range(20):
        world = Saving()
        policy = Policy(
            every_k=chance.choice((None, 2, 5)),
            top_k=chance.randint(1, 4),
            top_k_metric="loss",
            rules=chance.choice(RULES),
        )
        world.begin(policy, chance.random() < 0.3)
        for _ in range(150):
            action, loss = chance.choice(ACTIONS), chance.choice([*LOSSES, chance.random()])
            world.happens(action, chance.randint(0, 20), loss)
            world.the_folder_has_what_it_should_by_now()
        world.teardown()
