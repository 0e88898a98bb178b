"""Row numbers, those of no update among them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mle_client import updates


def rows_of(unknown: int, known: set[int]) -> np.ndarray:
    return np.array([*range(-unknown, 0), *sorted(known)], np.int64)


row_numbers = st.builds(rows_of, st.integers(0, 3), st.sets(st.integers(0, 9)))


@given(row_numbers, row_numbers)
def test_columns_meet_at_the_updates_that_are_known_of_both(
    rows: np.ndarray, others: np.ndarray
) -> None:
    at, at_other = updates.common(rows, others)

    shared = sorted(set(rows.tolist()) & set(others.tolist()) & set(range(10)))
    assert rows[at].tolist() == others[at_other].tolist() == shared


def test_values_of_unknown_updates_are_counted() -> None:
    rows = rows_of(2, {0, 5})

    assert updates.count_unknown(rows) == 2
    assert rows[updates.known(rows)].tolist() == [0, 5]


def test_what_is_left_out_is_named_with_its_runs() -> None:
    assert updates.left_out("acc", 3).startswith("3 values of 'acc': nobody knows at which updates")
    assert "'acc' of seed_1, seed_2: nobody" in updates.left_out("acc", 3, ["seed_1", "seed_2"])
