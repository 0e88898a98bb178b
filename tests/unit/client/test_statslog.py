"""Names of clocks and statistics that the user gave, and the values that were logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
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


# --- values ---------------------------------------------------------------------------------------
class Stored(Nameless):
    """A logger whose log is up to date."""

    experiment_dir = "exp/"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "logs" / "log_seed_1.hdf5"

    def flush(self, _timeout: float) -> bool:
        return True

    def stored_as(self) -> tuple[str, str]:
        return str(self.path), "seed_1"


def write(path: Path, *seeds: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for seed in seeds:
            file[f"{seed}/time/num_updates"] = [1, 2]
            file[f"{seed}/time/num_steps"] = [10, 20]
            file[f"{seed}/stats/loss"] = [0.5, 0.25]


@pytest.mark.parametrize("name", ["log_seed_1.hdf5", "log.hdf5"], ids=["its own", "the merged"])
def test_values_are_read_from_the_file_that_has_the_seed(tmp_path: Path, name: str) -> None:
    logger = Stored(tmp_path)
    write(tmp_path / "logs" / name, "seed_0", "seed_1")
    log = StatsLog(logger, ["num_steps"], ["loss", "never"])  # type: ignore[arg-type]
    assert log.stats_tracked == {"loss": [0.5, 0.25], "never": []}
    assert log.clock_tracked["num_steps"] == [10, 20]
    assert log.stats_update_counter == 2
    assert (log.experiment_dir, log.seed_id) == ("exp/", "seed_1")


def test_before_anything_was_logged_there_are_no_values(tmp_path: Path) -> None:
    log = StatsLog(Stored(tmp_path), [], ["loss"])  # type: ignore[arg-type]
    assert log.stats_tracked == {"loss": []}
    write(tmp_path / "logs/log.hdf5", "seed_2")
    assert log.stats_tracked == {"loss": []}
