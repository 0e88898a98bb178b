"""The keys that a daemon at a TCP port and its clients show each other, in files of this user's.

With them ZeroMQ's CURVE encrypts the connection, and each side proves that it has the secret of a
public key that the other one knows.  A folder of keys holds ZeroMQ's certificates:

    server.key  server.key_secret   the daemon's
    client.key  client.key_secret   of the clients that use this folder
    *.key                           further clients that the daemon lets in

A client needs server.key and its own two.  Whoever reads a secret can pass for its owner, so the
folder must be closed to others.  Nothing is written here: `mle-daemon keys` makes the files.
"""

from __future__ import annotations

import glob
import os
import stat
import struct
from dataclasses import dataclass, field
from typing import Any, Final

from mle_client import addresses
from mle_client.errors import KeysUnusable

KEYS_VARIABLE: Final = "MLE_KEYS"
SERVER, CLIENT = "server", "client"
PUBLIC_SUFFIX, SECRET_SUFFIX = ".key", ".key_secret"


@dataclass(frozen=True)
class ClientKeys:
    """What a client shows and expects, in Z85.  Args: folder: that they come from."""

    folder: str
    server: bytes
    public: bytes
    secret: bytes = field(repr=False)

    def put_on(self, socket: Any) -> None:
        """Have a socket of ZeroMQ use them for what it connects to from now on."""
        socket.curve_serverkey = self.server
        socket.curve_publickey = self.public
        socket.curve_secretkey = self.secret


@dataclass(frozen=True)
class ServerKeys:
    """What a daemon shows and expects, in Z85.  Args: clients: public keys that it lets in."""

    public: bytes
    secret: bytes = field(repr=False)
    clients: frozenset[bytes]


def client_keys(folder: str) -> ClientKeys:
    """The keys of a client.

    Raises:
        KeysUnusable: one is missing or damaged, or others than this user can read them.
    """
    _check_private(folder)
    server, _ = _load(folder, SERVER + PUBLIC_SUFFIX)
    return ClientKeys(folder, server, *_load_pair(folder, CLIENT))


def server_keys(folder: str) -> ServerKeys:
    """The keys of a daemon.

    Raises:
        KeysUnusable: as of `client_keys`; also where it would let nobody in.
    """
    _check_private(folder)
    public, secret = _load_pair(folder, SERVER)
    names = sorted(map(os.path.basename, glob.glob(os.path.join(glob.escape(folder), "*.key"))))
    others = [name for name in names if name != SERVER + PUBLIC_SUFFIX]
    if not others:
        raise KeysUnusable(folder, f"no client's key is in it, such as {CLIENT}{PUBLIC_SUFFIX}")
    return ServerKeys(public, secret, frozenset(_load(folder, name)[0] for name in others))


def keys_for(address: str, *, known: bool, advertised: str | None) -> ClientKeys | None:
    """The keys for the connection to a daemon; None for one that wants none.

    Args:
        address: to connect to.
        known: whether the daemon has said of itself, in a file of this user's, how it was started.
        advertised: the folder of keys that it named there, if any.

    Raises:
        KeysUnusable: as of `client_keys`; or other machines would carry the connection, and there
            are no keys for it.
    """
    if not addresses.is_tcp(address):
        return None
    folder = os.environ.get(KEYS_VARIABLE) or advertised
    if known and advertised is None:
        folder = None
    if folder is not None:
        return client_keys(os.path.abspath(os.path.expanduser(folder)))
    if addresses.is_loopback(addresses.host_of(address)):
        return None
    raise KeysUnusable(
        address,
        "a daemon is reached through a network with keys only: set MLE_KEYS to a folder with its "
        "server.key and your client.key and client.key_secret, as `mle-daemon keys` makes them",
    )


# --- files ----------------------------------------------------------------------------------------
def _check_private(folder: str) -> None:
    try:
        found = os.stat(folder)
    except OSError as error:
        raise KeysUnusable(
            folder, f"{error.strerror}: make keys with `mle-daemon keys --out {folder}`"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise KeysUnusable(folder, "it is no folder: give the one that `mle-daemon keys` made")
    _check_ours(folder, found, "700")


def _check_ours(path: str, found: os.stat_result, mode: str) -> None:
    if found.st_uid != os.geteuid():
        raise KeysUnusable(path, f"it belongs to user {found.st_uid}, who could change it")
    if open_to := stat.S_IMODE(found.st_mode) & 0o077:
        raise KeysUnusable(
            path, f"other users can get at it (mode {open_to:03o} too much): chmod {mode} it"
        )


def _load_pair(folder: str, name: str) -> tuple[bytes, bytes]:
    import zmq

    path = os.path.join(folder, name + SECRET_SUFFIX)
    public, secret = _load(folder, name + SECRET_SUFFIX)
    if secret is None or zmq.curve_public(secret) != public:
        raise KeysUnusable(path, "it holds no pair of keys: it is damaged, or none of ours")
    return public, secret


def _load(folder: str, name: str) -> tuple[bytes, bytes | None]:
    """The public key of a certificate, and its secret key if it has one."""
    import zmq.auth
    from zmq.utils import z85

    path = os.path.join(folder, name)
    try:
        if name.endswith(SECRET_SUFFIX):
            _check_ours(path, os.stat(path), "600")
        public, secret = zmq.auth.load_certificate(path)
        if any(len(z85.decode(key)) != 32 for key in (public, secret) if key is not None):
            raise ValueError("a key has 32 bytes")
    except OSError as error:
        raise KeysUnusable(path, error.strerror or str(error)) from error
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise KeysUnusable(path, f"it is no certificate of ZeroMQ ({error})") from error
    return public, secret
