"""How much of everything clients may have at once, and what those are told who want more.

Pure.  A daemon serves many; one that never stops asking must not take the memory or the time of the
others.  No bound is reached by sensible use: a thousand runs of a sweep, a million artifacts over
the time, a reader at every log.  Bounds of single messages, which both sides know, are in
`mle_client.messages`; those of one connection's bytes in `server` and `artifact_server`.
"""

from __future__ import annotations

from typing import Final

# Runs that go on, with 64 KiB each at most while they are quiet.
MAX_RUNS: Final = 10_000
# Configurations and settings of all of them: they are in memory, and a segment of the journal
# begins with them, whose records end at 1 GiB.
MAX_SETTINGS_BYTES: Final = 256 * 2**20
# Processes that log to one run; its file names each of them.
MAX_PRODUCERS: Final = 10_000
# Artifacts of one run that are announced and not stored; a client stops at half of that.
MAX_WAITING_ARTIFACTS: Final = 20_000
# `flush()` calls that wait for one run: what has timed out at a client waits on here.
MAX_FLUSHES: Final = 1_000
# Readers that wait, and the runs that all of them together wait for.  As many may wait, with those
# who want to stop the daemon, until what dead processes have left is taken in.
MAX_READERS: Final = 1_000
MAX_AWAITED_RUNS: Final = 100_000
MAX_STOPS: Final = 1_000
# Streams that are told when there is room in memory again; others find out by themselves.
MAX_PUT_OFF: Final = 10_000
# Reports for one connection, of some 600 KB each where a thousand runs are listed: what it does not
# fetch stays in memory.  Ours make a connection for each.
MAX_REPORTS: Final = 64
REPORTED_KEPT: Final = 1_000  # connections whose reports are counted

# Lines about what clients send that is not right: the log tells of the first, and counts the rest.
REFUSALS_LOGGED: Final = 10
REFUSALS_PERIOD_S: Final = 60.0

TOO_MANY_RUNS: Final = (
    f"the daemon has {MAX_RUNS} runs that go on, which is the most: log to another folder, which "
    "has a daemon of its own, or wait until some have ended; until then the ticks stay in the ring"
)
TOO_MUCH_CONFIGURED: Final = (
    f"the configurations of the daemon's runs exceed {MAX_SETTINGS_BYTES} bytes: keep large values "
    "out of them, log to another folder, or wait until some runs have ended; until then the ticks "
    "stay in the ring"
)
TOO_MANY_PRODUCERS: Final = (
    f"{MAX_PRODUCERS} processes log to this run, which is the most: let fewer of them log; the "
    "ticks of this one stay in its ring"
)
TOO_MANY_ARTIFACTS: Final = (
    f"{MAX_WAITING_ARTIFACTS} artifacts of this run wait to be stored, which is the most: save "
    "less often"
)
TOO_MANY_FLUSHES: Final = (
    f"{MAX_FLUSHES} flushes of this run wait already: call flush() less often, or give it more time"
)
TOO_MANY_READERS: Final = (
    f"{MAX_READERS} readers, or readers of {MAX_AWAITED_RUNS} runs, wait already: try again later"
)
TOO_MANY_STOPS: Final = f"{MAX_STOPS} others have asked the daemon to stop and wait for that"
TOO_MANY_REPORTS: Final = (
    f"{MAX_REPORTS} reports were sent on this connection: make another one for the next"
)


class Sparingly:
    """Lets some lines through in a period of time, and counts those that it keeps back.

    Args:
        lines: in a period.
        period_s: seconds.
    """

    def __init__(self, lines: int = REFUSALS_LOGGED, period_s: float = REFUSALS_PERIOD_S) -> None:
        self._lines = lines
        self._period_s = period_s
        self._since = -period_s
        self._said = self._kept_back = 0

    def line(self, text: str, now: float) -> str:
        """What is to be written: the line, with how many were kept back before; "" for nothing."""
        if now - self._since >= self._period_s:
            self._since, self._said = now, 0
        if self._said >= self._lines:
            self._kept_back += 1
            return ""
        self._said += 1
        kept_back, self._kept_back = self._kept_back, 0
        return f"{text} ({kept_back} more before it were not logged)" if kept_back else text
