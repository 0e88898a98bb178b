"""`mle_client.utils`: mle-logging's helpers under its names."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from mle_client import control, utils


def test_an_object_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    utils.save_pkl_object({"a": [1, 2]}, path)

    assert utils.load_pkl_object(str(path)) == {"a": [1, 2]}
    assert pickle.loads(path.read_bytes()) == {"a": [1, 2]}


def test_an_object_that_cannot_be_pickled_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    utils.save_pkl_object(1, path)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        utils.save_pkl_object(lambda: None, path)

    assert utils.load_pkl_object(path) == 1


def test_a_daemon_is_asked_to_publish_before_an_object_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "extra_1_seed_1.pkl"
    monkeypatch.setattr(control, "publish_before_reading", lambda p: utils.save_pkl_object(7, p))

    assert utils.load_pkl_object(path) == 7


def test_learning_curves_are_imported_when_they_are_asked_for() -> None:
    assert "visualize_1D_lcurves" in dir(utils)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        utils.nothing  # type: ignore[attr-defined]  # noqa: B018
