"""What is done when an artifact arrives, is stored or fails, for the runs of all producers.

Pure.  `artifacts` knows the artifacts of one run; here is what happens between runs, journal and
clients.  A client is told that an artifact is stored when the journal has it: then it may forget
the bytes.
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


class ArtifactFlow:
    """The artifacts between the socket, the journal and the disk.

    Args:
        find: the run of a producer; None where there is none, or none any more.
    """

    def __init__(self, find: Find) -> None:
        self._find = find
        self._early: OrderedDict[Key, str] = OrderedDict()
        self._noted: list[Key] = []  # stored; the journal is to have it

    def arrived(self, event: e.Arrived) -> Iterator[e.Instruction]:
        """The bytes of an artifact are here, perhaps before its record."""
        key = event.producer, event.number
        run = self._find(event.producer)
        if run is None or not run.artifacts.knows(*key):
            self._early[key] = event.path
            while len(self._early) > _EARLY_KEPT:
                yield e.DiscardArtifact(*self._early.popitem(last=False)[0])
        elif not run.artifacts.arrived(*key, event.path):
            yield from self._repeated(run, key)

    def _repeated(self, run: RunState, key: Key) -> Iterator[e.Instruction]:
        """Bytes came that nobody waits for: the word that they are stored was lost."""
        if key in run.artifacts.pending:
            return  # it is being stored from these very bytes
        yield e.DiscardArtifact(*key)
        if key not in self._noted:
            yield from _tell(run, key, "")

    def announced(self, run: RunState) -> None:
        """A run's records may have told of something whose bytes are here already."""
        for key in self._early.keys() & run.artifacts.pending.keys():
            run.artifacts.arrived(*key, self._early.pop(key))

    def not_arrived(self, event: e.NotArrived, now: float) -> Iterator[e.Instruction]:
        """The bytes of an artifact cannot be taken in; they are asked for again if that helps."""
        run = self._find(event.producer)
        if run is None:
            return
        error = f"artifact {event.number} could not be received: {event.error}"
        if run.artifacts.failed((event.producer, event.number), error, now):
            yield from _notice(run, error)
        if event.final:
            yield from self._lost(run, (event.producer, event.number), error)

    def stored(self, event: e.ArtifactStored) -> Iterator[e.Instruction]:
        """An artifact has its names; it counts as stored when the journal knows."""
        if self._find(event.producer) is not None:
            yield from self._note([(event.producer, event.number)])

    def not_stored(self, event: e.ArtifactNotStored, now: float) -> Iterator[e.Instruction]:
        """An artifact could not be given its names."""
        key = event.producer, event.number
        run = self._find(event.producer)
        if run is None:
            return
        error = f"artifact {event.number} could not be stored: {event.error}"
        if run.artifacts.failed(key, error, now):
            yield from _notice(run, error)
        if event.final:
            yield from self._lost(run, key, error)

    def gone(
        self, run: RunState, producer: m.ProducerId, left: Iterable[int]
    ) -> Iterator[e.Instruction]:
        """A producer's process is gone; what it has not left behind is lost."""
        before = [key for key in run.artifacts.pending if key[0] == producer]
        for what in run.artifacts.gone(producer, left):
            yield from _notice(run, f"{what} is lost: its process ended before it had taken it")
        lost = [key for key in before if key not in run.artifacts.pending]
        if lost:
            yield from self._note(lost)

    def _lost(self, run: RunState, key: Key, error: str) -> Iterator[e.Instruction]:
        run.artifacts.lose(key)
        yield e.DiscardArtifact(*key)
        yield from _tell(run, key, error)
        yield from self._note([key])

    def due(self, run: RunState, now: float) -> Iterator[e.Instruction]:
        """What of a run can be stored now."""
        yield from run.artifacts.to_store(run.run.directory, run.seed_id, now)

    # --- the journal ------------------------------------------------------------------------------
    def _note(self, keys: list[Key]) -> Iterator[e.Instruction]:
        self._noted += keys
        yield e.AppendJournal((state.encode_stored(keys),))

    def journaled(self) -> Iterator[e.Instruction]:
        """The journal has all that it was to have: clients may forget."""
        noted, self._noted = self._noted, []
        for key in noted:
            if run := self._find(key[0]):
                run.artifacts.stored(*key, run.seed_id)
                yield from _tell(run, key, "")

    def journal_failed(self) -> Iterator[e.Instruction]:
        """The journal does not have it; it is to have it when it can."""
        if self._noted:
            yield e.AppendJournal((state.encode_stored(self._noted),))

    def replayed(self, keys: Iterable[Key]) -> None:
        """An earlier process had journaled that these are stored, or lost."""
        for producer, number in keys:
            if run := self._find(producer):
                run.artifacts.settle((producer, number))


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
