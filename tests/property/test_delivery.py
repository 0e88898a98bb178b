"""Whatever goes wrong between them, client and daemon get every tick into the file once.

The two pure machines, `Session` and `Core`, are joined by a link that loses, repeats, delays and
reorders.  Trainers and the daemon are killed at any step, the journal and publications fail, and
segments are dropped as the core says.  What is compared with is a plain list of what was logged.

ZeroMQ delivers in order, so only messages to the daemon change places: those of an old connection
may arrive among those of a new one.  A client forgets an old connection's answers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mle_client import messages as m
from mle_client.session import Session
from mle_daemon import events as e
from tests.daemon_rig import ROOT, LogFile, Rig, Trainer, make_run

WINDOW_BYTES = 600  # a run's first record and a few ticks, so that the window matters
SILENT_AFTER_S = 35.0
READER = e.Client(b"reader")
PARENT_RUN, OTHER_RUN = make_run("shared", "seed_1"), make_run("other", "seed_2")
# Streams: a process and the child it forked, a run of its own, and one that wants its name.
STREAMS = [
    ("parent", PARENT_RUN),
    ("child", replace(PARENT_RUN, forked=True)),
    ("other", OTHER_RUN),
    ("rival", make_run("rival", "seed_2")),
]
# What may happen next, and how often it does.
WEIGHTS = {
    "log": 4, "ship": 6, "arrive": 4, "arrive_all": 3, "write_journal": 4, "answers_arrive": 4,
    "work": 4, "time_passes": 3, "flush": 2, "read": 2, "reconnect": 2, "look_at_rings": 2,
    "a_round_goes_well": 2, "kill_daemon": 2, "save": 1, "lose_ticks": 1, "end": 1,
    "kill_trainer": 1, "repeat": 1, "vanish": 1, "answers_vanish": 1, "publication_fails": 1,
    "journal_fails": 1, "failed_append_is_found": 1, "rotate": 1, "journal_goes_on_elsewhere": 1,
    "stop_daemon": 1,
}  # fmt: skip
ACTIONS = [name for name, weight in WEIGHTS.items() for _ in range(weight)]


@dataclass(eq=False)
class Process:
    """A trainer's process with its ring.

    Args:
        steps: what was logged; unique over all processes.
        released: the ring has nothing before this position any more.
        waits: flushes: token -> position.
    """

    name: str
    trainer: Trainer
    first_step: int
    session: Session = field(default_factory=Session)
    connection: int = 0
    steps: list[int] = field(default_factory=list)
    lost: int = 0
    over: bool = False
    killed: bool = False
    has_ring: bool = True
    released: int = 0
    waits: dict[int, int] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)

    @property
    def client(self) -> e.Client:
        return e.Client(f"{self.name}-{self.connection}".encode())

    @property
    def alive(self) -> bool:
        return self.has_ring and not self.killed

    def log_tick(self) -> None:
        """Log the next tick."""
        step = self.first_step + len(self.steps)
        self.trainer.log(step)
        self.steps.append(step)

    def steps_before(self, position: int) -> list[int]:
        """What was logged before a position of the stream."""
        count = sum(1 for edge in self.tick_edges if edge <= position)
        return self.steps[:count]

    @property
    def tick_edges(self) -> list[int]:
        """Where each tick ends in the stream."""
        return self.trainer.tick_edges


class Delivery(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.rig = Rig(window_bytes=WINDOW_BYTES, recent_runs=10)
        self.processes = [
            Process(name, Trainer(name, run), 1_000 * i) for i, (name, run) in enumerate(STREAMS)
        ]
        self.link: list[tuple[e.Client, m.Request]] = []  # on their way to the daemon
        self.not_sealed: set[str] = set()
        self.tokens = 0
        self.readers: dict[int, dict[str, list[int]]] = {}  # what each is to find

    # One rule, and not one for each action: hypothesis would leave out many of them in each run.
    @rule(
        action=st.sampled_from(ACTIONS),
        who=st.integers(0, len(STREAMS) - 1),
        number=st.integers(0, 20),
    )
    def happens(self, action: str, who: int, number: int) -> None:
        getattr(self, action)(self.processes[who], number)

    # --- trainers -----------------------------------------------------------------------------
    def log(self, process: Process, number: int) -> None:
        if process.alive and not process.over:
            for _ in range(1 + number % 4):
                process.log_tick()

    def lose_ticks(self, process: Process, number: int) -> None:
        if process.alive and not process.over:
            process.trainer.lose(2)
            process.lost += 2

    def end(self, process: Process, number: int) -> None:
        if process.alive and not process.over:
            process.trainer.end()
            process.over = True
            self.flush(process, number)

    def flush(self, process: Process, number: int) -> None:
        if process.alive:
            self.tokens += 1
            process.waits[self.tokens] = process.trainer.head

    def save(self, process: Process, number: int) -> None:
        if process.alive:
            self.link.append((process.client, m.Save(process.trainer.id)))

    def ship(self, process: Process, number: int) -> None:
        """Send a piece, as `Transport._ship` does, and ask what the user waits for."""
        session, trainer = process.session, process.trainer
        if not process.alive:
            return
        ends = [edge for edge in trainer.edges if edge > session.sent]
        if ends:
            assert session.sent >= process.released, "asked for what the ring has no more"
            data = trainer.data(session.sent, ends[min(number, len(ends) - 1)])
            room = session.may_send(WINDOW_BYTES)
            if len(data.payload) <= room or session.sent == session.acked:
                self.link.append((process.client, data))
                session.sent_to(session.sent + len(data.payload), self.rig.now)
        for token, position in process.waits.items():
            if session.sent >= position and token not in process.asked:
                process.asked.add(token)
                self.link.append((process.client, m.Flush(token, trainer.id, position)))

    def reconnect(self, process: Process, number: int) -> None:
        if process.alive:
            process.connection += 1
            process.asked.clear()
            process.session.connected(self.rig.now)
            self.link.append((process.client, m.Hello(m.PROTOCOL_VERSION, 1, "here")))

    def kill_trainer(self, process: Process, number: int) -> None:
        process.killed = True

    def look_at_rings(self, process: Process, number: int) -> None:
        """Take over what killed processes left, as the daemon does once a second."""
        seen = frozenset(p.trainer.id for p in self.processes if p.has_ring)
        for process in self.processes:
            if process.killed and process.has_ring:
                trainer = process.trainer
                if trainer.head > self.rig.core.position(trainer.id):
                    self.rig.receive(e.NOBODY, trainer.data(process.released))
                    self.rig.write_journal()
                if self.rig.core.position(trainer.id) >= trainer.head:
                    self.rig.deliver(e.ProducerGone(trainer.id))
                    process.has_ring = False
        for producer in self.rig.core.silent(self.rig.now - SILENT_AFTER_S):
            if producer not in seen:
                self.rig.deliver(e.ProducerGone(producer))
        self.rig.deliver(e.RingsSeen(seen))
        self.rig.write_journal()

    # --- the link -----------------------------------------------------------------------------
    def arrive(self, process: Process, number: int) -> None:
        if self.link:
            client, message = self.link.pop(number % len(self.link))
            self.rig.receive(client, message)

    def arrive_all(self, process: Process, number: int) -> None:
        link, self.link = self.link, []
        for client, message in link:
            self.rig.receive(client, message)

    def repeat(self, process: Process, number: int) -> None:
        if self.link:
            self.link.append(self.link[number % len(self.link)])

    def vanish(self, process: Process, number: int) -> None:
        if self.link:
            self.link.pop(number % len(self.link))

    def answers_arrive(self, process: Process, number: int) -> None:
        for process in self.processes:
            for answer in self.rig.answers(process.client):
                for _ in range(1 + number % 2):  # some come twice
                    if process.alive:
                        self.answer(process, answer)
        self.answers_of_readers()

    def answers_vanish(self, process: Process, number: int) -> None:
        self.rig.sent.clear()
        self.readers.clear()

    def answer(self, process: Process, answer: m.Reply) -> None:
        """Do what `Transport._answered` does."""
        session = process.session
        match answer:
            case m.Ack(_, position, ticks, published):
                session.acknowledged(position, ticks, published, self.rig.now)
                process.released = session.acked
                assert ticks == len(process.steps_before(position))
            case m.Expect(_, position):
                assert position >= process.released, "an acknowledged position was lost"
                session.expected(position)
                process.asked.clear()
            case m.Refused(_, reason):
                raise AssertionError(f"a correct client was refused: {reason}")
            case m.Done(token, "") if token in process.waits:
                stored = self.rows(process)
                assert stored[: len(self.before(process, token))] == self.before(process, token)
                del process.waits[token]
                if process.over and not process.waits:
                    process.has_ring = False  # closed
            case m.Done(token, _):
                process.asked.discard(token)

    def before(self, process: Process, token: int) -> list[int]:
        return process.steps_before(process.waits[token])

    # --- readers ------------------------------------------------------------------------------
    def read(self, process: Process, number: int) -> None:
        self.tokens += 1
        self.readers[self.tokens] = {
            process.name: process.steps_before(self.rig.core.position(process.trainer.id))
            for process in self.processes
        }
        self.rig.receive(READER, m.Publish(self.tokens, ROOT))

    def answers_of_readers(self) -> None:
        for answer in self.rig.answers(READER):
            assert isinstance(answer, m.Done)
            expected = self.readers.pop(answer.token, None)
            if expected is not None and not answer.error:
                for process in self.processes:
                    steps = expected[process.name]
                    assert self.rows(process)[: len(steps)] == steps

    # --- the daemon ---------------------------------------------------------------------------
    def time_passes(self, process: Process, number: int) -> None:
        self.rig.tick([0.0, 0.3, 1.0, 3.5, 40.0][number % 5])

    def write_journal(self, process: Process, number: int) -> None:
        self.rig.journal_error = ""
        self.rig.write_journal()

    def journal_fails(self, process: Process, number: int) -> None:
        self.rig.journal_error = "disk full"
        self.rig.write_journal()

    def failed_append_is_found(self, process: Process, number: int) -> None:
        """The journal could not tell that it had written the first of some records."""
        self.rig.fail_to_append(1 + number % 3, "disk full")

    def rotate(self, process: Process, number: int) -> None:
        if not self.rig.appends:  # as the daemon does, between two rounds
            self.rig.rotate()

    def journal_goes_on_elsewhere(self, process: Process, number: int) -> None:
        self.rig.begin_segment_unasked()

    def work(self, process: Process, number: int) -> None:
        self.rig.work()

    def publication_fails(self, process: Process, number: int) -> None:
        seals = [job for job in self.rig.jobs if isinstance(job, e.SealRun)]
        self.not_sealed |= {job.run_id.hex() for job in seals}  # that is tried only once
        self.rig.work("disk full")

    def kill_daemon(self, process: Process, number: int) -> None:
        """Some of what it was about to do is done, and nobody has heard of it."""
        self.rig.die_while_appending(number // 2)
        for job in self.rig.jobs[: number % 3]:
            self.rig._do(job, "", False)
        self.start_daemon()

    def start_daemon(self) -> None:
        self.rig.journal_error = ""
        self.readers.clear()
        self.rig.start()

    def stop_daemon(self, process: Process, number: int) -> None:
        """A stop, and the next start."""
        self.rig.journal_error = ""
        self.rig.deliver(e.StopAsked())
        for _ in range(20):
            self.rig.tick(2.5)
            self.rig.work()
        assert self.rig.left is not None
        last = self.rig.rotate()
        self.rig.segments = {last: self.rig.segments[last]}
        self.start_daemon()

    def a_round_goes_well(self, process: Process, number: int) -> None:
        """What mostly happens; the other rules are what may come in between."""
        for each in self.processes:
            self.ship(each, number)
        self.arrive_all(process, number)
        self.rig.journal_error = ""
        self.rig.tick(0.5)

    # --- what must hold -----------------------------------------------------------------------
    def files(self, process: Process) -> list[LogFile]:
        """The log files of a run, put aside or not."""
        run = process.trainer.run.run_id.hex()
        disk = self.rig.disk
        return [file for file in (*disk.files.values(), *disk.aside) if file.run == run]

    def rows(self, process: Process) -> list[int]:
        """The steps of one process in its run's file."""
        end = process.first_step + 1_000
        files = self.files(process)
        return [row for file in files for row in file.rows if process.first_step <= row < end]

    @invariant()
    def a_file_holds_a_prefix_of_what_was_logged_each_tick_once(self) -> None:
        for process in self.processes:
            assert len(self.files(process)) <= 1
            rows = self.rows(process)
            assert rows == process.steps[: len(rows)]

    @invariant()
    def what_is_acknowledged_is_known_and_what_is_called_published_is_stored(self) -> None:
        for process in self.processes:
            if process.has_ring:
                assert self.rig.core.position(process.trainer.id) >= process.session.acked
            stored = process.steps_before(process.session.published)
            assert self.rows(process)[: len(stored)] == stored

    def teardown(self) -> None:
        """Everything works again: everything gets into the files, and nobody waits."""
        self.link.clear()
        self.start_daemon()
        for process in self.processes:
            process.killed |= not process.over  # so that every run comes to its end
        for process in self.processes:
            self.reconnect(process, 0)
            while process.alive and (process.waits or process.session.acked < process.trainer.head):
                before = (process.session.acked, len(process.waits))
                self.ship(process, 3)
                self.arrive_all(process, 0)
                self.rig.settle()
                self.answers_arrive(process, 0)
                assert (process.session.acked, len(process.waits)) != before, "nothing moves"
        self.look_at_rings(self.processes[0], 0)
        self.rig.now += SILENT_AFTER_S + 1.0
        self.look_at_rings(self.processes[0], 0)
        self.rig.settle()
        self.everything_is_stored()
        self.nothing_is_kept()

    def everything_is_stored(self) -> None:
        for process in self.processes:
            assert self.rows(process) == process.steps
        for run in {process.trainer.run.run_id for process in self.processes}:
            members = [p for p in self.processes if p.trainer.run.run_id == run]
            files = self.files(members[0])
            assert sum(file.lost for file in files) == sum(p.lost for p in members)
            assert all(file.status in ("finished", "crashed") for file in files)
            assert all(file.sealed or file.run in self.not_sealed for file in files)

    def nothing_is_kept(self) -> None:
        assert self.rig.core.idle
        assert self.rig.core.next_due() == float("inf")
        self.rig.rotate()
        self.rig.tick()
        assert len(self.rig.segments) == 1


Delivery.TestCase.settings = settings(stateful_step_count=60, max_examples=settings().max_examples)
TestDelivery = Delivery.TestCase


@pytest.mark.parametrize("seed", range(10))
def test_many_lives(seed: int) -> None:
    """The same by plain chance, which gets further from the beginning than hypothesis does."""
    chance = random.Random(seed)
    for _ in range(20):
        world = Delivery()
        world.begin()
        for _ in range(150):
            who = chance.choice(world.processes)
            getattr(world, chance.choice(ACTIONS))(who, chance.randint(0, 20))
            world.a_file_holds_a_prefix_of_what_was_logged_each_tick_once()
            world.what_is_acknowledged_is_known_and_what_is_called_published_is_stored()
        world.teardown()
