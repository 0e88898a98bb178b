"""When a run is due."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_daemon.config import DaemonConfig
from mle_daemon.schedule import Due, publish_at

CONFIG = DaemonConfig("/exps")
# A large file with a small tail, nobody waiting.  It was published at 100, ticks came at 110.
QUIET = Due(
    tail_bytes=1_000, file_bytes=1_000_000, dirty_since=110.0, published_at=100.0,
    publish_cost=0.0, wanted_now=False, save_wanted=False, retry_at=0.0,
)  # fmt: skip


def test_without_anybody_waiting_a_small_tail_waits_for_the_maximum_age() -> None:
    assert publish_at(QUIET, CONFIG) == 110.0 + CONFIG.publish_max_age_s


def test_a_quarter_of_the_file_is_worth_a_copy_of_it() -> None:
    at = 110.0 + CONFIG.publish_min_age_s
    assert publish_at(replace(QUIET, tail_bytes=250_000), CONFIG) == at
    assert publish_at(replace(QUIET, tail_bytes=249_999), CONFIG) > at


def test_the_first_publication_of_a_run_comes_soon() -> None:
    first = replace(QUIET, file_bytes=0, published_at=0.0)
    assert publish_at(first, CONFIG) == 110.0 + CONFIG.publish_min_age_s


def test_who_waits_is_served_at_once_whatever_it_costs() -> None:
    assert publish_at(replace(QUIET, wanted_now=True, publish_cost=100.0), CONFIG) == 0.0


def test_saving_is_served_as_soon_as_the_file_has_rested() -> None:
    saving = replace(QUIET, save_wanted=True)
    assert publish_at(saving, CONFIG) == 100.0 + CONFIG.publish_min_age_s
    assert publish_at(replace(saving, publish_cost=0.5), CONFIG) == 105.0
    assert publish_at(replace(saving, publish_cost=100.0), CONFIG) <= (
        110.0 + CONFIG.publish_max_age_s
    )


def test_saving_a_large_file_is_bounded_in_bytes_a_second() -> None:
    saving = replace(QUIET, save_wanted=True, file_bytes=int(20 * CONFIG.publish_bytes_per_s))
    assert publish_at(saving, CONFIG) == 120.0


@pytest.mark.parametrize(
    "due",
    [
        QUIET,
        replace(QUIET, wanted_now=True),
        replace(QUIET, save_wanted=True),
        replace(QUIET, tail_bytes=10**6),
    ],
)
def test_after_a_failure_nothing_is_tried_before_its_time(due: Due) -> None:
    assert publish_at(replace(due, retry_at=1_000.0), CONFIG) == 1_000.0


@given(
    st.builds(
        Due,
        tail_bytes=st.integers(0, 10**12),
        file_bytes=st.integers(0, 10**12),
        dirty_since=st.floats(0, 1e6),
        published_at=st.floats(0, 1e6),
        publish_cost=st.floats(0, 1e4),
        wanted_now=st.booleans(),
        save_wanted=st.booleans(),
        retry_at=st.just(0.0),
    )
)
def test_no_tick_is_ever_older_than_the_maximum_age_unless_the_file_was_just_written(
    due: Due,
) -> None:
    latest = max(due.dirty_since, due.published_at) + CONFIG.publish_max_age_s
    assert publish_at(due, CONFIG) <= latest
    asked = replace(due, wanted_now=True)
    assert publish_at(asked, CONFIG) <= publish_at(due, CONFIG)
