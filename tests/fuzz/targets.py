"""What is fuzzed: functions of bytes that raise where the bytes have done harm.

Each stands for a place where bytes of others come in.  `python -m tests.fuzz` lets a
coverage-guided fuzzer look for such bytes.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Callable
from typing import Any, Final

from mle_client import artifact_wire as aw
from mle_client import histograms, message_wire, remains, ring, snapshot_format, tick_layout, wire
from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_daemon import events as e
from mle_daemon import journal_format
from tests.daemon_rig import BERT, Files, LogFile, Rig, Trainer
from tests.fuzz import messages
from tests.fuzz.choices import Choices

FUZZER: Final = e.Client(b"fuzzer")


# --- bytes on the sockets -------------------------------------------------------------------------
def wire_target(data: bytes) -> None:
    """Frames are a message or refused; a payload is records, whose columns can be read, or not."""
    choices = Choices(data)
    with contextlib.suppress(ProtocolError):
        message = message_wire.decode(messages.frames(choices))
        again = message_wire.decode(message_wire.encode(message))
        assert type(again) is type(message)
        assert again == message or not isinstance(message, m.Request)  # of replies, texts are cut
    decoder = wire.StreamDecoder()
    before: dict[int, m.Schema] = {}
    for _ in range(3):
        try:
            found = decoder.decode(messages.records(choices))
        except ProtocolError:
            assert decoder.schemas == before
            continue
        before = decoder.schemas
        for record in found:
            _read(record)
    tick_layout.committed_end(data)


def raw_wire_target(data: bytes) -> None:
    """As `wire_target`, of bytes as they are."""
    for frames in ([data], [message_wire.data_header(m.ProducerId(bytes(16)), 0), data]):
        with contextlib.suppress(ProtocolError):
            message_wire.decode(frames)
    with contextlib.suppress(ProtocolError):
        for record in wire.StreamDecoder({s.number: s for s in messages.SCHEMAS}).decode(data):
            _read(record)
    assert 0 <= tick_layout.committed_end(data) <= len(data)


def _read(record: wire.Record) -> None:
    """Use a record as the daemon does."""
    if isinstance(record, wire.Block):
        for index in range(len(record.schema.fields)):
            assert len(record.column(index)) == len(record)
    else:
        wire.encode_record(record)
    if isinstance(record, m.Histograms):
        for plain in record.tags.values():
            with contextlib.suppress(ValueError):
                histograms.from_plain(plain)


def artifact_wire_target(data: bytes) -> None:
    """Frames are a message of the artifact socket, or refused."""
    for frames in (messages.artifact_frames(Choices(data)), [data], [data[:40], data[40:]]):
        with contextlib.suppress(ProtocolError):
            message = aw.decode(frames)
            assert aw.decode(aw.encode(message)) == message


# --- bytes on disk --------------------------------------------------------------------------------
def journal_target(data: bytes) -> None:
    """A segment is scanned whatever is in it, and what was whole before it is found."""
    number = 3
    journal_format.scan(data, number)
    segment = journal_format.header(number)
    records = [b"first", b"second record"]
    for record in records:
        segment += journal_format.frame_header([record], number, len(segment)) + record
    found = journal_format.scan(segment + data, number)
    spans = [bytes((segment + data)[at : at + size]) for at, size in found.frames[:2]]
    assert spans == records


def ring_target(data: bytes) -> None:
    """Segments of a ring are read, or passed over."""
    choices = Choices(data)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as base:
        for number in range(1 + choices.below(3)):
            header = ring.MAGIC + struct.pack("@Q", choices.integer() % 2**64) + bytes(48)
            content = header + messages.records(choices) + bytes([choices.below(2)]) + bytes(40)
            if choices.one_in(3):
                content = choices.spoilt(content)
            with open(os.path.join(base, f"{number:08d}.seg"), "wb") as file:
                file.write(content)
        for each in remains.read_remains(base):
            assert 0 <= each.base < 2**64
            with contextlib.suppress(ProtocolError):
                wire.StreamDecoder().decode(each.payload)


def snapshot_target(data: bytes) -> None:
    """The header of a snapshot is one, or a ValueError."""
    choices = Choices(data)
    header = snapshot_format.Header(
        1, "model", "file", 20, (("00000001.seg", False, 20),), ((0, 4, (8, 12)),)
    )
    good = header.encode()
    for each in (data, choices.spoilt(good), good[:12] + data):
        with contextlib.suppress(ValueError):
            length = snapshot_format.header_bytes(each[: snapshot_format.PREFIX_BYTES])
            body = each[snapshot_format.PREFIX_BYTES :][:length]
            found = snapshot_format.decode_header(body)
            if found.size < 2**20:
                pieces = [memoryview(bytes(found.size))]
                for _ in snapshot_format.with_checksums(pieces, found.checksums):
                    pass


# --- the daemon's brain ---------------------------------------------------------------------------
class _AnyFiles(Files):
    """Log files of streams whose first clock need not be a step."""

    def publish(self, job: e.PublishRun) -> Any:
        steps = [field.name for field in messages.SCHEMAS[0].clock]
        neighbour = [b for b in job.blocks if [f.name for f in b.schema.fields] == steps]
        if len(neighbour) == len(job.blocks):
            return super().publish(job)
        before = self.files.get(job.path)
        rows = [*(before.rows if before else []), *range(sum(map(len, job.blocks)))]
        file = LogFile(job.run.run_id.hex(), rows, dict(job.applied), job.status, job.lost)
        file.kept, file.lists = job.kept, dict(job.lists)
        self.files[job.path] = file
        return file.state()


class Brain:
    """A daemon's core with a neighbour that logs, and somebody who sends what choices make."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.rig.disk = _AnyFiles()
        self.neighbour = Trainer("neighbour")
        self._sent = 0
        self._runs = 0
        self._numbers = [1, 2, 3, 4, 5]
        self._steps: list[int] = []
        self._ids = [m.ProducerId(bytes([each]) * 16) for each in range(1, 4)]

    def step(self, choices: Choices) -> None:
        """Have something happen."""
        rig, producer = self.rig, choices.pick(self._ids)
        match choices.below(16):
            case 0 | 1:
                self._runs += 1
                self._ids[choices.below(3)] = producer = m.ProducerId(
                    self._runs.to_bytes(16, "big")
                )
                payload = messages.run(choices, choices.below(4))
                rig.take(FUZZER, m.Data(producer, 0, payload))
            case 2 | 3 | 4 | 5:
                at = rig.core.position(producer)
                rig.take(FUZZER, m.Data(producer, at, messages.records(choices)))
            case 6 | 7:
                with contextlib.suppress(ProtocolError):
                    message = message_wire.decode(messages.frames(choices, replies=False))
                    if not isinstance(message, m.Stop):
                        rig.take(FUZZER, message)
            case 8:
                position = choices.integer() % 2**63
                rig.take(FUZZER, m.Flush(choices.below(9), producer, position))
            case 9:
                self._arrive(producer, choices)
            case 10:
                rig.deliver(e.ProducerGone(producer))
                rig.tick(1.0)
            case 11:
                rig.work()
                rig.land()
                rig.tick(float(choices.below(60)))
            case 12:
                rig.rotate()
                self._look()
            case 13:
                self._log()
            case 14:
                rig.deliver(e.RingsSeen(frozenset(self._ids[: choices.below(4)])))
                rig.tick()
            case _:
                if choices.one_in(4):
                    rig.start()
                else:
                    rig.settle()

    def _arrive(self, producer: m.ProducerId, choices: Choices) -> None:
        number = choices.pick(self._numbers)
        if choices.one_in(4):
            error = e.NotArrived(producer, number, "the disk failed", choices.one_in(2))
            self.rig.deliver(error)
        else:
            self.rig.deliver(e.Arrived(producer, number, f"{producer.hex()}-{number}.part", 1))
        self.rig.write_journal()

    def _log(self) -> None:
        """The neighbour logs another tick."""
        self._steps.append(len(self._steps))
        self.neighbour.log(self._steps[-1])
        at = self.rig.core.position(self.neighbour.id)
        self.rig.take(BERT, self.neighbour.data(at))
        assert self.rig.core.position(self.neighbour.id) == self.neighbour.head

    def _look(self) -> None:
        """All that is said of the runs, and to them, can be sent."""
        message_wire.encode(m.Status(1, {"runs": self.rig.core.reports(self.rig.now)}))
        sent, self.rig.sent = self.rig.sent, []
        for _, message in sent:
            message_wire.decode(message_wire.encode(message))

    def end(self) -> None:
        """The neighbour's ticks are all in its file, once, in order."""
        self._log()
        self.rig.settle()
        self._look()
        self.rig.rotate()
        run_id = self.neighbour.run.run_id.hex()  # its seed may have got another name
        (file,) = [file for file in self.rig.disk.files.values() if file.run == run_id]
        assert file.rows == self._steps


def core_target(data: bytes) -> None:
    """A sequence of messages and other events harms nobody but its sender."""
    choices = Choices(data)
    brain = Brain()
    while choices.more:
        brain.step(choices)
    brain.end()


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "wire": wire_target,
    "raw-wire": raw_wire_target,
    "artifact-wire": artifact_wire_target,
    "journal": journal_target,
    "ring": ring_target,
    "snapshot": snapshot_target,
    "core": core_target,
}
