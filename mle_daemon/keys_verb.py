"""`mle-daemon keys`: makes the keys of a daemon at a TCP port and of its clients.

It never replaces a key: whoever has the old one would be shut out.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import tempfile

from mle_client import files
from mle_client.errors import KeysUnusable
from mle_client.keys import CLIENT, KEYS_VARIABLE, SERVER, ServerKeys, server_keys


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    verb.add_argument(
        "--out",
        default=os.environ.get(KEYS_VARIABLE) or None,
        metavar="DIR",
        help=f"the folder to make, for you alone (default: {KEYS_VARIABLE})",
    )


def make(folder: str) -> ServerKeys:
    """Make a folder of keys, all of it or nothing: a pair for the daemon, one for clients.

    Raises:
        KeysUnusable: there is something at that path already.
        OSError: it cannot be written.
    """
    import zmq.auth

    if not zmq.has("curve"):
        raise KeysUnusable(folder, "this libzmq has no CURVE: install pyzmq from a wheel of PyPI")
    parent = os.path.dirname(folder)
    os.makedirs(parent, exist_ok=True)
    unfinished = tempfile.mkdtemp(prefix=".mle-keys-", dir=parent)  # closed to others
    try:
        for name in (SERVER, CLIENT):
            zmq.auth.create_certificates(unfinished, name)
        for name in os.listdir(unfinished):
            path = os.path.join(unfinished, name)
            os.chmod(path, 0o600)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        files.sync_folder(unfinished)
        os.rename(unfinished, folder)  # an empty folder is replaced
        files.sync_folder(parent)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        why = "there is something at that path, and keys are never replaced: give another one"
        raise KeysUnusable(folder, why) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return server_keys(folder)
