"""The runs and streams that the daemon knows, and which stream belongs to which run.

Pure.  A run is here until it is sealed and the journal says so; then a line of the status report is
left of it, and of its streams what it takes to answer a late repeat.  Nothing is decided here, and
nobody is told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from mle_client import layout
from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon import state
from mle_daemon.agenda import Agenda
from mle_daemon.groups import Groups
from mle_daemon.ingest import Stream
from mle_daemon.runs import Member, RunState

# A finished stream needs no further answer once its ring is gone; this many are kept of those whose
# ring was never seen from here.
ENDED_KEPT: Final = 10_000
# What the producer of an ended stream is told that has more of it.
CLOSED: Final = (
    "the daemon took this process for gone and has closed its stream; the ticks that it has not "
    "acknowledged stay in the ring"
)


class Registry:
    """Runs and streams by their ids.

    Args:
        recent_runs: how many finished runs the status report lists.
        groups: told of the runs that come and go.

    Attributes:
        agenda: which of the runs are to be looked at.
        held_bytes: about what ticks take in memory, as of the last look at each run.
        runs: those that are not sealed, the oldest first.
        recent: the last report of those that are.
        streams: of `runs`, and those whose first piece is being journaled.
        ended: of sealed runs.
        settings_bytes: of the configurations of `runs`, about.
    """

    def __init__(self, recent_runs: int, groups: Groups) -> None:
        self._groups = groups
        self.runs: dict[m.RunId, RunState] = {}
        self.recent: OrderedDict[m.RunId, e.Report] = OrderedDict()
        self.streams: dict[m.ProducerId, Stream] = {}
        self.ended: OrderedDict[m.ProducerId, Stream] = OrderedDict()
        self.settings_bytes = 0
        self.agenda = Agenda()
        self.held_bytes = 0
        self._recent_runs = recent_runs
        self._run_of: dict[m.ProducerId, m.RunId] = {}
        self._with_ring: set[m.ProducerId] = set()  # streams whose ring was seen
        self._held: dict[m.RunId, int] = {}  # bytes, as of the last look at each run

    # --- looking ------------------------------------------------------------------------------
    def run_of(self, producer: m.ProducerId) -> RunState | None:
        """The run that a stream belongs to, to do something to it: it is on the agenda then.

        Returns:
            None while nothing of the stream is journaled, or no more.
        """
        run = self.run_with(producer)
        if run is not None:
            self.agenda.touch(run.run.run_id)
        return run

    def run_with(self, producer: m.ProducerId) -> RunState | None:
        """As `run_of`, to look at it only."""
        run_id = self._run_of.get(producer)
        return None if run_id is None else self.runs.get(run_id)

    def position(self, producer: m.ProducerId) -> int:
        """The position up to which the journal has a stream; 0 if it is unknown."""
        stream = self.streams.get(producer) or self.ended.get(producer)
        return stream.position if stream else 0

    def positions(self, run: RunState) -> dict[m.ProducerId, int]:
        """The position up to which the journal has each stream of a run."""
        return {producer: self.streams[producer].position for producer in run.members}

    def published(self, producer: m.ProducerId) -> int:
        """The position up to which a file has a stream; 0 while it has no run."""
        run = self.run_with(producer)
        member = run.members.get(producer) if run else None
        return member.published if member else 0

    def is_published(self, producer: m.ProducerId, end: int) -> bool:
        """Whether a file has a stream up to a position.  That of a sealed run has all of it."""
        run = self.run_with(producer)
        return run is None or run.members[producer].published >= end

    def is_settled(self, producer: m.ProducerId) -> bool:
        """Whether nothing that a producer saved is still to be stored."""
        run = self.run_with(producer)
        return run is None or not any(key[0] == producer for key in run.artifacts.pending)

    def unfinished(self) -> Iterator[Member]:
        """The producers that are not through."""
        for run in self.runs.values():
            for producer, member in run.members.items():
                if not (member.over and self.is_settled(producer)):
                    yield member

    def reckon(self, run: RunState) -> None:
        """A run was looked at: count what its ticks take now."""
        run_id, held = run.run.run_id, run.held_bytes
        self.held_bytes += held - self._held.get(run_id, 0)
        self._held[run_id] = held

    def reports(self, now: float) -> list[e.Report]:
        """The runs' part of a status report."""
        live = [run.report(self.positions(run), now) for run in self.runs.values()]
        return [*live, *self.recent.values()]

    # --- coming -------------------------------------------------------------------------------
    def enter(self, run: m.Run, producer: m.ProducerId) -> bool:
        """A stream belongs to a run.  Returns: whether the run is new here."""
        self._run_of[producer] = run.run_id
        if run.run_id in self.runs:
            return False
        before = self.recent.pop(run.run_id, None)  # a forked child outlives its parent's run
        seed_id = before["seed_id"] if before else run.seed_id
        self.runs[run.run_id] = RunState(run, seed_id, layout.log_path(run.directory, seed_id))
        self.agenda.touch(run.run_id)
        self.settings_bytes += settings_bytes(run)
        self._groups.began(run.directory, seed_id, run.num_seeds)
        return True

    # --- going --------------------------------------------------------------------------------
    def retire(self, run_id: m.RunId, now: float) -> RunState:
        """Keep no more of a run than a line of the status report, and the ends of its streams."""
        run = self._forget(run_id)
        if run.file is None:
            self._groups.left(run.run.directory)
        else:
            self._groups.ended(run.run.directory, run.seed_id, run.status)
        self.recent[run_id] = run.report(self.positions(run), now)
        while len(self.recent) > self._recent_runs:
            self.recent.popitem(last=False)
        for stream in [self.streams[producer] for producer in run.members]:
            self.put_away(stream.producer, stream.position, stream.ticks)
        return run

    def put_away(self, producer: m.ProducerId, position: int, ticks: int) -> None:
        """Keep of a stream only what it takes to answer a late repeat."""
        self.streams.pop(producer, None)
        run_id = self._run_of.pop(producer, None)
        if run_id is not None and (run := self.runs.get(run_id)):
            self.agenda.touch(run_id)
            run.forget(producer)
            if not run.members:
                self._forget(run_id)
                self._groups.left(run.run.directory)
        self.ended[producer] = Stream(producer, position, ticks)
        while len(self.ended) > ENDED_KEPT:
            self.ended.popitem(last=False)

    def _forget(self, run_id: m.RunId) -> RunState:
        run = self.runs.pop(run_id)
        self.held_bytes -= self._held.pop(run_id, 0)
        self.settings_bytes -= settings_bytes(run.run)
        return run

    def rings_seen(self, rings: frozenset[m.ProducerId]) -> None:
        """Forget the streams that will not be heard of again: ended ones whose ring has gone."""
        self._with_ring |= rings
        gone = {p for p in self._with_ring - rings if p not in self.streams}
        for producer in gone:
            self.ended.pop(producer, None)
        self._with_ring -= gone

    @property
    def has_left_rings(self) -> bool:
        """Whether the ring of an ended stream still lies there: it is to be known that it ended."""
        return not self._with_ring.isdisjoint(self.ended)

    # --- the state record ---------------------------------------------------------------------
    def saved(self) -> state.Saved:
        """All that is known besides ticks."""
        saved = self.saved_runs(self.runs)
        streams = (*saved.streams, *saved_ends(self.ended.values()).streams)
        groups = tuple(self._groups.pending().items())
        meta_logs = tuple(self._groups.pending_meta_logs())
        return state.Saved(saved.runs, streams, groups, meta_logs)

    def saved_runs(self, run_ids: Iterable[m.RunId]) -> state.Saved:
        """What is known of some runs and their streams besides ticks."""
        wanted = set(run_ids)
        runs = [
            state.SavedRun(run.run, run.seed_id, run.path, run.lost, run.artifacts.to_plain())
            for run_id, run in self.runs.items()
            if run_id in wanted
        ]
        streams = [
            state.SavedStream(
                p, s.position, s.ticks, dict(s.schemas), self._run_of[p],
                member.main, member.over, member.crashed, member.process,
            )
            for p, s in self.streams.items()
            if self._run_of.get(p) in wanted
            for member in [self.runs[self._run_of[p]].members.get(p)]
            if member is not None
        ]  # fmt: skip
        return state.Saved(tuple(runs), tuple(streams))

    def restore_run(self, saved: state.SavedRun) -> bool:
        """Take over a saved run, or its name if it is here.  Returns: whether it is new here.

        Raises:
            ProtocolError: what it says of artifacts was written by something else.
        """
        run_id = saved.run.run_id
        if known := self.runs.get(run_id):
            known.seed_id, known.path = saved.seed_id, saved.path
            return False
        restored = RunState(saved.run, saved.seed_id, saved.path, lost=saved.lost)
        restored.artifacts.restore(saved.artifacts)
        self.runs[run_id] = restored
        self.agenda.touch(run_id)
        self.settings_bytes += settings_bytes(saved.run)
        self._groups.began(saved.run.directory, saved.seed_id, saved.run.num_seeds)
        return True

    def restore_stream(self, saved: state.SavedStream, run_id: m.RunId) -> None:
        """Take over a saved stream of a run that is here."""
        producer = saved.producer
        self.ended.pop(producer, None)
        self.streams[producer] = Stream(producer, saved.position, saved.ticks, dict(saved.schemas))
        self._run_of[producer] = run_id
        self.agenda.touch(run_id)
        member = self.runs[run_id].join(producer, None)
        member.position, member.received = saved.position, saved.ticks
        member.main, member.over, member.crashed = saved.main, saved.over, saved.crashed
        member.process = saved.process


def settings_bytes(run: m.Run) -> int:
    """About what a run's configuration takes, in memory and in the state record."""
    return len(run.config_file) + len(run.config_text) + len(run.config_json)


def saved_ends(streams: Iterable[Stream], groups: Iterable[state.Group] = ()) -> state.Saved:
    """Where streams ended of which nothing more is to be known.

    Args:
        groups: that are to be merged because of it.
    """
    ends = (
        state.SavedStream(s.producer, s.position, s.ticks, {}, None, False, True, False)
        for s in streams
    )
    return state.Saved((), tuple(ends), tuple(groups))
