"""Which log of each seed goes into a merged file, and what becomes of the others.

Pure: descriptions of files in, a plan out.  The rule behind it: no value may be in fewer files
after a merge than before, except where the same values are in the merged file too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mle_client.seeds import described, different_settings, natural_key

RUNNING: Final = "running"

_GOES_ON: Final = {
    True: "{seed} is still running: it is merged as far as it got, and its own log stays",
    False: "{seed} is still running: merge again when it has ended",
}


@dataclass(frozen=True, slots=True)
class Member:
    """The log of one seed in some file.

    Args:
        path: of the file.
        seed: name of its group.
        rows: ticks in it.
        run: id of the run that wrote it, "" where mle-logging did.
        state: "running", "finished" or "crashed"; None where the file does not say.
        start: when the run began, in seconds since the epoch; None where the file does not say.
        overwrites: an older log of this seed was to be deleted.
        config: meta/config_dict.
        kept: what the run has stored beside its log, as JSON; "" where the file does not say.
        in_target: it is in the merged file already.
        config_id: name of its configuration in a file of several; None elsewhere.
    """

    path: str
    seed: str
    rows: int
    run: str = ""
    state: str | None = None
    start: float | None = None
    overwrites: bool = False
    config: Any = None
    kept: str = ""
    in_target: bool = False
    config_id: str | None = None

    @property
    def group(self) -> str:
        """The path of its group in the file."""
        return self.seed if self.config_id is None else f"{self.config_id}/{self.seed}"

    @property
    def is_running(self) -> bool:
        """Whether more is to come."""
        return self.state == RUNNING


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that was not merged, or not wholly, and stays.

    Args:
        path: of the file.
        why: with what to do.
        damaged: it is no log, or no longer.
        running: a run of it goes on, and that is all.
    """

    path: str
    why: str
    damaged: bool = False
    running: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a merge does.

    Args:
        take: logs to copy into the merged file.
        keep: logs in it that stay.
        drop: logs in it whose place others take, and which need not be kept.
        aside: logs in it whose place others take, to be put aside first.
        removable: files of which the merged file has everything in the end.
        left_out: files that stay, and are not or not wholly in the merged file.
    """

    take: tuple[Member, ...] = ()
    keep: tuple[Member, ...] = ()
    drop: tuple[Member, ...] = ()
    aside: tuple[Member, ...] = ()
    removable: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def seeds(self) -> tuple[Member, ...]:
        """The logs that the merged file is to have, in natural order of their names."""
        return tuple(sorted((*self.keep, *self.take), key=lambda each: natural_key(each.seed)))

    @property
    def changes_target(self) -> bool:
        """Whether the merged file lacks something."""
        return bool(self.take)


def plan_merge(
    members: Iterable[Member],
    contains: Callable[[Member, Member], bool],
    *,
    running: bool,
) -> Plan:
    """Plan a merge.

    Args:
        members: of the merged file and of its sources.
        contains: whether the first, which is older, has nothing that the second lacks.  Not asked
            about two sources of one run: whoever removes one looks whether it holds.
        running: whether runs that go on are merged as far as they got.  Their files stay.
    """
    kept_out: dict[str, LeftOut] = {}
    by_seed: dict[str, list[Member]] = {}
    for member in members:
        if member.is_running and not member.in_target:
            why = _GOES_ON[running].format(seed=member.seed)
            kept_out[member.path] = LeftOut(member.path, why, running=True)
        if not member.is_running or member.in_target or running:
            by_seed.setdefault(member.seed, []).append(member)
    winners, drop, aside = [], [], []
    for rivals in by_seed.values():
        winner = first_of(rivals)
        winners.append(winner)
        for loser in rivals:
            if loser is winner:
                continue
            if not loser.in_target:
                if not (_is_same_run(loser, winner) or contains(loser, winner)):
                    kept_out[loser.path] = LeftOut(loser.path, _duplicate(loser, winner))
            elif contains(loser, winner) or _is_overwritten(loser, winner):
                drop.append(loser)
            else:
                aside.append(loser)
    return Plan(
        take=tuple(each for each in winners if not each.in_target),
        keep=tuple(each for each in winners if each.in_target),
        drop=tuple(drop),
        aside=tuple(aside),
        removable=_removable(by_seed.values(), kept_out),
        left_out=tuple(kept_out.values()),
    )


def mixed_configurations(members: Sequence[Member]) -> str:
    """What tells that members are no seeds of one configuration; "" if they are."""
    for other in members[1:]:
        if differences := different_settings(members[0].config, other.config):
            return (
                f"{members[0].seed} in {members[0].path} and {other.seed} in {other.path} were run "
                f"with different configurations ({described(differences)})"
            )
    return ""


def first_of(rivals: Sequence[Member]) -> Member:
    """The one of several logs of a seed whose values count: the latest run's, in full."""
    best = max(map(_precedence, rivals))
    equal = [each for each in rivals if _precedence(each) == best]
    merged = next((each for each in equal if each.in_target), None)
    # A run's own log is never behind its copy in the merged file.
    newer = [each for each in equal if merged is not None and each.kept != merged.kept]
    return (newer or [merged or equal[0]])[0]


def _precedence(member: Member) -> tuple[float, int, bool]:
    start = float("-inf") if member.start is None else member.start
    return start, member.rows, not member.is_running


def _is_same_run(one: Member, other: Member) -> bool:
    return bool(one.run) and one.run == other.run


def _is_overwritten(loser: Member, winner: Member) -> bool:
    """Whether the loser was to be deleted when the winner began."""
    return winner.overwrites and not _is_same_run(loser, winner)


def _duplicate(loser: Member, winner: Member) -> str:
    return (
        f"it holds another run of {loser.seed} than {winner.path}, which is the later or the "
        "longer one: move it out of the folder if you need nothing else in it"
    )


def _removable(groups: Iterable[Sequence[Member]], kept_out: Collection[str]) -> tuple[str, ...]:
    """The source files that go, in the order in which they came."""
    sources = [each.path for members in groups for each in members if not each.in_target]
    return tuple(path for path in dict.fromkeys(sources) if path not in kept_out)
