"""What happens to the daemon, and what it decides to do: events in, instructions out.

Pure values; `core` maps one to the other, `daemon` delivers and carries out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NewType, TypeAlias

from mle_client import messages as m
from mle_client import wire
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
        reopen: the published file is no longer the daemon's: somebody removed or changed it.
            Otherwise it is what it was.
    """

    run_id: m.RunId
    error: str
    reopen: bool = False


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
    """A producer's process is gone, and all that its ring held was received."""

    producer: m.ProducerId


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
class Tick:
    """Time has passed."""


Event: TypeAlias = (
    Received | Journaled | JournalFailed | Replayed | Recovered | RunOpened | RunNotOpened
    | Published | PublishFailed | Sealed | ProducerGone | RingsSeen | PublishEverything
    | StopAsked | Tick
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
    """Make a run's folder ready; answered by `RunOpened` or `RunNotOpened`."""

    run: m.Run
    seed_id: str
    path: str


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
    """

    run: m.Run
    seed_id: str
    path: str
    file: FileState | None
    blocks: tuple[wire.Block, ...]
    lost: int
    applied: Mapping[str, int]
    status: str


@dataclass(frozen=True, slots=True)
class SealRun:
    """Give a finished run's file its final form; answered by `Sealed`."""

    run_id: m.RunId
    path: str
    file: FileState


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
)  # fmt: skip

# What a status report is made of.
Report: TypeAlias = dict[str, Any]
