"""Arguments of the logger: what is taken, and what a refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mle_client import arguments


@pytest.mark.parametrize("given", [4, np.int64(4), np.uint8(4)], ids=type)
def test_a_number_of_seeds_may_be_of_any_integer_type(given: Any) -> None:
    assert type(arguments.checked_num_seeds(given)) is int
    assert arguments.checked_num_seeds(given) == 4
    assert arguments.checked_num_seeds(None) is None


@pytest.mark.parametrize("given", [4.0, "4", True, np.float64(4), [4], b"4"], ids=repr)
def test_what_is_no_integer_is_no_number_of_seeds(given: Any) -> None:
    with pytest.raises(TypeError, match=r"num_seeds=.*: give a whole number from 1 to 1,000,000"):
        arguments.checked_num_seeds(given)


@pytest.mark.parametrize("given", [0, -3, 10**6 + 1, 2**70, 10**5000], ids=int.bit_length)
def test_a_number_of_seeds_has_bounds(given: int) -> None:
    with pytest.raises(ValueError, match=r"num_seeds is too (small|large): give a whole number"):
        arguments.checked_num_seeds(given)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("c.yaml", "- 1\n- 2\n", "list"),
        ("c.yaml", "hello\n", "str"),
        ("c.yaml", "0\n", "int"),
        ("c.json", "[]", "list"),
        ("c.json", '[["a", 1]]', "list"),
    ],
    ids=["list", "text", "number", "empty list", "pairs"],
)
def test_a_configuration_file_without_names_is_refused_with_advice(
    tmp_path: Path, name: str, text: str, kind: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{name} holds a {kind}.*write `name: value`"):
        arguments.loaded_config(str(path), None)


@pytest.mark.parametrize(("name", "text"), [("c.yaml", ""), ("c.yaml", "~"), ("c.json", "null")])
def test_a_configuration_file_may_hold_nothing(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert arguments.loaded_config(str(path), None) == {}
