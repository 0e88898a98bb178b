"""Messages and records of every kind, right and almost right, made by choices."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import msgpack

from mle_client import artifact_wire as aw
from mle_client import message_wire, tick_writers, wire
from mle_client import messages as m
from tests.daemon_rig import ROOT, make_run
from tests.fuzz.choices import Choices

_ID: Final = m.ProducerId(b"p" * 16)
SCHEMAS: Final = (
    m.Schema(0, (m.Field("step", m.INT),), (m.Field("loss", m.FLOAT), m.Field("done", m.BOOL))),
    m.Schema(1, (m.Field("step", m.INT),), (m.Field("note", m.TEXT),)),
    m.Schema(2, (), (m.Field("grad", m.Kind("<f4", (2, 3))), m.Field("none", m.Kind("|u1", (0,))))),
)
_SAVED: Final = {"number": 1, "time": 2.0, "metrics": {"loss": 0.5}, "clocks": {"step": 3}}
RUNS: Final = (
    make_run("fuzzed"),
    make_run(
        "kept", "seed_2",
        policy={"every_k": 2, "top_k": 1, "top_k_metric": "loss", "minimize": True,
                "time_name": None, "rules": [{"rule": "TopK", "metric": "loss", "k": 2}]},
        kept={"portfolio": {"saves": 1, "init_saved": True, "every_k": [_SAVED], "top_k": [_SAVED],
                            "retained": [_SAVED]}, "figures": ["figures/a.png"], "extras": []},
        tboard=True, wandb={"project": "p"}, num_seeds=3, reload=True, config_name="c.yaml",
        config_file=b"a: 1",
    ),
)  # fmt: skip
_HISTOGRAM: Final = {
    "min": 0.0, "max": 1.0, "num": 2, "sum": 1.0, "sum_squares": 1.0, "counts": [1.0, 1.0],
}  # fmt: skip
RECORDS: Final[tuple[wire.PlainRecord, ...]] = (
    *SCHEMAS,
    m.Artifact(1, "model", "", _SAVED),
    m.Artifact(2, "init", "", {}),
    m.Artifact(3, "figure", "figures/a.png", {"step": 1, "seconds": 2.0, "row": 0}),
    m.Artifact(4, "extra", "extra/1", {}),
    m.Artifact(1, m.DROPPED, "", {}),
    m.Histograms(1.0, 2, {"w": _HISTOGRAM}),
    m.Gap(3, "no room"),
    m.End(),
)
TICKS: Final = (
    tick_writers.pack_fixed(SCHEMAS[0], 1.0, (1, 0.5, True)),
    wire.encode_text_tick(SCHEMAS[1], 1.0, (1, "hello")),
    tick_writers.pack_fixed(SCHEMAS[2], 1.0, (bytes(24), b"")),
)
REQUESTS: Final[tuple[m.Request, ...]] = (
    m.Hello(m.PROTOCOL_VERSION, 1, "here"),
    m.Data(_ID, 0, wire.encode_record(RUNS[0]) + wire.encode_record(m.End())),
    m.Save(_ID),
    m.Flush(1, _ID, 10),
    m.Publish(2, "/exps/exp"),
    m.AskStatus(3),
    m.Stop(4),
)
REPLIES: Final[tuple[m.Reply, ...]] = (
    m.Welcome(m.PROTOCOL_VERSION, "id", "/exps", 4 * 2**20, "ipc:///there"),
    m.Ack(_ID, 1, 2, 3),
    m.Expect(_ID, 1),
    m.Refused(_ID, "why"),
    m.Notice(_ID, "why"),
    m.Done(1, ""),
    m.Status(1, {"runs": []}),
    m.Leaving(),
    m.Renamed(_ID, "seed_1"),
    m.Stored(_ID, 1, ""),
)
ARTIFACT_MESSAGES: Final[tuple[aw.Message, ...]] = (
    aw.Offer(_ID, 1, 10, aw.FILE),
    aw.Chunk(_ID, 1, 0, b"0123456789"),
    aw.Taken(_ID, 1, 5),
    aw.Declined(_ID, 1, "why"),
    aw.Restart(_ID, 1),
)


def frames(choices: Choices, replies: bool = True) -> list[bytes]:
    """The frames of a message of the first socket, mostly of one that is not quite right."""
    message = choices.pick((*REQUESTS, *REPLIES) if replies else REQUESTS)
    return _changed_frames(choices, message_wire.encode(message))


def artifact_frames(choices: Choices) -> list[bytes]:
    """The frames of a message of the artifact socket, mostly of one that is not quite right."""
    message = choices.pick(ARTIFACT_MESSAGES)
    return _changed_frames(choices, [bytes(frame) for frame in aw.encode(message)])


def _changed_frames(choices: Choices, made: list[bytes]) -> list[bytes]:
    head, *rest = made
    if choices.below(4):
        head = _pack(choices.changed(msgpack.unpackb(head, strict_map_key=False)))
    if rest and choices.below(4):
        rest = [records(choices)]
    if not choices.below(4):
        head = choices.spoilt(head)
    match choices.below(16):
        case 0:
            rest = []
        case 1:
            rest = [*rest, choices.take(choices.below(9))]
        case 2:
            return [b"", head, *rest]
        case 3:
            rest = [b""] * choices.below(9)
    return [head, *rest]


def records(choices: Choices) -> bytes:
    """Some records of a stream, mostly right ones."""
    pieces = []
    for _ in range(1 + choices.below(6)):
        match choices.below(4):
            case 0:
                pieces.append(choices.pick(TICKS))
            case 1:
                pieces.append(changed_record(choices, choices.pick(RECORDS)))
            case 2:
                pieces.append(wire.encode_record(choices.pick(RECORDS)))
            case _:
                pieces += map(wire.encode_record, SCHEMAS)
    if not choices.below(8):
        pieces.insert(0, changed_record(choices, choices.pick(RUNS)))
    joined = b"".join(pieces)
    return choices.spoilt(joined) if choices.one_in(4) else joined


def changed_record(choices: Choices, record: wire.PlainRecord) -> bytes:
    """A record with a part of it changed."""
    body: Any = msgpack.unpackb(wire.encode_record(record), strict_map_key=False)
    for _ in range(1 + choices.below(3)):
        body = choices.changed(body)
    return _pack(body)


def run(choices: Choices, number: int, directory: str = f"{ROOT}/exp", **changes: Any) -> bytes:
    """The record of a run, mostly right, whose id and seed's name are made of a number.

    Args:
        changes: of the run, before something in it may be changed.
    """
    name = f"fuzzed {number}"
    plain = dataclasses.replace(
        choices.pick(RUNS),
        run_id=make_run(name).run_id,
        seed_id=f"fuzzed_{number}",
        directory=directory,
        **changes,
    )
    if choices.below(2):
        return changed_record(choices, plain)
    record = wire.encode_record(plain)
    if choices.one_in(8):  # a key that is there twice: the last one counts
        assert record[5:8] == b"\xde\0\x14"
        record = record[:7] + b"\x15" + record[8:] + _pack("seed_id") + _pack("fuzzed_twice")
    return record


def _pack(body: Any) -> bytes:
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    return packed
