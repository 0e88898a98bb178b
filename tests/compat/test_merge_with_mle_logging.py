"""Logs of mle-logging 0.0.6, as released, are merged with ours, and it reads what comes of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mle_client import merge_config_logs, merge_seed_logs
from tests.compat.test_read_by_mle_logging import read
from tests.seed_logs import log_bytes

WRITER = Path(__file__).with_name("write_with_mle_logging.py")
KINDS = ("plain", "sparse", "odd_names", "clocks_only", "models", "one_model", "killed_2")
MERGES = """
import sys, warnings
warnings.simplefilter("ignore")
from mle_logging import merge_seed_logs
merge_seed_logs(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of logs of every kind, by mle-logging."""
    folder = tmp_path_factory.mktemp("written")
    subprocess.run([sys.executable, str(WRITER), str(folder)], check=True, capture_output=True)
    return folder


def test_logs_of_mle_logging_s_are_the_same_to_it_after_we_have_merged_them(
    written: Path, tmp_path: Path
) -> None:
    before, after = [], []
    for kind in KINDS:
        shutil.copytree(written / kind, tmp_path / kind)
        merge_seed_logs(tmp_path / kind / "logs" / "log.hdf5", tmp_path / kind)
        assert [path.name for path in (tmp_path / kind / "logs").iterdir()] == ["log.hdf5"]
        before.append(written / kind / "logs" / "log_seed_1.hdf5")
        after.append(tmp_path / kind / "logs" / "log.hdf5")
    # All of them are named alike, and of some mle-logging cannot read its own files.
    for old, new in zip(before[:2], after[:2], strict=True):
        assert read(old) == read(new)


def test_a_file_that_mle_logging_merged_is_added_to_and_read_by_it(
    written: Path, tmp_path: Path
) -> None:
    exp = tmp_path / "exp"
    shutil.copytree(written / "plain", exp)
    path = exp / "logs" / "log.hdf5"
    command = [sys.executable, "-c", MERGES, str(path), str(exp)]
    subprocess.run(command, check=True, capture_output=True)
    alone = read(exp)["seed_1"]
    # It wants the same columns of all.
    ticks = [({"num_steps": i}, {"loss": 0.5 * i, "vector": np.arange(3.0)}) for i in (1, 2)]
    (exp / "logs" / "log_seed_2.hdf5").write_bytes(log_bytes("seed_2", ticks))
    merge_seed_logs(path, exp)
    runs = read(exp)
    assert list(runs) == ["seed_1", "seed_2"]
    assert runs["seed_1"] == alone
    assert runs["seed_2"]["stats"]["loss"] == [0.5, 1.0]
    merge_config_logs(tmp_path, ["exp"])
    meta = read(tmp_path / "meta_log.hdf5")
    assert meta["exp"]["seed_2"]["stats"] == runs["seed_2"]["stats"]
