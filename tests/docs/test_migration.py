"""docs/migration.md has the table that the differential test reads, and speaks of what is there."""

from __future__ import annotations

import re
from pathlib import Path

from mle_client import utils
from mle_client.compat_names import MODULES
from tests.compat.intended_differences import rendered

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()


def test_the_page_has_the_table_of_intended_differences() -> None:
    assert PAGE.endswith(f"\n{rendered().rstrip()}\n"), (
        "print it with `python tests/compat/intended_differences.py`"
    )


def test_no_cell_of_the_table_breaks_its_row() -> None:
    rows = [line for line in rendered().splitlines() if line.startswith("|")]

    assert {line.replace(r"\|", "").count("|") for line in rows} == {6}


def test_the_page_names_the_helpers_and_what_has_no_counterpart() -> None:
    for name in utils.__all__:
        assert f"`{name}`" in PAGE
    missing = {name for module in MODULES.values() for name in module.missing}
    for name in ("TboardLog", "WandbLog", "write_to_hdf5", "tolerant_median"):
        assert name in missing
        assert re.search(rf"`[\w.]*{name}`", PAGE), name
