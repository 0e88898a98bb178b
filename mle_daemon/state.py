"""The journal's own record: what is known of unfinished runs besides their ticks.  Version 1.

Pure.  A msgpack array ["state", {"runs": […], "streams": […]}], readable by any msgpack decoder;
a run and a schema inside are the records of `mle_client.wire`, as bytes.  A second, short kind of
record, ["stored", [[producer, number], …]], says which artifacts need no more care.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from mle_client import messages as m
from mle_client import wire
from mle_client.errors import ProtocolError

NAME: Final = "state"
STORED_NAME: Final = "stored"


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run that is not sealed.

    Args:
        artifacts: as of `artifacts.Artifacts.to_plain`; the rest as of `runs.RunState`.
    """

    run: m.Run
    seed_id: str
    path: str
    lost: int
    artifacts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SavedStream:
    """A stream.  Args: run_id: None where its run is sealed; the rest as of `runs.Member`."""

    producer: m.ProducerId
    position: int
    ticks: int
    schemas: Mapping[int, m.Schema]
    run_id: m.RunId | None
    main: bool
    over: bool
    crashed: bool
    process: m.Process | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """All of a state record."""

    runs: tuple[SavedRun, ...]
    streams: tuple[SavedStream, ...]


def encode(saved: Saved) -> bytes:
    """The bytes of a state record."""
    runs = [
        [wire.encode_record(r.run), r.seed_id, r.path, r.lost, dict(r.artifacts)]
        for r in saved.runs
    ]
    streams = [
        [
            s.producer,
            s.position,
            s.ticks,
            b"".join(wire.encode_record(schema) for schema in s.schemas.values()),
            s.run_id,
            s.main,
            s.over,
            s.crashed,
            s.process,
        ]
        for s in saved.streams
    ]
    packed: bytes = msgpack.packb([NAME, {"runs": runs, "streams": streams}], use_bin_type=True)
    return packed


def decode(body: list[Any]) -> Saved:
    """A state record from its unpacked array.

    Raises:
        ProtocolError: it was written by something else.
    """
    try:
        _, content = body
        runs = tuple(
            SavedRun(_one_run(run), seed_id, path, lost, artifacts)
            for run, seed_id, path, lost, artifacts in content["runs"]
        )
        streams = tuple(_stream(*values) for values in content["streams"])
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ProtocolError(f"a state record is malformed: {error}") from error
    return Saved(runs, streams)


def encode_stored(artifacts: Iterable[tuple[m.ProducerId, int]]) -> bytes:
    """The bytes of a record that artifacts are stored, or will never be."""
    packed: bytes = msgpack.packb([STORED_NAME, list(map(list, artifacts))], use_bin_type=True)
    return packed


def decode_stored(body: list[Any]) -> list[tuple[m.ProducerId, int]]:
    """A record of `encode_stored` from its unpacked array.

    Raises:
        ProtocolError: it was written by something else.
    """
    try:
        _, artifacts = body
        return [(m.ProducerId(producer), int(number)) for producer, number in artifacts]
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"a record of stored artifacts is malformed: {error}") from error


def _one_run(packed: bytes) -> m.Run:
    (record,) = wire.StreamDecoder().decode(packed)
    if not isinstance(record, m.Run):
        raise ProtocolError("a state record holds something else where a run should be")
    return record


def _stream(
    producer: bytes,
    position: int,
    ticks: int,
    schemas: bytes,
    run_id: bytes | None,
    main: bool,
    over: bool,
    crashed: bool,
    process: list[Any] | None,
) -> SavedStream:
    decoder = wire.StreamDecoder()
    decoder.decode(schemas)
    return SavedStream(
        m.ProducerId(producer),
        position,
        ticks,
        decoder.schemas,
        None if run_id is None else m.RunId(run_id),
        main,
        over,
        crashed,
        None if process is None else m.Process(*process),
    )
