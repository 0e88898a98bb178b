"""mle-logging's own public tests, run on ours: with the module's name changed, and unchanged.

They are fetched with its source distribution (`upstream`) and never stored here.  What that lacks,
two configurations and a merged log, is made anew.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.compat import upstream
from tests.integration import daemons

TESTS = 14
REMOVAL_FAILED = "OSError: [Errno 39] Directory not empty"
CONFIG = '{"train_config": {"lrate": 0.1}, "model_config": {"num_layers": 5}}'
WRITE_FIXTURE = """
from mle_logging import MLELogger, merge_seed_logs

for seed in (1, 2):
    log = MLELogger("exp/", ["num_updates"], ["train_loss"], seed_id=seed)
    for step in range(20):
        log.update({"num_updates": step}, {"train_loss": seed / (step + 1)})
    log.save()
merge_seed_logs("seed_aggregated.hdf5", "exp/")
"""


def prepare(folder: Path, *, module: str = "") -> None:
    """Put the tests into a folder, with what they read.  Args: module: in place of mle_logging."""
    upstream.require()
    tests = upstream.unpack(folder / "unpacked") / "tests"
    target = folder / "tests"
    tests.rename(target)
    for path in target.glob("*.py"):
        if module:
            path.write_text(re.sub(r"\bmle_logging\b", module, path.read_text()))
    (folder / "examples").mkdir()
    for number in (1, 2):
        (folder / f"examples/config_{number}.json").write_text(CONFIG)
    logs = target / "fixtures" / "logs"
    logs.mkdir(parents=True)
    (target / "fixtures" / "eval_0.yaml").write_text("lrate: 0.360379148648584\n")
    # By mle-logging itself: that its files are read is part of the test.
    subprocess.run(
        [upstream.PYTHON, "-W", "ignore", "-c", WRITE_FIXTURE],
        cwd=logs, env=upstream.environment(), check=True, timeout=100,
    )  # fmt: skip


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    options = ["-q", "-rA", "-p", "no:cacheprovider", "-W", "ignore", "tests"]
    return subprocess.Popen(
        [sys.executable, *command, "-m", "pytest", *options, "--continue-on-collection-errors"],
        cwd=folder, env=daemons.environment() | {"MLE_SYNC": "1", "MPLBACKEND": "Agg"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def outcomes(output: str) -> dict[str, str]:
    """{test: "PASSED", "FAILED" or "ERROR"}, by pytest's summary."""
    found = re.findall(r"^(PASSED|FAILED|ERROR) tests/(\S+)", output, re.MULTILINE)
    return {test: outcome for outcome, test in found}


def outputs(programs: Mapping[str, tuple[Path, tuple[str, ...]]]) -> dict[str, str]:
    """Run several at once, for most of the time of each is spent in waiting.

    Args:
        programs: {name: as of `start`}.
    """
    with contextlib.ExitStack() as stack:
        started = {
            name: stack.enter_context(start(folder, *command))
            for name, (folder, command) in programs.items()
        }
        try:
            return {name: each.communicate(timeout=120)[0] for name, each in started.items()}
        finally:
            for each in started.values():
                each.kill()


@pytest.mark.timeout(280)
def test_it_passes_with_the_name_changed_and_unchanged(tmp_path: Path) -> None:
    programs: dict[str, tuple[Path, tuple[str, ...]]] = {
        "renamed": (tmp_path / "renamed", ()),
        "unchanged": (tmp_path / "unchanged", ("-m", "mle_client.compat")),
    }
    prepare(tmp_path / "renamed", module="mle_client")
    prepare(tmp_path / "unchanged")

    said = outputs(programs)
    # Each test removes the folder that the daemon may still be writing the one before into.
    said |= outputs({name: programs[name] for name in said if REMOVAL_FAILED in said[name]})
    daemons.end_all()

    for name, output in said.items():
        found = outcomes(output)
        assert set(found.values()) == {"PASSED"}, f"{name}: {output}"
        assert len(found) == TESTS, f"{name}: {output}"
