"""CONTRIBUTING.md and the files it speaks of say the same."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
CONTRIBUTING = (TREE / "CONTRIBUTING.md").read_text()


def contract(name: str) -> configparser.SectionProxy:
    """A contract of .importlinter."""
    parser = configparser.ConfigParser()
    parser.read(TREE / ".importlinter")
    return parser[f"importlinter:contract:{name}"]


def layers(package: str) -> list[str]:
    """The modules of a package's layers, high to low."""
    text = contract(f"{package.removeprefix('mle_')}-layers")["layers"]
    return re.findall(r"\w+", text)


def table(package: str) -> list[str]:
    """The first column of the table about a package's layers, line by line."""
    after = CONTRIBUTING.partition(f"| layer of `{package}`")[2]
    rows = after.partition("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1] for row in rows]


@pytest.mark.parametrize("package", ["mle_client", "mle_daemon"])
def test_every_module_has_its_place_in_the_table(package: str) -> None:
    named = re.findall(r"`(\w+)`", " ".join(table(package)))

    assert sorted(named) == sorted(layers(package))


@pytest.mark.parametrize("package", ["mle_client", "mle_daemon"])
def test_the_table_marks_the_pure_modules(package: str) -> None:
    marked = re.findall(r"`(\w+)` \[p\]", " ".join(table(package)))
    pure = contract("pure")["source_modules"].split()

    assert {f"{package}.{name}" for name in marked} == {
        name for name in pure if name.startswith(f"{package}.")
    }


def test_every_make_command_it_names_exists_and_the_other_way_round() -> None:
    named = set(re.findall(r"`make (\w+)`? ", CONTRIBUTING.replace("` |", " |")))
    targets = set(re.findall(r"^([a-z]+):.*##", (TREE / "Makefile").read_text(), re.MULTILINE))

    assert named == targets - {"help", "clean"}
