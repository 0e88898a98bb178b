"""Programs written for mle-logging run on ours, unchanged.

    mle_client.install_as_mle_logging()                        in a program, before it imports that
    python -m mle_client.compat [-m module | script.py] …      for a program and all that it starts

The first puts modules under mle-logging's names into `sys.modules`; `compat_names` says what is in
them, and what is behind a name is imported when somebody asks for it.  The second starts Python
anew, in the same process, with the folder `as_mle_logging/` in front of PYTHONPATH, whose one file
does the first: a script is `__main__` as ever, with its own arguments, exit code and tracebacks,
and every Python that it starts finds the same.  Nothing is patched, and a mle-logging that is
installed is left alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any, Final

from mle_client.compat_names import MODULES, PACKAGE, VERSION, full_name, inside

_PROGRAM: Final = "mle_client.compat"
_ENTRY: Final = f"<{_PROGRAM}>/"  # begins an entry of a package's `__path__`; no folder has it
_BAD_USAGE: Final = 2  # exit code, as of Python's own command line
_USAGE: Final = """\
usage: python [options] -m mle_client.compat script.py [argument …]
       python [options] -m mle_client.compat -m module [argument …]
       python -m mle_client.compat --path

Runs a program that was written for mle-logging, and every Python program that it starts, on
mle_client.  --path prints the folder that does the same when it comes first in PYTHONPATH, for
programs that something else starts.
"""


def install_as_mle_logging() -> None:
    """Have `import mle_logging` in this process import what stands in for it.

    Call it before the first import of mle_logging; calling it again changes nothing.  Forked
    processes inherit it.  Those that are started anew need a call of their own; `python -m
    mle_client.compat` sees to that.

    Raises:
        RuntimeError: mle-logging itself was imported already.
    """
    present = sys.modules.get(PACKAGE)
    if isinstance(getattr(present, "__loader__", None), _Loader):
        return
    if present is not None:
        raise RuntimeError(
            f"mle_logging was imported already, from {getattr(present, '__file__', None)}: call "
            "install_as_mle_logging() before that"
        )
    if _Finder not in sys.path_hooks:
        sys.path_hooks.append(_Finder)
    for name in MODULES:
        module = module_from_spec(_spec(name))
        _Loader().exec_module(module)
        sys.modules[module.__name__] = module


# --- modules --------------------------------------------------------------------------------------
class _Loader(Loader):
    """Fills the modules.  They have no file, as modules that are built in have none."""

    def exec_module(self, module: ModuleType) -> None:
        """Let a module find its names when they are asked for."""
        name = _name_in_table(module.__name__)
        content, submodules = MODULES[name], inside(name)
        public = sorted(content.ours)

        def find(attribute: str) -> Any:
            if attribute in content.ours:
                home, name_there = content.home(attribute)
                value = getattr(import_module(f"mle_client.{home}"), name_there)
            elif attribute in submodules:
                value = import_module(f"{module.__name__}.{attribute}")
            elif attribute in content.missing:
                # No AttributeError: `from module import name` would not pass on what it says.
                raise ImportError(
                    f"mle_client has nothing in place of {module.__name__}.{attribute}: "
                    f"{content.missing[attribute]}",
                    name=module.__name__,
                )
            else:
                raise AttributeError(f"module {module.__name__!r} has no attribute {attribute!r}")
            setattr(module, attribute, value)
            return value

        module.__doc__ = f"mle-logging {VERSION}'s {module.__name__}, by mle_client."
        found: dict[str, Any] = {"__getattr__": find, "__all__": public}
        if name in ("", "_version"):
            found["__version__"] = VERSION
            found["__all__"] = ["__version__", *public]
        module.__dict__.update(found)
        listed = sorted({*module.__dict__, *public, *submodules})
        module.__dict__["__dir__"] = lambda: listed


class _Finder:
    """Finds the modules inside a package by its `__path__`, for `pkgutil` and for Python.

    Raises:
        ImportError: the entry is none of ours.
    """

    def __init__(self, entry: str) -> None:
        if not entry.startswith(_ENTRY):
            raise ImportError(entry)
        self._package = _name_in_table(entry.removeprefix(_ENTRY))

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        """How to import a module; None if there is none of that name."""
        name = _name_in_table(fullname)
        return _spec(name) if name in MODULES else None

    def iter_modules(self, prefix: str = "") -> Iterator[tuple[str, bool]]:
        """Names of the modules right inside, and whether they are packages."""
        for name in inside(self._package):
            path = f"{self._package}.{name}" if self._package else name
            yield prefix + name, bool(inside(path))


def _spec(name: str) -> ModuleSpec:
    fullname = full_name(name)
    spec = ModuleSpec(fullname, _Loader(), origin=_PROGRAM, is_package=bool(inside(name)))
    if spec.submodule_search_locations is not None:
        spec.submodule_search_locations.append(_ENTRY + fullname)
    return spec


def _name_in_table(fullname: str) -> str:
    return fullname.removeprefix(PACKAGE).removeprefix(".")


# --- the command line -----------------------------------------------------------------------------
def folder_for_pythonpath() -> str:
    """The folder that stands in for mle-logging where it comes first in PYTHONPATH."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "as_mle_logging")


def main() -> None:
    """Run the program that the command line names; does not return if there is one."""
    arguments = sys.argv[1:]
    if arguments == ["--path"]:
        print(folder_for_pythonpath())
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else _BAD_USAGE)
    command = _command(sys.orig_argv, arguments)
    if problem := _problem(command, arguments):
        print(f"python -m {_PROGRAM}: {problem}", file=sys.stderr)
        sys.exit(_BAD_USAGE)
    os.execve(sys.executable, command, _environment())  # the same process: signals reach it


def _command(typed: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The command line without us.

    Args:
        typed: as this process was started: Python, its options, `-m mle_client.compat`, arguments.
        arguments: those.

    Returns:
        Empty if it was started in another way.
    """
    ours = list(typed[: len(typed) - len(arguments)])
    module = ours.pop()
    if module == _PROGRAM:
        module = ours.pop() + module  # "-m mle_client.compat" is "-mmle_client.compat", too
    options, is_ours, _ = module.rpartition(f"m{_PROGRAM}")
    if not is_ours or not options.startswith("-"):
        return []
    if options != "-":  # "-Bm mle_client.compat"
        ours.append(options)
    return [sys.executable, *ours[1:], *arguments]


def _problem(command: Sequence[str], arguments: Sequence[str]) -> str:
    """Why a program cannot be run; "" if it can."""
    if not command:
        return (
            "a command line of its own; in a program or a notebook, call "
            "mle_client.install_as_mle_logging()"
        )
    if sys.flags.ignore_environment:
        return "Python's options -E and -I hide PYTHONPATH, by which it works: leave them out"
    is_script = not arguments[0].startswith("-")
    folder = os.path.dirname(os.path.realpath(arguments[0])) if is_script else os.getcwd()
    if not sys.flags.safe_path and any(
        os.path.isfile(os.path.join(folder, path))
        for path in (f"{PACKAGE}.py", f"{PACKAGE}/__init__.py")
    ):
        return (
            f"{folder} has a {PACKAGE} of its own, which Python finds first: run it from another "
            "folder, or call mle_client.install_as_mle_logging() at the start of the program"
        )
    return ""


def _environment() -> Mapping[str, str]:
    from mle_client.discovery import python_environment

    environment = python_environment()
    paths = [folder_for_pythonpath(), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


if __name__ == "__main__":
    main()
