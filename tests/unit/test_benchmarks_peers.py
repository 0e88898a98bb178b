"""The benchmark of ours beside its peers runs, and leaves out what cannot be had."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import peer_adapters, peer_environments, peer_runs, peers
from benchmarks.peer_adapters import PEERS
from benchmarks.peer_worker import FLOOR, TIMER, UPDATE
from tests.compat import upstream
from tests.unit.test_benchmarks import assert_is_complete

SMALL = dataclasses.replace(peers.SIZES["tiny"], peers=("ours", "naive", "jsonl"))


# --- the benchmark --------------------------------------------------------------------------------
def test_every_view_has_all_peers_and_says_who_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    size = dataclasses.replace(SMALL, peers=(*SMALL.peers, "wandb"))
    monkeypatch.setattr(peer_environments, "make_all", lambda names: {"wandb": "no registry"})

    result = peers.run(size)

    assert_is_complete(result)
    measured = [peers.LABELS[peer] for peer in SMALL.peers]
    missing = peers.LABELS["wandb"]
    *views, releases = result.tables
    assert releases.rows == (("none", ""),)  # ours and what needs no environment
    for table in views:
        assert [row[0] for row in table.rows][-4:] == [*measured, missing]
        assert table.rows[-1][1] == "not installed"
    assert result.figures["problems"] == {"wandb": "no registry"}
    assert [goal.limit for goal in result.goals] == [2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert all(len(each.at) == len(SMALL.peers) for each in result.pictures)


def test_mle_logging_runs_in_its_own_environment() -> None:
    upstream.require()

    found = peer_runs.run("mle-logging", 1, 20)
    spent = peer_runs.calls("mle-logging", 1, 20)

    assert peer_environments.version("mle-logging") == f"mle-logging {upstream.RELEASE}"
    assert found.run.ticks == 20
    assert found.run.file_bytes > 0
    assert set(spent) == {TIMER, FLOOR, UPDATE}


def test_a_peer_that_has_lost_ticks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_runs, "count_ticks", lambda path: 19)

    with pytest.raises(RuntimeError, match="19 ticks are stored and not 20"):
        peer_runs.run("ours", 1, 20)


def test_what_a_worker_says_comes_to_light_when_it_fails() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'absent'"):
        peer_runs.run("absent", 1, 20)


def test_every_peer_has_a_name_an_amount_and_an_adapter() -> None:
    assert set(peers.PEERS) == set(PEERS)
    assert set(peers.LABELS) == set(peers.AMOUNTS)
    assert set(peer_environments.IMPORTS) | {"mle-logging"} <= set(PEERS)


def test_ticks_of_wandb_are_told_from_other_records() -> None:
    number = b"\x08\xac\x02"  # field 1: 300

    assert peer_adapters._is_history(number + b"\x12\x03abc")
    assert not peer_adapters._is_history(number + b"\x1a\x03abc")


# --- environments ---------------------------------------------------------------------------------
@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(peer_environments, "HOME", tmp_path)
    return tmp_path


def test_an_environment_is_made_once_and_anew_when_its_versions_change(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def install(peer: str, folder: Path) -> None:
        folder.mkdir()
        made.append(peer)

    assert peer_environments.make_all(["wandb"], install) == {"wandb": ""}
    assert peer_environments.make_all(["wandb"], install) == {"wandb": ""}
    assert made == ["wandb"]

    monkeypatch.setattr(peer_environments, "requirements", lambda peer: ["wandb==0"])
    assert not peer_environments.is_made("wandb")
    assert peer_environments.make_all(["wandb"], install) == {"wandb": ""}
    assert made == ["wandb", "wandb"]
    assert "wandb==0" in json.loads((home / "wandb" / "made-of.json").read_text())


@pytest.mark.parametrize(
    "error",
    [
        subprocess.CalledProcessError(1, "pip", stderr="looking\nno such package\n"),
        OSError("no such package"),
    ],
    ids=["pip", "system"],
)
def test_a_peer_that_cannot_be_had_is_told_and_not_kept(home: Path, error: Exception) -> None:
    def install(peer: str, folder: Path) -> None:
        folder.mkdir()
        if peer == "mlflow":
            raise error

    found = peer_environments.make_all(["mlflow", "trackio"], install)

    assert found == {"mlflow": "no such package", "trackio": ""}
    assert not peer_environments.is_made("mlflow")
    assert peer_environments.is_made("trackio")


def test_every_peer_is_pinned() -> None:
    for peer in peer_environments.IMPORTS:
        assert all("==" in each for each in peer_environments.requirements(peer))
