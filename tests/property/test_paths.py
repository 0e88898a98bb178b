"""Whatever names come from the wire, what is taken of them stays where it belongs.

Pure: each name that is taken is put together as the daemon does it, and looked at.  That links lead
nowhere either is tested with files (test_store, test_checkpoints) and with a daemon
(tests/integration/test_forged_messages.py).
"""

from __future__ import annotations

import os
import posixpath
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from mle_client import layout
from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_daemon.artifacts import why_unfit
from mle_daemon.intake import _unfit
from tests.daemon_rig import make_run

ROOT = "/exps"
# What looks like a dot or a slash, is turned into one by normalisation, is not seen, turns the
# direction, is no character alone, or ends a line or a string.
TRICKS = [
    *("/", ".", "..", "../", "/..", "//", "./", "\\", "..\\", "\0", "\n", "\r", "~", "$HOME"),
    *("\uff0e", "\uff0f", "\u2024", "\u2025", "\u2044", "\u2215", "\u29f8", "\u3002", "\ufe52"),
    *("\u202e", "\u200b", "\u2060", "\ufeff", "\u00ad", "\udc2e\udc2e", "\ud800", "\udcff"),
    *("exps", "etc", ".mle", "logs", "a", "ä", "x" * 300, "log.hdf5", "meta_log.hdf5", ROOT),
]  # fmt: skip
NAMES = st.lists(st.sampled_from(TRICKS) | st.text(max_size=3), max_size=8).map("".join)
PATHS = st.builds("{}{}".format, st.sampled_from(["", f"{ROOT}/", f"{ROOT}", "/"]), NAMES)


def taken(run: m.Run, root: str = ROOT) -> bool:
    try:
        return not _unfit(run, root)
    except ProtocolError:
        return False


def is_under(path: str, folder: str) -> bool:
    """Whether the system finds a path below a folder, if there are no links."""
    return "\0" not in path and posixpath.normpath(path).startswith(f"{folder.rstrip('/')}/")


@given(PATHS, st.sampled_from([ROOT, f"{ROOT}/sub", "/"]))
@example("", "/")
@example(f"{ROOT}/..", ROOT)
@example(f"{ROOT}x/a", ROOT)
@example(f"{ROOT}/\uff0e\uff0e/a", ROOT)
def test_a_runs_files_stay_under_the_root(directory: str, root: str) -> None:
    if not taken(make_run(directory=directory), root):
        return
    for path in (layout.log_path(directory, "s"), layout.merged_log_path(directory)):
        assert is_under(path, root)
        assert len(os.fsencode(path)) < 4096
        assert all(len(part) <= 255 for part in os.fsencode(path).split(b"/"))
    assert posixpath.normpath(directory) == root or is_under(directory, root)


@given(NAMES)
def test_a_seeds_name_is_part_of_one_file_name(seed_id: str) -> None:
    if not taken(make_run(seed_id=seed_id)):
        return
    folder, name = posixpath.split(layout.log_path(f"{ROOT}/exp", seed_id))
    assert posixpath.normpath(folder) == f"{ROOT}/exp/logs"
    assert (name, "\0" in name) == (f"log_{seed_id}.hdf5", False)
    for path in (layout.final_path(seed_id, ".pkl"), layout.figure_path(seed_id, 1)):
        assert path.count("/") == (2 if path.startswith("models") else 1)
        assert all(len(part) <= 255 for part in os.fsencode(path).split(b"/"))


@given(NAMES)
@example("log_seed_1.hdf5")
@example(".mle")
def test_a_configuration_is_a_file_of_its_own_in_the_runs_folder(name: str) -> None:
    if not (name and taken(make_run(config_name=name))):
        return
    path = posixpath.join(f"{ROOT}/exp", name)
    assert posixpath.normpath(path) == path
    assert posixpath.dirname(path) == f"{ROOT}/exp"
    assert not name.endswith(".hdf5")
    assert name not in (".mle", "logs", "models", "figures", "extra", "tboards", "wandb")


@given(st.sampled_from(["figure", "extra"]), PATHS, st.booleans())
def test_an_artifact_stays_in_its_folder(kind: str, name: str, prefixed: bool) -> None:
    folder = {"figure": "figures", "extra": "extra"}[kind]
    name = f"{folder}/{name}" if prefixed else name
    if why_unfit(m.Artifact(1, kind, name, {})):
        return
    assert is_under(f"{ROOT}/exp/{name}", f"{ROOT}/exp/{folder}")


@given(NAMES)
def test_nothing_is_normalised_on_the_way(name: str) -> None:
    """Names are bytes here: one that Unicode would turn into a trick leads to a file of its own."""
    if unicodedata.is_normalized("NFKC", name) or not taken(make_run(seed_id=name)):
        return
    assert layout.seed_of_log(layout.log_path(f"{ROOT}/exp", name)) == name
