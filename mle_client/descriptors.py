"""Whether this process has descriptors left for a connection.

libzmq ends the process where it finds none for what it opens inside (4.3.5, `epoll.cpp`), so that
has to be known before it is asked.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

# A context with its threads, a socket and its connection take some 15; user code goes on meanwhile.
NEEDED: Final = 32


def require() -> None:
    """Raise unless there are enough descriptors for a connection.

    Raises:
        OSError: there are too few; says what to do.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    try:
        left = limit - len(os.listdir("/dev/fd"))
    except OSError as error:  # not even for that, or no such folder here
        if error.errno != errno.EMFILE:
            return
        left = 0
    if left < NEEDED:
        raise OSError(
            errno.EMFILE,
            f"only {left} descriptors are left, too few for a connection to the daemon: close "
            "files or raise `ulimit -n`; the ticks stay in the ring meanwhile",
        )
