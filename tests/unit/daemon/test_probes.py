"""Rings that lie there: found by name, and cleared of what was never finished."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from mle_client import discovery, runtime
from mle_client.messages import ProducerId
from mle_client.ring import FULL_FILE, REMOVED, UNFINISHED, Ring
from mle_daemon import probes


def test_what_was_killed_while_it_made_a_ring_is_removed_after_a_while(root: Path) -> None:
    parent = Path(runtime.ring_dir(str(root)))
    for name, age in (("old", 3600.0), ("new", 0.0)):
        made = parent / f"{UNFINISHED}{name}"
        made.mkdir()
        (made / "owner").write_text("{}")
        os.utime(made, (time.time() - age,) * 2)
    (parent / "notes").mkdir()  # not ours
    probes.remove_unfinished(str(root))
    assert sorted(os.listdir(parent)) == [f"{UNFINISHED}new", "notes"]


def test_rings_that_are_full_say_why(root: Path) -> None:
    parent = Path(runtime.ring_dir(str(root)))
    for name in ("ab" * 16, "cd" * 16):
        (parent / name).mkdir()
    (parent / ("cd" * 16) / FULL_FILE).write_text("no room")
    assert probes.full_rings(str(root)) == ["no room"]


@pytest.mark.parametrize("prefix", [UNFINISHED, REMOVED])
def test_an_unfinished_ring_is_no_ring_and_nothing_to_start_a_daemon_for(
    root: Path, prefix: str
) -> None:
    parent = Path(runtime.ring_dir(str(root)))
    (parent / f"{prefix}x").mkdir()
    assert probes.find_rings(str(root)) == []
    assert not discovery.has_leftovers(str(root))
    (parent / ("ab" * 16)).mkdir()
    assert len(probes.find_rings(str(root))) == 1
    assert discovery.has_leftovers(str(root))


@pytest.mark.parametrize("remover", ["owner", "daemon"])
def test_a_ring_whose_removal_is_cut_off_is_no_ring_any_more(
    root: Path, remover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = Path(runtime.ring_dir(str(root)))
    ring = Ring(str(parent / ("ab" * 16)), str(root / "spill"), ProducerId(b"\xab" * 16), {})
    remove = ring.delete
    if remover == "daemon":
        ring.let_go()
        (left,) = probes.abandoned(probes.find_rings(str(root)), print)
        left.close()
        remove = left.remove

    def be_killed(path: str, ignore_errors: bool) -> None:
        if "spill" not in path:
            Path(path, "owner").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", be_killed)
        with pytest.raises(KeyboardInterrupt):
            remove()
    ring.delete()
    assert probes.find_rings(str(root)) == []
    assert not discovery.has_leftovers(str(root))
    assert len(list(parent.iterdir())) == 1
    probes.remove_unfinished(str(root))
    assert list(parent.iterdir()) == []
