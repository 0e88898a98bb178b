"""Whatever the journal has lost, a daemon starts, and keeps what is left.

Trainers log, save and end; now and then the daemon is killed and any of the journal's records are
gone when the next one starts, as after a power cut in which some pages reached the disk and some
did not.  No daemon may fail; no tick may be doubled, out of order or invented.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mle_client import messages as m
from mle_client.retention import LatestN, Policy, to_plain
from mle_daemon import events as e
from tests.daemon_rig import ANNA, Rig, Trainer, make_run

LIVES = 15  # of each seed
STEPS = 60  # of a life
POLICY = to_plain(
    Policy(every_k=2, top_k=2, top_k_metric="loss", minimize=True, rules=(LatestN(2),))
)


class Damage:
    """Some trainers with their daemon.  Args: rng: decides everything."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.rig = Rig(recent_runs=3)
        runs = [make_run(name, name, policy=POLICY) for name in ("one", "two")]
        self.trainers = [Trainer(run.seed_id, run) for run in runs]
        self.trainers.append(Trainer("child", replace(runs[0], forked=True)))
        self.logged = {trainer.id: list[int]() for trainer in self.trainers}
        self._sent = dict.fromkeys(self.logged, 0)
        self._ended: set[m.ProducerId] = set()

    def step(self) -> None:
        """Do anything."""
        trainer = self._rng.choice(self.trainers)
        actions = [self._log, self._save, self._send, self._arrive, self._work, self._end]
        (action,) = self._rng.choices(actions, [4, 3, 6, 6, 4, 0.3])
        action(trainer)

    def _log(self, trainer: Trainer) -> None:
        if trainer.id not in self._ended:
            steps = self.logged[trainer.id]
            steps.append(1_000 * self.trainers.index(trainer) + len(steps))
            trainer.log(steps[-1])

    def _save(self, trainer: Trainer) -> None:
        if trainer.id not in self._ended:
            kind = self._rng.choice(["model", "model", "extra", "init", "figure"])
            trainer.save(kind, **({"metrics": {"loss": 1.0}} if kind == "model" else {}))

    def _end(self, trainer: Trainer) -> None:
        if trainer.id not in self._ended:
            trainer.end()
            self._ended.add(trainer.id)

    def _send(self, trainer: Trainer) -> None:
        start = self._sent[trainer.id]
        ends = [edge for edge in trainer.edges if edge > start]
        if ends:
            end = self._rng.choice(ends)
            self.rig.receive(ANNA, trainer.data(start, end))
            self._sent[trainer.id] = end
            if self._rng.random() < 0.7:
                self.rig.tick(0.1)
        for answer in self.rig.answers(ANNA):
            if isinstance(answer, m.Expect):
                (asked,) = [each for each in self.trainers if each.id == answer.producer]
                self._sent[asked.id] = min(answer.position, asked.head)

    def _arrive(self, trainer: Trainer) -> None:
        for number in sorted(self.rig.core.wanted_artifacts(trainer.id)):
            if self._rng.random() < 0.8:
                self.rig.arrive(trainer, number)
        if self._rng.random() < 0.7:
            self.rig.land()

    def _work(self, trainer: Trainer) -> None:
        self.rig.tick(1.0)
        self.rig.work()

    def crash(self) -> None:
        """Kill the daemon, lose records, and start another one."""
        likely = self._rng.choice([0.05, 0.3, 0.8])
        for number, records in self.rig.segments.items():
            kept = [record for record in records if self._rng.random() >= likely]
            self.rig.segments[number] = kept
        self.rig.start()
        for trainer in self.trainers:  # what had been taken is asked for no more
            self._sent[trainer.id] = self.rig.core.position(trainer.id)

    def give_up(self) -> None:
        """Have all trainers gone, and the daemon do what is left."""
        for producer in self.logged:
            self.rig.deliver(e.ProducerGone(producer))
        self.rig.deliver(e.RingsSeen(frozenset()))
        self.rig.write_journal()
        self.rig.settle()

    def check(self) -> None:
        """No file has a tick twice, in another order, or that nobody logged."""
        for file in (*self.rig.disk.files.values(), *self.rig.disk.aside):
            for trainer, steps in zip(self.trainers, self.logged.values(), strict=True):
                base = 1_000 * self.trainers.index(trainer)
                rows = [row for row in file.rows if base <= row < base + 1_000]
                assert rows == sorted(set(rows))
                assert set(rows) <= set(steps)


@pytest.mark.parametrize("seed", range(10))
def test_a_daemon_starts_whatever_its_journal_has_lost(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(LIVES):
        damage = Damage(rng)
        for _ in range(3):
            for _ in range(STEPS):
                damage.step()
            damage.crash()
            damage.check()
        damage.give_up()
        damage.check()
        assert damage.rig.core.idle
