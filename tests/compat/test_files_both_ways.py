"""Log files travel both ways: mle-logging 0.0.6 loads all that we publish, and we load, merge and
continue all of its, also where each has merged the other's."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mle_client import MLELogger, load_log, load_model, merge_config_logs, merge_seed_logs
from mle_client.layout import KEPT_NAME, is_rows_name, unescape
from tests.compat import upstream
from tests.integration import daemons

PROGRAMS = Path(__file__).parent / "programs"


def mle_logging(program: str, *arguments: Path | str) -> str:
    """Run a program on mle-logging itself.  Returns: what it prints."""
    command = [str(upstream.require()), "-W", "ignore", str(PROGRAMS / program)]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=upstream.environment(), capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_in_mle_logging(code: str, *arguments: Path | str) -> None:
    """Run a few lines on mle-logging itself."""
    command = [str(upstream.require()), "-W", "ignore", "-c", f"import sys\n{code}"]
    subprocess.run(
        [*command, *map(str, arguments)], env=upstream.environment(), check=True, timeout=55
    )


def loaded_by_both(*paths: Path) -> Iterator[tuple[Any, Any]]:
    """What mle-logging and we see at paths."""
    theirs = json.loads(mle_logging("load.py", *paths))
    command = [sys.executable, "-W", "ignore", "-m", "mle_client.compat", str(PROGRAMS / "load.py")]
    done = subprocess.run(
        [*command, *map(str, paths)],
        env=daemons.environment(), capture_output=True, text=True, timeout=55, check=True,
    )  # fmt: skip
    ours = json.loads(done.stdout)
    for path in map(str, paths):
        yield comparable(theirs[path]), comparable(ours[path])


def comparable(value: Any, name: str = "") -> Any:
    """What both sides must see: without what we alone keep or compute, and names as logged."""
    if name == "eval_id" and value == []:
        return ""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != KEPT_NAME and not is_rows_name(k)}
        if kept.keys() >= {"mean", "std"}:
            kept.pop("n", None)
        return {unescape(key): comparable(item, key) for key, item in kept.items()}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


# --- ours, in mle-logging -------------------------------------------------------------------------
TEXTS = ("größe", "x" * 300, "")


def log_ours(folder: str, seed: int | str, *, rare: bool = False) -> MLELogger:
    """Log every kind of value."""
    log = MLELogger(
        experiment_dir=folder,
        time_to_track=["num_steps"],
        what_to_track=["train/loss"],
        seed_id=seed,
        config_dict={"name": "größe", "nested": {"lr": 1e-3}, "long": "y" * 6000},
        model_type="numpy",
        save_every_k_ckpt=1,
    )
    for step in range(1, 4):
        stats: dict[str, Any] = {
            "train/loss": step / 7,
            "count": 2**53 + step,
            "good": step % 2 == 0,
            "limit": math.inf if step == 2 else -0.0,
            "vector": np.arange(3, dtype=np.float32) / step,
            "note": TEXTS[step - 1],
        }
        if rare and step == 2:
            stats["rare"] = 0.5
        log.update({"num_steps": step}, stats, model=np.full(2, step))
    log.save_extra({"a": 1})
    assert log.flush()
    return log


def die(folder: str) -> None:
    """A trainer that is killed in the middle of a run."""
    log_ours(folder, 3)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def ours(root: Path) -> Path:
    """Logs of ours, of every kind; in "merged/", the third seed has crashed."""
    with daemons.running(root):
        for folder in ("single", "merged/config_1", "merged/config_2"):
            for seed in (1,) if folder == "single" else (1, 2):
                log_ours(f"{root}/{folder}", seed).close()
        log_ours(f"{root}/sparse", 1, rare=True).close()
        log_ours(f"{root}/alone", "no_seed_provided").close()
        crashed = multiprocessing.get_context("spawn").Process(
            target=die, args=(f"{root}/merged/config_1",)
        )
        crashed.start()
        crashed.join()
        assert load_log(f"{root}/merged/config_1").eval_ids == ["seed_1", "seed_2", "seed_3"]
    return root


def test_mle_logging_loads_single_logs_of_ours(ours: Path) -> None:
    folders = [ours / "single", ours / "sparse", ours / "alone"]
    for theirs, mine in loaded_by_both(*folders):
        assert theirs["load_log"] == mine["load_log"]
    run = load_log(ours / "single").seed_1
    assert run.stats["train/loss"].tolist() == [1 / 7, 2 / 7, 3 / 7]
    assert run.stats["count"].tolist() == [2**53 + 1, 2**53 + 2, 2**53 + 3]
    assert run.stats.note.tolist() == list(TEXTS)


def test_mle_logging_loads_merged_logs_of_ours(ours: Path) -> None:
    """Also where a seed has crashed."""
    folder = ours / "merged/config_1"
    merge_seed_logs(folder / "logs/log.hdf5", folder)
    assert os.listdir(folder / "logs") == ["log.hdf5"]
    ((theirs, mine),) = loaded_by_both(folder / "logs/log.hdf5")

    assert set(mine["load_log"]) == {"seed_1", "seed_2", "seed_3"}
    assert theirs["load_log"] == mine["load_log"]
    assert theirs["load_meta_log"] == mine["load_meta_log"]
    (their_mean, our_mean) = (side["aggregated"]["eval"] for side in (theirs, mine))
    assert_same_summary(their_mean, our_mean)
    assert load_log(folder).seed_3.state == "crashed"


def test_mle_logging_loads_meta_logs_of_ours(ours: Path) -> None:
    folder = ours / "merged"
    for config in ("config_1", "config_2"):
        merge_seed_logs(folder / config / "logs/log.hdf5", folder / config)
    merge_config_logs(folder, ["config_1", "config_2"])
    ((_, mine),) = loaded_by_both(folder / "meta_log.hdf5")
    assert {config: list(seeds) for config, seeds in mine["load_meta_log"].items()} == {
        "config_1": ["seed_1", "seed_2", "seed_3"],
        "config_2": ["seed_1", "seed_2"],
    }

    # It takes the seeds of the first for those of all (L3), so it can load these only alike.
    merge_config_logs(folder, ["config_2"])
    ((theirs, mine),) = loaded_by_both(folder / "meta_log.hdf5")
    assert theirs["load_log"] == mine["load_log"]
    assert theirs["load_meta_log"] == mine["load_meta_log"]
    assert_same_summary(theirs["aggregated"]["config_2"], mine["aggregated"]["config_2"])


def assert_same_summary(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """The same numbers, but for infinite ones (D9); text is not summarised on either side."""
    assert theirs["time"] == ours["time"]
    assert theirs["stats"].keys() == ours["stats"].keys()
    for name in ours["stats"].keys() - {"limit"}:
        summary = ours["stats"][name]
        if isinstance(summary, dict):
            for what, values in summary.items():
                np.testing.assert_allclose(theirs["stats"][name][what], values, rtol=1e-12)


# --- mle-logging's, in ours -----------------------------------------------------------------------
def log_theirs(folder: Path, *words: int | str) -> None:
    """Log seeds.  Args: words: as of `programs/seeds.py`."""
    mle_logging("seeds.py", folder, *map(str, words))


def losses(seed: int, *, rounded: bool, steps: int = 5, first: int = 1) -> list[float]:
    """What a seed of `programs/seeds.py` has logged, as mle-logging keeps it, or as it was."""
    exact = [seed / step for step in range(first, first + steps)]
    return [float(np.float32(value)) for value in exact] if rounded else exact


def assert_seed(run: Any, seed: int, *, rounded: bool) -> None:
    assert run.stats.loss.tolist() == losses(seed, rounded=rounded)
    assert run.stats.vector.tolist() == [[0, step, 2 * step] for step in range(1, 6)]
    assert run.stats.rare == pytest.approx([0.1, 0.3, 0.5], abs=1e-7)
    assert run.time.num_steps.tolist() == [1, 2, 3, 4, 5]
    assert len(run.time.time[0]) == len("26-01-31/12:00")
    assert run.meta.config_dict == {"lr": 0.1, "layers": [1, 2]}
    assert run.meta.model_type == "numpy"


@pytest.fixture
def theirs(root: Path) -> Path:
    """Two configurations of mle-logging's, with two seeds each."""
    for config in ("config_1", "config_2"):
        log_theirs(root / config, 1, 2)
    return root


THEIR_MERGE = """
from mle_logging import merge_config_logs, merge_seed_logs
folder, *configs = sys.argv[1:]
for config in configs:
    merge_seed_logs(f"{folder}/{config}/logs/log.hdf5", f"{folder}/{config}")
if len(configs) > 1:
    merge_config_logs(folder, configs)
"""


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # a pickle of numpy 1
def test_logs_that_mle_logging_wrote_and_merged_are_loaded(theirs: Path) -> None:
    before = load_log(theirs / "config_1")
    run_in_mle_logging(THEIR_MERGE, theirs, "config_1", "config_2")
    merged, meta = load_log(theirs / "config_1"), load_log(theirs / "meta_log.hdf5")

    for seed in (1, 2):
        for run in (before, merged, meta.config_1, meta.config_2):
            assert_seed(run[f"seed_{seed}"], seed, rounded=True)
    mean = load_log(theirs / "meta_log.hdf5", aggregate_seeds=True).config_2.stats.loss["mean"]
    assert mean == pytest.approx([1.5 / step for step in range(1, 6)], rel=1e-6)
    model = load_model(merged.seed_1.meta.model_ckpt, merged.seed_1.meta.model_type)
    assert model.tolist() == [5, 5]


@pytest.mark.parametrize("by", ["functions", "command"])
def test_logs_of_mle_logging_are_merged(theirs: Path, by: str) -> None:
    if by == "functions":
        for config in ("config_1", "config_2"):
            merge_seed_logs(theirs / config / "logs/log.hdf5", theirs / config)
        merge_config_logs(theirs, ["config_1", "config_2"])
    else:
        done = daemons.mle_daemon("merge", "--root", str(theirs))
        assert done.returncode == 0, done.stderr
    for config in ("config_1", "config_2"):
        assert os.listdir(theirs / config / "logs") == ["log.hdf5"]

    meta = load_log(theirs / "meta_log.hdf5")
    for seed in (1, 2):
        assert_seed(meta.config_1[f"seed_{seed}"], seed, rounded=True)
    ((by_them, by_us),) = loaded_by_both(theirs / "meta_log.hdf5")
    assert by_them["load_meta_log"] == by_us["load_meta_log"]


def log_seeds_of_ours(folder: Path, *words: int | str) -> None:
    command = [sys.executable, "-m", "mle_client.compat", str(PROGRAMS / "seeds.py")]
    subprocess.run(
        [*command, str(folder), *map(str, words)],
        env=daemons.environment(), check=True, timeout=55,
    )  # fmt: skip


@pytest.mark.parametrize("merged_by", ["mle-logging", "us"])
def test_logs_of_both_are_merged_into_one(root: Path, merged_by: str) -> None:
    with daemons.running(root):
        log_theirs(root / "config_1", 1)
        log_seeds_of_ours(root / "config_1", 2)
        if merged_by == "us":
            merge_seed_logs(root / "config_1/logs/log.hdf5", root / "config_1")
    if merged_by != "us":
        run_in_mle_logging(THEIR_MERGE, root, "config_1")
    assert os.listdir(root / "config_1/logs") == ["log.hdf5"]

    found = load_log(root / "config_1")
    assert_seed(found.seed_1, 1, rounded=True)
    assert_seed(found.seed_2, 2, rounded=False)
    assert found.seed_2.state == ("finished" if merged_by == "us" else None)


@pytest.mark.parametrize(
    "merged_by",
    [
        "nobody",
        "mle-logging",
        "us",
    ],
)
def test_a_log_of_mle_logging_is_continued(root: Path, merged_by: str) -> None:
    folder = root / "config_1"
    log_theirs(folder, *((1,) if merged_by == "nobody" else (1, 2)))
    if merged_by == "mle-logging":
        run_in_mle_logging(THEIR_MERGE, root, "config_1")
    elif merged_by == "us":
        merge_seed_logs(folder / "logs/log.hdf5", folder)
    with daemons.running(root):
        log_seeds_of_ours(folder, "reload", 1)

    run = load_log(folder).seed_1
    assert run.time.num_updates.tolist() == list(range(1, 11))
    assert run.time.num_steps.tolist() == list(range(1, 11))
    assert run.stats.loss.tolist() == [
        *losses(1, rounded=True), *losses(1, rounded=False, first=6)
    ]  # fmt: skip
    # It counts saves by the last one that it has kept, which was the fourth of five.
    assert run.meta.every_k_storage_time == [2, 4, 7, 9]
    assert run.meta.top_k_storage_time == [10, 9] or sorted(run.meta.top_k_storage_time) == [9, 10]
    assert len(run.meta.extra_storage_paths) == 2
    if merged_by != "nobody":
        assert_seed(load_log(folder).seed_2, 2, rounded=True)


def test_a_log_of_ours_is_continued_by_mle_logging(root: Path) -> None:
    """As long as it was not continued, too: it has room for float32 and 5000 letters alone."""
    with daemons.running(root):
        log_seeds_of_ours(root / "config_1", 1)
    log_theirs(root / "config_1", "reload", 1)
    ((by_them, by_us),) = loaded_by_both(root / "config_1")

    assert by_us["load_log"]["seed_1"]["stats"]["loss"] == pytest.approx(
        losses(1, rounded=False, steps=10), rel=1e-6
    )
    assert by_them["load_log"]["seed_1"]["stats"] == by_us["load_log"]["seed_1"]["stats"]
