"""One run's artifacts as the daemon sees them: announced, arrived, stored.

Pure.  An artifact is *announced* by its record in the stream and *arrives* on a socket of its own;
when both are here, it is to be stored.  Checkpoints of a run are stored in the order in which they
were saved, so that what has a name is at any moment what it would have been had nothing failed.
Until an artifact is stored it is *pending*, across restarts too: the state record has it.

Names are made when an artifact is stored, not when it is announced: the run's seed may have got
another name meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from mle_client import layout, retention
from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_client.kept import (
    Kept,
    kept_from_plain,
    kept_to_plain,
    model_names,
)
from mle_client.retention import Plan, Policy, policy_from_plain, saved_from_plain
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
        plan: of a checkpoint, what saving it changes.
        staged: path of its bytes once they have arrived.
        storing: it is being given its names.
        error: told last about it.
        retry_at: not before then; a monotonic clock's seconds.
    """

    artifact: m.Artifact
    position: int
    plan: Plan | None = None
    staged: str = ""
    storing: bool = False
    error: str = ""
    retry_at: float = 0.0


@dataclass(slots=True)
class Artifacts:
    """The artifacts of one run.

    Args:
        policy: which checkpoints are kept.
        extension: of the model files.
        kept: what is kept once everything announced is stored.
    """

    policy: Policy
    extension: str
    kept: Kept
    pending: dict[Key, Pending] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)  # stored, not told to the mirrors
    _announced: dict[m.ProducerId, int] = field(default_factory=dict)
    _evictions: list[int] = field(default_factory=list)  # due with the next checkpoint

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
        return cls(policy, layout.model_extension(run.model_type), kept)

    def announce(self, producer: m.ProducerId, position: int, artifact: m.Artifact) -> None:
        """A record says that something was saved, or will not come after all."""
        key = producer, artifact.number
        if artifact.kind == m.DROPPED:
            self._forget(key)
            return
        if artifact.number <= self._announced.get(producer, 0):
            return  # a repeat
        self._announced[producer] = artifact.number
        plan = None
        if artifact.kind == "model":
            self.kept, plan = self.kept.with_model(self.policy, saved_from_plain(artifact.facts))
        elif artifact.kind == "init":
            self.kept = self.kept.with_init()
        else:
            self.kept = self.kept.with_file(artifact.kind, artifact.name)
        self.pending[key] = Pending(artifact, position, plan)

    def knows(self, producer: m.ProducerId, number: int) -> bool:
        """Whether an artifact was announced, be it that it is stored by now."""
        return number <= self._announced.get(producer, 0)

    def arrived(self, producer: m.ProducerId, number: int, staged: str) -> bool:
        """The bytes of an artifact are here.  Returns: whether it waits for them."""
        waiting = self.pending.get((producer, number))
        if waiting is None or waiting.storing:
            return False
        waiting.staged = staged
        return True

    def to_store(self, directory: str, seed_id: str, now: float) -> Iterator[StoreArtifact]:
        """What can be given its names now; each is then being stored.

        Args:
            directory: absolute path of the experiment's folder.
            seed_id: as the log file has it.
        """
        is_first = True
        for (producer, number), waiting in self.pending.items():
            blocked = waiting.plan is not None and not is_first
            is_first = is_first and waiting.plan is None
            if blocked or not waiting.staged or waiting.storing or now < waiting.retry_at:
                continue
            waiting.storing = True
            evict: tuple[str, ...] = ()
            if waiting.plan is not None:
                numbers = (*self._evictions, *waiting.plan.evicted)
                evict = tuple(layout.retained_path(seed_id, n, self.extension) for n in numbers)
                self._evictions = []
            yield StoreArtifact(
                producer, number, waiting.staged, directory, self._names(waiting, seed_id), evict
            )

    def stored(self, producer: m.ProducerId, number: int, seed_id: str) -> None:
        """An artifact is on disk."""
        waiting = self.pending.pop((producer, number), None)
        if waiting is None:
            return
        facts = waiting.artifact.facts
        if waiting.artifact.kind == "figure" and "step" in facts:
            (name,) = self._names(waiting, seed_id)
            row = int(facts.get("row", 0))
            self.images.append(Image(float(facts["seconds"]), int(facts["step"]), row, name))

    def failed(self, key: Key, error: str, now: float) -> bool:
        """An artifact could not be stored this time.  Returns: whether that is news."""
        waiting = self.pending.get(key)
        if waiting is None:
            return False
        waiting.storing = False
        waiting.retry_at = now + RETRY_AFTER_S
        before, waiting.error = waiting.error, error
        return error != before

    def settle(self, key: Key) -> None:
        """An earlier process had stored an artifact, or given it up."""
        self.pending.pop(key, None)

    def gone(self, producer: m.ProducerId, left: Iterable[int]) -> list[str]:
        """A producer's process is gone: what it has not left behind will not come.

        Returns:
            What is lost, for people.
        """
        coming = set(left)
        lost = [
            key
            for key, waiting in self.pending.items()
            if key[0] == producer and not waiting.staged and key[1] not in coming
        ]
        return [text for key in lost if (text := self.lose(key))]

    def wanted(self, producer: m.ProducerId) -> frozenset[int]:
        """Numbers of a producer's artifacts whose bytes are not here."""
        return frozenset(
            number
            for (owner, number), waiting in self.pending.items()
            if owner == producer and not waiting.staged
        )

    def waits(self, positions: Mapping[m.ProducerId, int]) -> bool:
        """Whether something announced before these positions of streams is not stored."""
        return any(
            waiting.position < positions.get(producer, 0)
            for (producer, _), waiting in self.pending.items()
        )

    @property
    def storing(self) -> bool:
        """Whether anything is being given its names."""
        return any(waiting.storing for waiting in self.pending.values())

    @property
    def protected(self) -> frozenset[int]:
        """Numbers of the checkpoints in models/retained that may not go yet."""
        plans = [waiting.plan for waiting in self.pending.values() if waiting.plan is not None]
        making_way = [number for plan in plans for number in plan.evicted]
        retained = [saved.number for saved in self.kept.portfolio.retained]
        return frozenset((*retained, *making_way, *self._evictions))

    def next_retry(self) -> float:
        """When something is to be tried again; infinity if nothing is."""
        times = [w.retry_at for w in self.pending.values() if w.staged and not w.storing]
        return min(times, default=float("inf"))

    def _names(self, waiting: Pending, seed_id: str) -> tuple[str, ...]:
        artifact = waiting.artifact
        if waiting.plan is not None:
            return model_names(waiting.plan, seed_id, self.extension)
        if artifact.kind == "init":
            return (layout.init_path(seed_id, self.extension),)
        return (artifact.name,)

    def _forget(self, key: Key) -> None:
        waiting = self.pending.pop(key, None)
        if waiting is not None and waiting.plan is not None:
            # The files that made way for it go all the same: a later checkpoint made way for it.
            self._evictions += waiting.plan.evicted

    def lose(self, key: Key) -> str:
        """Take an artifact that will not come out of what is kept.

        Returns:
            What it was; "" where nobody will miss it.
        """
        waiting = self.pending.pop(key, None)
        if waiting is None:
            return ""
        artifact, plan = waiting.artifact, waiting.plan
        if artifact.kind in _FOLDERS:
            self.kept = self.kept.without_file(artifact.kind, artifact.name)
            return artifact.name
        if plan is None:
            return "the initial checkpoint"
        newest = plan.number == self.kept.portfolio.saves
        if not newest and not self.kept.portfolio.live(plan.number):
            return ""  # another one has its place by now
        self.kept = self.kept.without_model(plan.number)
        return f"checkpoint {plan.number}"

    # --- in the journal ---------------------------------------------------------------------------
    def to_plain(self) -> dict[str, Any]:
        """All of it as plain values, but for the paths of what has arrived."""
        return {
            "kept": kept_to_plain(self.kept),
            "announced": [[producer, number] for producer, number in self._announced.items()],
            "evictions": list(self._evictions),
            "pending": [
                [
                    producer,
                    waiting.position,
                    [number, waiting.artifact.kind, waiting.artifact.name, waiting.artifact.facts],
                    None if waiting.plan is None else _plan_to_plain(waiting.plan),
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
            self._evictions = list(plain["evictions"])
            self.pending = {
                (m.ProducerId(producer), values[0]): Pending(
                    m.Artifact(*values), position, plan and self._plan(plan)
                )
                for producer, position, values, plan in plain["pending"]
            }
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"the artifacts of a run are malformed: {error!r}") from error

    def _plan(self, plain: Mapping[str, Any]) -> Plan:
        return Plan(
            portfolio=self.kept.portfolio,
            number=plain["number"],
            every_k=plain["every_k"],
            slot=plain["slot"],
            retained=plain["retained"],
            evicted=tuple(plain["evicted"]),
        )


def _plan_to_plain(plan: Plan) -> dict[str, Any]:
    return {
        "number": plan.number,
        "every_k": plan.every_k,
        "slot": plan.slot,
        "retained": plan.retained,
        "evicted": list(plan.evicted),
    }


def why_unfit(artifact: m.Artifact) -> str:
    """Why an artifact's record cannot be taken; "" if it can.

    The client has said so to its user before; this is for what others send.
    """
    if artifact.kind in _FOLDERS:
        folder = _FOLDERS[artifact.kind]
        if not artifact.name.startswith(f"{folder}/"):
            return f"{artifact.name!r} is not in {folder}/"
        return layout.artifact_path_problem(folder, artifact.name.removeprefix(f"{folder}/"))
    if artifact.kind == "model":
        try:
            retention.saved_from_plain(artifact.facts)
        except ValueError as error:
            return str(error)
    return ""
