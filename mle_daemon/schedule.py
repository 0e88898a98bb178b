"""When a run is published and sealed.

Pure: the state of a run and the time in, yes or no and a time out.

A publication copies the whole file, so it must be rare: growth by a quarter makes the bytes written
over a run's life at most five times its size, and a share of the time bounds what `save()` at every
tick can cost.  A reader who asks, a flush and a run's end are served at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from mle_daemon.config import DaemonConfig


@dataclass(frozen=True, slots=True)
class Due:
    """What decides about a run.  Times are seconds of one monotonic clock.

    Args:
        tail_bytes: not published yet.
        file_bytes: of the published file; 0 if there is none.
        dirty_since: when the oldest of the tail came.
        published_at: when the last publication ended.
        publish_cost: seconds that it took.
        wanted_now: a reader, a flush or the run's end waits for it.
        save_wanted: `save()` asked for it.
        retry_at: not before that time, after a failure.
    """

    tail_bytes: int
    file_bytes: int
    dirty_since: float
    published_at: float
    publish_cost: float
    wanted_now: bool
    save_wanted: bool
    retry_at: float


def publish_at(due: Due, config: DaemonConfig) -> float:
    """The time at which a run that has something to publish is to be published."""
    if due.wanted_now:
        return due.retry_at
    rest = max(
        config.publish_min_age_s,
        config.publish_cost_factor * due.publish_cost,
        due.file_bytes / config.publish_bytes_per_s,
    )
    rested = due.published_at + min(rest, config.publish_max_age_s)
    grown = due.tail_bytes >= config.publish_growth * due.file_bytes
    if due.save_wanted:
        return max(rested, due.retry_at)
    if grown:
        return max(rested, due.dirty_since + config.publish_min_age_s, due.retry_at)
    return max(due.dirty_since + config.publish_max_age_s, due.retry_at)
