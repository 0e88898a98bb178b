"""The command line: `mle-daemon start | status | stop | keys | merge | …`.

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
from typing import Final

from mle_client import files, layout
from mle_client.endpoint import Endpoint
from mle_client.errors import DaemonStartFailed, LogNotFound, MLEError
from mle_client.keys import KEYS_VARIABLE
from mle_daemon import __version__, keys_verb, launch, plot_verb, status_text
from mle_daemon.config import (
    ON_FINISH,
    DaemonConfig,
    checked_endpoint,
    checked_merge,
    why_unguarded,
)
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
        "mle-daemon start --root exp/ --endpoint tcp://127.0.0.1:0 --json\n"
        "mle-daemon start --root exp/ --endpoint tcp://0.0.0.0:5555 --keys ~/.mle-keys"
    ),
    "status": (
        "mle-daemon status --root exp/\n"
        "mle-daemon status --root exp/ --json | jq '.runs[] | select(.state == \"crashed\")'"
    ),
    "stop": "mle-daemon stop --root exp/\nmle-daemon stop --root exp/ --timeout 300",
    "keys": "mle-daemon keys --out ~/.mle-keys",
    "merge": (
        "mle-daemon merge --root exp/                        every configuration\n"
        "mle-daemon merge --root exp/ lr_0.1 lr_0.5 --json"
    ),
    "plot": (
        "mle-daemon plot --root exp/ test_loss              every configuration below exp/\n"
        "mle-daemon plot --root exp/ test_loss --runs lr_0.1 lr_0.5 --band p10-90 --smooth 20\n"
        "mle-daemon plot --root exp/ test_loss --x num_steps -o loss.pdf"
    ),
    "doctor": "mle-daemon doctor --root exp/\nmle-daemon doctor --root exp/ --json | jq .findings",
    "recover": "mle-daemon recover --root exp/",
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
            parser.error(f"say what to do: {', '.join(_VERBS)}")
        else:
            code = _VERBS[options.verb](options)
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
    merge, every = options.merge
    keys = None
    if options.endpoint is not None and (folder := options.keys or os.environ.get(KEYS_VARIABLE)):
        keys = os.path.abspath(os.path.expanduser(folder))
    problem = why_unguarded(options.endpoint, keys)
    if options.keys and options.endpoint is None:
        problem = "--keys is for a TCP port: give --endpoint, too, or leave both out"
    if problem:
        say(problem)
        return EXIT_USAGE
    config = DaemonConfig(
        _made(options.root),
        endpoint=options.endpoint,
        keys=keys,
        idle_timeout_s=options.idle_timeout,
        merge=merge,
        merge_every_s=every,
        merge_settle_s=options.merge_settle,
        keep_seed_logs=options.keep_seed_logs,
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
    print(json.dumps(report) if options.json else status_text.describe(report))
    return EXIT_OK


def _stop(options: argparse.Namespace) -> int:
    from mle_client import control

    root = _existing(options.root)
    problem = control.stop(root, options.timeout)
    if problem:
        say(f"stopped, but {problem}")
        return EXIT_PARTIAL
    say(f"stopped; everything under {root} is on disk")
    return EXIT_OK


def _keys(options: argparse.Namespace) -> int:
    if options.out is None:
        say(f"say where to: --out DIR, or set {KEYS_VARIABLE}")
        return EXIT_USAGE
    folder = os.path.abspath(os.path.expanduser(options.out))
    keys = keys_verb.make(folder)
    said = {"folder": folder, "server": keys.public.decode()}
    print(json.dumps(said) if options.json else status_text.aligned(list(said.items())))
    return EXIT_OK


def _merge(options: argparse.Namespace) -> int:
    from mle_daemon import merge_verb

    return merge_verb.run(
        _existing(options.root),
        options.groups,
        keep_seed_logs=options.keep_seed_logs,
        as_json=options.json,
        say=say,
    )


def _plot(options: argparse.Namespace) -> int:
    picture = plot_verb.picture_of(options)
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("ignore")  # such as a library's about another's future
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("always", RuntimeWarning)
        try:
            path = plot_verb.draw(picture)
        finally:
            for remark in remarks:
                say(remark.message)
    print(json.dumps({"path": path}) if options.json else path)
    return EXIT_OK


def _doctor(options: argparse.Namespace) -> int:
    from mle_daemon import doctor_verb

    return doctor_verb.examine(_existing(options.root), as_json=options.json)


def _recover(options: argparse.Namespace) -> int:
    from mle_daemon import doctor_verb

    root = _existing(options.root)
    return doctor_verb.recover(root, options.timeout, as_json=options.json, say=say)


_VERBS: Final = {
    "start": _start,
    "status": _status,
    "stop": _stop,
    "keys": _keys,
    "merge": _merge,
    "plot": _plot,
    "doctor": _doctor,
    "recover": _recover,
}


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
        print(status_text.aligned([(name, str(version)) for name, version in versions.items()]))
    return EXIT_OK


def _made(root: str) -> str:
    """Make a root's folder if need be.  Returns: its path, links resolved."""
    try:
        files.make_folders(os.path.abspath(root))
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
def _print_endpoint(daemon: Endpoint, as_json: bool) -> None:
    if as_json:
        print(daemon.to_json(), flush=True)
        return
    rows = [("pid", str(daemon.pid)), ("endpoint", daemon.endpoint), ("root", daemon.root)]
    print(status_text.aligned(rows), flush=True)


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
    start.add_argument(
        "--keys",
        metavar="DIR",
        help=f"let in only those at that port whose keys are in DIR (default: {KEYS_VARIABLE})",
    )
    start.add_argument(
        "--merge",
        type=_when_to_merge,
        default=os.environ.get("MLE_MERGE") or ON_FINISH,
        metavar="{on-finish,every=S,off}",
        help="when to merge the seeds of a configuration: when all have ended, every S seconds, or "
        "never (default: MLE_MERGE, else on-finish)",
    )
    start.add_argument(
        "--merge-settle",
        type=_seconds,
        default=DaemonConfig.merge_settle_s,
        metavar="S",
        help="where no logger said how many seeds there are: merge S seconds after the last one "
        f"ended, unless another began (default: {DaemonConfig.merge_settle_s:g})",
    )
    start.add_argument(
        "--keep-seed-logs",
        action="store_true",
        default=os.environ.get("MLE_KEEP_SEED_LOGS", "") not in ("", "0"),
        help="leave the seeds' own logs where they are when they are merged (default: "
        "MLE_KEEP_SEED_LOGS)",
    )
    start.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)

    status = _add_verb(verbs, "status", "show the daemon of a root and its runs")
    _add_timeout(status, 5.0, "to wait for the answer")

    stop = _add_verb(verbs, "stop", "write everything out and end the daemon of a root")
    _add_timeout(stop, 60.0, "to wait until it is gone")

    keys_verb.add_arguments(
        _add_verb(verbs, "keys", "make keys, for a daemon at a TCP port", root=None)
    )
    merge = _add_verb(verbs, "merge", "merge the seeds of configurations that have ended")
    merge.add_argument(
        "groups",
        nargs="*",
        metavar="GROUP",
        help="folder of a configuration, relative to DIR (default: all below it)",
    )
    merge.add_argument(
        "--keep-seed-logs", action="store_true", help="leave the seeds' own logs where they are"
    )
    summary = "draw a statistic of all runs under a folder"
    plot_verb.add_arguments(
        _add_verb(verbs, "plot", summary, "the folder to look in, or a log file")
    )
    _add_verb(verbs, "doctor", "say what is wrong with a root, and what to do")
    recover = _add_verb(verbs, "recover", "bring what killed processes left into the logs")
    _add_timeout(recover, 600.0, "that it may take")
    return parser


def _add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    root: str | None = "the folder it serves",
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name,
        help=summary,
        description=summary.capitalize() + ".",
        epilog=f"examples:\n\n{_EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if root is not None:
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


def _when_to_merge(text: str) -> tuple[str, float]:
    try:
        return checked_merge(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _endpoint(text: str) -> str:
    try:
        return checked_endpoint(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
