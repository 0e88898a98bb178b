"""The journal's own record: what is known of unfinished runs besides their ticks.  Version 1.

Pure.  A msgpack array ["state", {"runs": […], "streams": […], "groups": […], "meta_logs": […]}],
readable by any msgpack decoder; a run and a schema inside are the records of `mle_client.wire`, as
bytes; a group, which is to be merged, is its folder and how many seeds it has, if that is known; a
meta log, which is to be written, is its folder.

A second, short kind of record, ["settled", [[producer, number], …], [[producer, number], …]], says
which artifacts are stored, and which are lost: they need no more care.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgpack

from mle_client import messages as m
from mle_client import wire
from mle_client.errors import ProtocolError

NAME: Final = "state"
SETTLED_NAME: Final = "settled"

Group: TypeAlias = tuple[str, int | None]  # folder of a configuration; how many seeds it has
Artifact: TypeAlias = tuple[m.ProducerId, int]  # by its producer and its number


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
    groups: tuple[Group, ...] = ()
    meta_logs: tuple[str, ...] = ()


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
    content = {
        "runs": runs, "streams": streams, "groups": saved.groups, "meta_logs": saved.meta_logs,
    }  # fmt: skip
    packed: bytes = msgpack.packb([NAME, content], use_bin_type=True)
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
        # An earlier release wrote none.
        groups = tuple(
            (str(folder), None if seeds is None else int(seeds))
            for folder, seeds in content.get("groups", ())
        )
        meta_logs = tuple(map(_folder, content.get("meta_logs", ())))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ProtocolError(f"a state record is malformed: {error}") from error
    return Saved(runs, streams, groups, meta_logs)


def encode_settled(stored: Iterable[Artifact], lost: Iterable[Artifact]) -> bytes:
    """The bytes of a record that artifacts are stored, and others will never be."""
    body = [SETTLED_NAME, list(map(list, stored)), list(map(list, lost))]
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    return packed


def decode_settled(body: list[Any]) -> tuple[list[Artifact], list[Artifact]]:
    """The arguments of `encode_settled` from the unpacked array of its record.

    Raises:
        ProtocolError: it was written by something else.
    """
    try:
        _, *lists = body
        stored, lost = ([(m.ProducerId(p), int(number)) for p, number in each] for each in lists)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"a record of settled artifacts is malformed: {error}") from error
    return stored, lost


def _folder(value: Any) -> str:
    if not isinstance(value, str):
        raise ProtocolError("a state record holds something else where a folder should be")
    return value


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
