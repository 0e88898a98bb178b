"""Takes in again what an earlier process had journaled, record by record.

Pure.  A record is a producer's piece, a state record or a list of
stored artifacts; of all, only what is not known yet is
taken.  Where the journal is damaged it goes on behind the damage and says what is missing.
"""

from __future__ import annotations

from mle_client import message_wire, packing
from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_daemon import state
from mle_daemon.artifact_flow import ArtifactFlow
from mle_daemon.groups import Groups
from mle_daemon.ingest import Stream
from mle_daemon.intake import Intake
from mle_daemon.openings import Openings
from mle_daemon.outbox import Outbox
from mle_daemon.registry import Registry


class Replay:
    """The start of a daemon.

    Args:
        registry: where runs and streams are entered.
        openings: told of the runs.
        intake: takes the pieces.
        artifacts: told which are stored.
        groups: told which are to be merged.
        outbox: takes what is to be said in the daemon's log.
    """

    def __init__(
        self,
        registry: Registry,
        openings: Openings,
        intake: Intake,
        artifacts: ArtifactFlow,
        groups: Groups,
        outbox: Outbox,
    ) -> None:
        self._groups = groups
        self._registry = registry
        self._openings = openings
        self._intake = intake
        self._artifacts = artifacts
        self._out = outbox

    def take(self, segment: int, record: bytes, now: float) -> None:
        """Take in a record.  Args: segment: number of the journal segment that it is in."""
        try:
            body, payload = packing.split_record(record)
            if body[:1] == [state.NAME]:
                self._restore(state.decode(body), now)
                return
            if body[:1] == [state.SETTLED_NAME]:
                self._artifacts.replayed(*state.decode_settled(body))
                return
            message = message_wire.decode([record[: len(record) - len(payload)], payload])
        except ProtocolError as error:
            self._out.log("error", f"a journal record is passed over: {error}")
            return
        if isinstance(message, m.Data):
            self._make_way(message)
            self._intake.replay(segment, message, now)

    def _make_way(self, data: m.Data) -> None:
        """Let a replayed piece be taken as it was when it was journaled, whatever is damaged."""
        producer, ended = data.producer, self._registry.ended
        stream = self._registry.streams.get(producer)
        if stream is not None and data.position > stream.position:
            self._skip(stream, data.position)
        elif stream is None and data.position == 0:
            ended.pop(producer, None)  # it was begun again
        elif stream is None and producer not in ended:
            self._out.log("error", f"stream {producer.hex()} is passed over: its beginning is lost")

    def _skip(self, stream: Stream, position: int) -> None:
        """Go on behind a damaged part of the journal."""
        self._out.log(
            "error",
            f"the journal has lost {position - stream.position} bytes of stream "
            f"{stream.producer.hex()}: the ticks in them are missing in its log",
        )
        stream.skip(position)
        if run := self._registry.run_of(stream.producer):
            run.members[stream.producer].position = position

    def _restore(self, saved: state.Saved, now: float) -> None:
        """Take over the runs and streams of a state record, but for those known already."""
        for directory, expected in saved.groups:
            self._groups.restore(directory, expected)
        for folder in saved.meta_logs:
            self._groups.restore_meta_log(folder)
        for run in saved.runs:
            if self._registry.restore_run(run):
                self._openings.want(run.run.run_id, now)
        for stream in saved.streams:
            present = self._registry.streams.get(stream.producer)
            if stream.run_id is None or stream.run_id not in self._registry.runs:
                self._registry.put_away(stream.producer, stream.position, stream.ticks)
            elif present is None:
                self._registry.restore_stream(stream, stream.run_id)
            elif stream.position > present.position:
                self._skip(present, stream.position)
                present.ticks, present.schemas = stream.ticks, dict(stream.schemas)
