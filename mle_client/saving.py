"""Saves models, figures and objects for user code: one copy in memory, and a record in the stream.

A save is checked, its bytes are taken (`serializers` into a snapshot), then its record goes into
the stream, then `shipping` has it.  So a process may die after any step: what was returned from
is in memory that outlives it, and a record without bytes is reported by the daemon.

Which names a checkpoint gets is decided by `retention`, here and in the daemon alike, so that
`model_log` is right at once.  What a figure looks like as a picture is found out later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from mle_client import layout
from mle_client import messages as m
from mle_client.background import Work, Worker
from mle_client.errors import LoggerClosed, MLEError
from mle_client.kept import Kept
from mle_client.layout import OWN_CLOCKS
from mle_client.producer import Producer
from mle_client.retention import Policy, Saved, to_plain
from mle_client.ring import RingFull
from mle_client.shipping import Shipper
from mle_client.snapshot import Arena, Snapshot, SnapshotWriter
from mle_client.tally import Latest

# `serializers`, `rendering`, `renderer` and `weights` are loaded by the first save that needs them:
# most runs save nothing, and a script pays for what it imports.
if TYPE_CHECKING:
    from mle_client.renderer import Renderer

# How long a save waits for earlier ones to be on disk before it takes memory, or disk, beyond what
# snapshots should have: a slow disk then shows, but in training's time and not as a lost model.
MAKE_ROOM_TIMEOUT_S: Final = 10.0
# Artifacts that wait to be stored may take so much memory, or twice that of the largest one: one is
# on its way while the next is taken.  As much may wait to be counted for histograms.
FREE_BYTES: Final = 256 * 2**20
RENDER_TIMEOUT_S: Final = 60.0  # for one figure: a hundred times what a large one takes
_CHUNK_BYTES: Final = 2**20
# Histograms in one record: 0.7 KB each and a name, so that the record stays below its bound.
_TAGS_IN_RECORD: Final = 200
_FORKED: Final = (
    "a forked child of the process that made the logger cannot save models, figures or objects: "
    "they would take the names of its parent's; make an MLELogger with its own seed_id there"
)


@dataclass(frozen=True, slots=True)
class Counts:
    """What saving has cost so far.

    Args:
        saved: artifacts handed over.
        rendered_here: figures that could not travel and were rendered on the caller's thread.
        waited_s: seconds that saves waited for room.
        not_counted: updates whose histograms were left out, since too many waited to be counted.
    """

    saved: int = 0
    rendered_here: int = 0
    waited_s: float = 0.0
    not_counted: int = 0


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is noted of an artifact.

    Args:
        kind, name, facts: as of `messages.Artifact`.
        kept: what is kept with it.
        save: number of a checkpoint.
    """

    kind: str
    name: str
    facts: dict[str, Any]
    kept: Kept
    save: int | None = None


class Saver:
    """Saves the artifacts of one logger, in the process that made it.

    Args:
        directory: absolute path of the experiment's folder, links resolved.
        seed_id: gives the seed's name as it is now; the daemon may have chosen another.
        model_type: of the logger.
        policy: which checkpoints are kept.
        kept: what a continued run has kept so far.
        start_time: seconds since the epoch at which time_elapsed is 0.
        rows_before: ticks that a continued run has already.
        on_error: called from any thread with what goes wrong in the background.
    """

    def __init__(
        self,
        directory: str,
        seed_id: Callable[[], str],
        model_type: str,
        policy: Policy,
        kept: Kept,
        start_time: float,
        rows_before: int,
        on_error: Callable[[MLEError], None],
    ) -> None:
        self.policy = policy
        self.extension = layout.model_extension(model_type)
        self.kept = kept
        self.counts = Counts()
        self._directory = directory
        self._seed_id = seed_id
        self._model_type = model_type
        self._start_time = start_time
        self._rows_before = rows_before
        self._on_error = on_error
        self._worker = Worker("mle-artifacts")
        self._renderer: Renderer | None = None  # from the first figure on
        self._lock = threading.RLock()  # one save at a time; a signal handler may save, too
        self._number = 0
        self._handing_over = False
        # Of signal handlers that have interrupted a hand-over.
        self._put_off: deque[tuple[SnapshotWriter, Callable[[], _Entry], str]] = deque()
        self._untold: list[int] = []  # dropped, and there was no room to say so
        self._to_count = 0  # bytes that wait to be counted for histograms
        self._largest = 0  # bytes of the largest artifact so far
        self._in_vain = 0  # bytes that waited when a wait for room was in vain; 0 after it was not
        self._road: tuple[Producer, Arena, Shipper] | None = None
        self._refuse: str = ""

    @property
    def seed_id(self) -> str:
        """The seed's name as it is now."""
        return self._seed_id()

    def bind(self, producer: Producer, arena: Arena, shipper: Shipper) -> None:
        """Save into a producer's stream from now on."""
        self._road = producer, arena, shipper

    def forked(self) -> None:
        """In a forked child: the names and the memory are the parent's."""
        if self._road is not None:
            self._road[1].forget()
        self._worker.forget()
        if self._renderer is not None:
            self._renderer.forget()
        self._renderer = None
        self._road = None
        self._lock = threading.RLock()
        self._handing_over = False
        self._put_off.clear()
        self._refuse = _FORKED

    def finish(self, timeout: float) -> bool:
        """Wait until figures are drawn and histograms counted.

        Args:
            timeout: seconds.

        Returns:
            Whether they are.
        """
        return self._worker.wait(timeout)

    def close(self) -> int:
        """Save no more.  What is not shipped stays in memory that outlives the process.

        Returns:
            How many figures and histograms were cut off.
        """
        self._road = None
        cut_off = self._worker.close()  # first: what is cut off by the next line has not failed
        if self._renderer is not None:
            self._renderer.close()
        return cut_off

    @property
    def needs_ticks(self) -> bool:
        """Whether the latest tick matters to a save that comes without one."""
        return bool(self.policy.metric_names or self.policy.clock_names or self.policy.time_name)

    # --- saving -----------------------------------------------------------------------------------
    def save_model(
        self, model: Any, clock: Mapping[str, Any] | None = None, stats: Mapping[str, Any] = {}
    ) -> None:
        """Save a checkpoint.

        Args:
            model: of the logger's model_type.
            clock, stats: of the tick that it comes with; None for the latest tick.

        Raises:
            TypeError, ValueError: it cannot be saved; says what to give instead.
            OSError: there is no room to take its bytes.
            LoggerClosed: nothing can be saved any more.
        """
        from mle_client import serializers

        self._check_open()
        serializers.check_model(model, self._model_type)
        facts = self._facts(clock, stats)

        def entry() -> _Entry:
            saved = replace(facts, number=self.kept.portfolio.saves + 1)
            kept, _ = self.kept.with_model(self.policy, saved)
            return _Entry("model", "", to_plain(saved), kept, saved.number)

        with self._lock:
            writer = self._begin()
            self._write(writer, lambda: serializers.write_model(model, self._model_type, writer))
            self._commit(writer, entry)

    def save_init_model(self, model: Any) -> None:
        """Save the initial checkpoint.  Raises: as of `save_model`."""
        from mle_client import serializers

        self._check_open()
        serializers.check_model(model, self._model_type)
        with self._lock:
            writer = self._begin()
            self._write(writer, lambda: serializers.write_model(model, self._model_type, writer))
            self._commit(writer, lambda: _Entry("init", "", {}, self.kept.with_init()))

    def save_extra(self, obj: Any, fname: str | None = None) -> None:
        """Save an object.

        Args:
            fname: path below extra/; None for the next number.

        Raises:
            TypeError: it cannot be pickled.
            ValueError: `fname` leads out of extra/.
            OSError, LoggerClosed: as of `save_model`.
        """
        from mle_client import serializers

        self._check_open()
        given = None if fname is None else self._checked_name("extra", fname)

        def entry() -> _Entry:
            name = given or self._next_name(layout.extra_path, self.kept.extras)
            return _Entry("extra", name, {}, self.kept.with_file("extra", name))

        with self._lock:
            writer = self._begin()
            self._write(writer, lambda: serializers.write_object(obj, writer))
            self._commit(writer, entry)

    def save_plot(
        self, fig: Any, fname: str | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        """Save a figure as it is now; it becomes a picture in another process.

        Args:
            fname: path below figures/; None for the next number.
            facts: "step", "seconds" and "row" of the tick that it came with.

        Raises:
            TypeError: it is no figure.
            ValueError: `fname` leads out of figures/.
            OSError, LoggerClosed: as of `save_model`.
        """
        from mle_client import rendering

        self._check_open()
        given = None if fname is None else self._checked_name("figures", fname)
        image_format = rendering.image_format(given or "")

        def entry() -> _Entry:
            name = given or self._next_name(layout.figure_path, self.kept.figures)
            return _Entry("figure", name, facts or {}, self.kept.with_file("figure", name))

        with self._lock:
            writer = self._begin()
            form = "figure"
            try:
                self._write(writer, lambda: rendering.pickle_figure(fig, writer, image_format))
            except rendering.FigureCannotTravel:
                image = rendering.render_locally(fig, image_format)
                writer = self._begin()
                self._write(writer, lambda: writer.write(image))
                form = "file"
                self.counts = replace(self.counts, rendered_here=self.counts.rendered_here + 1)
            self._commit(writer, entry, form)

    def step_of(self, clock: Mapping[str, Any]) -> dict[str, Any]:
        """Where a figure belongs that came with a tick: step of the user's first clock, seconds."""
        from mle_client import weights

        latest = self._road[0].latest() if self._road else Latest()
        step = weights.step_of(clock, self._rows_before + latest.ticks)
        row = self._rows_before + latest.ticks - 1
        return {"step": step, "seconds": latest.seconds, "row": max(0, row)}

    def save_histograms(self, clock: Mapping[str, Any], model: Any, grads: Any) -> None:
        """Have the values of a model and its gradients counted for TensorBoard.

        The caller pays for a copy of what may change; counting is done in the background.
        """
        from mle_client import weights

        if self._road is None:
            return
        producer = self._road[0]
        views = weights.weight_views(model, self._model_type, grads)
        size = weights.copied_bytes(views)
        with self._lock:
            if self._to_count and self._to_count + size > FREE_BYTES:
                self.counts = replace(self.counts, not_counted=self.counts.not_counted + 1)
                return
            self._to_count += size
        latest = producer.latest()
        step = weights.step_of(clock, self._rows_before + latest.ticks)

        def count() -> None:
            try:
                found, problems = weights.histograms_of(views)
            finally:
                with self._lock:
                    self._to_count -= size
            tags = list(found.items())
            for at in range(0, len(tags), _TAGS_IN_RECORD):
                some = dict(tags[at : at + _TAGS_IN_RECORD])
                producer.record(m.Histograms(latest.seconds, step, some))
            for problem in problems:
                self._on_error(MLEError(problem))

        def failed(error: Exception) -> None:
            self._on_error(MLEError(f"a histogram for TensorBoard failed: {error}"))

        self._worker.submit(Work(count, failed))

    # --- steps of a save --------------------------------------------------------------------------
    def _check_open(self) -> tuple[Producer, Arena, Shipper]:
        if self._road is None:
            raise LoggerClosed(self._refuse or "a save after close()")
        return self._road

    def _begin(self) -> SnapshotWriter:
        producer, arena, shipper = self._check_open()
        waiting = shipper.pending_bytes(producer.id)
        if waiting < self._in_vain:
            self._in_vain = 0  # something was stored since
        if waiting > max(2 * self._largest, FREE_BYTES):
            # Once in vain is enough: while nothing is stored at all, only what is droppable goes.
            timeout = 0.0 if self._in_vain else MAKE_ROOM_TIMEOUT_S
            waited = shipper.make_room(producer.id, self._largest, timeout)
            self.counts = replace(self.counts, waited_s=self.counts.waited_s + waited)
            if waited >= timeout:
                self._in_vain = shipper.pending_bytes(producer.id)
        self._wait_for_fewer(producer, shipper)
        return arena.begin()

    def _wait_for_fewer(self, producer: Producer, shipper: Shipper) -> None:
        """Wait until not too many small artifacts are on their way: the daemon keeps each in mind.

        Raises:
            OSError: there are still too many.
        """
        if self._on_their_way(producer, shipper) < m.MAX_UNSTORED:
            return
        waited = shipper.make_room(producer.id, 1, MAKE_ROOM_TIMEOUT_S)
        self.counts = replace(self.counts, waited_s=self.counts.waited_s + waited)
        if self._on_their_way(producer, shipper) >= m.MAX_UNSTORED:
            raise OSError(
                errno.EBUSY,
                f"{m.MAX_UNSTORED} artifacts of this logger wait to be stored, and none was within "
                f"{MAKE_ROOM_TIMEOUT_S:g} s: save less often, and see `mle-daemon status`",
            )

    def _on_their_way(self, producer: Producer, shipper: Shipper) -> int:
        return shipper.unstored(producer.id) + self._worker.unfinished

    def _write(self, writer: SnapshotWriter, write: Callable[[], object]) -> None:
        try:
            write()
        except BaseException:
            writer.abort()
            raise

    def _commit(
        self, writer: SnapshotWriter, entry: Callable[[], _Entry], form: str = "file"
    ) -> None:
        """Hand over what was written.  Next: it is the daemon's.

        A signal handler that interrupts a hand-over puts its own off until that one is done: names
        and numbers follow from what was handed over before.

        Args:
            entry: what to note, as it follows from what is kept by then.
        """
        if self._handing_over:
            self._put_off.append((writer, entry, form))
            return
        try:
            self._hand_over(writer, entry, form)
        finally:
            while self._put_off:
                try:
                    self._hand_over(*self._put_off.popleft())
                except Exception as error:  # its caller has returned
                    self._on_error(MLEError(f"what a signal handler saved is lost: {error}"))

    def _hand_over(self, writer: SnapshotWriter, entry: Callable[[], _Entry], form: str) -> None:
        self._handing_over = True
        try:
            self._take_over(writer, entry(), form)
        except BaseException:
            writer.abort()
            raise
        finally:
            self._handing_over = False

    def _take_over(self, writer: SnapshotWriter, entry: _Entry, form: str) -> None:
        """Commit the bytes, put the record into the stream, and have the bytes shipped."""
        producer, _, shipper = self._check_open()
        self._tell_dropped()
        self._number += 1
        number = self._number
        snapshot = writer.commit(number, entry.kind, form)
        self._largest = max(self._largest, snapshot.size)
        try:
            producer.record(m.Artifact(number, entry.kind, entry.name, entry.facts))
            if form == "figure":
                self._draw(snapshot, entry.name)
            else:
                shipper.submit(
                    producer.id,
                    snapshot,
                    lambda: self._is_droppable(entry.save),
                    on_dropped=lambda: self._drop(number),
                )
        except RingFull as error:
            snapshot.release()
            what = entry.name or "a model"
            raise OSError(f"no room to note that {what} was saved: {error}") from error
        except BaseException:
            self._drop(number)  # it may have been noted
            snapshot.release()
            raise
        self.kept = entry.kept
        self.counts = replace(self.counts, saved=self.counts.saved + 1)

    def _draw(self, snapshot: Snapshot, name: str) -> None:
        """Have a figure become a picture, and ship that."""
        assert self._road is not None
        producer, arena, shipper = self._road
        if self._renderer is None:
            from mle_client.renderer import Renderer

            self._renderer = Renderer()
        renderer = self._renderer

        def draw() -> None:
            image = renderer.render(snapshot.chunks(_CHUNK_BYTES), RENDER_TIMEOUT_S)
            with arena.begin() as writer:
                writer.write(image)
                picture = writer.commit(snapshot.number, snapshot.kind)
            snapshot.give_way_to(picture)
            shipper.submit(producer.id, picture)

        def failed(error: Exception) -> None:
            self._drop(snapshot.number)
            with self._lock:
                self.kept = self.kept.without_file("figure", name)
            snapshot.release()
            self._on_error(MLEError(f"{name} could not be drawn: {error}"))

        self._worker.submit(Work(draw, failed))

    def _drop(self, number: int) -> None:
        """Tell the daemon that an artifact's bytes will not come."""
        self._untold.append(number)
        self._tell_dropped()

    def _tell_dropped(self) -> None:
        # Where there is no room to say so, the next save does, or the end of this process.
        with contextlib.suppress(RingFull, LoggerClosed):
            while self._road is not None and self._untold:
                self._road[0].record(m.Artifact(self._untold[0], m.DROPPED, "", {}))
                del self._untold[0]

    def _is_droppable(self, save: int | None) -> bool:
        """Whether newer checkpoints have taken every place of a checkpoint."""
        portfolio = self.kept.portfolio
        return save is not None and save != portfolio.saves and not portfolio.live(save)

    def _next_name(self, numbered: Callable[[str, int], str], taken: tuple[str, ...]) -> str:
        """The path of a figure or object without a name of its own."""
        seed_id = self._seed_id()
        numbers = [layout.file_number(name, seed_id) or 0 for name in taken]
        return numbered(seed_id, 1 + max(numbers, default=0))

    def _checked_name(self, folder: str, given: object) -> str:
        """The path of a figure or object, relative to the experiment's folder."""
        if not isinstance(given, str):
            raise TypeError(f"a file name is a string, not {given!r}")
        if why := layout.artifact_path_problem(folder, given):
            raise ValueError(why)
        name = os.path.normpath(os.path.join(folder, given))
        inside = os.path.realpath(os.path.join(self._directory, name))
        if os.path.commonpath([inside, self._directory]) != self._directory:
            raise ValueError(
                f"{given!r} leads through a link to {inside}, out of {self._directory}: "
                "give a name inside the experiment's folder"
            )
        return name

    def _facts(self, clock: Mapping[str, Any] | None, stats: Mapping[str, Any]) -> Saved:
        """What retention wants to know of a checkpoint that is saved now."""
        policy = self.policy
        if not self.needs_ticks:  # half a millisecond: the latest segment has to be decoded
            return Saved(1, None, {}, {})
        names = {*policy.clock_names, *([policy.time_name] if policy.time_name else [])}
        latest = Latest()
        if self._road is not None and (clock is None or names & set(OWN_CLOCKS)):
            latest = self._road[0].latest()
        if clock is None:
            clock, stats = latest.clock, latest.stats
            if not latest.ticks and policy.metric_names:
                raise ValueError(
                    f"save_model() before any update(): {policy.metric_names[0]!r} decides which "
                    "checkpoints are kept, so log it first, or give the model to update()"
                )
        own = {
            "num_updates": self._rows_before + latest.ticks,
            "time_elapsed": latest.seconds - self._start_time,
        }
        known = {**clock, **own}
        clocks = {name: _number(name, known[name]) for name in names if name in known}
        return Saved(
            number=1,  # decided when its bytes are taken
            time=clocks.get(policy.time_name) if policy.time_name else None,
            metrics={n: float(_number(n, stats[n])) for n in policy.metric_names if n in stats},
            clocks={name: clocks[name] for name in policy.clock_names if name in clocks},
        )


def _number(name: str, value: Any) -> int | float:
    """A logged value as one number.  Raises: ValueError: it is none."""
    if isinstance(value, int | float):
        return value
    try:
        item = value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        item = None
    if not isinstance(item, int | float):
        raise ValueError(f"{name!r} decides about checkpoints, so it must be one number: {value!r}")
    return item
