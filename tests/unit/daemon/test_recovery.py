"""What a start does before anything is served.  What it brings back: `test_core_restart`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mle_client import files
from mle_daemon import recovery


def test_the_way_to_the_journal_is_synced_whoever_has_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync_folder = files.sync_folder

    def note(path: str) -> None:
        synced.append(path)
        sync_folder(path)

    monkeypatch.setattr(files, "sync_folder", note)
    root = tmp_path / "made" / "by a trainer"
    root.mkdir(parents=True)
    for _ in range(2):  # a daemon was killed between making and syncing
        synced.clear()
        directory = recovery.journal_directory(str(root))
        assert os.path.isdir(directory)
        assert {str(tmp_path), str(tmp_path / "made"), str(root), f"{root}/.mle"} <= set(synced)
