"""The wheel that users install, built from this tree."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, opened."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=TREE,
        check=True,
    )
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def text_of(wheel: zipfile.ZipFile, name: str) -> str:
    """A file of the wheel's .dist-info folder."""
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_it_holds_both_packages_with_their_types_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    sources = {
        path.relative_to(TREE).as_posix()
        for package in ("mle_client", "mle_daemon")
        for path in TREE.glob(f"{package}/**/*.py")
    }

    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == sources | {"mle_client/py.typed", "mle_daemon/py.typed"}


def test_it_installs_the_command(wheel: zipfile.ZipFile) -> None:
    assert "mle-daemon = mle_daemon.cli:main" in text_of(wheel, "entry_points.txt")


def test_it_names_the_core_dependencies_and_no_tools(wheel: zipfile.ZipFile) -> None:
    metadata = text_of(wheel, "METADATA").splitlines()
    required = {
        line.removeprefix("Requires-Dist: ").partition(">")[0]
        for line in metadata
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    }

    assert required == {"cloudpickle", "h5py", "msgpack", "numpy", "psutil", "pyyaml", "pyzmq"}
    assert not any("pytest" in line or "ruff" in line for line in metadata)
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: MIT" in metadata
