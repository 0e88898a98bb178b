from __future__ import annotations

import pytest

from mle_client.seeds import described, different_settings, natural_key, seed_number


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seed_12", 12),
        ("seed_0", 0),
        ("seed_-3", -3),
        ("seed_007", "seed_007"),
        ("seed_x", "seed_x"),
        ("seed_", "seed_"),
        ("alpha_run", "alpha_run"),
        ("12", "12"),
        ("no_seed_provided", "no_seed_provided"),
    ],
)
def test_only_seeds_named_by_a_number_become_one(name, expected) -> None:
    assert seed_number(name) == expected


def test_numbers_in_names_are_sorted_by_value() -> None:
    names = ["seed_10", "seed_2", "seed_²", "a", "seed_1_dup2"]
    assert sorted(names, key=natural_key) == ["a", "seed_1_dup2", "seed_2", "seed_10", "seed_²"]


@pytest.mark.parametrize(
    ("one", "other", "differences"),
    [
        ({}, {}, []),
        ({"lr": 0.1}, {"lr": 0.1}, []),
        ({"lr": 0.1}, {"lr": 0.2}, ["lr: 0.1 / 0.2"]),
        ({"lr": 0.1}, {}, ["lr: 0.1 / not set"]),
        ({"net": {"width": 1, "act": "relu"}}, {"net": {"width": 2, "act": "relu"}},
         ["net.width: 1 / 2"]),
        ({"net": {}}, {"net": {"width": 2}}, ["net: {} / not set", "net.width: not set / 2"]),
        # Which seed it is may be configured.
        ({"seed": 1, "lr": 0.1}, {"seed": 2, "lr": 0.1}, []),
        ({"train": {"random_seed": 1}}, {"train": {"random_seed": 2}}, []),
        ({"Seeds": [1]}, {}, []),
        ({"lr": float("nan")}, {"lr": float("nan")}, []),
        ({"on": True}, {"on": 1}, ["on: True / 1"]),
        ("text", "text", []),
        ("text", {}, ["'text' / {}"]),
    ],
)  # fmt: skip
def test_two_configurations_are_one_if_nothing_but_seeds_differs(one, other, differences) -> None:
    assert different_settings(one, other) == differences


def test_many_differences_are_cut_short() -> None:
    assert described(["a: 1 / 2"]) == "a: 1 / 2"
    assert described([f"{name}: 1 / 2" for name in "abcde"]) == (
        "a: 1 / 2, b: 1 / 2, c: 1 / 2 and 2 more"
    )
