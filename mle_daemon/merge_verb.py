"""`mle-daemon merge`: merges by hand what a daemon merges by itself, and says what came of it.

It works without a daemon, and beside one: folders are locked while they are merged.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from mle_client import control, experiments, files, layout, merge
from mle_client.errors import LogNotFound, MergeFailed, MLEError, TooFewSeeds
from mle_client.merge_plan import RUNNING
from mle_client.merging import MergeReport

EXIT_FAILED: Final = 1
EXIT_DAMAGED: Final = 6
EXIT_PARTIAL: Final = 7
_BAR_WIDTH: Final = 30
_CLEAR_LINE: Final = "\r\x1b[2K"  # of a terminal
# A configuration with one seed has nothing to merge, unless somebody names it.
_SEVERAL: Final = 2

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one folder.

    Args:
        path: of the folder.
        report: what was done; None where nothing could be.
        error: why.
    """

    path: str
    report: MergeReport | None = None
    error: MLEError | None = None

    @property
    def problems(self) -> list[str]:
        """What the user should know."""
        left_out = self.report.left_out if self.report else ()
        return (
            [str(self.error)] if self.error else [f"{each.path}: {each.why}" for each in left_out]
        )

    @property
    def exit_code(self) -> int:
        """Of the table in `docs/cli.md`."""
        if self.error is not None:
            return self.error.exit_code
        left_out = self.report.left_out if self.report else ()
        if any(each.damaged for each in left_out):
            return EXIT_DAMAGED
        return EXIT_PARTIAL if left_out else 0

    @property
    def running(self) -> bool:
        """Whether a run goes on that was to be merged."""
        if isinstance(self.error, TooFewSeeds):
            return bool(self.error.running)
        return any(each.running for each in (self.report.left_out if self.report else ()))

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        report = self.report or MergeReport("")
        return {
            "path": self.path,
            "merged_into": report.path or None,
            "seeds": report.seeds,
            "added": list(report.added),
            "removed": list(report.removed),
            "put_aside": list(report.put_aside),
            "problems": self.problems,
        }


@dataclass(slots=True)
class _All:
    """What came of everything."""

    groups: list[Outcome] = field(default_factory=list)
    meta_logs: list[Outcome] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """The gravest: what failed, then what is damaged, then what is left out."""
        codes = {each.exit_code for each in (*self.groups, *self.meta_logs)} - {0}
        return min(codes, default=0)


def run(
    root: str,
    names: Sequence[str],
    *,
    keep_seed_logs: bool,
    as_json: bool,
    say: Callable[[object], None],
) -> int:
    """Merge the seeds of configurations, then the configurations of each folder.

    Args:
        root: the folder; an existing one.
        names: of configurations, relative to the root, or paths; none for all below it.
        keep_seed_logs: leave the seeds' own logs where they are.
        as_json: print one line of JSON.
        say: tells the user what is no data.

    Returns:
        The exit code.

    Raises:
        LogNotFound: there is no log, or none where a name says so.
    """
    control.publish_before_reading(root)  # a run that was never published has no file to be found
    groups = _each_once(_named(name, root) for name in names) or experiments.find_groups(root)
    if not groups:
        raise LogNotFound(root, "there is no log in it or below it: nothing to merge")
    done = _All()
    at_least = 1 if names else _SEVERAL

    def merge_seeds(folder: str, progress: Progress) -> MergeReport:
        return merge.merge_group(
            folder,
            at_least=at_least,
            keep_seed_logs=keep_seed_logs,
            progress=progress,
            on_wait=waiting,
        )

    def merge_configurations(folder: str, progress: Progress) -> MergeReport:
        configs = experiments.configurations_in(folder)
        return merge.meta_log(folder, configs, progress, on_wait=waiting)

    def waiting(said: str) -> None:
        _clear_bar()
        say(said)

    with _bar(len(groups)) as show:
        done.groups += [_outcome(folder, merge_seeds, show) for folder in groups]
        parents = _parents(done.groups, root)
        done.meta_logs += [_outcome(folder, merge_configurations, show) for folder in parents]
    _print(done, root, as_json)
    outcomes = (*done.groups, *done.meta_logs)
    for problem in dict.fromkeys(problem for each in outcomes for problem in each.problems):
        say(problem)
    if any(each.running for each in outcomes) and not control.is_served(root):
        say(
            f"no daemon looks after {root}: where the process of a run is gone, `mle-daemon start "
            f"--root {root}` brings back what it left, and merges it"
        )
    return done.exit_code


def _named(name: str, root: str) -> str:
    """The folder of a configuration."""
    for path in (os.path.join(root, name), os.path.realpath(name)):
        if os.path.isdir(path) and experiments.log_files(path) and files.is_inside(path, root):
            return os.path.normpath(path)
    raise LogNotFound(
        os.path.join(root, name), f"there is no log in its folder logs/, or it is outside of {root}"
    )


def _outcome(
    folder: str,
    work: Callable[[str, Progress], MergeReport],
    show: Callable[[str], Progress],
) -> Outcome:
    try:
        return Outcome(folder, work(folder, show(folder)))
    except TooFewSeeds as error:
        if error.running:
            return Outcome(folder, error=error)
        return Outcome(folder, MergeReport(""))  # a single seed, or merged under another name
    except MLEError as error:
        return Outcome(folder, error=error)
    except OSError as error:
        return Outcome(folder, error=MergeFailed(folder, str(error)))


def _each_once(paths: Iterable[str]) -> list[str]:
    return list({os.path.realpath(path): path for path in paths}.values())


def _parents(groups: Sequence[Outcome], root: str) -> list[str]:
    """The folders that the configurations lie in; what failed is left out of their meta logs."""
    inside = [os.path.dirname(each.path) for each in groups if each.path != os.path.normpath(root)]
    # In a meta log there are no hidden ones.
    return [folder for folder in dict.fromkeys(inside) if experiments.configurations_in(folder)]


# --- what is printed ------------------------------------------------------------------------------
def _print(done: _All, root: str, as_json: bool) -> None:
    if as_json:
        plain = {
            "groups": [each.to_plain() for each in done.groups],
            "meta_logs": [each.to_plain() for each in done.meta_logs],
        }
        print(json.dumps(plain))
        return
    for each in done.groups:
        print(f"{os.path.relpath(each.path, root)}: {_said(each, 'seed')}")
    for each in done.meta_logs:
        path = layout.meta_log_path(each.path)
        print(f"{os.path.relpath(path, root)}: {_said(each, 'run')}")


def _said(outcome: Outcome, noun: str) -> str:
    report = outcome.report
    if report is None:
        return "not merged"
    if not report.path:
        return "nothing to merge"
    crashed = sum(state == "crashed" for state in report.seeds.values())
    parts = [f"{len(report.seeds)} {noun}{'s' if len(report.seeds) != 1 else ''}"]
    if crashed:
        parts.append(f"{crashed} of them crashed")
    going_on = sum(state == RUNNING for state in report.seeds.values())
    if going_on:
        parts.append(f"{going_on} of them still running")
    parts.append(f"{len(report.added)} added" if report.added else "nothing new")
    # Of a run that goes on a meta log has what there is.
    left_out = [each for each in report.left_out if not (each.running and going_on)]
    if left_out:
        parts.append(f"{len(left_out)} left out")
    return ", ".join(parts)


@contextmanager
def _bar(count: int) -> Iterator[Callable[[str], Progress]]:
    """A bar on the terminal, if stderr is one."""
    if not sys.stderr.isatty():
        yield lambda folder: lambda done, total: None
        return
    begun = -1

    def show(folder: str) -> Progress:
        nonlocal begun
        begun += 1
        name = os.path.basename(os.path.normpath(folder))

        def progress(done: int, total: int) -> None:
            share = min(1.0, (begun + done / max(1, total)) / count)
            filled = int(_BAR_WIDTH * share)
            bar = "█" * filled + "·" * (_BAR_WIDTH - filled)
            print(f"{_CLEAR_LINE}{bar} {share:4.0%}  {name}", end="", file=sys.stderr, flush=True)

        progress(0, 1)
        return progress

    try:
        yield show
    finally:
        _clear_bar()


def _clear_bar() -> None:
    if sys.stderr.isatty():
        print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)
