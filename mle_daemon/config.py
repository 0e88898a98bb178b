"""Every number that the daemon can be tuned with, its unit in the name and its reason beside it.

Pure.  Bounds that both sides must agree on are in `mle_client.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mle_client.addresses import LOOPBACK, host_of, is_loopback

# When the seeds of a configuration are merged.
ON_FINISH, EVERY, OFF = "on-finish", "every", "off"


@dataclass(frozen=True)
class DaemonConfig:
    """How one daemon runs.

    Args:
        root: absolute path of the folder it serves, links resolved.
        endpoint: what `checked_endpoint` returned, or None for a socket in the socket folder.
        idle_timeout_s: leave after so long without a client and without work; None for never.
        merge: when seeds are merged: when all have ended, every so often, or never.
        merge_every_s: how often.
        keep_seed_logs: leave the logs of single seeds where they are when they are merged.
        keys: absolute path of the folder of keys for an endpoint; None to let in whoever connects.
    """

    root: str
    endpoint: str | None = None
    idle_timeout_s: float | None = None
    merge: str = ON_FINISH
    merge_every_s: float = 60.0
    keep_seed_logs: bool = False
    keys: str | None = None

    # Where nobody said how many seeds there are: longer than a script takes to import torch between
    # one seed and the next.
    merge_settle_s: float = 30.0

    # A publication copies the file.  One at every quarter of growth means that over a run's life
    # at most five times its size is written, however long it gets.
    publish_growth: float = 0.25
    # Not more often than this without a reader: small files grow by a quarter at every tick.
    publish_min_age_s: float = 1.0
    # What other programs see in a file is at most this old.
    publish_max_age_s: float = 30.0
    # After a publication that took t, `save()` waits 10 t for the next: a trainer that saves at
    # every tick makes the daemon spend a tenth of its time on that run, whatever the file's size.
    publish_cost_factor: float = 10.0

    # And never more than this is written for `save()`, a run: else a long run that saves at every
    # tick would have its whole file written every second, where the disk is fast.
    publish_bytes_per_s: float = 10e6

    # A segment goes when all in it is published; of this size a few dozen lie there at most, and
    # none is so long that one slow run keeps much of the others'.
    journal_segment_bytes: int = 64 * 2**20
    # What a power cut can take.  A shorter interval costs a disk more than it gives a user.
    sync_interval_s: float = 0.2

    # A client may be this far ahead of its acks: about 10 ms of a fast disk, so that waiting for
    # an ack never slows a client down, and eight of them cannot fill the daemon's memory.
    window_bytes: int = 4 * 2**20
    # Unpublished ticks of all runs in memory.  Past it clients keep what they have, in their rings
    # and spill files, until a publication makes room.  The daemon takes about twice that at most;
    # half of it would save 80 MB, and have a run of 30 million ticks at full speed written as many
    # times again, as each publication copies the file.
    tail_limit_bytes: int = 128 * 2**20

    # How soon a trainer that was killed is noticed and the rest of its ring is read.
    scan_interval_s: float = 1.0
    # Finished runs, and their configurations, that `status` still shows.
    recent_runs: int = 1000

    def as_options(self) -> dict[str, Any]:
        """How it was started, for `mle_client.discovery.start_again`."""
        every = f"{EVERY}={self.merge_every_s:g}"
        return {
            "idle_timeout": self.idle_timeout_s,
            "endpoint": self.endpoint,
            "keys": self.keys,
            "merge": every if self.merge == EVERY else self.merge,
            "merge_settle": self.merge_settle_s,
            "keep_seed_logs": self.keep_seed_logs,
        }


def checked_merge(merge: str) -> tuple[str, float]:
    """When to merge.

    Args:
        merge: "on-finish", "off", or "every=<seconds>".

    Returns:
        Values for `DaemonConfig.merge` and `merge_every_s`.

    Raises:
        ValueError: it is something else; says what to give.
    """
    word, _, number = merge.partition("=")
    try:
        seconds = float(number) if number else 0.0
    except ValueError:
        seconds = -1.0
    if merge in (ON_FINISH, OFF):
        return merge, DaemonConfig.merge_every_s
    if word != EVERY or not 0 < seconds < float("inf"):
        raise ValueError(
            f"{merge!r} does not say when to merge: give on-finish, every=SECONDS or off"
        )
    return EVERY, seconds


def checked_endpoint(endpoint: str) -> str:
    """The address to bind to, in the form that ZeroMQ takes.

    Args:
        endpoint: "tcp://<address or interface>:<port>"; port 0 or * for any free one.

    Raises:
        ValueError: it is something else; says what to give.
    """
    scheme, _, rest = endpoint.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host:
        raise ValueError(
            f"{endpoint!r} is no address to listen at: give tcp://127.0.0.1:PORT, or nothing for "
            "a socket in your runtime folder (MLE_RUNTIME_DIR moves that)"
        )
    if any(character in host for character in "[]:;/@") or not host.isprintable():
        raise ValueError(
            f"{endpoint!r}: give an IPv4 address of this machine or the name of one of its network "
            "interfaces, such as tcp://127.0.0.1:PORT"
        )
    if port in ("0", "*"):
        port = "*"
    elif not (port.isascii() and port.isdecimal() and int(port) < 2**16):
        raise ValueError(f"{endpoint!r}: {port!r} is no port; give 1 to 65535, or 0 for a free one")
    return f"tcp://{LOOPBACK if host == 'localhost' else host}:{port}"


def why_unguarded(endpoint: str | None, keys: str | None) -> str:
    """Why a daemon may not listen at an endpoint without keys; "" where it may.

    Args:
        endpoint: what `checked_endpoint` returned, or None.
        keys: a folder of keys, or None.
    """
    if endpoint is None or keys is not None or is_loopback(host_of(endpoint)):
        return ""
    return (
        f"{endpoint} would let other machines, and whoever uses them, write files here: make keys "
        "with `mle-daemon keys --out DIR` and give --keys DIR (or set MLE_KEYS), or listen at "
        "127.0.0.1"
    )
