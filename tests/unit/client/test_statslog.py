"""Names of clocks and statistics that the user gave."""

from __future__ import annotations

from typing import Any

import pytest

from mle_client.statslog import StatsLog


class Nameless:
    """A logger that has seen no names yet."""

    def names_seen(self) -> tuple[list[str], list[str]]:
        return [], []


def log(*names: Any) -> StatsLog:
    return StatsLog(Nameless(), *names)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [None, "abc", 5, [1], [None], ["a", b"b"]], ids=repr)
@pytest.mark.parametrize("parameter", ["time_to_track", "what_to_track"])
def test_names_that_are_no_list_of_strings_are_refused_with_advice(
    parameter: str, names: Any
) -> None:
    arguments = (names, []) if parameter == "time_to_track" else ([], names)
    with pytest.raises(TypeError, match=rf"{parameter}=.*: give a list of strings, \[\] for none"):
        log(*arguments)


@pytest.mark.parametrize("names", [["a", "b"], ("a", "b"), {"a": 1, "b": 2}, iter("ab")], ids=type)
def test_any_collection_of_strings_will_do(names: Any) -> None:
    assert log([], names).what_to_track == ["a", "b"]
