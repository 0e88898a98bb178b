"""Keys are made whole, for this user alone, and never replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mle_client import keys
from mle_client.errors import KeysUnusable
from mle_daemon import keys_verb


@pytest.mark.parametrize("umask", [0, 0o777 & ~0o700])
def test_keys_are_for_this_user_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = keys_verb.make(str(tmp_path / "a" / "keys"))
    finally:
        os.umask(before)
    folder = tmp_path / "a" / "keys"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert keys.server_keys(str(folder)) == made


def test_keys_are_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    made = keys_verb.make(str(folder))
    with pytest.raises(KeysUnusable, match="never replaced"):
        keys_verb.make(str(folder))
    assert keys.server_keys(str(folder)) == made
    assert os.listdir(tmp_path) == ["keys"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_there_is_left_alone(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "keys", tmp_path / "other"
    other.mkdir()
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(other)
    else:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    with pytest.raises(KeysUnusable, match="never replaced"):
        keys_verb.make(str(path))
    assert os.listdir(other) == []
    assert (
        path.is_symlink()
        if kind == "link"
        else "mine"
        in str([file.read_text() for file in (path.iterdir() if path.is_dir() else [path])])
    )
    assert sorted(os.listdir(tmp_path)) == ["keys", "other"]


def test_nothing_is_left_of_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str) -> None:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(keys_verb.files, "sync_folder", full)
    with pytest.raises(OSError, match="No space left"):
        keys_verb.make(str(tmp_path / "keys"))
    assert os.listdir(tmp_path) == []
