"""Records of a stream as bytes, and back.  Wire protocol version 1.

Pure.  Everything is msgpack, so that any msgpack decoder can read every frame
(`docs/wire-protocol.md` has the tables).

A stream is a sequence of msgpack arrays.  The first item of a tick is its schema's number, of any
other record its name:

    ["run", {...}]   ["schema", number, [[key, code, shape], ...], [...]]
    ["artifact", number, kind, name, {...}]   ["histograms", seconds, step, {...}]
    ["gap", ticks, reason]   ["end"]
    [number, values]              a tick of fixed layout
    [number, seconds, value, ...] a tick that holds text

A tick whose schema has no text has a *fixed layout*: `values` is a byte string, in which the time
stamp and the values lie one after another in little-endian order, as the schema says.  So a batch
of such ticks is a numpy structured array as it lies there, and one `struct.pack_into` writes one.

    92                array of 2
    ce iiiiiiii       uint 32, the schema's number
    c4 nn             bin 8, n bytes   (c6 nnnnnnnn, bin 32, where n exceeds 255)
    float 64          seconds since the epoch
    each value        int 64 | float 64 | one byte 00 or 01 (bool) | the items of an array

A tick with text begins with dc nnnn ce iiiiiiii cb, an array 16 with the schema's number and the
time stamp as a float 64; general msgpack values follow.  `tick_layout` has the heads of both, and
`message_wire` the messages in which pieces of streams travel.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, TypeAlias

import msgpack
import numpy as np
import numpy.typing as npt

from mle_client import messages as m
from mle_client import packing
from mle_client.errors import ProtocolError
from mle_client.tick_layout import (
    FIXED_MARK,
    TEXT_MARK,
    FixedLayout,
    extent_bytes,
    fixed_layout,
    has_fixed_layout,
    head,
    value_bytes,
)

_FIRST_RUN_GUESS: Final = 256  # ticks looked at before assuming that a batch is of one schema

Array: TypeAlias = npt.NDArray[Any]
Column: TypeAlias = "Array | list[str]"


# --- blocks: ticks of one schema, one after another -----------------------------------------------
@dataclass(frozen=True, eq=False)
class Block:
    """Ticks of one schema in the order in which they were logged.

    Args:
        schema: their keys and types.
        times: shape (n,), float64, seconds since the epoch.
    """

    schema: m.Schema
    times: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.times)

    def column(self, index: int) -> Column:
        """Values of `schema.fields[index]`: shape (n, *kind.shape), or a list of n strings."""
        raise NotImplementedError  # of the two kinds of block below


@dataclass(frozen=True, eq=False)
class FixedBlock(Block):
    """Ticks as they lie in the batch.  Args: ticks: shape (n,), the schema's fixed layout."""

    ticks: Array

    def column(self, index: int) -> Column:
        kind = self.schema.fields[index].kind
        values: Array = self.ticks[f"v{index}"]
        if kind == m.BOOL:
            return np.ascontiguousarray(values).view(np.bool_)
        return np.ascontiguousarray(values)


@dataclass(frozen=True, eq=False)
class TextBlock(Block):
    """Ticks that hold text.  Args: values: one list of n values for each field."""

    values: tuple[list[Any], ...]

    def column(self, index: int) -> Column:
        kind = self.schema.fields[index].kind
        values = self.values[index]
        if kind.code == "str":
            return values
        if kind.code in ("i8", "f8", "b1"):
            return np.array(values, kind.code)
        joined = np.frombuffer(b"".join(values), kind.code)
        return joined.reshape(len(values), *kind.shape)


PlainRecord: TypeAlias = m.Run | m.Schema | m.Artifact | m.Histograms | m.Gap | m.End
Record: TypeAlias = "PlainRecord | Block"


# --- writing records ------------------------------------------------------------------------------
def encode_record(record: PlainRecord) -> bytes:
    """The bytes of a record that is no tick."""
    match record:
        case m.Run():
            body: list[Any] = ["run", _as_dict(record)]
        case m.Schema():
            body = ["schema", record.number, _pack_fields(record.clock), _pack_fields(record.stats)]
        case m.Artifact():
            body = ["artifact", record.number, record.kind, record.name, record.facts]
        case m.Histograms():
            body = ["histograms", record.seconds, record.step, record.tags]
        case m.Gap():
            body = ["gap", record.ticks, record.reason]
        case m.End():
            body = ["end"]
    return packing.pack(body)


def encode_text_tick(schema: m.Schema, seconds: float, values: Iterable[Any]) -> bytes:
    """A tick of a schema that holds text.  Args: values: in the order of `schema.fields`."""
    pack = msgpack.Packer(use_bin_type=True).pack
    return head(schema) + struct.pack(">d", seconds) + b"".join(pack(value) for value in values)


# --- reading records ------------------------------------------------------------------------------
class StreamDecoder:
    """Turns pieces of one producer's stream into records.

    It holds the schemas seen so far.  `decode` changes them only if the whole piece is good.
    """

    def __init__(self, schemas: Mapping[int, m.Schema] | None = None) -> None:
        self.schemas: dict[int, m.Schema] = dict(schemas or {})
        self._layouts: dict[int, tuple[m.Schema, FixedLayout | None]] = {}

    def decode(self, payload: bytes | memoryview) -> list[Record]:
        """The records of a piece.

        Args:
            payload: whole records, one after another.

        Raises:
            ProtocolError: it is anything else; nothing of it was taken.
        """
        data = memoryview(payload)
        known = dict(self.schemas)
        records: list[Record] = []
        at = 0
        while at < len(data):
            at, record = self._next(data, at, known)
            if isinstance(record, m.Schema):
                _add_schema(known, record)
            if len(records) == m.MAX_RECORDS:
                raise ProtocolError(
                    f"a piece of more than {m.MAX_RECORDS} records: send it in parts"
                )
            records.append(record)
        self.schemas = known
        return records

    def _next(self, data: memoryview, at: int, known: Mapping[int, m.Schema]) -> tuple[int, Record]:
        """The record at `at` (of ticks: as many as are alike) and where the next begins."""
        number_at = {FIXED_MARK: 2, TEXT_MARK: 4}.get(data[at])
        marked = number_at is not None and bytes(data[at + number_at - 1 :][:1]) == b"\xce"
        if number_at is None or not marked:
            body, end = packing.unpack_prefix(data, at)
            return end, _record(body)
        schema = known.get(int.from_bytes(data[at + number_at :][:4], "big"))
        if schema is None:
            raise ProtocolError("a tick names a schema that was not sent")
        layout = self._layout(schema)
        if layout is None:
            return self._text_ticks(data, at, schema)
        return self._fixed_ticks(data, at, schema, layout)

    def _layout(self, schema: m.Schema) -> FixedLayout | None:
        known = self._layouts.get(schema.number)
        # Another schema had this number where a piece was refused: it is none of the stream's.
        if known is None or (known[0] is not schema and known[0] != schema):
            layout = fixed_layout(schema) if has_fixed_layout(schema) else None
            known = self._layouts[schema.number] = schema, layout
        return known[1]

    def _fixed_ticks(
        self, data: memoryview, at: int, schema: m.Schema, layout: FixedLayout
    ) -> tuple[int, Block]:
        end, guess = at, _FIRST_RUN_GUESS
        while most := min(guess, (len(data) - end) // layout.size):
            valid = layout.count_valid(data, end, most)
            end += valid * layout.size
            if valid < most:
                break
            guess *= 8
        if end == at:
            raise ProtocolError("a tick is cut short or not laid out as its schema says")
        ticks = np.frombuffer(data[at:end], layout.dtype)
        return end, FixedBlock(schema, np.ascontiguousarray(ticks["t"]), ticks)

    def _text_ticks(self, data: memoryview, at: int, schema: m.Schema) -> tuple[int, Block]:
        rows, at = packing.unpack_alike(data, at, head(schema))
        if not rows:
            raise ProtocolError("a tick is not laid out as its schema says")
        # The head says how many items there are: all rows have as many.
        columns = [list(map(itemgetter(i), rows)) for i in range(1, 2 + len(schema.fields))]
        for field, column in zip(schema.fields, columns[1:], strict=True):
            _check_values(field, column)
        return at, TextBlock(schema, np.array(columns[0], np.float64), tuple(columns[1:]))


def _add_schema(known: dict[int, m.Schema], schema: m.Schema) -> None:
    """Enter a schema of a stream.  Raises: ProtocolError: it is one too many, or another."""
    if known.get(schema.number) == schema:
        return
    if schema.number in known:
        raise ProtocolError(f"schema {schema.number} is another one than before")
    if len(known) >= m.MAX_SCHEMAS:
        raise ProtocolError(f"a stream with more than {m.MAX_SCHEMAS} schemas")
    known[schema.number] = schema
    if sum(each.size for each in known.values()) > m.MAX_SCHEMA_BYTES:
        raise ProtocolError(f"a stream whose schemas exceed {m.MAX_SCHEMA_BYTES} bytes")


def count_ticks(payload: bytes | memoryview, decoder: StreamDecoder) -> int:
    """How many ticks a piece of a stream holds; the decoder learns its schemas."""
    return sum(len(record) for record in decoder.decode(payload) if isinstance(record, Block))


_VALUE_TYPES: Final[dict[str, type]] = {"i8": int, "f8": float, "b1": bool, "str": str}


def _check_values(field: m.Field, column: Sequence[Any]) -> None:
    """Raise unless every value of a general tick is of its schema's type."""
    expected = _VALUE_TYPES.get(field.kind.code, bytes)
    is_right = set(map(type, column)) == {expected}
    if is_right and expected is bytes:
        is_right = set(map(len, column)) == {value_bytes(field.kind)}
    if not is_right:
        raise ProtocolError(f"a value of {field.name!r} is not the {field.kind} it should be")
    if expected is int and not (min(column) >= -(2**63) and max(column) < 2**63):
        raise ProtocolError(f"a value of {field.name!r} is no int64")


def _record(body: Any) -> Record:
    """A record that is no tick, from its unpacked array."""
    try:
        match body:
            case ["run", dict(fields)]:
                return _run(fields)
            case ["schema", int(number), list(clock), list(stats)]:
                return _schema(number, clock, stats)
            case ["artifact", int(number), str(kind), str(name), dict(facts)]:
                return _artifact(number, kind, name, facts)
            case ["histograms", float(seconds), int(step), dict(tags)] if packing.is_int64(step):
                return m.Histograms(seconds, step, _plain(tags, m.MAX_PLAIN_BYTES))
            case ["gap", int(ticks), str(reason)] if packing.is_count(ticks):
                return m.Gap(ticks, reason)
            case ["end"]:
                return m.End()
    except (TypeError, ValueError, KeyError) as error:
        raise ProtocolError(f"a record is malformed: {error}") from error
    raise ProtocolError("bytes that are no record of this protocol")


def _schema(number: int, clock: list[Any], stats: list[Any]) -> m.Schema:
    if type(number) is not int or not 0 <= number < 2**32:
        raise ProtocolError("a schema's number is out of bounds")
    if len(clock) + len(stats) > m.MAX_KEYS:
        raise ProtocolError(f"a schema with more than {m.MAX_KEYS} keys")
    schema = m.Schema(number, _unpack_fields(clock), _unpack_fields(stats))
    for group in (schema.clock, schema.stats):
        if len({field.name for field in group}) != len(group):
            raise ProtocolError("a schema names a key twice")
    if sum(extent_bytes(f.kind) for f in schema.fields if f.kind.shape) > m.MAX_TICK_BYTES:
        raise ProtocolError(f"a schema's arrays exceed {m.MAX_TICK_BYTES} bytes")
    return schema


def _artifact(number: int, kind: str, name: str, facts: dict[Any, Any]) -> m.Artifact:
    if not packing.is_count(number) or number == 0 or kind not in m.ARTIFACT_KINDS:
        raise ProtocolError("an artifact's number or kind is out of bounds")
    if len(name.encode()) > m.MAX_NAME_BYTES or bool(name) != (kind in ("figure", "extra")):
        raise ProtocolError("an artifact's name is too long, missing or not wanted")
    return m.Artifact(number, kind, name, _plain(facts, m.MAX_FACTS_BYTES))


def _plain(value: dict[Any, Any], most_bytes: int) -> dict[str, Any]:
    """A map of plain values whose keys are strings and which is not too large."""
    if not all(type(key) is str for key in value):
        raise ProtocolError("a record's map has keys that are no strings")
    if (size := len(packing.pack([value]))) > most_bytes:
        raise ProtocolError(f"a record's map has {size} bytes; {most_bytes} is the bound")
    return value


def _unpack_fields(packed: list[Any]) -> tuple[m.Field, ...]:
    fields = []
    for name, code, shape in packed:
        scalar = code in ("i8", "f8", "b1", "str") and not shape
        if not isinstance(name, str) or len(name.encode()) > m.MAX_KEY_BYTES:
            raise ProtocolError("a key is no string or too long")
        if not (scalar or code in m.ARRAY_CODES) or len(shape) > m.MAX_DIMENSIONS:
            raise ProtocolError(f"{code!r} with shape {shape!r} is no type of this protocol")
        if not all(type(length) is int and 0 <= length <= m.MAX_TICK_BYTES for length in shape):
            raise ProtocolError("an array's shape is out of bounds")
        fields.append(m.Field(name, m.Kind(code, tuple(shape))))
    return tuple(fields)


def _pack_fields(fields: Sequence[m.Field]) -> list[Any]:
    return [[field.name, field.kind.code, list(field.kind.shape)] for field in fields]


# The types of a run's fields.  `dataclasses` holds them as text, which would need evaluation.
_RUN_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "run_id": (bytes,),
    "start_time": (float,),
    "config_file": (bytes,),
    "num_seeds": (int, type(None)),
    "overwrite": (bool,),
    "reload": (bool,),
    "policy": (dict,),
    "kept": (dict,),
    "tboard": (bool,),
    "wandb": (dict,),
    "forked": (bool,),
    "process": (list,),
}
_RUN_NAMES: Final = (
    "directory", "experiment_dir", "seed_id", "eval_id", "model_type", "config_name",
)  # fmt: skip


def _run(fields: dict[Any, Any]) -> m.Run:
    names = [field.name for field in dataclasses.fields(m.Run)]
    for name in names:
        if type(fields[name]) not in _RUN_TYPES.get(name, (str,)):
            raise ProtocolError(f"a run's {name} is of the wrong type")
    if len(fields["run_id"]) != 16 or len(fields["config_file"]) > m.MAX_CONFIG_BYTES:
        raise ProtocolError("a run's id or configuration has the wrong size")
    if fields["num_seeds"] is not None and not packing.is_int64(fields["num_seeds"]):
        raise ProtocolError("a run's num_seeds is out of bounds")
    for name in _RUN_NAMES:
        if len(fields[name].encode()) > m.MAX_NAME_BYTES:
            raise ProtocolError(f"a run's {name} is longer than {m.MAX_NAME_BYTES} bytes")
    for name in ("policy", "wandb"):
        _plain(fields[name], m.MAX_PLAIN_BYTES)
    # Packed again, for a daemon's journal is to hold it; and what is passed over does not count.
    if (size := len(packing.pack([{name: fields[name] for name in names}]))) > m.MAX_RUN_BYTES:
        raise ProtocolError(f"a run's record has {size} bytes; {m.MAX_RUN_BYTES} is the bound")
    return m.Run(**{**{name: fields[name] for name in names}, "process": unpack_process(fields)})


def unpack_process(fields: Mapping[Any, Any]) -> m.Process:
    """The process of a run, from its unpacked fields.  Raises: ProtocolError: it is none."""
    pid, *texts = fields["process"]
    if len(texts) != 3 or not packing.is_count(pid) or not all(map(packing.is_name, texts)):
        raise ProtocolError("a run's process is of the wrong type")
    return m.Process(pid, *texts)


def _as_dict(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
