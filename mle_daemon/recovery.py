"""How every start begins: take the root, and bring back what the last daemon knew.

There is no other start: after a clean end there is just little to bring back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from mle_client import files, layout
from mle_daemon import events as e
from mle_daemon.journal import read_segments

_LOG = logging.getLogger(__name__)


def journal_directory(root: str) -> str:
    """Where the journal of a root lies, made if need be."""
    path = layout.state_path(root, layout.JOURNAL_DIR)
    files.make_folders(path, 0o700)
    files.sync_folders(path, root)  # our folder was made by whoever took the lock
    return path


def replay(directory: str, deliver: Callable[[e.Event], None]) -> list[int]:
    """Deliver every record of the journal, oldest first.

    A torn end is what a kill leaves.  Damage is reported, and what follows it is kept.

    Returns:
        The numbers of the segments that lie there.

    Raises:
        LogDamaged: a file there is not ours, or of a newer release.
    """
    numbers = []
    for segment in read_segments(directory):
        numbers.append(segment.number)
        if segment.scan.verdict == "damaged":
            _LOG.error("journal segment %d is damaged; going on behind that", segment.number)
        for record in segment.payloads():
            deliver(e.Replayed(segment.number, bytes(record)))
    deliver(e.Recovered())
    return numbers
