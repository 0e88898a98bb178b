"""`install_as_mle_logging` and `python -m mle_client.compat`, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mle_client import compat, discovery
from mle_client.compat_names import MODULES, full_name

INSTALL = "import mle_client; mle_client.install_as_mle_logging()\n"
HEAVY = {"h5py", "numpy", "matplotlib", "torch", "zmq", "msgpack", "rich", "psutil"}


def python(*arguments: str | Path, cwd: Path | None = None, **variables: str) -> Any:
    """Run Python to its end."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=50, check=False, cwd=cwd,
        env=discovery.python_environment() | variables,
    )  # fmt: skip


def said(program: str, **variables: str) -> Any:
    """What a program prints as JSON."""
    done = python("-W", "error", "-c", f"import json, sys\n{program}", **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def error_of(program: str) -> str:
    """The last line of what a program says that fails."""
    done = python("-c", program)
    assert done.returncode == 1
    return str(done.stderr.strip().splitlines()[-1])


# --- modules --------------------------------------------------------------------------------------
def test_every_module_is_registered_and_none_of_what_is_behind_is_loaded() -> None:
    program = INSTALL + "print(json.dumps(sorted(sys.modules)))"
    loaded = set(said(program))

    assert {full_name(name) for name in MODULES} <= loaded
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(HEAVY)


def test_installing_twice_changes_nothing() -> None:
    program = INSTALL + "import mle_logging as one\n" + INSTALL
    assert said(program + "import mle_logging as two; print(json.dumps(one is two))")


def test_names_are_those_of_ours_however_they_are_imported() -> None:
    program = (
        INSTALL
        + """
import importlib, pkgutil
import mle_logging
import mle_logging.utils as utils
import mle_logging.load.load_log as load_log  # a function, and a module, as there
from mle_logging import MLELogger, load_config, load_model, merge_seed_logs
from mle_logging.load import load_log as again, load_meta_log
from mle_logging.merge.merge_logs import merge_config_logs
from mle_logging.mle_logger import MLELogger as deeper
from mle_logging.save import StatsLog
import mle_client, mle_client.configs, mle_client.load, mle_client.statslog
print(json.dumps([
    MLELogger is deeper is mle_client.MLELogger,
    load_log is again is mle_client.load_log,
    importlib.import_module("mle_logging.load.load_log").load_log is again,
    utils.load_yaml_config is mle_client.configs.load_yaml_config,
    StatsLog is mle_client.statslog.StatsLog,
    pkgutil.resolve_name("mle_logging.utils:load_config") is load_config,
    mle_logging.utils is utils,
]))
"""
    )
    assert all(said(program))


def test_packages_list_their_modules_and_modules_their_names() -> None:
    program = (
        INSTALL
        + """
import inspect, pkgutil
import mle_logging
found = [m.name for m in pkgutil.walk_packages(mle_logging.__path__, "mle_logging.")]
print(json.dumps([
    found, dir(mle_logging), inspect.ismodule(mle_logging.save),
    mle_logging.__version__, mle_logging.load.__all__, repr(mle_logging),
]))
"""
    )
    modules, names, is_module, version, exported, shown = said(program)

    assert set(modules) == {full_name(name) for name in MODULES if name}
    assert {"MLELogger", "load_log", "utils", "save"} <= set(names)
    assert is_module
    assert version == "0.0.6"
    assert exported == ["load_log", "load_meta_log", "load_model"]
    assert shown == "<module 'mle_logging' (mle_client.compat)>"


def test_what_was_pickled_by_reference_to_mle_logging_is_found() -> None:
    program = (
        INSTALL
        + """
import pickle
from mle_logging import MLELogger
print(json.dumps([
    pickle.loads(b"cmle_logging.meta_log\\nMetaLog\\n.").__module__,
    pickle.loads(b"cmle_logging.merge.merge_logs\\nmerge_seed_logs\\n.").__module__,
    pickle.loads(pickle.dumps(MLELogger)) is MLELogger,
]))
"""
    )
    assert said(program) == ["mle_client.metalog", "mle_client.merge", True]


def test_a_star_import_gets_what_is_public() -> None:
    program = INSTALL + "from mle_logging.merge import *\nprint(json.dumps(sorted(globals())))"
    assert {"merge_seed_logs", "merge_config_logs", "merge_hdf5_files"} <= set(said(program))


@pytest.mark.parametrize(
    ("statement", "advice"),
    [
        ("from mle_logging.save import TboardLog", "use_tboard=True"),
        ("from mle_logging.save.wandb_log import WandbLog", "use_wandb=True"),
        ("from mle_logging.utils import write_to_hdf5", "h5py"),
        ("from mle_logging.merge.aggregate import tolerant_median", "aggregate_seeds=True"),
        ("import mle_logging; mle_logging.utils.print_welcome()", "verbose=True"),
    ],
)
def test_what_has_no_counterpart_says_what_to_use(statement: str, advice: str) -> None:
    error = error_of(INSTALL + statement)

    assert error.startswith("ImportError: mle_client has nothing in place of mle_logging.")
    assert advice in error


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("from mle_logging import nothing", "ImportError: cannot import name 'nothing'"),
        ("import mle_logging.nothing", "ModuleNotFoundError: No module named"),
        ("import mle_logging; mle_logging.nothing", "AttributeError: module 'mle_logging'"),
    ],
)
def test_what_mle_logging_has_not_either_fails_as_ever(statement: str, error: str) -> None:
    assert error_of(INSTALL + statement).startswith(error)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with what looks like mle-logging itself."""
    package = tmp_path / "site" / "mle_logging"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("MLELogger = 'the real one'\n")
    return package.parent


def test_it_refuses_where_mle_logging_was_imported_before(installed: Path) -> None:
    done = python("-c", "import mle_logging\n" + INSTALL, PYTHONPATH=path(installed))

    assert done.returncode == 1
    assert f"imported already, from {installed}" in done.stderr


def test_an_installed_mle_logging_is_not_touched(installed: Path) -> None:
    program = INSTALL + "from mle_logging import MLELogger; print(json.dumps(MLELogger.__module__))"

    assert said(program, PYTHONPATH=path(installed)) == "mle_client.logger"


def path(*folders: Path) -> str:
    """A PYTHONPATH with folders before ours."""
    ours = discovery.python_environment().get("PYTHONPATH", "")
    return os.pathsep.join([*map(str, folders), ours])


# --- the command line -----------------------------------------------------------------------------
SCRIPT = """
import sys
import mle_logging

if __name__ == "__main__":
    import json, os
    print(json.dumps([sys.argv, sys.path[0], mle_logging.MLELogger.__module__, __file__]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "train.py").write_text(SCRIPT)
    return tmp_path / "programs" / "train.py"


def test_a_script_runs_as_if_it_were_run_directly(script: Path, tmp_path: Path) -> None:
    done = python("-m", "mle_client.compat", "programs/train.py", "-m", "--lr", "1", cwd=tmp_path)

    assert json.loads(done.stdout) == [
        ["programs/train.py", "-m", "--lr", "1"],
        str(script.parent),
        "mle_client.logger",
        str(script),
    ], done.stderr


def test_a_module_runs_too(script: Path) -> None:
    done = python("-m", "mle_client.compat", "-m", "train", "x", cwd=script.parent)

    assert json.loads(done.stdout) == [
        [str(script), "x"], str(script.parent), "mle_client.logger", str(script)
    ], done.stderr  # fmt: skip


def test_tracebacks_and_exit_codes_are_the_script_s_own(script: Path) -> None:
    script.write_text("import mle_logging\nraise ValueError('of mine')\n")
    failed = python("-m", "mle_client.compat", script)
    script.write_text("import sys\nsys.exit(7)\n")
    left = python("-m", "mle_client.compat", script)

    assert failed.returncode == 1
    assert failed.stderr == (
        "Traceback (most recent call last):\n"
        f'  File "{script}", line 2, in <module>\n'
        "    raise ValueError('of mine')\n"
        "ValueError: of mine\n"
    )
    assert left.returncode == 7


def test_a_signal_reaches_the_script_itself(script: Path) -> None:
    script.write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-m", "mle_client.compat", script],
        stdout=subprocess.PIPE, text=True, env=discovery.python_environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()

    assert process.returncode == -15


def test_options_of_python_are_kept(script: Path) -> None:
    script.write_text("import sys\nprint(sys.flags.utf8_mode, sys.flags.optimize, sys.warnoptions)")
    done = python("-X", "utf8", "-W", "error", "-Om", "mle_client.compat", script)

    assert done.stdout == "1 1 ['error']\n", done.stderr


CHILDREN = """
import multiprocessing
import subprocess
import sys

def home(queue):
    from mle_logging.mle_logger import MLELogger
    queue.put(MLELogger.__module__)

if __name__ == "__main__":
    for method in ("spawn", "fork"):
        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        process = context.Process(target=home, args=(queue,))
        process.start()
        print(queue.get(), flush=True)
        process.join()
    program = "from mle_logging.utils import load_yaml_config; print(load_yaml_config.__module__)"
    subprocess.run([sys.executable, "-c", program], check=True)
"""


def test_child_processes_find_the_same(script: Path, installed: Path) -> None:
    script.write_text(CHILDREN)
    done = python("-m", "mle_client.compat", script, PYTHONPATH=path(installed))

    assert done.stdout.split() == ["mle_client.logger", "mle_client.logger", "mle_client.configs"]


def test_the_folder_alone_does_it_for_programs_that_something_else_starts(script: Path) -> None:
    folder = python("-m", "mle_client.compat", "--path").stdout.strip()
    done = python(script, PYTHONPATH=path(Path(folder)))

    assert folder == compat.folder_for_pythonpath()
    assert json.loads(done.stdout)[2] == "mle_client.logger", done.stderr


def test_a_python_without_mle_client_says_so(script: Path) -> None:
    done = python("-S", script, PYTHONPATH=compat.folder_for_pythonpath())

    assert done.returncode == 1
    assert "has no mle_client" in done.stderr
    assert "install mle-daemon" in done.stderr


def test_a_mle_logging_beside_the_script_is_not_passed_over_in_silence(script: Path) -> None:
    (script.parent / "mle_logging").mkdir()
    (script.parent / "mle_logging" / "__init__.py").touch()
    beside = python("-m", "mle_client.compat", script)
    here = python("-m", "mle_client.compat", "-m", "train", cwd=script.parent)

    for done in (beside, here):
        assert done.returncode == 2
        assert f"{script.parent} has a mle_logging of its own" in done.stderr
        assert "install_as_mle_logging()" in done.stderr


def test_what_cannot_work_is_refused() -> None:
    nothing = python("-m", "mle_client.compat")
    in_a_program = python(
        "-c", "import runpy, sys; sys.argv = ['', 'x.py']; "
        "runpy.run_module('mle_client.compat', run_name='__main__', alter_sys=True)",
    )  # fmt: skip

    assert nothing.returncode == 2
    assert nothing.stderr.startswith("usage: python")
    assert in_a_program.returncode == 2
    assert "call mle_client.install_as_mle_logging()" in in_a_program.stderr


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        (["python", "-m", "mle_client.compat", "a.py", "-m"], ["a.py", "-m"]),
        (["python", "-mmle_client.compat", "a.py", "-m"], ["a.py", "-m"]),
        (["python", "-Bm", "mle_client.compat", "a.py", "-m"], ["-B", "a.py", "-m"]),
        (["python", "-W", "error", "-m", "mle_client.compat", "a.py", "-m"],
         ["-W", "error", "a.py", "-m"]),
        (["python", "-m", "pytest", "a.py", "-m"], None),
        (["python", "compat.py", "a.py", "-m"], None),
    ],
)  # fmt: skip
def test_the_command_line_is_what_was_typed_without_us(
    typed: list[str], command: list[str] | None
) -> None:
    expected = [] if command is None else [sys.executable, *command]

    assert compat._command(typed, ["a.py", "-m"]) == expected


def test_options_that_hide_pythonpath_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flags:
        ignore_environment = 1
        safe_path = False

    monkeypatch.setattr(compat.sys, "flags", Flags)

    assert "-E and -I" in compat._problem(["python", "a.py"], ["a.py"])
