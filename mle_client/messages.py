"""The values that cross between the two sides, and the bounds they keep.

Pure.  Two vocabularies:

* *records* make up a producer's stream, the ordered byte string that its ring, the socket and
  the journal hold: `Run`, `Schema`, ticks (`wire.Block`), `Artifact`, `Histograms`, `Gap`, `End`;
* *messages* are what a socket carries: pieces of streams, their acknowledgements, requests.

`wire` turns both into bytes and back.  A *position* is a byte offset in a stream: it numbers every
tick without a counter in the hot path, and a resend need not be cut as the first attempt was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, NewType

PROTOCOL_VERSION = 1

RunId = NewType("RunId", bytes)  # 16 random bytes; one per MLELogger
ProducerId = NewType("ProducerId", bytes)  # 16 random bytes; one per process that logs to a run

NO_PRODUCER = ProducerId(b"")  # in a `Refused` that is about no stream

# Bounds.  Each is refused with an error that names it; none is reached by sensible use.
MAX_KEYS = 10_000  # clocks and statistics in one tick
MAX_KEY_BYTES = 4_096  # UTF-8 bytes of one key
MAX_STRING_BYTES = 64 * 1024  # UTF-8 bytes of one string value; longer text belongs in an artifact
MAX_TICK_BYTES = 16 * 2**20  # one encoded tick; larger arrays belong in an artifact
MAX_DIMENSIONS = 31  # of an array; HDF5 has 32, and one is the tick
MAX_CONFIG_BYTES = 8 * 2**20  # a configuration file
MAX_PLAIN_BYTES = 2**20  # the settings of a run, a tick's histograms
MAX_NAME_BYTES = 4_096  # UTF-8 bytes of an artifact's path, of a run's folder and other names
MAX_REASON_BYTES = 4_096  # UTF-8 bytes of what a daemon says to a client; the rest is cut off
MAX_SCHEMAS = 4_096  # combinations of keys and types that one producer may use
MAX_SCHEMA_BYTES = 16 * 2**20  # of all of them together; in memory they take ten times as much
MAX_RUN_BYTES = 24 * 2**20  # a run's record: a configuration is in it up to three times
MAX_FACTS_BYTES = 64 * 1024  # of an artifact; thousands may wait at once
MAX_UNSTORED = 10_000  # artifacts of one producer on their way; a save waits, and then fails
MAX_COUNT = 2**63 - 1  # what files, and everybody's msgpack, can hold
# In one piece of a stream, ticks of one schema that follow each other counted once.  A segment of a
# ring, which is what a client sends, holds half as many of the smallest.
MAX_RECORDS = 2**15
MAX_FRAME_BYTES = 32 * 2**20  # anything larger on the socket is not ours
MAX_REQUEST_BYTES = 64 * 1024  # a request's first frame: the longest holds a path
# Values in the lists and maps of one record or message, scalars too: each takes up to 70 bytes in
# memory, however few it has on the wire.
MAX_ITEMS = 2**20


class Kind(NamedTuple):
    """The type of one value.  A tuple, as `Field`: they are hashed and compared often.

    Args:
        code: "i8" (int64), "f8" (float64), "b1" (bool), "str" (UTF-8 text), or, for an array, the
            numpy type string of its items in little-endian order.
        shape: of an array; () for the four scalars.
    """

    code: str
    shape: tuple[int, ...] = ()


INT = Kind("i8")
FLOAT = Kind("f8")
BOOL = Kind("b1")
TEXT = Kind("str")
ARRAY_CODES = frozenset(
    ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
)


class Field(NamedTuple):
    """One key of a tick and the type of its value."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Schema:
    """The keys and types of a tick, sent once and then named by its number.

    Attributes:
        size: about the bytes of its record, never less.
    """

    number: int
    clock: tuple[Field, ...]
    stats: tuple[Field, ...]
    size: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        size = 32 + sum(4 * len(f.name) + 16 + 5 * len(f.kind.shape) for f in self.fields)
        object.__setattr__(self, "size", size)

    @property
    def fields(self) -> tuple[Field, ...]:
        """All fields in the order in which a tick holds their values."""
        return self.clock + self.stats


class Process(NamedTuple):
    """A process, such that a recycled pid is not taken for it.

    Args:
        pid, host: of the process.
        started: when it began, see `runtime.process_started`.
        boot_id: of the machine's running system, see `runtime.boot_id`.
    """

    pid: int
    host: str
    started: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class Run:
    """Opens a stream: what is logged, and where to.

    Args:
        run_id: of the logger; several producers (a forked child) may share it.
        directory: absolute path of the experiment's folder, links resolved.
        experiment_dir: the folder as the user wrote it, for meta/experiment_dir.
        seed_id: name of the seed's group and part of the log's file name.
        eval_id: the configuration's base name, or "".
        model_type: of mle-logging.
        start_time: seconds since the epoch at which time_elapsed is 0.
        config_name: file name under which `config_file` is copied into the folder, or "".
        config_file: its bytes, as they were when the logger was made.
        config_text: the configuration as a Python literal, as mle-logging stores it.
        config_json: the same as JSON where the literal cannot say it all, else "".
        num_seeds: how many seeds this configuration has, or None where nobody said.
        overwrite: True to delete a log of that name, False to put it aside.
        reload: True to continue the log of that name.
        policy: which checkpoints are kept, a plain `retention.Policy`.
        kept: what a continued run has kept so far, a plain `retention.Kept`; else {}.
        tboard: mirror the run into TensorBoard's event files.
        wandb: settings of a mirror in W&B's offline mode; {} for none.
        forked: the producer is a forked child of the process that made the logger.
        process: that logs.
    """

    run_id: RunId
    directory: str
    experiment_dir: str
    seed_id: str
    eval_id: str
    model_type: str
    start_time: float
    config_name: str
    config_file: bytes
    config_text: str
    config_json: str
    num_seeds: int | None
    overwrite: bool
    reload: bool
    policy: dict[str, Any]
    kept: dict[str, Any]
    tboard: bool
    wandb: dict[str, Any]
    forked: bool
    process: Process


DROPPED = "dropped"
ARTIFACT_KINDS = ("model", "init", "figure", "extra", DROPPED)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model, figure or object was saved here; its bytes come on the artifact socket.

    A second record of the same number, of the kind `DROPPED`, says that they will not come: newer
    checkpoints have taken all its places.

    Args:
        number: counts the artifacts of this producer, from 1.
        kind: one of `ARTIFACT_KINDS`.
        name: path relative to the experiment's folder of a figure or object; "" of a model, whose
            names follow from `facts`.
        facts: of a model, a plain `retention.Saved`; of a figure that came with a tick, its
            "step", "seconds" and "row"; else {}.
    """

    number: int
    kind: str
    name: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Histograms:
    """How the values of some arrays are spread, for TensorBoard.

    Args:
        seconds: since the epoch, of the tick that they came with.
        step: of the user's first clock.
        tags: a plain `histograms.Histogram` for each name.
    """

    seconds: float
    step: int
    tags: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Gap:
    """Ticks that a producer could not keep.  Args: ticks: how many; reason: why."""

    ticks: int
    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """Closes a stream.  Nothing follows."""


# --- messages, client to daemon -------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Hello:
    """First on every connection."""

    version: int
    pid: int
    host: str


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a stream.  Args: position: of its first byte; payload: whole records."""

    producer: ProducerId
    position: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Save:
    """Asks for publication of a run soon.  No answer."""

    producer: ProducerId


@dataclass(frozen=True, slots=True)
class Flush:
    """Asks for all before `position` to be synced, published and stored; answered by `Done`."""

    token: int
    producer: ProducerId
    position: int


@dataclass(frozen=True, slots=True)
class Publish:
    """A reader asks for the publication of every run under `path`; answered by `Done`."""

    token: int
    path: str


@dataclass(frozen=True, slots=True)
class AskStatus:
    """Answered by `Status`."""

    token: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Asks the daemon to drain, publish and leave; answered by `Done` when all is on disk."""

    token: int


# --- messages, daemon to client -------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Welcome:
    """Answers `Hello`.

    Args:
        window: bytes that the client may send ahead of acks.
        artifacts: address of the socket for artifacts.
    """

    version: int
    daemon_id: str
    root: str
    window: int
    artifacts: str = ""


@dataclass(frozen=True, slots=True)
class Ack:
    """Everything before `position` is in the journal.

    Args:
        ticks: of this producer in the journal.
        published: position up to which the log file holds the stream.
    """

    producer: ProducerId
    position: int
    ticks: int
    published: int


@dataclass(frozen=True, slots=True)
class Expect:
    """The daemon wants the stream from `position` on."""

    producer: ProducerId
    position: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The daemon does not take something.  Args: producer: b"" where it is about no stream."""

    producer: ProducerId
    reason: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something went wrong with a run in the background; its data are kept."""

    producer: ProducerId
    reason: str


@dataclass(frozen=True, slots=True)
class Renamed:
    """The run's seed is stored under another name: another live run has the one it asked for."""

    producer: ProducerId
    seed_id: str


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact is on disk under its names, or turned out not to be wanted any more.

    Args:
        number: of the artifact.
        error: "" or why it never will be.
    """

    producer: ProducerId
    number: int
    error: str


@dataclass(frozen=True, slots=True)
class Done:
    """Answers a request.  Args: error: "" where all went well."""

    token: int
    error: str


@dataclass(frozen=True, slots=True)
class Status:
    """Answers `AskStatus`.  Args: report: see `mle_daemon.status`."""

    token: int
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Leaving:
    """The daemon was told to stop.

    Clients keep what they have, and start no other daemon unless user code waits for the data.
    """


Request = Hello | Data | Save | Flush | Publish | AskStatus | Stop
Reply = Welcome | Ack | Expect | Refused | Notice | Done | Status | Leaving | Renamed | Stored
Message = Request | Reply
