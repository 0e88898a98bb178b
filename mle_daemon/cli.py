"""The command line: `mle-daemon start | status | stop | plot`.

Data go to stdout, messages to stderr; the exit codes are those of `mle_client.errors`, listed with
everything else in `docs/cli.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Final

from mle_client import layout
from mle_client.endpoint import Endpoint
from mle_client.errors import DaemonStartFailed, LogNotFound, MLEError
from mle_daemon import __version__, launch, plot
from mle_daemon.config import DaemonConfig, checked_endpoint
from mle_daemon.launch import say

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_PARTIAL: Final = 7
EXIT_INTERRUPTED: Final = 130  # as shells have it: 128 + SIGINT

_EXAMPLES: Final = {
    "start": (
        "mle-daemon start --root exp/                       in the background\n"
        "mle-daemon start --root exp/ --foreground          under systemd, Docker or Slurm\n"
        "mle-daemon start --root exp/ --idle-timeout 600    leaves after 10 idle minutes\n"
        "mle-daemon start --root exp/ --endpoint tcp://127.0.0.1:0 --json"
    ),
    "status": (
        "mle-daemon status --root exp/\n"
        "mle-daemon status --root exp/ --json | jq '.runs[] | select(.state == \"crashed\")'"
    ),
    "stop": "mle-daemon stop --root exp/\nmle-daemon stop --root exp/ --timeout 300",
    "plot": (
        "mle-daemon plot --root exp/ test_loss              every configuration below exp/\n"
        "mle-daemon plot --root exp/ test_loss --runs lr_0.1 lr_0.5 --band p10-90 --smooth 20\n"
        "mle-daemon plot --root exp/ test_loss --x num_steps -o loss.pdf"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: of the command line; None for those of this process.

    Returns:
        The exit code.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.version:
            code = _version(options)
        elif options.verb is None:
            parser.error("say what to do: start, status, stop or plot")
        else:
            verbs = {"start": _start, "status": _status, "stop": _stop, "plot": _plot}
            code = verbs[options.verb](options)
        sys.stdout.flush()
        return code
    except DaemonStartFailed as error:
        print(error.why, file=sys.stderr)  # the daemon said it already in these words
        return error.exit_code
    except MLEError as error:
        say(error)
        return error.exit_code
    except BrokenPipeError:
        # `| head` has seen enough; Python must not complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (OSError, ValueError, ImportError) as error:
        say(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


# --- the verbs ------------------------------------------------------------------------------------
def _start(options: argparse.Namespace) -> int:
    config = DaemonConfig(
        _made(options.root),
        endpoint=options.endpoint,
        idle_timeout_s=options.idle_timeout,
    )
    if options.foreground:
        return launch.run_here(config, lambda e: _print_endpoint(e, options.json), options.ready_fd)
    daemon, was_there = launch.ensure_running(config)
    if was_there:
        say(f"a daemon already serves {config.root}")
    _print_endpoint(daemon, options.json)
    return EXIT_OK


def _status(options: argparse.Namespace) -> int:
    from mle_client import control  # loads numpy, which `start` need not wait for

    report = control.status(_existing(options.root), options.timeout)
    print(json.dumps(report) if options.json else _describe(report))
    return EXIT_OK


def _stop(options: argparse.Namespace) -> int:
    from mle_client import control

    root = _existing(options.root)
    problem = control.stop(root, options.timeout)
    if problem:
        say(
            f"stopped, but {problem}; the journal has what is missing, and the next start writes it"
        )
        return EXIT_PARTIAL
    say(f"stopped; everything under {root} is on disk")
    return EXIT_OK


def _plot(options: argparse.Namespace) -> int:
    picture = plot.picture_of(options, _existing(options.root))
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("ignore")  # such as a library's about another's future
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("always", RuntimeWarning)
        try:
            path = plot.draw(picture)
        finally:
            for remark in remarks:
                say(remark.message)
    print(json.dumps({"path": path}) if options.json else path)
    return EXIT_OK


def _version(options: argparse.Namespace) -> int:
    import h5py
    import zmq

    from mle_client.messages import PROTOCOL_VERSION

    versions = {
        "mle-daemon": __version__,
        "file format": layout.FILE_FORMAT,
        "wire protocol": PROTOCOL_VERSION,
        "h5py": h5py.version.version,
        "HDF5": h5py.version.hdf5_version,
        "libzmq": zmq.zmq_version(),
    }
    if options.json:
        keys = (name.lower().translate(str.maketrans(" -", "__")) for name in versions)
        print(json.dumps(dict(zip(keys, versions.values(), strict=True))))
    else:
        print(_aligned([(name, str(version)) for name, version in versions.items()]))
    return EXIT_OK


def _made(root: str) -> str:
    """Make a root's folder if need be.  Returns: its path, links resolved."""
    try:
        os.makedirs(root, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"--root {root} is no folder, and none can be made there ({error.strerror}): give a "
            "folder of yours, such as that of your experiments"
        ) from error
    return os.path.realpath(root)


def _existing(root: str) -> str:
    if not os.path.isdir(root):
        raise LogNotFound(root, "there is no such folder")
    return os.path.realpath(root)


# --- what is printed ------------------------------------------------------------------------------
_COUNTS: Final = ("received", "journaled", "published", "lost")
_TITLES: Final = (
    *("experiment", "seed", "state"),
    *_COUNTS,
    *("lag", "waiting", "last error"),
)
_NUMBERS: Final = range(3, 9)  # columns whose text ends where the column ends


def _print_endpoint(daemon: Endpoint, as_json: bool) -> None:
    if as_json:
        print(daemon.to_json(), flush=True)
        return
    rows = [("pid", str(daemon.pid)), ("endpoint", daemon.endpoint), ("root", daemon.root)]
    print(_aligned(rows), flush=True)


def _describe(report: dict[str, Any]) -> str:
    """A status report for people."""
    about = [
        ("pid", str(report["pid"])),
        ("endpoint", report["endpoint"]),
        ("root", report["root"]),
        ("uptime", _duration(report["uptime_s"])),
        ("version", report["version"]),
    ]
    if report["degraded"]:
        about.append(("DEGRADED", report["degraded"]))
    if not report["runs"]:
        return _aligned(about) + "\n\nno runs"
    rows = [_run_row(run, report["root"]) for run in report["runs"]]
    return _aligned(about) + "\n\n" + _aligned([_TITLES, *rows], right=_NUMBERS)


def _run_row(run: dict[str, Any], root: str) -> list[str]:
    ticks = run["ticks"]
    where = os.path.relpath(run["experiment_dir"], root)
    counts = [str(ticks[name]) for name in _COUNTS]
    lag, waiting = _duration(run["lag_s"]), _size(run["bytes_waiting"])
    error = " ".join(run["last_error"].split()) or "-"
    return [where, run["seed_id"], run["state"], *counts, lag, waiting, error]


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of text as columns.  Args: right: those whose text ends where the column ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if days >= 2:
        return f"{days:.1f} days"
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.1f} min"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


# --- the arguments --------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    examples = "\n\n".join(_EXAMPLES.values())
    parser = argparse.ArgumentParser(
        "mle-daemon",
        description="Writes what training processes log, as HDF5 files under a root folder.",
        epilog=f"examples:\n\n{examples}\n\n"
        "exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 no daemon, 5 locked, 6 damaged, "
        "7 partial",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print all versions and exit")
    parser.add_argument("--json", action="store_true", help="print data as one line of JSON")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    start = _add_verb(verbs, "start", "start the daemon of a root, unless it has one")
    start.add_argument("--foreground", action="store_true", help="do not go into the background")
    start.add_argument(
        "--idle-timeout",
        type=_seconds,
        metavar="S",
        help="leave after so many seconds without a client (default: never)",
    )
    start.add_argument(
        "--endpoint",
        type=_endpoint,
        metavar="tcp://127.0.0.1:PORT",
        help="where to listen, port 0 for any free one (default: a socket that only you can reach)",
    )
    start.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)

    status = _add_verb(verbs, "status", "show the daemon of a root and its runs")
    _add_timeout(status, 5.0, "to wait for the answer")

    stop = _add_verb(verbs, "stop", "write everything out and end the daemon of a root")
    _add_timeout(stop, 60.0, "to wait until it is gone")

    summary = "draw a statistic of all runs under a folder"
    plot.add_arguments(_add_verb(verbs, "plot", summary, "the folder to look in"))
    return parser


def _add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    root: str = "the folder it serves",
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name,
        help=summary,
        description=summary.capitalize() + ".",
        epilog=f"examples:\n\n{_EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_argument("--root", required=True, type=_folder, metavar="DIR", help=root)
    # Suppressed, so that it does not undo a --json before the verb.
    verb.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one line of JSON"
    )
    return verb


def _add_timeout(verb: argparse.ArgumentParser, default: float, purpose: str) -> None:
    verb.add_argument(
        "--timeout",
        type=_seconds,
        default=default,
        metavar="S",
        help=f"seconds {purpose} (default: {default:g})",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _folder(text: str) -> str:
    if not text:  # of a shell variable that is not set
        raise argparse.ArgumentTypeError("it is empty: give a folder, such as exp/")
    return text


def _endpoint(text: str) -> str:
    try:
        return checked_endpoint(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
