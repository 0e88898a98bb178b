"""One run's artifacts as the daemon sees them: announced, arrived, stored.

Pure.  An artifact is *announced* by its record in the stream and *arrives* on a socket of its own;
when both are here, it is to be stored.  Checkpoints of a run are stored in the order in which they
were saved, so that what has a name is at any moment what it would have been had nothing failed.
Until an artifact is stored it is *pending*, across restarts too: the state record has it.

A checkpoint of which newer ones have taken every place may be *dropped*: it is never stored, and
what it was to evict goes for the next one that is.  One that is *lost* counts as never saved: what
those behind it take the place of is decided anew.

Names are made when an artifact is stored, not when it is announced: the run's seed may have got
another name meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from mle_client import layout
from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_client.kept import (
    Kept,
    kept_from_plain,
    kept_to_plain,
    model_names,
)
from mle_client.retention import (
    Plan,
    Policy,
    Portfolio,
    Saved,
    plan_save,
    policy_from_plain,
    portfolio_from_plain,
    saved_from_plain,
    to_plain,
)
from mle_daemon.events import Image, StoreArtifact

Key: TypeAlias = tuple[m.ProducerId, int]

# After a failure: long enough not to fill the log, short enough that a file appears within seconds
# of the disk's recovery.
RETRY_AFTER_S: Final = 2.0
_FOLDERS: Final = {"figure": "figures", "extra": "extra"}


@dataclass(slots=True)
class Pending:
    """An artifact that is announced and not stored.

    Args:
        position: of the stream, at or before its record.
        dropped: its bytes will not come; only what it changes in the order of checkpoints counts.
        left: its process is gone, and has left its bytes in memory: they come without it.
        staged: path of its bytes once they have arrived.
        storing: it is being given its names.
        error: told last about it.
        retry_at: not before then; a monotonic clock's seconds.
    """

    artifact: m.Artifact
    position: int
    dropped: bool = False
    left: bool = False
    staged: str = ""
    storing: bool = False
    error: str = ""
    retry_at: float = 0.0

    @property
    def is_model(self) -> bool:
        """Whether it is a checkpoint, which has its turn."""
        return self.artifact.kind == "model"

    @property
    def saved(self) -> Saved:
        """A checkpoint as retention sees it."""
        return saved_from_plain(self.artifact.facts)


@dataclass(slots=True)
class Artifacts:
    """The artifacts of one run.

    Args:
        policy: which checkpoints are kept.
        extension: of the model files.
        kept: what is kept once everything announced is stored.
        seed_id: that the run asked for; figures and objects are announced under it.
    """

    policy: Policy
    extension: str
    kept: Kept
    seed_id: str
    pending: dict[Key, Pending] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)  # stored, not told to the mirrors
    _announced: dict[m.ProducerId, int] = field(default_factory=dict)
    _stored: Portfolio = field(init=False)  # with the checkpoints that are on disk alone

    def __post_init__(self) -> None:
        self._stored = self.kept.portfolio

    @classmethod
    def of(cls, run: m.Run) -> Artifacts:
        """The artifacts of a run that begins.

        Raises:
            ProtocolError: its settings are not what a client sends.
        """
        try:
            policy = policy_from_plain(run.policy)
            kept = kept_from_plain(run.kept)
        except ValueError as error:
            raise ProtocolError(f"a run's settings are malformed: {error}") from error
        return cls(policy, layout.model_extension(run.model_type), kept, run.seed_id)

    def announce(self, producer: m.ProducerId, position: int, artifact: m.Artifact) -> None:
        """A record says that something was saved, or will not come after all."""
        key = producer, artifact.number
        if artifact.kind == m.DROPPED:
            self._drop(key)
            return
        if artifact.number <= self._announced.get(producer, 0):
            return  # a repeat
        self._announced[producer] = artifact.number
        waiting = self.pending[key] = Pending(artifact, position)
        if waiting.is_model:
            saved, saves = waiting.saved, self.kept.portfolio.saves
            if saved.number <= saves:  # no client of ours; nothing that is here may be harmed
                saved = replace(saved, number=saves + 1)
                waiting.artifact = replace(artifact, facts=to_plain(saved))
            self.kept, _ = self.kept.with_model(self.policy, saved)
        elif artifact.kind == "init":
            self.kept = self.kept.with_init()
        else:
            self.kept = self.kept.with_file(artifact.kind, artifact.name)

    def knows(self, producer: m.ProducerId, number: int) -> bool:
        """Whether an artifact was announced, be it that it is stored by now."""
        return number <= self._announced.get(producer, 0)

    def arrived(self, producer: m.ProducerId, number: int, staged: str) -> bool:
        """The bytes of an artifact are here.  Returns: whether it waits for them."""
        waiting = self.pending.get((producer, number))
        if waiting is None or waiting.dropped or waiting.storing:
            return False
        waiting.staged, waiting.error = staged, ""
        return True

    def to_store(self, directory: str, seed_id: str, now: float) -> Iterator[StoreArtifact]:
        """What can be given its names now; each is then being stored.

        Args:
            directory: absolute path of the experiment's folder.
            seed_id: as the log file has it.
        """
        for (producer, number), waiting in self._ready():
            if now < waiting.retry_at:
                continue
            waiting.storing = True
            names: tuple[str, ...] = (layout.in_seed(waiting.artifact.name, self.seed_id, seed_id),)
            evicted: tuple[int, ...] = ()
            if waiting.is_model:
                plan = self._plan(waiting)
                names = model_names(plan, seed_id, self.extension)
                evicted = plan.evicted
            elif waiting.artifact.kind == "init":
                names = (layout.init_path(seed_id, self.extension),)
            evict = tuple(layout.retained_path(seed_id, each, self.extension) for each in evicted)
            yield StoreArtifact(producer, number, waiting.staged, directory, names, evict)

    def _ready(self) -> Iterator[tuple[Key, Pending]]:
        """What has arrived and has its turn: nothing before it is to take the same name."""
        taken: set[str] = set()
        for key, waiting in self.pending.items():
            if waiting.dropped:
                continue
            name = waiting.artifact.name or waiting.artifact.kind  # all models become `final`
            if waiting.staged and not waiting.storing and name not in taken:
                yield key, waiting
            taken.add(name)

    def _plan(self, first: Pending) -> Plan:
        """What is changed by storing the first checkpoint; those before it have been dropped."""
        portfolio = self._stored
        for waiting in self.pending.values():
            if waiting is first:
                break
            if waiting.is_model:
                # It takes its slot, for those behind it to find theirs.  But it has no file, so no
                # other one goes for it.
                plan = plan_save(self.policy, portfolio, waiting.saved)
                portfolio = replace(plan.portfolio, retained=portfolio.retained)
        return plan_save(self.policy, portfolio, first.saved)

    def stored(self, key: Key) -> None:
        """The journal knows that an artifact is on disk."""
        waiting = self.pending.get(key)
        if waiting is None:
            return
        if waiting.is_model:
            for other in self._checkpoints_before(waiting):
                self.stored(other)  # a damaged journal has lost the word of it
            self._stored = self._plan(waiting).portfolio
            dropped = [k for k, other in self.pending.items() if other.dropped]
            for other in dropped:
                if self.pending[other].saved.number < waiting.saved.number:
                    del self.pending[other]
        del self.pending[key]
        facts = waiting.artifact.facts
        if waiting.artifact.kind == "figure" and "step" in facts:
            row = int(facts.get("row", 0))
            name = waiting.artifact.name
            self.images.append(Image(float(facts["seconds"]), int(facts["step"]), row, name))

    def _checkpoints_before(self, last: Pending) -> list[Key]:
        """Those that wait and would have been stored before another one, as they are in order."""
        models = [(key, w) for key, w in self.pending.items() if w.is_model and not w.dropped]
        return [key for key, w in models if w.saved.number < last.saved.number]

    def failed(self, key: Key, error: str, now: float) -> bool:
        """An artifact could not be stored this time.  Returns: whether that is news."""
        waiting = self.pending.get(key)
        if waiting is None:
            return False
        waiting.storing = False
        waiting.retry_at = now + RETRY_AFTER_S
        before, waiting.error = waiting.error, error
        return error != before

    def gone(self, producer: m.ProducerId, left: Iterable[int]) -> dict[Key, str]:
        """A producer's process is gone: what it has not left behind will not come.

        Returns:
            What each lost one was, as of `lose`.
        """
        coming = set(left)
        for (owner, number), waiting in self.pending.items():
            waiting.left = waiting.left or (owner == producer and number in coming)
        lost = [
            key
            for key, waiting in self.pending.items()
            if key[0] == producer
            and not (waiting.staged or waiting.dropped)
            and key[1] not in coming
        ]
        return {key: self.lose(key) for key in lost}

    def wanted(self, producer: m.ProducerId) -> frozenset[int]:
        """Numbers of a producer's artifacts whose bytes are not here."""
        return frozenset(
            number
            for (owner, number), waiting in self.pending.items()
            if owner == producer and not (waiting.staged or waiting.dropped)
        )

    def waits(self, positions: Mapping[m.ProducerId, int], *, figures: bool = True) -> bool:
        """Whether something announced before these positions of streams is not stored.

        Args:
            figures: whether they count; those of a dead process take a second each to be drawn.
        """
        return any(
            waiting.position < positions.get(producer, 0)
            and not waiting.dropped
            and (figures or waiting.artifact.kind != "figure")
            for (producer, _), waiting in self.pending.items()
        )

    @property
    def waiting(self) -> int:
        """How many are announced, not dropped and not stored."""
        return sum(not each.dropped for each in self.pending.values())

    @property
    def comes(self) -> bool:
        """Whether something is on its way that needs no process but this one."""
        return any(waiting.left and not waiting.dropped for waiting in self.pending.values())

    @property
    def storing(self) -> bool:
        """Whether anything is being given its names."""
        return any(waiting.storing for waiting in self.pending.values())

    @property
    def protected(self) -> frozenset[int]:
        """Numbers of the checkpoints in models/retained that may not go yet."""
        on_disk, wanted = self._stored.retained, self.kept.portfolio.retained
        # One that waits may have got its names from a process that was killed before it said so.
        waiting = (w.saved for w in self.pending.values() if w.is_model and not w.dropped)
        return frozenset(saved.number for saved in (*on_disk, *wanted, *waiting))

    @property
    def error(self) -> str:
        """Why something cannot be received or stored, "" where nothing is known to fail."""
        errors = (waiting.error for waiting in self.pending.values() if not waiting.dropped)
        return next(filter(None, errors), "")

    def next_retry(self) -> float:
        """When something is to be tried again; infinity if nothing is."""
        return min((waiting.retry_at for _, waiting in self._ready()), default=float("inf"))

    def describe(self, key: Key) -> str:
        """What an artifact is, for people."""
        waiting = self.pending.get(key)
        if waiting is None:
            return f"artifact {key[1]}"
        if waiting.is_model:
            return f"checkpoint {waiting.saved.number}"
        return waiting.artifact.name or "the initial checkpoint"

    def lose(self, key: Key) -> str:
        """An artifact will not come: count it as never saved.

        Returns:
            What it was; "" where nobody will miss it.
        """
        waiting = self.pending.pop(key, None)
        if waiting is None:
            return ""
        artifact = waiting.artifact
        if artifact.kind in _FOLDERS:
            if not any(other.artifact.name == artifact.name for other in self.pending.values()):
                self.kept = self.kept.without_file(artifact.kind, artifact.name)
            return artifact.name
        if artifact.kind == "init":
            if not any(other.artifact.kind == "init" for other in self.pending.values()):
                self.kept = self.kept.without_init()
            return "the initial checkpoint"
        is_missed = self._is_placed(waiting)
        self._plan_again()
        return f"checkpoint {waiting.saved.number}" if is_missed else ""

    def _drop(self, key: Key) -> None:
        """The bytes of an artifact will not come, and its client knows."""
        waiting = self.pending.get(key)
        if waiting is None or waiting.staged:
            return
        if waiting.is_model and not self._is_placed(waiting):
            waiting.dropped = True
        else:
            self.lose(key)

    def _is_placed(self, waiting: Pending) -> bool:
        """Whether a checkpoint has a name that no newer one has taken."""
        portfolio, number = self.kept.portfolio, waiting.saved.number
        return number == portfolio.saves or portfolio.live(number)

    def _plan_again(self) -> None:
        """Decide anew what is kept of the checkpoints, for one of them was lost."""
        while True:
            portfolio = self._stored
            for waiting in self.pending.values():
                if waiting.is_model:
                    portfolio = plan_save(self.policy, portfolio, waiting.saved).portfolio
            init_saved = self.kept.portfolio.init_saved
            self.kept = replace(self.kept, portfolio=replace(portfolio, init_saved=init_saved))
            lacking = [k for k, w in self.pending.items() if w.dropped and self._is_placed(w)]
            if not lacking:
                return
            for key in lacking:  # what had taken its place is lost, and so is it
                del self.pending[key]

    # --- in the journal ---------------------------------------------------------------------------
    def to_plain(self) -> dict[str, Any]:
        """All of it as plain values, but for the paths of what has arrived."""
        return {
            "kept": kept_to_plain(self.kept),
            "announced": [[producer, number] for producer, number in self._announced.items()],
            "stored": to_plain(self._stored),
            "pending": [
                [
                    producer,
                    waiting.position,
                    waiting.dropped,
                    [number, waiting.artifact.kind, waiting.artifact.name, waiting.artifact.facts],
                ]
                for (producer, number), waiting in self.pending.items()
            ],
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Take over what `to_plain` gave.

        Raises:
            ProtocolError: it is something else.
        """
        try:
            self.kept = kept_from_plain(plain["kept"])
            self._announced = {m.ProducerId(p): number for p, number in plain["announced"]}
            self._stored = portfolio_from_plain(plain["stored"])
            self.pending = {
                (m.ProducerId(producer), values[0]): Pending(m.Artifact(*values), position, dropped)
                for producer, position, dropped, values in plain["pending"]
            }
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"the artifacts of a run are malformed: {error!r}") from error


def why_unfit(artifact: m.Artifact) -> str:
    """Why an artifact's record cannot be taken; "" if it can.

    The client has said so to its user before; this is for what others send.
    """
    if artifact.kind in _FOLDERS:
        folder = _FOLDERS[artifact.kind]
        if not artifact.name.startswith(f"{folder}/"):
            return f"{artifact.name!r} is not in {folder}/"
        why = layout.artifact_path_problem(folder, artifact.name.removeprefix(f"{folder}/"))
        return why or ("" if _is_place(artifact.facts) else "a figure's facts are malformed")
    if artifact.kind == "model":
        try:
            saved_from_plain(artifact.facts)
        except ValueError as error:
            return str(error)
    return ""


def _is_place(facts: Mapping[str, Any]) -> bool:
    """Whether facts say where a figure belongs, or nothing."""
    counts = [facts[name] for name in ("step", "row") if name in facts]
    seconds = facts.get("seconds", 0.0)
    return (
        all(type(count) is int for count in counts)
        and type(seconds) in (int, float)
        and ("step" in facts) == ("seconds" in facts)
    )
