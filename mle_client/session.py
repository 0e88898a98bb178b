"""The client's half of delivery: what of a stream to send, and what is safe.

Pure: positions and times in, decisions out.  `transport` does what it says.

Delivery is at least once: after every new connection the stream is sent again from the last
acknowledged position, and the daemon drops what it has.  With the position that the log file keeps,
that makes it exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Without any progress for so long, a connection is given up and made anew: longer than any pause
# of a healthy daemon, short enough that a lost one is noticed before the memory is used up.
STALL_AFTER_S: Final = 5.0


@dataclass(slots=True)
class Session:
    """Delivery of one stream.  All positions count bytes from the stream's beginning.

    Args:
        acked: everything before it is in the daemon's journal.
        sent: everything before it was sent on the present connection.
        published: everything before it is in the log file.
        ticks: acknowledged.
    """

    acked: int = 0
    sent: int = 0
    published: int = 0
    ticks: int = 0
    _progress_at: float = 0.0

    def connected(self, now: float) -> None:
        """A connection was made.  Next: send from `acked` on."""
        self.sent = self.acked
        self._progress_at = now

    def may_send(self, window: int) -> int:
        """How many bytes may be sent beyond `sent` now.  Args: window: granted by the daemon."""
        return max(0, self.acked + window - self.sent)

    def sent_to(self, position: int, now: float) -> None:
        """Everything before a position was handed to the socket."""
        if self.sent == self.acked:
            self._progress_at = now
        self.sent = max(self.sent, position)

    def acknowledged(self, position: int, ticks: int, published: int, now: float) -> None:
        """An acknowledgement came.  Older ones than already seen change nothing."""
        if position > self.acked:
            self._progress_at = now
        self.acked = max(self.acked, position)
        self.sent = max(self.sent, self.acked)
        self.ticks = max(self.ticks, ticks)
        self.published = max(self.published, published)

    def expected(self, position: int) -> None:
        """The daemon asks for the stream from a position on."""
        self.sent = min(self.sent, position)

    def stalled(self, now: float) -> bool:
        """Whether something was sent and nothing has come back for too long."""
        return self.sent > self.acked and now - self._progress_at > STALL_AFTER_S
