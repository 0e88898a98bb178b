"""What the seeds of one configuration are called, and what they must have in common.

Pure.  A *group* is the seeds of one configuration: they differ in what the random numbers were, and
in nothing that was configured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

# A setting whose name holds this says which seed it is, and may differ: "seed", "random_seed".
_SEED_WORD: Final = "seed"
_SHOWN: Final = 3  # differing settings in an error

NaturalKey = tuple[tuple[int, str], ...]


def seed_number(name: str) -> int | str:
    """The number of a seed named "seed_<number>", or the name."""
    digits = name.removeprefix("seed_")
    if digits.removeprefix("-").isdecimal() and name == f"seed_{int(digits)}":
        return int(digits)
    return name


def natural_key(name: str) -> NaturalKey:
    """Sorts numbers inside names by value, not by their digits: "seed_2" before "seed_10"."""
    return tuple(
        # "²" is a digit, too, and no number.
        (int(part), "") if part.isascii() and part.isdigit() else (-1, part)
        for part in re.split("([0-9]+)", name)
    )


def different_settings(one: Any, other: Any) -> list[str]:
    """In which settings two configurations differ, seeds aside.

    Args:
        one, other: values of meta/config_dict, dicts as a rule.

    Returns:
        "name: value / value" of each setting that differs, names of nested ones joined by dots.
        Empty where they are one configuration.
    """
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return [] if _same(one, other) else [f"{one!r} / {other!r}"]
    mine, theirs = dict(_settings(one, "")), dict(_settings(other, ""))
    return [
        f"{name}: {_said(mine, name)} / {_said(theirs, name)}"
        for name in dict.fromkeys([*mine, *theirs])
        if name not in mine or name not in theirs or not _same(mine[name], theirs[name])
    ]


def described(differences: list[str]) -> str:
    """The result of `different_settings` for an error message."""
    rest = len(differences) - _SHOWN
    return ", ".join(differences[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _settings(config: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if _SEED_WORD in str(key).lower():
            continue
        if isinstance(value, Mapping) and value:
            yield from _settings(value, f"{name}.")
        else:
            yield name, value


def _said(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "not set"


def _same(one: Any, other: Any) -> bool:
    """Equal, NaN to itself too; True is not 1."""
    return type(one) is type(other) and (one == other or repr(one) == repr(other))
