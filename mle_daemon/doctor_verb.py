"""`mle-daemon doctor` says what is wrong with a root, `mle-daemon recover` mends what can be.

A recovery is what every start of a daemon does: it takes in the journal and the rings, publishes,
merges, and leaves.  Doing it again changes nothing.  No file of the user's is removed or moved.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from mle_client import control, discovery
from mle_client.endpoint import READY, is_alive, read_endpoint
from mle_daemon import findings, launch
from mle_daemon.config import DaemonConfig, checked_merge
from mle_daemon.doctor import Doctor, left_roots

Say = Callable[[object], None]


def examine(root: str, *, as_json: bool) -> int:
    """Look at a root, print what was found.

    Args:
        root: an existing folder.
        as_json: print one line of JSON.

    Returns:
        The exit code: 0 where nothing is to be done, else of the gravest finding.
    """
    doctor = Doctor(root)
    doctor.examine()
    found, examined = doctor.found, doctor.examined
    if as_json:
        print(json.dumps(findings.to_plain(root, found, examined)))
    else:
        print(findings.describe(root, found, examined))
    return findings.exit_code(found)


def recover(root: str, timeout: float, *, as_json: bool, say: Say) -> int:
    """Bring what earlier daemons and trainers left into the logs, then look at the root.

    Experiments below it whose loggers had started daemons of their own are roots of their own, and
    are recovered as well.

    Args:
        root: an existing folder.
        timeout: seconds that it may take.
        as_json: print one line of JSON.
        say: tells the user what is no data.

    Returns:
        As of `examine`.

    Raises:
        DaemonStartFailed: no daemon can be started; says why.
        DaemonSilent: it does not finish in time.
    """
    endpoint = read_endpoint(root)
    if endpoint is not None and is_alive(endpoint):
        say(f"process {endpoint.pid} serves {root}, and takes in what is left by itself")
    elif discovery.has_leftovers(root) or (endpoint is not None and endpoint.state == READY):
        _recover_one(root, timeout, say)
    for folder in left_roots(root):
        _recover_one(folder, timeout, say)
    return examine(root, as_json=as_json)


def _recover_one(root: str, timeout: float, say: Say) -> None:
    """Have a daemon of a root take in what is left, and leave."""
    launch.ensure_running(_as_before(root))
    problem = control.stop(root, timeout)
    say(problem or f"what was left under {root} is in the logs")


def _as_before(root: str) -> DaemonConfig:
    """How the last daemon of a root merged, which is asked for once more."""
    last = read_endpoint(root)
    options = last.options if last is not None else {}
    config = DaemonConfig(root)
    if "merge" in options:
        merge, every = checked_merge(options["merge"])
        keep = bool(options.get("keep_seed_logs"))
        config = DaemonConfig(root, merge=merge, merge_every_s=every, keep_seed_logs=keep)
    return config
