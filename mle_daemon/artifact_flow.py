"""What is done when an artifact arrives, is stored or fails, for the runs of all producers.

Pure.  `artifacts` knows the artifacts of one run; here is what happens between runs, journal and
clients.  A client is told that an artifact is stored, or lost, when the journal has it: then it may
forget the bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon import state
from mle_daemon.artifacts import Key
from mle_daemon.runs import RunState

Find: TypeAlias = Callable[[m.ProducerId], RunState | None]

# Arrived, and nobody has said what they are: their records come within a round or two.
_EARLY_KEPT: Final = 1_000
# Lost, with the reason: for producers that were taken for gone and come back.
_LOST_KEPT: Final = 1_000
_LOST_BEFORE: Final = "it was lost before the daemon was started again, whose log says why"


class ArtifactFlow:
    """The artifacts between the socket, the journal and the disk.

    Args:
        find: the run of a producer; None where there is none, or none any more.
    """

    def __init__(self, find: Find) -> None:
        self._find = find
        self._early: OrderedDict[Key, e.Arrived | e.NotArrived] = OrderedDict()
        self._noted: dict[Key, str] = {}  # for the journal: why it is lost; "" if it is stored
        self._lost_for: OrderedDict[Key, str] = OrderedDict()

    # --- arriving ---------------------------------------------------------------------------------
    def arrived(self, event: e.Arrived) -> Iterator[e.Instruction]:
        """The bytes of an artifact are here, perhaps before its record."""
        key = event.producer, event.number
        run = self._find(event.producer)
        if run is None or not run.artifacts.knows(*key):
            yield from self._keep_early(key, event)
        elif not run.artifacts.arrived(*key, event.path):
            yield from self._repeated(run, key)

    def not_arrived(self, event: e.NotArrived, now: float) -> Iterator[e.Instruction]:
        """The bytes of an artifact cannot be taken in; they are asked for again if that helps."""
        key = event.producer, event.number
        run = self._find(event.producer)
        if run is None or not run.artifacts.knows(*key):
            yield from self._keep_early(key, event)  # its record is on its way
            return
        error = f"{run.artifacts.describe(key)} could not be received: {event.error}"
        yield from self._failed(run, key, error, event.final, now)

    def announced(self, run: RunState, now: float) -> Iterator[e.Instruction]:
        """A run's records may have told of something whose bytes are here already."""
        for key in [k for k in self._early if self._find(k[0]) is run and run.artifacts.knows(*k)]:
            event = self._early.pop(key)
            if isinstance(event, e.Arrived):
                yield from self.arrived(event)
            else:
                yield from self.not_arrived(event, now)

    def _keep_early(self, key: Key, event: e.Arrived | e.NotArrived) -> Iterator[e.Instruction]:
        self._early[key] = event
        while len(self._early) > _EARLY_KEPT:
            yield e.DiscardArtifact(*self._early.popitem(last=False)[0])

    def _repeated(self, run: RunState, key: Key) -> Iterator[e.Instruction]:
        """Bytes came that nobody waits for: the word that they are stored was lost."""
        waiting = run.artifacts.pending.get(key)
        if waiting is not None and waiting.storing:
            return  # from these very bytes
        yield e.DiscardArtifact(*key)
        if key not in self._noted:
            yield from _tell(run, key, self._lost_for.get(key, ""))

    # --- storing ----------------------------------------------------------------------------------
    def due(self, run: RunState, now: float) -> Iterator[e.Instruction]:
        """What of a run can be stored now."""
        yield from run.artifacts.to_store(run.run.directory, run.seed_id, now)

    def stored(self, event: e.ArtifactStored) -> Iterator[e.Instruction]:
        """An artifact has its names; it counts as stored when the journal knows."""
        if self._find(event.producer) is not None:
            yield from self._note({(event.producer, event.number): ""})

    def not_stored(self, event: e.ArtifactNotStored, now: float) -> Iterator[e.Instruction]:
        """An artifact could not be given its names."""
        run = self._find(event.producer)
        if run is not None:
            key = event.producer, event.number
            error = f"{run.artifacts.describe(key)} could not be stored: {event.error}"
            yield from self._failed(run, key, error, event.final, now)

    def gone(
        self, run: RunState, producer: m.ProducerId, left: Iterable[int]
    ) -> Iterator[e.Instruction]:
        """A producer's process is gone; what it has not left behind is lost."""
        lost = {}
        for key, what in run.artifacts.gone(producer, left).items():
            lost[key] = f"{what or 'it'} is lost: its process ended before it had taken it"
            if what:
                yield from _notice(run, lost[key])
        yield from self._note(lost)

    def _failed(
        self, run: RunState, key: Key, error: str, final: bool, now: float
    ) -> Iterator[e.Instruction]:
        if run.artifacts.failed(key, error, now):
            yield from _notice(run, error)
        if final and key in run.artifacts.pending:
            run.artifacts.lose(key)
            yield e.DiscardArtifact(*key)
            yield from self._note({key: error})

    def lost_of(self, client: e.Client, producer: m.ProducerId) -> Iterator[e.Instruction]:
        """What a producer has lost, once more: who hears then that a flush is over knows the rest
        to be stored, though the word of that was lost with a connection."""
        for (owner, number), error in self._lost_for.items():
            if owner == producer:
                yield e.Send(client, m.Stored(producer, number, error))

    # --- the journal ------------------------------------------------------------------------------
    def _note(self, settled: dict[Key, str]) -> Iterator[e.Instruction]:
        self._noted |= settled
        if settled:
            yield e.AppendJournal((_record(settled),))

    def journaled(self) -> Iterator[e.Instruction]:
        """The journal has all that it was to have: clients may forget."""
        noted, self._noted = self._noted, {}
        for key, error in noted.items():
            if error:
                self._keep_lost(key, error)
            if run := self._find(key[0]):
                if not error:
                    run.artifacts.stored(key)
                yield from _tell(run, key, error)

    def _keep_lost(self, key: Key, error: str) -> None:
        self._lost_for[key] = error
        while len(self._lost_for) > _LOST_KEPT:
            self._lost_for.popitem(last=False)

    def journal_failed(self) -> Iterator[e.Instruction]:
        """The journal does not have it; it is to have it when it can."""
        if self._noted:
            yield e.AppendJournal((_record(self._noted),))

    def replayed(self, stored: Iterable[Key], lost: Iterable[Key]) -> None:
        """An earlier process had journaled that these are stored, and those lost."""
        for key in stored:
            if run := self._find(key[0]):
                run.artifacts.stored(key)
        for key in lost:
            self._keep_lost(key, _LOST_BEFORE)
            if run := self._find(key[0]):
                run.artifacts.lose(key)


def _record(settled: dict[Key, str]) -> bytes:
    stored = [key for key, error in settled.items() if not error]
    return state.encode_settled(stored, [key for key, error in settled.items() if error])


def _tell(run: RunState, key: Key, error: str) -> Iterator[e.Instruction]:
    producer, number = key
    member = run.members.get(producer)
    if member is not None and member.client is not None and member.client != e.NOBODY:
        yield e.Send(member.client, m.Stored(producer, number, error))


def _notice(run: RunState, text: str) -> Iterator[e.Instruction]:
    """Tell the run's clients and the log."""
    yield e.Log("warning", f"{run.run.directory}: {text}")
    for producer, member in run.members.items():
        if member.client is not None and member.client != e.NOBODY:
            yield e.Send(member.client, m.Notice(producer, text))
