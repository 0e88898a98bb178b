"""`log.stats_log`: the values logged so far, as mle-logging keeps them.

No copy is kept in the trainer.  Whoever reads asks the daemon to publish and gets what is in the
file, so reading is as slow as a file is and costs a run that does not read nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from mle_client.errors import LogNotFound
from mle_client.layout import OWN_CLOCKS

if TYPE_CHECKING:
    from mle_client.logger import MLELogger

_READ_TIMEOUT_S: Final = 10.0


class StatsLog:
    """The clocks and statistics of one logger.

    Args:
        logger: whose ticks these are.
        time_to_track, what_to_track: names given by the user; the sequences are not kept.
    """

    def __init__(
        self, logger: MLELogger, time_to_track: Sequence[str], what_to_track: Sequence[str]
    ) -> None:
        self._logger = logger
        self._clocks = _checked_names("time_to_track", time_to_track)
        self._stats = _checked_names("what_to_track", what_to_track)

    @property
    def experiment_dir(self) -> str:
        """The folder, as the logger has it."""
        return self._logger.experiment_dir

    @property
    def seed_id(self) -> str:
        """The seed's name in the log file."""
        return self._logger.stored_as()[1]

    @property
    def time_to_track(self) -> list[str]:
        """Names of the clocks: every tick's own, then the user's, in order of appearance."""
        return _unique([*OWN_CLOCKS, *self._clocks, *self._logger.names_seen()[0]])

    @property
    def what_to_track(self) -> list[str]:
        """Names of the statistics, in order of appearance."""
        return _unique([*self._stats, *self._logger.names_seen()[1]])

    @property
    def clock_tracked(self) -> dict[str, list[Any]]:
        """All values of each clock so far."""
        return self._read("time", self.time_to_track)

    @property
    def stats_tracked(self) -> dict[str, list[Any]]:
        """All values of each statistic so far; an empty list for one never logged."""
        return self._read("stats", self.what_to_track)

    @property
    def stats_update_counter(self) -> int:
        """How many ticks there are."""
        return len(self._read("time", ["num_updates"])["num_updates"])

    def extend_tracking(
        self, stats_keys: Sequence[str] | None = None, time_keys: Sequence[str] | None = None
    ) -> None:
        """Name further statistics and clocks."""
        self._stats += _checked_names("stats_keys", stats_keys or ())
        self._clocks += _checked_names("time_keys", time_keys or ())

    def _read(self, group: str, names: Sequence[str]) -> dict[str, list[Any]]:
        # These load HDF5, which logging itself does not need.
        from mle_client.logfiles import read_seed
        from mle_client.reader import read_runs

        if not self._logger.flush(_READ_TIMEOUT_S):
            warnings.warn(
                "the log file is not up to date; these are the values it has, see errors()",
                RuntimeWarning,
                stacklevel=3,
            )
        path, seed_id = self._logger.stored_as()
        only = names if group == "stats" else ()
        try:
            run = read_seed(path, seed_id, lambda file: read_runs(file, only)[None, seed_id])
        except LogNotFound:  # nothing was logged yet
            return {name: [] for name in names}
        columns = run[group]
        return {name: list(columns[name]) if name in columns else [] for name in names}


def _checked_names(parameter: str, names: Sequence[str]) -> list[str]:
    is_list = isinstance(names, Iterable) and not isinstance(names, str)
    listed = list(names) if is_list else []
    if not is_list or not all(isinstance(name, str) for name in listed):
        raise TypeError(f"{parameter}={names!r}: give a list of strings, [] for none")
    return listed


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
