"""Environments of the loggers that ours is measured beside, one for each.

    python -m benchmarks.peer_environments      makes those that are missing

What is in them, the groups "bench-..." of pyproject.toml say.  torch alone, which is large, is lent
by the environment that makes them; mle-logging has the one of the compatibility tests.  A peer that
cannot be had, as where there is no package registry, is left out, and it is told why.

It measures nothing, and our own environment stays as it is.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from benchmarks import harness
from tests.compat import upstream

TREE: Final = Path(__file__).parents[1]
HOME: Final = Path(sys.prefix) / "peers"
MLE_LOGGING: Final = "mle-logging"
# Peer -> what is imported of it; the group is called as the peer.
IMPORTS: Final[Mapping[str, str]] = {
    "csv": "lightning_fabric.loggers",
    "mlflow": "mlflow",
    "tensorboardx": "tensorboardX",
    "trackio": "trackio",
    "wandb": "wandb",
}
# No logger: a program that looks at processes.
_PROGRAMS: Final = ("py-spy",)
_TORCH: Final = frozenset({"csv"})  # these get ours, and nothing that they do not name themselves
_AT_ONCE: Final = 2  # pip mostly unpacks, which takes a core
_PIP_TIMEOUT_S: Final = 600.0  # for a registry that is slow
_IMPORT_TIMEOUT_S: Final = 120.0
_STAMP: Final = "made-of.json"

Install = Callable[[str, Path], None]


def python_of(peer: str) -> Path:
    """The interpreter that has a peer."""
    return upstream.PYTHON if peer == MLE_LOGGING else HOME / peer / "bin" / "python"


def requirements(peer: str) -> list[str]:
    """What a peer's environment is made of."""
    groups = tomllib.loads((TREE / "pyproject.toml").read_text())["dependency-groups"]
    return list(groups[f"bench-{peer}"])


def make_all(
    peers: Iterable[str] = (MLE_LOGGING, *IMPORTS, *_PROGRAMS), install: Install | None = None
) -> dict[str, str]:
    """Make the environments that are missing, or made of something else.

    Args:
        install: (peer, folder) fills a folder; raises what `subprocess` does.  pip, unless given.

    Returns:
        {peer: why it cannot be had, "" for those that can}.
    """
    wanted = list(peers)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        problems = list(pool.map(lambda peer: _make(peer, install or _install), wanted))
    return dict(zip(wanted, problems, strict=True))


def _make(peer: str, install: Install) -> str:
    """Make one environment.  Returns: why it cannot be had, or ""."""
    try:
        if peer == MLE_LOGGING:
            _run(sys.executable, upstream.__file__)
            return ""
        home = HOME / peer
        if not is_made(peer):
            harness.tell(f"installing {', '.join(requirements(peer))}")
            shutil.rmtree(home, ignore_errors=True)
            install(peer, home)
            (home / _STAMP).write_text(json.dumps(_ingredients(peer)))
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return str(said).strip().rpartition("\n")[2]
    return ""


def version(peer: str) -> str:
    """The release of a peer that its environment has; "" where there is none."""
    name = IMPORTS.get(peer, peer).partition(".")[0].replace("_", "-")
    program = f"import importlib.metadata as m; print({name!r}, m.version({name!r}))"
    said = subprocess.run(
        [python_of(peer), "-c", program],
        capture_output=True, text=True, check=False, timeout=_IMPORT_TIMEOUT_S,
        env=upstream.environment(),
    )  # fmt: skip
    return said.stdout.strip() if said.returncode == 0 else ""


def is_made(peer: str) -> bool:
    """Whether a peer's environment is there, and made of what pyproject.toml says now."""
    stamp = HOME / peer / _STAMP
    return stamp.is_file() and json.loads(stamp.read_text()) == _ingredients(peer)


def _ingredients(peer: str) -> list[str]:
    lent = [f"lent torch {importlib.metadata.version('torch')}"] if peer in _TORCH else []
    return [*requirements(peer), *lent, sys.version]


def _install(peer: str, home: Path) -> None:
    _run(sys.executable, "-m", "venv", "--without-pip", home)
    python = python_of(peer)
    alone = ("--no-deps",) if peer in _TORCH else ()
    _run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"),
        *("--python", python, "install", "--no-compile", *alone),
        *("--group", f"{TREE / 'pyproject.toml'}:bench-{peer}"),
    )
    if peer in _TORCH:
        upstream.lend(home)
    if peer in _PROGRAMS:
        return
    # Whoever imports it first has Python compile it, which is not what is to be measured.
    subprocess.run(
        [python, "-c", f"import {IMPORTS[peer]}"],
        check=True, capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S,
        env=upstream.environment(),
    )  # fmt: skip


def _run(*words: object) -> None:
    subprocess.run(
        [str(word) for word in words],
        check=True, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S,
    )  # fmt: skip


if __name__ == "__main__":
    for name, problem in make_all().items():
        print(f"{name}: {problem or python_of(name)}")
