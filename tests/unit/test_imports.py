"""What importing the public names loads, seen from a fresh interpreter.

`.importlinter` judges the import statements; this looks at what they do.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that are loaded after a statement and were not before it."""
    program = (
        "import json, sys; before = set(sys.modules);"
        f"exec({statement!r});"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True
    )
    return set(json.loads(done.stdout))


HEAVY = {
    *("h5py", "psutil", "matplotlib", "torch", "rich", "pandas", "xarray", "wandb", "mle_daemon"),
}


def test_the_package_alone_loads_nothing_else() -> None:
    assert loaded_by("import mle_client").isdisjoint({"numpy", "zmq", "msgpack", *HEAVY})


@pytest.mark.parametrize(
    "statement", ["from mle_client import MLELogger", "import mle_client.logger"]
)
def test_the_logger_loads_nothing_heavy(statement: str) -> None:
    loaded = loaded_by(statement)

    assert "mle_client" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_a_reader_needs_no_daemon_code_and_no_plotting() -> None:
    loaded = loaded_by("from mle_client import load_log; load_log")

    assert loaded.isdisjoint({"mle_daemon", "matplotlib", "torch"})


@pytest.mark.parametrize(
    "statement",
    [
        "import mle_client.metalog",
        "import mle_client.plot, mle_client.curves, mle_client.series, mle_client.frames",
        "from mle_client import MetaLog, load_log, visualize_1D_lcurves",
    ],
)
def test_plots_and_tables_load_their_libraries_when_they_are_made(statement: str) -> None:
    assert loaded_by(statement).isdisjoint({"matplotlib", "pandas", "xarray"})


def test_every_public_name_can_be_imported() -> None:
    names = (
        "import mle_client;"
        "assert set(mle_client.__all__) <= set(dir(mle_client));"
        "[getattr(mle_client, name) for name in mle_client.__all__]"
    )

    assert "mle_client" in loaded_by(names)


def test_the_daemon_has_no_code_that_unpickles() -> None:
    """What clients send is never run: neither by the daemon nor by its processes that merge."""
    script = (
        "import sys, mle_daemon.daemon, mle_daemon.merge_process;"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith(('mle_daemon.',"
        " 'mle_client.'))), sep='\\n')"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(loaded) > 50
    for path in loaded:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & UNPICKLERS, path


UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}
