"""What a run begins with that continues another: `MLELogger(reload=True)`.

Reads a log of ours or of mle-logging 0.0.6, once the daemon has brought it up to date.  It changes
nothing; the daemon takes the log over with the run's first publication.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field, replace
from typing import Final

from mle_client import control, discovery, layout
from mle_client.endpoint import live_daemon
from mle_client.errors import DaemonStartFailed, LogDamaged, LogNotFound
from mle_client.kept import Kept, kept_from_json, kept_from_meta
from mle_client.retention import Policy

# A daemon may have to be started, to replay a journal and to notice that a trainer is gone.
_PUBLISH_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a run goes on.

    Args:
        rows: ticks so far.
        elapsed: the last value of the clock time_elapsed, in seconds.
        kept: what was stored beside the log.
        clocks, stats: names so far.
    """

    rows: int = 0
    elapsed: float = 0.0
    kept: Kept = field(default_factory=Kept)
    clocks: tuple[str, ...] = ()
    stats: tuple[str, ...] = ()


def resume(experiment_dir: str, root: str, seed_id: str, policy: Policy) -> Resumed | None:
    """Read what a run continues.

    Args:
        experiment_dir: with the folder logs/ in it.
        root: of its daemon.
        policy: which checkpoints the run keeps.

    Returns:
        None where the folder is there and nothing was logged under this seed.

    Raises:
        LogNotFound: there is no such folder, or only other seeds' results are in it.
        LogDamaged: the log cannot be read.
    """
    if not os.path.isdir(experiment_dir):
        raise LogNotFound(
            experiment_dir, "reload=True continues what lies there, but there is no such folder"
        )
    _bring_back(root)
    control.publish_before_reading(experiment_dir, _PUBLISH_TIMEOUT_S)
    from mle_client.logfiles import read_seed  # loads HDF5, which logging does not need

    path = layout.log_path(experiment_dir, seed_id)
    try:
        found = read_seed(path, seed_id, lambda file: _read(file, seed_id, policy))
    except LogNotFound:
        return None
    if found is None:
        raise LogNotFound(path, f"reload=True: the file holds no run named {seed_id!r}")
    return replace(found, kept=_with_files(found.kept, experiment_dir, seed_id))


def _read(path: str, seed_id: str, policy: Policy) -> Resumed | None:
    """What a file says of a run; None if it has none of this name."""
    from mle_client.reader import opened_runs, read_kept

    with opened_runs(path) as runs:
        run = runs.get((None, seed_id))
        if run is None:
            return None
        stored = read_kept(path, seed_id)
        try:
            kept = kept_from_json(stored) if stored else kept_from_meta(run.meta, policy)
        except ValueError as error:
            why = f"what it says of checkpoints cannot be read: {error}"
            raise LogDamaged(path, why) from error
        elapsed = run.time.get("time_elapsed", [])
        return Resumed(
            rows=run.ticks,
            # Not a number is what a log taken over from mle-logging has where a kill left nothing.
            elapsed=next((float(value) for value in reversed(elapsed) if value == value), 0.0),
            kept=kept,
            clocks=tuple(name for name in run.time if name not in layout.OWN_CLOCKS),
            stats=tuple(run.stats),
        )


def _bring_back(root: str) -> None:
    """Start a daemon where the last one was killed: it has what the file lacks in its journal.

    And what a killed trainer has left in memory is for a daemon to take in.
    """
    if discovery.has_leftovers(root) and live_daemon(root) is None:
        try:
            discovery.start_again(root)
        except DaemonStartFailed as error:
            warnings.warn(
                f"reload=True: what an earlier run left in {root} may be missing from what this "
                f"one continues, for no daemon can be started to store it: {error}",
                RuntimeWarning,
                stacklevel=4,
            )


def _with_files(kept: Kept, experiment_dir: str, seed_id: str) -> Kept:
    """What was kept, and the figures and objects of this seed that only the folder tells of."""
    found: dict[str, list[str]] = {"figures": [], "extra": []}
    for folder, names in found.items():
        try:
            entries = os.listdir(os.path.join(experiment_dir, folder))
        except OSError:
            continue
        names += [
            f"{folder}/{name}"
            for name in entries
            if layout.file_number(f"{folder}/{name}", seed_id) is not None
        ]
    return replace(
        kept,
        figures=_joined(kept.figures, found["figures"], seed_id),
        extras=_joined(kept.extras, found["extra"], seed_id),
    )


def _joined(known: tuple[str, ...], found: list[str], seed_id: str) -> tuple[str, ...]:
    new = [name for name in found if name not in known]
    return (*known, *sorted(new, key=lambda name: layout.file_number(name, seed_id) or 0))
