"""mle-logging 0.0.6 as it was released: in an environment of its own, and its public tests.

    python tests/compat/upstream.py        makes both, in the folder mle-logging of the environment
                                           that runs it; `make test` does that before the tests

What is in the environment, the group "mle-logging" of pyproject.toml says.  torch alone is lent by
the environment that makes it, for the download is large.  The tests are those of the source
distribution.  Tests ask for `require()`, which skips them where there was no registry to get these
from; nothing of it is ever committed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
RELEASE = "0.0.6"
HOME = Path(sys.prefix) / "mle-logging"
PYTHON = HOME / "bin" / "python"
STAMP = HOME / "made-of.json"
SDIST = HOME / f"mle_logging-{RELEASE}.tar.gz"
# torch and what it imports, all of which know numpy 1 as well as 2.
LENT = (
    *("torch", "torchgen", "functorch"),
    *("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy"),
)
GROUP = "mle-logging"
_TIMEOUT_S = 600  # for a registry that is slow


def require() -> Path:
    """Python with mle-logging.  Skips the test where there is none."""
    if not is_made():
        pytest.skip(
            f"there is no mle-logging {RELEASE} in {HOME}: `python tests/compat/upstream.py` makes "
            "it where a package registry can be reached"
        )
    return PYTHON


def environment(**variables: str) -> dict[str, str]:
    """The variables for a program that runs on mle-logging itself."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Its libraries take seconds to import where nobody keeps what was compiled.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, **variables}


def unpack(folder: Path) -> Path:
    """Unpack the source distribution.  Returns: its folder."""
    with tarfile.open(SDIST) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"mle_logging-{RELEASE}"


# --- making it ------------------------------------------------------------------------------------
def is_made() -> bool:
    """Whether all is there, and made of what pyproject.toml says now."""
    return STAMP.is_file() and json.loads(STAMP.read_text()) == _ingredients()


def make() -> None:
    """Make the environment, and fetch the source distribution.

    Raises:
        subprocess.CalledProcessError: pip cannot; it has said why.
    """
    shutil.rmtree(HOME, ignore_errors=True)
    # pip works on it from outside, which is faster than to install pip, too.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", HOME], check=True)
    # Compiled is what is imported: a third of the time.
    _pip("--python", PYTHON, "install", "--no-compile", "--group", f"pyproject.toml:{GROUP}")
    lend(HOME)
    _fetch()
    STAMP.write_text(json.dumps(_ingredients()))


def _ingredients() -> list[str]:
    groups = tomllib.loads((TREE / "pyproject.toml").read_text())["dependency-groups"]
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "none"
    return [*groups[GROUP], f"lent torch {torch}", sys.version]


def lend(home: Path) -> None:
    """Give an environment our torch."""
    (packages,) = (home / "lib").glob("python*/site-packages")
    for name in LENT:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin and not (packages / name).exists():
            (packages / name).symlink_to(Path(spec.origin).parent)


def _fetch() -> None:
    """Have pip download the source distribution, which lacks a file that its setup.py reads.

    pip asks a source distribution for its metadata before it saves it.  The backend of one without
    pyproject.toml is setuptools' (PEP 517); one of our own, which knows no more than the name,
    stands in for it.
    """
    with tempfile.TemporaryDirectory() as folder:
        backend = Path(folder) / "setuptools" / "build_meta.py"
        backend.parent.mkdir()
        (backend.parent / "__init__.py").touch()
        backend.write_text(_BACKEND)
        _pip(
            *("download", "--no-deps", "--no-build-isolation", "--no-binary", "mle-logging"),
            *("--dest", HOME, f"mle-logging=={RELEASE}"),
            PYTHONPATH=folder,
        )


_BACKEND = f"""\
import os
import sys

class Backend:
    def prepare_metadata_for_build_wheel(self, folder, settings=None):
        name = "mle_logging-{RELEASE}.dist-info"
        os.mkdir(os.path.join(folder, name))
        with open(os.path.join(folder, name, "METADATA"), "w") as file:
            file.write("Metadata-Version: 2.1\\nName: mle_logging\\nVersion: {RELEASE}\\n")
        return name

    def get_requires_for_build_wheel(self, settings=None):
        return []

__legacy__ = Backend()
"""


def _pip(*arguments: object, **variables: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*command, *map(str, arguments)],
        check=True, cwd=TREE, timeout=_TIMEOUT_S, env={**os.environ, **variables},
    )  # fmt: skip


if __name__ == "__main__":
    if not is_made():
        try:
            make()
        except (subprocess.SubprocessError, OSError) as error:
            sys.exit(f"mle-logging {RELEASE} could not be had ({error}): its tests will be skipped")
