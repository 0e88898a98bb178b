"""Whatever lies in a folder and however it is merged: no value is lost, and the latest run counts.

Real files, beside a model that only remembers which runs there were.  Seeds run, run again, go on,
and are merged into files of any name by anyone; logs are copied, damaged, or still grow; the disk
fails in between.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mle_client import files, layout, load_log, merge, merge_config_logs, merge_seed_logs
from mle_client.errors import MergeFailed, TooFewSeeds
from tests.seed_logs import everything, leftovers, losses, read_logs, write_foreign, write_log

SEEDS = ("seed_1", "seed_2", "meta")  # one is named like a group inside of a run
TARGETS = ("log.hdf5", "all.hdf5", "log_all.hdf5")  # the last is named like a seed's
FOREIGN = float("-inf")  # when a run of mle-logging's began, which does not say


@dataclass(frozen=True)
class Run:
    """What a run has logged.

    Args:
        start: when it began, by a count of runs.
        values: so far.
        state: "running", "finished" or "crashed"; "" of mle-logging's.
        gone: it was to be overwritten.
    """

    seed: str
    name: str
    start: float
    values: tuple[float, ...]
    state: str
    gone: bool = False

    @property
    def age(self) -> tuple[float, int]:
        """Orders the runs of a seed; the greatest counts."""
        return self.start, len(self.values)


VALUES = st.lists(st.sampled_from([0.5, 1.0, -2.0, float("nan"), float("inf")]), max_size=3)


class Merging(RuleBasedStateMachine):
    """The folder of one configuration, in a root."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(
            prefix="mle-merging-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        )
        self.root = Path(self._folder.name)
        self.exp = self.root / "exp"
        (self.root / layout.STATE_DIR).mkdir()
        (self.exp / "logs").mkdir(parents=True)
        self.runs: list[Run] = []
        self.foreign: dict[str, bytes] = {}  # files that are no logs, and what is in them
        self.numbers = itertools.count(1)

    def teardown(self) -> None:
        self._folder.cleanup()

    # --- what lies there --------------------------------------------------------------------------
    def own(self, seed: str) -> Path:
        return Path(layout.log_path(str(self.exp), seed))

    def latest(self, seed: str) -> Run | None:
        """The run of a seed that counts."""
        rivals = [run for run in self.runs if run.seed == seed and not run.gone]
        return max(rivals, key=lambda run: run.age, default=None)

    def put_own_aside(self, seed: str, overwrite: bool) -> None:
        """Make room for another run, as the daemon does."""
        if overwrite:
            files.remove(str(self.own(seed)))
            self.runs = [replace(r, gone=True) if r.seed == seed else r for r in self.runs]
        elif self.own(seed).exists():
            folder = layout.state_path(str(self.root), layout.REPLACED_DIR)
            files.put_aside(str(self.own(seed)), folder, str(next(self.numbers)))

    def write(self, run: Run, overwrite: bool = False) -> None:
        if run.state:
            write_log(
                self.exp, run.seed, run.values, run=run.name, start=run.start, state=run.state,
                overwrite=overwrite,
            )  # fmt: skip
        else:
            write_foreign(self.own(run.seed), {run.seed: run.values})
        self.runs = [each for each in self.runs if each.name != run.name] + [run]

    # --- runs -------------------------------------------------------------------------------------
    @rule(
        seed=st.sampled_from(SEEDS),
        values=VALUES,
        state=st.sampled_from(["finished", "crashed", "running"]),
        overwrite=st.booleans(),
    )
    def a_seed_runs(self, seed: str, values: list[float], state: str, overwrite: bool) -> None:
        number = next(self.numbers)
        self.put_own_aside(seed, overwrite)
        self.write(Run(seed, f"r{number}", float(number), tuple(values), state), overwrite)

    @rule(seed=st.sampled_from(SEEDS), values=VALUES)
    def a_seed_runs_with_mle_logging(self, seed: str, values: list[float]) -> None:
        if not self.own(seed).exists() and self.latest(seed) is None:
            self.write(Run(seed, f"r{next(self.numbers)}", FOREIGN, tuple(values), ""))

    @rule(seed=st.sampled_from(SEEDS), values=VALUES, state=st.sampled_from(["running", "crashed"]))
    def a_run_grows(self, seed: str, values: list[float], state: str) -> None:
        run = self.latest(seed)
        if run is not None and run.state == "running" and self.own(seed).exists():
            self.write(replace(run, values=(*run.values, *values), state=state))

    @rule(seed=st.sampled_from(SEEDS), values=VALUES)
    def a_run_goes_on_after_its_end(self, seed: str, values: list[float]) -> None:
        run = self.latest(seed)
        if run is not None and run.state not in ("", "running"):
            number = next(self.numbers)
            self.write(Run(seed, f"r{number}", float(number), (*run.values, *values), "finished"))

    # --- accidents --------------------------------------------------------------------------------
    @rule(seed=st.sampled_from(SEEDS), link=st.booleans())
    def a_log_is_copied(self, seed: str, link: bool) -> None:
        if self.own(seed).exists():
            copy = self.exp / "logs" / f"copy_{next(self.numbers)}.hdf5"
            (os.link if link else shutil.copy)(self.own(seed), copy)

    @rule(seed=st.sampled_from(SEEDS), share=st.sampled_from([0.0, 0.3, 0.9]))
    def a_damaged_file_appears(self, seed: str, share: float) -> None:
        content = self.own(seed).read_bytes() if self.own(seed).exists() else b"x" * 100
        path = self.exp / "logs" / f"damaged_{next(self.numbers)}.h5"  # loading takes no such name
        path.write_bytes(content[: int(len(content) * share)])
        self.foreign[str(path)] = path.read_bytes()

    # --- merging ----------------------------------------------------------------------------------
    @precondition(lambda self: self.runs)
    @rule(keep=st.booleans())
    def the_daemon_merges(self, keep: bool) -> None:
        self.merged(lambda: merge.merge_group(str(self.exp), keep_seed_logs=keep))

    @precondition(lambda self: self.runs)
    @rule(into=st.sampled_from(TARGETS), delete=st.booleans())
    def a_user_merges(self, into: str, delete: bool) -> None:
        path = self.exp / "logs" / into
        self.merged(lambda: merge_seed_logs(path, self.exp, delete_files=delete))

    @precondition(lambda self: self.runs)
    @rule()
    def configurations_are_merged(self) -> None:
        self.merged(lambda: merge_config_logs(self.root, ["exp"]))
        found = losses(self.root / "meta_log.hdf5")
        for seed in SEEDS:
            if run := self.latest(seed):
                assert same(found[f"exp/{seed}"], run.values)

    @precondition(lambda self: self.runs)
    @rule(
        call=st.sampled_from(["pwrite", "fsync", "replace", "unlink", "link", "posix_fallocate"]),
        after=st.integers(0, 30),
        into=st.sampled_from(TARGETS),
    )
    def the_disk_fails(self, call: str, after: int, into: str) -> None:
        real, calls = getattr(os, call), itertools.count()

        def fail(*arguments: Any, **more: Any) -> Any:
            if next(calls) >= after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                merge_seed_logs(self.exp / "logs" / into, self.exp)
            except MergeFailed:
                return

    def merged(self, work: Any) -> None:
        """Merge, and once more: that must change nothing."""
        try:
            work()
        except TooFewSeeds:
            assert all(run.state == "running" or run.gone or not self.own(run.seed).exists()
                       for run in map(self.latest, SEEDS) if run)  # fmt: skip
            return
        before = self.stamps()
        report = work()
        assert self.stamps() == before
        assert report.added == report.removed == report.put_aside == ()
        assert leftovers(self.root) == []

    def stamps(self) -> dict[str, files.Stamp]:
        return {
            os.path.join(above, name): files.Stamp.of(os.stat(os.path.join(above, name)))
            for above, _, names in os.walk(self.root)
            for name in names
        }

    # --- what must be true ------------------------------------------------------------------------
    @invariant()
    def every_run_that_was_not_to_go_is_in_some_file(self) -> None:
        found = [
            (key[-1], logged.get("stats/loss", ()))
            for logs in everything(self.root).values()
            for key, logged in logs.items()
        ]
        for run in self.runs:
            assert run.gone or any(
                seed == run.seed and same(stored[: len(run.values)], run.values)
                for seed, stored in found
            ), f"{run} is lost"

    @invariant()
    def the_latest_run_of_each_seed_is_loaded(self) -> None:
        wanted = {seed: run for seed in SEEDS if (run := self.latest(seed))}
        if wanted:
            loaded = load_log(self.exp)
            for seed, run in wanted.items():
                assert same(loaded[seed].stats.get("loss", ()), run.values)

    @invariant()
    def what_is_no_log_is_left_alone(self) -> None:
        for path, content in self.foreign.items():
            assert Path(path).read_bytes() == content


def same(stored: Any, logged: tuple[float, ...]) -> bool:
    """Whether values are those that were logged; NaN is NaN."""
    return [repr(float(value)) for value in stored] == [repr(value) for value in logged]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """What was left out is warned of; it is looked at here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


Merging.TestCase.settings = settings(
    stateful_step_count=15, max_examples=max(1, settings().max_examples // 3)
)
TestMerging = pytest.mark.usefixtures("_quiet")(Merging.TestCase)


def test_the_model_sees_what_it_should(tmp_path: Path) -> None:
    path = write_log(tmp_path, "a", [1.0, float("nan")])
    assert same(read_logs(path)[("a",)]["stats/loss"], (1.0, float("nan")))
    assert not same(read_logs(path)[("a",)]["stats/loss"], (1.0,))
