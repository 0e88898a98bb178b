"""The function that writes ticks of one shape as fast as Python can: it is generated for them.

Pure: source code, and what it is compiled to.  `producer` binds the result to a ring.

A writer fetches each value by its key, checks each type by identity, and writes the whole tick with
one `struct.Struct.pack_into`; the length of a tick with text varies, which takes a call of msgpack
and a copy.  Anything unexpected makes it call `miss`, the general way: also a mapping that is no
plain dict, whose keys may be made up when asked for (`collections.Counter`) or not be where they
seem.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np

from mle_client import messages as m
from mle_client import tick_layout
from mle_client.ticks import Item

# A longer tick with text goes the general way: so much may lie behind a writer that was killed.
MAX_TEXT_TICK_BYTES: Final = 4096
# Of more, making a writer takes longer than a thousand ticks that go the general way.
MAX_TEXT_FIELDS: Final = 256
# Raised by a value that is not what it seems, where there is no room, and where the baton is gone.
_PASSED_OVER: Final = ("LookupError", "TypeError", "ValueError", "ArithmeticError", "RuntimeError")


@dataclass(frozen=True, slots=True)
class Writer:
    """Functions that write ticks of one schema and one set of exact types.

    Args:
        update: with the signature of `MLELogger.update`.
        bind: bind(buffer) points it at a segment.
    """

    update: Callable[..., None]
    bind: Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a generated writer calls.

    Args:
        take, give: pop and append of the one-item list that holds the write offset.  Who holds the
            offset may write; a writer that finds none calls `miss`.
        now: seconds since the epoch.
        miss: the general way, with the signature of `MLELogger.update`.
        save: called when the tick asks for publication.
    """

    take: Callable[[], int]
    give: Callable[[int], None]
    now: Callable[[], float]
    miss: Callable[..., None]
    save: Callable[[], None]


def values_struct(schema: m.Schema, behind: str = "") -> struct.Struct:
    """Packs time stamp and values of a fixed layout.  Args: behind: format of what follows."""
    # Where nothing needs padding the native order is the same, and packs floats a little faster.
    plain = all(field.kind in (m.INT, m.FLOAT) for field in schema.fields)
    codes = ["@d" if plain and sys.byteorder == "little" else "<d"]
    for field in schema.fields:
        match field.kind:
            case m.INT:
                codes.append("q")
            case m.FLOAT:
                codes.append("d")
            case m.BOOL:
                codes.append("?")
            case kind:
                codes.append(f"{tick_layout.value_bytes(kind)}s")
    return struct.Struct("".join(codes) + behind)


def writer_struct(schema: m.Schema) -> struct.Struct:
    """Packs what a generated writer writes: time stamp, values and the head of the next tick."""
    return values_struct(schema, f"{len(tick_layout.head(schema))}s")


def pack_fixed(schema: m.Schema, seconds: float, values: Sequence[Any]) -> bytes:
    """One tick of a fixed layout from plain values: the slow twin of a generated writer."""
    return tick_layout.head(schema) + values_struct(schema).pack(seconds, *values)


_LEAST, _MOST = -(2**63), 2**63 - 1
_SIGNATURE = (
    "clock_tick, stats_tick, model=None, plot_fig=None, extra_obj=None, grads=None, save=False"
)
_PASSED_ON = "clock_tick, stats_tick, model, plot_fig, extra_obj, grads, save"


def is_worthwhile(schema: m.Schema) -> bool:
    """Whether a writer is generated for a schema."""
    return tick_layout.has_fixed_layout(schema) or len(schema.fields) <= MAX_TEXT_FIELDS


def head_before(schema: m.Schema) -> bytes:
    """What has to lie before the offset that a writer of a schema is given."""
    return tick_layout.head(schema) if tick_layout.has_fixed_layout(schema) else b""


def most_bytes(schema: m.Schema) -> int:
    """What a generated writer of a schema may have written when it is interrupted, in bytes."""
    if tick_layout.has_fixed_layout(schema):
        return len(tick_layout.head(schema)) + tick_layout.fixed_values_bytes(schema)
    return MAX_TEXT_TICK_BYTES + 1  # and the byte behind it


def writer_source(schema: m.Schema, direct: Sequence[Any], extra_clocks: Sequence[str]) -> str:
    """Source of the function `make`, which returns the two functions of a `Writer`.

    A writer of ticks without text is given an offset behind a head that is there already.  It
    writes time stamp and values, and behind them the head of the next tick: the byte that says that
    this one is whole (`tick_layout.committed_end`) comes last.  Where there is text it is given an
    offset at which nothing is, and writes the first byte last: copies are made in no certain order,
    and there may be some kilobytes.

    Args:
        schema: of the ticks.
        direct: of `Described`.
        extra_clocks: keys that the clock has besides the schema's.
    """
    write = _writes_fixed if tick_layout.has_fixed_layout(schema) else _writes_text
    fetches, guards, reads, packed = _looks(schema, direct, extra_clocks)
    return "\n".join(
        [
            "def make(hooks, pack, Error, ndarray, constants):",
            *(f"    T{i} = D{i} = constants[{i}][0]" for i in range(len(schema.fields))),
            *(f"    S{i} = constants[{i}][1]" for i in range(len(schema.fields))),
            "    take, give, now = hooks.take, hooks.give, hooks.now",
            "    miss, asked_to_save = hooks.miss, hooks.save",
            "    buffer = None",
            "    def bind(new_buffer):",
            "        nonlocal buffer",
            "        buffer = new_buffer",
            f"    def update({_SIGNATURE}):",
            "        at = None",
            "        try:",
            *(f"            {line}" for line in fetches),
            f"            if not ({' and '.join(guards)}):",
            "                raise KeyError",
            *(f"            {line}" for line in reads),
            "            at = take()",
            *(f"            {line}" for line in write(schema, packed)),
            f"        except ({', '.join(_PASSED_OVER)}, Error):",
            "            if at is not None:  # out of range, not what it seems, or no room",
            "                give(at)",
            "        else:",
            "            if save:",
            "                asked_to_save()",
            "            return",
            f"        return miss({_PASSED_ON})",
            "    update.__qualname__ = 'update'",  # for errors about its arguments
            "    return update, bind",
        ]
    )


def _looks(
    schema: m.Schema, direct: Sequence[Any], extra_clocks: Sequence[str]
) -> tuple[list[str], list[str], list[str], list[str]]:
    """How to look at a tick.

    Returns:
        Lines that fetch the values; what must be true of them; lines that read numbers out of
        arrays, which other code of the user's may run in; and what is packed for each.
    """
    is_fixed = tick_layout.has_fixed_layout(schema)
    # Looked at before anything is fetched: asking may change other mappings, such as defaultdict.
    fetches = [
        "if not type(clock_tick) is type(stats_tick) is dict:",
        "    raise KeyError",
    ]
    guards, reads, packed = [], [], []
    for i, (field, known) in enumerate(zip(schema.fields, direct, strict=True)):
        mapping = "clock_tick" if i < len(schema.clock) else "stats_tick"
        fetches.append(f"v{i} = {mapping}[{field.name!r}]")
        packed.append(f"v{i}")
        if isinstance(known, Item):
            guards.append(f"type(v{i}) is T{i} and v{i}.dtype == S{i} and v{i}.ndim == 0")
            guards += [f"v{i}.is_cpu"] if known.is_tensor else []
            reads.append(f"w{i} = v{i}.item()")
            if not is_fixed and field.kind == m.INT:
                reads += [f"if not {_LEAST} <= w{i} <= {_MOST}:", "    raise KeyError"]
            packed[-1] = f"w{i}"
        elif field.kind.shape:
            guards.append(f"type(v{i}) is ndarray and v{i}.dtype == D{i} and v{i}.shape == S{i}")
            packed[-1] = f"v{i}.tobytes()"
        elif field.kind != m.INT:
            guards.append(f"type(v{i}) is T{i}")
            packed[-1] = _plain(i, known) if not is_fixed else f"v{i}"
        elif not is_fixed:  # as an int, `struct` takes only what is one, and exactly
            guards.append(f"type(v{i}) is int and {_LEAST} <= v{i} <= {_MOST}")
    fetches += [f"clock_tick[{str.__str__(name)!r}]" for name in extra_clocks]
    # Every key was fetched, so neither dict is too short: if their sum is right, both are.
    keys = len(schema.fields) + len(extra_clocks)
    guards += [
        f"len(clock_tick) + len(stats_tick) == {keys}",
        "model is None and plot_fig is None and extra_obj is None and grads is None",
    ]
    return fetches, guards, reads, packed


def _plain(i: int, known: type) -> str:
    """A value as one of the types that msgpack packs."""
    if known in (float, bool, str):
        return f"v{i}"
    return f"bool(v{i})" if known is np.bool_ else f"float(v{i})"


def _writes_fixed(schema: m.Schema, packed: Sequence[str]) -> list[str]:
    arguments = ", ".join(["now()", *packed, repr(tick_layout.head(schema))])
    return [
        f"pack(buffer, at, {arguments})",
        f"give(at + {writer_struct(schema).size})",
    ]


def _writes_text(schema: m.Schema, packed: Sequence[str]) -> list[str]:
    head = tick_layout.head(schema)
    items = 1 + len(packed)
    # What `pack` puts before the first value, and the mark of a float before the time stamp, which
    # the head of a tick has already.
    skipped = len(msgpack.packb([0] * items)) - items + 1
    return [
        f"rest = {head[1:]!r} + pack(({', '.join(['float(now())', *packed])}))[{skipped}:]",
        "end = at + 1 + len(rest)",
        f"if end - at > {MAX_TEXT_TICK_BYTES} or end >= len(buffer):",
        "    raise KeyError",
        "buffer[at + 1 : end] = rest",
        f"buffer[end] = {tick_layout.COMMITTED}",
        f"buffer[at] = {head[0]}",
        "give(end)",
    ]


def compile_writer(
    schema: m.Schema, direct: Sequence[Any], extra_clocks: Sequence[str], hooks: Hooks
) -> Writer:
    """Generate the writer of one schema.  Arguments as for `writer_source`.

    The keys enter the source as string literals made by `repr`, nothing else of the user's does.
    """
    namespace: dict[str, Any] = {}
    exec(compile(writer_source(schema, direct, extra_clocks), "<tick writer>", "exec"), namespace)
    if tick_layout.has_fixed_layout(schema):
        pack: Callable[..., Any] = writer_struct(schema).pack_into
    else:
        pack = msgpack.Packer(use_bin_type=True).pack
    constants = [_constants(known) for known in direct]
    update, bind = namespace["make"](hooks, pack, struct.error, np.ndarray, constants)
    return Writer(update, bind)


def _constants(known: Any) -> tuple[Any, Any]:
    """What a writer compares a value's type and its shape, or its item's type, with."""
    if isinstance(known, Item):
        return known.type, known.dtype
    return known if isinstance(known, tuple) else (known, None)
