"""`load_log` and `load_meta_log`: from a folder or a file to runs.

It asks a live daemon to publish first, and works without one.  Which files there are is for
`logfiles`, HDF5 for `reader`; what comes back is described in `metalog`, the mean over seeds in
`aggregate`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mle_client import experiments, layout, parallel
from mle_client.aggregate import aggregate_seeds as aggregate_over
from mle_client.attrdict import AttrDict
from mle_client.errors import LogDamaged, LogNotFound
from mle_client.metalog import MetaLog
from mle_client.models import load_model as load_model  # mle-logging has it here
from mle_client.runlog import RunLog
from mle_client.seeds import NaturalKey, natural_key

if TYPE_CHECKING:
    from mle_client.reader import RunKey

_SHOWN: Final = 3  # configurations in a warning
_AGGREGATED: Final = "eval"  # mle-logging's name for the aggregated seeds of one folder


def load_log(
    experiment_dir: str | os.PathLike[str],
    aggregate_seeds: bool = False,
    reload_log: bool = False,
    *,
    only: Sequence[str] | None = None,
) -> MetaLog | RunLog:
    """Load the runs of an experiment.

    Args:
        experiment_dir: the folder, all of whose logs/*.hdf5 are read, or one log file.  Of a seed
            that is in two files, such as a merged one and its own, the run that began later is
            taken; of the same run, the copy with more updates; of equals, that in its own file.
        aggregate_seeds: whether to aggregate over seeds; see `aggregate`.
        reload_log: whether a single run without a seed is to be returned under its name as well.
        only: names of the statistics to read; the others are not read from disk.

    Returns:
        Runs by name, in natural order ("seed_2" before "seed_10"): seeds; or configurations with
        seeds inside; or, aggregated, configurations, or "eval" for seeds without one.  A single run
        without a seed is returned itself, with `.meta`, `.stats` and `.time`, unless it is to be
        aggregated: then it is one seed.

        Of small logs everything is read at once.  Where the files have more than some MB, a column
        is read when it is first looked at, and a statistic aggregated when it is; what is read is
        as it was when `load_log` was called, even if the files are replaced or removed meanwhile.

        Other than in mle-logging, text is text and not bytes, values have the type that was
        logged, `meta.eval_id` is "" where there is none, and `meta.seeds` always a list.

    Raises:
        LogNotFound: there is no log; says where to look.
        LogDamaged: a file is no log, or no longer; names it.
    """
    from mle_client.control import publish_before_reading

    path = os.fspath(experiment_dir)
    publish_before_reading(path)
    return _load(path, _Asked(_names(only), aggregate_seeds, reload_log))


def load_meta_log(
    log_fname: str | os.PathLike[str],
    aggregate_seeds: bool = True,
    reload_log: bool = False,
    *,
    only: Sequence[str] | None = None,
) -> MetaLog | RunLog:
    """Load the runs of several configurations, and aggregate them over seeds.

    Args:
        log_fname: a file such as meta_log.hdf5; or a folder, of which its meta_log.hdf5 is read.
            Where there is none, neither at the path nor in the folder, the logs of the
            configurations in the folder are read as if they had been merged into one.
        aggregate_seeds, reload_log, only: as of `load_log`.

    Returns, Raises:
        As of `load_log`.

    Warns:
        UserWarning: configurations lie beside meta_log.hdf5 that are not in it, or have logs that
            changed after it: told from names, and from when files changed.
    """
    from mle_client.control import publish_before_reading

    path = os.fspath(log_fname)
    asked = _Asked(_names(only), aggregate_seeds, reload_log)
    file = layout.meta_log_path(path) if os.path.isdir(path) else path
    folder = os.path.dirname(file) or "."
    publish_before_reading(path if os.path.isfile(path) else folder)
    if os.path.isfile(file):
        log = _load(file, asked)
        if experiments.is_meta_log(file):
            _warn_if_behind(file, log)
        return log
    none_there = experiments.is_meta_log(file) and os.path.isdir(folder)
    if none_there and not experiments.log_files(path):  # else the folder is an experiment itself
        configs = experiments.configurations_in(folder)
        if configs:
            return _load_configurations(configs, asked)
    return _load(path, asked)


def load_configurations(
    configs: Mapping[str, str], *, only: Sequence[str] | None = None
) -> MetaLog:
    """Load experiments as if they had been merged into one file, aggregated over their seeds.

    Args:
        configs: {name: folder}, each with a log.
        only: as of `load_log`.

    Returns:
        Aggregated runs by name, in natural order.

    Raises:
        As of `load_log`.
    """
    return _load_configurations(configs, _Asked(_names(only), aggregate=True, reload_log=False))


def _names(only: Sequence[str] | None) -> set[str] | None:
    return {only} if isinstance(only, str) else None if only is None else set(only)


def _warn_if_behind(file: str, log: MetaLog | RunLog) -> None:
    """Warn where configurations beside their merged file have what it lacks."""
    try:
        found = experiments.behind(file, log.eval_ids if isinstance(log, MetaLog) else ())
    except OSError:  # a folder may not be looked into, or the file is gone by now
        return
    said = [f"{_listed(found.missing)} not in it"] if found.missing else []
    said += [f"{_listed(found.newer)} changed after it"] if found.newer else []
    if said:
        folder = os.path.dirname(file) or "."
        warnings.warn(
            f"{file} is behind its folder: {', '.join(said)}; `mle-daemon merge --root {folder}` "
            "brings it up to date, or says what keeps it back",
            UserWarning,
            stacklevel=3,
        )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is wanted.  Args: see `load_log`."""

    only: set[str] | None
    aggregate: bool
    reload_log: bool


# --- files ----------------------------------------------------------------------------------------
def _load(path: str, asked: _Asked) -> MetaLog | RunLog:
    """Load what is at a path.  Files may be replaced and merged meanwhile."""
    from mle_client import logfiles  # here, so that importing this module loads no HDF5

    for _ in range(logfiles.ATTEMPTS):
        seed_id = layout.seed_of_log(path)
        if seed_id is not None and not os.path.exists(path):
            return logfiles.read_seed(path, seed_id, partial(_load_seed, seed_id, asked))
        files = logfiles.log_files(path)
        try:
            return _put_together(*_read(dict.fromkeys(files), asked), asked)
        except LogNotFound:  # replaced, or merged with others
            continue
    raise logfiles.vanished(path)


def _load_configurations(configs: Mapping[str, str], asked: _Asked) -> MetaLog:
    """Load what is in several folders.  Files may be replaced and merged meanwhile."""
    from mle_client import logfiles

    for _ in range(logfiles.ATTEMPTS):
        files = {
            file: name for name, folder in configs.items() for file in experiments.log_files(folder)
        }
        try:
            log = _put_together(*_read(files, asked), asked)
        except LogNotFound:  # replaced, or merged with others
            continue
        assert isinstance(log, MetaLog)  # all of it has names of configurations
        return log
    raise logfiles.vanished(", ".join(configs.values()))


def _load_seed(seed_id: str, asked: _Asked, file: str) -> MetaLog | RunLog:
    """Load one seed of a file that has several."""
    runs, lasting = _read({file: None}, asked)
    key = (None, seed_id)
    if key not in runs:
        raise LogNotFound(file, f"it holds no run named {seed_id!r} any more")
    return _put_together({key: runs[key]}, lasting, asked)


def _read(files: Mapping[str, str | None], asked: _Asked) -> tuple[dict[RunKey, RunLog], bool]:
    """All runs of some files.

    Args:
        files: {path: name of the configuration that it is of; None to leave it at what it says}.

    Returns:
        The runs, and whether all of them can be read whatever becomes of the files, although not
        all of their columns are in memory.  The columns of others are, unless they are to be
        aggregated: then that must be done before a file is replaced.
    """
    from mle_client import logfiles, reader
    from mle_client.openlog import OpenLog

    large = sum(map(reader.file_size, files)) > reader.SMALL_BYTES
    lasting = large
    runs: dict[RunKey, RunLog] = {}
    for path, config in files.items():
        try:
            file = OpenLog(path, hold=large)
            lasting &= file.held
            if large and asked.aggregate:  # of the clocks only one seed's will be read
                found = reader.find_runs(file, asked.only, soon=("stats",))
            else:
                found = (reader.find_runs if file.held else reader.load_runs)(file, asked.only)
        except LogDamaged as error:
            if len(files) == 1:
                raise
            rest = next(other for other in files if other != path)
            hint = f"load_log({rest!r}) and so on loads the others one by one"
            raise LogDamaged(error.path, f"{error.why}; {hint}") from error
        for (inside, seed), run in found.items():
            key = "/".join(filter(None, (config, inside))) or None, seed
            if key not in runs or logfiles.recency(run) >= logfiles.recency(runs[key]):
                runs[key] = run
    return runs, lasting


# --- runs -----------------------------------------------------------------------------------------
def _put_together(runs: Mapping[RunKey, RunLog], lasting: bool, asked: _Asked) -> MetaLog | RunLog:
    """Put runs together, and read what cannot be read later."""
    log = _assemble(runs, asked)
    if asked.aggregate and not lasting:
        for run in [log] if isinstance(log, RunLog) else log.meta_log.values():
            run.load()
    return log


def _assemble(runs: Mapping[RunKey, RunLog], asked: _Asked) -> MetaLog | RunLog:
    if set(runs) == {(None, layout.NO_SEED)} and not asked.aggregate:
        run = runs[None, layout.NO_SEED]
        return MetaLog({layout.NO_SEED: run}) if asked.reload_log else run
    configs: dict[str | None, dict[str, RunLog]] = {}
    for config, seed in sorted(runs, key=_order):
        configs.setdefault(config, {})[seed] = runs[config, seed]
    entries: dict[str, Any] = {}
    for config, seeds in configs.items():
        if asked.aggregate:
            name = _AGGREGATED if config is None else config
            entries[name] = aggregate_over(seeds, parallel.each)
        elif config is None:
            entries.update(seeds)
        else:
            entries[config] = AttrDict(seeds)
    return MetaLog(entries)


def _order(key: RunKey) -> tuple[NaturalKey, NaturalKey]:
    config, seed = key
    return natural_key(config or ""), natural_key(seed)
