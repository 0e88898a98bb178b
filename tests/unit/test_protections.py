"""The list of protections fits the code and the documentation; `make protections` tries it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.protection_list import PROTECTIONS
from tests.protections import PROJECT, Protection

PAGE = PROJECT / "docs" / "reliability.md"


@pytest.mark.parametrize("protection", PROTECTIONS, ids=lambda each: each.name)
def test_it_can_be_switched_off_by_one_edit(protection: Protection) -> None:
    code = (PROJECT / protection.file).read_text()
    assert code.count(protection.code) == 1
    assert protection.code != protection.without


@pytest.mark.parametrize("protection", PROTECTIONS, ids=lambda each: each.name)
def test_its_test_exists_and_the_page_tells_of_both(protection: Protection) -> None:
    test = protection.test.split(" ")[0].split("::")[0]
    assert (PROJECT / test).is_file()
    (line,) = [line for line in PAGE.read_text().splitlines() if f"| {protection.name} |" in line]
    assert f"[{Path(test).stem}](../{test})" in line


def test_no_two_have_a_name() -> None:
    names = [protection.name for protection in PROTECTIONS]
    assert sorted(set(names)) == sorted(names)
