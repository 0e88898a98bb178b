"""Whatever the bytes are that come in, they harm nobody but their sender (`tests/fuzz`).

A coverage-guided fuzzer looks longer: `make fuzz`.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "core"])
@given(data=st.binary(max_size=400))
def test_bytes_are_taken_for_what_they_are(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_random_bytes_in_quantity(name: str) -> None:
    random_bytes = random.Random(1).randbytes
    for size in (8, 60, 400):
        for _ in range(15 if name == "core" else 300):
            TARGETS[name](random_bytes(size))
