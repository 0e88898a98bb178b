"""A daemon without a world: the real core, and in place of disks and sockets lists to look at.

`Trainer` makes a producer's stream as real bytes, `Files` are log files as lists of rows, and `Rig`
does for `Core` what `mle_daemon.daemon` does, one step at a time: a test decides when the journal
takes what is to be appended, when the writer thread gets on, and when the process dies.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

from mle_client import layout, tick_writers, wire
from mle_client import messages as m
from mle_client.errors import LogNotFound
from mle_daemon import events as e
from mle_daemon.columns import FileState
from mle_daemon.config import OFF, DaemonConfig
from mle_daemon.core import Core

ROOT = "/exps"
STEP = m.Schema(0, (m.Field("step", m.INT),), ())
ANNA, BERT, CARL = e.Client(b"anna"), e.Client(b"bert"), e.Client(b"carl")


def make_run(name: str = "run", seed_id: str = "seed_1", **changes: Any) -> m.Run:
    """A run that a daemon of `ROOT` takes."""
    run = m.Run(
        run_id=m.RunId(hashlib.md5(name.encode()).digest()), directory=f"{ROOT}/exp",
        experiment_dir="exp/", seed_id=seed_id, eval_id="", model_type="no-model-type-provided",
        start_time=0.0, config_name="", config_file=b"", config_text="", config_json="",
        num_seeds=None, overwrite=False, forked=False, reload=False, policy={},
        kept={}, tboard=False, wandb={}, process=m.Process(1, "here", "7", "boot"),
    )  # fmt: skip
    return dataclasses.replace(run, **changes)


class Trainer:
    """A producer's stream.  Args: name: makes its id; run: that it logs to, made of the name."""

    def __init__(self, name: str = "main", run: m.Run | None = None) -> None:
        self.id = m.ProducerId(hashlib.md5(b"producer " + name.encode()).digest())
        self.run = run or make_run(name)
        self.path = layout.log_path(self.run.directory, self.run.seed_id)
        self.edges = [0]  # positions at which a record ends
        self.tick_edges: list[int] = []  # those at which a tick ends
        self.saves = 0  # artifacts
        self.checkpoints = self.run.kept.get("portfolio", {}).get("saves", 0)
        self.stream = b""
        self._put(wire.encode_record(self.run))

    def fork(self) -> Trainer:
        """A child process that logs to the same run."""
        return Trainer("child", dataclasses.replace(self.run, forked=True))

    @property
    def head(self) -> int:
        """Position behind all that was logged."""
        return len(self.stream)

    def log(self, *steps: int) -> Trainer:
        """Log ticks."""
        for step in steps:
            if not self.tick_edges:
                self._put(wire.encode_record(STEP))
            self._put(tick_writers.pack_fixed(STEP, float(step), (step,)))
            self.tick_edges.append(self.head)
        return self

    def lose(self, count: int) -> Trainer:
        """Say that ticks were lost."""
        self._put(wire.encode_record(m.Gap(count, "no room")))
        return self

    def end(self) -> Trainer:
        """Close the stream."""
        self._put(wire.encode_record(m.End()))
        return self

    def data(self, start: int = 0, end: int | None = None) -> m.Data:
        """The piece of the stream between two positions, by default all of it."""
        return m.Data(self.id, start, self.stream[start:end])

    def save(self, kind: str = "extra", name: str = "", **facts: Any) -> int:
        """Announce an artifact, and return its number.

        Args:
            name: of a figure or object; "" for one made of the number.
            facts: as of `messages.Artifact`; of a model, the arguments of `retention.Saved`.
        """
        self.saves += 1
        folder = {"figure": "figures", "extra": "extra"}.get(kind)
        if folder:
            name = name or f"{folder}/{self.saves}"
        if kind == "model":
            self.checkpoints += 1
            known: dict[str, Any] = {
                "number": self.checkpoints,
                "time": None,
                "metrics": {},
                "clocks": {},
            }
            facts = {**known, **facts}
        self._put(wire.encode_record(m.Artifact(self.saves, kind, name, facts)))
        return self.saves

    def drop(self, number: int) -> Trainer:
        """Say that the bytes of an artifact will not come."""
        self._put(wire.encode_record(m.Artifact(number, m.DROPPED, "", {})))
        return self

    def _put(self, record: bytes) -> None:
        self.stream += record
        self.edges.append(len(self.stream))


@dataclass
class LogFile:
    """A published file.  Args: rows: the steps in it."""

    run: str
    rows: list[int]
    applied: dict[str, int]
    status: str
    lost: int
    sealed: bool = False
    kept: str = ""
    lists: dict[str, Any] = field(default_factory=dict)

    def state(self) -> FileState:
        """What the daemon keeps of it."""
        size = 100 * len(self.rows)
        return FileState(
            self.run, len(self.rows), self.applied, {}, self.status, 0.0, size, self.lost,
            kept=self.kept,
        )  # fmt: skip


@dataclass
class Files:
    """Log files by path, with the behaviour of `mle_daemon.store`.  Args: aside: put aside."""

    files: dict[str, LogFile] = field(default_factory=dict)
    aside: list[LogFile] = field(default_factory=list)

    def open_run(self, run: m.Run, path: str) -> tuple[FileState | None, str]:
        """As of `Store`."""
        file = self.files.get(path)
        if file is not None and file.run == run.run_id.hex():
            return file.state(), ""
        if file is not None and run.reload:
            return dataclasses.replace(file.state(), applied={}), ""
        note = f"moved from {path}" if file is not None else ""
        self._put_aside(path)
        return None, note

    def publish(self, job: e.PublishRun) -> FileState:
        """As of `Store`."""
        rows: list[int] = []
        if job.file is None:
            self._put_aside(job.path)
        elif job.path not in self.files:
            raise LogNotFound(job.path, "gone")
        else:
            before = self.files[job.path]
            assert (before.run, len(before.rows)) == (job.file.run, job.file.rows)
            rows = list(before.rows)
        for block in job.blocks:
            rows += [int(step) for step in block.column(0)]
        file = LogFile(
            job.run.run_id.hex(), rows, dict(job.applied), job.status, job.lost,
            kept=job.kept, lists=dict(job.lists),
        )  # fmt: skip
        self.files[job.path] = file
        return file.state()

    def seal(self, job: e.SealRun) -> FileState:
        """As of `Store`."""
        self.files[job.path].sealed = True
        return self.files[job.path].state()

    def _put_aside(self, path: str) -> None:
        if path in self.files:
            self.aside.append(self.files.pop(path))


class Rig:
    """One root with its daemon, which may die and be started again.

    Args:
        changes: of the daemon's configuration.
    """

    def __init__(self, **changes: Any) -> None:
        self.config = DaemonConfig(ROOT, **{"merge": OFF, **changes})
        self.now = 1_000.0
        self.disk = Files()
        self.segments: dict[int, list[bytes]] = {}
        self.last_segment = 0
        self.journal_error = ""  # while set, nothing can be appended
        self.uncut = 0  # last records of the last segment that a failed append has left
        self.open_error: tuple[str, bool] | None = None  # while set, no folder can be used
        # Artifacts under their names: what the staged file was.
        self.artifacts: dict[str, str] = {}
        self.start()

    # --- the process's life -------------------------------------------------------------------
    def start(self) -> None:
        """Start a daemon that knows what the journal holds.  One that ran is gone as if killed."""
        self.core = Core(self.config, "daemon")
        self.uncut = 0
        self.appends: list[bytes] = []  # records to be appended
        self.jobs: list[e.PublishRun | e.SealRun] = []  # for the writer
        self.landings: list[e.StoreArtifact] = []  # for the thread that gives names
        self.merges: list[e.MergeGroup | e.RefreshMeta] = []  # for the merging process
        self.discarded: list[tuple[m.ProducerId, int]] = []
        self.sent: list[tuple[e.Client, m.Reply]] = []  # not looked at yet
        self.logged: list[str] = []
        self.left: e.Leave | None = None
        older = sorted(self.segments)
        for number in older:
            for record in self.segments[number]:
                self.deliver(e.Replayed(number, record))
        self.deliver(e.Recovered())
        assert not self.jobs, "nobody is there yet to do them"
        self.rotate(older)
        self.tick()

    def rotate(self, older: list[int] | None = None) -> int:
        """Begin a new segment, and return its number."""
        record = self.core.first_record()
        self._begin_segment()
        self.segments[self.last_segment].append(record)
        self.core.rotated(self.last_segment, older or [])
        return self.last_segment

    def begin_segment_unasked(self) -> None:
        """Have the journal go on in another segment by itself, as it does behind a bad one."""
        self._begin_segment()

    def fail_to_append(self, left: int, error: str) -> None:
        """Have an append fail that leaves its first records, which cannot be cut off at once."""
        self._cut()
        self.uncut = len(self.appends[:left])
        self.segments[self.last_segment] += self.appends[:left]
        self.journal_error = error
        self.write_journal()

    def die_while_appending(self, written: int) -> None:
        """Be killed when the first of what is to be appended are written; start anew after it."""
        if written:
            self._cut()
        self.segments[self.last_segment] += self.appends[:written]

    def _cut(self) -> None:
        """Take away what a failed append has left, as the journal does before it goes on."""
        if self.uncut:
            del self.segments[self.last_segment][-self.uncut :]
            self.uncut = 0

    def _begin_segment(self) -> None:
        self._cut()
        self.last_segment += 1
        self.segments[self.last_segment] = []

    # --- steps --------------------------------------------------------------------------------
    def deliver(self, event: e.Event) -> list[e.Instruction]:
        """Deliver an event and carry out what comes of it, but for journal and writer.

        Returns:
            All instructions, those of events that followed at once included.
        """
        done: list[e.Instruction] = []
        for instruction in self.core.handle(event, self.now):
            done.append(instruction)
            match instruction:
                case e.Send(client, message):
                    self.sent.append((client, message))
                case e.AppendJournal(parts):
                    self.appends.append(b"".join(parts))
                case e.OpenRun(run, _, path):
                    done += self.deliver(self._open(run, path))
                case e.PublishRun() | e.SealRun():
                    self.jobs.append(instruction)
                case e.StoreArtifact():
                    self.landings.append(instruction)
                case e.MergeGroup() | e.RefreshMeta():
                    self.merges.append(instruction)
                case e.DiscardArtifact(producer, number):
                    self.discarded.append((producer, number))
                case e.DropSegments(numbers):
                    for number in numbers:
                        del self.segments[number]
                case e.Log(_, text):
                    self.logged.append(text)
                case e.Leave():
                    self.left = instruction
        return done

    def _open(self, run: m.Run, path: str) -> e.Event:
        if self.open_error is not None:
            return e.RunNotOpened(run.run_id, *self.open_error)
        return e.RunOpened(run.run_id, *self.disk.open_run(run, path))

    def receive(self, client: e.Client, message: m.Request) -> list[e.Instruction]:
        """Have a message come in."""
        return self.deliver(e.Received(client, message))

    def write_journal(self) -> None:
        """Append what is to be appended, and tell the outcome."""
        while self.appends:
            records, self.appends = self.appends, []
            if self.journal_error:
                self.deliver(e.JournalFailed(self.journal_error))
                return
            self._cut()
            self.segments[self.last_segment] += records
            self.deliver(e.Journaled(self.last_segment))

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass and end a round of the loop."""
        self.now += seconds
        self.write_journal()
        self.deliver(e.Tick())
        self.write_journal()

    def take(self, client: e.Client, *messages: m.Request) -> None:
        """Have messages come in, in one round."""
        for message in messages:
            self.receive(client, message)
        self.tick()

    def work(self, error: str = "", reopen: bool = False) -> None:
        """Have the writer do the jobs it has, and tell what came of them.

        Args:
            error: with which it fails, "" where it does not.
            reopen: as of `PublishFailed`.
        """
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            self.deliver(self._do(job, error, reopen))
        self.write_journal()

    def _do(self, job: e.PublishRun | e.SealRun, error: str, reopen: bool) -> e.Event:
        if isinstance(job, e.SealRun):
            file = job.file if error else self.disk.seal(job)
            return e.Sealed(job.run_id, file, error)
        if error:
            return e.PublishFailed(job.run.run_id, error, reopen)
        return e.Published(job.run.run_id, self.disk.publish(job), 0.01)

    # --- merging ------------------------------------------------------------------------------
    def merge(self, error: str = "", meta_error: str = "", **facts: bool) -> list[str]:
        """Have the merging process do the jobs it has, and tell what came of them.

        Args:
            error: with which merges of seeds fail, "" where they do not.
            meta_error: with which meta logs are not written, for now.
            facts: as of `GroupNotMerged`.

        Returns:
            The folders, of configurations or of seeds.
        """
        jobs, self.merges = self.merges, []
        folders = []
        for job in jobs:
            self.deliver(e.MergeBegun(job))
            if isinstance(job, e.RefreshMeta):
                folders.append(job.folder)
                self.deliver(e.MetaRefreshed(job.folder, meta_error, retry=True))
                continue
            folders.append(job.directory)
            if error:
                self.deliver(e.GroupNotMerged(job.directory, error, **facts))
            else:
                states = self._states(job.directory)
                self.deliver(e.GroupMerged(job.directory, len(states), "", states))
        self.write_journal()
        return folders

    def _states(self, directory: str) -> dict[str, str]:
        """How the runs of a folder have ended, by seed."""
        files = {
            path.removeprefix(f"{directory}/logs/log_").removesuffix(".hdf5"): file
            for path, file in self.disk.files.items()
            if path.startswith(directory + "/")
        }
        return {seed: file.status for seed, file in files.items() if file.status != "running"}

    # --- artifacts ----------------------------------------------------------------------------
    def arrive(self, trainer: Trainer, *numbers: int) -> None:
        """Have the bytes of artifacts come in."""
        for number in numbers:
            self.deliver(e.Arrived(trainer.id, number, staged(trainer, number), 1))
        self.write_journal()

    def land(self, error: str = "", final: bool = False) -> list[e.StoreArtifact]:
        """Have the artifacts that are to be stored given their names, and tell what came of it.

        Args:
            error: with which it fails, "" where it does not.

        Returns:
            Those that were to be stored.
        """
        jobs, self.landings = self.landings, []
        for job in jobs:
            if error:
                self.deliver(e.ArtifactNotStored(job.producer, job.number, error, final))
                continue
            self.give_names(job)
            self.deliver(e.ArtifactStored(job.producer, job.number))
        self.write_journal()
        return jobs

    def give_names(self, job: e.StoreArtifact) -> None:
        """What storing an artifact does to the disk."""
        for name in job.names:
            self.artifacts[f"{job.directory}/{name}"] = job.staged
        for name in job.evict:
            self.artifacts.pop(f"{job.directory}/{name}", None)

    def settle_files(self) -> None:
        """Have all log files published, and no artifact stored."""
        for _ in range(3):
            self.tick(self.config.publish_max_age_s)
            self.work()

    def settle(self) -> None:
        """Let time pass until nothing more is due, but perhaps to try a broken journal again."""
        for _ in range(100):
            self.tick()
            if self.landings:
                self.land()
            elif self.jobs:
                self.work()
            elif self.core.next_due() in (float("inf"), self.core._intake.retry_at):
                return
            else:
                self.now = max(self.now, self.core.next_due())
        raise AssertionError("something is due for ever")

    # --- looking ------------------------------------------------------------------------------
    def answers(self, client: e.Client) -> list[m.Reply]:
        """What was sent to a client since the last look."""
        found = [message for to, message in self.sent if to == client]
        self.sent = [(to, message) for to, message in self.sent if to != client]
        return found

    def rows(self, trainer: Trainer) -> list[int]:
        """The steps in a trainer's log file."""
        file = self.disk.files.get(trainer.path)
        return file.rows if file else []

    def file(self, trainer: Trainer) -> LogFile:
        """A trainer's log file."""
        return self.disk.files[trainer.path]

    def report(self, trainer: Trainer) -> e.Report:
        """The line of the status report about a trainer's run."""
        (line,) = [
            line
            for line in self.core.reports(self.now)
            if layout.log_path(line["experiment_dir"], line["seed_id"]) == trainer.path
        ]
        return line


def staged(trainer: Trainer, number: int) -> str:
    """The path of an artifact's bytes, as they came."""
    return f"{trainer.id.hex()}-{number}.part"


def acks(replies: list[m.Reply]) -> list[tuple[int, int, int]]:
    """(position, ticks, published) of each acknowledgement."""
    return [(r.position, r.ticks, r.published) for r in replies if isinstance(r, m.Ack)]


def dones(replies: list[m.Reply]) -> list[tuple[int, str]]:
    """(token, error) of each answer to a request."""
    return [(r.token, r.error) for r in replies if isinstance(r, m.Done)]


def only(instructions: list[e.Instruction], kind: type[Any]) -> list[Any]:
    """The instructions of one kind."""
    return [x for x in instructions if isinstance(x, kind)]


def running(rig: Rig, name: str = "main", *steps: int) -> Trainer:
    """A trainer whose ticks are published, those of steps 1 and 2 unless others are given."""
    trainer = Trainer(name).log(*(steps or (1, 2)))
    rig.take(ANNA, trainer.data())
    rig.settle()
    rig.answers(ANNA)
    return trainer


def ended(rig: Rig, name: str = "main") -> Trainer:
    """A trainer that has logged step 1 and whose run is sealed; the seed has its name."""
    trainer = Trainer(name, make_run(name, name)).log(1).end()
    rig.take(ANNA, trainer.data())
    rig.settle()
    rig.answers(ANNA)
    return trainer
