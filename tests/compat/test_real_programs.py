"""Programs that were written for mle-logging run on ours, unchanged: mle-scheduler's queue with
mle-hyperopt's search, and the examples of mle-logging's README."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mle_client import load_log
from tests.compat import upstream
from tests.integration import daemons

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(autouse=True)
def no_daemon_stays() -> Iterator[None]:
    """End the daemons that programs have started; they would leave some seconds later."""
    yield
    daemons.end_all()


def on_ours(folder: Path, *command: str | Path) -> None:
    """Run a program through compat."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mle_client.compat", *map(str, command)],
        cwd=folder, env=daemons.environment() | {"MPLBACKEND": "Agg"},
        capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- a search over jobs ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a search of two batches finds on mle-logging itself."""
    python, folder = upstream.require(), tmp_path_factory.mktemp("theirs")
    command = [str(python), "-W", "ignore", str(PROGRAMS / "search.py"), str(folder), "2"]
    subprocess.run(command, env=upstream.environment(), capture_output=True, check=True, timeout=50)
    return json.loads((folder / "results.json").read_text())


def assert_found(folder: Path, expected: Any, batches: int) -> None:
    """The search has found the same, and left what it leaves."""
    found = json.loads((folder / "results.json").read_text())
    for mine, theirs in zip(found["batches"], expected["batches"][:batches], strict=True):
        assert mine["runs"] == theirs["runs"]
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-6)
        for one, other in zip(mine["configs"], theirs["configs"], strict=True):
            assert one == pytest.approx(other)
    for batch, each in enumerate(found["batches"]):
        meta = load_log(folder / f"search_{batch}/meta_log.hdf5")
        assert meta.eval_ids == each["runs"]
        for run_id, config in zip(each["runs"], each["configs"], strict=True):
            assert list(meta[run_id]) == ["seed_1", "seed_2"]
            for run in meta[run_id].values():
                assert run.time.num_epochs.tolist() == list(range(1, 11))
                assert run.meta.config_dict == pytest.approx(config)
            logs = folder / f"search_{batch}/{run_id}/logs"
            assert [path.name for path in logs.iterdir()] == ["log.hdf5"]


@pytest.mark.parametrize("merge", ["off", "on-finish"])
def test_a_search_over_jobs_of_a_queue_finds_the_same(
    tmp_path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch, merge: str
) -> None:
    """Whether or not a daemon would merge, too."""
    monkeypatch.setenv("MLE_MERGE", merge)
    if merge == "on-finish":
        monkeypatch.delenv("MLE_MERGE")  # which is the default
    on_ours(tmp_path, PROGRAMS / "search.py", tmp_path, "2")

    assert_found(tmp_path, expected, batches=2)
    best = json.loads((tmp_path / "results.json").read_text())["best"]
    assert best[0] == expected["best"][0]
    assert best[2] == pytest.approx(expected["best"][2], rel=1e-6)


def test_a_queue_finds_the_same_where_a_daemon_was_quicker_to_merge(
    tmp_path: Path, expected: Any
) -> None:
    options = ("--merge", "on-finish", "--merge-settle", "0.1")
    with daemons.running(tmp_path, *options):
        on_ours(tmp_path, PROGRAMS / "search.py", tmp_path, "1")
        assert {group["state"] for group in daemons.status(tmp_path)["groups"]} == {"merged"}

    assert_found(tmp_path, expected, batches=1)


# --- the README -----------------------------------------------------------------------------------
BEFORE = """
import os
import matplotlib.pyplot as plt
from mle_logging import MLELogger

extra = {"some": "object"}  # what the README speaks of and does not make
for config in (1, 2):
    for seed in (1, 2):
        log = MLELogger("experiment_dir/", config_fname=f"config_{config}.json", seed_id=seed)
        log.update({"num_updates": 1}, {"train_loss": 0.1, "test_loss": 0.2})
        log.save()
os.symlink("experiment_dir", "multi_config_dir")
"""
TORCHVISION = "import torch\n\ndef resnet18():\n    return torch.nn.Linear(4, 2)\n"


def readme(folder: Path, *needed: str) -> Path:
    """A script of those blocks of mle-logging's README that hold one of some words."""
    upstream.require()
    for config in (1, 2):
        (folder / f"config_{config}.json").write_text("{}")
    (folder / "torchvision").mkdir()  # it is large, and any model will do
    (folder / "torchvision/__init__.py").touch()
    (folder / "torchvision/models.py").write_text(TORCHVISION)
    text = (upstream.unpack(folder / "unpacked") / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    chosen = [block for block in blocks if any(word in block for word in needed)]
    assert len(chosen) == len(needed)
    script = folder / "readme.py"
    script.write_text("\n".join([BEFORE, *chosen]))
    return script


LOGGING = (
    *("log.update(time_tic, stats_tic)\n", "save_model(model)", "fig, extra, save=True"),
    *("log_out.meta.keys()", "reload=True", "save_every_k_ckpt", "save_top_k_ckpt"),
)


def test_what_the_readme_logs_runs_as_it_is(tmp_path: Path) -> None:
    on_ours(tmp_path, readme(tmp_path, *LOGGING))

    run = load_log(tmp_path / "experiment_dir")
    assert run.stats.train_loss.tolist() == [0.1234, 0.1234]
    assert run.time.num_updates.tolist() == [1, 2]
    assert len(run.meta.fig_storage_paths) == 2


def test_what_the_readme_merges_runs_as_it_is(tmp_path: Path) -> None:
    plots = ["meta_log.plot"] if find_spec("mle_client.plot") else []
    needed = (*LOGGING[:1], LOGGING[3], "merge_seed_logs", "merge_config_logs", *plots)
    on_ours(tmp_path, readme(tmp_path, *needed))

    assert load_log(tmp_path / "experiment_dir/meta_log.hdf5").eval_ids == ["config_1", "config_2"]
