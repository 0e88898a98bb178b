"""What happens to the daemon, and what it decides to do: events in, instructions out.

Pure values; `core` maps one to the other, `daemon` delivers and carries out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NewType, TypeAlias

from mle_client import messages as m
from mle_client import wire
from mle_client.layout import MetaList
from mle_daemon.columns import FileState

Client = NewType("Client", bytes)  # a connection's identity on the socket; b"" is the daemon itself
NOBODY = Client(b"")


# --- events ---------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Received:
    """A message came from a client, or out of the ring of a dead one."""

    client: Client
    message: m.Request


@dataclass(frozen=True, slots=True)
class Journaled:
    """What was to be appended is in the journal.  Args: segment: number of the one written to."""

    segment: int


@dataclass(frozen=True, slots=True)
class JournalFailed:
    """What was to be appended is not in the journal."""

    error: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """A record was read from the journal at start.  Args: record: what `core` once appended."""

    segment: int
    record: bytes


@dataclass(frozen=True, slots=True)
class Recovered:
    """The whole journal was replayed."""


@dataclass(frozen=True, slots=True)
class RunOpened:
    """A run's folder is ready.

    Args:
        file: what is published of it already, or None.
        note: what the user should know, such as where an older log was put.
    """

    run_id: m.RunId
    file: FileState | None
    note: str


@dataclass(frozen=True, slots=True)
class RunNotOpened:
    """A run's folder cannot be used.  Args: final: whether trying again is of no use."""

    run_id: m.RunId
    error: str
    final: bool


@dataclass(frozen=True, slots=True)
class Published:
    """A publication ended well.  Args: cost: seconds it took."""

    run_id: m.RunId
    file: FileState
    cost: float
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PublishFailed:
    """A publication failed.

    Args:
        reopen: the published file is not what it was: somebody removed or changed it, or it has
            the new ticks, and only its name is not on disk for sure.
        removed: it is not there any more.
    """

    run_id: m.RunId
    error: str
    reopen: bool = False
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Sealed:
    """A finished run's file has its final form.

    Args:
        file: as it is now.
        error: "" or why it kept the old form.
    """

    run_id: m.RunId
    file: FileState
    error: str


@dataclass(frozen=True, slots=True)
class ProducerGone:
    """A producer's process is gone, and all that its ring held was received.

    Args:
        left: numbers of the artifacts whose bytes it left behind; they are being taken in.
    """

    producer: m.ProducerId
    left: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Arrived:
    """All bytes of an artifact are here, synced.  Args: path: of the file; size: in bytes."""

    producer: m.ProducerId
    number: int
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class NotArrived:
    """An artifact's bytes cannot be taken in.  Args: final: trying again is of no use."""

    producer: m.ProducerId
    number: int
    error: str
    final: bool


@dataclass(frozen=True, slots=True)
class ArtifactStored:
    """An artifact is on disk under its names."""

    producer: m.ProducerId
    number: int


@dataclass(frozen=True, slots=True)
class ArtifactNotStored:
    """An artifact could not be given its names.  Args: final: trying again is of no use."""

    producer: m.ProducerId
    number: int
    error: str
    final: bool


@dataclass(frozen=True, slots=True)
class RingsSeen:
    """The rings that lie there.  Args: producers: of all of them, their processes alive or not."""

    producers: frozenset[m.ProducerId]


@dataclass(frozen=True, slots=True)
class PublishEverything:
    """A signal asked for publication of all runs."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The daemon is to leave.

    Args:
        client, token: whom to answer.
        idle: nobody said so; there was nothing to do.
    """

    client: Client = NOBODY
    token: int = 0
    idle: bool = False


@dataclass(frozen=True, slots=True)
class MergeBegun:
    """The merging process is at a job: it does one after another."""

    job: MergeGroup | RefreshMeta


@dataclass(frozen=True, slots=True)
class GroupMerged:
    """The seeds of a configuration are merged, as far as they have ended.

    Args:
        directory: of the configuration.
        seeds: how many are in the merged file, or in others of several seeds.
        why: "", or what was left out and why.
        states: {seed: "finished" or "crashed"} of those that have ended, as their logs say.
    """

    directory: str
    seeds: int
    why: str = ""
    states: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupNotMerged:
    """The seeds of a configuration are not merged; their logs are what they were.

    Args:
        directory: of the configuration.
        error: why.
        too_few: not as many have ended as it takes.
        gone: there is no such folder any more, or no log in it.
        retry: the reason may go away by itself.
        seeds, states: where there are too few, as of `GroupMerged`.
    """

    directory: str
    error: str
    too_few: bool = False
    gone: bool = False
    retry: bool = False
    seeds: int = 0
    states: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetaRefreshed:
    """The merged log of all configurations in a folder is written.

    Args:
        folder: of the configurations.
        error: "" or why not.
        retry: the reason may go away by itself.
        why: "", or what was left out and why.
        took: seconds.
    """

    folder: str
    error: str = ""
    retry: bool = False
    why: str = ""
    took: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class PatienceEnded:
    """A daemon that was asked to stop leaves now, whatever is still to be merged."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something beside a run's log went wrong; its user is to know."""

    run_id: m.RunId
    text: str


Event: TypeAlias = (
    Received | Journaled | JournalFailed | Replayed | Recovered | RunOpened | RunNotOpened
    | Published | PublishFailed | Sealed | ProducerGone | RingsSeen | PublishEverything
    | StopAsked | Tick | Arrived | NotArrived | ArtifactStored | ArtifactNotStored | Problem
    | MergeBegun | GroupMerged | GroupNotMerged | MetaRefreshed | PatienceEnded
)  # fmt: skip


# --- instructions ---------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a client."""

    client: Client
    message: m.Reply


@dataclass(frozen=True, slots=True)
class AppendJournal:
    """Append a record, given in parts; answered by `Journaled` or `JournalFailed`."""

    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class DropSegments:
    """Remove journal segments: all they hold is published."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OpenRun:
    """Make a run's folder ready; answered by `RunOpened` or `RunNotOpened`.

    Args:
        seed_id: of the group in the file.
        path: of the file.
        saves: number of the latest checkpoint.
        retained: numbers of those in models/retained that are kept; earlier others go.
    """

    run: m.Run
    seed_id: str
    path: str
    saves: int = 0
    retained: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Image:
    """A stored figure that came with a tick.

    Args:
        seconds: since the epoch, of the tick.
        step: of the user's first clock.
        row: 0-based number of the tick in its run.
        name: path relative to the experiment's folder.
    """

    seconds: float
    step: int
    row: int
    name: str


@dataclass(frozen=True, eq=False, slots=True)
class PublishRun:
    """Publish what is new of a run; answered by `Published` or `PublishFailed`.

    Args:
        run: with what goes into meta/.
        seed_id: of the group in the file.
        path: of the file.
        file: what is published already, or None.
        blocks: the ticks that are not, in arrival order.
        lost: ticks of the run that were lost in all.
        applied: {producer hex: position} with which the file will be complete.
        status: "running", "finished" or "crashed".
        kept: what the run has stored beside its log, as JSON; "" for nothing.
        lists: the same as the lists of meta/.
        histograms, images: that came with ticks, for the mirrors.
    """

    run: m.Run
    seed_id: str
    path: str
    file: FileState | None
    blocks: tuple[wire.Block, ...]
    lost: int
    applied: Mapping[str, int]
    status: str
    kept: str = ""
    lists: Mapping[str, MetaList] = field(default_factory=dict)
    histograms: tuple[m.Histograms, ...] = ()
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class SealRun:
    """Give a finished run's file its final form; answered by `Sealed`."""

    run_id: m.RunId
    path: str
    file: FileState


@dataclass(frozen=True, slots=True)
class StoreArtifact:
    """Give an artifact its names; answered by `ArtifactStored` or `ArtifactNotStored`.

    Args:
        staged: path of its bytes; nothing is left there.
        directory: absolute path of the experiment's folder.
        names: relative to that; all are to be the same file.
        evict: relative names to remove once `names` are on disk.
    """

    producer: m.ProducerId
    number: int
    staged: str
    directory: str
    names: tuple[str, ...]
    evict: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evict:
    """Remove files that no rule keeps any more.  Args: as of `StoreArtifact`."""

    directory: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DiscardArtifact:
    """Remove the bytes of an artifact that will get no name."""

    producer: m.ProducerId
    number: int


@dataclass(frozen=True, slots=True)
class MergeGroup:
    """Merge the seeds of a configuration; answered by `GroupMerged` or `GroupNotMerged`.

    Args:
        directory: of the configuration.
        at_least: how many of its seeds must have ended.
        keep_seed_logs: leave their own logs where they are.
    """

    directory: str
    at_least: int
    keep_seed_logs: bool


@dataclass(frozen=True, slots=True)
class RefreshMeta:
    """Merge all configurations in a folder; answered by `MetaRefreshed`."""

    folder: str


@dataclass(frozen=True, slots=True)
class Log:
    """Write a line to the daemon's log.  Args: level: of the logging module, such as "warning"."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Leave:
    """All is on disk: end the process.  Args: asked: a user said so; nobody is to restart it."""

    asked: bool


Instruction: TypeAlias = (
    Send | AppendJournal | DropSegments | OpenRun | PublishRun | SealRun | Log | Leave
    | StoreArtifact | Evict | DiscardArtifact | MergeGroup | RefreshMeta
)  # fmt: skip

# What a status report is made of.
Report: TypeAlias = dict[str, Any]
