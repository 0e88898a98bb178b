"""The table of mle-logging's names is whole, and leads somewhere."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from mle_client.compat_names import MODULES, full_name, inside

OURS = [(module, name) for module, content in MODULES.items() for name in content.ours]


@pytest.mark.parametrize(("module", "name"), OURS)
def test_every_name_of_ours_is_there(module: str, name: str) -> None:
    home, name_there = MODULES[module].home(name)
    if importlib.util.find_spec(f"mle_client.{home}") is None:
        pytest.xfail(f"there is no mle_client.{home}")

    assert hasattr(importlib.import_module(f"mle_client.{home}"), name_there)


def test_no_name_is_both_there_and_missing() -> None:
    for content in MODULES.values():
        assert content.ours.keys().isdisjoint(content.missing)


def test_a_package_has_its_modules() -> None:
    assert inside("merge") == ["merge_logs", "merge_hdf5", "aggregate"]
    assert inside("mle_logger") == []
    assert {"load", "merge", "utils", "save"} <= set(inside(""))
    assert (full_name(""), full_name("save.stats_log")) == (
        "mle_logging", "mle_logging.save.stats_log"
    )  # fmt: skip
