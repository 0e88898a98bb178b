"""The verdict on what is stored of a run: every tick that was sent, once, in order, and whole.

Pure.  A checked run logs the numbers 0, 1, 2, … as its clock `STEP`, and with each number the
statistics that follow from it; so a stored row says by itself whether it is what was logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

STEP: Final = "num_steps"
VALUE, PRODUCT, ODD, WORD = "value", "product", "odd", "word"
_WORDS: Final = ("", "two", "größe", "x" * 40)  # ticks with text take another way than others
_PRIME: Final = 2_654_435_761  # of Knuth's hash: neighbours differ in most digits


def tick(seed: int, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The clocks and statistics of a number; every third seed has text among them."""
    stats = {
        VALUE: 1.0 / (number + 1) + seed,
        PRODUCT: number * _PRIME % 2**31 + seed,
        ODD: number % 2 == 1,
    }
    return {STEP: number}, stats | ({WORD: _word(number)} if _has_words(seed) else {})


def _has_words(seed: int) -> bool:
    return seed % 3 == 2


def _word(number: int) -> str:
    return _WORDS[number % len(_WORDS)]


def columns(seed: int, numbers: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The statistics of many numbers, by name."""
    with np.errstate(divide="ignore"):  # numbers that nobody sent
        value = 1.0 / (numbers + 1) + seed
    numeric = {
        VALUE: value,
        PRODUCT: numbers * _PRIME % 2**31 + seed,
        ODD: numbers % 2 == 1,
    }
    if not _has_words(seed):
        return numeric
    return numeric | {WORD: np.array(_WORDS, object)[numbers % len(_WORDS)]}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a run, in ticks; nothing, if all but `stored` is 0.

    Args:
        stored: rows in the file.
        missing: numbers below the last stored one, or sent, that are not there.
        doubled: rows with a number that an earlier row has.
        reordered: rows with a smaller number than the row before them.
        torn: rows in which a value is missing, or is not what was logged.
        invented: rows with a number that was not sent.
        uncounted: how many of the missing ones are not counted as lost, or the other way round.
    """

    stored: int = 0
    missing: int = 0
    doubled: int = 0
    reordered: int = 0
    torn: int = 0
    invented: int = 0
    uncounted: int = 0

    @property
    def faults(self) -> dict[str, int]:
        """What is wrong, by name, without what is not."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: count for name, count in named.items() if count and name != "stored"}

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(
            *(getattr(self, each.name) + getattr(other, each.name) for each in fields(self))
        )


def judge(
    stored: Mapping[str, NDArray[Any]], seed: int, *, sent: int, begun: int, lost: int = 0
) -> Verdict:
    """Compare what is stored of a run with what was logged.

    Args:
        stored: all columns, by name; empty where the run has left nothing.
        seed: of the run.
        sent: how many calls of `update()` have returned.
        begun: how many were made: the last one may have been cut off by a kill.
        lost: how many the file counts as lost (its gaps).
    """
    steps = np.asarray(stored.get(STEP, ()), np.int64)
    unique = np.unique(steps)
    known = unique[(unique >= 0) & (unique < begun)]
    awaited = max(sent, int(known[-1]) + 1 if len(known) else 0)
    missing = awaited - len(known)
    return Verdict(
        stored=len(steps),
        missing=missing,
        doubled=len(steps) - len(unique),
        reordered=int((np.diff(steps) < 0).sum()),
        torn=_torn(stored, seed, steps),
        invented=len(unique) - len(known),
        uncounted=abs(missing - lost),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # as h5py reads it


def _torn(stored: Mapping[str, NDArray[Any]], seed: int, steps: NDArray[Any]) -> int:
    whole = np.ones(len(steps), bool)
    for name, expected in columns(seed, steps).items():
        values = np.asarray(stored.get(name, ()))
        if name == WORD:
            values = np.array([_text(value) for value in values], object)
        rows = min(len(values), len(steps))
        whole[rows:] = False
        whole[:rows] &= values[:rows] == expected[:rows]
        if len(values) > len(steps):
            return len(values)  # rows without a step: which one is torn cannot be told
    return int((~whole).sum())
