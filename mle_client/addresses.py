"""Addresses of daemons: which of them others than this user can reach, and where they lead.

Pure.  An address is ZeroMQ's: "ipc://path" for a socket file, "tcp://host:port" for a port.
"""

from __future__ import annotations

from typing import Final

LOOPBACK: Final = "127.0.0.1"
# What a daemon is bound to that listens at every address of its machine.
_EVERY_HOST: Final = ("*", "0.0.0.0")


def is_tcp(address: str) -> bool:
    """Whether an address is a port, which every user of a machine can connect to."""
    return address.startswith("tcp://")


def host_of(address: str) -> str:
    """The host in an address of TCP; "" where there is none."""
    return address.partition("://")[2].rpartition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether only this very machine reaches a host; names count as others, but "localhost"."""
    if host == "localhost":
        return True
    import ipaddress  # most clients have a daemon at a path

    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def seen_from_client(address: str, host: str) -> str:
    """What to connect to for an address that a daemon is bound to.

    Args:
        address: where the daemon listens.
        host: by which its machine is reached, for one that listens at all of that.
    """
    if is_tcp(address) and host_of(address) in _EVERY_HOST:
        return f"tcp://{host}:{address.rpartition(':')[2]}"
    return address
