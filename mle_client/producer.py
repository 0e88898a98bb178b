"""One process's stream of one run: takes ticks from user code and puts them into a ring.

`Producer.update` is what user code calls in a loop.  It is not a method but whichever generated
writer (`tick_writers.compile_writer`) fits the latest tick; everything else comes through `_miss`.

One rule keeps the stream whole: **who holds the baton may write.**  The baton is a one-item list
with the offset to write at; `list.pop` and `list.append` are atomic, so taking it needs no lock.
Each writer looks into a list of its own, and the baton lies in that of the writer whose head is
written at the segment's end already; so only a tick of the latest shape is written at once.
A thread that finds no baton waits.  A signal handler that interrupts the holder in its own thread
cannot wait, so its tick is set aside and written at the next opportunity.  A baton that nobody
holds any more (the holder was interrupted by an exception) is made anew from what is committed.

A tick with values that a device is still computing is set aside, too: nobody waits for the device
in `update`.  Until it is written all that comes later is set aside behind it (`aside`), so that
the order stays; only of what a signal handler logs in the middle of a write may some ticks of the
interrupted thread come first.

It knows nothing of sockets; `transport` reads the ring.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Final

from mle_client import device_values, tick_layout, tick_writers, ticks, wire
from mle_client import messages as m
from mle_client.aside import Aside, Waiting
from mle_client.errors import LoggerClosed
from mle_client.layout import OWN_CLOCKS
from mle_client.ring import HEADER_BYTES, Ring, RingFull, Segment, gap_record
from mle_client.tally import Latest, Tally

Update = Callable[..., None]
TickKey = tuple[tuple[str, ...], tuple[str, ...]]  # the keys of clock and statistics, in order
Fields = tuple[tuple[m.Field, ...], tuple[m.Field, ...]]

_NO_KEYS: Final[TickKey] = ((), ())
# A baton is taken for lost after so many looks, this far apart, at which nobody held it.  One look
# may fall between two steps of another thread; twenty in a row do not.
_LOST_AFTER_LOOKS: Final = 20
_LOOK_EVERY_S: Final = 0.0005
# Before that it is awaited so often without a look at other threads' stacks: whoever has it gives
# it back within microseconds, and to walk the stack of a running thread has crashed CPython 3.11.
_WAITS_FIRST: Final = 100
# How often a tick that waits for room looks for it.  The sender makes room every 20 ms at most, and
# a look costs some ten microseconds.
_ROOM_EVERY_S: Final = 0.002
# More schemas than this are not kept ready; the general way still takes the ticks.
_MAX_WRITERS: Final = 64
# What may be set aside; then `update` waits for the oldest of it.  A device has no more than some
# thousand operations queued, so whoever gets here is far ahead of it.
_MAX_SET_ASIDE: Final = 1024
_MAX_SET_ASIDE_BYTES: Final = 16 << 20
# What a save and a look at the latest tick wait for a device at the most; then they do without.
_DEVICE_TIMEOUT_S: Final = 60.0
# Beside its values a tick has a head, and a mark for each value.
_MAX_VALUES_BYTES: Final = m.MAX_TICK_BYTES - 64


@dataclass(frozen=True, slots=True, eq=False)
class _Home:
    """Where the baton lies when nobody has it.

    Args:
        baton: one offset, behind the head that is written already; empty while somebody has it.
        schema: whose head that is, or None.
        head: its bytes.
        segment: that the offset is of.
    """

    baton: list[int]
    schema: m.Schema | None
    head: bytes
    segment: Segment


class Producer:
    """Writes ticks of one run into a ring.

    Args:
        producer: its id.
        ring: empty.
        run: opens the stream.
        on_save: called when a tick asks for publication.
        on_artifacts: called with (clock_tick, stats_tick, model, plot_fig, extra_obj, grads) of a
            tick that has any of the last four, once the tick is written.
        on_lost: called with a reason when a tick could not be kept.
        tally: counts the ticks, where `latest` will be asked for.
        wait_s: seconds that `update` may wait for room before it drops a tick.

    Raises:
        ValueError: the run is too large; the ring is gone.
        RingFull: there is no room for it; the ring is gone.
    """

    def __init__(
        self,
        producer: m.ProducerId,
        ring: Ring,
        run: m.Run,
        *,
        on_save: Callable[[], None],
        on_artifacts: Callable[..., None],
        on_lost: Callable[[str], None],
        tally: Tally | None = None,
        wait_s: float = 0.0,
    ) -> None:
        self.id = producer
        self.ring = ring
        self.run = run
        self.lost = 0  # ticks that could not be kept
        self.blocked_s = 0.0  # that `update` has waited for room
        self._gap = 0  # of these, not yet told in the stream
        self.has_ended = False  # and the stream says so
        self._on_save = on_save
        self._on_artifacts = on_artifacts
        self._on_lost = on_lost
        self._tally = tally
        self._wait_s = wait_s
        self._full: tuple[int, int, bytes] | None = None  # what `Tally.add` is about to be given
        self._counting = threading.RLock()  # of the tally; `update` never takes it
        self._closed = ""
        # By schema that has writers: where the baton lies for them, and the head of their ticks.
        self._homes: dict[int, tuple[list[int], bytes]] = {}
        self._home = _Home([HEADER_BYTES], None, b"", ring.active)
        self._bound: Any = None  # what all writers write to
        self._widest = 0  # bytes of the longest tick of fixed layout
        self._dirty_end = 0  # behind the last byte that may not be zero though not committed
        self._next_number = 0  # of a schema; none is used twice, whatever interrupts us
        self._aside = Aside(self._write_late, self._refused, lambda: not self._is_nested())
        self._schemas: dict[Fields, m.Schema] = {}
        self._kinds: dict[tuple[str, str], m.Kind] = {}
        # Every writer ever generated: user code may have kept it, so all are bound to the segment.
        self._writers: dict[tuple[TickKey, tuple[Any, ...]], tick_writers.Writer] = {}
        self._latest: dict[TickKey, tuple[Update, m.Schema]] = {}
        self._generating = False
        self._codes: set[CodeType] = set(_HOLDERS)
        self.forward: Update | None = None  # takes ticks in place of a producer that was disabled
        self._install: Callable[[Update], None] = lambda update: None
        self.update: Update = self._enter
        self._present: Update = self._miss  # that a tick is given to now
        try:
            self._append(_encode_run(run))
        except BaseException:
            ring.delete()  # nobody else could
            raise

    def install(self, install: Callable[[Update], None]) -> None:
        """Have `install(update)` called whenever another function takes the next ticks."""
        self._install = install
        install(self.update)

    def close(self, why: str = "update() after close()", timeout: float = 0.0) -> int:
        """Take no more ticks and end the stream.

        Args:
            timeout: seconds to wait for values that a device is still computing; ticks whose values
                have not come by then are counted as lost.

        Returns:
            The stream's last position, behind its `End`.
        """
        self.settle(timeout)
        lost = self._end(why)
        if lost:
            why = "their values have not come from their device, or there is no room for them"
            self._on_lost(f"{lost} ticks are lost: {why}")
        self._select(self._miss)
        return self.ring.head

    def end(self) -> int:
        """End a closed stream for whose end there was no room.  Returns: as of `close`."""
        with contextlib.suppress(RingFull):  # then the run will be shown as crashed, no worse
            self._put_gap(is_last=True)
            if not self.has_ended:
                self._put(wire.encode_record(m.End()), is_last=True)
                self.has_ended = True
        return self.ring.head

    def record(self, record: m.Artifact | m.Histograms) -> None:
        """Put a record that is no tick behind the ticks so far.

        Raises:
            LoggerClosed: the stream has ended.
            RingFull: there is no room for it.
            ValueError: it is too large.
        """
        encoded = wire.encode_record(record)
        most = m.MAX_FACTS_BYTES if isinstance(record, m.Artifact) else m.MAX_PLAIN_BYTES
        if len(encoded) > most:
            raise ValueError(f"a record of {len(encoded)} bytes; {most} is the bound")
        waits = isinstance(record, m.Artifact) and record.kind != m.DROPPED
        self.settle(_DEVICE_TIMEOUT_S if waits else 0.0)  # it is safe when its save returns
        if self._must_wait():
            self._aside.put(Waiting(record=encoded))
        else:
            self._append(encoded)

    def latest(self) -> Latest:
        """How many ticks there are, and the last one.  Waits for what a device still computes."""
        self.settle(_DEVICE_TIMEOUT_S)
        if self._is_nested():  # the baton's holder cannot go on before we return
            return self._latest_before(self._committed())
        return self._look()

    def _latest_before(self, end: int) -> Latest:
        content = bytes(self.ring.active.content(HEADER_BYTES, end))
        self._count_full()
        with self._counting:
            return (self._tally or Tally()).latest(content, self.schemas)

    def disable(self, why: str) -> None:
        """Refuse every further tick, also through functions that user code kept."""
        self._closed = why
        self._home.baton.clear()
        self._select(self._miss)

    @property
    def schemas(self) -> dict[int, m.Schema]:
        """All schemas of the stream so far, by number."""
        return {schema.number: schema for schema in tuple(self._schemas.values())}

    def names(self) -> tuple[list[str], list[str]]:
        """The clocks and statistics seen so far, in order of appearance."""
        keys = tuple(self._kinds)
        return [n for g, n in keys if g == "time"], [n for g, n in keys if g == "stats"]

    def settle(self, timeout: float) -> bool:
        """Write what was set aside so far, waiting for room and for who computes its values.

        Args:
            timeout: seconds.

        Returns:
            Whether that much is written.
        """
        return self._aside.settle(time.monotonic() + timeout)

    @property
    def is_behind(self) -> bool:
        """Whether ticks are set aside."""
        return self._aside.blocks

    def catch_up(self) -> int:
        """Write what was set aside, and tell the ring how far the ticks go, and of lost ones.

        For the sender between its rounds, and for whoever waits for what was logged so far.  Does
        not wait for devices, nor drop a tick.

        Returns:
            The stream position behind the last tick.
        """
        if not self._closed:
            if not self._is_told():
                self.settle(0.0)
                self._maybe_tell_gap()
                self._tell_ring()
            self.ring.prepare()
            if self._tally is not None and self._counting.acquire(blocking=False):
                try:
                    self._tally.count()
                finally:
                    self._counting.release()
        return self.ring.head

    def _is_told(self) -> bool:
        """Whether nothing has come since the last look; quick, for there may be many loggers."""
        home = self._home
        return (
            not (self._aside.blocks or self._gap)
            and home.baton == [home.segment.end + len(home.head)]
            and self._home is home
        )

    def _tell_ring(self) -> None:
        for _ in range(_LOST_AFTER_LOOKS):
            home = self._home
            with contextlib.suppress(IndexError):  # somebody has the baton just now
                end = home.baton[0] - len(home.head)
                if self._home is home:  # else the offset may be of another segment
                    home.segment.end = end
                    return
            if self._is_nested():  # its holder cannot go on before we return
                return
            time.sleep(_LOOK_EVERY_S)
        with contextlib.suppress(LoggerClosed):
            self._turn_to(self._home.schema)  # it was lost

    def _enter(
        self,
        clock_tick: Mapping[str, Any],
        stats_tick: Mapping[str, Any],
        model: Any = None,
        plot_fig: Any = None,
        extra_obj: Any = None,
        grads: Any = None,
        save: bool = False,
    ) -> None:
        """Take a tick for user code that fetched `update` before the first one was written."""
        self._present(clock_tick, stats_tick, model, plot_fig, extra_obj, grads, save)

    # --- the general way ----------------------------------------------------------------------
    def _miss(
        self,
        clock_tick: Mapping[str, Any],
        stats_tick: Mapping[str, Any],
        model: Any = None,
        plot_fig: Any = None,
        extra_obj: Any = None,
        grads: Any = None,
        save: bool = False,
    ) -> None:
        """Take a tick that the present writer did not: another shape, no room, or an error."""
        if self._closed:
            if self.forward is None:
                raise LoggerClosed(self._closed)
            self.forward(clock_tick, stats_tick, model, plot_fig, extra_obj, grads, save)
            return
        if self._aside.blocks:
            self.settle(0.0)
        key = _tick_key(clock_tick, stats_tick)
        artifacts = (model, plot_fig, extra_obj, grads)
        plain = all(artifact is None for artifact in artifacts)
        ready = self._latest.get(key) if plain else None
        if ready is not None and ready[0] is not self.update and not self._must_wait():
            update, schema = ready
            self._turn_to(schema)
            self._select(update)
            update(clock_tick, stats_tick, None, None, None, None, save)
            return
        self._take(time.time(), clock_tick, stats_tick, key, self._wait_s)
        if not plain:
            self._on_artifacts(clock_tick, stats_tick, *artifacts)
        if save:
            self._on_save()

    def _take(
        self,
        seconds: float,
        clock: Mapping[str, Any],
        stats: Mapping[str, Any],
        key: TickKey = _NO_KEYS,
        wait_s: float = 0.0,
    ) -> None:
        described = ticks.describe(clock, stats, device_values.fetch)
        if described.pending or self._must_wait():
            self._put_aside(Waiting(seconds, described))
            return
        schema = self._write_or_drop(seconds, described, wait_s)
        # None of a schema that is not in the stream: its writer would need no room but its own.
        if schema is None or key == _NO_KEYS:
            return
        if described.direct is not None and tick_writers.is_worthwhile(schema):
            self._make_ready(key, schema, described.direct)

    # --- what is set aside ----------------------------------------------------------------------
    def _must_wait(self) -> bool:
        """Whether what comes now has to be set aside: behind others, or by who may not write."""
        return self._aside.blocks or self._is_nested()

    def _put_aside(self, tick: Waiting) -> None:
        """Have a tick written later.  Errors are raised now, while its caller can be told."""
        assert tick.described is not None
        self._check_late(tick.described)
        self._aside.put(tick)
        if self._closed and self._aside.withdraw(tick):  # meanwhile, and nobody looks any more
            raise LoggerClosed(self._closed)
        if self._is_nested():
            return
        if self._home.schema is not None:
            self._turn_to(None)  # no generated writer is to overtake it
        self._bound_aside(tick)

    def _check_late(self, described: ticks.Described) -> None:
        """Refuse what could not be written later."""
        self._check_kinds(described)
        if described.size > _MAX_VALUES_BYTES:
            raise _too_large(described.size)
        if (described.clock, described.stats) not in self._schemas:
            self._check_number_of_schemas(len(self._aside))
        for group, fields in (("time", described.clock), ("stats", described.stats)):
            self._note_kinds(group, fields)

    def _bound_aside(self, tick: Waiting) -> None:
        """Wait for the oldest where there is too much; drop it where there is no room for it."""
        is_large = tick.size > _MAX_SET_ASIDE_BYTES // _MAX_SET_ASIDE
        while len(self._aside) > _MAX_SET_ASIDE or (
            is_large and self._aside.size > _MAX_SET_ASIDE_BYTES
        ):
            oldest = self._aside.oldest()
            before = self._aside.blocked_s
            settled = self._aside.settle(math.inf, self._wait_s, oldest)
            self.blocked_s += self._aside.blocked_s - before
            if not settled and oldest is not None and self._aside.withdraw(oldest):
                oldest.is_done = True
                self._lose(1)
                self._on_lost("a tick was dropped: there is no room for it")

    def _write_late(self, waiting: Waiting) -> None:
        if waiting.described is None:
            self._append(waiting.record)
        else:
            self._write_tick(waiting.seconds, waiting.arrive(), drop=False, waiting=waiting)

    def _refused(self, waiting: Waiting, error: Exception) -> None:
        if waiting.described is None:
            self._on_lost(f"what was saved cannot be noted: {error}")
            return
        self._lose(1)
        self._on_lost(f"a tick was refused: {error}")

    # --- writing --------------------------------------------------------------------------------
    def _write_or_drop(
        self, seconds: float, described: ticks.Described, wait_s: float
    ) -> m.Schema | None:
        """Put a tick behind the others; drop it if so many seconds have made no room for it.

        Nothing is held while it waits, so that a signal, another thread, a fork and `close` find
        everything as between two ticks.

        Returns:
            Its schema; None where it was dropped.
        """
        began, waited = time.monotonic(), 0.0
        while True:
            is_last = waited >= wait_s
            try:
                return self._write_tick(seconds, described, drop=is_last)
            except RingFull as error:
                if is_last:
                    after = f" after {wait_s:g} s" if wait_s else ""
                    self._on_lost(f"a tick was dropped{after}: {error}")
                    return None
            before = waited
            time.sleep(_ROOM_EVERY_S)
            waited = time.monotonic() - began
            self.blocked_s += waited - before

    def _check_kinds(self, described: ticks.Described) -> None:
        """Refuse a key whose values no longer fit its column, before anything is written."""
        for group, fields in (("time", described.clock), ("stats", described.stats)):
            for field in fields:
                known = self._kinds.get((group, field.name))
                if known is not None and (why := ticks.conflict(known, field.kind)):
                    raise ValueError(f"{field.name!r} cannot be logged: {why}")

    def _schema(self, described: ticks.Described) -> m.Schema:
        """The schema of a tick, perhaps a new one, which is not registered yet."""
        fields = (described.clock, described.stats)
        schema = self._schemas.get(fields)
        if schema is not None:
            return schema
        self._check_kinds(described)
        self._check_number_of_schemas()
        schema = m.Schema(self._next_number, *fields)
        if sum(each.size for each in self._schemas.values()) + schema.size > m.MAX_SCHEMA_BYTES:
            raise ValueError(
                f"the keys of all combinations in one run exceed {m.MAX_SCHEMA_BYTES} bytes: use "
                "fewer or shorter keys, or log them together in arrays"
            )
        self._next_number += 1
        return schema

    def _check_number_of_schemas(self, others: int = 0) -> None:
        if len(self._schemas) + others >= m.MAX_SCHEMAS:
            raise ValueError(
                f"more than {m.MAX_SCHEMAS} combinations of keys in one run: "
                "do not make key names from step numbers or values"
            )

    def _register(self, schema: m.Schema) -> None:
        self._schemas[schema.clock, schema.stats] = schema
        self._note_kinds("time", schema.clock)
        self._note_kinds("stats", schema.stats)

    def _note_kinds(self, group: str, fields: tuple[m.Field, ...]) -> None:
        for field in fields:
            self._kinds.setdefault((group, field.name), field.kind)

    def _make_ready(self, key: TickKey, schema: m.Schema, direct: tuple[Any, ...]) -> None:
        """Generate the writer for ticks like this one and let it take the next."""
        if (key, direct) not in self._writers:
            # A signal handler may log while a writer is being generated.
            if self._generating or len(self._writers) >= _MAX_WRITERS:
                return
            self._generating = True
            try:
                self._generate(key, schema, direct)
            finally:
                self._generating = False
        update = self._writers[key, direct].update
        self._latest[key] = update, schema
        self._select(update)

    def _generate(self, key: TickKey, schema: m.Schema, direct: tuple[Any, ...]) -> None:
        extra = [name for name in key[0] if name in OWN_CLOCKS]
        baton, _ = self._homes.setdefault(schema.number, ([], tick_writers.head_before(schema)))
        hooks = tick_writers.Hooks(baton.pop, baton.append, time.time, self._miss, self._on_save)
        writer = tick_writers.compile_writer(schema, direct, extra, hooks)
        self._codes.add(writer.update.__code__)
        self._acquire()
        self._widest = max(self._widest, tick_writers.most_bytes(schema))
        self._bound = None
        self._writers[key, direct] = writer
        self._give(schema)

    def _select(self, update: Update) -> None:
        self.update = self._present = update
        self._install(update)

    # --- code that holds the baton --------------------------------------------------------------
    def _write_tick(
        self,
        seconds: float,
        described: ticks.Described,
        *,
        drop: bool,
        waiting: Waiting | None = None,
    ) -> m.Schema:
        """Put a tick behind the others, after its schema if that is new.

        Args:
            drop: count it as lost where there is no room for it.
            waiting: which it was; perhaps it is written already.

        Returns:
            Its schema.

        Raises:
            RingFull: there is no room for it.
            ValueError: the tick does not fit those before it; nothing was written.
        """
        self._acquire()
        expected = self._home.schema
        try:
            schema = self._schema(described)
            if not self._is_there(waiting):
                self._put_tick(schema, seconds, described, waiting)
            expected = schema
        except RingFull:
            if drop:
                self.lost += 1
                self._gap += 1
                self.ring.note_lost(self._gap)
            raise
        finally:
            self._give(expected)
        return schema

    def _put_tick(
        self,
        schema: m.Schema,
        seconds: float,
        described: ticks.Described,
        waiting: Waiting | None,
    ) -> None:
        record = _encode_tick(schema, seconds, described.values)
        self._put_gap()
        if (schema.clock, schema.stats) not in self._schemas:
            self._put(wire.encode_record(schema))
            self._register(schema)
        self._put(record, waiting)

    def _is_there(self, waiting: Waiting | None) -> bool:
        """Whether an attempt to write it was interrupted when it was written."""
        if waiting is None or waiting.place is None:
            return False
        segment, end = waiting.place
        return segment.end >= end

    def _append(self, record: bytes) -> None:
        """Put a record that is no tick behind the others."""
        self._acquire()
        try:
            self._put(record)
        finally:
            self._give(self._home.schema)

    def _look(self) -> Latest:
        """Read what was written."""
        self._acquire()
        try:
            return self._latest_before(self.ring.active.end)
        finally:
            self._give(self._home.schema)

    def _end(self, why: str) -> int:
        """End the stream and keep the baton for good.

        A signal handler that has interrupted its holder takes it from it: that one cannot go on
        before we return, and what it had not committed is none of the stream.

        Returns:
            Ticks that had to be given up.
        """
        is_nested = self._is_nested()
        self._acquire(force=is_nested)
        if is_nested:  # its holder is to write nowhere when it goes on
            for writer in self._writers.values():
                writer.bind(bytearray(self.ring.active.size))
        self._closed = why
        before = self.lost
        while (waiting := self._aside.take()) is not None:
            try:
                is_there = self._put_late(waiting)
            except Exception:  # there is no room, its computation has failed, it is out of bounds
                is_there = False
            if not is_there and waiting.described is not None:
                self.lost += 1
                self._gap += 1
            waiting.is_done = True
        self.end()
        return self.lost - before

    def _put_late(self, waiting: Waiting) -> bool:
        """Put what was set aside behind the others.  Returns: False where it has not come."""
        if waiting.described is None:
            self._put(waiting.record)
            return True
        if self._is_there(waiting):
            return True
        if not waiting.has_come():
            return False
        described = waiting.arrive()
        self._put_tick(self._schema(described), waiting.seconds, described, waiting)
        return True

    def _lose(self, count: int) -> None:
        """Count ticks as lost."""
        self._acquire()
        try:
            self.lost += count
            self._gap += count
            self.ring.note_lost(self._gap)
        finally:
            self._give(None)

    def _put_aside_meanwhile(self) -> None:
        """Turn away from a schema: another thread set a tick aside before it was turned to."""
        home = self._home
        with contextlib.suppress(IndexError):  # somebody writes just now, and may
            end = home.baton.pop() - len(home.head)
            active = home.segment
            active.end = end
            self._dirty_end = max(self._dirty_end, min(end + self._widest, active.size))
            self._put_down(None)

    def _turn_to(self, schema: m.Schema | None) -> None:
        """Let the writers of a schema take the next ticks; None for the general way."""
        self._acquire()
        self._give(schema)

    def _maybe_tell_gap(self) -> None:
        """Tell of lost ticks as soon as there is room, whether or not another tick comes."""
        if not self._gap or self._is_nested():
            return
        self._acquire()
        expected = self._home.schema
        try:
            with contextlib.suppress(RingFull):  # tried again at the next look
                self._put_gap()
        finally:
            self._give(expected)

    def _put_gap(self, *, is_last: bool = False) -> None:
        """Tell of the ticks that were lost meanwhile.  Args: is_last: as of `Ring.roll`."""
        if self._gap:
            self._put(gap_record(self._gap), is_last=is_last)
            self._gap = 0
            self.ring.note_lost(0)

    def _put(self, record: bytes, waiting: Waiting | None = None, *, is_last: bool = False) -> None:
        """Write a record behind the others and commit it.

        Args:
            waiting: is told where.
            is_last: as of `Ring.roll`.
        """
        active = self.ring.active
        if active.end + len(record) >= active.size:
            active = self._roll(len(record) + 1, is_last=is_last)
        end = active.end + len(record)
        if waiting is not None:
            waiting.place = active, end
        self._clean(active.end + 1)
        active.buffer[active.end : end] = record
        active.buffer[end] = tick_layout.COMMITTED
        active.end = end

    def _roll(self, record_bytes: int, *, is_last: bool) -> Segment:
        """Begin another segment, and have the full one counted.  Args, Raises: of `Ring.roll`."""
        full = self.ring.active
        self._count_full()
        if self._tally is not None:
            content = bytes(full.content(HEADER_BYTES, full.end))
            self._full = full.base, full.end_position, content
        active = self.ring.roll(record_bytes, is_last=is_last)
        self._dirty_end = 0
        self._count_full()
        return active

    def _count_full(self) -> None:
        """Let the tally have the segment that was full, once another one is active.

        Before every look at it, too: what interrupts us in `_roll` must not find it missing.
        """
        full = self._full
        if full is not None and self._tally is not None and self.ring.active.base != full[0]:
            self._tally.add(*full, self.schemas)
            self._full = None

    def _clean(self, start: int) -> None:
        """Put zeros where an unfinished tick, or the head for it, may lie."""
        if start < self._dirty_end:
            self.ring.active.buffer[start : self._dirty_end] = bytes(self._dirty_end - start)
        self._dirty_end = 0

    # --- the baton ----------------------------------------------------------------------------
    def _acquire(self, *, force: bool = False) -> None:
        """Take the baton, waiting for its holder.  Args: force: do not wait.

        From now on `end` of the active segment is where the committed records end.  Next: `_give`.
        An exception may come between any two steps of whoever holds the baton; so what a step has
        changed must be true by itself, and the rest is found out here.
        """
        waits = unheld = 0
        while True:
            try:
                end = self._home.baton.pop() - len(self._home.head)
                break
            except IndexError:
                if self._closed:
                    raise LoggerClosed(self._closed) from None
            waits += 1
            if not force:
                unheld = self._wait(unheld, looks=waits > _WAITS_FIRST)
            if force or unheld > _LOST_AFTER_LOOKS:
                end = self._committed()
                break
        active = self.ring.active
        active.end = end
        self._dirty_end = max(self._dirty_end, min(end + self._widest, active.size))

    def _give(self, schema: m.Schema | None) -> None:
        """Put the baton down where the next tick is expected.  Arguments: of `_put_down`.

        Raises:
            LoggerClosed: a signal handler has ended the stream in the middle of what we did.
        """
        if self._closed:
            raise LoggerClosed(self._closed)
        self._put_down(schema)
        if self._home.schema is not None and self._aside.blocks:
            self._put_aside_meanwhile()

    def _put_down(self, schema: m.Schema | None) -> None:
        """Put the baton where a schema's writers take it from.

        Args:
            schema: of the next tick, most likely; its head is written, if its writers want that.
                No writer is to put one before the gap that has to be told first, or before what
                was set aside.
        """
        active = self.ring.active
        if self._bound is not active.buffer:
            for writer in self._writers.values():
                writer.bind(active.buffer)
            self._bound = active.buffer
        home = _Home([], None, b"", active)
        waits = self._gap or self._aside.blocks
        if schema is not None and not waits and schema.number in self._homes:
            baton, head = self._homes[schema.number]
            behind = active.end + len(head)
            if behind < active.size:
                self._clean(max(behind, active.end + 1))  # not the byte that commits what is before
                active.buffer[active.end : behind] = head
                home = _Home(baton, schema, head, active)
        self._home = home
        home.baton.append(active.end + len(home.head))

    def _committed(self) -> int:
        """The offset behind the last committed record, from the segment itself."""
        active = self.ring.active
        with memoryview(active.buffer)[active.end : active.size] as content:
            return active.end + tick_layout.committed_end(content)

    def _wait(self, unheld: int, *, looks: bool) -> int:
        """Wait a little.

        Args:
            looks: also look whether somebody has the baton.

        Returns:
            How many looks in a row have found that nobody has.
        """
        time.sleep(_LOOK_EVERY_S)
        return 0 if not looks or self._held() else unheld + 1

    def _held(self) -> bool:
        """Whether some thread is inside code that holds the baton."""
        return any(self._holds(frame) for frame in sys._current_frames().values())

    def _is_nested(self) -> bool:
        """Whether this call interrupted the baton's holder in this very thread."""
        return not self._home.baton and self._holds(sys._getframe())

    def _holds(self, frame: FrameType | None) -> bool:
        """Whether a stack has code that holds the baton, and is not just waiting for it."""
        inner: CodeType | None = None
        while frame is not None:
            if frame.f_code in self._codes and inner not in _PASSING:
                return True
            inner = frame.f_code
            frame = frame.f_back
        return False


# What an error about the arguments calls these, for user code does.
Producer._enter.__qualname__ = Producer._miss.__qualname__ = "update"

# Methods that hold the baton, except while their next inner frame is one of `_PASSING`; generated
# writers are such, too.  `_acquire` answers for its callers, and for itself unless it waits.
_HOLDERS: Final = (
    Producer._write_tick.__code__,
    Producer._append.__code__,
    Producer._look.__code__,
    Producer._end.__code__,
    Producer._lose.__code__,
    Producer._put_aside_meanwhile.__code__,
    Producer._generate.__code__,
    Producer._turn_to.__code__,
    Producer._acquire.__code__,
)
_PASSING: Final = (Producer._miss.__code__, Producer._acquire.__code__, Producer._wait.__code__)


def _encode_run(run: m.Run) -> bytes:
    record = wire.encode_record(run)
    if len(record) > m.MAX_RUN_BYTES:
        raise ValueError(
            f"the configuration of a run and what it has kept take {len(record)} bytes, and "
            f"{m.MAX_RUN_BYTES} is the most they may have: store large values as extra objects"
        )
    return record


def _encode_tick(schema: m.Schema, seconds: float, values: Sequence[Any]) -> bytes:
    if tick_layout.has_fixed_layout(schema):
        return tick_writers.pack_fixed(schema, seconds, values)
    record = wire.encode_text_tick(schema, seconds, values)
    if len(record) > m.MAX_TICK_BYTES:
        raise _too_large(len(record))
    return record


def _too_large(size: int) -> ValueError:
    return ValueError(
        f"a tick of {size} bytes, and {m.MAX_TICK_BYTES} is the most one may have: "
        "store long texts and large arrays as extra objects"
    )


def _tick_key(clock: object, stats: object) -> TickKey:
    """The keys of a tick that a generated writer may take; none of any other."""
    if type(clock) is dict and type(stats) is dict:
        return tuple(clock), tuple(stats)
    return _NO_KEYS
